"""Work in threads, a few items ahead: Arrow, hashing and compression let go of the interpreter's lock."""

from __future__ import annotations

import ctypes
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

WORKERS = 2

RELEASE_EVERY = 8
"""Items after which Arrow gives back what it holds in reserve: with threads that is several times what is in use."""


def release_reserves() -> None:
    """
    Give back to the system what Arrow and glibc's malloc have freed and keep: tens of megabytes after a shard. Between
    shards only: within one it costs a tenth of the time.
    """
    if (arrow := sys.modules.get("pyarrow")) is not None:
        arrow.default_memory_pool().release_unused()
    with suppress(OSError, AttributeError, TypeError):  # there is no such call outside of glibc
        ctypes.CDLL(None).malloc_trim(0)


def ahead(make: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """
    Yield what ``make`` returns for each item, in their order. It runs in threads, on at most three items at a time; what it
    raises is raised here.
    """
    import pyarrow as pa

    with ThreadPoolExecutor(WORKERS, "gemini-batch") as pool:
        pending: deque[Future[R]] = deque()
        for number, item in enumerate(items, 1):
            pending.append(pool.submit(make, item))
            if number % RELEASE_EVERY == 0:
                pa.default_memory_pool().release_unused()
            if len(pending) > WORKERS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
