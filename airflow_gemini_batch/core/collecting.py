"""A job that ended becomes a landed slot: results fetched to storage first, then parsed, then landed as one part."""

from __future__ import annotations

import io
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import orjson

from airflow_gemini_batch.core import storage
from airflow_gemini_batch.core.attempt import Attempt
from airflow_gemini_batch.core.jobs import Job, JobError, Phase
from airflow_gemini_batch.core.landing import table_types, writing_part
from airflow_gemini_batch.core.ledger import Landed, Submitted
from airflow_gemini_batch.core.plan import Shard
from airflow_gemini_batch.core.results import PASSING_CODES, Answers, Oddities, Reject, Result, Status, join
from airflow_gemini_batch.core.shards import read_rows_file
from airflow_gemini_batch.core.usage import Usage
from airflow_gemini_batch.exceptions import DownloadBroken, RequestRefused, ResultsLost, ServiceError

log = logging.getLogger("airflow_gemini_batch")

SHORT_TRIES = 3
"""Downloads of a file that holds fewer lines than the job says it answered, before that is taken for the truth."""

REJECTED_CHARS = 10_000


@dataclass(frozen=True)
class Ending:
    """
    How a slot's job ended.

    :param state: a job state, or ``GONE``, ``TIMED_OUT``, ``NOTHING_SENT``.
    :param results: the result file, if there is one: also cancelled and expired jobs may have part of one.
    """

    state: str
    results: str | None = None
    answered: int = 0
    error: JobError | None = None

    @classmethod
    def of(cls, job: Job, *, timed_out: bool = False) -> Ending:
        state = "TIMED_OUT" if timed_out and job.phase is not Phase.SUCCEEDED else job.state
        return cls(state, job.results, job.counts.done, job.error)

    @property
    def well(self) -> bool:
        """Rows without a line are missing, not failed with the job."""
        return self.state in ("SUCCEEDED", "PARTIALLY_SUCCEEDED", "NOTHING_SENT")

    @property
    def passing(self) -> bool:
        """Its rows may be sent again without being asked for: nobody stopped it, and its error may pass."""
        if self.state == "FAILED":
            return self.error is None or self.error.code is None or self.error.code in PASSING_CODES
        return self.state in ("EXPIRED", "TIMED_OUT")

    def explain(self, job: str) -> str:
        reason = f": {self.error.message}" if self.error and self.error.message else ""
        return f"job {job} ended as {self.state}{reason}"


def land(attempt: Attempt, shard: Shard, submitted: Submitted | None, ending: Ending) -> Landed:
    """
    Land one slot and record it. Safe to repeat: the same results give the same files.

    :raises ServiceError: the results could not be fetched.
    """
    if submitted:
        _fetch(attempt, shard, submitted.job, ending)
    attempt.check_current()
    policy, work = attempt.run.policy, attempt.work
    part_path = attempt.run.output.part(shard.slot, policy.file_format)
    types = table_types(attempt.plan.keep_types, include_raw=policy.include_raw)
    counts: Counter[str] = Counter()
    auto = other = 0
    usage = Usage()
    job = submitted.job if submitted else None
    with (
        _answers(attempt, shard) as answers,
        storage.writing(work.unsettled(shard.slot), keep_empty=False) as unsettled,
        writing_part(part_path, types, policy.file_format, include_raw=policy.include_raw) as part,
    ):
        for row, result in join(read_rows_file(shard.rows_in(work)), answers, include_raw=policy.include_raw):
            if result.usage is not None:
                usage = usage + result.usage
            result, settled, passing = _judge_row(result, ending, job)
            if settled:
                part.add(
                    result, row.get("keep", {}), job=job if "unsent" not in row else None, round_number=shard.slot.round
                )
                counts[result.status.value] += 1
            else:
                unsettled.write(_unsettled_line(row, result, job, passing=passing))
                auto, other = auto + passing, other + (not passing)
        oddities = answers.finish() if answers else Oddities()
    landed = Landed(
        part=part_path.name if counts else None,
        format=policy.file_format,
        state=ending.state,
        counts=dict(counts),
        unsettled_auto=auto,
        unsettled_other=other,
        usage=usage,
        oddities=oddities,
        job_error=ending.error,
    )
    if not counts:
        storage.remove(part_path)
    if not auto + other:
        storage.remove(work.unsettled(shard.slot))
    attempt.ledger.landed(shard.slot, landed)
    _report(shard, landed, job)
    return landed


def _judge_row(result: Result, ending: Ending, job: str | None) -> tuple[Result, bool, bool]:
    """Return the result with its final words, whether it is settled, and if not, whether it may pass by itself."""
    if result.status is Status.MISSING and not ending.well:
        code = ending.error.code if ending.error else None
        explained = replace(result, status=Status.ERROR, error_code=code, error_message=ending.explain(str(job)))
        return explained, False, ending.passing
    # Rows of a job that somebody stopped may say CANCELLED each; that passes no more by itself than the job's end.
    return result, not result.passing, result.passing and (ending.well or ending.passing)


def _unsettled_line(row: Mapping[str, Any], result: Result, job: str | None, *, passing: bool) -> bytes:
    body = {"row": row, "result": result.to_dict(), "job": job, "auto": passing}
    return orjson.dumps(body, option=orjson.OPT_APPEND_NEWLINE)


def _report(shard: Shard, landed: Landed, job: str | None) -> None:
    counted = ", ".join(f"{n} {status}" for status, n in sorted(landed.counts.items())) or "no row settled"
    left = landed.unsettled_auto + landed.unsettled_other
    log.info("Landed %s (%s): %s%s", shard.slot, job or "nothing sent", counted, f", {left} unsettled" if left else "")
    if landed.oddities:
        odd = landed.oddities
        log.warning(
            "The results of %s have %s unreadable lines, %s under unknown keys, %s under a key that had one already. They "
            "are kept in the run's directory under rejected/%s.jsonl",
            job, odd.corrupt, odd.unknown_key, odd.duplicate, shard.slot,
        )  # fmt: skip


def _fetch(attempt: Attempt, shard: Shard, job: str, ending: Ending) -> None:
    """
    Bring the raw results to storage, whole, before anything is parsed. What is there already is not fetched again.

    :raises ResultsLost: the service does not give them out any more.
    :raises DownloadBroken: they could not be had this time.
    """
    path = attempt.work.results(shard.slot)
    if path.exists():
        return
    if ending.results is None:
        if ending.well:
            # Its answers exist and are paid for; sending the rows again because of this would pay twice.
            raise DownloadBroken(f"{job} ended as {ending.state}, but names no result file.")
        return
    # Every request of a job that succeeded should have its line; the counts alone are not always told.
    due = max(ending.answered, shard.requests if ending.well else 0)
    for tried in range(1, SHORT_TRIES + 1):
        with storage.writing(path, keep_empty=False) as f:
            size = _download(attempt, job, ending.results, f)
            lines, whole = _count_lines(f)
            # A last line that is broken, but the last one due, is a corrupt line like any other and no torn file.
            if (whole and lines >= due) or (tried == SHORT_TRIES and (whole or lines >= due)):
                f.seek(0, io.SEEK_END)
                log.info("Fetched %s: %s lines, %s bytes", ending.results, lines, size)
                return
            log.warning(
                "%s has %s lines%s, but %s are due; fetching it again",
                ending.results, lines, "" if whole else " and ends in the middle of one", due,
            )  # fmt: skip
            f.seek(0)
            f.truncate()  # an empty file does not appear
        attempt.services.sleep(1.0)
    raise DownloadBroken(f"{ending.results} of {job} ended in the middle of a line {SHORT_TRIES} times.")


def _download(attempt: Attempt, job: str, name: str, to: BinaryIO) -> int:
    try:
        return attempt.client.download(name, to)
    except RequestRefused as e:
        raise ResultsLost(
            f"The results of {job} ({name}) cannot be had any more: {e}. The service keeps results for some weeks and gives "
            'them to their own project only. Clear the task with reuse="never" to ask, and pay, anew.'
        ) from e


def _count_lines(f: BinaryIO) -> tuple[int, bool]:
    """Lines with content, a torn last one included, and whether the last one is whole (it need not end with a newline)."""
    f.seek(0)
    lines, last = 0, b""
    for line in f:
        if line.strip():
            lines += 1
            last = line
    if not last or last.endswith(b"\n"):
        return lines, True
    try:
        orjson.loads(last)
    except orjson.JSONDecodeError:
        return lines, False
    return lines, True


@contextmanager
def _answers(attempt: Attempt, shard: Shard) -> Iterator[Answers | None]:
    path = attempt.work.results(shard.slot)
    if not path.exists():
        yield None
        return
    keys = (row["key"] for row in read_rows_file(shard.rows_in(attempt.work)) if "unsent" not in row)
    with storage.local_copy(path) as f, storage.writing(attempt.work.rejected(shard.slot), keep_empty=False) as aside:
        yield Answers(f, keys, _writing_aside(aside))


def _writing_aside(file: BinaryIO) -> Reject:
    def reject(line: int, reason: str, data: bytes) -> None:
        text = data.decode("utf-8", "replace")[:REJECTED_CHARS]
        file.write(orjson.dumps({"line": line, "reason": reason, "text": text}, option=orjson.OPT_APPEND_NEWLINE))

    return reject


def delete_remote(attempt: Attempt, submitted: Submitted, ending: Ending) -> None:
    """Remove at the service what is no longer needed, as ``delete_remote`` says. A refusal is told and tolerated."""
    policy = attempt.run.policy.delete_remote
    if policy == "never":
        return
    wanted = [submitted.file] if submitted.file else []
    if policy == "all":
        wanted += [ending.results] if ending.results else []
    try:
        for name in wanted:
            attempt.client.delete_file(name)
        if policy == "all":
            attempt.client.delete_job(submitted.job)
    except ServiceError as e:
        log.info("Not everything of %s could be deleted at the service: %s", submitted.job, e)
