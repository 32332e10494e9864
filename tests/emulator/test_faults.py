"""What can be made to go wrong, one claim per switch."""

from __future__ import annotations

import json
import time

import httpx
import pytest
from google.genai import errors, types

from airflow_gemini_batch.emulator import Faults, FaultsError, HttpError, Options, RowError, Truncation

KEYS = [f"row-{i}" for i in range(10)]


@pytest.fixture
def run(gemini, raw, line):
    """Run ten rows under these faults; gives the lines that came back."""

    def with_(**faults):
        gemini.faults = Faults(**faults)
        return raw.results(raw.create(*(line(key) for key in KEYS)))

    return with_


def kinds(rows) -> list[str]:
    return ["error" if "error" in row else "response" for row in rows]


# Calls


@pytest.mark.parametrize(
    ("spec", "code", "status"),
    [
        ({"status": 429}, 429, "RESOURCE_EXHAUSTED"),
        ({"status": 500}, 500, "INTERNAL"),
        ({"status": 503}, 503, "UNAVAILABLE"),
        ({"status": 504}, 504, "DEADLINE_EXCEEDED"),
        ({"status": 400, "rpc_status": "FAILED_PRECONDITION"}, 400, "FAILED_PRECONDITION"),
    ],
)
def test_a_call_is_refused_as_often_as_asked(gemini, client, spec, code, status):
    gemini.faults = Faults(http_errors={"list": {**spec, "times": 2}})
    for _ in range(2):
        with pytest.raises(errors.APIError) as caught:
            list(client.batches.list())
        assert (caught.value.code, caught.value.status) == (code, status)
    assert list(client.batches.list()) == []
    assert gemini.calls["list"] == 3


def test_a_quota_error_comes_with_or_without_advice(gemini, raw):
    gemini.faults = Faults(
        http_errors={
            "list": [
                HttpError(status=429, times=1),
                HttpError(status=429, times=1, help=True),
                HttpError(status=429, times=1, retry_seconds=22, retry_after=22),
            ]
        }
    )
    plain, helpful, timed = (raw.http.get("/v1/batches") for _ in range(3))
    assert "details" not in plain.json()["error"]
    assert [one["@type"].rsplit(".", 1)[1] for one in helpful.json()["error"]["details"]] == ["Help"]
    assert timed.json()["error"]["details"][0]["retryDelay"] == "22s"
    assert timed.headers["retry-after"] == "22"
    assert "retry-after" not in plain.headers


def test_a_storm_lasts_for_a_while_by_the_emulators_clock_and_may_name_its_quota(gemini, raw):
    gemini.clock.advance(1000)
    gemini.faults = Faults(http_errors={"list": HttpError(429, seconds=60, quota="batch_requests", retry_seconds=5)})
    for seconds, status in ((0, 429), (59, 429), (1, 200), (1000, 200)):
        gemini.clock.advance(seconds)
        reply = raw.http.get("/v1/batches")
        assert reply.status_code == status
        if status == 429:
            kinds = {one["@type"].rsplit(".", 1)[1]: one for one in reply.json()["error"]["details"]}
            assert kinds["QuotaFailure"]["violations"][0]["quotaMetric"].endswith("/batch_requests")
            assert kinds["RetryInfo"]["retryDelay"] == "5s"


def test_an_error_may_be_a_page_of_html_or_any_text(gemini, raw, client):
    gemini.faults = Faults(
        http_errors={"get": [{"status": 502, "html": True, "times": 1}, {"status": 500, "body": "oops", "times": 1}]}
    )
    reply = raw.http.get("/v1/batches/x")
    assert (reply.status_code, reply.headers["content-type"]) == (502, "text/html; charset=UTF-8")
    assert raw.http.get("/v1/batches/x").text == "oops"


def test_errors_can_be_let_wait_and_can_hit_every_call(gemini, raw):
    gemini.faults = Faults(http_errors={"*": {"status": 503, "skip": 1, "times": 1}})
    assert [raw.http.get(f"/v1/{path}").status_code for path in ("files", "batches", "files")] == [200, 503, 200]


def test_setting_faults_again_counts_again(gemini, raw):
    faults = Faults(http_errors={"list": {"status": 503, "times": 1}})
    for _ in range(2):
        gemini.faults = faults
        assert [raw.http.get("/v1/batches").status_code for _ in range(2)] == [503, 200]


def inline(*items):
    return {"inputConfig": {"requests": {"requests": list(items)}}}


def test_a_connection_dropped_before_leaves_no_job(gemini, raw, item):
    gemini.faults = Faults(drop_before={"create": 1})
    with pytest.raises(httpx.RemoteProtocolError):
        raw.post(inline(item("a")))
    assert (gemini.jobs_created, gemini.calls["create"]) == (0, 1)


def test_a_connection_dropped_after_leaves_a_job_nobody_heard_of(gemini, raw, client, item):
    gemini.faults = Faults(drop_after={"create": 1})
    with pytest.raises(httpx.RemoteProtocolError):
        raw.post(inline(item("a")) | {"displayName": "lost"})
    assert (gemini.jobs_created, gemini.calls["create"]) == (1, 1)
    assert [job.display_name for job in client.batches.list()] == ["lost"]
    assert gemini.requests[0].status is None


def test_the_sdks_own_retry_makes_a_second_job(gemini, sdk):
    client = sdk(gemini, retry_options=types.HttpRetryOptions(attempts=2, initial_delay=0.01))
    gemini.faults = Faults(http_errors={"create": {"status": 503, "times": 1, "recorded": True}})
    client.batches.create(model="gemini-2.5-flash", src=[{"contents": "x"}])
    assert gemini.calls["create"] == gemini.jobs_created == 2


def test_a_reply_can_be_slow_and_the_callers_deadline_comes_first(gemini, raw):
    gemini.faults = Faults(delay_seconds={"list": 0.3})
    start = time.monotonic()
    assert raw.http.get("/v1/batches").status_code == 200
    assert time.monotonic() - start >= 0.3
    gemini.faults = Faults(delay_seconds={"list": 30})
    assert raw.http.get("/v1/batches", headers={"X-Server-Timeout": "0.1"}).status_code == 504


def test_stopping_does_not_wait_for_slow_replies(emulate, connect):
    gemini = emulate(faults=Faults(delay_seconds={"*": 60}))
    raw = connect(gemini)
    with pytest.raises(httpx.ReadTimeout):
        raw.http.get("/v1/batches", timeout=0.1)
    start = time.monotonic()
    gemini.stop()
    assert time.monotonic() - start < 5


# Downloads


def download(raw, line, path: str = "") -> httpx.Response:
    file = raw.get(raw.create(*(line(key) for key in KEYS)))["response"]["responsesFile"]
    return raw.http.get(f"/v1/{file}:download?alt=media")


@pytest.mark.parametrize("how", ["drop", "chunked"])
def test_a_download_breaks_in_the_middle(gemini, raw, line, how):
    gemini.faults = Faults(truncate_download=Truncation(at=100, how=how, times=1))
    with pytest.raises(httpx.RemoteProtocolError):
        download(raw, line)
    assert len(download(raw, line).content.splitlines()) == 10


def test_a_download_is_short_and_says_nothing(gemini, raw, line):
    gemini.faults = Faults(truncate_download={"at": 0.5, "how": "short"})
    reply = download(raw, line)
    whole = gemini.files[-1]["sizeBytes"]
    assert len(reply.content) == int(reply.headers["content-length"]) == int(int(whole) * 0.5)


def test_the_sdk_notices_a_broken_download(gemini, client, raw, line, tmp_path):
    file = raw.get(raw.create(line("a")))["response"]["responsesFile"]
    gemini.faults = Faults(truncate_download={"at": 20, "times": 1})
    with pytest.raises(Exception, match=r"incomplete|closed connection"):
        client.files.download(file=file, destination=str(tmp_path / "out"))
    client.files.download(file=file, destination=str(tmp_path / "out"))
    assert len((tmp_path / "out").read_bytes()) > 20


def test_a_body_can_be_slow(gemini, raw, line):
    gemini.faults = Faults(slow_body=10_000)
    start = time.monotonic()
    size = len(download(raw, line).content)
    assert time.monotonic() - start >= size / 10_000 * 0.8


# Rows


def test_rows_are_shuffled_and_all_there(run):
    keys = [row["key"] for row in run(shuffle_rows=True)]
    assert keys != KEYS
    assert sorted(keys) == sorted(KEYS)


def test_keys_go_missing_twice_by_another_name_or_unasked(run):
    rows = run(
        drop_keys={"row-1"},
        duplicate_keys={"row-2"},
        rename_keys={"row-3": "row-x"},
        extra_keys=["row-99"],
        keyless_keys={"row-4"},
    )
    expected = ["row-0", "row-2", "row-2", "row-x", None, "row-5", "row-6", "row-7", "row-8", "row-9", "row-99"]
    assert [row.get("key") for row in rows] == expected


def test_the_same_happens_to_inline_rows(gemini, raw, item):
    gemini.faults = Faults(
        drop_keys={"a"},
        rename_keys={"b": "x"},
        keyless_keys={"c"},
        extra_keys=["new"],
        fail_keys={"d": {"code": 8, "message": "m"}},
    )
    done = raw.get(raw.create_inline(*(item(key) for key in "abcd")))
    rows = done["response"]["inlinedResponses"]["inlinedResponses"]
    assert [row.get("metadata") for row in rows] == [{"key": "x"}, None, {"key": "d"}, {"key": "new"}]
    assert rows[2]["error"] == {"code": 8, "message": "m"}
    assert done["metadata"]["batchStats"]["failedRequestCount"] == "1"


def test_lines_are_corrupt_by_number(gemini, raw, line):
    gemini.faults = Faults(corrupt_lines={2})
    lines = raw.result_bytes(raw.create(*(line(key) for key in KEYS))).splitlines()
    with pytest.raises(json.JSONDecodeError):
        json.loads(lines[1])
    assert [json.loads(one)["key"] for i, one in enumerate(lines) if i != 1] == [key for key in KEYS if key != "row-1"]


@pytest.mark.parametrize(
    ("faults", "end", "breaks"),
    [
        ({}, b"\n", 10),
        ({"no_trailing_newline": True}, b"}", 9),
        ({"crlf": True}, b"\r\n", 10),
        ({"blank_lines": True}, b"}\n", 19),
        ({"crlf": True, "no_trailing_newline": True, "blank_lines": True}, b"}", 18),
    ],
)
def test_line_ends_vary(gemini, raw, line, faults, end, breaks):
    gemini.faults = Faults(**faults)
    data = raw.result_bytes(raw.create(*(line(key) for key in KEYS)))
    assert data.endswith(end)
    assert data.count(b"\n") == breaks
    assert len([one for one in data.splitlines() if one.strip()]) == 10


def test_rows_fail_by_key_and_the_job_succeeds(gemini, run, raw):
    rows = run(fail_keys={"row-1": RowError(code=14, message="busy", details=({"@type": "x"},)), "row-2": {}})
    assert rows[1] == {"key": "row-1", "error": {"code": 14, "message": "busy", "details": [{"@type": "x"}]}}
    assert rows[2]["error"]["code"] == 13
    assert kinds(rows).count("error") == 2
    assert gemini.jobs[0].state == "SUCCEEDED"
    assert gemini.jobs[0].failed_count == 2


def test_all_rows_may_fail(run):
    assert kinds(run(fail_keys={"*": {"code": 3}})) == ["error"] * 10


def test_a_key_fails_for_as_many_jobs_as_asked(gemini, raw, line):
    gemini.faults = Faults(fail_keys={"*": {"times": 1}})
    first, second = (kinds(raw.results(raw.create(line("a"), line("b")))) for _ in range(2))
    assert (first, second) == (["error"] * 2, ["response"] * 2)


def test_a_share_of_rows_fails_for_the_first_two_jobs(gemini, raw, line):
    gemini.faults = Faults(fail_ratio=0.3, fail_ratio_jobs=2, fail_seed=4)
    jobs = [raw.create(*(line(f"{i}") for i in range(200))) for _ in range(3)]
    third, second, first = (kinds(raw.results(job)).count("error") for job in reversed(jobs))
    assert first == second
    assert 30 <= first <= 90
    assert third == 0


def test_object_details_break_the_sdk_inline_and_not_plain_http(gemini, raw, client, item):
    gemini.faults = Faults(fail_keys={"a": {}}, error_details=True)
    name = raw.create_inline(item("a"))
    assert raw.get(name)["response"]["inlinedResponses"]["inlinedResponses"][0]["error"]["details"][0]["@type"]
    with pytest.raises(ValueError, match="details"):
        client.batches.get(name=name)
    gemini.faults = Faults(fail_keys={"a": {}})
    job = client.batches.get(name=raw.create_inline(item("a")))
    assert job.dest.inlined_responses[0].error.code == 13


def test_answers_are_blocked_empty_cut_or_only_thought(run):
    rows = run(
        blocked_keys={"row-0"},
        blocked_answer_keys={"row-1"},
        empty_keys={"row-2"},
        truncate_keys={"row-3"},
        thought_only_keys={"row-4"},
    )
    responses = [row["response"] for row in rows]
    assert "candidates" not in responses[0]
    assert responses[0]["promptFeedback"]["blockReason"]
    assert responses[0]["usageMetadata"]["promptTokenCount"] > 0
    reasons = [one["candidates"][0]["finishReason"] for one in responses[1:6]]
    assert reasons == ["SAFETY", "STOP", "MAX_TOKENS", "MAX_TOKENS", "STOP"]
    has_parts = ["parts" in one["candidates"][0]["content"] for one in responses[1:6]]
    assert has_parts == [False, False, True, False, True]
    assert responses[4]["usageMetadata"]["thoughtsTokenCount"] > 0
    for response in responses:
        types.GenerateContentResponse.model_validate(response)


def test_json_answers_are_cut_or_degenerate(gemini, raw, line):
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    config = {"responseMimeType": "application/json", "responseJsonSchema": schema}
    for faults in (Faults(bad_json_keys={"a"}), Faults(degenerate_json_schema=True)):
        gemini.faults = faults
        (row,) = raw.results(raw.create(line("a", generationConfig=config)))
        candidate = row["response"]["candidates"][0]
        assert candidate["finishReason"] == "STOP"
        with pytest.raises(json.JSONDecodeError):
            json.loads(candidate["content"]["parts"][0]["text"])


# The value itself


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(FaultsError, match=r"Unknown field in Faults: dropkeys\. Known: .*drop_keys"):
        Faults.from_dict({"dropkeys": ["a"]})
    with pytest.raises(FaultsError, match="Unknown field in HttpError: code"):
        Faults.from_dict({"http_errors": {"create": {"code": 503}}})


@pytest.mark.parametrize(
    "bad",
    [
        {"drop_keys": "row-1"},
        {"drop_keys": 5},
        {"http_errors": 5},
        {"http_errors": {"creates": {}}},
        {"drop_after": {"post": 1}},
        {"stuck": "DONE"},
        {"end_state": "DONE"},
        {"shuffle_rows": 1},
        {"truncate_download": {"how": "x"}},
        {"fail_ratio": "half"},
        [],
    ],
)
def test_values_of_the_wrong_kind_are_refused(bad):
    with pytest.raises(FaultsError):
        Faults.from_dict(bad)


def test_faults_survive_json():
    faults = Faults(
        http_errors={"create": HttpError(times=2)},
        drop_keys={"b", "a"},
        fail_keys={"c": RowError(details=("x",))},
        truncate_download=Truncation(at=3),
        extra_keys=["z"],
        end_state="FAILED",
        stuck_models={"m": "PENDING"},
        slow_body=5,
    )
    assert Faults.from_dict(json.loads(json.dumps(faults.to_dict()))) == faults
    assert Faults().to_dict() == {}
    assert Options.from_dict({"image_side": 8}) == Options(image_side=8)
