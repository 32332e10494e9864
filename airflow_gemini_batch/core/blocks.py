"""
Many requests at once: rows that come by the column, as from Parquet, become request lines without becoming Python values.

This is the plain case of ``requests``: one prompt, and rows that differ in its places, their key and what they keep. There
the bytes of a line are the same for all rows but for a few texts, which Arrow escapes and joins at a tenth of the cost, and
apart from the interpreter's lock. Every row that is not plain (blank, without a key, too large) goes to
``RequestBuilder.build`` like the rows of any other source, and only there are rows judged and refused.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import orjson

from airflow_gemini_batch.core.ahead import ahead
from airflow_gemini_batch.core.columns import Column, as_json, kernels
from airflow_gemini_batch.core.kinds import kind_of
from airflow_gemini_batch.core.parquet import RowBatch
from airflow_gemini_batch.core.prompts import Prompt, place_text
from airflow_gemini_batch.core.rows import Row

if TYPE_CHECKING:
    import pyarrow as pa

SURELY_NOT_BLANK = r"[^\s\p{Z}\p{C}]"
"""A character that no notion of white space includes. Text without one may still not be blank: ``build`` decides."""

ESCAPES = {chr(code): f"\\u{code:04x}" for code in range(32)} | {
    "\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r", '"': '\\"',
}  # fmt: skip
"""What JSON escapes as orjson does it, after the backslash itself."""


@dataclass(frozen=True)
class Frame:
    """
    What is around the texts of every request line: before the key, between key and prompt, after the prompt.

    :param prompt: its literals stand in the line escaped, its places are columns.
    :param key: column; None: the row's number.
    :param keep: columns; ``types``: what those of a fixed kind must be.
    :param max_bytes: most bytes of a line.
    """

    before: str
    between: str
    after: str
    prompt: Prompt
    key: str | None
    keep: tuple[str, ...]
    types: Mapping[str, str]
    max_bytes: int


@dataclass(frozen=True)
class Block:
    """
    Requests of adjacent rows.

    :param lines: as they are sent; ``rows``: their lines in the rows file.
    :param keys: as text.
    :param kept: kept column → its values; ``declared``: their types in the source.
    """

    lines: Column
    rows: Column
    keys: Column
    kept: Mapping[str, Column]
    declared: Mapping[str, pa.DataType]

    def __len__(self) -> int:
        return len(self.lines)

    def slice(self, start: int, length: int | None = None) -> Block:
        kept = {name: column.slice(start, length) for name, column in self.kept.items()}
        lines, rows, keys = (column.slice(start, length) for column in (self.lines, self.rows, self.keys))
        return Block(lines, rows, keys, kept, self.declared)

    def fitting(self, size: int) -> int:
        """How many of the lines, from the first, have at most ``size`` bytes together."""
        ends = _offsets(self.lines)
        return bisect_right(ends, ends[0] + size) - 1


def _offsets(array: Column) -> Sequence[int]:
    offsets = memoryview(array.buffers()[1]).cast("i")
    return cast("Sequence[int]", offsets[array.offset : array.offset + len(array) + 1])


def joined(array: Column) -> memoryview:
    """The bytes of all texts, one after the other, where they are."""
    offsets = _offsets(array)
    data = array.buffers()[2]
    return memoryview(data)[offsets[0] : offsets[-1]] if data is not None else memoryview(b"")


def build_ahead(items: Iterable[Row | RowBatch], frame: Frame) -> Iterator[Block | Row | RowBatch]:
    """Yield the requests of the plain rows, and the rows that are not plain as they are, in order."""
    for together, some in itertools.groupby(items, lambda item: isinstance(item, RowBatch)):
        if together:
            for pieces in ahead(lambda batch: build_blocks(batch, frame), cast("Iterator[RowBatch]", some)):
                yield from pieces
        else:
            yield from some


def build_blocks(batch: RowBatch, frame: Frame) -> list[Block | RowBatch]:
    """Return the requests of the plain rows, and the rows that are not plain as they are, in order."""
    import pyarrow as pa

    pc = kernels()

    if not batch.columns.num_rows:
        return [batch]
    try:
        block, plain = _build(batch, frame)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        # Too large together, or of a kind that Python's values show better: each row by itself tells what is the matter.
        return [batch]
    pieces: list[Block | RowBatch] = []
    start = 0
    for odd in pc.indices_nonzero(pc.invert(plain)).to_pylist() if not pc.all(plain).as_py() else ():
        if odd > start:
            pieces.append(block.slice(start, odd - start))
        pieces.append(batch.slice(odd, 1))
        start = odd + 1
    if start < len(block):
        pieces.append(block.slice(start))
    return pieces


def _build(batch: RowBatch, frame: Frame) -> tuple[Block, Column]:
    """Return a request for each row, and which of them are right."""
    import pyarrow as pa

    pc = kernels()

    count = batch.columns.num_rows
    if frame.key is None:
        keys = pa.array([str(batch.number + i) for i in range(count)], pa.string())
    else:
        keys = _key_texts(_column(batch, frame.key))
    plain = not_blank(keys)
    literals, places = frame.prompt.pieces[::2], [_texts(_column(batch, name)) for name in frame.prompt.pieces[1::2]]
    filled = pa.array([False] * count)
    for place in places:
        filled = pc.or_(filled, not_blank(place))
        if pc.all(filled).as_py():
            break
    plain = pc.and_(plain, filled)

    key = escaped(keys)
    pieces: list[Any] = [frame.before, key, frame.between + _inner(literals[0])]
    for place, literal in zip(places, literals[1:], strict=True):
        pieces += [escaped(place), _inner(literal)]
    lines = _join(*pieces, frame.after)
    plain = pc.and_(plain, pc.less_equal(pc.binary_length(lines), frame.max_bytes))

    kept, declared = kept_columns(batch, frame.keep)
    if other := [name for name, kind in frame.types.items() if kind_of(declared[name]) != kind]:
        raise ValueError(f"{other} are to have another type")
    pieces, opening = ['{"key":"', key], '","keep":{'
    for name, column in kept.items():
        pieces += [f"{opening}{orjson.dumps(name).decode()}:", _as_json(column)]
        opening = ","
    return Block(lines, _join(*pieces, "}}\n" if kept else '"}\n'), keys, kept, declared), plain


def kept_columns(batch: RowBatch, names: Iterable[str]) -> tuple[dict[str, Column], dict[str, pa.DataType]]:
    """The values of those of the columns that a batch has, and their types in the source."""
    there = [name for name in names if name in batch.declared.names or name in batch.partitions]
    return {name: _column(batch, name) for name in there}, {name: batch.type_of(name) for name in there}


def _column(batch: RowBatch, name: str) -> Column:
    """:raises ArrowInvalid: text that is not UTF-8, which Parquet does not check."""
    import pyarrow as pa

    column: Column
    if name in batch.columns.schema.names:
        column = batch.columns.column(name)
    else:
        column = pa.repeat(pa.scalar(batch.partitions[name], pa.string()), batch.columns.num_rows)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if _is_text(column):
        column = column.cast(pa.string())
        column.validate(full=True)
    return column


def _is_text(column: Column) -> bool:
    import pyarrow as pa

    return pa.types.is_string(column.type) or pa.types.is_large_string(column.type)


def _key_texts(column: Column) -> Column:
    """:raises ValueError: keys of a kind that needs a closer look."""
    import pyarrow as pa

    if _is_text(column) or pa.types.is_integer(column.type):
        return column.cast(pa.string())
    raise ValueError(f"keys of {column.type} need a closer look")


def _texts(column: Column) -> Column:
    """What a place of the prompt says for each row, null where it is null."""
    import pyarrow as pa

    if _is_text(column) or pa.types.is_integer(column.type):
        return column.cast(pa.string())
    return pa.array([None if value is None else place_text(value) for value in column.to_pylist()], pa.string())


def not_blank(texts: Column) -> Column:
    """Which texts surely are not; see :data:`SURELY_NOT_BLANK`."""
    import pyarrow as pa

    pc = kernels()
    begin_so = pc.is_in(pc.binary_slice(texts.view(pa.binary()), 0, 1), value_set=_printable())
    if pc.all(begin_so).as_py():  # as most do, and a tenth of the cost
        return begin_so
    return pc.fill_null(pc.match_substring_regex(texts, SURELY_NOT_BLANK), False)


@lru_cache
def _printable() -> Column:
    import pyarrow as pa

    return pa.array([bytes([code]) for code in range(33, 127)], pa.binary())


def _join(*pieces: Any) -> Column:
    """Join constants and columns; a null is no text at all."""
    pc = kernels()
    return pc.binary_join_element_wise(*pieces, "", null_handling="replace")


def _inner(text: str) -> str:
    """A text as it stands in JSON, without the quotes."""
    return orjson.dumps(text)[1:-1].decode()


def escaped(texts: Column) -> Column:
    """Texts as they stand in JSON, without the quotes: what :func:`orjson.dumps` makes of them."""
    import pyarrow as pa

    pc = kernels()

    held = joined(texts)
    if not held:
        return texts
    data = held.tobytes()
    if b"\\" in data:
        texts = pc.replace_substring(texts, "\\", "\\\\")
    if b'"' in data:
        texts = pc.replace_substring(texts, '"', ESCAPES['"'])
    codes = pa.UInt8Array.from_buffers(pa.uint8(), len(data), [None, pa.py_buffer(data)])
    if pc.min(codes).as_py() < 32:
        for sign, escape in ESCAPES.items():
            if sign != '"' and sign.encode() in data:
                texts = pc.replace_substring(texts, sign, escape)
    return texts


def _as_json(column: Column) -> Column:
    """The values of a kept column as ``shards.row_line`` writes them."""
    import pyarrow as pa

    pc = kernels()

    types = pa.types
    if _is_text(column):
        return pc.fill_null(pc.binary_join_element_wise('"', escaped(column), '"', ""), "null")
    if types.is_integer(column.type) or types.is_boolean(column.type):
        return pc.fill_null(column.cast(pa.string()), "null")
    if types.is_floating(column.type) or types.is_decimal(column.type) or types.is_temporal(column.type):
        return pa.array(as_json(column.to_pylist())[1:-1].decode().split(","), pa.string())
    return pa.array([as_json([value])[1:-1].decode() for value in column.to_pylist()], pa.string())
