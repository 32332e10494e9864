"""Numbers in sentences."""

from __future__ import annotations

from decimal import Decimal

import pytest

from airflow_gemini_batch.core.estimate import Estimate
from airflow_gemini_batch.core.wording import counted, dollars


@pytest.mark.parametrize(("number", "said"), [(0, "0 jobs"), (1, "1 job"), (2, "2 jobs"), (1000, "1,000 jobs")])
def test_one_is_not_spelt_as_many(number: int, said: str) -> None:
    assert counted(number, "job") == said


def test_money_has_six_decimals_wherever_it_is_told() -> None:
    assert dollars(Decimal("438142700000E-12")) == "0.438143 USD"
    assert str(Estimate(requests=1, pico_usd=438_142_700_000)).startswith("1 request, about 0 input")
    assert "0.438143 USD;" in str(Estimate(requests=1, pico_usd=438_142_700_000))
