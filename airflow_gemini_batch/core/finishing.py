"""The end of a run: what stays unsettled lands with its reason, the manifest is written, and it is said how the run ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from airflow_gemini_batch.core import documents, media, prices, storage
from airflow_gemini_batch.core.answers import Oddities
from airflow_gemini_batch.core.attempt import Attempt, log, utc
from airflow_gemini_batch.core.collecting import land_again
from airflow_gemini_batch.core.estimate import Estimate
from airflow_gemini_batch.core.failures_file import Failures, write_failures
from airflow_gemini_batch.core.landing import FORMATS, read_part, writing_part
from airflow_gemini_batch.core.ledger import Entry, Landed
from airflow_gemini_batch.core.manifest import Manifest
from airflow_gemini_batch.core.plan import Round, Shard, shards_of
from airflow_gemini_batch.core.removing import delete_jobs
from airflow_gemini_batch.core.results import Result, Status
from airflow_gemini_batch.core.rounds import Leftovers
from airflow_gemini_batch.core.storage import StoragePath
from airflow_gemini_batch.core.usage import Spent, Usage
from airflow_gemini_batch.core.wording import counted, dollars
from airflow_gemini_batch.exceptions import (
    CanaryFailed,
    JobCancelled,
    JobExpired,
    JobFailed,
    JobGone,
    JobRefused,
    JobStuck,
    JobTimedOut,
    OverBudget,
    RunFailed,
    TooManyFailedRows,
)


@dataclass(frozen=True)
class Slot:
    """A shard with what the ledger says of it, landed."""

    shard: Shard
    entry: Entry
    landed: Landed

    @property
    def job(self) -> str | None:
        return self.entry.submitted.job if self.entry.submitted else None


def finish(attempt: Attempt, rounds: list[Round]) -> Manifest:
    """
    Land what stays unsettled, load the database if one was named, and write the manifest.

    :raises RunFailed: everything is landed, but the run did not end as hoped.
    """
    output, policy = attempt.run.output, attempt.run.policy
    leftovers = Leftovers(attempt.work, rounds)
    slots = [_landed(attempt, shard, leftovers) for shard in shards_of(rounds)]
    counts: Counter[str] = Counter({status.value: 0 for status in Status})
    for slot in slots:
        counts.update(slot.landed.counts)
    files = [output.path / slot.landed.part for slot in slots if slot.landed.part]
    left = _land_leftovers(attempt, leftovers, slots)
    counts.update(left.statuses)
    if left.slots:
        files.append(output.unsettled_part(policy.file_format))
    failures = write_failures(attempt, rounds, leftovers)
    failure = _judge(attempt, counts, slots, left.slots)
    manifest = _manifest(attempt, rounds, slots, counts, files, failures, failure)
    _load(attempt, files)
    _remove_other_formats(attempt, rounds)
    media.remove(attempt, shards_of(rounds))
    delete_jobs(attempt, {one.job: one for slot in slots if (one := slot.entry.submitted)})
    told = documents.read("told", attempt.work.told) or {}
    # From here on nothing may fail but the run itself: who finds a manifest with a failure was asked to send the rest.
    manifest.write(output)
    news = _news(attempt, manifest, told)
    for line in summary(manifest, failures):
        log.info(line)
    if failure is not None:
        failure.summary, failure.news = manifest.to_xcom(), news
        raise failure
    return replace(manifest, news=news)


def _landed(attempt: Attempt, shard: Shard, leftovers: Leftovers) -> Slot:
    entry, output = attempt.ledger.read(shard.slot), attempt.run.output
    landed = entry.landed
    assert landed is not None, f"{shard.slot} is not landed"
    as_now = landed.format == attempt.run.policy.file_format and landed.columns == list(attempt.table.kinds)
    if not as_now or (landed.part and not (output.path / landed.part).exists()):
        landed = land_again(attempt, shard, entry, landed, leftovers.taken_after(shard.slot.round))
    return Slot(shard, entry, landed)


@dataclass(frozen=True)
class Left:
    """Rows that no later round took: how many of each status, and of which slots."""

    statuses: Counter[str]
    slots: frozenset[str]


def _land_leftovers(attempt: Attempt, leftovers: Leftovers, slots: list[Slot]) -> Left:
    """Rows that no later round took, each with its reason, in one part of their own."""
    policy = attempt.run.policy
    path = attempt.run.output.unsettled_part(policy.file_format)
    counts: Counter[str] = Counter()
    whose = set()
    with writing_part(path, attempt.table, policy.file_format) as part:
        for slot in slots:
            for left in leftovers.of(slot.shard.slot):
                result = Result.from_dict(left["result"])
                part.add(result, left["row"].get("keep", {}), job=left["job"], round_number=left["round"])
                counts[result.status.value] += 1
                whose.add(str(slot.shard.slot))
    if not counts:
        storage.remove(path)
    return Left(counts, frozenset(whose))


def _load(attempt: Attempt, files: list[StoragePath]) -> None:
    """Load the landed files into the database, if one was named: before the manifest, which says that all is done."""
    if attempt.run.loader is not None:
        batches = (batch for file in files for batch in read_part(file, attempt.table))
        attempt.run.loader.load(attempt.table.kinds, batches)


def _manifest(
    attempt: Attempt, rounds: list[Round], slots: list[Slot], counts: Counter[str], files: list[StoragePath],
    failures: Failures, failure: RunFailed | None,
) -> Manifest:  # fmt: skip
    output, plan = attempt.run.output, attempt.plan
    spent = sum((slot.landed.spent for slot in slots), Spent())
    asked_first = {one.number for one in rounds if one.asks_first(rounds)}
    estimate = sum(
        (slot.shard.estimate for slot in slots if slot.job and slot.shard.slot.round in asked_first), Estimate()
    )
    return Manifest(
        run=asdict(plan.run),
        plan=plan.number,
        output=str(output.path),
        files=tuple(map(str, files)),
        file_format=attempt.run.policy.file_format,
        model=plan.model,
        rows=plan.rows,
        counts=dict(counts),
        rounds=len(rounds),
        by_round=tuple(_round(attempt, one, slots) for one in rounds),
        jobs=tuple(_jobs(attempt, slots)),
        usage=spent.usage,
        cost={
            "estimated_usd": _dollars(estimate),
            "actual_usd": None if any(slot.landed.lost for slot in slots) else _dollars(spent),
            "prices_as_of": _prices_as_of(attempt, slots),
        },
        estimate=estimate.to_dict(),
        odd_lines=asdict(sum((slot.landed.oddities for slot in slots), Oddities())),
        failures=str(output.failures) if failures.written else None,
        started_at=plan.created_at,
        finished_at=utc(attempt.now()),
        manifest=str(output.manifest),
        failure=str(failure) if failure else None,
        budget=budget.limits if (budget := attempt.run.policy.budget) else None,
    )


def _news(attempt: Attempt, manifest: Manifest, before: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """
    What this landing adds to what was told before, for metrics: a run that is landed again, or that goes on after it failed,
    counts nothing twice. Noted after the manifest, so that what was never told is told by the next attempt.
    """
    usage = {name.removesuffix("_tokens"): n for name, n in asdict(manifest.usage).items() if isinstance(n, int)}
    totals = {"rows": dict(manifest.counts), "tokens": usage, "jobs": {"": len(manifest.jobs)}}
    try:
        storage.publish(attempt.work.told, documents.dump("told", totals))
    except (
        Exception
    ) as e:  # storages raise anything; a count that is told twice is no reason to fail a run that is done
        log.warning("It could not be noted what was told as metrics: %s", e)
    return {
        what: {name: n for name, total in counts.items() if (n := total - before.get(what, {}).get(name, 0)) > 0}
        for what, counts in totals.items()
    }


def _prices_as_of(attempt: Attempt, slots: list[Slot]) -> str:
    """Where the prices of the models that were asked come from: the user's table, genai-prices, or both."""
    asked = ((slot.entry.submitted.model, slot.landed.ended_at) for slot in slots if slot.entry.submitted)
    sources = dict.fromkeys(attempt.prices(model, ended_at).source for model, ended_at in asked)
    return " and ".join(sources) or prices.prices_as_of()


def _dollars(amount: Any) -> float | None:
    return None if amount.usd is None else float(amount.usd)


def _round(attempt: Attempt, one: Round, slots: list[Slot]) -> dict[str, Any]:
    ours = [slot for slot in slots if slot.shard.slot.round == one.number]
    spent = sum((slot.landed.spent for slot in ours), Spent())
    counts: Counter[str] = Counter()
    for slot in ours:
        counts.update(slot.landed.counts)
    return {
        "round": one.number,
        "model": attempt.plan.model_of(one.asks),
        "rows": sum(shard.rows for shard in one.shards),
        "jobs": sum(slot.job is not None for slot in ours),
        "settled": dict(counts),
        "unsettled": sum(slot.landed.unsettled_auto + slot.landed.unsettled_other for slot in ours),
        "usage": asdict(spent.usage),
        "cost_usd": None if any(slot.landed.lost for slot in ours) else _dollars(spent),
    }


def _jobs(attempt: Attempt, slots: list[Slot]) -> Iterator[dict[str, Any]]:
    for slot in slots:
        if slot.entry.submitted:
            yield {
                "name": slot.entry.submitted.job,
                "slot": str(slot.shard.slot),
                "state": slot.landed.state,
                "requests": slot.shard.requests - len(media.unsendable(attempt, slot.shard)),
            }


def _remove_other_formats(attempt: Attempt, rounds: list[Round]) -> None:
    """Parts of an earlier landing in another format would stand as doubles beside the new ones. Its manifest goes first."""
    before = Manifest.load(attempt.run.output)
    if before is not None and before.file_format != attempt.run.policy.file_format:
        storage.remove(attempt.run.output.manifest)
    for suffix in FORMATS:
        if suffix != attempt.run.policy.file_format:
            for shard in shards_of(rounds):
                storage.remove(attempt.run.output.part(shard.slot, suffix))
            storage.remove(attempt.run.output.unsettled_part(suffix))


# How it ended -----------------------------------------------------------------------------------------------

ENDED_BADLY: dict[str, tuple[type[RunFailed], str]] = {
    "GONE": (JobGone, "is no longer at the service; its results are lost"),
    "CANCELLED": (JobCancelled, "was cancelled"),
    "FAILED": (JobFailed, "failed"),
    "EXPIRED": (JobExpired, "expired: the service gave it up after 48 hours"),
    "STUCK": (JobStuck, "stayed pending for longer than pending_timeout"),
    "TIMED_OUT": (JobTimedOut, "did not end in time"),
}
"""Outcomes of a job that fail the task if rows are left unsettled by them, the most telling first."""


def _judge(attempt: Attempt, counts: Counter[str], slots: list[Slot], left: frozenset[str]) -> RunFailed | None:
    """Return why the task must fail although everything was landed, or None."""
    shown = {status: n for status, n in counts.items() if n}
    where = str(attempt.run.output.manifest)
    for state, (error, said) in ENDED_BADLY.items():
        bad = [slot for slot in slots if slot.landed.state == state and str(slot.shard.slot) in left and slot.job]
        if bad:
            jobs = tuple(slot.job for slot in bad if slot.job)
            more = f" and {len(jobs) - 1} more" if len(jobs) > 1 else ""
            reason = next(
                (f": {slot.landed.job_error.message.rstrip('.')}" for slot in bad if slot.landed.job_error), ""
            )
            detail = f" ({bad[0].landed.detail})" if bad[0].landed.detail else ""
            return error(
                f"Job {jobs[0]}{more} {said}{detail}{reason}. Clear the task to send the unsettled rows again.",
                jobs=jobs, counts=shown, manifest=where,
            )  # fmt: skip
    jobs = tuple(slot.job for slot in slots if slot.job)
    for unsent in slots:
        if str(unsent.shard.slot) not in left:
            continue  # a later round sent what this one did not
        if unsent.landed.state == "REFUSED":
            return JobRefused(
                f"{unsent.shard.slot} was refused for good: {unsent.landed.detail} Clear the task to send its rows again.",
                jobs=jobs, counts=shown, manifest=where,
            )  # fmt: skip
        if unsent.landed.state == "OVER_BUDGET" and attempt.run.policy.ends_over_budget:
            return OverBudget(
                f"{unsent.landed.detail} Clear the task with a larger budget to send the rest.",
                jobs=jobs, counts=shown, manifest=where,
            )  # fmt: skip
        if unsent.landed.state == "CANARY_FAILED":
            return CanaryFailed(
                f"{unsent.landed.detail} The rest was not sent. Mend the prompt and clear the task with "
                'on_changed="resubmit", or clear it as it is to send the rest.',
                jobs=jobs, counts=shown, manifest=where,
            )  # fmt: skip
    rows, ok = attempt.plan.rows, counts[Status.OK.value]
    most = attempt.run.policy.max_failed_ratio
    if rows and ok == 0 and (most is None or most < 1):
        return TooManyFailedRows(f"Not one of {rows} rows is ok.", jobs=jobs, counts=shown, manifest=where)
    if rows and most is not None and (rows - ok) / rows > most:
        return TooManyFailedRows(
            f"{rows - ok} of {rows} rows are not ok, which is more than max_failed_ratio={most:g}.",
            jobs=jobs, counts=shown, manifest=where,
        )  # fmt: skip
    return None


def summary(manifest: Manifest, failures: Failures) -> Iterator[str]:
    """The last lines of the task's log: a short table of what became of the rows, and what it cost."""
    usage: Usage = manifest.usage
    actual, estimated = manifest.cost["actual_usd"], manifest.cost["estimated_usd"]
    yield f"rows      {manifest.rows:,}: " + (
        ", ".join(f"{n:,} {status}" for status, n in manifest.counts.items() if n) or "none"
    )
    for reason in failures.top():
        yield f"failed    {reason.rows:,} x {reason.text} (e.g. key {reason.key!r})"
    if manifest.failures is not None:
        yield f"          all of them, ready to be a source again: {manifest.failures}"
    when = f"from {manifest.started_at} to {manifest.finished_at}"
    yield f"sent      {counted(manifest.rounds, 'round')}, {counted(len(manifest.jobs), 'job')}, {when}"
    yield (
        f"tokens    {usage.prompt_tokens:,} prompt ({usage.cached_tokens:,} cached), {usage.output_tokens:,} output, "
        f"{usage.thoughts_tokens:,} thoughts, {usage.tool_tokens:,} tool use"
    )
    models = (
        " and ".join(dict.fromkeys(str(one["model"]) for one in manifest.by_round if one["jobs"])) or manifest.model
    )
    yield f"cost      {dollars(actual)}, estimated {dollars(estimated)} ({models}, {manifest.cost['prices_as_of']})"
    yield f"landed    {manifest.output} ({counted(len(manifest.files), 'file')}), manifest: {manifest.manifest}"
