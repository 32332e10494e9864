"""
What a run decided to send, committed to storage before anything is paid for.

A plan says which run owns the output, with which settings, and where its work lies. A round lists the shards that are
sent together. Both are created exclusively and never change: of two attempts that plan at the same time one wins, and
both go on with the winner's plan.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import orjson

from airflow_gemini_batch.core import documents, storage
from airflow_gemini_batch.core.estimate import Estimate, Scale
from airflow_gemini_batch.core.layout import OutputDirectory, WorkDirectory
from airflow_gemini_batch.core.measuring import estimate_of
from airflow_gemini_batch.core.names import DisplayName, RunId, Slot
from airflow_gemini_batch.core.storage import StoragePath

Taken = Literal["all", "auto"]


def digest(spec: Mapping[str, Any]) -> str:
    """Fingerprint of settings: equal settings, equal digest, whatever the order of their names."""
    return hashlib.sha256(orjson.dumps(spec, option=orjson.OPT_SORT_KEYS)).hexdigest()


@dataclass(frozen=True)
class Plan:
    """
    :param number: the highest number at an output is in force.
    :param work: name of the work directory.
    :param spec: the settings as sent; their digest tells whether they changed.
    :param rows: rows of the table: those of the source, sent or not, times the prompts that each has.
    :param keep_types: kept column → its kind (see ``kinds``).
    :param media: answers may hold images or sounds.
    :param scale: what the API's own count of a sample makes of estimates.
    :param caches: cached contents that single requests name; the one that all share is in ``spec``.
    :param clears: how often the task instance had been cleared (Airflow's ``max_tries``) when this was planned.
    """

    number: int
    work: str
    run: RunId
    spec: dict[str, Any]
    rows: int
    keep_types: dict[str, str]
    created_at: str
    clears: int | None = None
    media: bool = False
    scale: Scale | None = None
    caches: tuple[str, ...] = ()

    @property
    def models(self) -> tuple[str, ...]:
        """The first, and those that later rounds fall back to."""
        model = self.spec["model"]
        return (model,) if isinstance(model, str) else tuple(model)

    @property
    def model(self) -> str:
        return self.models[0]

    def model_of(self, round_number: int) -> str:
        """Whom a round asks: its own fallback, or the last there is."""
        return self.models[min(round_number, len(self.models) - 1)]

    def falls_back(self, model: str) -> bool:
        """True if another is asked after it."""
        return model in self.models[:-1]

    @property
    def digest(self) -> str:
        return digest(self.spec)

    @property
    def job(self) -> Mapping[str, Any]:
        """What is not usual about its jobs; see ``requests.Spec``."""
        job: Mapping[str, Any] = self.spec.get("job") or {}
        return job

    @property
    def run_hash(self) -> str:
        return self.run.hash(self.work)

    def display_name(self, shard: Shard) -> DisplayName:
        label = self.job.get("label") or f"{self.run.dag_id}.{self.run.task_id}"
        return DisplayName(self.run_hash, shard.slot, shard.fingerprint, label)

    def commit(self, output: OutputDirectory) -> bool:
        """Put the plan in force; False when another attempt took this number first."""
        body = asdict(self) | {"spec_digest": self.digest}
        return storage.claim(output.plan(self.number), documents.dump("plan", body))

    @classmethod
    def current(cls, output: OutputDirectory) -> Plan | None:
        """
        Return the plan in force, None when the output certainly has none.

        Plans are probed by number, not listed: object stores' listings are cached and lag behind.
        """
        newest = None
        while (plan := cls.at(output, newest.number + 1 if newest else 1)) is not None:
            newest = plan
        return newest

    @classmethod
    def at(cls, output: OutputDirectory, number: int) -> Plan | None:
        """Return the plan with this number, in force or not."""
        return cls.read(output.plan(number))

    @classmethod
    def read(cls, path: StoragePath) -> Plan | None:
        body = documents.read("plan", path)
        if body is None:
            return None
        with documents.understood(path):
            scale = Scale(**body["scale"]) if body.get("scale") else None
            shaped = {"run": RunId(**body["run"]), "scale": scale, "caches": tuple(body.get("caches", ()))}
            return cls(**documents.known(cls, body) | shaped)

    def is_current(self, output: OutputDirectory) -> bool:
        return storage.read(output.plan(self.number + 1)) is None


@dataclass(frozen=True)
class Shard:
    """
    A JSONL file of requests that fits the API's limits.

    :param requests: lines in the request file.
    :param rows: lines in the rows file: ``requests`` and those that are not sent.
    :param size: bytes of the request file.
    :param home: directory of its files in the work directory; empty: the work directory itself.
    :param estimate: what it will use and cost.
    :param media: some of its requests name media that are uploaded before they are sent.
    """

    slot: Slot
    requests: int
    rows: int
    size: int
    sha256: str
    home: str = ""
    estimate: Estimate = field(default_factory=Estimate)
    media: bool = False

    @property
    def fingerprint(self) -> str:
        return self.sha256[:12]

    def requests_in(self, work: WorkDirectory) -> StoragePath:
        return work.requests(self.slot, self.home)

    def rows_in(self, work: WorkDirectory) -> StoragePath:
        return work.rows(self.slot, self.home)


@dataclass(frozen=True)
class Round:
    """
    One pass over the work.

    :param last: number of the last round that may follow without being asked for.
    :param took: which unsettled rows of earlier rounds it sends again: those that may pass by themselves, or all.
    :param canary: rows that its first shards have together, and that must do well before the others are sent.
    :param step: which of the plan's models it asks, from 0; None: the one of its number.
    """

    number: int
    last: int
    shards: tuple[Shard, ...]
    took: Taken = "all"
    canary: int = 0
    step: int | None = None

    def commit(self, work: WorkDirectory) -> Round:
        """Put the round in force; returns the one in force, which is another attempt's if that was first."""
        body = {
            "number": self.number,
            "last": self.last,
            "took": self.took,
            "canary": self.canary,
            "step": self.step,
            "shards": [asdict(s) | {"slot": str(s.slot)} for s in self.shards],
        }
        if storage.claim(work.round(self.number), documents.dump("round", body)):
            return self
        theirs = Round.load(work, self.number)
        assert theirs is not None
        return theirs

    @classmethod
    def load(cls, work: WorkDirectory, number: int) -> Round | None:
        body = documents.read("round", work.round(number))
        if body is None:
            return None
        with documents.understood(work.round(number)):
            shards = tuple(
                Shard(**documents.known(Shard, shard) | {
                    "slot": Slot.parse(shard["slot"]), "estimate": estimate_of(shard.get("estimate")),
                })
                for shard in body["shards"]
            )  # fmt: skip
            return cls(body["number"], body["last"], shards, body["took"], body.get("canary", 0), body.get("step"))

    @property
    def asks(self) -> int:
        """Which of the plan's models: a round that sends what was never sent asks the same as the one before."""
        return self.number if self.step is None else self.step

    def asks_first(self, rounds: Sequence[Round]) -> bool:
        """True if it sends rows that no round before it sent."""
        return self.number == 0 or any(one.asks >= self.asks for one in rounds[: self.number])

    @classmethod
    def load_all(cls, work: WorkDirectory) -> list[Round]:
        rounds: list[Round] = []
        while (one := cls.load(work, len(rounds))) is not None:
            rounds.append(one)
        return rounds


def shards_of(rounds: Iterable[Round]) -> Iterator[Shard]:
    """Every shard of these rounds, in their order."""
    return (shard for one in rounds for shard in one.shards)
