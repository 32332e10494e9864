"""Reads what a job was asked, line by line, and writes what it answers: to disk, with the faults asked for."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson

from airflow_gemini_batch.emulator.answers import RefusedError, Row
from airflow_gemini_batch.emulator.faults import Counters, Faults, RowError, hits
from airflow_gemini_batch.emulator.jobs import Job, Results
from airflow_gemini_batch.emulator.options import Options
from airflow_gemini_batch.emulator.protojson import read
from airflow_gemini_batch.emulator.references import StateOf, refusal

CANCELLED_ROW = RowError(code=1, message="The request was cancelled before it was processed.")
TWISTS = {
    "blocked": "blocked_keys",
    "blocked_answer": "blocked_answer_keys",
    "empty": "empty_keys",
    "truncate": "truncate_keys",
    "thought_only": "thought_only_keys",
    "bad_json": "bad_json_keys",
}


def write_results(
    job: Job,
    path: Path,
    counters: Counters,
    options: Options,
    *,
    share: float = 1.0,
    rest: RowError | None = None,
    stopped: Callable[[], bool],
    state_of_file: StateOf,
) -> Results:
    """
    Answer every request of the job.

    :param path: where the lines go. For file jobs this is the result file byte for byte; for inline jobs there is one
        response per line, to be put into the operation.
    :param share: part of the rows, from the first, that get an answer.
    :param rest: the error that the others get; None: they get no line.
    :param stopped: asked now and then; once it says True the rest is left out.
    :param state_of_file: for rows that name uploaded files.
    """
    faults, results, digest = counters.faults, Results(path), hashlib.sha256()
    count = max(round(job.request_count * share), 0)
    lines = _lines(job, counters, options, results, count, rest, stopped, state_of_file)
    if faults.shuffle_rows:
        lines = _shuffled(lines, path.with_suffix(".ordered"), job.id)
    with path.open("wb") as out:
        for line in _laid_out(lines, faults) if job.input_file else lines:
            out.write(line)
            digest.update(line)
            results.size += len(line)
    results.sha256 = digest.hexdigest()
    return results


def _lines(
    job: Job,
    counters: Counters,
    options: Options,
    results: Results,
    count: int,
    rest: RowError | None,
    stopped: Callable[[], bool],
    state_of_file: StateOf,
) -> Iterator[bytes]:
    faults = counters.faults
    failing = bool(faults.fail_ratio) and counters.claims("fail_ratio", job.id, jobs=faults.fail_ratio_jobs)
    message = "EmbedContentRequest" if job.embeds else "GenerateContentRequest"
    number = 0
    with job.input_path.open("rb") as requests:
        for raw in requests:
            if (number >= count and rest is None) or stopped():
                break
            if raw.isspace():
                continue
            line = orjson.loads(raw)
            key, label = _label(line, job)
            body = line.get("request", {} if "key" in line or job.input_file is None else line)
            request = read(body or {}, message, "", [])
            error = counters.row_error(key, failing_job=failing) if number < count else rest
            outcome = error or refusal(request, state_of_file) or _answer(request, job, faults, options, key)
            if isinstance(outcome, RowError):
                results.failed += 1
            else:
                results.ok += 1
            number += 1
            yield from _copies(outcome, label, key, faults)
    if count:
        for key in faults.extra_keys:
            label = {"key": key} if job.input_file else {"metadata": {"key": key}}
            request = {"contents": [{"parts": [{"text": key}]}], "content": {"parts": [{"text": key}]}}
            yield from _copies(_answer(request, job, faults, options, key), label, key, faults)


def _label(line: dict[str, Any], job: Job) -> tuple[str, dict[str, Any]]:
    """The key that faults know a row by, and what is sent back beside its answer, word for word."""
    if job.input_file:
        key = line.get("key")
        return str(key or ""), {} if key is None else {"key": key}
    metadata = line.get("metadata")
    return str((metadata or {}).get("key", "")), {"metadata": metadata} if metadata else {}


def _answer(request: dict[str, Any], job: Job, faults: Faults, options: Options, key: str) -> dict[str, Any] | RowError:
    twist = next((name for name, field in TWISTS.items() if hits(getattr(faults, field), key)), "")
    row = Row(request, job.model, options, twist or ("degenerate" if faults.degenerate_json_schema else ""))
    try:
        answer = row.embed() if job.embeds else row.generate()
    except RefusedError as e:
        return RowError(code=3, message=str(e))
    if hits(faults.no_usage_keys, key):
        answer.pop("usageMetadata", None)
        answer.pop("tokenCount", None)
    return answer


def _copies(outcome: dict[str, Any] | RowError, label: dict[str, Any], key: str, faults: Faults) -> Iterator[bytes]:
    """No, one or two lines for a row."""
    if hits(faults.drop_keys, key):
        return
    if key in faults.rename_keys:
        renamed = faults.rename_keys[key]
        label = {"key": renamed} if "key" in label else {"metadata": {**label.get("metadata", {}), "key": renamed}}
    if hits(faults.keyless_keys, key):
        label = {}
    if isinstance(outcome, RowError):
        # Result files have shown both orders: the key first in errors, last in answers. Readers must not care.
        error = {"error": _status(outcome, faults)}
        line = {**label, **error} if "key" in label else {**error, **label}
    else:
        line = {"response": outcome, **label}
    data = orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
    yield data
    if hits(faults.duplicate_keys, key):
        yield data


def _status(error: RowError, faults: Faults) -> dict[str, Any]:
    """A google.rpc.Status with a gRPC code."""
    body: dict[str, Any] = {"code": error.code, "message": error.message}
    details = list(error.details)
    if faults.error_details and not details:
        details = [
            {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "EMULATED", "domain": "googleapis.com"}
        ]
    return {**body, "details": details} if details else body


def _shuffled(lines: Iterator[bytes], scratch: Path, seed: str) -> Iterator[bytes]:
    """The lines in another order. Memory holds their places only; the lines wait on disk."""
    places: list[tuple[int, int]] = []
    with scratch.open("wb+") as file:
        at = 0
        for line in lines:
            file.write(line)
            places.append((at, len(line)))
            at += len(line)
        ordered = list(places)
        random.Random(seed).shuffle(places)
        if places == ordered:
            places.reverse()
        for at, size in places:
            file.seek(at)
            yield file.read(size)
    scratch.unlink()


def _laid_out(lines: Iterator[bytes], faults: Faults) -> Iterator[bytes]:
    """The lines as the file has them: broken, with blank ones, with other line ends, without the last line end."""
    end = b"\r\n" if faults.crlf else b"\n"
    held: bytes | None = None  # The last line's end is known to be the last one only at the end.
    for number, line in enumerate(lines, 1):
        text = line.rstrip(b"\n")
        if number in faults.corrupt_lines:
            text = text[: max(1, len(text) * 2 // 3)]
        if held is not None:
            yield held + end + (end if faults.blank_lines else b"")
        held = text
    if held is not None:
        yield held if faults.no_trailing_newline else held + end
