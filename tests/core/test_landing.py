from __future__ import annotations

import csv
import json
import tempfile
import tracemalloc
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from airflow_gemini_batch.core import landing
from airflow_gemini_batch.core.columns import SeenTypes
from airflow_gemini_batch.core.landing import FORMATS, read_part, writing_part
from airflow_gemini_batch.core.reading import Reader
from airflow_gemini_batch.core.results import Result, Status
from airflow_gemini_batch.core.shards import plain
from airflow_gemini_batch.core.table import COLUMNS, Table
from airflow_gemini_batch.core.usage import Usage
from airflow_gemini_batch.exceptions import InvalidConfig

PLAIN = [name for name in COLUMNS if name not in ("prompt", "output", "embedding", "media")]
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))
AWKWARD = 'a,"b"\r\nc\nd\re\u2028f\u2029g\u0085h\x1ci\x0bj\tk 😀 \\n é\x01'


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
    with path.open(newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f, strict=True))


def land(
    path: Path, results: list[Result], *, keeps: list[dict[str, Any]] | None = None, job: str | None = "batches/x",
    include_raw: bool = False,
) -> list[dict[str, Any]]:  # fmt: skip
    keeps = keeps or [{}] * len(results)
    seen = SeenTypes(keeps[0] if keeps else ())
    for keep in keeps:
        seen.add(keep)
    with writing_part(path, Table(seen.types(), raw=include_raw), path.suffix[1:]) as part:
        for result, keep in zip(results, keeps, strict=True):
            part.add(result, orjson.loads(orjson.dumps(keep, default=plain)), job=job, round_number=2)
    return read(path)


@settings(max_examples=60)
@given(st.lists(st.tuples(TEXT.filter(str.strip), TEXT, TEXT), min_size=1, max_size=5), st.sampled_from(FORMATS))
@example([(AWKWARD, AWKWARD, AWKWARD)], "csv")
@example([("k", "a\rb", "c"), ("l", "\r", "\r\n")], "csv")
@example([(AWKWARD, AWKWARD, AWKWARD)], "jsonl")
@example([(AWKWARD, AWKWARD, AWKWARD)], "parquet")
def test_any_text_lands_as_it_is_in_every_format(rows, file_format):
    results = [Result(key, Status.OK, text=text) for key, text, _ in rows]
    with tempfile.TemporaryDirectory() as directory:
        landed = land(Path(directory) / f"part.{file_format}", results, keeps=[{"title": title} for *_, title in rows])
    assert [(row["key"], row["text"], row["title"]) for row in landed] == rows


FULL = Result(
    "k1", Status.ERROR, "text", "STOP", "OTHER", 13, "message", "m-1", "r-1", Usage(1, 2, 3, 4, 5), '{"a":1}'
)  # fmt: skip


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_landed_row_has_every_documented_column(tmp_path, file_format):
    (row,) = land(tmp_path / f"part.{file_format}", [FULL], include_raw=True)
    expected = {
        "key": "k1", "status": "error", "text": "text", "finish_reason": "STOP", "block_reason": "OTHER", "error_code": 13,
        "error_message": "message", "model_version": "m-1", "response_id": "r-1", "prompt_tokens": 1, "output_tokens": 2,
        "thoughts_tokens": 3, "cached_tokens": 4, "job": "batches/x", "round": 2, "raw": '{"a":1}',
    }  # fmt: skip
    assert list(row) == [*PLAIN, "raw"]
    assert row == (expected if file_format != "csv" else {name: str(value) for name, value in expected.items()})


@pytest.mark.parametrize("file_format", FORMATS)
def test_what_is_not_known_is_null(tmp_path, file_format):
    (row,) = land(tmp_path / f"part.{file_format}", [Result("k", Status.MISSING)], job=None)
    null = "" if file_format == "csv" else None
    known = {"key": "k", "status": "missing", "round": "2" if file_format == "csv" else 2}
    assert row == dict.fromkeys(PLAIN, null) | known


def test_kept_columns_keep_their_types_in_parquet(tmp_path):
    keep = {
        "i": 2**62, "f": 1.5, "b": True, "s": "x", "d": date(2026, 1, 2), "t": datetime(2026, 1, 2, 3, tzinfo=UTC),
        "m": Decimal("1.20"), "raw bytes": b"\x00\xff", "none": None, "nested": {"a": [1]},
    }  # fmt: skip
    row, empty = land(tmp_path / "part.parquet", [FULL, FULL], keeps=[keep, dict.fromkeys(keep)])
    assert {name: row[name] for name in keep} == keep | {"nested": '{"a":[1]}'}
    assert {name: empty[name] for name in keep} == dict.fromkeys(keep)


def test_kept_values_read_well_in_the_text_formats(tmp_path):
    keep = {"i": 5, "b": True, "m": Decimal("1.20"), "d": date(2026, 1, 2), "nested": {"a": [1]}, "none": None}
    (row,) = land(tmp_path / "part.csv", [FULL], keeps=[keep])
    assert [row[name] for name in keep] == ["5", "true", "1.20", "2026-01-02", '{"a":[1]}', ""]
    (row,) = land(tmp_path / "part.jsonl", [FULL], keeps=[keep])
    assert [row[name] for name in keep] == [5, True, "1.20", "2026-01-02", {"a": [1]}, None]


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_kept_column_may_be_called_raw_when_no_raw_answer_is_asked_for(tmp_path, file_format):
    (row,) = land(tmp_path / f"part.{file_format}", [FULL], keeps=[{"raw": "my own"}])
    assert row["raw"] == "my own"


def test_a_table_has_the_same_columns_in_every_part(tmp_path):
    """Also where a part holds nothing but nulls; readers of a directory need that."""
    table = Table({"stars": "int64"})
    for name, keep in (("a", {"stars": 5}), ("b", {"stars": None}), ("c", {})):
        with writing_part(tmp_path / f"{name}.parquet", table, "parquet") as part:
            part.add(Result("k", Status.OK), keep, job=None, round_number=0)
    assert len({str(pq.read_schema(path)) for path in tmp_path.iterdir()}) == 1
    assert pq.read_table(tmp_path).num_rows == 3


@pytest.mark.parametrize("file_format", FORMATS)
def test_many_rows_land_in_order_over_several_batches(tmp_path, monkeypatch, file_format):
    monkeypatch.setattr(landing, "BATCH_ROWS", 7)
    landed = land(tmp_path / f"part.{file_format}", [Result(str(n), Status.OK, text="x" * n) for n in range(100)])
    assert [(row["key"], len(row["text"] or "")) for row in landed] == [(str(n), n) for n in range(100)]


def large(n: int) -> str:
    return f"{n}" + "x" * 100_000


LARGE: dict[str, tuple[Table, Callable[[int], dict[str, Any]], Callable[[int], dict[str, Any]]]] = {
    "text": (Table({}), lambda n: {"text": large(n)}, lambda n: {}),
    "embedding": (Table({}, embeddings=True), lambda n: {"embedding": [float(n)] * 10_000}, lambda n: {}),
    "extra": (Table({}, include=("logprobs",)), lambda n: {"extras": {"logprobs": f'["{large(n)}"]'}}, lambda n: {}),
    "media": (Table({}, media=True), lambda n: {"media": [large(n)]}, lambda n: {}),
    "kept list": (Table({"some": "string"}), lambda n: {}, lambda n: {"some": [large(n)]}),
}


@pytest.mark.parametrize("what", LARGE)
@pytest.mark.parametrize("file_format", FORMATS)
def test_memory_follows_the_size_of_the_rows_not_their_number(tmp_path, file_format, what):
    """Rows that are large in any column are neither held until they are written, nor read back together."""
    table, of_result, of_row = LARGE[what]
    path = tmp_path / f"x.{file_format}"
    tracemalloc.start()
    with writing_part(path, table, file_format) as part:
        for n in range(300):
            part.add(Result(str(n), Status.OK, **of_result(n)), of_row(n), job=None, round_number=0)
    _, written = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    assert sum(map(len, read_part(path, table))) == 300
    _, read_back = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert max(written, read_back) < 20_000_000, (written, read_back)


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_part_without_rows_does_not_appear(tmp_path, file_format):
    with writing_part(tmp_path / "part", Table({}), file_format):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_landing_that_fails_leaves_no_half_part(tmp_path, monkeypatch, file_format):
    monkeypatch.setattr(landing, "BATCH_ROWS", 2)

    def fail_half_way() -> None:
        with writing_part(tmp_path / "part", Table({}), file_format) as part:
            for n in range(5):
                part.add(Result(str(n), Status.OK), {}, job=None, round_number=0)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["key", "status", "round", "job"])
def test_a_kept_column_must_not_hide_a_result_column(name):
    with pytest.raises(InvalidConfig, match=f"keep names '{name}'"):
        Table({name: "string", "fine": "string"})
    with pytest.raises(InvalidConfig, match="'raw'"):
        Table({"raw": "string"}, raw=True)


NESTED = {"a": [1, None, {"b": AWKWARD}]}
EVERY_KIND: dict[str, Any] = {
    "i": 2**62, "f": -1.5, "b": False, "s": AWKWARD, "d": date(2026, 1, 2), "t": datetime(2026, 1, 2, 3, 4, 5, 6),
    "u": datetime(2026, 1, 2, 3, tzinfo=UTC), "m": Decimal("-1.20"), "raw bytes": b"\x00\xff",
}  # fmt: skip


@settings(max_examples=40)
@given(
    st.lists(st.tuples(TEXT.filter(str.strip), TEXT, st.booleans()), min_size=1, max_size=5), st.sampled_from(FORMATS)
)
@example([(AWKWARD, AWKWARD, True), ("k", "a\rb", False)], "csv")
def test_what_was_landed_is_read_back_as_it_was(rows, file_format):
    seen = SeenTypes(EVERY_KIND)
    seen.add(EVERY_KIND)
    table = Table(seen.types(), prompts=True, media=True, include=("grounding", "thoughts"), raw=True)
    results = [
        Result(key, Status.OK, text or None, usage=Usage(7), prompt="p", media=["s3://b/ü,1.png", "x"] if full else None,
               extras={"grounding": orjson.dumps(NESTED).decode()} if full else {}, raw='{"a":1}')
        for key, text, full in rows
    ]  # fmt: skip
    keeps = [EVERY_KIND if full else dict.fromkeys(EVERY_KIND) for *_, full in rows]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / f"part.{file_format}"
        with writing_part(path, table, file_format) as part:
            for result, keep in zip(results, keeps, strict=True):
                part.add(result, orjson.loads(orjson.dumps(keep, default=plain)), job="j", round_number=1)
        read_back = [dict(zip(table.kinds, row, strict=True)) for batch in read_part(path, table) for row in batch]
    for (key, text, full), keep, row in zip(rows, keeps, read_back, strict=True):
        assert row["key"] == key
        assert row["text"] == (text or None)
        assert (row["media"], row["grounding"]) == ((["s3://b/ü,1.png", "x"], NESTED) if full else (None, None))
        assert (row["prompt_tokens"], row["round"], row["job"], row["raw"]) == (7, 1, "j", '{"a":1}')
        assert {name: row[name] for name in EVERY_KIND} == keep


@pytest.mark.parametrize("file_format", FORMATS)
def test_an_odd_answers_json_column_is_json_all_the_same(tmp_path, file_format):
    table = Table({}, include=("grounding",))
    path = tmp_path / f"x.{file_format}"
    with writing_part(path, table, file_format) as part:
        answer = {"response": {"candidates": [{"content": {"parts": [{"text": "x"}]}, "groundingMetadata": "none"}]}}
        part.add(Reader(include=("grounding",)).read({"key": "k"}, answer), {}, job=None, round_number=0)
    ((row,),) = read_part(path, table)
    assert row[list(table.kinds).index("grounding")] == "none"


@pytest.mark.parametrize(("file_format", "took"), [
    ("parquet", timedelta(hours=25, seconds=5)), ("jsonl", "P1DT1H0M5S"), ("csv", "P1DT1H0M5S"),
])  # fmt: skip
def test_a_span_of_time_is_one_in_parquet_and_iso_text_elsewhere(tmp_path, file_format, took):
    path = tmp_path / f"x.{file_format}"
    rows = land(path, [Result("k", Status.OK)], keeps=[{"took": timedelta(hours=25, seconds=5)}])
    assert rows[0]["took"] == took
