from __future__ import annotations

import random
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

import genai_prices
import pytest
from genai_prices.data_snapshot import get_snapshot
from hypothesis import given
from hypothesis import strategies as st

from airflow_gemini_batch.core.prices import Prices, PriceTable, prices_as_of
from airflow_gemini_batch.core.usage import Tally, Usage, usd
from airflow_gemini_batch.exceptions import InvalidConfig

AT = datetime(2026, 11, 20, tzinfo=UTC)
MILLION = 1_000_000
LONG = 200_001


def cost(usage: Usage, model: str = "gemini-2.5-flash", at: datetime = AT, table: object = None) -> Decimal | None:
    return usd(Prices(model, at, PriceTable.parse(table or {})).price(usage))


# Google's batch prices, USD for a million tokens, as its pricing page's batch tab had them in October 2026: input, output,
# cached, further rates. Where genai-prices has no batch price of its own, the row says what we make of it.
BATCH_TABLE = [
    ("gemini-2.5-flash", "0.15", "1.25", "0.03", {"prompt_audio": "0.50", "cached_audio": "0.10"}),
    ("gemini-2.5-flash-lite", "0.05", "0.20", "0.01", {"prompt_audio": "0.15"}),
    ("gemini-2.5-pro", "0.625", "5", "0.125", {}),
    ("gemini-3-flash-preview", "0.25", "1.50", "0.05", {"prompt_audio": "0.50"}),
    ("gemini-3.1-pro-preview", "1", "6", "0.20", {}),
    ("gemini-3.1-flash-lite", "0.125", "0.75", "0.0125", {"prompt_audio": "0.25"}),
    ("gemini-3.5-flash", "0.75", "4.50", "0.15", {}),  # no batch row: half, and the standard caching rate
    ("gemini-3.5-flash-lite", "0.15", "1.25", "0.02", {}),
    ("gemini-3.6-flash", "0.375", "1.875", "0.0375", {}),
    ("gemini-3.7-flash", "0.375", "1.875", "0.075", {}),  # no batch row: cached would be 0.0375 if it is as 3.6 and 3.8
    ("gemini-3.8-flash", "0.375", "1.875", "0.0375", {}),
    ("gemini-4-argon", "1", "5", "0.05", {}),
    ("gemini-3-pro-image-preview", "1", "6", "1", {"output_image": "60"}),
    ("gemini-3.1-flash-image-preview", "0.25", "1.50", "0.25", {"output_image": "30"}),
    ("gemini-3.1-flash-lite-image", "0.125", "0.75", "0.125", {"output_image": "15"}),
    ("gemini-nano-banana-2.1", "0.75", "3.75", "0.75", {"output_image": "15"}),
    ("gemini-2.5-flash-tts", "0.25", "5", "0.25", {}),  # their output is audio and nothing else
    ("gemini-2.5-pro-tts", "0.50", "10", "0.50", {}),
    ("gemini-3.1-flash-tts-preview", "0.50", "10", "0.50", {}),
    ("gemini-3.8-flash-tts", "0.25", "4.5", "0.25", {}),
    ("gemini-3.8-flash-lite-tts", "0.25", "3", "0.25", {}),
    ("gemini-embedding-001", "0.075", None, "0.075", {}),  # no batch row: half
    (
        "gemini-embedding-2",
        "0.10",
        None,
        "0.10",
        {"prompt_image": "0.225", "prompt_audio": "3.25", "prompt_video": "6"},
    ),
]


@pytest.mark.parametrize(("model", "into", "out", "cached", "more"), BATCH_TABLE, ids=[row[0] for row in BATCH_TABLE])
def test_a_model_costs_what_googles_batch_table_says(model, into, out, cached, more):
    # Many small requests: a million tokens in one would be priced as a long prompt.
    tenth = 100_000
    assert cost(Usage(tenth), model) == Decimal(into) / 10
    assert cost(Usage(tenth, cached_tokens=tenth), model) == Decimal(cached) / 10
    assert cost(Usage(0, MILLION), model) == (None if out is None else Decimal(out))
    assert cost(Usage(0, 0, MILLION), model) == cost(Usage(0, MILLION), model)
    for kind, rate in more.items():
        usage = {
            "prompt": Usage(tenth, modalities={kind: tenth}),
            "cached": Usage(tenth, 0, 0, tenth, modalities={"prompt_audio": tenth, kind: tenth}),
            "output": Usage(0, tenth, modalities={kind: tenth}),
        }[kind.partition("_")[0]]
        assert cost(usage, model) == Decimal(rate) / 10


@pytest.mark.parametrize(
    ("model", "day", "before", "after"),
    [
        ("gemini-4-argon", date(2026, 12, 1), ("1", "5", "0.05"), ("2", "10", "0.10")),
        ("gemini-3.6-flash", date(2027, 1, 1), ("0.375", "1.875", "0.0375"), ("0.75", "3.75", "0.075")),
        ("gemini-3.8-flash", date(2027, 1, 1), ("0.375", "1.875", "0.0375"), ("0.75", "3.75", "0.075")),
    ],
)
def test_a_price_changes_at_midnight_utc_of_its_day(model, day, before, after):
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
    elsewhere = timezone(timedelta(hours=9))
    for at, (into, out, cached) in (
        (midnight - timedelta(seconds=1), before),
        ((midnight - timedelta(seconds=1)).astimezone(elsewhere), before),
        (midnight, after),
        (midnight.astimezone(elsewhere), after),
    ):
        assert cost(Usage(MILLION), model, at) == Decimal(into)
        assert cost(Usage(0, MILLION), model, at) == Decimal(out)
        assert cost(Usage(MILLION, cached_tokens=MILLION), model, at) == Decimal(cached)


@pytest.mark.parametrize(
    ("model", "short", "long"),
    [
        ("gemini-2.5-pro", ("0.625", "5", "0.125"), ("1.25", "7.5", "0.25")),
        ("gemini-3.1-pro-preview", ("1", "6", "0.2"), ("2", "9", "0.4")),
    ],
)
def test_a_long_prompt_makes_the_whole_request_dearer(model, short, long):
    for tokens, (into, out, cached) in ((LONG - 1, short), (LONG, long)):
        assert (
            cost(Usage(tokens, 1000, 24, 50_000), model)
            == ((tokens - 50_000) * Decimal(into) + 50_000 * Decimal(cached) + 1024 * Decimal(out)) / MILLION
        )
    assert cost(Usage(150_000, tool_tokens=50_001), model) == LONG * Decimal(long[0]) / MILLION


def test_many_short_prompts_are_not_one_long_one():
    prices = Prices("gemini-2.5-pro", AT)
    tally = Tally(prices.price)
    for _ in range(10):
        tally.add(Usage(100_000, 1000))
    assert tally.sum().usd == Decimal("0.625") + Decimal("0.05")


def test_half_of_the_standard_price_where_no_batch_price_is_known():
    standard = genai_prices.calc_price(
        genai_prices.Usage(input_tokens=1000, output_tokens=500), "gemini-2.5-flash-image", provider_id="google",
        genai_request_timestamp=AT,
    )  # fmt: skip
    assert cost(Usage(1000, 500), "gemini-2.5-flash-image") == standard.total_price / 2


@pytest.mark.parametrize("model", ["gemini-99-nobody-knows", "", "tunedModels/mine", "gpt-4o"])
def test_an_unknown_price_is_none_and_never_zero(model):
    prices = Prices(model, AT)
    assert not prices.known
    assert prices.price(Usage(1000, 1000)) is None
    assert prices.price(Usage()) is None
    assert prices.price_tokens(5, 5) is None


@pytest.mark.parametrize(
    ("name", "same_as"),
    [
        ("models/gemini-2.5-flash", "gemini-2.5-flash"),
        ("gemini-2.5-flash-001", "gemini-2.5-flash"),
        ("gemini-2.5-pro-001", "gemini-2.5-pro"),
        ("gemini-2.5-flash-preview-09-2025", "gemini-2.5-flash"),
        ("gemini-3-pro-image", "gemini-3-pro-image-preview"),
        ("gemini-pro-latest", "gemini-3.1-pro-preview"),
    ],
)
def test_other_names_of_a_model_have_its_price(name, same_as):
    assert Prices(name, AT).known
    assert cost(Usage(1000, 1000, 10, 500), name) == cost(Usage(1000, 1000, 10, 500), same_as)


def test_cached_tokens_without_details_are_of_the_kind_that_fills_the_prompt():
    """1,000 of 1,000 prompt tokens are audio, so 800 cached ones must be audio too."""
    assert (
        cost(Usage(1000, cached_tokens=800, modalities={"prompt_audio": 1000}))
        == (200 * Decimal("0.5") + 800 * Decimal("0.1")) / MILLION
    )


NAMES = [f"{place}_{kind}" for place in ("prompt", "cached", "output") for kind in ("audio", "image", "document")]
KINDS = st.dictionaries(st.sampled_from(NAMES), st.integers(0, 10**6))
USAGES = st.builds(Usage, *[st.integers(0, 400_000)] * 5, KINDS)
MODELS = st.sampled_from([row[0] for row in BATCH_TABLE])


@given(USAGES, MODELS)
def test_counts_that_contradict_each_other_cost_something_and_never_less_than_nothing(usage, model):
    price = Prices(model, AT).price(usage)
    assert price is None or price >= 0


@given(st.lists(USAGES, max_size=20), st.randoms(use_true_random=False))
def test_cents_are_those_of_plain_decimal_sums_in_any_order(usages, rng: random.Random):
    """Short and long prompts of a model in tiers, against the same sum by hand."""
    usages = [
        Usage(u.prompt_tokens, u.output_tokens, u.thoughts_tokens, u.cached_tokens, u.tool_tokens) for u in usages
    ]
    by_hand = Decimal(0)
    for one in usages:
        long = one.prompt_tokens + one.tool_tokens > 200_000
        into, out, kept = (Decimal(x) for x in (("1.25", "7.5", "0.25") if long else ("0.625", "5", "0.125")))
        cached = min(one.cached_tokens, one.prompt_tokens)
        by_hand += (one.prompt_tokens - cached + one.tool_tokens) * into / MILLION
        by_hand += cached * kept / MILLION + (one.output_tokens + one.thoughts_tokens) * out / MILLION
    rng.shuffle(usages)
    tally = Tally(Prices("gemini-2.5-pro", AT).price)
    for one in usages:
        tally.add(one)
    assert tally.sum().usd == by_hand


def test_no_price_of_google_loses_a_digit():
    """All of them, standard or batch, halved or not, are whole pico-dollars for a token."""
    seen = 0
    for model in get_snapshot().find_provider(None, "google", None).models:
        for prices in (model.get_prices(AT), model.get_prices(AT, {"processing": "batch"})):
            for name, price in vars(prices).items():
                for one in (price, getattr(price, "base", None), *(t.price for t in getattr(price, "tiers", ()))):
                    if isinstance(one, Decimal) and name.endswith("_mtok"):
                        assert one * 500_000 == int(one * 500_000), (model.id, name)
                        seen += 1
    assert seen > 100


# The user's own prices

TABLE = {
    "gemini-x": [
        {"input": 0.15, "output": 1.25, "cached": 0.03, "audio_input": 0.5, "image_output": 30,
         "above_200k": {"input": 0.3, "output": "2.5"}},
        {"from": "2027-01-01", "input": 1, "output": 2},
    ]
}  # fmt: skip


def test_given_prices_come_first_and_are_not_halved():
    assert cost(Usage(MILLION // 10), "gemini-2.5-flash", table={"gemini-2.5-flash": {"input": 8}}) == Decimal("0.8")
    assert cost(Usage(100_000, 100_000), "models/gemini-x", table=TABLE) == Decimal("0.14")
    assert cost(Usage(100_000, cached_tokens=100_000), "gemini-x", table=TABLE) == Decimal("0.003")
    assert cost(Usage(100_000, modalities={"prompt_audio": 100_000}), "gemini-x", table=TABLE) == Decimal("0.05")
    assert cost(Usage(0, 1000, modalities={"output_image": 1000}), "gemini-x", table=TABLE) == Decimal("0.03")
    assert (
        cost(Usage(LONG, 1000, 0, 1), "gemini-x", table=TABLE)
        == (200_000 * Decimal("0.3") + Decimal("0.03") + 1000 * Decimal("2.5")) / MILLION
    )


def test_given_prices_have_their_days():
    assert cost(Usage(1000), "gemini-x", datetime(2026, 12, 31, 23, 59, tzinfo=UTC), TABLE) == Decimal("0.00015")
    assert cost(Usage(1000), "gemini-x", datetime(2027, 1, 1, tzinfo=UTC), TABLE) == Decimal("0.001")
    later = {"gemini-2.5-flash": {"from": date(2027, 1, 1), "input": 8, "output": 8}}
    assert cost(Usage(1000), "gemini-2.5-flash", AT, later) == Decimal("0.00015")  # until then, what genai-prices says


def test_a_given_entry_says_nothing_of_what_it_does_not_name():
    table = {"gemini-2.5-flash": {"input": 2}}
    assert cost(Usage(1000, cached_tokens=1000), table=table) == Decimal("0.002")
    assert cost(Usage(1000, 1), table=table) is None


def test_the_operators_prices_come_before_the_connections():
    ours = PriceTable.parse({"models/Gemini-X": {"input": 1}})
    theirs = PriceTable.parse({"gemini-x": {"input": 9}, "gemini-y": {"input": 5}})
    assert usd(Prices("gemini-x", AT, ours.over(theirs)).price(Usage(MILLION))) == 1
    assert usd(Prices("gemini-y", AT, ours.over(theirs)).price(Usage(MILLION))) == 5


def test_prices_say_where_they_come_from():
    assert prices_as_of().startswith("genai-prices ")
    assert Prices("gemini-2.5-flash", AT).source == prices_as_of()
    assert Prices("gemini-x", AT, PriceTable.parse(TABLE)).source == "the given prices"


@pytest.mark.parametrize(
    ("table", "named"),
    [
        (["gemini-x"], "prices is ['gemini-x']"),
        ({"m": 5}, "prices['m'] is 5"),
        ({"m": []}, "prices['m'] is empty"),
        ({"m": {}}, "prices['m'] has no `input`"),
        ({"m": {"input": 1, "outptu": 2}}, "prices['m'] has 'outptu'; it takes input"),
        ({"m": {"input": "much"}}, "prices['m']['input'] is 'much'"),
        ({"m": {"input": -1}}, "prices['m']['input'] is -1"),
        ({"m": {"input": True}}, "prices['m']['input'] is True"),
        ({"m": {"input": float("nan")}}, "prices['m']['input'] is nan"),
        ({"m": {"input": 0.12345678}}, "at most six decimal places"),
        ({"m": {"input": 1, "from": "soon"}}, "prices['m']['from'] is 'soon'"),
        ({"m": {"input": 1, "from": 2027}}, "prices['m']['from'] is 2027"),
        ({"m": {"input": 1, "above_200k": 2}}, "prices['m']['above_200k'] is 2"),
        ({"m": {"input": 1, "above_200k": {"from": 2}}}, "prices['m']['above_200k'] has 'from'"),
        ({"m": [{"input": 1}, {"input": 2}]}, "prices['m'] has two entries for the same day"),
        ({"m": [{"input": 1}, {"output": 2, "from": "2027-01-01"}]}, "prices['m'][1] has no `input`"),
    ],
)
def test_a_table_that_cannot_be_understood_is_refused_with_its_place(table, named):
    with pytest.raises(InvalidConfig) as e:
        PriceTable.parse(table)
    assert named in str(e.value)


def test_errors_say_whose_prices_they_are():
    with pytest.raises(InvalidConfig, match=r"extra\.prices of the connection is 5"):
        PriceTable.parse(5, where="extra.prices of the connection")
