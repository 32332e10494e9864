"""How much a run may spend, and what still fits. Pure decisions: no storage, no network, no clock."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal
from typing import TYPE_CHECKING, Literal, get_args

from airflow_gemini_batch.core.usage import PICO, Spent, usd
from airflow_gemini_batch.core.wording import counted, dollars
from airflow_gemini_batch.exceptions import InvalidConfig, OverBudget

if TYPE_CHECKING:  # a DAG file that names a budget is not to load what counts tokens
    from airflow_gemini_batch.core.estimate import Estimate, Guess

OnExceed = Literal["fail", "skip", "truncate_rows"]
NOTHING_USED = Spent()


@dataclass(frozen=True)
class Room:
    """
    What may still be spent; None where there is no limit, negative when more was used than allowed.

    :param pico_usd: see :data:`usage.PICO`.
    """

    pico_usd: int | None
    input_tokens: int | None

    def holds(self, pico_usd: int, input_tokens: int) -> bool:
        return (self.pico_usd is None or pico_usd <= self.pico_usd) and (
            self.input_tokens is None or input_tokens <= self.input_tokens
        )


@dataclass(frozen=True)
class Budget:
    """
    What a run may cost at most. Checked before anything is uploaded, and again before each job and each round, then with what
    was really used for what has ended, and with the estimate for what still runs and for what would be sent.

    :param max_cost_usd: US dollars, of all rounds together.
    :param max_input_tokens: of all rounds together.
    :param on_exceed: ``"fail"`` the task, ``"skip"`` it, or ``"truncate_rows"``: send the first rows that fit, and land the
        others as not sent.
    :raises InvalidConfig: a limit is no number above 0, or ``on_exceed`` is another word.
    """

    max_cost_usd: float | None = None
    max_input_tokens: int | None = None
    on_exceed: OnExceed = "fail"

    def __post_init__(self) -> None:
        cost, tokens = self.max_cost_usd, self.max_input_tokens
        number = isinstance(cost, int | float | Decimal) and not isinstance(cost, bool)
        if cost is not None and (not number or not math.isfinite(cost) or cost <= 0):
            raise InvalidConfig(f"Budget.max_cost_usd is {cost!r}; it takes an amount of US dollars above 0.")
        if tokens is not None and (isinstance(tokens, bool) or not isinstance(tokens, int) or tokens <= 0):
            raise InvalidConfig(f"Budget.max_input_tokens is {tokens!r}; it takes a whole number above 0.")
        if self.on_exceed not in get_args(OnExceed):
            raise InvalidConfig(
                f"Budget.on_exceed is {self.on_exceed!r}; it takes {', '.join(map(repr, get_args(OnExceed)))}."
            )

    @property
    def max_pico_usd(self) -> int | None:
        """The cost limit as the decimal number that was written, not as the float next to it."""
        if self.max_cost_usd is None:
            return None
        return int((Decimal(str(self.max_cost_usd)) * PICO).to_integral_value(ROUND_FLOOR))

    @property
    def limits(self) -> dict[str, float | int | None]:
        return {"max_cost_usd": self.max_cost_usd, "max_input_tokens": self.max_input_tokens}

    def allows_more_than(self, limits: Mapping[str, float | int | None]) -> bool:
        """:param limits: of another budget, as :attr:`limits` gives them; None: no limit."""
        return any(
            (now is None or now > before) for name, now in self.limits.items() if (before := limits[name]) is not None
        )

    def room(self, used: Spent = NOTHING_USED, running: Estimate | None = None) -> Room:
        """
        What may still be spent.

        :param used: by all answers that are in.
        :param running: the estimate of what was sent and has not ended; None: nothing runs.
        :raises InvalidConfig: there is a cost limit, and what was spent or runs has no known price.
        """
        left: int | None = None
        if self.max_pico_usd is not None:
            model = running.model if running else ""
            left = self.max_pico_usd - self.known(used.pico_usd, model)
            left -= self.known(running.pico_usd, model) if running else 0
        tokens = self.max_input_tokens
        if tokens is not None:
            tokens -= used.usage.input_tokens + (running.input_tokens if running else 0)
        return Room(left, tokens)

    def check(self, estimate: Estimate, used: Spent = NOTHING_USED, running: Estimate | None = None) -> None:
        """
        Let pass what fits, and raise otherwise, whatever ``on_exceed`` says.

        :param estimate: what would be sent now.
        :raises OverBudget: it does not fit.
        :raises InvalidConfig: a limit is set that cannot be checked, because a price is unknown.
        """
        if self.max_cost_usd is not None:
            self.known(estimate.pico_usd, estimate.model)
        if not self.room(used, running).holds(estimate.pico_usd or 0, estimate.input_tokens):
            raise OverBudget(self._explain(estimate, used, running), estimate=estimate)

    def filling(self, model: str, used: Spent = NOTHING_USED, running: Estimate | None = None) -> Filling:
        """Room for requests that are counted one by one; raises like :meth:`room`."""
        return Filling(self, model, self.room(used, running))

    def known(self, pico_usd: int | None, model: str) -> int:
        """:raises InvalidConfig: the price is not known, so that no limit could be kept."""
        if pico_usd is None:
            raise InvalidConfig(
                f"Budget.max_cost_usd is set, but the price of {model or 'the model'} is not known, so the limit could not "
                "be kept. Give its price in `prices`, or limit max_input_tokens instead."
            )
        return pico_usd

    def _explain(self, estimate: Estimate, used: Spent, running: Estimate | None) -> str:
        limits = [f"{self.max_cost_usd} USD"] if self.max_cost_usd is not None else []
        limits += [f"{self.max_input_tokens:,} input tokens"] if self.max_input_tokens is not None else []
        parts = [f"Over the budget of {' and '.join(limits)}: to be sent are {estimate}."]
        for what, cost, tokens in (
            ("Used so far", used.pico_usd, used.usage.input_tokens),
            ("Running", running.pico_usd, running.input_tokens) if running else ("", 0, 0),
        ):
            if cost or tokens:
                money = dollars(usd(cost)) if cost is not None else "an unknown cost"
                parts.append(f"{what}: {counted(tokens, 'input token')}, {money}.")
        parts.append("Nothing more was sent. Raise the budget, send fewer rows, or lower max_output_tokens.")
        return " ".join(parts)


class Filling:
    """
    Takes requests one by one until there is no room for the next.

    :param model: for the error.
    """

    def __init__(self, budget: Budget, model: str, room: Room) -> None:
        self._budget, self._model, self._room = budget, model, room
        self._pico = self._tokens = 0

    def take(self, guess: Guess) -> bool:
        """
        Add a request; False if it does not fit.

        :raises InvalidConfig: there is a cost limit, and the price is unknown.
        """
        if self._room.pico_usd is not None:
            self._pico += self._budget.known(guess.pico_usd, self._model)
        self._tokens += guess.input_tokens
        return self._room.holds(self._pico, self._tokens)
