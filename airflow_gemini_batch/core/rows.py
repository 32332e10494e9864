"""
First step: a source becomes rows, one at a time. Knows file formats; knows nothing of prompts or requests.

Lines are split at ``\\n`` bytes only: U+2028 and U+0085 are text, though ``str.splitlines`` would break there.
"""

from __future__ import annotations

import csv
import gzip
import json
import logging
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any, cast

import orjson

from airflow_gemini_batch.core import exact
from airflow_gemini_batch.core.parquet import RowBatch, read_batches, without_nanoseconds
from airflow_gemini_batch.core.source_columns import LeftOut, check_columns, partitions_of
from airflow_gemini_batch.core.storage import StoragePath
from airflow_gemini_batch.exceptions import BadRow, SourceUnreadable

log = logging.getLogger("airflow_gemini_batch")

TEXT_COLUMN = "text"
"""The one column of rows that are bare strings."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

# The csv module refuses fields over 128 KiB unless told otherwise; reviews and documents are longer.
csv.field_size_limit(min(sys.maxsize, 2**31 - 1))


@dataclass(frozen=True, slots=True)
class Row:
    """
    One input record.

    :param number: its place over all files of the source, from 0.
    :param file: its file's name; with files of several directories, the path from the directory they share.
    :param line: line in its file, from 1, or None for a row of a list.
    :param raw: the bytes of a JSONL line that can be sent as it is, without its newline: an object of exactly ``key``
        (text) and ``request``. None for all others.
    :param partitions: which columns come from the names of directories; the file's own record may not have them.
    """

    number: int
    values: Mapping[str, Any]
    file: str = ""
    line: int | None = None
    raw: bytes | None = None
    partitions: frozenset[str] = frozenset()

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}" if self.line is not None else f"row {self.number}"


def read_rows(source: FileSource | RecordSource, needed: Mapping[str, str]) -> Iterator[Row]:
    """
    Yield the rows of a source in order.

    :param needed: column → what needs it (``"prompt"``, ``"key"``, ``"keep"``). When it is not empty, only these columns
        need be read; one that a file with a header does not have is an error before its first row. A record of JSON or of a
        list may leave it out, which is a null, if another one has it.
    :raises SourceUnreadable: a file is missing or not what its name says.
    :raises BadRow: one record is broken; it names file and line.
    :raises UnknownColumn: a needed column is not there; it lists those that are.
    """
    for item in read_source(source, needed):
        if isinstance(item, RowBatch):
            yield from rows_of(item)
        else:
            yield item


def read_source(source: FileSource | RecordSource, needed: Mapping[str, str]) -> Iterator[Row | RowBatch]:
    """Like :func:`read_rows`, but rows of a Parquet file come as they are in it: many at a time, by the column."""
    left_out = LeftOut(needed)
    if isinstance(source, RecordSource):
        for row in _records(source.records):
            values = left_out.filled(row.values, row.where)
            yield row if values is row.values else Row(row.number, values)
        left_out.tell()
        return
    _check_kinds(source.paths)
    number = 0
    cut: set[str] = set()

    def tell(column: str) -> None:
        if column not in cut:
            cut.add(column)
            log.warning("The column %r has nanoseconds, which are cut to microseconds", column)

    for path, name in zip(source.paths, _short_names(source.paths), strict=True):
        file = _File(path, name, needed, partitions_of(path))
        if _is_parquet(path.name):
            first = number
            with _opened(path) as raw:
                for batch in read_batches(raw, path, needed, file.check_columns):
                    coarse = without_nanoseconds(batch, tell)
                    yield RowBatch(coarse, batch.schema, number, name, number - first + 1, file.partitions)
                    number += batch.num_rows
            continue
        columns = frozenset(file.partitions)
        for line, values, raw_line in _read_file(file):
            whole = {**file.partitions, **values} if columns else values
            yield Row(number, left_out.filled(whole, f"{name}:{line}"), name, line, raw_line, columns)
            number += 1
    left_out.tell()


def rows_of(batch: RowBatch) -> Iterator[Row]:
    """
    The same rows, one at a time.

    :raises BadRow: a text is not UTF-8, which Parquet does not check, or Python has no word for a time.
    """
    columns = frozenset(batch.partitions)
    try:
        rows = batch.columns.to_pylist()
    except (ValueError, OverflowError) as e:
        if batch.columns.num_rows == 1:
            what = "text that is not UTF-8" if isinstance(e, UnicodeDecodeError) else "a value that cannot be read"
            raise BadRow(f"{batch.file}:{batch.line}", f"holds {what}: {e}") from e
        for i in range(batch.columns.num_rows):
            yield from rows_of(batch.slice(i, 1))
        return
    for i, values in enumerate(rows):
        whole = {**batch.partitions, **values} if columns else values
        yield Row(batch.number + i, whole, batch.file, batch.line + i, None, columns)


@dataclass(frozen=True)
class FileSource:
    """
    Files of rows; formats and gzip may be mixed.

    Directories named ``column=value`` (Hive's partitions) are columns of text of every row below them: URL-decoded, and
    ``__HIVE_DEFAULT_PARTITION__`` is a null. They serve in ``prompt``, ``key`` and ``keep`` like any other. Where a file
    has a column of that name itself, the file's is taken.

    :param paths: one or more files: .csv, .tsv, .jsonl, .ndjson, .json (each also with .gz), .parquet, .parq or .pq. A .json
        file holds JSON lines, as Google's samples, Spark and BigQuery write it.
    """

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


# Paths ------------------------------------------------------------------------------------------------------


def _short_names(paths: tuple[StoragePath, ...]) -> list[str]:
    """Names that tell the files apart: partitions often hold files of the same name."""
    split = [str(path).split("/") for path in paths]
    shared = 0
    while len({parts[shared] for parts in split}) == 1 and all(shared + 1 < len(parts) for parts in split):
        shared += 1
    return ["/".join(parts[shared:]) for parts in split]


def is_known(name: str) -> bool:
    """True when a file's name tells what it holds."""
    return _reader(name) is not None or _is_parquet(name)


def _is_parquet(name: str) -> bool:
    stem, _, kind = name.lower().rpartition(".")
    return bool(stem) and kind in PARQUET


def _reader(name: str) -> Reader | None:
    stem, dot, kind = name.lower().removesuffix(".gz").rpartition(".")
    return READERS.get(kind) if stem and dot else None


def _check_kinds(paths: Iterable[StoragePath]) -> None:
    unknown = [str(path) for path in paths if not is_known(path.name)]
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise SourceUnreadable(
            f"{', '.join(unknown[:5])}{more}: cannot tell from the name what is in it. Known endings: .csv, .jsonl, .ndjson, "
            ".json, .tsv (each also with .gz), .parquet, .parq and .pq."
        )


# Formats ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _File:
    path: StoragePath
    name: str
    needed: Mapping[str, str]
    partitions: Mapping[str, str | None]

    def check_columns(self, own: Iterable[str]) -> None:
        """:raises UnknownColumn: a needed column is neither in the file nor in the names of its directories."""
        check_columns(self.needed, dict.fromkeys([*own, *self.partitions]), self.name)


Record = tuple[int, Mapping[str, Any], bytes | None]
"""Line, values, and the line's bytes where it can be sent as it is."""

Reader = Callable[[IO[bytes], _File], Iterator[Record]]


def _read_file(file: _File) -> Iterator[Record]:
    reader = cast("Reader", _reader(file.path.name))
    with _opened(file.path) as raw:
        yield from reader(_unzipped(raw, file.path) if file.path.name.lower().endswith(".gz") else raw, file)


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
        self._raw, self._lines, self._path = raw, gzip.GzipFile(fileobj=raw), path

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._lines
        except (gzip.BadGzipFile, EOFError, zlib.error) as e:
            raise SourceUnreadable(f"{self._path} is not a whole gzip file: {e}") from e
        if self._raw.tell() == 0:  # gzip of nothing has twenty bytes; none at all is an upload that broke off
            raise SourceUnreadable(f"{self._path} is not a whole gzip file: it has no bytes at all")


def _text_lines(raw: Iterable[bytes], name: str) -> Iterator[str]:
    for line, data in enumerate(raw, 1):
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as e:
            bad = data[e.start]
            raise BadRow(f"{name}:{line}", f"not UTF-8 (byte 0x{bad:02x} at column {e.start + 1}). Convert it.") from e
        yield text.removeprefix("\ufeff") if line == 1 else text


def _read_csv(raw: IO[bytes], file: _File, delimiter: str = ",") -> Iterator[Record]:
    reader = csv.reader(_text_lines(raw, file.name), delimiter=delimiter, strict=True)
    line = 1
    try:
        header = next((fields for fields in reader if fields), None)
        if header is None:
            return
        doubled = {name for name in header if header.count(name) > 1}
        if doubled:
            raise BadRow(
                f"{file.name}:{reader.line_num}",
                f"the header names {', '.join(map(repr, sorted(doubled)))} more than once",
            )
        file.check_columns(header)
        line = reader.line_num + 1
        for fields in reader:
            if fields:  # a blank line is no record
                if len(fields) != len(header):
                    raise BadRow(f"{file.name}:{line}", f"{len(fields)} fields, but the header has {len(header)}")
                yield line, dict(zip(header, fields, strict=True)), None
            line = reader.line_num + 1
    except csv.Error as e:
        raise BadRow(f"{file.name}:{line}", f"broken CSV in the record that starts here: {e}") from e


def _read_tsv(raw: IO[bytes], file: _File) -> Iterator[Record]:
    return _read_csv(raw, file, "\t")


def _read_jsonl(raw: IO[bytes], file: _File) -> Iterator[Record]:
    blank = first_blank = 0
    marked = requests = False
    for line, data in enumerate(raw, 1):
        if line == 1 and data.startswith(BYTE_ORDER_MARK):
            data, marked = data.removeprefix(BYTE_ORDER_MARK), True
        if not data.strip():
            blank, first_blank = blank + 1, first_blank or line
            continue
        try:
            record = exact.loads(data)
        except orjson.JSONDecodeError as e:
            raise BadRow(f"{file.name}:{line}", f"broken JSON: {e}{_likely_cause(data)}") from e
        if isinstance(record, str):
            record = {TEXT_COLUMN: record}
        if not isinstance(record, dict):
            mend = ". JSONL has one object on each line, without a list around them" if isinstance(record, list) else ""
            raise BadRow(
                f"{file.name}:{line}", f"a row is a JSON object or a string, not {type(record).__name__}{mend}"
            )
        if "request" not in record:
            yield line, record, None
            continue
        requests = True
        if len(record) == 2 and isinstance(record.get("key"), str) and isinstance(record["request"], dict):
            _refuse_two_keys(data, f"{file.name}:{line}")
            yield line, record, data.rstrip(b"\r\n")
        else:
            yield line, record, None
    if requests:  # these are written to be sent as they are, so tell what is not
        _tell_what_is_left_out(file.name, marked, blank, first_blank)


def _likely_cause(data: bytes) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return ". The file is UTF-16; save it as UTF-8"
    if data.strip() in (b"{", b"["):
        return ". Here a document spreads over several lines; JSONL has one whole object in each"
    with suppress(ValueError, RecursionError):
        json.loads(data)  # takes what is no JSON to anybody else, and writes it
        half = b"\\ud" in data.lower()
        return f". {'Half of a surrogate pair is no text' if half else 'JSON has no NaN or Infinity: write null'}"
    return ""


def _refuse_two_keys(data: bytes, where: str) -> None:
    """The service may take the first of two, and its answer would come under a key that nobody knows here."""
    if data.count(b'"key"') < 2:
        return
    names: list[str] = []

    def outermost_is_last(pairs: list[tuple[str, Any]]) -> None:
        names[:] = [name for name, _ in pairs]

    json.loads(data, object_pairs_hook=outermost_is_last)
    if len(names) > 2:
        raise BadRow(where, f"the line names {', '.join(sorted(names))}: each may be there once. Remove the others")


def _tell_what_is_left_out(name: str, marked: bool, blank: int, first_blank: int) -> None:
    if marked:
        log.warning("%s:1: begins with a byte order mark, which is not sent; save the file as UTF-8 without one", name)
    if blank:
        lines = "a blank line, which is" if blank == 1 else f"the first of {blank} blank lines, which are"
        log.warning("%s:%d: %s not sent; remove what is blank", name, first_blank, lines)


PARQUET = ("parquet", "parq", "pq")

READERS: dict[str, Reader] = {
    "csv": _read_csv,
    "tsv": _read_tsv,
    "jsonl": _read_jsonl,
    "ndjson": _read_jsonl,
    "json": _read_jsonl,
}
