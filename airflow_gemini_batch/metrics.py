"""What a finished run tells Airflow's metrics (``[metrics]``): StatsD or OpenTelemetry, whichever is set up."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from airflow.providers.common.compat.sdk import Stats


def report(manifest: Mapping[str, Any], news: Mapping[str, Mapping[str, int]]) -> None:
    """
    Emit ``gemini_batch.rows`` (tag ``status``), ``.tokens`` (``kind``), ``.cost_usd``, ``.jobs`` and ``.seconds``, each
    tagged with ``dag_id``, ``task_id`` and ``model``. What is landed again counts nothing twice.

    :param manifest: the task's return value, or the manifest of a run that failed.
    :param news: rows by status, tokens by kind and jobs that were not counted before.
    """
    run = manifest["run"]
    tags = {"dag_id": run["dag_id"], "task_id": run["task_id"], "model": manifest["model"]}
    if not any(news.values()):
        return
    for status, rows in news["rows"].items():
        Stats.incr("gemini_batch.rows", rows, tags=tags | {"status": status})
    for kind, tokens in news["tokens"].items():
        Stats.incr("gemini_batch.tokens", tokens, tags=tags | {"kind": kind})
    for jobs in news["jobs"].values():
        Stats.incr("gemini_batch.jobs", jobs, tags=tags)
    if (cost := manifest["cost"]["actual_usd"]) is not None:
        Stats.gauge("gemini_batch.cost_usd", cost, tags=tags)
    took = datetime.fromisoformat(manifest["finished_at"]) - datetime.fromisoformat(manifest["started_at"])
    Stats.timing("gemini_batch.seconds", took, tags=tags)
