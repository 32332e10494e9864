"""
What one look at a job means to someone who waits for it. No clock, no sleep, no network.

``step`` decides about one job; ``watching`` is the whole wait as a generator of commands, which the operator runs with
``time.sleep`` (:func:`drive`) and the trigger with ``asyncio.sleep`` (:func:`adrive`). Neither has an opinion of its own.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from airflow_gemini_batch.core.jobs import Counts, Gone, Job, Refused, Seen, Unreachable
from airflow_gemini_batch.exceptions import StateTooNew, StateUnreadable

SURE_AFTER = 3
"""Looks in a row that must agree before a job counts as gone, or the key as refused: one bad answer proves nothing."""

HEARTBEAT = 600.0
"""Seconds after which progress is told again although nothing changed."""

JITTER = 0.1
"""Part of the interval by which a pause varies, so that tasks started together drift apart."""

EVENT_VERSION = 1

How = Literal["ended", "gone", "refused", "timed_out"]
HOWS: tuple[How, ...] = get_args(How)


@dataclass(frozen=True)
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


def step(wait: Wait, seen: Seen, *, now: float) -> Wait | Outcome:
    """Decide what one look at the job means."""
    if isinstance(seen, Job) and seen.phase.ended:
        return Outcome(wait.job, "ended", seen.state)
    doubt: How | None = "gone" if isinstance(seen, Gone) else "refused" if isinstance(seen, Refused) else None
    doubts = 0 if doubt is None else wait.doubts + 1 if doubt == wait.doubt else 1
    if doubt and doubts >= SURE_AFTER:
        return Outcome(wait.job, doubt, getattr(seen, "detail", ""))
    if now >= wait.deadline:
        return Outcome(wait.job, "timed_out", describe(seen))
    return replace(wait, doubt=doubt, doubts=doubts)


@dataclass(frozen=True)
class LookAt:
    """Command: look at these jobs and send back what was seen, by name."""

    jobs: tuple[str, ...]


@dataclass(frozen=True)
class Pause:
    """Command: sleep this many seconds."""

    seconds: float


Watching = Generator[LookAt | Pause, Mapping[str, Seen] | None, tuple[Outcome, ...]]


def watching(
    waits: Sequence[Wait],
    *,
    interval: float,
    clock: Callable[[], float],
    tell: Callable[[str], None],
    jitter: Callable[[], float] = random.random,
) -> Watching:
    """
    Wait until at least one job is worth another look by the flow; returns all that are.

    :param interval: seconds between looks, varied by :data:`JITTER`.
    :param clock: Unix time in seconds.
    :param tell: takes a line for the log, when progress changed or :data:`HEARTBEAT` passed.
    """
    still = {wait.job: wait for wait in waits}
    progress = Progress(clock(), total=len(still))
    while True:
        looks = yield LookAt(tuple(still))
        seen = looks or {}
        now = clock()
        outcomes = []
        for job, wait in still.items():
            decided = step(wait, seen.get(job, Unreachable(job, "it was not looked at")), now=now)
            if isinstance(decided, Outcome):
                outcomes.append(decided)
            else:
                still[job] = decided
        if line := progress.line(seen, now):
            tell(line)
        if outcomes:
            return tuple(outcomes)
        pause = interval * (1 + JITTER * (2 * jitter() - 1))
        # The deadline ends the wait on time, also when it is nearer than the next look.
        nearest = min(wait.deadline for wait in still.values())
        yield Pause(max(0.0, min(pause, nearest - now)))


def drive(
    steps: Watching, look: Callable[[tuple[str, ...]], Mapping[str, Seen]], sleep: Callable[[float], None]
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
    look: Callable[[tuple[str, ...]], Awaitable[Mapping[str, Seen]]],
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
        if len(seen) == 1:
            (one,) = seen.values()
            content = describe(one)
            age = _age(now - one.created_at.timestamp()) if isinstance(one, Job) and one.created_at else ""
        else:
            content, age = summarise(seen), ""
        if content == self._told and now - self._told_at < HEARTBEAT:
            return ""
        self._told, self._told_at = content, now
        return f"{content}, {f'age {age}' if age else f'waiting for {_age(now - self._since)}'}"


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


def _age(seconds: float) -> str:
    minutes, s = divmod(max(0, int(seconds)), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours} h {m:02d} min" if hours else f"{m} min {s:02d} s" if m else f"{s} s"


def to_event(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What the trigger sends to the worker: plain JSON with a version."""
    return {"version": EVENT_VERSION, "outcomes": [{"job": o.job, "how": o.how, "detail": o.detail} for o in outcomes]}


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
