"""
One slot becomes one paid job, whatever dies when. Knows the order of steps; the ledger holds their traces.

upload → claim → create → record. A claim without a job means that a job may exist: it is looked for by its display name
in the whole list, and only when it is not there, and its create can no longer be under way, is another one sent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime

from airflow_gemini_batch.core import storage
from airflow_gemini_batch.core.attempt import Attempt, log
from airflow_gemini_batch.core.client import RemoteFile
from airflow_gemini_batch.core.jobs import Job, Phase
from airflow_gemini_batch.core.ledger import Claim, Entry, Submitted
from airflow_gemini_batch.core.names import file_id
from airflow_gemini_batch.core.plan import Shard
from airflow_gemini_batch.exceptions import (
    CreateInDoubt,
    CredentialsRefused,
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

KEEP_FRESH = 3600.0
"""Seconds an upload must still live to be used: the service reads it when the job is created."""


def submit(attempt: Attempt, shard: Shard, entry: Entry) -> Submitted:
    """
    Make sure that a slot has its one job, and return it.

    :raises CreateInDoubt: a job may exist and could not be found; nothing more was sent.
    :raises ServiceError: the upload, the list or the create failed; a definite refusal was noted.
    """
    display_name = str(attempt.plan.display_name(shard))
    for _ in range(MOST_CLAIMS):
        if entry.doubtful and (found := resolve(attempt, shard, entry.doubtful)) is not None:
            return found
        if entry.submitted:
            return entry.submitted
        file = _upload(attempt, shard, entry)
        attempt.check_current()
        seconds = min(attempt.client.account.timeout, CREATE_SECONDS + shard.size / CREATE_BYTES_PER_SECOND)
        claim = attempt.ledger.claim(shard.slot, len(entry.claims) + 1, display_name, seconds=seconds)
        if claim is not None and (sent := _create(attempt, shard, claim, file)) is not None:
            return sent
        entry = attempt.ledger.read(shard.slot)
    raise CreateInDoubt(
        f"{shard.slot}: {MOST_CLAIMS} creates in a row left no job behind. The next attempt looks again before it sends."
    )


def _upload(attempt: Attempt, shard: Shard, entry: Entry) -> RemoteFile:
    if entry.upload is not None and _fresh(attempt, entry.upload):
        return entry.upload
    path = shard.requests_in(attempt.work)
    _check_undamaged(attempt, shard)
    file = attempt.client.upload(
        path,
        file_id=file_id(attempt.plan.run_hash, shard.slot, shard.sha256),
        display_name=f"{attempt.plan.display_name(shard)}",
    )
    if not _fresh(attempt, file) or file.size not in (0, shard.size):
        # What lay under the name was about to expire, or is not what we would send.
        with suppress(ServiceError):
            attempt.client.delete_file(file.name)
        file = attempt.client.upload(
            path,
            file_id=file_id(attempt.plan.run_hash, shard.slot, f"{shard.sha256} {attempt.now():.0f}"),
            display_name=f"{attempt.plan.display_name(shard)}",
        )
    log.info("Uploaded %s: %s requests, %s bytes, as %s", shard.slot, shard.requests, shard.size, file.name)
    attempt.ledger.uploaded(shard.slot, file)
    return file


def _fresh(attempt: Attempt, file: RemoteFile) -> bool:
    return file.expires_at is None or file.expires_at - attempt.now() > KEEP_FRESH


def _check_undamaged(attempt: Attempt, shard: Shard) -> None:
    hashed = hashlib.sha256()
    with shard.requests_in(attempt.work).open("rb") as f:
        while piece := f.read(storage.COPY_BYTES):
            hashed.update(piece)
    if hashed.hexdigest() != shard.sha256:
        raise ShardDamaged(
            f"{shard.requests_in(attempt.work)} is not what the plan was committed with; nothing was sent. Restore it, or "
            'clear the task with reuse="never" to plan anew.'
        )


def _create(attempt: Attempt, shard: Shard, claim: Claim, file: RemoteFile) -> Submitted | None:
    """Send the one create of a claim. None: the slot must be looked at again (another claim, or another upload)."""
    model = attempt.plan.spec["model"]
    if attempt.now() - claim.at > MARGIN / 2:
        # This process was held up. By the time a create is answered, others may have ruled the claim dead.
        attempt.ledger.refused(shard.slot, claim, "not sent: too much time had passed since the claim")
        return None
    try:
        name = attempt.client.create(
            model=model, file=file.name, display_name=claim.display_name, seconds=claim.seconds
        )
    except (RequestRefused, CredentialsRefused, QuotaExceeded, ServiceUnreachable) as e:
        attempt.ledger.refused(shard.slot, claim, str(e))
        if isinstance(e, RequestRefused) and _file_is_lost(attempt, e, file):
            log.warning("The upload %s is gone (%s), it is sent again", file.name, e)
            attempt.ledger.uploaded(shard.slot, RemoteFile(file.name, 0, expires_at=0.0))
            return None
        raise
    except CreateInDoubt as e:
        log.warning("%s Looking for it.", e)
        return resolve(attempt, shard, claim)
    # Recorded before anything else: from here on every attempt knows the job.
    submitted = Submitted(name, model, file.name, attempt.now())
    attempt.ledger.submitted(shard.slot, submitted)
    log.info("Created %s for %s: %s requests", name, shard.slot, shard.requests)
    return submitted


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
    kept = settle_twins(attempt, jobs)
    log.info("Found %s for %s; it is used, nothing is sent", kept.name, shard.slot)
    return _record(attempt, shard, kept)


def _record(attempt: Attempt, shard: Shard, kept: Job) -> Submitted:
    created = kept.created_at.timestamp() if kept.created_at else attempt.now()
    submitted = Submitted(kept.name, attempt.plan.spec["model"], kept.input_file or "", created, adopted=True)
    attempt.ledger.submitted(shard.slot, submitted)
    return submitted


def settle_twins(attempt: Attempt, jobs: list[Job], keep: str | None = None) -> Job:
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
            log.warning("%s is a twin of %s; cancelled: %s", twin.name, kept.name, attempt.client.cancel(twin.name))
        elif twin.phase is Phase.SUCCEEDED:
            log.warning("%s is a twin of %s and has ended; it was paid for in vain", twin.name, kept.name)
    return kept


def look_for_twins(attempt: Attempt, shards: Iterable[Shard]) -> None:
    """
    Make sure that no job of these slots exists twice (by a proxy that repeats requests, by an orphaned attempt).

    A list that cannot be read is no reason to fail: the jobs are recorded.
    """
    try:
        listed = attempt.client.list_jobs()
    except ServiceError as e:
        log.warning("Could not look for twins of this run's jobs: %s", e)
        return
    for shard in shards:
        twins = [job for job in listed if job.display_name == str(attempt.plan.display_name(shard))]
        if len(twins) > 1:
            entry = attempt.ledger.read(shard.slot)
            landed = entry.submitted.job if entry.submitted and entry.landed else None
            kept = settle_twins(attempt, twins, keep=landed)
            if entry.submitted and entry.submitted.job != kept.name:
                _record(attempt, shard, kept)
