"""Run Gemini's Batch API from Apache Airflow: paid once, nothing lost, in plain sight."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_gemini_batch.core.shards import Limits
    from airflow_gemini_batch.hooks.gemini import GeminiHook
    from airflow_gemini_batch.operators.batch import GeminiBatchOperator
    from airflow_gemini_batch.triggers.batch import GeminiBatchTrigger

__version__ = "0.1.0"
__all__ = ["GeminiBatchOperator", "GeminiBatchTrigger", "GeminiHook", "Limits"]

_HOMES = {
    "GeminiBatchOperator": "airflow_gemini_batch.operators.batch",
    "GeminiBatchTrigger": "airflow_gemini_batch.triggers.batch",
    "GeminiHook": "airflow_gemini_batch.hooks.gemini",
    "Limits": "airflow_gemini_batch.core.shards",
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is asked for: Airflow imports this package in every process it has."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
