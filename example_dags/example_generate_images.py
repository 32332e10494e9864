"""
Images come out: each answer's picture is a file of its own, named by its row, in ``<output>/media/``.

``EXAMPLE_OUTPUT`` is where table and pictures land; the column ``media`` lists each row's files.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pendulum
from airflow.sdk import DAG, task

from airflow_gemini_batch.operators.batch import GeminiBatchOperator

OUTPUT = os.environ.get("EXAMPLE_OUTPUT", "/tmp/gemini_batch_examples")

with DAG(
    dag_id="example_generate_images",
    schedule=None,
    start_date=pendulum.datetime(2026, 11, 1, tz="UTC"),
    catchup=False,
    tags=["gemini", "batch", "example"],
) as dag:
    draw = GeminiBatchOperator(
        task_id="draw",
        model="gemini-2.5-flash-image",
        source=[{"letter": letter, "shape": shape} for letter, shape in (("A", "1:1"), ("B", "16:9"), ("C", "9:16"))],
        prompt="A big letter {letter} surrounded by animals whose names begin with {letter}, as a child would paint it",
        config={"response_modalities": ["TEXT", "IMAGE"], "image_config": {"aspect_ratio": "{shape}"}},
        key="letter",
        output=OUTPUT + "/example_generate_images/{{ run_id }}",
        deferrable=True,
        poll_interval=float(os.environ.get("POLL_INTERVAL", "60")),
        retries=2,
    )

    @task
    def count_bytes(manifest: dict[str, Any]) -> dict[str, int]:
        """The size of each row's first picture."""
        import pyarrow.parquet as pq

        rows = pq.read_table(manifest["files"], columns=["key", "media"]).to_pylist()
        return {row["key"]: Path(row["media"][0]).stat().st_size for row in rows if row["media"]}

    count_bytes(draw.output)
