"""
What one look at a job means to someone who waits for it. No clock, no sleep, no network.

``step`` decides about one job; ``watching`` is the whole wait as a generator of commands, which the operator runs with
``time.sleep`` (:func:`drive`) and the trigger with ``asyncio.sleep`` (:func:`adrive`). Neither has an opinion of its own.
"""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from airflow_gemini_batch.core.jobs import Counts, Gone, Job, Refused, Seen, Unreachable, cut
from airflow_gemini_batch.exceptions import StateTooNew, StateUnreadable

SURE_AFTER = 3
"""Looks in a row that must agree before a job counts as gone, or the key as refused: one bad answer proves nothing."""

HEARTBEAT = 600.0
"""Seconds after which progress is told again although nothing changed."""

JITTER = 0.1
"""Part of the interval by which a pause varies, so that tasks started together drift apart."""

LONGEST_QUIET = 600.0
"""Seconds for which a service that refuses looks is left alone, at most: a job may have ended meanwhile."""

EVENT_VERSION = 1
EVENT_DETAIL = 300
"""Characters of each job's detail in an event: a hundred jobs may be in it, and it goes through Airflow's database."""

How = Literal["ended", "gone", "refused", "timed_out"]
HOWS: tuple[How, ...] = get_args(How)


@dataclass(frozen=True, slots=True)
class Wait:
    """
    One job being waited for.

    :param deadline: Unix time. Wall clock, not monotonic: a trigger may resume in another process after a restart.
    :param doubts: how often in a row it looked gone (or the key refused; ``doubt`` says which).
    """

    job: str
    deadline: float
    doubt: How | None = None
    doubts: int = 0


@dataclass(frozen=True)
class Outcome:
    """Why the wait for one job is over. Only a reason to look again: what to do is decided by who reads it."""

    job: str
    how: How
    detail: str = ""


def step(wait: Wait, seen: Seen | None, *, now: float) -> Wait | Outcome:
    """Decide what one look at the job means; None if there was none since the last step, so that no look counts twice."""
    if seen is None:
        return wait if now < wait.deadline else Outcome(wait.job, "timed_out", "it was not seen again")
    if isinstance(seen, Job) and seen.phase.ended:
        return Outcome(wait.job, "ended", seen.state)
    doubt: How | None = "gone" if isinstance(seen, Gone) else "refused" if isinstance(seen, Refused) else None
    doubts = 0 if doubt is None else wait.doubts + 1 if doubt == wait.doubt else 1
    if doubt and doubts >= SURE_AFTER:
        return Outcome(wait.job, doubt, getattr(seen, "detail", ""))
    if now >= wait.deadline:
        return Outcome(wait.job, "timed_out", describe(seen))
    return wait if (doubt, doubts) == (wait.doubt, wait.doubts) else replace(wait, doubt=doubt, doubts=doubts)


class Quiet:
    """How long a service that refuses looks for want of a quota is left alone: as long as it asks, or longer each time."""

    def __init__(self, jitter: Callable[[], float] = random.random) -> None:
        self._jitter, self._rounds = jitter, 0

    def after(self, refusals: Collection[float], *, answered: bool, interval: float) -> float:
        """
        Return the seconds until the next round of looks, at least; a little more, so that those refused together come back
        apart.

        :param refusals: ``retry_after`` of each look of this round that a quota refused.
        :param answered: other looks of the round were answered.
        :param interval: seconds between rounds otherwise.
        """
        self._rounds = self._rounds + 1 if refusals and not answered else 0
        own = interval * 2.0 ** min(self._rounds - 1, 30) if self._rounds > 1 else 0.0
        return min(LONGEST_QUIET, max(refusals, default=0.0) or own) * (1 + JITTER * self._jitter())


@dataclass(frozen=True)
class LookAt:
    """Command: look at these jobs and send back what was seen, by name (see :func:`step` for None)."""

    jobs: tuple[str, ...]


@dataclass(frozen=True)
class Pause:
    """Command: sleep this many seconds."""

    seconds: float


Looks = Mapping[str, Seen | None]
Watching = Generator[LookAt | Pause, Looks | None, tuple[Outcome, ...]]


def watching(
    waits: Sequence[Wait],
    *,
    interval: float,
    clock: Callable[[], float],
    tell: Callable[[str], None],
    jitter: Callable[[], float] = random.random,
    until: float | None = None,
) -> Watching:
    """
    Wait until at least one job is worth another look by the flow; returns all that are.

    :param until: Unix time at which the wait ends anyway, with no outcome; then there may be no jobs at all.

    :param interval: seconds between looks, varied by :data:`JITTER`.
    :param clock: Unix time in seconds.
    :param tell: takes a line for the log, when progress changed or :data:`HEARTBEAT` passed.
    """
    still = {wait.job: wait for wait in waits}
    progress, quiet = Progress(clock(), total=len(still)), Quiet(jitter)
    while still or (until is not None and clock() < until):
        seen = ((yield LookAt(tuple(still))) or {}) if still else {}
        now = clock()
        outcomes = []
        for job, wait in still.items():
            decided = step(wait, seen.get(job, Unreachable(job, "it was not looked at")), now=now)
            if isinstance(decided, Outcome):
                outcomes.append(decided)
            else:
                still[job] = decided
        known = {job: one for job, one in seen.items() if one is not None}
        if known and (line := progress.line(known, now)):
            tell(line)
        if outcomes or (until is not None and now >= until):
            return tuple(outcomes)
        pause = interval * (1 + JITTER * (2 * jitter() - 1))
        pause = max(pause, _quiet(quiet, known, interval)) if still else math.inf
        # The deadline ends the wait on time, also when it is nearer than the next look.
        end = min((wait.deadline for wait in still.values()), default=math.inf)
        pause = max(0.0, min(pause, end - now, math.inf if until is None else until - now))
        del seen, known, outcomes  # thousands wait in one process; nothing of a look is kept until the next
        yield Pause(pause)
    return ()


def _quiet(quiet: Quiet, seen: Mapping[str, Seen], interval: float) -> float:
    refusals = [
        one.retry_after for one in seen.values() if isinstance(one, Unreachable) and one.retry_after is not None
    ]
    return quiet.after(refusals, answered=len(refusals) < len(seen), interval=interval)


def drive(
    steps: Watching, look: Callable[[tuple[str, ...]], Looks], sleep: Callable[[float], None]
) -> tuple[Outcome, ...]:
    """Run a wait in a worker."""
    try:
        command = next(steps)
        while True:
            if isinstance(command, LookAt):
                command = steps.send(look(command.jobs))
            else:
                sleep(command.seconds)
                command = steps.send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]


async def adrive(
    steps: Watching,
    look: Callable[[tuple[str, ...]], Awaitable[Looks]],
    sleep: Callable[[float], Awaitable[None]],
) -> tuple[Outcome, ...]:
    """Run a wait in the triggerer."""
    try:
        command = next(steps)
        while True:
            if isinstance(command, LookAt):
                command = steps.send(await look(command.jobs))
            else:
                await sleep(command.seconds)
                command = steps.send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]


class Progress:
    """Turns looks into log lines: one when something changed, and a heartbeat when nothing did."""

    def __init__(self, now: float, *, total: int) -> None:
        self._since, self._total = now, total
        self._told_at, self._told = now, ""

    def line(self, seen: Mapping[str, Seen], now: float) -> str:
        """Return the line to log, or ``""`` when there is nothing new to say."""
        if not seen:
            return ""
        if len(seen) == 1:
            (one,) = seen.values()
            content = describe(one)
            old = age(now - one.created_at.timestamp()) if isinstance(one, Job) and one.created_at else ""
        else:
            content, old = summarise(seen), ""
        if content == self._told and now - self._told_at < HEARTBEAT:
            return ""
        self._told, self._told_at = content, now
        return f"{content}, {f'age {old}' if old else f'waiting for {age(now - self._since)}'}"


def describe(seen: Seen) -> str:
    """One look in a few words: ``batches/x RUNNING, 40 of 120 done, 2 failed``."""
    if not isinstance(seen, Job):
        return f"{seen.job} could not be seen: {seen.detail}"
    unknown = (
        "" if seen.known_state or not seen.state else " (a state this release does not know; it counts as running)"
    )
    return f"{seen.name} {seen.state or 'without a state'}{unknown}{_counted(seen.counts)}"


def summarise(seen: Mapping[str, Seen]) -> str:
    """Many looks in a few words: ``24 jobs: 20 RUNNING, 4 PENDING; 4,000 of 12,000 done, 2 failed``."""
    states: dict[str, int] = {}
    counts = Counts()
    for one in seen.values():
        word = (one.state or "without a state") if isinstance(one, Job) else "not seen"
        states[word] = states.get(word, 0) + 1
        if isinstance(one, Job):
            c = one.counts
            counts = Counts(
                counts.total + c.total,
                counts.succeeded + c.succeeded,
                counts.failed + c.failed,
                counts.pending + c.pending,
            )
    return f"{len(seen)} jobs: {', '.join(f'{n} {word}' for word, n in sorted(states.items()))}{_counted(counts)}"


def _counted(counts: Counts) -> str:
    return f", {counts.done:,} of {counts.total:,} done, {counts.failed:,} failed" if counts.total else ""


def age(seconds: float) -> str:
    """A time span in words: ``26 h 03 min``, ``3 min 05 s``, ``12 s``."""
    minutes, s = divmod(max(0, int(seconds)), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours} h {m:02d} min" if hours else f"{m} min {s:02d} s" if m else f"{s} s"


def to_event(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What the trigger sends to the worker: plain JSON with a version."""
    told = [{"job": o.job, "how": o.how, "detail": cut(o.detail, EVENT_DETAIL)} for o in outcomes]
    return {"version": EVENT_VERSION, "outcomes": told, "woken_by": "jobs" if told else "time"}


def from_event(event: Mapping[str, Any] | None) -> tuple[Outcome, ...]:
    """
    Read what a trigger sent. No event at all is read as "look again".

    :raises StateUnreadable: it is not an event of ours.
    :raises StateTooNew: a later release sent it.
    """
    if event is None:
        return ()
    try:
        if int(event["version"]) > EVENT_VERSION:
            raise StateTooNew(
                f"The trigger sent an event of version {event['version']}; this worker reads {EVENT_VERSION}."
            )
        return tuple(
            Outcome(str(o["job"]), HOWS[HOWS.index(o["how"])], str(o.get("detail", ""))) for o in event["outcomes"]
        )
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise StateUnreadable(f"The trigger sent an event that is not ours: {event!r}") from e
