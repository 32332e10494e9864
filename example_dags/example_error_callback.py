"""
Who is told when a batch fails, and of what: the callback has the error itself, with the jobs, the counts and the cost.

A run that ends badly is landed all the same: the error names its manifest, and clearing the task sends only the rows that are
left. ``EXAMPLE_DATA`` holds reviews.csv, ``EXAMPLE_OUTPUT`` is where the answers land.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pendulum
from airflow.sdk import DAG

from airflow_gemini_batch.exceptions import QuotaExceeded, RunFailed
from airflow_gemini_batch.operators.batch import GeminiBatchOperator

DATA = os.environ.get("EXAMPLE_DATA", str(Path(__file__).parent / "data"))
OUTPUT = os.environ.get("EXAMPLE_OUTPUT", "/tmp/gemini_batch_examples")


def tell(context: Mapping[str, Any]) -> None:
    """Log one line; a notifier, e.g. ``SmtpNotifier(subject=..., html_content=...)``, would take the same text."""
    logging.getLogger("airflow.task").error("%s", describe(context["exception"]))


def describe(error: BaseException | str | None) -> str:
    if isinstance(error, RunFailed):
        counts = ", ".join(f"{n} {status}" for status, n in error.counts.items() if n)
        cost = error.summary["cost"]["actual_usd"] if error.summary else None
        spent = f"{cost:.4f} USD" if cost is not None else "an unknown sum"
        return f"{type(error).__name__}: {', '.join(error.jobs)}; rows: {counts}; spent: {spent}; see {error.manifest}"
    if isinstance(error, QuotaExceeded):
        return f"The quota {error.quota} is exhausted; nothing was lost, and a retry goes on."
    return f"{type(error).__name__}: {error}"


with DAG(
    dag_id="example_error_callback",
    schedule=None,
    start_date=pendulum.datetime(2026, 11, 1, tz="UTC"),
    catchup=False,
    tags=["gemini", "batch", "example"],
) as dag:
    GeminiBatchOperator(
        task_id="summarise",
        model="gemini-2.5-flash",
        source=DATA + "/reviews.csv",
        prompt="Summarise this review in one sentence:\n\n{text}",
        key="id",
        output=OUTPUT + "/example_error_callback/{{ run_id }}",
        max_failed_ratio=0.01,
        on_failure_callback=tell,
        deferrable=True,
        poll_interval=float(os.environ.get("POLL_INTERVAL", "60")),
        retries=2,
    )
