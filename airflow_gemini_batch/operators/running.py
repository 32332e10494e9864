"""How every operator of ours runs: advance, defer, resume, tell, and cancel when it is killed. Knows no settings."""

from __future__ import annotations

import threading
import time
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.providers.common.compat.sdk import AirflowSkipException, BaseOperator

from airflow_gemini_batch.exceptions import NoRows, OverBudget, RunFailed
from airflow_gemini_batch.failures import failing_fast
from airflow_gemini_batch.killed import STOPPED, TRY_KEY, state_of
from airflow_gemini_batch.operators.telling import announce, measure, show_landed, show_nothing_yet, show_waiting

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_gemini_batch.core.attempt import Run, Services
    from airflow_gemini_batch.core.budget import Budget
    from airflow_gemini_batch.core.flow import Waiting
    from airflow_gemini_batch.core.waiting import Outcome
    from airflow_gemini_batch.hooks.gemini import GeminiHook

KILL_TAKES = 4.5
"""Seconds that a killed task has to cancel its jobs: Airflow sends SIGKILL five seconds after SIGTERM."""


class RunningOperator(BaseOperator):
    """A task that is a run of the core; its settings are a subclass's."""

    budget: Budget | None
    poll_interval: float
    on_empty: str
    deferrable: bool
    cancel_on_kill: bool
    gemini_conn_id: str

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._now_running: Run | None = None
        self._landed: dict[str, Any] | None = None

    @abstractmethod
    def _run(self, context: Context) -> Run:
        """What the core is to do."""

    def execute(self, context: Context) -> Any:
        """Plan and submit, or find what an earlier attempt left, and wait."""
        ti: Any = context["ti"]
        if hasattr(ti, "xcom_push"):  # a trigger of an earlier try, cleared meanwhile, must see that it is not the last
            ti.xcom_push(key=TRY_KEY, value=ti.try_number)
        show_nothing_yet(context, self.operator_extra_links)
        return self._go_on(context, (), starting=True)

    def resume(self, context: Context, event: Mapping[str, Any] | None = None) -> Any:
        """Go on after a wait in the triggerer. Everything it needs is on storage."""
        from airflow_gemini_batch.core.waiting import from_event

        with failing_fast():
            outcomes = from_event(event)
        return self._go_on(context, outcomes, starting=False)

    def _go_on(self, context: Context, outcomes: tuple[Outcome, ...], *, starting: bool) -> Any:
        from airflow_gemini_batch.core.flow import Waiting
        from airflow_gemini_batch.core.waiting import drive, watching

        with failing_fast():
            services = self._services()
            run = self._now_running = self._run(context)
            try:
                while isinstance(reached := self._step(run, services, outcomes, starting), Waiting):
                    show_waiting(context, run.output.path, (wait.job for wait in reached.waits))
                    if self.deferrable:
                        self._defer(reached)
                    steps = watching(
                        reached.waits, interval=self.poll_interval, clock=time.time, tell=self.log.info,
                        until=reached.not_before,
                    )  # fmt: skip
                    if not reached.waits:
                        services.client.close()  # a quota is waited for, up to hours; it opens again by itself
                    outcomes, starting = drive(steps, services.client.look_at_all, time.sleep), False
                return self._done(context, run, reached)
            except RunFailed as e:
                if e.summary is not None:
                    show_landed(context, run.output.path, e.manifest, e.jobs)
                    measure(e.summary, e.news or {})
                if isinstance(e, OverBudget) and self.budget is not None and self.budget.on_exceed == "skip":
                    raise AirflowSkipException(str(e)) from e
                raise
            finally:
                services.client.close()

    def _step(self, run: Run, services: Services, outcomes: Any, starting: bool) -> Any:
        """Bring the run as far as it can go: ``Waiting``, or what :meth:`_done` takes."""
        try:
            return self._advance(run, services, outcomes, starting)
        except NoRows as e:
            if self.on_empty == "skip":
                raise AirflowSkipException(str(e)) from e
            raise

    def _advance(self, run: Run, services: Services, outcomes: Any, starting: bool) -> Any:
        from airflow_gemini_batch.core.flow import advance

        return advance(run, services, outcomes=outcomes, starting=starting)

    def _done(self, context: Context, run: Run, reached: Any) -> Any:
        """Tell Airflow how the run ended, and return the task's result."""
        manifest: dict[str, Any] = reached.to_xcom()
        show_landed(context, run.output.path, manifest["manifest"], (job["name"] for job in reached.jobs))
        announce(context, self.outlets or (), manifest)
        measure(manifest, reached.news)
        self._landed = manifest
        return manifest

    def _defer(self, waiting: Waiting) -> NoReturn:
        from airflow_gemini_batch.triggers.batch import GeminiBatchTrigger

        self.defer(
            trigger=GeminiBatchTrigger(
                jobs={wait.job: wait.deadline for wait in waiting.waits},
                gemini_conn_id=self.gemini_conn_id,
                poll_interval=self.poll_interval,
                until=waiting.not_before,
                cancel_on_kill=self.cancel_on_kill,
            ),
            method_name="resume",
        )
        raise AssertionError("defer() leaves")

    def _hook(self) -> GeminiHook:
        from airflow_gemini_batch.hooks.gemini import GeminiHook

        return GeminiHook(self.gemini_conn_id)

    def _services(self) -> Services:
        from airflow_gemini_batch.core.attempt import Services
        from airflow_gemini_batch.paths import resolve

        return Services(self._hook().client, open_uri=resolve)

    # Killing -----------------------------------------------------------------------------------------------

    def on_kill(self) -> None:
        """
        The worker's process is being killed: cancel the jobs if the task was stopped for good.

        In a thread with a time limit: the main thread may hold the line to Airflow, and five seconds are left.
        """
        if (run := self._now_running) is not None:
            thread = threading.Thread(target=self._cancel_if_stopped, args=(run,), daemon=True)
            thread.start()
            thread.join(KILL_TAKES)
            if thread.is_alive():
                self.log.warning("There was no time to see to all jobs; those not named above may run on and be billed")

    def _cancel_if_stopped(self, run: Run) -> None:
        from airflow_gemini_batch.core.flow import cancel_running, note_cleared

        try:
            state = state_of(run.id.dag_id, run.id.task_id, run.id.run_id, run.id.map_index)
            if state in STOPPED and self.cancel_on_kill:
                for said in cancel_running(run, self._services()):
                    self.log.warning("The task is %s; cancelled: %s", state, said)
            elif state not in STOPPED:
                if state == "restarting":  # cleared while it ran; a worker that shuts down leaves it "running"
                    note_cleared(run)
                self.log.info("The task is %s: its jobs are left for the next try", state or "in no known state")
        except Exception as e:
            # Nothing may come out of a kill handler, and whatever could not be told or done is left as it is.
            self.log.warning("The jobs could not be cancelled: %s: %s", type(e).__name__, e)
