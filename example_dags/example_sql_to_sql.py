"""
From a query into a table: the rows of a SELECT are asked about, and the answers stand beside them in the same database.

Needs a connection ``warehouse`` with a table ``reviews`` (id, product, stars, body). PostgreSQL (with
``apache-airflow-providers-postgres``; the rows stream from a server-side cursor)::

    AIRFLOW_CONN_WAREHOUSE='postgresql://user:password@host:5432/database'

or SQLite, as in the tests::

    AIRFLOW_CONN_WAREHOUSE='{"conn_type": "sqlite", "host": "/data/warehouse.db"}'

``EXAMPLE_OUTPUT`` is where the answers land before they are loaded.
"""

from __future__ import annotations

import os

import pendulum
from airflow.sdk import DAG

from airflow_gemini_batch import SqlQuery, SqlTable
from airflow_gemini_batch.operators.batch import GeminiBatchOperator

OUTPUT = os.environ.get("EXAMPLE_OUTPUT", "/tmp/gemini_batch_examples")

with DAG(
    dag_id="example_sql_to_sql",
    schedule=None,
    start_date=pendulum.datetime(2026, 11, 1, tz="UTC"),
    catchup=False,
    tags=["gemini", "batch", "example"],
) as dag:
    explain = GeminiBatchOperator(
        task_id="explain",
        model="gemini-2.5-flash",
        source=SqlQuery("SELECT id, product, stars, body FROM reviews WHERE stars <= 2 ORDER BY id", "warehouse"),
        prompt="Why did this customer give the {product} only {stars} of 5 stars?\n\n{body}",
        key="id",
        keep=["product", "stars"],
        table=SqlTable("review_reasons", "warehouse"),  # made if it is not there; keys are replaced
        output=OUTPUT + "/example_sql_to_sql/{{ run_id }}",
        deferrable=True,
        poll_interval=float(os.environ.get("POLL_INTERVAL", "60")),
        retries=2,
    )
