"""
The steps joined: read this first.

``advance`` is one idempotent step. The operator calls it when it starts and after every wait, deferred or not; it reads
where the run stands from storage, does all that can be done now, and returns what to wait for or the manifest. A killed
attempt is not repaired: the next one simply advances.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from airflow_gemini_batch.core import prices, storage
from airflow_gemini_batch.core.attempt import Attempt, Run, Services, log, utc
from airflow_gemini_batch.core.collecting import Ending, delete_remote, land
from airflow_gemini_batch.core.jobs import Gone, Job, Refused
from airflow_gemini_batch.core.landing import FORMATS, table_types, writing_part
from airflow_gemini_batch.core.ledger import Entry, Landed, Submitted
from airflow_gemini_batch.core.manifest import Manifest
from airflow_gemini_batch.core.plan import Plan, Round, Shard
from airflow_gemini_batch.core.planning import find_or_make_plan, finished, leftovers, open_round, retire_older_plans
from airflow_gemini_batch.core.rest import Cancel
from airflow_gemini_batch.core.results import Oddities, Result, Status
from airflow_gemini_batch.core.submitting import look_for_twins, submit
from airflow_gemini_batch.core.usage import Usage
from airflow_gemini_batch.core.waiting import Outcome, Wait
from airflow_gemini_batch.exceptions import (
    CredentialsRefused,
    JobCancelled,
    JobExpired,
    JobFailed,
    JobGone,
    JobStillRunning,
    JobTimedOut,
    QuotaExceeded,
    ResultsLost,
    RunFailed,
    ServiceUnreachable,
    TooManyFailedRows,
)

CANCEL_TAKES = 600.0
"""Seconds a cancelled job gets to end by itself before its rows are given up for it."""


AT_ONCE = 8
"""Cancels sent at a time when a task is killed."""

CANCEL_AGAIN = 60.0
"""Seconds between two tries to cancel a job, when the service does not take the first."""


@dataclass(frozen=True)
class Waiting:
    """Nothing can be done before one of these jobs is worth another look."""

    waits: tuple[Wait, ...]


def advance(
    run: Run, services: Services, *, outcomes: Iterable[Outcome] = (), starting: bool = False
) -> Waiting | Manifest:
    """
    Bring a run as far as it can go now.

    :param outcomes: what the wait before this call found out.
    :param starting: True for the first call of an attempt, when somebody (or Airflow's retries) asked for the task again.
    :raises GeminiBatchError: the run cannot go on, or is over and landed but failed; see ``exceptions``.
    """
    plan = find_or_make_plan(run, services, starting=starting)
    attempt = Attempt(run, plan, services)
    retire_older_plans(attempt)
    again = _start_again(attempt) if starting else False
    while True:
        rounds = Round.load_all(attempt.work)
        waits = _work_through(attempt, rounds[-1], tuple(outcomes))
        if waits:
            return Waiting(waits)
        if _open_next(attempt, rounds, starting=starting and not again) is None:
            return _finish(attempt, rounds)


def _start_again(attempt: Attempt) -> bool:
    """
    A run that is over is asked for again. If it failed, its unsettled rows are sent again; otherwise it is landed again
    from what is there, which costs nothing. True when it was over.
    """
    manifest = finished(attempt.run.output, attempt.plan)
    if manifest is None:
        return False
    rounds = Round.load_all(attempt.work)
    if manifest.failure is not None:
        last = len(rounds) + attempt.run.policy.max_rounds - 1
        if open_round(attempt, rounds, took="all", last=last) is not None:
            log.info("The run had failed; only its unsettled rows are sent again")
            storage.remove(attempt.run.output.manifest)
            return True
    log.info("The run is finished; it is landed again from what is there, nothing is sent")
    for shard in _shards(rounds):
        entry = attempt.ledger.read(shard.slot)
        if entry.landed:
            _land_again(attempt, shard, entry, entry.landed)
    return True


def _land_again(attempt: Attempt, shard: Shard, entry: Entry, landed: Landed) -> Landed:
    """Land a slot from its raw results on storage; should they have been removed, from those at the service."""
    submitted = entry.submitted
    if submitted is None or attempt.work.results(shard.slot).exists():
        return land(attempt, shard, submitted, Ending(landed.state, error=landed.job_error))
    if landed.part is None:
        # No row was settled by this job, and each has gone its own way since: a result that came late changes nothing.
        return landed
    seen = attempt.client.look(submitted.job)
    if isinstance(seen, Job) and seen.results:
        return land(attempt, shard, submitted, Ending.of(seen))
    if landed.format != attempt.run.policy.file_format or not (attempt.run.output.path / landed.part).exists():
        raise ResultsLost(
            f"{shard.slot} cannot be landed again: its raw results are neither on storage nor at the service any more. Clear "
            'the task with reuse="never" to ask, and pay, anew.'
        )
    return landed


def _work_through(attempt: Attempt, current: Round, outcomes: tuple[Outcome, ...]) -> tuple[Wait, ...]:
    """Land what has ended, submit what may be submitted; return what runs."""
    entries = {shard: attempt.ledger.read(shard.slot) for shard in current.shards}
    waits: list[Wait] = []
    for shard, entry in entries.items():
        if entry.submitted and not entry.landed and (wait := _attend(attempt, shard, entry, outcomes)):
            waits.append(wait)
    touched = [shard for shard, entry in entries.items() if entry.submitted and not entry.landed]
    try:
        for shard, entry in entries.items():
            if entry.submitted or entry.landed:
                continue
            if not shard.requests:
                land(attempt, shard, None, Ending("NOTHING_SENT"))
                continue
            if len(waits) >= attempt.run.policy.limits.active_jobs:
                break
            submitted = submit(attempt, shard, entry)
            touched.append(shard)
            waits.append(Wait(submitted.job, submitted.created_at + attempt.run.policy.timeout))
    except (QuotaExceeded, ServiceUnreachable) as e:
        # While jobs run there is something to wait for, and a place becomes free when one ends.
        if not waits:
            raise
        log.warning("No further job could be submitted for now: %s", e)
    if touched:
        look_for_twins(attempt, touched)
    return tuple(waits)


def _attend(attempt: Attempt, shard: Shard, entry: Entry, outcomes: tuple[Outcome, ...]) -> Wait | None:
    """Look at one running job: land it if it ended, see to its deadline, or return what to wait for."""
    submitted = entry.submitted
    assert submitted is not None
    told = {outcome.job: outcome.how for outcome in outcomes}.get(submitted.job)
    timed_out = entry.cancelled_at is not None
    deadline = (
        entry.cancelled_at + CANCEL_TAKES if entry.cancelled_at else submitted.created_at + attempt.run.policy.timeout
    )
    wait = Wait(submitted.job, deadline)
    seen = attempt.client.look(submitted.job)

    if isinstance(seen, Job) and seen.phase.ended:
        _close(attempt, shard, submitted, Ending.of(seen, timed_out=timed_out))
        return None
    past = attempt.now() >= deadline
    if isinstance(seen, Gone) and (told == "gone" or past):
        _close(attempt, shard, submitted, Ending("GONE"))
        return None
    if isinstance(seen, Refused) and (told == "refused" or past):
        raise CredentialsRefused(
            f"The key is refused while {submitted.job} runs on: {seen.detail}. Mend the connection and clear the task: the "
            "job is adopted."
        )
    if not past:
        return wait
    if timed_out:
        log.warning("%s was cancelled and did not end; it is given up and may still be billed", submitted.job)
        _close(attempt, shard, submitted, Ending("TIMED_OUT"))
        return None
    hours = attempt.run.policy.timeout / 3600
    if attempt.run.policy.on_timeout == "leave":
        raise JobStillRunning(
            f'{submitted.job} did not end within {hours:g} h and was left running (on_timeout="leave"); it may still be '
            "billed. Clear the task with a longer timeout to wait on, or cancel the job."
        )
    cancel = attempt.client.cancel(submitted.job)
    if cancel.accepted:
        log.warning("Past its deadline of %g h, cancelled: %s", hours, cancel)
        return Wait(submitted.job, attempt.ledger.cancelled(shard.slot) + CANCEL_TAKES)
    if attempt.now() > deadline + CANCEL_TAKES:
        raise ServiceUnreachable(
            f"{submitted.job} is past its deadline of {hours:g} h and cannot be cancelled: {cancel}"
        )
    log.warning("Past its deadline of %g h, and could not be cancelled; tried again soon: %s", hours, cancel)
    return Wait(submitted.job, attempt.now() + CANCEL_AGAIN)


def _close(attempt: Attempt, shard: Shard, submitted: Submitted, ending: Ending) -> None:
    land(attempt, shard, submitted, ending)
    delete_remote(attempt, submitted, ending)


def _open_next(attempt: Attempt, rounds: list[Round], *, starting: bool) -> Round | None:
    """
    Send unsettled rows again, if they may pass by themselves and rounds are left; or if a new attempt found that somebody
    had stopped their job, because whoever asked for the task again asked for those rows.
    """
    current = rounds[-1]
    if starting and any(_left_aside(attempt, rounds, one) for one in rounds):
        return open_round(attempt, rounds, took="all", last=max(current.last, current.number + 1))
    if current.number < current.last:
        return open_round(attempt, rounds, took="auto", last=current.last)
    return None


def _left_aside(attempt: Attempt, rounds: list[Round], one: Round) -> bool:
    """True if rows of this round wait for somebody to ask for them, and no later round took them."""
    if any(later.took == "all" for later in rounds if later.number > one.number):
        return False
    entries = (attempt.ledger.read(shard.slot) for shard in one.shards)
    return any(entry.landed.unsettled_other for entry in entries if entry.landed)


def _finish(attempt: Attempt, rounds: list[Round]) -> Manifest:
    """Land what stays unsettled with its reason, write the manifest, and say honestly how the run ended."""
    output, plan, policy = attempt.run.output, attempt.plan, attempt.run.policy
    counts: Counter[str] = Counter({status.value: 0 for status in Status})
    usage, oddities = Usage(), Oddities()
    files, jobs, endings = [], [], []
    for shard in _shards(rounds):
        entry = attempt.ledger.read(shard.slot)
        landed = entry.landed
        assert landed is not None, f"{shard.slot} is not landed"
        if landed.format != policy.file_format or (landed.part and not (output.path / landed.part).exists()):
            landed = _land_again(attempt, shard, entry, landed)
        counts.update(landed.counts)
        usage, oddities = usage + landed.usage, oddities + landed.oddities
        files += [str(output.path / landed.part)] if landed.part else []
        if entry.submitted:
            jobs.append({
                "name": entry.submitted.job, "slot": str(shard.slot), "state": landed.state, "requests": shard.requests,
            })  # fmt: skip
        endings.append((shard, entry, landed))

    left = _land_leftovers(attempt, rounds)
    counts.update(left)
    if left:
        files.append(str(output.unsettled_part(policy.file_format)))

    now = attempt.now()
    model = str(plan.spec.get("model", attempt.run.spec.model))
    failure = _judge_run(attempt, rounds, counts, endings)
    manifest = Manifest(
        run=asdict(plan.run),
        plan=plan.number,
        output=str(output.path),
        files=tuple(files),
        file_format=policy.file_format,
        model=model,
        rows=plan.rows,
        counts=dict(counts),
        rounds=len(rounds),
        jobs=tuple(jobs),
        usage=usage,
        cost={
            "estimated_usd": None,
            "actual_usd": prices.cost_usd(usage, model, datetime.fromtimestamp(now, UTC)),
            "prices_as_of": prices.prices_as_of(),
        },
        odd_lines=asdict(oddities),
        started_at=plan.created_at,
        finished_at=utc(now),
        manifest=str(output.manifest),
        failure=str(failure) if failure else None,
    )
    manifest.write(output)
    _remove_other_formats(attempt, rounds)
    _tell(manifest)
    if failure is not None:
        raise failure
    return manifest


def _shards(rounds: list[Round]) -> Iterator[Shard]:
    return (shard for one in rounds for shard in one.shards)


def _land_leftovers(attempt: Attempt, rounds: list[Round]) -> Counter[str]:
    """Rows that no later round took, each with its reason, in one part of their own."""
    output, policy = attempt.run.output, attempt.run.policy
    types = table_types(attempt.plan.keep_types, include_raw=policy.include_raw)
    path = output.unsettled_part(policy.file_format)
    counts: Counter[str] = Counter()
    with writing_part(path, types, policy.file_format, include_raw=policy.include_raw) as part:
        for shard in _shards(rounds):
            for left in leftovers(attempt.work, rounds, shard.slot):
                result = Result.from_dict(left["result"])
                part.add(result, left["row"].get("keep", {}), job=left["job"], round_number=shard.slot.round)
                counts[result.status.value] += 1
    if not counts:
        storage.remove(path)
    return counts


def _remove_other_formats(attempt: Attempt, rounds: list[Round]) -> None:
    """Parts of an earlier landing in another format would stand as doubles beside the new ones."""
    for suffix in FORMATS:
        if suffix != attempt.run.policy.file_format:
            for shard in _shards(rounds):
                storage.remove(attempt.run.output.part(shard.slot, suffix))
            storage.remove(attempt.run.output.unsettled_part(suffix))


ENDED_BADLY: dict[str, tuple[type[RunFailed], str]] = {
    "GONE": (JobGone, "is no longer at the service; its results are lost"),
    "CANCELLED": (JobCancelled, "was cancelled"),
    "FAILED": (JobFailed, "failed"),
    "EXPIRED": (JobExpired, "expired: the service gave it up after 48 hours"),
    "TIMED_OUT": (JobTimedOut, "did not end in time"),
}
"""Outcomes of a job that fail the task if rows are left unsettled by them, the most telling first."""


def _judge_run(
    attempt: Attempt, rounds: list[Round], counts: Counter[str], endings: list[tuple[Shard, Entry, Landed]]
) -> RunFailed | None:
    shown = {status: n for status, n in counts.items() if n}
    where = str(attempt.run.output.manifest)
    bad = {
        state: [
            (entry.submitted.job, landed)
            for shard, entry, landed in endings
            if landed.state == state
            and entry.submitted
            and any(True for _ in leftovers(attempt.work, rounds, shard.slot))
        ]
        for state in ENDED_BADLY
    }
    for state, (error, said) in ENDED_BADLY.items():
        if bad[state]:
            jobs = tuple(job for job, _ in bad[state])
            reason = next((f": {landed.job_error.message}" for _, landed in bad[state] if landed.job_error), "")
            more = f" and {len(jobs) - 1} more" if len(jobs) > 1 else ""
            return error(
                f"Job {jobs[0]}{more} {said}{reason}. Clear the task to send the unsettled rows again.",
                jobs=jobs, counts=shown, manifest=where,
            )  # fmt: skip
    rows, ok = attempt.plan.rows, counts[Status.OK.value]
    most = attempt.run.policy.max_failed_ratio
    jobs = tuple(entry.submitted.job for _, entry, _ in endings if entry.submitted)
    if rows and ok == 0:
        return TooManyFailedRows(f"Not one of {rows} rows is ok.", jobs=jobs, counts=shown, manifest=where)
    if rows and most is not None and (rows - ok) / rows > most:
        return TooManyFailedRows(
            f"{rows - ok} of {rows} rows are not ok, which is more than max_failed_ratio={most:g}.",
            jobs=jobs, counts=shown, manifest=where,
        )  # fmt: skip
    return None


def _tell(manifest: Manifest) -> None:
    counted = ", ".join(f"{n} {status}" for status, n in manifest.counts.items() if n) or "none"
    cost = manifest.cost["actual_usd"]
    usage = manifest.usage
    log.info(
        "Finished: %s rows (%s) in %s rounds and %s jobs; %s prompt and %s output tokens; %s; manifest: %s",
        manifest.rows, counted, manifest.rounds, len(manifest.jobs), usage.prompt_tokens,
        usage.output_tokens + usage.thoughts_tokens, f"{cost:.6f} USD" if cost is not None else "cost unknown",
        manifest.manifest,
    )  # fmt: skip


def cancel_running(run: Run, services: Services) -> Iterator[Cancel]:
    """Cancel every job of a run that has not been landed, as far as the ledger knows them; yields what became of each."""
    plan = Plan.current(run.output)
    if plan is None or plan.run != run.id:
        return
    attempt, jobs = Attempt(run, plan, services), []
    for shard in _shards(Round.load_all(attempt.work)):
        entry = attempt.ledger.read(shard.slot)
        if entry.submitted and not entry.landed:
            jobs.append(entry.submitted.job)
        elif entry.doubtful:
            log.warning("A create for %s was under way; if a job came of it, the next attempt finds it", shard.slot)
    with ThreadPoolExecutor(AT_ONCE) as pool:  # a killed task has seconds, and there may be a hundred jobs
        yield from pool.map(services.client.cancel, jobs)


def note_cleared(run: Run) -> None:
    """Leave word for the next attempt that the task was cleared while this one ran: it matters to ``reuse="never"``."""
    plan = Plan.current(run.output)
    if plan is not None and plan.run == run.id:
        storage.publish(run.output.work(plan.work).cleared, b"{}")
