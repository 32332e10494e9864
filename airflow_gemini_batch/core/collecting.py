"""A job that ended becomes a landed slot: its results are fetched to storage, parsed as they come, and landed as one part."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import orjson

from airflow_gemini_batch.core import storage
from airflow_gemini_batch.core.ahead import release_reserves
from airflow_gemini_batch.core.answers import Reject
from airflow_gemini_batch.core.attempt import Attempt
from airflow_gemini_batch.core.fetching import StartedOver, fetching
from airflow_gemini_batch.core.jobs import Job, JobError, Phase
from airflow_gemini_batch.core.landing import writing_part
from airflow_gemini_batch.core.ledger import Entry, Landed, Submitted
from airflow_gemini_batch.core.media import unsendable
from airflow_gemini_batch.core.media_files import saving
from airflow_gemini_batch.core.names import wire_key
from airflow_gemini_batch.core.pairing import Pairing, Plain
from airflow_gemini_batch.core.plain_lines import COUNTS
from airflow_gemini_batch.core.plan import Shard
from airflow_gemini_batch.core.prices import Prices
from airflow_gemini_batch.core.reading import Reader
from airflow_gemini_batch.core.results import PASSING_CODES, Result, Status
from airflow_gemini_batch.core.shards import read_rows_file
from airflow_gemini_batch.core.usage import Tally, Usage
from airflow_gemini_batch.exceptions import DownloadBroken, ResultsLost

log = logging.getLogger("airflow_gemini_batch")

MEDIA_GONE_CODES = frozenset({7, 9})
"""
gRPC codes of a row that names an upload which has expired or was deleted (PERMISSION_DENIED: the service does not say "not
found") or is not ready (FAILED_PRECONDITION). The next round uploads it anew.
"""

REJECTED_CHARS = 10_000


@dataclass(frozen=True)
class Ending:
    """
    How a slot's job ended.

    :param state: a job state, or ``GONE``, ``TIMED_OUT``, ``STUCK``, ``NOTHING_SENT``, ``OVER_BUDGET``, ``REFUSED``,
        ``CANARY_FAILED``, ``CANARY_UNANSWERED``.
    :param results: the result file, if there is one: also cancelled and expired jobs may have part of one.
    :param at: Unix time of the job's end, if the service said it.
    :param detail: how the job stood when it was given up; why nothing was sent.
    :param lost: nobody will know what it used.
    """

    state: str
    results: str | None = None
    answered: int = 0
    error: JobError | None = None
    at: float | None = None
    detail: str = ""
    lost: bool = False

    @classmethod
    def of(cls, job: Job, entry: Entry | None = None) -> Ending:
        """:param entry: of its slot; a job that was cancelled for having taken too long ended because of that."""
        given_up = entry is not None and entry.cancelled_at is not None and job.phase is not Phase.SUCCEEDED
        at = job.ended_at.timestamp() if job.ended_at else None
        if given_up and entry is not None:
            return cls(entry.cancelled_as, job.results, job.counts.done, job.error, at, entry.cancel_detail)
        return cls(job.state, job.results, job.counts.done, job.error, at)

    @classmethod
    def again(cls, landed: Landed) -> Ending:
        """As it was when the slot was landed before."""
        return cls(landed.state, error=landed.job_error, at=landed.ended_at, detail=landed.detail, lost=landed.lost)

    @property
    def well(self) -> bool:
        """Rows without a line are missing, not failed with the job."""
        return self.state in ("SUCCEEDED", "PARTIALLY_SUCCEEDED", "NOTHING_SENT")

    def passes(self, *, falls_back: bool) -> bool:
        """
        True if its rows may be sent again without being asked for: nobody stopped it, and its error may pass.

        :param falls_back: they would go to another model, with which there may be no error.
        """
        if self.state == "FAILED":
            return falls_back or self.error is None or self.error.code is None or self.error.code in PASSING_CODES
        if self.state == "REFUSED":
            return falls_back
        return self.state in ("EXPIRED", "TIMED_OUT", "STUCK", "CANARY_UNANSWERED")

    def explain(self, job: str | None) -> str:
        if job is None:
            return f"not sent: {self.detail}"
        reason = f": {self.error.message}" if self.error and self.error.message else ""
        return f"job {job} ended as {self.state}{reason}"


def land(
    attempt: Attempt, shard: Shard, submitted: Submitted | None, ending: Ending, taken: Collection[str] = frozenset()
) -> Landed:
    """
    Land one slot and record it. Safe to repeat: the same results give the same files.

    :param taken: keys, as sent, that a later round took: they are not settled here, whatever the settings say by now.
    :raises ServiceError: the results could not be fetched.
    """
    for _ in range(2):
        with suppress(StartedOver):  # then the results are on storage now
            return _land(attempt, shard, submitted, ending, taken)
    raise DownloadBroken(f"The results of {shard.slot} were others each time they were fetched.")


def _land(
    attempt: Attempt, shard: Shard, submitted: Submitted | None, ending: Ending, taken: Collection[str]
) -> Landed:
    release_reserves()  # of the shard before this one
    left_out = unsendable(attempt, shard)
    policy, work = attempt.run.policy, attempt.work
    part_path = attempt.run.output.part(shard.slot, policy.file_format)
    counts: Counter[str] = Counter()
    auto = other = 0
    job = submitted.job if submitted else None
    model = submitted.model if submitted else attempt.model_of(shard)
    passes = ending.passes(falls_back=attempt.plan.falls_back(model))
    ended_at = ending.at or attempt.now()
    prices = attempt.prices(model, ended_at)
    tally = Tally(prices.price)
    with (
        storage.writing(work.unsettled(shard.slot), keep_empty=False) as unsettled,
        storage.writing(work.failed(shard.slot), keep_empty=False) as failed,
        writing_part(part_path, attempt.table, policy.file_format) as part,
        _pairing(attempt, shard, submitted, ending, left_out) as pairing,
    ):

        def add(row: Mapping[str, Any], result: Result) -> None:
            nonlocal auto, other
            if result.usage is not None:
                tally.add(result.usage)
            elif "unsent" not in row and result.status not in (Status.ERROR, Status.MISSING):
                tally.add_many(Usage(), None)  # an answer that does not say what it used
            result, settled, passing = _judge_row(row, result, ending, job, passes=passes, redo=policy.redo)
            key = wire_key(row)
            settled = settled and key not in taken
            # A row that was left out may have an answer all the same: another attempt sent it.
            unsent = "unsent" in row or (key in left_out and result.error_message == left_out[key])
            result, origin = _better(row, result, Origin(None if unsent else job, shard.slot.round))
            if settled:
                part.add(result, row.get("keep", {}), job=origin.job, round_number=origin.round)
                counts[result.status.value] += 1
                if result.status is not Status.OK and "unsent" not in row:
                    failed.write(_failed_line(row, result))
            else:
                unsettled.write(_unsettled_line(row, result, origin, passing=passing))
                auto, other = auto + passing, other + (not passing)

        if policy.file_format == "parquet" and attempt.table.takes_plain and not taken:
            for plain in pairing.plainly():
                columns = attempt.table.columns(plain.rows, plain.lines, job=job, round_number=shard.slot.round)
                _count_plain(tally, prices, plain)
                if plain.rows:
                    counts[Status.OK.value] += len(plain.rows)
                start = 0
                for place, row, result in plain.others:
                    part.add_columns(columns.slice(start, place - start))
                    add(row, result)
                    start = place
                part.add_columns(columns.slice(start))
        for row, result in pairing.one_by_one():
            add(row, result)
        oddities = pairing.oddities
        attempt.check_current()  # after what takes minutes, and before anything appears
    landed = Landed(
        part=part_path.name if counts else None,
        format=policy.file_format,
        state=ending.state,
        counts=dict(counts),
        unsettled_auto=auto,
        unsettled_other=other,
        usage=tally.sum().usage,
        oddities=oddities,
        job_error=ending.error,
        pico_usd=tally.sum().pico_usd,
        ended_at=ended_at,
        detail=ending.detail,
        lost=ending.lost,
        columns=list(attempt.table.kinds),
    )
    if not counts:
        storage.remove(part_path)
    if not auto + other:
        storage.remove(work.unsettled(shard.slot))
    if counts.total() == counts[Status.OK.value]:
        storage.remove(work.failed(shard.slot))
    attempt.ledger.landed(shard.slot, landed)
    _report(shard, landed, job)
    return landed


def _count_plain(tally: Tally, prices: Prices, plain: Plain) -> None:
    """Add the tokens and the cost of plain answers: together, unless one of them is so large that it has another price."""
    if plain.rows and plain.lines["prompt_tokens"].null_count:
        tally.add_many(plain.usage, None)
        return
    if plain.usage == Usage():
        return
    counts = [plain.lines[name].to_pylist() for name in ("prompt_tokens", "tool_tokens")]
    largest = max((prompt or 0) + (tool or 0) for prompt, tool in zip(*counts, strict=True))
    together = prices.price_many(plain.usage, largest)
    if together is not False:
        tally.add_many(plain.usage, together)
        return
    columns = (plain.lines[name].to_pylist() for name in COUNTS)
    for prompt, output, thoughts, cached, tool in zip(*columns, strict=True):
        tally.add(Usage(prompt or 0, output or 0, thoughts or 0, cached or 0, tool or 0))


def land_again(
    attempt: Attempt, shard: Shard, entry: Entry, landed: Landed, taken: Collection[str] = frozenset()
) -> Landed:
    """Land a slot from its raw results on storage; should they have been removed, from those at the service."""
    submitted = entry.submitted
    if submitted is None or attempt.work.results(shard.slot).exists():
        return land(attempt, shard, submitted, Ending.again(landed), taken)
    if landed.part is None:
        # No row was settled by this job, and each has gone its own way since: a result that came late changes nothing.
        return landed
    seen = attempt.client.look(submitted.job)
    if isinstance(seen, Job) and seen.results:
        return land(attempt, shard, submitted, Ending.of(seen, entry), taken)
    if landed.format != attempt.run.policy.file_format or not (attempt.run.output.path / landed.part).exists():
        raise ResultsLost(
            f"{shard.slot} cannot be landed again: its raw results are neither on storage nor at the service any more. Clear "
            'the task with reuse="never" to ask, and pay, anew.'
        )
    return landed


@contextmanager
def _reader(attempt: Attempt) -> Iterator[Reader]:
    """How this run's answers are read. At the end of the block all their media are written."""
    policy, table = attempt.run.policy, attempt.table
    dimensions = attempt.plan.spec.get("template", {}).get("outputDimensionality")
    reader = Reader(table.embeddings, dimensions, table.schema, policy.include, policy.include_raw)
    if not table.media:
        yield reader
        return
    with saving(attempt.run.output.media) as media:
        yield replace(reader, media=media)


def _judge_row(
    row: Mapping[str, Any], result: Result, ending: Ending, job: str | None, *, passes: bool, redo: Collection[str]
) -> tuple[Result, bool, bool]:
    """Return the result with its final words, whether it is settled, and if not, whether it may pass by itself."""
    if "unsent" in row:
        return result, True, False
    if result.status is Status.MISSING and not ending.well:
        code = ending.error.code if ending.error else None
        explained = replace(result, status=Status.ERROR, error_code=code, error_message=ending.explain(job))
        return explained, False, passes
    # Rows of a job that somebody stopped may say CANCELLED each; that passes no more by itself than the job's end.
    gone = "media" in row and result.error_code in MEDIA_GONE_CODES
    again = result.passing or gone or result.status.value in redo
    return result, not again, again and (ending.well or passes)


@dataclass(frozen=True)
class Origin:
    """Where a row's result comes from."""

    job: str | None
    round: int


def _better(row: Mapping[str, Any], result: Result, origin: Origin) -> tuple[Result, Origin]:
    """
    Keep what an earlier round brought where this one brought less: a text (truncated, or not what the schema asks for)
    counts for more than none, and any reason for more than that nothing was sent.
    """
    if (before := row.get("earlier")) is None or result.text or result.status is Status.OK:
        return result, origin
    earlier = Result.from_dict(before["result"])
    if not earlier.text and origin.job is not None:
        return result, origin
    again = f"asked again in round {origin.round}: {result.status}, {result.error_message or 'no text'}"
    said = f"{earlier.error_message}; {again}" if earlier.error_message else again
    return replace(earlier, error_message=said), Origin(before["job"], before["round"])


def _unsettled_line(row: Mapping[str, Any], result: Result, origin: Origin, *, passing: bool) -> bytes:
    told = {name: value for name, value in row.items() if name != "earlier"}
    body = {"row": told, "result": result.to_dict(), "job": origin.job, "round": origin.round, "auto": passing}
    return orjson.dumps(body, option=orjson.OPT_APPEND_NEWLINE)


def _failed_line(row: Mapping[str, Any], result: Result) -> bytes:
    return orjson.dumps({"key": wire_key(row), "result": result.to_dict()}, option=orjson.OPT_APPEND_NEWLINE)


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


@contextmanager
def _pairing(
    attempt: Attempt, shard: Shard, submitted: Submitted | None, ending: Ending, left_out: Mapping[str, str]
) -> Iterator[Pairing]:
    """
    Rows and answers of one slot. At the end of the block the raw results are on storage, and all media of answers written.
    """
    with ExitStack() as stack:
        results = _results(attempt, shard, submitted, ending, sent=shard.requests - len(left_out))
        file = stack.enter_context(results)
        aside = stack.enter_context(storage.writing(attempt.work.rejected(shard.slot), keep_empty=False))
        reader = stack.enter_context(_reader(attempt))
        rows_file = shard.rows_in(attempt.work)
        yield Pairing(file, lambda: read_rows_file(rows_file), reader, left_out, _writing_aside(aside))


def bring(attempt: Attempt, shard: Shard, submitted: Submitted, ending: Ending) -> None:
    """
    Bring a slot's raw results to storage, without landing them.

    :raises ServiceError: they could not be fetched.
    """
    with suppress(StartedOver), _results(attempt, shard, submitted, ending, sent=0) as file:
        while file is not None and file.read(storage.COPY_BYTES):
            pass


@contextmanager
def _results(
    attempt: Attempt, shard: Shard, submitted: Submitted | None, ending: Ending, *, sent: int
) -> Iterator[BinaryIO | None]:
    """
    Give a slot's raw results, None if there are none. What is on storage already is not fetched again.

    :param sent: how many requests of the shard were sent.
    """
    path = attempt.work.results(shard.slot)
    if path.exists():
        with storage.local_copy(path) as file:
            yield file
    elif submitted is None or (ending.results is None and not ending.well):
        yield None
    elif ending.results is None:
        # Its answers exist and are paid for; sending the rows again because of this would pay twice.
        raise DownloadBroken(f"{submitted.job} ended as {ending.state}, but names no result file.")
    else:
        # Every request of a job that succeeded should have its line; the counts alone are not always told.
        due = max(ending.answered, sent if ending.well else 0)
        with fetching(attempt, path, job=submitted.job, name=ending.results, due=due) as file:
            yield file


def _writing_aside(file: BinaryIO) -> Reject:
    def reject(line: int, reason: str, data: bytes) -> None:
        text = data.decode("utf-8", "replace")[:REJECTED_CHARS]
        file.write(orjson.dumps({"line": line, "reason": reason, "text": text}, option=orjson.OPT_APPEND_NEWLINE))

    return reject
