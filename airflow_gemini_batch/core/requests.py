"""
Second step: a row becomes a keyed request; keys are stable. Knows the request's JSON; knows nothing of files or jobs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from airflow_gemini_batch.core.rows import TEXT_COLUMN, Row, check_columns
from airflow_gemini_batch.exceptions import BadRow, InvalidConfig

NOTHING_TO_SEND = "the prompt is empty, so nothing was sent"


@dataclass(frozen=True)
class Prompt:
    """
    A text with ``{column}`` places. ``{{`` and ``}}`` are literal braces.

    :param pieces: literal texts and column names in turn, beginning and ending with a text.
    """

    pieces: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Prompt:
        """:raises InvalidConfig: a brace is left over."""
        pieces, literal, end = [], "", 0
        for m in re.finditer(r"\{\{|\}\}|\{([^{}]*)\}|[{}]", text):
            literal += text[end : m.start()]
            end = m.end()
            if m[0] in ("{{", "}}"):
                literal += m[0][0]
            elif m[1] is not None and m[1].strip():
                pieces += [literal, m[1].strip()]
                literal = ""
            else:
                raise InvalidConfig(
                    f"prompt has a lone {m[0]!r} at character {m.start() + 1}. A place is {{column}}; write {{{{ and }}}} "
                    "for literal braces."
                )
        return cls((*pieces, literal + text[end:]))

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.pieces[1::2]))

    def fill(self, values: Mapping[str, Any]) -> str:
        """Return the text for one row, ``""`` when every place is blank (a null counts as blank)."""
        if len(self.pieces) == 1:
            return self.pieces[0].strip() and self.pieces[0]
        filled = [*self.pieces]
        blank = True
        for i in range(1, len(filled), 2):
            value = values[filled[i]]
            filled[i] = "" if value is None else value if isinstance(value, str) else _as_text(value)
            blank = blank and not filled[i].strip()
        return "" if blank else "".join(filled)


def _as_text(value: object) -> str:
    if isinstance(value, dict | list):
        return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    return str(value)


def _unsendable(e: TypeError) -> str:
    return "is not valid Unicode (a lone surrogate)" if "UTF-8" in str(e) else f"cannot be sent: {e}"


@dataclass(frozen=True)
class Spec:
    """
    What one run asks of every row: all that decides the bytes sent, and nothing else.

    :param prompt: None: rows are strings, or ready-made ``{"key", "request"}`` records.
    :param template: the fields of a GenerateContentRequest that all rows share.
    :param key: column that identifies a row; None: its number.
    :param keep: columns copied to the result.
    """

    model: str
    prompt: str | None = None
    template: Mapping[str, Any] = field(default_factory=dict)
    key: str | None = None
    keep: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "prompt": self.prompt,
            "template": dict(self.template),
            "key": self.key,
            "keep": list(self.keep),
        }


@dataclass(frozen=True, slots=True)
class Request:
    """
    A keyed request, or the reason why nothing is sent for this key.

    :param line: the JSONL line as it is sent, with its newline; empty when ``unsent`` says why.
    """

    key: str
    line: bytes
    keep: Mapping[str, Any]
    unsent: str | None = None


class RequestBuilder:
    """
    Turns rows into requests under one spec.

    :param max_bytes: most bytes of one line.
    :raises InvalidConfig: the prompt cannot be read.
    """

    def __init__(self, spec: Spec, *, max_bytes: int) -> None:
        self._spec, self._max_bytes = spec, max_bytes
        self._prompt = Prompt.parse(spec.prompt) if spec.prompt is not None else None
        self._tail = orjson.dumps(dict(spec.template))[1:-1]
        needed = dict.fromkeys(self._prompt.columns, "prompt") if self._prompt else {}
        if spec.key is not None:
            needed.setdefault(spec.key, "key")
        for name in spec.keep:
            needed.setdefault(name, "keep")
        self._needed = needed

    @property
    def needed(self) -> dict[str, str]:
        """Column → the setting that names it. Empty when every row must be read whole."""
        return self._needed if self._prompt is not None else {}

    @property
    def same_for_all(self) -> bool:
        """The prompt has no place, so every row would ask the same."""
        return self._prompt is not None and not self._prompt.columns

    def key(self, row: Row) -> str:
        """:raises BadRow: the row has no usable key."""
        return self._key(row, default="key" if self._prompt is None and "request" in row.values else None)

    def build(self, row: Row) -> Request:
        """
        :raises BadRow: the row has no usable key, holds text that is not valid Unicode, or is too large.
        :raises UnknownColumn: it lacks a column that the settings name.
        """
        values = row.values
        for name in self._needed:
            if name not in values:
                check_columns(self._needed, values, row.where)
        if self._prompt is None and "request" in values:
            return self._ready_made(row)
        key = self.key(row)
        keep = {name: values[name] for name in self._spec.keep}
        try:
            text = self._prompt.fill(values) if self._prompt is not None else self._bare_text(row)
            if not text.strip():
                return Request(key, b"", keep, NOTHING_TO_SEND)
            body = b'{"contents":[{"parts":[{"text":' + orjson.dumps(text) + b'}],"role":"user"}]'
        except TypeError as e:
            raise BadRow(row.where, f"its text {_unsendable(e)}") from e
        body += (b"," + self._tail if self._tail else b"") + b"}"
        return Request(key, self._line(row, key, body), keep)

    def _ready_made(self, row: Row) -> Request:
        values = row.values
        unknown = sorted(set(values) - {"key", "request"} - set(self._spec.keep) - {self._spec.key})
        if unknown:
            raise BadRow(row.where, f"a ready-made request has only key and request, not {', '.join(unknown)}")
        request = values["request"]
        if not isinstance(request, Mapping) or not request:
            raise BadRow(row.where, "request must be a JSON object with contents")
        key = self.key(row)
        try:
            body = orjson.dumps({**self._spec.template, **request}, option=orjson.OPT_NON_STR_KEYS)
        except TypeError as e:
            raise BadRow(row.where, f"its request {_unsendable(e)}") from e
        keep = {name: values[name] for name in self._spec.keep}
        return Request(key, self._line(row, key, body), keep)

    def _key(self, row: Row, default: str | None = None) -> str:
        column = self._spec.key or (default if default and default in row.values else None)
        if column is None:
            return str(row.number)
        value = row.values[column]
        if isinstance(value, float) and abs(value) >= 2**53:
            raise BadRow(row.where, f"the key {value!r} is a number that has lost digits; write long ids as text")
        key = "" if value is None else str(value)
        if not key.strip():
            raise BadRow(row.where, f"the key column {column!r} is empty; every row needs a key of its own")
        return key

    def _bare_text(self, row: Row) -> str:
        text = row.values.get(TEXT_COLUMN)
        if (text is not None and not isinstance(text, str)) or set(row.values) != {TEXT_COLUMN}:
            raise InvalidConfig(
                f"{row.where}: without a prompt, rows must be strings or ready-made requests, but this one has the columns "
                f"{', '.join(map(repr, row.values))}. Give a prompt with {{column}} places."
            )
        return text or ""

    def _line(self, row: Row, key: str, body: bytes) -> bytes:
        try:
            line = b'{"key":' + orjson.dumps(key) + b',"request":' + body + b"}\n"
        except TypeError as e:
            raise BadRow(row.where, f"its key {_unsendable(e)}") from e
        if len(line) > self._max_bytes:
            raise BadRow(
                row.where,
                f"its request (key {key!r}) has {len(line):,} bytes; one request may have {self._max_bytes:,}. "
                "Shorten the row, or send large content as a file.",
            )
        return line
