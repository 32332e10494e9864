"""What each setting takes: told when the DAG file is read, and in words, whatever is given instead."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import DAG, ObjectStoragePath, task

from airflow_gemini_batch.core.checks import BEHAVIOUR, INCLUDED
from airflow_gemini_batch.core.landing import FORMATS
from airflow_gemini_batch.core.reading import EXTRAS
from airflow_gemini_batch.exceptions import InvalidConfig
from airflow_gemini_batch.operators.batch import GeminiBatchOperator
from airflow_gemini_batch.operators.embeddings import GeminiBatchEmbeddingsOperator
from airflow_gemini_batch.operators.manage import (
    GeminiCleanUpFilesOperator,
    GeminiDeleteBatchJobOperator,
    GeminiGetBatchJobOperator,
    GeminiListBatchJobsOperator,
)
from airflow_gemini_batch.operators.steps import GeminiCreateBatchJobOperator, GeminiUploadFileOperator
from airflow_gemini_batch.sensors.batch import GeminiBatchJobSensor

from ..conftest import batch_operator, landed, run_operator

ASK: dict[str, Any] = {"task_id": "t", "model": "m", "source": ["x"], "output": "out"}
CREATE: dict[str, Any] = {"task_id": "t", "model": "m", "requests": "requests.jsonl"}
WEBHOOK: dict[str, Any] = {"uris": ["https://x"]}


# fmt: off
WRONG: list[tuple[str, Any]] = [
    ("on_empty", "skipp"), ("on_changed", "ask"), ("on_timeout", "wait"), ("reuse", "always"), ("delete_remote", "some"),
    ("file_format", "xlsx"), ("include", ["thought"]), ("include", "thoughts"), ("include", 5), ("redo", ["lost"]),
    ("redo", "truncated"), ("redo", {"truncated": 5}), ("keep", "stars"), ("keep", 5), ("media", 5),
    ("keep", {"a": int}), ("keep", iter(["a"])), ("include", iter(["code"])),
    ("model", ""), ("model", None), ("model", []), ("model", 5), ("model", ["m", ""]),
    ("prompt", 5), ("prompt", ["a", "b"]), ("prompt", {}), ("prompt", "Sum {}"), ("prompt", {"a": "{"}), ("prompt", ""),
    ("prompt", " \n"), ("prompt", {"a": " "}),
    ("source", None), ("source", {"id": 1}), ("source", 5), ("source", ""), ("output", ""), ("output", None), ("output", 5),
    ("poll_interval", 0), ("poll_interval", "60"), ("poll_interval", timedelta(0)), ("max_rounds", 0), ("max_rounds", "3"),
    ("max_failed_ratio", 50), ("max_failed_ratio", "0.5"), ("canary", -1), ("canary", True), ("split", 0),
    ("count_tokens", 0.5),
    ("timeout", 0), ("timeout", "48h"), ("timeout", None), ("timeout", float("nan")), ("pending_timeout", -1),
    ("quota_timeout", -1), ("assumed_output_tokens", "5"), ("prices", 5), ("budget", 5), ("limits", {"requests_per_job": 3}),
    ("table", "x"), ("config", 5), ("config", "x"), ("system_instruction", 5),
    ("deferrable", "yes"), ("include_raw", "no"), ("cancel_on_kill", "False"),
    ("key", ["id", "text"]), ("output_schema", 5), ("output_schema", {"type": "strin"}), ("gemini_conn_id", None),
]
# fmt: on


@pytest.mark.parametrize(
    ("name", "value"), WRONG, ids=[f"{name}={value!r}".partition(" at 0x")[0] for name, value in WRONG]
)
def test_a_setting_that_cannot_be_meant_is_refused_when_the_dag_file_is_read(name: str, value: Any) -> None:
    with pytest.raises(InvalidConfig) as caught:
        GeminiBatchOperator(**(ASK | {name: value}))
    assert name in str(caught.value)
    assert isinstance(
        caught.value, AirflowFailException
    )  # a mapped task is made on the worker, and is not to be retried


@pytest.mark.parametrize(("kind", "settings", "said"), [
    (GeminiCreateBatchJobOperator, CREATE | {"priority": "high"}, "priority is 'high'"),
    (GeminiCreateBatchJobOperator, CREATE | {"webhook_config": {"uris": ["http://x"]}}, "webhook_config.uris"),
    (GeminiCreateBatchJobOperator, CREATE | {"webhook_config": ["https://x"]}, "webhook_config is"),
    (GeminiCreateBatchJobOperator, CREATE | {"requests": ["x"]}, "ledger is empty"),
    (GeminiCreateBatchJobOperator, CREATE | {"requests": "files/x"}, "ledger is empty"),
    (GeminiCreateBatchJobOperator, CREATE | {"requests": None}, "requests is None"),
    (GeminiCreateBatchJobOperator, CREATE | {"requests": {"key": 1}}, "requests is one mapping"),
    (GeminiCreateBatchJobOperator, CREATE | {"requests": "file/abc"}, "Did you mean 'files/abc'"),
    (GeminiCreateBatchJobOperator, CREATE | {"model": ["a", "b"]}, "model is .* it takes one model"),
    (GeminiCreateBatchJobOperator, CREATE | {"requests": "https://x/v1beta/files/abc"}, "Did you mean 'files/abc'"),
    (GeminiCreateBatchJobOperator, CREATE | {"priority": 1.5}, "priority is 1.5"),
    (GeminiCreateBatchJobOperator, CREATE | {"priority": True}, "priority is True"),
    (GeminiCreateBatchJobOperator, CREATE | {"wait": "no"}, "wait is 'no'"),
    (GeminiCreateBatchJobOperator, CREATE | {"webhook_config": WEBHOOK | {"user_metadata": "x"}}, "user_metadata is 'x'"),
    (GeminiBatchEmbeddingsOperator, ASK | {"dimensions": [5]}, "dimensions is"),
    (GeminiBatchEmbeddingsOperator, ASK | {"dimensions": 0}, "dimensions is 0"),
    (GeminiBatchEmbeddingsOperator, ASK | {"dimensions": "many"}, "dimensions is 'many'"),
    (GeminiBatchEmbeddingsOperator, ASK | {"task_type": "SEARCH"}, "task_type is 'SEARCH'; it takes SEMANTIC_SIMILARITY"),
    (GeminiBatchEmbeddingsOperator, ASK | {"title_column": "title"}, "title_column goes with"),
    (GeminiBatchEmbeddingsOperator, ASK | {"text": "a {"}, "^text has a lone"),
    (GeminiBatchEmbeddingsOperator, ASK | {"text": {}}, "^text is an empty mapping"),
    (GeminiBatchEmbeddingsOperator, ASK | {"text": {"a": 5}}, "^text 'a' is 5"),
    (GeminiUploadFileOperator, {"task_id": "t", "source": None}, "source is None"),
    (GeminiUploadFileOperator, {"task_id": "t", "source": "x", "fresh_for": "12h"}, "fresh_for is '12h'"),
    (GeminiListBatchJobsOperator, {"task_id": "t", "limit": "5"}, "limit is '5'"),
    (GeminiListBatchJobsOperator, {"task_id": "t", "states": ["RUNING"]}, "states names RUNING; it takes"),
    (GeminiListBatchJobsOperator, {"task_id": "t", "states": 5}, "states is 5"),
    (GeminiListBatchJobsOperator, {"task_id": "t", "newer_than": "soon"}, "newer_than is 'soon'"),
    (GeminiCleanUpFilesOperator, {"task_id": "t", "older_than": None}, "older_than is None"),
    (GeminiCleanUpFilesOperator, {"task_id": "t", "older_than": -1}, "older_than is -1"),
    (GeminiCleanUpFilesOperator, {"task_id": "t", "older_than": 1, "dry_run": "maybe"}, "dry_run is 'maybe'"),
    (GeminiCleanUpFilesOperator, {"task_id": "t", "older_than": 1, "jobs": "no"}, "jobs is 'no'"),
    (GeminiDeleteBatchJobOperator, {"task_id": "t", "job": "batches/x", "files": "no"}, "files is 'no'"),
    (GeminiGetBatchJobOperator, {"task_id": "t", "job": "batches/x", "missing_ok": 1}, "missing_ok is 1"),
    (GeminiListBatchJobsOperator, {"task_id": "t", "gemini_conn_id": None}, "gemini_conn_id is None"),
    (GeminiBatchJobSensor, {"task_id": "t", "job": "batches/x", "any_end": "no"}, "any_end is 'no'"),
    (GeminiBatchJobSensor, {"task_id": "t", "job": "batches/x", "gemini_conn_id": 5}, "gemini_conn_id is 5"),
])  # fmt: skip
def test_the_other_operators_refuse_theirs_too(kind: Any, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidConfig, match=said):
        kind(**settings)


def test_what_only_the_run_can_tell_is_left_to_it() -> None:
    with DAG("open", schedule=None):

        @task
        def up() -> str:
            return "x"

        GeminiBatchOperator(
            **ASK | {
                "model": "{{ params.model }}", "source": up(), "output": "{{ ds }}", "prompt": {"a": "{% if x %}{{ x }}"},
                "config": {"temperature": up()}, "keep": up(), "reuse": "{{ params.reuse }}", "on_changed": up(),
                "table": up(),
                "key": "{{ key }}", "media": up(), "system_instruction": up(), "gemini_conn_id": up(),
            }
        )  # fmt: skip
        GeminiCreateBatchJobOperator(task_id="c", model=up(), requests=up(), priority="{{ p }}", webhook_config=up())
        GeminiBatchEmbeddingsOperator(
            **ASK | {"task_id": "e"}, text=up(), task_type="{{ t }}", title_column=up(), dimensions="{{ d }}"
        )
        GeminiCleanUpFilesOperator(task_id="f", older_than="{{ age }}", dry_run="{{ look }}")
        GeminiListBatchJobsOperator(task_id="l", states="{{ states }}", older_than=up())


@pytest.mark.parametrize("settings", [
    {"prompt": "{{ 'a' }} {"}, {"prompt": "{{ '' }}"}, {"reuse": "{{ 'x' }}"}, {"keep": "{{ x }}"}, {"model": "{{ '' }}"},
])  # fmt: skip
def test_a_template_that_renders_to_what_cannot_be_meant_is_a_final_error_when_run(
    connection: str, emulator: Any, tmp_path: Path, settings: dict[str, Any]
) -> None:
    operator = batch_operator(tmp_path, source=["x"], **settings)
    operator.render_template_fields({"task": operator})
    with pytest.raises(AirflowFailException, match=next(iter(settings))):
        run_operator(operator)
    assert emulator.jobs_created == 0


def test_times_may_be_timedeltas_and_places_paths(connection: str, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("id,t\n1,x\n")
    operator = batch_operator(
        tmp_path, source=tmp_path / "in.csv", output=tmp_path / "there", prompt="{t}", key="id",
        timeout=timedelta(hours=2), pending_timeout=timedelta(hours=1), quota_timeout=timedelta(0),
        poll_interval=timedelta(milliseconds=50),
    )  # fmt: skip
    operator.render_template_fields({"task": operator})
    manifest = run_operator(operator)
    assert manifest["manifest"].startswith(str(tmp_path / "there"))
    assert [row["key"] for row in landed(manifest)] == ["1"]
    assert (operator.timeout, operator.poll_interval) == (7200, 0.05)
    upload = GeminiUploadFileOperator(task_id="t", source=ObjectStoragePath("file:///x"), fresh_for=timedelta(hours=1))
    assert (upload.source, upload.fresh_for) == ("file:///x", 3600)


def test_the_words_that_are_checked_early_are_those_that_the_core_knows() -> None:
    assert tuple(EXTRAS) == INCLUDED
    for name in FORMATS:
        BEHAVIOUR["file_format"]("file_format", name)
