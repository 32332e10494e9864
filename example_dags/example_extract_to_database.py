"""
Structured extraction into a database: what each review praises and blames, typed and checked, as a table's columns.

Needs a connection ``warehouse``. PostgreSQL (with ``apache-airflow-providers-postgres``)::

    AIRFLOW_CONN_WAREHOUSE='postgresql://user:password@host:5432/database'

or SQLite, as in the tests::

    AIRFLOW_CONN_WAREHOUSE='{"conn_type": "sqlite", "host": "/data/warehouse.db"}'

``EXAMPLE_DATA`` holds reviews.csv (id, product, text), ``EXAMPLE_OUTPUT`` is where the answers land before they are loaded.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import pendulum
from airflow.sdk import DAG
from pydantic import BaseModel, Field

from airflow_gemini_batch import SqlTable
from airflow_gemini_batch.operators.batch import GeminiBatchOperator

DATA = os.environ.get("EXAMPLE_DATA", str(Path(__file__).parent / "data"))
OUTPUT = os.environ.get("EXAMPLE_OUTPUT", "/tmp/gemini_batch_examples")


class Findings(BaseModel):
    mood: Literal["good", "bad", "mixed"]
    praised: list[str] = Field(description="what the customer likes, a few words each")
    blamed: list[str] = Field(description="what the customer does not like, a few words each")
    returned: bool | None = Field(default=None, description="whether it was sent back; null if the review does not say")


with DAG(
    dag_id="example_extract_to_database",
    schedule=None,
    start_date=pendulum.datetime(2026, 11, 1, tz="UTC"),
    catchup=False,
    tags=["gemini", "batch", "example"],
) as dag:
    extract = GeminiBatchOperator(
        task_id="extract",
        model="gemini-2.5-flash",
        source=DATA + "/reviews.csv",
        prompt="What does this review of a {product} say?\n\n{text}",
        output_schema=Findings,
        config={"temperature": 0, "thinking_config": {"thinking_budget": 0}},
        key="id",
        keep=["product"],
        table=SqlTable("review_findings", "warehouse"),  # made if it is not there; keys are replaced
        output=OUTPUT + "/example_extract_to_database/{{ run_id }}",
        deferrable=True,
        poll_interval=float(os.environ.get("POLL_INTERVAL", "60")),
        retries=2,
    )
