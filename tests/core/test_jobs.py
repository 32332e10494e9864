from __future__ import annotations

from datetime import UTC, datetime

import pytest
from google.genai import types
from hypothesis import given
from hypothesis import strategies as st

from airflow_gemini_batch.core.jobs import PHASE_OF_STATE, Counts, Job, JobError, Phase, bare_state, timestamp

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda one: st.lists(one, max_size=2) | st.dictionaries(st.text(), one, max_size=2),
    max_leaves=5,
)


def operation(state: str = "BATCH_STATE_RUNNING", **more):
    return {"name": "batches/x", "metadata": {"state": state, **more.pop("metadata", {})}, **more}


def test_every_state_the_sdk_can_report_has_a_phase():
    assert {bare_state(s.value) for s in types.JobState} == set(PHASE_OF_STATE)


@pytest.mark.parametrize(
    ("state", "phase"),
    [
        ("PENDING", Phase.RUNNING), ("RUNNING", Phase.RUNNING), ("SUCCEEDED", Phase.SUCCEEDED), ("FAILED", Phase.FAILED),
        ("CANCELLED", Phase.CANCELLED), ("EXPIRED", Phase.EXPIRED), ("PARTIALLY_SUCCEEDED", Phase.SUCCEEDED),
        ("CANCELLING", Phase.RUNNING), ("PAUSED", Phase.RUNNING), ("UNSPECIFIED", Phase.RUNNING),
    ],
)  # fmt: skip
@pytest.mark.parametrize("prefix", ["BATCH_STATE_", "JOB_STATE_"])
def test_a_state_means_the_same_in_both_spellings(prefix, state, phase):
    job = Job.of_operation(operation(prefix + state))
    assert (job.state, job.phase, job.phase.ended, job.known_state) == (state, phase, phase is not Phase.RUNNING, True)


@pytest.mark.parametrize("state", ["BATCH_STATE_HIBERNATING", "SOMETHING", "succeeded", "7"])
def test_a_state_nobody_knows_counts_as_running(state):
    job = Job.of_operation(operation(state))
    assert (job.phase, job.known_state) == (Phase.RUNNING, False)


@pytest.mark.parametrize(
    ("body", "phase"),
    [
        ({}, Phase.RUNNING),
        ({"done": True, "response": {"responsesFile": "files/r"}}, Phase.SUCCEEDED),
        ({"done": True, "error": {"code": 13, "message": "x"}}, Phase.FAILED),
        ({"done": False}, Phase.RUNNING),
    ],
)
def test_an_operation_without_a_state_is_known_by_being_done(body, phase):
    assert Job.of_operation({"name": "batches/x", **body}).phase is phase


def test_all_that_the_service_says_of_a_job_is_read():
    job = Job.of_operation({
        "name": "batches/x",
        "metadata": {
            "state": "BATCH_STATE_SUCCEEDED", "displayName": "my job", "model": "models/gemini-2.5-flash",
            "createTime": "2026-01-02T03:04:05.123456789Z", "endTime": "2026-01-02T04:00:00Z",
            "batchStats": {"requestCount": "120", "successfulRequestCount": "38", "failedRequestCount": "2",
                           "pendingRequestCount": "80"},
            "inputConfig": {"fileName": "files/in"}, "output": {"responsesFile": "files/out"},
        },
        "done": True,
    })  # fmt: skip
    assert job == Job(
        "batches/x", "SUCCEEDED", Phase.SUCCEEDED, "my job", "gemini-2.5-flash",
        datetime(2026, 1, 2, 3, 4, 5, 123456, UTC), datetime(2026, 1, 2, 4, tzinfo=UTC), Counts(120, 38, 2, 80), "files/in",
        "files/out", None,
    )  # fmt: skip
    assert job.counts.done == 40


@pytest.mark.parametrize(
    "places", [{"metadata": {"output": {"responsesFile": "files/r"}}}, {"response": {"responsesFile": "files/r"}}]
)
def test_results_are_found_in_either_place(places):
    assert Job.of_operation(operation(**places)).results == "files/r"


def test_a_failed_jobs_error_is_kept():
    job = Job.of_operation(operation("BATCH_STATE_FAILED", error={"code": 13, "message": "broken", "details": []}))
    assert job.error == JobError(13, "broken")


@pytest.mark.parametrize(
    ("told", "read"),
    [("2.0", 2), (2.0, 2), ("many", 0), (["5"], 0), ({"low": 5}, 0), ("-1", 0), ("1e400", 0), ("NaN", 0), ("", 0)],
    ids=str,
)
def test_a_counter_that_cannot_be_read_hides_no_end(told, read):
    meta = {"state": "BATCH_STATE_SUCCEEDED", "batchStats": {"requestCount": told, "successfulRequestCount": "2"}}
    job = Job.of_operation(operation(metadata=meta))
    assert (job.phase, job.counts) == (Phase.SUCCEEDED, Counts(read, 2))


@pytest.mark.parametrize("stats", [{}, {"requestCount": "0"}, {"requestCount": None}])
def test_counts_that_are_left_out_are_zero(stats):
    assert Job.of_operation(operation(metadata={"batchStats": stats})).counts == Counts()


@pytest.mark.parametrize(
    "body", [{}, {"name": ""}, {"name": None}, {"name": 5}, {"metadata": {"state": "BATCH_STATE_RUNNING"}}]
)
def test_what_has_no_name_is_no_operation(body):
    with pytest.raises(ValueError, match="without a name"):
        Job.of_operation(body)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2026-01-02T03:04:05Z", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-02T03:04:05.5Z", datetime(2026, 1, 2, 3, 4, 5, 500000, tzinfo=UTC)),
        ("2026-01-02T03:04:05.123456789Z", datetime(2026, 1, 2, 3, 4, 5, 123456, tzinfo=UTC)),
        ("2026-01-02T05:04:05+02:00", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("yesterday", None), ("", None), (None, None), (5, None),
    ],
)  # fmt: skip
def test_times_are_read_and_what_is_none_is_none(text, at):
    assert timestamp(text) == at


@given(
    st.fixed_dictionaries(
        {"name": st.just("batches/x")}, optional=dict.fromkeys(["metadata", "response", "error", "done"], JSON)
    )
)
def test_no_odd_operation_is_taken_for_the_end_of_a_job(body):
    """Whatever else is in it: without a state and without ``done`` the job runs on."""
    body.pop("done", None)
    if isinstance(body.get("metadata"), dict):
        body["metadata"].pop("state", None)
    assert Job.of_operation(body).phase is Phase.RUNNING


@pytest.mark.parametrize("state", [None, "BATCH_STATE_UNSPECIFIED", "BATCH_STATE_NEW"])
@pytest.mark.parametrize(("error", "phase"), [(None, Phase.SUCCEEDED), ({"code": 13, "message": "x"}, Phase.FAILED)])
def test_an_operation_that_is_done_is_over_whatever_its_state_is_called(state, error, phase):
    operation = {"name": "batches/x", "done": True, "metadata": {"state": state}} | ({"error": error} if error else {})
    job = Job.of_operation(operation)
    assert (job.phase, job.state) == (phase, phase.name)
