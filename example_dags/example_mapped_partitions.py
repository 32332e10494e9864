"""A batch per partition: Airflow maps the task over the partitions, and its workers share them among themselves."""

from __future__ import annotations

import os
from pathlib import Path

from airflow.sdk import DAG, ObjectStoragePath, task

from airflow_gemini_batch.operators.batch import GeminiBatchOperator

# With workers on several machines both are on an object store: "s3://my_s3_conn@lake/reviews".
REVIEWS = os.environ.get("PARTITIONED_REVIEWS", str(Path(__file__).parent / "data" / "reviews_by_stars"))
OUTPUT = os.environ.get("REVIEW_SUMMARIES", "/tmp/review_summaries")

with DAG(dag_id="example_mapped_partitions", schedule=None, tags=["gemini", "batch", "example"]) as dag:

    @task
    def partitions() -> list[str]:
        """List the partitions: the directories ``stars=1`` to ``stars=5``."""
        return sorted(f"{REVIEWS}/{path.name}" for path in ObjectStoragePath(REVIEWS).iterdir())

    GeminiBatchOperator.partial(
        task_id="summarise_partition",
        model=os.environ.get("GEMINI_MODEL", "gemini-2.5-flash"),
        prompt="Summarise this review of a {product}, with {stars} of 5 stars, in one sentence, in English:\n\n{text}",
        key="id",
        keep=["product", "stars"],
        # Each mapped task has a run, a table and a ledger of its own; its index tells them apart.
        output=OUTPUT + "/{{ run_id }}/{{ ti.map_index }}",
        deferrable=True,
        poll_interval=float(os.environ.get("POLL_INTERVAL", "60")),
        retries=2,
    ).expand(source=partitions())
