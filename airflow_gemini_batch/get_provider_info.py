"""What Airflow discovers through the ``apache_airflow_provider`` entry point."""

from __future__ import annotations

from typing import Any

from airflow_gemini_batch.connection_form import FIELDS, UI_BEHAVIOUR


def get_provider_info() -> dict[str, Any]:
    """Return the provider's description; see Airflow's "Custom providers" documentation."""
    return {
        "package-name": "airflow-gemini-batch",
        "name": "Gemini Batch",
        "description": "Run Gemini's Batch API: paid once, nothing lost, in plain sight.",
        "integrations": [
            {
                "integration-name": "Gemini Batch API",
                "external-doc-url": "https://ai.google.dev/gemini-api/docs/batch-api",
                "tags": ["ai"],
            }
        ],
        "hooks": [{"integration-name": "Gemini Batch API", "python-modules": ["airflow_gemini_batch.hooks.gemini"]}],
        "operators": [
            {"integration-name": "Gemini Batch API", "python-modules": ["airflow_gemini_batch.operators.batch"]}
        ],
        "triggers": [
            {"integration-name": "Gemini Batch API", "python-modules": ["airflow_gemini_batch.triggers.batch"]}
        ],
        "connection-types": [
            {
                "hook-class-name": "airflow_gemini_batch.hooks.gemini.GeminiHook",
                "connection-type": "gemini_batch",
                "hook-name": "Gemini Batch",
                "conn-fields": FIELDS,
                "ui-field-behaviour": UI_BEHAVIOUR,
            }
        ],
    }
