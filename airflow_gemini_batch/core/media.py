"""
Media become files at the service, and requests name them there. A step of its own before a slot is uploaded.

It waits until then because the service keeps files for 48 hours only. The shard stays the snapshot that the plan was
committed with; what is sent instead is written beside it. ``media_uploads`` brings the files there.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import orjson

from airflow_gemini_batch.core import exact, storage
from airflow_gemini_batch.core.attempt import Attempt, log
from airflow_gemini_batch.core.ledger import Prepared
from airflow_gemini_batch.core.media_uploads import Brought, Medium, bring_all, in_parallel, lives_on
from airflow_gemini_batch.core.names import wire_key
from airflow_gemini_batch.core.plan import Round, Shard, shards_of
from airflow_gemini_batch.core.shards import read_rows_file
from airflow_gemini_batch.exceptions import ServiceError


def prepare(attempt: Attempt, shard: Shard) -> Prepared:
    """
    Upload a slot's media and write what is sent. Safe to repeat: what is there already, and lives long enough, is used.

    :raises MediaUnreadable: storage failed while one was read.
    :raises SourceUnreadable: there is no way to any of them, e.g. for want of rights.
    :raises ServiceError: an upload failed, for a reason that is not the file's.
    """
    before = attempt.ledger.preparation(shard.slot)
    # What could not be used then may have been put right since.
    if before is not None and not before.unsendable and lives_on(attempt, before.media_until):
        return before
    named = ((row, orjson.loads(line)) for row, line in _lines(attempt, shard) if "media" in row)
    wanted = {medium: None for row, line in named for medium, _ in _media(row, line)}
    prepared = _write(attempt, shard, bring_all(attempt, tuple(wanted)), before)
    attempt.ledger.prepared(shard.slot, prepared)
    return prepared


def unsendable(attempt: Attempt, shard: Shard) -> dict[str, str]:
    """Return the keys of a slot's rows that were not sent for their media's sake, each with the reason."""
    prepared = attempt.ledger.preparation(shard.slot) if shard.media else None
    if prepared is None or not prepared.unsendable:
        return {}
    return {one["key"]: one["reason"] for one in _records(attempt, shard, prepared, "unsendable")}


def remove(attempt: Attempt, shards: Iterable[Shard]) -> None:
    """Delete the run's media at the service, as ``delete_remote`` says. A refusal is told and tolerated."""
    if attempt.run.policy.delete_remote == "never":
        return
    prepared = dict(_prepared(attempt, shards))
    if _delete(attempt, prepared):
        for shard in prepared:
            attempt.ledger.media_removed(shard.slot)


def let_go(attempt: Attempt) -> None:
    """
    Delete the run's media, unless a job may need them: its next job was refused for good, and nobody may come back for them.
    """
    if attempt.run.policy.delete_remote == "never":
        return
    prepared = dict(_prepared(attempt, shards_of(Round.load_all(attempt.work))))
    entries = [attempt.ledger.read(shard.slot) for shard in prepared]
    if any(one.doubtful or (one.submitted and not one.landed) for one in entries):
        return
    for shard, one in prepared.items():
        # Who sends this slot after all brings them anew.
        attempt.ledger.prepared(shard.slot, replace(one, media_until=0.0))
    _delete(attempt, prepared)


def _prepared(attempt: Attempt, shards: Iterable[Shard]) -> Iterator[tuple[Shard, Prepared]]:
    """The slots whose media may be at the service."""
    for shard in shards:
        prepared = attempt.ledger.preparation(shard.slot) if shard.media else None
        if prepared is not None and not attempt.ledger.are_media_removed(shard.slot):
            yield shard, prepared


def _delete(attempt: Attempt, prepared: Mapping[Shard, Prepared]) -> bool:
    """False: one of the files could not be deleted."""
    names = {one["name"] for shard, way in prepared.items() for one in _records(attempt, shard, way, "uploads")}

    def delete(name: str) -> str:
        try:
            attempt.client.delete_file(name)
        except ServiceError as e:
            return f"{name}: {e}"
        return ""

    refused = [said for said in in_parallel(attempt, "Removing", delete, names) if said]
    if refused:
        log.info("%s of %s media could not be deleted at the service: %s", len(refused), len(names), refused[0])
    return not refused


# Reading requests -------------------------------------------------------------------------------------------


def _lines(attempt: Attempt, shard: Shard) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Rows that are sent, each with its request line."""
    with shard.requests_in(attempt.work).open("rb") as lines:
        for row in read_rows_file(shard.rows_in(attempt.work)):
            if "unsent" not in row:
                yield row, lines.readline()


def _media(row: Mapping[str, Any], line: Mapping[str, Any]) -> Iterator[tuple[Medium, dict[str, Any]]]:
    """The row's media, each with the ``fileData`` that names it; not those that the service opens by itself."""
    ours, request = row["media"], line["request"]
    for content in (*request.get("contents", ()), request.get("content", {})):
        for part in content.get("parts", ()):
            data = part.get("fileData")
            if data and data["fileUri"] in ours:
                yield Medium(data["fileUri"], data.get("mimeType")), data


def _records(attempt: Attempt, shard: Shard, prepared: Prepared, file: str) -> Iterator[dict[str, Any]]:
    with attempt.work.prepared(shard.slot, prepared.name, file).open("rb") as lines:
        for line in lines:
            yield orjson.loads(line)


# Writing ----------------------------------------------------------------------------------------------------


def _write(attempt: Attempt, shard: Shard, brought: Mapping[Medium, Brought], before: Prepared | None) -> Prepared:
    """Write what is sent, what is not and why, and what was uploaded, into a directory of their own."""
    name = uuid.uuid4().hex[:8]
    sent = left = size = 0
    hashed = hashlib.sha256()
    paths = (attempt.work.prepared(shard.slot, name, file) for file in ("sent", "unsendable", "uploads"))
    with (
        storage.writing(next(paths)) as sent_file,
        storage.writing(next(paths)) as unsendable_file,
        storage.writing(next(paths)) as uploads_file,
    ):
        for row, line in _lines(attempt, shard):
            if "media" in row:
                line, problem = _addressed(attempt, row, line, brought)
                if problem:
                    record = {"key": wire_key(row), "reason": problem}
                    unsendable_file.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
                    left += 1
                    continue
            sent_file.write(line)
            hashed.update(line)
            sent, size = sent + 1, size + len(line)
        for record in _uploads(attempt, shard, brought, before):
            uploads_file.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
    usable = {one.file.name: one.file for one in brought.values() if one.file and not one.problem}
    ends = [file.expires_at for file in usable.values() if file.expires_at is not None]
    log.info("Prepared %s: %s media in %s files, %s rows left out", shard.slot, len(brought), len(usable), left)
    return Prepared(name, sent, left, size, hashed.hexdigest(), min(ends, default=None))


def _addressed(
    attempt: Attempt, row: Mapping[str, Any], line: bytes, brought: Mapping[Medium, Brought]
) -> tuple[bytes, str]:
    """A request line with the addresses that the service gave, or the reason why there is none."""
    body = exact.loads(line)
    for medium, data in _media(row, body):
        one = brought[medium]
        if one.problem or one.file is None:
            return b"", f"nothing was sent, as {medium.uri} cannot be used: {one.problem}"
        data["fileUri"] = one.file.uri or attempt.client.account.url(one.file.name)
    return exact.dumps(body, option=orjson.OPT_APPEND_NEWLINE), ""


def _uploads(
    attempt: Attempt, shard: Shard, brought: Mapping[Medium, Brought], before: Prepared | None
) -> Iterator[dict[str, Any]]:
    """What was uploaded for which URI, and what earlier preparations of this slot left at the service."""
    names = set()
    for medium, one in brought.items():
        if one.file is not None:
            names.add(one.file.name)
            yield {
                "name": one.file.name, "uri": medium.uri, "file_uri": one.file.uri, "mime_type": medium.mime_type,
                "sha256": one.sha256, "expires_at": one.file.expires_at,
            }  # fmt: skip
    for record in _records(attempt, shard, before, "uploads") if before else ():
        if record["name"] not in names:
            names.add(record["name"])
            yield {"name": record["name"], "replaced": True}
