"""GeminiBatchJobSensor: waits for jobs, also for those made elsewhere. Creates, lands and cancels nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    BaseSensorOperator,
)

from airflow_gemini_batch import settings
from airflow_gemini_batch.core.checks import a_job, flag, job_names, text
from airflow_gemini_batch.failures import failing_fast
from airflow_gemini_batch.links.batch import GeminiJobLink, job_url, push
from airflow_gemini_batch.operators.checking import check_given

if TYPE_CHECKING:
    from datetime import timedelta

    from airflow.sdk import Context

    from airflow_gemini_batch.core.jobs import Job
    from airflow_gemini_batch.core.waiting import Outcome, Wait


class GeminiBatchJobSensor(BaseSensorOperator):
    """
    Wait until batch jobs have ended.

    Returns what the service says of the job (``state``, ``requests``, ``succeeded``, ``failed``, ...), or a list of that.
    Takes the parameters of every sensor, among them ``timeout`` (seconds, from the sensor's start), ``poke_interval``
    (seconds), ``mode`` and ``soft_fail``; the jobs are left alone whatever becomes of the sensor.

    :param job: name of a job, ``batches/...``, or what a get returned of it; or a list of them (then a list is returned).
    :param any_end: be content with any end. By default a job that failed, expired or was cancelled fails the task.
    :param deferrable: wait in the triggerer; Airflow's ``[operators] default_deferrable`` by default.
    :param gemini_conn_id: connection of type ``gemini_batch``.
    """

    template_fields: Sequence[str] = ("job", "gemini_conn_id")
    ui_color = "#e8eefc"
    ui_fgcolor = "#1a3a8f"
    operator_extra_links = (GeminiJobLink(),)

    def __init__(
        self,
        *,
        job: Any,
        any_end: bool = False,
        deferrable: bool | None = None,
        gemini_conn_id: str = settings.CONN_ID,
        poke_interval: timedelta | float = 60,
        **kwargs: Any,
    ) -> None:
        super().__init__(poke_interval=poke_interval, **kwargs)
        self.job = job
        self.any_end = any_end
        self.deferrable = settings.deferrable(deferrable)
        self.gemini_conn_id = gemini_conn_id
        check_given(self, {"job": a_job, "any_end": flag, "deferrable": flag, "gemini_conn_id": text})

    def execute(self, context: Context) -> Any:
        with failing_fast():
            push(context, GeminiJobLink, job_url(job_names(self.job)[0]))
        return self._wait_off_the_worker(context, (), None) if self.deferrable else super().execute(context)

    def poke(self, context: Context) -> Any:
        from airflow.sdk import PokeReturnValue

        with self._failing():
            ended, waits = self._look(None, math.inf)  # a sensor that pokes sees to its timeout itself
            return PokeReturnValue(is_done=not waits, xcom_value=None if waits else self._result(ended))

    def resume(self, context: Context, event: Mapping[str, Any] | None = None, deadline: float | None = None) -> Any:
        """
        Go on after a wait in the triggerer.

        :param deadline: Unix time. ``dag.test()`` loses it; then the event alone says that time is up.
        """
        from airflow_gemini_batch.core.waiting import from_event

        with self._failing():
            outcomes = from_event(event)
        if deadline is None and any(outcome.how == "timed_out" for outcome in outcomes):
            deadline = time.time()
        return self._wait_off_the_worker(context, outcomes, deadline)

    def _wait_off_the_worker(self, context: Context, outcomes: tuple[Outcome, ...], deadline: float | None) -> Any:
        deadline = time.time() + self.timeout if deadline is None else deadline
        with self._failing():
            # Before the first wait nobody else asks again for a job that seems to be gone.
            ended, waits = self._look(outcomes or None, deadline)
            if waits:
                self._defer(waits, deadline)
            return self._result(ended)

    def _defer(self, waits: tuple[Wait, ...], deadline: float) -> NoReturn:
        from airflow_gemini_batch.core.limits import API_ACTIVE_JOBS
        from airflow_gemini_batch.triggers.batch import GeminiBatchTrigger

        self.defer(
            trigger=GeminiBatchTrigger(
                # No more may run at a time, and all must end: what the database keeps of a wait stays small.
                jobs={wait.job: wait.deadline for wait in waits[:API_ACTIVE_JOBS]},
                gemini_conn_id=self.gemini_conn_id,
                poll_interval=max(self.poke_interval, 0.01),
                cancel_on_kill=False,
            ),
            method_name="resume",
            kwargs={"deadline": deadline},
        )
        raise AssertionError("defer() leaves")

    def _look(self, outcomes: tuple[Outcome, ...] | None, deadline: float) -> tuple[list[Job], tuple[Wait, ...]]:
        from airflow_gemini_batch.core.attempt import Services
        from airflow_gemini_batch.core.ends import check_succeeded, look_at
        from airflow_gemini_batch.hooks.gemini import GeminiHook

        services = Services(GeminiHook(self.gemini_conn_id).client)
        try:
            ended, waits = look_at(services, job_names(self.job), until=lambda _: deadline, outcomes=outcomes)
        finally:
            services.client.close()
        if not self.any_end:
            check_succeeded(ended)
        return ended, waits

    def _result(self, ended: list[Job]) -> Any:
        from airflow_gemini_batch.core.ends import facts

        told = [facts(job) for job in ended]
        return told[0] if isinstance(self.job, str | Mapping) else told

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Our errors as Airflow's, and skipped where the sensor is asked to: off the worker nobody else sees to that."""
        from airflow_gemini_batch.exceptions import JobStillRunning

        try:
            with failing_fast():
                yield
        except AirflowFailException as e:
            if self.soft_fail or self.never_fail:
                raise AirflowSkipException(str(e)) from e
            if isinstance(e.__cause__, JobStillRunning):
                raise AirflowSensorTimeout(str(e.__cause__)) from e
            raise
