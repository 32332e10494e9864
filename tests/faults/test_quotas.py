"""
Nights in which quotas are exhausted: nothing is lost, each slot is paid once, no retry of Airflow's is used. On a clock
that jumps, through ``advance``; and through the operator and its trigger in real time.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred

from airflow_gemini_batch.core.flow import Waiting, advance
from airflow_gemini_batch.core.shards import Limits
from airflow_gemini_batch.emulator import Emulator, Faults, HttpError, Options
from airflow_gemini_batch.exceptions import QuotaExceeded
from airflow_gemini_batch.triggers.batch import GeminiBatchTrigger

from ..conftest import batch_operator, landed, point_at, run_operator, task_context

pytestmark = pytest.mark.slow  # minutes in all; each by itself is quick

HOUR = 3600.0
both_ways = pytest.mark.parametrize("deferred", [True, False], ids=["deferred", "waiting"])

PHASES = {
    "upload": ("upload_start",), "create": ("create",), "get": ("get",), "list": ("list",), "download": ("download",),
    "delete": ("file_delete", "delete"), "everything": ("*",),
}  # fmt: skip
WORDS: dict[str, dict[str, Any]] = {
    "a sentence": {},
    "a link": {"help": True},
    "advice": {"retry_seconds": 120, "quota": "batch_requests"},
    "a header": {"retry_after": 3000},
    "a page of a proxy": {"html": True},
}


def storm(phase: str, word: str = "a sentence", **more: Any) -> Faults:
    return Faults(http_errors={call: HttpError(429, **WORDS[word] | more) for call in PHASES[phase]})


def most_at_a_time(bench: Any) -> int:
    """The largest number of this run's jobs that ever ran together, by the emulator's own times."""
    jobs = list(bench.emulator._service.jobs)
    return max(sum(other.created <= job.created < (other.ended or 1 << 70) for other in jobs) for job in jobs)


@both_ways
@pytest.mark.parametrize(
    ("phase", "word"),
    [(phase, "advice") for phase in PHASES] + [("create", word) for word in WORDS if word != "advice"],
)
def test_a_storm_of_refusals_is_waited_through(
    make_bench: Callable[..., Any], phase: str, word: str, deferred: bool
) -> None:
    bench = make_bench({"job_seconds": HOUR}, deferred=deferred, interval=300.0)
    bench.emulator.faults = storm(phase, word, seconds=4 * HOUR)
    bench.attempt(jobs_of=2, delete_remote="all")
    bench.check_paid_once(jobs=3)
    assert not (bench.directory / "out" / "_gemini_batch" / "quota.json").exists()


@both_ways
def test_storms_in_every_phase_one_after_the_other_cost_nothing_twice(
    make_bench: Callable[..., Any], deferred: bool
) -> None:
    bench = make_bench({"job_seconds": 2 * HOUR}, deferred=deferred, interval=300.0)
    bench.emulator.faults = Faults(
        http_errors={
            call: [HttpError(429, times=3, skip=2, retry_seconds=600), HttpError(429, times=4, skip=7)]
            for call in ("upload_start", "create", "get", "list", "download")
        }
    )
    bench.attempt(limits=Limits(requests_per_job=1, active_jobs=2))
    bench.check_paid_once(jobs=6)
    assert most_at_a_time(bench) <= 2


def test_a_piece_of_an_upload_that_is_refused_is_waited_for(bench: Any) -> None:
    bench.emulator.faults = Faults(http_errors={"upload_chunk": HttpError(429, times=4)})  # the SDK tries three times
    bench.attempt()
    assert bench.slept >= 15
    bench.check_paid_once()


def test_a_refusal_with_a_time_is_not_repeated_before_it(bench: Any) -> None:
    bench.emulator.faults = storm("create", "a header")
    bench.after(4 * HOUR, bench.with_faults(Faults()))
    bench.attempt()
    assert bench.emulator.calls["create"] <= 4 * HOUR / 3000 + 2
    bench.check_paid_once()


def test_a_refusal_without_one_is_repeated_ever_more_rarely(bench: Any) -> None:
    bench.emulator.faults = storm("create")
    bench.after(12 * HOUR, bench.with_faults(Faults()))
    bench.attempt()
    assert 12 * 6 < bench.emulator.calls["create"] < 12 * 12 + 10, "every five to ten minutes"
    bench.check_paid_once()


@both_ways
def test_shards_land_and_others_are_sent_while_one_download_is_refused(
    make_bench: Callable[..., Any], deferred: bool
) -> None:
    bench = make_bench({"job_seconds": HOUR}, deferred=deferred, interval=300.0)
    bench.emulator.faults = Faults(http_errors={"download": HttpError(429, seconds=8 * HOUR, retry_seconds=600)})
    bench.attempt(limits=Limits(requests_per_job=1, active_jobs=2), quota_timeout=23 * HOUR)
    bench.check_paid_once(jobs=6)
    created = [job.created for job in bench.emulator._service.jobs]
    assert max(created) - min(created) < 5 * HOUR * 1e9, "places were free, though nothing could be fetched"


@pytest.mark.parametrize("active", [1, 2, 5])
def test_never_more_jobs_run_than_may_and_a_place_is_used_again(make_bench: Callable[..., Any], active: int) -> None:
    bench = make_bench({"job_seconds": HOUR, "options": Options(concurrent_jobs=active)})
    bench.attempt(limits=Limits(requests_per_job=1, active_jobs=active))
    bench.check_paid_once(jobs=6)
    assert most_at_a_time(bench) == active
    assert bench.emulator.calls["create"] == 6, "none was refused"
    assert bench.slept < (6 / active + 1) * HOUR + 600, "the places were not left empty"


def test_a_retry_resumes_shard_by_shard(make_bench: Callable[..., Any]) -> None:
    bench = make_bench({"job_seconds": HOUR})
    limits = Limits(requests_per_job=1, active_jobs=2)
    for _ in range(8):
        services = bench.services()
        advance(bench.a_run(limits=limits), services, starting=True)  # and then its worker dies
        services.client.close()
        bench.emulator.clock.advance(0.6 * HOUR)
    assert bench.emulator.jobs_created == 6
    bench.attempt(limits=limits)
    bench.check_paid_once(jobs=6)
    assert most_at_a_time(bench) == 2


# The project's jobs


def _others(bench: Any, count: int) -> list[str]:
    import httpx

    body = {"batch": {"displayName": "other", "inputConfig": {"requests": {"requests": [
        {"request": {"contents": [{"parts": [{"text": "hi"}]}]}, "metadata": {"key": "0"}}]}}}}  # fmt: skip
    url = f"{bench.emulator.url}/v1beta/models/gemini-2.5-flash:batchGenerateContent"
    with httpx.Client(headers={"x-goog-api-key": "k"}) as http:
        return [str(http.post(url, json=body).json()["name"]) for _ in range(count)]


@both_ways
def test_a_project_full_of_others_jobs_is_waited_for_without_a_create(
    make_bench: Callable[..., Any], deferred: bool, caplog: pytest.LogCaptureFixture
) -> None:
    bench = make_bench({"job_seconds": 10 * HOUR}, deferred=deferred)
    others = _others(bench, 4)
    bench.after(3 * HOUR, lambda: bench.emulator.set_state(others[0], "SUCCEEDED"))
    with caplog.at_level(logging.INFO):
        bench.attempt(limits=Limits(requests_per_job=3, active_jobs=2, project_jobs=4))
    assert bench.emulator.calls["create"] == 4 + 2, "none was refused"
    assert "jobs running in this project: 4 of 4" in caplog.text
    jobs = [job for job in bench.emulator._service.jobs if job.display_name != "other"]
    assert min(job.created for job in jobs) >= bench.emulator._service.jobs.get(others[0].split("/")[1]).ended
    assert len(bench.landed()) == 6


def test_jobs_that_have_ended_take_no_place(make_bench: Callable[..., Any]) -> None:
    bench = make_bench({"job_seconds": HOUR})
    for _ in range(2):
        _others(bench, 75)
        bench.emulator.clock.advance(2 * HOUR)
    bench.attempt(jobs_of=2)
    bench.check_paid_once(jobs=153)


def test_the_list_is_read_a_few_times_however_many_jobs_are_created(make_bench: Callable[..., Any]) -> None:
    bench = make_bench({"job_seconds": HOUR})
    services = bench.services()
    assert isinstance(advance(bench.a_run(jobs_of=1), services, starting=True), Waiting)
    services.client.close()
    assert bench.emulator.jobs_created == 6
    assert bench.emulator.calls["list"] == 2, "once to count before, once to look for twins after"


def test_a_list_that_cannot_be_read_stops_no_create(make_bench: Callable[..., Any]) -> None:
    bench = make_bench({"faults": Faults(http_errors={"list": HttpError(503)})})
    bench.attempt(limits=Limits(requests_per_job=2, project_jobs=1, active_jobs=1))
    bench.check_paid_once(jobs=3)


# Tokens


def test_jobs_wait_their_turn_under_the_token_limit(make_bench: Callable[..., Any]) -> None:
    bench = make_bench({"job_seconds": HOUR})
    services = bench.services()
    limits = Limits(requests_per_job=1, enqueued_tokens=24)  # a row counts as some ten tokens
    reached = advance(bench.a_run(limits=limits), services, starting=True)
    services.client.close()
    assert isinstance(reached, Waiting)
    assert len(reached.waits) == 2
    assert reached.not_before is None
    bench.attempt(limits=limits)
    bench.check_paid_once(jobs=6)
    assert most_at_a_time(bench) == 2


def test_the_services_own_token_quota_is_waited_for(make_bench: Callable[..., Any]) -> None:
    bench = make_bench({"job_seconds": HOUR, "options": Options(enqueued_tokens=20, quota_details=True)})
    bench.attempt(jobs_of=1)  # some nine tokens each
    bench.check_paid_once(jobs=6)
    assert most_at_a_time(bench) == 2


# The end of patience


def test_the_error_at_the_end_names_phase_and_quota_and_a_retry_waits_anew(make_bench: Callable[..., Any]) -> None:
    bench = make_bench({"job_seconds": 40 * HOUR})
    bench.emulator.faults = storm("create", quota="batch_enqueued_tokens", retry_seconds=60)
    for _ in range(2):
        before = bench.slept
        error = bench.error(jobs_of=2, quota_timeout=5 * HOUR)
        assert type(error) is QuotaExceeded
        assert error.retryable
        for said in ("Phase create", "batch_enqueued_tokens", "5.0 h", "left there"):
            assert said in str(error)
        assert bench.slept - before == pytest.approx(5 * HOUR, abs=120)
        bench.emulator.clock.advance(25 * HOUR)
    assert bench.emulator.jobs_created == 0
    bench.emulator.faults = storm("create", seconds=3 * HOUR)
    bench.attempt(jobs_of=2, quota_timeout=5 * HOUR)
    bench.check_paid_once(jobs=3)


def test_patience_does_not_end_while_own_jobs_fill_the_quota(make_bench: Callable[..., Any]) -> None:
    bench = make_bench({"job_seconds": 40 * HOUR, "options": Options(concurrent_jobs=2)})
    bench.attempt(jobs_of=2, quota_timeout=5 * HOUR)
    bench.check_paid_once(jobs=3)


def test_a_create_in_doubt_during_a_storm_is_found_and_not_sent_again(make_bench: Callable[..., Any]) -> None:
    bench = make_bench({"job_seconds": HOUR})
    bench.emulator.faults = Faults(
        drop_after={"create": 1},
        http_errors={"list": HttpError(429, seconds=6 * HOUR), "create": HttpError(429, skip=1)},
    )
    bench.after(8 * HOUR, bench.with_faults(Faults()))
    bench.attempt(jobs_of=3)
    bench.check_paid_once(jobs=2)


# Through the operator and its trigger


ROWS = [f"a bicycle, well kept {n}" for n in range(6)]


@pytest.mark.parametrize("deferrable", [True, False], ids=["deferred", "waiting"])
@pytest.mark.parametrize("phase", ["upload", "create", "list", "download", "everything"])
def test_the_task_defers_and_does_not_fail(
    connection: str, emulator: Any, tmp_path: Path, phase: str, deferrable: bool
) -> None:
    emulator.faults = storm(phase, times=5)
    deferred: list[Any] = []
    operator = batch_operator(tmp_path, source=ROWS, limits=Limits(requests_per_job=3), deferrable=deferrable)
    manifest = run_operator(operator, on_defer=lambda trigger: deferred.append(trigger.serialize()[1]))
    assert sorted(row["key"] for row in landed(manifest)) == [str(n) for n in range(6)]
    assert manifest["counts"]["ok"] == 6
    assert emulator.jobs_created == 2
    if deferrable and phase in ("upload", "create"):
        assert {"jobs": {}, "until": deferred[0]["until"]}.items() <= deferred[0].items()
        assert deferred[0]["until"] > time.time() - 60


@pytest.mark.parametrize("deferrable", [True, False], ids=["deferred", "waiting"])
def test_a_task_out_of_patience_fails_and_may_be_retried(
    connection: str, emulator: Any, tmp_path: Path, deferrable: bool
) -> None:
    emulator.faults = storm("create")
    operator = batch_operator(tmp_path, source=ROWS, quota_timeout=0.3, deferrable=deferrable)
    with pytest.raises(QuotaExceeded, match="Phase create"):
        run_operator(operator)
    emulator.faults = Faults()
    manifest = run_operator(batch_operator(tmp_path, source=ROWS), task_context(try_number=2))
    assert manifest["counts"]["ok"] == 6
    assert emulator.jobs_created == 1


def test_tasks_that_share_a_full_project_all_come_through(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Three mapped tasks at once, in a project that takes two jobs."""
    from concurrent.futures import ThreadPoolExecutor

    with Emulator(job_seconds=0.2, options=Options(concurrent_jobs=2)) as gemini:
        point_at(gemini.url, monkeypatch)

        def one(number: int) -> Any:
            operator = batch_operator(
                tmp_path / str(number), source=ROWS, limits=Limits(requests_per_job=2, project_jobs=2)
            )
            return run_operator(operator, task_context(map_index=number))

        with ThreadPoolExecutor(3) as pool:
            manifests = list(pool.map(one, range(3)))
        assert [manifest["counts"]["ok"] for manifest in manifests] == [6, 6, 6]
        assert gemini.jobs_created == 9


def _run_trigger(trigger: GeminiBatchTrigger) -> Any:
    async def first() -> Any:
        async for event in trigger.run():
            return event.payload
        return None

    return asyncio.run(first())


def test_a_trigger_with_nothing_but_a_time_needs_no_connection_and_comes_back() -> None:
    trigger = GeminiBatchTrigger(jobs={}, gemini_conn_id="there_is_none", until=time.time() + 0.2)
    again = GeminiBatchTrigger(**json.loads(json.dumps(trigger.serialize()[1])))
    event = _run_trigger(again)
    assert time.time() >= again.until
    assert event == {"version": 1, "outcomes": [], "woken_by": "time"}


def test_a_trigger_comes_back_at_its_time_while_a_job_runs(connection: str, emulator: Any, tmp_path: Path) -> None:
    emulator.faults = Faults(stuck="RUNNING", http_errors={"create": HttpError(429, skip=1)})
    operator = batch_operator(tmp_path, source=ROWS, limits=Limits(requests_per_job=3))
    with pytest.raises(TaskDeferred) as caught:
        run_operator_once(operator)
    trigger = caught.value.trigger
    assert len(trigger.jobs) == 1
    assert _run_trigger(trigger)["woken_by"] == "time"
    emulator.faults = Faults()
    assert run_operator(operator)["counts"]["ok"] == 6
    assert emulator.jobs_created == 2


def run_operator_once(operator: Any) -> None:
    context = task_context()
    operator.source = operator.source.resolve(context)
    operator.execute(context)


def test_a_kill_while_nothing_runs_asks_nobody(connection: str, emulator: Any) -> None:
    trigger = GeminiBatchTrigger(jobs={}, gemini_conn_id="there_is_none", until=time.time() + 60)
    asyncio.run(trigger.on_kill())
    assert not emulator.calls
