"""
Runs of 20 mapped batch tasks while a seeded monkey kills Airflow's processes and the service misbehaves; then a count of what
was paid and what landed::

    python -m tests.deployment.chaos --minutes 5 --seed 7

The seed fixes what the monkey chooses, not what it hits: processes keep their own time.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped]

from tests.deployment.cases import table
from tests.deployment.clients import OVER
from tests.deployment.rig import Deployment, NotAvailable, wait_for

DAG_ID = "chaos"
ROWS, PER_JOB = 30, 6
SLOTS = ROWS // PER_JOB
JOB_SECONDS = 20.0
KILL_EVERY = 5.0
"""Mean seconds between two kills."""

DAG = """\
from datetime import timedelta

from airflow.sdk import DAG

from airflow_gemini_batch.core.shards import Limits
from airflow_gemini_batch.operators.batch import GeminiBatchOperator

with DAG({dag_id!r}, max_active_runs=1, default_args={{"retries": 100, "retry_delay": timedelta(seconds=1)}}):
    GeminiBatchOperator.partial(
        task_id="ask", model="gemini-2.5-flash", prompt="Say {{text}}", key="id", poll_interval=2.0,
        limits=Limits(requests_per_job={per_job}),
    ).expand_kwargs([
        {{
            "source": f"{sources}/{{n}}.jsonl",
            "output": f"{outputs}/{{{{{{{{ run_id }}}}}}}}/{{n}}",
            "deferrable": n % 4 != 0,
        }}
        for n in range({tasks})
    ])
"""

# What may go wrong at the service: how often it strikes is drawn each time.
FAULTS: dict[str, Callable[[random.Random], dict[str, Any]]] = {
    "create: 503": lambda r: {"http_errors": {"create": {"status": 503, "times": r.randint(1, 6)}}},
    "create: 503 but done": lambda r: {
        "http_errors": {"create": {"status": 503, "times": r.randint(1, 4), "recorded": True}}
    },
    "create: HTML page": lambda r: {"http_errors": {"create": {"status": 502, "html": True, "times": r.randint(1, 4)}}},
    "create: reply lost": lambda r: {"drop_after": {"create": r.randint(1, 4)}},
    "create: connection lost": lambda r: {"drop_before": {"create": r.randint(1, 4)}},
    "create: too slow": lambda r: {"delay_seconds": {"create": 8}},
    "list: 503": lambda r: {"http_errors": {"list": {"status": 503, "times": r.randint(1, 20)}}},
    "list: lags": lambda r: {"list_lag": 4.0},
    "get: 429": lambda r: {"http_errors": {"get": {"status": 429, "times": r.randint(10, 200)}}},
    "get: 500": lambda r: {"http_errors": {"get": {"status": 500, "times": r.randint(10, 200)}}},
    "upload: 503": lambda r: {"http_errors": {"upload_start": {"status": 503, "times": r.randint(1, 10)}}},
    "upload: reply lost": lambda r: {"drop_after": {"upload_chunk": r.randint(1, 6)}},
    "download: broken off": lambda r: {
        "truncate_download": {"at": r.uniform(0.1, 0.9), "how": r.choice(["drop", "chunked"]), "times": r.randint(1, 10)}
    },
    # A body that is short of lines though its length is right is fetched a few times before it is believed.
    "download: short": lambda r: {"truncate_download": {"at": r.uniform(0.1, 0.9), "how": "short", "times": 2}},
    "download: 503": lambda r: {"http_errors": {"download": {"status": 503, "times": r.randint(1, 10)}}},
    "everything: 503": lambda r: {"http_errors": {"*": {"status": 503, "times": r.randint(5, 60)}}},
}  # fmt: skip


@dataclass
class Figures:
    """
    What was done to the deployment, and what came of it.

    :param creates: requests for a job that were sent; refused ones are free.
    :param adopted: jobs that nobody had recorded when they were found at the service and used.
    :param cancelled: jobs that ended cancelled: twins, found and stopped.
    :param paid_twice: jobs beyond one per slot that were not cancelled.
    """

    seed: int
    minutes: float
    kills: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    failed_replies: int = 0
    runs: int = 0
    tasks: int = 0
    unsuccessful: list[str] = field(default_factory=list)
    attempts: int = 0
    slots: int = 0
    creates: int = 0
    jobs: int = 0
    adopted: int = 0
    cancelled: int = 0
    paid_twice: int = 0
    rows: int = 0
    lost: int = 0
    duplicated: int = 0
    wrong: int = 0
    seconds: float = 0.0

    def problems(self) -> list[str]:
        wanted = self.tasks * SLOTS
        checks = {
            f"tasks that are not green: {', '.join(self.unsuccessful)}": self.unsuccessful,
            f"{self.slots} slots instead of {wanted}": self.slots != wanted,
            f"{self.jobs} jobs for {self.slots} slots, {self.cancelled} of them cancelled": (
                self.jobs - self.cancelled != self.slots
            ),
            f"{self.paid_twice} slots were paid twice": self.paid_twice,
            f"{self.lost} rows lost, {self.duplicated} duplicated, {self.wrong} wrong": (
                self.lost or self.duplicated or self.wrong
            ),
            "nothing was killed": not self.kills,
        }
        return [said for said, wrong in checks.items() if wrong]

    def __str__(self) -> str:
        lines: list[tuple[str, Any]] = [("seed", self.seed), ("minutes of chaos", f"{self.minutes:g}")]
        lines += [(f"killed: {kind}", n) for kind, n in sorted(self.kills.items())]
        lines += [("killed in all", sum(self.kills.values()))]
        lines += [(f"fault: {kind}", n) for kind, n in sorted(self.faults.items())]
        lines += [("failed replies", self.failed_replies)]
        names = (
            "runs", "tasks", "attempts", "slots", "creates", "jobs", "adopted", "cancelled", "paid_twice", "rows", "lost",
            "duplicated", "wrong",
        )  # fmt: skip
        lines += [(name.replace("_", " "), getattr(self, name)) for name in names]
        lines += [("seconds", f"{self.seconds:.0f}")]
        width = max(len(name) for name, _ in lines)
        return "\n".join(f"{name:<{width}}  {value:>8}" for name, value in lines)


class Monkey:
    """Kills something at random; whatever has died is started again by ``revive``."""

    def __init__(self, airflow: Deployment, rng: random.Random, figures: Figures) -> None:
        self._airflow, self._rng, self._figures = airflow, rng, figures
        self._due: dict[str, float] = {}

    def strike(self) -> None:
        kinds = {
            "task process": 6, "supervisor": 4, "supervisor and task": 2, "triggerer": 2, "triggerer's runner": 1,
            "scheduler": 1, "scheduler and workers": 1,
        }  # fmt: skip
        (kind,) = self._rng.choices(list(kinds), list(kinds.values()))
        # Drawn in any case, so that the choices that follow do not depend on what was there to be hit.
        pick, pause = self._rng.random(), self._rng.uniform(0, 4)
        hit = self._kill_component(kind, pause) if kind.startswith(("trig", "sched")) else self._kill_task(kind, pick)
        if hit:
            self._figures.kills[kind] += 1

    def _kill_task(self, kind: str, pick: float) -> bool:
        pairs = self._airflow.task_processes()
        if not pairs:
            return False
        supervisor, child = pairs[int(pick * len(pairs))]
        victims = {"task process": [child], "supervisor": [supervisor], "supervisor and task": [supervisor, child]}[
            kind
        ]
        for victim in victims:
            with suppress(psutil.NoSuchProcess):
                victim.kill()
        return True

    def _kill_component(self, kind: str, pause: float) -> bool:
        name = "triggerer" if kind.startswith("triggerer") else "scheduler"
        component = self._airflow.components[name]
        if not component.running or component.process is None:
            return False
        if kind == "triggerer's runner":
            for child in psutil.Process(component.process.pid).children():
                if "serve-logs" not in " ".join(child.cmdline()):
                    child.kill()
            return True
        self._airflow.kill(name, signal.SIGKILL, group=kind != "scheduler")
        self._due[name] = time.monotonic() + pause
        return True

    def revive(self, *, now: bool = False) -> None:
        """Start what has died and whose time has come, as a service manager would, and clear idle workers away."""
        resting = [] if now else [name for name, due in self._due.items() if time.monotonic() < due]
        self._airflow.revive(but_not=resting)
        for process in self._airflow.processes():
            # Workers of a killed scheduler finish their tasks, and then wait for ever.
            with suppress(psutil.NoSuchProcess):
                orphaned = process.ppid() == 1 or not process.parent()
                if orphaned and any(word in " ".join(process.cmdline()) for word in ("<idle>", "serve-logs")):
                    process.kill()


class Chaos:
    """One session: runs, kills and faults for a while, then calm, then the count."""

    def __init__(self, airflow: Deployment, *, minutes: float, seed: int, tasks: int = 20) -> None:
        self._airflow, self._minutes, self._tasks = airflow, minutes, tasks
        self._rng = random.Random(seed)
        self.figures = Figures(seed, minutes)
        self._monkey = Monkey(airflow, random.Random(seed + 1), self.figures)
        self._sources, self._outputs = airflow.home / "sources", airflow.outputs / DAG_ID
        self._runs: list[str] = []
        self._replies_until = 0.0

    def run(self) -> Figures:
        started = time.monotonic()
        self._write()
        end = started + self._minutes * 60
        next_kill, next_fault = started + 8, started
        while (now := time.monotonic()) < end:
            with suppress(httpx.TransportError, AssertionError):
                self._keep_running()
            if now >= next_kill:
                self._monkey.strike()
                next_kill = now + self._rng.expovariate(1 / KILL_EVERY)
            if now >= next_fault:
                self._misbehave()
                next_fault = now + self._rng.uniform(3, 8)
            self._monkey.revive()
            time.sleep(0.5)
        self._calm()
        self._count()
        self.figures.seconds = time.monotonic() - started
        return self.figures

    def _write(self) -> None:
        for fault in FAULTS.values():
            self._airflow.gemini.faults(**fault(random.Random(0)))  # a misspelt one must not surface in the middle
        self._airflow.gemini.faults()
        self._sources.mkdir()
        for n in range(self._tasks):
            rows = [{"id": _key(n, row), "text": f"row {row} of {n}"} for row in range(ROWS)]
            (self._sources / f"{n}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        code = DAG.format(
            dag_id=DAG_ID, per_job=PER_JOB, sources=self._sources, outputs=self._outputs, tasks=self._tasks
        )
        self._airflow.write_dag(DAG_ID, code)

    def _keep_running(self) -> None:
        """There is always a run under way."""
        api = self._airflow.api
        if not self._runs or api.run_state(DAG_ID, self._runs[-1]) in OVER:
            self._runs.append(api.trigger(DAG_ID, f"run-{len(self._runs)}"))

    def _misbehave(self) -> None:
        """Another mixture of faults, mostly about creates: only there money can be lost."""
        chosen = self._rng.sample(sorted(FAULTS), self._rng.choice([0, 1, 2]))
        chosen += self._rng.sample(
            [name for name in sorted(FAULTS) if name.startswith("create")], self._rng.choice([0, 1])
        )
        faults: dict[str, Any] = {}
        for name in dict.fromkeys(chosen):
            for setting, value in FAULTS[name](self._rng).items():
                faults[setting] = faults.get(setting, {}) | value if isinstance(value, dict) else value
            self.figures.faults[name] += 1
        self._count_failed_replies()
        self._airflow.gemini.faults(**faults)

    def _calm(self) -> None:
        self._airflow.gemini.faults()
        self._monkey.revive(now=True)
        self._airflow.wait_healthy()

        def over() -> bool:
            self._monkey.revive(now=True)
            return all(self._airflow.api.run_state(DAG_ID, run) in OVER for run in self._runs)

        with suppress(TimeoutError):  # the count tells what is not over
            wait_for(over, what="all runs are over", seconds=900, every=2)

    # The count -----------------------------------------------------------------------------------------------

    def _count(self) -> None:
        figures = self.figures
        self._count_failed_replies()
        figures.runs = len(self._runs)
        recorded: list[str] = []
        for run in self._runs:
            tasks = [task for task in self._airflow.api.tasks(DAG_ID, run) if task["task_id"] == "ask"]
            figures.tasks += self._tasks
            figures.attempts += sum(task["try_number"] for task in tasks)
            figures.unsuccessful += [
                f"{run}[{task['map_index']}] {task['state']} in try {task['try_number']}"
                for task in tasks
                if task["state"] != "success"
            ]
            for n in range(self._tasks):
                recorded += self._count_output(n, self._outputs / run / str(n))
        look = self._airflow.gemini.look()
        figures.creates, figures.jobs = look["calls"].get("create", 0), look["jobs_created"]
        figures.cancelled = sum(job["state"] == "CANCELLED" for job in look["jobs"])
        used = set(recorded)
        figures.paid_twice = sum(job["state"] != "CANCELLED" and job["name"] not in used for job in look["jobs"])

    def _count_output(self, n: int, output: Path) -> list[str]:
        """Add up one task's rows and slots; returns the jobs in its ledger."""
        figures, wanted = self.figures, {_key(n, row) for row in range(ROWS)}
        landed = table(output)
        keys = Counter(row["key"] for row in landed)
        figures.rows += len(landed)
        figures.lost += len(wanted - keys.keys())
        figures.duplicated += sum(count - 1 for count in keys.values())
        figures.wrong += sum(row["key"] not in wanted or row["status"] != "ok" for row in landed)
        jobs = []
        for plan in (output / "_gemini_batch").glob("plan-*.json"):
            slots = output / "_gemini_batch" / json.loads(plan.read_text())["work"] / "slots"
            for slot in slots.glob("*"):
                figures.slots += 1
                with suppress(FileNotFoundError):
                    submitted = json.loads((slot / "job.json").read_text())
                    jobs.append(submitted["job"])
                    figures.adopted += submitted["adopted"]
        return jobs

    def _count_failed_replies(self) -> None:
        """Calls that got an error or no reply since the last count; the emulator keeps the last 20,000."""
        new = [one for one in self._airflow.gemini.requests() if one["time"] > self._replies_until]
        self.figures.failed_replies += sum((one["status"] or 599) >= 400 for one in new)
        self._replies_until = max([self._replies_until, *(one["time"] for one in new)])


def _key(task: int, row: int) -> str:
    return f"{task}-{row}"


def main() -> int:
    """Returns the exit code: 1 when something was lost or paid twice, 2 when there is nothing to run it on."""
    parser = argparse.ArgumentParser(prog="python -m tests.deployment.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="how long things go wrong (default: 5)")
    parser.add_argument("--seed", type=int, default=random.randrange(10_000))
    parser.add_argument("--tasks", type=int, default=20)
    args = parser.parse_args()
    try:
        with Deployment(parallelism=8, job_seconds=JOB_SECONDS) as airflow:
            figures = Chaos(airflow, minutes=args.minutes, seed=args.seed, tasks=args.tasks).run()
    except NotAvailable as e:
        sys.stderr.write(f"error: {e}\n")
        return 2
    sys.stdout.write(f"{figures}\n")
    for problem in figures.problems():
        sys.stderr.write(f"PROBLEM: {problem}\n")
    return 1 if figures.problems() else 0


if __name__ == "__main__":
    sys.exit(main())
