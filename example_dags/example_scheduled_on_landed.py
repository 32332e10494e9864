"""
A DAG that runs when another has landed: the asset's event carries the manifest's summary.

The task that lands names an asset as its outlet. Whoever is scheduled on that asset finds in the event's ``extra`` where the
table is (``output``, ``manifest``), the ``counts`` and the ``cost``.

``EXAMPLE_DATA`` holds reviews.csv, ``EXAMPLE_OUTPUT`` is where the answers land.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pendulum
from airflow.sdk import DAG, Asset, task

from airflow_gemini_batch.operators.batch import GeminiBatchOperator

DATA = os.environ.get("EXAMPLE_DATA", str(Path(__file__).parent / "data"))
OUTPUT = os.environ.get("EXAMPLE_OUTPUT", "/tmp/gemini_batch_examples")

summaries = Asset(name="review_summaries", uri="x-example://review_summaries")

with DAG(
    dag_id="example_scheduled_on_landed",
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
        output=OUTPUT + "/example_scheduled_on_landed/{{ run_id }}",
        outlets=[summaries],
        deferrable=True,
        poll_interval=float(os.environ.get("POLL_INTERVAL", "60")),
        retries=2,
    )

with DAG(
    dag_id="example_scheduled_on_landed_reader",
    schedule=[summaries],
    start_date=pendulum.datetime(2026, 11, 1, tz="UTC"),
    catchup=False,
    tags=["gemini", "batch", "example"],
):

    @task
    def read(triggering_asset_events: Any = None) -> list[dict[str, Any]]:
        """Where the new tables are, and how they came out."""
        return [
            {
                "output": event.extra["output"],
                "ok": event.extra["counts"]["ok"],
                "usd": event.extra["cost"]["actual_usd"],
            }
            for event in triggering_asset_events[summaries]
        ]

    read()
