"""A job as the operation that ``get``, ``list`` and ``create`` show."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from airflow_gemini_batch.emulator.clock import timestamp
from airflow_gemini_batch.emulator.faults import Faults
from airflow_gemini_batch.emulator.jobs import Job

TYPE = "type.googleapis.com/google.ai.generativelanguage.v1main."
PLACE = "@@inlined responses@@"


def operation(
    job: Job, faults: Faults, *, progress: float, shown_state: str | None, with_inlined: bool
) -> dict[str, Any]:
    """
    The Operation message. Inlined responses appear as :data:`PLACE`, for :func:`pieces` to fill in.

    :param shown_state: said instead of the job's state, as it stands.
    :param with_inlined: False in lists, which leave inlined responses out.
    """
    kind = "EmbedContentBatch" if job.embeds else "GenerateContentBatch"
    metadata: dict[str, Any] = {"@type": TYPE + kind, "model": f"models/{job.model}".replace("models/tuned", "tuned")}
    if job.display_name:
        metadata["displayName"] = job.display_name
    if job.input_file:
        metadata["inputConfig"] = {"fileName": job.input_file}
    output = _output(job, with_inlined)
    if output and not faults.output_only_in_response:
        metadata["output"] = output
    metadata["createTime"] = timestamp(job.created)
    if job.done and job.ended:
        metadata["endTime"] = timestamp(job.ended)
    metadata["updateTime"] = timestamp(job.updated or job.created)
    if stats := _stats(job, progress):
        metadata["batchStats"] = stats
    metadata["state"] = shown_state or f"BATCH_STATE_{job.state}"
    if job.priority:
        metadata["priority"] = str(job.priority)
    if job.webhook:
        metadata["webhookConfig"] = job.webhook
    metadata["name"] = job.name
    body: dict[str, Any] = {"name": job.name, "metadata": metadata}
    if not job.done or shown_state:
        return body
    body["done"] = True
    if job.error:
        body["error"] = job.error
    elif output and not faults.output_only_in_metadata:
        body["response"] = {"@type": f"{TYPE}{kind}Output", **output}
    return body


def _output(job: Job, with_inlined: bool) -> dict[str, Any]:
    if not job.done or job.results is None or job.expired_results:
        return {}
    if job.input_file:
        return {"responsesFile": f"files/batch-{job.id}"}
    return {"inlinedResponses": {"inlinedResponses": PLACE}} if with_inlined else {}


def _stats(job: Job, progress: float) -> dict[str, str]:
    """Counters as strings; those at zero are absent."""
    ok = failed = 0
    if job.done:
        ok, failed = (job.results.ok, job.results.failed) if job.results else (0, 0)
    elif job.state == "RUNNING":
        ok = int(job.request_count * progress)
    pending = 0 if job.state == "SUCCEEDED" else max(job.request_count - ok - failed, 0)
    counts = {
        "requestCount": job.request_count, "successfulRequestCount": ok, "failedRequestCount": failed,
        "pendingRequestCount": pending,
    }  # fmt: skip
    return {name: str(count) for name, count in counts.items() if count}


def pieces(shown: dict[str, Any], job: Job) -> Iterator[bytes]:
    """The operation as JSON, a piece at a time: inlined responses are read from disk, twice, as they are sent twice."""
    first, *rest = orjson.dumps(shown).split(orjson.dumps(PLACE))
    yield first
    for part in rest:
        yield b"["
        if job.results is not None:
            with job.results.path.open("rb") as lines:
                for number, line in enumerate(lines):
                    yield (b"," if number else b"") + line.rstrip(b"\n")
        yield b"]"
        yield part
