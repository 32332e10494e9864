"""What Airflow keeps in its database for a run stays small, whatever the batch's size, also for mapped tasks."""

from __future__ import annotations

import json
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred
from airflow.sdk import DAG
from pydantic import BaseModel

from airflow_gemini_batch.core.limits import API_ACTIVE_JOBS, Limits
from airflow_gemini_batch.core.manifest import Manifest
from airflow_gemini_batch.core.results import Status
from airflow_gemini_batch.core.usage import Usage
from airflow_gemini_batch.core.waiting import Outcome, Wait, to_event
from airflow_gemini_batch.operators.batch import GeminiBatchOperator
from airflow_gemini_batch.sensors.batch import GeminiBatchJobSensor
from airflow_gemini_batch.sql.table import SqlTable
from airflow_gemini_batch.triggers.batch import GeminiBatchTrigger

MOST = 16_000
OUTPUT = (
    "s3://a_connection_with_a_name@a-bucket-of-a-data-lake/team/project/table/ds=2026-11-20/manual__2026-11-20T10:00:00"
)
JOB = "batches/abcdefghijklmnopqrstuvwxyz0123456789"


class Answer(BaseModel):
    mood: str


def test_the_task_value_of_three_thousand_slots_is_small() -> None:
    slots = [f"r0-{n:05}" for n in range(3000)]
    manifest = Manifest(
        run={"dag_id": "a" * 100, "task_id": "b" * 100, "run_id": "manual__2026-11-20T10:00:00", "map_index": -1},
        plan=1, output=OUTPUT, files=tuple(f"{OUTPUT}/part-{slot}.parquet" for slot in slots), file_format="parquet",
        model="gemini-2.5-flash", rows=3000, counts={status.value: 0 for status in Status} | {"ok": 3000}, rounds=1,
        jobs=tuple({"name": JOB, "slot": slot, "state": "SUCCEEDED", "requests": 50_000} for slot in slots),
        usage=Usage(), cost={"estimated_usd": 12.5, "actual_usd": 12.5, "prices_as_of": "genai-prices 0.2.3"},
        odd_lines={"corrupt": 0, "unknown_key": 0, "duplicate": 0}, started_at="2026-11-20T10:00:00Z",
        finished_at="2026-11-21T10:00:00Z", manifest=f"{OUTPUT}/_gemini_batch/manifest.json",
    )  # fmt: skip
    value = manifest.to_xcom()
    assert len(json.dumps(value)) < MOST
    assert (value["files_count"], value["jobs_count"]) == (3000, 3000)


def test_what_a_wait_for_as_many_jobs_as_may_run_keeps_is_small() -> None:
    jobs = {f"{JOB[:-3]}{n:03}": 1_900_000_000.123456 + n for n in range(API_ACTIVE_JOBS)}
    trigger = GeminiBatchTrigger(jobs=jobs, gemini_conn_id="gemini_batch_default")
    assert len(json.dumps(trigger.serialize())) < MOST
    ended = [Outcome(job, "ended", "PARTIALLY_SUCCEEDED") for job in jobs]
    assert len(json.dumps(to_event(ended))) < MOST


def test_what_a_sensor_of_a_thousand_jobs_keeps_while_it_waits_is_small() -> None:
    sensor = GeminiBatchJobSensor(task_id="wait", job=[f"{JOB[:-4]}{n:04}" for n in range(1000)], deferrable=True)
    with pytest.raises(TaskDeferred) as deferred:
        sensor._defer(tuple(Wait(job, 1_900_000_000.123456) for job in sensor.job), 1_900_000_000.123456)
    assert len(json.dumps([deferred.value.trigger.serialize(), deferred.value.kwargs])) < MOST


def test_a_list_of_a_hundred_thousand_rows_leaves_little_in_the_rendered_fields() -> None:
    from airflow.serialization.helpers import serialize_template_field

    rows = [{"id": n, "text": f"a review that is not short at all, number {n}"} for n in range(100_000)]
    with DAG("large", schedule=None):
        operator = GeminiBatchOperator(
            task_id="ask", model="gemini-2.5-flash", source=rows, prompt="Say {text}", output=OUTPUT, key="id"
        )
    operator.render_template_fields({})
    assert operator.source == rows
    rendered = {name: serialize_template_field(getattr(operator, name), name) for name in operator.template_fields}
    assert len(json.dumps(rendered)) < MOST


def test_settings_that_are_objects_go_through_partial_and_reach_each_mapped_task() -> None:
    dag = DAG("mapped", schedule=None)
    settings: dict[str, Any] = {
        "limits": Limits(requests_per_job=3), "table": SqlTable("answers", "a_database"), "output_schema": Answer,
        "keep": ["a"],
    }  # fmt: skip
    with dag:
        mapped = GeminiBatchOperator.partial(
            task_id="ask", model="gemini-2.5-flash", prompt="{a}", output="/out/{{ ti.map_index }}", **settings
        ).expand(source=[["first"], ["second"]])
    serialized = serialize(dag)
    assert "Limits(requests_per_job=3" in json.dumps(serialized), "the database has it as text; workers parse the file"
    one = mapped.unmap({"source": ["first"]})
    assert {name: getattr(one, name) for name in settings} == settings
    assert one.output_uri == "/out/{{ ti.map_index }}"


def serialize(dag: DAG) -> Any:
    try:
        from airflow.serialization.serialized_objects import DagSerialization as Serializer
    except ImportError:  # Airflow 3.1
        from airflow.serialization.serialized_objects import SerializedDAG as Serializer
    return json.loads(json.dumps(Serializer.to_dict(dag)))
