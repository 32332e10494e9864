"""
The steps of a run one by one, for those who want them apart: prepare, upload, create. Landing is ``adopting``.

Each is made of the flow's own parts, so that a step is as safe to repeat as the whole: what was sent is a plan, and which
job it became is in a ledger.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from airflow_gemini_batch.core import storage
from airflow_gemini_batch.core.attempt import Attempt, Run, Services, utc
from airflow_gemini_batch.core.client import JSONL, Client
from airflow_gemini_batch.core.ends import check_succeeded, look_at
from airflow_gemini_batch.core.flow import Waiting
from airflow_gemini_batch.core.media_types import media_type
from airflow_gemini_batch.core.media_uploads import LOOK_EVERY, PROCESSING_TAKES, find_or_upload
from airflow_gemini_batch.core.names import Slot, media_display_name, media_id
from airflow_gemini_batch.core.patience import Patience
from airflow_gemini_batch.core.plan import Plan, Round, Shard
from airflow_gemini_batch.core.planning import discard, find_or_make_plan, make_plan, name_of_work, retire_older_plans
from airflow_gemini_batch.core.remote_files import RemoteFile
from airflow_gemini_batch.core.storage import StoragePath
from airflow_gemini_batch.core.submitting import look_for_twins, submit
from airflow_gemini_batch.core.waiting import Outcome
from airflow_gemini_batch.exceptions import (
    InvalidConfig,
    JobStillRunning,
    NoRows,
    QuotaExceeded,
    ServiceUnreachable,
    SourceUnreadable,
)

log = logging.getLogger("airflow_gemini_batch")

ANY_RUN = "0" * 16
"""In place of a run's hash: an upload by content alone belongs to whoever has that content."""

REQUEST_SUFFIXES = (".jsonl", ".ndjson")


# Prepare ----------------------------------------------------------------------------------------------------


def prepare(run: Run, services: Services) -> dict[str, Any]:
    """
    Write a source's requests and rows files; returns where they are.

    :raises InvalidInput: the source or the settings cannot be used.
    """
    plan = find_or_make_plan(replace(run, planner=_plan_of_files), services, starting=True)
    attempt = Attempt(run, plan, services)
    retire_older_plans(attempt)
    first = Round.load(attempt.work, 0)
    shards = first.shards if first else ()
    sent = [shard for shard in shards if shard.requests]
    return {
        "requests": [str(shard.requests_in(attempt.work)) for shard in sent],
        "rows": [str(shard.rows_in(attempt.work)) for shard in sent],
        "model": plan.spec["model"],
        "count": sum(shard.requests for shard in shards),
        "unsent": sum(shard.rows - shard.requests for shard in shards),
        "bytes": sum(shard.size for shard in shards),
    }


def _plan_of_files(run: Run, services: Services, number: int) -> Plan:
    plan = make_plan(run, services, number)
    work = run.output.work(plan.work)
    first = Round.load(work, 0)
    if first is not None and any(shard.media for shard in first.shards):
        discard(work)
        raise InvalidConfig(
            "Some media are not at the service. Upload them first and name the uri that the upload step returns, or use "
            "GeminiBatchOperator, which does both."
        )
    return plan


# Upload -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Upload:
    """
    What to upload, and as what.

    :param mime_type: guessed from the name if it is not given.
    :param fresh_for: seconds that an earlier upload of the same content must still live to be used again.
    """

    path: StoragePath
    mime_type: str | None = None
    display_name: str | None = None
    fresh_for: float = 12 * 3600.0

    @property
    def type(self) -> str:
        """:raises InvalidConfig: the name does not tell."""
        if self.mime_type:
            return self.mime_type
        if self.path.name.lower().endswith(REQUEST_SUFFIXES):
            return JSONL
        if guessed := media_type(self.path.name):
            return guessed
        raise InvalidConfig(f"{self.path}: the name does not tell what it is; give mime_type.")


def upload(wanted: Upload, services: Services) -> RemoteFile:
    """
    Make sure that a file's content is at the service, ready for use. Its id is made of its content, so a retry, or
    another task, finds what is there.

    :raises SourceUnreadable: the file is not there, or empty.
    :raises ServiceError: it could not be uploaded, or the service cannot process it.
    """
    sha256, size = _digest(wanted.path)
    if size == 0:
        raise SourceUnreadable(f"{wanted.path} is empty.")
    client = services.client
    file = find_or_upload(
        client, wanted.path, sha256=sha256, size=size, mime_type=wanted.type,
        label=wanted.display_name or media_display_name(ANY_RUN, wanted.path.name),
        file_id=lambda generation: media_id(ANY_RUN, sha256, wanted.type, generation),
        look=lambda name: _usable(client.file(name)),
        lives=lambda until: until is None or until - services.clock() >= wanted.fresh_for,
    )  # fmt: skip
    if file is None:
        raise ServiceUnreachable(f"{wanted.path} changed while it was uploaded.")
    log.info("%s %s as %s (%s bytes)", "Found" if file.found else "Uploaded", wanted.path, file.name, size)
    return replace(_processed(services, file), size=size, sha256=sha256, found=file.found)


def _usable(file: RemoteFile | None) -> RemoteFile | None:
    """One that could not be processed is passed over, as one that expires: the next generation is uploaded."""
    return replace(file, expires_at=0.0) if file is not None and file.state == "FAILED" else file


def _digest(path: StoragePath) -> tuple[str, int]:
    hashed, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as f:
            while piece := f.read(storage.COPY_BYTES):
                hashed.update(piece)
                size += len(piece)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as e:
        raise SourceUnreadable(f"{path} cannot be read: {type(e).__name__}: {e}") from e
    return hashed.hexdigest(), size


def _processed(services: Services, file: RemoteFile) -> RemoteFile:
    """Films and the like are processed for a while before they can be used."""
    until = services.clock() + PROCESSING_TAKES
    while file.state not in ("ACTIVE", "FAILED"):
        if services.clock() >= until:
            raise ServiceUnreachable(f"{file.name} was still processed after {PROCESSING_TAKES / 60:.0f} minutes.")
        services.sleep(LOOK_EVERY)
        looked = services.client.file(file.name)
        if looked is None:
            raise ServiceUnreachable(f"{file.name} vanished while it was processed.")
        file = looked
    if file.state == "FAILED":
        raise SourceUnreadable(f"The service could not process {file.name}: {file.error or 'no reason given'}")
    return file


# Create -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Created:
    """
    The one job of a create step.

    :param rows: URI of the rows file (keys of its requests), None for requests that somebody else uploaded.
    """

    job: str
    created_at: float
    rows: str | None


def create(run: Run, services: Services, *, starting: bool) -> Waiting | Created:
    """
    Make sure that the run's one job exists. Safe to repeat: the ledger, and after a lost reply the list of jobs, tell what
    there is already.

    :return: the job, or the time to come back after a quota refused it.
    :raises NoRows: there is nothing to send.
    :raises CreateInDoubt: a job may exist and could not be found; nothing more was sent.
    :raises GeminiBatchError: the requests cannot be used, or the service refused them.
    """
    patience = Patience(run, services, starting=starting)
    planner = _plan_of_upload if "file" in run.spec.job else _plan_of_one_job
    try:
        plan = find_or_make_plan(replace(run, planner=planner), services, starting=starting)
        attempt = Attempt(run, plan, services)
        retire_older_plans(attempt)
        first = Round.load(attempt.work, 0)
        assert first is not None, f"{attempt.work.path} has a plan and no round"
        for shard in first.shards:
            entry = attempt.ledger.read(shard.slot)
            submitted = entry.submitted
            if submitted is None and not patience.holds("sending"):
                submitted = submit(attempt, shard, entry)
                look_for_twins(attempt, [shard])
                submitted = attempt.ledger.read(shard.slot).submitted or submitted
            if submitted is not None:
                patience.forget()
                rows = None if "file" in plan.job else str(shard.rows_in(attempt.work))
                return Created(submitted.job, submitted.created_at, rows)
    except QuotaExceeded as e:
        patience.refused(e)
    if patience.tried:
        return Waiting((), patience.settle())
    raise NoRows(f"There is no request to send for {run.id}.")


def await_created(created: Created, run: Run, services: Services, outcomes: Iterable[Outcome]) -> Waiting | None:
    """
    See whether the job has ended; None when it has, and well.

    :raises JobNotSucceeded: it ended otherwise.
    :raises JobStillRunning: it takes too long; as ``on_timeout`` says it was cancelled, or left.
    """
    deadline = created.created_at + run.policy.timeout
    try:
        ended, waits = look_at(services, [created.job], until=lambda _: deadline, outcomes=outcomes)
    except JobStillRunning as e:
        if run.policy.on_timeout == "leave":
            raise
        raise JobStillRunning(
            f"{created.job} did not end within {run.policy.timeout / 3600:g} h: {services.client.cancel(created.job)}",
            jobs=e.jobs,
            counts=e.counts,
        ) from e
    if waits:
        return Waiting(waits)
    check_succeeded(ended)
    return None


def _plan_of_one_job(run: Run, services: Services, number: int) -> Plan:
    plan = make_plan(run, services, number)
    work = run.output.work(plan.work)
    first = Round.load(work, 0)
    if first is not None and len(first.shards) > 1:
        discard(work)
        raise InvalidConfig(
            f"The requests need {len(first.shards)} jobs, and this step creates one. Prepare them as several files and map "
            "over those, or use GeminiBatchOperator."
        )
    return plan


def _plan_of_upload(run: Run, services: Services, number: int) -> Plan:
    name = run.spec.job["file"]
    file = services.client.file(name)
    if file is None:
        raise InvalidConfig(
            f"{name} is not at the service (any more): files are kept for 48 hours, for their own project."
        )
    shard = Shard(Slot(0, 0), 0, 0, file.size, file.sha256 or hashlib.sha256(name.encode()).hexdigest())
    plan = Plan(number, name_of_work(services), run.id, run.spec.to_dict(), 0, {}, utc(services.clock()), run.clears)
    Round(0, 0, (shard,)).commit(run.output.work(plan.work))
    return plan


# Clean up ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Leftovers:
    """
    What a clean-up removes, or would remove.

    :param size: bytes of the files.
    :param kept: files that are old enough, but whose run has a job that has not ended.
    """

    files: tuple[str, ...]
    jobs: tuple[str, ...]
    size: int
    kept: int


OURS = "agb1"
"""How the names begin that this package gives: ``agb1-`` of files, ``agb1.`` of display names."""


NO_RUN = f"{OURS}.{ANY_RUN}"
"""Of the upload step: its files, and those that it gave another display name, belong to no run."""


def find_leftovers(client: Client, *, before: float, files: bool = True, jobs: bool = True) -> Leftovers:
    """
    Find what this package left at the service: uploads, and jobs that have ended.

    :param before: Unix time; what was created (a job: ended) later is left alone.
    :raises ServiceError: a list could not be read to its end; nothing is concluded from a part of it.
    """
    listed = client.list_jobs()
    running = [job for job in listed if not job.phase.ended]
    # What the upload step brought may be named by any job, also by one that is not ours.
    at_work = {_run_of(job.display_name) for job in running} | ({NO_RUN} if running else set())
    ended = [
        job.name
        for job in listed
        if jobs
        and is_ours(job.display_name)
        and job.phase.ended
        and (at := job.ended_at or job.created_at)
        and at.timestamp() < before
    ]
    old = [
        file
        for file in (client.list_files() if files else ())
        if is_our_file(file.name) and file.created_at and file.created_at.timestamp() < before
    ]
    free = [file for file in old if _run_of(file.display_name) not in at_work]
    return Leftovers(
        tuple(file.name for file in free), tuple(ended), sum(file.size for file in free), len(old) - len(free)
    )


def is_ours(display_name: str) -> bool:
    return display_name.startswith(f"{OURS}.")


def is_our_file(name: str) -> bool:
    return name.startswith(f"files/{OURS}-")


def _run_of(display_name: str) -> str:
    """What tells a run's names from others'; see ``names.DisplayName`` and ``names.media_display_name``."""
    return ".".join(display_name.split(".", 2)[:2]) if is_ours(display_name) else NO_RUN
