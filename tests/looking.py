"""What a triggerer sees of jobs, found out the way a trigger does: by waiting for them, if need be for days at once."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from airflow_gemini_batch.core import http, waiting, watcher
from airflow_gemini_batch.core.jobs import Seen
from airflow_gemini_batch.core.waiting import Outcome, Wait


async def look(eyes: watcher.Watcher, jobs: Sequence[str]) -> dict[str, Seen]:
    """Wait for jobs until each was seen once, whatever became of it, and return that."""
    seen: dict[str, Seen] = {}

    def step(wait: Wait, one: Seen | None, *, now: float) -> Wait | Outcome:
        if one is not None:
            seen[wait.job] = one
        return Outcome(wait.job, "ended") if len(seen) == len(jobs) else wait

    # An interval that is not over before all are seen: else some would be looked at twice.
    with patch.object(waiting, "step", step), patch.object(watcher, "GATHER", 0.0):
        await eyes.wait([Wait(job, math.inf) for job in jobs], interval=60, tell=lambda line: None)
    return {job: seen[job] for job in jobs}


class MadeUpLoop(asyncio.SelectorEventLoop):
    """An event loop that never sleeps: its time passes at once, and only while nothing happens. For tests without I/O."""

    def __init__(self) -> None:
        super().__init__()
        self.skipped = 0.0
        self._really_select = self._selector.select
        self._selector.select = self._select

    def time(self) -> float:
        return self.skipped

    def _select(self, timeout: float | None = None) -> Any:
        events = self._really_select(0)
        if not events and timeout:
            self.skip(timeout)
        return events

    def skip(self, seconds: float) -> None:
        self.skipped += seconds


class SkippingLoop(MadeUpLoop):
    """
    An event loop in which time passes at once while nobody is asked anything.

    :param sleep: is told of each such time.
    """

    def __init__(self, sleep: Callable[[float], None]) -> None:
        super().__init__()
        self._sleep, self._under_way, self._really_ask = sleep, 0, http._aask

    def time(self) -> float:
        return time.monotonic() + self.skipped

    def _select(self, timeout: float | None = None) -> Any:
        if self._under_way or timeout is None:
            return self._really_select(timeout)
        return super()._select(timeout)

    def skip(self, seconds: float) -> None:
        super().skip(seconds)
        self._sleep(seconds)

    async def ask(self, *arguments: Any) -> Any:
        self._under_way += 1
        try:
            return await self._really_ask(*arguments)
        finally:
            self._under_way -= 1


def wait_at_once(
    account: Any, waits: Sequence[Wait], *, sleep: Callable[[float], None], clock: Callable[[], float], **settings: Any
) -> tuple[Outcome, ...]:
    """
    Wait for jobs as a trigger does, in a time that passes at once.

    :param sleep: is told how much of it has passed.
    :param clock: Unix time.
    """

    async def wait() -> tuple[Outcome, ...]:
        async with watcher.Watcher.shared(account) as eyes:
            return await eyes.wait(waits, **settings)

    with asyncio.Runner(loop_factory=lambda: SkippingLoop(sleep)) as runner:
        loop: Any = runner.get_loop()
        with patch.object(http, "_aask", loop.ask), patch.object(watcher, "time", SimpleNamespace(time=clock)):
            return runner.run(wait())
