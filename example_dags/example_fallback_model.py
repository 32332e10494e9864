"""Jobs of one model may stay pending for a day while another's run: after two hours the rows go to the next model."""

from __future__ import annotations

import os
from pathlib import Path

import pendulum
from airflow.sdk import DAG

from airflow_gemini_batch.operators.batch import GeminiBatchOperator

DATA = os.environ.get("EXAMPLE_DATA", str(Path(__file__).parent / "data"))
OUTPUT = os.environ.get("EXAMPLE_OUTPUT", "/tmp/gemini_batch_examples")

with DAG(
    dag_id="example_fallback_model",
    schedule=None,
    start_date=pendulum.datetime(2026, 11, 1, tz="UTC"),
    catchup=False,
    tags=["gemini", "batch", "example"],
) as dag:
    ask = GeminiBatchOperator(
        task_id="ask",
        model=["gemini-2.5-flash", "gemini-2.5-flash-lite"],
        source=DATA + "/reviews.csv",
        prompt="Is this review of a {product} friendly? Answer yes or no.\n\n{text}",
        config={"max_output_tokens": 1000},
        key="id",
        canary=20,  # the first 20 rows must do well before the others are sent
        pending_timeout=2 * 3600,  # a job that is still pending is cancelled, and its rows go to the next model
        split=4,  # in smaller jobs
        redo={"truncated": {"max_output_tokens": 8000}},  # an answer that was cut short is asked for again
        max_failed_ratio=0.1,
        output=OUTPUT + "/example_fallback_model/{{ run_id }}",
        deferrable=True,
        poll_interval=float(os.environ.get("POLL_INTERVAL", "60")),
        retries=2,
    )
