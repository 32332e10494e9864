"""Third step: requests become files within the API's limits, with a file of rows beside each to join by key later."""

from __future__ import annotations

import gc
import hashlib
import math
from array import array
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, BinaryIO, TypeAlias, cast

import orjson

from airflow_gemini_batch.core import storage
from airflow_gemini_batch.core.blocks import Block, joined
from airflow_gemini_batch.core.columns import as_json, plain, storable
from airflow_gemini_batch.core.estimate import Estimate
from airflow_gemini_batch.core.layout import WorkDirectory
from airflow_gemini_batch.core.limits import Limits
from airflow_gemini_batch.core.measuring import Measure
from airflow_gemini_batch.core.names import Slot
from airflow_gemini_batch.core.plan import Shard
from airflow_gemini_batch.core.requests import Request
from airflow_gemini_batch.core.storage import StoragePath
from airflow_gemini_batch.exceptions import BadRow, InvalidConfig


def _tokens(size: int) -> int:
    return math.ceil(size / 4)


Piece: TypeAlias = tuple[Request, str] | Block
"""One request with where it comes from, for errors; or those of many rows."""


def write_shards(
    requests: Iterable[Piece],
    work: WorkDirectory,
    round_number: int,
    limits: Limits,
    home: str = "",
    measure: Measure | None = None,
) -> tuple[Shard, ...]:
    """
    Write requests to shard files and return what was written.

    :param measure: reckons what each shard will use and cost.
    :raises InvalidConfig: one request alone is over ``limits.enqueued_tokens``.
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
            shard, first = _write_one(slot, first, pending, *files, limits=limits, measure=measure)
        shards.append(replace(shard, home=home, estimate=measure.shard() if measure else Estimate()))
    return tuple(shards)


def _write_one(
    slot: Slot,
    first: Piece | None,
    pending: Iterator[Piece],
    request_file: BinaryIO,
    row_file: BinaryIO,
    *,
    limits: Limits,
    measure: Measure | None,
) -> tuple[Shard, Piece | None]:
    sent = rows = size = tokens = more = 0
    media = False
    hashed = hashlib.sha256()
    current = first
    while current is not None:
        if isinstance(current, Block):
            room = min(limits.requests_per_job - sent, 2 * limits.requests_per_job - rows)
            taken = current.slice(0, min(room, current.fitting(limits.bytes_per_job - size)))
            if not len(taken):
                break
            row_file.write(joined(taken.rows))
            request_file.write(lines := joined(taken.lines))
            hashed.update(lines)
            if measure is not None:
                measure.add_many(taken.lines, len(lines))
            sent, rows, size = sent + len(taken), rows + len(taken), size + len(lines)
            current = current.slice(len(taken)) if len(taken) < len(current) else next(pending, None)
            continue
        request, where = current
        full = sent >= limits.requests_per_job or size + len(request.line) > limits.bytes_per_job
        if (most := limits.enqueued_tokens) is not None:
            more = measure.input_tokens(request.line) if measure else _tokens(len(request.line))
            if more > most:
                raise InvalidConfig(
                    f"{where}: the request with key {request.key!r} has about {more:,} tokens, but "
                    f"Limits.enqueued_tokens is {most:,}. Raise it, or shorten the row."
                )
            full = full or tokens + more > most
        # Rows that are not sent count too, or a source of blanks would make one endless file of rows.
        if rows and (full or request.begins_job or rows >= 2 * limits.requests_per_job):
            break
        row_file.write(row_line(request, where))
        rows += 1
        if request.line:
            request_file.write(request.line)
            hashed.update(request.line)
            if measure is not None:
                measure.add(request.line)
            sent += 1
            size += len(request.line)
            tokens += more
            media = media or bool(request.media)
        current = next(pending, None)
    return Shard(slot, sent, rows, size, hashed.hexdigest(), media=media), current


def row_line(request: Request, where: str) -> bytes:
    """One line of a rows file: the key, the kept values, the URIs of media, and the reason if nothing is sent."""
    row: dict[str, Any] = {"key": request.key}
    if request.prompt is not None:
        row["prompt"] = request.prompt
    if request.keep:
        row["keep"] = {name: storable(value) for name, value in request.keep.items()}
    if request.unsent:
        row["unsent"] = request.unsent
    if request.media:
        row["media"] = request.media
    if request.dimensions:
        row["dimensions"] = request.dimensions
    if request.earlier:
        row["earlier"] = request.earlier
    try:
        return orjson.dumps(row, default=plain, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_APPEND_NEWLINE)
    except TypeError as e:
        names = (name for name, value in request.keep.items() if not _can_be_stored(value))
        raise BadRow(where, f"the kept column {next(names, '')!r} cannot be stored: {e}") from e


def _can_be_stored(value: Any) -> bool:
    try:
        return bool(as_json([value]))
    except TypeError:
        return False


READ_BYTES = 1 << 18
"""Of a rows file, parsed at a time."""


class KeyCheck:
    """
    Finds duplicate keys among any number of rows with 8 bytes a row.

    Only hashes are held. Should two be equal, the rows files are read again, to tell a true duplicate from two keys that
    merely share a hash.
    """

    def __init__(self) -> None:
        self._hashes = array("q")

    def add(self, *keys: str) -> None:
        self._hashes.extend(map(hash, keys))

    def suspects(self) -> set[int]:
        """Hashes that occur more than once."""
        if len(set(self._hashes[:1000])) == len(self._hashes):
            return set()  # small sources need no Arrow
        import pyarrow as pa
        import pyarrow.compute as pc

        hashes = pa.Int64Array.from_buffers(pa.int64(), len(self._hashes), [None, pa.py_buffer(self._hashes)])
        ordered = hashes.sort()
        same_as_next = pc.equal(ordered[:-1], ordered[1:])
        return set(cast("list[int]", ordered[:-1].filter(same_as_next).to_pylist()))


def read_rows_file(path: StoragePath) -> Iterator[dict[str, Any]]:
    """Yield the rows of a shard in the order of its requests: what :func:`row_line` wrote."""
    with path.open("rb") as f:
        while lines := f.readlines(READ_BYTES):
            with _no_collection():
                rows = orjson.loads(b"[" + b",".join(lines) + b"]")
            yield from rows


@contextmanager
def _no_collection() -> Iterator[None]:
    """
    Make many objects at once. Python would look for cycles again and again meanwhile, in all that the process holds: more
    work than the rest of landing has in its own thread.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
