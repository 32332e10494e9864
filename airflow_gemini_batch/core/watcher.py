"""
Looks at jobs from an event loop. All waits on one account in one loop share a watcher: one HTTP client, one task that looks,
in rounds, at every job that somebody waits for (see ``survey`` for how), and wakes only those who have news.

A job is looked at once per interval of the most impatient who waits for it. Jobs that are due at about the same time share a
round, and a page of the list serves every job on it, due or not: so those who poll equally often soon share all their rounds.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import random
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from typing import ClassVar
from weakref import WeakKeyDictionary

import httpx

from airflow_gemini_batch.core import rest
from airflow_gemini_batch.core.http import ahold
from airflow_gemini_batch.core.jobs import Gone, Refused, Seen, Unreachable
from airflow_gemini_batch.core.rest import Account
from airflow_gemini_batch.core.survey import Entry, Survey
from airflow_gemini_batch.core.waiting import HEARTBEAT, JITTER, Outcome, Quiet, Wait, adrive, watching
from airflow_gemini_batch.core.watches import GIVE_UP, TRIES, Tally, Watch, Watched

log = logging.getLogger(__name__)

AT_ONCE = 8
"""Looks under way at a time, over all waits on an account, beside those that hang."""

JOBS_PER_CONNECTION = 25
"""A few jobs are asked for one after the other, on the connection that is open anyway; each so many more open another."""

SLOW = 0.5
"""Seconds after which a look that is not answered hangs: it no longer holds up the next ones, nor the round."""

ASKING = 1.0
"""
Seconds, or as long as the list took if that is more, after which a round leaves the jobs that it has not asked for to the
next: what made them so many, a list that failed or came back short, may be over.
"""

HOLD = 4.0
"""Seconds, at most, that one who comes waits for a look at all its jobs. From then on it goes by those that were seen."""

GATHER = 1.0
"""Seconds that a first look waits for others, as after a triggerer's start; a tenth of the interval if that is less."""

FRESH = 0.5
"""Part of the interval up to whose age a newcomer takes what is known of its job already."""

NEARLY_DUE = 0.8
"""Part of the interval after which a job is looked at along with others that are due."""

AWAKE_AT_ONCE = 20
"""Waits that are woken in one turn of the event loop; others' tasks run in between."""

LIMITS = httpx.Limits(max_connections=GIVE_UP + 2, max_keepalive_connections=GIVE_UP + 2, keepalive_expiry=100.0)
"""
Connections stay open from round to round: a new one costs a TLS handshake, and a thread for the host's address. While more
are open than are to be kept, httpx keeps none; so all are.
"""


class Watcher:
    """One account's eyes in one event loop. Use :meth:`shared`; it lives as long as somebody uses it."""

    _all: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Account, Watcher]]] = WeakKeyDictionary()

    def __init__(self, account: Account) -> None:
        self._account = account
        self._loop = asyncio.get_running_loop()
        self._http = httpx.AsyncClient(limits=LIMITS)
        self._survey = Survey()
        self._users = 0
        self._watched: dict[str, Watched] = {}
        self._next = math.inf
        self._quiet, self._quiet_until, self._judged_at = Quiet(), -math.inf, -math.inf
        self._sooner = asyncio.Event()
        self._to_rouse: deque[Watch] = deque()
        self._looking: asyncio.Task[None] | None = None
        self._gets: dict[asyncio.Task[Seen], float] = {}
        """Looks under way, and since when."""

    @classmethod
    def shared(cls, account: Account) -> AbstractAsyncContextManager[Watcher]:
        """Give the running loop's watcher for this account; the last user closes it."""
        return _Use(cls._all.setdefault(asyncio.get_running_loop(), {}), account)

    async def wait(
        self, waits: Sequence[Wait], *, interval: float, tell: Callable[[str], None], until: float | None = None
    ) -> tuple[Outcome, ...]:
        """
        Wait until at least one job is worth another look by the flow; returns all that are.

        :param interval: seconds between looks, at most.
        :param tell: takes a line for the log; see :func:`waiting.watching`.
        :param until: Unix time at which the wait ends anyway.
        """
        # Whoever waits sleeps until there are news, its deadline, or the time to tell that there are none; ``watching``
        # decides what news mean, and is not run for none. A job that looks as before would not change what it decides.
        steps = watching(waits, interval=HEARTBEAT, clock=time.time, tell=tell, jitter=_later, until=until)
        now = self._loop.time()
        watch = self._enter(tuple(wait.job for wait in waits), interval, now - interval * FRESH, now + HOLD * _later())
        try:
            return await adrive(steps, partial(self._news, watch), watch.wait)
        finally:
            self._leave(watch)

    async def cancel(self, job: str) -> rest.Cancel:
        """Cancel a job and say what became of it; see :func:`rest.cancelling`."""
        return await ahold(rest.cancelling(job), self._http, self._account)

    # Those who wait ----------------------------------------------------------------------------------------

    def _enter(self, jobs: tuple[str, ...], interval: float, since: float, held_until: float) -> Watch:
        if self._http.is_closed:
            raise RuntimeError("this watcher is closed")
        watch = Watch(jobs, interval, since, held_until)
        due_at = self._loop.time() + min(GATHER, interval * JITTER)
        for job in watch.jobs:
            watched = self._watched.setdefault(job, Watched())
            watched.watches += (watch,)
            watched.interval, watched.since = min(watched.interval, interval), max(watched.since, since)
            watched.due_at = min(watched.due_at, due_at if watched.looked_at < since else watched.looked_at + interval)
            if watched.due_at < self._next:
                self._next = watched.due_at
                self._sooner.set()
        return watch

    def _leave(self, watch: Watch) -> None:
        for job in watch.jobs:
            watched = self._watched[job]
            watched.watches = tuple(other for other in watched.watches if other is not watch)
            if watched.watches:
                watched.interval = min(other.interval for other in watched.watches)
            else:
                del self._watched[job]

    async def _news(self, watch: Watch, jobs: tuple[str, ...]) -> dict[str, Seen | None]:
        """What is known of the jobs since the watch asked; waits until that is something of each, for a time."""
        while True:
            self._look_on()
            watched = {job: self._watched[job] for job in jobs}
            left = watch.held_until - self._loop.time()
            if left <= 0 or all(one.looked_at >= watch.since for one in watched.values()):
                watch.news = False
                return {job: watch.told(job, one) for job, one in watched.items()}
            await watch.wait(left)

    # The one who looks -------------------------------------------------------------------------------------

    def _look_on(self) -> None:
        if self._looking is None:
            # A context of its own: what is logged here is not the first trigger's.
            self._looking = self._loop.create_task(self._keep_looking(), context=contextvars.Context())
            self._looking.add_done_callback(self._looked_last)

    def _looked_last(self, task: asyncio.Task[None]) -> None:
        # Should somebody end the task while others wait: they wake, and start it again.
        self._looking = None
        for watched in self._watched.values():
            self._wake(watched.watches)

    async def _close(self) -> None:
        if self._looking is not None:
            # The task closes the client, not this one, which may itself be in the middle of being cancelled.
            self._looking.cancel()
            await asyncio.wait({self._looking})
        await self._http.aclose()

    async def _keep_looking(self) -> None:
        try:
            while True:
                await self._until_due()
                began = self._loop.time()
                jobs = self._due(began)
                try:
                    if jobs:
                        await self._round(jobs, began)
                except Exception as e:
                    # A mistake of ours must not end all waits; it is told, and the next round may do better.
                    log.exception("A round of looking at %d jobs failed", len(jobs))
                    self._unseen(jobs, f"{type(e).__name__}: {e}", began)
                self._next = min((one.due_at for one in self._watched.values() if not one.asked), default=math.inf)
        finally:
            for task in self._gets:
                task.cancel()
            if self._gets:
                await asyncio.wait(self._gets)
            if not self._users:
                await self._http.aclose()

    def _due(self, now: float) -> list[str]:
        return [
            job
            for job, one in self._watched.items()
            if not one.asked and (one.due_at <= now or now - one.looked_at >= one.interval * NEARLY_DUE)
        ]

    async def _until_due(self) -> None:
        while (left := max(self._next, self._quiet_until) - self._loop.time()) > 0:
            self._sooner.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left if math.isfinite(left) else None):
                    await self._sooner.wait()

    async def _round(self, jobs: Collection[str], began: float) -> None:
        # Only ever sooner than the interval, so that no end is noticed later than that.
        pace = 1 - JITTER * random.random()
        missing, refused = await ahold(
            self._survey.listed(jobs, lambda entries: self._take(entries, began, pace)), self._http, self._account
        )
        tally = Tally(answered=len(missing) < len(jobs), refusals=[] if refused is None else [refused])
        interval = min((one.interval for job in jobs if (one := self._watched.get(job))), default=0.0)
        await self._ask(missing, tally, began, pace)
        # A few jobs that are soon asked for again, and refused again, do not mean that the service refuses all looks.
        if tally.answered or any(tally.refusals) or began - self._judged_at > interval:
            self._judged_at = began
            quiet = self._quiet.after(tally.refusals, answered=tally.answered, interval=interval)
            self._quiet_until = self._loop.time() + quiet

    async def _ask(self, jobs: Collection[str], tally: Tally, began: float, pace: float) -> None:
        """Ask for jobs one by one."""
        slots = min(AT_ONCE, 1 + len(jobs) // JOBS_PER_CONNECTION)
        until = (now := self._loop.time()) + max(ASKING, now - began)
        # Who was not seen for longest comes first, else in any order but the same, so that a service that answers only a
        # few answers others next time.
        left = [job for job in jobs if job in self._watched]
        random.shuffle(left)
        left.sort(key=lambda job: self._watched[job].looked_at, reverse=True)
        while True:
            hung_since = self._loop.time() - SLOW
            hanging = sum(since <= hung_since for since in self._gets.values())
            others, most = len(self._gets) - hanging, min(AT_ONCE if hanging else slots, GIVE_UP - hanging)
            while left and others < most and not tally.gives_up(hanging):
                task = asyncio.create_task(self._get(left.pop(), began, pace))
                self._gets[task] = self._loop.time()
                task.add_done_callback(self._gets.pop)
                others += 1
            if not others and (tally.gives_up(hanging) or not left):
                self._unseen(left, tally.gives_up(hanging), began, pace, max(tally.refusals, default=None))
                return
            done, _ = await asyncio.wait(set(self._gets), timeout=SLOW, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                tally.count(task.result())
            if self._loop.time() >= until:
                return  # those left stay due

    async def _get(self, job: str, began: float, pace: float) -> Seen:
        one = self._watched.get(job) or Watched()
        one.asked, until = True, self._loop.time() + one.patience
        try:
            seen = await ahold(rest.looking(job), self._http, self._account.within(one.patience))
        finally:
            one.asked = False
            one.hangs += self._loop.time() >= until
        if one.looked_at <= began:  # else it comes late, and the list has shown the job in a later round
            self._see(job, seen, began, pace)
        if one.due_at < self._next:
            self._next = one.due_at
            self._sooner.set()
        return seen

    # What was seen -----------------------------------------------------------------------------------------

    def _take(self, entries: Iterable[Entry], began: float, pace: float) -> Collection[str]:
        """Take a page of the list; most jobs are as they were, and cost no more than finding that out."""
        taken = []
        for entry in entries:
            name = entry.name
            if (one := self._watched.get(name)) is None:
                continue
            if entry != one.last:
                if not entry.tells:
                    continue
                one.last = entry
                self._wake(one.watches)
            elif one.looked_at < one.since:
                self._wake(one.watches)
            one.looked(began, pace)
            taken.append(name)
        return taken

    def _see(self, job: str, seen: Seen, began: float, pace: float) -> None:
        if (one := self._watched.get(job)) is None:
            return
        if isinstance(seen, Unreachable):
            one.missed(began, pace)
            if one.misses < TRIES and not seen.retry_after:
                return
        # "Gone" and "refused" are news each time: they are believed when they are told often enough.
        if seen != one.last or isinstance(seen, Gone | Refused) or one.looked_at < one.since:
            self._wake(one.watches)
        one.last, one.looked_at = seen, began
        if not isinstance(seen, Unreachable):
            one.looked(began, pace)

    def _unseen(
        self, jobs: Iterable[str], why: str, began: float, pace: float = 1.0, retry_after: float | None = None
    ) -> None:
        for job in jobs:
            self._see(job, Unreachable(job, why, retry_after), began, pace)

    def _wake(self, watches: Iterable[Watch]) -> None:
        for watch in watches:
            watch.news = True
            if not watch.queued:
                watch.queued = True
                self._to_rouse.append(watch)
                if len(self._to_rouse) == 1:
                    self._loop.call_soon(self._rouse)

    def _rouse(self) -> None:
        for _ in range(min(AWAKE_AT_ONCE, len(self._to_rouse))):
            self._to_rouse.popleft().rouse()
        if self._to_rouse:
            self._loop.call_soon(self._rouse)


class _Use(AbstractAsyncContextManager[Watcher]):
    """One use of a shared watcher. Not a generator with a decorator: of those, thousands weigh a kilobyte each."""

    __slots__ = ("_account", "_watcher", "_watchers")

    def __init__(self, watchers: dict[Account, Watcher], account: Account) -> None:
        self._watchers, self._account = watchers, account

    async def __aenter__(self) -> Watcher:
        if (watcher := self._watchers.get(self._account)) is None:
            watcher = self._watchers[self._account] = Watcher(self._account)
        watcher._users += 1
        self._watcher = watcher
        return watcher

    async def __aexit__(self, *error: object) -> None:
        self._watcher._users -= 1
        if self._watcher._users == 0:
            self._watchers.pop(self._account, None)
            await self._watcher._close()


def _later() -> float:
    """A jitter that makes a pause no shorter than it is: at :data:`HEARTBEAT` there must be something to tell."""
    return random.uniform(0.5, 1)
