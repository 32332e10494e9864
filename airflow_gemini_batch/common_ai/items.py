"""Lines of a result file become common.ai's items, one after the other: nothing but the line at hand is in memory."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from airflow.providers.common.ai.batch.base import RawResultItem

from airflow_gemini_batch.core.answers import key_of, load
from airflow_gemini_batch.core.jobs import Phase
from airflow_gemini_batch.core.reading import Reader
from airflow_gemini_batch.core.results import Result, Status

log = logging.getLogger(__name__)

READER = Reader()

NOT_RUN: dict[tuple[Phase, int], str] = {(Phase.CANCELLED, 1): "cancelled", (Phase.EXPIRED, 4): "expired"}
"""How a job ended and a row's gRPC code (CANCELLED, DEADLINE_EXCEEDED) → the row was not run; any other error is its own."""


def read_items(file: BinaryIO, phase: Phase, identity: str | None) -> Iterator[RawResultItem]:
    """
    Read a result file to its end and close it. A line that belongs to no request is told and passed over: common.ai counts
    that request as missing.

    :param phase: how the job ended.
    :param identity: of the task instance, which its keys begin with; None if the job does not tell.
    """
    with file:
        file.seek(0)
        for number, data in enumerate(file, 1):
            if not data.strip():
                continue
            try:
                line = load(data)
                custom_id = key_of(line)
            except ValueError as e:
                log.warning("Line %s of the results cannot be read (%s): %r", number, e, data[:200])
                continue
            ours, _, index = custom_id.rpartition("-")
            if not re.fullmatch("0|[1-9][0-9]{0,8}", index) or ours != (identity or ours):
                log.warning("Line %s of the results has a key that was not sent: %r", number, custom_id)
                continue
            yield _item(custom_id, int(index), line, phase)


def _item(custom_id: str, index: int, line: Mapping[str, Any], phase: Phase) -> RawResultItem:
    result = READER.read({"key": custom_id}, line)
    failed = result.status in (Status.ERROR, Status.BLOCKED)
    status = NOT_RUN.get((phase, result.error_code or 0), "errored") if failed else "success"
    return RawResultItem(
        custom_id=custom_id,
        index=index,
        provider_status=status,
        model=result.model_version,
        usage=_usage(result),
        finish_reason=result.finish_reason,
        error=_error(result, status) if failed else None,
        # Text alone: a truncated answer is a success with finish_reason MAX_TOKENS, as with common.ai's own adapters.
        raw=None if failed else result.text,
    )


def _usage(result: Result) -> dict[str, int] | None:
    if (usage := result.usage) is None:
        return None
    return {
        "input_tokens": usage.input_tokens,
        # What is billed as output.
        "output_tokens": usage.output_tokens + usage.thoughts_tokens,
        "thoughts_tokens": usage.thoughts_tokens,
        "cached_tokens": usage.cached_tokens,
    }


def _error(result: Result, status: str) -> dict[str, Any]:
    if result.status is Status.BLOCKED:
        reason = result.block_reason or result.finish_reason
        what = "the prompt was blocked" if result.block_reason else "the answer was withheld"
        kind, code, message = "blocked", reason, result.error_message or f"{what}: {reason}"
    else:
        kind = "provider_error" if status == "errored" else status
        code = str(result.error_code) if result.error_code is not None else result.finish_reason
        message = result.error_message or "no message"
    return {"type": kind, "message": message, "provider_code": code, "stage": "provider"}
