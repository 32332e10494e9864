"""The steps apart, as a user joins them, against the emulator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException

from airflow_gemini_batch.core.shards import Limits
from airflow_gemini_batch.emulator import Emulator, Faults, RowError
from airflow_gemini_batch.exceptions import (
    DuplicateKey,
    InvalidConfig,
    JobFailed,
    JobNotSucceeded,
    JobStillRunning,
    SettingsChanged,
    SourceUnreadable,
)
from airflow_gemini_batch.operators.steps import (
    GeminiCreateBatchJobOperator,
    GeminiCreateEmbeddingsBatchJobOperator,
    GeminiLandResultsOperator,
    GeminiPrepareRequestsOperator,
    GeminiUploadFileOperator,
)
from airflow_gemini_batch.sensors.batch import GeminiBatchJobSensor

from ..conftest import landed, point_at, run_operator, task_context

MODEL = "gemini-2.5-flash"
REVIEWS = [{"id": f"r{n}", "text": f"Review {n}", "stars": n, "note": None} for n in range(5)]


LINE = {"key": "a", "request": {"contents": [{"parts": [{"text": "x"}]}]}}


class Ti:
    """A task instance that keeps what is pushed."""

    def __init__(self, **ids: Any) -> None:
        self.__dict__.update(task_context(**ids)["ti"].__dict__)
        self.pushed: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value


@pytest.fixture
def steps(connection: str, tmp_path: Path) -> Any:
    return Steps(tmp_path)


class Steps:
    def __init__(self, home: Path) -> None:
        self.home = home

    def prepare(self, **settings: Any) -> dict[str, Any]:
        defaults: dict[str, Any] = {
            "model": MODEL, "source": REVIEWS, "prompt": "Echo {text}", "key": "id", "keep": ["stars", "note"],
            "output": str(self.home / "requests"),
        }  # fmt: skip
        operator = GeminiPrepareRequestsOperator(task_id="prepare", **(defaults | settings))
        ti = Ti(task_id="prepare")
        requests = run_operator(operator, {"ti": ti})
        return {"requests": requests, "rows": ti.pushed["rows"], **ti.pushed["summary"]}

    def create(
        self, requests: Any, context: Any | None = None, kind: Any = GeminiCreateBatchJobOperator, **more: Any
    ) -> str:
        defaults: dict[str, Any] = {"model": MODEL, "deferrable": True, "poll_interval": 0.05}
        operator = kind(task_id="create", requests=requests, **(defaults | more))
        operator.requests = requests  # what rendering makes of the literal
        return run_operator(operator, context or task_context(task_id="create"))

    def land(self, job: Any, context: Any | None = None, **more: Any) -> dict[str, Any]:
        defaults: dict[str, Any] = {"output": str(self.home / "out"), "deferrable": True, "poll_interval": 0.05}
        operator = GeminiLandResultsOperator(task_id="land", job=job, **(defaults | more))
        return run_operator(operator, context or task_context(task_id="land"))


def test_prepare_create_and_land_give_the_same_table_as_the_one_operator(
    steps: Any, batch: Any, emulator: Emulator
) -> None:
    prepared = steps.prepare()
    (requests,), (rows,) = prepared["requests"], prepared["rows"]
    assert (prepared["count"], prepared["unsent"], prepared["model"]) == (5, 0, MODEL)
    manifest = steps.land(steps.create(requests), rows=rows)
    other = batch(
        source=REVIEWS, prompt="Echo {text}", key="id", keep=["stars", "note"], output=str(steps.home / "other")
    )
    own = {"job": None, "response_id": None}
    assert [row | own for row in landed(manifest)] == [row | own for row in landed(other)]
    assert manifest["counts"] == other["counts"]
    assert (manifest["usage"], manifest["cost"]["actual_usd"]) == (other["usage"], other["cost"]["actual_usd"])
    assert emulator.jobs_created == 2


def test_several_files_become_several_jobs_and_one_table(steps: Any, emulator: Emulator) -> None:
    prepared = steps.prepare(limits=Limits(requests_per_job=2))
    jobs = [
        steps.create(requests, task_context(task_id="create", map_index=n))
        for n, requests in enumerate(prepared["requests"])
    ]
    assert len(set(jobs)) == 3
    manifest = steps.land(jobs, rows=prepared["rows"])
    assert [row["key"] for row in landed(manifest)] == [f"r{n}" for n in range(5)]
    assert [job["name"] for job in manifest["jobs"]] == jobs


def test_what_the_sensor_returned_can_be_landed(steps: Any, emulator: Emulator) -> None:
    requests = [[{"key": key, "request": {"contents": [{"parts": [{"text": key}]}]}}] for key in "ab"]
    jobs = [
        steps.create(one, task_context(map_index=n), ledger=str(steps.home / "l")) for n, one in enumerate(requests)
    ]
    ended = run_operator(GeminiBatchJobSensor(task_id="wait", job=jobs, poke_interval=0.05))
    assert steps.land(ended[0])["rows"] == 1
    assert steps.land(ended, output=str(steps.home / "both"))["rows"] == 2
    again = run_operator(GeminiBatchJobSensor(task_id="wait", job=ended[0], poke_interval=0.05))
    assert again["job"] == jobs[0]


# Upload


def test_an_upload_is_made_once_and_says_when_it_expires(connection: str, emulator: Emulator, tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text('{"key": "a", "request": {"contents": [{"parts": [{"text": "x"}]}]}}\n')
    first = run_operator(GeminiUploadFileOperator(task_id="a", source=str(path)))
    again = run_operator(GeminiUploadFileOperator(task_id="b", source=f"file://{path}"))
    assert (first["name"], first["found"], again["name"], again["found"]) == (again["name"], False, first["name"], True)
    assert first["mime_type"] == "application/jsonl"
    assert first["size"] == path.stat().st_size
    assert first["expires_at"].endswith("Z")
    assert len(emulator.files) == 1


def test_an_upload_that_will_soon_expire_is_not_used_again(connection: str, emulator: Emulator, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    first = run_operator(GeminiUploadFileOperator(task_id="a", source=str(tmp_path / "a.png")))
    longer = run_operator(GeminiUploadFileOperator(task_id="a", source=str(tmp_path / "a.png"), fresh_for=49 * 3600))
    assert first["mime_type"] == "image/png"
    assert longer["name"] != first["name"]


@pytest.mark.parametrize(("name", "content", "error"), [
    ("a.unknown", b"x", InvalidConfig), ("empty.png", b"", SourceUnreadable), ("gone.png", None, SourceUnreadable),
])  # fmt: skip
def test_an_upload_that_cannot_be_is_told(
    connection: str, emulator: Emulator, tmp_path: Path, name: str, content: Any, error: type
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error):
        run_operator(GeminiUploadFileOperator(task_id="a", source=str(tmp_path / name)))
    assert not emulator.files


# Create


def test_a_job_of_a_file_that_is_uploaded_already(steps: Any, emulator: Emulator) -> None:
    (requests,) = steps.prepare()["requests"]
    file = run_operator(GeminiUploadFileOperator(task_id="upload", source=requests))
    job = steps.create(file["name"], ledger=str(steps.home / "ledger"))
    assert emulator.jobs[0].input_file == file["name"]
    assert [row["key"] for row in landed(steps.land(job))] == [f"r{n}" for n in range(5)]


def test_what_an_upload_returned_may_be_given_to_the_create_and_its_rows_to_the_landing(
    steps: Any, emulator: Emulator
) -> None:
    (requests,) = steps.prepare()["requests"]
    file = run_operator(GeminiUploadFileOperator(task_id="upload", source=requests))
    ti = Ti(task_id="create")
    job = steps.create(file, {"ti": ti}, ledger=str(steps.home / "ledger"))
    assert emulator.jobs[0].input_file == file["name"]
    assert steps.land(job, rows=ti.pushed["rows"])["counts"]["ok"] == 5


def test_what_changed_since_a_create_is_told_in_the_users_words(steps: Any, emulator: Emulator) -> None:
    ledger = str(steps.home / "l")
    steps.create(["x"], ledger=ledger)
    with pytest.raises(SettingsChanged, match=r": display_name, model, priority or webhook_config\. Set"):
        steps.create(["x"], ledger=ledger, model="gemini-2.5-pro", display_name="new", priority=1)
    assert emulator.jobs_created == 1


def test_a_list_travels_in_the_create_itself(steps: Any, emulator: Emulator) -> None:
    job = steps.create(["one", "two"], ledger=str(steps.home / "ledger"))
    assert (emulator.jobs[0].input_file, emulator.jobs[0].keys, emulator.files) == (None, ("0", "1"), [])
    assert [(row["key"], row["status"]) for row in landed(steps.land(job))] == [("0", "ok"), ("1", "ok")]


@pytest.mark.parametrize("inline", [True, False])
def test_embeddings_are_created_and_landed(steps: Any, emulator: Emulator, inline: bool) -> None:
    lines = [
        {"key": f"k{n}", "request": {"content": {"parts": [{"text": f"t{n}"}]}, "outputDimensionality": 8}}
        for n in range(3)
    ]
    requests: Any = lines
    if not inline:
        requests = str(steps.home / "embed.jsonl")
        Path(requests).write_text("".join(json.dumps(line) + "\n" for line in lines))
    job = steps.create(
        requests,
        kind=GeminiCreateEmbeddingsBatchJobOperator,
        model="gemini-embedding-001",
        ledger=str(steps.home / "ledger"),
    )
    assert emulator.jobs[0].kind == "embed"
    rows = landed(steps.land(job))
    assert [(row["key"], len(row["embedding"])) for row in rows] == [("k0", 8), ("k1", 8), ("k2", 8)]


def test_name_priority_and_webhook_reach_the_service(steps: Any, emulator: Emulator) -> None:
    webhook = {"uris": ["https://example.com/hook"], "user_metadata": {"run": "42"}}
    steps.create(
        ["x"], ledger=str(steps.home / "l"), display_name="nightly reviews", priority="7", webhook_config=webhook
    )
    (job,) = emulator.jobs
    assert job.display_name.endswith(" nightly reviews")
    assert job.priority == 7
    assert job.webhook == {"uris": ["https://example.com/hook"], "userMetadata": {"run": "42"}}


def test_a_retry_and_a_clear_return_the_same_job(steps: Any, emulator: Emulator) -> None:
    (requests,) = steps.prepare()["requests"]
    jobs = {steps.create(requests, task_context(task_id="create", try_number=n, max_tries=n)) for n in (1, 2, 3)}
    assert len(jobs) == emulator.jobs_created == 1


def test_asking_anew_creates_another_job_after_a_clear_but_not_after_a_retry(steps: Any, emulator: Emulator) -> None:
    (requests,) = steps.prepare()["requests"]
    contexts = [task_context(task_id="create", max_tries=clears) for clears in (0, 0, 1)]
    jobs = [steps.create(requests, context, reuse="never") for context in contexts]
    assert jobs[0] == jobs[1] != jobs[2]


@pytest.mark.parametrize("requests", ["file", "inline", "uploaded"])
def test_a_lost_reply_never_pays_twice(steps: Any, emulator: Emulator, requests: str) -> None:
    given: Any = [{"key": "a", "request": {"contents": [{"parts": [{"text": "x"}]}]}}]
    if requests != "inline":
        given = str(steps.home / "r.jsonl")
        Path(given).write_text('{"key": "a", "request": {"contents": [{"parts": [{"text": "x"}]}]}}\n')
    if requests == "uploaded":
        given = run_operator(GeminiUploadFileOperator(task_id="u", source=given))["name"]
    emulator.faults = Faults(drop_after={"create": 1})
    job = steps.create(given, ledger=str(steps.home / "ledger"))
    assert [one.name for one in emulator.jobs] == [job]
    assert steps.create(given, task_context(task_id="create", try_number=2), ledger=str(steps.home / "ledger")) == job
    assert emulator.jobs_created == 1


def test_waiting_for_a_job_that_fails_fails_the_task_with_its_name(steps: Any, emulator: Emulator) -> None:
    emulator.faults = Faults(end_state="FAILED", end_error={"code": 13, "message": "out of luck"})
    with pytest.raises(JobNotSucceeded, match=r"^Batch job batches/\w+ ended as FAILED: out of luck"):
        steps.create(["x"], ledger=str(steps.home / "l"), wait=True)


@pytest.mark.parametrize("deferrable", [True, False])
def test_waiting_returns_the_job_once_it_has_ended(steps: Any, emulator: Emulator, deferrable: bool) -> None:
    job = steps.create(["x"], ledger=str(steps.home / "l"), wait=True, deferrable=deferrable)
    assert [(one.name, one.state) for one in emulator.jobs] == [(job, "SUCCEEDED")]


@pytest.mark.parametrize(("on_timeout", "state"), [("cancel", "CANCELLED"), ("leave", "PENDING")])
def test_a_job_that_takes_too_long_is_cancelled_or_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, on_timeout: str, state: str
) -> None:
    with Emulator(job_seconds=3600) as gemini:
        point_at(gemini.url, monkeypatch)
        with pytest.raises(JobStillRunning):
            Steps(tmp_path).create(["x"], ledger=str(tmp_path / "l"), wait=True, timeout=0.3, on_timeout=on_timeout)
        assert [job.state for job in gemini.jobs] == [state]


@pytest.mark.parametrize(("settings", "said"), [
    ({"requests": ["x"]}, "ledger is empty"),
    ({"requests": "files/nowhere", "ledger": "L"}, "files/nowhere is not at the service"),
    ({"requests": ["x"], "ledger": "L", "priority": "high"}, "priority is 'high'"),
    ({"requests": ["x"], "ledger": "L", "webhook_config": {"uris": ["http://x"]}}, "https://"),
    ({"requests": ["x"], "ledger": "L", "webhook_config": {"url": "x"}}, "'url'"),
    ({"requests": [{"key": "a", "prompt": "x"}], "ledger": "L"}, "row 0"),
    ({"requests": [{"contents": "x", "config": {}}], "ledger": "L"}, 'row 0: a request is {"key": ..., "request"'),
    ({"requests": [LINE, LINE], "ledger": "L"}, "row 1: the key 'a' was used before, at row 0. .*give each request a key"),
    ({"requests": ["x", "y"], "ledger": "L", "limits": Limits(requests_per_job=1)}, "need 2 jobs"),
])  # fmt: skip
def test_what_cannot_be_created_is_told_and_costs_nothing(
    steps: Any, emulator: Emulator, settings: Any, said: str
) -> None:
    if "ledger" in settings:
        settings = settings | {"ledger": str(steps.home / "l")}
    with pytest.raises(AirflowFailException, match=said):
        steps.create(**settings)
    assert emulator.jobs_created == 0


def test_nothing_to_send_skips_the_task(steps: Any, emulator: Emulator) -> None:
    with pytest.raises(AirflowSkipException):
        steps.create([], ledger=str(steps.home / "l"))
    with pytest.raises(AirflowSkipException):
        steps.create(["  "], ledger=str(steps.home / "m"))
    assert emulator.jobs_created == 0


def test_the_rows_file_and_the_link_are_in_xcom(steps: Any, emulator: Emulator) -> None:
    ti = Ti(task_id="create")
    job = steps.create(["x"], {"ti": ti}, ledger=str(steps.home / "l"))
    assert ti.pushed["gemini_batch_job_link"].endswith(job)
    assert json.loads(Path(ti.pushed["rows"]).read_text()) == {"key": "0"}


# Land


def raw_job(emulator: Emulator, requests: list[dict[str, Any]]) -> str:
    """A job that somebody else made, with the SDK, inline."""
    from google import genai

    client = genai.Client(api_key="any", http_options={"base_url": emulator.url})
    return str(client.batches.create(model=MODEL, src=requests, config={"display_name": "theirs"}).name)


def test_a_job_of_somebody_else_is_landed_by_its_keys(steps: Any, emulator: Emulator) -> None:
    job = raw_job(emulator, [{"contents": f"say {n}", "metadata": {"key": f"k{n}"}} for n in range(3)])
    manifest = steps.land(job)
    assert [row["key"] for row in landed(manifest)] == ["k0", "k1", "k2"]
    assert (manifest["model"], manifest["counts"]["ok"], emulator.jobs_created) == (MODEL, 3, 1)


def test_of_a_job_of_somebody_else_nothing_is_told_that_is_not_known(steps: Any, emulator: Emulator) -> None:
    """Neither what failed rows asked for, nor what the job was expected to cost."""
    emulator.faults = Faults(fail_keys={"k1": RowError(3)})
    manifest = steps.land(raw_job(emulator, [{"contents": "x", "metadata": {"key": f"k{n}"}} for n in range(3)]))
    assert (manifest["counts"]["ok"], manifest["counts"]["error"]) == (2, 1)
    assert manifest["failures"] is None
    assert manifest["cost"]["estimated_usd"] is manifest["estimate"]["usd"] is None
    assert manifest["cost"]["actual_usd"] > 0


def test_results_without_keys_are_numbered(steps: Any, emulator: Emulator) -> None:
    job = raw_job(emulator, [{"contents": f"say {n}"} for n in range(3)])
    assert [row["key"] for row in landed(steps.land(job))] == ["0", "1", "2"]


def rows_file(path: Path, keys: list[str]) -> str:
    path.write_text("".join(json.dumps({"key": key, "keep": {"n": n}}) + "\n" for n, key in enumerate(keys)))
    return str(path)


def test_results_without_keys_are_joined_with_rows_by_their_place(
    steps: Any, emulator: Emulator, tmp_path: Path
) -> None:
    job = raw_job(emulator, [{"contents": f"say {n}"} for n in range(3)])
    rows = landed(steps.land(job, rows=rows_file(tmp_path / "rows.jsonl", ["a", "b", "c"])))
    assert [(row["key"], row["n"], row["status"]) for row in rows] == [("a", 0, "ok"), ("b", 1, "ok"), ("c", 2, "ok")]


def test_places_that_do_not_match_are_an_error(steps: Any, emulator: Emulator, tmp_path: Path) -> None:
    job = raw_job(emulator, [{"contents": f"say {n}"} for n in range(3)])
    with pytest.raises(AirflowFailException, match="3 of them cannot be matched with 2 rows"):
        steps.land(job, rows=rows_file(tmp_path / "rows.jsonl", ["a", "b"]))


def test_a_row_without_a_result_is_missing(steps: Any, emulator: Emulator, tmp_path: Path) -> None:
    job = raw_job(emulator, [{"contents": "x", "metadata": {"key": "a"}}])
    manifest = steps.land(job, rows=rows_file(tmp_path / "rows.jsonl", ["a", "b"]))
    assert [(row["key"], row["status"]) for row in landed(manifest)] == [("a", "ok"), ("b", "missing")]


def test_landing_again_costs_nothing_and_needs_no_job(steps: Any, emulator: Emulator) -> None:
    job = raw_job(emulator, [{"contents": "x", "metadata": {"key": "a"}}])
    first = landed(steps.land(job, delete_remote="all"))
    assert emulator.jobs == []
    again = steps.land(job, task_context(task_id="land", try_number=2, max_tries=1), file_format="jsonl")
    assert [row["key"] for row in landed(again)] == [row["key"] for row in first] == ["a"]


def test_another_job_replaces_what_was_landed(steps: Any, emulator: Emulator) -> None:
    jobs = [raw_job(emulator, [{"contents": "x", "metadata": {"key": key}}]) for key in ("a", "b")]
    assert [row["key"] for row in landed(steps.land(jobs[0]))] == ["a"]
    manifest = steps.land(jobs[1])
    assert [row["key"] for row in landed(manifest)] == ["b"]
    assert sorted(path.name for path in (steps.home / "out").glob("part-*")) == ["part-r0-00000.parquet"]


def test_a_failed_job_lands_its_rows_as_errors_and_fails_the_task(
    steps: Any, emulator: Emulator, tmp_path: Path
) -> None:
    emulator.faults = Faults(end_state="FAILED", end_error={"code": 13, "message": "out of luck"})
    job = raw_job(emulator, [{"contents": "x", "metadata": {"key": "a"}}])
    with pytest.raises(JobNotSucceeded, match="FAILED: out of luck"):
        steps.land(job)
    with pytest.raises(JobFailed, match="out of luck"):
        steps.land(job, rows=rows_file(tmp_path / "rows.jsonl", ["a"]), output=str(tmp_path / "failed"))
    manifest = json.loads((tmp_path / "failed/_gemini_batch/manifest.json").read_text())
    assert [(row["key"], row["status"]) for row in landed(manifest)] == [("a", "error")]
    with pytest.raises(JobFailed):  # nothing is sent for it, however often it is asked for
        steps.land(
            job,
            task_context(task_id="land", max_tries=1),
            rows=str(tmp_path / "rows.jsonl"),
            output=str(tmp_path / "failed"),
        )
    assert emulator.jobs_created == 1


@pytest.mark.parametrize("deferrable", [True, False])
def test_a_job_that_still_runs_is_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, deferrable: bool) -> None:
    with Emulator(states=["PENDING", "RUNNING", "RUNNING", "SUCCEEDED"]) as gemini:
        point_at(gemini.url, monkeypatch)
        job = raw_job(gemini, [{"contents": "x", "metadata": {"key": "a"}}])
        assert Steps(tmp_path).land(job, deferrable=deferrable)["counts"]["ok"] == 1


@pytest.mark.parametrize(("job", "said"), [
    ("batches/nowhere", "There is no job batches/nowhere"), ("", "which is no job"), ([], "name of a job"),
    ("files/x", "which is no job"),
])  # fmt: skip
def test_a_job_that_is_not_there_is_told(steps: Any, job: Any, said: str) -> None:
    with pytest.raises(AirflowFailException, match=said):
        steps.land(job)


def test_two_jobs_with_the_same_keys_are_no_table(steps: Any, emulator: Emulator) -> None:
    jobs = [raw_job(emulator, [{"contents": "x", "metadata": {"key": "a"}}]) for _ in range(2)]
    with pytest.raises(DuplicateKey, match=r"'a'.* land the jobs apart"):
        steps.land(jobs)


def test_results_are_held_one_at_a_time(steps: Any, emulator: Emulator) -> None:
    import io

    from airflow_gemini_batch.core.adopting import _inlined

    one = b'{"response": {"n": 0.1}, "metadata": {"key": "a"}}'
    for place in (b'{"metadata": {"output": {%s}}}', b'{"metadata": {}, "response": {%s}}'):
        operation = place % (b'"inlinedResponses": {"inlinedResponses": [' + one + b", " + one + b"]}")
        assert list(_inlined(io.BytesIO(operation))) == [json.loads(one)] * 2


@pytest.mark.parametrize(
    "kind", [GeminiPrepareRequestsOperator, GeminiCreateBatchJobOperator, GeminiLandResultsOperator]
)
def test_a_setting_that_a_step_would_pass_over_is_refused(kind: Any) -> None:
    settings = {"requests": "x"} if "Create" in kind.__name__ else {"job": "x", "output": "o"}
    model = {} if "Land" in kind.__name__ else {"model": MODEL}
    with pytest.raises(InvalidConfig, match="canary cannot be used"):
        kind(task_id="t", canary=5, **model, **settings)
