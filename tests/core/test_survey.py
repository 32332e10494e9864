"""Many jobs, few calls. The service here is a function from request to answer, so that it can misbehave at will."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_gemini_batch.core import survey, watcher, watches
from airflow_gemini_batch.core.client import Client
from airflow_gemini_batch.core.jobs import PHASE_OF_STATE, Counts, Gone, Job, Phase, Refused, Seen, Unreachable
from airflow_gemini_batch.core.rest import Account, Reply
from airflow_gemini_batch.core.survey import Survey, page_of
from airflow_gemini_batch.core.watcher import Watcher
from airflow_gemini_batch.exceptions import CredentialsRefused, ServiceError, ServiceUnreachable

from ..looking import look

NOT_FOUND = {"error": {"code": 404, "message": "Requested entity was not found.", "status": "NOT_FOUND"}}
BUSY = {"error": {"code": 503, "message": "The service is currently unavailable.", "status": "UNAVAILABLE"}}
QUOTA = {"error": {"code": 429, "message": "Resource has been exhausted.", "status": "RESOURCE_EXHAUSTED"}}


def operation(name: str, state: str = "RUNNING", **more: Any) -> dict[str, Any]:
    return {"name": name, "metadata": {"state": f"BATCH_STATE_{state}", "name": name, **more}}


def ours(count: int) -> list[str]:
    return [f"batches/ours-{n}" for n in range(count)]


def others(count: int) -> list[str]:
    return [f"batches/other-{n}" for n in range(count)]


class Service:
    """
    An account's jobs, newest first.

    :param odd: given the number of the list call and its page, may return another page, an answer, or raise.
    """

    def __init__(self, listed: list[str], states: dict[str, str] | None = None, *, page: int = 1000) -> None:
        self.listed, self.states, self.page = listed, states or {}, page
        self.hidden: set[str] = set()
        self.odd: Callable[[int, dict[str, Any]], Any] = lambda number, page: page
        self.get: Callable[[str], Any] = lambda name: operation(name, self.states.get(name, "RUNNING"))
        self.calls: Counter[str] = Counter()
        self.asked: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1beta/batches":
            self.calls["list"] += 1
            return self._respond(self.odd(self.calls["list"], self._page(request.url.params)))
        name = request.url.path.removeprefix("/v1beta/")
        self.calls["get"] += 1
        self.asked.append(name)
        return self._respond(self.get(name) if name in self.listed or name in self.hidden else (404, NOT_FOUND))

    def _page(self, params: httpx.QueryParams) -> dict[str, Any]:
        start, size = int(params.get("pageToken") or 0), min(int(params["pageSize"]), self.page)
        shown = self.listed[start : start + size]
        body: dict[str, Any] = {"operations": [operation(one, self.states.get(one, "RUNNING")) for one in shown]}
        return body | ({"nextPageToken": str(start + size)} if start + size < len(self.listed) else {})

    @staticmethod
    def _respond(answer: Any) -> httpx.Response:
        if isinstance(answer, bytes):
            return httpx.Response(200, content=answer)
        status, body = answer if isinstance(answer, tuple) else (200, answer)
        return httpx.Response(status, json=body)


ACCOUNT = Account("test-key", "http://service", timeout=5)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "RETRY_AFTER", 0.001)
    for module, name in ((survey, "PATIENCE"), (survey, "MOST_PATIENCE"), (watches, "PATIENCE"), (watcher, "SLOW"),
                         (watcher, "ASKING")):  # fmt: skip
        monkeypatch.setattr(module, name, 60.0)  # a slow machine is no trouble of the service


class Worker:
    """A worker's eyes."""

    def __init__(self, service: Service) -> None:
        self.client = Client(ACCOUNT, sleep=lambda _: None)
        self.client.__dict__["_http"] = httpx.Client(transport=httpx.MockTransport(service))

    def look(self, jobs: list[str]) -> dict[str, Seen]:
        return self.client.look_at_all(tuple(jobs))


class Triggerer:
    """A triggerer's eyes."""

    def __init__(self, service: Service) -> None:
        self.service, self.survey = service, Survey()

    def look(self, jobs: list[str]) -> dict[str, Seen]:
        async def run() -> dict[str, Seen]:
            async with Watcher.shared(ACCOUNT) as shared:
                shared._http = httpx.AsyncClient(transport=httpx.MockTransport(self.service))
                shared._survey = self.survey
                return await look(shared, jobs)

        return asyncio.run(run())


@pytest.fixture(params=[Worker, Triggerer])
def eyes(request: pytest.FixtureRequest) -> Any:
    return request.param


def all_running(seen: dict[str, Seen], jobs: list[str]) -> bool:
    return list(seen) == jobs and all(isinstance(seen[job], Job) and seen[job].name == job for job in jobs)


# Which calls are made


def test_many_jobs_are_looked_at_with_one_call_for_a_page_of_them(eyes):
    jobs, service = ours(2500), Service(ours(2500))
    assert all_running(eyes(service).look(jobs), jobs)
    assert service.calls == {"list": 3}


@pytest.mark.parametrize("count", [1, 2, 10])
def test_a_few_jobs_are_asked_for_one_by_one(eyes, count):
    jobs, service = ours(count), Service(ours(count))
    assert all_running(eyes(service).look(jobs), jobs)
    assert service.calls == {"get": count}


def test_the_list_is_read_no_further_than_the_last_of_the_jobs(eyes):
    jobs, service = ours(100), Service(ours(100) + others(100_000))
    assert all_running(eyes(service).look(jobs), jobs)
    assert service.calls == {"list": 1}


def test_pages_as_small_as_the_service_likes_are_all_read(eyes):
    jobs, service = ours(500), Service(ours(500), page=50)
    assert all_running(eyes(service).look(jobs), jobs)
    assert service.calls == {"list": 10}


def test_a_few_jobs_deep_in_a_long_list_are_asked_for(eyes):
    jobs = ours(1000)
    service = Service(jobs[:-5] + others(50_000) + jobs[-5:])
    assert all_running(eyes(service).look(jobs), jobs)
    assert service.calls == {"list": 1, "get": 5}


def test_new_jobs_of_other_tools_in_front_do_not_make_it_give_up(eyes):
    jobs, service = ours(3000), Service(others(5000) + ours(3000))
    assert all_running(eyes(service).look(jobs), jobs)
    assert service.calls == {"list": 8}


def test_a_list_that_does_not_pay_is_given_up_and_not_read_again_soon(eyes):
    jobs, between = ours(100), iter(others(100_000))
    service = Service([name for job in jobs for name in (job, *(next(between) for _ in range(999)))])
    looks = eyes(service).look
    assert all_running(looks(jobs), jobs)
    assert service.calls["list"] <= 11
    assert service.calls["get"] >= 89
    tried = service.calls["list"]
    for _ in range(5):
        assert all_running(looks(jobs), jobs)
    assert service.calls["list"] == tried


def test_a_list_that_did_not_pay_is_tried_again_some_day():
    jobs, between = ours(30), iter(others(30_000))
    service = Service([name for job in jobs for name in (job, *(next(between) for _ in range(999)))])
    worker = Worker(service)
    worker.look(jobs)
    tried, service.listed = service.calls["list"], list(jobs)
    for _ in range(200):
        worker.look(jobs)
    assert service.calls["list"] > tried + 100


def test_a_list_found_to_be_short_serves_two_jobs_as_well():
    service = Service(ours(20))
    worker = Worker(service)
    worker.look(ours(20))
    worker.look(ours(2))
    assert service.calls == {"list": 2}


def test_a_list_that_repeats_itself_ends(eyes):
    jobs, service = ours(100), Service(others(50))
    service.hidden = set(jobs)
    service.odd = lambda number, page: page | {"nextPageToken": "0" if number % 2 else "1"}
    assert all_running(eyes(service).look(jobs), jobs)
    assert service.calls["list"] < 100


# What is seen


def test_a_job_missing_from_the_list_is_asked_for(eyes):
    jobs, service = ours(50), Service(ours(47))
    service.hidden = set(jobs[47:])
    assert all_running(eyes(service).look(jobs), jobs)
    assert sorted(service.asked) == sorted(jobs[47:])


def test_only_get_says_that_a_job_is_gone(eyes):
    jobs = ours(50)
    service = Service(jobs[:49])
    seen = eyes(service).look(jobs)
    assert [job for job in jobs if isinstance(seen[job], Gone)] == jobs[49:]
    assert service.asked == jobs[49:]


@pytest.mark.parametrize(
    "answer",
    [{}, {"operations": []}, {"operations": None}, (503, BUSY), (429, QUOTA),
     (403, {"error": {"code": 403, "message": "no"}}), (404, NOT_FOUND), b"<html>", b"", b"[]",
     b'{"operations": {}}', b'{"operations": [1, 2]}', b'{"operations": [{}]}',
     b'{"operations": [{"name": "batches/ours-1"', (302, {}), {"error": {"code": 500}}],
    ids=str,
)  # fmt: skip
def test_an_account_whose_list_cannot_be_read_is_asked_job_by_job(eyes, answer):
    jobs, service = ours(40), Service(ours(40))
    service.odd = lambda number, page: answer
    assert all_running(eyes(service).look(jobs), jobs)
    assert service.calls["get"] == 40


def test_a_list_that_fails_once_is_read_on(eyes):
    jobs, service = ours(300), Service(ours(300), page=100)
    service.odd = lambda number, page: (429, QUOTA) if number in (1, 3, 4) else page
    assert all_running(eyes(service).look(jobs), jobs)
    assert service.calls == {"list": 6}


def test_a_list_that_breaks_off_costs_only_the_jobs_it_left_open(eyes):
    jobs, service = ours(300), Service(ours(300), page=100)
    service.odd = lambda number, page: (503, BUSY) if number > 2 else page
    assert all_running(eyes(service).look(jobs), jobs)
    assert sorted(service.asked) == sorted(jobs[200:])


def test_a_list_that_ends_early_costs_only_the_jobs_it_left_open(eyes):
    jobs, service = ours(300), Service(ours(300), page=100)
    service.odd = lambda number, page: {"operations": page["operations"]} if number == 2 else page
    assert all_running(eyes(service).look(jobs), jobs)
    assert sorted(service.asked) == sorted(jobs[200:])


def test_a_refused_key_is_what_get_says_it_is(eyes):
    service = Service(ours(40))
    refusal = (
        400,
        {"error": {"code": 400, "message": "API key not valid.", "details": [{"reason": "API_KEY_INVALID"}]}},
    )
    service.odd, service.get = (lambda number, page: refusal), (lambda name: refusal)
    assert all(isinstance(one, Refused) for one in eyes(service).look(ours(40)).values())


@pytest.mark.parametrize(
    "entry",
    [{"name": 5}, {}, "x", None, {"name": "batches/other", "metadata": []}, {"name": "batches/other", "done": "yes"},
     {"name": "batches/other", "metadata": {"batchStats": {"requestCount": ["1"]}}}],
    ids=str,
)  # fmt: skip
def test_an_odd_entry_of_another_tool_costs_nothing(eyes, entry):
    jobs, service = ours(40), Service(ours(40))
    service.odd = lambda number, page: page | {"operations": [entry, *page["operations"]]}
    assert all_running(eyes(service).look(jobs), jobs)
    assert service.calls == {"list": 1}


NO_TEXT = b'{"name": "\xff\xfe"}'
ENDLESS = b'{"name": "batches/other", "metadata": ' + b"[" * 5000 + b"]" * 5000 + b"}"


@pytest.mark.parametrize("entry", [NO_TEXT, ENDLESS], ids=["no text", "endless"])
def test_an_entry_that_no_json_reader_takes_hides_no_job(eyes, entry):
    jobs, service = ours(40), Service(ours(40))
    service.odd = lambda number, page: json.dumps(page).encode().replace(b"[", b"[" + entry + b", ", 1)
    assert all_running(eyes(service).look(jobs), jobs)


def test_a_mistake_in_reading_the_list_hides_no_job(eyes, monkeypatch, caplog):
    jobs, service = ours(40), Service(ours(40))
    monkeypatch.setattr(survey, "page_of", lambda reply: 1 // 0)
    assert all_running(eyes(service).look(jobs), jobs)
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(
    "entry",
    [{}, {"metadata": {}}, {"metadata": {"state": 3}}, {"metadata": {"state": ""}}, {"done": False},
     {"metadata": {"state": "BATCH_STATE_RUNNING", "batchStats": {"requestCount": ["5"]}}}],
    ids=str,
)  # fmt: skip
def test_a_listed_job_that_does_not_say_how_it_does_is_asked_for(eyes, entry):
    jobs, service = ours(40), Service(ours(40))
    service.odd = lambda number, page: {"operations": [{"name": jobs[7]} | entry, *page["operations"][:7],
                                                      *page["operations"][8:]]}  # fmt: skip
    assert all_running(eyes(service).look(jobs), jobs)
    assert service.asked == [jobs[7]]


def test_a_state_nobody_knows_counts_as_running_in_the_list_too(eyes):
    jobs = ours(40)
    seen = eyes(Service(jobs, {jobs[3]: "HIBERNATING"})).look(jobs)
    assert (seen[jobs[3]].state, seen[jobs[3]].phase) == ("HIBERNATING", Phase.RUNNING)


@pytest.mark.parametrize("state", sorted(PHASE_OF_STATE))
def test_a_listed_job_means_what_the_same_job_means_to_get(state):
    shown = operation("batches/x", state, createTime="2026-11-01T08:15:30.123456789Z",
                      batchStats={"requestCount": "9", "successfulRequestCount": "4", "failedRequestCount": 1})  # fmt: skip
    for one in (shown, shown | {"done": True}, shown | {"done": True, "error": {"code": 13, "message": "no"}}):
        (entry,) = page_of(Reply(200, json.dumps({"operations": [one]}).encode())).operations or ()
        job = Job.of_operation(one)
        assert entry.job() == job
        assert job.counts == Counts(9, 4, 1)


def test_a_service_that_lists_whole_results_is_read_without_keeping_them(eyes):
    jobs, service = ours(40), Service(ours(40))
    rows = [
        {"response": {"candidates": [{"content": {"parts": [{"text": "x" * 1000}]}}]}, "metadata": {"key": "a"}}
    ] * 50

    def with_results(number: int, page: dict[str, Any]) -> dict[str, Any]:
        for one in page["operations"]:
            one["response"] = one["metadata"]["output"] = {"inlinedResponses": {"inlinedResponses": rows}}
        return page

    service.odd = with_results
    assert all_running(eyes(service).look(jobs), jobs)
    assert service.calls == {"list": 1}


@pytest.mark.parametrize(
    ("reply", "error"),
    [(Reply(200, b"<html>"), ServiceUnreachable), (Reply(200, b"[]"), ServiceUnreachable), (Reply(0, fault="reset"),
     ServiceUnreachable), (Reply(503, b"{}"), ServiceUnreachable), (Reply(200, b'{"operations": 5}'), ServiceUnreachable),
     (Reply(401, b'{"error": {"code": 401, "message": "x"}}'), CredentialsRefused)],
)  # fmt: skip
def test_what_is_not_a_page_is_an_error(reply, error):
    with pytest.raises(ServiceError) as caught:
        page_of(reply)
    assert type(caught.value) is error


STATES = st.sampled_from(["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "EXPIRED", "NEW_STATE"])
TROUBLE = st.sampled_from(
    ["none", "none", "drop", "twice", "shift", "early end", "empty", "503", "429", "html", "odd entry"]
)


@given(
    states=st.lists(st.one_of(st.none(), STATES), min_size=12, max_size=60),
    between=st.lists(st.integers(0, 60), max_size=40),
    page=st.integers(1, 30),
    trouble=st.lists(TROUBLE, max_size=30),
    random=st.randoms(use_true_random=False),
    eyes=st.sampled_from([Worker, Triggerer]),
    looks=st.integers(1, 3),
)
def test_whatever_becomes_of_the_pages_every_job_is_seen_as_it_is_and_none_is_lost(
    states, between, page, trouble, random, eyes, looks
):
    """None for a state: the job is really gone."""
    jobs = ours(len(states))
    known = {job: state for job, state in zip(jobs, states, strict=True) if state}
    listed = list(known)
    for n, at in enumerate(between):
        listed.insert(at, f"batches/other-{n}")
    service = Service(listed, known, page=page)

    def odd(number: int, page: dict[str, Any]) -> Any:
        match trouble[number - 1] if number <= len(trouble) else "none":
            case "drop":
                page["operations"] = [one for one in page["operations"] if random.random() < 0.6]
            case "twice":
                page["operations"] *= 2
            case "shift":
                service.listed.insert(0, f"batches/new-{number}") if random.random() < 0.5 else service.listed.append(
                    service.listed.pop(0)
                )
            case "early end":
                page.pop("nextPageToken", None)
            case "empty":
                return {key: value for key, value in page.items() if key == "nextPageToken"}
            case "503":
                return 503, BUSY
            case "429":
                return 429, QUOTA
            case "html":
                return b"<html>"
            case "odd entry":
                page["operations"].insert(0, {"name": 5})
        return page

    service.odd = odd
    one = eyes(service)
    for _ in range(looks):
        seen = one.look(jobs)
        assert list(seen) == jobs
        for job in jobs:
            if job in known:
                assert isinstance(seen[job], Job)
                assert seen[job].state == known[job]
            else:
                assert isinstance(seen[job], Gone)
                assert job in service.asked
    assert not any(isinstance(one, Unreachable) for one in seen.values())
