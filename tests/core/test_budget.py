from __future__ import annotations

from decimal import Decimal
from itertools import takewhile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_gemini_batch.core.budget import Budget
from airflow_gemini_batch.core.estimate import Estimate, Guess
from airflow_gemini_batch.core.usage import PICO, Spent, Usage
from airflow_gemini_batch.exceptions import InvalidConfig, OverBudget

CENT = PICO // 100


def estimate(pico: int | None = 0, tokens: int = 0) -> Estimate:
    return Estimate(1, tokens, 0, pico, "gemini-x")


def spent(pico: int | None = 0, tokens: int = 0) -> Spent:
    return Spent(Usage(tokens), pico)


def test_a_budget_of_a_cent_is_a_cent_to_the_last_digit():
    budget = Budget(max_cost_usd=0.01)
    budget.check(estimate(CENT))
    with pytest.raises(OverBudget):
        budget.check(estimate(CENT + 1))


@pytest.mark.parametrize("amount", [0.1 + 0.2, 0.3, 1, 1e-9, Decimal("2.50"), 12345.67])
def test_a_limit_is_the_number_that_was_written(amount):
    assert Budget(max_cost_usd=amount).max_pico_usd == int(Decimal(str(amount)) * PICO)


def test_what_was_used_and_what_runs_counts_too():
    budget = Budget(max_cost_usd=0.03, max_input_tokens=100)
    budget.check(estimate(CENT, 40), spent(CENT, 30), estimate(CENT, 30))
    for used, running in (
        (spent(CENT + 1), estimate(CENT)), (spent(CENT), estimate(CENT + 1)),
        (spent(0, 61), estimate()), (spent(0, 30), estimate(0, 31)),
    ):  # fmt: skip
        with pytest.raises(OverBudget):
            budget.check(estimate(CENT, 40), used, running)


def test_tokens_of_tools_are_input():
    with pytest.raises(OverBudget):
        Budget(max_input_tokens=100).check(estimate(0, 1), Spent(Usage(60, tool_tokens=40)))


def test_an_overdrawn_budget_says_what_it_stands_at():
    budget = Budget(max_cost_usd=0.01, max_input_tokens=1000)
    with pytest.raises(OverBudget) as e:
        budget.check(estimate(2 * CENT, 500), spent(CENT // 2, 300), estimate(CENT // 4, 7))
    assert e.value.estimate == estimate(2 * CENT, 500)
    for said in ("0.01 USD and 1,000 input tokens", "0.02", "500 input", "Used so far: 300 input tokens, 0.005", "Running: 7",
                 "Nothing more was sent"):  # fmt: skip
        assert said in str(e.value)


def test_no_limit_holds_everything():
    Budget().check(estimate(None, 10**15), spent(None, 10**15))
    assert fitting(Budget(), [Guess(10**12, 10**12, None)] * 3) == 3


def fitting(budget: Budget, guesses) -> int:
    """How many requests, from the first on, there is room for."""
    room = budget.filling("gemini-x")
    return sum(1 for _ in takewhile(room.take, guesses))


def test_a_limit_that_cannot_be_checked_does_not_pass_silently():
    budget = Budget(max_cost_usd=100)
    for ask in (
        lambda: budget.check(estimate(None)),
        lambda: budget.check(estimate(1), spent(None)),
        lambda: budget.check(estimate(1), spent(), estimate(None)),
        lambda: budget.filling("gemini-x").take(Guess(1, 1, None)),
    ):
        with pytest.raises(InvalidConfig, match="Give its price in `prices`"):
            ask()
    with pytest.raises(InvalidConfig, match="the price of gemini-x is not known"):
        budget.check(estimate(None))
    Budget(max_input_tokens=5).check(estimate(None, 5))


AMOUNTS = st.integers(0, 1000)
GUESSES = st.lists(st.builds(Guess, AMOUNTS, AMOUNTS, AMOUNTS), max_size=30)
LIMITS = st.one_of(st.none(), st.integers(1, 10_000))


@given(GUESSES, LIMITS, LIMITS)
def test_rows_that_fit_are_never_over_the_budget_and_one_more_always_is(guesses, pico, tokens):
    budget = Budget(None if pico is None else Decimal(pico).scaleb(-12), tokens)  # type: ignore[arg-type]
    rows = fitting(budget, guesses)

    def total(count: int) -> Estimate:
        parts = (Estimate(1, g.input_tokens, g.output_tokens, g.pico_usd) for g in guesses[:count])
        return sum(parts, Estimate())

    budget.check(total(rows))
    if rows < len(guesses):
        with pytest.raises(OverBudget):
            budget.check(total(rows + 1))


def test_rows_are_read_no_further_than_needed():
    def endless():
        while True:
            yield Guess(1, 1, CENT)

    assert fitting(Budget(max_cost_usd=0.05), endless()) == 5


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"max_cost_usd": 0}, "max_cost_usd is 0"),
        ({"max_cost_usd": -1.0}, "max_cost_usd is -1.0"),
        ({"max_cost_usd": True}, "max_cost_usd is True"),
        ({"max_cost_usd": "1"}, "max_cost_usd is '1'"),
        ({"max_cost_usd": float("nan")}, "max_cost_usd is nan"),
        ({"max_cost_usd": float("inf")}, "max_cost_usd is inf"),
        ({"max_input_tokens": 0}, "max_input_tokens is 0"),
        ({"max_input_tokens": 1.5}, "max_input_tokens is 1.5"),
        ({"on_exceed": "stop"}, "on_exceed is 'stop'; it takes 'fail', 'skip', 'truncate_rows'"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(settings, named):
    with pytest.raises(InvalidConfig) as e:
        Budget(**settings)
    assert named in str(e.value)
