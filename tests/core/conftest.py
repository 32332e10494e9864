"""What the tests of the core share: a clock that only moves when told, a client at the emulator, and small HTTP servers."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import certifi
import pytest

from airflow_gemini_batch.core.attempt import Policy, Run, Services
from airflow_gemini_batch.core.client import Client
from airflow_gemini_batch.core.flow import Waiting, advance
from airflow_gemini_batch.core.layout import OutputDirectory
from airflow_gemini_batch.core.manifest import Manifest
from airflow_gemini_batch.core.names import RunId
from airflow_gemini_batch.core.requests import Spec
from airflow_gemini_batch.core.rest import Account
from airflow_gemini_batch.core.rows import FileSource, RecordSource
from airflow_gemini_batch.core.waiting import Outcome, drive, watching
from airflow_gemini_batch.emulator import Emulator

MODEL = "gemini-2.5-flash"


@pytest.fixture(scope="session")
def one_certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate store with one entry: all of them take 50 ms to load, for each client anew, and all is plain HTTP."""
    end = "-----END CERTIFICATE-----\n"
    path = tmp_path_factory.mktemp("certificates") / "one.pem"
    path.write_text(Path(certifi.where()).read_text(encoding="utf-8").partition(end)[0] + end, encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch, one_certificate: Path) -> None:
    """Leave out what takes much of a test's time and cannot show here: certificates, and what a power cut leaves."""
    monkeypatch.setenv("SSL_CERT_FILE", str(one_certificate))
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@dataclass
class FakeTime:
    """Unix time that passes only in ``sleep``."""

    now: float = 1_900_000_000.0
    slept: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    async def asleep(self, seconds: float) -> None:
        self.sleep(seconds)


@pytest.fixture
def clock() -> FakeTime:
    return FakeTime()


@pytest.fixture
def connect(emulator: Emulator) -> Iterator[Callable[..., Client]]:
    """Make clients of the emulator, or of another address; their pauses cost no time."""
    with ExitStack() as stack:

        def make(url: str | None = None, *, key: str = "test-key", timeout: float = 5.0, **more: Any) -> Client:
            client = Client(Account(key, url or emulator.url, timeout=timeout), sleep=lambda _: None, **more)
            stack.callback(client.close)
            return client

        yield make


@pytest.fixture
def client(connect: Callable[..., Client]) -> Client:
    return connect()


@dataclass
class Served:
    """A server on loopback: what was asked of it."""

    url: str
    seen: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)


Answer = tuple[int, dict[str, str], bytes]


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """Start a server whose answers (status, headers, body) a function of (path, number of the request) gives."""
    with ExitStack() as stack:

        def start(answer: Callable[[str, int], Answer], host: str = "127.0.0.1") -> Served:
            class Handler(BaseHTTPRequestHandler):
                protocol_version = "HTTP/1.1"

                def do_GET(self) -> None:
                    body = self.rfile.read(int(self.headers.get("content-length") or 0))
                    served.seen.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                    status, headers, data = answer(self.path, len(served.seen) - 1)
                    self.send_response(status)
                    for name, value in ({"Content-Length": str(len(data)), "Connection": "close"} | headers).items():
                        self.send_header(name, value)
                    self.end_headers()
                    with suppress(ConnectionError):  # whoever asked may be gone
                        self.wfile.write(data)
                    self.close_connection = True

                do_POST = do_DELETE = do_GET  # noqa: N815

                def log_message(self, *args: object) -> None:
                    pass

            server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
            served = Served(f"http://{host}:{server.server_address[1]}")
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
            thread.start()
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            return served

        yield start


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """Make a run over a list of rows, or over files."""

    def make(
        rows: Iterable[Any] | tuple[Path, ...] = ("a", "b", "c"),
        *,
        run_id: str = "run-1",
        model: str = MODEL,
        prompt: str | None = None,
        key: str | None = None,
        keep: tuple[str, ...] = (),
        template: dict[str, Any] | None = None,
        clears: int | None = 0,
        out: str = "out",
        **policy: Any,
    ) -> Run:
        rows = list(rows)
        files = bool(rows) and all(isinstance(row, Path) for row in rows)
        source = FileSource(tuple(rows)) if files else RecordSource(rows)
        spec = Spec(model, prompt, template or {}, key, keep)
        settings = {"file_format": "jsonl"} | policy
        return Run(
            RunId("a_dag", "a_task", run_id),
            lambda: source,
            spec,
            OutputDirectory(tmp_path / out),
            Policy(**settings),
            clears,
        )

    return make


@pytest.fixture
def finish(client: Client) -> Callable[..., Manifest]:
    """Advance a run and wait for its jobs, again and again, until there is a manifest."""

    def go(run: Run, services: Services | None = None, *, interval: float = 0.01) -> Manifest:
        services = services or Services(client, sleep=lambda seconds: time.sleep(min(seconds, 0.02)))
        outcomes: tuple[Outcome, ...] = ()
        starting = True
        for _ in range(50):
            reached = advance(run, services, outcomes=outcomes, starting=starting)
            if isinstance(reached, Manifest):
                return reached
            assert isinstance(reached, Waiting)
            starting = False
            steps = watching(
                reached.waits, interval=interval, clock=services.clock, tell=lambda line: None, until=reached.not_before
            )
            outcomes = drive(steps, services.client.look_at_all, services.sleep)
        raise AssertionError("the run did not come to an end")

    return go
