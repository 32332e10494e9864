"""Batches: create, look, list, cancel, delete; what an operation looks like on its way."""

from __future__ import annotations

import asyncio
import re

import httpx
import pytest
from google import genai
from google.genai import types

from airflow_gemini_batch.emulator import Options

TYPE = "type.googleapis.com/google.ai.generativelanguage.v1main."
STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z")
SCRIPT = ["PENDING", "RUNNING", "SUCCEEDED"]


def test_the_sdk_runs_a_batch_from_a_file(emulate, sdk, make_lines, line):
    gemini = emulate(states=SCRIPT)
    client = sdk(gemini)
    path = make_lines(*(line(f"row-{i}", f"Review {i}") for i in range(7)))
    file = client.files.upload(file=str(path), config={"mime_type": "application/jsonl"})
    job = client.batches.create(model="gemini-2.5-flash", src=file.name, config={"display_name": "nightly"})
    assert (job.state.name, job.display_name, job.model) == ("JOB_STATE_PENDING", "nightly", "models/gemini-2.5-flash")
    seen = []
    while not job.done:
        job = client.batches.get(name=job.name)
        seen.append(job.state.name)
    assert seen == ["JOB_STATE_PENDING", "JOB_STATE_RUNNING", "JOB_STATE_SUCCEEDED"]
    rows = client.files.download(file=job.dest.file_name).decode().splitlines()
    assert [
        types.GenerateContentResponse.model_validate_json(re.search(r'"response":(.*),"key"', row)[1]).text != ""
        for row in rows
    ]
    assert [re.search(r'"key":"(.*)"}$', row)[1] for row in rows] == [f"row-{i}" for i in range(7)]
    assert gemini.jobs[0].keys == tuple(f"row-{i}" for i in range(7))
    assert gemini.calls["create"] == gemini.jobs_created == 1


def test_the_sdk_downloads_to_a_path(client, raw, line, tmp_path):
    job = client.batches.get(name=raw.create(line("a")))
    client.files.download(file=job.dest.file_name, destination=str(tmp_path / "out.jsonl"))
    assert (tmp_path / "out.jsonl").read_bytes() == raw.result_bytes(job.name)


def test_the_sdk_runs_inline_requests_with_metadata_and_config(client):
    job = client.batches.create(
        model="models/gemini-2.5-flash",
        src=[
            {
                "contents": f"Review {i}",
                "config": {
                    "temperature": 0.2,
                    "system_instruction": "brief",
                    "thinking_config": {"thinking_budget": 0},
                },
                "metadata": {"key": f"row-{i}"},
            }
            for i in range(3)
        ],
    )
    job = client.batches.get(name=job.name)
    assert [one.metadata["key"] for one in job.dest.inlined_responses] == ["row-0", "row-1", "row-2"]
    assert all("Review" in one.response.text for one in job.dest.inlined_responses)
    assert all(one.response.usage_metadata.thoughts_token_count is None for one in job.dest.inlined_responses)


@pytest.mark.filterwarnings("ignore:.*experimental")
def test_the_sdk_runs_embeddings_inline_and_from_a_file(client, raw, make_lines):
    inline = {"inlined_requests": {"contents": ["one", "two"], "config": {"output_dimensionality": 16}}}
    job = client.batches.create_embeddings(model="gemini-embedding-001", src=inline)
    job = client.batches.get(name=job.name)
    vectors = [one.response.embedding.values for one in job.dest.inlined_embed_content_responses]
    assert [len(vector) for vector in vectors] == [16, 16]
    name = raw.upload(
        b'{"key": "a", "request": {"content": {"parts": [{"text": "one"}]}, "output_dimensionality": 16}}\n'
    )
    job = client.batches.create_embeddings(model="gemini-embedding-001", src={"file_name": name})
    operation = raw.get(job.name)
    assert operation["metadata"]["@type"] == TYPE + "EmbedContentBatch"
    assert operation["response"]["@type"] == TYPE + "EmbedContentBatchOutput"
    (row,) = raw.results(job.name)
    assert list(row) == ["response", "key"]
    assert row["response"]["embedding"]["values"] == pytest.approx(vectors[0])
    assert row["response"]["tokenCount"] == "1"


@pytest.mark.filterwarnings("ignore:.*ClientSession is discouraged")  # the SDK's own, when aiohttp is there
def test_the_async_sdk_sees_the_same(gemini, tmp_path, make_lines, line):
    path = make_lines(line("a"))

    async def run() -> bytes:
        async with genai.Client(api_key="any", http_options={"base_url": gemini.url}).aio as client:
            file = await client.files.upload(file=str(path), config={"mime_type": "application/jsonl"})
            job = await client.batches.create(model="gemini-2.5-flash", src=file.name)
            job = await client.batches.get(name=job.name)
            listed = [one.name async for one in await client.batches.list()]
            assert listed == [job.name]
            await client.batches.cancel(name=job.name)
            data = await client.files.download(file=job.dest.file_name)
            await client.batches.delete(name=job.name)
            return data

    assert b'"key":"a"' in asyncio.run(run())


def test_an_operation_shows_what_the_service_shows(emulate, connect, line):
    gemini = emulate(states=SCRIPT)
    raw = connect(gemini)
    name = raw.create(line("a"), line("b"), displayName="nightly", priority=5)
    pending = raw.get(name)
    assert set(pending) == {"name", "metadata"}
    metadata = pending["metadata"]
    assert re.fullmatch(r"batches/[a-z0-9]{36}", name)
    assert metadata["name"] == pending["name"] == name
    assert metadata["@type"] == TYPE + "GenerateContentBatch"
    assert (metadata["state"], metadata["displayName"], metadata["priority"]) == ("BATCH_STATE_PENDING", "nightly", "5")
    assert metadata["batchStats"] == {"requestCount": "2", "pendingRequestCount": "2"}
    assert metadata["inputConfig"]["fileName"].startswith("files/")
    assert STAMP.fullmatch(metadata["createTime"])
    assert "output" not in metadata
    running = raw.get(name)
    assert (running["metadata"]["state"], "done" in running) == ("BATCH_STATE_RUNNING", False)
    assert running["metadata"]["updateTime"] > metadata["updateTime"]
    done = raw.get(name)
    file = f"files/batch-{name.removeprefix('batches/')}"
    assert done["done"] is True
    assert done["metadata"]["output"] == {"responsesFile": file}
    assert done["response"] == {"@type": TYPE + "GenerateContentBatchOutput", "responsesFile": file}
    assert done["metadata"]["batchStats"] == {"requestCount": "2", "successfulRequestCount": "2"}
    assert STAMP.fullmatch(done["metadata"]["endTime"])
    assert raw.get(name) == done


def test_an_inline_job_carries_its_payload_twice_and_the_list_leaves_it_out(raw, item):
    name = raw.create_inline(item("a"), item("b"))
    done = raw.get(name)
    inlined = done["metadata"]["output"]["inlinedResponses"]["inlinedResponses"]
    assert done["response"]["inlinedResponses"]["inlinedResponses"] == inlined
    assert [one["metadata"] for one in inlined] == [{"key": "a"}, {"key": "b"}]
    assert "inputConfig" not in done["metadata"]
    (listed,) = raw.json("GET", "batches")["operations"]
    assert listed["done"] is True
    assert "output" not in listed["metadata"]
    assert "response" not in listed


def test_the_list_shows_result_files(raw, line):
    name = raw.create(line("a"))
    (listed,) = raw.json("GET", "batches")["operations"]
    assert listed == raw.get(name)


def test_a_result_file_is_generated_and_downloads_both_ways(raw, gemini, line):
    name = raw.create(line("a"))
    file = raw.get(name)["response"]["responsesFile"]
    shown = raw.json("GET", file)
    assert (shown["source"], shown["state"]) == ("GENERATED", "ACTIVE")
    assert shown["downloadUri"].endswith(f"{file}:download?alt=media")
    assert file not in [one["name"] for one in raw.json("GET", "files")["files"]]
    one = raw.http.get(f"/v1beta/{file}:download?alt=media")
    two = raw.http.get(f"/download/v1beta/{file}:download?alt=media", headers={"Range": "bytes=5-9"})
    assert one.content == two.content == gemini.read_file(file)
    assert int(shown["sizeBytes"]) == int(one.headers["content-length"]) == len(one.content)


def test_range_can_be_switched_on(emulate, connect, line):
    raw = connect(emulate(options=Options(range_requests=True)))
    file = raw.get(raw.create(line("a")))["response"]["responsesFile"]
    reply = raw.http.get(f"/v1beta/{file}:download", headers={"Range": "bytes=2-9"})
    assert (reply.status_code, reply.content) == (206, b"response")


@pytest.mark.parametrize("version", ["v1", "v1beta", "v1alpha"])
@pytest.mark.parametrize("prefix", ["", "/proxy", "/deep/er"])
def test_every_version_and_prefix_serves_the_same(gemini, connect, sdk, line, version, prefix, make_lines):
    raw = connect(gemini, prefix, version)
    name = raw.create(line("a"))
    assert raw.results(name)[0]["key"] == "a"
    client = sdk(gemini, prefix, api_version=version)
    file = client.files.upload(file=str(make_lines(line("b"))), config={"mime_type": "application/jsonl"})
    job = client.batches.get(name=client.batches.create(model="gemini-2.5-flash", src=file.name).name)
    assert b'"key":"b"' in client.files.download(file=job.dest.file_name)
    assert all(seen.path.startswith(prefix) for seen in gemini.requests)
    assert {job.name for job in gemini.jobs} == {name, job.name}


def test_a_missing_key_is_a_403_and_a_bad_one_a_400(gemini, connect):
    url = f"{gemini.url}/v1beta/batches"
    missing = httpx.get(url).json()["error"]
    assert (missing["code"], missing["status"]) == (403, "PERMISSION_DENIED")
    assert "unregistered callers" in missing["message"]
    bad = httpx.get(url, headers={"x-goog-api-key": "invalid-key"}).json()["error"]
    assert (bad["code"], bad["status"], bad["details"][0]["reason"]) == (400, "INVALID_ARGUMENT", "API_KEY_INVALID")
    assert httpx.get(url, params={"key": "any"}).json() == {}


def test_only_listed_keys_work_if_there_is_a_list(emulate):
    gemini = emulate(api_keys={"right"})
    assert httpx.get(f"{gemini.url}/v1/batches?key=right").status_code == 200
    assert httpx.get(f"{gemini.url}/v1/batches?key=other").status_code == 400


def test_both_spellings_make_the_same_job(raw, gemini, line):
    name = raw.upload(
        b'{"key": "a", "request": {"contents": [{"parts": [{"text": "x"}]}], '
        b'"generation_config": {"max_output_tokens": "9", "seed": 3}}}\n'
    )
    snake = {
        "display_name": "d",
        "input_config": {"file_name": name},
        "priority": "7",
        "webhook_config": {"uris": ["https://x"], "user_metadata": {"run": "1"}},
    }
    camel = {
        "displayName": "d",
        "inputConfig": {"fileName": name},
        "priority": 7,
        "webhookConfig": {"uris": ["https://x"], "userMetadata": {"run": "1"}},
    }
    one, two = (raw.post(batch).json()["name"] for batch in (snake, camel))
    assert raw.results(one) == raw.results(two)
    first, second = gemini.jobs
    assert (first.display_name, first.priority, first.webhook) == (
        "d",
        7,
        {"uris": ["https://x"], "userMetadata": {"run": "1"}},
    )
    assert (second.display_name, second.priority, second.webhook) == (first.display_name, first.priority, first.webhook)


def test_the_sdk_sends_priority_and_webhooks(client, gemini, raw, line):
    file = raw.upload(b'{"key": "a", "request": {"contents": [{"parts": [{"text": "x"}]}]}}\n')
    config = types.CreateBatchJobConfig(
        webhook_config={"uris": ["https://x.example"], "user_metadata": {"run": "42"}},
        http_options={"extra_body": {"batch": {"priority": 5}}},
    )
    client.batches.create(model="gemini-2.5-flash", src=file, config=config)
    assert gemini.jobs[0].priority == 5
    assert gemini.jobs[0].webhook == {"uris": ["https://x.example"], "userMetadata": {"run": "42"}}


def test_create_is_not_idempotent(raw, gemini, line):
    raw.create(line("a"), displayName="same")
    raw.create(line("a"), displayName="same")
    assert [job.display_name for job in gemini.jobs] == ["same", "same"]


def test_the_list_pages_newest_first_and_is_stable_while_jobs_come(raw, client, item):
    names = [raw.create_inline(item("a")) for _ in range(5)]
    first = raw.json("GET", "batches", params={"pageSize": 2})
    raw.create_inline(item("a"))
    second = raw.json("GET", "batches", params={"pageSize": 3, "pageToken": first["nextPageToken"]})
    assert [one["name"] for page in (first, second) for one in page["operations"]] == names[::-1]
    assert "nextPageToken" not in second
    assert len(list(client.batches.list(config={"page_size": 2}))) == 6


def test_pages_hold_fifty_unless_asked(raw, item, emulate):
    for _ in range(51):
        raw.create_inline(item("a"))
    page = raw.json("GET", "batches")
    assert len(page["operations"]) == 50
    assert len(raw.json("GET", "batches", params={"pageToken": page["nextPageToken"]})["operations"]) == 1


def test_an_empty_list_is_an_empty_object(raw, client):
    assert raw.json("GET", "batches") == {}
    assert raw.json("GET", "files") == {}
    assert list(client.batches.list()) == []


def test_a_look_at_the_list_moves_only_the_jobs_on_the_page(emulate, connect, item):
    gemini = emulate(states=SCRIPT)
    raw = connect(gemini)
    for _ in range(2):
        raw.create_inline(item("a"))
    for _ in range(3):
        raw.json("GET", "batches", params={"pageSize": 1})
    assert [job.state for job in gemini.jobs] == ["PENDING", "SUCCEEDED"]


@pytest.mark.parametrize("model", ["no-such-model", "imagen-4", "gemini-embedding-001"])
def test_a_model_that_cannot_do_it_is_a_404(raw, item, model):
    reply = raw.post({"inputConfig": {"requests": {"requests": [item("a")]}}}, model=model)
    assert (reply.status_code, reply.json()["error"]["status"]) == (404, "NOT_FOUND")
    assert f"models/{model} is not found" in reply.json()["error"]["message"]


def test_models_can_be_named_and_are_listed(emulate, connect, item):
    raw = connect(emulate(options=Options(models=("my-model",))))
    raw.create_inline(item("a"), model="my-model")
    assert raw.post({"inputConfig": {"requests": {"requests": [item("a")]}}}).status_code == 404
    assert [one["name"] for one in raw.json("GET", "models")["models"]] == ["models/my-model"]
    assert "batchGenerateContent" in raw.json("GET", "models/my-model")["supportedGenerationMethods"]


def test_tuned_models_pass(raw, item):
    config = {"requests": {"requests": [item("a")]}}
    reply = raw.http.post("/v1beta/tunedModels/mine:batchGenerateContent", json={"batch": {"inputConfig": config}})
    assert reply.json()["metadata"]["model"] == "tunedModels/mine"


@pytest.mark.parametrize("status", [404, 403])
def test_a_missing_input_file_is_refused_as_set(emulate, connect, status):
    raw = connect(emulate(options=Options(missing_input_status=status)))
    assert raw.post({"inputConfig": {"fileName": "files/nope"}}).status_code == status


def test_an_input_still_processing_is_refused(emulate, connect):
    raw = connect(emulate(processing_seconds=60))
    reply = raw.post({"inputConfig": {"fileName": raw.upload(b"{}\n")}})
    assert (reply.status_code, reply.json()["error"]["status"]) == (400, "FAILED_PRECONDITION")


@pytest.mark.parametrize("status", [400, 413])
def test_inline_requests_over_twenty_megabytes_are_refused(emulate, connect, item, status):
    raw = connect(emulate(options=Options(inline_too_large_status=status)))
    reply = raw.post({"inputConfig": {"requests": {"requests": [item("a", "x" * (20 << 20))]}}})
    assert (reply.status_code, reply.json()["error"]["status"]) == (status, "INVALID_ARGUMENT")
    raw.create_inline(item("a", "x" * (19 << 20)))


def test_what_is_not_there_is_a_404(gemini, raw):
    for method, path in (
        ("POST", "/v1beta/batches"),
        ("GET", "/v1beta/batches/x/results"),
        ("GET", "/v2/files"),
        ("GET", "/"),
    ):
        assert raw.http.request(method, path).status_code == 404
    assert raw.http.get("/v1beta/batches/unknown").json()["error"]["message"] == "Requested entity was not found."
