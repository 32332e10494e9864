"""
Images go in: each picture is uploaded once, described, and removed from the service again.

``EXAMPLE_DATA`` holds a directory ``pictures`` of .png, .jpg or .webp files; it may be on an object store, too
(``s3://bucket/shop``, with the provider installed). ``EXAMPLE_OUTPUT`` is where the descriptions land.
"""

from __future__ import annotations

import os
from pathlib import Path

import pendulum
from airflow.sdk import DAG, ObjectStoragePath, task

from airflow_gemini_batch.operators.batch import GeminiBatchOperator

DATA = os.environ.get("EXAMPLE_DATA", str(Path(__file__).parent / "data"))
OUTPUT = os.environ.get("EXAMPLE_OUTPUT", "/tmp/gemini_batch_examples")
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}

with DAG(
    dag_id="example_describe_images",
    schedule=None,
    start_date=pendulum.datetime(2026, 11, 1, tz="UTC"),
    catchup=False,
    tags=["gemini", "batch", "example"],
) as dag:

    @task
    def find_pictures() -> list[dict[str, str]]:
        """One row per picture: its name, and where it is."""
        pictures = [path for path in (ObjectStoragePath(DATA) / "pictures").iterdir() if path.suffix in SUFFIXES]
        return [{"name": path.stem, "picture": str(path)} for path in sorted(pictures, key=str)]

    describe = GeminiBatchOperator(
        task_id="describe",
        model="gemini-2.5-flash",
        source=find_pictures(),
        prompt="Describe this picture, called {name}, in one sentence for somebody who cannot see it.",
        media=["picture"],
        config={"media_resolution": "MEDIA_RESOLUTION_LOW"},
        key="name",
        keep=["picture"],
        output=OUTPUT + "/example_describe_images/{{ run_id }}",
        deferrable=True,
        poll_interval=float(os.environ.get("POLL_INTERVAL", "60")),
        retries=2,
    )
