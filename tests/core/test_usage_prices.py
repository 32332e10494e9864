from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_gemini_batch.core.usage import Spent, Tally, Usage, usd

KINDS = st.dictionaries(st.sampled_from(["prompt_audio", "cached_audio", "output_image"]), st.integers(1, 10**12))
USAGES = st.builds(Usage, *[st.integers(0, 10**12)] * 5, KINDS)


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
    for name in ("prompt_tokens", "output_tokens", "thoughts_tokens", "cached_tokens", "tool_tokens"):
        assert getattr(total, name) == sum(getattr(one, name) for one in usages)
    for kind in ("prompt_audio", "cached_audio", "output_image"):
        assert total.modalities.get(kind, 0) == sum(one.modalities.get(kind, 0) for one in usages)


def test_every_kind_of_content_is_counted_apart():
    meta = {
        "promptTokenCount": 300, "candidatesTokenCount": 50, "cachedContentTokenCount": 40,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 100}, {"modality": "AUDIO", "tokenCount": "200"}],
        "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 50}],
        "cacheTokensDetails": [{"modality": "AUDIO", "tokenCount": 30}, {"modality": "AUDIO", "tokenCount": 10}],
    }  # fmt: skip
    assert Usage.of_response(meta) == Usage(
        300, 50, cached_tokens=40, modalities={"prompt_audio": 200, "output_image": 50, "cached_audio": 40}
    )


@pytest.mark.parametrize(
    "details", [None, "x", 5, {"modality": "AUDIO"}, [None], [{"modality": []}], [{"modality": "NEW", "tokenCount": 3}]]
)
def test_details_that_cannot_be_read_cost_nothing_else(details):
    assert Usage.of_response({"promptTokenCount": 5, "promptTokensDetails": details}) == Usage(5)


# Money


def test_dollars_are_what_was_added_up_and_not_the_float_next_to_it():
    assert usd(10**10) == Decimal("0.01")
    assert usd(1) == Decimal("1E-12")
    assert usd(123_456_789_012_345_678_901_234_567_890) == Decimal("123456789012345678.901234567890")
    assert usd(0) == 0
    assert usd(None) is None


def test_one_unknown_price_makes_the_sum_unknown():
    assert Spent(Usage(1), 5) + Spent(Usage(2), None) == Spent(Usage(3), None)
    tally = Tally(lambda usage: None if usage.prompt_tokens == 2 else 7)
    for tokens in (1, 2, 3):
        tally.add(Usage(tokens))
    assert tally.sum() == Spent(Usage(6), None)


@given(st.lists(USAGES))
def test_a_tally_is_the_sum_of_its_parts(usages):
    tally = Tally(lambda usage: usage.input_tokens * 3 + usage.output_tokens)
    parts = Spent()
    for one in usages:
        tally.add(one)
        parts = Spent(one, one.input_tokens * 3 + one.output_tokens) + parts
    assert tally.sum() == parts
