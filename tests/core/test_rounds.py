"""Rounds, fallbacks, canaries and the end, against scripted services: one row per key, every job needed and no other."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from airflow_gemini_batch.core import finishing, flow
from airflow_gemini_batch.core.attempt import Run, Services
from airflow_gemini_batch.core.budget import Budget
from airflow_gemini_batch.core.flow import advance
from airflow_gemini_batch.core.ledger import Ledger
from airflow_gemini_batch.core.manifest import Manifest
from airflow_gemini_batch.core.prices import PriceTable
from airflow_gemini_batch.core.results import CODES, PASSING_CODES
from airflow_gemini_batch.core.rows import FileSource
from airflow_gemini_batch.core.schema import OutputSchema
from airflow_gemini_batch.core.shards import Limits
from airflow_gemini_batch.emulator import Emulator, Faults, HttpError, Options, RowError
from airflow_gemini_batch.exceptions import (
    CanaryFailed,
    InvalidConfig,
    JobExpired,
    JobRefused,
    JobStillRunning,
    JobStuck,
    RequestRefused,
    RunFailed,
    TooManyFailedRows,
)

HANGS, WORKS = "gemini-2.5-flash", "gemini-2.5-flash-lite"
HOUR = 3600.0


@pytest.fixture
def patient(client, clock) -> Services:
    """The emulator's client in a time that passes only in sleep."""
    clock.now = time.time()
    return Services(client, clock, clock.sleep)


def falling_back(run: Run, *models: str) -> Run:
    return replace(run, spec=replace(run.spec, fallbacks=models))


def check(manifest: Manifest | None, rows: int) -> dict[str, dict[str, Any]]:
    """One landed row per key, and counts that say the same everywhere; returns the rows by key."""
    assert manifest is not None
    landed = [json.loads(line) for name in manifest.files for line in Path(name).read_bytes().splitlines()]
    assert len({row["key"] for row in landed}) == len(landed) == manifest.rows == rows
    assert Counter(row["status"] for row in landed) == Counter({s: n for s, n in manifest.counts.items() if n})
    known = {job["name"]: job["slot"] for job in manifest.jobs}
    for row in landed:
        if row["job"] is not None:
            assert known[row["job"]].startswith(f"r{row['round']}-"), "the job is one of its round"
    settled = sum((Counter(one["settled"]) for one in manifest.by_round), Counter())
    left = rows - settled.total()
    assert left >= 0
    unsettled = 0
    for one, following in zip(manifest.by_round, manifest.by_round[1:], strict=False):
        unsettled += one["unsettled"]
        assert following["rows"] <= unsettled
    return {row["key"]: row for row in landed}


def failures(run: Run) -> list[dict[str, Any]]:
    path = run.output.failures
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def sent(emulator: Emulator) -> list[tuple[str, ...]]:
    return [job.keys for job in emulator.jobs]


# Rounds


def test_a_third_of_the_rows_failing_for_two_rounds_costs_two_more_jobs_and_no_row(emulator, make_run, finish):
    unlucky = {str(n): RowError(13, times=2 if n % 10 else 1) for n in range(200) if n % 3 == 0}
    emulator.faults = Faults(fail_keys=unlucky)
    manifest = finish(make_run(map(str, range(200)), max_rounds=5))
    rows = check(manifest, 200)
    assert emulator.jobs_created == manifest.rounds == 3
    first, second, third = (set(keys) for keys in sent(emulator))
    assert second == unlucky.keys()
    assert third == {key for key, error in unlucky.items() if error.times == 2}
    assert {key: row["round"] for key, row in rows.items()} == {
        key: 2 if key in third else 1 if key in second else 0 for key in first
    }
    assert [(one["rows"], one["settled"], one["unsettled"]) for one in manifest.by_round] == [
        (200, {"ok": 200 - len(second)}, len(second)),
        (len(second), {"ok": len(second) - len(third)}, len(third)),
        (len(third), {"ok": len(third)}, 0),
    ]


@pytest.mark.parametrize("code", CODES)
def test_each_code_is_passing_or_final_as_the_table_says(emulator, make_run, finish, code):
    emulator.faults = Faults(fail_keys={"1": RowError(code, times=1)})
    rows = check(finish(make_run()), 3)
    assert emulator.jobs_created == (2 if code in PASSING_CODES else 1)
    assert rows["1"]["status"] == ("ok" if code in PASSING_CODES else "error")


@pytest.mark.parametrize("code", [3, 8, 13])
def test_a_failed_job_is_sent_again_if_its_error_is_a_passing_one(emulator, make_run, finish, code):
    emulator.faults = Faults(end_state="FAILED", end_state_jobs=1, end_error={"code": code, "message": "no luck"})
    if code in PASSING_CODES:
        check(finish(make_run()), 3)
    else:
        with pytest.raises(RunFailed, match="no luck"):
            finish(make_run())
    assert emulator.jobs_created == (2 if code in PASSING_CODES else 1)


@pytest.mark.parametrize(
    ("faults", "status"),
    [
        (Faults(fail_keys={"1": RowError(3, times=1)}), "error"), (Faults(blocked_keys={"1"}), "blocked"),
        (Faults(empty_keys={"1"}), "empty"), (Faults(truncate_keys={"1"}), "truncated"),
    ],
    ids=["error", "blocked", "empty", "truncated"],
)  # fmt: skip
def test_a_final_failure_is_sent_again_only_if_redo_names_it(emulator, make_run, finish, faults, status):
    emulator.faults = faults
    assert check(finish(make_run()), 3)["1"]["status"] == status
    assert emulator.jobs_created == 1
    emulator.faults = replace(faults)
    run = make_run(run_id="run-2", out="again", redo={status: {}})
    rows = check(finish(run), 3)
    assert sent(emulator)[1:] == [("0", "1", "2"), ("1",)]
    assert rows["1"]["status"] == ("ok" if status == "error" else status)
    assert rows["1"]["round"] == 1


def test_a_truncated_answer_is_asked_again_with_the_higher_limit_that_redo_gives(emulator, make_run, finish):
    long = "tell me " * 40
    more = {"truncated": {"generationConfig": {"maxOutputTokens": 4096}}}
    run = make_run(
        [long, "b"], template={"generationConfig": {"maxOutputTokens": 4, "temperature": 0.2}}, redo=more,
        delete_remote="never", max_rounds=4,
    )  # fmt: skip
    rows = check(finish(run), 2)
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert {row["round"] for row in rows.values()} == {1}
    inputs = [json.loads(emulator.read_file(file["name"]).splitlines()[0]) for file in emulator.files
              if "batch-" not in file["name"]]  # fmt: skip
    assert [one["request"]["generationConfig"] for one in inputs] == [
        {"maxOutputTokens": 4, "temperature": 0.2}, {"maxOutputTokens": 4096, "temperature": 0.2},
    ]  # fmt: skip


def test_an_invalid_answer_is_asked_again_if_redo_says_so(emulator, make_run, finish):
    schema = OutputSchema.of({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]})
    emulator.faults = Faults(bad_json_keys={"1"})
    template = {"generationConfig": {"responseMimeType": "application/json", "responseSchema": {
        "type": "OBJECT", "properties": {"a": {"type": "STRING"}}, "required": ["a"]}}}  # fmt: skip
    run = make_run(template=template, redo={"invalid_output": {}})
    run = replace(run, schema=schema, spec=replace(run.spec, output_schema=schema.json_schema))
    rows = check(finish(run), 3)
    assert sent(emulator) == [("0", "1", "2"), ("1",)]
    assert (rows["1"]["status"], rows["1"]["round"]) == ("invalid_output", 1)


def test_a_blank_row_is_not_sent_again_and_again_although_redo_names_empty_ones(emulator, make_run, finish):
    run = make_run([{"t": "a"}, {"t": ""}], prompt="{t}", redo={"empty": {"generationConfig": {"temperature": 1}}})
    rows = check(finish(run), 2)
    assert (rows["1"]["status"], rows["1"]["job"]) == ("empty", None)
    assert emulator.jobs_created == 1


@pytest.mark.parametrize(
    "second", [Faults(fail_keys={"1": RowError(13)}), Faults(drop_keys={"1"}), Faults(blocked_keys={"1"})],
    ids=["error", "nothing", "blocked"],
)  # fmt: skip
def test_an_answer_that_was_cut_short_is_kept_when_asking_again_brings_less(
    emulator, make_run, finish, client, monkeypatch, second
):
    emulator.faults = Faults(truncate_keys={"1"})
    create = client.create

    def then_worse(**job: Any) -> str:
        emulator.faults = second if emulator.jobs_created else emulator.faults
        return create(**job)

    monkeypatch.setattr(client, "create", then_worse)
    manifest = finish(make_run(redo={"truncated": {}}, max_rounds=3))
    rows = check(manifest, 3)
    assert (rows["1"]["status"], rows["1"]["round"], rows["1"]["job"]) == ("truncated", 0, emulator.jobs[0].name)
    assert rows["1"]["text"]
    assert "asked again in round" in rows["1"]["error_message"]
    assert emulator.jobs_created > 1
    # Landed again, it is the same.
    assert check(finish(make_run(redo={"truncated": {}}, max_rounds=3)), 3) == rows


def test_an_answer_without_text_that_is_whole_replaces_one_that_was_cut_short(
    emulator, make_run, finish, client, monkeypatch
):
    """A call of a function, as here, or a picture."""
    emulator.faults = Faults(truncate_keys={"1"})
    create = client.create

    def then_whole(**job: Any) -> str:
        emulator.faults = Faults() if emulator.jobs_created else emulator.faults
        return create(**job)

    monkeypatch.setattr(client, "create", then_whole)
    calling = {
        "tools": [{"functionDeclarations": [{"name": "f"}]}],
        "toolConfig": {"functionCallingConfig": {"mode": "ANY"}},
    }
    rows = check(finish(make_run(redo={"truncated": calling})), 3)
    assert (rows["1"]["status"], rows["1"]["text"], rows["1"]["round"]) == ("ok", None, 1)


def test_an_answer_without_text_is_not_given_up_for_an_earlier_one_that_was_cut_short(emulator, make_run, finish):
    """The fallback speaks, which is no text; what was cut short before is."""
    emulator.faults = Faults(truncate_keys={"0"})
    run = falling_back(make_run(["say it"], redo={"truncated": {}}), "gemini-2.5-flash-preview-tts")
    rows = check(finish(run), 1)
    assert (rows["0"]["status"], rows["0"]["round"], rows["0"]["job"]) == ("ok", 1, emulator.jobs[1].name)


def test_a_request_that_names_its_model_does_not_name_it_to_another_one(emulator, make_run, finish):
    rows = [
        {"key": key, "request": {"model": f"models/{HANGS}", "contents": [{"parts": [{"text": key}], "role": "user"}]}}
        for key in "abc"
    ]
    emulator.faults = Faults(fail_keys={"b": RowError(13, times=1), "c": RowError(3)})
    run = falling_back(make_run(rows, delete_remote="never"), WORKS)
    finish(run)
    first, second = (emulator.read_file(file["name"]) for file in emulator.files if "batch-" not in file["name"])
    assert [json.loads(line) for line in first.splitlines()] == rows
    assert json.loads(second) == {"key": "b", "request": {"contents": rows[1]["request"]["contents"]}}
    # Nor is what failed bound to it, when it is a source again.
    emulator.faults = Faults()
    again = make_run([], run_id="again", out="again", model=WORKS)
    assert finish(replace(again, source=lambda: FileSource((run.output.failures,)))).counts["ok"] == 1


def test_a_row_that_a_budget_keeps_from_being_asked_again_keeps_its_reason(emulator, make_run, finish):
    emulator.faults = Faults(fail_keys={"1": RowError(13, "out of luck")})
    prices = PriceTable.parse({"gemini-2.5-flash": {"input": 1, "output": 1}})
    budget = Budget(max_cost_usd=0.00001, on_exceed="truncate_rows")  # the answers are longer than assumed
    run = make_run(budget=budget, prices=prices, assumed_output_tokens=1, max_rounds=3)
    rows = check(finish(run), 3)
    assert emulator.jobs_created == 1
    assert (rows["1"]["error_code"], rows["1"]["round"]) == (13, 0)
    assert rows["1"]["error_message"].startswith(
        "out of luck; asked again in round 1: error, not sent: Over the budget"
    )


# Getting unstuck


def test_rows_of_a_model_that_hangs_are_answered_by_the_one_that_does_not(emulator, make_run, finish, patient, clock):
    emulator.faults = Faults(stuck_models={HANGS: "PENDING"})
    run = falling_back(make_run(model=HANGS, pending_timeout=2 * HOUR), WORKS)
    began = clock.now
    manifest = finish(run, patient, interval=300)
    rows = check(manifest, 3)
    assert [(job.model.removeprefix("models/"), job.state) for job in emulator.jobs] == [
        (HANGS, "CANCELLED"), (WORKS, "SUCCEEDED"),
    ]  # fmt: skip
    assert {row["round"] for row in rows.values()} == {1}
    assert [one["model"] for one in manifest.by_round] == [HANGS, WORKS]
    assert 2 * HOUR <= clock.now - began < 2 * HOUR + 900


def test_a_job_that_runs_is_not_stuck(emulator, make_run, finish, patient, clock):
    emulator.faults = Faults(stuck="RUNNING")
    began = clock.now
    with pytest.raises(RunFailed) as caught:
        finish(make_run(pending_timeout=HOUR, timeout=5 * HOUR, max_rounds=1), patient, interval=300)
    assert type(caught.value).__name__ == "JobTimedOut"
    assert clock.now - began >= 5 * HOUR


def test_a_stuck_job_without_rounds_left_says_its_age_state_and_counts(emulator, make_run, finish, patient, caplog):
    emulator.faults = Faults(stuck="PENDING")
    run = make_run(pending_timeout=HOUR, max_rounds=1)
    with pytest.raises(JobStuck, match=r"PENDING.*1 h 0\d min after its creation") as caught:
        finish(run, patient, interval=300)
    assert caught.value.jobs == (emulator.jobs[0].name,)
    assert caught.value.counts == {"error": 3}
    assert caught.value.manifest == str(run.output.manifest)
    check(Manifest.load(run.output), 3)
    assert [one["key"] for one in failures(run)] == ["0", "1", "2"]


def test_what_took_too_long_is_sent_in_smaller_jobs_if_asked(emulator, make_run, finish, patient):
    emulator.faults = Faults(stuck_models={HANGS: "PENDING"})
    run = falling_back(make_run(map(str, range(10)), model=HANGS, pending_timeout=HOUR, split=4), WORKS)
    check(finish(run, patient, interval=300), 10)
    assert [len(keys) for keys in sent(emulator)] == [10, 3, 3, 3, 1]


def test_a_job_that_is_left_running_does_not_keep_the_others_from_landing(emulator, make_run, finish, patient):
    emulator.faults = Faults(stuck_models={HANGS: "RUNNING"})
    run = make_run(list("abcd"), limits=Limits(requests_per_job=2), timeout=HOUR, on_timeout="leave")
    (first, second) = advance(run, patient, starting=True).waits
    emulator.set_state(second.job, "SUCCEEDED")
    patient.sleep(first.deadline + 1 - patient.clock())
    with pytest.raises(JobStillRunning) as caught:
        advance(run, patient)
    assert caught.value.jobs == (first.job,)
    assert "more of this run" not in str(caught.value)
    assert caught.value.manifest == str(run.output.manifest)
    assert [path.name for path in run.output.path.glob("part-*")] == ["part-r0-00001.jsonl"]


def test_a_quota_that_refuses_looks_and_cancels_at_the_deadline_is_waited_for(emulator, make_run, patient):
    emulator.faults = Faults(stuck="RUNNING")
    run = make_run(timeout=HOUR, max_rounds=1)
    (wait,) = advance(run, patient, starting=True).waits
    storm = {call: HttpError(429) for call in ("get", "list", "cancel")}
    emulator.faults = Faults(stuck="RUNNING", http_errors=storm)
    patient.sleep(wait.deadline + 1 - patient.clock())
    for _ in range(30):  # the cancel is refused for half an hour
        reached = advance(run, patient)
        assert reached.not_before is not None or reached.waits
        patient.sleep(60)
    emulator.faults = Faults()
    patient.sleep(HOUR)
    check(advance(run, patient), 3)
    assert emulator.jobs_created == 1


def test_all_jobs_that_are_left_running_are_named(emulator, make_run, patient):
    emulator.faults = Faults(stuck="RUNNING")
    run = make_run(list("abcdef"), limits=Limits(requests_per_job=2), timeout=HOUR, on_timeout="leave")
    waits = advance(run, patient, starting=True).waits
    patient.sleep(max(wait.deadline for wait in waits) + 1 - patient.clock())
    with pytest.raises(JobStillRunning, match="2 more of this run's jobs run on too") as caught:
        advance(run, patient)
    assert set(caught.value.jobs) == {wait.job for wait in waits}
    assert caught.value.counts["total"] == 6


def test_an_expired_job_goes_to_the_next_model(emulator, make_run, finish):
    emulator.faults = Faults(end_state="EXPIRED", end_state_jobs=1)
    check(finish(falling_back(make_run(), WORKS)), 3)
    assert [job.model.removeprefix("models/") for job in emulator.jobs] == [HANGS, WORKS]


def test_a_failed_job_goes_to_the_next_model_whatever_its_error(emulator, make_run, finish):
    error = {"code": 3, "message": "this model does not do that"}
    emulator.faults = Faults(end_state="FAILED", end_state_jobs=1, end_error=error)
    check(finish(falling_back(make_run(map(str, range(20)), model=HANGS, canary=5), WORKS)), 20)
    assert [(job.model.removeprefix("models/"), len(job.keys)) for job in emulator.jobs] == [
        (HANGS, 5), (WORKS, 5), (WORKS, 15),
    ]  # fmt: skip
    # With the last model it is an end.
    emulator.faults = Faults(end_state="FAILED", end_error=error)
    with pytest.raises(RunFailed, match=r"does not do that\. Clear"):
        finish(falling_back(make_run(model=HANGS, max_rounds=4, out="again", run_id="again"), WORKS))
    assert emulator.jobs_created == 5


@pytest.mark.parametrize("last", ["gemini-2.5-pro", None])
def test_a_fallback_that_there_is_not_keeps_no_paid_answer_from_landing(connect, make_run, finish, last):
    with Emulator(job_seconds=0, options=Options(models=[HANGS, "gemini-2.5-pro"])) as gemini:
        gemini.faults = Faults(fail_keys={"3": RowError(13, times=1)})
        services = Services(connect(gemini.url), sleep=lambda _: time.sleep(0.01))
        run = falling_back(make_run(map(str, range(10))), "gemini-2.5-proo", *([last] if last else []))
        run = replace(run, policy=replace(run.policy, max_rounds=3))
        if last:
            assert check(finish(run, services), 10)["3"]["round"] == 2
            assert models(gemini) == [HANGS, last]
            return
        with pytest.raises(JobRefused, match=r"gemini-2\.5-proo is not found") as caught:
            finish(run, services)
        assert caught.value.counts == {"ok": 9, "error": 1}
        check(Manifest.load(run.output), 10)
        assert [one["key"] for one in failures(run)] == ["3"]
        assert gemini.jobs_created == 1


def test_one_job_that_is_refused_keeps_no_other_from_being_sent_and_landed(emulator, make_run, finish):
    emulator.faults = Faults(http_errors={"create": HttpError(400, times=1, skip=1)})
    run = make_run(map(str, range(6)), limits=Limits(requests_per_job=2))
    with pytest.raises(JobRefused):
        finish(run)
    assert sent(emulator) == [("0", "1"), ("4", "5")]
    rows = check(finish(run), 6)
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert sent(emulator)[2:] == [("2", "3")]


def test_each_end_has_an_exception_of_its_own_with_jobs_counts_and_manifest(emulator, make_run, finish):
    emulator.faults = Faults(end_state="EXPIRED")
    run = make_run(max_rounds=2)
    with pytest.raises(JobExpired) as caught:
        finish(run)
    assert set(caught.value.jobs) <= {job.name for job in emulator.jobs}
    assert caught.value.jobs
    assert sum(caught.value.counts.values()) == 3
    assert Path(caught.value.manifest).exists()


# An honest end


def test_a_job_that_succeeded_with_every_row_failed_is_no_success(emulator, make_run, finish, caplog):
    emulator.faults = Faults(fail_keys={"*": RowError(3, "no such thing")})
    caplog.set_level(logging.INFO)
    run = make_run(map(str, range(20)))
    with pytest.raises(TooManyFailedRows, match="Not one of 20 rows is ok") as caught:
        finish(run)
    assert emulator.jobs_created == 1
    rows = check(Manifest.load(run.output), 20)
    assert {(row["status"], row["error_code"]) for row in rows.values()} == {("error", 3)}
    assert caught.value.counts == {"error": 20}
    told = failures(run)
    assert len(told) == 20
    assert told[0]["failure"] == {"status": "error", "error_code": 3, "error_message": "no such thing", "round": 0}
    assert "failed    20 x error code 3: no such thing (e.g. key '0')" in caplog.text
    assert "rows      20: 20 error" in caplog.text
    assert str(run.output.failures) in caplog.text


def test_the_log_names_the_five_most_frequent_reasons(emulator, make_run, finish, caplog):
    caplog.set_level(logging.INFO)
    codes = [3] * 6 + [5] * 5 + [6] * 4 + [7] * 3 + [9] * 2 + [11]
    emulator.faults = Faults(fail_keys={str(n): RowError(code, f"reason {code}") for n, code in enumerate(codes)})
    finish(make_run(map(str, range(30))))
    told = [line.split(" (e.g.")[0] for line in caplog.text.splitlines() if "failed    " in line]
    assert [line.partition("failed    ")[2] for line in told] == [
        f"{n} x error code {code}: reason {code}" for n, code in ((6, 3), (5, 5), (4, 6), (3, 7), (2, 9))
    ]


def test_what_failed_is_a_source_again_with_its_kept_columns(emulator, make_run, finish, tmp_path):
    rows = [{"id": f"k{n}", "t": f"text {n}", "stars": n} for n in range(4)]
    emulator.faults = Faults(fail_keys={"k1": RowError(3), "k3": RowError(3)})
    run = make_run(
        rows, prompt="Say: {t}", key="id", keep=("stars",), template={"systemInstruction": {"parts": [{"text": "x"}]}}
    )
    finish(run)
    assert [(one["key"], one["stars"], one["failure"]["status"]) for one in failures(run)] == [
        ("k1", 1, "error"), ("k3", 3, "error"),
    ]  # fmt: skip
    emulator.faults = Faults()
    again = make_run([], run_id="again", out="again", keep=("stars",), delete_remote="never")
    again = replace(again, source=lambda: FileSource((run.output.failures,)))
    landed = check(finish(again), 2)
    assert {key: (row["status"], row["stars"]) for key, row in landed.items()} == {"k1": ("ok", 1), "k3": ("ok", 3)}
    (file,) = (file for file in emulator.files if "batch-" not in file["name"])
    lines = [json.loads(line) for line in emulator.read_file(file["name"]).splitlines()]
    assert [line["key"] for line in lines] == ["k1", "k3"]
    assert all(line.keys() == {"key", "request"} for line in lines), "the reason is not sent to the service"
    assert lines[0]["request"] == {
        "contents": [{"parts": [{"text": "Say: text 1"}], "role": "user"}], "systemInstruction": {"parts": [{"text": "x"}]},
    }  # fmt: skip


def test_what_failed_is_asked_again_with_the_settings_of_the_task_whose_source_it_is(emulator, make_run, finish):
    old = {"type": "OBJECT", "properties": {"a": {"type": "STRING"}}}
    new = {"type": "OBJECT", "properties": {"b": {"type": "STRING"}}}
    config = {"maxOutputTokens": 4, "temperature": 0.5, "responseSchema": old, "responseMimeType": "application/json"}
    run = make_run(["tell me " * 40], template={"generationConfig": config}, max_failed_ratio=1)
    finish(run)
    assert failures(run)[0]["failure"]["status"] == "truncated"
    template = {"generationConfig": {"maxOutputTokens": 4096, "responseSchema": new}}
    again = make_run([], run_id="again", out="again", template=template, delete_remote="never")
    assert finish(replace(again, source=lambda: FileSource((run.output.failures,)))).counts["ok"] == 1
    (file,) = (file for file in emulator.files if "batch-" not in file["name"])
    sent = json.loads(emulator.read_file(file["name"]))["request"]["generationConfig"]
    assert sent == config | {"maxOutputTokens": 4096, "responseSchema": new}


def test_what_failed_of_several_prompts_is_a_source_again(emulator, make_run, finish):
    emulator.faults = Faults(fail_keys={"short/1": RowError(3)})
    run = make_run([{"t": "a"}, {"t": "b"}])
    run = replace(run, spec=replace(run.spec, prompt={"short": "In short: {t}", "long": "At length: {t}"}))
    finish(run)
    emulator.faults = Faults()
    again = replace(make_run([], run_id="again", out="again"), source=lambda: FileSource((run.output.failures,)))
    assert set(check(finish(again), 1)) == {"short/1"}


def test_a_run_without_failures_has_no_file_of_them(make_run, finish):
    run = make_run()
    assert finish(run).failures is None
    assert not run.output.failures.exists()


# Clearing


def test_clearing_a_failed_run_sends_only_what_is_not_settled_and_the_end_is_honest(emulator, make_run, finish):
    emulator.faults = Faults(fail_keys={"1": RowError(13)})
    run = make_run(max_failed_ratio=0.0)
    with pytest.raises(TooManyFailedRows):
        finish(run)
    assert sent(emulator) == [("0", "1", "2"), ("1",)]
    emulator.faults = Faults()
    rows = check(finish(run), 3)
    assert sent(emulator)[2:] == [("1",)]
    assert rows["1"]["round"] == 2
    assert not failures(run)


LITTLE = {"generationConfig": {"maxOutputTokens": 4}}
MORE = {"truncated": {"generationConfig": {"maxOutputTokens": 4096}}}


@pytest.mark.parametrize("file_format", ["parquet", "jsonl"])
def test_a_row_that_a_redo_answered_stays_one_row_when_it_is_landed_without_that_redo(
    emulator, make_run, finish, file_format
):
    run = make_run(["tell me " * 40, "b"], template=LITTLE, redo=MORE, max_rounds=3, file_format=file_format)
    first = finish(run)
    assert first.counts["ok"] == 2
    jobs = emulator.jobs_created
    again = finish(replace(run, policy=replace(run.policy, redo={})))
    assert (again.counts, again.files) == (first.counts, first.files)
    assert emulator.jobs_created == jobs
    check(finish(replace(run, policy=replace(run.policy, redo={}, file_format="jsonl"))), 2)


@pytest.mark.parametrize("max_rounds", [1, 2, 3])
def test_a_redo_that_is_added_when_a_failed_run_is_cleared_sends_its_rows(emulator, make_run, finish, max_rounds):
    run = make_run(["tell me " * 40, "b"], template=LITTLE, max_failed_ratio=0.0, max_rounds=max_rounds)
    with pytest.raises(TooManyFailedRows):
        finish(run)
    rows = check(finish(replace(run, policy=replace(run.policy, redo=MORE))), 2)
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert emulator.jobs_created == 2


def test_a_redo_that_is_added_sends_its_rows_also_beside_others_that_were_left(emulator, make_run, finish):
    emulator.faults = Faults(fail_keys={"1": RowError(13)})
    run = make_run(["tell me " * 40, "b", "tell me more " * 40], template=LITTLE, max_failed_ratio=0.0)
    with pytest.raises(TooManyFailedRows):
        finish(run)
    emulator.faults = Faults()
    rows = check(finish(replace(run, policy=replace(run.policy, redo=MORE))), 3)
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert sorted(sent(emulator)[2]) == ["0", "1", "2"]


@pytest.mark.parametrize("at", ["remove_other_formats", "media"])
def test_a_death_before_the_manifest_pays_no_further_round(emulator, make_run, finish, monkeypatch, at):
    """The slow last steps come before the manifest, which a retry would take for word that somebody asked for the rest."""
    emulator.faults = Faults(fail_keys={"1": RowError(13)})
    run = make_run(max_failed_ratio=0.0)

    class Killed(BaseException):
        pass

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if at == "media":
            patch.setattr(finishing.media, "remove", killed)
        else:
            patch.setattr(finishing, "_remove_other_formats", killed)
        with pytest.raises(Killed):
            finish(run)
    with pytest.raises(TooManyFailedRows):
        finish(run)
    assert emulator.jobs_created == 2


def test_an_upload_is_removed_although_the_task_died_while_it_landed(emulator, make_run, finish, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "landed", killed)
        with pytest.raises(Killed):
            finish(make_run())
    check(finish(make_run()), 3)
    assert [file["name"] for file in emulator.files if "batch-" not in file["name"]] == []


# Models of rows that were never sent


def models(emulator: Emulator) -> list[str]:
    return [job.model.removeprefix("models/") for job in emulator.jobs]


def test_rows_that_a_failed_canary_held_back_are_asked_of_the_model_that_they_were_meant_for(
    emulator, make_run, finish
):
    emulator.faults = Faults(fail_keys={str(n): RowError(3) for n in range(5)})
    run = falling_back(make_run(map(str, range(20)), canary=5), "gemini-2.5-pro")
    with pytest.raises(CanaryFailed):
        finish(run)
    manifest = finish(run)
    check(manifest, 20)
    assert models(emulator) == [HANGS, HANGS]
    assert [one["model"] for one in manifest.by_round] == [HANGS, HANGS]


def test_rows_that_a_budget_leaves_out_keep_no_failed_row_from_the_fallback(emulator, make_run, finish):
    prices = PriceTable.parse({model: {"input": 1, "output": 1} for model in (HANGS, "gemini-2.5-pro")})
    rows = ["0", "1", "word " * 900 + "2", "word " * 900 + "3"]
    emulator.faults = Faults(fail_keys={"0": RowError(13)})
    run = make_run(
        rows, prices=prices, limits=Limits(requests_per_job=2, active_jobs=1), assumed_output_tokens=1, max_rounds=3,
        budget=Budget(max_cost_usd=0.001, on_exceed="truncate_rows"),
    )  # fmt: skip
    manifest = finish(falling_back(run, "gemini-2.5-pro"))
    check(manifest, 4)
    assert models(emulator) == [HANGS, "gemini-2.5-pro", "gemini-2.5-pro"]
    assert manifest.counts["error"] == 3


def test_rows_that_failed_after_a_late_send_go_to_the_fallback(emulator, make_run, finish):
    emulator.faults = Faults(fail_keys={**{str(n): RowError(3) for n in range(5)}, "7": RowError(13, times=1)})
    run = falling_back(make_run(map(str, range(20)), canary=5), "gemini-2.5-pro")
    with pytest.raises(CanaryFailed):
        finish(run)
    check(finish(run), 20)
    assert models(emulator) == [HANGS, HANGS, "gemini-2.5-pro"]


# Canary


def test_a_canary_goes_first_in_a_job_of_its_own_and_its_answers_are_kept(emulator, make_run, finish):
    run = make_run(map(str, range(50)), canary=5, limits=Limits(requests_per_job=20))
    rows = check(finish(run), 50)
    assert [len(keys) for keys in sent(emulator)] == [5, 20, 20, 5]
    assert {row["job"] for key, row in rows.items() if int(key) < 5} == {emulator.jobs[0].name}


def test_nothing_else_is_sent_while_the_canary_runs(emulator, make_run, patient):
    emulator.faults = Faults(stuck="RUNNING")
    run = make_run(map(str, range(50)), canary=5)
    for _ in range(3):
        assert len(advance(run, patient, starting=True).waits) == 1
    assert emulator.jobs_created == 1


def test_after_a_canary_that_failed_nothing_more_is_paid(emulator, make_run, finish):
    emulator.faults = Faults(fail_keys={str(n): RowError(3) for n in range(3)})
    run = make_run(map(str, range(50)), canary=5, max_rounds=4)
    with pytest.raises(CanaryFailed, match="Of the canary's 5 rows only 2 are ok") as caught:
        finish(run)
    assert emulator.jobs_created == 1
    rows = check(Manifest.load(run.output), 50)
    assert caught.value.counts == {"ok": 2, "error": 48}
    assert (rows["3"]["status"], rows["40"]["job"]) == ("ok", None)
    assert len(failures(run)) == 48
    # Whoever clears it as it is, after a look, gets the rest.
    emulator.faults = Faults()
    check(finish(run), 50)
    assert [len(keys) for keys in sent(emulator)] == [5, 45], "final failures are settled"


@pytest.mark.parametrize(("ratio", "sends"), [(None, True), (0.4, True), (0.3, False)])
def test_the_canary_must_do_as_well_as_the_whole(emulator, make_run, finish, ratio, sends):
    emulator.faults = Faults(fail_keys={"0": RowError(3), "1": RowError(3)})
    run = make_run(map(str, range(20)), canary=5, max_failed_ratio=ratio)
    if sends:
        check(finish(run), 20)
    else:
        with pytest.raises(CanaryFailed):
            finish(run)
    assert emulator.jobs_created == (2 if sends else 1)


def test_a_canary_larger_than_a_job_is_several_jobs_and_all_of_them_count(emulator, make_run, finish):
    emulator.faults = Faults(fail_keys={str(n): RowError(3) for n in range(4, 10)})
    run = make_run(map(str, range(30)), canary=10, limits=Limits(requests_per_job=4))
    with pytest.raises(CanaryFailed, match="Of the canary's 10 rows only 4 are ok"):
        finish(run)
    assert [len(keys) for keys in sent(emulator)] == [4, 4, 2]


def test_rows_that_are_not_sent_do_not_disturb_the_canary(emulator, make_run, finish):
    rows = [{"t": "" if n < 7 else str(n)} for n in range(12)]
    run = make_run(rows, prompt="{t}", canary=2, limits=Limits(requests_per_job=3))
    check(finish(run), 12)
    assert len(sent(emulator)[0]) == 2
    assert sum(len(keys) for keys in sent(emulator)) == 5


def test_a_canary_that_a_budget_cuts_short_is_judged_by_the_rows_that_were_sent(emulator, make_run, finish):
    prices = PriceTable.parse({HANGS: {"input": 1, "output": 1}})
    budget = Budget(max_cost_usd=0.01, on_exceed="truncate_rows")
    run = make_run(map(str, range(60)), canary=25, budget=budget, prices=prices, assumed_output_tokens=1000)
    manifest = finish(run)
    check(manifest, 60)
    assert sent(emulator) == [tuple(map(str, range(9)))]
    assert (manifest.counts["ok"], manifest.failure) == (9, None)


def test_a_canary_that_hangs_is_asked_of_the_next_model_before_the_rest_is(emulator, make_run, finish, patient):
    emulator.faults = Faults(stuck_models={HANGS: "PENDING"})
    run = falling_back(make_run(map(str, range(20)), model=HANGS, canary=5, pending_timeout=HOUR), WORKS)
    rows = check(finish(run, patient, interval=300), 20)
    assert [(job.model.removeprefix("models/"), len(job.keys)) for job in emulator.jobs] == [
        (HANGS, 5), (WORKS, 5), (WORKS, 15),
    ]  # fmt: skip
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert sent(emulator)[0] == sent(emulator)[1]


def test_a_canary_that_hangs_with_every_model_fails_as_stuck(emulator, make_run, finish, patient):
    emulator.faults = Faults(stuck="PENDING")
    run = falling_back(make_run(map(str, range(20)), model=HANGS, canary=5, pending_timeout=HOUR), WORKS)
    with pytest.raises(JobStuck):
        finish(run, patient, interval=300)
    assert [len(keys) for keys in sent(emulator)] == [5, 5]
    check(Manifest.load(run.output), 20)


# Cleaning up


@pytest.mark.parametrize("faults", [Faults(), Faults(fail_keys={"*": RowError(3)}), Faults(end_state="FAILED")],
                         ids=["ok", "rows", "job"])  # fmt: skip
@pytest.mark.parametrize("delete", ["inputs", "all", "never"])
def test_what_was_uploaded_is_removed_also_after_failures(emulator, make_run, finish, faults, delete):
    emulator.faults = faults
    try:
        manifest = finish(make_run(delete_remote=delete))
    except RunFailed:
        manifest = Manifest.load(make_run().output)
    assert manifest is not None
    inputs = [file for file in emulator.files if "batch-" not in file["name"]]
    assert bool(inputs) is (delete == "never")
    assert bool(emulator.jobs) is (delete != "all")


def test_a_job_is_removed_although_the_task_died_when_it_had_landed(emulator, make_run, finish, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(*_: Any) -> None:
        raise Killed

    run = make_run(delete_remote="all")
    with monkeypatch.context() as patch:
        patch.setattr(flow, "delete_job", killed)
        with pytest.raises(Killed):
            finish(run)
    assert len(emulator.jobs) == 1
    check(finish(run), 3)
    assert not emulator.jobs
    assert emulator.jobs_created == 1


def test_a_result_file_that_may_not_be_deleted_is_told_and_all_else_removed(emulator, make_run, finish, caplog):
    caplog.set_level(logging.INFO)
    emulator.faults = Faults(http_errors={"file_delete": HttpError(400, skip=1, times=1)})
    finish(make_run(delete_remote="all"))
    assert "could not be deleted at the service" in caplog.text
    assert not emulator.jobs
    assert not [file for file in emulator.files if "batch-" not in file["name"]]


def test_the_upload_of_a_job_that_was_refused_for_good_is_removed_and_a_clear_makes_it_anew(emulator, make_run, finish):
    emulator.faults = Faults(http_errors={"create": HttpError(400, times=1)})
    with pytest.raises(RequestRefused):
        finish(make_run())
    assert not emulator.files
    check(finish(make_run()), 3)


def test_a_plan_that_is_replaced_leaves_no_upload_behind(emulator, make_run, patient, finish):
    emulator.faults = Faults(stuck="RUNNING")
    advance(make_run(), patient, starting=True)
    emulator.faults = Faults()
    finish(make_run(prompt=None, template={"generationConfig": {"temperature": 1}}, on_changed="resubmit"))
    assert emulator.jobs_created == 2
    assert not [file for file in emulator.files if "batch-" not in file["name"]]


def test_a_result_file_whose_only_line_is_torn_is_believed_when_its_size_is_right(emulator, make_run, finish, client):
    emulator.faults = Faults(no_trailing_newline=True, corrupt_lines={1}, drop_keys={"0", "1"})
    with pytest.raises(TooManyFailedRows):
        finish(make_run(max_rounds=1), Services(client, sleep=lambda _: None))
    manifest = Manifest.load(make_run().output)
    check(manifest, 3)
    assert manifest is not None
    assert manifest.odd_lines["corrupt"] == 1
    assert emulator.calls["download"] == 3


@pytest.mark.parametrize(
    ("setting", "said"),
    [({"redo": {"ok": {}}}, "redo names 'ok'"), ({"canary": -1}, "canary"), ({"split": 0}, "split"),
     ({"pending_timeout": 0}, "pending_timeout"), ({"count_tokens": -1}, "count_tokens")],
)  # fmt: skip
def test_a_setting_that_cannot_be_meant_is_refused(make_run, setting, said):
    with pytest.raises(InvalidConfig, match=said):
        make_run(**setting)
