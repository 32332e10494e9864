"""
First step: a source becomes rows, one at a time. Knows file formats; knows nothing of prompts or requests.

Lines are split at ``\\n`` bytes only: U+2028 and U+0085 are text, though ``str.splitlines`` would break there.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, cast

import orjson

from airflow_gemini_batch.core.storage import StoragePath
from airflow_gemini_batch.exceptions import BadRow, SourceUnreadable, UnknownColumn

PARQUET_ROWS = 1024
"""Rows of a Parquet file held at a time."""

TEXT_COLUMN = "text"
"""The one column of rows that are bare strings."""

# The csv module refuses fields over 128 KiB unless told otherwise; reviews and documents are longer.
csv.field_size_limit(min(sys.maxsize, 2**31 - 1))


@dataclass(frozen=True, slots=True)
class Row:
    """
    One input record.

    :param number: its place over all files of the source, from 0.
    :param line: line in its file, from 1, or None for a row of a list.
    """

    number: int
    values: Mapping[str, Any]
    file: str = ""
    line: int | None = None

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}" if self.line is not None else f"row {self.number}"


def read_rows(source: FileSource | RecordSource, needed: Mapping[str, str]) -> Iterator[Row]:
    """
    Yield the rows of a source in order.

    :param needed: column → what needs it (``"prompt"``, ``"key"``, ``"keep"``). When it is not empty, only these columns
        need be read; a missing one is an error before the first row.
    :raises SourceUnreadable: a file is missing or not what its name says.
    :raises BadRow: one record is broken; it names file and line.
    :raises UnknownColumn: a needed column is not there; it lists those that are.
    """
    if isinstance(source, RecordSource):
        yield from _records(source.records)
        return
    number = 0
    for path in source.paths:
        for line, values in _read_file(path, needed):
            yield Row(number, values, path.name, line)
            number += 1


@dataclass(frozen=True)
class FileSource:
    """:param paths: one or more files: .csv, .csv.gz, .jsonl, .jsonl.gz (.ndjson too) or .parquet."""

    paths: tuple[StoragePath, ...]


@dataclass(frozen=True)
class RecordSource:
    """:param records: mappings of column to value, or strings."""

    records: Iterable[Any]


def _records(records: Iterable[Any]) -> Iterator[Row]:
    for number, record in enumerate(records):
        if isinstance(record, str):
            yield Row(number, {TEXT_COLUMN: record})
        elif isinstance(record, Mapping):
            yield Row(number, record)
        else:
            raise BadRow(f"row {number}", f"a row is a mapping or a string, not {type(record).__name__}")


def _read_file(path: StoragePath, needed: Mapping[str, str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    name = path.name.lower()
    compressed = name.endswith(".gz")
    kind = name.removesuffix(".gz").rpartition(".")[2]
    reader = READERS.get(kind)
    if reader is None or (compressed and kind == "parquet"):
        raise SourceUnreadable(
            f"{path}: cannot tell what it holds from its name. Known endings: .csv, .jsonl, .ndjson (each also with .gz) "
            "and .parquet."
        )
    with _opened(path) as raw:
        yield from reader(_unzipped(raw, path) if compressed else raw, path, needed)


@contextmanager
def _opened(path: StoragePath) -> Iterator[IO[bytes]]:
    try:
        with path.open("rb") as f:
            yield f
    except FileNotFoundError as e:
        raise SourceUnreadable(f"{path} does not exist.") from e
    except (PermissionError, IsADirectoryError, NotADirectoryError) as e:
        # Other faults of storage may pass: they come through and use the task's retries.
        raise SourceUnreadable(f"{path} cannot be read: {type(e).__name__}: {e}") from e


def _unzipped(raw: IO[bytes], path: StoragePath) -> IO[bytes]:
    return cast("IO[bytes]", _Gunzipped(raw, path))


class _Gunzipped:
    """Lines of a gzip file; damage is told as ours, with the file's name."""

    def __init__(self, raw: IO[bytes], path: StoragePath) -> None:
        self._lines, self._path = gzip.GzipFile(fileobj=raw), path

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._lines
        except (gzip.BadGzipFile, EOFError, zlib.error) as e:
            raise SourceUnreadable(f"{self._path} is not a whole gzip file: {e}") from e


def _text_lines(raw: Iterable[bytes], path: StoragePath) -> Iterator[str]:
    for line, data in enumerate(raw, 1):
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as e:
            bad = data[e.start]
            raise BadRow(
                f"{path.name}:{line}", f"not UTF-8 (byte 0x{bad:02x} at column {e.start + 1}). Convert it."
            ) from e
        yield text.removeprefix("\ufeff") if line == 1 else text


def _read_csv(raw: IO[bytes], path: StoragePath, needed: Mapping[str, str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.reader(_text_lines(raw, path), strict=True)
    line = 1
    try:
        header = next((fields for fields in reader if fields), None)
        if header is None:
            return
        doubled = {name for name in header if header.count(name) > 1}
        if doubled:
            raise BadRow(f"{path.name}:1", f"the header names {', '.join(map(repr, sorted(doubled)))} more than once")
        check_columns(needed, header, path.name)
        line = reader.line_num + 1
        for fields in reader:
            if fields:  # a blank line is no record
                if len(fields) != len(header):
                    raise BadRow(f"{path.name}:{line}", f"{len(fields)} fields, but the header has {len(header)}")
                yield line, dict(zip(header, fields, strict=True))
            line = reader.line_num + 1
    except csv.Error as e:
        raise BadRow(f"{path.name}:{line}", f"broken CSV in the record that starts here: {e}") from e


def _read_jsonl(
    raw: IO[bytes], path: StoragePath, needed: Mapping[str, str]
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for line, data in enumerate(raw, 1):
        if line == 1:
            data = data.removeprefix(b"\xef\xbb\xbf")
        if not data.strip():
            continue
        try:
            record = orjson.loads(data)
        except orjson.JSONDecodeError as e:
            raise BadRow(f"{path.name}:{line}", f"broken JSON: {e}") from e
        if isinstance(record, str):
            record = {TEXT_COLUMN: record}
        if not isinstance(record, dict):
            raise BadRow(f"{path.name}:{line}", f"a row is a JSON object or a string, not {type(record).__name__}")
        yield line, record


def _read_parquet(
    raw: IO[bytes], path: StoragePath, needed: Mapping[str, str]
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(raw)
        present = file.schema_arrow.names
        check_columns(needed, present, path.name)
        line = 0
        for batch in file.iter_batches(PARQUET_ROWS, columns=list(needed) or None):
            for values in batch.to_pylist():
                line += 1
                yield line, values
    except pa.ArrowException as e:
        raise SourceUnreadable(f"{path} is not a readable Parquet file: {e}") from e


READERS = {"csv": _read_csv, "jsonl": _read_jsonl, "ndjson": _read_jsonl, "parquet": _read_parquet}


def check_columns(needed: Mapping[str, str], present: Iterable[str], where: str) -> None:
    """:raises UnknownColumn: a needed column is missing; it lists the columns and the likely meant one."""
    columns = list(present)
    for name, role in needed.items():
        if name not in columns:
            close = difflib.get_close_matches(name, columns, 1)
            meant = f" Did you mean {close[0]!r}?" if close else ""
            listed = ", ".join(map(repr, columns[:50])) or "none"
            raise UnknownColumn(
                f"{role} names the column {name!r}, which {where} does not have. Columns: {listed}.{meant}"
            )
