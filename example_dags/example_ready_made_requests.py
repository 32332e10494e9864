"""
Ready-made requests: JSON lines that were written for the Batch API are checked, and sent byte for byte.

``EXAMPLE_DATA`` holds requests.jsonl, lines of ``{"key": ..., "request": {...}}`` in which everything that the API knows may
stand; ``EXAMPLE_OUTPUT`` is where the answers land. There is no prompt and no config: the requests have their own.
"""

from __future__ import annotations

import os
from pathlib import Path

import pendulum
from airflow.sdk import DAG

from airflow_gemini_batch.operators.batch import GeminiBatchOperator

DATA = os.environ.get("EXAMPLE_DATA", str(Path(__file__).parent / "data"))
OUTPUT = os.environ.get("EXAMPLE_OUTPUT", "/tmp/gemini_batch_examples")

with DAG(
    dag_id="example_ready_made_requests",
    schedule=None,
    start_date=pendulum.datetime(2026, 11, 1, tz="UTC"),
    catchup=False,
    tags=["gemini", "batch", "example"],
) as dag:
    ask = GeminiBatchOperator(
        task_id="ask",
        model="gemini-2.5-flash",
        source=DATA + "/requests.jsonl",
        include=["grounding"],
        output=OUTPUT + "/example_ready_made_requests/{{ run_id }}",
        deferrable=True,
        poll_interval=float(os.environ.get("POLL_INTERVAL", "60")),
        retries=2,
    )
