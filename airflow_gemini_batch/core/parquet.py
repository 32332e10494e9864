"""
Rows of a Parquet file, many at a time and by the column: as Python values they would cost more than all that follows. And
rows of what is a table in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, Any

from airflow_gemini_batch.core.columns import Column
from airflow_gemini_batch.core.kinds import in_microseconds
from airflow_gemini_batch.core.storage import StoragePath, is_local
from airflow_gemini_batch.exceptions import InvalidConfig, SourceUnreadable

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

MOST_ROWS = 4096
BATCH_BYTES = 1 << 20
"""What a batch should hold, by the file's own word on how large its rows are: what a processor's cache holds."""

BUFFER_BYTES = 1 << 18
"""Read at a time, of each column."""


@dataclass(frozen=True, slots=True)
class RowBatch:
    """
    Adjacent rows of one file.

    :param columns: with microseconds for nanoseconds; ``declared``: as the file has them.
    :param number: of the first row, over all files; ``line`` in its file.
    :param partitions: columns that the names of directories give; the file's own go first.
    """

    columns: pa.RecordBatch
    declared: pa.Schema
    number: int
    file: str
    line: int
    partitions: Mapping[str, str | None]

    def slice(self, start: int, length: int) -> RowBatch:
        return replace(
            self, columns=self.columns.slice(start, length), number=self.number + start, line=self.line + start
        )

    def type_of(self, name: str) -> pa.DataType:
        """The declared type of a column."""
        import pyarrow as pa

        return self.declared.field(name).type if name in self.declared.names else pa.string()


def read_batches(
    raw: IO[bytes], path: StoragePath, needed: Collection[str], check: Callable[[list[str]], None]
) -> Generator[pa.RecordBatch, None, None]:
    """
    Yield a file's rows in order; of a file without rows, its columns.

    :param needed: the columns to read; none: all.
    :param check: gets the names of all columns before the first row.
    :raises SourceUnreadable: it is not a Parquet file, or damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Through Python a page of many megabytes would be in memory twice, and malloc keeps such room once it has had it.
        source: Any = pa.OSFile(str(path), "rb") if is_local(path) else raw
        # Otherwise Arrow reads row groups whole, and a file is often one row group.
        parquet = pq.ParquetFile(source, buffer_size=BUFFER_BYTES, pre_buffer=False)
        present = parquet.schema_arrow.names
        if doubled := {name for name in present if present.count(name) > 1}:
            raise SourceUnreadable(f"{path} has more than one column {', '.join(map(repr, sorted(doubled)))}.")
        check(present)
        columns = [name for name in present if name in needed] if needed else None
        for group in range(parquet.num_row_groups):  # one after the other: together their pages are held to the end
            yield from parquet.iter_batches(_batch_rows(parquet, group), row_groups=[group], columns=columns)
        if not parquet.metadata.num_rows:
            fields = [field for field in parquet.schema_arrow if columns is None or field.name in columns]
            yield pa.record_batch([pa.nulls(0, field.type) for field in fields], schema=pa.schema(fields))
    except pa.ArrowException as e:
        raise SourceUnreadable(f"{path} is not a readable Parquet file: {e}") from e


def without_nanoseconds(batch: pa.RecordBatch, told: Callable[[str], None] = lambda name: None) -> pa.RecordBatch:
    """
    Python knows no finer time than microseconds, and refuses to read nanoseconds at all where pandas is not installed.

    :param told: gets the name of each column that has lost something by it.
    """
    import pyarrow as pa

    for i, field in enumerate(batch.schema):
        coarse = in_microseconds(field.type)
        if coarse != field.type:
            column: Column = batch.columns[i]
            fine = column.dictionary_decode() if pa.types.is_dictionary(field.type) else column
            cut = fine.cast(coarse, safe=False)
            if not cut.cast(fine.type).equals(fine):
                told(field.name)
            batch = batch.set_column(i, field.name, cut)
    return batch


def _batch_rows(parquet: pq.ParquetFile, group: int) -> int:
    told = parquet.metadata.row_group(group)
    return max(1, min(MOST_ROWS, BATCH_BYTES * told.num_rows // max(1, told.total_byte_size)))


def is_table(value: object) -> bool:
    """True for a DataFrame or an Arrow table, which give the names of their columns where a list gives its rows."""
    return hasattr(value, "__arrow_c_stream__") or hasattr(value, "columns")


def records_of(table: Any) -> Iterator[dict[str, Any]]:
    """
    The rows of a DataFrame or an Arrow table as mappings.

    :raises InvalidConfig: Arrow does not know how to read it.
    """
    import pyarrow as pa

    try:
        batches = pa.table(table).to_batches(MOST_ROWS)
    except (TypeError, ValueError, pa.ArrowException) as e:
        raise InvalidConfig(f"The {type(table).__name__} cannot be read ({e}); give a list of mappings.") from e
    for batch in batches:
        yield from without_nanoseconds(batch).to_pylist()
