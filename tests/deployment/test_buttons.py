"""
What the buttons of Airflow's UI do to paid jobs, on a real deployment: each row of the table in the documentation.

Each test presses a button through the REST API, as the UI does, and then counts at the service.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
from airflow.triggers.base import BaseTrigger

from tests.deployment.cases import ROWS, SLOTS, Case
from tests.deployment.rig import Deployment, wait_for

pytestmark = pytest.mark.services

HAS_ON_KILL = hasattr(BaseTrigger, "on_kill")
"""Airflow 3.3 tells a trigger that its task was stopped; before, it only cancels the trigger's coroutine."""

LANDED_TWICE_AS_MANY = {"SUCCEEDED": 2 * SLOTS}
REUSE = "{{ dag_run.conf.get('reuse', 'auto') }}"
BOTH_WAYS = pytest.mark.parametrize(
    "deferrable", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["deferred", "waiting"]
)


@pytest.fixture(autouse=True)
def nothing_left_behind(airflow: Deployment) -> Iterator[None]:
    """A test that fails must not take the next ones with it."""
    yield
    airflow.gemini.faults()
    airflow.gemini.finish(*airflow.gemini.jobs(states=("RUNNING", "PENDING")))
    for name in airflow.revive():
        airflow.wait_healthy(name)


# Retry -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_retry_after_a_failed_download_fetches_and_pays_nothing(airflow: Deployment) -> None:
    case = Case(airflow, "retry_after_failure", retries=20)
    case.start_and_wait_until_its_jobs_run()
    airflow.gemini.faults(http_errors={"download": {"status": 500}})
    case.finish()
    wait_for(lambda: airflow.api.task(case.dag_id, "r1", "ask")["try_number"] > 1, what="a retry", seconds=180)
    airflow.gemini.faults()
    case.wait("success")
    assert case.jobs_by_state() == {"SUCCEEDED": SLOTS}
    case.every_row_landed_once()


def test_a_retry_after_the_task_process_was_killed_adopts_the_running_jobs(airflow: Deployment) -> None:
    case = Case(airflow, "retry_after_kill", retries=3, deferrable=False)
    case.start_and_wait_until_its_jobs_run()
    ((_, child),) = airflow.task_processes()
    child.kill()
    case.wait("running", tries=2)
    case.finish()
    case.wait("success", tries=2)
    assert case.jobs_by_state() == {"SUCCEEDED": SLOTS}
    case.every_row_landed_once()


@pytest.mark.slow
def test_a_retry_beside_an_orphan_of_a_killed_supervisor_pays_nothing(airflow: Deployment) -> None:
    case = Case(airflow, "retry_beside_orphan", retries=3, deferrable=False)
    case.start_and_wait_until_its_jobs_run()
    ((supervisor, child),) = airflow.task_processes()
    supervisor.kill()
    case.wait("running", tries=2)
    assert child.is_running(), "the first attempt runs on beside the second"
    case.jobs_stay(RUNNING=SLOTS)
    case.finish()
    case.wait("success", tries=2)
    assert case.jobs_by_state() == {"SUCCEEDED": SLOTS}
    case.every_row_landed_once()


# Clear -------------------------------------------------------------------------------------------------------


def test_clearing_a_finished_task_lands_again_and_costs_nothing(airflow: Deployment) -> None:
    case = Case(airflow, "clear_finished", model=airflow.gemini.QUICK)
    case.start()
    case.wait("success", tries=1)
    for part in case.output().glob("part-*"):
        part.unlink()
    case.clear()
    case.wait("success", tries=2)
    assert case.jobs_by_state() == {"SUCCEEDED": SLOTS}
    case.every_row_landed_once()


@pytest.mark.slow
def test_clearing_a_finished_task_with_reuse_never_pays_again(airflow: Deployment) -> None:
    case = Case(airflow, "clear_finished_never", model=airflow.gemini.QUICK, reuse=REUSE)
    case.start(reuse="never")
    case.wait("success", tries=1)
    assert case.jobs_by_state() == {"SUCCEEDED": SLOTS}
    case.clear()
    case.wait("success", tries=2)
    assert case.jobs_by_state() == LANDED_TWICE_AS_MANY
    case.every_row_landed_once()


@BOTH_WAYS
def test_clearing_a_waiting_task_lets_the_next_try_adopt_its_jobs(airflow: Deployment, deferrable: bool) -> None:
    case = Case(airflow, f"clear_{_word(deferrable)}", deferrable=deferrable)
    case.start_and_wait_until_its_jobs_run()
    case.clear()
    case.wait_until_jobs_run(tries=2)
    # What Airflow calls for the old trigger comes after the next try has adopted its jobs.
    case.jobs_stay(RUNNING=SLOTS)
    if HAS_ON_KILL or not deferrable:
        case.log_says("are left", tries=1)
    case.finish()
    case.wait("success", tries=2)
    assert case.jobs_by_state() == {"SUCCEEDED": SLOTS}
    case.every_row_landed_once()


@BOTH_WAYS
def test_clearing_a_waiting_task_with_reuse_never_cancels_its_jobs_and_pays_anew(
    airflow: Deployment, deferrable: bool
) -> None:
    case = Case(airflow, f"clear_never_{_word(deferrable)}", deferrable=deferrable, reuse=REUSE)
    old = case.start_and_wait_until_its_jobs_run(reuse="never")
    case.clear()
    case.wait_until_jobs_run(tries=2, without={job["name"] for job in old})
    case.wait_until_jobs_are(CANCELLED=SLOTS, RUNNING=SLOTS)
    case.jobs_stay(CANCELLED=SLOTS, RUNNING=SLOTS)
    assert {job["name"] for job in case.jobs("CANCELLED")} == {job["name"] for job in old}
    case.finish()
    case.wait("success", tries=2)
    assert case.jobs_by_state() == {"CANCELLED": SLOTS, "SUCCEEDED": SLOTS}
    case.every_row_landed_once()


# Mark, fail, delete ------------------------------------------------------------------------------------------


@BOTH_WAYS
@pytest.mark.parametrize("state", ["failed", "success"])
def test_marking_a_waiting_task_cancels_its_jobs_and_says_what_may_be_billed(
    airflow: Deployment, deferrable: bool, state: str
) -> None:
    case = Case(airflow, f"mark_{state}_{_word(deferrable)}", deferrable=deferrable)
    case.start_and_wait_until_its_jobs_run()
    case.mark(state)
    case.wait_until_jobs_are(CANCELLED=SLOTS)
    case.log_says(f"The task is {state}; cancelled: batches/")
    case.log_says("may be billed")


def test_a_slow_cancel_in_a_triggerer_just_started_is_seen_through(airflow: Deployment) -> None:
    """Airflow cancels a stopped trigger again about every second until it is gone, also while it cancels its jobs."""
    case = Case(airflow, "mark_failed_slowly")
    case.start_and_wait_until_its_jobs_run()
    airflow.kill("triggerer", signal.SIGTERM)
    airflow.restart("triggerer")
    looks = _looks(case)
    wait_for(lambda: _looks(case) > looks + 2, what="the jobs are looked at again", seconds=120)
    airflow.gemini.faults(delay_seconds={"cancel": 3.0})
    case.mark("failed")
    case.wait_until_jobs_are(CANCELLED=SLOTS)
    case.log_says("may be billed")


@BOTH_WAYS
def test_failing_the_run_of_a_waiting_task_cancels_its_jobs(airflow: Deployment, deferrable: bool) -> None:
    case = Case(airflow, f"fail_run_{_word(deferrable)}", deferrable=deferrable)
    case.start_and_wait_until_its_jobs_run()
    airflow.api.set_run_state(case.dag_id, "r1", "failed")
    case.wait_until_jobs_are(CANCELLED=SLOTS)
    case.log_says("may be billed")


@BOTH_WAYS
def test_deleting_the_run_of_a_waiting_task_cancels_its_jobs(airflow: Deployment, deferrable: bool) -> None:
    case = Case(airflow, f"delete_run_{_word(deferrable)}", deferrable=deferrable)
    case.start_and_wait_until_its_jobs_run()
    reply = airflow.api.delete_run(case.dag_id, "r1")
    if reply.status_code == 409:
        # Airflow has a running run failed first.
        case.jobs_stay(5, RUNNING=SLOTS)
        airflow.api.set_run_state(case.dag_id, "r1", "failed")
        case.wait_until_jobs_are(CANCELLED=SLOTS)
        reply = airflow.api.delete_run(case.dag_id, "r1")
    assert reply.status_code == 204, reply.text
    case.wait_until_jobs_are(CANCELLED=SLOTS)


@pytest.mark.slow
def test_without_cancel_on_kill_a_marked_task_leaves_its_jobs(airflow: Deployment) -> None:
    case = Case(airflow, "mark_failed_leave", cancel_on_kill=False)
    case.start_and_wait_until_its_jobs_run()
    case.mark("failed")
    case.wait("failed")
    case.jobs_stay(10, RUNNING=SLOTS)


@pytest.mark.slow
def test_a_task_marked_failed_while_no_triggerer_runs_leaves_its_jobs_for_a_clear_to_adopt(airflow: Deployment) -> None:
    """The limit of ``cancel_on_kill``: Airflow deletes the trigger, and nobody is there to be told."""
    case = Case(airflow, "mark_failed_unwatched")
    case.start_and_wait_until_its_jobs_run()
    airflow.kill("triggerer")
    case.mark("failed")
    case.wait("failed")
    airflow.restart("triggerer")
    case.jobs_stay(5, RUNNING=SLOTS)
    case.clear()
    case.wait_until_jobs_run(tries=2)
    case.finish()
    case.wait("success", tries=2)
    assert case.jobs_by_state() == {"SUCCEEDED": SLOTS}
    case.every_row_landed_once()


@pytest.mark.slow
def test_a_task_marked_failed_and_cleared_sends_the_cancelled_rows_again(airflow: Deployment) -> None:
    case = Case(airflow, "mark_failed_then_clear")
    old = case.start_and_wait_until_its_jobs_run()
    case.mark("failed")
    case.wait_until_jobs_are(CANCELLED=SLOTS)
    case.clear()
    case.wait_until_jobs_run(tries=2, without={job["name"] for job in old})
    case.finish()
    case.wait("success", tries=2)
    assert case.jobs_by_state() == {"CANCELLED": SLOTS, "SUCCEEDED": SLOTS}
    case.every_row_landed_once()


# Machinery ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [
        "SIGKILL",
        *(pytest.param(how, marks=pytest.mark.slow) for how in ("SIGTERM", "SIGKILL of the runner", "SIGKILL twice")),
    ],
)
def test_a_triggerer_that_dies_cancels_nothing_and_the_wait_goes_on(airflow: Deployment, how: str) -> None:
    case = Case(airflow, f"triggerer_{how.replace(' ', '_').lower()}")
    case.start_and_wait_until_its_jobs_run()
    sent = _creates(airflow)
    for _ in range(2 if how.endswith("twice") else 1):
        if how.endswith("runner"):
            _kill_runner(airflow)
        airflow.kill("triggerer", signal.SIGTERM if how == "SIGTERM" else signal.SIGKILL)
        case.jobs_stay(3, RUNNING=SLOTS)
        airflow.restart("triggerer")
    looks = _looks(case)
    wait_for(lambda: _looks(case) > looks + 2, what="the jobs are looked at again", seconds=120)
    case.jobs_stay(5, RUNNING=SLOTS)
    assert case.wait("deferred")["try_number"] == 1
    case.finish()
    case.wait("success", tries=1)
    assert _creates(airflow) == sent
    assert case.jobs_by_state() == {"SUCCEEDED": SLOTS}
    case.every_row_landed_once()


@BOTH_WAYS
def test_a_database_and_an_api_server_that_break_off_change_nothing(airflow: Deployment, deferrable: bool) -> None:
    case = Case(airflow, f"database_{_word(deferrable)}", retries=3, deferrable=deferrable)
    case.start_and_wait_until_its_jobs_run()
    sent = _creates(airflow)
    for _ in range(3):
        assert airflow.cut_database_connections() > 0
        time.sleep(2)
    airflow.kill("api-server")
    time.sleep(5)
    airflow.restart("api-server")
    airflow.revive()  # Airflow's own processes may give up without their database; a service manager starts them again
    airflow.wait_healthy()
    case.jobs_stay(10, RUNNING=SLOTS)
    case.finish()
    case.wait("success")
    assert _creates(airflow) == sent
    assert case.jobs_by_state() == {"SUCCEEDED": SLOTS}
    case.every_row_landed_once()


# Changed settings, changed source, another run ----------------------------------------------------------------


@pytest.mark.slow
def test_changed_settings_with_on_changed_fail_send_and_cancel_nothing(airflow: Deployment) -> None:
    case = Case(airflow, "changed_fail", on_changed="fail")
    case.start_and_wait_until_its_jobs_run()
    case.edit(prompt="Sing {text}")
    case.clear()
    case.wait("failed", tries=2)
    case.log_says("SettingsChanged", tries=2)
    case.log_says("prompt", tries=2)
    case.jobs_stay(5, RUNNING=SLOTS)


@pytest.mark.slow
def test_changed_settings_with_on_changed_keep_finish_with_the_old_ones(airflow: Deployment) -> None:
    case = Case(airflow, "changed_keep", on_changed="keep")
    case.start_and_wait_until_its_jobs_run()
    case.edit(prompt="Sing {text}")
    case.clear()
    case.wait_until_jobs_run(tries=2)
    case.finish()
    case.wait("success", tries=2)
    assert case.jobs_by_state() == {"SUCCEEDED": SLOTS}
    assert case.prompts_sent() == {"Say"}
    case.every_row_landed_once()


@pytest.mark.slow
def test_changed_settings_with_on_changed_resubmit_cancel_and_pay_anew(airflow: Deployment) -> None:
    case = Case(airflow, "changed_resubmit", on_changed="resubmit")
    old = case.start_and_wait_until_its_jobs_run()
    case.edit(prompt="Sing {text}")
    case.clear()
    case.wait_until_jobs_run(tries=2, without={job["name"] for job in old})
    case.jobs_stay(CANCELLED=SLOTS, RUNNING=SLOTS)
    case.finish()
    case.wait("success", tries=2)
    assert case.jobs_by_state() == {"CANCELLED": SLOTS, "SUCCEEDED": SLOTS}
    assert case.prompts_sent() == {"Sing"}
    case.every_row_landed_once()


@pytest.mark.slow
def test_a_changed_source_does_not_change_what_was_paid_for(airflow: Deployment) -> None:
    case = Case(airflow, "changed_source")
    case.start_and_wait_until_its_jobs_run()
    case.edit(source=[{"id": "other", "text": "another row"}])
    case.clear()
    case.wait_until_jobs_run(tries=2)
    case.finish()
    case.wait("success", tries=2)
    assert case.jobs_by_state() == {"SUCCEEDED": SLOTS}
    case.every_row_landed_once()


@pytest.mark.slow
def test_an_output_of_another_run_is_refused_until_that_run_has_finished(airflow: Deployment) -> None:
    case = Case(airflow, "same_output", output=str(airflow.outputs / "same_output"))
    case.start_and_wait_until_its_jobs_run("first")
    case.start("second")
    case.wait("failed", run="second")
    case.log_says("OutputTaken", run="second")
    case.log_says("same_output.ask of run first", run="second")
    case.jobs_stay(3, RUNNING=SLOTS)
    case.finish()
    case.wait("success", run="first")
    case.clear("second")
    case.wait_until_jobs_run("second", tries=2)
    case.finish()
    case.wait("success", run="second", tries=2)
    assert case.jobs_by_state() == LANDED_TWICE_AS_MANY
    case.every_row_landed_once("second")


# Secrets -----------------------------------------------------------------------------------------------------

LOUD = """
import logging

for name in ("httpx", "httpcore", "google_genai", "google.genai", "airflow_gemini_batch"):
    logging.getLogger(name).setLevel(logging.DEBUG)
"""


def test_the_key_is_in_no_table_no_log_and_no_file(airflow: Deployment) -> None:
    """After whatever tests ran before, and a run of its own: with loud loggers, failures, and a mark while deferred."""
    case = Case(airflow, "secret", retries=20)
    path = airflow.dags / "secret.py"
    airflow.write_dag("secret", LOUD + path.read_text())
    airflow.gemini.faults(http_errors={"create": [{"status": 503, "times": 2}, {"status": 403, "times": 1}]})
    case.start()
    case.wait("deferred", "up_for_retry", "failed")
    airflow.gemini.faults(http_errors={"get": {"status": 500, "times": 3}, "download": {"status": 500, "times": 5}})
    case.clear()
    case.wait("deferred")
    wait_for(lambda: len(case.jobs("RUNNING")) == SLOTS, what="jobs run")
    dump = airflow.dump_database()
    case.finish()
    case.wait("success", seconds=300)
    case.start_and_wait_until_its_jobs_run("r2")
    case.mark("failed", "r2")
    wait_for(lambda: not case.jobs("RUNNING"), what="the jobs are cancelled")
    dump += airflow.dump_database()

    key = airflow.key.encode()
    assert b"gemini_batch_default" in dump, "the dump holds triggers and rendered fields"
    assert key not in dump
    files = [path for path in airflow.home.rglob("*") if path.is_file()]
    assert sum(path.suffix == ".log" for path in files) > 2
    assert sum(path.suffix == ".parquet" for path in files) > 1
    assert [str(path) for path in files if key in path.read_bytes()] == []


# Helpers -----------------------------------------------------------------------------------------------------


def _word(deferrable: bool) -> str:
    return "deferred" if deferrable else "waiting"


def _creates(airflow: Deployment) -> dict[str, Any]:
    calls = airflow.gemini.look()["calls"]
    return {call: n for call, n in calls.items() if call.startswith(("create", "cancel", "upload"))}


def _looks(case: Case) -> int:
    return min(int(job["looks"]) for job in case.jobs())


def _kill_runner(airflow: Deployment) -> None:
    """The triggerer's child runs the triggers; Airflow's parent ends when it is gone."""
    component = airflow.components["triggerer"]
    assert component.process is not None
    parent = next(process for process in airflow.processes() if process.pid == component.process.pid)
    for child in parent.children():
        if "serve-logs" not in " ".join(child.cmdline()):
            child.kill()
    wait_for(lambda: not component.running, what="the triggerer ends when its runner is dead", seconds=60)


assert len(ROWS) % SLOTS == 0
