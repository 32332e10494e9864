"""
Media at the service: read, found there or uploaded, and waited for, several at a time. Knows nothing of requests.

One content is uploaded once per run, under an id that every slot, round and attempt of the run makes the same way, so
nothing but that id has to be remembered to find it again.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

from airflow_gemini_batch.core import storage
from airflow_gemini_batch.core.attempt import Attempt, log
from airflow_gemini_batch.core.client import Client
from airflow_gemini_batch.core.limits import API_FILE_BYTES
from airflow_gemini_batch.core.names import media_display_name, media_id
from airflow_gemini_batch.core.remote_files import RemoteFile
from airflow_gemini_batch.core.storage import StoragePath
from airflow_gemini_batch.core.storage_quota import check_room
from airflow_gemini_batch.exceptions import (
    GeminiBatchError,
    InvalidConfig,
    MediaUnreadable,
    QuotaExceeded,
    RequestRefused,
    ServiceUnreachable,
    SourceUnreadable,
)

T = TypeVar("T")
R = TypeVar("R")

AT_ONCE = 8
"""Media read, uploaded or deleted at a time."""

LIFE = 36 * 3600.0
"""Seconds that uploads must still live to be used for another job; less if jobs may not take that long."""

PROCESSING_TAKES = 1800.0
"""Seconds the service gets to make uploads usable. Videos take it minutes."""

LOOK_EVERY = 5.0
"""Seconds between two looks at an upload that is being processed."""

TELL_EVERY = 60.0
"""Seconds between two lines on how far it has come."""

TRIES = 4
"""Of one look at an upload."""


class Medium(NamedTuple):
    """What a request names: content is uploaded once for each type that it is said to have."""

    uri: str
    mime_type: str | None


@dataclass(frozen=True)
class Brought:
    """
    What became of one medium.

    :param problem: why it cannot be used; empty if it can.
    :param denied: it was not this file that was the matter, but the way to it.
    """

    sha256: str = ""
    file: RemoteFile | None = None
    problem: str = ""
    denied: bool = False
    size: int = 0


def bring_all(attempt: Attempt, wanted: tuple[Medium, ...]) -> dict[Medium, Brought]:
    """Read, upload and wait for media; each content once."""
    uris = tuple({medium.uri: None for medium in wanted if medium.mime_type})
    read = dict(zip(uris, in_parallel(attempt, "Reading", lambda uri: _read(attempt, uri), uris), strict=True))
    if uris and all(one.denied for one in read.values()):
        raise SourceUnreadable(f"Not one media file can be reached. {uris[0]}: {read[uris[0]].problem}")
    contents: dict[tuple[str, str], Medium] = {}
    for medium in wanted:
        if medium.mime_type and not read[medium.uri].problem:
            contents.setdefault((read[medium.uri].sha256, medium.mime_type), medium)
    uploaded = in_parallel(attempt, "Uploading", lambda one: _upload(attempt, one, read[one.uri]), contents.values())
    until = attempt.now() + PROCESSING_TAKES
    waited = in_parallel(attempt, "Waiting for", lambda one: _wait(attempt, one, until), uploaded)
    ready = dict(zip(contents, waited, strict=True))

    def outcome(medium: Medium) -> Brought:
        if not medium.mime_type:
            return Brought(problem="its name does not tell what it is; give it a usual suffix, such as .png")
        found = read[medium.uri]
        return found if found.problem else ready[found.sha256, medium.mime_type]

    return {medium: outcome(medium) for medium in wanted}


def _tried(uri: str, step: Callable[[], Brought]) -> Brought:
    """:raises MediaUnreadable: storage failed in a way that may pass."""
    try:
        return step()
    except (FileNotFoundError, NotADirectoryError):
        return Brought(problem="it does not exist")
    except IsADirectoryError:
        return Brought(problem="it is a directory")
    except (PermissionError, InvalidConfig) as e:
        return Brought(problem=f"it cannot be opened: {e}", denied=True)
    except GeminiBatchError:
        raise
    except Exception as e:  # every filesystem has errors of its own
        if isinstance(e, OSError) and e.errno == errno.ENAMETOOLONG:
            return Brought(problem="its name is too long")
        raise MediaUnreadable(f"{uri} could not be read: {type(e).__name__}: {e}. Nothing was sent.") from e


def _read(attempt: Attempt, uri: str) -> Brought:
    def read() -> Brought:
        if "\0" in uri:
            return Brought(problem="its name holds a null character")
        hashed, size = hashlib.sha256(), 0
        with attempt.services.open_uri(uri).open("rb") as f:
            while piece := f.read(storage.COPY_BYTES):
                hashed.update(piece)
                size += len(piece)
                if size > API_FILE_BYTES:
                    return Brought(
                        problem=f"it is larger than {API_FILE_BYTES:,} bytes, the most that the service takes"
                    )
        return Brought(hashed.hexdigest(), size=size) if size else Brought(problem="it is empty")

    return _tried(uri, read)


def _upload(attempt: Attempt, medium: Medium, read: Brought) -> Brought:
    """Find a content at the service, or put it there."""
    client, run_hash = attempt.client, attempt.plan.run_hash
    mime_type, sha256 = str(medium.mime_type), read.sha256

    def upload() -> Brought:
        path = attempt.services.open_uri(medium.uri)
        file = find_or_upload(
            client, path, sha256=sha256, size=read.size, mime_type=mime_type, label=media_display_name(run_hash, path.name),
            file_id=lambda generation: media_id(run_hash, sha256, mime_type, generation),
            look=lambda name: _look(attempt, name), lives=lambda until: lives_on(attempt, until),
        )  # fmt: skip
        return Brought(sha256, file) if file else Brought(problem="it changed while it was read")

    try:
        return _tried(medium.uri, upload)
    except RequestRefused as e:
        # Any other refusal, such as of the region, would be the same for every file.
        if e.code not in (400, 413, 415) or e.status != "INVALID_ARGUMENT":
            raise
        return Brought(sha256, problem=f"the service refused it: {e}")


def find_or_upload(
    client: Client, path: StoragePath, *, sha256: str, size: int, mime_type: str, label: str,
    file_id: Callable[[int], str], look: Callable[[str], RemoteFile | None], lives: Callable[[float | None], bool],
) -> RemoteFile | None:  # fmt: skip
    """
    Find a content at the service, or put it there. None: it changed while it was uploaded.

    :param file_id: the id of each generation: there is another when the one before will not live long enough.
    :param lives: whether an upload that expires then (Unix time) may be used.
    """
    generation = 0
    while True:
        name = file_id(generation)
        if (there := look(f"files/{name}")) is not None:
            file = replace(there, found=True)
        else:
            check_room(client, size)
            file = client.upload(path, file_id=name, display_name=label, mime_type=mime_type)
        same = file.sha256 in (None, sha256)
        if not file.found and not same:
            client.delete_file(file.name)
            return None
        if not file.found or (same and lives(file.expires_at)):
            return file
        generation += 1


def _look(attempt: Attempt, name: str) -> RemoteFile | None:
    for tried in range(1, TRIES + 1):
        try:
            return attempt.client.file(name)
        except (ServiceUnreachable, QuotaExceeded):
            if tried == TRIES:
                raise
            attempt.services.sleep(2.0**tried)
    raise AssertionError("unreachable")


def _wait(attempt: Attempt, brought: Brought, until: float) -> Brought:
    """Wait until an upload can be used, or certainly cannot."""
    file = brought.file
    while file is not None and file.state not in ("ACTIVE", "FAILED"):
        if attempt.now() >= until:
            problem = f"the service was still processing it after {PROCESSING_TAKES / 60:.0f} minutes"
            return replace(brought, problem=problem)
        attempt.services.sleep(LOOK_EVERY)
        if (file := _look(attempt, file.name)) is None:
            return replace(brought, problem="it vanished at the service while it was processed")
    if file is not None and file.state == "FAILED":
        return replace(
            brought, file=file, problem=f"the service could not process it: {file.error or 'no reason given'}"
        )
    return replace(brought, file=file)


def lives_on(attempt: Attempt, until: float | None) -> bool:
    return until is None or until - attempt.now() >= min(attempt.run.policy.timeout, LIFE)


def in_parallel(attempt: Attempt, doing: str, step: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Do a step for each item; the first error ends it, what has not begun is left undone."""
    if not (items := tuple(items)):
        return []
    _ = attempt.client.sdk  # made here, or every thread would make one
    results, told = [], attempt.now()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for result in pool.map(step, items):
            results.append(result)
            if attempt.now() - told >= TELL_EVERY:
                told = attempt.now()
                log.info("%s media: %s of %s", doing, len(results), len(items))
    return results
