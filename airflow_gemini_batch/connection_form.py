"""The connection form, once: the provider info gives it to Airflow 3.2 and later, the hook to 3.1."""

from __future__ import annotations

from typing import Any

FIELDS: dict[str, dict[str, Any]] = {
    "api_version": {
        "label": "API version",
        "description": "Version segment of the URL: v1beta (default), v1 or v1alpha.",
        "schema": {"type": ["string", "null"]},
    },
    "timeout": {
        "label": "Timeout of one call",
        "description": "Seconds; default 120. Also told to the service as its own deadline.",
        "schema": {"type": ["string", "null"]},
    },
    "prices": {
        "label": "Prices",
        "description": 'JSON: batch prices in US dollars per million tokens, {"model": {"input": 0.15, "output": 1.25}}, '
        "where those of the genai-prices package will not do.",
        "schema": {"type": ["string", "null"]},
    },
    "backend": {
        "label": "Backend",
        "description": "developer (default): the Gemini Developer API with an API key.",
        "schema": {"type": ["string", "null"]},
    },
}

UI_BEHAVIOUR: dict[str, Any] = {
    "hidden-fields": ["schema", "login", "port", "extra"],
    "relabeling": {"password": "API key", "host": "Base URL"},
    "placeholders": {
        "password": "the Gemini API key, from Google AI Studio",
        "host": "https://generativelanguage.googleapis.com",
        "api_version": "v1beta",
        "timeout": "120",
        "prices": '{"gemini-2.5-flash": {"input": 0.15, "output": 1.25}}',
        "backend": "developer",
    },
}
