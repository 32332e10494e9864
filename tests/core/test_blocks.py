"""Rows of Parquet become requests by the column: the same bytes, and the same errors, as row by row."""

from __future__ import annotations

import tempfile
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from airflow_gemini_batch.core import parquet
from airflow_gemini_batch.core.attempt import Policy, Run, Services
from airflow_gemini_batch.core.blocks import escaped
from airflow_gemini_batch.core.layout import OutputDirectory
from airflow_gemini_batch.core.names import RunId
from airflow_gemini_batch.core.plan import Round
from airflow_gemini_batch.core.planning import find_or_make_plan
from airflow_gemini_batch.core.requests import RequestBuilder, Spec
from airflow_gemini_batch.core.rows import FileSource
from airflow_gemini_batch.core.shards import Limits
from airflow_gemini_batch.exceptions import BadRow, DuplicateKey, GeminiBatchError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    [
        "",
        " ",
        "\u200b",
        "\x85",
        "\u2028",
        "\u3000",
        "\x1c",
        '"',
        "\\",
        '\\"',
        "\\u001e",
        "\x00",
        "\x7f",
        "a\r\n\tb",
        "😀é",
        "null",
    ]
)


@given(st.lists(TEXT | st.none(), max_size=20), st.integers(0, 5))
@example([chr(code) for code in range(0x100)], 3)
def test_text_is_escaped_as_orjson_does_it(texts: list[str | None], start: int) -> None:
    array = pa.array(texts, pa.string()).slice(min(start, len(texts)))
    expected = [None if text is None else orjson.dumps(text)[1:-1].decode() for text in array.to_pylist()]
    assert escaped(array).to_pylist() == expected


KEYS = st.text('ab \t"\\é😀\x1f', max_size=3) | st.none()
KEEPS = {
    "int": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "small": (pa.uint8(), st.integers(0, 255)),
    "large": (pa.uint64(), st.integers(0, 2**64 - 1)),
    "float": (pa.float64(), st.floats()),
    "single": (pa.float32(), st.floats(width=32)),
    "bool": (pa.bool_(), st.booleans()),
    "text": (pa.string(), TEXT),
    "large text": (pa.large_string(), TEXT),
    "sorts": (pa.dictionary(pa.int32(), pa.string()), st.sampled_from(["x", '"y"', ""])),
    "day": (pa.date32(), st.dates()),
    "at": (pa.timestamp("us"), st.datetimes(datetime(1700, 1, 1), datetime(2200, 1, 1))),
    "at utc": (pa.timestamp("ms", "UTC"), st.datetimes(datetime(1970, 1, 1), timezones=st.just(UTC)).map(
        lambda at: at.replace(microsecond=0))),
    "money": (pa.decimal128(10, 2), st.decimals(-1000, 1000, places=2)),
    "list": (pa.list_(pa.int64()), st.lists(st.integers(0, 9), max_size=3)),
    "numbers": (pa.list_(pa.float32()), st.lists(st.floats(width=32) | st.none(), max_size=3)),
    "record": (pa.struct([("a", pa.date32()), ("b", pa.list_(pa.binary()))]), st.fixed_dictionaries(
        {"a": st.dates() | st.none(), "b": st.lists(st.binary(max_size=3), max_size=2)})),
    "map": (pa.map_(pa.string(), pa.float64()), st.lists(st.tuples(TEXT, st.floats() | st.none()), max_size=2)),
    "hour": (pa.time64("ns"), st.times()),
    "span": (pa.duration("ms"), st.integers(-10**9, 10**9)),
    "fine": (pa.timestamp("ns"), st.integers(-10**18, 10**18)),
    "tiny": (pa.int8(), st.integers(-9, 9)),
    "bytes": (pa.binary(), st.binary(max_size=4)),
    "nothing": (pa.null(), st.none()),
}  # fmt: skip
KEY_TYPES = {
    "text": (pa.string(), KEYS),
    "unique text": (pa.string(), None),
    "number": (pa.int64(), st.integers(0, 10**12) | st.none()),
    "float": (pa.float64(), st.integers(0, 10**12).map(float)),
    "day": (pa.date32(), st.dates()),
}
PLACES = {"text": (pa.string(), TEXT), **KEEPS}


FIXED = ["string", "int64", "double", "date", "decimal(10,2)", "list<int64>", "timestamp[ns]"]


@st.composite
def tables(draw: st.DrawFn) -> tuple[pa.Table, Spec]:
    count = draw(st.integers(0, 25))

    def column(arrow: pa.DataType, values: st.SearchStrategy[Any]) -> pa.Array:
        return pa.array(draw(st.lists(values | st.none(), min_size=count, max_size=count)), arrow)

    key_type, keys = KEY_TYPES[draw(st.sampled_from(list(KEY_TYPES)))]
    columns = {
        "id": column(key_type, keys) if keys is not None else pa.array([f"k{n}" for n in range(count)]),
        "a": column(pa.string(), TEXT),
        "b": column(*PLACES[draw(st.sampled_from(list(PLACES)))]),
    }
    keep = draw(st.lists(st.sampled_from(list(KEEPS)), max_size=3))
    columns |= {name: column(*KEEPS[name]) for name in dict.fromkeys(keep)}
    prompt = draw(
        st.sampled_from(["{a}", 'Say "{a}"\n{b}\\', "{b}", "{a}{b}{a}", {"one": "{a}", "two": "{b}"}, "no place"])
    )
    spec = Spec(
        "m", prompt, draw(st.sampled_from([{}, {"generationConfig": {"temperature": 0}}])),
        draw(st.sampled_from(["id", "id", None])), tuple(keep), embeddings=draw(st.booleans()),
        types={name: draw(st.sampled_from(FIXED)) for name in keep if draw(st.integers(0, 5)) == 0},
    )  # fmt: skip
    return pa.table(columns), spec


def planned(directory: Path, path: Path, spec: Spec, limits: Limits) -> Any:
    """All that planning wrote, or how it failed."""
    run = Run(
        RunId("d", "t", "r"),
        lambda: FileSource((path,)),
        spec,
        OutputDirectory(directory),
        Policy(limits=limits, on_empty="succeed"),
    )
    try:
        plan = find_or_make_plan(run, Services(client=None), starting=True)  # type: ignore[arg-type]
    except GeminiBatchError as e:
        return type(e), str(e)
    work = run.output.work(plan.work)
    shards = Round.load_all(work)[0].shards
    files = [(shard.requests_in(work).read_bytes(), shard.rows_in(work).read_bytes()) for shard in shards]
    return plan.rows, plan.keep_types, shards, files


@settings(max_examples=250)
@given(tables(), st.integers(1, 12), st.integers(1, 8), st.integers(150, 400))
def test_by_the_column_gives_the_same_bytes_and_errors_as_row_by_row(
    table_and_spec: tuple[pa.Table, Spec], per_job: int, batch: int, size: int
) -> None:
    table, spec = table_and_spec
    limits = Limits(requests_per_job=per_job, bytes_per_job=2 * size, bytes_per_request=size)
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        path = Path(directory) / "ds=1" / "rows.parquet"
        path.parent.mkdir()
        pq.write_table(table, path, row_group_size=10)
        patch.setattr(parquet, "MOST_ROWS", batch)
        by_column = planned(Path(directory) / "columns", path, spec, limits)
        patch.setattr(RequestBuilder, "frame", None)
        assert planned(Path(directory) / "rows", path, spec, limits) == by_column


def test_plain_rows_are_never_taken_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is fast has to stay so: only the rows that need a closer look get it."""
    texts = [None if n % 100 == 7 else f'{n} "é😀"\n' for n in range(5000)]
    pq.write_table(
        pa.table({"id": range(5000), "a": texts, "stars": [n % 5 for n in range(5000)]}), tmp_path / "x.parquet"
    )
    seen = []
    build = RequestBuilder.build
    monkeypatch.setattr(RequestBuilder, "build", lambda self, row: seen.append(row.number) or build(self, row))
    rows, types, _, files = planned(
        tmp_path / "out",
        tmp_path / "x.parquet",
        Spec("m", "{a}", key="id", keep=("stars",)),
        Limits(requests_per_job=700),
    )
    assert (rows, types) == (5000, {"stars": "int64"})
    assert sum(lines.count(b"\n") for lines, _ in files) == 4950
    assert seen == list(range(7, 5000, 100))


def test_a_bad_row_among_many_is_named_by_its_line(tmp_path: Path) -> None:
    def failing(**columns: Any) -> tuple[Any, str]:
        pq.write_table(pa.table(columns), tmp_path / "x.parquet")
        return planned(
            tmp_path / "out", tmp_path / "x.parquet", Spec("m", "{a}", key="id"), Limits(bytes_per_request=500)
        )

    ids, texts = [str(n) for n in range(9000)], ["fine"] * 9000
    assert failing(id=[*ids[:8500], " ", *ids[8501:]], a=texts)[0] is BadRow
    assert "x.parquet:8501" in failing(id=[*ids[:8500], " ", *ids[8501:]], a=texts)[1]
    assert "x.parquet:8001" in failing(id=ids, a=[*texts[:8000], "x" * 600, *texts[8001:]])[1]
    kind, said = failing(id=[*ids[:8500], "17", *ids[8501:]], a=texts)
    assert kind is DuplicateKey
    assert "x.parquet:18" in said
    assert "x.parquet:8501" in said


def test_text_that_is_not_utf8_is_never_sent(tmp_path: Path) -> None:
    """Parquet does not check what it calls text."""
    bad = pa.array([b"fine", b"caf\xe9", b"fine"], pa.binary())
    raw = pa.StringArray.from_buffers(3, bad.buffers()[1], bad.buffers()[2])
    pq.write_table(pa.table({"a": raw}), tmp_path / "x.parquet")
    kind, said = planned(tmp_path / "out", tmp_path / "x.parquet", Spec("m", "{a}"), Limits())
    assert kind is BadRow
    assert "x.parquet:2" in said
    assert "UTF-8" in said


def test_kept_values_are_stored_alike(tmp_path: Path) -> None:
    keep = {"d": date(2026, 1, 2), "f": float("nan"), "m": Decimal("1.20"), "s": 'a"\n', "n": None, "b": True}
    pq.write_table(pa.table({"a": ["x"], **{name: [value] for name, value in keep.items()}}), tmp_path / "x.parquet")
    _, _, _, ((_, rows),) = planned(
        tmp_path / "out", tmp_path / "x.parquet", Spec("m", "{a}", keep=tuple(keep)), Limits()
    )
    assert orjson.loads(rows) == {
        "key": "0", "keep": {"d": "2026-01-02", "f": "nan", "m": "1.20", "s": 'a"\n', "n": None, "b": True},
    }  # fmt: skip
