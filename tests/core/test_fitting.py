"""A kept value becomes one of the type that the settings fix, or is refused: never changed."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_gemini_batch.core.columns import SeenTypes, as_stored, reader
from airflow_gemini_batch.core.fitting import UNFIT, fitting
from airflow_gemini_batch.core.kinds import arrow_type

AT = datetime(2026, 1, 2, 3, 4, 5, 6)


@pytest.mark.parametrize(
    ("kind", "value", "fitted"),
    [
        ("int64", "5", 5),
        ("int64", " 5 ", 5),
        ("int64", 5.0, 5),
        ("int64", "", None),
        ("int64", None, None),
        ("int8", -128, -128),
        ("uint64", 2**64 - 1, 2**64 - 1),
        ("double", "1.5", 1.5),
        ("double", 3, 3.0),
        ("float", 0.1, 0.10000000149011612),
        ("double", "inf", math.inf),
        ("bool", "True", True),
        ("bool", False, False),
        ("string", 5, "5"),
        ("string", "", ""),
        ("string", [1, "a"], '[1,"a"]'),
        ("decimal(10,2)", "1.5", Decimal("1.50")),
        ("decimal(10,2)", 0.1, Decimal("0.10")),
        ("decimal(10,2)", 7, Decimal("7.00")),
        ("date", "2026-01-02", date(2026, 1, 2)),
        ("timestamp", str(AT), AT),
        ("timestamp[ns]", AT, AT),
        ("timestamp_utc", "2026-01-02T03:04:05.000006Z", AT.replace(tzinfo=UTC)),
        ("time64[ns]", "03:04:05.1", time(3, 4, 5, 100_000)),
        ("duration[ms]", timedelta(1), timedelta(1)),
        ("binary", "AP8=", b"\x00\xff"),
        ("list<int64>", "[1,null]", [1, None]),
        ("list<int64>", [], []),
        ("list<decimal(5,1)>", [0.1], [Decimal("0.1")]),
        ("map<string, int8>", {"k": 1}, [("k", 1)]),
        ("struct<a: int8, b: date>", {"a": 1}, {"a": 1, "b": None}),
    ],
)
def test_a_value_that_fits_gets_the_type(kind: str, value: Any, fitted: Any) -> None:
    found = fitting(kind)(value)
    assert found == fitted
    assert type(found) is type(fitted)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("int64", "five"),
        ("int64", "1_000"),
        ("double", "1_0.5"),
        ("decimal(10,2)", "1_0"),
        ("int64", 2.5),
        ("int64", True),
        ("int64", 2**63),
        ("int8", 128),
        ("uint8", -1),
        ("double", "x"),
        ("double", 2**53 + 1),
        ("double", True),
        ("float", 1e300),
        ("bool", 1),
        ("bool", "yes"),
        ("decimal(10,2)", "1.005"),
        ("decimal(3,2)", 10),
        ("decimal(3,2)", "NaN"),
        ("date", "yesterday"),
        ("date", AT),
        ("timestamp[s]", AT),
        ("timestamp", AT.replace(tzinfo=UTC)),
        ("timestamp_utc", AT),
        ("timestamp[ns]", "2026-01-02T03:04:05.123456789"),
        ("timestamp[ns]", datetime(9999, 1, 1)),
        ("time32[s]", AT.time()),
        ("duration[s]", timedelta(microseconds=1)),
        ("binary", "no!"),
        ("list<int64>", 5),
        ("list<int64>", "[1"),
        ("list<int8>", [300]),
        ("struct<a: int8>", {"a": 1, "b": 2}),
        ("int64", object()),
        ("map<string, int8>", [1]),
        ("fixed_size_binary[2]", b"abc"),
    ],
)
def test_a_value_that_would_change_is_refused(kind: str, value: Any) -> None:
    with pytest.raises(UNFIT):
        fitting(kind)(value)


VALUES = (
    st.none()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.booleans()
    | st.dates()
    | st.datetimes()
    | st.binary(max_size=3)
    | st.datetimes(timezones=st.just(UTC))
    | st.decimals(allow_nan=None)
    | st.times()
    | st.lists(st.integers(), max_size=2)
)


@given(
    VALUES,
    st.sampled_from(
        [
            "int8",
            "int64",
            "float",
            "double",
            "string",
            "decimal(10,2)",
            "date",
            "timestamp[ns]",
            "timestamp_utc",
            "list<int64>",
            "bool",
        ]
    ),
)
def test_what_fits_can_be_landed(value: Any, kind: str) -> None:
    try:
        fitted = fitting(kind)(value)
    except UNFIT:
        return
    (stored,) = as_stored([fitted])
    pa.array([None if stored is None else reader(kind)(stored)], arrow_type(kind))


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([2**53, 0.5], "double"),
        ([2**53 + 1, 0.5], "string"),
        ([0.5, -(2**60)], "string"),
        ([2**60, 1], "int64"),
    ],
)
def test_whole_numbers_beside_fractions_lose_no_digits(values: list[float], kind: str) -> None:
    seen = SeenTypes(["c"])
    for value in values:
        seen.add({"c": value})
    assert seen.types() == {"c": kind}
