"""
Arrow's types as text, and back: a plan holds them so, and users write them so. Knows types; knows no values.

``int64``, ``timestamp[ms, tz=Europe/Berlin]``, ``decimal(10,2)``, ``list<struct<a: string, b: date>>``.
Types that differ only in how Arrow holds them (``large_string``, a dictionary of texts) are one kind.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import orjson

from airflow_gemini_batch.exceptions import InvalidConfig

if TYPE_CHECKING:
    import pyarrow as pa

MIXED = "string"
"""Columns of several kinds, of nested values without a declared type or of nothing at all become text (JSON where needed)."""

DECIMAL_DIGITS = 38
"""Digits of Arrow's decimal128."""

SAME = {
    "boolean": "bool", "float16": "float", "halffloat": "float", "float32": "float", "float64": "double", "str": "string",
    "utf8": "string", "large_string": "string", "string_view": "string", "large_binary": "binary", "binary_view": "binary",
    "date32": "date", "date64": "date",
    "date32[day]": "date", "date64[ms]": "date", "timestamp[us]": "timestamp", "timestamp[us, tz=UTC]": "timestamp_utc",
}  # fmt: skip
"""Other names for a kind. Half floats come as floats, which hold every one of them."""

NOT_TYPES = ("json", "strings", "floats", "output")
"""Kinds of the result's own columns; see ``table``."""


def kind_of(arrow: Any) -> str:
    """Arrow's type as text; :data:`MIXED` for those that are no type of a landed column (unions, extensions)."""
    import pyarrow as pa

    types = pa.types
    if types.is_dictionary(arrow):
        return kind_of(arrow.value_type)
    if types.is_decimal(arrow):
        return f"decimal({max(arrow.precision, arrow.precision - arrow.scale)},{max(0, arrow.scale)})"
    if types.is_struct(arrow):
        return f"struct<{', '.join(f'{_quoted(field.name)}: {kind_of(field.type)}' for field in arrow)}>"
    if types.is_map(arrow):
        return f"map<{kind_of(arrow.key_type)}, {kind_of(arrow.item_type)}>"
    if types.is_fixed_size_list(arrow):
        return f"fixed_size_list<{kind_of(arrow.value_type)}>[{arrow.list_size}]"
    if types.is_list(arrow) or types.is_large_list(arrow):
        return f"list<{kind_of(arrow.value_type)}>"
    name = SAME.get(str(arrow), str(arrow))
    try:
        arrow_type(name)
    except InvalidConfig:
        return MIXED
    return name


def _quoted(name: str) -> str:
    return name if re.fullmatch(r"\w+", name) else orjson.dumps(name).decode()


@lru_cache(maxsize=1024)
def arrow_type(kind: str) -> pa.DataType:
    """
    The Arrow type of a kind.

    :raises InvalidConfig: there is none of this name.
    """
    reading = _Reading(kind)
    found: pa.DataType = reading.type()
    if reading.rest:
        raise reading.unknown()
    return found


class _Reading:
    """The text of a type, from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self.rest = text.strip()

    def unknown(self) -> InvalidConfig:
        return InvalidConfig(
            f"{self._text!r} is no type of a column. Types are Arrow's: int64, double, bool, string, binary, date, "
            "timestamp[us], timestamp[us, tz=UTC], decimal(10,2), list<string>, struct<a: int64, b: date>, "
            "map<string, int64> and the like."
        )

    def take(self, pattern: str) -> re.Match[str]:
        found = re.match(rf"\s*{pattern}\s*", self.rest)
        if found is None:
            raise self.unknown()
        self.rest = self.rest[found.end() :]
        return found

    def next_is(self, pattern: str) -> bool:
        return re.match(pattern, self.rest) is not None

    def type(self) -> Any:
        import pyarrow as pa

        name = self.take(r"(\w+)")[1]
        name = SAME.get(name, name)
        if name == "struct":
            return pa.struct(self.fields())
        if name in ("list", "fixed_size_list"):
            self.take("<")
            if self.next_is(r"\w+\s*:"):
                self.take(r"\w+\s*:")  # as Arrow itself calls the items
            items = self.type()
            self.take(">")
            return pa.list_(items) if name == "list" else pa.list_(items, int(self.take(r"\[(\d+)\]")[1]))
        if name == "map":
            self.take("<")
            keys = self.type()
            self.take(",")
            items = self.type()
            self.take(">")
            return pa.map_(keys, items)
        if name.startswith("decimal"):
            return self.decimal(name)
        if name == "timestamp" and self.next_is(r"\["):
            unit, zone = self.take(r"\[(s|ms|us|ns)(?:,\s*tz=([^\]]+))?\]").group(1, 2)
            return pa.timestamp(unit, zone)
        if name == "fixed_size_binary":
            return pa.binary(int(self.take(r"\[(\d+)\]")[1]))
        if name in UNITS:
            make, units = UNITS[name]
            return getattr(pa, make)(self.take(rf"\[({units})\]")[1])
        if name == "date" and self.next_is(r"\["):
            self.take(r"\[(?:day|ms)\]")
        if name not in PLAIN:
            raise self.unknown()
        return PLAIN[name](pa)

    def fields(self) -> list[tuple[str, pa.DataType]]:
        found = []
        self.take("<")
        while True:
            name = self.take(r'(\w+|"(?:[^"\\]|\\.)*")\s*:')[1]
            found.append((orjson.loads(name) if name.startswith('"') else name, self.type()))
            if not self.next_is(","):
                self.take(">")
                return found
            self.take(",")

    def decimal(self, name: str) -> pa.DataType:
        """``decimal(10,2)``, and ``decimal2``: as many digits as there can be, two of them behind the point."""
        import pyarrow as pa

        if not self.next_is(r"\("):
            if not re.fullmatch(r"decimal\d{1,2}", name) or int(name[7:]) > DECIMAL_DIGITS:
                raise self.unknown()
            return pa.decimal128(DECIMAL_DIGITS, int(name[7:]))
        digits, scale = self.take(r"\((\d{1,2}),\s*(\d{1,2})\)").group(1, 2)
        if name not in ("decimal", "decimal32", "decimal64", "decimal128", "decimal256") or not 1 <= int(digits) <= 76:
            raise self.unknown()
        if int(scale) > int(digits):
            raise self.unknown()
        return (pa.decimal128 if int(digits) <= DECIMAL_DIGITS else pa.decimal256)(int(digits), int(scale))


UNITS = {"time32": ("time32", "s|ms"), "time64": ("time64", "us|ns"), "duration": ("duration", "s|ms|us|ns")}

PLAIN: dict[str, Any] = {
    name: lambda pa, name=name: getattr(pa, name)()
    for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "string", "binary", "null")
} | {
    "bool": lambda pa: pa.bool_(),
    "float": lambda pa: pa.float32(),
    "double": lambda pa: pa.float64(),
    "date": lambda pa: pa.date32(),
    "timestamp": lambda pa: pa.timestamp("us"),
    "timestamp_utc": lambda pa: pa.timestamp("us", "UTC"),
    "json": lambda pa: pa.string(),
    "strings": lambda pa: pa.list_(pa.string()),
    "floats": lambda pa: pa.list_(pa.float32()),
}


@lru_cache(maxsize=1024)
def basic(kind: str) -> str:
    """
    The kind that stands for many in a database: ``int64``, ``double``, ``bool``, ``string``, ``binary``, ``date``,
    ``timestamp``, ``timestamp_utc``, ``decimal<scale>``, or ``json`` for what is nested. Times of day and spans are text.
    """
    import pyarrow as pa

    if kind in NOT_TYPES:
        return kind
    arrow: Any = arrow_type(kind)
    types = pa.types
    if types.is_uint64(arrow):
        return "decimal0"
    if types.is_decimal(arrow):
        return f"decimal{arrow.scale}" if arrow.precision <= DECIMAL_DIGITS else MIXED
    if types.is_timestamp(arrow):
        return "timestamp" if arrow.tz is None else "timestamp_utc"
    for is_so, name in (
        (types.is_integer, "int64"), (types.is_floating, "double"), (types.is_boolean, "bool"), (types.is_date, "date"),
        (types.is_nested, "json"), (types.is_binary, "binary"), (types.is_fixed_size_binary, "binary"),
    ):  # fmt: skip
        if is_so(arrow):
            return name
    return MIXED


def in_microseconds(arrow: Any) -> Any:
    """The same type with microseconds for nanoseconds: Python knows no finer time."""
    import pyarrow as pa

    types = pa.types
    if types.is_timestamp(arrow) and arrow.unit == "ns":
        return pa.timestamp("us", arrow.tz)
    if types.is_time64(arrow) and arrow.unit == "ns":
        return pa.time64("us")
    if types.is_duration(arrow) and arrow.unit == "ns":
        return pa.duration("us")
    if types.is_dictionary(arrow):
        coarse = in_microseconds(arrow.value_type)
        return arrow if coarse == arrow.value_type else coarse
    if types.is_struct(arrow):
        return pa.struct([field.with_type(in_microseconds(field.type)) for field in arrow])
    if types.is_map(arrow):
        return pa.map_(in_microseconds(arrow.key_type), in_microseconds(arrow.item_type))
    if types.is_fixed_size_list(arrow):
        return pa.list_(arrow.value_field.with_type(in_microseconds(arrow.value_type)), arrow.list_size)
    if types.is_list(arrow):
        return pa.list_(arrow.value_field.with_type(in_microseconds(arrow.value_type)))
    if types.is_large_list(arrow):
        return pa.large_list(arrow.value_field.with_type(in_microseconds(arrow.value_type)))
    return arrow
