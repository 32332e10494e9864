"""
Values of kept columns: their kinds (see ``kinds``) are seen while planning and stored in the plan, and they are given back.

A value goes through a rows file, as JSON: nested ones as lists and objects (a map as a list of pairs), bytes as base64, and
what JSON has no word for (times, decimals, infinity, whole numbers beyond 64 bits) as text.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import orjson

from airflow_gemini_batch.core.kinds import DECIMAL_DIGITS, MIXED, arrow_type, basic, kind_of

if TYPE_CHECKING:
    import pyarrow as pa

Column: TypeAlias = Any
"""An Arrow array. Not typed any closer: the stubs refuse much of what Arrow's functions take."""

INT64 = range(-(2**63), 2**63)


EXACT = 2**53
"""A double holds all whole numbers up to here exactly, and not all beyond."""

LARGE = "large"
"""Seen beside a whole number's kind: it is beyond :data:`EXACT`."""


class SeenTypes:
    """
    Gathers what kinds of values each column holds over all rows, so that every part gets the same schema.

    :param fixed: column → kind, for those whose kind is not for the values to say.
    """

    def __init__(self, columns: Iterable[str], fixed: Mapping[str, str] | None = None) -> None:
        self._fixed = fixed or {}
        self._kinds: dict[str, set[str]] = {name: set() for name in columns}

    def add(self, values: Mapping[str, Any]) -> None:
        """Add one row, whose values say themselves what they are."""
        for name, kinds in self._kinds.items():
            if (value := values[name]) is not None:
                kinds.add(_kind(value))
                if type(value) is int and not -EXACT <= value <= EXACT:
                    kinds.add(LARGE)

    def add_columns(self, columns: Mapping[str, Column], declared: Mapping[str, pa.DataType]) -> None:
        """Add the values of many rows, whose columns are of declared types."""
        for name, column in columns.items():
            kinds = self._kinds[name]
            kinds.add(kind_of(declared[name]))
            if LARGE not in kinds and _has_large(column):
                kinds.add(LARGE)

    def types(self) -> dict[str, str]:
        """Column → kind, e.g. ``{"stars": "int64"}``."""
        return {name: self._fixed.get(name) or common(kinds) for name, kinds in self._kinds.items()}


def _has_large(column: Column) -> bool:
    import pyarrow as pa

    if column.type not in (pa.int64(), pa.uint64()):
        return False
    ends = kernels().min_max(column)
    return any(abs(end) > EXACT for end in (ends["min"].as_py(), ends["max"].as_py()) if end is not None)


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int64" if value in INT64 else MIXED
    if isinstance(value, datetime):
        return "timestamp" if value.tzinfo is None else "timestamp_utc"
    if isinstance(value, Decimal):
        return _decimal_kind(value)
    if isinstance(value, time):
        return "time64[us]" if value.tzinfo is None else MIXED
    if isinstance(value, timedelta):
        return "duration[us]" if value // timedelta(microseconds=1) in INT64 else MIXED
    for kind, name in ((float, "double"), (str, "string"), (date, "date"), (bytes, "binary")):
        if isinstance(value, kind):
            return name
    return MIXED


def _decimal_kind(value: Decimal) -> str:
    """``seen<digits before the point>.<digits after it>``; no finite number is text."""
    _, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int):
        return MIXED
    return f"seen{max(0, len(digits) + exponent)}.{max(0, -exponent)}"


WHOLE = {"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"}
FRACTIONS = {"float", "double"}


def common(kinds: set[str]) -> str:
    """
    The kind that holds values of all these kinds without a loss: text, if there is no other.

    Whole numbers are ``int64``, beside fractions ``double`` while that holds each of them; decimals get digits enough for
    all; times of several units or zones are microseconds, those with zones in UTC.
    """
    large, kinds = LARGE in kinds, kinds - {LARGE, "null"}
    if len(kinds) == 1 and not (only := next(iter(kinds))).startswith("seen"):
        return only
    if not kinds:
        return MIXED
    if kinds <= WHOLE:
        return "int64" if "uint64" not in kinds else "uint64" if all(kind[0] == "u" for kind in kinds) else MIXED
    if kinds <= WHOLE | FRACTIONS:
        return MIXED if large and kinds & WHOLE else "double"
    if all(kind.startswith(("decimal", "seen")) for kind in kinds):
        return _common_decimal(kinds)
    if all(kind.startswith("timestamp") for kind in kinds):
        zoned = {basic(kind) == "timestamp_utc" for kind in kinds}
        return MIXED if len(zoned) > 1 else "timestamp_utc" if True in zoned else "timestamp"
    return "time64[us]" if all(kind.startswith("time") and "stamp" not in kind for kind in kinds) else MIXED


def _common_decimal(kinds: set[str]) -> str:
    digits, scales = zip(*map(_digits_and_scale, kinds), strict=True)
    most = max(digits) + max(scales)
    if most > DECIMAL_DIGITS:
        return MIXED
    declared = all(kind.startswith("decimal(") for kind in kinds)
    return f"decimal({most},{max(scales)})" if declared else f"decimal{max(scales)}"


def _digits_and_scale(kind: str) -> tuple[int, int]:
    """Digits before the point and behind it."""
    if kind.startswith("seen"):
        digits, scale = kind[4:].split(".")
        return int(digits), int(scale)
    arrow: Any = arrow_type(kind)
    return arrow.precision - arrow.scale, arrow.scale


def kernels() -> Any:
    """Arrow's functions on arrays; see :data:`Column`."""
    import pyarrow.compute

    return pyarrow.compute


def plain(value: object) -> object:
    """Values that JSON has no word for, in a form that Arrow can read back."""
    if isinstance(value, timedelta):
        return _span_text(value)
    if isinstance(value, datetime | time):
        return value.isoformat()
    if isinstance(value, Decimal | date):
        return str(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise TypeError(f"{type(value).__name__} values cannot be kept")


def storable(value: object) -> object:
    """A value without what JSON would lose, which becomes text: infinity, NaN, numbers beyond 64 bits, some times."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**64 else str(value)
    if isinstance(value, dict):
        return {name: storable(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [storable(one) for one in value]
    if isinstance(value, time):
        return value.isoformat()  # orjson refuses zones here, and writes .01 seconds as .1
    if isinstance(value, datetime) and (offset := value.utcoffset()) is not None and offset.seconds % 60:
        return value.isoformat()  # zones of old had offsets with seconds, which orjson rounds
    return value


def as_json(values: Iterable[object]) -> bytes:
    """Values as a rows file holds them, as one list."""
    return orjson.dumps([storable(value) for value in values], default=plain, option=orjson.OPT_NON_STR_KEYS)


def as_stored(values: Iterable[object]) -> list[Any]:
    """Values as they come out of a rows file."""
    stored: list[Any] = orjson.loads(as_json(values))
    return stored


def as_text(value: object) -> str | None:
    """A value for a text column: text as it is, anything else as JSON."""
    return value if value is None or isinstance(value, str) else orjson.dumps(value).decode()


SPAN = re.compile(r"(-?)P(\d+)DT(\d+)H(\d+)M(\d+)(?:\.(\d{6}))?S")


def _span_text(span: timedelta) -> str:
    """A span of time as ISO 8601 writes it: ``P1DT2H3M4S``, with a fraction of six digits if there is one."""
    size = abs(span)
    minutes, seconds = divmod(size.seconds, 60)
    fraction = f".{size.microseconds:06}" if size.microseconds else ""
    sign = "-" if span < timedelta() else ""
    return f"{sign}P{size.days}DT{minutes // 60}H{minutes % 60}M{seconds}{fraction}S"


def _span(text: str) -> timedelta:
    found = SPAN.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no span of time as ISO 8601 writes it in full, such as P1DT2H3M4S")
    days, hours, minutes, seconds, fraction = (int(part or 0) for part in found.groups()[1:])
    span = timedelta(days, seconds, fraction, 0, minutes, hours)
    return -span if found[1] else span


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def same(value: Any) -> Any:
    return value


@lru_cache(maxsize=1024)
def reader(kind: str) -> Callable[[Any], Any]:
    """How values of a kind are read back from the JSON of a rows file, for Arrow to take. Nulls are not for it."""
    return _reader(arrow_type(kind))


def _reader(arrow: Any) -> Callable[[Any], Any]:
    import pyarrow as pa

    types = pa.types
    if types.is_struct(arrow):
        fields = {field.name: _or_null(field.type) for field in arrow}
        return lambda value: _fields(value, fields)
    if types.is_map(arrow):
        key, item = _or_null(arrow.key_type), _or_null(arrow.item_type)
        return lambda pairs: [(key(k), item(v)) for k, v in (pairs.items() if isinstance(pairs, dict) else pairs)]
    if types.is_list(arrow) or types.is_fixed_size_list(arrow):
        element = _or_null(arrow.value_type)
        return lambda values: [element(value) for value in values]
    for is_so, read in READ_BACK:
        if is_so(types, arrow):
            return read
    return same


def _or_null(arrow: pa.DataType) -> Callable[[Any], Any]:
    read = _reader(arrow)
    return lambda value: None if value is None else read(value)


def _fields(value: Mapping[str, Any], fields: Mapping[str, Callable[[Any], Any]]) -> dict[str, Any]:
    if unknown := value.keys() - fields.keys():
        raise ValueError(f"there is no field {', '.join(map(repr, sorted(unknown)))}")
    return {name: read(value.get(name)) for name, read in fields.items()}


READ_BACK: tuple[tuple[Callable[[Any, Any], bool], Callable[[Any], Any]], ...] = (
    (lambda types, arrow: types.is_string(arrow), as_text),
    (lambda types, arrow: types.is_floating(arrow), float),
    (lambda types, arrow: types.is_decimal(arrow), lambda value: Decimal(str(value))),
    (lambda types, arrow: types.is_date(arrow), date.fromisoformat),
    (lambda types, arrow: types.is_timestamp(arrow), datetime.fromisoformat),
    (lambda types, arrow: types.is_time(arrow), time.fromisoformat),
    (lambda types, arrow: types.is_duration(arrow), _span),
    (lambda types, arrow: types.is_binary(arrow) or types.is_fixed_size_binary(arrow), _bytes),
)
