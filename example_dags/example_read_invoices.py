"""
PDFs go in, typed rows come out: number, date and total of every invoice in a directory.

``EXAMPLE_DATA`` holds a directory ``invoices`` of .pdf files; it may be on an object store, too (``s3://bucket/accounts``,
with the provider installed). ``EXAMPLE_OUTPUT`` is where the rows land, with a struct ``output`` in Parquet.
"""

from __future__ import annotations

import os
from pathlib import Path

import pendulum
from airflow.sdk import DAG, ObjectStoragePath, task
from pydantic import BaseModel, Field

from airflow_gemini_batch.operators.batch import GeminiBatchOperator

DATA = os.environ.get("EXAMPLE_DATA", str(Path(__file__).parent / "data"))
OUTPUT = os.environ.get("EXAMPLE_OUTPUT", "/tmp/gemini_batch_examples")


class Invoice(BaseModel):
    number: str
    seller: str
    written_on: str = Field(description="as YYYY-MM-DD")
    total: float
    currency: str = Field(description="three letters, as EUR")


with DAG(
    dag_id="example_read_invoices",
    schedule=None,
    start_date=pendulum.datetime(2026, 11, 1, tz="UTC"),
    catchup=False,
    tags=["gemini", "batch", "example"],
) as dag:

    @task
    def find_invoices() -> list[dict[str, str]]:
        """One row per document: its name, and where it is."""
        documents = [path for path in (ObjectStoragePath(DATA) / "invoices").iterdir() if path.suffix == ".pdf"]
        return [{"name": path.stem, "document": str(path)} for path in sorted(documents, key=str)]

    read = GeminiBatchOperator(
        task_id="read",
        model="gemini-2.5-flash",
        source=find_invoices(),
        prompt="Read this invoice. Its file is called {name}.",
        media=["document"],
        output_schema=Invoice,
        config={"temperature": 0},
        key="name",
        output=OUTPUT + "/example_read_invoices/{{ run_id }}",
        deferrable=True,
        poll_interval=float(os.environ.get("POLL_INTERVAL", "60")),
        retries=2,
    )
