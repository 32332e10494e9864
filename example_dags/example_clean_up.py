"""
Leave nothing behind: a teardown removes the uploads that a run left at the service, whether it went well or not.

A run with ``{"dry_run": false}`` in its conf also removes jobs that ended more than a month ago; by then every run has landed
what it wants. Without it the task only tells what it would remove. ``EXAMPLE_DATA`` holds reviews.csv,
``EXAMPLE_OUTPUT`` is where the answers land.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pendulum
from airflow.sdk import DAG, Param

from airflow_gemini_batch.operators.batch import GeminiBatchOperator
from airflow_gemini_batch.operators.manage import GeminiCleanUpFilesOperator, GeminiListBatchJobsOperator

DATA = os.environ.get("EXAMPLE_DATA", str(Path(__file__).parent / "data"))
OUTPUT = os.environ.get("EXAMPLE_OUTPUT", "/tmp/gemini_batch_examples")

with DAG(
    dag_id="example_clean_up",
    schedule=None,
    start_date=pendulum.datetime(2026, 11, 1, tz="UTC"),
    catchup=False,
    tags=["gemini", "batch", "example"],
) as dag:
    dag.params["dry_run"] = Param(True, type="boolean", description="Only tell what old jobs would be removed")

    translate = GeminiBatchOperator(
        task_id="translate",
        model="gemini-2.5-flash",
        source=DATA + "/reviews.csv",
        prompt="Translate into French:\n\n{text}",
        key="id",
        output=OUTPUT + "/example_clean_up/{{ run_id }}",
        delete_remote="never",  # left for the clean-up
        deferrable=True,
        poll_interval=float(os.environ.get("POLL_INTERVAL", "60")),
    )

    # Uploads of this package that no running job may need. Those of other runs are sent again, should they be missed.
    remove_uploads = GeminiCleanUpFilesOperator(
        task_id="remove_uploads", older_than=timedelta(hours=1), jobs=False, dry_run=False
    ).as_teardown(setups=translate)

    still_running = GeminiListBatchJobsOperator(task_id="still_running", states=["PENDING", "RUNNING"], ours_only=True)

    remove_old_jobs = GeminiCleanUpFilesOperator(
        task_id="remove_old_jobs", older_than=timedelta(days=30), files=False, dry_run="{{ params.dry_run }}"
    )

    translate >> still_running >> remove_old_jobs >> remove_uploads
