"""What one attempt at a run knows: its settings, the plan in force, and the ways to storage, service and time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from airflow_gemini_batch.core.budget import Budget
from airflow_gemini_batch.core.checks import BEHAVIOUR
from airflow_gemini_batch.core.client import Client
from airflow_gemini_batch.core.estimate import Estimator, Scale
from airflow_gemini_batch.core.layout import OutputDirectory, WorkDirectory
from airflow_gemini_batch.core.ledger import Ledger
from airflow_gemini_batch.core.limits import Limits
from airflow_gemini_batch.core.measuring import Measure
from airflow_gemini_batch.core.names import RunId
from airflow_gemini_batch.core.plan import Plan, Round, Shard
from airflow_gemini_batch.core.prices import NO_TABLE, Prices, PriceTable
from airflow_gemini_batch.core.requests import Spec
from airflow_gemini_batch.core.rows import FileSource, RecordSource
from airflow_gemini_batch.core.schema import OutputSchema
from airflow_gemini_batch.core.storage import StoragePath
from airflow_gemini_batch.core.table import Table
from airflow_gemini_batch.exceptions import Superseded

log = logging.getLogger("airflow_gemini_batch")


class Loader(Protocol):
    """The way into a database: ``kinds`` are column → kind (see ``columns``), rows are in their order."""

    def check(self, kinds: Mapping[str, str]) -> None: ...
    def load(self, kinds: Mapping[str, str], batches: Iterable[Sequence[tuple[Any, ...]]]) -> int: ...


@dataclass(frozen=True)
class Policy:
    """
    How a run behaves, apart from what it sends.

    :param include: further columns of the table; names in ``reading.EXTRAS``.
    :param timeout: seconds a job may take, from its creation.
    :param pending_timeout: seconds a job may stay pending; None: as long as ``timeout``.
    :param split: into how many jobs the rows of one that took too long, failed or expired are sent again.
    :param redo: status → fields of a request that are put on top of it when its row is sent again.
    :param canary: rows that are sent first, in a job of their own.
    :param prices: the user's own; ``assumed_output_tokens``: of a request, for the estimate.
    :param count_tokens: requests that the API is asked to count, to scale the estimate by.
    :param max_rounds: passes over the work, the first one included.
    :param quota_timeout: seconds for which a quota may refuse everything before the run gives up.
    :param max_failed_ratio: most rows without status ``ok``, as a part of all; None: at least one row must be ok.
    """

    file_format: str = "parquet"
    include: tuple[str, ...] = ()
    include_raw: bool = False
    limits: Limits = field(default_factory=Limits)
    max_rounds: int = 2
    max_failed_ratio: float | None = None
    timeout: float = 48 * 3600
    pending_timeout: float | None = None
    on_timeout: str = "cancel"
    split: int = 1
    redo: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    canary: int = 0
    budget: Budget | None = None
    prices: PriceTable = NO_TABLE
    assumed_output_tokens: int | None = None
    count_tokens: int = 0
    reuse: str = "auto"
    on_changed: str = "fail"
    on_empty: str = "skip"
    delete_remote: str = "inputs"
    quota_timeout: float = 24 * 3600

    def __post_init__(self) -> None:
        for name, check in BEHAVIOUR.items():
            check(name, getattr(self, name))

    @property
    def ends_over_budget(self) -> bool:
        """Rows that a budget leaves out are a failure (or a skip), and not what was asked for."""
        return self.budget is not None and self.budget.on_exceed != "truncate_rows"


@dataclass(frozen=True)
class Run:
    """
    :param source: opens the source; called only when a plan has to be made.
    :param clears: Airflow's ``max_tries``: it grows when a task is cleared and not when it is retried.
    :param schema: what each answer must hold; the spec has it as JSON.
    :param planner: makes the plan with a number, where it is not made of the source's rows.
    :param loader: takes the landed rows into a database. Safe to repeat.
    """

    id: RunId
    source: Callable[[], FileSource | RecordSource]
    spec: Spec
    output: OutputDirectory
    policy: Policy
    clears: int | None = None
    schema: OutputSchema | None = None
    loader: Loader | None = None
    planner: Callable[[Run, Services, int], Plan] | None = None


@dataclass(frozen=True)
class Services:
    """
    The world outside: the account, the clock, patience, and storage. Tests give their own.

    :param open_uri: a URI as users write it becomes a path; what it raises of ours is about the URI.
    """

    client: Client
    clock: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep
    open_uri: Callable[[str], StoragePath] = Path


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

    @cached_property
    def schema(self) -> OutputSchema | None:
        """What the answers must hold: the task's own schema (a model may check more than its JSON), unless that changed."""
        planned = self.plan.spec.get("output_schema")
        if planned is None or (self.run.schema is not None and self.run.schema.json_schema == planned):
            return self.run.schema if planned is not None else None
        return OutputSchema.of(planned)

    @cached_property
    def table(self) -> Table:
        policy = self.run.policy
        return Table.of(
            self.plan.spec, self.plan.keep_types, media=self.plan.media, schema=self.schema, include=policy.include,
            raw=policy.include_raw,
        )  # fmt: skip

    def prices(self, model: str, at: float | None = None) -> Prices:
        """Prices of a model at a Unix time, by default now."""
        moment = datetime.fromtimestamp(self.now() if at is None else at, UTC)
        return Prices(model, moment, self.run.policy.prices)

    def model_of(self, shard: Shard) -> str:
        """Whom a shard is for."""
        one = Round.load(self.work, shard.slot.round)
        return self.plan.model_of(one.asks if one else shard.slot.round)

    @property
    def client(self) -> Client:
        return self.services.client

    @cached_property
    def _cache_expiries(self) -> dict[str, float]:
        return {}

    def cache_expiry(self, name: str) -> float | None:
        """As the client's. What was seen once is remembered: many jobs may name the same hundred."""
        if (known := self._cache_expiries.get(name)) is not None:
            return known
        expires = self.client.cache_expiry(name)
        if expires is not None:
            self._cache_expiries[name] = expires
        return expires

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


def estimator_of(policy: Policy, model: str, now: float, scale: Scale | None = None) -> Estimator:
    """What reckons requests to a model, at today's prices."""
    prices = Prices(model, datetime.fromtimestamp(now, UTC), policy.prices)
    return Estimator(prices, assumed_output_tokens=policy.assumed_output_tokens, scale=scale)


def measure(policy: Policy, model: str, now: float, scale: Scale | None = None) -> Measure:
    """The same, while requests are written. For a budget every single one counts."""
    return Measure(
        estimator_of(policy, model, now, scale),
        exact=policy.budget is not None or policy.limits.enqueued_tokens is not None,
    )
