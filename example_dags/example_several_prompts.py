"""
Several questions about every row: one job, and one answer row per review and question, told apart by ``prompt``.

``EXAMPLE_DATA`` holds reviews.csv (id, product, stars, text), ``EXAMPLE_OUTPUT`` is where the answers land.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pendulum
from airflow.sdk import DAG, task

from airflow_gemini_batch.operators.batch import GeminiBatchOperator

DATA = os.environ.get("EXAMPLE_DATA", str(Path(__file__).parent / "data"))
OUTPUT = os.environ.get("EXAMPLE_OUTPUT", "/tmp/gemini_batch_examples")

with DAG(
    dag_id="example_several_prompts",
    schedule=None,
    start_date=pendulum.datetime(2026, 11, 1, tz="UTC"),
    catchup=False,
    tags=["gemini", "batch", "example"],
) as dag:
    ask = GeminiBatchOperator(
        task_id="ask",
        model="gemini-2.5-flash",
        source=DATA + "/reviews.csv",
        prompt={
            "summary": "Summarise this review of a {product} in one sentence:\n\n{text}",
            "topic": "Name the one topic of this review in two words at most:\n\n{text}",
            "reply": "Write the shop's reply of two sentences to this review with {stars} of 5 stars:\n\n{text}",
        },
        key="id",
        keep=["stars"],
        output=OUTPUT + "/example_several_prompts/{{ run_id }}",
        deferrable=True,
        poll_interval=float(os.environ.get("POLL_INTERVAL", "60")),
        retries=2,
    )

    @task
    def replies_to_angry_customers(manifest: dict[str, Any]) -> int:
        """Each answer is a row; a filter on ``prompt`` picks one question's."""
        import pyarrow.parquet as pq

        chosen = [("prompt", "=", "reply"), ("stars", "in", ["1", "2"]), ("status", "=", "ok")]
        return int(pq.read_table(manifest["files"], filters=chosen).num_rows)

    replies_to_angry_customers(ask.output)
