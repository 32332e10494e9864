"""
Paid once, wherever the process dies: every point at which a task can be killed, each in a process of its own, then a
clean retry. The emulator counts what was paid; the table must be that of a run that nobody disturbed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from airflow_gemini_batch.emulator import Faults

CORE = "airflow_gemini_batch.core."
OPERATOR = "airflow_gemini_batch.operators.batch:GeminiBatchOperator."
THREE_SLOTS = {"limits": {"requests_per_job": 2}}

POINTS: dict[str, tuple[Any, ...]] = {
    "at the very start": (f"{CORE}flow:find_or_make_plan", "before"),
    "in the middle of writing request shards": (f"{CORE}shards:row_line", "before", 4),
    "between two request shards": (f"{CORE}shards:_write_one", "before", 2),
    "after the round, before the plan": (f"{CORE}plan:Plan.commit", "before"),
    "in the middle of putting the plan in force": (f"{CORE}storage:os.link", "before", 2),
    "after the plan": (f"{CORE}plan:Plan.commit", "after"),
    "in the middle of an upload": (f"{CORE}client:Client._upload", "reading", 1),
    "in the middle of the second upload": (f"{CORE}client:Client._upload", "reading", 3),
    "after an upload, before its record": (f"{CORE}client:Client.upload", "after"),
    "after the upload": (f"{CORE}ledger:Ledger.uploaded", "after"),
    "in the middle of claiming": (f"{CORE}storage:os.link", "before", 3),
    "after the claim": (f"{CORE}ledger:Ledger.claim", "after"),
    "after the second claim": (f"{CORE}ledger:Ledger.claim", "after", 2),
    "after the create request left, as it left": (f"{CORE}client:Client.create", "sent"),
    "after the create request left, reply never read": (f"{CORE}client:Client.create", "answered"),
    "after the last create request left, reply never read": (f"{CORE}client:Client.create", "after", 3),
    "after the reply, before the record": (f"{CORE}client:Client.create", "after"),
    "in the middle of writing the record": (f"{CORE}ledger:storage.publish", "before", 2),
    "after the record of the first": (f"{CORE}ledger:Ledger.submitted", "after"),
    "after the record, before looking for twins": (f"{CORE}flow:look_for_twins", "before"),
    "in the middle of a download": (f"{CORE}client:Client._download", "writing"),
    "after a download, before it is kept": (f"{CORE}client:Client.download", "after"),
    "after the raw results are kept": (f"{CORE}fetching:_fetch", "after"),
    "in the middle of landing": (f"{CORE}landing:Part.close", "before", 2),
    "in the middle of landing the last": (f"{CORE}landing:Part.close", "before", 3),
    "after a part, before its record": (f"{CORE}ledger:Ledger.landed", "before", 2),
    "after a part's record, before cleaning up": (f"{CORE}flow:delete_job", "before", 2),
    "after the last part, before the manifest": (f"{CORE}manifest:Manifest.write", "before"),
    "in the middle of writing the manifest": (f"{CORE}manifest:storage.publish", "before"),
    "after the manifest, before the task returned": (f"{CORE}manifest:Manifest.write", "after"),
}
WAITS: dict[tuple[str, bool], tuple[Any, ...]] = {
    ("after the record, before waiting", True): (f"{OPERATOR}_defer", "before"),
    ("after the record, before waiting", False): (f"{CORE}waiting:drive", "before"),
    ("while waiting", True): (f"{CORE}watcher:Watcher._round", "after", 2),
    ("while waiting", False): (f"{CORE}client:Client.look_at_all", "after", 2),
    ("after the wait, before going on", True): (f"{OPERATOR}resume", "before"),
    ("after the wait, before going on", False): (f"{CORE}waiting:drive", "after"),
}

both_ways = pytest.mark.parametrize(
    "deferrable", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["deferred", "waiting"]
)


@both_ways
@pytest.mark.parametrize("point", POINTS)
def test_killed_and_retried_it_pays_once(
    make_rig: Callable[..., Any], check_paid_once: Callable[..., None], point: str, deferrable: bool
) -> None:
    rig = make_rig(deferrable=deferrable, **THREE_SLOTS)
    rig.kill(POINTS[point])
    assert rig.run(try_number=2).code == 0
    check_paid_once(rig, jobs=3)


@pytest.mark.parametrize(
    ("point", "deferrable"), WAITS, ids=lambda v: v if isinstance(v, str) else "deferred" if v else "waiting"
)
def test_killed_around_the_wait_and_retried_it_pays_once(
    make_rig: Callable[..., Any], check_paid_once: Callable[..., None], point: str, deferrable: bool
) -> None:
    rig = make_rig({"states": ["PENDING"] * 6 + ["RUNNING", "SUCCEEDED"]}, deferrable=deferrable, **THREE_SLOTS)
    rig.kill(WAITS[point, deferrable])
    assert rig.run(try_number=2).code == 0
    check_paid_once(rig, jobs=3)


@both_ways
def test_killed_again_and_again_at_every_step_it_pays_once(
    make_rig: Callable[..., Any], check_paid_once: Callable[..., None], deferrable: bool
) -> None:
    rig = make_rig(deferrable=deferrable, **THREE_SLOTS)
    for number, point in enumerate((
        "after the round, before the plan", "after the plan", "in the middle of an upload", "after the upload",
        "after the claim", "after the create request left, reply never read", "after the reply, before the record",
        "in the middle of a download", "in the middle of landing", "after a part, before its record",
        "after the last part, before the manifest", "after the manifest, before the task returned",
    ), 1):  # fmt: skip
        at, when = POINTS[point][:2]
        rig.kill((at, when), try_number=number, max_tries=20)
    assert rig.run(try_number=20, max_tries=20).code == 0
    check_paid_once(rig, jobs=3)


@pytest.mark.parametrize("read", [1, 2])
def test_killed_between_the_chunks_of_a_large_upload_it_pays_once(
    rig: Any, check_paid_once: Callable[..., None], read: int
) -> None:
    """The SDK sends 8 MiB at a time: 1 is before the first chunk, 2 before the second."""
    rig.write_rows(6, text="long " * 400_000)
    rig.kill((f"{CORE}client:Client._upload", "reading", read))
    assert rig.emulator.calls["upload_chunk"] == read - 1
    assert rig.run(try_number=2).code == 0
    check_paid_once(rig, jobs=1)


ROUNDS: dict[str, tuple[Any, ...]] = {
    "in the middle of writing the second round": (f"{CORE}shards:row_line", "before", 8),
    "before the second round is in force": (f"{CORE}plan:Round.commit", "before", 2),
    "after the second round is in force": (f"{CORE}plan:Round.commit", "after", 2),
    "after the second round's claim": (f"{CORE}ledger:Ledger.claim", "after", 4),
    "after the second round's create left": (f"{CORE}client:Client.create", "after", 4),
    "in the middle of landing the second round": (f"{CORE}landing:Part.close", "before", 4),
    "after the second round is landed": (f"{CORE}ledger:Ledger.landed", "after", 4),
    "in the middle of landing what is left": (f"{CORE}finishing:_land_leftovers", "after"),
}


@both_ways
@pytest.mark.parametrize("point", ROUNDS)
def test_killed_in_the_second_round_and_retried_it_pays_once(
    make_rig: Callable[..., Any], check_paid_once: Callable[..., None], point: str, deferrable: bool
) -> None:
    faults = Faults(fail_keys={"row-1": {"times": 1}, "row-4": {"times": 1}})
    rig = make_rig({"faults": faults}, deferrable=deferrable, **THREE_SLOTS)
    rig.kill(ROUNDS[point])
    assert rig.run(try_number=2).code == 0
    check_paid_once(rig, jobs=4)
    assert sorted(row["key"] for row in rig.landed() if row["round"] == 1) == ["row-1", "row-4"]


SCRIPTS: dict[str, tuple[Faults, dict[str, Any], int]] = {
    "redo": (Faults(fail_keys={"row-1": {"code": 3, "times": 1}, "row-4": {"code": 3, "times": 1}}),
             {"redo": {"error": {}}, **THREE_SLOTS}, 4),
    "split": (Faults(end_state="EXPIRED", end_state_jobs=1), {"split": 3}, 4),
    "canary": (Faults(), {"canary": 2, **THREE_SLOTS}, 3),
    "a canary's row is sent again": (Faults(fail_keys={"row-1": {"times": 1}}), {"canary": 2}, 3),
    "budget": (Faults(fail_keys={"row-1": {"times": 1}}), {"budget": {"max_cost_usd": 1.0}, **THREE_SLOTS}, 4),
    "a sample is counted": (Faults(), {"count_tokens": 3, **THREE_SLOTS}, 3),
}  # fmt: skip
"""What goes wrong, settings, and the jobs that this needs."""

SCRIPT_POINTS: dict[str, tuple[Any, ...]] = {
    "before the first round is in force": (f"{CORE}plan:Round.commit", "before"),
    "after the first create left, reply never read": (f"{CORE}client:Client.create", "answered"),
    "after the second create": (f"{CORE}client:Client.create", "after", 2),
    "after the first part's record": (f"{CORE}ledger:Ledger.landed", "after"),
    "after the third claim": (f"{CORE}ledger:Ledger.claim", "after", 3),
    "before the failures are written": (f"{CORE}finishing:write_failures", "before"),
    "before the manifest": (f"{CORE}manifest:Manifest.write", "before"),
    "before metrics are noted": (f"{CORE}finishing:_news", "before"),
    "after metrics are noted": (f"{CORE}finishing:_news", "after"),
}


@pytest.mark.slow
@pytest.mark.parametrize("point", SCRIPT_POINTS)
@pytest.mark.parametrize("script", SCRIPTS)
def test_killed_with_rounds_that_were_asked_for_and_retried_it_pays_once(
    make_rig: Callable[..., Any], check_paid_once: Callable[..., None], script: str, point: str
) -> None:
    faults, settings, jobs = SCRIPTS[script]
    rig = make_rig({"faults": faults}, **settings)
    rig.kill(SCRIPT_POINTS[point])
    assert rig.run(try_number=2).code == 0
    check_paid_once(rig, jobs=jobs)


HANGING = Faults(stuck_models={"gemini-2.5-flash": "PENDING"})
HANGING_POINTS: dict[str, tuple[Any, ...]] = {
    "before the cancel": (f"{CORE}client:Client.cancel", "before"),
    "after the cancel, before its record": (f"{CORE}client:Client.cancel", "after"),
    "after the record of the cancel": (f"{CORE}ledger:Ledger.cancelled", "after"),
    "after the stuck job is landed": (f"{CORE}ledger:Ledger.landed", "after"),
    "before the second round is in force": (f"{CORE}plan:Round.commit", "before", 2),
    "after the second model's create": (f"{CORE}client:Client.create", "after", 2),
    "after a part of the second round, before its record": (f"{CORE}ledger:Ledger.landed", "before", 2),
}


@pytest.mark.parametrize("point", HANGING_POINTS)
def test_killed_while_a_model_hangs_the_next_one_is_asked_once(make_rig: Callable[..., Any], point: str) -> None:
    rig = make_rig(
        {"faults": HANGING}, model=["gemini-2.5-flash", "gemini-2.5-flash-lite"], pending_timeout=0.3, split=3
    )
    rig.kill(HANGING_POINTS[point])
    # A job that somebody's cancel ended before it was noted is taken for cancelled by a person; the retry asks again.
    assert rig.run(try_number=2).code == 0
    rig.check_table(6)
    assert {row["status"] for row in rig.landed()} == {"ok"}
    assert {row["round"] for row in rig.landed()} == {1}
    models = [job.model.removeprefix("models/") for job in rig.emulator.jobs]
    assert models == ["gemini-2.5-flash"] + ["gemini-2.5-flash-lite"] * 3
    assert [job.state for job in rig.emulator.jobs] == ["CANCELLED"] + ["SUCCEEDED"] * 3


FAILED_CANARY: dict[str, tuple[Any, ...]] = {
    "after the canary is landed": (f"{CORE}ledger:Ledger.landed", "after"),
    "after the rest is landed as not sent": (f"{CORE}ledger:Ledger.landed", "after", 2),
    "before the manifest": (f"{CORE}manifest:Manifest.write", "before"),
}


@pytest.mark.parametrize("point", FAILED_CANARY)
def test_killed_after_a_canary_that_failed_the_retry_pays_nothing(make_rig: Callable[..., Any], point: str) -> None:
    faults = Faults(fail_keys={"row-0": {"code": 3}, "row-1": {"code": 3}})
    rig = make_rig({"faults": faults}, canary=2)
    rig.kill(FAILED_CANARY[point])
    ended = rig.run(try_number=2)
    assert (ended.error, ended.told["retryable"]) == ("CanaryFailed", False)
    rig.check_table(6)
    assert rig.emulator.jobs_created == 1


# Deferred: the trigger is another process -----------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 10])
def test_the_triggerer_may_be_killed_and_restarted(
    make_rig: Callable[..., Any], check_paid_once: Callable[..., None], times: int
) -> None:
    rig = make_rig({"states": ["PENDING"] * (3 * times + 6) + ["SUCCEEDED"]}, **THREE_SLOTS)
    deferred = rig.run(part="execute").told["deferred"]
    trigger = {"trigger": deferred}
    for _ in range(times):
        rig.kill((f"{CORE}watcher:Watcher._round", "after"), part="trigger", more=trigger)
    while "manifest" not in (ended := rig.run(part="resume", more=_event(rig, deferred))).told:
        deferred = ended.told["deferred"]
    check_paid_once(rig, jobs=3)
    assert rig.emulator.calls["cancel"] == 0


def _event(rig: Any, deferred: list[Any]) -> dict[str, Any]:
    ended = rig.run(part="trigger", more={"trigger": deferred})
    assert ended.code == 0, ended.told
    return {"event": ended.told["event"]}


def test_a_worker_killed_after_the_event_leaves_the_retry_everything(
    make_rig: Callable[..., Any], check_paid_once: Callable[..., None]
) -> None:
    """Airflow clears what was deferred and starts the retry from the beginning."""
    rig = make_rig(**THREE_SLOTS)
    deferred = rig.run(part="execute").told["deferred"]
    event = _event(rig, deferred)
    rig.kill((f"{OPERATOR}resume", "before"), part="resume", more=event)
    rig.kill((f"{CORE}landing:Part.close", "before", 2), part="resume", more=event)
    assert rig.run(try_number=2).code == 0
    check_paid_once(rig, jobs=3)


def test_an_event_that_comes_twice_lands_once(
    make_rig: Callable[..., Any], check_paid_once: Callable[..., None]
) -> None:
    """Airflow may run a trigger on two triggerers, and resume a task more than once."""
    rig = make_rig(**THREE_SLOTS)
    event = _event(rig, rig.run(part="execute").told["deferred"])
    for _ in range(2):
        assert rig.run(part="resume", more=event).code == 0
    check_paid_once(rig, jobs=3)
