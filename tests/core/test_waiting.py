from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_gemini_batch.core.jobs import PHASE_OF_STATE, Counts, Gone, Job, Phase, Refused, Seen, Unreachable
from airflow_gemini_batch.core.waiting import (
    HEARTBEAT,
    JITTER,
    LONGEST_QUIET,
    SURE_AFTER,
    LookAt,
    Outcome,
    Pause,
    Wait,
    adrive,
    describe,
    drive,
    from_event,
    step,
    summarise,
    to_event,
    watching,
)
from airflow_gemini_batch.exceptions import StateTooNew, StateUnreadable

NOW = 1_900_000_000.0
FAR = NOW + 48 * 3600


def job(state: str = "RUNNING", name: str = "j", **more) -> Job:
    return Job(name, state, PHASE_OF_STATE.get(state, Phase.RUNNING), **more)


RUNNING, GONE, REFUSED, UNREACHABLE = job(), Gone("j", "404"), Refused("j", "403"), Unreachable("j", "503")


def after(looks: list[Seen | None], *, deadline: float = FAR, now: float = NOW) -> tuple[int, Wait | Outcome]:
    """Step through looks; tells how many were needed."""
    wait: Wait | Outcome = Wait("j", deadline)
    for n, seen in enumerate(looks, 1):
        assert isinstance(wait, Wait)
        wait = step(wait, seen, now=now)
        if isinstance(wait, Outcome):
            return n, wait
    return len(looks), wait


# One look


@pytest.mark.parametrize("state", sorted(PHASE_OF_STATE))
def test_a_wait_ends_at_the_first_look_at_a_job_that_ended_and_at_no_other(state):
    decided = step(Wait("j", FAR), job(state), now=NOW)
    assert decided == (Outcome("j", "ended", state) if PHASE_OF_STATE[state].ended else Wait("j", FAR))


@pytest.mark.parametrize(("seen", "how"), [(GONE, "gone"), (REFUSED, "refused")])
def test_bad_news_is_believed_only_when_it_comes_three_times_in_a_row(seen, how):
    assert SURE_AFTER == 3
    looks, outcome = after([seen, seen, RUNNING, seen, seen, UNREACHABLE, seen, seen, seen])
    assert (looks, outcome) == (9, Outcome("j", how, seen.detail))


@pytest.mark.parametrize("looks", [[REFUSED, REFUSED, GONE], [GONE, REFUSED, GONE], [GONE, GONE, REFUSED]])
def test_looks_that_disagree_prove_nothing(looks):
    assert isinstance(after(looks)[1], Wait)


def test_a_look_that_was_not_made_proves_nothing_and_refutes_nothing():
    assert after([GONE, None, None, None, GONE, None, GONE]) == (7, Outcome("j", "gone", GONE.detail))
    assert after([None], deadline=NOW) == (1, Outcome("j", "timed_out", "it was not seen again"))
    assert after([None]) == (1, Wait("j", FAR))


def test_a_service_that_is_away_for_hours_ends_no_wait():
    looks, wait = after([UNREACHABLE] * 1000)
    assert (looks, wait) == (1000, Wait("j", FAR))


@pytest.mark.parametrize("seen", [RUNNING, GONE, REFUSED, UNREACHABLE, job("HIBERNATING")])
def test_the_deadline_ends_a_wait_whatever_is_seen(seen):
    assert isinstance(after([seen], deadline=NOW + 0.001)[1], Wait)
    assert after([seen], deadline=NOW) == (1, Outcome("j", "timed_out", describe(seen)))


@pytest.mark.parametrize("state", ["SUCCEEDED", "FAILED", "EXPIRED"])
def test_a_job_that_ended_in_time_for_the_last_look_is_not_timed_out(state):
    assert after([job(state)], deadline=NOW - 100)[1] == Outcome("j", "ended", state)


# The whole wait


class World:
    """Jobs whose looks follow a script (the last one stays), in a time that passes only in sleep."""

    def __init__(self, script: Mapping[str, list[Seen]], now: float = NOW, seconds_per_look: float = 0.0) -> None:
        self.script, self.now, self.seconds_per_look = script, now, seconds_per_look
        self.looks: list[tuple[str, ...]] = []
        self.pauses: list[float] = []
        self.told: list[str] = []

    def clock(self) -> float:
        return self.now

    def look(self, jobs: tuple[str, ...]) -> dict[str, Seen]:
        n = len(self.looks)
        self.looks.append(jobs)
        self.now += self.seconds_per_look
        return {name: self.script[name][min(n, len(self.script[name]) - 1)] for name in jobs}

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    async def alook(self, jobs: tuple[str, ...]) -> dict[str, Seen]:
        await asyncio.sleep(0)
        return self.look(jobs)

    async def asleep(self, seconds: float) -> None:
        await asyncio.sleep(0)
        self.sleep(seconds)

    def steps(self, *, deadline: float = FAR, interval: float = 60, jitter: float | None = 0.5):
        waits = [Wait(name, deadline) for name in self.script]
        more = {} if jitter is None else {"jitter": lambda: jitter}
        return watching(waits, interval=interval, clock=self.clock, tell=self.told.append, **more)

    def run(self, **settings) -> tuple[Outcome, ...]:
        return drive(self.steps(**settings), self.look, self.sleep)

    def arun(self, **settings) -> tuple[Outcome, ...]:
        return asyncio.run(adrive(self.steps(**settings), self.alook, self.asleep))


def test_a_wait_looks_pauses_and_looks_until_the_end():
    world = World({"j": [job("PENDING"), RUNNING, RUNNING, job("SUCCEEDED")]})
    assert world.run() == (Outcome("j", "ended", "SUCCEEDED"),)
    assert world.pauses == [60, 60, 60]


def test_a_job_that_ended_before_the_wait_costs_no_pause():
    world = World({"j": [job("SUCCEEDED")]})
    world.run()
    assert world.pauses == []


def test_all_jobs_that_ended_by_one_look_are_told_together():
    world = World({"a": [RUNNING, job("SUCCEEDED")], "b": [RUNNING], "c": [RUNNING, job("FAILED")]})
    assert world.run() == (Outcome("a", "ended", "SUCCEEDED"), Outcome("c", "ended", "FAILED"))
    assert world.looks == [("a", "b", "c")] * 2


@pytest.mark.parametrize(("jitter", "pause"), [(0.0, 54.0), (0.5, 60.0), (1.0, 66.0)])
def test_pauses_vary_by_a_tenth_either_way(jitter, pause):
    world = World({"j": [RUNNING, RUNNING, job("SUCCEEDED")]})
    world.run(jitter=jitter)
    assert world.pauses == pytest.approx([pause, pause])


def test_tasks_started_together_drift_apart():
    world = World({"j": [RUNNING] * 200 + [job("SUCCEEDED")]})
    world.run(jitter=None)
    assert len(set(world.pauses)) > 100
    assert all(60 * (1 - JITTER) <= pause <= 60 * (1 + JITTER) for pause in world.pauses)


@pytest.mark.parametrize("deadline", [0.5, 60, 61, 1000])
@pytest.mark.parametrize("seen", [RUNNING, UNREACHABLE])
def test_the_deadline_is_met_on_time_and_not_at_the_next_look(deadline, seen):
    world = World({"j": [seen]})
    (outcome,) = world.run(deadline=NOW + deadline)
    assert outcome.how == "timed_out"
    assert world.now - NOW == pytest.approx(deadline)


def test_a_deadline_long_past_ends_the_wait_after_one_look():
    world = World({"j": [RUNNING]})
    assert world.run(deadline=NOW - 1e6)[0].how == "timed_out"
    assert (len(world.looks), world.pauses) == (1, [])


def test_a_slow_service_makes_no_negative_pause():
    world = World({"j": [RUNNING]}, seconds_per_look=100)
    world.run(deadline=NOW + 250)
    assert all(pause >= 0 for pause in world.pauses)
    assert world.now - NOW <= 250 + 100


def test_a_job_left_out_of_the_answer_counts_as_not_seen():
    steps = World({"j": [RUNNING]}).steps()
    assert next(steps) == LookAt(("j",))
    assert isinstance(steps.send({}), Pause)


LOOKS = st.sampled_from(
    [RUNNING, GONE, REFUSED, UNREACHABLE, job("PENDING"), job("SUCCEEDED"), job("FAILED"), job("NEW_STATE"),
     job(counts=Counts(10, 5))]
)  # fmt: skip


@given(
    st.dictionaries(st.sampled_from("abc"), st.lists(LOOKS, min_size=1, max_size=8), min_size=1),
    st.floats(0, 2000),
    st.floats(0, 1),
)
def test_worker_and_triggerer_come_to_the_same_end_for_the_same_looks(script, deadline, jitter):
    worker, triggerer = World(script), World(script)
    outcomes = worker.run(deadline=NOW + deadline, jitter=jitter)
    assert outcomes == triggerer.arun(deadline=NOW + deadline, jitter=jitter)
    assert vars(worker) == vars(triggerer)
    assert outcomes
    assert worker.now - NOW <= deadline + 0.001


# What is told


def test_progress_is_told_when_it_changes_and_not_otherwise():
    half = job(counts=Counts(10, 4, 1, 5))
    world = World(
        {"j": [job("PENDING"), job("PENDING"), RUNNING, RUNNING, half, half, job("SUCCEEDED", counts=Counts(10, 9, 1))]}
    )
    world.run()
    assert [line.split(", waiting")[0].split(", age")[0] for line in world.told] == [
        "j PENDING",
        "j RUNNING",
        "j RUNNING, 5 of 10 done, 1 failed",
        "j SUCCEEDED, 10 of 10 done, 1 failed",
    ]


@pytest.mark.parametrize("interval", [1, 60, 599, 700])
def test_nothing_new_is_told_at_most_every_ten_minutes(interval):
    world = World({"j": [RUNNING]})
    told_at: list[float] = []
    steps = watching(
        [Wait("j", NOW + 7200)], interval=interval, clock=world.clock, tell=lambda line: told_at.append(world.now),
        jitter=lambda: 0.5,
    )  # fmt: skip
    drive(steps, world.look, world.sleep)
    gaps = [b - a for a, b in pairwise(told_at)]
    assert len(told_at) >= 7200 / (HEARTBEAT + interval)
    assert all(HEARTBEAT <= gap <= HEARTBEAT + interval for gap in gaps)


def test_the_line_tells_the_age_of_the_job_not_of_the_attempt():
    from datetime import UTC, datetime

    created = datetime.fromtimestamp(NOW - 3 * 3600 - 120, UTC)
    world = World({"j": [job(created_at=created), job("SUCCEEDED", created_at=created)]})
    world.run()
    assert world.told[0] == "j RUNNING, age 3 h 02 min"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (59, "59 s"),
        (60, "1 min 00 s"),
        (605, "10 min 05 s"),
        (3600, "1 h 00 min"),
        (49 * 3600, "49 h 00 min"),
    ],
)
def test_waiting_time_is_told_in_words(seconds, said):
    world = World({"j": [job("SUCCEEDED")]}, seconds_per_look=seconds)
    world.run()
    assert world.told == [f"j SUCCEEDED, waiting for {said}"]


def test_a_state_nobody_knows_is_named_as_such():
    assert describe(job("HIBERNATING")) == "j HIBERNATING (a state this release does not know; it counts as running)"
    world = World({"j": [job("HIBERNATING"), job("SUCCEEDED")]})
    world.run()
    assert "HIBERNATING (a state this release does not know; it counts as running)" in world.told[0]


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (job("UNSPECIFIED"), "j UNSPECIFIED"),
        (job(counts=Counts(12_000, 4_000, 2)), "j RUNNING, 4,002 of 12,000 done, 2 failed"),
        (UNREACHABLE, "j could not be seen: 503"),
    ],
)
def test_one_look_in_words(seen, said):
    assert describe(seen) == said


def test_a_job_without_a_state_is_called_that():
    assert describe(job("")).startswith("j without a state")


def test_many_looks_in_one_line():
    seen = {
        "a": job(counts=Counts(10, 4, 1)), "b": job(counts=Counts(10)), "c": job("PENDING", counts=Counts(10)), "d": GONE,
        "e": job(""), "f": job("HIBERNATING"),
    }  # fmt: skip
    assert summarise(seen) == (
        "6 jobs: 1 HIBERNATING, 1 PENDING, 2 RUNNING, 1 not seen, 1 without a state, 5 of 30 done, 1 failed"
    )


# Events


@given(st.lists(st.builds(Outcome, st.text(), st.sampled_from(["ended", "gone", "refused", "timed_out"]), st.text())))
def test_outcomes_read_back_from_an_event_that_went_through_json(outcomes):
    assert from_event(json.loads(json.dumps(to_event(outcomes)))) == tuple(outcomes)


def test_no_event_means_look_again():
    assert from_event(None) == ()


@pytest.mark.parametrize(
    "event",
    [{}, {"version": 1}, {"version": "x", "outcomes": []}, {"version": 1, "outcomes": [{}]}, {"version": 1, "outcomes": 5},
     {"version": 1, "outcomes": ["x"]}, {"status": "success"}, {"version": None, "outcomes": []},
     {"version": 1, "outcomes": [{"job": "j", "how": "exploded", "detail": ""}]}],
)  # fmt: skip
def test_an_event_that_is_not_ours_is_an_error(event):
    with pytest.raises(StateUnreadable):
        from_event(event)


def test_an_event_of_a_later_release_is_an_error_that_says_so():
    with pytest.raises(StateTooNew, match="version 2"):
        from_event({"version": 2, "outcomes": []})


# A time to come back


def until(world, at, interval=60.0):
    waits = [Wait(name, FAR) for name in world.script]
    return watching(waits, interval=interval, clock=world.clock, tell=world.told.append, jitter=lambda: 0.5, until=at)


def test_a_wait_for_nothing_but_a_time_looks_at_nothing():
    world = World({})
    assert drive(until(world, NOW + 500), world.look, world.sleep) == ()
    assert (world.now, world.looks, world.told) == (NOW + 500, [], [])
    assert drive(until(world, NOW), world.look, world.sleep) == ()
    assert drive(until(world, None), world.look, world.sleep) == ()
    assert world.now == NOW + 500


@pytest.mark.parametrize(("at", "looks", "outcomes"), [(150, 4, 0), (60, 2, 0), (10_000, 6, 1)])
def test_a_wait_ends_at_its_time_or_with_a_job_whichever_is_first(at, looks, outcomes):
    world = World({"j": [RUNNING] * 5 + [job("SUCCEEDED")]})
    assert len(drive(until(world, NOW + at), world.look, world.sleep)) == outcomes
    assert len(world.looks) == looks


def test_a_job_that_ends_with_the_time_is_told():
    world = World({"j": [RUNNING, job("SUCCEEDED")]})
    assert drive(until(world, NOW + 60), world.look, world.sleep) == (Outcome("j", "ended", "SUCCEEDED"),)


def test_a_service_that_names_a_time_is_not_looked_at_before():
    world = World({"j": [Unreachable("j", "429", 400.0), Unreachable("j", "429", 5.0), job("SUCCEEDED")]})
    world.run()
    assert world.pauses == [420, 60], "and a little later, so that tasks refused together come back apart"


def test_a_service_that_asks_for_a_day_is_looked_at_in_minutes():
    world = World({"j": [Unreachable("j", "429", 86400.0), job("SUCCEEDED")]})
    world.run()
    assert world.pauses == [LONGEST_QUIET * 1.05]


def test_a_service_that_refuses_every_look_is_looked_at_ever_more_rarely():
    no_time = Unreachable("j", "429", 0.0)
    world = World({"j": [no_time, no_time, no_time, no_time, no_time, no_time, RUNNING, no_time, job("SUCCEEDED")]})
    world.run(jitter=0.5)
    assert world.pauses == pytest.approx([60, 126, 252, 504, 630, 630, 60, 60])


def test_a_service_that_answers_some_looks_is_looked_at_as_before():
    refused = [Unreachable("j", "429", 0.0)] * 3 + [job("SUCCEEDED")]
    world = World({"j": refused, "k": [RUNNING]})
    world.run()
    assert world.pauses == [60, 60, 60]


def test_an_event_stays_small_whatever_the_service_says_of_a_hundred_jobs():
    event = to_event([Outcome(f"batches/{n}", "timed_out", "x" * 100_000) for n in range(100)])
    assert len(json.dumps(event)) < 50_000
    assert [one.job for one in from_event(event)] == [f"batches/{n}" for n in range(100)]
    assert from_event(to_event([Outcome("j", "gone", "x" * 300)])) == (Outcome("j", "gone", "x" * 300),)


def test_the_event_says_what_ended_the_wait_and_an_older_reader_understands_it():
    event = to_event(())
    assert (event["woken_by"], event["version"], event["outcomes"]) == ("time", 1, [])
    assert to_event((Outcome("j", "ended"),))["woken_by"] == "jobs"
    assert from_event(event) == ()
