"""
Which slots were intended, and which job each became: small documents on storage, one per step, none ever rewritten by
another step. All state of a run is here; none is in Python objects or XCom.

A slot goes: (prepared →) uploaded → claimed → (refused →) submitted → landed. ``read`` returns what is there, and raises
when that cannot be told: "could not read the claim" and "there is no claim" are different facts, and only the second may
lead to a paid request.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

from airflow_gemini_batch.core import documents, storage
from airflow_gemini_batch.core.answers import Oddities
from airflow_gemini_batch.core.jobs import JobError
from airflow_gemini_batch.core.layout import WorkDirectory
from airflow_gemini_batch.core.names import Slot
from airflow_gemini_batch.core.remote_files import RemoteFile
from airflow_gemini_batch.core.rest import DEFAULT_TIMEOUT
from airflow_gemini_batch.core.usage import Spent, Usage

T = TypeVar("T")


@dataclass(frozen=True)
class Claim:
    """
    Somebody meant to create this slot's job.

    :param number: claims of a slot are numbered from 1; each is created exclusively.
    :param at: Unix time.
    :param by: host and process, for people.
    :param seconds: time limit of its create: after it, nothing of this claim can be under way.
    """

    number: int
    display_name: str
    at: float
    by: str
    seconds: float = DEFAULT_TIMEOUT
    refused: str | None = None

    @property
    def open(self) -> bool:
        """Nobody knows yet that its create was refused, so a job may exist."""
        return self.refused is None


@dataclass(frozen=True)
class Submitted:
    """
    The job that a slot became.

    :param created_at: Unix time of the job's creation; deadlines count from here.
    :param adopted: it was found at the service, not created by the attempt that wrote this.
    :param media_until: Unix time at which the first of its media is removed by the service, None if it has none.
    """

    job: str
    model: str
    file: str
    created_at: float
    adopted: bool = False
    media_until: float | None = None


@dataclass(frozen=True)
class Prepared:
    """
    A slot whose media are at the service: what is sent instead of its shard.

    :param name: of the directory of this preparation; see :meth:`WorkDirectory.prepared`.
    :param requests: lines that can be sent.
    :param unsendable: rows that cannot, as their media cannot be used.
    :param size: bytes of what is sent, ``sha256`` its hash.
    :param media_until: Unix time at which the first of the media is removed by the service; None if none is said to be.
    """

    name: str
    requests: int
    unsendable: int
    size: int
    sha256: str
    media_until: float | None


@dataclass(frozen=True)
class Landed:
    """
    A slot's settled rows are in ``part``; its unsettled ones in the work directory.

    :param part: name of the landed file, None when no row was settled.
    :param format: how it was landed; another format means it must be landed again.
    :param state: how the job ended, or why there is none.
    :param counts: settled rows by status.
    :param pico_usd: what its answers cost, see ``usage``; None if a price is unknown.
    :param ended_at: Unix time of the job's end, by which it was priced.
    :param detail: how the job stood when it was given up.
    :param columns: of the table that it was landed as; others mean the same as another format.
    :param unsettled_auto: rows that are not in the part and may pass by themselves; ``unsettled_other``: those that may not.
    """

    part: str | None
    format: str
    state: str
    counts: dict[str, int]
    unsettled_auto: int
    unsettled_other: int
    usage: Usage
    oddities: Oddities
    job_error: JobError | None = None
    pico_usd: int | None = None
    ended_at: float | None = None
    detail: str = ""
    lost: bool = False  # what its job used will never be known
    columns: list[str] = field(default_factory=list)

    @property
    def spent(self) -> Spent:
        return Spent(self.usage, self.pico_usd)


@dataclass(frozen=True)
class Entry:
    """All that the ledger knows of one slot."""

    slot: Slot
    upload: RemoteFile | None = None
    claims: tuple[Claim, ...] = ()
    submitted: Submitted | None = None
    cancelled_at: float | None = None
    cancelled_as: str = "TIMED_OUT"
    cancel_detail: str = ""
    landed: Landed | None = None

    @property
    def doubtful(self) -> Claim | None:
        """The newest claim that may have become a job nobody recorded."""
        open_claims = [claim for claim in self.claims if claim.open]
        return open_claims[-1] if open_claims and self.submitted is None else None


@dataclass(frozen=True)
class Ledger:
    """The ledger of one plan."""

    work: WorkDirectory
    now: Any = field(default=time.time)

    def read(self, slot: Slot) -> Entry:
        """
        :raises StateUnreadable: a step could not be read.
        :raises StateTooNew: a later release wrote it.
        """
        submitted = self._read(slot, "job", lambda body: Submitted(**documents.known(Submitted, body)))
        return Entry(
            slot,
            upload=None
            if submitted
            else self._read(slot, "upload", lambda b: RemoteFile(**documents.known(RemoteFile, b))),
            claims=() if submitted else tuple(self._claims(slot)),
            submitted=submitted,
            **(self._read(slot, "cancel", _cancelled) or {} if submitted else {}),
            landed=self._read(slot, "landed", _landed),
        )

    def _claims(self, slot: Slot) -> list[Claim]:
        claims: list[Claim] = []
        while claim := self._read(slot, f"claim-{len(claims) + 1}", lambda body: Claim(**documents.known(Claim, body))):
            refused = self._read(slot, f"refused-{claim.number}", lambda body: str(body["reason"]))
            claims.append(replace(claim, refused=refused))
        return claims

    def _read(self, slot: Slot, step: str, build: Callable[[dict[str, Any]], T]) -> T | None:
        path = self.work.step(slot, step)
        if (body := documents.read(_kind(step), path)) is None:
            return None
        with documents.understood(path):
            return build(body)

    def uploaded(self, slot: Slot, file: RemoteFile) -> None:
        self._put(slot, "upload", asdict(file))

    def preparation(self, slot: Slot) -> Prepared | None:
        """How a slot with media is sent, None when it was not prepared; raises like :meth:`read`."""
        return self._read(slot, "prepared", lambda body: Prepared(**documents.known(Prepared, body)))

    def prepared(self, slot: Slot, prepared: Prepared) -> None:
        self._put(slot, "prepared", asdict(prepared))

    def media_removed(self, slot: Slot) -> None:
        """Note that a slot's media were deleted at the service."""
        self._put(slot, "media-removed", {"at": self.now()})

    def are_media_removed(self, slot: Slot) -> bool:
        return self._read(slot, "media-removed", lambda body: True) is not None

    def claim(self, slot: Slot, number: int, display_name: str, *, seconds: float = DEFAULT_TIMEOUT) -> Claim | None:
        """Claim the right to create this slot's job; None when another attempt has this number."""
        claim = Claim(number, display_name, self.now(), f"{socket.gethostname()} pid {os.getpid()}", seconds)
        body = {name: value for name, value in asdict(claim).items() if name != "refused"}
        data = documents.dump("claim", body)
        return claim if storage.claim(self.work.step(slot, f"claim-{number}"), data) else None

    def refused(self, slot: Slot, claim: Claim, reason: str) -> None:
        """Note that this claim's create was definitely refused, so the next attempt need not look for its job."""
        self._put(slot, f"refused-{claim.number}", {"at": self.now(), "reason": reason})

    def submitted(self, slot: Slot, submitted: Submitted) -> None:
        self._put(slot, "job", asdict(submitted))

    def cancelled(self, slot: Slot, state: str = "TIMED_OUT", detail: str = "") -> float:
        """
        Note that this slot's job was cancelled, and why; returns when.

        :param state: ``TIMED_OUT`` or ``STUCK``.
        :param detail: how it stood.
        """
        at: float = self.now()
        self._put(slot, "cancel", {"at": at, "state": state, "detail": detail})
        return at

    def landed(self, slot: Slot, landed: Landed) -> None:
        self._put(slot, "landed", asdict(landed))

    def _put(self, slot: Slot, step: str, body: Mapping[str, Any]) -> None:
        storage.publish(self.work.step(slot, step), documents.dump(_kind(step), body))


def _kind(step: str) -> str:
    return step.rstrip("-0123456789")


def _cancelled(body: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "cancelled_at": float(body["at"]),
        "cancelled_as": str(body.get("state", "TIMED_OUT")),
        "cancel_detail": str(body.get("detail", "")),
    }


def _landed(body: Mapping[str, Any]) -> Landed:
    fields = documents.known(Landed, body)
    error = fields.get("job_error")
    return Landed(**fields | {
        "usage": Usage(**fields["usage"]),
        "oddities": Oddities(**fields["oddities"]),
        "job_error": JobError(**error) if error else None,
    })  # fmt: skip
