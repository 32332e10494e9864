"""The calls on batches and models: read the request, ask the service, shape the reply."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from airflow_gemini_batch.emulator.clock import SECOND
from airflow_gemini_batch.emulator.errors import JSON, ApiError, no_such_file
from airflow_gemini_batch.emulator.inputs import Checked, check_file, parse_body, write_inline
from airflow_gemini_batch.emulator.jobs import Job
from airflow_gemini_batch.emulator.operations import PLACE, operation, pieces
from airflow_gemini_batch.emulator.options import KNOWN_MODELS
from airflow_gemini_batch.emulator.protojson import Problem, read, refuse
from airflow_gemini_batch.emulator.routes import Match
from airflow_gemini_batch.emulator.service import Service
from airflow_gemini_batch.emulator.tokens import prompt_tokens
from airflow_gemini_batch.emulator.webhooks import check_uri
from airflow_gemini_batch.emulator.wire import new_id, page, reply


async def create(service: Service, request: Request, match: Match) -> Response:
    """Check everything, then record the job. What is refused leaves nothing behind."""
    embeds = match.call == "create_embeddings"
    _check_model(service, match, embeds)
    raw = await _body(request, service.options.inline_bytes, service.options.inline_too_large_status)
    batch = await asyncio.to_thread(parse_body, raw, "CreateEmbed" if embeds else "CreateGenerate")
    del raw
    service.jobs.check_room(service.counters)
    job_id = new_id(36)
    path = service.directory / f"input-{job_id}"
    for uri in (batch.get("webhookConfig") or {}).get("uris") or ():
        check_uri(str(uri))
    file_name: str | None = batch["inputConfig"].get("fileName")
    if file_name is None:
        checked = await asyncio.to_thread(write_inline, batch, path, options=service.options)
    else:
        checked = await _take_file(service, file_name, path, embeds)
    try:  # again: creates that came at the same time were all let in before
        service.jobs.check_room(service.counters, model=match.id, tokens=checked.tokens)
    except ApiError:
        path.unlink(missing_ok=True)
        raise
    now = service.clock.now()
    job = Job(
        id=job_id,
        embeds=embeds,
        model=match.id,
        display_name=batch.get("displayName", ""),
        input_file=file_name,
        input_path=path,
        request_count=checked.count,
        keys=checked.keys,
        created=now,
        tokens=checked.tokens,
        updated=now,
        priority=batch.get("priority", 0),
        webhook=batch.get("webhookConfig"),
    )
    service.jobs.add(job)
    service.webhooks.watch(job)
    if service.faults.fail_ratio:  # Claimed now, so that the first jobs made are the ones to fail.
        service.counters.claims("fail_ratio", job.id, jobs=service.faults.fail_ratio_jobs)
    if service.faults.end_state:
        service.counters.claims("end_state", job.id, jobs=service.faults.end_state_jobs)
    return _show(service, job)


async def _take_file(service: Service, name: str, path: Any, embeds: bool) -> Checked:
    """Keep an own link to the input file, so that the job survives the file's end, and check it."""
    file_id = name.removeprefix("files/")
    file = None if "*" in (hidden := service.faults.hide_files) or file_id in hidden else service.files.find(file_id)
    if file is None:
        raise no_such_file(file_id) if service.options.missing_input_status == 403 else ApiError(404)
    if service.state_of(file) != "ACTIVE":
        raise ApiError(
            400,
            f"The File {file_id} is not in an ACTIVE state and usage is not allowed.",
            status="FAILED_PRECONDITION",
        )
    os.link(file.path, path)
    try:
        return await asyncio.to_thread(check_file, path, embeds=embeds, options=service.options)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


METHODS = {
    "create": "batchGenerateContent", "create_embeddings": "asyncBatchEmbedContent", "count_tokens": "countTokens",
}  # fmt: skip


def _check_model(service: Service, match: Match, embeds: bool) -> None:
    name = match.id
    exists = name.startswith("tunedModels/") or service.options.has_model(name)
    if not exists or ("embedding" in name) is not embeds:
        raise ApiError(
            404,
            f"models/{name} is not found for API version {match.version}, or is not supported for {METHODS[match.call]}. "
            "Call ListModels to see the list of available models and their supported methods.",
        )


async def _body(request: Request, most: int, status: int) -> bytes:
    """:raises ApiError: as soon as more than ``most`` bytes have come."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise ApiError(status, f"Request payload size exceeds the limit: {most} bytes.", status="INVALID_ARGUMENT")
    return bytes(body)


async def get(service: Service, request: Request, match: Match) -> Response:
    job = service.jobs.get(match.id)
    await service.look(job)
    return _show(service, job, looked=True)


def _shown_state(service: Service, job: Job) -> str | None:
    faults = service.faults
    if faults.unknown_state and (faults.unknown_state_looks is None or job.looks <= faults.unknown_state_looks):
        return faults.unknown_state
    return None


def _operation(service: Service, job: Job, *, looked: bool, with_inlined: bool) -> dict[str, Any]:
    state = _shown_state(service, job) if looked else None
    return operation(
        job, service.faults, progress=service.jobs.progress(job), shown_state=state, with_inlined=with_inlined
    )


def _show(service: Service, job: Job, *, looked: bool = False) -> Response:
    shown = _operation(service, job, looked=looked, with_inlined=True)
    if orjson.dumps(PLACE) in orjson.dumps(shown):
        return StreamingResponse(_in_threads(pieces(shown, job)), media_type=JSON)
    return reply(shown)


async def _in_threads(parts: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Gather small pieces into larger ones, reading the disk off the loop."""

    def gather() -> bytes:
        buffer = bytearray()
        for part in parts:
            buffer += part
            if len(buffer) > 1 << 18:
                break
        return bytes(buffer)

    while data := await asyncio.to_thread(gather):
        yield data


async def list_(service: Service, request: Request, match: Match) -> Response:
    oldest_hidden = service.clock.now() - round(service.faults.list_lag * SECOND)
    known = [job for job in service.jobs if not service.faults.list_lag or job.created <= oldest_hidden]
    options = service.options
    shown, token = page(
        known,
        request.query_params,
        order=lambda job: job.number,
        default=options.default_page_size,
        most=options.max_page_size,
    )
    await service.look(*shown)
    operations = [_operation(service, job, looked=True, with_inlined=False) for job in shown]
    if service.faults.list_hides_output:
        for one in operations:
            one.pop("response", None)
            one["metadata"].pop("output", None)
    body: dict[str, Any] = {"operations": operations} if operations else {}
    return reply({**body, "nextPageToken": token} if token else body)


async def cancel(service: Service, request: Request, match: Match) -> Response:
    service.cancel(service.jobs.get(match.id))
    return reply({})


async def delete(service: Service, request: Request, match: Match) -> Response:
    service.delete(match.id)
    return reply({})


async def update(service: Service, request: Request, match: Match) -> Response:
    """Change what may be changed: the display name and the priority."""
    job = service.jobs.get(match.id)
    try:
        body = orjson.loads(await _body(request, 1 << 20, 400) or b"{}")
    except orjson.JSONDecodeError as e:
        raise ApiError(400, f"Invalid JSON payload received. {e}") from e
    problems: list[Problem] = []
    batch = read(body, "EmbedContentBatch" if job.embeds else "GenerateContentBatch", "batch", problems)
    refuse(problems)
    mask = request.query_params.get("updateMask") or request.query_params.get("update_mask") or "displayName,priority"
    names = {name.strip() for name in mask.split(",")}
    with service.jobs.lock:
        if names & {"displayName", "display_name", "*"} and "displayName" in batch:
            job.display_name = batch["displayName"]
        if names & {"priority", "*"} and "priority" in batch:
            job.priority = batch["priority"]
        job.updated = service.clock.now()
    return reply(_operation(service, job, looked=False, with_inlined=False)["metadata"])


def _model(name: str) -> dict[str, Any]:
    embeds = "embedding" in name
    methods = (
        ["embedContent", "asyncBatchEmbedContent"]
        if embeds
        else ["generateContent", "countTokens", "batchGenerateContent"]
    )
    return {
        "name": f"models/{name}".replace("models/tuned", "tuned"),
        "version": "001",
        "displayName": name.replace("-", " ").title(),
        "inputTokenLimit": 2048 if embeds else 1_048_576,
        "outputTokenLimit": 1 if embeds else 65_536,
        "supportedGenerationMethods": methods,
    }


async def model_get(service: Service, request: Request, match: Match) -> Response:
    if not service.options.has_model(match.id):
        raise ApiError(404, f"models/{match.id} is not found for API version {match.version}.")
    return reply(_model(match.id))


async def count_tokens(service: Service, request: Request, match: Match) -> Response:
    """Count what a request sends; the same counting as in the answers' usage."""
    _check_model(service, match, embeds=False)
    try:
        body = orjson.loads(await _body(request, service.options.inline_bytes, 400) or b"{}")
    except orjson.JSONDecodeError as e:
        raise ApiError(400, f"Invalid JSON payload received. {e}") from e
    problems: list[Problem] = []
    asked = read(body, "CountTokens", "", problems)
    refuse(problems)
    whole = asked.get("generateContentRequest")
    if whole is not None and "contents" in asked:
        raise ApiError(400, "* CountTokensRequest: contents and generate_content_request are mutually exclusive")
    if not (whole or asked).get("contents"):
        raise ApiError(400, "* CountTokensRequest.contents: contents is not specified")
    counts = prompt_tokens(whole or asked)
    details = [{"modality": modality, "tokenCount": tokens} for modality, tokens in counts.items() if tokens]
    return reply({"totalTokens": sum(counts.values()), "promptTokensDetails": details})


async def model_list(service: Service, request: Request, match: Match) -> Response:
    names = list(KNOWN_MODELS if service.options.models is None else service.options.models)
    ranked = list(enumerate(reversed(names), 1))[::-1]
    shown, token = page(ranked, request.query_params, order=lambda pair: pair[0], default=50, most=1000)
    body: dict[str, Any] = {"models": [_model(name) for _, name in shown]}
    return reply({**body, "nextPageToken": token} if token else body)
