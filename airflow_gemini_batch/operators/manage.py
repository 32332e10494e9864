"""Jobs and files at the service, looked at and put away: get, list, cancel, delete, clean up. All are safe to retry."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_gemini_batch.core.checks import a_job, flag, job_names, refused
from airflow_gemini_batch.exceptions import InvalidConfig
from airflow_gemini_batch.links.batch import GeminiJobLink, job_url, push
from airflow_gemini_batch.operators.at_the_service import (
    AGE,
    CLEANING,
    LISTING,
    AtTheService,
    ago,
    is_true,
    named_states,
)
from airflow_gemini_batch.operators.checking import check_given

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_gemini_batch.core.client import Client
    from airflow_gemini_batch.core.jobs import Job

SHOWN = 50
"""Names listed in a clean-up's XCom value; the log has them all."""


class _OnJobs(AtTheService):
    """
    :param job: name of a job, ``batches/...``, or what a sensor returned; or a list of them.
    :param missing_ok: a job that is not there is no error; its ``state`` is then ``"GONE"``.
    """

    template_fields: Sequence[str] = ("job", "gemini_conn_id")
    operator_extra_links = (GeminiJobLink(),)

    def __init__(self, *, job: Any, missing_ok: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.job = job
        self.missing_ok = missing_ok
        check_given(self, {"job": a_job, "missing_ok": flag})

    def execute(self, context: Context) -> Any:
        from airflow_gemini_batch.core.ends import find
        from airflow_gemini_batch.exceptions import NoSuchJob

        told = []
        with self._client() as client:
            names = job_names(self.job)
            push(context, GeminiJobLink, job_url(names[0]))
            for name in names:
                try:
                    told.append(self._on(client, find(client, name)))
                except NoSuchJob as e:
                    if not self.missing_ok:
                        raise
                    self.log.warning("%s", e)
                    told.append({"job": name, "state": "GONE"})
        return told[0] if isinstance(self.job, str | Mapping) else told

    @abstractmethod
    def _on(self, client: Client, job: Job) -> dict[str, object]:
        """Do it to one job that is there; returns the job's part of the result."""


class GeminiGetBatchJobOperator(_OnJobs):
    """
    Look at a job; returns what the service says: ``job``, ``state``, ``ended``, ``display_name``, ``model``, ``kind``,
    ``created_at``, ``ended_at``, ``requests``, ``succeeded``, ``failed``, ``pending``, ``input_file``, ``results`` and
    ``error``.

    :param job: name of a job, ``batches/...``, or what a sensor returned; or a list of them (then a list is returned).
    :param missing_ok: a job that is not there is no error; its ``state`` is then ``"GONE"``.
    :param gemini_conn_id: connection of type ``gemini_batch``.
    """

    def _on(self, client: Client, job: Job) -> dict[str, object]:
        from airflow_gemini_batch.core.ends import facts

        return facts(job)


class GeminiCancelBatchJobOperator(_OnJobs):
    """
    Cancel a job, look what became of it, and return that as :class:`GeminiGetBatchJobOperator` does.

    A job that has ended already is left as it is: its ``state`` tells. What was done before the end is billed.

    :param job: name of a job, ``batches/...``, or what a sensor returned; or a list of them (then a list is returned).
    :param missing_ok: a job that is not there is no error; its ``state`` is then ``"GONE"``.
    :param gemini_conn_id: connection of type ``gemini_batch``.
    """

    def _on(self, client: Client, job: Job) -> dict[str, object]:
        from airflow_gemini_batch.core.ends import facts, find
        from airflow_gemini_batch.exceptions import ServiceUnreachable

        if not job.phase.ended:
            cancel = client.cancel(job.name)
            self.log.info("%s", cancel)
            if not cancel.accepted:
                raise ServiceUnreachable(str(cancel))
            job = find(client, job.name)
        return facts(job)


class GeminiDeleteBatchJobOperator(_OnJobs):
    """
    Delete the record of a job that has ended, and so its results; returns what it said last.

    Deleting does not stop a job, so one that runs is an error: cancel it first. One that is gone already is no error.

    :param job: name of a job, ``batches/...``, or what a sensor returned; or a list of them (then a list is returned).
    :param files: also delete its request file and its result file.
    :param missing_ok: a job that is not there is no error (the default here); its ``state`` is then ``"GONE"``.
    :param gemini_conn_id: connection of type ``gemini_batch``.
    """

    def __init__(self, *, files: bool = False, missing_ok: bool = True, **kwargs: Any) -> None:
        super().__init__(missing_ok=missing_ok, **kwargs)
        self.files = files
        check_given(self, {"files": flag})

    def _on(self, client: Client, job: Job) -> dict[str, object]:
        from airflow_gemini_batch.core.ends import facts

        if not job.phase.ended:
            raise InvalidConfig(
                f"{job.name} is {job.state}. Deleting it would not stop it, and it would be billed: cancel it first."
            )
        for name in (job.input_file, job.results) if self.files else ():
            if name:
                client.delete_file(name)
        client.delete_job(job.name)
        self.log.info("Deleted %s", job.name)
        return facts(job)


class GeminiListBatchJobsOperator(AtTheService):
    """
    List the jobs of the key's project, all pages, newest first; returns a list as :class:`GeminiGetBatchJobOperator` does.

    :param states: only jobs in these states, e.g. ``["PENDING", "RUNNING"]``; prefixes of the API are taken, too.
    :param older_than: only jobs created at least so long ago; seconds or a ``timedelta``.
    :param newer_than: only jobs created less than so long ago.
    :param ours_only: only jobs of this package.
    :param limit: most jobs that are returned; how many there are is logged.
    :param gemini_conn_id: connection of type ``gemini_batch``.
    """

    template_fields: Sequence[str] = ("states", "older_than", "newer_than", "gemini_conn_id")

    def __init__(
        self,
        *,
        states: str | Sequence[str] = (),
        older_than: timedelta | float | None = None,
        newer_than: timedelta | float | None = None,
        ours_only: bool = False,
        limit: int = 1000,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.states = states
        self.older_than = older_than
        self.newer_than = newer_than
        self.ours_only = ours_only
        self.limit = limit
        check_given(self, LISTING)

    def execute(self, context: Context) -> list[dict[str, object]]:
        from airflow_gemini_batch.core.ends import facts
        from airflow_gemini_batch.core.steps import is_ours

        with self._client() as client:
            states = named_states("states", self.states)
            before, after = ago("older_than", self.older_than), ago("newer_than", self.newer_than)
            found = [
                job
                for job in client.list_jobs()
                if (not states or job.state in states)
                and (not self.ours_only or is_ours(job.display_name))
                and (before is None or (job.created_at is not None and job.created_at.timestamp() <= before))
                and (after is None or (job.created_at is not None and job.created_at.timestamp() > after))
            ]
        found.sort(key=lambda job: job.created_at.timestamp() if job.created_at else 0.0, reverse=True)
        self.log.info("%s jobs%s", len(found), f", {self.limit} are returned" if len(found) > self.limit else "")
        return [facts(job) for job in found[: self.limit]]


class GeminiCleanUpFilesOperator(AtTheService):
    """
    Remove what this package left at the service: its uploads, and its jobs that have ended, once they are old enough.

    By default it only looks. Uploads of a run whose jobs still run are kept, and so is everything that is not this package's.
    **Results that nobody has landed go with their job**: choose an age by which every run has landed, or ``jobs=False``, e.g.
    in a teardown. Returns ``dry_run``, ``files`` and ``jobs`` (numbers), ``bytes`` (of the files), ``kept`` (old files that a
    running job may need) and ``names`` (the first of what is removed).

    :param older_than: age in seconds, or a ``timedelta``: of a file since it was uploaded, of a job since it ended.
    :param dry_run: only tell what would be removed.
    :param files: see to files. The service itself removes them after 48 hours.
    :param jobs: see to jobs.
    :param gemini_conn_id: connection of type ``gemini_batch``.
    """

    template_fields: Sequence[str] = ("older_than", "only_look", "gemini_conn_id")

    def __init__(
        self,
        *,
        older_than: timedelta | float,
        dry_run: bool | str = True,
        files: bool = True,
        jobs: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.older_than = older_than
        self.only_look = dry_run  # BaseOperator has a method ``dry_run``
        self.files = files
        self.jobs = jobs
        check_given(self, CLEANING)

    def execute(self, context: Context) -> dict[str, Any]:
        from airflow_gemini_batch.core.steps import find_leftovers

        with self._client() as client:
            before = ago("older_than", self.older_than)
            if before is None:
                raise refused("older_than", self.older_than, AGE)
            left = find_leftovers(client, before=before, files=self.files, jobs=self.jobs)
            only_look = is_true("dry_run", self.only_look)
            doing = "Would remove" if only_look else "Removing"
            for name in (*left.files, *left.jobs):
                self.log.info("%s %s", doing, name)
            if not only_look:
                for name in left.files:
                    client.delete_file(name)
                for name in left.jobs:
                    client.delete_job(name)
        return {
            "dry_run": only_look,
            "files": len(left.files),
            "jobs": len(left.jobs),
            "bytes": left.size,
            "kept": left.kept,
            "names": [*left.files, *left.jobs][:SHOWN],
        }
