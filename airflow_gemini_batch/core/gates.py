"""Whether one more slot may be sent: not before the canary did well, and not over the budget. Knows no service."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from airflow_gemini_batch.core.attempt import Attempt
from airflow_gemini_batch.core.blocks import Block
from airflow_gemini_batch.core.budget import Budget, Filling
from airflow_gemini_batch.core.collecting import Ending
from airflow_gemini_batch.core.estimate import Estimate
from airflow_gemini_batch.core.plan import Round, Shard, shards_of
from airflow_gemini_batch.core.results import Status
from airflow_gemini_batch.core.shards import Piece
from airflow_gemini_batch.core.usage import Spent
from airflow_gemini_batch.exceptions import InvalidConfig, OverBudget

CANARY_FAILED_RATIO = 0.5
"""Most rows of a canary that may fail, unless ``max_failed_ratio`` says something else."""


@dataclass(frozen=True)
class Hold:
    """A slot that is not sent now."""


@dataclass(frozen=True)
class Never(Hold):
    """A slot that is not sent at all, and how it ends by that."""

    ending: Ending


def cut(requests: Iterable[Piece], canary: int, fits: Callable[[bytes], bool] | None) -> Iterator[Piece]:
    """
    Begin another job after the canary, and where a budget that leaves rows out has no room for the next one.

    :param canary: requests in it; 0: there is none.
    :param fits: whether there is room for one more request line; None: there is for all.
    """
    sent, full = 0, False
    for piece in requests:
        assert not isinstance(piece, Block)
        request, where = piece
        if request.line:
            begins = bool(canary) and sent == canary
            if fits is not None and not full and not fits(request.line):
                begins = full = True
            sent += 1
            if begins:
                request = replace(request, begins_job=True)
        yield request, where


class Gate:
    """
    What one pass of the flow may send. Reads the ledger once, when it is first asked, and is told what is sent from then on.

    :param rounds: all there are; slots of the newest are sent.
    """

    def __init__(self, attempt: Attempt, rounds: list[Round]) -> None:
        self._attempt, self._rounds, self._round = attempt, rounds, rounds[-1]
        self._sent = Estimate()
        self._any_sent = False

    def holds(self, shard: Shard) -> Hold | None:
        """Return None if a slot may be sent."""
        return (None if shard in self._canaries else self._canary) or self._budget(shard)

    def filling(self, budget: Budget, model: str) -> Filling:
        """Room that a budget has for requests of another round; raises like :meth:`Budget.room`."""
        used, running, _ = self._standing
        return budget.filling(model, used, running)

    def took(self, shard: Shard) -> None:
        """It is sent."""
        self._sent, self._any_sent = self._sent + shard.estimate, True

    @cached_property
    def _canaries(self) -> tuple[Shard, ...]:
        return tuple(self._first_shards())

    def _first_shards(self) -> Iterator[Shard]:
        left = self._round.canary
        for shard in self._round.shards:
            if left <= 0:
                return
            yield shard
            left -= shard.requests

    @cached_property
    def _canary(self) -> Hold | None:
        landed = [self._attempt.ledger.read(shard.slot).landed for shard in self._canaries]
        ended = [one for one in landed if one is not None]
        if len(ended) < len(landed):
            return Hold()
        # What the budget left out says nothing about the others.
        asked = sum(
            shard.requests for shard, one in zip(self._canaries, ended, strict=True) if one.state != "OVER_BUDGET"
        )
        ok = sum(one.counts.get(Status.OK.value, 0) for one in ended)
        most = self._attempt.run.policy.max_failed_ratio
        most = CANARY_FAILED_RATIO if most is None else most
        if not asked or (asked - ok) / asked <= most:
            return None
        said = f"Of the canary's {asked} rows only {ok} are ok; at most {most:g} of them may fail."
        plan = self._attempt.plan
        falls_back = plan.falls_back(plan.model_of(self._round.asks))
        unheard = [one.state for one in ended if Ending.again(one).passes(falls_back=falls_back)]
        if unheard and self._round.number < self._round.last:
            # It says nothing about the rows that its job did not end. They, and all others, go to the next round's canary.
            return Never(Ending("CANARY_UNANSWERED", detail=f"{said} Its job ended as {unheard[0]}."))
        return Never(Ending("CANARY_FAILED", detail=said))

    def _budget(self, shard: Shard) -> Hold | None:
        budget = self._attempt.run.policy.budget
        if budget is None:
            return None
        if self._over is not None:
            return self._over
        used, running, any_running = self._standing
        try:
            budget.check(shard.estimate, used, running + self._sent)
        except OverBudget as e:
            # While something runs, what does not fit waits: that may cost less than expected.
            if any_running or self._any_sent:
                return Hold()
            self._over = Never(Ending("OVER_BUDGET", detail=str(e)))
            return self._over
        except InvalidConfig as e:  # what was used has no known price; there may be answers to land all the same
            return Never(Ending("OVER_BUDGET", detail=str(e)))
        return None

    @cached_property
    def _over(self) -> Never | None:
        """How the first slot of the round ended that was over the budget: then those after it are not sent either."""
        landed = (self._attempt.ledger.read(shard.slot).landed for shard in self._round.shards)
        return next((Never(Ending.again(one)) for one in landed if one and one.state == "OVER_BUDGET"), None)

    @cached_property
    def _standing(self) -> tuple[Spent, Estimate, bool]:
        """What was used, what is not landed yet (also jobs that ended, while their results cannot be fetched), and if any."""
        used, running, any_running = Spent(), Estimate(), False
        for shard in shards_of(self._rounds):
            entry = self._attempt.ledger.read(shard.slot)
            if entry.landed:
                spent = entry.landed.spent
                # An answer that does not say what it used leaves the cost unknown: then it counts as what was expected.
                used += replace(spent, pico_usd=shard.estimate.pico_usd) if spent.pico_usd is None else spent
                if entry.landed.lost:  # it may have used all that was expected of it
                    running += shard.estimate
            elif entry.submitted:
                running, any_running = running + shard.estimate, True
        return used, running, any_running
