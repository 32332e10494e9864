"""GeminiBatchTrigger: looks without blocking, ends once, and cancels only what nobody waits for any more."""

from __future__ import annotations

import asyncio
import json
import time
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from airflow_gemini_batch.emulator import Faults
from airflow_gemini_batch.triggers import batch as triggers
from airflow_gemini_batch.triggers.batch import GeminiBatchTrigger


def create_job(emulator: Any) -> str:
    body = {"batch": {"displayName": "x", "inputConfig": {"requests": {"requests": [
        {"request": {"contents": [{"parts": [{"text": "hi"}]}]}, "metadata": {"key": "0"}}]}}}}  # fmt: skip
    url = f"{emulator.url}/v1beta/models/gemini-2.5-flash:batchGenerateContent"
    return str(httpx.post(url, json=body, headers={"x-goog-api-key": "k"}).json()["name"])


def trigger_for(*jobs: str, seconds: float = 60, **settings: Any) -> GeminiBatchTrigger:
    defaults = {"gemini_conn_id": "gemini_batch_default", "poll_interval": 0.05}
    return GeminiBatchTrigger(jobs={job: time.time() + seconds for job in jobs}, **(defaults | settings))


async def first_event(trigger: GeminiBatchTrigger) -> Any:
    async for event in trigger.run():
        return event.payload
    return None


def outcomes(trigger: GeminiBatchTrigger) -> dict[str, str]:
    event = json.loads(json.dumps(asyncio.run(first_event(trigger))))
    return {one["job"]: one["how"] for one in event["outcomes"]}


def test_the_event_comes_when_a_job_has_ended(connection: str, emulator: Any) -> None:
    job = create_job(emulator)
    assert outcomes(trigger_for(job)) == {job: "ended"}


def test_one_ended_job_of_many_is_enough(connection: str, emulator: Any) -> None:
    emulator.faults = Faults(stuck="RUNNING")
    running, ended = create_job(emulator), create_job(emulator)
    emulator.set_state(ended, "SUCCEEDED")
    assert outcomes(trigger_for(running, ended)) == {ended: "ended"}


def test_the_deadline_is_the_triggers_own(connection: str, emulator: Any) -> None:
    emulator.faults = Faults(stuck="PENDING")
    job = create_job(emulator)
    assert outcomes(trigger_for(job, seconds=0.2, poll_interval=30)) == {job: "timed_out"}


def test_a_deleted_job_ends_the_wait_soon(connection: str, emulator: Any) -> None:
    assert outcomes(trigger_for("batches/" + "x" * 36)) == {"batches/" + "x" * 36: "gone"}


def test_a_service_that_cannot_be_asked_does_not_end_the_wait(connection: str, emulator: Any) -> None:
    job = create_job(emulator)
    emulator.faults = Faults(http_errors={"get": {"status": 503, "times": 8}}, drop_before={"get": 3})
    assert outcomes(trigger_for(job)) == {job: "ended"}
    assert emulator.calls["get"] > 8


def test_what_is_stored_holds_no_key_and_makes_the_same_trigger(connection: str) -> None:
    trigger = trigger_for("batches/a", cancel_on_kill=False)
    path, kwargs = trigger.serialize()
    assert path == "airflow_gemini_batch.triggers.batch.GeminiBatchTrigger"
    assert "test-key" not in json.dumps(kwargs)
    assert GeminiBatchTrigger(**json.loads(json.dumps(kwargs))).serialize() == trigger.serialize()


def test_a_trigger_stored_by_another_release_still_runs() -> None:
    older = GeminiBatchTrigger(jobs={"batches/a": 1.0}, gemini_conn_id="c")
    later = GeminiBatchTrigger(jobs={"batches/a": 1.0}, gemini_conn_id="c", something_new=True)
    assert older.serialize() == later.serialize()


def test_others_run_on_while_a_look_is_not_answered(connection: str, emulator: Any) -> None:
    job = create_job(emulator)
    emulator.faults = Faults(stuck="RUNNING", delay_seconds={"get": 1.0})

    async def turns_during_a_look() -> int:
        waiting = asyncio.create_task(first_event(trigger_for(job, seconds=60.0)))
        while not emulator.calls["get"]:
            await asyncio.sleep(0.005)
        turns = 0
        while emulator.calls["get"] == 1 and not emulator.requests[-1].status:
            await asyncio.sleep(0.005)
            turns += 1
        waiting.cancel()
        await asyncio.wait({waiting})
        return turns

    assert asyncio.run(turns_during_a_look()) >= 5  # a blocking look would leave one or two


@pytest.mark.parametrize(
    ("state", "cancelled"),
    [
        ("failed", True), ("success", True), ("skipped", True), ("upstream_failed", True), ("removed", True),
        ("deferred", False), ("running", False), ("scheduled", False), ("queued", False), (None, False),
    ],
)  # fmt: skip
def test_a_kill_cancels_only_when_the_task_was_stopped(
    connection: str, emulator: Any, monkeypatch: pytest.MonkeyPatch, state: str | None, cancelled: bool
) -> None:
    emulator.faults = Faults(stuck="RUNNING")
    trigger = trigger_for(create_job(emulator))
    trigger.task_instance = SimpleNamespace(dag_id="d", task_id="t", run_id="r", map_index=-1)
    monkeypatch.setattr(triggers, "state_of", lambda *_: state)
    asyncio.run(trigger.on_kill())
    assert emulator.calls["cancel"] == cancelled
    assert (emulator.jobs[0].state == "CANCELLED") is cancelled


def test_a_kill_cancels_nothing_when_the_state_cannot_be_read(
    connection: str, emulator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> str:
        raise OSError("the line to Airflow is gone")

    trigger = trigger_for(create_job(emulator))
    trigger.task_instance = SimpleNamespace(dag_id="d", task_id="t", run_id="r", map_index=-1)
    monkeypatch.setattr(triggers, "state_of", broken)
    asyncio.run(trigger.on_kill())
    assert emulator.calls["cancel"] == 0


def test_a_kill_cancels_nothing_if_told_so(connection: str, emulator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trigger = trigger_for(create_job(emulator), cancel_on_kill=False)
    monkeypatch.setattr(triggers, "state_of", lambda *_: "failed")
    asyncio.run(trigger.on_kill())
    assert emulator.calls["cancel"] == 0


def test_a_kill_after_the_event_cancels_nothing(
    connection: str, emulator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trigger = trigger_for(create_job(emulator))
    trigger.task_instance = SimpleNamespace(dag_id="d", task_id="t", run_id="r", map_index=-1)
    monkeypatch.setattr(triggers, "state_of", lambda *_: "success")

    async def event_then_kill() -> None:
        await first_event(trigger)
        await trigger.on_kill()

    asyncio.run(event_then_kill())
    assert emulator.calls["cancel"] == 0


def test_a_kill_is_seen_through_although_airflow_cancels_again_and_again(
    connection: str, emulator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator.faults = Faults(stuck="RUNNING", delay_seconds={"cancel": 0.5})
    trigger = trigger_for(create_job(emulator))
    trigger.task_instance = SimpleNamespace(dag_id="d", task_id="t", run_id="r", map_index=-1)

    def slowly(*_: Any) -> str:
        time.sleep(0.5)
        return "failed"

    monkeypatch.setattr(triggers, "state_of", slowly)

    async def kill_again_and_again() -> None:
        waiting = asyncio.create_task(first_event(trigger))
        while not emulator.calls["get"]:
            await asyncio.sleep(0.05)
        while not waiting.done():
            waiting.cancel(triggers.USER_ACTION)
            await asyncio.sleep(0.1)

    asyncio.run(kill_again_and_again())
    assert emulator.calls["cancel"] == 1
    assert emulator.jobs[0].state == "CANCELLED"


@pytest.mark.skipif(not hasattr(triggers.BaseTrigger, "on_kill"), reason="Airflow 3.1 cannot tell the two apart")
def test_a_triggerer_that_shuts_down_is_not_held_up(
    connection: str, emulator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator.faults = Faults(stuck="RUNNING")
    trigger = trigger_for(create_job(emulator))
    asked: list[Any] = []
    monkeypatch.setattr(triggers, "state_of", lambda *ids: asked.append(ids))

    async def shut_down() -> None:
        waiting = asyncio.create_task(first_event(trigger))
        while not emulator.calls["get"]:
            await asyncio.sleep(0.05)
        waiting.cancel()
        await asyncio.wait({waiting})

    asyncio.run(shut_down())
    assert asked == []
    assert emulator.calls["cancel"] == 0


@pytest.mark.parametrize(("newest", "cancelled"), [(1, True), (2, False), (None, True)])
def test_a_kill_leaves_the_jobs_to_a_later_try_although_that_has_failed(
    connection: str, emulator: Any, monkeypatch: pytest.MonkeyPatch, newest: int | None, cancelled: bool
) -> None:
    emulator.faults = Faults(stuck="RUNNING")
    trigger = trigger_for(create_job(emulator))
    trigger.task_instance = SimpleNamespace(dag_id="d", task_id="t", run_id="r", map_index=-1, try_number=1)
    monkeypatch.setattr(triggers, "state_of", lambda *_: "failed")
    monkeypatch.setattr(triggers, "newest_try", lambda *_: newest)
    asyncio.run(trigger.on_kill())
    assert emulator.calls["cancel"] == cancelled
