"""One DAG with one batch task on a real deployment, and what a test wants to know of it."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.deployment.rig import Deployment, wait_for

ROWS = [{"id": f"k{n}", "text": f"row {n}"} for n in range(6)]
SLOTS = 2
TASK = "ask"

DAG = """\
from datetime import timedelta

from airflow.sdk import DAG

from airflow_gemini_batch.core.shards import Limits
from airflow_gemini_batch.operators.batch import GeminiBatchOperator

with DAG({dag_id!r}, default_args={{"retries": {retries}, "retry_delay": timedelta(seconds=2)}}):
    GeminiBatchOperator(
        task_id={task!r},
        limits=Limits(requests_per_job={per_job}),
        **{settings!r},
    )
"""


class Case:
    """
    A DAG of its own for one test: six rows in two slots, jobs that run until they are told to end.

    :param settings: of the operator, over the defaults.
    """

    def __init__(self, airflow: Deployment, dag_id: str, *, retries: int = 0, **settings: Any) -> None:
        self.airflow, self.api, self.gemini, self.dag_id = airflow, airflow.api, airflow.gemini, dag_id
        self._retries = retries
        self._settings: dict[str, Any] = {
            "model": self.gemini.HELD, "source": ROWS, "prompt": "Say {text}", "key": "id", "deferrable": True,
            "output": f"{airflow.outputs}/{dag_id}/{{{{ run_id }}}}", "poll_interval": 1.0,
        }  # fmt: skip
        self.gemini.faults()
        self.edit(**settings)

    def edit(self, **settings: Any) -> None:
        """Write the DAG file, with these settings changed."""
        self._settings |= settings
        code = DAG.format(
            dag_id=self.dag_id, retries=self._retries, task=TASK, settings=self._settings,
            per_job=len(ROWS) // SLOTS,
        )  # fmt: skip
        self.airflow.write_dag(self.dag_id, code)

    # What a user does ----------------------------------------------------------------------------------------

    def start(self, run: str = "r1", **conf: Any) -> None:
        self.api.trigger(self.dag_id, run, conf)

    def start_and_wait_until_its_jobs_run(self, run: str = "r1", **conf: Any) -> list[dict[str, Any]]:
        """Returns the run's jobs; the triggerer polls them, or the task does in its own process."""
        before = {job["name"] for job in self.jobs()}
        self.start(run, **conf)
        return self.wait_until_jobs_run(run, tries=1, without=before)

    def wait_until_jobs_run(
        self, run: str = "r1", *, tries: int, without: Collection[str] = ()
    ) -> list[dict[str, Any]]:
        self.wait("deferred" if self._settings["deferrable"] else "running", run=run, tries=tries)

        def running() -> list[dict[str, Any]]:
            jobs = [job for job in self.jobs("RUNNING", "PENDING") if job["name"] not in without]
            return jobs if len(jobs) == SLOTS else []

        jobs = wait_for(running, what=f"{SLOTS} jobs of {self.dag_id} run", seconds=90)
        # Deferred is not yet watched: it takes the triggerer a moment to start a trigger.
        self.log_says(f"{SLOTS} jobs: {SLOTS} RUNNING", run=run, tries=tries)
        return jobs

    def clear(self, run: str = "r1") -> None:
        ended = ("success", "failed")
        if self.api.task(self.dag_id, run, TASK)["state"] in ended:
            # Cleared before that, the task was twice seen to stay without a state for minutes: its run was just being ended.
            wait_for(lambda: self.api.run_state(self.dag_id, run) in ended, what=f"end of {run}", seconds=60)
        self.api.clear(self.dag_id, run, TASK)

    def mark(self, state: str, run: str = "r1") -> None:
        self.api.mark(self.dag_id, run, TASK, state)

    # What came of it -----------------------------------------------------------------------------------------

    def wait(self, *states: str, run: str = "r1", tries: int | None = None, seconds: float = 180.0) -> dict[str, Any]:
        return self.api.wait_task(self.dag_id, run, TASK, *states, tries=tries, seconds=seconds)

    def jobs(self, *states: str) -> list[dict[str, Any]]:
        return self.gemini.jobs(self.dag_id, states)

    def jobs_by_state(self) -> dict[str, int]:
        states = [job["state"] for job in self.jobs()]
        return {state: states.count(state) for state in sorted(set(states))}

    def finish(self) -> None:
        """Let all jobs that still run end well."""
        self.gemini.finish(*self.jobs("RUNNING", "PENDING"))

    def wait_until_jobs_are(self, seconds: float = 90.0, **wanted: int) -> None:
        """``RUNNING=2, CANCELLED=2``: these and no others."""
        try:
            wait_for(lambda: self.jobs_by_state() == wanted, what=f"jobs {wanted}", seconds=seconds)
        except TimeoutError as e:
            raise AssertionError(f"{e}; jobs are {self.jobs_by_state()}\n{self.last_log()}") from e

    def jobs_stay(self, seconds: float = 8.0, **wanted: int) -> None:
        """Nothing happens to the jobs for a while: nothing is sent, nothing is cancelled."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.jobs_by_state() == wanted, self.last_log()
            time.sleep(1)

    def log(self, run: str = "r1", tries: int = 1) -> str:
        return self.api.log(self.dag_id, run, TASK, tries)

    def last_log(self, run: str = "r1") -> str:
        try:
            return self.log(run, max(1, self.api.task(self.dag_id, run, TASK)["try_number"]))[-6000:]
        except AssertionError as e:
            return str(e)

    def log_says(self, text: str, run: str = "r1", tries: int = 1, seconds: float = 60.0) -> None:
        """The log is written by other processes, and may lag behind."""
        try:
            wait_for(lambda: text in self.log(run, tries), what=f"{text!r} in the log", seconds=seconds)
        except TimeoutError as e:
            raise AssertionError(f"{e}:\n{self.log(run, tries)[-6000:]}") from e

    def output(self, run: str = "r1") -> Path:
        return Path(self._settings["output"].replace("{{ run_id }}", run))

    def table(self, run: str = "r1") -> list[dict[str, Any]]:
        """All rows in the run's output, by key."""
        return table(self.output(run))

    def every_row_landed_once(self, run: str = "r1") -> None:
        landed = [(row["key"], row["status"]) for row in self.table(run)]
        assert landed == [(row["id"], "ok") for row in ROWS]

    def prompts_sent(self, run: str = "r1") -> set[str]:
        """First words of the prompts in the plan in force."""
        import json

        state = self.output(run) / "_gemini_batch"
        newest = max(state.glob("plan-*.json"), key=lambda path: int(path.stem.removeprefix("plan-")))
        work = json.loads(newest.read_text())["work"]
        lines = [line for path in (state / work / "requests").glob("*.jsonl") for line in path.read_text().splitlines()]
        return {json.loads(line)["request"]["contents"][0]["parts"][0]["text"].split()[0] for line in lines}


def table(output: Path) -> list[dict[str, Any]]:
    rows: list[Mapping[str, Any]] = []
    for part in output.glob("part-*.parquet"):
        rows += pq.ParquetFile(part).read().to_pylist()
    return sorted((dict(row) for row in rows), key=lambda row: row["key"])
