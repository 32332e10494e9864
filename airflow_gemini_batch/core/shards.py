"""Third step: requests become files within the API's limits, with a file of rows beside each to join by key later."""

from __future__ import annotations

import base64
import hashlib
import math
from array import array
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, BinaryIO, cast

import orjson

from airflow_gemini_batch.core import storage
from airflow_gemini_batch.core.layout import WorkDirectory
from airflow_gemini_batch.core.names import Slot
from airflow_gemini_batch.core.plan import Shard
from airflow_gemini_batch.core.requests import Request
from airflow_gemini_batch.core.storage import StoragePath
from airflow_gemini_batch.exceptions import BadRow, InvalidConfig

API_FILE_BYTES = 2_000_000_000
"""Largest file that the Files API takes (https://ai.google.dev/gemini-api/docs/files)."""

API_ACTIVE_JOBS = 100
"""Jobs that may be active in one project (https://ai.google.dev/gemini-api/docs/rate-limits)."""


@dataclass(frozen=True)
class Limits:
    """
    How large things may get.

    :param requests_per_job: the API publishes no number for this.
    :param bytes_per_job: of one request file; at most :data:`API_FILE_BYTES`.
    :param bytes_per_request: of one line.
    :param active_jobs: jobs of one run in flight at a time; at most :data:`API_ACTIVE_JOBS`.
    """

    requests_per_job: int = 50_000
    bytes_per_job: int = 1_900_000_000
    bytes_per_request: int = 20_000_000
    active_jobs: int = 20

    def __post_init__(self) -> None:
        for name, most in (
            ("requests_per_job", None),
            ("bytes_per_job", API_FILE_BYTES),
            ("bytes_per_request", self.bytes_per_job),
            ("active_jobs", API_ACTIVE_JOBS),
        ):
            value = getattr(self, name)
            if (
                isinstance(value, bool)
                or not isinstance(value, int)
                or value < 1
                or (most is not None and value > most)
            ):
                upto = f" to {most:,}" if most is not None else " or more"
                raise InvalidConfig(f"Limits.{name} is {value!r}; it takes 1{upto}.")


def write_shards(
    requests: Iterable[tuple[Request, str]], work: WorkDirectory, round_number: int, limits: Limits, home: str = ""
) -> tuple[Shard, ...]:
    """
    Write requests to shard files and return what was written.

    :param requests: each with where it comes from, for errors.
    :raises InvalidInput: whatever building a request raises; the shard being written then vanishes.
    """
    shards: list[Shard] = []
    pending = iter(requests)
    first = next(pending, None)
    while first is not None:
        slot = Slot(round_number, len(shards))
        with ExitStack() as stack:
            files = [
                stack.enter_context(storage.writing(p)) for p in (work.requests(slot, home), work.rows(slot, home))
            ]
            shard, first = _write_one(slot, first, pending, *files, limits=limits)
        shards.append(replace(shard, home=home))
    return tuple(shards)


def _write_one(
    slot: Slot,
    first: tuple[Request, str] | None,
    pending: Iterator[tuple[Request, str]],
    request_file: BinaryIO,
    row_file: BinaryIO,
    *,
    limits: Limits,
) -> tuple[Shard, tuple[Request, str] | None]:
    sent = rows = size = 0
    hashed = hashlib.sha256()
    current = first
    while current is not None:
        request, where = current
        full = sent >= limits.requests_per_job or size + len(request.line) > limits.bytes_per_job
        # Rows that are not sent count too, or a source of blanks would make one endless file of rows.
        if rows and (full or rows >= 2 * limits.requests_per_job):
            break
        row_file.write(row_line(request, where))
        rows += 1
        if request.line:
            request_file.write(request.line)
            hashed.update(request.line)
            sent += 1
            size += len(request.line)
        current = next(pending, None)
    return Shard(slot, sent, rows, size, hashed.hexdigest()), current


def row_line(request: Request, where: str) -> bytes:
    """One line of a rows file: the key, the kept values, and the reason if nothing is sent."""
    row: dict[str, Any] = {"key": request.key}
    if request.keep:
        # JSON has no infinity and no NaN: as text they can be read back, as null they would be lost.
        row["keep"] = {
            name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in request.keep.items()
        }
    if request.unsent:
        row["unsent"] = request.unsent
    try:
        return orjson.dumps(row, default=plain, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_APPEND_NEWLINE)
    except TypeError as e:
        raise BadRow(where, f"a kept column cannot be stored: {e}") from e


def plain(value: object) -> object:
    """Values that JSON has no word for, in a form that Arrow can read back."""
    if isinstance(value, Decimal | date | datetime | time):
        return str(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise TypeError(f"{type(value).__name__} values cannot be kept")


class KeyCheck:
    """
    Finds duplicate keys among any number of rows with 8 bytes a row.

    Only hashes are held. Should two be equal, the rows files are read again, to tell a true duplicate from two keys that
    merely share a hash.
    """

    def __init__(self) -> None:
        self._hashes = array("q")

    def add(self, key: str) -> None:
        self._hashes.append(hash(key))

    def suspects(self) -> set[int]:
        """Hashes that occur more than once."""
        if len(set(self._hashes[:1000])) == len(self._hashes):
            return set()  # small sources need no Arrow
        import pyarrow as pa
        import pyarrow.compute as pc

        ordered = pa.array(memoryview(self._hashes)).sort()
        same_as_next = pc.equal(ordered[:-1], ordered[1:])
        return set(cast("list[int]", ordered[:-1].filter(same_as_next).to_pylist()))


def read_rows_file(path: StoragePath) -> Iterator[dict[str, Any]]:
    """Yield the rows of a shard in the order of its requests: ``key``, and ``keep`` and ``unsent`` where there are."""
    with path.open("rb") as f:
        for line in f:
            yield orjson.loads(line)
