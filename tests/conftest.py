"""
What every test may use: an emulator, a connection that points at it, and a way to run an operator through its deferrals.

Airflow reads its settings when it is imported, so its throw-away home is made here, before any test imports it.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# No time limit per example: the suite also runs in parallel on small machines.
settings.register_profile("small machines", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("small machines")

HOME = Path(tempfile.mkdtemp(prefix="airflow-gemini-batch-test-"))
os.environ |= {
    "AIRFLOW_HOME": str(HOME),
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{HOME}/airflow.db",
    "AIRFLOW__CORE__DAGS_FOLDER": str(HOME / "dags"),
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
    "AIRFLOW__LOGGING__LOGGING_LEVEL": "INFO",
    "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
}
(HOME / "dags").mkdir()

from airflow_gemini_batch.emulator import Emulator  # noqa: E402


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    """A fresh Gemini service whose jobs end at the first look."""
    with Emulator(job_seconds=0) as gemini:
        yield gemini


@pytest.fixture
def connection(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> str:
    """Id of a connection to the emulator. A create's time limit is short, so that doubts are soon resolved."""
    point_at(emulator.url, monkeypatch)
    return "gemini_batch_default"


def point_at(url: str, monkeypatch: pytest.MonkeyPatch, *, key: str = "test-key", timeout: float = 2.0) -> None:
    import json

    monkeypatch.setenv(
        "AIRFLOW_CONN_GEMINI_BATCH_DEFAULT",
        json.dumps({"conn_type": "gemini_batch", "host": url, "password": key, "extra": {"timeout": timeout}}),
    )


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses that are there for the real service's sake are short in tests; what they separate stays the same."""
    from airflow_gemini_batch.core import patience, submitting

    monkeypatch.setattr(patience, "FIRST", 0.05)
    monkeypatch.setattr(patience, "LONGEST", 0.2)
    monkeypatch.setattr(submitting, "MARGIN", 1.0)
    monkeypatch.setattr(submitting, "LOOK_EVERY", 0.2)


def task_context(*, try_number: int = 1, max_tries: int = 0, run_id: str = "run-1", **ids: Any) -> Any:
    """The part of Airflow's context that the operators read."""
    ti = SimpleNamespace(
        dag_id=ids.get("dag_id", "a_dag"), task_id=ids.get("task_id", "a_task"), run_id=run_id,
        map_index=ids.get("map_index", -1), try_number=try_number, max_tries=max_tries,
    )  # fmt: skip
    return {"ti": ti}


async def _event(trigger: Any) -> Any:
    async for event in trigger.run():
        return event.payload
    raise AssertionError("the trigger ended without an event")


def run_operator(operator: Any, context: Any | None = None, *, on_defer: Callable[[Any], None] | None = None) -> Any:
    """Run an operator as Airflow does: execute, and for each deferral the trigger as rebuilt from its JSON, then resume."""
    import json

    from airflow.providers.common.compat.sdk import TaskDeferred
    from airflow.sdk.definitions._internal.templater import LiteralValue

    context = context or task_context()
    if isinstance(getattr(operator, "source", None), LiteralValue):
        operator.source = operator.source.resolve(context)  # what rendering the templates does
    call = lambda: operator.execute(context)  # noqa: E731
    while True:
        try:
            return call()
        except TaskDeferred as deferred:
            if on_defer:
                on_defer(deferred.trigger)
            kwargs = json.loads(json.dumps(deferred.trigger.serialize()[1]))
            event = json.loads(json.dumps(asyncio.run(_event(type(deferred.trigger)(**kwargs)))))
            call = lambda event=event, name=deferred.method_name: getattr(operator, name)(context, event)  # type: ignore[misc]  # noqa: E731


@pytest.fixture
def batch(connection: str, tmp_path: Path) -> Callable[..., Any]:
    """Make and run a ``GeminiBatchOperator``; returns its manifest."""

    def run(context: Any | None = None, **settings: Any) -> Any:
        return run_operator(batch_operator(tmp_path, **settings), context)

    return run


def batch_operator(tmp_path: Path, **settings: Any) -> Any:
    from airflow_gemini_batch.operators.batch import GeminiBatchOperator

    defaults: dict[str, Any] = {
        "task_id": "a_task", "model": "gemini-2.5-flash", "output": str(tmp_path / "out"), "deferrable": True,
        "poll_interval": 0.05,
    }  # fmt: skip
    return GeminiBatchOperator(**(defaults | settings))


def landed(manifest: Any) -> list[dict[str, Any]]:
    """Every landed row, read back from the files that the manifest names."""
    import csv
    import json

    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = []
    for name in manifest["files"]:
        if name.endswith(".parquet"):
            rows += pq.read_table(name).to_pylist()
        elif name.endswith(".jsonl"):
            rows += [json.loads(line) for line in Path(name).read_bytes().split(b"\n") if line]
        else:
            with Path(name).open(newline="", encoding="utf-8") as f:
                rows += list(csv.DictReader(f))
    return rows
