"""
Doubt is resolved, never guessed: a create whose answer was lost, an upload that is gone or there already, a job that
cannot be found. At most one job per slot is paid, or nothing is sent and the next attempt looks again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_gemini_batch.core import submitting
from airflow_gemini_batch.emulator import Faults, HttpError, Options
from airflow_gemini_batch.exceptions import (
    CreateInDoubt,
    CredentialsRefused,
    GeminiBatchError,
    JobGone,
    QuotaExceeded,
    RequestRefused,
    ServiceUnreachable,
)

PAGE = "<!DOCTYPE html><title>Error</title><p>That's an error."

UNCLEAR: dict[str, HttpError] = {
    "408": HttpError(408),
    "499, the service's word for cancelled": HttpError(499),
    "500": HttpError(500),
    "503": HttpError(503),
    "504": HttpError(504),
    "an HTML page with 502": HttpError(502, html=True),
    "an HTML page with 403": HttpError(403, html=True),
    "an HTML page with 404": HttpError(404, html=True),
    "an HTML page with 200": HttpError(200, body=PAGE),
    "200 with an empty body": HttpError(200, body=""),
    "200 with JSON that names no job": HttpError(200, body="{}"),
    "200 with broken JSON": HttpError(200, body='{"name": "batches/'),
}

recorded_or_not = pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "not recorded"])


def _with(error: HttpError, **more: Any) -> HttpError:
    return HttpError.from_dict(error.to_dict() | more)


@recorded_or_not
@pytest.mark.parametrize("answer", UNCLEAR)
def test_an_unclear_answer_to_a_create_costs_one_job(
    make_bench: Callable[..., Any], answer: str, recorded: bool
) -> None:
    unclear = _with(UNCLEAR[answer], times=1, recorded=recorded)
    bench = make_bench({"faults": Faults(http_errors={"create": unclear})})
    if error := bench.error(jobs_of=3):
        assert error.retryable, repr(error)
        assert bench.emulator.jobs_created <= 2
        bench.attempt(jobs_of=3)
    bench.check_paid_once(jobs=2)


@recorded_or_not
@pytest.mark.parametrize("answer", UNCLEAR)
def test_a_service_that_only_answers_unclearly_is_not_paid_again_and_again(
    make_bench: Callable[..., Any], answer: str, recorded: bool
) -> None:
    error = _with(UNCLEAR[answer], recorded=recorded)
    bench = make_bench({"faults": Faults(http_errors={"create": error})})
    for _ in range(2):
        if failed := bench.error():
            assert failed.retryable, repr(failed)
            assert not recorded, "the job is in the list, so it can be found"
    assert bench.emulator.jobs_created == (1 if recorded else 0)
    bench.emulator.faults = Faults()
    bench.attempt()
    bench.check_paid_once()


@pytest.mark.parametrize(
    "faults",
    [
        Faults(drop_before={"create": 1}),
        Faults(drop_after={"create": 1}),
        Faults(drop_before={"create": 2}),
        Faults(delay_seconds={"create": 5}),
    ],
    ids=["reset before it is recorded", "reset after it is recorded", "reset twice", "timed out"],
)
def test_a_create_without_an_answer_costs_one_job(make_bench: Callable[..., Any], faults: Faults) -> None:
    bench = make_bench({"faults": faults})
    if error := bench.error():
        assert error.retryable, repr(error)
        assert bench.emulator.jobs_created <= 1
        bench.emulator.faults = Faults()
        bench.attempt()
    bench.check_paid_once()


def test_a_create_recorded_after_its_sender_gave_up_costs_one_job(
    make_rig: Callable[..., Any], make_line: Callable[..., Any], check_paid_once: Callable[..., None]
) -> None:
    rig = make_rig()
    line = make_line(rig.emulator)
    line.late, rig.url, rig.timeout = 1.5, line.url, 1.0
    assert rig.run(more={"margin": 2.0}).code == 0
    check_paid_once(rig, jobs=1)


def test_each_create_is_one_request(bench: Any) -> None:
    """The SDK retries what it likes by default; a retried create is a second job."""
    bench.emulator.faults = Faults(http_errors={"create": HttpError(503, times=1)})
    bench.attempt()
    assert bench.emulator.calls["create"] == 2, "the one that failed, and one after it was certainly not recorded"
    bench.check_paid_once()


def _older_jobs(emulator: Any, count: int) -> None:
    """Jobs of other people in the same project, all over."""
    from airflow_gemini_batch.emulator.jobs import Job

    store = emulator._service.jobs
    for number in range(count):
        now = store.clock.now()
        store.add(Job(
            id=f"older{number:031d}", embeds=False, model="gemini-2.5-flash", display_name=f"someone's {number}",
            input_file=None, input_path=Path("none"), request_count=1, keys=("a",), created=now, state="SUCCEEDED",
            updated=now, ended=now,
        ))  # fmt: skip


@recorded_or_not
def test_five_thousand_other_jobs_do_not_hide_one(make_bench: Callable[..., Any], recorded: bool) -> None:
    bench = make_bench()
    bench.emulator.faults = Faults(**{"drop_after" if recorded else "drop_before": {"create": 1}})
    _older_jobs(bench.emulator, 2500)
    # The newer half comes between the create and the look for it.
    bench.nights.append((0.0, lambda: _older_jobs(bench.emulator, 2500)))
    bench.attempt()
    bench.check_paid_once(jobs=2500 + 1 + (0 if bench.nights else 2500))


def test_five_thousand_newer_jobs_do_not_hide_one(rig: Any, check_paid_once: Callable[..., None]) -> None:
    rig.kill(("airflow_gemini_batch.core.client:Client.create", "answered"))
    _older_jobs(rig.emulator, 5000)
    assert rig.run(try_number=2).code == 0
    assert rig.emulator.jobs_created == 5001
    assert len(rig.manifest()["jobs"]) == 1
    rig.check_table(6)


UNREADABLE: dict[str, Faults] = {
    "503": Faults(http_errors={"list": HttpError(503)}),
    "429": Faults(http_errors={"list": HttpError(429)}),
    "403": Faults(http_errors={"list": HttpError(403)}),
    "an HTML page": Faults(http_errors={"list": HttpError(502, html=True)}),
    "an HTML page with 200": Faults(http_errors={"list": HttpError(200, body=PAGE)}),
    "200 with an empty body": Faults(http_errors={"list": HttpError(200, body="")}),
    "200 with broken JSON": Faults(http_errors={"list": HttpError(200, body='{"operations": [')}),
    "200 with JSON that is no list": Faults(http_errors={"list": HttpError(200, body='{"error": {"code": 503}}')}),
    "200 with operations that are none": Faults(http_errors={"list": HttpError(200, body='{"operations": [{}]}')}),
    "a reset": Faults(drop_before={"list": 1000}),
    "too slow": Faults(delay_seconds={"list": 5}),
    "its second page": Faults(http_errors={"list": [HttpError(503, skip=1, times=1)] * 1000}),
}


@pytest.mark.parametrize("how", UNREADABLE)
def test_while_the_list_cannot_be_read_nothing_is_sent(
    make_rig: Callable[..., Any], make_bench: Callable[..., Any], how: str
) -> None:
    bench = make_bench({"faults": Faults(drop_after={"create": 1})})
    _older_jobs(bench.emulator, 150)  # two pages
    bench.emulator.faults = Faults(drop_after={"create": 1}, **_only(UNREADABLE[how]))
    for number in range(3):
        with pytest.raises(GeminiBatchError) as caught:
            bench.attempt()
        if how != "403":  # a key that may not list is for a person to mend
            assert caught.value.retryable, f"{type(caught.value).__name__}: {caught.value}"
        assert bench.emulator.calls["create"] == 1
        bench.emulator.faults = UNREADABLE[how]
        if number == 1:
            bench.sleep(3600)  # the claim is old: still nobody could look
    bench.emulator.faults = Faults()
    bench.attempt()
    bench.check_paid_once(jobs=151)


def _only(faults: Faults) -> dict[str, Any]:
    return {name: getattr(faults, name) for name in faults.to_dict()}


def test_a_job_that_comes_late_into_the_list_is_waited_for(
    make_bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submitting, "MARGIN", 15.0)
    monkeypatch.setattr(submitting, "LOOK_EVERY", 5.0)
    bench = make_bench({"faults": Faults(drop_after={"create": 1}, list_lag=12)})
    bench.attempt()
    bench.check_paid_once()


@pytest.mark.parametrize("code", [400, 403, 404, 409])
def test_a_definite_refusal_is_final_and_leaves_no_doubt(bench: Any, code: int) -> None:
    bench.emulator.faults = Faults(http_errors={"create": HttpError(code, times=1)})
    with pytest.raises(RequestRefused) as caught:
        bench.attempt()
    assert not caught.value.retryable
    slept = bench.slept
    bench.attempt()
    bench.check_paid_once()
    assert bench.slept - slept < submitting.MARGIN, "no create can be under way, so nothing is waited for"


def test_a_quota_full_for_a_day_is_retryable_and_pays_nothing(bench: Any) -> None:
    bench.emulator.faults = Faults(http_errors={"create": HttpError(429)})
    with pytest.raises(QuotaExceeded) as caught:
        bench.attempt()
    assert caught.value.retryable
    assert bench.emulator.jobs_created == 0
    bench.emulator.faults = Faults()
    bench.attempt()
    bench.check_paid_once()


def test_a_refused_connection_is_no_doubt(bench: Any, make_line: Callable[..., Any]) -> None:
    """Nothing left this host, so nothing needs to be waited for; an upload needs the line first, so it is cut after."""
    line = make_line(bench.emulator)
    bench.url = line.url
    services = bench.services()
    line.cut()
    with pytest.raises(ServiceUnreachable) as caught:
        services.client.create(model="gemini-2.5-flash", file="files/a", display_name="x")
    assert not isinstance(caught.value, CreateInDoubt)
    services.client.close()
    line.mend()
    bench.attempt()
    bench.check_paid_once()


# A job that was recorded ------------------------------------------------------------------------------------------


def _created(bench: Any) -> None:
    """An attempt that submits and is gone."""
    from airflow_gemini_batch.core.flow import Waiting, advance

    services = bench.services()
    assert isinstance(advance(bench.a_run(), services, starting=True), Waiting)
    services.client.close()


def _delete_jobs(emulator: Any) -> None:
    for job in emulator.jobs:
        emulator._service.delete(job.name.removeprefix("batches/"))


both_ways = pytest.mark.parametrize("deferred", [True, False], ids=["deferred", "waiting"])


@both_ways
@pytest.mark.parametrize("code", [404, 403])
def test_a_deleted_job_is_gone_and_asking_again_pays_for_its_rows(
    make_bench: Callable[..., Any], code: int, deferred: bool
) -> None:
    bench = make_bench(deferred=deferred)
    _created(bench)
    _delete_jobs(bench.emulator)
    bench.emulator.faults = Faults(http_errors={"get": HttpError(code)})
    before = bench.slept
    with pytest.raises(JobGone) as caught:
        bench.attempt()
    assert not caught.value.retryable
    assert bench.slept - before < 600, "soon"
    assert {row["status"] for row in bench.landed().values()} == {"error"}
    assert bench.emulator.jobs_created == 1
    bench.emulator.faults = Faults()
    bench.attempt()
    bench.check_paid_once(jobs=2)


@both_ways
def test_a_key_that_may_not_look_any_more_is_told_apart_from_a_job_that_is_gone(
    make_bench: Callable[..., Any], deferred: bool
) -> None:
    bench = make_bench(deferred=deferred)
    _created(bench)
    bench.emulator.faults = Faults(http_errors={"get": HttpError(403), "list": HttpError(403)})
    with pytest.raises(CredentialsRefused) as caught:
        bench.attempt()
    assert not caught.value.retryable
    bench.emulator.faults = Faults()
    bench.attempt()
    bench.check_paid_once()


@both_ways
@pytest.mark.parametrize(
    "faults",
    [
        Faults(http_errors={"*": HttpError(503)}),
        Faults(http_errors={"*": HttpError(404, html=True)}),
        Faults(http_errors={"get": HttpError(403), "list": HttpError(503)}),
        Faults(http_errors={"get": HttpError(200, body="")}),
        Faults(drop_before={"*": 1_000_000}),
    ],
    ids=["503", "an HTML page with 404", "403 and nobody to ask whether the key works", "an empty body", "resets"],
)
def test_a_service_that_cannot_be_asked_for_ten_hours_does_not_end_the_wait(
    make_bench: Callable[..., Any], faults: Faults, deferred: bool
) -> None:
    bench = make_bench(deferred=deferred, interval=600.0)
    _created(bench)
    bench.emulator.faults = faults
    bench.after(36_000, bench.with_faults(Faults()))
    bench.attempt()
    assert bench.slept > 36_000
    bench.check_paid_once()


@both_ways
def test_refused_connections_for_ten_hours_do_not_end_the_wait(
    make_bench: Callable[..., Any], make_line: Callable[..., Any], deferred: bool
) -> None:
    bench = make_bench(deferred=deferred, interval=600.0)
    line = make_line(bench.emulator)
    bench.url = line.url
    _created(bench)
    line.cut()
    bench.after(36_000, line.mend)
    bench.attempt()
    assert bench.slept > 36_000
    bench.check_paid_once()


# Uploads ----------------------------------------------------------------------------------------------------------


def _uploads_only(bench: Any) -> None:
    """An attempt that uploads, and fails before it creates a job."""
    bench.emulator.faults = Faults(http_errors={"create": HttpError(429)})
    with pytest.raises(QuotaExceeded):
        bench.attempt(quota_timeout=0)
    bench.emulator.faults = Faults()


@pytest.mark.parametrize("status", [404, 403])
def test_an_upload_that_expired_at_the_service_is_sent_again(make_bench: Callable[..., Any], status: int) -> None:
    """Gone before its time as far as this side knows: only the create finds out."""
    bench = make_bench({"options": Options(missing_input_status=status)})
    _uploads_only(bench)
    bench.emulator._service.files.delete(bench.emulator.files[0]["name"].removeprefix("files/"))
    bench.attempt()
    assert bench.emulator.calls["upload_start"] == 2
    bench.check_paid_once()


def test_an_upload_that_expired_by_the_clock_is_sent_again(bench: Any) -> None:
    _uploads_only(bench)
    bench.sleep(49 * 3600)
    bench.attempt()
    assert bench.emulator.calls["upload_start"] == 2
    bench.check_paid_once()


def test_an_upload_that_is_about_to_expire_is_sent_again(bench: Any) -> None:
    _uploads_only(bench)
    bench.sleep(47.5 * 3600)
    bench.attempt()
    assert bench.emulator.calls["upload_start"] > 1
    bench.check_paid_once()


def test_an_upload_that_is_recorded_is_not_sent_again(bench: Any) -> None:
    _uploads_only(bench)
    bench.attempt()
    assert bench.emulator.calls["upload_start"] == 1
    bench.check_paid_once()


def test_an_upload_that_nobody_recorded_is_found_and_used(bench: Any) -> None:
    _uploads_only(bench)
    (document,) = (bench.directory / "out").rglob("upload.json")
    document.unlink()
    bench.attempt()
    assert len([file for file in bench.emulator.files if not file["name"].startswith("files/batch-")]) <= 1
    bench.check_paid_once()


@pytest.mark.parametrize(
    "faults",
    [
        Faults(http_errors={"upload_start": HttpError(503, times=2)}),
        Faults(http_errors={"upload_chunk": HttpError(503, times=1)}),
        Faults(upload_chunk_no_status=1),
        Faults(drop_before={"upload_start": 1}),
        Faults(drop_before={"upload_chunk": 1}),
        Faults(drop_after={"upload_chunk": 1}),
        Faults(http_errors={"upload_chunk": HttpError(502, html=True, times=1)}),
        Faults(http_errors={"upload_chunk": HttpError(503, times=1, recorded=True)}),
    ],
    ids=[
        "refused twice",
        "a chunk refused",
        "a chunk refused without a word on the upload",
        "reset",
        "reset in a chunk",
        "the answer to a chunk lost",
        "an HTML page",
        "a chunk taken and refused",
    ],
)
def test_an_upload_that_fails_once_is_sent_again_and_one_job_paid(
    make_bench: Callable[..., Any], faults: Faults
) -> None:
    bench = make_bench({"faults": faults})
    bench.attempt()
    bench.check_paid_once()
