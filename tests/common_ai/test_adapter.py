"""The adapter by itself, where the operator cannot be brought to: doubts, twins, clocks, and results of any size."""

from __future__ import annotations

import threading
import time
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_gemini_batch.core.client import Client
from airflow_gemini_batch.core.jobs import Phase
from airflow_gemini_batch.core.rest import Account
from airflow_gemini_batch.emulator import Emulator, Faults, HttpError, Options
from airflow_gemini_batch.exceptions import (
    CreateInDoubt,
    CredentialsRefused,
    DownloadBroken,
    InvalidInput,
    NoSuchJob,
    QuotaExceeded,
    RequestRefused,
    ResultsLost,
    ServiceError,
    ServiceUnreachable,
)

KEY, PRINT = "0123456789abcdef", "f" * 64
LONG_AGO = "2020-01-01T00:00:00+00:00"


@pytest.fixture
def adapter(emulator: Emulator) -> Iterator[Any]:
    from airflow_gemini_batch.common_ai.adapter import GoogleBatchAdapter

    adapter = GoogleBatchAdapter(client=Client(Account("test-key", emulator.url, timeout=0.5)))
    yield adapter
    adapter.close()


def text() -> Any:
    from airflow.providers.common.ai.batch.output_schema import build_output_spec

    return build_output_spec(str)


def submit(adapter: Any, prompts: Any = ("a", "b"), **others: Any) -> Any:
    defaults = {"model": "gemini-2.5-flash", "idempotency_key": KEY, "input_fingerprint": PRINT, "output_spec": text(),
                "max_tokens": 64}  # fmt: skip
    requests = [{"prompt": one} for one in prompts]
    return adapter.submit(requests, **(defaults | others), completion_window="24h")


def test_it_is_found_by_its_entry_points():
    from airflow.providers.common.ai.batch import dispatch
    from airflow.providers.common.ai.batch.base import BatchAdapter

    for name in ("google", "google-gla"):
        kind = dispatch.import_adapter_class(name)
        assert issubclass(kind, BatchAdapter)
        assert kind.name == name
        assert not kind.__abstractmethods__
        built = dispatch.build_adapter_from_connection(name, Connection())
        assert built._client.account.base_url == "https://example.org"
        built.close()


class Connection:
    password, host = "a-key", "example.org"


def test_every_phase_has_a_status_that_common_ai_knows():
    from airflow.providers.common.ai.batch.base import IN_PROGRESS_STATUSES, TERMINAL_STATUS_MAP

    from airflow_gemini_batch.common_ai.adapter import STATUS_OF_PHASE

    assert set(STATUS_OF_PHASE) == set(Phase)
    for phase, status in STATUS_OF_PHASE.items():
        assert status in (TERMINAL_STATUS_MAP if phase.ended else IN_PROGRESS_STATUSES)


def test_a_text_that_no_request_can_hold_is_named(adapter):
    with pytest.raises(InvalidInput, match=r"requests:1: .*Unicode"):
        adapter.validate_requests(
            [{"prompt": "a"}, {"prompt": "\ud800"}], model="m", output_spec=text(), idempotency_key=KEY
        )


# Looking -----------------------------------------------------------------------------------------------------


def test_a_job_that_is_not_there_has_the_status_code_that_common_ai_looks_for(adapter):
    with pytest.raises(NoSuchJob) as caught:
        adapter.get_batch("batches/nope")
    assert caught.value.status_code == 404
    with pytest.raises(NoSuchJob):
        adapter.iter_results("batches/nope")  # at the call, not at the first item


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (HttpError(503), ServiceUnreachable),
        (HttpError(429), ServiceUnreachable),
        (HttpError(401, message="API key not valid."), CredentialsRefused),
        (HttpError(200, body="<html>"), ServiceUnreachable),
    ],
)
def test_could_not_look_is_never_is_not_there(adapter, emulator, fault, kind):
    job = submit(adapter).batch_id
    emulator.faults = Faults(http_errors={"get": fault})
    with pytest.raises(kind) as caught:
        adapter.get_batch(job)
    assert getattr(caught.value, "status_code", None) is None


def test_a_running_job_is_in_progress_and_has_no_results_yet(adapter, emulator):
    emulator.faults = Faults(stuck="RUNNING")
    job = submit(adapter).batch_id
    seen = adapter.get_batch(job)
    assert (seen.status, seen.error_message) == ("in_progress", None)
    with pytest.raises(DownloadBroken, match="is RUNNING, but names no result file"):
        adapter.iter_results(job)


def test_a_state_that_nobody_knows_is_in_progress(adapter, emulator):
    emulator.faults = Faults(unknown_state="BATCH_STATE_DREAMING")
    assert adapter.get_batch(submit(adapter).batch_id).status == "in_progress"


def test_a_job_that_failed_without_a_word_says_that(adapter, emulator):
    emulator.faults = Faults(end_state="FAILED", end_without_error=True)
    seen = adapter.get_batch(submit(adapter).batch_id)
    assert seen.status == "failed"
    assert seen.error_message.endswith("ended as FAILED: the service gave no reason.")
    assert list(adapter.iter_results(emulator.jobs[0].name)) == []


# Paid once ---------------------------------------------------------------------------------------------------


def test_a_create_that_was_never_received_is_sent_again_once_that_is_sure(adapter, emulator):
    emulator.faults = Faults(drop_before={"create": 1})
    assert submit(adapter).batch_id == emulator.jobs[0].name
    assert emulator.jobs_created == 1


def test_a_create_whose_reply_is_lost_is_found_under_its_display_name(adapter, emulator):
    emulator.faults = Faults(http_errors={"create": HttpError(503, times=1, recorded=True)})
    made = submit(adapter)
    assert (made.batch_id, emulator.jobs_created) == (emulator.jobs[0].name, 1)
    assert made.provider_input_ref == emulator.jobs[0].input_file


def test_a_job_that_shows_late_in_the_list_is_waited_for(adapter, emulator):
    emulator.faults = Faults(drop_after={"create": 1}, list_lag=1.0)
    submit(adapter)
    assert emulator.jobs_created == emulator.calls["create"] == 1


def test_in_doubt_and_with_a_list_that_cannot_be_read_nothing_more_is_sent(adapter, emulator):
    emulator.faults = Faults(drop_after={"create": 1}, http_errors={"list": HttpError(503, skip=1)})
    with pytest.raises(CreateInDoubt, match="nor can the jobs be listed"):
        submit(adapter)
    assert emulator.jobs_created == emulator.calls["create"] == 1


@pytest.mark.parametrize(
    ("fault", "kind"), [(HttpError(400, message="No such model."), RequestRefused), (HttpError(429), QuotaExceeded)]
)
def test_a_definite_refusal_is_final_and_sends_nothing_more(adapter, emulator, fault, kind):
    emulator.faults = Faults(http_errors={"create": fault})
    with pytest.raises(kind):
        submit(adapter)
    assert (emulator.calls["create"], emulator.jobs_created) == (1, 0)


def test_a_job_that_another_attempt_has_made_meanwhile_is_used(adapter, emulator):
    emulator.faults = Faults(stuck="RUNNING")
    first, second = submit(adapter), submit(adapter)
    assert first.batch_id == second.batch_id
    assert emulator.jobs_created == 1


def test_two_attempts_that_create_at_the_same_time_keep_the_same_job(adapter, emulator):
    emulator.faults = Faults(stuck="RUNNING", delay_seconds={"create": 0.2})
    made: list[Any] = []
    threads = [threading.Thread(target=lambda: made.append(submit(adapter))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = {one.batch_id for one in made}
    assert len(made) == 2
    running = {job.name for job in emulator.jobs if job.state == "RUNNING"}
    assert len(running) == 1
    assert running <= names


def test_a_job_that_ended_for_nothing_is_no_reason_not_to_submit(adapter, emulator):
    emulator.faults = Faults(end_state="FAILED", end_state_jobs=1)
    first = submit(adapter).batch_id
    assert adapter.get_batch(first).status == "failed"
    assert submit(adapter).batch_id != first


# Orphans -----------------------------------------------------------------------------------------------------


def test_an_orphan_is_found_by_both_identifiers_and_its_time_alone(adapter):
    job = submit(adapter).batch_id
    assert adapter.find_orphaned_batch(KEY, PRINT, LONG_AGO) == job
    assert adapter.find_orphaned_batch(KEY, PRINT, "") == job
    assert adapter.find_orphaned_batch("f" * 16, PRINT, LONG_AGO) is None
    assert adapter.find_orphaned_batch(KEY, "e" * 64, LONG_AGO) is None
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    assert adapter.find_orphaned_batch(KEY, PRINT, later) is None


def test_this_machines_clock_may_be_ahead_of_the_services(adapter):
    job = submit(adapter).batch_id
    ahead = datetime.now(UTC) + timedelta(minutes=1)
    assert adapter.find_orphaned_batch(KEY, PRINT, ahead.isoformat()) == job


def test_the_newest_of_several_is_found(adapter, emulator):
    names = []
    for _ in range(2):
        emulator.faults = Faults(end_state="CANCELLED")
        names.append(submit(adapter).batch_id)
        adapter.get_batch(names[-1])
        emulator.clock.advance(3600)
    assert names[0] != names[1]
    assert adapter.find_orphaned_batch(KEY, PRINT, LONG_AGO) == names[1]


@pytest.mark.parametrize("fault", [HttpError(503), HttpError(401, message="API key not valid.")])
def test_a_look_up_that_failed_raises(emulator, adapter, fault):
    emulator.faults = Faults(http_errors={"list": fault})
    with pytest.raises(ServiceError):
        adapter.find_orphaned_batch(KEY, PRINT, LONG_AGO)


# Results -----------------------------------------------------------------------------------------------------


def test_results_that_come_short_are_fetched_again(adapter, emulator, monkeypatch):
    from airflow_gemini_batch.common_ai import adapter as module

    monkeypatch.setattr(module, "sleep", lambda seconds: None)
    job = submit(adapter, prompts=[f"p{n}" for n in range(20)]).batch_id
    emulator.faults = Faults(truncate_download={"at": 0.5, "how": "short", "times": 1})
    assert sorted(item.index for item in adapter.iter_results(job)) == list(range(20))


def test_results_that_are_gone_say_what_to_do(adapter, emulator):
    job = submit(adapter).batch_id
    adapter.get_batch(job)
    emulator.clock.advance(43 * 24 * 3600)
    with pytest.raises((ResultsLost, DownloadBroken), match=r"_airflow_batch_state|names no result file"):
        adapter.iter_results(job)


@pytest.mark.parametrize(("state", "status", "code"), [("CANCELLED", "cancelled", 1), ("SUCCEEDED", "errored", 1)])
def test_a_row_that_was_not_run_is_no_error_of_its_own(state, status, code):
    import io

    from airflow_gemini_batch.common_ai.items import read_items

    line = b'{"error": {"code": %d, "message": "x"}, "key": "k-3"}\n' % code
    (item,) = read_items(io.BytesIO(line), Phase[state], "k")
    assert (item.index, item.provider_status, item.error["message"]) == (3, status, "x")


def test_a_line_of_another_batch_never_stands_for_a_row():
    import io

    from airflow_gemini_batch.common_ai.items import read_items
    from airflow_gemini_batch.core.names import common_ai_identity, common_ai_name

    line = b'{"response": {"candidates": [{"content": {"parts": [{"text": "%s"}]}}]}, "key": "%s"}\n'
    keys = [b"zzz-0", f"{KEY}-00".encode(), f"x{KEY}-0".encode(), f"{KEY}-0".encode()]
    lines = b"".join(line % (key, key) for key in keys)
    identity = common_ai_identity(common_ai_name(KEY, PRINT))
    assert [item.raw for item in read_items(io.BytesIO(lines), Phase.SUCCEEDED, identity)] == [f"{KEY}-0"]


@pytest.mark.parametrize(("request_", "said"), [
    ({"prompt": "a", "sytem_prompt": "b"}, "'sytem_prompt'; a request takes prompt"),
    ({"prompt": "a", "max_tokens": 0}, "maxOutputTokens is 0"),
    ({"prompt": "a", "system_prompt": 5}, "system_prompt is 5"),
])  # fmt: skip
def test_a_request_that_cannot_be_meant_is_refused_before_anything_is_paid(adapter, request_, said):
    with pytest.raises(InvalidInput, match=said):
        adapter.validate_requests([request_], model="m", output_spec=text(), idempotency_key=KEY, max_tokens=64)


@pytest.mark.parametrize("prefix", ["google", "google-gla"])
def test_a_request_may_name_its_model_under_either_prefix(adapter, emulator, prefix):
    requests = [{"prompt": "a"}, {"prompt": "b", "model": f"{prefix}:gemini-2.5-flash"}]
    adapter.validate_requests(requests, model="gemini-2.5-flash", output_spec=text(), idempotency_key=KEY)


def test_cancelling_a_job_that_is_gone_says_so(adapter):
    with pytest.raises(NoSuchJob) as caught:
        adapter.cancel_batch("batches/nowhere")
    assert caught.value.status_code == 404


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=20), st.randoms())
@settings(deadline=None, max_examples=50)
def test_every_answer_comes_back_under_its_own_index_in_any_order(texts: list[str], random: Any) -> None:
    import io

    import orjson

    from airflow_gemini_batch.common_ai.items import read_items
    from airflow_gemini_batch.common_ai.lines import Lines

    texts = [one.encode("utf-8", "replace").decode() for one in texts]
    sent = Lines([{"prompt": one} for one in texts], model="m", identity=KEY, schema=None, settings={})
    echoed = []
    for line in map(orjson.loads, sent):
        (part,) = line["request"]["contents"][0]["parts"]
        answer = {"candidates": [{"content": {"parts": [part]}, "finishReason": "STOP"}]}
        echoed.append(orjson.dumps({"response": answer, "key": line["key"]}))
    random.shuffle(echoed)
    found = {item.index: item.raw for item in read_items(io.BytesIO(b"\n".join(echoed)), Phase.SUCCEEDED, KEY)}
    assert found == dict(enumerate(texts))


def test_results_larger_than_memory_may_be_are_streamed(tmp_path):
    from airflow_gemini_batch.common_ai.adapter import GoogleBatchAdapter

    with Emulator(job_seconds=0, options=Options(answer_bytes=200_000)) as emulator:
        adapter = GoogleBatchAdapter(client=Client(Account("test-key", emulator.url)))
        job = submit(adapter, prompts=[f"p{n}" for n in range(200)], max_tokens=100_000).batch_id
        while adapter.get_batch(job).status == "in_progress":
            time.sleep(0.1)
        tracemalloc.start()
        size = sum(len(item.raw) for item in adapter.iter_results(job))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        adapter.close()
    assert size == 200 * 200_000
    assert peak < size / 4
