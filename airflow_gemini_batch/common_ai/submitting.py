"""One batch becomes one paid job, whatever dies when: the service's list of jobs is the only memory there is."""

from __future__ import annotations

import hashlib
import logging
import tempfile
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from airflow_gemini_batch.core import submitting
from airflow_gemini_batch.core.client import Client
from airflow_gemini_batch.core.jobs import Job, Phase
from airflow_gemini_batch.core.names import Slot, common_ai_name, file_id
from airflow_gemini_batch.exceptions import CreateInDoubt, ServiceError, ServiceUnreachable

log = logging.getLogger(__name__)

CLOCKS_APART = timedelta(minutes=5)
"""By how much this machine's clock may be ahead of the service's."""

USELESS = (Phase.FAILED, Phase.CANCELLED, Phase.EXPIRED)


def submit(
    client: Client, lines: Iterable[bytes], *, model: str, identity: str, fingerprint: str,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[str, str]:  # fmt: skip
    """
    Upload the lines and create their job; returns the names of the job and of its input file.

    Another attempt of the same task may be at it, too: a job that it has made meanwhile is used, and of two that were
    created at the same time both attempts keep the same one and cancel the other.

    :raises CreateInDoubt: a job may exist and could not be found.
    :raises ServiceError: nothing was created.
    """
    name, began = common_ai_name(identity, fingerprint), datetime.now(UTC)
    with tempfile.TemporaryDirectory(prefix="gemini-batch-") as directory:
        path = Path(directory) / f"{identity}.jsonl"
        hashed, size = hashlib.sha256(), 0
        with path.open("wb") as f:
            for line in lines:
                hashed.update(line)
                size += f.write(line)
        # A name of its own for each try: what lies under another's may be about to expire.
        unique = f"{hashed.hexdigest()} {time.time_ns()}"
        file = client.upload(path, file_id=file_id(identity, Slot(0, 0), unique), display_name=name)
    log.info("Uploaded %s bytes as %s", size, file.name)
    if there := _under_way(client, name, began):
        kept = submitting.settle_twins(client, there)
        log.warning("Another attempt has created %s meanwhile; it is used, nothing is sent", kept.name)
        return kept.name, kept.input_file or file.name
    seconds = submitting.create_seconds(client, size)
    for _ in range(submitting.MOST_CLAIMS):
        sent = time.time()
        try:
            created = client.create(model=model, file=file.name, display_name=name, seconds=seconds)
        except CreateInDoubt as e:
            log.warning("%s Looking for it.", e)
            found = _looked_for(client, name, began, sent + 2 * seconds + submitting.MARGIN, sleep)
        else:
            found = _without_twins(client, name, began, created)
        if found is not None:
            return found, file.name
        log.warning("The create left no job behind; it is sent again")
    raise CreateInDoubt(f"{submitting.MOST_CLAIMS} creates of {name!r} in a row left no job behind.")


def find(client: Client, identity: str, fingerprint: str, not_before: str) -> str | None:
    """
    The newest job of this work that was created at or after a time, among all the pages of the list.

    :param not_before: ISO 8601; empty for any time.
    :raises ServiceError: the list could not be read to its end.
    """
    name = common_ai_name(identity, fingerprint)
    since = datetime.fromisoformat(not_before) if not_before else datetime.fromtimestamp(0, UTC)
    since = since if since.tzinfo else since.replace(tzinfo=UTC)
    named = [job for job in client.list_jobs() if job.display_name == name]
    found = [job for job in named if _created(job) >= since or (_created(job) >= since - CLOCKS_APART and _useful(job))]
    return max(found, key=lambda job: (_created(job), job.name)).name if found else None


def _under_way(client: Client, name: str, since: datetime) -> list[Job]:
    """Jobs of this name that another attempt has made since a time, and that can still bring results."""
    jobs = [job for job in client.list_jobs() if job.display_name == name]
    return [job for job in jobs if _useful(job) and _created(job) >= since - CLOCKS_APART]


def _without_twins(client: Client, name: str, since: datetime, created: str) -> str:
    try:
        jobs = _under_way(client, name, since)
    except ServiceError as e:
        log.warning("Could not look for twins of %s: %s", created, e)
        return created
    return submitting.settle_twins(client, jobs).name if len(jobs) > 1 else created


def _looked_for(client: Client, name: str, since: datetime, until: float, sleep: Callable[[float], None]) -> str | None:
    """What became of a create in doubt: its job, or None once none can appear any more."""
    while True:
        try:
            jobs = _under_way(client, name, since)
        except ServiceUnreachable as e:
            if time.time() >= until:
                raise CreateInDoubt(f"A create of {name!r} got no clear answer, nor can the jobs be listed: {e}") from e
            log.warning("The list of jobs cannot be read (%s); trying again, nothing is sent before", e)
        else:
            if jobs:
                return submitting.settle_twins(client, jobs).name
            if time.time() >= until:
                return None
        sleep(min(submitting.LOOK_EVERY, max(0.0, until - time.time())))


def _created(job: Job) -> datetime:
    return job.created_at or datetime.max.replace(tzinfo=UTC)


def _useful(job: Job) -> bool:
    return job.phase not in USELESS
