from __future__ import annotations

import hashlib
import tempfile
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_gemini_batch.core.layout import WorkDirectory
from airflow_gemini_batch.core.limits import API_FILE_BYTES, Limits
from airflow_gemini_batch.core.names import Slot
from airflow_gemini_batch.core.requests import Request
from airflow_gemini_batch.core.shards import KeyCheck, read_rows_file, row_line, write_shards
from airflow_gemini_batch.exceptions import BadRow, InvalidConfig


def request(key: str, size: int = 20, *, unsent: str | None = None, keep: dict | None = None) -> tuple[Request, str]:
    line = b"" if unsent else (f'{{"key":"{key}"}}'.ljust(size) + "\n").encode()
    return Request(key, line, keep or {}, unsent), f"row {key}"


REQUESTS = st.lists(st.tuples(st.integers(10, 60), st.booleans()), max_size=60).map(
    lambda rows: [request(str(n), size, unsent="blank" if blank else None) for n, (size, blank) in enumerate(rows)]
)
LIMITS = st.builds(
    lambda requests, most: Limits(requests_per_job=requests, bytes_per_job=most, bytes_per_request=most),
    st.integers(1, 20),
    st.integers(70, 400),
)


@settings(max_examples=40)
@given(REQUESTS, LIMITS)
def test_shards_keep_to_the_limits_lose_nothing_and_keep_the_order(requests, limits):
    with tempfile.TemporaryDirectory() as directory:
        work = WorkDirectory(Path(directory))
        shards = write_shards(requests, work, 1, limits)
        sent, rows = b"", []
        for number, shard in enumerate(shards):
            data = work.requests(shard.slot).read_bytes()
            here = list(read_rows_file(work.rows(shard.slot)))
            assert shard.slot == Slot(1, number)
            assert (shard.requests, shard.size, shard.rows) == (data.count(b"\n"), len(data), len(here))
            assert shard.sha256 == hashlib.sha256(data).hexdigest()
            assert shard.requests <= limits.requests_per_job
            assert shard.size <= limits.bytes_per_job
            assert shard.rows <= 2 * limits.requests_per_job
            assert [orjson.loads(line)["key"] for line in data.splitlines()] == [
                row["key"] for row in here if "unsent" not in row
            ]
            sent, rows = sent + data, rows + here
        assert sent == b"".join(one.line for one, _ in requests)
        assert [(row["key"], row.get("unsent")) for row in rows] == [(one.key, one.unsent) for one, _ in requests]


@settings(max_examples=25)
@given(st.integers(1, 40), st.integers(1, 12))
def test_no_more_shards_are_made_than_needed(rows, most):
    with tempfile.TemporaryDirectory() as directory:
        shards = write_shards(
            (request(str(n)) for n in range(rows)), WorkDirectory(Path(directory)), 0, Limits(requests_per_job=most)
        )
    assert len(shards) == -(-rows // most)


def test_no_rows_make_no_shard(tmp_path):
    assert write_shards([], WorkDirectory(tmp_path / "work"), 0, Limits()) == ()
    assert not (tmp_path / "work").exists()


def test_a_source_of_blank_rows_makes_no_endless_file(tmp_path):
    rows = [request(str(n), unsent="blank") for n in range(25)]
    shards = write_shards(rows, WorkDirectory(tmp_path), 0, Limits(requests_per_job=5))
    assert [(shard.requests, shard.rows) for shard in shards] == [(0, 10), (0, 10), (0, 5)]


def test_a_bad_row_leaves_no_half_shard_behind(tmp_path):
    def rows():
        yield from (request(str(n)) for n in range(3))
        raise BadRow("row 3", "broken")

    with pytest.raises(BadRow):
        write_shards(rows(), WorkDirectory(tmp_path), 0, Limits(requests_per_job=2))
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()) == [
        "requests/r0-00000.jsonl",
        "rows/r0-00000.jsonl",
    ]


def test_rows_come_one_at_a_time(tmp_path):
    """A source of any size is never held: each row is asked for when the one before is on disk."""
    seen: list[int] = []

    def rows():
        for n in range(1000):
            seen.append(n)
            yield request(str(n), 5000)
            if n == 999:
                written = sum(p.stat().st_size for p in (tmp_path / "requests").iterdir())
                assert written > 4_900_000

    write_shards(rows(), WorkDirectory(tmp_path), 0, Limits())
    assert len(seen) == 1000


# Kept values


def test_kept_values_are_stored_so_that_they_can_be_read_back():
    keep = {
        "none": None, "text": "a\u2028\u0085\r\n😀", "int": 2**62, "float": 1.5, "bool": True, "nested": {"a": [1,
        {"b": None}]},
        "decimal": Decimal("1.20"), "date": date(2026, 1, 2), "at": datetime(2026, 1, 2, 3, 4, 5, 6, UTC),
        "bytes": b"\x00\xff",
        "uuid": UUID(int=5),
    }  # fmt: skip
    line = row_line(Request("k\u2028", b"x", keep), "row 0")
    assert line.count(b"\n") == 1
    assert orjson.loads(line) == {"key": "k\u2028", "keep": keep | {
        "decimal": "1.20", "date": "2026-01-02", "at": "2026-01-02T03:04:05.000006+00:00", "bytes": "AP8=",
        "uuid": "00000000-0000-0000-0000-000000000005",
    }}  # fmt: skip


@pytest.mark.parametrize(("value", "stored"), [
    (10**30, str(10**30)), (-(2**63) - 1, str(-(2**63) - 1)), (2**64 - 1, 2**64 - 1),
    ([{"n": 10**30}, 1], [{"n": str(10**30)}, 1]),
    ([float("nan"), {"a": -float("inf")}], ["nan", {"a": "-inf"}]),
])  # fmt: skip
def test_kept_numbers_that_json_cannot_hold_are_text(value, stored):
    assert orjson.loads(row_line(Request("a", b"", {"c": value}), "row 8"))["keep"] == {"c": stored}


@pytest.mark.parametrize("value", [object(), {1, 2}, "\ud800", 1j])
def test_a_kept_value_that_cannot_be_stored_names_its_row_and_column(value):
    with pytest.raises(BadRow, match="row 8: the kept column 'v' cannot be stored"):
        row_line(Request("k", b"x", {"a": 1, "v": value, "w": "x"}), "row 8")


@pytest.mark.parametrize("value", [float("inf"), float("-inf")])
def test_a_kept_infinity_does_not_silently_become_null(value):
    try:
        line = row_line(Request("k", b"x", {"v": value}), "row 8")
    except BadRow:
        return  # to refuse it is fine
    assert orjson.loads(line)["keep"]["v"] is not None


# Limits


@pytest.mark.parametrize("name", ["requests_per_job", "bytes_per_job", "bytes_per_request", "active_jobs"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "5", True, None])
def test_a_limit_is_a_whole_number_above_zero(name, value):
    with pytest.raises(InvalidConfig, match=f"Limits.{name} is {value!r}"):
        Limits(**{name: value})


@pytest.mark.parametrize(
    "limits", [{"bytes_per_job": API_FILE_BYTES + 1}, {"active_jobs": 101}, {"bytes_per_request": 1_900_000_001}]
)
def test_limits_beyond_the_apis_are_refused(limits):
    with pytest.raises(InvalidConfig, match="it takes 1 to"):
        Limits(**limits)


def test_the_default_limits_are_the_apis_or_below():
    assert Limits().bytes_per_job <= API_FILE_BYTES
    assert Limits().bytes_per_request <= Limits().bytes_per_job


# Keys


@given(st.lists(st.text(max_size=3), max_size=50))
def test_duplicate_keys_are_always_suspected_and_single_ones_never(keys):
    check = KeyCheck()
    for key in keys:
        check.add(key)
    assert check.suspects() == {hash(key) for key in keys if keys.count(key) > 1}


@pytest.mark.parametrize("doubled", [None, 0, 100_000, 199_999])
def test_one_duplicate_among_two_hundred_thousand_keys_is_found(doubled):
    check = KeyCheck()
    for n in range(200_000):
        check.add(f"row-{n}")
    if doubled is not None:
        check.add(f"row-{doubled}")
    assert check.suspects() == (set() if doubled is None else {hash(f"row-{doubled}")})
