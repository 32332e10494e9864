"""GeminiBatchJobSensor, poking and deferred, against the emulator."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSensorTimeout, AirflowSkipException

from airflow_gemini_batch.core import ends
from airflow_gemini_batch.core.client import Client
from airflow_gemini_batch.core.rest import Account
from airflow_gemini_batch.emulator import Emulator, Faults
from airflow_gemini_batch.exceptions import InvalidConfig, JobNotSucceeded, NoSuchJob
from airflow_gemini_batch.sensors.batch import GeminiBatchJobSensor

from ..conftest import point_at, run_operator

BOTH_WAYS = pytest.mark.parametrize("deferrable", [True, False], ids=["deferred", "poking"])
INLINE = [{"request": {"contents": [{"parts": [{"text": "x"}]}]}, "metadata": {"key": "a"}}]


@pytest.fixture
def emulate(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(ends, "LOOK_AGAIN", 0.01)
    started = []

    def start(**settings: Any) -> Emulator:
        gemini = Emulator(**settings)
        gemini.start()
        started.append(gemini)
        point_at(gemini.url, monkeypatch)
        return gemini

    yield start
    for gemini in started:
        gemini.stop()


def a_job(emulator: Emulator) -> str:
    client = Client(Account("any-key-will-do", emulator.url))
    try:
        return client.create(model="gemini-2.5-flash", file="", display_name="theirs", inline=INLINE)
    finally:
        client.close()


def sense(job: Any, **settings: Any) -> Any:
    defaults: dict[str, Any] = {"task_id": "wait", "job": job, "poke_interval": 0.05}
    return run_operator(GeminiBatchJobSensor(**(defaults | settings)))


@BOTH_WAYS
def test_the_sensor_waits_for_a_job_made_elsewhere(emulate: Any, deferrable: bool) -> None:
    gemini = emulate(states=["PENDING", "RUNNING", "RUNNING", "SUCCEEDED"])
    job = a_job(gemini)
    told = sense(job, deferrable=deferrable)
    assert (told["job"], told["state"], told["succeeded"]) == (job, "SUCCEEDED", 1)


@BOTH_WAYS
def test_the_sensor_waits_for_all_of_several_jobs(emulate: Any, deferrable: bool) -> None:
    gemini = emulate(states=["PENDING", "RUNNING", "SUCCEEDED"])
    jobs = [a_job(gemini) for _ in range(3)]
    assert [one["job"] for one in sense(jobs, deferrable=deferrable)] == jobs


@BOTH_WAYS
def test_a_job_that_ends_badly_fails_the_sensor_or_skips_it_or_is_taken(emulate: Any, deferrable: bool) -> None:
    gemini = emulate(states=["PENDING", "RUNNING", "SUCCEEDED"])
    gemini.faults = Faults(end_state="EXPIRED")
    with pytest.raises(JobNotSucceeded, match="EXPIRED"):
        sense(a_job(gemini), deferrable=deferrable)
    with pytest.raises(AirflowSkipException):
        sense(a_job(gemini), deferrable=deferrable, soft_fail=True)
    assert sense(a_job(gemini), deferrable=deferrable, any_end=True)["state"] == "EXPIRED"


@BOTH_WAYS
def test_the_sensor_gives_up_in_time_and_leaves_the_job_running(emulate: Any, deferrable: bool) -> None:
    gemini = emulate(job_seconds=3600)
    job = a_job(gemini)
    with pytest.raises(AirflowSensorTimeout):
        sense(job, deferrable=deferrable, timeout=0.3)
    with pytest.raises(AirflowSkipException):
        sense(job, deferrable=deferrable, timeout=0.3, soft_fail=True)
    assert gemini.jobs[0].state in ("PENDING", "RUNNING")


@BOTH_WAYS
def test_a_job_that_is_not_there_is_told(emulate: Any, deferrable: bool) -> None:
    emulate(job_seconds=0)
    with pytest.raises(NoSuchJob, match="nowhere"):
        sense("batches/nowhere", deferrable=deferrable)
    with pytest.raises(AirflowFailException, match="which is no job"):
        sense("files/x", deferrable=deferrable)


@pytest.mark.parametrize("poke_interval", [0.05, 3600])
def test_a_job_that_is_not_there_is_told_before_any_wait(emulate: Any, poke_interval: float) -> None:
    emulate(job_seconds=0)
    deferrals: list[Any] = []
    with pytest.raises(NoSuchJob, match="nowhere"):
        run_operator(
            GeminiBatchJobSensor(task_id="w", job="batches/nowhere", deferrable=True, poke_interval=poke_interval),
            on_defer=deferrals.append,
        )
    assert not deferrals


@pytest.mark.parametrize(
    "job", [None, "", [], 5, "files/x", {"state": "SUCCEEDED"}, ["batches/x", {"name": "batches/x"}]]
)
def test_what_is_no_job_is_refused_when_the_dag_file_is_read(job: Any) -> None:
    with pytest.raises(InvalidConfig, match=r"job (is|names)"):
        GeminiBatchJobSensor(task_id="w", job=job)


def test_the_triggers_arguments_are_plain_and_never_cancel(emulate: Any) -> None:
    gemini = emulate(states=["PENDING", "RUNNING", "RUNNING", "SUCCEEDED"])
    seen = []
    job = a_job(gemini)
    run_operator(
        GeminiBatchJobSensor(task_id="w", job=job, deferrable=True, poke_interval=0.05),
        on_defer=lambda trigger: seen.append(trigger.serialize()[1]),
    )
    assert [list(one["jobs"]) for one in seen] == [[job]]
    assert seen[0]["cancel_on_kill"] is False
