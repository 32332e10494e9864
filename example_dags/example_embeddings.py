"""
A vector for every review, as a column ``embedding`` of 32-bit floats in Parquet, which vector stores load as it is.

``EXAMPLE_DATA`` holds reviews.csv (id, product, text), ``EXAMPLE_OUTPUT`` is where the vectors land.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pendulum
from airflow.sdk import DAG, task

from airflow_gemini_batch.operators.embeddings import GeminiBatchEmbeddingsOperator

DATA = os.environ.get("EXAMPLE_DATA", str(Path(__file__).parent / "data"))
OUTPUT = os.environ.get("EXAMPLE_OUTPUT", "/tmp/gemini_batch_examples")

with DAG(
    dag_id="example_embeddings",
    schedule=None,
    start_date=pendulum.datetime(2026, 11, 1, tz="UTC"),
    catchup=False,
    tags=["gemini", "batch", "example"],
) as dag:
    embed = GeminiBatchEmbeddingsOperator(
        task_id="embed",
        model="gemini-embedding-001",
        source=DATA + "/reviews.csv",
        text="{text}",
        task_type="RETRIEVAL_DOCUMENT",
        title_column="product",
        dimensions=256,
        key="id",
        keep=["product"],
        output=OUTPUT + "/example_embeddings/{{ run_id }}",
        deferrable=True,
        poll_interval=float(os.environ.get("POLL_INTERVAL", "60")),
        retries=2,
    )

    @task
    def most_alike(manifest: dict[str, Any]) -> list[str]:
        """The two of the first hundred reviews whose vectors are nearest to each other."""
        from itertools import combinations
        from operator import mul

        import pyarrow.parquet as pq

        table = pq.read_table(manifest["files"], columns=["key", "embedding"], filters=[("status", "=", "ok")])
        vectors = {row["key"]: row["embedding"] for row in table.slice(0, 100).to_pylist()}
        return list(max(combinations(vectors, 2), key=lambda two: sum(map(mul, vectors[two[0]], vectors[two[1]]))))

    most_alike(embed.output)
