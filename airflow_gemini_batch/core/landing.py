"""Results become files on any path: one part per slot, whole or not at all. Knows formats; knows nothing of jobs."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Protocol

import orjson

from airflow_gemini_batch.core import storage
from airflow_gemini_batch.core.ahead import release_reserves
from airflow_gemini_batch.core.columns import as_stored, as_text, reader, same
from airflow_gemini_batch.core.kinds import basic
from airflow_gemini_batch.core.parquet import without_nanoseconds
from airflow_gemini_batch.core.results import Result
from airflow_gemini_batch.core.storage import StoragePath
from airflow_gemini_batch.core.table import Table

if TYPE_CHECKING:
    import pyarrow as pa

FORMATS = ("parquet", "jsonl", "csv")
BATCH_ROWS = 8192
READ_ROWS = 1024
BATCH_BYTES = 4 << 20
READ_BYTES = 1 << 20

DIFFERENT = frozenset({"key", "text", "response_id", "output", "embedding", "media", "raw"})
"""Columns whose values are different in every row."""


class Sink(Protocol):
    """One file being written. A Parquet file also takes rows by the column."""

    def write(self, rows: list[Any]) -> None: ...
    def close(self) -> None: ...


HELD_APART = frozenset({str, list, dict})
"""Types of values that may be large. All others are counted with the row."""


def _nested_size(value: Any) -> int:
    """About the bytes that a list or mapping takes in memory."""
    if isinstance(value, list) and value and type(value[0]) is float:
        return 32 * len(value)
    return 4 * len(orjson.dumps(value))


class Part:
    """Rows of one landed file, written in batches. Its sink opens with the first one."""

    def __init__(self, file: BinaryIO, table: Table, file_format: str) -> None:
        self._open: Callable[[], Sink] = lambda: SINKS[file_format](file, table)
        self._table = table
        self._sink: Sink | None = None
        self._held: list[tuple[Any, ...] | pa.RecordBatch] = []
        self._rows = 0
        self._bytes = 0

    def add(self, result: Result, keep: Mapping[str, Any], *, job: str | None, round_number: int) -> None:
        """:param keep: values of the kept columns as a rows file holds them."""
        row = self._table.row(result, keep, job=job, round_number=round_number)
        self._held.append(row)
        self._rows += 1
        self._bytes += sum(len(v) if type(v) is str else _nested_size(v) for v in row if type(v) in HELD_APART) + 200
        if self._rows >= BATCH_ROWS or self._bytes >= BATCH_BYTES:
            self._flush()

    def add_columns(self, rows: pa.RecordBatch) -> None:
        """:param rows: many rows of a Parquet file; see :meth:`Table.columns`."""
        if rows.num_rows:
            self._held.append(rows)
            self._rows += rows.num_rows
            self._bytes += rows.nbytes
            if self._rows >= BATCH_ROWS or self._bytes >= BATCH_BYTES:
                self._flush()

    def close(self) -> None:
        self._flush()
        if self._sink is not None:
            self._sink.close()

    def abandon(self) -> None:
        """Let go of the file, which will not be kept."""
        if self._sink is not None:
            with suppress(Exception):  # the error that led here is the one to tell
                self._sink.close()

    def _flush(self) -> None:
        if self._held:
            self._sink = self._sink or self._open()
            self._sink.write(self._held)
            self._held, self._rows, self._bytes = [], 0, 0


@contextmanager
def writing_part(path: StoragePath, table: Table, file_format: str) -> Iterator[Part]:
    """Give a part to add results to. The file appears whole at the end or not at all; without rows it does not appear."""
    with storage.writing(path, keep_empty=False) as file:
        part = Part(file, table, file_format)
        try:
            yield part
            part.close()
        except BaseException:
            part.abandon()
            raise


class _ParquetSink:
    def __init__(self, file: BinaryIO, table: Table) -> None:
        import pyarrow.parquet as pq

        self._schema = table.arrow_schema
        self._converters = table.converters()
        # A dictionary of texts that are all different is made in vain; of the others it saves most of the space.
        repeated: Any = [name for name in self._schema.names if name not in DIFFERENT]
        self._writer = pq.ParquetWriter(file, self._schema, compression="zstd", use_dictionary=repeated)
        self._pool = ThreadPoolExecutor(1, "gemini-batch-parquet")
        self._writing: Future[None] | None = None

    def write(self, rows: list[tuple[Any, ...] | pa.RecordBatch]) -> None:
        """Encoded and compressed in a thread, while the next rows are made; its error is raised by the next call."""
        self._wait()
        self._writing = self._pool.submit(self._writer.write_table, self._in_order(rows))

    def _in_order(self, rows: list[tuple[Any, ...] | pa.RecordBatch]) -> pa.Table:
        import pyarrow as pa

        single = [row for row in rows if isinstance(row, tuple)]
        batches = [row for row in rows if not isinstance(row, tuple)]
        if not single or not batches:
            return pa.Table.from_batches(batches or [self._batch(single)], self._schema)
        # All single rows are made into one batch, and then moved to their places: one by one they would take far longer.
        order: list[int] = []
        by_column, alone = 0, sum(batch.num_rows for batch in batches)
        for row in rows:
            if isinstance(row, tuple):
                order.append(alone)
                alone += 1
            else:
                order.extend(range(by_column, by_column := by_column + row.num_rows))
        together = pa.Table.from_batches([*batches, self._batch(single)], self._schema)
        return together.take(pa.array(order, pa.int32()))

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _batch(self, rows: list[tuple[Any, ...]]) -> pa.RecordBatch:
        import pyarrow as pa

        arrays = [
            pa.array([v if v is None else convert(v) for v in column] if convert else column, type=field.type)
            for column, field, convert in zip(zip(*rows, strict=True), self._schema, self._converters, strict=True)
        ]
        return pa.record_batch(arrays, schema=self._schema)

    def close(self) -> None:
        try:
            self._wait()
        finally:
            self._pool.shutdown()
            self._writer.close()
            release_reserves()


class _JsonlSink:
    def __init__(self, file: BinaryIO, table: Table) -> None:
        self._file, self._names = file, list(table.kinds)
        self._json = [name for name, kind in table.kinds.items() if kind == "json"]

    def write(self, rows: list[tuple[Any, ...]]) -> None:
        for row in rows:
            record = dict(zip(self._names, row, strict=True))
            for name in self._json:
                record[name] = record[name] and orjson.Fragment(record[name])
            self._file.write(orjson.dumps(record, default=str, option=orjson.OPT_APPEND_NEWLINE))

    def close(self) -> None:
        pass


class _CsvSink:
    def __init__(self, file: BinaryIO, table: Table) -> None:
        self._text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        self._writer = csv.writer(self._text)  # lines end with CRLF: only then does it quote a bare CR
        self._writer.writerow(table.kinds)
        self._values = [_csv_json if kind == "output" else _csv_value for kind in table.kinds.values()]

    def write(self, rows: list[tuple[Any, ...]]) -> None:
        for row in rows:
            self._writer.writerow([read(value) for read, value in zip(self._values, row, strict=True)])

    def close(self) -> None:
        self._text.detach()  # the file stays open: whoever opened it publishes it


def _csv_value(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return as_text(value) if isinstance(value, list | dict) else value


def _csv_json(value: Any) -> str | None:
    return None if value is None else orjson.dumps(value).decode()


SINKS: dict[str, Callable[[BinaryIO, Table], Sink]] = {
    "parquet": _ParquetSink,
    "jsonl": _JsonlSink,
    "csv": _CsvSink,
}


def read_part(path: StoragePath, table: Table) -> Iterator[list[tuple[Any, ...]]]:
    """
    Yield the rows of a landed file in batches, values in the order of ``table.kinds``: what a database takes.

    Kept values are of their basic kind (``kinds.basic``), nested ones as JSON has them. CSV has no null: an empty field is
    one.
    """
    suffix = path.name.rpartition(".")[2]
    with path.open("rb") as file:
        if suffix == "parquet":
            yield from _parquet_rows(file, table)
        else:
            yield from _cut(_jsonl_rows(file, table) if suffix == "jsonl" else _csv_rows(file, table))


def _cut(rows: Iterator[tuple[int, tuple[Any, ...]]]) -> Iterator[list[tuple[Any, ...]]]:
    """Rows, each with its size in the file, in batches."""
    batch, size = [], 0
    for length, row in rows:
        batch.append(row)
        size += length
        if size >= READ_BYTES or len(batch) >= BATCH_ROWS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _parquet_rows(file: IO[bytes], table: Table) -> Iterator[list[tuple[Any, ...]]]:
    import pyarrow.parquet as pq

    as_json = [name for name, kind in table.keep.items() if basic(kind) in ("json", "string") and kind != "string"]
    parquet = pq.ParquetFile(file)
    groups = [parquet.metadata.row_group(n) for n in range(parquet.num_row_groups)]
    largest = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=0)
    rows = max(1, min(READ_ROWS, READ_BYTES // max(1, largest)))
    for batch in map(without_nanoseconds, parquet.iter_batches(rows)):
        columns = {name: column.to_pylist() for name, column in zip(batch.schema.names, batch.columns, strict=True)}
        columns |= {name: as_stored(columns[name]) for name in as_json}
        for name, kind in table.kinds.items():
            if kind == "json":
                columns[name] = [v if v is None else orjson.loads(v) for v in columns[name]]
            elif kind == "output" and table.schema:
                # The column's type may say less than the answer (text for a union): the answer's own text says it all.
                texts = zip(columns[name], columns["text"], strict=True)
                columns[name] = [v if v is None else table.schema.check(text or "") for v, text in texts]
        yield list(zip(*(columns[name] for name in table.kinds), strict=True))


def _reader(kind: str) -> Callable[[Any], Any]:
    """How a kept value's JSON becomes what a database takes: nested ones, times of day and spans stay as they are."""
    return same if basic(kind) == "json" else reader(basic(kind))


def _jsonl_rows(file: IO[bytes], table: Table) -> Iterator[tuple[int, tuple[Any, ...]]]:
    readers = [(name, _reader(kind) if name in table.keep else None) for name, kind in table.kinds.items()]
    for line in file:
        record = orjson.loads(line)
        values = ((record[name], read) for name, read in readers)
        yield len(line), tuple(read(value) if read and value is not None else value for value, read in values)


def _csv_rows(file: IO[bytes], table: Table) -> Iterator[tuple[int, tuple[Any, ...]]]:
    readers = [CSV_READERS.get(basic(kind)) or _reader(kind) for kind in table.kinds.values()]
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    try:
        records = csv.reader(text, strict=True)
        next(records)
        for record in records:
            row = tuple(read(value) if value else None for value, read in zip(record, readers, strict=True))
            yield sum(map(len, record)), row
    finally:
        text.detach()  # whoever opened the file closes it


CSV_READERS: dict[str, Callable[[str], Any]] = {
    "bool": lambda text: text == "true",
    "int64": int,
    "json": orjson.loads,
    "output": orjson.loads,
    "strings": orjson.loads,
    "floats": orjson.loads,
}
"""How a field's text becomes a value, where the way back from JSON (``columns.reader``) will not do."""
