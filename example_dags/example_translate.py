"""
Each text into several languages: one prompt per language, made from a mapping.

``EXAMPLE_DATA`` holds reviews.csv (id, language, text), ``EXAMPLE_OUTPUT`` is where the translations land: ``key`` is the
review, ``prompt`` the language, ``text`` the translation.
"""

from __future__ import annotations

import os
from pathlib import Path

import pendulum
from airflow.sdk import DAG

from airflow_gemini_batch.operators.batch import GeminiBatchOperator

DATA = os.environ.get("EXAMPLE_DATA", str(Path(__file__).parent / "data"))
OUTPUT = os.environ.get("EXAMPLE_OUTPUT", "/tmp/gemini_batch_examples")
LANGUAGES = {"en": "English", "fr": "French", "ja": "Japanese", "pt-BR": "Brazilian Portuguese"}

with DAG(
    dag_id="example_translate",
    schedule=None,
    start_date=pendulum.datetime(2026, 11, 1, tz="UTC"),
    catchup=False,
    tags=["gemini", "batch", "example"],
) as dag:
    translate = GeminiBatchOperator(
        task_id="translate",
        model="gemini-2.5-flash-lite",
        source=DATA + "/reviews.csv",
        prompt={
            code: f"Translate into {name}; answer with the translation only:\n\n{{text}}"
            for code, name in LANGUAGES.items()
        },
        system_instruction="Answer with the translation only. Keep the tone; leave names and numbers as they are.",
        config={"temperature": 0},
        key="id",
        keep=["language"],
        output=OUTPUT + "/example_translate/{{ run_id }}",
        deferrable=True,
        poll_interval=float(os.environ.get("POLL_INTERVAL", "60")),
        retries=2,
    )
