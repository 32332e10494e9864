from __future__ import annotations

import gzip
import json
import tracemalloc
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_gemini_batch.core.requests import RequestBuilder, Spec
from airflow_gemini_batch.core.rows import FileSource, RecordSource, read_rows
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


@pytest.mark.parametrize("name", ["x.txt", "x", "x.parquet.gz", "x.json", "x.csv.zip"])
def test_a_file_of_unknown_kind_is_refused_with_the_kinds_there_are(tmp_path, name):
    with pytest.raises(SourceUnreadable, match=r"Known endings: \.csv, \.jsonl"):
        rows_of(write(tmp_path / name, "a\n1\n"))


@pytest.mark.parametrize("name", ["x.csv", "x.CSV", "x.jsonl", "x.ndjson", "x.JSONL.GZ", "x.csv.gz"])
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


# gzip


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
        (b"[1]\n", "not list"),
        (b"5\n", "not int"),
        (b"null\n", "not NoneType"),
        (b'{"a":"caf\xe9"}\n', "broken JSON"),
        (b'{"a":"\\ud800"}\n', "broken JSON"),
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
    try:
        keys = [builder.build(row).key for row in read_rows(FileSource((path,)), builder.needed)]
    except BadRow:
        return  # to refuse it is fine too
    assert keys == [digits]


# Parquet


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
