"""Waits for jobs off the worker. Only looks: creates nothing, lands nothing, reads no rows."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_gemini_batch.killed import STOPPED, newest_try, state_of

if TYPE_CHECKING:
    from airflow_gemini_batch.core.rest import Account

STATE_TAKES = 20.0
"""Seconds to wait for Airflow's word on the task's state: the first takes long, and it hangs while a triggerer stops."""

KILL_TAKES = 40.0
"""Seconds that looking at the task's state and cancelling its jobs may take in all."""

USER_ACTION = "__airflow_user_action__"
"""What Airflow 3.3 cancels a trigger with when it was stopped on purpose, and not by a shutdown."""

CONNECTION_TRIES = 3
"""Looks for a missing connection before it counts as deleted."""

LOOKUP_SERVES = 10.0
"""Seconds for which one lookup of a connection serves all triggers: when a triggerer starts, thousands ask for the same."""


class GeminiBatchTrigger(BaseTrigger):
    """
    Ends with an event when at least one job is worth another look by the operator, or at a time it was told.

    The arguments are stored as plain JSON in Airflow's database: names and numbers, never the key.

    :param jobs: job name → deadline as Unix time. May be empty if there is an ``until``.
    :param gemini_conn_id: connection to look with.
    :param poll_interval: seconds between looks.
    :param until: Unix time at which it ends in any case: a quota is exhausted, and the operator tries again then.
    :param cancel_on_kill: cancel the jobs when the task is stopped by a person, its run, or a time limit of its run.
    """

    def __init__(
        self,
        *,
        jobs: dict[str, float],
        gemini_conn_id: str,
        poll_interval: float = 60.0,
        until: float | None = None,
        cancel_on_kill: bool = True,
        **_later: Any,  # what a later release may have stored; a downgrade must not break waiting tasks
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.jobs, self.gemini_conn_id = dict(jobs), gemini_conn_id
        self.poll_interval, self.until, self.cancel_on_kill = poll_interval, until, cancel_on_kill
        self._over = False  # the jobs have ended, or a kill is seen to already

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (
            "airflow_gemini_batch.triggers.batch.GeminiBatchTrigger",
            {
                "jobs": self.jobs,
                "gemini_conn_id": self.gemini_conn_id,
                "poll_interval": self.poll_interval,
                "until": self.until,
                "cancel_on_kill": self.cancel_on_kill,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        from airflow_gemini_batch.core.waiting import Wait, to_event
        from airflow_gemini_batch.core.watcher import Watcher

        if not self.jobs:  # nobody is asked, so no connection is needed
            while self.until is not None and (left := self.until - time.time()) > 0:
                self.log.info("No job runs and a quota is exhausted: the task goes on in %.0f s", left)
                await asyncio.sleep(left)
            yield TriggerEvent(to_event(()))  # type: ignore[no-untyped-call]
            return
        try:
            account = await self._account()
            waits = [Wait(job, deadline) for job, deadline in self.jobs.items()]
            async with Watcher.shared(account) as watcher:
                # The class's logger: thousands of instances' own weigh megabytes, and say the same.
                outcomes = await watcher.wait(
                    waits, interval=self.poll_interval, tell=self.logger().info, until=self.until
                )
        except asyncio.CancelledError as e:
            # Done here, though Airflow 3.3 has on_kill: it gives that up when it cancels the trigger again, which it does
            # about every second. Before 3.3 this is all that a trigger hears, and a shutdown looks the same.
            if not hasattr(BaseTrigger, "on_kill") or USER_ACTION in e.args:
                await self.on_kill()
            raise
        # From here the operator goes on, and Airflow may still call on_kill while this generator winds up.
        self._over = True
        yield TriggerEvent(to_event(outcomes))  # type: ignore[no-untyped-call]

    async def _account(self) -> Account:
        """Resolve the connection once. Airflow's database may be away for a while; only the deadline ends that."""
        from airflow_gemini_batch.exceptions import InvalidConfig

        missing = 0
        while True:
            try:
                return await account_of(self.gemini_conn_id)
            except InvalidConfig:
                missing += 1
                if missing >= CONNECTION_TRIES:
                    raise
            except Exception as e:
                # Whatever the secrets backend or Airflow's own API raise while they are down.
                if time.time() >= min(self.jobs.values()):
                    raise
                self.log.warning("The connection cannot be read for now: %s: %s", type(e).__name__, e)
            await asyncio.sleep(min(self.poll_interval, 10.0))

    async def on_kill(self) -> None:
        """Cancel the jobs if the task was really stopped; see ``killed``. Airflow 3.3 calls this, earlier ones do not."""
        if self._over or not self.cancel_on_kill or not self.jobs:
            return
        self._over = True
        work = asyncio.ensure_future(self._cancel_if_stopped())
        until = time.monotonic() + KILL_TAKES
        while not work.done() and (left := until - time.monotonic()) > 0:
            with suppress(asyncio.CancelledError):  # seen through, however often Airflow cancels meanwhile
                await asyncio.wait({work}, timeout=left)
        if not work.done():
            work.cancel()  # what was learned of the task's state is too old by now
            self.log.warning("There was no time to see whether the jobs must be cancelled; they run on")
        elif (error := work.exception()) is not None:
            self.log.warning("The jobs could not be cancelled: %s: %s", type(error).__name__, error)

    async def _cancel_if_stopped(self) -> None:
        state = await self._state()
        if state not in STOPPED:
            self.log.info(
                "The trigger was stopped, the task is %s: its jobs are left running", state or "in no known state"
            )
            return
        if await self._is_outlived():
            self.log.info("A later try has begun: the jobs are left to it")
            return
        from airflow_gemini_batch.core.watcher import Watcher

        async with Watcher.shared(await self._account()) as watcher:
            for said in await asyncio.gather(*(watcher.cancel(job) for job in self.jobs)):
                self.log.warning("The task is %s; cancelled: %s", state, said)

    async def _is_outlived(self) -> bool:
        """True if the task was cleared and its next try has begun: the state is then that try's, and so are the jobs."""
        from asgiref.sync import sync_to_async

        ti = self.task_instance
        if ti is None:
            return False
        map_index = ti.map_index if ti.map_index is not None else -1
        try:
            newest = await asyncio.wait_for(
                sync_to_async(newest_try)(ti.dag_id, ti.task_id, ti.run_id, map_index), STATE_TAKES
            )
            return newest is not None and newest > ti.try_number
        except Exception as e:
            # The state alone must do: it is that of a task that was stopped.
            self.log.warning("Whether a later try has begun cannot be read: %s: %s", type(e).__name__, e)
            return False

    async def _state(self) -> str | None:
        from asgiref.sync import sync_to_async

        ti = self.task_instance
        if ti is None:  # dag.test() runs triggers without one
            return None
        try:
            return await asyncio.wait_for(
                sync_to_async(state_of)(
                    ti.dag_id, ti.task_id, ti.run_id, ti.map_index if ti.map_index is not None else -1
                ),
                STATE_TAKES,
            )
        except Exception as e:
            # Could not tell: then nothing is cancelled.
            self.log.warning("The task's state cannot be read: %s: %s", type(e).__name__, e)
            return None


_lookups: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, tuple[float, Any]]] = WeakKeyDictionary()
"""Per event loop and connection: when it was looked up, and the account, or the task that finds it out."""


async def account_of(conn_id: str) -> Account:
    """Look a connection up, together with all other triggers that do so at about the same time."""
    from airflow_gemini_batch.hooks.gemini import GeminiHook

    loop = asyncio.get_running_loop()
    lookups = _lookups.setdefault(loop, {})
    at, found = lookups.get(conn_id, (-math.inf, None))
    if loop.time() - at > LOOKUP_SERVES:
        found = loop.create_task(GeminiHook(conn_id).aaccount())
        lookups[conn_id] = loop.time(), found
        found.add_done_callback(partial(_looked_up, lookups, conn_id))
    # Whoever waits may be cancelled; the others still want to know.
    return await asyncio.shield(found) if isinstance(found, asyncio.Task) else found


def _looked_up(lookups: dict[str, tuple[float, Any]], conn_id: str, task: asyncio.Task[Account]) -> None:
    if task.cancelled() or task.exception() is not None:
        del lookups[conn_id]  # the next one tries again
    else:
        lookups[conn_id] = lookups[conn_id][0], task.result()
