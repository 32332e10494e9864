"""Results become files on any path: one part per slot, whole or not at all. Knows formats; knows nothing of jobs."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, Protocol

import orjson

from airflow_gemini_batch.core import storage
from airflow_gemini_batch.core.columns import arrow_type, as_text, reader
from airflow_gemini_batch.core.results import Result
from airflow_gemini_batch.core.storage import StoragePath
from airflow_gemini_batch.exceptions import InvalidConfig

COLUMNS: dict[str, str] = {
    "key": "string",
    "status": "string",
    "text": "string",
    "finish_reason": "string",
    "block_reason": "string",
    "error_code": "int64",
    "error_message": "string",
    "model_version": "string",
    "response_id": "string",
    "prompt_tokens": "int64",
    "output_tokens": "int64",
    "thoughts_tokens": "int64",
    "cached_tokens": "int64",
    "job": "string",
    "round": "int64",
}
"""Columns of every landed table with their types; kept columns follow, and ``raw`` if asked for."""

FORMATS = ("parquet", "jsonl", "csv")
BATCH_ROWS = 4096
BATCH_BYTES = 8 << 20


def check_keep(keep: Iterable[str], *, include_raw: bool) -> None:
    """:raises InvalidConfig: a kept column would have the name of a result column."""
    clash = sorted(set(keep) & {*COLUMNS, *(("raw",) if include_raw else ())})
    if clash:
        raise InvalidConfig(
            f"keep names {', '.join(map(repr, clash))}, which the result has as columns of its own. Rename it in the source."
        )


def table_types(keep_types: Mapping[str, str], *, include_raw: bool) -> dict[str, str]:
    """Column → kind of the landed table: fixed by the settings, not by what happened to come back."""
    return {**COLUMNS, **keep_types, **({"raw": "string"} if include_raw else {})}


class Sink(Protocol):
    """One file being written."""

    def write(self, rows: list[tuple[Any, ...]]) -> None: ...
    def close(self) -> None: ...


class Part:
    """Rows of one landed file, written in batches. Its sink opens with the first one."""

    def __init__(self, file: BinaryIO, types: Mapping[str, str], file_format: str, *, include_raw: bool) -> None:
        self._open: Callable[[], Sink] = lambda: SINKS[file_format](file, types)
        self._keep = [name for name in types if name not in COLUMNS and not (include_raw and name == "raw")]
        self._raw = include_raw
        self._sink: Sink | None = None
        self._held: list[tuple[Any, ...]] = []
        self._bytes = 0

    def add(self, result: Result, keep: Mapping[str, Any], *, job: str | None, round_number: int) -> None:
        """:param keep: values of the kept columns as a rows file holds them."""
        usage = result.usage
        row = (
            result.key, result.status.value, result.text, result.finish_reason, result.block_reason, result.error_code,
            result.error_message, result.model_version, result.response_id,
            usage.prompt_tokens if usage else None, usage.output_tokens if usage else None,
            usage.thoughts_tokens if usage else None, usage.cached_tokens if usage else None,
            job, round_number, *(keep.get(name) for name in self._keep),
        )  # fmt: skip
        self._held.append((*row, result.raw) if self._raw else row)
        self._bytes += len(result.text or "") + len(result.raw or "") + 200
        if len(self._held) >= BATCH_ROWS or self._bytes >= BATCH_BYTES:
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
            self._held, self._bytes = [], 0


@contextmanager
def writing_part(
    path: StoragePath, types: Mapping[str, str], file_format: str, *, include_raw: bool = False
) -> Iterator[Part]:
    """Give a part to add results to. The file appears whole at the end or not at all; without rows it does not appear."""
    with storage.writing(path, keep_empty=False) as file:
        part = Part(file, types, file_format, include_raw=include_raw)
        try:
            yield part
            part.close()
        except BaseException:
            part.abandon()
            raise


class _ParquetSink:
    def __init__(self, file: BinaryIO, types: Mapping[str, str]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._schema = pa.schema([pa.field(name, arrow_type(kind)) for name, kind in types.items()])
        # Result columns hold Python values already; kept ones are as JSON left them.
        self._readers = [reader(kind) if name not in COLUMNS else None for name, kind in types.items()]
        self._writer = pq.ParquetWriter(file, self._schema, compression="zstd")

    def write(self, rows: list[tuple[Any, ...]]) -> None:
        import pyarrow as pa

        arrays = [
            pa.array([v if v is None else read(v) for v in column] if read else column, type=field.type)
            for column, field, read in zip(zip(*rows, strict=True), self._schema, self._readers, strict=True)
        ]
        self._writer.write_batch(pa.record_batch(arrays, schema=self._schema))

    def close(self) -> None:
        self._writer.close()


class _JsonlSink:
    def __init__(self, file: BinaryIO, types: Mapping[str, str]) -> None:
        self._file, self._names = file, list(types)

    def write(self, rows: list[tuple[Any, ...]]) -> None:
        for row in rows:
            record = dict(zip(self._names, row, strict=True))
            self._file.write(orjson.dumps(record, default=str, option=orjson.OPT_APPEND_NEWLINE))

    def close(self) -> None:
        pass


class _CsvSink:
    def __init__(self, file: BinaryIO, types: Mapping[str, str]) -> None:
        self._text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        self._writer = csv.writer(self._text)  # lines end with CRLF: only then does it quote a bare CR
        self._writer.writerow(types)

    def write(self, rows: list[tuple[Any, ...]]) -> None:
        self._writer.writerows([_csv_value(value) for value in row] for row in rows)

    def close(self) -> None:
        self._text.detach()  # the file stays open: whoever opened it publishes it


def _csv_value(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return as_text(value) if isinstance(value, list | dict) else value


SINKS: dict[str, Callable[[BinaryIO, Mapping[str, str]], Sink]] = {
    "parquet": _ParquetSink,
    "jsonl": _JsonlSink,
    "csv": _CsvSink,
}
