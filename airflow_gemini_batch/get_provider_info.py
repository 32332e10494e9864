"""What Airflow discovers through the ``apache_airflow_provider`` entry point."""

from __future__ import annotations

from typing import Any

from airflow_gemini_batch.connection_form import FIELDS, UI_BEHAVIOUR
from airflow_gemini_batch.settings import CONFIG


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
            {
                "integration-name": "Gemini Batch API",
                "python-modules": [
                    "airflow_gemini_batch.operators.batch",
                    "airflow_gemini_batch.operators.embeddings",
                    "airflow_gemini_batch.operators.estimate",
                    "airflow_gemini_batch.operators.steps",
                    "airflow_gemini_batch.operators.manage",
                    "airflow_gemini_batch.operators.files",
                ],
            }
        ],
        "sensors": [{"integration-name": "Gemini Batch API", "python-modules": ["airflow_gemini_batch.sensors.batch"]}],
        "triggers": [
            {"integration-name": "Gemini Batch API", "python-modules": ["airflow_gemini_batch.triggers.batch"]}
        ],
        "task-decorators": [
            {"name": "gemini_batch", "class-name": "airflow_gemini_batch.decorators.batch.gemini_batch"}
        ],
        "extra-links": [
            "airflow_gemini_batch.links.batch.GeminiJobLink",
            "airflow_gemini_batch.links.batch.GeminiOutputLink",
            "airflow_gemini_batch.links.batch.GeminiManifestLink",
        ],
        "config": CONFIG,
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
