"""What tokens cost in a batch. Unknown is None, never zero."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

from airflow_gemini_batch.core.usage import Usage

BATCH_FACTOR = Decimal("0.5")
"""Batch costs half of the standard price (https://ai.google.dev/gemini-api/docs/pricing)."""


def cost_usd(usage: Usage, model: str, at: datetime) -> float | None:
    """
    Return the cost in US dollars of tokens used with ``model`` at a time, by the prices of the genai-prices package.

    Thoughts are billed as output; cached tokens are part of the prompt's.
    """
    import genai_prices

    try:
        priced = genai_prices.calc_price(
            genai_prices.Usage(
                input_tokens=usage.prompt_tokens + usage.tool_tokens,
                output_tokens=usage.output_tokens + usage.thoughts_tokens,
                cache_read_tokens=min(usage.cached_tokens, usage.prompt_tokens),
            ),
            model_ref=model,
            provider_id="google",
            genai_request_timestamp=at,
        )
    except LookupError:
        return None
    return float(priced.total_price * BATCH_FACTOR)


def prices_as_of() -> str:
    """The release of genai-prices that the prices come from."""
    from importlib.metadata import version

    return f"genai-prices {version('genai-prices')}"
