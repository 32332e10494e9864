"""
The section ``[gemini_batch]`` of Airflow's configuration: what holds where a task does not say otherwise.

Airflow learns the options, their documentation and their defaults from the provider info.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

SECTION = "gemini_batch"

CONN_ID = "gemini_batch_default"
"""The connection of a task that names none."""

POLL_INTERVAL = 60.0
DELETE_REMOTE = "inputs"

CONFIG: dict[str, Any] = {
    SECTION: {
        "description": "Defaults of Gemini batch tasks. A task's own parameter counts for more.",
        "options": {
            "poll_interval": {
                "description": "Seconds between looks at the jobs of a task.",
                "version_added": "0.1.0",
                "type": "float",
                "example": "30",
                "default": f"{POLL_INTERVAL:g}",
            },
            "delete_remote": {
                "description": (
                    "What is removed from the service once it is landed: inputs (the uploads), all (results and jobs, too) "
                    "or never."
                ),
                "version_added": "0.1.0",
                "type": "string",
                "example": "all",
                "default": DELETE_REMOTE,
            },
            "ledger": {
                "description": (
                    "URI of a directory in which the create steps record what they sent, where that cannot lie beside a file "
                    "of requests. Every worker must reach it."
                ),
                "version_added": "0.1.0",
                "type": "string",
                "example": "s3://lake/gemini_ledger",
                "default": "",
            },
        },
    }
}


def poll_interval(given: timedelta | float | None) -> timedelta | float:
    """:param given: the task's own, in seconds; None asks for the configured one."""
    from airflow.providers.common.compat.sdk import conf

    return given if given is not None else float(conf.getfloat(SECTION, "poll_interval", fallback=POLL_INTERVAL))


def delete_remote(given: str | None) -> str:
    from airflow.providers.common.compat.sdk import conf

    return given or str(conf.get(SECTION, "delete_remote", fallback=DELETE_REMOTE))


def deferrable(given: bool | None) -> bool:
    """:param given: the task's own; None asks for Airflow's ``[operators] default_deferrable``."""
    from airflow.providers.common.compat.sdk import conf

    return given if given is not None else bool(conf.getboolean("operators", "default_deferrable", fallback=False))


def ledger(given: str | None) -> str | None:
    from airflow.providers.common.compat.sdk import conf

    return given or str(conf.get(SECTION, "ledger", fallback="")) or None
