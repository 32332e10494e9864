"""What is no longer needed at the service is removed, as ``delete_remote`` says. Knows jobs and uploads, nothing of rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from airflow_gemini_batch.core.attempt import Attempt, log
from airflow_gemini_batch.core.ledger import Submitted
from airflow_gemini_batch.exceptions import ServiceError


def delete_input(attempt: Attempt, submitted: Submitted) -> None:
    """Remove the request file of a job that has ended, unless ``delete_remote`` says no."""
    if submitted.file and attempt.run.policy.delete_remote != "never":
        _delete(attempt.client.delete_file, submitted.file, submitted)


def delete_job(attempt: Attempt, submitted: Submitted, results: str | None) -> None:
    """Remove a job that is landed, and its results, if ``delete_remote`` says so."""
    if attempt.run.policy.delete_remote == "all":
        if results:
            _delete(attempt.client.delete_file, results, submitted)
        _delete(attempt.client.delete_job, submitted.job, submitted)


def delete_jobs(attempt: Attempt, landed: Mapping[str, Submitted]) -> None:
    """Remove what :func:`delete_job` left behind: who dies when a slot has just landed does not come by there again."""
    if attempt.run.policy.delete_remote != "all" or not landed:
        return
    try:
        left = [job for job in attempt.client.list_jobs() if job.name in landed and job.phase.ended]
    except ServiceError as e:
        log.info("Which jobs are still at the service could not be told: %s", e)
        return
    for job in left:
        delete_job(attempt, landed[job.name], job.results)


def _delete(delete: Callable[[str], object], name: str, submitted: Submitted) -> None:
    """A refusal is told and tolerated."""
    try:
        delete(name)
    except ServiceError as e:
        log.info("%s of %s could not be deleted at the service: %s", name, submitted.job, e)
