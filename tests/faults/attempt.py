"""
One attempt of a task in a process of its own, which may end itself at a chosen point, as SIGKILL ends it.

    python attempt.py settings.json      run one attempt, print what became of it as one line of JSON
    python attempt.py --zygote           import everything once, then fork an attempt for each path that comes on stdin

The package has no hooks for this: a trap wraps one of its functions from outside. Settings::

    operator    arguments of GeminiBatchOperator; "limits" and "budget" as mappings
    task        dag_id, task_id, run_id, map_index, try_number, max_tries
    part        "all": execute, trigger, resume, as Airflow would in three processes; or one of the three alone, with
                "trigger": [path, kwargs] or "event" as the part before it printed them
    env         more environment variables
    log_level   of the root logger, which writes to the file "log" beside the settings
    trap        {"at": "module:name", "when": ..., "nth": 1, "signal": "KILL"}, when being
                "before" or "after" the call; "reading": in the nth read of the file being uploaded;
                "writing": with half of the nth piece of a download written;
                "sent": the request has left; "answered": its answer has come and nobody has read it
    margin, look_every, sure_after       shorter patience than the package has
"""

from __future__ import annotations

import asyncio
import importlib
import io
import json
import logging
import os
import select
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any


def prepare_airflow() -> None:
    """A throw-away home, unless the caller has made one. Airflow reads it when it is imported."""
    if "AIRFLOW_HOME" not in os.environ:
        home = tempfile.mkdtemp(prefix="airflow-gemini-batch-attempt-")
        os.environ |= {"AIRFLOW_HOME": home, "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db"}
    os.environ.setdefault("AIRFLOW__CORE__LOAD_EXAMPLES", "False")


def import_everything() -> None:
    """
    What takes seconds, before the fork. Much is imported only when it is used: a child runs a task to its end and
    tells which modules that took. It is a child, so that its threads and sockets are not in here.
    """
    reading, writing = os.pipe()
    if os.fork() == 0:
        try:
            with tempfile.TemporaryDirectory() as directory:
                dry_run(Path(directory))
        finally:
            with os.fdopen(writing, "w") as pipe:
                pipe.write(" ".join(sys.modules))
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        names = pipe.read().split()
    os.wait()
    for name in names:
        with suppress(Exception):
            importlib.import_module(name)
    from genai_prices.data_snapshot import get_snapshot

    get_snapshot()


def dry_run(directory: Path) -> None:
    from airflow_gemini_batch.emulator import Emulator

    (directory / "rows.jsonl").write_text('{"id": "a", "text": "b"}\n')
    with Emulator() as gemini:
        connection = {"conn_type": "gemini_batch", "host": gemini.url, "password": "a-key-that-is-none"}
        operator = {
            "model": "gemini-2.5-flash", "source": str(directory / "rows.jsonl"), "output": str(directory / "out"),
            "prompt": "{id} {text}", "deferrable": True,
        }  # fmt: skip
        task = {"dag_id": "a", "task_id": "a", "run_id": "a", "map_index": -1, "try_number": 1, "max_tries": 0}
        env = {"AIRFLOW_CONN_GEMINI_BATCH_DEFAULT": json.dumps(connection)}
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        attempt({"operator": operator, "task": task, "env": env}, directory)


def few_authorities() -> None:
    """Nothing here speaks TLS, yet every client reads all certificate authorities: 25 ms each. One is enough."""
    import certifi

    end = "-----END CERTIFICATE-----"
    with tempfile.NamedTemporaryFile("w", suffix=".pem", delete=False) as file:
        file.write(Path(certifi.where()).read_text().partition(end)[0] + end + "\n")
    os.environ["SSL_CERT_FILE"] = file.name


# Traps ----------------------------------------------------------------------------------------------------


class Trap:
    """Strikes once, at the nth time that the process comes by."""

    def __init__(self, nth: int, number: int) -> None:
        self.left, self.number = nth, number

    def spring(self) -> None:
        self.left -= 1
        if self.left == 0:
            logging.getLogger("trap").warning("struck with signal %s", self.number)
            os.kill(os.getpid(), self.number)


class DyingFile(io.BufferedReader):
    """A file that springs the trap when it is read."""

    trap: Trap

    def read(self, size: int | None = -1, /) -> bytes:
        self.trap.spring()
        return super().read(-1 if size is None else size)


class DyingPath:
    """A path whose file is a :class:`DyingFile`."""

    def __init__(self, path: Path, trap: Trap) -> None:
        self._path, self._trap = path, trap

    def open(self, mode: str) -> DyingFile:
        file = DyingFile(io.FileIO(self._path, mode.replace("b", "")))
        file.trap = self._trap
        return file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._path, name)


class DyingWriter:
    """A file that writes half a piece and springs the trap."""

    def __init__(self, file: Any, trap: Trap) -> None:
        self._file, self._trap = file, trap

    def write(self, data: bytes) -> int:
        half = len(data) // 2
        self._file.write(data[:half])
        self._file.flush()
        self._trap.spring()
        return half + int(self._file.write(data[half:]))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _wrapped(original: Callable[..., Any], when: str, trap: Trap) -> Callable[..., Any]:
    def before(*args: Any, **more: Any) -> Any:
        trap.spring()
        return original(*args, **more)

    def after(*args: Any, **more: Any) -> Any:
        result = original(*args, **more)
        trap.spring()
        return result

    def reading(self: Any, path: Path, *args: Any, **more: Any) -> Any:
        return original(self, DyingPath(path, trap), *args, **more)

    def writing(self: Any, name: str, to: Any, **more: Any) -> Any:
        return original(self, name, DyingWriter(to, trap), **more)

    def on_the_line(*args: Any, **more: Any) -> Any:
        # Every HTTP library reads its replies with this; when it does, the request has left.
        receive = socket.socket.recv

        def recv(sock: socket.socket, *sizes: int) -> bytes:
            if when == "answered":
                select.select([sock], [], [], 10)
            trap.spring()
            return receive(sock, *sizes)

        socket.socket.recv = recv  # type: ignore[method-assign]
        try:
            return original(*args, **more)
        finally:
            socket.socket.recv = receive  # type: ignore[method-assign]

    return {
        "before": before, "after": after, "reading": reading, "writing": writing,
        "sent": on_the_line, "answered": on_the_line,
    }[when]  # fmt: skip


def set_trap(at: str, when: str, nth: int = 1, kill: str = "KILL") -> None:
    """
    Wrap a function or method of the package.

    :param at: ``module:name``, where the name is looked up by its caller; ``module:Class.method``.
    """
    module, _, name = at.partition(":")
    owner: Any = importlib.import_module(module)
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    trap = Trap(nth, signal.Signals[f"SIG{kill}"])
    setattr(owner, last, _wrapped(getattr(owner, last), when, trap))


# One attempt ----------------------------------------------------------------------------------------------


def operator_of(settings: dict[str, Any]) -> Any:
    from airflow_gemini_batch.core.budget import Budget
    from airflow_gemini_batch.core.shards import Limits
    from airflow_gemini_batch.operators.batch import GeminiBatchOperator

    arguments = dict(settings["operator"])
    if "limits" in arguments:
        arguments["limits"] = Limits(**arguments["limits"])
    if "budget" in arguments:
        arguments["budget"] = Budget(**arguments["budget"])
    return GeminiBatchOperator(**({"task_id": settings["task"]["task_id"]} | arguments))


def context_of(settings: dict[str, Any]) -> Any:
    return {"ti": SimpleNamespace(**settings["task"])}


async def _event_of(trigger: Any) -> Any:
    async for event in trigger.run():
        return event.payload
    raise AssertionError("the trigger ended without an event")


def run_trigger(path: str, kwargs: dict[str, Any]) -> Any:
    """Run a trigger from what Airflow's database holds of it; returns the event as the worker gets it."""
    module, _, name = path.rpartition(".")
    trigger = getattr(importlib.import_module(module), name)(**json.loads(json.dumps(kwargs)))
    return json.loads(json.dumps(asyncio.run(_event_of(trigger))))


def run(settings: dict[str, Any]) -> dict[str, Any]:
    """Run the attempt, or the part of it that is asked for."""
    from airflow.providers.common.compat.sdk import TaskDeferred

    part = settings.get("part", "all")
    if part == "trigger":
        return {"event": run_trigger(*settings["trigger"])}
    operator, context = operator_of(settings), context_of(settings)
    call = lambda: operator.execute(context)  # noqa: E731
    if part == "resume":
        call = lambda: operator.resume(context, settings["event"])  # noqa: E731
    while True:
        try:
            return {"manifest": call()}
        except TaskDeferred as deferred:
            path, kwargs = deferred.trigger.serialize()
            if part != "all":
                return {"deferred": [path, kwargs]}
            event = run_trigger(path, kwargs)
            call = lambda event=event, name=deferred.method_name: getattr(operator, name)(context, event)  # type: ignore[misc]  # noqa: E731


def failure(e: Exception) -> dict[str, Any]:
    """What Airflow would make of an error: a failed task, or another try."""
    from airflow.providers.common.compat.sdk import AirflowFailException

    cause = e.__cause__ if isinstance(e, AirflowFailException) and e.__cause__ else e
    chain, one = [], e
    while one is not None and one not in chain:
        chain.append(one)
        one = one.__cause__ or one.__context__  # type: ignore[assignment]
    return {
        "error": type(cause).__name__,
        "retryable": not isinstance(e, AirflowFailException),
        "message": str(e),
        "chain": [f"{type(one).__name__}: {one}" for one in chain],
    }


def attempt(settings: dict[str, Any], directory: Path) -> int:
    """Run and print; returns the exit code."""
    handler = logging.FileHandler(directory / "log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.get("log_level", "INFO"))
    os.environ |= settings.get("env", {})

    from airflow_gemini_batch.core import submitting, waiting
    from airflow_gemini_batch.core.client import Client

    # Between two tries of an upload or a download the client rests for seconds.
    Client.__init__.__kwdefaults__["sleep"] = lambda seconds: time.sleep(min(seconds, 0.05))
    submitting.MARGIN = settings.get("margin", 0.5)
    submitting.LOOK_EVERY = settings.get("look_every", 0.2)
    waiting.SURE_AFTER = settings.get("sure_after", waiting.SURE_AFTER)
    if trap := settings.get("trap"):
        set_trap(trap["at"], trap["when"], trap.get("nth", 1), trap.get("signal", "KILL"))
    if (wait := settings.get("start_at", 0) - time.time()) > 0:
        time.sleep(wait)
    try:
        told, code = run(settings), 0
    except Exception as e:
        logging.getLogger("attempt").exception("The attempt failed")
        told, code = failure(e), 1
    sys.stdout.flush()
    os.write(1, (json.dumps(told) + "\n").encode())
    return code


def main(path: str) -> int:
    file = Path(path)
    return attempt(json.loads(file.read_text()), file.parent)


# The zygote -----------------------------------------------------------------------------------------------


def fork_attempt(path: Path) -> None:
    """
    Fork a supervisor that forks the attempt, as Airflow does. Beside the settings appear ``pid`` once the attempt
    runs, ``stdout`` and ``stderr``, and ``exit`` with its status once it is over (negative: the signal).
    """
    if os.fork():
        return
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    directory = path.parent
    if pid := os.fork():
        _appear(directory / "pid", str(pid))
        _, status = os.waitpid(pid, 0)
        _appear(directory / "exit", str(os.waitstatus_to_exitcode(status)))
        os._exit(0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(directory / name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), number)
    code = 3
    try:
        code = main(str(path))
    finally:
        sys.stderr.flush()
        os._exit(code)


def _appear(path: Path, text: str) -> None:
    fresh = path.with_name(f".{path.name}")
    fresh.write_text(text)
    fresh.replace(path)


def zygote() -> None:
    few_authorities()
    import_everything()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    os.write(1, b"ready\n")
    for line in sys.stdin:
        fork_attempt(Path(line.strip()))
    Path(os.environ["SSL_CERT_FILE"]).unlink()
    os._exit(0)  # an orderly end of all that was imported takes seconds


if __name__ == "__main__":
    prepare_airflow()
    if sys.argv[1] == "--zygote":
        zygote()
    else:
        sys.exit(main(sys.argv[1]))
