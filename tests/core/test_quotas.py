"""What a 429 says is told, whatever shape it has; how long is waited for it survives everything but progress."""

from __future__ import annotations

import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_gemini_batch.core import patience as waits
from airflow_gemini_batch.core import rest
from airflow_gemini_batch.core.attempt import Policy, Services
from airflow_gemini_batch.core.patience import Patience
from airflow_gemini_batch.core.quotas import NOT_NAMED
from airflow_gemini_batch.core.rest import Reply
from airflow_gemini_batch.core.shards import Limits, write_shards
from airflow_gemini_batch.exceptions import InvalidConfig, QuotaExceeded

from .test_shards import request as a_request

RETRY = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "22.5s"}
HELP = {"@type": "type.googleapis.com/google.rpc.Help", "links": []}
METRIC = "generativelanguage.googleapis.com/batch_enqueued_tokens"


def failure(**violation: object) -> dict[str, object]:
    return {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [violation]}


def refused(*details: object, phase: str = "create", header: str = "") -> QuotaExceeded:
    error = {"code": 429, "message": "You exceeded your quota", "status": "RESOURCE_EXHAUSTED", "details": details}
    with pytest.raises(QuotaExceeded) as caught:
        rest.read_reply(Reply(429, json.dumps({"error": error}).encode(), retry_after=header), phase)
    return caught.value


# What it says


@pytest.mark.parametrize(
    ("detail", "quota"),
    [
        (HELP, NOT_NAMED),
        (failure(quotaMetric=METRIC), METRIC),
        (failure(quotaId="PerDay"), "PerDay"),
        (failure(subject="project:1", description="too much"), "project:1"),
        (failure(description="too much"), "too much"),
        (
            failure(
                quotaMetric=METRIC, quotaId="PerDay", quotaDimensions={"model": "m", "x": "y"}, quotaValue="3000000"
            ),
            f"{METRIC} (PerDay, model m, limit 3000000)",
        ),
        (failure(), NOT_NAMED),
        ({"violations": "none"}, NOT_NAMED),
        ({"violations": [None, 5]}, NOT_NAMED),
    ],
    ids=str,
)
def test_the_quota_is_named_in_words(detail, quota):
    assert refused(detail).quota == quota


@pytest.mark.parametrize(
    ("details", "header", "seconds"),
    [
        ((), "", None),
        ((RETRY,), "", 22.5),
        ((), "30", 30),
        ((RETRY,), "30", 30),
        ((RETRY,), "10", 22.5),
        (({"retryDelay": "0s"},), "", None),
        (({"retryDelay": "soon"},), "Fri, 20 Nov 2026 12:00:00 GMT", None),
        (({"retryDelay": {"seconds": 5}},), "-5", None),
        (({"retryDelay": "1e9s"},), "", None),
    ],
    ids=str,
)
def test_the_time_to_come_back_is_the_later_of_detail_and_header(details, header, seconds):
    assert refused(*details, header=header).retry_after == seconds


JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["violations", "quotaMetric", "quotaDimensions", "retryDelay", "model"]), inner, max_size=4
        )
    ),
    max_leaves=15,
)


@given(JSON, st.text())
def test_whatever_the_details_are_a_429_is_a_quota(details, header):
    body = json.dumps({"error": {"code": 429, "message": "no", "details": details}}).encode()
    with pytest.raises(QuotaExceeded) as caught:
        rest.read_reply(Reply(429, body, retry_after=header), "list")
    assert caught.value.phase == "list"
    assert caught.value.quota


@pytest.mark.parametrize("body", [b"", b"<html>slow down", b"[]", b"{}", b'{"error": "no"}'])
def test_a_429_of_a_proxy_is_a_quota_too(body):
    with pytest.raises(QuotaExceeded, match="429") as caught:
        rest.read_reply(Reply(429, body, retry_after="7"))
    assert caught.value.retry_after == 7


# How long is waited


@pytest.fixture(autouse=True)
def real_pauses(monkeypatch):
    monkeypatch.setattr(waits, "FIRST", 30.0)
    monkeypatch.setattr(waits, "LONGEST", 600.0)


@pytest.fixture
def attempt(make_run, client, clock):
    """One call of ``advance``'s patience; settles it with these refusals, and tells how many seconds are to be waited."""

    def go(
        *refusals, progress: bool = False, running: bool = False, starting: bool = False, jitter: float = 1.0,
        clears: int = 0, **policy,
    ) -> float | None:  # fmt: skip
        run, services = make_run(clears=clears, **policy), Services(client, clock)
        patience = Patience(run, services, starting=starting, jitter=lambda: jitter)
        if progress:
            patience.progressed()
        for one in refusals:
            patience.refused(one)
        back = patience.settle(running=running)
        return None if back is None else back - clock.now

    return go


def test_pauses_double_from_half_a_minute_to_ten_minutes(attempt):
    assert [attempt(refused()) for _ in range(7)] == [30, 60, 120, 240, 480, 600, 600]


def test_pauses_vary_by_half(attempt):
    assert attempt(refused(), jitter=0.0) == 15
    assert attempt(refused(), jitter=0.5) == 45


def test_many_refusals_in_one_pass_make_no_longer_pause(attempt):
    assert attempt(*[refused(phase="download")] * 20) == 30


def test_the_services_word_is_the_least_that_is_waited(attempt):
    assert attempt(refused(RETRY), jitter=0.0) == 22.5
    assert attempt(refused({"retryDelay": "3600s"}), jitter=0.0) == 3600
    assert 3600 < attempt(refused({"retryDelay": "3600s"}), jitter=1.0) < 4000


def test_progress_starts_the_pauses_anew_and_leaves_no_note(attempt, make_run):
    note = make_run().output.quota
    for _ in range(5):
        attempt(refused())
    assert attempt(refused(), progress=True) == 30
    assert note.exists()
    assert attempt(progress=True) is None
    assert not note.exists()


def test_a_quota_that_lets_nothing_through_ends_the_wait_with_its_name_and_count(attempt, clock):
    began = clock.now
    for _ in range(10):
        clock.now += attempt(refused(failure(quotaMetric=METRIC)), quota_timeout=3600)
    assert clock.now == began + 3600
    with pytest.raises(QuotaExceeded) as caught:
        attempt(refused(failure(quotaMetric=METRIC)), quota_timeout=3600)
    assert (caught.value.phase, caught.value.quota, caught.value.retryable) == ("create", METRIC, True)
    for said in ("Phase create", METRIC, "refused 11 times", "1.0 h", "quota_timeout", "active_jobs", "adopts"):
        assert said in str(caught.value)


def test_the_time_is_counted_over_deferrals_but_a_retry_and_a_clear_begin_anew(attempt, clock):
    for begins in ({}, {"starting": True}, {"starting": True, "clears": 1}):
        assert attempt(refused(), quota_timeout=100, **begins) == 30
        clock.now += 60
        assert attempt(refused(), quota_timeout=100, clears=begins.get("clears", 0)) == 40
        clock.now += 40
        for _ in range(2):
            with pytest.raises(QuotaExceeded):
                attempt(refused(), quota_timeout=100, clears=begins.get("clears", 0))


def test_a_retry_leaves_the_service_alone_for_as_long_as_it_asked_an_earlier_one(make_run, client, clock, attempt):
    attempt(refused({"retryDelay": "300s"}), jitter=0.0)
    clock.now += 299
    retry = Patience(make_run(), Services(client, clock), starting=True)
    assert retry.holds("sending")
    assert retry.settle() == clock.now + 1


def test_patience_does_not_end_while_the_runs_own_jobs_run(attempt, clock):
    for _ in range(300):
        clock.now += attempt(refused(), running=True, quota_timeout=3600)
    assert attempt(refused(), quota_timeout=3600) == 600, "from here it counts"
    clock.now += 3600
    with pytest.raises(QuotaExceeded, match="refused 302 times"):
        attempt(refused(), quota_timeout=3600)


def test_the_wait_ends_in_time_whatever_the_service_asks_for(attempt, clock):
    assert attempt(refused({"retryDelay": "99999s"}), quota_timeout=500) == 500


def test_what_the_service_asked_to_be_left_alone_is_and_the_rest_is_not(make_run, client, clock):
    def patience():
        return Patience(make_run(), Services(client, clock), jitter=lambda: 0.0)

    first = patience()
    first.refused(refused({"retryDelay": "300s"}))
    assert first.settle() == clock.now + 300
    clock.now += 299
    second = patience()
    assert not second.holds("fetching")
    second.progressed()
    assert second.holds("sending")
    assert second.settle() == clock.now + 1, "what was asked for stands, whatever got through meanwhile"
    clock.now += 1
    third = patience()
    assert not third.holds("sending")
    assert not third.tried


def test_without_the_services_word_a_free_place_is_tried_at_once(attempt, make_run, client, clock):
    attempt(refused())
    assert not Patience(make_run(), Services(client, clock)).holds("sending")


@pytest.mark.parametrize("note", [b"{", b"[]", b'{"kind": "quota", "version": 99}', b'{"kind": "quota", "version": 1}'])
def test_a_note_that_cannot_be_read_stops_nobody(attempt, make_run, note):
    path = make_run().output.quota
    path.parent.mkdir(parents=True)
    path.write_bytes(note)
    assert attempt(refused()) == 30
    assert attempt(refused()) == 60


def test_each_pause_is_told_with_phase_quota_and_count(attempt, caplog):
    with caplog.at_level(logging.WARNING):
        attempt(refused(failure(quotaMetric=METRIC), phase="upload"))
        attempt(refused(failure(quotaMetric=METRIC), phase="upload"))
    assert len(caplog.messages) == 2
    for said in ("phase upload", METRIC, "Waiting 60 s", "refused 2 times since", "given up after 24 h"):
        assert said in caplog.messages[1]


@pytest.mark.parametrize("bad", [-1, float("nan")])
def test_a_timeout_that_is_none_is_refused(bad):
    with pytest.raises(InvalidConfig, match="quota_timeout is"):
        Policy(quota_timeout=bad)


# Tokens


@given(st.lists(st.integers(10, 60), max_size=40), st.integers(20, 100))
def test_no_shard_has_more_tokens_than_may_be_enqueued(tmp_path_factory, sizes, most):
    from airflow_gemini_batch.core.layout import WorkDirectory

    requests = [a_request(str(n), size) for n, size in enumerate(sizes)]
    work = WorkDirectory(tmp_path_factory.mktemp("work"))
    shards = write_shards(requests, work, 0, Limits(enqueued_tokens=most))
    assert all(shard.size <= 4 * most for shard in shards)
    assert sum(shard.requests for shard in shards) == len(requests)
    assert sum(shard.size for shard in shards) == sum(len(one.line) for one, _ in requests)


def test_a_request_with_more_tokens_than_may_be_enqueued_is_an_error_that_names_it(make_run, client, finish):
    with pytest.raises(
        InvalidConfig, match=r"row 1: the request with key '1' has about \d+ tokens.*enqueued_tokens is 50"
    ):
        finish(make_run(["a", "b" * 1000], limits=Limits(enqueued_tokens=50)))


@pytest.mark.parametrize("limits", [{"enqueued_tokens": 0}, {"enqueued_tokens": 1.5}, {"project_jobs": 0}])
def test_limits_that_let_nothing_through_are_refused(limits):
    with pytest.raises(InvalidConfig, match=next(iter(limits))):
        Limits(**limits)
