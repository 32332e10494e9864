"""The cost is estimated before anything is paid: too much, and a cheaper way is taken. A budget holds whatever comes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pendulum
from airflow.sdk import DAG, task

from airflow_gemini_batch.core.budget import Budget
from airflow_gemini_batch.operators.batch import GeminiBatchOperator
from airflow_gemini_batch.operators.estimate import GeminiEstimateCostOperator

DATA = os.environ.get("EXAMPLE_DATA", str(Path(__file__).parent / "data"))
OUTPUT = os.environ.get("EXAMPLE_OUTPUT", "/tmp/gemini_batch_examples")
MOST_USD = 5.0

ASK: dict[str, Any] = {
    "source": DATA + "/reviews.csv",
    "prompt": "Which three words describe this review of a {product}?\n\n{text}",
    "config": {"max_output_tokens": 300, "thinking_config": {"thinking_budget": 0}},
    "key": "id",
}
SEND: dict[str, Any] = {
    "budget": Budget(max_cost_usd=MOST_USD),
    "output": OUTPUT + "/example_budget_and_branch/{{ run_id }}",
    "deferrable": True,
    "poll_interval": float(os.environ.get("POLL_INTERVAL", "60")),
    "retries": 2,
}

with DAG(
    dag_id="example_budget_and_branch",
    schedule=None,
    start_date=pendulum.datetime(2026, 11, 1, tz="UTC"),
    catchup=False,
    tags=["gemini", "batch", "example"],
) as dag:
    # The API counts the tokens of 20 rows, free of charge, so that the estimate is a good one.
    estimate = GeminiEstimateCostOperator(task_id="estimate", model="gemini-2.5-pro", count_tokens=20, **ASK)

    @task.branch
    def within_reason(estimate: dict[str, Any]) -> str:
        """An unknown price is None, and never taken for nothing."""
        usd = estimate["usd"]
        return "ask_pro" if usd is not None and usd <= MOST_USD else "ask_flash"

    ask_pro = GeminiBatchOperator(task_id="ask_pro", model="gemini-2.5-pro", **ASK, **SEND)
    ask_flash = GeminiBatchOperator(task_id="ask_flash", model="gemini-2.5-flash-lite", **ASK, **SEND)

    within_reason(estimate.output) >> [ask_pro, ask_flash]  # type: ignore[arg-type]
