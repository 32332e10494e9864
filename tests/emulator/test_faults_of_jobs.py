"""Jobs that go wrong: stuck, ended badly, in a state nobody knows, late in the list."""

from __future__ import annotations

import pytest

from airflow_gemini_batch.emulator import Faults

KEYS = [f"row-{i}" for i in range(10)]


def test_jobs_are_stuck_until_they_expire(gemini, raw, item):
    gemini.faults = Faults(stuck="PENDING")
    name = raw.create_inline(item("a"))
    gemini.clock.advance(47 * 3600)
    assert raw.get(name)["metadata"]["state"] == "BATCH_STATE_PENDING"
    gemini.clock.advance(3600)
    assert raw.get(name)["metadata"]["state"] == "BATCH_STATE_EXPIRED"


def test_jobs_of_one_model_are_stuck(gemini, raw, item):
    gemini.faults = Faults(stuck_models={"gemini-2.5-pro": "RUNNING"})
    stuck, free = raw.create_inline(item("a"), model="gemini-2.5-pro"), raw.create_inline(item("a"))
    assert raw.get(stuck)["metadata"]["state"] == "BATCH_STATE_RUNNING"
    assert raw.get(free)["metadata"]["state"] == "BATCH_STATE_SUCCEEDED"
    gemini.faults = Faults()
    assert raw.get(stuck)["metadata"]["state"] == "BATCH_STATE_SUCCEEDED"


@pytest.mark.parametrize("state", ["FAILED", "EXPIRED", "CANCELLED"])
def test_jobs_end_badly_with_or_without_an_error_or_results(gemini, raw, line, state):
    lines = [line(key) for key in KEYS]
    gemini.faults = Faults(end_state=state)
    usual = raw.get(raw.create(*lines))
    assert (usual["metadata"]["state"], usual["done"]) == (f"BATCH_STATE_{state}", True)
    assert usual["error"]["message"]
    assert not {"response", "output"} & {*usual, *usual["metadata"]}
    gemini.faults = Faults(end_state=state, end_without_error=True, end_results=0.3)
    name = raw.create(*lines)
    assert "error" not in raw.get(name)
    answered = ["response" in row for row in raw.results(name)]
    assert answered == [True] * 3 + [False] * (7 if state == "CANCELLED" else 0)
    gemini.faults = Faults(end_state=state, end_error={"code": 7, "message": "own"}, end_results=1)
    both = raw.get(raw.create(*lines))
    assert both["error"] == {"code": 7, "message": "own"}
    assert both["metadata"]["output"]["responsesFile"]


def test_a_job_succeeds_in_part(gemini, raw, line, client):
    gemini.faults = Faults(end_state="PARTIALLY_SUCCEEDED", end_results=0.5)
    name = raw.create(*(line(key) for key in KEYS))
    done = raw.get(name)
    assert done["metadata"]["state"] == "BATCH_STATE_PARTIALLY_SUCCEEDED"
    assert done["metadata"]["batchStats"]["successfulRequestCount"] == "5"
    assert len(raw.results(name)) == 5


def test_only_the_first_jobs_end_badly(gemini, raw, item):
    gemini.faults = Faults(end_state="FAILED", end_state_jobs=1)
    first, second = (raw.create_inline(item("a")) for _ in range(2))
    assert raw.get(second)["metadata"]["state"] == "BATCH_STATE_SUCCEEDED"
    assert raw.get(first)["metadata"]["state"] == "BATCH_STATE_FAILED"


@pytest.mark.filterwarnings("ignore:.*BATCH_STATE_NEW")
def test_a_state_nobody_knows(gemini, raw, client, item):
    gemini.faults = Faults(unknown_state="BATCH_STATE_NEW", unknown_state_looks=2)
    name = raw.create_inline(item("a"))
    seen = [raw.get(name) for _ in range(3)]
    assert [one["metadata"]["state"] for one in seen] == ["BATCH_STATE_NEW", "BATCH_STATE_NEW", "BATCH_STATE_SUCCEEDED"]
    assert ["done" in one for one in seen] == [False, False, True]


def test_output_in_one_place_only(gemini, raw, line, client):
    gemini.faults = Faults(output_only_in_response=True)
    name = raw.create(line("a"))
    assert "output" not in raw.get(name)["metadata"]
    assert client.batches.get(name=name).dest is None
    assert len(raw.results(name)) == 1
    gemini.faults = Faults(output_only_in_metadata=True)
    operation = raw.get(name)
    assert "response" not in operation
    assert operation["metadata"]["output"]["responsesFile"]


@pytest.mark.parametrize(
    ("faults", "state"),
    [({"cancel_ignored": True}, "RUNNING"), ({"cancel_race": True}, "SUCCEEDED"), ({}, "CANCELLED")],
)
def test_a_cancel_is_heeded_ignored_or_too_late(emulate, connect, item, faults, state):
    raw = connect(emulate(states=["RUNNING"], faults=Faults(**faults)))
    name = raw.create_inline(item("a"))
    assert raw.json("POST", f"{name}:cancel") == {}
    done = raw.get(name)
    assert done["metadata"]["state"] == f"BATCH_STATE_{state}"
    assert ("response" in done) is (state == "SUCCEEDED")


def test_a_new_job_is_late_in_the_list(gemini, raw, item):
    gemini.faults = Faults(list_lag=60)
    name = raw.create_inline(item("a"))
    assert raw.json("GET", "batches") == {}
    assert raw.get(name)["name"] == name
    gemini.clock.advance(61)
    assert len(raw.json("GET", "batches")["operations"]) == 1


def test_the_list_can_hide_outputs(gemini, raw, line):
    gemini.faults = Faults(list_hides_output=True)
    raw.create(line("a"))
    (listed,) = raw.json("GET", "batches")["operations"]
    assert listed["done"] is True
    assert "output" not in listed["metadata"]
