"""
How long to wait after a 429, and when to give up. Knows nothing of jobs.

Each call of ``advance`` has one :class:`Patience`. What it must remember over deferrals, retries and other attempts is a
small note on storage: since when nothing but refusals came, how many, and when the service asked to be left alone until.
Patience ends only while no job of the run is at the service: those have deadlines of their own, and may fill the quota.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Literal

from airflow_gemini_batch.core import documents, storage
from airflow_gemini_batch.core.attempt import Run, Services, log, utc
from airflow_gemini_batch.exceptions import QuotaExceeded, StateTooNew, StateUnreadable

FIRST = 30.0
"""Seconds of the first pause; it doubles with each pass in a row that is refused."""

LONGEST = 600.0
"""Seconds of the longest pause, unless the service asks for more."""

TOLD_JITTER = 0.1
"""Part by which a pause is longer than the service asked for, so that tasks refused together come back apart."""

Work = Literal["sending", "fetching"]
"""What a refusal stops. The service has quotas of its own for each: results can be fetched while jobs cannot be created."""


@dataclass(frozen=True)
class Note:
    """
    :param run: whose refusals these are; ``clears`` is Airflow's ``max_tries``: a person who clears the task begins anew.
    :param since: Unix time of the first refusal of this attempt after the last progress.
    :param alone: Unix time since when besides no job of the run is at the service; None while one is.
    :param refusals: refusals since then; ``passes``: calls of ``advance`` that met one.
    :param told: until when the service asked to be left alone (Unix time), by what it refused.
    :param phase: of the last refusal, as are ``quota`` and ``said``.
    """

    run: str
    clears: int | None
    since: float
    alone: float | None = None
    refusals: int = 0
    passes: int = 0
    told: dict[str, float] = field(default_factory=dict)
    phase: str = ""
    quota: str = ""
    said: str = ""


class Patience:
    """
    The refusals that one call of ``advance`` meets, and what they mean together with those before it.

    :param starting: True for the first call of an attempt. Each attempt has the whole ``quota_timeout``: what an earlier one
        waited, or nobody did after its death, is no reason to give up at once. What the service asked for stands.
    """

    def __init__(
        self, run: Run, services: Services, *, starting: bool = False, jitter: Callable[[], float] = random.random
    ) -> None:
        self._run, self._now, self._jitter = run, services.clock, jitter
        self._path, self._timeout = run.output.quota, run.policy.quota_timeout
        self._refusals: list[QuotaExceeded] = []
        self._held: set[Work] = set()
        self._progress, self._starting = False, starting

    @cached_property
    def _before(self) -> Note | None:
        try:
            body = documents.read("quota", self._path)
            if body is None:
                return None
            with documents.understood(self._path):
                note = Note(**documents.known(Note, body))
        except (StateUnreadable, StateTooNew) as e:
            # No money hangs on it: at worst the wait is counted from its beginning again.
            log.warning("The note on refusals is passed over: %s", e)
            return None
        if (note.run, note.clears) != (str(self._run.id), self._run.clears):
            return None
        return self._anew(note) if self._starting else note

    @property
    def tried(self) -> bool:
        """True if something was refused or left undone, so that there is a time to come back."""
        return bool(self._refusals or self._held)

    def holds(self, work: Work) -> bool:
        """Whether the service asked to be left alone for longer; without its word a place that became free is tried."""
        if self._before is None or self._now() >= self._before.told.get(work, 0.0):
            return False
        self._held.add(work)
        return True

    def refused(self, refusal: QuotaExceeded) -> None:
        self._refusals.append(refusal)

    def progressed(self) -> None:
        """A job was created, or one landed: the wait is counted anew."""
        self._progress = True

    def settle(self, *, running: bool = False) -> float | None:
        """
        Return the Unix time to come back at, and note it; None if nothing was refused.

        :param running: jobs of the run are at the service.
        :raises QuotaExceeded: nothing but refusals came for ``quota_timeout`` seconds, and no job ran.
        """
        if not self.tried:
            if self._progress:
                self.forget()
            return None
        now = self._now()
        note = self._add_up(now, running)
        storage.publish(self._path, documents.dump("quota", asdict(note)))
        gives_up = math.inf if note.alone is None else note.alone + self._timeout
        if now >= gives_up:
            raise self._final(note, now)
        pause = min(LONGEST, FIRST * 2.0 ** min(note.passes - 1, 30))
        own = now + pause * (1 + self._jitter()) / 2
        times = [max(own, note.told.get(_work(one), 0.0)) for one in self._refusals]
        times += [note.told[work] for work in self._held]
        back = min(*times, gives_up)
        self._tell(note, now, back)
        return back

    def forget(self) -> None:
        """The run is over, or goes on well."""
        if self._before is not None:
            storage.remove(self._path)

    def _anew(self, note: Note) -> Note:
        return replace(note, since=self._now(), alone=None, refusals=0, passes=0)

    def _add_up(self, now: float, running: bool) -> Note:
        note = self._before or Note(str(self._run.id), self._run.clears, now)
        if self._progress:
            note = self._anew(note)
        alone = None if running else now if note.alone is None else note.alone
        told = {work: until for work, until in note.told.items() if until > now or work in self._held}
        for one in self._refusals:
            if one.retry_after is not None:
                until = now + one.retry_after * (1 + TOLD_JITTER * self._jitter())
                told[_work(one)] = max(until, told.get(_work(one), 0.0))
            note = replace(note, phase=one.phase, quota=one.quota, said=str(one))
        passes, refusals = note.passes + bool(self._refusals), note.refusals + len(self._refusals)
        return replace(note, alone=alone, refusals=refusals, passes=passes, told=told)

    def _tell(self, note: Note, now: float, back: float) -> None:
        met = dict.fromkeys((one.phase, one.quota, str(one)) for one in self._refusals)
        for phase, quota, said in met or [(note.phase, note.quota, note.said)]:
            log.warning(
                "A quota is exhausted: phase %s, quota %s. Waiting %.0f s, until %s; refused %s times since %s, given up "
                "after %g h in which nothing gets through and no job of this run is at the service. %s",
                phase, quota, back - now, utc(back), note.refusals, utc(note.since), self._timeout / 3600, said,
            )  # fmt: skip

    def _final(self, note: Note, now: float) -> QuotaExceeded:
        return QuotaExceeded(
            f"Phase {note.phase}, quota {note.quota}: refused {note.refusals} times since {utc(note.since)}, in "
            f"{(now - note.since) / 3600:.1f} h in which nothing got through. Raise the quota, lower Limits.active_jobs, set "
            "Limits.enqueued_tokens, or raise quota_timeout. Jobs of this run that are at the service are left there: a "
            f"clear or a retry of the task adopts them and pays for none twice. {note.said}",
            phase=note.phase,
            quota=note.quota,
        )


def _work(refusal: QuotaExceeded) -> Work:
    return "fetching" if refusal.phase in ("look", "download") else "sending"
