from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_gemini_batch.core.columns import SeenTypes, as_stored, as_text, reader
from airflow_gemini_batch.core.kinds import arrow_type


def kind_of(*values: object) -> str:
    seen = SeenTypes(["c"])
    for value in values:
        seen.add({"c": value, "other": object()})
    return seen.types()["c"]


def back(kind: str, value: object) -> object:
    """A value's way through a rows file into an Arrow column, and out again."""
    (stored,) = as_stored([value])
    read = None if stored is None else reader(kind)(stored)
    return pa.array([read], type=arrow_type(kind))[0].as_py()


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, 2, None], "int64"), ([1, 2.5], "double"), ([1.5], "double"), ([True, False], "bool"), ([True, 1], "string"),
        (["a"], "string"), (["a", 1], "string"), ([None], "string"), ([], "string"), ([{"a": 1}], "string"),
        ([[1]], "string"),
        ([date(2026, 1, 1)], "date"), ([datetime(2026, 1, 1)], "timestamp"), ([datetime(2026, 1, 1, tzinfo=UTC)],
        "timestamp_utc"),
        ([datetime(2026, 1, 1), datetime(2026, 1, 1, tzinfo=UTC)], "string"), ([date(2026, 1, 1), datetime(2026, 1,
        1)], "string"),
        ([b"x"], "binary"), ([Decimal("1.20")], "decimal2"), ([Decimal("1.2"), Decimal("1.234")], "decimal3"),
        ([Decimal(5)], "decimal0"), ([Decimal("1e3")], "decimal0"), ([Decimal("NaN")], "string"), ([2**63], "string"),
        ([2**63 - 1, -(2**63)], "int64"), ([1, 2**63], "string"),
        ([time(1, 2)], "time64[us]"), ([time(1, 2, tzinfo=UTC)], "string"), ([timedelta(1)],
        "duration[us]"), ([Decimal("1.2"), 1], "string"),
    ],
)  # fmt: skip
def test_a_column_gets_the_type_that_holds_all_its_values(values, kind):
    assert kind_of(*values) == kind


@pytest.mark.parametrize(
    "value",
    [
        5, -(2**63), 2**63 - 1, 1.5, 1e300, True, "text", "a\u2028\u0085\r\n😀", "", date(2026, 1, 2), date(1, 1, 1),
        datetime(2026, 1, 2, 3, 4, 5, 6), datetime(2026, 1, 2, 3, 4, 5, 6, UTC), Decimal("1.20"), Decimal("-0.0001"),
        Decimal("12345678901234567890123456789012345678"), b"\x00\xff", b"", None, time(1, 2, 3, 4), timedelta(-1, 5, 6),
        timedelta(microseconds=1), timedelta(400, 3), datetime(1800, 1, 1, tzinfo=timezone(timedelta(seconds=29143))),
    ],
)  # fmt: skip
def test_a_value_comes_back_as_it_was(value):
    assert back(kind_of(value), value) == value
    assert type(back(kind_of(value), value)) is type(value)


@given(
    st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.booleans() | st.dates()
    | st.datetimes() | st.datetimes(timezones=st.just(UTC)) | st.binary() | st.text(st.characters(exclude_categories=["Cs"]))
    | st.decimals(-(10**15), 10**15, places=4) | st.times() | st.timedeltas(timedelta(-(10**6)), timedelta(10**6))
)  # fmt: skip
def test_any_one_value_comes_back_as_it_was(value):
    assert back(kind_of(value), value) == value


def test_times_of_several_zones_come_back_as_the_same_moments():
    at = datetime(2026, 1, 2, 3, 4, tzinfo=timezone(timedelta(hours=2)))
    assert back(kind_of(at), at) == at


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([1, "a"], ["1", "a"]),
        ([True, 1], ["true", "1"]),
        ([{"a": [1, None]}], ['{"a":[1,null]}']),
        ([2**63], [str(2**63)]),
    ],
)
def test_what_has_no_common_type_becomes_text(values, texts):
    assert [back(kind_of(*values), value) for value in values] == texts


@pytest.mark.parametrize("values", [
    [Decimal("1e40")],
    [Decimal("1e30"), Decimal("1e-20")],
    [Decimal("0." + "1" * 50)],
])  # fmt: skip
def test_decimals_that_do_not_fit_a_column_are_not_found_out_after_paying(values):
    """The types are decided while planning; a value that then cannot be landed would be paid for in vain."""
    kind = kind_of(*values)
    for value in values:
        assert Decimal(str(back(kind, value))) == value


@pytest.mark.parametrize(
    ("value", "text"), [(None, None), ("x", "x"), (5, "5"), ([1, "a"], '[1,"a"]'), ({"é": None}, '{"é":null}')]
)
def test_text_of_a_value_is_the_text_itself_or_json(value, text):
    assert as_text(value) == text
