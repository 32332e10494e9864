"""
Rows and the answers of one result file, paired: plainly where it can be, many at a time, and one by one from where it cannot.

Both ways give the same table (a test holds them against each other). The second one is ``answers.join``; the first leaves
every row that is not plain to it too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, BinaryIO

from airflow_gemini_batch.core.answers import Answers, Oddities, Reject, join
from airflow_gemini_batch.core.columns import Column
from airflow_gemini_batch.core.names import wire_key
from airflow_gemini_batch.core.reading import Reader
from airflow_gemini_batch.core.results import Result
from airflow_gemini_batch.core.stretches import Stretch, stretches, usage_of
from airflow_gemini_batch.core.usage import Usage

ROWS, ROWS_BYTES = 8192, 2 << 20
"""Given at a time, at most."""

MOST_BYTES = 24 << 20
"""
Of answers, held as columns while their lines are not in the order of the rows: what a usual job brings, so that its lines may
be in any order. In a larger file, lines that are not near their rows are left to ``Answers``.
"""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Plain:
    """
    Adjacent rows.

    :param rows: those with a plain answer, which all are settled and ``ok``; ``lines``: what the answers say, by column.
    :param others: all others: how many of ``rows`` are before it, the row, its result.
    """

    rows: list[Row]
    lines: Mapping[str, Column]
    usage: Usage
    others: list[tuple[int, Row, Result]]


class Pairing:
    """
    :param file: the result file, None if there is none.
    :param rows: reads the rows file, from its beginning.
    :param unsendable: see :func:`answers.join`.
    """

    def __init__(
        self, file: BinaryIO | None, rows: Callable[[], Iterator[Row]], reader: Reader, unsendable: Mapping[str, str],
        reject: Reject,
    ) -> None:  # fmt: skip
        self._file, self._all_rows, self._reader, self._unsendable, self._reject = (
            file,
            rows,
            reader,
            unsendable,
            reject,
        )
        self._rows = rows()
        self._done = (0, 0, 0)
        self._finished = False
        self.oddities = Oddities()
        """Of the lines seen so far."""

    def plainly(self) -> Iterator[Plain]:
        """Yield rows with their answers for as long as most lines are plain and their rows are near them."""
        import pyarrow as pa

        if self._file is None:
            return
        bytes_done, lines_done, keys_done = self._done
        stretch: Stretch | None = None
        rows: list[Row] = []
        with closing(stretches(self._file)) as parts:
            for part in parts:
                new = list(self._rows) if part.last else self._next_rows(len(part))
                if stretch is None:
                    stretch, rows = part, new
                else:
                    stretch.extend(part)
                    rows += new
                keys = pa.array([None if "unsent" in row else wire_key(row) for row in rows], pa.string())
                at = stretch.find(keys)
                sent, found = (len(column) - column.null_count for column in (keys, at))
                only = stretch.last and not keys_done
                each_once = found == len(stretch) and (found == sent or stretch.last)
                if not stretch.mostly_plain or not (only or each_once):
                    if stretch.mostly_plain and not stretch.last and stretch.nbytes < MOST_BYTES:
                        continue  # more lines
                    self._rows = itertools.chain(rows, self._rows)
                    return
                self.oddities += stretch.reject_others(at, keys, self._reject)
                bytes_done, lines_done, keys_done = stretch.end, lines_done + stretch.all_lines, keys_done + sent
                self._done, self._finished = (bytes_done, lines_done, keys_done), stretch.last
                step = max(1, min(ROWS, ROWS_BYTES * len(stretch) // max(1, stretch.nbytes)))
                for start in range(0, len(rows), step):
                    yield self._pair(stretch, rows[start : start + step], at.slice(start, step))
                stretch, rows = None, []

    def _next_rows(self, sent: int) -> list[Row]:
        """Rows up to the last of so many that were sent."""
        rows: list[Row] = []
        while sent and (row := next(self._rows, None)) is not None:
            rows.append(row)
            sent -= "unsent" not in row
        return rows

    def _pair(self, stretch: Stretch, rows: list[Row], at: Column) -> Plain:
        plain = stretch.is_plain(at)
        if plain.true_count == len(rows):
            lines = stretch.take(at)
            return Plain(rows, lines, usage_of(lines), [])
        lines = stretch.take(at.filter(plain))
        its_rows: list[Row] = []
        other_rows: list[tuple[int, Row]] = []
        found: dict[str, int] = {}
        for row, fine, index in zip(rows, plain.to_pylist(), at.to_pylist(), strict=True):
            if fine:
                its_rows.append(row)
                continue
            other_rows.append((len(its_rows), row))
            if index is not None:
                found[wire_key(row)] = index
        results = join(
            (row for _, row in other_rows), _Found(stretch, found), self._reader, unsendable=self._unsendable
        )
        others = [(before, row, result) for (before, _), (row, result) in zip(other_rows, results, strict=True)]
        return Plain(its_rows, lines, usage_of(lines), others)

    def one_by_one(self) -> Iterator[tuple[Row, Result]]:
        """Yield what :meth:`plainly` did not."""
        answers = None
        if self._file is not None and not self._finished:
            keys = (wire_key(row) for row in self._all_rows() if "unsent" not in row)
            answers = Answers(self._file, keys, self._reject, self._done)
        yield from join(self._rows, answers, self._reader, unsendable=self._unsendable)
        if answers is not None:
            self.oddities += answers.finish()


@dataclass(frozen=True)
class _Found:
    """Lines of a stretch that are not plain, by key."""

    stretch: Stretch
    lines: Mapping[str, int]

    def take(self, key: str) -> Mapping[str, Any] | None:
        index = self.lines.get(key)
        return None if index is None else self.stretch.load(index)
