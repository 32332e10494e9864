"""Those who wait for jobs in an event loop, what is known of the jobs, and how a round goes. Knows not how to ask."""

from __future__ import annotations

import asyncio
import math
from contextvars import Context
from dataclasses import dataclass

from airflow_gemini_batch.core.jobs import Gone, Refused, Seen, Unreachable
from airflow_gemini_batch.core.survey import LEFT_ALONE, Entry

GIVE_UP = 16
"""Looks in a row without an answer, or all that hang, after which the service counts as away for this round."""

AGAIN, LONGER = 0.5, 1.5
"""Seconds after which a job that could not be seen is looked at again; so many times longer each time, up to the interval."""

TRIES = 3
"""Looks at a job in vain, one soon after the other, until those who wait for it are told: one alone may be chance."""

PATIENCE = 1.5
"""Seconds that a ``get`` may take: most that take longer hang. So many times longer, too, from the third in a row on."""

_NO_CONTEXT = Context()
"""Of timers that only wake somebody: each would copy its own."""


@dataclass
class Tally:
    """
    How a round of looks goes.

    :param answered: some were answered.
    :param refusals: ``retry_after`` of those that a quota refused.
    :param unanswered: those in a row that were not answered, whyever; ``seen``: those that were.
    """

    answered: bool
    refusals: list[float]
    unanswered: int = 0
    seen: int = 0

    def count(self, seen: Seen) -> None:
        if not isinstance(seen, Unreachable):
            self.answered, self.unanswered, self.seen = True, 0, self.seen + 1
            return
        self.unanswered += 1
        if seen.retry_after is not None:
            self.refusals.append(seen.retry_after)

    def gives_up(self, hanging: int) -> str:
        """Why no further job is asked for in this round; empty while some are."""
        if any(self.refusals):
            return LEFT_ALONE
        away = self.unanswered >= GIVE_UP or (hanging >= GIVE_UP and not self.seen)
        return f"{GIVE_UP} others could not be seen either" if away else ""


class Watched:
    """
    A job somebody waits for. Times are the loop's.

    ``looked_at`` is when the round began that saw it last, ``since`` how late that must be for all who wait to know of it;
    ``last`` is what was seen, as the list has it if it was listed: that is small, and quickly compared. ``asked`` is true
    while a ``get`` for it is under way; ``misses`` are the looks in a row that brought nothing, ``hangs`` those for time.
    """

    __slots__ = ("asked", "due_at", "hangs", "interval", "last", "looked_at", "misses", "since", "watches")

    def __init__(self) -> None:
        self.watches: tuple[Watch, ...] = ()
        self.asked, self.misses, self.hangs = False, 0, 0
        self.interval = self.due_at = math.inf
        self.looked_at = self.since = -math.inf
        self.last: Seen | Entry | None = None

    @property
    def seen(self) -> Seen | None:
        return self.last.job() if isinstance(self.last, Entry) else self.last

    @property
    def patience(self) -> float:
        return PATIENCE * LONGER ** min(max(0, self.hangs - 1), 30)

    def looked(self, began: float, pace: float) -> None:
        self.looked_at, self.misses, self.hangs = began, 0, 0
        if began >= self.since:  # else somebody asked while the round was under way: it stays due
            self.due_at = began + self.interval * pace

    def missed(self, began: float, pace: float) -> None:
        """It could not be seen: its end must not wait for that until another interval is over."""
        if began >= self.since:
            self.due_at = began + min(self.interval, AGAIN * LONGER ** min(self.misses, 30)) * pace
        self.misses += 1


class Watch:
    """
    One who waits, for any of its jobs. Looks before ``since`` are too old for it; from ``held_until`` on it does not wait for
    those that are missing. ``doubts`` are the looks that it was told of at jobs gone, or keys refused.
    """

    __slots__ = ("doubts", "held_until", "interval", "jobs", "news", "queued", "since", "waiter")

    def __init__(self, jobs: tuple[str, ...], interval: float, since: float, held_until: float) -> None:
        self.jobs, self.interval, self.since = tuple(dict.fromkeys(jobs)), interval, since
        self.held_until = held_until
        self.news = self.queued = False
        self.waiter: asyncio.Future[None] | None = None
        self.doubts: dict[str, float] = {}

    def told(self, job: str, one: Watched) -> Seen | None:
        """What to tell of a job; None if it was not seen yet, or for a doubt that was told: the news are another job's."""
        if one.looked_at < self.since:
            return None
        if isinstance(seen := one.seen, Gone | Refused):
            if self.doubts.get(job) == one.looked_at:
                return None
            self.doubts[job] = one.looked_at
        return seen

    async def wait(self, seconds: float) -> None:
        """Return when there are news, or after so many seconds."""
        if not self.news:
            loop = asyncio.get_running_loop()
            self.waiter = loop.create_future()
            timer = loop.call_later(seconds, self.rouse, context=_NO_CONTEXT) if math.isfinite(seconds) else None
            try:
                await self.waiter
            finally:
                self.waiter = None
                if timer is not None:
                    timer.cancel()
        self.news = False

    def rouse(self) -> None:
        self.queued = False
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)
