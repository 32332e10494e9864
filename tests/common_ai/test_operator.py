"""``LLMBatchOperator`` with a Gemini model: what it lands, and what it pays when something dies."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred
from pydantic import BaseModel, Field

from airflow_gemini_batch.emulator import Emulator, Faults, HttpError
from airflow_gemini_batch.exceptions import ServiceUnreachable

from .conftest import connect, context, requests_of, rows_of

REVIEWS = [f"Review number {n}" for n in range(7)]


class Finding(BaseModel):
    name: str
    weight: float


class Verdict(BaseModel):
    mood: Literal["good", "bad", "mixed"]
    stars: int = Field(ge=0, le=5)
    findings: list[Finding]


def key16() -> str:
    from airflow.providers.common.ai.batch import state

    return state.key16(state.compute_identity_key(dag_id="a_dag", task_id="a_task", run_id="run-1", map_index=-1))


@pytest.mark.parametrize("deferrable", [True, False], ids=["deferred", "waiting"])
@pytest.mark.parametrize("model_id", ["google-gla:gemini-2.5-flash", "google:gemini-2.5-flash-lite", None])
def test_every_prompt_lands_once_under_its_index(run, emulator, model_id, deferrable):
    manifest = run(requests=REVIEWS, model_id=model_id, deferrable=deferrable)
    assert manifest["counts"]["succeeded"] == manifest["request_count"] == 7
    assert manifest["terminal_reason"] == "succeeded"
    assert manifest["adapter"] == (model_id or "google-gla:").partition(":")[0]
    rows = rows_of(manifest)
    assert [(row["index"], row["custom_id"], row["status"]) for row in rows] == [
        (n, f"{key16()}-{n}", "success") for n in range(7)
    ]
    assert all(REVIEWS[row["index"]] in row["output"] for row in rows)
    for row in rows:
        assert row["model"] == (model_id or "x:gemini-2.5-flash").partition(":")[2]
        assert row["finish_reason"] == "STOP"
        assert row["usage"]["output_tokens"] >= row["usage"]["thoughts_tokens"]
        assert row["usage"]["input_tokens"] > 0
    assert emulator.jobs_created == 1
    assert emulator.calls["create"] == 1


def test_a_connection_of_either_type_will_do(run, emulator, monkeypatch, conn_type):
    connect(emulator, monkeypatch, conn_type=conn_type, extra={})
    assert run(requests=["a"], model_id="google:gemini-2.5-flash")["counts"]["succeeded"] == 1


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"password": None}, "no password; put the Gemini API key there"),
        ({"password": '{"type": "service_account"}'}, "takes an API key"),
        ({"host": "https://europe-west1-aiplatform.googleapis.com"}, "Only the Gemini Developer API"),
        ({"conn_type": "pydanticai_vertex"}, "does not support connection type 'pydanticai_vertex'"),
    ],
)
def test_a_connection_that_cannot_be_used_says_what_to_change(run, emulator, monkeypatch, parts, said):
    connect(emulator, monkeypatch, **parts)
    with pytest.raises(Exception, match=said):
        run(requests=["a"], model_id="google:gemini-2.5-flash")
    assert emulator.jobs_created == 0


# Settings ----------------------------------------------------------------------------------------------------


def test_settings_of_the_batch_and_of_a_request_are_geminis_config(run, emulator):
    run(
        requests=[
            "plain",
            {"prompt": "own", "system_prompt": "In French.", "max_tokens": 50, "params": {"topP": 0.5, "temperature": 1}},
        ],
        system_prompt="Be kind.", max_tokens=300,
        request_params={
            "temperature": 0.2, "thinking_config": {"thinking_budget": 0}, "model": "other", "max_output_tokens": 9,
            "safety_settings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "OFF"}],
        },
    )  # fmt: skip
    plain, own = requests_of(emulator)
    safety = [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "OFF"}]
    assert plain == {
        "contents": [{"parts": [{"text": "plain"}], "role": "user"}],
        "systemInstruction": {"parts": [{"text": "Be kind."}]},
        "safetySettings": safety,
        "generationConfig": {"temperature": 0.2, "thinkingConfig": {"thinkingBudget": 0}, "maxOutputTokens": 300},
    }
    assert own["systemInstruction"] == {"parts": [{"text": "In French."}]}
    assert own["generationConfig"] == {
        "temperature": 1, "topP": 0.5, "thinkingConfig": {"thinkingBudget": 0}, "maxOutputTokens": 50,
    }  # fmt: skip


def test_params_may_be_written_as_rest_has_them(run, emulator):
    run(requests=["a"], request_params={"generationConfig": {"topK": 3}, "labels": {"team": "x"}})
    (sent,) = requests_of(emulator)
    assert sent["labels"] == {"team": "x"}
    assert sent["generationConfig"] == {"topK": 3, "maxOutputTokens": 1024}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"requests": ["a"], "request_params": {"nope": 1}}, "request_params: config is not a.*nope"),
        ({"requests": ["a", {"prompt": "b", "params": {"nope": 1}}]}, "requests:1: params: .*nope"),
        ({"requests": ["a", {"prompt": "b", "params": {"temperature": 5}}]}, "requests:1: config.temperature is 5"),
        ({"requests": ["a", " "]}, "requests:1: the prompt is empty"),
        ({"requests": ["a"], "output_type": dict[str, int]}, r"output_type=dict\[str, int\].*additionalProperties"),
        ({"requests": ["a" * 20_000_001]}, "requests:0: .*20,000,000"),
    ],
)
def test_what_cannot_be_sent_is_named_before_anything_is(run, emulator, settings, said):
    from airflow.providers.common.ai.exceptions import LLMBatchInputError

    from airflow_gemini_batch.exceptions import InvalidInput

    with pytest.raises(LLMBatchInputError, match=said) as caught:
        run(**settings)
    assert isinstance(caught.value, InvalidInput)
    assert emulator.calls.total() == 0


def test_more_than_a_job_takes_is_refused_with_the_way_out(run, emulator, monkeypatch):
    from airflow_gemini_batch.common_ai.adapter import GoogleBatchAdapter

    monkeypatch.setattr(GoogleBatchAdapter, "max_requests", 3)
    with pytest.raises(ValueError, match=r"at most 3 requests; got 7\. .*\.expand\(\)"):
        run(requests=REVIEWS)
    monkeypatch.setattr(GoogleBatchAdapter, "max_requests", 10)
    monkeypatch.setattr(GoogleBatchAdapter, "max_payload_bytes", 500)
    with pytest.raises(ValueError, match=r"at most 500 bytes; this input has \d+ at request \d of 7.*\.expand\(\)"):
        run(requests=REVIEWS)
    assert emulator.calls.total() == 0


def test_one_model_for_all_requests_may_be_said_by_each_of_them(run, emulator):
    requests = [{"prompt": one, "model": "google-gla:gemini-2.5-pro"} for one in REVIEWS]
    assert run(requests=requests)["counts"]["succeeded"] == 7
    assert [job.model for job in emulator.jobs] == ["gemini-2.5-pro"]


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (
            "google-gla:gemini-2.5-pro",
            r"asks for 2: gemini-2.5-flash \(first at request 0\), gemini-2.5-pro \(first at req",
        ),
        ("openai:gpt-5", "does not resolve to the 'google-gla' adapter"),
    ],
)
def test_another_model_for_some_requests_is_refused_before_anything_is_sent(run, emulator, model, said):
    from airflow.providers.common.ai.exceptions import LLMBatchModelMismatchError

    with pytest.raises(LLMBatchModelMismatchError, match=said):
        run(requests=["a", {"prompt": "b", "model": model}])
    assert emulator.calls.total() == 0


# Structured output -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output_type", [Verdict, list[Verdict], list[str], int, Verdict | Finding], ids=str)
def test_answers_are_of_the_output_type(run, output_type):
    from pydantic import TypeAdapter

    manifest = run(requests=REVIEWS, output_type=output_type)
    assert manifest["counts"]["succeeded"] == 7
    assert manifest["structured"] is True
    for row in rows_of(manifest):
        TypeAdapter(output_type).validate_python(row["output"])


def test_the_schema_is_asked_for_as_response_schema_and_cannot_be_overridden(run, emulator):
    run(requests=["a"], output_type=Verdict, request_params={"response_mime_type": "text/plain"})
    config = requests_of(emulator)[0]["generationConfig"]
    assert config["responseMimeType"] == "application/json"
    assert config["responseSchema"]["properties"]["findings"]["items"]["properties"]["weight"] == {
        "type": "NUMBER", "title": "Weight",
    }  # fmt: skip
    assert "responseJsonSchema" not in config


def test_an_answer_that_does_not_fit_keeps_its_text(run, emulator):
    emulator.faults = Faults(bad_json_keys={f"{key16()}-2"})
    manifest = run(requests=REVIEWS, output_type=Verdict)
    assert (manifest["counts"]["succeeded"], manifest["counts"]["invalid_output"]) == (6, 1)
    row = rows_of(manifest)[2]
    assert row["status"] == "invalid_output"
    assert row["raw_output"].startswith("{")
    assert row["error"]["stage"] == "output_validation"


# Rows that fail ----------------------------------------------------------------------------------------------


def test_every_row_that_failed_says_why(run, emulator):
    key = key16()
    emulator.faults = Faults(
        fail_keys={f"{key}-0": {"code": 8, "message": "Busy."}}, drop_keys={f"{key}-1"}, blocked_keys={f"{key}-2"},
        blocked_answer_keys={f"{key}-3"}, truncate_keys={f"{key}-4"}, thought_only_keys={f"{key}-5"},
        extra_keys=["foreign", f"{key}-99"], corrupt_lines=[], blank_lines=True,
    )  # fmt: skip
    manifest = run(requests=REVIEWS)
    assert manifest["counts"] == {
        "succeeded": 2, "errored": 3, "invalid_output": 1, "expired": 0, "cancelled": 0, "missing": 1,
    }  # fmt: skip
    assert manifest["out_of_range_result_count"] == 1
    rows = rows_of(manifest)
    assert rows[0]["error"] == {
        "type": "provider_error", "message": "Busy.", "provider_code": "8", "stage": "provider",
    }  # fmt: skip
    assert rows[1]["status"] == "missing"
    assert (rows[2]["error"]["type"], rows[2]["error"]["message"][:22]) == ("blocked", "the prompt was blocked")
    assert rows[2]["usage"]["input_tokens"] > 0
    assert (rows[3]["error"]["type"], rows[3]["finish_reason"]) == ("blocked", "SAFETY")
    assert (rows[4]["status"], rows[4]["finish_reason"]) == ("success", "MAX_TOKENS")
    assert (rows[5]["status"], rows[5]["finish_reason"]) == ("invalid_output", "MAX_TOKENS")
    assert rows[6]["status"] == "success"


def test_a_line_that_cannot_be_read_costs_its_own_row_alone(run, emulator):
    emulator.faults = Faults(corrupt_lines=[3])
    manifest = run(requests=REVIEWS)
    assert (manifest["counts"]["succeeded"], manifest["counts"]["missing"]) == (6, 1)


def test_shuffled_results_find_their_requests(run, emulator):
    emulator.faults = Faults(shuffle_rows=True)
    assert all(REVIEWS[row["index"]] in row["output"] for row in rows_of(run(requests=REVIEWS)))


def test_partial_failure_fails_the_task_if_asked_and_the_retry_pays_nothing(run, emulator):
    emulator.faults = Faults(fail_keys={f"{key16()}-0": {"code": 3, "message": "Bad."}})
    for _ in range(2):
        with pytest.raises(Exception, match="errored=1"):
            run(requests=REVIEWS, fail_on_partial_error=True)
    assert emulator.jobs_created == 1


# Jobs that end otherwise -------------------------------------------------------------------------------------


def test_a_failed_job_fails_with_the_services_reason_and_a_retry_submits_anew(run, emulator):
    emulator.faults = Faults(end_state="FAILED", end_error={"code": 9, "message": "Model is gone."})
    with pytest.raises(Exception, match=r"ended as FAILED: Model is gone\."):
        run(requests=REVIEWS)
    emulator.faults = Faults()
    assert run(requests=REVIEWS)["counts"]["succeeded"] == 7
    assert emulator.jobs_created == 2


def test_an_expired_job_lands_every_row_as_expired(run, emulator):
    emulator.faults = Faults(end_state="EXPIRED")
    manifest = run(requests=REVIEWS)
    assert manifest["counts"]["expired"] == 7
    assert manifest["terminal_reason"] == "expired"


def test_a_job_cancelled_by_somebody_lands_what_is_done_and_a_retry_submits_anew(run, emulator):
    emulator.faults = Faults(end_state="CANCELLED", end_results=0.5)
    with pytest.raises(Exception, match=r"was cancelled before [34] of 7 requests completed"):
        run(requests=REVIEWS)
    emulator.faults = Faults()
    assert run(requests=REVIEWS)["counts"]["succeeded"] == 7
    assert emulator.jobs_created == 2


def test_a_partly_succeeded_job_is_over(run, emulator):
    emulator.faults = Faults(end_state="PARTIALLY_SUCCEEDED")
    assert run(requests=REVIEWS)["request_count"] == 7


@pytest.mark.parametrize("deferred", [True, False])
def test_a_killed_task_cancels_its_job(make, emulator, deferred):
    emulator.faults = Faults(stuck="RUNNING")
    operator = make(requests=REVIEWS)
    with pytest.raises(TaskDeferred) as left:
        operator.execute(context())
    asyncio.run(left.value.trigger.on_kill()) if deferred else operator.on_kill()
    assert [job.state for job in emulator.jobs] == ["CANCELLED"]


def test_a_cancel_that_is_not_taken_is_told(make, emulator):
    emulator.faults = Faults(stuck="RUNNING", http_errors={"cancel": HttpError(503)})
    adapter = adapter_of(make(requests=REVIEWS), emulator)
    with closing(adapter), pytest.raises(ServiceUnreachable, match="the cancel was not accepted"):
        adapter.cancel_batch(emulator.jobs[0].name)


def adapter_of(operator: Any, emulator: Emulator) -> Any:
    """An adapter, and a job that runs."""
    with pytest.raises(TaskDeferred):
        operator.execute(context())
    return operator._build_adapter()[1]


# Paid once ---------------------------------------------------------------------------------------------------


def test_a_cleared_task_lands_again_and_pays_nothing(run, emulator):
    first, second = run(requests=REVIEWS), run(requests=REVIEWS)
    assert first["batch_id"] == second["batch_id"]
    assert emulator.jobs_created == 1


def test_changed_prompts_cancel_the_job_and_submit_anew(run, emulator):
    run(requests=REVIEWS)
    assert run(requests=REVIEWS[:3])["request_count"] == 3
    assert emulator.jobs_created == 2


def test_a_deleted_job_is_submitted_anew(run, emulator):
    from google import genai

    name = run(requests=REVIEWS)["batch_id"]
    client = genai.Client(api_key="k", http_options={"base_url": emulator.url})
    client.batches.delete(name=name)
    assert run(requests=REVIEWS)["batch_id"] != name
    assert emulator.jobs_created == 2


def test_a_lost_reply_to_the_create_is_resolved_at_once(run, emulator):
    emulator.faults = Faults(drop_after={"create": 1})
    assert run(requests=REVIEWS)["counts"]["succeeded"] == 7
    assert emulator.calls["create"] == emulator.jobs_created == 1


KILLED = """
import os, sys
from tests.common_ai import conftest, test_operator
from airflow.providers.common.ai.batch import state
from airflow.providers.common.ai.operators.llm_batch import LLMBatchOperator
state.write_submitted = lambda *args, **kwargs: os._exit(9)
conftest.drive(LLMBatchOperator(
    task_id="a_task", requests=test_operator.REVIEWS, result_path=sys.argv[1], llm_conn_id="llm", deferrable=True))
"""


def test_killed_after_the_create_the_retry_finds_the_job_among_many_pages_and_pays_once(run, emulator, tmp_path):
    from google import genai

    done = subprocess.run(
        [sys.executable, "-c", KILLED, f"file://{tmp_path}/out"], check=False, capture_output=True, text=True,
        cwd=Path(__file__).parents[2], env=os.environ,
    )  # fmt: skip
    assert done.returncode == 9, done.stderr
    assert emulator.jobs_created == 1
    client = genai.Client(api_key="k", http_options={"base_url": emulator.url})
    inline = [{"contents": "x"}]
    for n in range(130):
        other = client.batches.create(model="gemini-2.5-flash", src=inline, config={"display_name": f"other {n}"})
        client.batches.get(name=str(other.name))  # it ends at its first look, and makes room
    assert run(requests=REVIEWS)["counts"]["succeeded"] == 7
    assert emulator.jobs_created == 1 + 130


def test_while_the_list_cannot_be_read_nothing_is_submitted(run, emulator, tmp_path):
    emulator.faults = Faults(http_errors={"create": HttpError(400, message="Not now."), "list": HttpError(503, skip=1)})
    with pytest.raises(Exception, match="Not now"):
        run(requests=REVIEWS)
    with pytest.raises(Exception, match="lookup for an orphaned batch failed"):
        run(requests=REVIEWS)
    emulator.faults = Faults()
    assert run(requests=REVIEWS)["counts"]["succeeded"] == 7
    assert emulator.jobs_created == 1
