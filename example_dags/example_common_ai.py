"""
``@task.llm_batch`` of Airflow's common.ai provider, with a Gemini model: structured answers at the batch price.

Needs the extra ``common-ai``; without it this file has no DAG.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import pendulum
from airflow.sdk import DAG, task
from pydantic import BaseModel

REVIEWS = os.environ.get("REVIEWS", str(Path(__file__).parent / "data" / "reviews.csv"))
OUTPUT = os.environ.get("REVIEW_SUMMARIES", "/tmp/review_moods")


class Mood(BaseModel):
    """What is asked of every review."""

    mood: Literal["good", "bad", "mixed"]
    reason: str


if hasattr(task, "llm_batch"):  # the extra common-ai is installed
    with DAG(
        dag_id="example_common_ai",
        schedule="@daily",
        start_date=pendulum.datetime(2026, 11, 1, tz="UTC"),
        catchup=False,
        tags=["gemini", "batch", "example"],
    ) as dag:

        @task.llm_batch(
            llm_conn_id="gemini_batch_default",  # a connection of type pydanticai does as well
            model_id="google-gla:gemini-2.5-flash",
            result_path="file://" + OUTPUT + "/{{ run_id }}",
            system_prompt="You judge product reviews.",
            output_type=Mood,
            request_params={"temperature": 0, "thinking_config": {"thinking_budget": 0}},
            deferrable=True,
            retries=2,
        )
        def judge_reviews() -> list[str]:
            """Return the prompts; every try must return the same ones."""
            import csv

            with Path(REVIEWS).open(newline="", encoding="utf-8") as f:
                return [f"Review of a {row['product']}:\n\n{row['text']}" for row in csv.DictReader(f)]

        @task
        def count_moods(manifest: dict[str, Any]) -> dict[str, int]:
            """The XCom is a small manifest; the answers are on storage, a JSON line each, with the index of its prompt."""
            import json

            from airflow.sdk import ObjectStoragePath

            moods: dict[str, int] = {}
            with ObjectStoragePath(manifest["result_uri"]).open("r") as f:
                for row in map(json.loads, f):
                    mood = row["output"]["mood"] if row["status"] == "success" else row["status"]
                    moods[mood] = moods.get(mood, 0) + 1
            return moods

        count_moods(judge_reviews())
