"""
What the crash tests share: a rig that runs attempts of one task as processes of their own against an emulator in this
one, kills them where it is told, and checks afterwards what was paid and what landed.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from airflow_gemini_batch.emulator import Emulator

SCRIPT = Path(__file__).with_name("attempt.py")
DEAD = -signal.SIGKILL
ANSWER = ("key", "status", "text", "finish_reason", "prompt_tokens", "output_tokens", "kept")
PATIENCE = 60.0


class Zygote:
    """A process that has imported Airflow and the SDK, and forks an attempt in milliseconds instead of seconds."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(SCRIPT), "--zygote"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def fork(self, settings: Path) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{settings}\n")
        self._process.stdin.flush()

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(10)


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    one = Zygote()
    yield one
    one.close()


@dataclass
class Ended:
    """
    How an attempt ended.

    :param code: 0, 1 after an exception, or minus the number of the signal that killed it.
    :param told: what it printed: ``manifest``, ``deferred``, ``event``, or ``error``, ``retryable``, ``message``.
    """

    code: int
    told: dict[str, Any]
    directory: Path

    @property
    def manifest(self) -> dict[str, Any]:
        assert "manifest" in self.told, f"{self.told}\n{self.log}"
        return self.told["manifest"]  # type: ignore[no-any-return]

    @property
    def error(self) -> str | None:
        return self.told.get("error")

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text() if (self.directory / "log").exists() else ""


@dataclass
class Attempt:
    """An attempt that was started."""

    directory: Path

    def _appears(self, name: str) -> str:
        end = time.monotonic() + PATIENCE
        while not (self.directory / name).exists():
            assert time.monotonic() < end, f"no {name} after {PATIENCE} s\n{Ended(0, {}, self.directory).log}"
            time.sleep(0.004)
        return (self.directory / name).read_text()

    @property
    def pid(self) -> int:
        return int(self._appears("pid"))

    @property
    def over(self) -> bool:
        return (self.directory / "exit").exists()

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait_until_stopped(self) -> None:
        """Return when the process has stopped itself."""
        stat = Path(f"/proc/{self.pid}/stat")
        end = time.monotonic() + PATIENCE
        while stat.read_text().rpartition(")")[2].split()[0] != "T":
            assert time.monotonic() < end
            time.sleep(0.004)

    def wait(self) -> Ended:
        code = int(self._appears("exit"))
        out = (self.directory / "stdout").read_text().strip().splitlines()
        told = json.loads(out[-1]) if code in (0, 1) and out else {}
        ended = Ended(code, told, self.directory)
        assert code in (0, 1) or code < 0, (self.directory / "stderr").read_text()
        return ended

    def end(self) -> None:
        """Make sure that nothing of it is left running."""
        if not self.over and (self.directory / "pid").exists():
            for number in (signal.SIGKILL, signal.SIGCONT):
                with suppress(ProcessLookupError):
                    self.send(number)


@dataclass
class Rig:
    """One task of one run, its source and its output, and the emulator that it speaks to."""

    zygote: Zygote
    emulator: Emulator
    directory: Path
    settings: dict[str, Any] = field(default_factory=dict)
    key: str = field(default="test-key", repr=False)
    timeout: float = 2.0
    url: str = ""
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def source(self) -> Path:
        return self.directory / "rows.jsonl"

    @property
    def output(self) -> Path:
        return self.directory / "out"

    def write_rows(self, count: int = 6, *, text: str = "a bicycle, well kept") -> None:
        rows = [{"id": f"row-{n}", "text": f"{text} {n}", "kept": n} for n in range(count)]
        self.source.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def start(
        self,
        *,
        trap: tuple[Any, ...] | None = None,
        part: str = "all",
        try_number: int = 1,
        max_tries: int = 3,
        run_id: str = "run-1",
        more: Mapping[str, Any] | None = None,
        **operator: Any,
    ) -> Attempt:
        """
        Start an attempt.

        :param trap: ``at``, ``when``, and if wanted ``nth`` and ``signal``; see ``attempt.py``.
        :param more: further settings of the attempt; ``operator`` are the operator's.
        """
        if not self.source.exists():
            self.write_rows()
        directory = self.directory / f"attempt-{len(self.attempts) + 1}"
        directory.mkdir()
        connection = {
            "conn_type": "gemini_batch", "host": self.url or self.emulator.url, "password": self.key,
            "extra": {"timeout": self.timeout},
        }  # fmt: skip
        settings = {
            "operator": {
                "model": "gemini-2.5-flash", "source": str(self.source), "output": str(self.output), "key": "id",
                "prompt": "{id} is {text}", "keep": ["kept"], "poll_interval": 0.05, "deferrable": True,
            } | self.settings | operator,
            "task": {
                "dag_id": "a_dag", "task_id": "a_task", "run_id": run_id, "map_index": -1, "try_number": try_number,
                "max_tries": max_tries,
            },
            "part": part,
            "env": {"AIRFLOW_CONN_GEMINI_BATCH_DEFAULT": json.dumps(connection)},
        } | dict(more or {})  # fmt: skip
        if trap:
            settings["trap"] = dict(zip(("at", "when", "nth", "signal"), trap, strict=False))
        path = directory / "settings.json"
        path.write_text(json.dumps(settings))
        self.zygote.fork(path)
        self.attempts.append(Attempt(directory))
        return self.attempts[-1]

    def run(self, **settings: Any) -> Ended:
        return self.start(**settings).wait()

    def kill(self, trap: tuple[Any, ...], **settings: Any) -> Ended:
        """Run an attempt that must be killed at the trap."""
        ended = self.run(trap=trap, **settings)
        assert ended.code == DEAD, f"it was to be killed at {trap}, but: {ended.told}\n{ended.log}"
        return ended

    def stop(self, trap: tuple[Any, ...], **settings: Any) -> Attempt:
        """Start an attempt that stops at the trap and goes on with SIGCONT."""
        attempt = self.start(trap=(*trap, 1, "STOP")[:4] if len(trap) == 2 else (*trap, "STOP"), **settings)
        attempt.wait_until_stopped()
        return attempt

    def landed(self) -> list[dict[str, Any]]:
        """Every row of the files that the manifest on storage names, ordered by key."""
        import pyarrow.parquet as pq

        rows: list[dict[str, Any]] = []
        for name in self.manifest()["files"]:
            rows += pq.read_table(name).to_pylist()
        return sorted(rows, key=lambda row: str(row["key"]))

    def answers(self) -> list[dict[str, Any]]:
        """The landed rows without what differs from job to job."""
        return [{name: row.get(name) for name in ANSWER} for row in self.landed()]

    def manifest(self) -> dict[str, Any]:
        return json.loads((self.output / "_gemini_batch" / "manifest.json").read_text())  # type: ignore[no-any-return]

    def work(self) -> Path:
        """The work directory of the plan in force."""
        plans = sorted((self.output / "_gemini_batch").glob("plan-*.json"))
        return self.output / "_gemini_batch" / str(json.loads(plans[-1].read_text())["work"])

    def check_table(self, rows: int) -> None:
        """The table is whole and trustworthy, and nothing half-made stands beside it."""
        manifest = self.manifest()
        assert manifest["rows"] == rows
        assert sum(manifest["counts"].values()) == rows
        keys = [row["key"] for row in self.landed()]
        assert sorted(keys) == sorted(f"row-{n}" for n in range(rows))
        visible = {path for path in self.output.iterdir() if not path.name.startswith((".", "_"))}
        assert visible == {Path(name) for name in manifest["files"]}
        for path in self.output.rglob("*"):
            if path.is_file() and not path.name.startswith("."):
                assert path.suffix in (".parquet", ".json", ".jsonl"), f"what is {path}?"
                if path.suffix != ".parquet":
                    for line in [path.read_text()] if path.suffix == ".json" else path.read_text().splitlines():
                        json.loads(line)

    def end(self) -> None:
        for attempt in self.attempts:
            attempt.end()


@pytest.fixture
def make_rig(zygote: Zygote, tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    """Make a rig with an emulator of these settings; every job ends at the first look by default."""
    with ExitStack() as stack:

        def make(emulator: Mapping[str, Any] | None = None, **settings: Any) -> Rig:
            gemini = stack.enter_context(Emulator(**(emulator or {})))
            directory = tmp_path / f"rig-{len(list(tmp_path.iterdir()))}"
            directory.mkdir()
            rig = Rig(zygote, gemini, directory, settings)
            stack.callback(rig.end)
            return rig

        yield make


@pytest.fixture
def rig(make_rig: Callable[..., Rig]) -> Rig:
    return make_rig()


@pytest.fixture(scope="session")
def undisturbed(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Rig], list[dict[str, Any]]]:
    """What a rig's rows are answered with when nothing goes wrong: each distinct source is asked once."""
    known: dict[str, list[dict[str, Any]]] = {}

    def answers(rig: Rig) -> list[dict[str, Any]]:
        source = rig.source.read_text()
        if source not in known:
            with Emulator() as gemini:
                clean = Rig(zygote, gemini, tmp_path_factory.mktemp("undisturbed"))
                clean.source.write_text(source)
                assert clean.run().code == 0
                known[source] = clean.answers()
        return known[source]

    return answers


@pytest.fixture
def check_paid_once(undisturbed: Callable[[Rig], list[dict[str, Any]]]) -> Callable[..., None]:
    """One job per slot was paid, and the table is that of a run in which nothing went wrong."""

    def check(rig: Rig, *, jobs: int, rows: int = 6) -> None:
        rig.check_table(rows)
        assert rig.answers() == undisturbed(rig)
        assert rig.emulator.jobs_created == jobs
        assert len(rig.manifest()["jobs"]) == jobs

    return check


# In this process, with a clock that jumps ---------------------------------------------------------------------------


class Line:
    """
    A line to the emulator that can be cut: then connections are refused, as when a host or a proxy is down.

    :param late: seconds by which creates reach the emulator late, also when their sender has hung up.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self.late = 0.0
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._serve()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cut(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in self._open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._open.clear()

    def mend(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._serve()

    def _serve(self) -> None:
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                self._open += [near, far]
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if self.late and b":batchGenerateContent" in data:
                    time.sleep(self.late)
                target.sendall(data)
            if self.late:
                time.sleep(0.3)  # a server that sees the end at once may not begin
            target.shutdown(socket.SHUT_WR)


@dataclass
class Bench:
    """
    One run, driven through the core in this process. The emulator's clock is the only one, and every pause moves it:
    a night takes as long as its looks.

    :param deferred: look as the triggerer does.
    :param nights: what happens when so many seconds have passed.
    """

    emulator: Emulator
    directory: Path
    deferred: bool = False
    timeout: float = 0.5
    interval: float = 60.0
    rows: list[dict[str, Any]] = field(
        default_factory=lambda: [{"id": f"row-{n}", "text": f"a bicycle, well kept {n}", "kept": n} for n in range(6)]
    )
    url: str = ""
    key: str = field(default="test-key", repr=False)
    told: list[str] = field(default_factory=list)
    nights: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    slept: float = 0.0

    def now(self) -> float:
        return self.emulator.clock.now() / 1e9

    def sleep(self, seconds: float) -> None:
        self.emulator.clock.advance(seconds)
        self.slept += seconds
        while self.nights and self.nights[0][0] <= self.slept:
            self.nights.pop(0)[1]()

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Let something happen when the run has slept this long in all."""
        self.nights.append((seconds, action))
        self.nights.sort(key=lambda night: night[0])

    def with_faults(self, faults: Any) -> Callable[[], None]:
        return lambda: setattr(self.emulator, "faults", faults)

    @property
    def account(self) -> Any:
        from airflow_gemini_batch.core.rest import Account

        return Account(self.key, self.url or self.emulator.url, timeout=self.timeout)

    def services(self) -> Any:
        from airflow_gemini_batch.core.attempt import Services
        from airflow_gemini_batch.core.client import Client

        return Services(Client(self.account, sleep=self.sleep), self.now, self.sleep)

    def a_run(self, *, jobs_of: int = 50_000, run_id: str = "run-1", clears: int | None = None, **policy: Any) -> Any:
        from airflow_gemini_batch.core.attempt import Policy, Run
        from airflow_gemini_batch.core.layout import OutputDirectory
        from airflow_gemini_batch.core.names import RunId
        from airflow_gemini_batch.core.requests import Spec
        from airflow_gemini_batch.core.rows import RecordSource
        from airflow_gemini_batch.core.shards import Limits

        return Run(
            RunId("a_dag", "a_task", run_id),
            lambda: RecordSource(list(self.rows)),
            Spec("gemini-2.5-flash", "{id} is {text}", key="id", keep=("kept",)),
            OutputDirectory(self.directory / "out"),
            Policy(**{"limits": Limits(requests_per_job=jobs_of)} | policy),
            clears,
        )

    def attempt(self, **settings: Any) -> Any:
        """One attempt, as the operator goes about it; returns the manifest."""
        from airflow_gemini_batch.core.flow import Waiting, advance
        from airflow_gemini_batch.core.waiting import drive, watching

        from ..looking import wait_at_once

        services, run = self.services(), self.a_run(**settings)
        outcomes, starting = (), True
        try:
            while isinstance(reached := advance(run, services, outcomes=outcomes, starting=starting), Waiting):
                how: Any = {"interval": self.interval, "tell": self.told.append, "until": reached.not_before}
                if not self.deferred:
                    steps = watching(reached.waits, clock=self.now, **how)
                    outcomes = drive(steps, services.client.look_at_all, self.sleep)
                elif reached.waits:
                    outcomes = wait_at_once(self.account, reached.waits, sleep=self.sleep, clock=self.now, **how)
                else:
                    self.sleep(reached.not_before - self.now())
                    outcomes = ()
                starting = False
            return reached
        finally:
            services.client.close()

    def error(self, **settings: Any) -> Any:
        """One attempt; returns the error that it ended with, None if it went well."""
        from airflow_gemini_batch.exceptions import GeminiBatchError

        try:
            self.attempt(**settings)
        except GeminiBatchError as e:
            return e
        return None

    def landed(self) -> dict[str, dict[str, Any]]:
        """The landed rows by key; a key that came twice is a failed test."""
        import pyarrow.parquet as pq

        manifest = json.loads((self.directory / "out" / "_gemini_batch" / "manifest.json").read_text())
        rows = [row for name in manifest["files"] for row in pq.read_table(name).to_pylist()]
        assert len({row["key"] for row in rows}) == len(rows)
        assert sum(manifest["counts"].values()) == manifest["rows"] == len(rows) == len(self.rows)
        return {row["key"]: row for row in rows}

    def check_paid_once(self, *, jobs: int = 1) -> None:
        """So many jobs were created, and each row is landed with the answer to its own prompt."""
        assert self.emulator.jobs_created == jobs
        landed = self.landed()
        for row in self.rows:
            answer = landed[row["id"]]
            assert answer["status"] == "ok"
            assert row["id"] in answer["text"], "the emulator repeats the first words of what it was asked"
            assert answer["kept"] == row["kept"]


@pytest.fixture
def make_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Bench]]:
    """Make a bench with an emulator of these settings."""
    from airflow_gemini_batch.core import patience

    # Here pauses cost nothing, so they are as long as they really are.
    monkeypatch.setattr(patience, "FIRST", 30.0)
    monkeypatch.setattr(patience, "LONGEST", 600.0)
    with ExitStack() as stack:

        def make(emulator: Mapping[str, Any] | None = None, **settings: Any) -> Bench:
            gemini = stack.enter_context(Emulator(**(emulator or {})))
            return Bench(gemini, tmp_path, **settings)

        yield make


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    return make_bench()


@pytest.fixture
def make_line() -> Iterator[Callable[[Emulator], Line]]:
    with ExitStack() as stack:

        def make(emulator: Emulator) -> Line:
            line = Line(emulator.port)
            stack.callback(line.cut)
            return line

        yield make
