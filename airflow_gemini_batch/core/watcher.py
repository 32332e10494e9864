"""
Looks at jobs from an event loop. All waits on one account in one loop share a watcher: one HTTP client, one place that
decides how the looking is done.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import ClassVar
from weakref import WeakKeyDictionary

import httpx

from airflow_gemini_batch.core import rest
from airflow_gemini_batch.core.http import LIMITS, ahold
from airflow_gemini_batch.core.jobs import Seen
from airflow_gemini_batch.core.rest import Account

AT_ONCE = 8
"""Looks under way at a time, over all waits on an account."""


class Watcher:
    """One account's eyes in one event loop. Use :meth:`shared`; it lives as long as somebody uses it."""

    _all: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Account, Watcher]]] = WeakKeyDictionary()

    def __init__(self, account: Account) -> None:
        self._account = account
        self._http = httpx.AsyncClient(limits=LIMITS)
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._users = 0

    @classmethod
    @asynccontextmanager
    async def shared(cls, account: Account) -> AsyncIterator[Watcher]:
        """Give the running loop's watcher for this account; the last user closes it."""
        watchers = cls._all.setdefault(asyncio.get_running_loop(), {})
        if (watcher := watchers.get(account)) is None:
            watcher = watchers[account] = cls(account)
        watcher._users += 1
        try:
            yield watcher
        finally:
            watcher._users -= 1
            if watcher._users == 0:
                watchers.pop(account, None)
                await watcher._http.aclose()

    async def look(self, jobs: tuple[str, ...]) -> dict[str, Seen]:
        """Look at jobs; every one is in the answer, whatever the service does."""
        seen = await asyncio.gather(*(self._look(job) for job in jobs))
        return dict(zip(jobs, seen, strict=True))

    async def _look(self, job: str) -> Seen:
        async with self._turns:
            return await ahold(rest.looking(job), self._http, self._account)

    async def cancel(self, job: str) -> rest.Cancel:
        """Cancel a job and say what became of it; see :func:`rest.cancelling`."""
        return await ahold(rest.cancelling(job), self._http, self._account)
