"""What is left unsettled goes into another round: which rows, of which slots, and to which model."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import orjson

from airflow_gemini_batch.core.attempt import Attempt, estimator_of, log, measure
from airflow_gemini_batch.core.gates import Gate, cut
from airflow_gemini_batch.core.layout import WorkDirectory
from airflow_gemini_batch.core.names import Slot, wire_key
from airflow_gemini_batch.core.plan import Round, Shard, Taken, shards_of
from airflow_gemini_batch.core.requests import Request, for_any_model, overridden
from airflow_gemini_batch.core.shards import Piece, read_rows_file, write_shards
from airflow_gemini_batch.core.wording import counted
from airflow_gemini_batch.exceptions import InvalidConfig


class Leftovers:
    """The unsettled rows that no later round took, by what the rounds' own files say."""

    def __init__(self, work: WorkDirectory, rounds: list[Round]) -> None:
        self._work = work
        self._newest: dict[str, int] = {}
        for shard in shards_of(rounds[1:]):
            for row in read_rows_file(shard.rows_in(work)):
                self._newest[wire_key(row)] = shard.slot.round

    def taken_after(self, number: int) -> frozenset[str]:
        """Keys, as sent, of the rows that a round later than this one took."""
        return frozenset(key for key, newest in self._newest.items() if newest > number)

    def of(self, slot: Slot) -> Iterator[dict[str, Any]]:
        """Yield those of a slot: ``row``, ``result``, ``job`` and ``auto`` (they may pass by themselves)."""
        path = self._work.unsettled(slot)
        if path.exists():
            with path.open("rb") as lines:
                for line in lines:
                    unsettled = orjson.loads(line)
                    if self._newest.get(wire_key(unsettled["row"]), 0) <= slot.round:
                        yield unsettled


NEVER_SENT = frozenset({"OVER_BUDGET", "CANARY_FAILED", "REFUSED"})
"""Ends of slots whose rows no model was asked about: they are still for the model that they were meant for."""


def open_round(attempt: Attempt, rounds: list[Round], *, took: Taken, last: int) -> Round | None:
    """
    Gather unsettled rows into the next round and put it in force; None when there is nothing to send again.

    :param took: ``"auto"``: rows of the newest round that failed for a passing reason; ``"all"``: every unsettled row.
    """
    if "names" in attempt.plan.job:
        return None  # somebody else's jobs, of which only the results are here
    number = len(rounds)
    policy, plan = attempt.run.policy, attempt.plan
    left = Leftovers(attempt.work, rounds)
    # Rows that were never sent wait for somebody who asks for all, and are still for the model that they were meant for.
    never_sent = [
        one.asks
        for one in rounds
        for shard in one.shards
        if took == "all"
        and (landed := attempt.ledger.read(shard.slot).landed)
        and landed.state in NEVER_SENT
        and next(left.of(shard.slot), None)
    ]
    step = min(never_sent) if never_sent else max(one.asks for one in rounds) + 1
    model = plan.model_of(step)

    def requests() -> Iterator[Piece]:
        for shard in shards_of(rounds):
            wanted = {
                wire_key(u["row"]): {name: u[name] for name in ("result", "job", "round")}
                for u in left.of(shard.slot)
                if took == "all" or u["auto"]
            }
            if wanted:
                yield from _requests_of(attempt, shard, wanted, model)

    limits = policy.limits
    if policy.split > 1:
        largest = max((shard.requests for shard in shards_of(rounds)), default=1)
        limits = replace(limits, requests_per_job=max(1, min(limits.requests_per_job, -(-largest // policy.split))))
    canary = rounds[-1].canary if took == "auto" and _canary_unanswered(attempt, rounds[-1]) else 0
    home = f"round-{number}-{uuid.uuid4().hex[:8]}"
    measured = measure(policy, model, attempt.now(), plan.scale)
    pieces = cut(requests(), canary, _fits(attempt, rounds, model))
    shards = write_shards(pieces, attempt.work, number, limits, home, measured)
    if not shards:
        return None
    one = Round(number, last, shards, took, canary, step).commit(attempt.work)
    log.info(
        "Round %s: sent again, to %s: %s",
        number,
        model,
        counted(sum(shard.rows for shard in one.shards), "unsettled row"),
    )
    return one


def _canary_unanswered(attempt: Attempt, one: Round) -> bool:
    entries = (attempt.ledger.read(shard.slot) for shard in one.shards) if one.canary else ()
    return any(entry.landed and entry.landed.state == "CANARY_UNANSWERED" for entry in entries)


def _fits(attempt: Attempt, rounds: list[Round], model: str) -> Callable[[bytes], bool] | None:
    """What of another round fits into a budget that leaves rows out; None if there is no such budget."""
    policy = attempt.run.policy
    budget = policy.budget
    if budget is None or budget.on_exceed != "truncate_rows":
        return None
    try:
        room = Gate(attempt, rounds).filling(budget, model)
    except InvalidConfig:
        return None  # a price is not known: nothing is sent, and the gate says why
    estimator = estimator_of(policy, model, attempt.now(), attempt.plan.scale)

    def fits(line: bytes) -> bool:
        try:
            return room.take(estimator.request(line))
        except InvalidConfig:
            return False

    return fits


def _requests_of(
    attempt: Attempt, shard: Shard, wanted: Mapping[str, Mapping[str, Any]], model: str
) -> Iterator[tuple[Request, str]]:
    """
    :param wanted: key as sent → what became of the row so far, which may ask for other settings the next time.
    :param model: that they are sent to.
    """
    redo = attempt.run.policy.redo
    with shard.requests_in(attempt.work).open("rb") as lines:
        for row in read_rows_file(shard.rows_in(attempt.work)):
            line = b"" if "unsent" in row else lines.readline()
            if (earlier := wanted.get(wire_key(row))) is not None:
                if overrides := redo.get(earlier["result"]["status"]):
                    line = overridden(line, overrides)
                if model != attempt.plan.model:
                    line = for_any_model(line)
                request = Request(
                    row["key"], line, row.get("keep", {}), prompt=row.get("prompt"), media=tuple(row.get("media", ())),
                    dimensions=row.get("dimensions"), earlier=earlier,
                )  # fmt: skip
                yield request, f"{shard.slot} key {row['key']!r}"
