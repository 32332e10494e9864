"""
What tokens cost in a batch. Unknown is None, never zero.

Prices come from the genai-prices package, or from a table that the user gives. Which price holds when:

- **Batch.** Where genai-prices records a price of Google's batch table for a kind of token, that one. Where it records none,
  half of the standard price (https://ai.google.dev/gemini-api/docs/batch-api: "50% of the standard cost").
- **Cached tokens.** The recorded batch price if there is one (newer models halve it), else the *standard* caching rate: that
  is what the batch documentation says of cache hits, and what the batch table of 2.5 and 3.x Flash and Pro says too.
- **Size.** A price for long prompts (over 200,000 tokens) applies to the whole request, and each request has its own size: so
  answers are priced one by one, and never their sum.
- **Date.** The price on the UTC day that the job ended: tokens are used, and metered, when the model answers, which may be
  two days after the job was created. And the end of a job never moves, so landing it again gives the same cost.
- **Kinds.** Audio, image and video tokens at their own rates where there are such. Thoughts are output, tokens of tools are
  input. What is billed apart from tokens (searches, storage of caches) is not in here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

from airflow_gemini_batch.core.usage import Usage
from airflow_gemini_batch.exceptions import InvalidConfig

BATCH_FACTOR = Decimal("0.5")
LONG_PROMPT = 200_000
"""Prompt tokens above which ``above_200k`` of a price table holds."""

KINDS = ("audio", "image", "video")
RATES = {"input": "input_mtok", "cached": "cache_read_mtok", "output": "output_mtok"} | {
    f"{kind}_{name}": key
    for kind in KINDS
    for name, key in (
        ("input", f"input_{kind}_mtok"), ("cached", f"cache_{kind}_read_mtok"), ("output", f"output_{kind}_mtok"),
    )
}  # fmt: skip
"""Names of rates in a price table → those of genai-prices."""

Table = Mapping[str, Decimal]


@dataclass(frozen=True)
class Entry:
    """
    All prices of one model from a day on: US dollars per million tokens, at batch price.

    :param tiers: prompt size in tokens → the rates for prompts of more than that; 0 for all others. Largest first.
    """

    tiers: tuple[tuple[int, Table], ...]
    since: date = date.min


@dataclass(frozen=True)
class PriceTable:
    """
    Prices that the user gives. An entry replaces all that genai-prices says of its model, from its day on.

    :param models: bare model name → its entries, the latest first.
    """

    models: Mapping[str, tuple[Entry, ...]]

    @classmethod
    def parse(cls, given: object, *, where: str = "prices") -> PriceTable:
        """
        Read ``{"gemini-x": {"input": 0.15, "output": 1.25, "cached": 0.03, "audio_input": 0.5, "image_output": 30,
        "above_200k": {...}, "from": "2027-01-01"}}``: US dollars per million tokens, as paid in a batch.

        A model has one entry, or a list of them with different ``from`` days (UTC); one without ``from`` holds from the
        beginning. Not given, ``cached`` is ``input``, audio, image and video cost what text costs, and an output price is
        unknown; ``above_200k`` names only what is different for long prompts.

        :param where: whose setting it is, for errors.
        :raises InvalidConfig: something in it cannot be understood; the message says where.
        """
        if not isinstance(given, Mapping):
            raise InvalidConfig(f"{where} is {given!r}; it takes a mapping of model names to prices.")
        models: dict[str, tuple[Entry, ...]] = {}
        for model, entries in given.items():
            at = f"{where}[{model!r}]"
            listed = entries if isinstance(entries, list | tuple) else [entries]
            if not listed:
                raise InvalidConfig(f"{at} is empty; give at least its input price, or leave it out.")
            parsed = [_entry(one, f"{at}[{i}]" if listed is entries else at) for i, one in enumerate(listed)]
            if len({entry.since for entry in parsed}) < len(parsed):
                raise InvalidConfig(f"{at} has two entries for the same day; give each its own `from`.")
            models[_bare(str(model))] = tuple(sorted(parsed, key=lambda entry: entry.since, reverse=True))
        return cls(models)

    def over(self, other: PriceTable) -> PriceTable:
        """Both tables; a model that is in both has this one's prices."""
        return PriceTable({**other.models, **self.models})

    def find(self, model: str, day: date) -> Entry | None:
        return next((entry for entry in self.models.get(_bare(model), ()) if entry.since <= day), None)


NO_TABLE = PriceTable({})


class Prices:
    """
    The prices of one model on one day; make it once, ask it for every answer.

    :param model: a model's name, with or without ``models/``.
    :param at: when the job ended; before that, now.
    :param table: prices that come before those of genai-prices.
    """

    def __init__(self, model: str, at: datetime, table: PriceTable = NO_TABLE) -> None:
        self.model = model
        day = (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC).date()
        entry = table.find(model, day)
        self.source = "the given prices" if entry else prices_as_of()
        entry = entry or _of_genai_prices(model, at)
        self._tiers = tuple((above, _Rates(rates)) for above, rates in entry.tiers) if entry else ()

    @property
    def known(self) -> bool:
        return bool(self._tiers)

    def price(self, usage: Usage) -> int | None:
        """
        Return what one answer costs, in pico-dollars; None if a price that it needs is unknown.

        Not for sums of answers: each has its own size, and a price for long prompts goes by that.
        """
        inputs = usage.prompt_tokens + usage.tool_tokens
        for above, rates in self._tiers:
            if inputs > above or not above:
                if usage.modalities and rates.kinds:
                    return rates.mixed(usage)
                # Sums that contradict each other must not make a price negative.
                cached = min(usage.cached_tokens, usage.prompt_tokens)
                return rates.plain(inputs - cached, cached, usage.output_tokens + usage.thoughts_tokens)
        return None

    def price_many(self, usage: Usage, largest: int) -> int | bool | None:
        """
        Return what many answers of text cost together; False if they must be priced one by one.

        :param usage: their sum.
        :param largest: input tokens of the largest of them.
        """
        if any(above and largest > above for above, _ in self._tiers):
            return False
        for above, rates in self._tiers:
            if not above:
                cached = min(usage.cached_tokens, usage.prompt_tokens)
                return rates.plain(usage.input_tokens - cached, cached, usage.output_tokens + usage.thoughts_tokens)
        return None

    def price_tokens(self, inputs: int, outputs: int) -> int | None:
        """:meth:`price` of an answer that is text only and nothing of it cached."""
        for above, rates in self._tiers:
            if inputs > above or not above:
                return rates.plain(inputs, 0, outputs)
        return None


class _Rates:
    """Pico-dollars per token, of one size of prompt. A rate may be None: nobody knows it."""

    def __init__(self, rates: Table) -> None:
        pico = {name: _pico(rate) for name, rate in rates.items()}
        self.input, self.output = pico.get("input"), pico.get("output")
        self.cached = pico.get("cached", self.input)
        self.kinds = tuple(
            (
                kind,
                pico.get(f"{kind}_input", self.input),
                pico.get(f"{kind}_cached", pico.get("cached", pico.get(f"{kind}_input", self.input))),
                pico.get(f"{kind}_output", self.output),
            )
            for kind in KINDS
            if any(f"{kind}_{name}" in pico for name in ("input", "cached", "output"))
        )

    def plain(self, inputs: int, cached: int, outputs: int) -> int | None:
        if (self.input is None and inputs) or (self.cached is None and cached) or (self.output is None and outputs):
            return None
        return inputs * (self.input or 0) + cached * (self.cached or 0) + outputs * (self.output or 0)

    def mixed(self, usage: Usage) -> int | None:
        found = usage.modalities
        text, outputs = usage.prompt_tokens, usage.output_tokens
        cached = min(usage.cached_tokens, text)
        parts: list[tuple[int, int, int]] = []
        for kind, *_ in self.kinds:
            count = min(found.get(f"prompt_{kind}", 0), text)
            from_cache = min(found.get(f"cached_{kind}", 0), count, cached)
            answered = min(found.get(f"output_{kind}", 0), outputs)
            text, cached, outputs = text - count, cached - from_cache, outputs - answered
            parts.append((count, from_cache, answered))
        amounts: list[tuple[int, int | None]] = []
        for (count, from_cache, answered), (_, rate, cached_rate, output_rate) in zip(parts, self.kinds, strict=True):
            # More is cached than there is text: the rest must be of another kind, though nobody said so.
            more = min(max(cached - text, 0), count - from_cache)
            cached, from_cache = cached - more, from_cache + more
            amounts += [(count - from_cache, rate), (from_cache, cached_rate), (answered, output_rate)]
        amounts += [
            (text - cached + usage.tool_tokens, self.input),
            (cached, self.cached),
            (outputs + usage.thoughts_tokens, self.output),
        ]
        total = 0
        for tokens, one in amounts:
            if tokens and one is None:
                return None
            total += tokens * (one or 0)
        return total


def prices_as_of() -> str:
    """The release of genai-prices that prices come from where the user gives none."""
    from importlib.metadata import version

    return f"genai-prices {version('genai-prices')}"


def _pico(rate: Decimal) -> int:
    # Dollars per million tokens are micro-dollars per token. All known prices have at most six places, halved or not.
    return int((rate * 1_000_000).to_integral_value())


def _bare(model: str) -> str:
    return model.strip().lower().removeprefix("models/")


def _of_genai_prices(model: str, at: datetime) -> Entry | None:
    from genai_prices.data_snapshot import get_snapshot  # what ``calc_price`` uses; also the one a user refreshed

    bare = _bare(model)
    found = None
    # "-001" names a release of a model at the model's price (https://ai.google.dev/gemini-api/docs/models#model-versions).
    for name in dict.fromkeys((bare, re.sub(r"-\d{3}$", "", bare))):
        try:
            found = get_snapshot().find_provider_model(name, None, "google", None)[1]
            break
        except LookupError:
            continue
    if found is None:
        return None
    standard = vars(found.get_prices(at))
    batch = vars(found.get_prices(at, {"processing": "batch"}))
    raw: dict[str, tuple[Any, Decimal]] = {}
    for name, key in RATES.items():
        if batch.get(key) is not None:
            # A recorded batch price is another object than the standard one, even when it is as high.
            stated = batch[key] is not standard.get(key)
            raw[name] = batch[key], Decimal(1) if stated or "cached" in name else BATCH_FACTOR
    starts = {tier.start for price, _ in raw.values() for tier in getattr(price, "tiers", ())}
    tiers = tuple(
        (above, {name: _at_size(price, above) * factor for name, (price, factor) in raw.items()})
        for above in sorted(starts | {0}, reverse=True)
    )
    return Entry(tiers)


def _at_size(price: Any, above: int) -> Decimal:
    """The rate for prompts of more than ``above`` tokens, of a plain price or of one in tiers."""
    rate = getattr(price, "base", price)
    for tier in getattr(price, "tiers", ()):
        if tier.start <= above and above:
            rate = tier.price
    return Decimal(rate)


def _entry(given: object, where: str) -> Entry:
    if not isinstance(given, Mapping):
        raise InvalidConfig(f'{where} is {given!r}; it takes a mapping such as {{"input": 0.15, "output": 1.25}}.')
    fields = dict(given)
    since = _day(fields.pop("from", None), where)
    long = fields.pop("above_200k", None)
    rates = _rates(fields, where)
    if "input" not in rates:
        raise InvalidConfig(f"{where} has no `input` price.")
    if long is None:
        return Entry(((0, rates),), since)
    if not isinstance(long, Mapping) or not long:
        raise InvalidConfig(f"{where}['above_200k'] is {long!r}; it takes the prices that differ for long prompts.")
    return Entry(((LONG_PROMPT, {**rates, **_rates(long, f"{where}['above_200k']")}), (0, rates)), since)


def _rates(given: Mapping[Any, object], where: str) -> dict[str, Decimal]:
    rates = {}
    for name, value in given.items():
        if name not in RATES:
            raise InvalidConfig(f"{where} has {name!r}; it takes {', '.join(RATES)}, above_200k and from.")
        try:
            rate = Decimal("nan") if isinstance(value, bool) else Decimal(str(value))
        except InvalidOperation:
            rate = Decimal("nan")
        # Six places are what a sum in pico-dollars can hold without rounding.
        if not rate.is_finite() or not 0 <= rate < 1_000_000 or rate != round(rate, 6):
            raise InvalidConfig(
                f"{where}[{name!r}] is {value!r}; it takes US dollars per million tokens: a number from 0 on, with at most "
                "six decimal places."
            )
        rates[str(name)] = rate
    return rates


def _day(given: object, where: str) -> date:
    if given is None:
        return date.min
    if isinstance(given, date) and not isinstance(given, datetime):
        return given
    try:
        return date.fromisoformat(given if isinstance(given, str) else "")
    except ValueError:
        raise InvalidConfig(f"{where}['from'] is {given!r}; it takes a day such as \"2027-01-01\".") from None
