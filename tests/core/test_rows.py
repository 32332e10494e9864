from __future__ import annotations

import gzip
import io
import json
import tempfile
import tracemalloc
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_gemini_batch.core import exact
from airflow_gemini_batch.core.requests import RequestBuilder, Spec
from airflow_gemini_batch.core.rows import BYTE_ORDER_MARK, FileSource, RecordSource, read_rows
from airflow_gemini_batch.core.source_columns import NULL_PARTITION
from airflow_gemini_batch.exceptions import BadRow, SourceUnreadable, UnknownColumn

AWKWARD = 'a,"b"\r\nc\nd\re\u2028f\u2029g\u0085h\x1ci\x0bj\tk 😀 \\n é'


def rows_of(path: Path, *needed: str) -> list[dict[str, Any]]:
    return [dict(row.values) for row in read_rows(FileSource((path,)), dict.fromkeys(needed, "prompt"))]


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


# Records


def test_a_list_gives_its_mappings_and_strings_in_order():
    rows = list(read_rows(RecordSource([{"a": 1}, "hello"]), {}))
    assert [(r.number, dict(r.values), r.where) for r in rows] == [
        (0, {"a": 1}, "row 0"),
        (1, {"text": "hello"}, "row 1"),
    ]


@pytest.mark.parametrize("wrong", [5, None, ["a"], ("a", "b"), b"bytes"])
def test_a_row_of_another_kind_is_named_by_its_number(wrong):
    with pytest.raises(BadRow, match="row 1: a row is a mapping or a string, not"):
        list(read_rows(RecordSource(["fine", wrong]), {}))


def test_rows_are_read_one_at_a_time_from_an_endless_source():
    def endless():
        n = 0
        while True:
            yield {"n": n}
            n += 1

    rows = read_rows(RecordSource(endless()), {})
    assert [next(rows).values["n"] for _ in range(3)] == [0, 1, 2]


# Files


def test_rows_are_numbered_over_all_files_and_lines_within_each(tmp_path):
    first = write(tmp_path / "1.jsonl", '{"a":1}\n{"a":2}\n')
    second = write(tmp_path / "2.csv", "a\n3\n")
    rows = list(read_rows(FileSource((first, second)), {}))
    assert [(r.number, r.where) for r in rows] == [(0, "1.jsonl:1"), (1, "1.jsonl:2"), (2, "2.csv:2")]


@pytest.mark.parametrize("name", ["x.txt", "x", "x.parquet.gz", "x.xml", "x.csv.zip"])
def test_a_file_of_unknown_kind_is_refused_with_the_kinds_there_are(tmp_path, name):
    with pytest.raises(SourceUnreadable, match=r"Known endings: \.csv, \.jsonl"):
        rows_of(write(tmp_path / name, "a\n1\n"))


@pytest.mark.parametrize("name", ["x.csv", "x.CSV", "x.jsonl", "x.ndjson", "x.json", "x.JSONL.GZ", "x.csv.gz"])
def test_the_ending_tells_the_format_in_either_case(tmp_path, name):
    text = b"a\nhello\n" if "csv" in name.lower() else b'{"a":"hello"}\n'
    data = gzip.compress(text) if name.lower().endswith(".gz") else text
    assert rows_of(write(tmp_path / name, data)) == [{"a": "hello"}]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "csv.gz"])
def test_a_missing_file_is_named(tmp_path, kind):
    with pytest.raises(SourceUnreadable, match=f"gone.{kind} does not exist"):
        rows_of(tmp_path / f"gone.{kind}")


def test_a_directory_is_not_a_source(tmp_path):
    (tmp_path / "d.csv").mkdir()
    with pytest.raises(SourceUnreadable, match=r"d\.csv cannot be read"):
        rows_of(tmp_path / "d.csv")


@pytest.mark.parametrize(
    ("name", "data"),
    [("x.csv", "review,id\na,1\n"), ("x.parquet", {"review": ["a"], "id": [1]})],
    ids=["csv", "parquet"],
)
def test_an_unknown_column_lists_the_columns_and_suggests_one(tmp_path, name, data):
    path = tmp_path / name
    if isinstance(data, dict):
        pq.write_table(pa.table(data), path)
    else:
        write(path, data)
    with pytest.raises(UnknownColumn) as caught:
        rows_of(path, "reveiw")
    said = str(caught.value)
    assert "prompt names the column 'reveiw'" in said
    assert "'review', 'id'" in said
    assert "Did you mean 'review'?" in said


@pytest.mark.parametrize("kind", ["jsonl", "records"])
def test_what_a_json_record_leaves_out_is_null_if_another_one_has_it(tmp_path, caplog, kind):
    records = [{"id": 1}, {"id": 2, "lang": "de"}, {"id": 3}]
    if kind == "jsonl":
        source = FileSource((write(tmp_path / "x.jsonl", "".join(json.dumps(one) + "\n" for one in records)),))
    else:
        source = RecordSource(records)
    caplog.set_level("INFO")
    found = [dict(row.values) for row in read_rows(source, {"id": "key", "lang": "prompt"})]
    assert found == [{"id": 1, "lang": None}, {"id": 2, "lang": "de"}, {"id": 3, "lang": None}]
    first = "x.jsonl:1" if kind == "jsonl" else "row 0"
    assert f"2 rows leave the column 'lang' out, the first is {first}: it is null there" in caplog.text


def test_a_column_may_be_missing_from_a_whole_file_if_another_one_has_it(tmp_path):
    paths = (write(tmp_path / "1.jsonl", '{"a":1}\n'), write(tmp_path / "2.jsonl", '{"a":2,"b":3}\n'))
    found = [dict(row.values) for row in read_rows(FileSource(paths), {"a": "prompt", "b": "keep"})]
    assert found == [{"a": 1, "b": None}, {"a": 2, "b": 3}]


@pytest.mark.parametrize("kind", ["jsonl", "records"])
def test_a_column_that_no_json_record_has_is_unknown(tmp_path, kind):
    records = [{"id": 1}, {"id": 2, "lang": "de"}]
    if kind == "jsonl":
        source = FileSource((write(tmp_path / "x.jsonl", "".join(json.dumps(one) + "\n" for one in records)),))
    else:
        source = RecordSource(records)
    with pytest.raises(UnknownColumn, match=r"names the column 'long'.*Columns: 'id', 'lang'\. Did you mean 'lang'"):
        list(read_rows(source, {"id": "key", "long": "prompt"}))


def test_no_json_record_may_leave_its_key_out():
    records = [{"id": 1, "lang": "de"}, {"lang": "en"}]
    with pytest.raises(UnknownColumn, match="key names the column 'id', which row 1 does not have"):
        list(read_rows(RecordSource(records), {"id": "key", "lang": "prompt"}))


# Partitions


def test_names_of_directories_are_columns_of_every_row_in_every_format(tmp_path):
    for kind, data in {
        "csv": b"a\n1\n",
        "tsv": b"a\n1\n",
        "jsonl": b'{"a":"1"}\n',
        "csv.gz": gzip.compress(b"a\n1\n"),
    }.items():
        path = below(tmp_path, f"ds=2026-01-01/country=DE/x.{kind}", data)
        assert rows_of(path, "a", "ds", "country") == [{"a": "1", "ds": "2026-01-01", "country": "DE"}]
    path = below(tmp_path, "ds=2026-01-01/country=DE/x.parquet", b"")
    pq.write_table(pa.table({"a": ["1"], "b": ["2"]}), path)
    assert rows_of(path, "a", "ds") == [{"a": "1", "ds": "2026-01-01", "country": "DE"}]
    assert rows_of(path, "ds") == [{"ds": "2026-01-01", "country": "DE"}]  # none of the file's own
    assert rows_of(path) == [{"a": "1", "b": "2", "ds": "2026-01-01", "country": "DE"}]


@pytest.mark.parametrize(
    ("segment", "column"),
    [
        ("ds=2026-01-01", {"ds": "2026-01-01"}),
        ("n=007", {"n": "007"}),
        ("path=a%2Fb%3Dc%20d", {"path": "a/b=c d"}),
        ("%C3%A9=%F0%9F%98%80", {"é": "😀"}),
        ("q=a=b", {"q": "a=b"}),
        ("q=", {"q": ""}),
        ("q=+", {"q": "+"}),
        ("q=50%", {"q": "50%"}),
        ("q=%FF", {"q": "%FF"}),
        ("q=__HIVE_DEFAULT_PARTITION__", {"q": None}),
        ("=q", {}),
        ("q", {}),
    ],
)
def test_a_partitions_text_is_decoded_as_hive_writes_it(tmp_path, segment, column):
    path = below(tmp_path, f"{segment}/x.jsonl", b'{"a":1}\n')
    (row,) = read_rows(FileSource((path,)), {})
    assert row.values == {"a": 1, **column}
    assert row.partitions == column.keys()


def test_a_column_of_the_file_itself_wins_over_its_directorys_name(tmp_path):
    for kind, data in {"csv": b"ds\nmine\n", "jsonl": b'{"ds":"mine"}\n'}.items():
        assert rows_of(below(tmp_path, f"ds=dir/x.{kind}", data), "ds") == [{"ds": "mine"}]
    path = below(tmp_path, "ds=dir/x.parquet", b"")
    pq.write_table(pa.table({"ds": ["mine"]}), path)
    assert rows_of(path, "ds") == [{"ds": "mine"}]


def test_a_files_own_name_and_the_nearest_of_two_directories(tmp_path):
    assert rows_of(below(tmp_path, "q=far/q=near/r=1.csv", b"a\n1\n")) == [{"a": "1", "q": "near"}]


def test_an_unknown_column_lists_partitions_too(tmp_path):
    with pytest.raises(UnknownColumn, match=r"Columns: 'a', 'ds'\. Did you mean 'ds'"):
        rows_of(below(tmp_path, "ds=1/x.csv", b"a\n1\n"), "dss")


def test_partitions_serve_in_prompt_key_and_keep(tmp_path):
    path = below(tmp_path, "ds=2026-01-01/id=7/x.jsonl", b'{"a":"hello"}\n')
    builder = RequestBuilder(Spec("m", "On {ds}: {a}", key="id", keep=("ds",)), max_bytes=1000)
    (request,) = [one for row in read_rows(FileSource((path,)), builder.needed) for one in builder.build(row)]
    assert (request.key, request.keep) == ("7", {"ds": "2026-01-01"})
    assert b"On 2026-01-01: hello" in request.line


def test_files_of_the_same_name_in_several_directories_are_told_apart(tmp_path):
    paths = tuple(below(tmp_path, f"t/ds={n}/part-0.csv", b"a\n1\n" if n < 2 else b"a\n1,2\n") for n in range(3))
    rows = read_rows(FileSource(paths), {})
    assert [next(rows).where, next(rows).where] == ["ds=0/part-0.csv:2", "ds=1/part-0.csv:2"]
    with pytest.raises(BadRow, match=r"^ds=2/part-0\.csv:2: 2 fields"):
        next(rows)


def below(root: Path, name: str, data: bytes) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return write(path, data)


# What was written is what is read

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NAMES = st.lists(
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=5), min_size=1, max_size=3, unique=True
)


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[str], list[list[str]]]:
    header = draw(NAMES)
    return header, draw(st.lists(st.lists(TEXT, min_size=len(header), max_size=len(header)), max_size=6))


PARTITION = st.tuples(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5), st.none() | TEXT.filter(bool)
)


def write_csv(header: list[str], rows: list[list[str]], delimiter: str) -> tuple[bytes, list[int]]:
    """The file, and the line each record begins at."""
    import csv

    out = io.StringIO()
    writer = csv.writer(out, quoting=csv.QUOTE_ALL, delimiter=delimiter)
    lines = []
    for row in [header, *rows]:
        lines.append(out.getvalue().count("\n") + 1)
        writer.writerow(row)
    return out.getvalue().encode(), lines[1:]


def write_jsonl(header: list[str], rows: list[list[str]], ascii_only: bool) -> tuple[bytes, list[int]]:
    text = "".join(json.dumps(dict(zip(header, row, strict=True)), ensure_ascii=ascii_only) + "\n" for row in rows)
    return text.encode(), [*range(1, len(rows) + 1)]


def write_parquet(header: list[str], rows: list[list[str]]) -> tuple[bytes, list[int]]:
    out = io.BytesIO()
    columns = {name: pa.array([row[i] for row in rows], pa.string()) for i, name in enumerate(header)}
    pq.write_table(pa.table(columns), out, row_group_size=2)
    return out.getvalue(), [*range(1, len(rows) + 1)]


@settings(max_examples=150)
@given(
    st.sampled_from(["csv", "tsv", "jsonl", "ndjson", "parquet", "csv.gz", "jsonl.gz"]),
    st.lists(tables(), min_size=1, max_size=3),
    st.none() | PARTITION,
    st.booleans(),
)
def test_rows_are_those_written_in_order_with_file_and_line(kind, written, partition, flag):
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        if partition:
            name, value = partition
            folder /= f"{quote(name, safe='')}={NULL_PARTITION if value is None else quote(value, safe='')}"
            folder.mkdir()
        paths, expected = [], []
        for n, (header, rows) in enumerate(written):
            if kind.startswith(("csv", "tsv")):
                data, lines = write_csv(header, rows, "\t" if kind == "tsv" else ",")
                data = BYTE_ORDER_MARK + data if flag else data
            elif kind == "parquet":
                data, lines = write_parquet(header, rows)
            else:
                data, lines = write_jsonl(header, rows, flag)
            path = folder / f"{n}.{kind}"
            path.write_bytes(gzip.compress(data) if kind.endswith(".gz") else data)
            paths.append(path)
            named = {partition[0]: partition[1]} if partition else {}
            expected += [
                (named | dict(zip(header, row, strict=True)), f"{path.name}:{line}")
                for row, line in zip(rows, lines, strict=True)
            ]
        got = list(read_rows(FileSource(tuple(paths)), {}))
        assert [(dict(row.values), row.where) for row in got] == expected
        assert [row.number for row in got] == [*range(len(expected))]


# CSV


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("a,b\n1,2\n", [{"a": "1", "b": "2"}]),
        ("a,b\n1,2", [{"a": "1", "b": "2"}]),
        ("a,b\r\n1,2\r\n", [{"a": "1", "b": "2"}]),
        ("\ufeffa,b\n1,2\n", [{"a": "1", "b": "2"}]),
        ('\ufeff"a",b\n1,2\n', [{"a": "1", "b": "2"}]),
        ("a,b\n\n1,2\n\n", [{"a": "1", "b": "2"}]),
        ('a,b\n"x ""y""\nz",2\n', [{"a": 'x "y"\nz', "b": "2"}]),
        ('a,b\n"x\r\ny",2\n', [{"a": "x\r\ny", "b": "2"}]),
        ("a\nx\u2028y\u0085z\n", [{"a": "x\u2028y\u0085z"}]),
        ("a,b\n,\n", [{"a": "", "b": ""}]),
        ("a,b\n", []),
        ("", []),
        ('a\n""\n', [{"a": ""}]),
    ],
)
def test_csv_as_it_is_found_in_the_wild_is_read(tmp_path, text, rows):
    assert rows_of(write(tmp_path / "x.csv", text)) == rows


def test_a_blank_line_before_the_header_of_a_csv_loses_no_row(tmp_path):
    assert rows_of(write(tmp_path / "x.csv", "\na,b\n1,2\n")) == [{"a": "1", "b": "2"}]


def test_a_csv_record_is_known_by_the_line_it_starts_at(tmp_path):
    path = write(tmp_path / "x.csv", 'a\n"1\n1\n1"\n2\n\n3\n')
    assert [row.line for row in read_rows(FileSource((path,)), {})] == [2, 5, 7]


@pytest.mark.parametrize(
    ("data", "where", "said"),
    [
        (b"a,b\n1,2\n1,2,3\n", "x.csv:3", "3 fields, but the header has 2"),
        (b'a,b\n"1\n1",2\n1\n', "x.csv:4", "1 fields, but the header has 2"),
        (b'a,b\n1,2\n3,"open\n5,6\n7,8\n', "x.csv:3", "starts here"),
        (b'a,b\n1,2\n3,"o"pen\n', "x.csv:3", "starts here"),
        (b'a,b\n"x\n\xff",2\n', "x.csv:3", "not UTF-8 (byte 0xff at column 1)"),
        (b"a,b\n1,2\n3,caf\xe9\n", "x.csv:3", "not UTF-8 (byte 0xe9 at column 6)"),
        (b"a,b,a\n", "x.csv:1", "names 'a' more than once"),
        ("a,b\n1,2\n".encode("utf-16"), "x.csv:1", "not UTF-8"),
    ],
)
def test_a_broken_csv_names_the_line_and_the_trouble(tmp_path, data, where, said):
    with pytest.raises(BadRow) as caught:
        rows_of(write(tmp_path / "x.csv", data))
    assert caught.value.where == where
    assert said in caught.value.problem


def test_a_csv_field_may_be_megabytes_long(tmp_path):
    assert rows_of(write(tmp_path / "x.csv", f"a\n{'x' * 3_000_000}\n")) == [{"a": "x" * 3_000_000}]


def test_a_large_csv_is_not_held_in_memory(tmp_path):
    line = "x" * 1000 + "\n"
    path = write(tmp_path / "x.csv", "a\n" + line * 20_000)
    tracemalloc.start()
    assert sum(1 for _ in read_rows(FileSource((path,)), {})) == 20_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000


def test_a_tsv_is_parted_by_tabs_and_commas_are_text(tmp_path):
    assert rows_of(write(tmp_path / "x.tsv", 'a\tb\n1,2\t"x\ty"\n')) == [{"a": "1,2", "b": "x\ty"}]


def test_a_doubled_header_below_a_blank_line_is_named_by_its_own_line(tmp_path):
    with pytest.raises(BadRow, match=r"^x\.csv:2: the header names 'a' more than once"):
        rows_of(write(tmp_path / "x.csv", "\na,a\n1,2\n"))


# gzip


@pytest.mark.parametrize("name", ["x.csv.gz", "x.jsonl.gz"])
def test_a_gzip_file_of_no_bytes_is_an_upload_that_broke_off(tmp_path, name):
    with pytest.raises(SourceUnreadable, match="no bytes at all"):
        rows_of(write(tmp_path / name, b""))
    assert rows_of(write(tmp_path / name, gzip.compress(b""))) == []


@pytest.mark.parametrize("name", ["x.csv.gz", "x.jsonl.gz"])
def test_a_truncated_gzip_file_is_no_shorter_source_but_an_error(tmp_path, name):
    text = "".join(f'{{"a":"{i * 7919}"}}\n' for i in range(5000)).encode()
    whole = gzip.compress(b"a\n" + text.replace(b'"', b"") if "csv" in name else text)
    with pytest.raises(SourceUnreadable, match=f"{name} is not a whole gzip file"):
        rows_of(write(tmp_path / name, whole[: len(whole) // 2]))


@pytest.mark.parametrize("data", [b"a\n1\n", gzip.compress(b"a\n1\n" * 1000)[:-4] + b"\0\0\0\0"], ids=["plain", "crc"])
def test_what_is_not_gzip_is_an_error(tmp_path, data):
    with pytest.raises(SourceUnreadable, match="is not a whole gzip file"):
        rows_of(write(tmp_path / "x.csv.gz", data))


def test_a_gzip_file_of_several_members_is_read_to_its_end(tmp_path):
    data = gzip.compress(b'{"a":1}\n') + gzip.compress(b'{"a":2}\n')
    assert rows_of(write(tmp_path / "x.jsonl.gz", data)) == [{"a": 1}, {"a": 2}]


# JSONL


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('{"a":1}\n{"a":2}\n', [{"a": 1}, {"a": 2}]),
        ('{"a":1}\r\n{"a":2}', [{"a": 1}, {"a": 2}]),
        ('\ufeff{"a":1}\n', [{"a": 1}]),
        ('\n{"a":1}\n  \n\n', [{"a": 1}]),
        ('{"a":"x\u2028y\u0085z"}\n', [{"a": "x\u2028y\u0085z"}]),
        ('"just text"\n', [{"text": "just text"}]),
        ('{"a":null,"b":true,"c":1.5,"d":{"e":[1]}}\n', [{"a": None, "b": True, "c": 1.5, "d": {"e": [1]}}]),
        ("", []),
    ],
)
def test_jsonl_as_it_is_found_in_the_wild_is_read(tmp_path, text, rows):
    assert rows_of(write(tmp_path / "x.jsonl", text)) == rows


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'{"a":1\n', "broken JSON"),
        (b"[1]\n", "not list. JSONL has one object on each line"),
        (b"5\n", "not int"),
        (b"null\n", "not NoneType"),
        (b'{"a":"caf\xe9"}\n', "broken JSON"),
        (b'{"a":"\\ud800"}\n', "Half of a surrogate pair is no text"),
        (b'{"a":NaN}\n', "JSON has no NaN or Infinity: write null"),
        (b'{"a":1} {"a":2}\n', "broken JSON"),
    ],
)
def test_a_broken_line_of_jsonl_is_named(tmp_path, data, said):
    path = write(tmp_path / "x.jsonl", b'{"a":"x\xe2\x80\xa8y"}\n\n' + data)
    with pytest.raises(BadRow) as caught:
        rows_of(path)
    assert caught.value.where == "x.jsonl:3"
    assert said in caught.value.problem


def test_an_id_with_more_digits_than_64_bits_hold_is_never_rounded(tmp_path):
    """It would not be the row's own key any more, and two ids could become one."""
    digits = "123456789012345678901234"
    path = write(tmp_path / "x.jsonl", f'{{"id":{digits},"text":"hello"}}\n')
    builder = RequestBuilder(Spec("m", "{text}", key="id"), max_bytes=1000)
    keys = [one.key for row in read_rows(FileSource((path,)), builder.needed) for one in builder.build(row)]
    assert keys == [digits]


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])) | st.integers(10**18, 10**40),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
))  # fmt: skip
def test_json_with_numbers_of_any_size_comes_back_as_it_was(value):
    assert exact.loads(exact.dumps(value)) == value


def test_a_number_that_python_does_not_read_costs_no_run(tmp_path):
    path = write(tmp_path / "x.jsonl", f'{{"n":{"1" * 300},"deep":{"[" * 900}1{"]" * 900}}}\n')
    assert len(rows_of(path)) == 1


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ('{"a":1}\n'.encode("utf-16"), "The file is UTF-16; save it as UTF-8"),
        (b'{\n  "a": 1\n}\n', "JSONL has one whole object in each"),
        (b'[\n  {"a": 1}\n]\n', "JSONL has one whole object in each"),
    ],
)
def test_a_file_that_is_json_but_not_jsonl_says_what_to_do(tmp_path, data, said):
    with pytest.raises(BadRow, match=r"^x\.jsonl:1: broken JSON") as caught:
        rows_of(write(tmp_path / "x.jsonl", data))
    assert said in caught.value.problem


@pytest.mark.parametrize(
    "line",
    [
        b'{"key":"a","request":{"contents":[{"parts":[{"text":"x"}]}]}}',
        b' { "request" : {"n": 1.0e2}, "key" : "\\u00e9" } ',
        b'{"key":"a","request":{"properties":{"key":{"key":1}}}}',
        b'{"key":"a","request":{"id":123456789012345678901234}}',
    ],
)
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
def test_a_line_that_is_exactly_a_request_keeps_its_bytes(tmp_path, line, end):
    path = write(tmp_path / "x.jsonl", BYTE_ORDER_MARK + line + b"\n\n" + line + end)
    assert [(row.raw, row.line) for row in read_rows(FileSource((path,)), {})] == [(line, 1), (line, 3)]


@pytest.mark.parametrize(
    "record", [{"request": {"a": 1}}, {"key": "a"}, {"key": 1, "request": {}}, {"key": "a", "request": "x"},
               {"key": "a", "request": {}, "stars": 5}, {"a": 1, "b": 2}, "text"],
)  # fmt: skip
def test_other_lines_have_no_bytes_to_send(tmp_path, record):
    path = write(tmp_path / "x.jsonl", json.dumps(record) + "\n")
    assert [row.raw for row in read_rows(FileSource((path,)), {})] == [None]


def test_the_bytes_of_a_request_are_kept_in_a_partition_too(tmp_path):
    line = b'{"key":"a","request":{"contents":[]}}'
    (row,) = read_rows(FileSource((below(tmp_path, "ds=1/x.jsonl", line),)), {})
    assert (row.raw, row.values["ds"], row.partitions) == (line, "1", {"ds"})


@pytest.mark.parametrize(
    "line", [b'{"key":"a","key":"b","request":{}}', b'{"key":"a","request":{"x":1},"request":{"key":2}}']
)
def test_a_request_with_two_keys_is_refused_for_nobody_knows_which_the_service_takes(tmp_path, line):
    with pytest.raises(BadRow, match=r"x\.jsonl:1: the line names key, .*may be there once"):
        rows_of(write(tmp_path / "x.jsonl", line))


def test_a_byte_order_mark_and_blank_lines_of_a_request_file_are_told_once(tmp_path, caplog):
    line = b'{"key":"a","request":{}}\n'
    rows_of(write(tmp_path / "x.jsonl", BYTE_ORDER_MARK + line + b"\n" + line + b"  \n\n"))
    assert [record.getMessage() for record in caplog.records] == [
        "x.jsonl:1: begins with a byte order mark, which is not sent; save the file as UTF-8 without one",
        "x.jsonl:2: the first of 3 blank lines, which are not sent; remove what is blank",
    ]


def test_a_file_of_plain_rows_with_a_mark_and_blank_lines_is_worth_no_word(tmp_path, caplog):
    assert rows_of(write(tmp_path / "x.jsonl", BYTE_ORDER_MARK + b'{"a":1}\n\n')) == [{"a": 1}]
    assert not caplog.records


# Parquet


@pytest.mark.parametrize("ending", ["parquet", "parq", "pq", "PARQUET"])
def test_parquet_has_several_endings(tmp_path, ending):
    pq.write_table(pa.table({"a": [1]}), tmp_path / f"x.{ending}")
    assert rows_of(tmp_path / f"x.{ending}") == [{"a": 1}]


def test_a_parquet_file_with_two_columns_of_a_name_is_an_error(tmp_path):
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(SourceUnreadable, match=r"x\.parquet has more than one column 'a'"):
        rows_of(tmp_path / "x.parquet")


def test_parquet_values_keep_their_types(tmp_path):
    values = {
        "i": 2**62, "f": 1.5, "b": True, "s": AWKWARD, "n": None, "d": Decimal("1.20"), "t": datetime(2026, 1, 2, tzinfo=UTC),
        "l": [1, 2], "raw": b"\x00\xff",
    }  # fmt: skip
    pq.write_table(pa.Table.from_pylist([values]), tmp_path / "x.parquet")
    assert rows_of(tmp_path / "x.parquet") == [values]


def test_only_the_needed_columns_of_a_parquet_file_are_read(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"a": ["x"] * 10, "wide": ["y" * 1000] * 10, "b": [1] * 10}), path)
    assert rows_of(path, "a", "b")[0] == {"a": "x", "b": 1}

    # Not even looked at: the file still reads when the bytes of the wide column are damaged.
    meta = pq.ParquetFile(path).metadata.row_group(0).column(1)
    start = meta.dictionary_page_offset or meta.data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + meta.total_compressed_size] = b"\xff" * meta.total_compressed_size
    path.write_bytes(bytes(data))
    assert len(rows_of(path, "a", "b")) == 10


def test_rows_of_several_row_groups_come_in_order_and_are_numbered(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"a": list(range(5000))}), path, row_group_size=700)
    rows = list(read_rows(FileSource((path,)), {"a": "prompt"}))
    assert [row.values["a"] for row in rows] == list(range(5000))
    assert [row.line for row in rows] == list(range(1, 5001))


@pytest.mark.parametrize("keep", [0.5, 0.99], ids=["half", "no footer"])
def test_a_truncated_parquet_file_is_an_error(tmp_path, keep):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"a": list(range(1000))}), path)
    data = path.read_bytes()
    with pytest.raises(SourceUnreadable, match="not a readable Parquet file"):
        rows_of(write(path, data[: int(len(data) * keep)]))


@pytest.mark.parametrize("data", [b"", b"a,b\n1,2\n", b"PAR1PAR1"])
def test_what_is_not_parquet_is_an_error(tmp_path, data):
    with pytest.raises(SourceUnreadable):
        rows_of(write(tmp_path / "x.parquet", data))


def test_an_awkward_text_is_the_same_from_every_format(tmp_path):
    import csv

    with (tmp_path / "x.csv").open("w", newline="", encoding="utf-8") as f:
        csv.writer(f, quoting=csv.QUOTE_ALL).writerows([["a"], [AWKWARD]])
    write(tmp_path / "x.jsonl", json.dumps({"a": AWKWARD}, ensure_ascii=False) + "\n")
    pq.write_table(pa.table({"a": [AWKWARD]}), tmp_path / "x.parquet")
    for kind in ("csv", "jsonl", "parquet"):
        assert rows_of(tmp_path / f"x.{kind}", "a") == [{"a": AWKWARD}], kind


def test_nanoseconds_are_cut_to_what_python_knows(tmp_path):
    path = tmp_path / "x.parquet"
    at = pa.array([1_700_000_000_123_456_789, None], pa.timestamp("ns", "UTC"))
    pq.write_table(pa.table({"at": at, "id": ["a", "b"]}), path)
    first, second = rows_of(path)
    assert first == {"at": datetime(2023, 11, 14, 22, 13, 20, 123456, tzinfo=UTC), "id": "a"}
    assert second == {"at": None, "id": "b"}


def test_a_value_of_parquet_that_python_does_not_know_is_told_with_its_row(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"at": pa.array([datetime(1, 1, 1)], pa.timestamp("us", "America/New_York"))}), path)
    with pytest.raises(BadRow, match=r"x\.parquet:1: holds a value that cannot be read: date value out of range"):
        rows_of(path)
