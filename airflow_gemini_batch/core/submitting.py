"""
One slot becomes one paid job, whatever dies when. Knows the order of steps; the ledger holds their traces.

(media →) upload → claim → create → record. A claim without a job means that a job may exist: it is looked for by its
display name in the whole list, and only when it is not there, and its create can no longer be under way, is another sent.

Requests are never sent inline, however few, unless a create step is given a list. A file's lines have keys of their own
(inline answers were seen shuffled and without their metadata; those of embeddings have none), its results can be streamed
and fetched again (inline ones come within each look at the job, twice), and its create is a few hundred bytes that are soon
answered. Inline would save one upload a job.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from airflow_gemini_batch.core import exact, storage
from airflow_gemini_batch.core.attempt import Attempt, log, utc
from airflow_gemini_batch.core.client import Client
from airflow_gemini_batch.core.jobs import Job, Phase
from airflow_gemini_batch.core.ledger import Claim, Entry, Submitted
from airflow_gemini_batch.core.media import let_go, prepare
from airflow_gemini_batch.core.names import file_id
from airflow_gemini_batch.core.plan import Shard
from airflow_gemini_batch.core.remote_files import RemoteFile
from airflow_gemini_batch.core.storage import StoragePath
from airflow_gemini_batch.core.storage_quota import check_room
from airflow_gemini_batch.core.wording import counted
from airflow_gemini_batch.exceptions import (
    CreateInDoubt,
    CredentialsRefused,
    InvalidConfig,
    QuotaExceeded,
    RequestRefused,
    ServiceError,
    ServiceUnreachable,
    ShardDamaged,
)

CREATE_SECONDS = 20.0
CREATE_BYTES_PER_SECOND = 20_000_000
"""A create gets this long, and more for a large file, which the service checks line by line before it answers."""

MARGIN = 15.0
"""Seconds after a create's own time limit in which its job may still appear in the list."""

LOOK_EVERY = 5.0
"""Seconds between two looks for a job in doubt."""

MOST_CLAIMS = 3
"""Creates sent for one slot by one attempt, if each one's job certainly does not exist."""

SHORTENED = 300.0
"""Seconds by which media must shorten a job's time to be worth a line in the log."""

MOST_NAMED = 5
"""Requests that are named when the service refuses their lines."""

KEEP_FRESH = 3600.0
"""Seconds an upload must still live to be used: the service reads it when the job is created."""


@dataclass(frozen=True)
class Sending:
    """What is uploaded for a slot: its shard as planned, or as prepared with its media."""

    path: StoragePath
    requests: int
    size: int
    sha256: str


def submit(attempt: Attempt, shard: Shard, entry: Entry) -> Submitted | None:
    """
    Make sure that a slot has its one job, and return it. None: no row of it can be sent.

    :raises MediaUnreadable: storage failed while its media were read; nothing was sent.
    :raises CreateInDoubt: a job may exist and could not be found; nothing more was sent.
    :raises ServiceError: the upload, the list or the create failed; a definite refusal was noted.
    """
    display_name = str(attempt.plan.display_name(shard))
    sending = None
    for _ in range(MOST_CLAIMS):
        if entry.doubtful and (found := resolve(attempt, shard, entry.doubtful)) is not None:
            return found
        if entry.submitted:
            return entry.submitted
        _check_caches(attempt)
        sending = sending or _sending(attempt, shard)
        if not sending.requests:
            # Media take their time; another attempt may have found them meanwhile, and sent the slot.
            entry = attempt.ledger.read(shard.slot)
            if entry.submitted or entry.doubtful:
                continue
            return None
        file = _upload(attempt, shard, entry, sending)
        attempt.check_current()
        seconds = create_seconds(attempt.client, shard.size)
        claim = attempt.ledger.claim(shard.slot, len(entry.claims) + 1, display_name, seconds=seconds)
        if claim is not None and (sent := _create(attempt, shard, claim, file, sending)) is not None:
            return sent
        entry = attempt.ledger.read(shard.slot)
    raise CreateInDoubt(
        f"{shard.slot}: {MOST_CLAIMS} creates in a row left no job behind. The next attempt looks again before it sends."
    )


def create_seconds(client: Client, size: int) -> float:
    """Seconds that one create may take, for a file of this many bytes."""
    return min(client.account.timeout, CREATE_SECONDS + size / CREATE_BYTES_PER_SECOND)


def _check_caches(attempt: Attempt) -> None:
    """:raises InvalidConfig: a cached content that requests name will not be there for as long as a job may take."""
    shared = attempt.plan.spec.get("template", {}).get("cachedContent")
    until = attempt.now() + attempt.run.policy.timeout
    for name in dict.fromkeys((*([shared] if shared else []), *attempt.plan.caches)):
        expires = attempt.cache_expiry(name)
        if expires is None or expires < until:
            what = "is not at the service (any more)" if expires is None else f"expires at {utc(expires)}"
            raise InvalidConfig(
                f"cachedContent: {name} {what}, but a job may take until {utc(until)}. Create it with a longer ttl, or "
                "lower timeout. Nothing more was sent."
            )


def _sending(attempt: Attempt, shard: Shard) -> Sending:
    path = shard.requests_in(attempt.work)
    if "file" in attempt.plan.job:
        return Sending(path, 1, shard.size, shard.sha256)  # how many requests are in it, nobody has told
    if not shard.media:
        return Sending(path, shard.requests, shard.size, shard.sha256)
    _check_undamaged(path, shard.sha256)
    prepared = prepare(attempt, shard)
    path = attempt.work.prepared(shard.slot, prepared.name, "sent")
    return Sending(path, prepared.requests, prepared.size, prepared.sha256)


def _upload(attempt: Attempt, shard: Shard, entry: Entry, sending: Sending) -> RemoteFile:
    if (uploaded := attempt.plan.job.get("file")) is not None:
        return RemoteFile(uploaded, sending.size)
    if attempt.plan.job.get("inline"):
        _check_undamaged(sending.path, sending.sha256)
        return RemoteFile("", sending.size)
    # An upload from before the media were brought anew names some that are gone.
    if entry.upload and _fresh(attempt, entry.upload) and entry.upload.sha256 in (None, sending.sha256):
        return entry.upload
    path = sending.path
    _check_undamaged(path, sending.sha256)
    check_room(attempt.client, sending.size)
    file = attempt.client.upload(
        path,
        file_id=file_id(attempt.plan.run_hash, shard.slot, sending.sha256),
        display_name=f"{attempt.plan.display_name(shard)}",
    )
    if not _fresh(attempt, file) or file.size not in (0, sending.size):
        # What lay under the name was about to expire, or is not what we would send.
        with suppress(ServiceError):
            attempt.client.delete_file(file.name)
        file = attempt.client.upload(
            path,
            file_id=file_id(attempt.plan.run_hash, shard.slot, f"{sending.sha256} {attempt.now():.0f}"),
            display_name=f"{attempt.plan.display_name(shard)}",
        )
    log.info(
        "Uploaded %s: %s, %s bytes, as %s", shard.slot, counted(sending.requests, "request"), sending.size, file.name
    )
    file = replace(file, sha256=sending.sha256)
    attempt.ledger.uploaded(shard.slot, file)
    return file


def _fresh(attempt: Attempt, file: RemoteFile) -> bool:
    return file.expires_at is None or file.expires_at - attempt.now() > KEEP_FRESH


def _check_undamaged(path: StoragePath, sha256: str) -> None:
    hashed = hashlib.sha256()
    with path.open("rb") as f:
        while piece := f.read(storage.COPY_BYTES):
            hashed.update(piece)
    if hashed.hexdigest() != sha256:
        raise ShardDamaged(
            f"{path} is not what the plan was committed with; nothing was sent. Restore it, or "
            'clear the task with reuse="never" to plan anew.'
        )


def _create(attempt: Attempt, shard: Shard, claim: Claim, file: RemoteFile, sending: Sending) -> Submitted | None:
    """Send the one create of a claim. None: the slot must be looked at again (another claim, or another upload)."""
    model = attempt.model_of(shard)
    if attempt.now() - claim.at > MARGIN / 2:
        # This process was held up. By the time a create is answered, others may have ruled the claim dead.
        attempt.ledger.refused(shard.slot, claim, "not sent: too much time had passed since the claim")
        return None
    try:
        name = attempt.client.create(
            model=model,
            file=file.name,
            display_name=claim.display_name,
            seconds=claim.seconds,
            embeddings=bool(attempt.plan.spec.get("embeddings")),
            inline=_inline(attempt, shard) if attempt.plan.job.get("inline") else None,
            fields=attempt.plan.job.get("fields"),
        )
    except (RequestRefused, CredentialsRefused, QuotaExceeded, ServiceUnreachable) as e:
        attempt.ledger.refused(shard.slot, claim, str(e))
        ours = not attempt.plan.job.keys() & {"file", "inline"}
        if ours and isinstance(e, RequestRefused) and _file_is_lost(attempt, e, file):
            log.warning("The upload %s is gone (%s), it is sent again", file.name, e)
            attempt.ledger.uploaded(shard.slot, RemoteFile(file.name, 0, expires_at=0.0))
            return None
        if not e.retryable and attempt.run.policy.delete_remote != "never":
            # The task fails for good. Should somebody clear it, the upload is made anew.
            attempt.ledger.uploaded(shard.slot, RemoteFile(file.name, 0, expires_at=0.0))
            with suppress(ServiceError):
                attempt.client.delete_file(file.name)
            let_go(attempt)
        if ours and isinstance(e, RequestRefused) and (told := _refused_keys(str(e), sending.path)):
            raise RequestRefused(f"{e} {told}", code=e.code, status=e.status) from None
        raise
    except CreateInDoubt as e:
        log.warning("%s Looking for it.", e)
        return resolve(attempt, shard, claim)
    # Recorded before anything else: from here on every attempt knows the job.
    now = attempt.now()
    submitted = Submitted(name, model, file.name, now, media_until=_media_until(attempt, shard, now))
    attempt.ledger.submitted(shard.slot, submitted)
    log.info(
        "Created %s for %s: %s", name, shard.slot, attempt.plan.job.get("file") or counted(shard.requests, "request")
    )
    return submitted


def _refused_keys(refusal: str, path: StoragePath) -> str:
    """The service names lines of an upload that nobody but us has seen; their requests have keys."""
    numbers = sorted({int(number) for number in re.findall(r"Error on line (\d+)", refusal)})[:MOST_NAMED]
    if not numbers:
        return ""
    with path.open("rb") as f:
        named = [f"line {n} has the key {exact.loads(line)['key']!r}" for n, line in enumerate(f, 1) if n in numbers]
    return f"In the upload, {', '.join(named)}."


def _inline(attempt: Attempt, shard: Shard) -> list[dict[str, Any]]:
    with shard.requests_in(attempt.work).open("rb") as lines:
        requests = map(exact.loads, lines)
        return [{"request": one["request"], "metadata": {"key": one["key"]}} for one in requests]


def _file_is_lost(attempt: Attempt, refusal: RequestRefused, file: RemoteFile) -> bool:
    return refusal.code in (400, 403, 404) and attempt.client.file(file.name) is None


def resolve(attempt: Attempt, shard: Shard, claim: Claim) -> Submitted | None:
    """
    Find out what became of a claim: its job, or None when there is none and none can appear any more.

    :raises ServiceError: the list could not be read; nothing is concluded from that.
    """
    # Twice: the HTTP library allows this long for connecting, and again for the answer.
    until = claim.at + 2 * claim.seconds + MARGIN
    told = False
    while True:
        if (entry := attempt.ledger.read(shard.slot)).submitted:
            return entry.submitted
        try:
            jobs = [job for job in attempt.client.list_jobs() if job.display_name == claim.display_name]
        except QuotaExceeded:
            raise  # it has its own pause, and the claim stays open meanwhile
        except ServiceUnreachable as e:
            if attempt.now() >= until + MARGIN:
                raise
            log.warning("%s: the list of jobs cannot be read (%s); trying again, nothing is sent before", shard.slot, e)
            attempt.services.sleep(LOOK_EVERY)
            continue
        if jobs:
            return _adopt(attempt, shard, jobs)
        left = until - attempt.now()
        if left <= 0:
            log.info("%s: the claim of %s left no job behind", shard.slot, claim.by)
            attempt.ledger.refused(shard.slot, claim, "no job was created")
            return None
        if not told:
            log.info("%s: the create of %s may be under way for another %.0f s; waiting", shard.slot, claim.by, left)
            told = True
        attempt.services.sleep(min(LOOK_EVERY, left))


def _adopt(attempt: Attempt, shard: Shard, jobs: list[Job]) -> Submitted:
    kept = settle_twins(attempt.client, jobs)
    log.info("Found %s for %s; it is used, nothing is sent", kept.name, shard.slot)
    return _record(attempt, shard, kept)


def _record(attempt: Attempt, shard: Shard, kept: Job) -> Submitted:
    created = kept.created_at.timestamp() if kept.created_at else attempt.now()
    until = _media_until(attempt, shard, created)
    model, file = attempt.model_of(shard), kept.input_file or ""
    submitted = Submitted(kept.name, model, file, created, adopted=True, media_until=until)
    attempt.ledger.submitted(shard.slot, submitted)
    return submitted


def _media_until(attempt: Attempt, shard: Shard, created: float) -> float | None:
    prepared = attempt.ledger.preparation(shard.slot) if shard.media else None
    until = prepared.media_until if prepared else None
    if until is not None and created + attempt.run.policy.timeout - until > SHORTENED:
        log.info(
            "%s gets %.1f h instead of %.1f h: then the service removes the first of its media",
            shard.slot, (until - created) / 3600, attempt.run.policy.timeout / 3600,
        )  # fmt: skip
    return until


def settle_twins(client: Client, jobs: list[Job], keep: str | None = None) -> Job:
    """
    Keep one of the jobs under the same display name and cancel the others.

    :param keep: one that is landed already. By default the oldest that can still bring results: every attempt that looks
        chooses the same one.
    """
    useless = (Phase.FAILED, Phase.CANCELLED, Phase.EXPIRED)
    latest = datetime.max.replace(tzinfo=UTC)
    kept, *twins = sorted(
        jobs, key=lambda job: (job.name != keep, job.phase in useless, job.created_at or latest, job.name)
    )
    for twin in twins:
        if not twin.phase.ended:
            log.warning("%s is a twin of %s; cancelled: %s", twin.name, kept.name, client.cancel(twin.name))
        elif twin.phase is Phase.SUCCEEDED:
            log.warning("%s is a twin of %s and has ended; it was paid for in vain", twin.name, kept.name)
    return kept


def look_for_twins(attempt: Attempt, shards: Iterable[Shard], listed: Sequence[Job] | None = None) -> None:
    """
    Make sure that no job of these slots exists twice (by a proxy that repeats requests, by an orphaned attempt).

    A list that cannot be read is no reason to fail: the jobs are recorded.

    :param listed: the list of jobs, if it was read since the last create.
    """
    try:
        listed = attempt.client.list_jobs() if listed is None else listed
    except ServiceError as e:
        log.warning("Could not look for twins of this run's jobs: %s", e)
        return
    for shard in shards:
        twins = [job for job in listed if job.display_name == str(attempt.plan.display_name(shard))]
        if len(twins) > 1:
            entry = attempt.ledger.read(shard.slot)
            landed = entry.submitted.job if entry.submitted and entry.landed else None
            kept = settle_twins(attempt.client, twins, keep=landed)
            if entry.submitted and entry.submitted.job != kept.name:
                _record(attempt, shard, kept)
