"""Tokens, added up while results stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Usage:
    """
    Tokens of one answer, or the sum of many.

    :param prompt_tokens: includes ``cached_tokens``.
    :param output_tokens: the answer without its thoughts (the API's ``candidatesTokenCount``).
    :param thoughts_tokens: billed as output, and not part of ``output_tokens``.
    :param tool_tokens: prompt tokens of tool use.
    """

    prompt_tokens: int = 0
    output_tokens: int = 0
    thoughts_tokens: int = 0
    cached_tokens: int = 0
    tool_tokens: int = 0

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
        )

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.output_tokens + other.output_tokens,
            self.thoughts_tokens + other.thoughts_tokens,
            self.cached_tokens + other.cached_tokens,
            self.tool_tokens + other.tool_tokens,
        )


def _count(meta: Mapping[str, Any], name: str) -> int:
    value = meta.get(name)
    digits = str(value) if isinstance(value, int | str) else ""
    return int(digits) if digits.isdecimal() and len(digits) < 16 else 0
