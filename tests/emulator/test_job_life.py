"""The life of a job: cancel, delete, update, the clock, expiry, limits, forced states."""

from __future__ import annotations

import json

import pytest
from google.genai import errors

from airflow_gemini_batch.emulator import Options

HOURS = 3600.0


def test_cancel_ends_a_job_and_says_only_that_it_heard(emulate, connect, line, sdk):
    gemini = emulate(states=["PENDING", "RUNNING"])
    raw = connect(gemini)
    name = raw.create(line("a"))
    assert raw.json("POST", f"{name}:cancel") == {}
    done = raw.get(name)
    assert (done["metadata"]["state"], done["done"], done["error"]["code"]) == ("BATCH_STATE_CANCELLED", True, 1)
    assert "output" not in done["metadata"]
    assert raw.json("POST", f"{name}:cancel") == {}
    assert sdk(gemini).batches.cancel(name=name) is None


def test_a_cancelled_job_may_keep_what_it_had(emulate, connect, line):
    gemini = emulate(states=["RUNNING"], options=Options(cancelled_results=True, ended_errors=False))
    raw = connect(gemini)
    name = raw.create(*(line(f"{i}") for i in range(4)))
    raw.json("POST", f"{name}:cancel")
    done = raw.get(name)
    assert done["metadata"]["state"] == "BATCH_STATE_CANCELLED"
    assert "error" not in done
    assert [row.get("error", {}).get("code") for row in raw.results(name)] == [None, None, 1, 1]


def test_a_late_cancel_can_be_refused(emulate, connect, item):
    raw = connect(emulate(options=Options(cancel_ended_status=400)))
    name = raw.create_inline(item("a"))
    raw.get(name)
    assert raw.http.post(f"/v1beta/{name}:cancel").json()["error"]["status"] == "FAILED_PRECONDITION"


def test_delete_forgets_the_job_and_leaves_the_result_file(raw, client, line):
    name = raw.create(line("a"))
    file = raw.get(name)["response"]["responsesFile"]
    client.batches.delete(name=name)
    with pytest.raises(errors.ClientError) as caught:
        client.batches.get(name=name)
    assert (caught.value.code, caught.value.status) == (404, "NOT_FOUND")
    assert raw.json("GET", "batches") == {}
    assert raw.json("GET", file)["name"] == file
    for method, path in (("DELETE", name), ("POST", f"{name}:cancel")):
        assert raw.http.request(method, f"/v1beta/{path}").status_code == 404


def test_update_changes_the_name_and_the_priority(raw, item):
    name = raw.create_inline(item("a"), displayName="old")
    shown = raw.json("PATCH", f"{name}:updateGenerateContentBatch", json={"display_name": "new", "priority": "3"})
    assert (shown["displayName"], shown["priority"]) == ("new", "3")
    raw.json(
        "PATCH", f"{name}:updateGenerateContentBatch?updateMask=priority", json={"displayName": "no", "priority": 0}
    )
    metadata = raw.get(name)["metadata"]
    assert metadata["displayName"] == "new"
    assert "priority" not in metadata


def test_jobs_move_by_clock_with_progress(emulate, connect, line):
    gemini = emulate(job_seconds=100)
    raw = connect(gemini)
    name = raw.create(*(line(f"{i}") for i in range(8)))
    assert raw.get(name)["metadata"]["state"] == "BATCH_STATE_PENDING"
    gemini.clock.advance(63)
    metadata = raw.get(name)["metadata"]
    assert metadata["state"] == "BATCH_STATE_RUNNING"
    assert metadata["batchStats"] == {"requestCount": "8", "successfulRequestCount": "4", "pendingRequestCount": "4"}
    gemini.clock.advance(40)
    assert raw.get(name)["metadata"]["state"] == "BATCH_STATE_SUCCEEDED"


def test_a_job_expires_after_two_days_without_results(emulate, connect, line):
    gemini = emulate(states=["RUNNING"])
    raw = connect(gemini)
    name = raw.create(line("a"))
    gemini.clock.advance(48 * HOURS - 60)
    assert raw.get(name)["metadata"]["state"] == "BATCH_STATE_RUNNING"
    gemini.clock.advance(61)
    done = raw.get(name)
    assert (done["metadata"]["state"], done["done"]) == ("BATCH_STATE_EXPIRED", True)
    assert "output" not in done["metadata"]
    assert "response" not in done


def test_a_finished_job_outlives_its_input_and_loses_its_results_after_six_weeks(raw, gemini, line, item):
    filed, inline = raw.create(line("a")), raw.create_inline(item("a"))
    raw.get(filed)
    raw.get(inline)
    gemini.clock.advance(41 * 24 * HOURS)
    assert len(raw.results(filed)) == 1
    gemini.clock.advance(2 * 24 * HOURS)
    assert raw.http.get(f"/v1beta/files/batch-{filed.removeprefix('batches/')}").status_code == 403
    assert "output" not in raw.get(inline)["metadata"]


def test_a_job_runs_on_after_its_input_file_is_deleted(emulate, connect, line):
    raw = connect(emulate(states=["RUNNING", "SUCCEEDED"]))
    name = raw.create(line("a"))
    raw.json("DELETE", raw.get(name)["metadata"]["inputConfig"]["fileName"])
    assert len(raw.results(name)) == 1


def test_a_hundred_jobs_may_be_under_way(emulate, connect, item):
    gemini = emulate(states=["RUNNING"], options=Options(concurrent_jobs=2))
    raw = connect(gemini)
    names = [raw.create_inline(item("a")) for _ in range(2)]
    refused = raw.post({"inputConfig": {"requests": {"requests": [item("a")]}}})
    assert (refused.status_code, refused.json()["error"]["status"]) == (429, "RESOURCE_EXHAUSTED")
    raw.json("POST", f"{names[0]}:cancel")
    raw.create_inline(item("a"))
    assert gemini.jobs_created == 3
    assert Options().concurrent_jobs == 100


@pytest.mark.parametrize("quota", [100, {"gemini-2.5-flash": 100, "gemini-2.5-pro": 5}], ids=["all", "by model"])
@pytest.mark.parametrize("details", [False, True])
def test_tokens_of_jobs_under_way_are_counted_by_model(emulate, connect, line, quota, details):
    gemini = emulate(states=["RUNNING"], options=Options(enqueued_tokens=quota, quota_details=details))
    raw = connect(gemini)
    first = raw.create(line("a", "x" * 240))  # 60 tokens
    file = raw.upload(json.dumps(line("b", "x" * 240)).encode())
    refused = raw.post({"inputConfig": {"fileName": file}})
    assert refused.status_code == 429
    named = [one for one in refused.json()["error"]["details"] if one["@type"].endswith("QuotaFailure")]
    assert bool(named) is details
    if named:
        (violation,) = named[0]["violations"]
        assert violation["quotaDimensions"]["model"] == "gemini-2.5-flash"
        assert violation["quotaValue"] == "100"
    raw.json("POST", f"{first}:cancel")
    assert raw.post({"inputConfig": {"fileName": file}}).status_code == 200
    assert gemini.jobs_created == 2


def test_a_forced_state_shows_at_once_with_its_error(emulate, connect, item, sdk):
    gemini = emulate(states=["RUNNING"])
    raw = connect(gemini)
    one, two, three = (raw.create_inline(item("a")) for _ in range(3))
    gemini.set_state(one, "FAILED", error={"code": 8, "message": "quota"})
    gemini.set_state(two, "BATCH_STATE_FAILED")
    gemini.set_state(three, "SUCCEEDED")
    assert raw.get(one)["error"] == {"code": 8, "message": "quota"}
    assert (raw.get(two)["done"], "error" in raw.get(two)) == (True, False)
    assert sdk(gemini).batches.get(name=three).dest.inlined_responses[0].response.text
