"""LLMBatchOperator on the emulator. Skipped where common.ai is not installed; ``.ci/run`` has an environment with it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_gemini_batch.emulator import Emulator

WHY = "apache-airflow-providers-common-ai is not installed (extra common-ai)"


@pytest.fixture(autouse=True)
def _common_ai() -> None:
    pytest.importorskip("airflow.providers.common.ai.batch.base", reason=WHY)


@pytest.fixture(params=["pydanticai", "gemini_batch"])
def conn_type(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def llm_conn_id(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> str:
    """A ``pydanticai`` connection as its form makes it: the key as password, the model in the extra."""
    connect(emulator, monkeypatch)
    return "llm"


def connect(emulator: Emulator, monkeypatch: pytest.MonkeyPatch, **parts: Any) -> None:
    model = "google-gla:gemini-2.5-flash"
    default = {"conn_type": "pydanticai", "host": emulator.url, "password": "test-key", "extra": {"model": model}}
    monkeypatch.setenv("AIRFLOW_CONN_LLM", json.dumps(default | parts))


@pytest.fixture
def make(llm_conn_id: str, tmp_path: Path) -> Callable[..., Any]:
    """Make an ``LLMBatchOperator``: always the same task instance, of which each makes another try."""

    def make(**settings: Any) -> Any:
        from airflow.providers.common.ai.operators.llm_batch import LLMBatchOperator

        defaults: dict[str, Any] = {
            "task_id": "a_task", "result_path": f"file://{tmp_path}/out", "llm_conn_id": llm_conn_id, "deferrable": True,
        }  # fmt: skip
        return LLMBatchOperator(**(defaults | settings))

    return make


@pytest.fixture
def run(make: Callable[..., Any]) -> Callable[..., Any]:
    """Run one to its end; returns its manifest."""
    return lambda **settings: drive(make(**settings))


def context() -> Any:
    ti = SimpleNamespace(
        dag_id="a_dag", task_id="a_task", run_id="run-1", map_index=-1, xcom_push=lambda **kwargs: None
    )
    return {"ti": ti, "task_instance": ti}


def drive(operator: Any) -> Any:
    """Execute; if it defers, run the trigger as rebuilt from its JSON, and resume."""
    from airflow.providers.common.compat.sdk import TaskDeferred

    try:
        return operator.execute(context())
    except TaskDeferred as deferred:
        _, kwargs = json.loads(json.dumps(deferred.trigger.serialize()))
        event = json.loads(json.dumps(asyncio.run(_event(type(deferred.trigger)(**kwargs)))))
        return getattr(operator, deferred.method_name)(context(), event)


async def _event(trigger: Any) -> Any:
    async for event in trigger.run():
        return event.payload
    raise AssertionError("the trigger ended without an event")


def rows_of(manifest: Any) -> list[dict[str, Any]]:
    """The landed rows by their index."""
    path = Path(manifest["result_uri"].removeprefix("file://"))
    return sorted((json.loads(line) for line in path.read_text().splitlines()), key=lambda row: row["index"])


def requests_of(emulator: Emulator) -> list[dict[str, Any]]:
    """What was sent, in order."""
    return [
        json.loads(line)["request"]
        for job in emulator.jobs
        for line in emulator.read_file(str(job.input_file)).splitlines()
    ]
