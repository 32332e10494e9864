"""Tokens and what they cost, added up exactly while results stream: tokens as ints, money as whole pico-dollars."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

PICO = 10**12
"""Pico-dollars in a US dollar. A price of one micro-dollar for a million tokens is one of them for each token."""

MODALITIES = frozenset({"AUDIO", "IMAGE", "VIDEO", "DOCUMENT"})
"""Kinds of content that are told apart (https://ai.google.dev/api/generate-content#Modality); text is what is left."""

MOST = 10**15
"""A count that is higher is none."""

DETAILS = (("promptTokensDetails", "prompt"), ("candidatesTokensDetails", "output"), ("cacheTokensDetails", "cached"))


@dataclass(frozen=True, slots=True)
class Usage:
    """
    Tokens of one answer, or the sum of many.

    :param prompt_tokens: includes ``cached_tokens``.
    :param output_tokens: the answer without its thoughts (the API's ``candidatesTokenCount``).
    :param thoughts_tokens: billed as output, and not part of ``output_tokens``.
    :param tool_tokens: prompt tokens of tool use.
    :param modalities: how many of these are not text: ``prompt_audio``, ``cached_audio``, ``output_image`` and so on.
    """

    prompt_tokens: int = 0
    output_tokens: int = 0
    thoughts_tokens: int = 0
    cached_tokens: int = 0
    tool_tokens: int = 0
    modalities: dict[str, int] = field(default_factory=dict, hash=False)

    @classmethod
    def of_response(cls, meta: object) -> Usage | None:
        """Read ``usageMetadata`` (https://ai.google.dev/api/generate-content#UsageMetadata); None if there is none."""
        if not isinstance(meta, Mapping):
            return None
        return cls(
            _count(meta, "promptTokenCount"),
            _count(meta, "candidatesTokenCount"),
            _count(meta, "thoughtsTokenCount"),
            _count(meta, "cachedContentTokenCount"),
            _count(meta, "toolUsePromptTokenCount"),
            _modalities(meta),
        )

    @classmethod
    def of_embedding(cls, response: Mapping[str, Any]) -> Usage | None:
        """Read the ``tokenCount`` of an embedding's response; None if there is none."""
        return cls(prompt_tokens=_count(response, "tokenCount")) if "tokenCount" in response else None

    @property
    def input_tokens(self) -> int:
        """All that is billed as input, at whatever rate."""
        return self.prompt_tokens + self.tool_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.output_tokens + other.output_tokens,
            self.thoughts_tokens + other.thoughts_tokens,
            self.cached_tokens + other.cached_tokens,
            self.tool_tokens + other.tool_tokens,
            _merged(self.modalities, other.modalities),
        )


def _count(meta: Mapping[str, Any], name: str) -> int:
    value = meta.get(name)
    if value is None:
        return 0
    if type(value) is int and 0 <= value < MOST:  # the usual case, without a detour over text
        return value
    if isinstance(value, float) and 0 <= value < MOST and value == int(value):
        return int(value)
    digits = str(value) if isinstance(value, int | str) else ""
    return int(digits) if digits.isdecimal() and len(digits) < 16 and int(digits) < MOST else 0


def _modalities(meta: Mapping[str, Any]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name, kind in DETAILS:
        details = meta.get(name)
        for one in details if isinstance(details, list) else ():
            if (
                isinstance(one, Mapping)
                and one.get("modality") != "TEXT"
                and (modality := str(one.get("modality"))) in MODALITIES
            ):
                key = f"{kind}_{modality.lower()}"
                if total := counts.get(key, 0) + _count(one, "tokenCount"):
                    counts[key] = total
    return counts


def _merged(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    return {key: one.get(key, 0) + other.get(key, 0) for key in sorted(one | other)} if one or other else {}


@dataclass(frozen=True, slots=True)
class Spent:
    """
    What answers used and cost.

    :param usage: the exact sum of their tokens.
    :param pico_usd: the exact sum of their prices; None once the price of one of them is unknown.
    """

    usage: Usage = field(default_factory=Usage)
    pico_usd: int | None = 0

    @property
    def usd(self) -> Decimal | None:
        return usd(self.pico_usd)

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.usage + other.usage, plus(self.pico_usd, other.pico_usd))


class Tally:
    """
    Adds up answers one by one, without making a value for each.

    :param price: what one answer costs, in pico-dollars; e.g. :meth:`prices.Prices.price`.
    """

    def __init__(self, price: Callable[[Usage], int | None]) -> None:
        self._price = price
        self._prompt = self._output = self._thoughts = self._cached = self._tool = 0
        self._modalities: dict[str, int] = {}
        self._pico: int | None = 0

    def add(self, usage: Usage) -> None:
        self._prompt += usage.prompt_tokens
        self._output += usage.output_tokens
        self._thoughts += usage.thoughts_tokens
        self._cached += usage.cached_tokens
        self._tool += usage.tool_tokens
        if usage.modalities:
            self._modalities = _merged(self._modalities, usage.modalities)
        if self._pico is not None:
            cost = self._price(usage)
            self._pico = None if cost is None else self._pico + cost

    def add_many(self, usage: Usage, pico_usd: int | None) -> None:
        """Add the sum of many answers, and what they cost together."""
        self._prompt += usage.prompt_tokens
        self._output += usage.output_tokens
        self._thoughts += usage.thoughts_tokens
        self._cached += usage.cached_tokens
        self._tool += usage.tool_tokens
        self._modalities = _merged(self._modalities, usage.modalities)
        self._pico = plus(self._pico, pico_usd)

    def sum(self) -> Spent:
        tokens = (self._prompt, self._output, self._thoughts, self._cached, self._tool)
        return Spent(Usage(*tokens, dict(self._modalities)), self._pico)


def plus(one: int | None, other: int | None) -> int | None:
    """Add two amounts of which either may be unknown; then the sum is unknown too."""
    return None if one is None or other is None else one + other


def usd(pico: int | None) -> Decimal | None:
    """Pico-dollars as dollars, exactly."""
    return None if pico is None else Decimal(f"{pico}E-12")
