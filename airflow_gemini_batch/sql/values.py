"""Values of each kind as a database takes them: bound to a statement, or as text of PostgreSQL's COPY."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import orjson

REPLACEMENT = "\ufffd"

UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
"""NUL, which PostgreSQL's text cannot hold, and halves of surrogate pairs, which UTF-8 cannot."""

HALVES = re.compile("[\ud800-\udfff]")

NUL_IN_JSON = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")
"""An escaped NUL. A backslash before it that is itself escaped changes nothing, so they are counted in pairs."""

COPY_ESCAPES = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})


def base(kind: str) -> str:
    """A kind without its scale: ``decimal2`` is a ``decimal``."""
    return "decimal" if kind.startswith("decimal") else kind


class Texts:
    """
    Makes any text storable and counts what that cost.

    :param nul: the database's text can hold NUL.
    """

    def __init__(self, *, nul: bool) -> None:
        self._bad, self._nul = (HALVES if nul else UNSTORABLE), nul
        self.replaced = 0

    def text(self, value: Any) -> str:
        """Text as it is, anything else as JSON; characters that cannot be stored become U+FFFD."""
        if not isinstance(value, str):
            return self.json(value)
        return self._clean(value)

    def json(self, value: Any) -> str:
        """JSON text. What JSON has no word for becomes a string."""
        try:
            text = orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
        except TypeError:
            # Half surrogates, or an integer beyond 64 bits: the standard library takes both.
            text = self._clean(json.dumps(value, default=str, ensure_ascii=False))
        if not self._nul and r"\u0000" in text:
            text, found = NUL_IN_JSON.subn(lambda m: m[1] + REPLACEMENT, text)
            self.replaced += found
        return text

    def _clean(self, text: str) -> str:
        if text.isascii() and (self._nul or "\x00" not in text):
            return text
        text, found = self._bad.subn(REPLACEMENT, text)
        self.replaced += found
        return text


Cell = Callable[[Any], Any]


def moment(value: datetime) -> datetime:
    """A time with a zone, in UTC: a column that drops the zone then holds what its name says."""
    try:
        return value.astimezone(UTC) if value.tzinfo is not None else value
    except OverflowError:  # a few hours before the first or after the last day that Python knows
        return value


def same(value: Any) -> Any:
    return value


def bound_cells(texts: Texts) -> dict[str, Cell]:
    """Kind → how a value is given to a driver that knows Python's types."""
    return {
        "string": texts.text, "int64": int, "double": float, "bool": bool, "date": same, "timestamp": same,
        "timestamp_utc": moment, "binary": bytes, "decimal": Decimal,
        "json": texts.json, "floats": texts.json, "strings": texts.json,
    }  # fmt: skip


def sqlite_cells(texts: Texts) -> dict[str, Cell]:
    """Kind → how a value is given to SQLite, which knows numbers, text and bytes. Decimals as text keep every digit."""
    return bound_cells(texts) | {
        "bool": int, "decimal": str, "date": date.isoformat, "timestamp": str,
        "timestamp_utc": lambda value: str(moment(value)),
    }  # fmt: skip


def copy_cells(texts: Texts) -> dict[str, Cell]:
    """Kind → text of PostgreSQL's COPY, before escaping."""
    return {
        "string": texts.text, "int64": str, "double": lambda value: repr(float(value)),
        "bool": lambda value: "t" if value else "f",
        "date": date.isoformat, "timestamp": str, "timestamp_utc": lambda value: str(moment(value)),
        "binary": lambda value: rf"\x{value.hex()}", "decimal": str,
        "json": texts.json, "floats": texts.json, "strings": texts.json,
    }  # fmt: skip


def float_array(values: Iterable[float | None]) -> str:
    """A list of floats as PostgreSQL writes an array."""
    return "{" + ",".join("NULL" if value is None else repr(value) for value in values) + "}"


def row_maker(cells: Sequence[Cell]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """Return what makes a row storable; None stays None."""

    def make(row: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(None if value is None else cell(value) for cell, value in zip(cells, row, strict=True))

    return make


def copy_line(cells: Iterable[str | None]) -> str:
    r"""One line of COPY's text format: tabs between, ``\N`` for a null."""
    return "\t".join(r"\N" if cell is None else cell.translate(COPY_ESCAPES) for cell in cells) + "\n"
