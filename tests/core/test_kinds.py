"""Kept columns of declared types come back with them, whatever the values; see also ``test_columns``."""

from __future__ import annotations

import logging
import math
import tempfile
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_gemini_batch.core.attempt import Policy, Run, Services
from airflow_gemini_batch.core.columns import common
from airflow_gemini_batch.core.kinds import arrow_type, basic, in_microseconds, kind_of
from airflow_gemini_batch.core.landing import FORMATS, read_part, writing_part
from airflow_gemini_batch.core.layout import OutputDirectory
from airflow_gemini_batch.core.names import RunId
from airflow_gemini_batch.core.plan import Plan, Round
from airflow_gemini_batch.core.planning import find_or_make_plan
from airflow_gemini_batch.core.requests import RequestBuilder, Spec
from airflow_gemini_batch.core.results import Result, Status
from airflow_gemini_batch.core.rows import FileSource
from airflow_gemini_batch.core.shards import read_rows_file
from airflow_gemini_batch.core.table import Table
from airflow_gemini_batch.exceptions import InvalidConfig

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
DAY = 86_400
FLAT: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.int8(), st.integers(-128, 127)), (pa.uint16(), st.integers(0, 65535)), (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    (pa.uint64(), st.integers(0, 2**64 - 1)), (pa.float32(), st.floats(width=32)), (pa.float64(), st.floats()),
    (pa.bool_(), st.booleans()), (pa.string(), TEXT), (pa.binary(), st.binary(max_size=4)),
    (pa.binary(2), st.binary(min_size=2, max_size=2)), (pa.date32(), st.dates()),
    (pa.timestamp("s"), st.integers(-(10**9), 10**10)), (pa.timestamp("ms", "Europe/Berlin"), st.integers(-(10**13), 10**13)),
    (pa.timestamp("us", "+05:30"), st.integers(0, 10**15)),
    (pa.timestamp("ns", "UTC"), st.integers(0, 10**15).map(lambda n: n * 1000)),
    (pa.time32("s"), st.integers(0, DAY - 1)), (pa.time64("us"), st.times()),
    (pa.time64("ns"), st.integers(0, DAY * 10**6 - 1).map(lambda n: n * 1000)),
    (pa.duration("s"), st.integers(-(10**9), 10**9)), (pa.duration("ms"), st.integers(-(10**12), 10**12)),
    (pa.duration("us"), st.integers(-(10**15), 10**15)), (pa.decimal128(10, 2), st.decimals(-1000, 1000, places=2)),
    (pa.decimal256(50, 3), st.decimals(-(10**40), 10**40, places=3)),
    (pa.decimal128(38, 0), st.decimals(0, 10**20, places=0)),
]  # fmt: skip


@st.composite
def columns(draw: st.DrawFn, depth: int = 2) -> tuple[pa.DataType, st.SearchStrategy[Any]]:
    """A type, and its values: null at every level, too."""
    if depth == 0 or draw(st.booleans()):
        return draw(st.sampled_from(FLAT))
    arrow, values = draw(columns(depth - 1))
    form = draw(st.sampled_from(["list", "fixed", "struct", "map"]))
    if form == "list":
        return pa.list_(arrow), st.lists(values | st.none(), max_size=3)
    if form == "fixed":
        return pa.list_(arrow, 2), st.lists(values | st.none(), min_size=2, max_size=2)
    if form == "map":
        return pa.map_(pa.string(), arrow), st.lists(st.tuples(TEXT, values | st.none()), max_size=2)
    name = draw(st.sampled_from(["a", "a b", 'c"<>,:é']))
    fields = pa.struct([(name, arrow), ("n", pa.int8())])
    return fields, st.fixed_dictionaries({name: values | st.none(), "n": st.integers(-9, 9) | st.none()})


@given(columns())
def test_a_types_text_says_the_whole_type(column: tuple[pa.DataType, Any]) -> None:
    assert arrow_type(kind_of(column[0])) == column[0]


@pytest.mark.parametrize(("arrow", "kind"), [
    (pa.large_string(), "string"), (pa.dictionary(pa.int8(), pa.list_(pa.int8())), "list<int8>"), (pa.float16(), "float"),
    (pa.timestamp("us"), "timestamp"), (pa.timestamp("us", "UTC"), "timestamp_utc"), (pa.date64(), "date"),
    (pa.large_list(pa.large_binary()), "list<binary>"), (pa.decimal128(10, 2), "decimal(10,2)"),
    (pa.month_day_nano_interval(), "string"),
])  # fmt: skip
def test_how_arrow_holds_values_makes_no_other_kind(arrow: pa.DataType, kind: str) -> None:
    assert kind_of(arrow) == kind


@pytest.mark.parametrize(("text", "arrow"), [
    ("decimal2", pa.decimal128(38, 2)), ("timestamp_utc", pa.timestamp("us", "UTC")), ("date", pa.date32()),
    ("double", pa.float64()),
])  # fmt: skip
def test_kinds_of_older_plans_are_still_read(text: str, arrow: pa.DataType) -> None:
    assert arrow_type(text) == arrow


@pytest.mark.parametrize(
    "text", ["int", "varchar(5)", "list<", "struct<>", "decimal(5,9)", "int64 x", "timestamp[h]", ""]
)
def test_a_type_that_there_is_not_is_refused(text: str) -> None:
    with pytest.raises(InvalidConfig, match="is no type of a column"):
        arrow_type(text)


def planned(directory: Path, files: list[Path], keep: tuple[str, ...] = ("c",)) -> tuple[Plan, list[dict[str, Any]]]:
    """The plan, and the rows that it wrote down."""
    run = Run(
        RunId("d", "t", "r"), lambda: FileSource(tuple(files)), Spec("m", "{id}", key="id", keep=keep),
        OutputDirectory(directory), Policy(on_empty="succeed"),
    )  # fmt: skip
    plan = find_or_make_plan(run, Services(client=None), starting=True)  # type: ignore[arg-type]
    work = run.output.work(plan.work)
    rows = [row for shard in Round.load_all(work)[0].shards for row in read_rows_file(shard.rows_in(work))]
    return plan, rows


def written(path: Path, column: pa.Array) -> Path:
    pq.write_table(pa.table({"id": [f"{path.stem}{n}" for n in range(len(column))], "c": column}), path)
    return path


def comparable(value: Any) -> Any:
    """NaN is NaN; an empty text is null, as CSV has it."""
    if isinstance(value, float) and math.isnan(value):
        return "nan"
    if isinstance(value, list | tuple):
        return [comparable(one) for one in value]
    if isinstance(value, dict):
        return {name: comparable(one) for name, one in value.items()}
    return value


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_a_kept_column_comes_back_as_it_was_declared(data: st.DataObject) -> None:
    """By the column and row by row, whatever the format; and what a database gets is the same from all three."""
    arrow, values = data.draw(columns())
    column = pa.array(data.draw(st.lists(values | st.none(), min_size=1, max_size=4)), arrow)
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        source = written(Path(directory) / "x.parquet", column)
        plan, rows = planned(Path(directory) / "out", [source])
        patch.setattr(RequestBuilder, "frame", None)
        assert planned(Path(directory) / "alone", [source])[1] == rows
        declared = pq.read_schema(source).field("c").type  # Parquet knows no seconds
        assert plan.keep_types == {"c": kind_of(declared)}
        table = Table(plan.keep_types)
        loaded = {}
        for file_format in FORMATS:
            path = Path(directory) / f"part.{file_format}"
            with writing_part(path, table, file_format) as part:
                for row in rows:
                    part.add(Result(row["key"], Status.OK), row["keep"], job=None, round_number=0)
            at = list(table.kinds).index("c")
            loaded[file_format] = [comparable(row[at]) for batch in read_part(path, table) for row in batch]
        landed = pq.read_table(Path(directory) / "part.parquet").column("c")
        assert landed.type == declared
        coarse = in_microseconds(declared)
        assert comparable(landed.cast(coarse).to_pylist()) == comparable(column.cast(coarse).to_pylist())
        assert loaded["jsonl"] == loaded["parquet"]
        assert loaded["csv"] == [None if value in ("", b"") else value for value in loaded["parquet"]]


@pytest.mark.parametrize(
    "arrow", [pa.int64(), pa.timestamp("ns", "Europe/Berlin"), pa.list_(pa.int8()), pa.decimal128(10, 2)]
)
@pytest.mark.parametrize("rows", [0, 2])
def test_a_night_without_values_has_the_types_of_all_others(tmp_path: Path, arrow: pa.DataType, rows: int) -> None:
    plan, _ = planned(tmp_path / "out", [written(tmp_path / "x.parquet", pa.nulls(rows, arrow))])
    assert arrow_type(plan.keep_types["c"]) == arrow


@pytest.mark.parametrize(("kinds", "together"), [
    (["int8", "uint32"], "int64"), (["uint8", "uint64"], "uint64"), (["int64", "uint64"], "string"),
    (["int32", "float"], "double"),
    (["int64", "double", "large"], "string"), (["decimal(10,2)", "decimal(5,4)"], "decimal(12,4)"),
    (["decimal(10,2)", "decimal(38,30)"], "decimal(38,30)"), (["decimal(38,0)", "decimal(38,30)"], "string"),
    (["timestamp[s]", "timestamp[ns]"], "timestamp"), (["timestamp_utc", "timestamp[us, tz=Asia/Tokyo]"], "timestamp_utc"),
    (["timestamp", "timestamp_utc"], "string"), (["time32[s]", "time64[ns]"], "time64[us]"),
    (["date", "timestamp"], "string"),
    (["list<int8>", "list<int16>"], "string"), (["null", "int8"], "int8"), (["null"], "string"),
    (["seen3.1", "decimal(4,2)"], "decimal2"),
])  # fmt: skip
def test_files_that_differ_get_a_type_that_loses_nothing(kinds: list[str], together: str) -> None:
    assert common(set(kinds)) == together


def test_files_that_declare_different_types_land_as_one_column(tmp_path: Path) -> None:
    one = written(tmp_path / "a.parquet", pa.array([1, None], pa.int32()))
    other = written(tmp_path / "b.parquet", pa.array([0.5]))
    plan, rows = planned(tmp_path / "out", [one, other])
    assert plan.keep_types == {"c": "double"}
    assert [row["keep"]["c"] for row in rows] == [1, None, 0.5]


def test_ids_beside_fractions_lose_no_digits(tmp_path: Path) -> None:
    one = written(tmp_path / "a.parquet", pa.array([2**53 + 1]))
    other = written(tmp_path / "b.parquet", pa.array([0.5]))
    plan, _ = planned(tmp_path / "out", [one, other])
    assert plan.keep_types == {"c": "string"}


def test_nanoseconds_are_not_lost_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fine = pa.array([1577836800123456789, None], pa.timestamp("ns"))
    files = [written(tmp_path / f"{n}.parquet", fine) for n in "ab"]
    with caplog.at_level(logging.WARNING):
        plan, rows = planned(tmp_path / "out", files)
    assert [record.getMessage() for record in caplog.records] == [
        "The column 'c' has nanoseconds, which are cut to microseconds"
    ]
    assert plan.keep_types == {"c": "timestamp[ns]"}
    assert rows[0]["keep"]["c"] == "2020-01-01T00:00:00.123456"


def test_spans_and_nested_nanoseconds_need_no_pandas(tmp_path: Path) -> None:
    nested = pa.array([[{"at": 1577836800123456789, "took": 1001}]], pa.list_(
        pa.struct([("at", pa.timestamp("ns")), ("took", pa.duration("ns"))])))  # fmt: skip
    _, rows = planned(tmp_path / "out", [written(tmp_path / "x.parquet", nested)])
    assert rows[0]["keep"]["c"] == [{"at": "2020-01-01T00:00:00.123456", "took": "P0DT0H0M0.000001S"}]


def test_infinity_within_a_list_comes_back(tmp_path: Path) -> None:
    plan, rows = planned(tmp_path / "out", [written(tmp_path / "x.parquet", pa.array([[math.inf, None, 1.5]]))])
    path = tmp_path / "part.parquet"
    with writing_part(path, Table(plan.keep_types), "parquet") as part:
        part.add(Result("k", Status.OK), rows[0]["keep"], job=None, round_number=0)
    assert pq.read_table(path).column("c").to_pylist() == [[math.inf, None, 1.5]]


@pytest.mark.parametrize(("kind", "value", "in_csv"), [
    ("list<int64>", [1, 2], "[1,2]"), ("struct<a: date>", {"a": "2026-01-02"}, '{"a":"2026-01-02"}'),
    ("map<string, int64>", [["k", 1]], '[["k",1]]'),
])  # fmt: skip
def test_nested_values_are_themselves_in_jsonl_and_json_text_in_csv(
    tmp_path: Path, kind: str, value: Any, in_csv: str
) -> None:
    table = Table({"c": kind})
    for file_format in ("jsonl", "csv"):
        with writing_part(tmp_path / f"x.{file_format}", table, file_format) as part:
            part.add(Result("k", Status.OK), {"c": value}, job=None, round_number=0)
    assert orjson.loads((tmp_path / "x.jsonl").read_bytes())["c"] == value
    import csv

    with (tmp_path / "x.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["c"] == in_csv
    assert basic(kind) == "json"
