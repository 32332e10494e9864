from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_gemini_batch.core import rest
from airflow_gemini_batch.core.jobs import Gone, Job, Phase, Refused, Unreachable
from airflow_gemini_batch.core.rest import Account, Call, Conversation, Reply
from airflow_gemini_batch.exceptions import (
    CredentialsRefused,
    QuotaExceeded,
    RequestRefused,
    ServiceError,
    ServiceUnreachable,
)

HTML = b"<!DOCTYPE html><title>Error 404 (Not Found)!!1</title>"
SUSPENDED = {"reason": "CONSUMER_SUSPENDED", "@type": "type.googleapis.com/google.rpc.ErrorInfo"}
BAD_KEY = {"reason": "API_KEY_INVALID", "@type": "type.googleapis.com/google.rpc.ErrorInfo"}


def ok(body: Any) -> Reply:
    return Reply(200, json.dumps(body).encode())


def error(code: int, message: str = "no", status: str = "", *details: Any) -> Reply:
    return Reply(
        code, json.dumps({"error": {"code": code, "message": message, "status": status, "details": details}}).encode()
    )


def hold(conversation: Conversation[Any], *replies: Reply) -> tuple[list[Call], Any]:
    """Answer a conversation's calls one after the other; tells the calls and what came of it."""
    calls: list[Call] = []
    answers = iter(replies)
    try:
        call = next(conversation)
        while True:
            calls.append(call)
            call = conversation.send(next(answers))
    except StopIteration as done:
        assert next(answers, None) is None, "not all replies were asked for"
        return calls, done.value


OPERATION = {"name": "batches/x", "metadata": {"state": "BATCH_STATE_RUNNING"}}
LISTED, EMPTY = ok({"operations": [OPERATION]}), ok({})
FORBIDDEN = error(403, "The caller does not have permission", "PERMISSION_DENIED")

ERRORS = [
    # what came                                                        what it means
    (error(400, "API key not valid. Please pass a valid API key.", "INVALID_ARGUMENT", BAD_KEY), CredentialsRefused),
    (error(400, "bad", "INVALID_ARGUMENT", BAD_KEY), CredentialsRefused),
    (error(400, "API key expired. Please renew the API key.", "INVALID_ARGUMENT"), CredentialsRefused),
    (error(401, "no", "UNAUTHENTICATED"), CredentialsRefused),
    (error(403, "Permission denied: Consumer 'projects/1' has been suspended.", "PERMISSION_DENIED", SUSPENDED),
    CredentialsRefused),
    (error(403, "Generative Language API has not been used", "PERMISSION_DENIED", {"reason": "SERVICE_DISABLED"}),
    CredentialsRefused),
    (FORBIDDEN, RequestRefused),
    (error(400, "Request contains an invalid argument.", "INVALID_ARGUMENT"), RequestRefused),
    (error(400, "Precondition", "FAILED_PRECONDITION", "not an object"), RequestRefused),
    (error(404, "Requested entity was not found.", "NOT_FOUND"), RequestRefused),
    (error(409, "exists", "ALREADY_EXISTS"), RequestRefused),
    (error(413, "too large"), RequestRefused),
    (error(408, "timeout"), ServiceUnreachable),
    (error(429, "quota", "RESOURCE_EXHAUSTED"), QuotaExceeded),
    (error(500, "internal", "INTERNAL"), ServiceUnreachable),
    (error(502), ServiceUnreachable),
    (error(503, "The service is currently unavailable.", "UNAVAILABLE"), ServiceUnreachable),
    (error(504, "deadline", "DEADLINE_EXCEEDED"), ServiceUnreachable),
    (error(503, "API key service is down", "UNAVAILABLE"), ServiceUnreachable),
    (Reply(404, HTML), ServiceUnreachable),
    (Reply(403, HTML), ServiceUnreachable),
    (Reply(502, HTML), ServiceUnreachable),
    (Reply(200, HTML), ServiceUnreachable),
    (Reply(200, b"[]"), ServiceUnreachable),
    (Reply(200, b'{"operations": ['), ServiceUnreachable),
    (Reply(404, b""), ServiceUnreachable),
    (Reply(400, b"{}"), ServiceUnreachable),
    (Reply(400, b'{"error": "no"}'), ServiceUnreachable),
    (Reply(302, b""), ServiceUnreachable),
    (Reply(404, b'[{"error": {"code": 404, "message": "streamed"}}]'), RequestRefused),
    (Reply(0, fault="GET batches/x: ConnectTimeout: timed out"), ServiceUnreachable),
]  # fmt: skip


@pytest.mark.parametrize(("reply", "meaning"), ERRORS, ids=lambda one: str(one)[:60])
def test_what_an_answer_means(reply, meaning):
    with pytest.raises(ServiceError) as caught:
        rest.read_reply(reply)
    assert type(caught.value) is meaning
    assert caught.value.retryable is issubclass(meaning, ServiceUnreachable)


def test_an_error_keeps_code_status_and_message():
    with pytest.raises(RequestRefused) as caught:
        rest.read_reply(error(404, "Requested entity was not found.", "NOT_FOUND"))
    assert (caught.value.code, caught.value.status) == (404, "NOT_FOUND")
    assert str(caught.value) == "HTTP 404 NOT_FOUND: Requested entity was not found."


def test_a_page_that_is_not_the_apis_is_shown_in_short():
    with pytest.raises(
        ServiceUnreachable, match="HTTP 502 with something that is not the API's JSON: <html> line"
    ) as caught:
        rest.read_reply(Reply(502, b"<html>\n\n line" + b"x" * 5000))
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("body", [{}, {"operations": []}, {"error": {"code": 13, "message": "the job's own"}}])
def test_a_good_answer_is_its_json(body):
    assert rest.read_reply(ok(body)) == body
    with pytest.raises(ServiceUnreachable):  # it says nothing, least of all that there is nothing
        rest.read_reply(Reply(200, b""))


# Looking


def test_a_look_reads_the_job():
    calls, seen = hold(rest.looking("batches/x"), ok(OPERATION))
    assert calls == [Call("GET", "batches/x")]
    assert seen == Job("batches/x", "RUNNING")


def test_a_failed_jobs_error_is_the_jobs_not_the_calls():
    _, seen = hold(rest.looking("batches/x"), ok(
        {"name": "batches/x", "done": True, "metadata": {"state": "BATCH_STATE_FAILED"}, "error": {"code": 13,
        "message": "x"}}
    ))  # fmt: skip
    assert (seen.phase, seen.error.message) == (Phase.FAILED, "x")


@pytest.mark.parametrize(
    ("replies", "kind"),
    [
        ([error(404)], Gone),
        ([FORBIDDEN, LISTED], Gone),
        ([FORBIDDEN, EMPTY], Gone),
        ([FORBIDDEN, FORBIDDEN], Refused),
        ([FORBIDDEN, error(400, "bad", "", BAD_KEY)], Refused),
        ([FORBIDDEN, error(503)], Unreachable),
        ([FORBIDDEN, Reply(0, fault="reset")], Unreachable),
        ([FORBIDDEN, Reply(200, HTML)], Unreachable),
        ([error(400, "odd"), LISTED], Unreachable),
        ([error(400, "odd"), error(400, "odd")], Refused),
        ([error(401)], Refused),
        ([error(400, "bad", "", BAD_KEY)], Refused),
        ([error(429)], Unreachable),
        ([error(500)], Unreachable),
        ([error(503)], Unreachable),
        ([error(408)], Unreachable),
        ([Reply(404, HTML)], Unreachable),
        ([Reply(0, fault="ReadTimeout")], Unreachable),
        ([ok({})], Unreachable),
        ([ok({"name": ""})], Unreachable),
    ],
)  # fmt: skip
def test_what_one_look_can_bring(replies, kind):
    _, seen = hold(rest.looking("batches/x"), *replies)
    assert type(seen) is kind


GONE = Gone("batches/x", "404")


@pytest.mark.parametrize(
    ("page", "seen"),
    [
        (EMPTY, Gone),
        (ok({"operations": [{"name": "batches/y"}]}), Gone),
        (LISTED, Job),
        (error(503), Unreachable),
        (error(403), Unreachable),
        (error(429), Unreachable),
        (ok({"operations": [{}]}), Unreachable),
        (ok({"operations": None, "unreachable": ["us"]}), Unreachable),
        (Reply(0, fault="reset"), Unreachable),
    ],
)  # fmt: skip
def test_only_a_whole_list_without_the_job_confirms_that_it_is_gone(page, seen):
    assert type(hold(rest.confirming(GONE), page)[1]) is seen


@given(
    st.sampled_from([200, 302, 400, 401, 403, 404, 408, 429, 500, 503, 0]),
    st.binary(max_size=40),
    st.binary(max_size=40),
)
def test_a_look_never_raises_whatever_the_service_sends(status, body, second):
    replies = iter([Reply(status, body, "" if status else "fault"), Reply(200, second)])

    def look() -> Conversation[Any]:
        conversation = rest.looking("batches/x")
        next(conversation)
        while True:
            conversation.send(next(replies))

    with pytest.raises(StopIteration) as done:
        look()
    assert isinstance(done.value.value, Job | Gone | Refused | Unreachable)
    assert not (isinstance(done.value.value, Job) and done.value.value.phase.ended)


@pytest.mark.parametrize("status", [400, 404, 429, 500])
def test_an_endless_message_of_the_service_is_told_in_its_beginning(status):
    _, seen = hold(rest.looking("batches/x"), *[error(status, "x" * 100_000)] * (2 if status == 400 else 1))
    assert "x" * 900 in seen.detail
    assert len(seen.detail) < 1200


# Listing


def page(first: int, count: int, token: str = "") -> Reply:
    operations = [
        {"name": f"batches/{n}", "metadata": {"state": "BATCH_STATE_PENDING"}} for n in range(first, first + count)
    ]
    return ok({"operations": operations, **({"nextPageToken": token} if token else {})})


def test_a_list_is_read_to_its_last_page():
    calls, jobs = hold(rest.listing(), page(0, 3, "a"), page(3, 3, "b"), page(6, 1))
    assert [job.name for job in jobs] == [f"batches/{n}" for n in range(7)]
    assert [call.params.get("pageToken") for call in calls] == [None, "a", "b"]


def test_an_empty_page_in_the_middle_is_not_the_end():
    _, jobs = hold(rest.listing(), page(0, 2, "a"), ok({"nextPageToken": "b"}), page(2, 1))
    assert len(jobs) == 3


def test_an_empty_list_is_an_answer():
    assert hold(rest.listing(), EMPTY)[1] == []


@pytest.mark.parametrize(
    "bad",
    [error(503), error(429), error(400, "bad", "", BAD_KEY), FORBIDDEN, Reply(0, fault="reset"), Reply(200, HTML),
     ok({"operations": [{}]}), ok({"operations": ["x"]}), ok({"operations": {"a": 1}})],
)  # fmt: skip
@pytest.mark.parametrize("good_pages", [0, 2])
def test_a_list_that_breaks_off_is_an_error_and_never_a_shorter_list(bad, good_pages):
    """ "Not in the list" may lead to a second paid job, so half a list must not pass for one."""
    replies = [page(n, 1, f"more {n}") for n in range(good_pages)]
    with pytest.raises(ServiceError):
        hold(rest.listing(), *replies, bad)


def test_a_list_without_end_ends(monkeypatch):
    monkeypatch.setattr(rest, "MAX_PAGES", 3)
    with pytest.raises(ServiceUnreachable, match="did not end"):
        hold(rest.listing(), *(page(n, 1, f"more {n}") for n in range(3)))


@pytest.mark.parametrize("tokens", ["aa", "aba", "abca"])
@pytest.mark.parametrize("listing", [rest.listing, rest.listing_files])
def test_a_list_that_repeats_itself_is_not_read_round_and_round(listing, tokens):
    replies = [ok({"nextPageToken": token}) for token in tokens]
    with pytest.raises(ServiceUnreachable, match="repeats itself"):
        hold(listing(), *replies)


# Cancelling


STATS = {"requestCount": "10", "successfulRequestCount": "3", "failedRequestCount": "1"}


def seen(state: str) -> Reply:
    return ok({"name": "batches/x", "metadata": {"state": f"BATCH_STATE_{state}", "batchStats": STATS}})


@pytest.mark.parametrize(
    ("replies", "said"),
    [
        ([ok({}), seen("CANCELLED")], "batches/x: CANCELLED; 4 of 10 requests were done and may be billed."),
        ([ok({}), seen("SUCCEEDED")], "batches/x: SUCCEEDED; 4 of 10 requests were done and may be billed."),
        (
            [ok({}), seen("RUNNING")],
            "still RUNNING; 4 of 10 requests were done. What is done until it stops may be billed.",
        ),
        ([error(503), seen("RUNNING")], "the cancel was not accepted (HTTP 503"),
        ([ok({}), error(503)], "could not be looked at afterwards"),
        ([error(404), error(404)], "the cancel was not accepted"),
    ],
)
def test_a_cancel_tells_what_became_of_the_job(replies, said):
    calls, told = hold(rest.cancelling("batches/x"), *replies)
    assert calls[0] == Call("POST", "batches/x:cancel")
    assert said in str(told)
    assert told.accepted is ("not accepted" not in said)


# The account


def test_a_key_never_shows():
    assert "s3cret" not in repr(Account("s3cret"))


@pytest.mark.parametrize("base", ["https://host", "https://host/", "https://host/proxy/", "https://host/proxy"])
def test_an_address_may_end_in_a_slash_or_not(base):
    assert Account("k", base).url("batches").removeprefix("https://host").removeprefix("/proxy") == "/v1beta/batches"


def test_the_time_limit_is_told_to_the_service_in_whole_seconds():
    assert Account("k", timeout=2.5).headers() == {"x-goog-api-key": "k", "X-Server-Timeout": "3"}


def test_testing_an_account_is_one_small_call():
    calls, value = hold(rest.testing(), LISTED)
    assert (calls, value) == ([Call("GET", "batches", {"pageSize": "1"})], None)
