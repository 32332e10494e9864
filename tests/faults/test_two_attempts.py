"""
Two attempts of one task at once: Airflow starts a retry two seconds after a task's supervisor died, while the orphan runs
on. One job per slot is paid; where that cannot be had, the twin is cancelled and the log says so. Neither damages what
the other landed.
"""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from airflow_gemini_batch.emulator import Faults

CORE = "airflow_gemini_batch.core."
THREE_SLOTS = {"limits": {"requests_per_job": 2}}
SLOW = Faults(delay_seconds={"create": 0.15, "upload_chunk": 0.05, "download": 0.05})

both_ways = pytest.mark.parametrize(
    "deferrable", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["deferred", "waiting"]
)


def _check_together(rig: Any, ended: list[Any], *, slots: int) -> None:
    """What must be true when both are over."""
    assert any(one.code == 0 for one in ended), [one.told for one in ended]
    for one in ended:
        if one.code:
            assert one.error in ("Superseded", "CreateInDoubt", "StateUnreadable"), f"{one.told}\n{one.log}"
    rig.check_table(6)
    cancelled = [job for job in rig.emulator.jobs if job.state == "CANCELLED"]
    assert rig.emulator.jobs_created - len(cancelled) == slots
    said = "".join(one.log for one in ended)
    for twin in cancelled:
        assert f"{twin.name} is a twin" in said, "a twin is paid for in part: people must be told"
    recorded = {job["name"] for job in rig.manifest()["jobs"]}
    assert recorded == {job.name for job in rig.emulator.jobs} - {job.name for job in cancelled}
    assert {row["job"] for row in rig.landed()} == recorded


@both_ways
@pytest.mark.parametrize("seed", range(4))
def test_two_attempts_started_together_pay_once(
    make_rig: Callable[..., Any], check_paid_once: Callable[..., None], seed: int, deferrable: bool
) -> None:
    rng = random.Random(f"{seed} {deferrable}")
    rig = make_rig({"faults": SLOW, "job_seconds": rng.choice([0.0, 0.5])}, deferrable=deferrable, **THREE_SLOTS)
    start = time.time() + 0.3
    both = [
        rig.start(try_number=n, more={"start_at": start + (n - 1) * rng.choice([0.0, 0.1, 0.5, 1.0])}) for n in (1, 2)
    ]
    ended = [one.wait() for one in both]
    _check_together(rig, ended, slots=3)
    if rig.emulator.jobs_created == 3:
        check_paid_once(rig, jobs=3)


@pytest.mark.parametrize("seed", range(3))
def test_two_attempts_with_a_canary_pay_once_and_the_canary_comes_first(
    make_rig: Callable[..., Any], check_paid_once: Callable[..., None], seed: int
) -> None:
    rng = random.Random(f"canary {seed}")
    rig = make_rig({"faults": SLOW, "job_seconds": rng.choice([0.0, 0.5])}, canary=2, **THREE_SLOTS)
    start = time.time() + 0.3
    both = [rig.start(try_number=n, more={"start_at": start + (n - 1) * rng.choice([0.0, 0.1, 0.5])}) for n in (1, 2)]
    _check_together(rig, [one.wait() for one in both], slots=3)
    assert rig.emulator.jobs[0].keys == ("row-0", "row-1")
    if rig.emulator.jobs_created == 3:
        check_paid_once(rig, jobs=3)


@pytest.mark.slow
@both_ways
@pytest.mark.parametrize("seed", range(100, 110))
def test_three_attempts_under_faults_pay_once(make_rig: Callable[..., Any], seed: int, deferrable: bool) -> None:
    rng = random.Random(f"{seed} {deferrable}")
    faults = Faults(
        delay_seconds={"create": rng.uniform(0, 0.5), "list": rng.uniform(0, 0.2), "upload_start": rng.uniform(0, 0.2)},
        drop_after={"create": rng.randint(0, 3)},
    )
    rig = make_rig({"faults": faults, "job_seconds": rng.choice([0.0, 1.0])}, deferrable=deferrable, **THREE_SLOTS)
    start = time.time() + 0.3
    together = [rig.start(try_number=n, more={"start_at": start + rng.uniform(0, 1.5)}) for n in (1, 2, 3)]
    _check_together(rig, [one.wait() for one in together], slots=3)


STOPS: dict[str, tuple[Any, ...]] = {
    "before the plan": (f"{CORE}plan:Plan.commit", "before"),
    "in the middle of writing request shards": (f"{CORE}shards:row_line", "before", 4),
    "after the plan": (f"{CORE}plan:Plan.commit", "after"),
    "in the middle of an upload": (f"{CORE}client:Client._upload", "reading", 1),
    "before the claim": (f"{CORE}ledger:Ledger.claim", "before"),
    "after the claim": (f"{CORE}ledger:Ledger.claim", "after"),
    "after the create left": (f"{CORE}client:Client.create", "answered"),
    "after the create, before the record": (f"{CORE}client:Client.create", "after"),
    "after the record": (f"{CORE}ledger:Ledger.submitted", "after"),
    "in the middle of a download": (f"{CORE}client:Client._download", "writing"),
    "in the middle of landing": (f"{CORE}landing:Part.close", "before", 2),
    "after a part, before its record": (f"{CORE}ledger:Ledger.landed", "before"),
    "before the manifest": (f"{CORE}manifest:Manifest.write", "before"),
}


LATE = [(point, "inputs") for point in STOPS] + [
    (point, delete_remote)
    for point in (
        "before the claim",
        "after the claim",
        "after the create, before the record",
        "in the middle of landing",
    )
    for delete_remote in ("all", "never")
]


@pytest.mark.slow
@pytest.mark.parametrize(("point", "delete_remote"), LATE)
def test_an_orphan_that_goes_on_after_the_retry_is_done_pays_nothing_more(
    make_rig: Callable[..., Any], point: str, delete_remote: str
) -> None:
    """The orphan was stopped for longer than any patience, and wakes when all is landed."""
    rig = make_rig(deferrable=False, delete_remote=delete_remote, **THREE_SLOTS)
    orphan = rig.stop(STOPS[point])
    retry = rig.run(try_number=2)
    assert retry.code == 0, retry.told
    first = rig.answers()
    orphan.send(signal.SIGCONT)
    late = orphan.wait()
    assert late.code == 0 or late.error == "Superseded", f"{late.told}\n{late.log}"
    assert rig.emulator.jobs_created == 3
    rig.check_table(6)
    assert rig.answers() == first


@pytest.mark.parametrize("point", ["after the claim", "after the create left", "after the create, before the record"])
def test_an_orphan_that_goes_on_while_the_retry_waits_pays_nothing_more(
    make_rig: Callable[..., Any], point: str
) -> None:
    """The jobs run on for a while, so that a twin could still be cancelled."""
    rig = make_rig({"states": ["RUNNING"] * 90 + ["SUCCEEDED"]}, deferrable=False, **THREE_SLOTS)
    orphan = rig.stop(STOPS[point])
    retry = rig.start(try_number=2)
    _until(lambda: len(list((rig.work() / "slots").glob("*/job.json"))) == 3)
    orphan.send(signal.SIGCONT)
    ended = [orphan.wait(), retry.wait()]
    assert rig.emulator.jobs_created == 3
    _check_together(rig, ended, slots=3)


def test_a_create_that_the_orphan_sends_late_is_cancelled_as_a_twin(make_rig: Callable[..., Any]) -> None:
    """The window that is left: it had passed every check and was stopped with the request in its hands."""
    rig = make_rig({"states": ["RUNNING"] * 90 + ["SUCCEEDED"]}, deferrable=False, **THREE_SLOTS)
    orphan = rig.stop((f"{CORE}client:Client.create", "before"))
    retry = rig.start(try_number=2)
    _until(lambda: len(list((rig.work() / "slots").glob("*/job.json"))) == 3)
    orphan.send(signal.SIGCONT)
    ended = [orphan.wait(), retry.wait()]
    _check_together(rig, ended, slots=3)
    oldest = {}
    for job in rig.emulator.jobs:  # oldest first
        oldest.setdefault(job.display_name, job)
    assert all(job.state == "SUCCEEDED" for job in oldest.values()), "the oldest of twins is the one that is kept"


def test_a_retry_that_comes_while_the_orphan_creates_waits_for_it(
    make_rig: Callable[..., Any], check_paid_once: Callable[..., None]
) -> None:
    rig = make_rig(deferrable=False, **THREE_SLOTS)
    orphan = rig.stop((f"{CORE}client:Client.create", "before"))
    retry = rig.start(try_number=2, more={"margin": 3.0})
    _until(lambda: rig.emulator.calls["list"] > 2)
    assert rig.emulator.calls["create"] == 0
    orphan.send(signal.SIGCONT)
    assert [orphan.wait().code, retry.wait().code] == [0, 0]
    check_paid_once(rig, jobs=3)


def test_two_attempts_that_open_a_round_at_once_do_not_damage_each_others_requests(
    make_bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wait that ends sends again what may pass; a new attempt sends everything unsettled. Both at the same time."""
    from airflow_gemini_batch.core import rounds
    from airflow_gemini_batch.core.flow import Waiting, advance
    from airflow_gemini_batch.core.waiting import Outcome

    bench = make_bench({"faults": Faults(fail_keys={"row-1": {"times": 1}}), "job_seconds": 1000.0})
    services = bench.services()
    waiting = advance(bench.a_run(jobs_of=3), services, starting=True)
    assert isinstance(waiting, Waiting)
    bench.emulator.set_state(waiting.waits[0].job, "SUCCEEDED")
    bench.emulator.set_state(waiting.waits[1].job, "CANCELLED")
    outcomes = tuple(Outcome(wait.job, "ended") for wait in waiting.waits)
    write, depth = rounds.write_shards, []

    def write_while_another_opens_its_own(*args: Any, **more: Any) -> Any:
        if not depth:
            depth.append(1)
            advance(bench.a_run(jobs_of=3), services, outcomes=outcomes)  # commits round 1 and submits it
        return write(*args, **more)

    monkeypatch.setattr(rounds, "write_shards", write_while_another_opens_its_own)
    reached = advance(bench.a_run(jobs_of=3), services, outcomes=outcomes, starting=True)
    monkeypatch.undo()
    assert depth, "both opened a round"
    bench.sleep(1000)
    for _ in range(4):
        if isinstance(reached, Waiting):
            bench.sleep(1000)
            reached = advance(bench.a_run(jobs_of=3), services, starting=True)
    services.client.close()
    assert not isinstance(reached, Waiting)
    landed = bench.landed()
    assert all(f"row-{n}" in landed[f"row-{n}"]["text"] for n in range(3))
    asked = Counter(key for job in bench.emulator.jobs for key in job.keys)
    assert asked["row-1"] == 2, "the one that failed"
    assert max(asked.values()) == 2


def _until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)
