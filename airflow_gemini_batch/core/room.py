"""Room for one more job: by this run's limits, and by the jobs that run in the key's project."""

from __future__ import annotations

from airflow_gemini_batch.core.attempt import Attempt, log
from airflow_gemini_batch.core.jobs import Job
from airflow_gemini_batch.core.ledger import Entry
from airflow_gemini_batch.core.plan import Shard
from airflow_gemini_batch.exceptions import QuotaExceeded, ServiceError


class JobRoom:
    """
    Whether one more job may be created, by this run's limits and by the number of jobs in the project.

    :param running: the shards of this run whose jobs run, by job name.
    """

    def __init__(self, attempt: Attempt, running: dict[str, Shard]) -> None:
        self._attempt, self._running = attempt, running
        self._in_project: set[str] | None = None
        self.listed: list[Job] | None = None

    def is_there_for(self, shard: Shard, entry: Entry) -> bool:
        """
        False: a job of this run must end first.

        :raises QuotaExceeded: as many jobs as may run in the project run, this run's and others'.
        """
        limits = self._attempt.run.policy.limits
        if len(self._running) >= limits.active_jobs:
            return False
        enqueued = sum(one.estimate.input_tokens for one in self._running.values())
        if limits.enqueued_tokens is not None and enqueued:  # alone it is sent whatever its size: nothing is in its way
            more = shard.estimate.input_tokens
            if enqueued + more > limits.enqueued_tokens:
                log.info(
                    "%s waits its turn: about %s tokens, %s are enqueued, Limits.enqueued_tokens is %s",
                    shard.slot, more, enqueued, limits.enqueued_tokens,
                )  # fmt: skip
                return False
        if entry.doubtful:
            return True  # its job may be one of those that run; that is found out first
        if self._in_project is None:
            self._in_project = self._look() | self._running.keys()
        if len(self._in_project) >= limits.project_jobs:
            quota = f"jobs running in this project: {len(self._in_project)} of {limits.project_jobs}"
            raise QuotaExceeded(
                f"{shard.slot} was not sent: {len(self._in_project)} jobs run in this key's project, {len(self._running)} of "
                "them this run's.",
                phase="create",
                quota=quota,
            )
        return True

    def took(self, shard: Shard, job: str) -> None:
        self._running[job] = shard
        if self._in_project is not None:
            self._in_project.add(job)

    def _look(self) -> set[str]:
        try:
            self.listed = self._attempt.client.list_jobs()
        except ServiceError as e:
            # The service itself refuses what is too much.
            log.info("The project's jobs could not be counted: %s", e)
            return set()
        return {job.name for job in self.listed if not job.phase.ended}
