from __future__ import annotations

from datetime import UTC, datetime

import genai_prices
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_gemini_batch.core.prices import cost_usd, prices_as_of
from airflow_gemini_batch.core.usage import Usage

AT = datetime(2026, 6, 1, tzinfo=UTC)
USAGES = st.builds(Usage, *[st.integers(0, 10**12)] * 5)
MILLION = 1_000_000


# Usage


def test_every_kind_of_token_is_read():
    meta = {"promptTokenCount": 10, "candidatesTokenCount": 5, "thoughtsTokenCount": 3, "cachedContentTokenCount": 4,
            "toolUsePromptTokenCount": 2, "totalTokenCount": 20}  # fmt: skip
    assert Usage.of_response(meta) == Usage(10, 5, 3, 4, 2)


@pytest.mark.parametrize("meta", [None, 5, "x", []])
def test_no_usage_is_not_a_usage_of_nothing(meta):
    assert Usage.of_response(meta) is None


@pytest.mark.parametrize(
    ("count", "tokens"),
    [
        (5, 5),
        ("5", 5),
        (0, 0),
        (None, 0),
        ("", 0),
        ("five", 0),
        (-1, 0),
        (True, 0),
        (1.5, 0),
        ([], 0),
        ("²", 0),
        ("５", 5),
    ],
)
def test_a_count_is_a_number_or_nothing(count, tokens):
    assert Usage.of_response({"promptTokenCount": count}) == Usage(tokens)


@given(st.lists(USAGES))
def test_usages_add_up_kind_by_kind_in_any_order(usages):
    total, backwards = Usage(), Usage()
    for one in usages:
        total = total + one
    for one in reversed(usages):
        backwards = one + backwards
    assert total == backwards
    for name in Usage.__dataclass_fields__:
        assert getattr(total, name) == sum(getattr(one, name) for one in usages)


# Prices


def test_a_batch_costs_half_of_the_standard_price():
    # https://ai.google.dev/gemini-api/docs/pricing: 0.30 and 2.50 dollars for a million tokens, half of it in a batch
    assert cost_usd(Usage(prompt_tokens=MILLION), "gemini-2.5-flash", AT) == pytest.approx(0.15)
    assert cost_usd(Usage(output_tokens=MILLION), "gemini-2.5-flash", AT) == pytest.approx(1.25)


@pytest.mark.parametrize("model", ["gemini-2.5-flash", "gemini-2.5-flash-lite", "gemini-2.5-pro"])
def test_half_is_half_for_every_model(model):
    standard = genai_prices.calc_price(
        genai_prices.Usage(input_tokens=1000, output_tokens=500),
        model,
        provider_id="google",
        genai_request_timestamp=AT,
    )
    assert cost_usd(Usage(1000, 500), model, AT) == pytest.approx(float(standard.total_price) / 2)


def test_thoughts_are_billed_as_output():
    assert cost_usd(Usage(10, 500, 500), "gemini-2.5-flash", AT) == cost_usd(Usage(10, 1000), "gemini-2.5-flash", AT)


def test_tokens_of_tools_are_billed_as_prompt():
    assert cost_usd(Usage(600, 10, tool_tokens=400), "gemini-2.5-flash", AT) == cost_usd(
        Usage(1000, 10), "gemini-2.5-flash", AT
    )


def test_cached_tokens_are_part_of_the_prompt_and_cheaper():
    cached = cost_usd(Usage(MILLION, cached_tokens=MILLION), "gemini-2.5-flash", AT)
    assert cached is not None
    assert 0 < cached < 0.15


def test_nothing_used_costs_nothing():
    assert cost_usd(Usage(), "gemini-2.5-flash", AT) == 0.0


@pytest.mark.parametrize("model", ["gemini-99-nobody-knows", "", "tunedModels/mine", "gpt-4o"])
def test_an_unknown_price_is_none_and_never_zero(model):
    assert cost_usd(Usage(1000, 1000), model, AT) is None


def test_counts_that_contradict_each_other_do_not_keep_a_run_from_ending():
    """More cached tokens than prompt tokens: the service's own sums, added up when everything is landed."""
    cost = cost_usd(Usage(prompt_tokens=5, output_tokens=1, cached_tokens=10), "gemini-2.5-flash", AT)
    assert cost is None or cost > 0


def test_the_source_of_the_prices_is_named():
    assert prices_as_of().startswith("genai-prices ")
