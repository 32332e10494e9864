"""Jobs apart from any run: found or not, ended or not, as hoped or not. Knows job states; knows no rows and no storage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from airflow_gemini_batch.core.attempt import Services
from airflow_gemini_batch.core.client import Client
from airflow_gemini_batch.core.jobs import Counts, Gone, Job, Phase, Refused, Seen
from airflow_gemini_batch.core.waiting import SURE_AFTER, Outcome, Wait
from airflow_gemini_batch.exceptions import (
    CredentialsRefused,
    JobNotSucceeded,
    JobStillRunning,
    NoSuchJob,
    ServiceUnreachable,
)

LOOK_AGAIN = 2.0
"""Seconds between looks at a job that seems to be gone."""


def find(client: Client, name: str) -> Job:
    """
    Look at a job that must be there.

    :raises NoSuchJob: it is not.
    :raises ServiceError: nobody can tell for now.
    """
    seen = client.look(name)
    if isinstance(seen, Gone):
        seen = client.confirm(seen)
    if isinstance(seen, Job):
        return seen
    if isinstance(seen, Gone):
        raise NoSuchJob(f"There is no job {name} in this key's project: {seen.detail}")
    if isinstance(seen, Refused):
        raise CredentialsRefused(f"The key is refused for {name}: {seen.detail}")
    raise ServiceUnreachable(f"{name} could not be looked at: {seen.detail}")


def look_at(
    services: Services, names: Sequence[str], *, until: Callable[[Seen], float], outcomes: Iterable[Outcome] | None = ()
) -> tuple[list[Job], tuple[Wait, ...]]:
    """
    Look once at each job: return those that have ended, and what to wait for.

    :param until: Unix time at which a job has taken too long.
    :param outcomes: what a wait for them has found out, as one bad answer alone proves nothing. None: nobody waits for that,
        so a bad answer is asked for again here.
    :raises NoSuchJob: one of them is surely gone.
    :raises CredentialsRefused: the key is surely refused.
    :raises JobStillRunning: one has taken too long.
    """
    told = {outcome.job: outcome.how for outcome in outcomes or ()}
    ended, waits = [], []
    for name in names:
        seen = services.client.look(name)
        if isinstance(seen, Job) and seen.phase.ended:
            ended.append(seen)
            continue
        if isinstance(seen, Gone | Refused):
            for _ in range(SURE_AFTER - 1 if outcomes is None else 0):
                services.sleep(LOOK_AGAIN)
                seen = services.client.look(name)
            if outcomes is None or told.get(name) in ("gone", "refused"):
                find(services.client, name)
        deadline = until(seen)
        if services.clock() >= deadline:
            state = seen.state if isinstance(seen, Job) else f"not to be seen ({seen.detail})"
            raise JobStillRunning(
                f"{name} did not end in time; it is {state}. It was left running and may be billed.",
                jobs=(name,),
                counts=counts_of(seen),
            )
        waits.append(Wait(name, deadline))
    return ended, tuple(waits)


def within(seconds: float, services: Services) -> Callable[[Seen], float]:
    """A deadline for each job: so many seconds after it was created, or from now if that is not known."""

    def until(seen: Seen) -> float:
        created = seen.created_at if isinstance(seen, Job) else None
        return (created.timestamp() if created else services.clock()) + seconds

    return until


def check_succeeded(jobs: Iterable[Job]) -> None:
    """:raises JobNotSucceeded: a job ended as anything else. Its rows may have failed all the same: landing tells."""
    for job in jobs:
        if job.phase is not Phase.SUCCEEDED:
            raise JobNotSucceeded(job=job.name, state=job.state, detail=job.error.message if job.error else "")


def facts(job: Job) -> dict[str, object]:
    """A job as plain JSON, for people and for XCom."""
    return {
        "job": job.name,
        "state": job.state,
        "ended": job.phase.ended,
        "display_name": job.display_name,
        "model": job.model,
        "kind": "embeddings" if job.embeddings else "generate",
        "created_at": job.created_at.isoformat() if job.created_at else None,
        "ended_at": job.ended_at.isoformat() if job.ended_at else None,
        "requests": job.counts.total,
        "succeeded": job.counts.succeeded,
        "failed": job.counts.failed,
        "pending": job.counts.pending,
        "input_file": job.input_file,
        "results": job.results,
        "error": {"code": job.error.code, "message": job.error.message} if job.error else None,
    }


def counts_of(seen: Seen) -> dict[str, int]:
    """What the service says of a job's rows: ``succeeded``, ``failed``, ``total``; none if it could not be seen."""
    counts = seen.counts if isinstance(seen, Job) else Counts()
    return {"succeeded": counts.succeeded, "failed": counts.failed, "total": counts.total}
