"""What one attempt at a run knows: its settings, the plan in force, and the ways to storage, service and time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property

from airflow_gemini_batch.core.client import Client
from airflow_gemini_batch.core.landing import FORMATS
from airflow_gemini_batch.core.layout import OutputDirectory, WorkDirectory
from airflow_gemini_batch.core.ledger import Ledger
from airflow_gemini_batch.core.names import RunId
from airflow_gemini_batch.core.plan import Plan
from airflow_gemini_batch.core.requests import Spec
from airflow_gemini_batch.core.rows import FileSource, RecordSource
from airflow_gemini_batch.core.shards import Limits
from airflow_gemini_batch.exceptions import InvalidConfig, Superseded

log = logging.getLogger("airflow_gemini_batch")

CHOICES: dict[str, tuple[str, ...]] = {
    "file_format": FORMATS,
    "on_timeout": ("cancel", "leave"),
    "reuse": ("auto", "never"),
    "on_changed": ("fail", "keep", "resubmit"),
    "on_empty": ("skip", "succeed", "fail"),
    "delete_remote": ("inputs", "all", "never"),
}


@dataclass(frozen=True)
class Policy:
    """
    How a run behaves, apart from what it sends.

    :param timeout: seconds a job may take, from its creation.
    :param max_rounds: passes over the work, the first one included.
    :param max_failed_ratio: most rows without status ``ok``, as a part of all; None: at least one row must be ok.
    """

    file_format: str = "parquet"
    include_raw: bool = False
    limits: Limits = field(default_factory=Limits)
    max_rounds: int = 2
    max_failed_ratio: float | None = None
    timeout: float = 48 * 3600
    on_timeout: str = "cancel"
    reuse: str = "auto"
    on_changed: str = "fail"
    on_empty: str = "skip"
    delete_remote: str = "inputs"

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise InvalidConfig(f"{name} is {getattr(self, name)!r}; it takes {', '.join(map(repr, allowed))}.")
        if self.timeout <= 0:
            raise InvalidConfig(f"timeout is {self.timeout!r}; it takes a number of seconds above 0.")
        if self.max_rounds < 1:
            raise InvalidConfig(f"max_rounds is {self.max_rounds!r}; it takes 1 or more.")
        if self.max_failed_ratio is not None and not 0 <= self.max_failed_ratio <= 1:
            raise InvalidConfig(f"max_failed_ratio is {self.max_failed_ratio!r}; it takes 0 to 1.")


@dataclass(frozen=True)
class Run:
    """
    :param source: opens the source; called only when a plan has to be made.
    :param clears: Airflow's ``max_tries``: it grows when a task is cleared and not when it is retried.
    """

    id: RunId
    source: Callable[[], FileSource | RecordSource]
    spec: Spec
    output: OutputDirectory
    policy: Policy
    clears: int | None = None


@dataclass(frozen=True)
class Services:
    """The world outside: the account, the clock, and patience. Tests give their own."""

    client: Client
    clock: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True)
class Attempt:
    """One attempt under the plan in force."""

    run: Run
    plan: Plan
    services: Services

    @cached_property
    def work(self) -> WorkDirectory:
        return self.run.output.work(self.plan.work)

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger(self.work, self.services.clock)

    @property
    def client(self) -> Client:
        return self.services.client

    def now(self) -> float:
        return self.services.clock()

    def check_current(self) -> None:
        """:raises Superseded: another attempt has put a newer plan in force."""
        if not self.plan.is_current(self.run.output):
            raise Superseded(
                f"Plan {self.plan.number} of {self.run.output.path} was replaced by another attempt of {self.run.id}; "
                "this attempt stops here."
            )


def utc(at: float) -> str:
    """Unix time as ISO 8601 in UTC, to the second."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
