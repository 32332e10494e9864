"""Runs the service over HTTP in a thread of this process: start, stop, address, and a view of what happened."""

from __future__ import annotations

import asyncio
import copy
import shutil
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import uvicorn

from airflow_gemini_batch.emulator.app import App
from airflow_gemini_batch.emulator.clock import Clock
from airflow_gemini_batch.emulator.faults import Faults
from airflow_gemini_batch.emulator.jobs import JobView
from airflow_gemini_batch.emulator.options import Options
from airflow_gemini_batch.emulator.service import RequestSeen, Service

START_SECONDS = 15.0
STOP_SECONDS = 1.0  # for requests under way


class _Server(uvicorn.Server):
    """uvicorn's server, but it stops within milliseconds: tests start and stop hundreds of them."""

    async def main_loop(self) -> None:
        self.loop, self.told = asyncio.get_running_loop(), asyncio.Event()
        while not await self.on_tick(0):  # 0: each tick sets the Date header anew
            with suppress(TimeoutError):
                await asyncio.wait_for(self.told.wait(), 0.5)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for listener in self.servers:
            listener.close()
        for one in sockets or ():
            one.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        end = time.monotonic() + STOP_SECONDS
        while (self.server_state.connections or self.server_state.tasks) and time.monotonic() < end:
            await asyncio.sleep(0.002)
        for task in self.server_state.tasks:
            task.cancel()

    def tell(self) -> None:
        self.should_exit = True
        if hasattr(self, "loop"):
            self.loop.call_soon_threadsafe(self.told.set)


class Emulator:
    """
    A Gemini Files and Batch service on this machine::

        with Emulator(states=["PENDING", "RUNNING", "SUCCEEDED"], faults=Faults(drop_keys={"row-7"})) as gemini:
            client = genai.Client(api_key="any", http_options={"base_url": gemini.url})

    :param port: 0 takes a free one.
    :param states: what successive looks (``get``, or ``list`` with the job on the page) show; the last one stays.
        A create always says PENDING. None: jobs move by clock.
    :param job_seconds: how long a job takes by clock, a quarter of it PENDING. 0: the first look finds it finished.
    :param faults: what goes wrong.
    :param api_keys: the keys that work; None: any that does not start with ``invalid``.
    :param processing_seconds: how long an uploaded file is PROCESSING.
    :param options: limits, and behaviours that are not known for sure.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        job_seconds: float = 0.0,
        states: Sequence[str] | None = None,
        faults: Faults | None = None,
        api_keys: Collection[str] | None = None,
        processing_seconds: float = 0.0,
        options: Options | None = None,
        log_level: str = "warning",
    ) -> None:
        self.host, self.port, self.log_level = host, port, log_level
        self._directory = Path(tempfile.mkdtemp(prefix="gemini-emulator-"))
        self._service = Service(
            self._directory,
            faults=faults or Faults(),
            options=options or Options(),
            states=states,
            job_seconds=job_seconds,
            processing_seconds=processing_seconds,
            api_keys=api_keys,
        )
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self._socket: socket.socket | None = None

    def start(self) -> Emulator:
        """Listen and serve; returns when requests are answered."""
        self._socket = socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((self.host, self.port))
        self.port = self._socket.getsockname()[1]
        config = uvicorn.Config(
            App(self._service), lifespan="off", log_level=self.log_level, access_log=False,
            timeout_keep_alive=75, server_header=False, log_config=None, backlog=1024,
        )  # fmt: skip
        self._server = _Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="gemini-emulator", daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + START_SECONDS
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"The emulator did not start on {self.host}:{self.port}")
            time.sleep(0.005)
        return self

    def stop(self) -> None:
        """Close connections, end the thread, remove the files. Safe to call twice."""
        self._service.close()
        if self._server is not None and self._thread is not None:
            if self._thread.is_alive():
                self._server.tell()
            self._thread.join(timeout=10)
        if self._socket is not None:
            self._socket.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def __enter__(self) -> Emulator:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The base URL, for ``http_options.base_url`` or ``GOOGLE_GEMINI_BASE_URL``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def calls(self) -> Counter[str]:
        """How often each call came in, refused ones included; a copy, with 0 for calls that never came."""
        return self._service.calls.copy()

    @property
    def requests(self) -> list[RequestSeen]:
        """The last requests, oldest first."""
        return [copy.copy(seen) for seen in list(self._service.log)]

    @property
    def jobs(self) -> list[JobView]:
        """All jobs that were not deleted, oldest first, in the state of the last look."""
        return [self._service.jobs.view(job) for job in reversed(list(self._service.jobs))]

    @property
    def jobs_created(self) -> int:
        """How many creates were recorded, those whose reply was dropped and those deleted since included."""
        return self._service.jobs.created

    @property
    def files(self) -> list[dict[str, Any]]:
        """The File messages of all files there are, oldest first, result files included."""
        return [self._service.shown(file) for file in reversed(list(self._service.files))]

    @property
    def webhooks_sent(self) -> list[tuple[str, str, int | None]]:
        """Every try of a webhook's delivery: message id, URI, and the status of the answer, None if there was none."""
        return list(self._service.webhooks.delivered)

    @property
    def faults(self) -> Faults:
        """What goes wrong. Setting it starts a new count of how often."""
        return self._service.faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        self._service.faults = faults

    @property
    def clock(self) -> Clock:
        """``clock.advance(seconds)`` lets time pass: expiry, jobs by clock, timestamps."""
        return self._service.clock

    def set_state(self, job_name: str, state: str, error: dict[str, Any] | None = None) -> None:
        """Force a job into a state such as ``"FAILED"``, with the operation's ``error`` or none."""
        self._service.set_state(self._service.jobs.get(job_name.removeprefix("batches/")), state, error)

    def read_file(self, name: str) -> bytes:
        """The bytes of a file, uploaded or generated."""
        return self._service.files.get(name.removeprefix("files/")).path.read_bytes()
