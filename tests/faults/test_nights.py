"""
Waiting survives a bad night, and every way a job can end is documented here as a table: what the task does, what has
landed, and what the next attempt does and pays. On a clock that jumps, looked at as the worker and as the triggerer do.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from airflow_gemini_batch.core.jobs import Unreachable
from airflow_gemini_batch.emulator import Faults, HttpError, Options
from airflow_gemini_batch.exceptions import (
    CredentialsRefused,
    GeminiBatchError,
    JobCancelled,
    JobExpired,
    JobFailed,
    JobGone,
    JobStillRunning,
    JobTimedOut,
    ServiceUnreachable,
    TooManyFailedRows,
)

from ..looking import look

HOUR = 3600.0
both_ways = pytest.mark.parametrize("deferred", [True, False], ids=["deferred", "waiting"])

BAD: dict[str, Faults] = {
    "429": Faults(http_errors={"*": HttpError(429, retry_seconds=30)}),
    "500": Faults(http_errors={"*": HttpError(500)}),
    "503": Faults(http_errors={"*": HttpError(503)}),
    "408": Faults(http_errors={"*": HttpError(408)}),
    "an HTML page": Faults(http_errors={"*": HttpError(502, html=True)}),
    "a login page with 200": Faults(
        http_errors={"*": HttpError(200, body="<html>Please sign in to the hotel's Wi-Fi")}
    ),
    "broken JSON": Faults(http_errors={"*": HttpError(200, body='{"name": "batches/')}),
    "JSON of another kind": Faults(http_errors={"*": HttpError(200, body="[]")}),
    "an empty body": Faults(http_errors={"*": HttpError(200, body="")}),
    "resets": Faults(drop_before={"*": 1_000_000}),
    "answers lost": Faults(drop_after={"get": 1_000_000}),
}


@both_ways
@pytest.mark.parametrize("how", BAD)
def test_a_night_of_faults_is_waited_through(make_bench: Callable[..., Any], how: str, deferred: bool) -> None:
    bench = make_bench({"job_seconds": 20 * HOUR}, deferred=deferred, interval=600.0)
    bench.after(HOUR, bench.with_faults(BAD[how]))
    bench.after(9 * HOUR, bench.with_faults(Faults()))
    bench.after(10 * HOUR, bench.with_faults(BAD[how]))
    bench.after(19 * HOUR, bench.with_faults(Faults()))
    bench.attempt()
    assert bench.slept >= 19 * HOUR
    bench.check_paid_once()


@both_ways
def test_a_night_of_slow_answers_is_waited_through(make_bench: Callable[..., Any], deferred: bool) -> None:
    bench = make_bench({"job_seconds": 2 * HOUR}, deferred=deferred, interval=600.0, timeout=0.2)
    bench.after(HOUR, bench.with_faults(Faults(delay_seconds={"get": 1.0})))
    bench.after(3 * HOUR, bench.with_faults(Faults()))
    bench.attempt()
    bench.check_paid_once()


@both_ways
def test_faults_that_come_and_go_are_waited_through(make_bench: Callable[..., Any], deferred: bool) -> None:
    bench = make_bench({"job_seconds": 20 * HOUR}, deferred=deferred, interval=300.0)
    bench.emulator.faults = Faults(
        http_errors={
            "get": [HttpError(404, times=2, skip=3), HttpError(403, times=2, skip=9), HttpError(503, times=5, skip=20)]
        }
    )
    bench.attempt()
    bench.check_paid_once()


@both_ways
def test_one_bad_look_in_a_row_of_good_ones_never_counts_as_gone(
    make_bench: Callable[..., Any], deferred: bool
) -> None:
    bench = make_bench({"job_seconds": 5 * HOUR}, deferred=deferred, interval=300.0)
    bench.emulator.faults = Faults(http_errors={"get": [HttpError(404, times=1, skip=n) for n in range(1, 40, 2)]})
    bench.attempt()
    bench.check_paid_once()


@both_ways
@pytest.mark.parametrize("status", [429, 503])
def test_jobs_that_the_list_shows_as_ended_but_no_look_confirms_are_not_asked_for_all_the_time(
    make_bench: Callable[..., Any], deferred: bool, status: int
) -> None:
    """So many that the list is read. While it tells of their ends, a quota of its own refuses each look at them."""
    bench = make_bench({"job_seconds": HOUR}, deferred=deferred)
    bench.rows = [{"id": f"row-{n}", "text": f"a bicycle {n}", "kept": n} for n in range(14)]
    storm = Faults(http_errors={"get": HttpError(status)})
    bench.after(HOUR / 2, bench.with_faults(storm))
    bench.after(HOUR * 2, bench.with_faults(Faults()))
    bench.attempt(jobs_of=1)
    bench.check_paid_once(jobs=14)
    # Until the storm there is no look but the list's; then each job is asked for about twice a minute, or more rarely.
    assert bench.emulator.calls["get"] < 14 * 150


class Dripper:
    """A server that answers everything with a byte every tenth of a second, for ever."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._over = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._drip, args=self._listener.accept()[:1], daemon=True).start()

    def _drip(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n")
            while not self._over.wait(0.1):
                connection.sendall(b" ")

    def close(self) -> None:
        self._over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def dripper() -> Iterator[Dripper]:
    one = Dripper()
    yield one
    one.close()


@both_ways
def test_an_answer_that_drips_in_for_ever_ends_with_the_time_limit(
    make_bench: Callable[..., Any], dripper: Dripper, deferred: bool
) -> None:
    """httpx's time limits are for each read, not for the whole answer: a drip would hold a look past every deadline."""
    import asyncio

    from airflow_gemini_batch.core.watcher import Watcher

    bench = make_bench(timeout=0.5)
    bench.url = dripper.url
    seen: list[Any] = []

    async def alook() -> None:
        async with Watcher.shared(bench.account) as watcher:
            seen.append((await look(watcher, ("batches/a",)))["batches/a"])

    def look_once() -> None:
        if deferred:
            asyncio.run(alook())
        else:
            with closing(bench.services().client) as client:
                seen.append(client.look("batches/a"))

    looking = threading.Thread(target=look_once, daemon=True)
    looking.start()
    looking.join(60)
    assert not looking.is_alive(), "still looking after many times the limit"
    assert isinstance(seen[0], Unreachable)


@both_ways
def test_a_state_nobody_knows_counts_as_running_and_is_named(make_bench: Callable[..., Any], deferred: bool) -> None:
    bench = make_bench(deferred=deferred)
    bench.emulator.faults = Faults(unknown_state="BATCH_STATE_DREAMING", unknown_state_looks=5)
    bench.attempt()
    assert any("DREAMING" in line for line in bench.told)
    bench.check_paid_once()


@both_ways
def test_the_deadline_is_counted_from_the_jobs_creation_over_all_attempts(
    make_bench: Callable[..., Any], deferred: bool
) -> None:
    from airflow_gemini_batch.core.flow import Waiting, advance

    bench = make_bench({"faults": Faults(stuck="RUNNING")}, deferred=deferred, interval=600.0)
    began = bench.now()
    services = bench.services()
    for _ in range(3):  # attempts that die an hour after they began
        assert isinstance(advance(bench.a_run(timeout=5 * HOUR, max_rounds=1), services, starting=True), Waiting)
        bench.sleep(HOUR)
    services.client.close()
    with pytest.raises(JobTimedOut):
        bench.attempt(timeout=5 * HOUR, max_rounds=1)
    assert 5 * HOUR <= bench.now() - began < 5 * HOUR + 1200
    assert bench.emulator.jobs[0].state == "CANCELLED"


@both_ways
def test_at_the_deadline_a_service_that_cannot_be_asked_is_a_retryable_error(
    make_bench: Callable[..., Any], deferred: bool
) -> None:
    bench = make_bench({"faults": Faults(stuck="RUNNING")}, deferred=deferred, interval=600.0)
    bench.after(HOUR, bench.with_faults(Faults(stuck="RUNNING", http_errors={"*": HttpError(503)})))
    with pytest.raises(ServiceUnreachable) as caught:
        bench.attempt(timeout=4 * HOUR)
    assert caught.value.retryable
    assert 4 * HOUR - 60 < bench.slept < 4 * HOUR + 1200
    bench.emulator.faults = Faults()  # it had succeeded behind the curtain
    bench.attempt(timeout=4 * HOUR)
    bench.check_paid_once()


# The table --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """
    One line of the table.

    :param faults: what makes jobs end this way.
    :param error: what the task fails with; None: it succeeds.
    :param statuses: rows by status after it.
    :param jobs: jobs paid by then.
    :param then_jobs: jobs paid in all when the task was asked for again, and then everything went well.
    :param policy: settings that matter.
    """

    faults: Faults
    error: type[GeminiBatchError] | None
    statuses: dict[str, int]
    jobs: int
    then_jobs: int
    retryable: bool = False
    policy: dict[str, Any] = field(default_factory=dict)
    options: Options = field(default_factory=Options)


PART = {"end_results": 0.5}
HOPELESS = {"code": 3, "message": "The input is invalid."}
PASSING = {"code": 14, "message": "Try again later."}
ONE_ROUND = {"max_rounds": 1}

OUTCOMES: dict[str, Outcome] = {
    "succeeded": Outcome(Faults(), None, {"ok": 6}, 1, 1),
    "succeeded, every row failed for good": Outcome(
        Faults(fail_keys={"*": {"code": 3}}), TooManyFailedRows, {"error": 6}, 1, 1
    ),
    "succeeded, every row failed for a passing reason": Outcome(
        Faults(fail_keys={"*": {"code": 13}}), TooManyFailedRows, {"error": 6}, 2, 3
    ),
    "succeeded, one row failed for good": Outcome(
        Faults(fail_keys={"row-1": {"code": 3}}), None, {"ok": 5, "error": 1}, 1, 1
    ),
    "succeeded, one row failed for a passing reason": Outcome(
        Faults(fail_keys={"row-1": {"code": 13}}), None, {"ok": 5, "error": 1}, 2, 2
    ),
    "succeeded, one row failed once": Outcome(Faults(fail_keys={"row-1": {"times": 1}}), None, {"ok": 6}, 2, 2),
    "partially succeeded": Outcome(
        Faults(end_state="PARTIALLY_SUCCEEDED", end_state_jobs=1, **PART), None, {"ok": 6}, 2, 2
    ),
    "partially succeeded, one round": Outcome(
        Faults(end_state="PARTIALLY_SUCCEEDED", **PART), None, {"ok": 3, "missing": 3}, 1, 1, policy=ONE_ROUND
    ),
    "failed with an error that may pass": Outcome(
        Faults(end_state="FAILED", end_state_jobs=1, end_error=PASSING), None, {"ok": 6}, 2, 2
    ),
    "failed twice with an error that may pass": Outcome(
        Faults(end_state="FAILED", end_error=PASSING), JobFailed, {"error": 6}, 2, 3
    ),
    "failed with an error that stays": Outcome(
        Faults(end_state="FAILED", end_error=HOPELESS), JobFailed, {"error": 6}, 1, 2
    ),
    "failed without an error": Outcome(
        Faults(end_state="FAILED", end_state_jobs=1, end_without_error=True), None, {"ok": 6}, 2, 2
    ),
    "failed without an error, one round": Outcome(
        Faults(end_state="FAILED", end_without_error=True), JobFailed, {"error": 6}, 1, 2, policy=ONE_ROUND
    ),
    "expired": Outcome(Faults(end_state="EXPIRED", end_state_jobs=1), None, {"ok": 6}, 2, 2),
    "expired with some rows": Outcome(
        Faults(end_state="EXPIRED", **PART), JobExpired, {"ok": 3, "error": 3}, 1, 2, policy=ONE_ROUND
    ),
    "cancelled by somebody": Outcome(Faults(end_state="CANCELLED"), JobCancelled, {"error": 6}, 1, 2),
    "cancelled by somebody, with some rows": Outcome(
        Faults(end_state="CANCELLED", **PART), JobCancelled, {"ok": 3, "error": 3}, 1, 2
    ),
    "timed out": Outcome(
        Faults(stuck="RUNNING"), JobTimedOut, {"error": 6}, 1, 2, policy={"timeout": 5 * HOUR, **ONE_ROUND}
    ),
    "timed out, with some rows": Outcome(
        Faults(stuck="RUNNING"), JobTimedOut, {"ok": 3, "error": 3}, 1, 2,
        policy={"timeout": 5 * HOUR, **ONE_ROUND}, options=Options(cancelled_results=True),
    ),
    "timed out, and the cancel came too late": Outcome(
        Faults(stuck="RUNNING", cancel_race=True), None, {"ok": 6}, 1, 1, policy={"timeout": 5 * HOUR, **ONE_ROUND}
    ),
    "timed out, and the cancel does nothing": Outcome(
        Faults(stuck="RUNNING", cancel_ignored=True), JobTimedOut, {"error": 6}, 1, 2,
        policy={"timeout": 5 * HOUR, **ONE_ROUND},
    ),
    "every line is missing": Outcome(
        Faults(drop_keys={"*"}), TooManyFailedRows, {"missing": 6}, 1, 2, policy=ONE_ROUND
    ),
    "too many rows failed": Outcome(
        Faults(fail_keys={"row-1": {"code": 3}}), TooManyFailedRows, {"ok": 5, "error": 1}, 1, 1,
        policy={"max_failed_ratio": 0.1},
    ),
}  # fmt: skip


@both_ways
@pytest.mark.parametrize("outcome", OUTCOMES)
def test_how_a_job_ends_decides_what_the_task_does_and_what_asking_again_pays(
    make_bench: Callable[..., Any], outcome: str, deferred: bool
) -> None:
    line = OUTCOMES[outcome]
    bench = make_bench({"faults": line.faults, "options": line.options}, deferred=deferred, interval=600.0)
    if line.error is None:
        bench.attempt(**line.policy)
    else:
        with pytest.raises(line.error) as caught:
            bench.attempt(**line.policy)
        assert caught.value.retryable is line.retryable
    landed = bench.landed()
    assert _statuses(landed) == line.statuses
    assert bench.emulator.jobs_created == line.jobs
    fine = {key: row for key, row in landed.items() if row["status"] == "ok"}

    bench.emulator.faults = Faults()
    if line.jobs == line.then_jobs and line.error:
        with pytest.raises(line.error):
            bench.attempt(**line.policy)
        assert bench.landed() == landed
    else:
        bench.attempt(**line.policy)
    assert bench.emulator.jobs_created == line.then_jobs
    again = bench.landed()
    assert {key: again[key] for key in fine} == fine, "a row that is settled is never asked again"
    if line.then_jobs > line.jobs:
        assert _statuses(again) == {"ok": 6}


def _statuses(landed: dict[str, dict[str, Any]]) -> dict[str, int]:
    statuses: dict[str, int] = {}
    for row in landed.values():
        statuses[row["status"]] = statuses.get(row["status"], 0) + 1
    return statuses


@both_ways
def test_a_job_left_running_at_its_deadline_is_adopted_with_a_longer_one(
    make_bench: Callable[..., Any], deferred: bool
) -> None:
    bench = make_bench({"job_seconds": 20 * HOUR}, deferred=deferred, interval=600.0)
    with pytest.raises(JobStillRunning) as caught:
        bench.attempt(timeout=5 * HOUR, on_timeout="leave")
    assert not caught.value.retryable
    assert bench.emulator.calls["cancel"] == 0
    bench.attempt(timeout=30 * HOUR, on_timeout="leave")
    bench.check_paid_once()


@both_ways
def test_a_revoked_key_ends_the_wait_soon_and_a_new_one_adopts_the_job(
    make_bench: Callable[..., Any], deferred: bool
) -> None:
    bench = make_bench({"job_seconds": 20 * HOUR}, deferred=deferred)

    def revoke() -> None:
        bench.emulator._service.api_keys = {"the new key"}

    bench.after(HOUR, revoke)
    with pytest.raises(CredentialsRefused) as caught:
        bench.attempt()
    assert not caught.value.retryable
    assert bench.slept < 2 * HOUR
    bench.key = "the new key"
    bench.attempt()
    bench.check_paid_once()


@both_ways
def test_a_job_deleted_in_the_night_ends_the_wait_soon(make_bench: Callable[..., Any], deferred: bool) -> None:
    bench = make_bench({"job_seconds": 20 * HOUR}, deferred=deferred)
    bench.after(HOUR, lambda: bench.emulator._service.delete(bench.emulator.jobs[0].name.removeprefix("batches/")))
    with pytest.raises(JobGone) as caught:
        bench.attempt()
    assert not caught.value.retryable
    assert bench.slept < 2 * HOUR


@both_ways
def test_of_many_jobs_each_ends_in_its_own_way(make_bench: Callable[..., Any], deferred: bool) -> None:
    bench = make_bench({"job_seconds": 20 * HOUR}, deferred=deferred, interval=600.0)

    def end(number: int, state: str) -> Callable[[], None]:
        return lambda: bench.emulator.set_state(bench.emulator.jobs[number].name, state)

    bench.after(HOUR, end(0, "SUCCEEDED"))
    bench.after(2 * HOUR, end(1, "CANCELLED"))
    bench.after(3 * HOUR, end(2, "EXPIRED"))
    with pytest.raises(JobCancelled):
        bench.attempt(jobs_of=2)
    landed = bench.landed()
    assert [landed[f"row-{n}"]["status"] for n in range(6)] == ["ok", "ok", "error", "error", "ok", "ok"]
    assert bench.emulator.jobs_created == 4, "the expired one was sent again, the cancelled one was not"
    bench.attempt(jobs_of=2)
    assert _statuses(bench.landed()) == {"ok": 6}
    assert bench.emulator.jobs_created == 5
