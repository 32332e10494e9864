"""What a source's URI names: the same on a local disk and on S3 (where the S3 extra and moto's server are installed)."""

from __future__ import annotations

import gzip
import io
import json
import logging
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_gemini_batch.core.rows import FileSource, read_rows
from airflow_gemini_batch.exceptions import InvalidConfig, SourceUnreadable, UnknownColumn
from airflow_gemini_batch.paths import expand, resolve

BUCKET = "lake"
KEYS = {"aws_access_key_id": "k", "aws_secret_access_key": "s", "region_name": "us-east-1"}


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """URL of an S3 service of our own, with one bucket."""
    server = pytest.importorskip("moto.server")
    pytest.importorskip("airflow.providers.amazon.aws.fs.s3")
    pytest.importorskip("s3fs")
    import boto3

    service = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    service.start()
    url = "http://{}:{}".format(*service.get_host_and_port())
    boto3.client("s3", endpoint_url=url, **KEYS).create_bucket(Bucket=BUCKET)
    yield url
    service.stop()


def s3_connection(url: str) -> str:
    extra = {"endpoint_url": url, "region_name": "us-east-1"}
    return json.dumps({"conn_type": "aws", "login": "k", "password": "s", "extra": extra})


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A URI under which a test may write."""
    if request.param == "local":
        return str(tmp_path)
    monkeypatch.setenv("AIRFLOW_CONN_LAKE_S3", s3_connection(request.getfixturevalue("s3")))
    return f"s3://lake_s3@{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture
def put(place: str) -> Callable[..., None]:
    """Write small files below the place."""

    def write(*names: str, data: bytes = b'{"a":"x"}\n') -> None:
        for name in names:
            path: Any = resolve(f"{place}/{name}")
            if isinstance(path, Path):
                path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    return write


def found(place: str, pattern: str) -> list[str]:
    uri = f"{place}/{pattern}" if pattern else place
    return [str(path).removeprefix(f"{place}/") for path in expand(uri)]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.jsonl", ["a.jsonl"]),
        ("*.jsonl", ["a.jsonl", "b.jsonl"]),
        ("?.csv", ["c.csv"]),
        ("[ab].jsonl", ["a.jsonl", "b.jsonl"]),
        ("{b,a}.jsonl", ["a.jsonl", "b.jsonl"]),
        ("{a.jsonl,[bc].*}", ["a.jsonl", "b.jsonl", "c.csv"]),
        ("{a.jsonl,*.jsonl}", ["a.jsonl", "b.jsonl"]),
        ("ds=*/*.jsonl", ["ds=1/p.jsonl", "ds=2/p.jsonl"]),
        ("ds={1,2}/*.jsonl", ["ds=1/p.jsonl", "ds=2/p.jsonl"]),
        ("ds=1/**/*.jsonl", ["ds=1/h=0/p.jsonl", "ds=1/p.jsonl"]),
        ("**/p.jsonl", ["ds=1/h=0/p.jsonl", "ds=1/p.jsonl", "ds=2/p.jsonl"]),
        ("ds=1", ["ds=1/h=0/p.jsonl", "ds=1/p.jsonl"]),
        ("ds=1/", ["ds=1/h=0/p.jsonl", "ds=1/p.jsonl"]),
        ("", ["a.jsonl", "b.jsonl", "c.csv", "ds=1/h=0/p.jsonl", "ds=1/p.jsonl", "ds=2/p.jsonl"]),
    ],
)
def test_a_file_a_pattern_and_a_directory_name_files_in_order(place, put, pattern, names):
    put("b.jsonl", "a.jsonl", "ds=2/p.jsonl", "ds=1/p.jsonl", "ds=1/h=0/p.jsonl", "c.csv")
    assert found(place, pattern) == names


@pytest.mark.parametrize("pattern", ["", "**/*.jsonl", "*/*.jsonl", "**/*"])
def test_another_runs_output_can_be_a_source_for_its_state_is_passed_over(place, put, pattern):
    put("out/part-r0-00000.jsonl", "out/_gemini_batch/requests/r0-00000.jsonl", "out/.part.tmp.jsonl", "out/_SUCCESS")
    assert found(place, pattern) == ["out/part-r0-00000.jsonl"]


def test_a_directory_whose_own_path_has_a_hidden_name_is_read(place, put):
    put("_tmp/a.jsonl", "_tmp/_b.jsonl")
    assert found(place, "_tmp") == found(place, "_tmp/*") == ["_tmp/a.jsonl"]


def test_a_pattern_that_spells_the_sign_finds_hidden_names(place, put):
    put("x/_a.jsonl", "x/.b.jsonl", "x/_d/c.jsonl")
    assert found(place, "x/_*.jsonl") == ["x/_a.jsonl"]
    assert found(place, "*/_d/*") == ["x/_d/c.jsonl"]


def test_names_with_signs_of_a_pattern_can_be_named(place, put):
    put("r[1].jsonl", "r{1,2}.jsonl", "r1.jsonl")
    assert found(place, "r[1].jsonl") == ["r[1].jsonl"]
    assert found(place, "r{1,2}.jsonl") == ["r{1,2}.jsonl"]


@pytest.mark.parametrize(
    "name", ["a b.jsonl", "100%25.jsonl", "a#b.jsonl", "é😀.jsonl", "a+b&c.jsonl", "x=%2F/a.jsonl"]
)
def test_names_of_any_letters_are_found_and_read(place, put, name):
    put(f"d/{name}")
    (path,) = expand(f"{place}/d")
    assert path.read_bytes() == b'{"a":"x"}\n'
    assert expand(f"{place}/d/**/*.jsonl") == (path,)


@pytest.mark.parametrize("pattern", ["gone.jsonl", "gone/", "*.csv", "**/*.csv", "{a,gone}.jsonl", "{a,g*}.jsonl"])
def test_what_is_not_there_is_an_error_also_when_only_an_alternative_is_missing(place, put, pattern):
    put("a.jsonl")
    with pytest.raises(SourceUnreadable, match=r"does not exist|No file matches") as caught:
        expand(f"{place}/{pattern}")
    assert "a.jsonl" not in str(caught.value)


def test_a_pattern_that_only_matches_directories_says_how_to_name_files(place, put):
    put("ds=1/a.jsonl")
    with pytest.raises(SourceUnreadable, match=r"/\*\.parquet"):
        expand(f"{place}/ds=*")


def test_a_directory_without_files_of_known_kinds_is_an_error(place, put):
    put("d/readme.txt", "d/_hidden.csv")
    with pytest.raises(SourceUnreadable, match="d is a directory without"):
        expand(f"{place}/d")


def test_files_of_other_kinds_in_a_directory_are_passed_over_and_told(place, put, caplog):
    put("d/a.jsonl", "d/notes.txt", "d/e/old.xlsx")
    with caplog.at_level(logging.WARNING, "airflow_gemini_batch"):
        assert found(place, "d") == ["d/a.jsonl"]
    assert "2 files of other kinds are not read: e/old.xlsx, notes.txt" in caplog.text


def test_files_of_other_kinds_that_a_pattern_names_are_an_error(place, put):
    put("d/a.jsonl", "d/b.txt", "d/c.xml")
    with pytest.raises(SourceUnreadable, match=r"(?s)d/b\.txt, .*d/c\.xml: cannot tell"):
        list(read_rows(FileSource(expand(f"{place}/d/*")), {}))


def test_partitions_formats_and_gzip_may_be_mixed(place, put):
    put("t/ds=2026-01-01/a.jsonl", data=b'{"a":"1"}\n')
    put("t/ds=2026-01-02/a.csv.gz", data=gzip.compress(b"a\n2\n"))
    put("t/ds=__HIVE_DEFAULT_PARTITION__/a.parquet", data=parquet({"a": ["3"], "wide": ["x"]}))
    needed = {"a": "prompt", "ds": "keep"}
    rows = [
        [(row.values["ds"], row.values["a"], row.where) for row in read_rows(FileSource(expand(place + end)), needed)]
        for end in ("/t", "/t/**/*", "/t/ds=*/a*")
    ]
    assert rows[0] == rows[1] == rows[2] == [
        ("2026-01-01", "1", "ds=2026-01-01/a.jsonl:1"),
        ("2026-01-02", "2", "ds=2026-01-02/a.csv.gz:2"),
        (None, "3", "ds=__HIVE_DEFAULT_PARTITION__/a.parquet:1"),
    ]  # fmt: skip


def test_a_column_missing_in_the_third_of_five_files_names_that_file(place, put):
    for n in range(5):
        put(f"t/{n}.parquet", data=parquet({"b" if n == 2 else "a": ["x"]}))
    with pytest.raises(UnknownColumn, match=r"names the column 'a', which 2\.parquet does not have"):
        list(read_rows(FileSource(expand(f"{place}/t")), {"a": "prompt"}))


def parquet(columns: dict[str, list[Any]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


# S3 only


def test_an_empty_object_that_stands_for_a_directory_is_no_file(s3, monkeypatch):
    import boto3

    monkeypatch.setenv("AIRFLOW_CONN_LAKE_S3", s3_connection(s3))
    client = boto3.client("s3", endpoint_url=s3, **KEYS)
    for name in ("marked/", "marked/ds=1/", "marked/ds=1/a.csv"):
        client.put_object(Bucket=BUCKET, Key=name, Body=b"" if name.endswith("/") else b"a\n1\n")
    root = f"s3://lake_s3@{BUCKET}"
    assert found(root, "marked") == found(root, "marked/**/*") == found(root, "marked/ds=*/*") == ["marked/ds=1/a.csv"]


def test_what_others_wrote_and_removed_since_the_last_look_is_seen(s3, monkeypatch):
    """A worker's filesystem object remembers its listings from one task to the next."""
    import boto3

    monkeypatch.setenv("AIRFLOW_CONN_LAKE_S3", s3_connection(s3))
    client = boto3.client("s3", endpoint_url=s3, **KEYS)
    root = f"s3://lake_s3@{BUCKET}"

    def look() -> list[list[str]]:
        return [found(root, "seen/*.csv"), found(root, "seen/**/*"), found(root, "seen"), found(root, "seen/b.csv")]

    client.put_object(Bucket=BUCKET, Key="seen/a.csv", Body=b"a\n1\n")
    client.put_object(Bucket=BUCKET, Key="seen/b.csv", Body=b"a\n1\n")
    resolve(f"{root}/seen").fs.ls(f"{BUCKET}/seen")
    assert look() == [["seen/a.csv", "seen/b.csv"]] * 3 + [["seen/b.csv"]]
    client.delete_object(Bucket=BUCKET, Key="seen/a.csv")
    assert not resolve(f"{root}/seen/a.csv").exists()
    resolve(f"{root}/seen").fs.ls(f"{BUCKET}/seen")
    client.put_object(Bucket=BUCKET, Key="seen/c.csv", Body=b"a\n1\n")
    client.delete_object(Bucket=BUCKET, Key="seen/b.csv")
    with pytest.raises(SourceUnreadable):
        expand(f"{root}/seen/b.csv")
    assert found(root, "seen/*.csv") == found(root, "seen") == ["seen/c.csv"]


def test_a_whole_bucket_can_be_a_source(s3, monkeypatch):
    import boto3

    monkeypatch.setenv("AIRFLOW_CONN_LAKE_S3", s3_connection(s3))
    client = boto3.client("s3", endpoint_url=s3, **KEYS)
    client.create_bucket(Bucket="reviews")
    client.put_object(Bucket="reviews", Key="a.csv", Body=b"a\n1\n")
    root = "s3://lake_s3@reviews"
    assert found(root, "*.csv") == found(root, "**/*.csv") == found(root, "") == ["a.csv"]


# Local only


def test_a_directory_that_links_to_itself_is_read_once(tmp_path):
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "d" / "e" / "a.csv").touch()
    (tmp_path / "d" / "e" / "up").symlink_to(tmp_path / "d")
    assert found(str(tmp_path), "d") == ["d/e/a.csv"]


def test_a_link_to_a_directory_elsewhere_is_followed(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.csv").touch()
    (tmp_path / "d" / "link").symlink_to(tmp_path / "real")
    assert found(str(tmp_path), "d") == found(str(tmp_path), "d/**/*.csv") == ["d/link/a.csv"]


def test_relative_names_and_file_uris_are_local(tmp_path, monkeypatch):
    (tmp_path / "a.csv").touch()
    monkeypatch.chdir(tmp_path)
    for uri in ("a.csv", "*.csv", "./{a,a}.csv", ".", f"file://{tmp_path}/a.csv", f"file://{tmp_path}/*.csv"):
        assert [os.fspath(path) for path in expand(uri)] == [str(tmp_path / "a.csv")]


@pytest.mark.parametrize("uri", ["", "  "])
def test_an_empty_name_is_an_error(uri):
    with pytest.raises(InvalidConfig, match="empty path"):
        expand(uri)


def test_a_filesystem_that_is_not_installed_is_told_with_what_to_install():
    with pytest.raises(InvalidConfig, match=r"nosuch://bucket/x cannot be opened.*Is the provider"):
        resolve("nosuch://bucket/x")
