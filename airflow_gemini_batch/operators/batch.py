"""GeminiBatchOperator: rows in, a table of answers out. Turns Airflow's context into core values, and little else."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, cast

from airflow.providers.common.compat.sdk import AirflowSkipException, BaseOperator, conf
from airflow.sdk import literal

from airflow_gemini_batch.exceptions import InvalidConfig, NoRows
from airflow_gemini_batch.failures import failing_fast
from airflow_gemini_batch.killed import STOPPED, TRY_KEY, state_of

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_gemini_batch.core.attempt import Policy, Run, Services
    from airflow_gemini_batch.core.flow import Waiting
    from airflow_gemini_batch.core.rows import FileSource, RecordSource
    from airflow_gemini_batch.core.shards import Limits
    from airflow_gemini_batch.core.waiting import Outcome

KILL_TAKES = 4.5
"""Seconds that a killed task has to cancel its jobs: Airflow sends SIGKILL five seconds after SIGTERM."""


class GeminiBatchOperator(BaseOperator):
    """
    Ask Gemini once per row, at batch price, and land the answers as a table.

    Returns the manifest: where the table is, rows by status, tokens and cost. The work is submitted once, whatever dies:
    a retry or a clear adopts running jobs and finished results.

    :param model: bare model name, e.g. ``"gemini-2.5-flash"``.
    :param source: URI or glob of .csv, .csv.gz, .jsonl, .jsonl.gz or .parquet files, or a list of mappings or strings
        (also a task's output). Records ``{"key", "request"}`` are taken as ready-made requests.
    :param output: URI of the directory for the table; each run needs its own. Ours is ``_gemini_batch/`` in it.
    :param prompt: text with ``{column}`` places; ``{{`` and ``}}``, after Jinja, are literal braces. Without it the rows are
        strings or ready-made requests.
    :param system_instruction: text sent with every row.
    :param config: a ``google.genai.types.GenerateContentConfig`` or a dict of its fields, in either case.
    :param key: column that identifies a row; by default its number, from 0.
    :param keep: columns copied to the result.
    :param file_format: ``"parquet"``, ``"jsonl"`` or ``"csv"``.
    :param include_raw: add each response as JSON text in a column ``raw``.
    :param limits: sizes of jobs and how many run at a time, a ``core.shards.Limits``.
    :param max_rounds: passes over the work; rows that failed for a passing reason are sent again until then.
    :param max_failed_ratio: most rows without status ``ok``, as a part of all, before the task fails (after landing).
        By default it fails only if no row is ok.
    :param timeout: seconds that a job may take from its creation.
    :param on_timeout: ``"cancel"`` a job that takes longer, and send its rows in the next round, or ``"leave"`` it and fail.
    :param poll_interval: seconds between looks at the jobs, varied a little.
    :param reuse: ``"auto"``, or ``"never"``: clearing the task asks everything anew and pays anew. A retry never does.
    :param on_changed: settings changed since the run was planned: ``"fail"``, ``"keep"`` the old ones, or ``"resubmit"``.
    :param on_empty: no rows: ``"skip"`` the task, ``"succeed"`` or ``"fail"``.
    :param delete_remote: remove from the service what is landed: ``"inputs"``, ``"all"`` (jobs and results too), ``"never"``.
    :param deferrable: wait in the triggerer; Airflow's ``[operators] default_deferrable`` by default.
    :param cancel_on_kill: cancel the jobs when the task is stopped by a person or its run.
    :param gemini_conn_id: connection of type ``gemini_batch``.
    """

    template_fields: Sequence[str] = (
        "model",
        "source",
        "output_uri",
        "prompt",
        "system_instruction",
        "config",
        "key",
        "keep",
        "reuse",
        "on_changed",
        "gemini_conn_id",
    )
    template_fields_renderers = {"config": "json"}  # noqa: RUF012 - Airflow's own form
    ui_color = "#e8eefc"

    def __init__(
        self,
        *,
        model: str,
        source: Any,
        output: str,
        prompt: str | None = None,
        system_instruction: str | None = None,
        config: Any = None,
        key: str | None = None,
        keep: Sequence[str] = (),
        file_format: str = "parquet",
        include_raw: bool = False,
        limits: Limits | None = None,
        max_rounds: int = 2,
        max_failed_ratio: float | None = None,
        timeout: float = 48 * 3600,
        on_timeout: str = "cancel",
        poll_interval: float = 60.0,
        reuse: str = "auto",
        on_changed: str = "fail",
        on_empty: str = "skip",
        delete_remote: str = "inputs",
        deferrable: bool | None = None,
        cancel_on_kill: bool = True,
        gemini_conn_id: str = "gemini_batch_default",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.model = model
        # Rows written into the DAG file are data: braces in them are not Jinja's.
        self.source = literal(source) if isinstance(source, list | tuple) else source
        self.output_uri = output  # BaseOperator has an ``output`` of its own: the task's XCom
        self.prompt = prompt
        self.system_instruction = system_instruction
        self.config = config
        self.key = key
        self.keep = keep
        self.file_format = file_format
        self.include_raw = include_raw
        self.limits = limits
        self.max_rounds = max_rounds
        self.max_failed_ratio = max_failed_ratio
        self.timeout = timeout
        self.on_timeout = on_timeout
        self.poll_interval = poll_interval
        self.reuse = reuse
        self.on_changed = on_changed
        self.on_empty = on_empty
        self.delete_remote = delete_remote
        self.deferrable = (
            deferrable if deferrable is not None else conf.getboolean("operators", "default_deferrable", fallback=False)
        )
        self.cancel_on_kill = cancel_on_kill
        self.gemini_conn_id = gemini_conn_id
        self._now_running: Run | None = None

    def execute(self, context: Context) -> dict[str, Any]:
        """Plan and submit, or find what an earlier attempt left, and wait."""
        ti: Any = context["ti"]
        if hasattr(ti, "xcom_push"):  # a trigger of an earlier try, cleared meanwhile, must see that it is not the last
            ti.xcom_push(key=TRY_KEY, value=ti.try_number)
        return self._go_on(context, (), starting=True)

    def resume(self, context: Context, event: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Go on after a wait in the triggerer. Everything it needs is on storage."""
        from airflow_gemini_batch.core.waiting import from_event

        with failing_fast():
            outcomes = from_event(event)
        return self._go_on(context, outcomes, starting=False)

    def _go_on(self, context: Context, outcomes: tuple[Outcome, ...], *, starting: bool) -> dict[str, Any]:
        from airflow_gemini_batch.core.flow import Waiting, advance
        from airflow_gemini_batch.core.waiting import drive, watching

        with failing_fast():
            services = self._services()
            run = self._now_running = self._run(context)
            try:
                while isinstance(reached := self._advance(advance, run, services, outcomes, starting), Waiting):
                    if self.deferrable:
                        self._defer(reached)
                    steps = watching(reached.waits, interval=self.poll_interval, clock=time.time, tell=self.log.info)
                    outcomes, starting = drive(steps, services.client.look_at_all, time.sleep), False
                return cast("dict[str, Any]", reached.to_xcom())
            finally:
                services.client.close()

    def _advance(self, advance: Any, run: Run, services: Services, outcomes: Any, starting: bool) -> Any:
        try:
            return advance(run, services, outcomes=outcomes, starting=starting)
        except NoRows as e:
            if self.on_empty == "skip":
                raise AirflowSkipException(str(e)) from e
            raise

    def _defer(self, waiting: Waiting) -> NoReturn:
        from airflow_gemini_batch.triggers.batch import GeminiBatchTrigger

        self.defer(
            trigger=GeminiBatchTrigger(
                jobs={wait.job: wait.deadline for wait in waiting.waits},
                gemini_conn_id=self.gemini_conn_id,
                poll_interval=self.poll_interval,
                cancel_on_kill=self.cancel_on_kill,
            ),
            method_name="resume",
        )
        raise AssertionError("defer() leaves")

    # What the core needs -----------------------------------------------------------------------------------

    def _services(self) -> Services:
        from airflow_gemini_batch.core.attempt import Services
        from airflow_gemini_batch.hooks.gemini import GeminiHook

        return Services(GeminiHook(self.gemini_conn_id).client)

    def _run(self, context: Context) -> Run:
        from airflow_gemini_batch.core.attempt import Run
        from airflow_gemini_batch.core.config import request_template
        from airflow_gemini_batch.core.layout import OutputDirectory
        from airflow_gemini_batch.core.names import RunId
        from airflow_gemini_batch.core.requests import Spec
        from airflow_gemini_batch.paths import resolve

        ti = context["ti"]
        map_index = ti.map_index if isinstance(ti.map_index, int) else -1
        return Run(
            id=RunId(ti.dag_id, ti.task_id, ti.run_id, map_index),
            source=self._open_source,
            spec=Spec(
                model=self._model(),
                prompt=self.prompt,
                template=request_template(self.config, self.system_instruction),
                key=self.key or None,
                keep=self._keep(),
            ),
            output=OutputDirectory(resolve(self.output_uri)),
            policy=self._policy(),
            clears=ti.max_tries if isinstance(getattr(ti, "max_tries", None), int) else None,
        )

    def _policy(self) -> Policy:
        from airflow_gemini_batch.core.attempt import Policy
        from airflow_gemini_batch.core.shards import Limits

        if not self.poll_interval > 0:
            raise InvalidConfig(f"poll_interval is {self.poll_interval!r}; it takes a number of seconds above 0.")
        return Policy(
            file_format=self.file_format,
            include_raw=self.include_raw,
            limits=self.limits or Limits(),
            max_rounds=self.max_rounds,
            max_failed_ratio=self.max_failed_ratio,
            timeout=self.timeout,
            on_timeout=self.on_timeout,
            reuse=self.reuse,
            on_changed=self.on_changed,
            on_empty=self.on_empty,
            delete_remote=self.delete_remote,
        )

    def _model(self) -> str:
        model = self.model.strip().removeprefix("models/") if isinstance(self.model, str) else ""
        if not model:
            raise InvalidConfig('model is empty; name one, e.g. "gemini-2.5-flash".')
        return model

    def _keep(self) -> tuple[str, ...]:
        if isinstance(self.keep, str):
            raise InvalidConfig(f"keep is the text {self.keep!r}; it takes a list of column names.")
        return tuple(self.keep or ())

    def _open_source(self) -> FileSource | RecordSource:
        from airflow_gemini_batch.core.rows import FileSource, RecordSource
        from airflow_gemini_batch.paths import expand

        if isinstance(self.source, str):
            return FileSource(expand(self.source))
        if self.source is None:
            raise InvalidConfig("source is None; give a URI, or a list of mappings or strings.")
        if isinstance(self.source, Mapping):
            raise InvalidConfig("source is one mapping; give a list of them, a list of strings, or a URI.")
        # A lazy sequence of mapped outputs is read again to name a duplicate: keep what it gave.
        records = list(cast("Iterable[Any]", self.source))
        self.source = records
        return RecordSource(records)

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
