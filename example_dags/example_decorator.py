"""
``@task.gemini_batch``: a function says what is asked, for what can be said only in Python.

It is called once, when the run is planned, and not by a retry or after a wait; what it yields goes to storage row by row.
``EXAMPLE_DATA`` holds reviews.csv (id, product, stars, text), ``EXAMPLE_OUTPUT`` is where the answers land.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pendulum
from airflow.sdk import DAG, task

from airflow_gemini_batch.decorators.batch import gemini_batch

DATA = os.environ.get("EXAMPLE_DATA", str(Path(__file__).parent / "data"))
OUTPUT = os.environ.get("EXAMPLE_OUTPUT", "/tmp/gemini_batch_examples")

with DAG(
    dag_id="example_decorator",
    schedule=None,
    start_date=pendulum.datetime(2026, 11, 1, tz="UTC"),
    catchup=False,
    tags=["gemini", "batch", "example"],
) as dag:

    @task
    def languages() -> list[str]:
        return ["de", "fr"]

    # The same as ``@task.gemini_batch(...)``, spelled so that editors know its parameters.
    @gemini_batch(
        model="gemini-2.5-flash",
        prompt="Answer this customer in {language}, in two sentences:\n\n{text}",
        key="id",
        keep=["language"],
        output=OUTPUT + "/example_decorator/{{ run_id }}/{{ ti.map_index }}",
        deferrable=True,
        poll_interval=float(os.environ.get("POLL_INTERVAL", "60")),
        retries=2,
    )
    def answer(language: str) -> Iterator[dict[str, Any]]:
        with Path(DATA, "reviews.csv").open(newline="", encoding="utf-8") as f:
            for review in csv.DictReader(f):
                if review["language"] == language and int(review["stars"]) <= 3:
                    yield {"id": review["id"], "text": review["text"], "language": language}

    @task
    def count(manifests: list[dict[str, Any]]) -> int:
        return sum(manifest["counts"]["ok"] for manifest in manifests)

    count(answer.expand(language=languages()))  # type: ignore[arg-type]
