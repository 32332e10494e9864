"""
The steps joined: read this first.

``advance`` is one idempotent step. The operator calls it when it starts and after every wait, deferred or not; it reads
where the run stands from storage, does all that can be done now, and returns what to wait for or the manifest. A killed
attempt is not repaired: the next one simply advances.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

from airflow_gemini_batch.core import storage
from airflow_gemini_batch.core.attempt import Attempt, Run, Services, log
from airflow_gemini_batch.core.collecting import Ending, land, land_again
from airflow_gemini_batch.core.finishing import finish
from airflow_gemini_batch.core.gates import Gate, Never
from airflow_gemini_batch.core.jobs import Counts, Gone, Job, Refused, Seen, Unreachable
from airflow_gemini_batch.core.ledger import Entry, Submitted
from airflow_gemini_batch.core.manifest import Manifest
from airflow_gemini_batch.core.patience import Patience
from airflow_gemini_batch.core.plan import Plan, Round, Shard, shards_of
from airflow_gemini_batch.core.planning import find_or_make_plan, finished, retire_older_plans
from airflow_gemini_batch.core.prices import Prices
from airflow_gemini_batch.core.removing import delete_input, delete_job
from airflow_gemini_batch.core.rest import Cancel
from airflow_gemini_batch.core.room import JobRoom
from airflow_gemini_batch.core.rounds import Leftovers, open_round
from airflow_gemini_batch.core.submitting import look_for_twins, resolve, submit
from airflow_gemini_batch.core.waiting import Outcome, Wait, age, describe
from airflow_gemini_batch.exceptions import (
    CredentialsRefused,
    InvalidInput,
    JobStillRunning,
    MediaUnreadable,
    QuotaExceeded,
    RequestRefused,
    ServiceUnreachable,
)

CANCEL_TAKES = 600.0
"""Seconds a cancelled job gets to end by itself before its rows are given up for it."""


AT_ONCE = 8
"""Cancels sent at a time when a task is killed."""

LOOK_AGAIN = 60.0
"""Seconds until another look at a job that is due but could not be seen, or cancelled."""


@dataclass(frozen=True)
class Waiting:
    """
    Nothing can be done before one of these jobs is worth another look, or a quota another try.

    :param not_before: Unix time to come back at although no job ended. Only then there may be no jobs at all.
    """

    waits: tuple[Wait, ...]
    not_before: float | None = None


def advance(
    run: Run, services: Services, *, outcomes: Iterable[Outcome] = (), starting: bool = False
) -> Waiting | Manifest:
    """
    Bring a run as far as it can go now.

    :param outcomes: what the wait before this call found out.
    :param starting: True for the first call of an attempt, when somebody (or Airflow's retries) asked for the task again.
    :raises QuotaExceeded: nothing but refusals for want of a quota came for ``quota_timeout`` seconds, and no job runs.
    :raises GeminiBatchError: the run cannot go on, or is over and landed but failed; see ``exceptions``.
    """
    patience = Patience(run, services, starting=starting)
    waits: tuple[Wait, ...] = ()
    look_again: float | None = None
    # Reading the prices takes 50 MB for a moment: now, and not when a shard is in memory.
    Prices(run.spec.model, datetime.fromtimestamp(services.clock(), UTC))
    try:
        plan = find_or_make_plan(run, services, starting=starting)
        attempt = Attempt(run, plan, services)
        retire_older_plans(attempt)
        asked_again = _start_again(attempt) if starting else False
        while True:
            rounds = Round.load_all(attempt.work)
            waits, look_again = _work_through(attempt, patience, rounds, tuple(outcomes))
            if waits or look_again or patience.tried:
                break
            if _open_next(attempt, rounds, starting=starting and not asked_again) is None:
                patience.forget()  # from here on the service is not asked for anything that has a quota
                return finish(attempt, rounds)
            asked_again = True  # what this very call leaves aside, nobody has asked for again
    except QuotaExceeded as e:
        patience.refused(e)
    back = patience.settle(running=bool(waits or look_again))
    return Waiting(waits, min((at for at in (back, look_again) if at is not None), default=None))


def _start_again(attempt: Attempt) -> bool:
    """
    A run that is over is asked for again. If it failed, its unsettled rows are sent again; otherwise it is landed again
    from what is there, which costs nothing. True when it was over.
    """
    manifest = finished(attempt.run.output, attempt.plan)
    if manifest is None:
        return False
    rounds = Round.load_all(attempt.work)
    if manifest.failure is not None:  # by today's ``redo`` there may be unsettled rows, where there were none
        _land_again(attempt, rounds, attempt.run.policy.redo)
    if _sends_the_rest(attempt, manifest, rounds):
        return True
    log.info("The run is finished; it is landed again from what is there, nothing is sent")
    _land_again(attempt, rounds)
    return True


def _land_again(attempt: Attempt, rounds: list[Round], only: Collection[str] | None = None) -> None:
    """:param only: slots that have settled rows of these statuses; by default all."""
    leftovers = Leftovers(attempt.work, rounds)
    for shard in shards_of(rounds):
        entry = attempt.ledger.read(shard.slot)
        if entry.landed and (only is None or not entry.landed.counts.keys().isdisjoint(only)):
            land_again(attempt, shard, entry, entry.landed, leftovers.taken_after(shard.slot.round))


def _sends_the_rest(attempt: Attempt, manifest: Manifest, rounds: list[Round]) -> bool:
    """Send the unsettled rows of a run that failed, or whose budget left some out and is larger now. False: none."""
    policy = attempt.run.policy
    larger = manifest.budget is not None and (policy.budget is None or policy.budget.allows_more_than(manifest.budget))
    if manifest.failure is None and not (larger and _over_budget(attempt, rounds)):
        return False
    last = len(rounds) + policy.max_rounds - 1
    if open_round(attempt, rounds, took="all", last=last) is None:
        return False
    log.info("The run had %s; only its unsettled rows are sent", "failed" if manifest.failure else "left rows out")
    storage.remove(attempt.run.output.manifest)
    return True


def _over_budget(attempt: Attempt, rounds: list[Round]) -> bool:
    landed = (attempt.ledger.read(shard.slot).landed for shard in shards_of(rounds))
    return any(one is not None and one.state == "OVER_BUDGET" for one in landed)


def _work_through(
    attempt: Attempt, patience: Patience, rounds: list[Round], outcomes: tuple[Outcome, ...]
) -> tuple[tuple[Wait, ...], float | None]:
    """
    Land what has ended of the newest round, submit what may be submitted; return what runs, and a time to come back at if a
    job that the wait saw ended does not look so. Refusals by a quota are left to ``patience``.
    """
    entries = {shard: attempt.ledger.read(shard.slot) for shard in rounds[-1].shards}
    waits: list[Wait] = []
    running: dict[str, Shard] = {}
    again: float | None = None
    ended = {outcome.job for outcome in outcomes if outcome.how == "ended"}
    left_running: list[JobStillRunning] = []
    for shard, entry in entries.items():
        if entry.submitted and not entry.landed:
            try:
                wait = _attend(attempt, patience, shard, entry, outcomes)
            except QuotaExceeded as e:  # these results cannot be fetched for now; other jobs are seen to all the same
                patience.refused(e)
                continue
            except JobStillRunning as e:  # first comes what has ended
                left_running.append(e)
                continue
            if wait and wait.job not in ended:
                running[wait.job] = shard
                waits.append(wait)
            elif wait and not attempt.ledger.read(shard.slot).landed:  # another attempt may have landed and deleted it
                running[wait.job] = shard
                again = attempt.now() + LOOK_AGAIN  # a wait for it would end at once, again and again
    if left_running:
        raise _all_of(left_running, tuple(running))
    touched = [shard for shard, entry in entries.items() if entry.submitted and not entry.landed]
    room, gate, created = JobRoom(attempt, running), Gate(attempt, rounds), False
    try:
        for shard, entry in entries.items():
            if entry.submitted or entry.landed:
                continue
            if not shard.requests:
                land(attempt, shard, None, Ending("NOTHING_SENT"))
                continue
            if entry.doubtful and not patience.holds("sending") and resolve(attempt, shard, entry.doubtful) is None:
                entry = attempt.ledger.read(shard.slot)  # no job came of it: it is sent if it may be, as any other
            if entry.doubtful is None and (held := gate.holds(shard)) is not None:
                if not isinstance(held, Never):
                    break
                log.warning("%s is not sent: %s", shard.slot, held.ending.detail)
                land(attempt, shard, None, held.ending)
                continue
            if patience.holds("sending") or not room.is_there_for(shard, entry):
                break
            try:
                submitted = submit(attempt, shard, entry)
            except (RequestRefused, InvalidInput) as e:
                if not _is_one_of_many(attempt, rounds, shard):
                    raise
                log.warning("%s is refused for good, and the others go on: %s", shard.slot, e)
                land(attempt, shard, None, Ending("REFUSED", detail=str(e)))
                continue
            if submitted is None:
                land(attempt, shard, None, Ending("NOTHING_SENT"))
                continue
            created = True
            patience.progressed()
            room.took(shard, submitted.job)  # into ``running``
            gate.took(shard)
            touched.append(shard)
            waits.append(Wait(submitted.job, _due(attempt, submitted, None)[0]))
    except QuotaExceeded as e:
        patience.refused(e)
    except (ServiceUnreachable, MediaUnreadable) as e:
        # While jobs run there is something to wait for.
        if not waits and not again and not patience.tried:
            raise
        log.warning("No further job could be submitted for now: %s", e)
    if touched:
        look_for_twins(attempt, touched, None if created else room.listed)
    return tuple(waits), again


def _is_one_of_many(attempt: Attempt, rounds: list[Round], refused: Shard) -> bool:
    """True if a slot that was refused has certainly no job, and others have: those are landed before the run fails."""
    entry = attempt.ledger.read(refused.slot)
    if entry.submitted or entry.doubtful:
        return False
    return any(attempt.ledger.read(shard.slot).submitted for shard in shards_of(rounds))


def _all_of(errors: list[JobStillRunning], others: tuple[str, ...]) -> JobStillRunning:
    """
    One error for all jobs that are left running.

    :param others: jobs with time left, which nobody watches after this.
    """
    first = errors[0]
    jobs = (*(job for one in errors for job in one.jobs), *others)
    counts = {name: sum(one.counts[name] for one in errors) for name in first.counts}
    more = f" {len(jobs) - 1} more of this run's jobs run on too." if len(jobs) > 1 else ""
    return JobStillRunning(f"{first}{more}", jobs=jobs, counts=counts, manifest=first.manifest)


WAITING_STATES = frozenset({"PENDING", "QUEUED"})


def _due(attempt: Attempt, submitted: Submitted, seen: Seen | None) -> tuple[float, str]:
    """
    When a job, as it was seen, has taken too long, and what that is called: after ``pending_timeout`` while it is pending,
    after ``timeout``, or when its media are gone and its rows can only fail.

    :param seen: None, or no ``Job``: nothing is known of it, so it may be pending.
    """
    timed_out = submitted.created_at + attempt.run.policy.timeout
    if submitted.media_until is not None:
        timed_out = min(timed_out, submitted.media_until)
    pending = attempt.run.policy.pending_timeout
    if pending is None or submitted.created_at + pending >= timed_out:
        return timed_out, "TIMED_OUT"
    stuck = submitted.created_at + pending
    if isinstance(seen, Job):
        return (stuck, "STUCK") if seen.state in WAITING_STATES else (timed_out, "TIMED_OUT")
    # Nothing is cancelled for being pending unless it was seen to be.
    now = attempt.now()
    return (stuck if now < stuck else min(now + LOOK_AGAIN, timed_out)), "TIMED_OUT"


def _attend(
    attempt: Attempt, patience: Patience, shard: Shard, entry: Entry, outcomes: tuple[Outcome, ...]
) -> Wait | None:
    """
    Look at one running job: land it if it ended, see to its deadline, or return what to wait for.

    :raises QuotaExceeded: it ended, but cannot be looked at or its results be fetched for now; or it cannot be cancelled.
    """
    submitted = entry.submitted
    assert submitted is not None
    told = {outcome.job: outcome.how for outcome in outcomes}.get(submitted.job)
    seen = attempt.client.look(submitted.job)
    if isinstance(seen, Gone):
        seen = attempt.client.confirm(seen)
    deadline, state = _due(attempt, submitted, seen)
    if entry.cancelled_at is not None:
        deadline, state = entry.cancelled_at + CANCEL_TAKES, entry.cancelled_as

    if isinstance(seen, Job) and seen.phase.ended:
        if not patience.holds("fetching"):
            _close(attempt, patience, shard, submitted, Ending.of(seen, entry))
        return None
    past = attempt.now() >= deadline
    if isinstance(seen, Gone) and (told == "gone" or past):
        _close(attempt, patience, shard, submitted, Ending("GONE", lost=True))
        return None
    if isinstance(seen, Refused) and (told == "refused" or past):
        raise CredentialsRefused(
            f"The key is refused while {submitted.job} runs on: {seen.detail}. Mend the connection and clear the task: the "
            "job is adopted."
        )
    if not past:
        if told == "ended" and isinstance(seen, Unreachable) and seen.retry_after is not None:
            raise QuotaExceeded(seen.detail, phase="look", quota=seen.quota, retry_after=seen.retry_after or None)
        return Wait(submitted.job, deadline)
    if entry.cancelled_at is not None:
        log.warning("%s was cancelled and did not end; it is given up and may still be billed", submitted.job)
        _close(attempt, patience, shard, submitted, Ending(state, detail=entry.cancel_detail, lost=True))
        return None
    return _give_up(attempt, shard, submitted, seen, deadline, state)


def _give_up(attempt: Attempt, shard: Shard, submitted: Submitted, seen: Seen, deadline: float, state: str) -> Wait:
    """
    Cancel a job that has taken too long; or leave it, if that is asked for.

    :raises QuotaExceeded: the cancel has long been refused for want of a quota, which is waited for as any other.
    """
    standing = f"{describe(seen)}, {age(attempt.now() - submitted.created_at)} after its creation"
    limit = "pending_timeout" if state == "STUCK" else "timeout"
    if attempt.run.policy.on_timeout == "leave":
        counts = seen.counts if isinstance(seen, Job) else Counts()
        raise JobStillRunning(
            f'{standing}: longer than {limit} allows. It was left running (on_timeout="leave") and may still be billed. '
            f"Clear the task with a longer {limit} to wait on, or cancel the job.",
            jobs=(submitted.job,),
            counts={"succeeded": counts.succeeded, "failed": counts.failed, "total": counts.total},
            manifest=str(attempt.run.output.manifest),
        )
    cancel = attempt.client.cancel(submitted.job)
    if cancel.accepted:
        log.warning("Longer than %s allows: %s. Cancelled: %s", limit, standing, cancel)
        return Wait(submitted.job, attempt.ledger.cancelled(shard.slot, state, standing) + CANCEL_TAKES)
    if attempt.now() > deadline + CANCEL_TAKES:
        if cancel.quota is not None:
            raise cancel.quota
        raise ServiceUnreachable(f"{standing}: longer than {limit} allows, and it cannot be cancelled: {cancel}")
    log.warning("Longer than %s allows, and could not be cancelled; tried again soon: %s", limit, cancel)
    return Wait(submitted.job, attempt.now() + LOOK_AGAIN)


def _close(attempt: Attempt, patience: Patience, shard: Shard, submitted: Submitted, ending: Ending) -> None:
    delete_input(attempt, submitted)  # before it counts as landed: who dies in between does it again
    land(attempt, shard, submitted, ending)
    patience.progressed()
    delete_job(attempt, submitted, ending.results)


def _open_next(attempt: Attempt, rounds: list[Round], *, starting: bool) -> Round | None:
    """
    Send unsettled rows again, if they may pass by themselves and rounds are left; or if a new attempt found that somebody
    had stopped their job, because whoever asked for the task again asked for those rows.
    """
    current = rounds[-1]
    entries = (attempt.ledger.read(shard.slot) for shard in current.shards)
    if any(entry.landed and entry.landed.state == "CANARY_FAILED" for entry in entries):
        return None  # nothing more is sent before the run has failed, so that somebody looks
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


def cancel_running(run: Run, services: Services) -> Iterator[Cancel]:
    """Cancel every job of a run that has not been landed, as far as the ledger knows them; yields what became of each."""
    plan = Plan.current(run.output)
    if plan is None or plan.run != run.id:
        return
    attempt, jobs = Attempt(run, plan, services), []
    for shard in shards_of(Round.load_all(attempt.work)):
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
