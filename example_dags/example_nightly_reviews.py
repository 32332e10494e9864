"""Every night: last day's product reviews, one sentence about each, as a table that a downstream task reads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pendulum
from airflow.sdk import DAG, task

from airflow_gemini_batch.operators.batch import GeminiBatchOperator

REVIEWS = os.environ.get("REVIEWS", str(Path(__file__).parent / "data" / "reviews.csv"))
OUTPUT = os.environ.get("REVIEW_SUMMARIES", "/tmp/review_summaries")

with DAG(
    dag_id="example_nightly_reviews",
    schedule="@daily",
    start_date=pendulum.datetime(2026, 11, 1, tz="UTC"),
    catchup=False,
    tags=["gemini", "batch", "example"],
) as dag:
    summarise = GeminiBatchOperator(
        task_id="summarise_reviews",
        model="gemini-2.5-flash",
        source=REVIEWS,
        prompt="Summarise this review of a {product} in one sentence, in English:\n\n{text}",
        system_instruction="You are a careful editor. Answer with the sentence only.",
        config={"temperature": 0.2, "thinking_config": {"thinking_budget": 0}},
        key="id",
        keep=["product", "stars", "language"],
        output=OUTPUT + "/{{ run_id }}",
        deferrable=True,
        poll_interval=float(os.environ.get("POLL_INTERVAL", "60")),
        retries=2,
    )

    @task
    def products_with_trouble(manifest: dict[str, Any]) -> dict[str, int]:
        """Count the reviews with one or two stars per product, from the landed table."""
        import pyarrow.parquet as pq

        reviews = pq.read_table(manifest["output"], columns=["product", "stars", "status"]).to_pylist()
        bad: dict[str, int] = {}
        for review in reviews:
            if review["status"] == "ok" and int(review["stars"]) <= 2:
                bad[review["product"]] = bad.get(review["product"], 0) + 1
        return dict(sorted(bad.items(), key=lambda one: -one[1])[:5])

    products_with_trouble(summarise.output)
