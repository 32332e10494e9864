from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_gemini_batch.core import storage
from airflow_gemini_batch.core.layout import OutputDirectory
from airflow_gemini_batch.core.names import DisplayName, RunId, Slot
from airflow_gemini_batch.core.plan import Plan, Round, Shard, digest
from airflow_gemini_batch.exceptions import StateTooNew, StateUnreadable

SHARD = Shard(Slot(0, 0), 2, 3, 100, "ab" * 32)
PLAN = Plan(
    1, "w1", RunId("d", "t", "r", 2), {"model": "m", "keep": ["a"]}, 3, {"a": "int64"}, "2026-01-01T00:00:00Z", 4
)


@pytest.fixture
def output(tmp_path) -> OutputDirectory:
    return OutputDirectory(tmp_path / "out")


def test_an_output_without_a_plan_has_none(output):
    assert Plan.current(output) is None
    assert Round.load_all(output.work("w")) == []


def test_a_plan_reads_back_as_it_was_committed(output):
    assert PLAN.commit(output)
    assert Plan.current(output) == PLAN


def test_the_plan_with_the_highest_number_is_in_force(output):
    plans = [replace(PLAN, number=n, work=f"w{n}") for n in (1, 2, 3)]
    for plan in plans:
        assert plan.commit(output)
    assert Plan.current(output) == plans[2]
    assert Plan.at(output, 2) == plans[1]
    assert [plan.is_current(output) for plan in plans] == [False, False, True]


def test_of_two_plans_with_one_number_the_first_stays(output):
    assert PLAN.commit(output)
    assert not replace(PLAN, work="other").commit(output)
    assert Plan.current(output) == PLAN


def test_of_many_attempts_that_plan_at_once_one_wins_and_all_see_its_plan(output):
    def attempt(n: int) -> tuple[bool, Plan | None]:
        return replace(PLAN, work=f"w{n}").commit(output), Plan.current(output)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(attempt, range(8)))
    assert sum(won for won, _ in results) == 1
    assert len({plan.work for _, plan in results if plan}) == 1
    assert all(plan for _, plan in results)


def test_a_damaged_plan_is_not_an_output_without_one(output):
    storage.publish(output.plan(1), b'{"kind":"plan","ver')
    with pytest.raises(StateUnreadable):
        Plan.current(output)


def test_a_plan_that_lacks_its_parts_is_unreadable(output):
    storage.publish(output.plan(1), b'{"kind":"plan","version":1,"work":"w"}')
    with pytest.raises(StateUnreadable):
        Plan.current(output)


def test_a_plan_of_a_later_release_is_not_guessed_at(output):
    storage.publish(output.plan(1), b'{"kind":"plan","version":99}')
    with pytest.raises(StateTooNew):
        Plan.current(output)


def test_what_a_later_release_adds_to_a_plan_is_passed_over(output):
    PLAN.commit(output)
    data = output.plan(1).read_bytes().replace(b'"kind"', b'"new_thing": 1, "kind"')
    storage.publish(output.plan(1), data)
    assert Plan.current(output) == PLAN


# Rounds


@settings(max_examples=40)
@given(
    st.integers(0, 5), st.sampled_from(["all", "auto"]),
    st.lists(st.builds(Shard, st.builds(Slot, st.integers(0, 9), st.integers(0, 10**6)), st.integers(0, 2**40),
    st.integers(0, 2**40),
                       st.integers(0, 2**40), st.text("0123456789abcdef", min_size=64, max_size=64)), max_size=3),
)  # fmt: skip
def test_a_round_reads_back_as_it_was_committed(last, took, shards):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as directory:
        work = OutputDirectory(Path(directory)).work("w")
        one = Round(0, last, tuple(shards), took)
        one.commit(work)
        assert Round.load(work, 0) == one
        assert Round.load_all(work) == [one]


def test_a_round_that_comes_second_gets_the_one_in_force(output):
    work = output.work("w")
    first, second = Round(0, 1, (SHARD,)), Round(0, 2, ())
    assert first.commit(work) == first
    assert second.commit(work) == first
    assert Round.load_all(work) == [first]


def test_what_a_later_release_adds_to_a_shard_is_passed_over(output):
    work = output.work("w")
    Round(0, 1, (SHARD,)).commit(work)
    storage.publish(work.round(0), work.round(0).read_bytes().replace(b'"slot"', b'"new_thing": 1, "slot"'))
    assert Round.load(work, 0) == Round(0, 1, (SHARD,))


# Names


def test_a_jobs_display_name_tells_run_slot_and_content():
    name = PLAN.display_name(SHARD)
    assert DisplayName.parse(str(name)) == name
    assert (name.run_hash, name.slot, name.fingerprint, name.label) == (
        PLAN.run_hash,
        SHARD.slot,
        "abababababab",
        "d.t",
    )
    assert PLAN.run_hash != replace(PLAN, work="w2").run_hash


def test_settings_in_another_order_are_the_same_settings():
    assert digest({"a": 1, "b": {"c": 2, "d": 3}}) == digest({"b": {"d": 3, "c": 2}, "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    assert replace(PLAN, spec={"keep": ["a"], "model": "m"}).digest == PLAN.digest
