"""
Settings of each row's own: a value ``"{column}"`` in ``config`` is taken from the row, and a null leaves it to the model.

``EXAMPLE_OUTPUT`` is where the answers land.
"""

from __future__ import annotations

import os

import pendulum
from airflow.sdk import DAG

from airflow_gemini_batch.operators.batch import GeminiBatchOperator

OUTPUT = os.environ.get("EXAMPLE_OUTPUT", "/tmp/gemini_batch_examples")

with DAG(
    dag_id="example_settings_per_row",
    schedule=None,
    start_date=pendulum.datetime(2026, 11, 1, tz="UTC"),
    catchup=False,
    tags=["gemini", "batch", "example"],
) as dag:
    write = GeminiBatchOperator(
        task_id="write",
        model="gemini-2.5-flash",
        source=[
            {"id": "sober", "about": "rain", "heat": 0.0, "tone": "You write for engineers.", "thoughts": 0},
            {"id": "wild", "about": "rain", "heat": 1.8, "tone": "You write for children.", "thoughts": 512},
            {"id": "usual", "about": "rain", "heat": None, "tone": None, "thoughts": None},
        ],
        prompt="Write two lines about {about}.",
        config={
            "temperature": "{heat}",
            "system_instruction": "{tone}",
            "thinking_config": {"thinking_budget": "{thoughts}"},
            "max_output_tokens": 1000,
        },
        key="id",
        keep=["heat"],
        output=OUTPUT + "/example_settings_per_row/{{ run_id }}",
        deferrable=True,
        poll_interval=float(os.environ.get("POLL_INTERVAL", "60")),
        retries=2,
    )
