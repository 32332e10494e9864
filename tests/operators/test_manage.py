"""Get, list, cancel, delete and clean up, against the emulator."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_gemini_batch.core import rest
from airflow_gemini_batch.core.client import Client
from airflow_gemini_batch.core.rest import Account
from airflow_gemini_batch.emulator import Emulator, Faults, HttpError
from airflow_gemini_batch.exceptions import NoSuchJob, ServiceUnreachable
from airflow_gemini_batch.operators.manage import (
    GeminiCancelBatchJobOperator,
    GeminiCleanUpFilesOperator,
    GeminiDeleteBatchJobOperator,
    GeminiGetBatchJobOperator,
    GeminiListBatchJobsOperator,
)

from ..conftest import batch_operator, point_at, run_operator, task_context

INLINE = [{"request": {"contents": [{"parts": [{"text": "x"}]}]}, "metadata": {"key": "a"}}]


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A service whose jobs take an hour."""
    with Emulator(job_seconds=3600) as gemini:
        point_at(gemini.url, monkeypatch)
        yield gemini


def a_job(emulator: Emulator, name: str = "theirs") -> str:
    client = Client(Account("any-key-will-do", emulator.url))
    try:
        return client.create(model="gemini-2.5-flash", file="", display_name=name, inline=INLINE)
    finally:
        client.close()


def do(kind: Any, **settings: Any) -> Any:
    return run_operator(kind(task_id="t", **settings))


def test_a_job_is_told_as_plain_json(emulator: Emulator, connection: str) -> None:
    job = a_job(emulator)
    told = do(GeminiGetBatchJobOperator, job=job)
    assert (told["job"], told["state"], told["ended"], told["requests"], told["kind"]) == (
        job, "SUCCEEDED", True, 1, "generate",
    )  # fmt: skip
    assert told["error"] is None


def test_a_cancel_says_what_became_of_the_job_and_can_be_repeated(slow: Emulator) -> None:
    job = a_job(slow)
    assert do(GeminiCancelBatchJobOperator, job=job)["state"] == "CANCELLED"
    assert do(GeminiCancelBatchJobOperator, job=job)["state"] == "CANCELLED"


def test_a_job_that_has_ended_is_not_cancelled(emulator: Emulator, connection: str) -> None:
    job = a_job(emulator)
    assert do(GeminiCancelBatchJobOperator, job=job)["state"] == "SUCCEEDED"
    assert emulator.calls["cancel"] == 0


def test_a_cancel_that_is_not_taken_is_worth_a_retry(slow: Emulator) -> None:
    job = a_job(slow)
    slow.faults = Faults(http_errors={"cancel": HttpError(503)})
    with pytest.raises(ServiceUnreachable, match="not accepted"):
        do(GeminiCancelBatchJobOperator, job=job)


def test_a_running_job_is_not_deleted(slow: Emulator) -> None:
    job = a_job(slow)
    with pytest.raises(AirflowFailException, match="cancel it first"):
        do(GeminiDeleteBatchJobOperator, job=job)
    do(GeminiCancelBatchJobOperator, job=job)
    assert do(GeminiDeleteBatchJobOperator, job=job)["state"] == "CANCELLED"
    assert do(GeminiDeleteBatchJobOperator, job=job)["state"] == "GONE"


def test_files_go_with_their_job_if_asked_to(batch: Any, emulator: Emulator) -> None:
    manifest = batch(source=["x"], delete_remote="never")
    assert len(emulator.files) == 2
    do(GeminiDeleteBatchJobOperator, job=manifest["jobs"][0]["name"], files=True)
    assert (emulator.files, emulator.jobs) == ([], [])


@pytest.mark.parametrize("kind", [GeminiGetBatchJobOperator, GeminiCancelBatchJobOperator])
def test_a_job_that_is_not_there_is_an_error_unless_it_may_be(emulator: Emulator, connection: str, kind: Any) -> None:
    with pytest.raises(NoSuchJob):
        do(kind, job="batches/nowhere")
    assert do(kind, job=["batches/nowhere"], missing_ok=True) == [{"job": "batches/nowhere", "state": "GONE"}]


def test_the_list_has_all_pages_and_filters(
    emulator: Emulator, connection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rest, "PAGE_SIZE", 2)
    names = [
        a_job(emulator, name) for name in ("theirs", "agb1.0123456789abcdef.r0-00000.0123456789ab x", "c", "d", "e")
    ]
    assert [job["job"] for job in do(GeminiListBatchJobsOperator)] == names[::-1]
    assert emulator.calls["list"] == 3
    assert [job["job"] for job in do(GeminiListBatchJobsOperator, ours_only=True)] == [names[1]]
    assert do(GeminiListBatchJobsOperator, states=["JOB_STATE_FAILED", "running"]) == []
    assert len(do(GeminiListBatchJobsOperator, states="SUCCEEDED", newer_than=60, limit=4)) == 4
    assert do(GeminiListBatchJobsOperator, older_than=timedelta(hours=1)) == []
    with pytest.raises(AirflowFailException, match="states names DONE"):
        do(GeminiListBatchJobsOperator, states=["DONE"])


def test_a_clean_up_only_looks_unless_told_otherwise(batch: Any, emulator: Emulator) -> None:
    batch(source=["x"], delete_remote="never")
    a_job(emulator)
    before = (len(emulator.files), len(emulator.jobs))
    would = do(GeminiCleanUpFilesOperator, older_than=0)
    assert (would["dry_run"], would["files"], would["jobs"]) == (True, 1, 1)
    assert would["bytes"] > 0
    assert (len(emulator.files), len(emulator.jobs)) == before
    done = do(GeminiCleanUpFilesOperator, older_than=0, dry_run="False")
    assert done == would | {"dry_run": False}
    assert [job.display_name for job in emulator.jobs] == ["theirs"]
    assert not [file for file in emulator.files if file["name"].startswith("files/agb1-")]
    assert do(GeminiCleanUpFilesOperator, older_than=0)["files"] == 0


def test_what_is_young_or_needed_is_kept(slow: Emulator, tmp_path: Path) -> None:
    from airflow.providers.common.compat.sdk import TaskDeferred

    operator = batch_operator(tmp_path, source=str(tmp_path / "in.jsonl"))
    (tmp_path / "in.jsonl").write_text('"x"\n')
    with pytest.raises(TaskDeferred):
        operator.execute(task_context())
    kept = do(GeminiCleanUpFilesOperator, older_than=0, dry_run=False)
    assert (kept["files"], kept["jobs"], kept["kept"]) == (0, 0, 1)
    assert len(slow.files) == 1
    slow.set_state(slow.jobs[0].name, "SUCCEEDED")
    assert do(GeminiCleanUpFilesOperator, older_than=3600, dry_run=False)["files"] == 0
    assert do(GeminiCleanUpFilesOperator, older_than=0, jobs=False, dry_run=False)["jobs"] == 0
    assert not [file for file in slow.files if file["name"].startswith("files/agb1-")]
    assert len(slow.jobs) == 1


def test_uploads_that_belong_to_no_run_are_kept_while_any_job_runs(slow: Emulator, tmp_path: Path) -> None:
    from airflow_gemini_batch.operators.steps import GeminiUploadFileOperator

    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "b.png").write_bytes(b"y")
    do(GeminiUploadFileOperator, source=str(tmp_path / "a.png"))
    do(GeminiUploadFileOperator, source=str(tmp_path / "b.png"), display_name="a picture")
    job = a_job(slow)
    assert do(GeminiCleanUpFilesOperator, older_than=0)["kept"] == 2
    slow.set_state(job, "SUCCEEDED")
    assert do(GeminiCleanUpFilesOperator, older_than=0, dry_run=False)["files"] == 2
    assert [one.name for one in slow.jobs] == [job]


@pytest.mark.parametrize("age", [-1, "yesterday", None])
def test_an_age_that_is_none_is_told(emulator: Emulator, connection: str, age: Any) -> None:
    with pytest.raises(AirflowFailException, match="older_than"):
        do(GeminiCleanUpFilesOperator, older_than=age)
