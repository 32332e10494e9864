"""Whatever goes into a table comes out of it: every kind of value, through both ends."""

from __future__ import annotations

import json
import math
import re
import struct
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_gemini_batch.sql.copying import Lines
from airflow_gemini_batch.sql.values import Texts, moment, row_maker, same

from .conftest import Db

TEXT = st.text(st.characters() | st.sampled_from("\x00\\\t\r\n'\"%?\ud800\udfff\u2028{}"))  # surrogates too

# PostgreSQL's JSONB takes any number but gives a double back, and has no NaN.
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(-1e9, 1e9, width=32) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
TIMES = {"min_value": datetime(1, 1, 3), "max_value": datetime(9999, 12, 29)}

KINDS: dict[str, st.SearchStrategy[Any]] = {
    "string": TEXT,
    "int64": st.integers(-(2**63), 2**63 - 1),
    "double": st.floats(),
    "bool": st.booleans(),
    "date": st.dates(),
    "timestamp": st.datetimes(**TIMES),
    "timestamp_utc": st.datetimes(**TIMES, timezones=st.timezones()),
    "binary": st.binary(),
    "decimal5": st.decimals(allow_nan=False, allow_infinity=False, places=5, min_value=-(10**30), max_value=10**30),
    "json": JSON,
    "floats": st.lists(st.floats(width=32) | st.none()),
    "strings": st.lists(TEXT),
}


def storable(value: Any, nul: bool) -> Any:
    """A value with the characters replaced that a database cannot hold, wherever they are in it."""
    if isinstance(value, str):
        return re.sub("[\ud800-\udfff]" if nul else "[\x00\ud800-\udfff]", "\ufffd", value)
    if isinstance(value, list):
        return [storable(one, nul) for one in value]
    if isinstance(value, dict):
        return {storable(name, nul): storable(one, nul) for name, one in value.items()}
    return value


def read_from_sqlite(kind: str, value: Any) -> Any:
    if value is None:
        return None
    if kind in ("json", "floats", "strings"):
        return json.loads(value)
    read = {"bool": bool, "date": date.fromisoformat, "decimal5": Decimal}
    if kind.startswith("timestamp"):
        return datetime.fromisoformat(value)
    return read.get(kind, lambda same: same)(value)


def comparable(kind: str, value: Any, *, has_nan: bool) -> Any:
    if kind == "floats" and value is not None:
        # A JSON text has no word for what is not finite, and REAL has 32 bits.
        return [
            None
            if one is None or (not has_nan and not math.isfinite(one))
            else repr(struct.unpack("f", struct.pack("f", one)))
            for one in value
        ]
    if kind == "double" and value is not None:
        return repr(value) if has_nan or not math.isnan(value) else None
    return value.astimezone(UTC) if kind == "timestamp_utc" and value is not None else value


@given(rows=st.lists(st.tuples(*(st.none() | values for values in KINDS.values())), min_size=1, max_size=5))
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None, max_examples=60
)
def test_every_value_of_every_kind_comes_back(db: Db, rows: list[tuple[Any, ...]]) -> None:
    db.run("DROP TABLE IF EXISTS reviews")
    columns = {"key": "string"} | {f"a_{kind}": kind for kind in KINDS}
    db.load([(str(n), *row) for n, row in enumerate(rows)], columns=columns)
    select = 'SELECT * FROM reviews ORDER BY CAST("key" AS INTEGER)'
    for sent, found in zip(rows, db.rows(select), strict=True):
        for kind, value in zip(KINDS, sent, strict=True):
            seen = found[f"a_{kind}"]
            seen = seen if db.is_postgres else read_from_sqlite(kind, seen)
            wanted = storable(value, nul=not db.is_postgres)
            nan = db.is_postgres
            assert comparable(kind, seen, has_nan=nan) == comparable(kind, wanted, has_nan=nan), kind


@given(text=TEXT, value=JSON)
def test_texts_are_storable_and_json_stays_json(text: str, value: Any) -> None:
    texts = Texts(nul=False)
    assert "\x00" not in texts.text(text).encode().decode()
    assert texts.replaced == sum(character == "\x00" or "\ud800" <= character <= "\udfff" for character in text)
    assert json.loads(texts.json(value)) == storable(value, nul=False)


def test_copy_gets_about_a_megabyte_at_a_time_however_large_a_batch_is() -> None:
    batch = [(str(n), "x" * 50_000) for n in range(100)]
    lines = Lines([batch, []], row_maker([same, same]))
    chunks = list(lines)
    assert b"".join(chunks).count(b"\n") == lines.count == 100
    assert max(map(len, chunks)) < 1_200_000


def test_what_json_has_no_word_for_becomes_text() -> None:
    texts = Texts(nul=True)
    assert json.loads(texts.json({"big": 2**70, "price": Decimal("1.5")})) == {"big": 2**70, "price": "1.5"}
    assert texts.text(["a", 1]) == '["a",1]'


def test_a_time_at_the_end_of_the_calendar_keeps_its_zone() -> None:
    first = datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1)))
    assert moment(first) is first
