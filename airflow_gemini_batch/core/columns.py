"""Types of the kept columns: seen while planning, stored in the plan, given back in Parquet. One table of kinds."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    import pyarrow as pa

MIXED = "string"
"""Columns of several kinds, of nested values or of nothing at all become text (JSON where they are not text)."""

DECIMAL_DIGITS = 38
"""Digits of Arrow's decimal128."""

INT64 = range(-(2**63), 2**63)


class SeenTypes:
    """Gathers what kinds of values each column holds over all rows, so that every part gets the same schema."""

    def __init__(self, columns: Iterable[str]) -> None:
        self._kinds: dict[str, set[str]] = {name: set() for name in columns}

    def add(self, values: Mapping[str, Any]) -> None:
        for name, kinds in self._kinds.items():
            if (value := values[name]) is not None:
                kinds.add(_kind(value))

    def types(self) -> dict[str, str]:
        """Column → Arrow type as text, e.g. ``{"stars": "int64"}``."""
        return {name: _common(kinds) for name, kinds in self._kinds.items()}


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int64" if value in INT64 else MIXED
    if isinstance(value, datetime):
        return "timestamp" if value.tzinfo is None else "timestamp_utc"
    if isinstance(value, Decimal):
        return _decimal_kind(value)
    for kind, name in ((float, "double"), (str, "string"), (date, "date"), (bytes, "binary")):
        if isinstance(value, kind):
            return name
    return MIXED


def _decimal_kind(value: Decimal) -> str:
    """``decimal<digits before the point>.<digits after it>``; no finite number is text."""
    _, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int):
        return MIXED
    return f"decimal{max(0, len(digits) + exponent)}.{max(0, -exponent)}"


def _common(kinds: set[str]) -> str:
    if kinds == {"int64", "double"}:
        return "double"
    if kinds and all(kind.startswith("decimal") for kind in kinds):
        digits, scales = zip(*(map(int, kind[7:].split(".")) for kind in kinds), strict=True)
        return f"decimal{max(scales)}" if max(digits) + max(scales) <= DECIMAL_DIGITS else MIXED
    return kinds.pop() if len(kinds) == 1 else MIXED


def arrow_type(kind: str) -> pa.DataType:
    """The Arrow type of a kind in :meth:`SeenTypes.types`."""
    import pyarrow as pa

    if kind.startswith("decimal"):
        return pa.decimal128(DECIMAL_DIGITS, int(kind[7:]))
    types: dict[str, pa.DataType] = {
        "bool": pa.bool_(),
        "int64": pa.int64(),
        "double": pa.float64(),
        "string": pa.string(),
        "date": pa.date32(),
        "timestamp": pa.timestamp("us"),
        "timestamp_utc": pa.timestamp("us", "UTC"),
        "binary": pa.binary(),
    }
    return types[kind]


def as_text(value: object) -> str | None:
    """A value for a text column: text as it is, anything else as JSON."""
    return value if value is None or isinstance(value, str) else orjson.dumps(value).decode()


READ_BACK: dict[str, Callable[[Any], Any]] = {
    "string": as_text,
    "double": float,
    "date": date.fromisoformat,
    "timestamp": datetime.fromisoformat,
    "timestamp_utc": datetime.fromisoformat,
    "binary": base64.b64decode,
}


def reader(kind: str) -> Callable[[Any], Any]:
    """How a kind is read back from the JSON of a rows file."""
    if kind.startswith("decimal"):
        return Decimal
    return READ_BACK.get(kind, lambda value: value)
