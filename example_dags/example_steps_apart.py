"""
The steps of a batch as tasks of their own: requests to files, a job for each file, a wait for all of them, one table.

Each step is safe to retry and to clear: a file of requests becomes one job, whatever dies. ``EXAMPLE_DATA`` holds reviews.csv
(id, product, stars, text), ``EXAMPLE_OUTPUT`` is where requests and answers go.
"""

from __future__ import annotations

import os
from pathlib import Path

import pendulum
from airflow.sdk import DAG

from airflow_gemini_batch.core.shards import Limits
from airflow_gemini_batch.operators.steps import (
    GeminiCreateBatchJobOperator,
    GeminiLandResultsOperator,
    GeminiPrepareRequestsOperator,
)
from airflow_gemini_batch.sensors.batch import GeminiBatchJobSensor

DATA = os.environ.get("EXAMPLE_DATA", str(Path(__file__).parent / "data"))
OUTPUT = os.environ.get("EXAMPLE_OUTPUT", "/tmp/gemini_batch_examples")

with DAG(
    dag_id="example_steps_apart",
    schedule=None,
    start_date=pendulum.datetime(2026, 11, 1, tz="UTC"),
    catchup=False,
    tags=["gemini", "batch", "example"],
) as dag:
    prepare = GeminiPrepareRequestsOperator(
        task_id="prepare",
        model="gemini-2.5-flash",
        source=DATA + "/reviews.csv",
        prompt="Summarise this review of a {product} in one sentence:\n\n{text}",
        key="id",
        keep=["product", "stars"],
        limits=Limits(requests_per_job=150),
        output=OUTPUT + "/example_steps_apart/{{ run_id }}/requests",
    )

    # One task, and one job, for each file of requests.
    create = GeminiCreateBatchJobOperator.partial(
        task_id="create", model="gemini-2.5-flash", display_name="reviews of {{ run_id }}", retries=2
    ).expand(requests=prepare.output)

    wait = GeminiBatchJobSensor.partial(
        task_id="wait", deferrable=True, poke_interval=float(os.environ.get("POLL_INTERVAL", "60"))
    ).expand(job=create.output)

    land = GeminiLandResultsOperator(
        task_id="land",
        job=create.output,
        rows=prepare.output["rows"],
        output=OUTPUT + "/example_steps_apart/{{ run_id }}/answers",
        retries=2,
    )

    wait >> land
