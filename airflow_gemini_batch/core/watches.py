"""Those who wait for jobs in an event loop, what is known of the jobs, and how a round goes. Knows not how to ask."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass

from airflow_gemini_batch.core.jobs import Gone, Refused, Seen, Unreachable
from airflow_gemini_batch.core.survey import LEFT_ALONE, Entry

GIVE_UP = 16
"""Looks in a row without an answer, or all that hang, after which the service counts as away for this round."""


@dataclass
class Tally:
    """
    How a round of looks goes.

    :param answered: some were answered.
    :param refusals: ``retry_after`` of those that a quota refused.
    :param unanswered: those in a row that were not answered, whyever.
    """

    answered: bool
    refusals: list[float]
    unanswered: int = 0

    def count(self, seen: Seen) -> None:
        if not isinstance(seen, Unreachable):
            self.answered, self.unanswered = True, 0
            return
        self.unanswered += 1
        if seen.retry_after is not None:
            self.refusals.append(seen.retry_after)

    def gives_up(self, hanging: int) -> str:
        """Why no further job is asked for in this round; empty while some are."""
        if any(self.refusals):
            return LEFT_ALONE
        return f"{GIVE_UP} others could not be seen either" if max(self.unanswered, hanging) >= GIVE_UP else ""


class Watched:
    """
    A job somebody waits for. Times are the loop's.

    ``looked_at`` is when the round began that saw it last, ``since`` how late that must be for all who wait to know of it;
    ``last`` is what was seen, as the list has it if it was listed: that is small, and quickly compared. ``asked`` is true
    while a ``get`` for it is under way.
    """

    __slots__ = ("asked", "due_at", "interval", "last", "looked_at", "since", "watches")

    def __init__(self) -> None:
        self.watches: tuple[Watch, ...] = ()
        self.asked = False
        self.interval = self.due_at = math.inf
        self.looked_at = self.since = -math.inf
        self.last: Seen | Entry | None = None

    @property
    def seen(self) -> Seen | None:
        return self.last.job() if isinstance(self.last, Entry) else self.last

    def looked(self, began: float, pace: float) -> None:
        self.looked_at = began
        if began >= self.since:  # else somebody asked while the round was under way: it stays due
            self.due_at = began + self.interval * pace


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
            timer = loop.call_later(seconds, self.rouse) if math.isfinite(seconds) else None
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
