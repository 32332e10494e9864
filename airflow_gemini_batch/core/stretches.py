"""
Many answers at once: a stretch of a result file becomes columns, and finds its rows, without becoming Python values.

``plain_lines`` says which lines that is for; all others stay bytes.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Generator, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, BinaryIO

from airflow_gemini_batch.core.ahead import ahead
from airflow_gemini_batch.core.answers import Oddities, Reject, load
from airflow_gemini_batch.core.columns import Column, kernels
from airflow_gemini_batch.core.plain_lines import COUNTS, OF_LINE, Parsed, line_columns, parse, why_unreadable
from airflow_gemini_batch.core.usage import Usage

BLOCK_BYTES = 1 << 20
"""Parsed at a time."""

STRETCH_BYTES = 8 << 20
"""Of a result file, read at a time: enough where lines are in the order of the rows, as they mostly are."""

MOST_ODD = 0.5
"""With more lines than this that are not plain, a stretch is not worth it: they are read twice here."""


class Stretch:
    """
    Adjacent lines of a result file.

    :param first_line: its number in the file, from 1.
    :param last: nothing follows.
    """

    def __init__(self, file: BinaryIO, blocks: Sequence[Parsed], first_line: int, *, last: bool) -> None:
        import pyarrow as pa

        self._file, self.last = file, last
        # Each block: where in the file, its bytes, the numbers of its first line and its first row here, its odd lines.
        first_rows = itertools.accumulate((one.columns.num_rows for one in blocks), initial=0)
        first_lines = itertools.accumulate((one.all_lines for one in blocks), initial=first_line)
        self._blocks = [
            (one.at, one.size, line, row, one.odd)
            for one, line, row in zip(blocks, first_lines, first_rows, strict=False)
        ]
        together = pa.Table.from_batches([one.columns for one in blocks], line_columns())
        self._columns = dict(zip(together.column_names, together.columns, strict=True))
        self._cut: tuple[int, list[bytes]] = (-1, [])
        self.end = blocks[-1].at + blocks[-1].size
        self.all_lines = sum(one.all_lines for one in blocks)

    def extend(self, next_one: Stretch) -> None:
        """Take in the lines that follow."""
        import pyarrow as pa

        held = len(self)
        self._blocks += [(at, size, line, held + row, odd) for at, size, line, row, odd in next_one._blocks]
        for name, column in next_one._columns.items():
            self._columns[name] = pa.chunked_array(self._columns[name].chunks + column.chunks)
        self.end, self.last = next_one.end, next_one.last
        self.all_lines += next_one.all_lines

    def __len__(self) -> int:
        """Lines that are not blank."""
        return len(self._columns["key"])

    @property
    def nbytes(self) -> int:
        """Held in memory."""
        return sum(column.nbytes for column in self._columns.values())

    @property
    def mostly_plain(self) -> bool:
        return len(self) - sum(len(odd) for *_, odd in self._blocks) >= (1 - MOST_ODD) * len(self)

    def find(self, keys: Column) -> Column:
        """For each key the first line under it, null where there is none."""
        pc = kernels()
        return pc.index_in(keys, value_set=self._whole("key"), skip_nulls=True)

    def is_plain(self, at: Column) -> Column:
        pc = kernels()
        return pc.fill_null(self._whole("plain").take(at), False)

    def take(self, at: Column) -> dict[str, Column]:
        """What plain lines say, by column; the numbers of tool use are among them."""
        import pyarrow as pa

        if not len(at):
            return {name: pa.array([], line_columns().field(name).type) for name in OF_LINE}
        first = at[0].as_py()
        steps = kernels().min_max(kernels().subtract(at[1:], at[:-1])).as_py()
        if steps["min"] in (1, None) and steps["max"] in (1, None):  # in order, the usual case
            return {name: pa.concat_arrays(self._columns[name].slice(first, len(at)).chunks) for name in OF_LINE}
        return {name: self._whole(name).take(at) for name in OF_LINE}

    def _whole(self, name: str) -> Column:
        """A column in one piece, which Arrow would make anew for each look. The pieces are let go."""
        import pyarrow as pa

        column = self._columns[name]
        if column.num_chunks != 1:
            self._columns[name] = column = pa.chunked_array([pa.concat_arrays(column.chunks)])
        return column.chunk(0)

    def load(self, index: int) -> Mapping[str, Any]:
        """Read a line that is not plain."""
        *_, odd = self._blocks[self._block_of(index)]
        line: Mapping[str, Any] = load(odd[self._whole("line")[index].as_py()])
        return line

    def _block_of(self, index: int) -> int:
        return bisect_right(self._blocks, index, key=itemgetter(3)) - 1

    def _line(self, index: int) -> tuple[int, bytes]:
        """Number in the file, and bytes; cheap only from first to last."""
        which = self._block_of(index)
        at, size, first_line, _, _ = self._blocks[which]
        if self._cut[0] != which:
            self._cut = which, _read(self._file, at, size).split(b"\n")
        number, lines = self._whole("line")[index].as_py(), self._cut[1]
        return first_line + number, lines[number] + (b"\n" if number < len(lines) - 1 else b"")

    def reject_others(self, used: Column, keys: Column, reject: Reject) -> Oddities:
        """
        Put the lines aside that no row took.

        :param used: the lines that rows took.
        :param keys: all that were sent.
        """
        import pyarrow as pa

        pc = kernels()

        odd = Oddities()
        if len(used) - used.null_count == len(self):
            return odd
        free = pc.invert(pc.is_in(pa.array(range(len(self)), pa.int32()), value_set=used, skip_nulls=True))
        for index in pc.indices_nonzero(free).to_pylist():
            number, data = self._line(index)
            key = self._whole("key")[index]
            if not key.is_valid:
                odd.corrupt += 1
                reject(number, why_unreadable(data), data)
            elif pc.is_in(key, value_set=keys).as_py():
                odd.duplicate += 1
                reject(number, "another line under a key that has one already; the first counts", data)
            else:
                odd.unknown_key += 1
                reject(number, "a key that was not sent", data)
        return odd


def usage_of(columns: Mapping[str, Column]) -> Usage:
    """The tokens of plain lines, added up."""
    pc = kernels()
    prompt, output, thoughts, cached, tool = (pc.sum(columns[name]).as_py() or 0 for name in COUNTS)
    return Usage(prompt, output, thoughts, cached, tool)


def stretches(file: BinaryIO) -> Generator[Stretch, None, None]:
    """Yield a result file in stretches, in order."""
    held: list[Parsed] = []
    first = line = 1
    for one in ahead(parse, _blocks(file)):
        if held and one.at + one.size - held[0].at > STRETCH_BYTES:
            blocks, held = held, []
            yield Stretch(file, blocks, first, last=False)
            first = line
        held.append(one)
        line += one.all_lines
    if held:
        yield Stretch(file, held, first, last=True)


def _blocks(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Whole lines: where in the file, and their bytes. The file may still be coming; it ends where a read comes short."""
    at, size = 0, BLOCK_BYTES
    while True:
        data = _read(file, at, size)
        if not data:
            return
        whole = len(data) if len(data) < size else data.rfind(b"\n") + 1
        if not whole:
            size *= 2  # a line that is longer
            continue
        yield at, data[:whole]
        at, size = at + whole, BLOCK_BYTES


def _read(file: BinaryIO, at: int, size: int) -> bytes:
    file.seek(at)
    return file.read(size)
