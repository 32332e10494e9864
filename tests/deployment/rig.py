"""
A whole Airflow for tests: PostgreSQL, api-server, dag-processor, scheduler with LocalExecutor, and triggerer as processes of
their own, beside the Gemini emulator as another. Any of them may be killed and started again.

It needs a PostgreSQL server that lets it create databases (``AIRFLOW_GEMINI_BATCH_TEST_POSTGRES``, by default
``postgresql://postgres@127.0.0.1:5432/postgres``, trusted without a password), and ``psycopg2-binary`` and ``asyncpg`` beside
Airflow. Ports are free ones; the home directory and the database are its own, and go when it stops.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import psutil  # type: ignore[import-untyped]

from tests.deployment.clients import AirflowApi, Gemini

POSTGRES = os.environ.get("AIRFLOW_GEMINI_BATCH_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/postgres")
COMPONENTS = ("api-server", "dag-processor", "scheduler", "triggerer")
HEALTH_NAMES = {"dag-processor": "dag_processor", "scheduler": "scheduler", "triggerer": "triggerer"}
CREATE_TIMEOUT = 5.0
"""Seconds that one call to Gemini may take: a create in doubt is settled within this and ``submitting.MARGIN``."""

T = TypeVar("T")


class NotAvailable(RuntimeError):
    """What a deployment needs is not there; says what that is."""


def wait_for(look: Callable[[], T], *, what: str, seconds: float = 120.0, every: float = 0.5) -> T:
    """
    Look until there is something true, and return it.

    :raises TimeoutError: it did not come about; names what was waited for and what was seen last.
    """
    end = time.monotonic() + seconds
    while True:
        if seen := look():
            return seen
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds:g} s: {what}; seen last: {seen!r}")
        time.sleep(every)


@dataclass
class Component:
    """One process with a group of its own, so that a signal reaches all that it started."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str]
    log: Path
    cwd: Path
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0

    def start(self) -> None:
        self.started = time.time()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, env=self.env, cwd=self.cwd, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def send(self, number: int, *, group: bool) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):
                (os.killpg if group else os.kill)(self.process.pid, number)

    def kill(self, number: int = signal.SIGKILL, *, group: bool = True, seconds: float = 15.0) -> None:
        """Send the signal and wait for the end; SIGKILL follows if it does not come."""
        if self.process is None:
            return
        self.send(number, group=group)
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL, group=True)
            self.process.wait(seconds)

    def tail(self, characters: int = 3000) -> str:
        return self.log.read_text(errors="replace")[-characters:] if self.log.exists() else ""


@dataclass
class Deployment:
    """
    Use it as a context manager; it is healthy inside.

    :param key: the only API key that the emulator takes. It reaches Airflow in an environment variable alone.
    :param parallelism: tasks at a time.
    :param job_seconds: how long the emulator's jobs take.
    """

    key: str = field(default_factory=lambda: f"canary-{secrets.token_hex(16)}")
    parallelism: int = 4
    job_seconds: float = 0.0
    home: Path = field(init=False)
    components: dict[str, Component] = field(init=False, default_factory=dict)
    api: AirflowApi = field(init=False)
    gemini: Gemini = field(init=False)

    def __post_init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="airflow-gemini-batch-deployment-"))
        self.dags, self.outputs, self.logs = self.home / "dags", self.home / "outputs", self.home / "logs"
        for directory in (self.dags, self.outputs, self.logs):
            directory.mkdir()
        self.database = f"agb_deployment_{secrets.token_hex(6)}"

    # Life ----------------------------------------------------------------------------------------------------

    def __enter__(self) -> Deployment:
        try:
            check_available()
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def _start(self) -> None:
        with _connected(POSTGRES) as cursor:
            cursor.execute(f"CREATE DATABASE {self.database}")
        self._start_emulator()
        port = free_port()
        self.env = self._environment(port)
        migrated = subprocess.run(
            [*AIRFLOW, "db", "migrate"], env=self.env, cwd=self.home, capture_output=True, text=True, timeout=300
        )
        if migrated.returncode:
            raise RuntimeError(f"airflow db migrate failed:\n{migrated.stdout[-2000:]}{migrated.stderr[-4000:]}")
        for name in COMPONENTS:
            self._add(name, [*AIRFLOW, name], self.env).start()
        self.api = AirflowApi(f"http://127.0.0.1:{port}", alive=self.check_running)
        self.wait_healthy()

    def _start_emulator(self) -> None:
        ready = self.home / "emulator-ready"
        command = [
            sys.executable, "-m", "airflow_gemini_batch.emulator", "--port", "0", "--ready-file", str(ready),
            "--api-key", self.key, "--job-seconds", str(self.job_seconds),
        ]  # fmt: skip
        emulator = self._add("emulator", command, self._bare_environment())
        emulator.start()
        url = wait_for(lambda: ready.exists() and ready.read_text(), what="the emulator is ready", seconds=60)
        self.gemini = Gemini(str(url))

    def _add(self, name: str, command: Sequence[str], env: Mapping[str, str]) -> Component:
        component = Component(name, command, env, self.logs / f"{name}.out", self.home)
        self.components[name] = component
        return component

    def stop(self) -> None:
        """End everything, look for what escaped, and remove the database and the home. Safe to call at any point."""
        for closing in ("api", "gemini"):
            if (client := getattr(self, closing, None)) is not None:
                client.close()
        for component in self.components.values():
            component.send(signal.SIGTERM, group=True)
        for component in self.components.values():
            component.kill(signal.SIGTERM, seconds=10)
            component.send(signal.SIGKILL, group=True)
        # Task processes lead groups of their own, and outlive a killed supervisor.
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        with suppress(TimeoutError):
            wait_for(lambda: not self.processes(), what="all processes are gone", seconds=10)
        left = self.processes()
        with suppress(NotAvailable), _connected(POSTGRES) as cursor:
            cursor.execute(f"DROP DATABASE IF EXISTS {self.database} WITH (FORCE)")
        if not os.environ.get("AIRFLOW_GEMINI_BATCH_KEEP"):
            shutil.rmtree(self.home, ignore_errors=True)
        if left:
            raise RuntimeError(f"could not be ended: {left}")

    # Processes -----------------------------------------------------------------------------------------------

    def processes(self) -> list[psutil.Process]:
        """Every process of this deployment, orphans included, known by the home in its environment."""
        return [process for process in psutil.process_iter() if self._owns(process)]

    def _owns(self, process: psutil.Process) -> bool:
        try:
            environ = process.environ()
            return environ.get("DEPLOYMENT_HOME") == str(self.home) and process.status() != psutil.STATUS_ZOMBIE  # type: ignore[no-any-return]
        except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
            return False

    def task_processes(self) -> list[tuple[psutil.Process, psutil.Process]]:
        """Each running task as (supervisor, child): the worker of the executor, and the process with the task's code."""
        pairs = []
        for worker in self.processes():
            with suppress(psutil.NoSuchProcess):
                if "LocalExecutor" in " ".join(worker.cmdline()):
                    pairs += [(worker, child) for child in worker.children()]
        return pairs

    def check_running(self) -> None:
        """:raises RuntimeError: a component has ended by itself; shows the end of its log."""
        for component in self.components.values():
            if component.process is not None and not component.running:
                raise RuntimeError(f"{component.name} ended with {component.process.returncode}:\n{component.tail()}")

    def kill(self, name: str, number: int = signal.SIGKILL, *, group: bool = True) -> None:
        """
        :param group: also what it started; False leaves, for example, a scheduler's workers and their tasks as orphans.
        """
        component = self.components[name]
        component.kill(number, group=group)
        component.process = None

    def restart(self, name: str, *, healthy: bool = True) -> None:
        self.components[name].start()
        if healthy:
            self.wait_healthy(name)

    def revive(self, *, but_not: Collection[str] = ()) -> list[str]:
        """Start what has ended, as a service manager would; returns what that was."""
        dead = [name for name, component in self.components.items() if not component.running and name not in but_not]
        for name in dead:
            self.components[name].kill()  # what it left in its group holds its ports
            self.restart(name, healthy=False)
        return dead

    def wait_healthy(self, *names: str, seconds: float = 180.0) -> None:
        """Wait until the api-server answers, and the others have given a sign of life since they were started."""

        def fresh() -> bool:
            self.check_running()
            health = self.api.health()
            return health is not None and all(
                _heartbeat(health, HEALTH_NAMES[name]) > self.components[name].started
                for name in names or HEALTH_NAMES
                if name in HEALTH_NAMES
            )

        wait_for(fresh, what=f"Airflow is healthy ({', '.join(names) or 'all'})", seconds=seconds)

    # Database and files --------------------------------------------------------------------------------------

    @property
    def database_url(self) -> str:
        return urlunsplit(urlsplit(POSTGRES)._replace(path=f"/{self.database}"))

    def cut_database_connections(self) -> int:
        """Break every connection of this deployment to its database; returns how many there were."""
        with _connected(POSTGRES) as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (self.database,)
            )
            return len(cursor.fetchall())

    def dump_database(self) -> bytes:
        """The metadata database as SQL."""
        tool = shutil.which("pg_dump")
        if tool is None:
            raise NotAvailable("pg_dump is needed (package postgresql-client)")
        dumped = subprocess.run([tool, "--dbname", self.database_url], capture_output=True, timeout=300)
        if dumped.returncode:
            raise NotAvailable(f"pg_dump failed: {dumped.stderr.decode(errors='replace')[-500:]}")
        return dumped.stdout

    def write_dag(self, dag_id: str, code: str) -> None:
        """Put a DAG file in place, or another version of it, and wait until Airflow has read it."""
        path = self.dags / f"{dag_id}.py"
        before = self.api.parsed_at(dag_id)
        whole = path.with_suffix(".new")
        whole.write_text(code)
        whole.replace(path)

        def read() -> bool:
            if errors := self.api.import_errors(path.name):
                raise AssertionError(f"{path.name} cannot be imported:\n{errors}")
            return (at := self.api.parsed_at(dag_id)) is not None and at != before

        wait_for(read, what=f"{path.name} is parsed", seconds=180)

    def _bare_environment(self) -> dict[str, str]:
        # The tests' own Airflow home must not leak in. Process titles must not overwrite the environment, by which we
        # know our processes.
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PYTEST", "COV_"))}
        return kept | {"DEPLOYMENT_HOME": str(self.home), "SPT_NOENV": "1"}

    def _environment(self, port: int) -> dict[str, str]:
        from cryptography.fernet import Fernet

        base = f"http://127.0.0.1:{port}"
        database = urlunsplit(urlsplit(self.database_url)._replace(scheme="postgresql+psycopg2"))
        connection = {
            "conn_type": "gemini_batch", "host": self.gemini.url, "password": self.key,
            "extra": {"timeout": CREATE_TIMEOUT},
        }  # fmt: skip
        settings: dict[str, dict[str, Any]] = {
            "api": {"base_url": base, "host": "127.0.0.1", "port": port, "secret_key": secrets.token_hex(16), "workers": 1},
            "api_auth": {"jwt_secret": secrets.token_hex(32)},
            "core": {
                "dags_folder": self.dags, "load_examples": False, "executor": "LocalExecutor",
                "execution_api_server_url": f"{base}/execution/", "fernet_key": Fernet.generate_key().decode(),
                "parallelism": self.parallelism, "max_active_tasks_per_dag": 64, "dags_are_paused_at_creation": False,
                "simple_auth_manager_all_admins": True,
            },
            "database": {"sql_alchemy_conn": database},
            "dag_processor": {
                "refresh_interval": 2, "bundle_refresh_check_interval": 1, "min_file_process_interval": 600,
                "parsing_processes": 1,
            },
            "logging": {"worker_log_server_port": free_port(), "trigger_log_server_port": free_port()},
            # Deaths are noticed in seconds; by default it takes minutes.
            "scheduler": {
                "task_instance_heartbeat_sec": 3, "task_instance_heartbeat_timeout": 30,
                "task_instance_heartbeat_timeout_detection_interval": 5, "trigger_timeout_check_interval": 3,
                "scheduler_heartbeat_sec": 2, "scheduler_health_check_threshold": 15,
                "orphaned_tasks_check_interval": 10, "task_queued_timeout": 60, "task_queued_timeout_check_interval": 10,
            },
            "triggerer": {"triggerer_health_check_threshold": 15, "job_heartbeat_sec": 2},
        }  # fmt: skip
        return self._bare_environment() | {
            "AIRFLOW_HOME": str(self.home),
            "AIRFLOW_CONN_GEMINI_BATCH_DEFAULT": json.dumps(connection),
        } | {
            f"AIRFLOW__{section.upper()}__{name.upper()}": str(value)
            for section, options in settings.items()
            for name, value in options.items()
        }  # fmt: skip


AIRFLOW = (sys.executable, "-m", "airflow")


def _heartbeat(health: Mapping[str, Any], name: str) -> float:
    from datetime import datetime

    at = health.get(name, {}).get(f"latest_{name}_heartbeat")
    return datetime.fromisoformat(at).timestamp() if at else 0.0


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextmanager
def _connected(url: str) -> Iterator[Any]:
    import psycopg2  # type: ignore[import-untyped]

    try:
        connection = psycopg2.connect(url, connect_timeout=10)
    except psycopg2.OperationalError as e:
        raise NotAvailable(f"No PostgreSQL at {url}: {str(e).strip()}") from e
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            yield cursor
    finally:
        connection.close()


def check_available() -> None:
    """:raises NotAvailable: something that a deployment needs is missing; says how to get it."""
    for module, package in (("psycopg2", "psycopg2-binary"), ("asyncpg", "asyncpg")):
        if importlib.util.find_spec(module) is None:
            raise NotAvailable(f"Airflow needs {package} to use PostgreSQL: pip install {package}")
    try:
        with _connected(POSTGRES):
            pass
    except NotAvailable as e:
        raise NotAvailable(
            f"{e}. Start one, e.g. `docker run -p 127.0.0.1:5432:5432 -e POSTGRES_HOST_AUTH_METHOD=trust postgres:16`, or "
            "name one whose user may create databases in AIRFLOW_GEMINI_BATCH_TEST_POSTGRES."
        ) from e
