"""How rows travel to PostgreSQL: as text of its COPY, a piece at a time."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from airflow_gemini_batch.sql.values import copy_line

COPY_BYTES = 1 << 20
"""Given to PostgreSQL at a time."""


class Lines:
    """Batches as bytes of COPY's text format, about :data:`COPY_BYTES` at a time."""

    def __init__(self, batches: Iterable[Sequence[tuple[Any, ...]]], make: Callable[[Any], Any]) -> None:
        self._batches, self._make = batches, make
        self.count = 0

    def __iter__(self) -> Iterator[bytes]:
        for batch in self._batches:
            self.count += len(batch)
            held, size = [], 0
            for row in batch:
                held.append(line := copy_line(self._make(row)))
                size += len(line)
                if size >= COPY_BYTES:
                    yield "".join(held).encode()
                    held, size = [], 0
            yield "".join(held).encode()


class Readable(io.RawIOBase):
    """The same as the file that psycopg2 asks for; remembers what went wrong while it was read."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks, self._left = iter(chunks), memoryview(b"")
        self.failed: Exception | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            while not self._left:
                if (chunk := next(self._chunks, None)) is None:
                    return 0
                self._left = memoryview(chunk)
        except Exception as e:
            self.failed = e
            raise
        size = min(len(buffer), len(self._left))
        buffer[:size], self._left = self._left[:size], self._left[size:]
        return size
