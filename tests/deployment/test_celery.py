"""
Scale-out by Airflow's own means: the documentation's example, one task mapped over partitions, on two Celery workers, with
source and output on S3. Each partition is paid for once, whatever becomes of a worker.
"""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.deployment.celery import BUCKET, PLACE, WORKERS, CeleryDeployment, check_celery_available
from tests.deployment.conftest import need_a_deployment
from tests.deployment.rig import NotAvailable, wait_for

pytestmark = pytest.mark.services

EXAMPLES = Path(__file__).resolve().parents[2] / "example_dags"
EXAMPLE, TASK = "example_mapped_partitions", "summarise_partition"
DATA = EXAMPLES / "data" / "reviews_by_stars"
PARTITIONS = sorted(path.name for path in DATA.iterdir())


@pytest.fixture(scope="module")
def celery() -> Iterator[CeleryDeployment]:
    need_a_deployment()
    try:
        check_celery_available()
    except NotAvailable as e:
        if os.environ.get("CI"):
            pytest.fail(str(e))
        pytest.skip(str(e))
    variables = {
        "PARTITIONED_REVIEWS": f"{PLACE}/reviews", "REVIEW_SUMMARIES": f"{PLACE}/summaries",
        "GEMINI_MODEL": "gemini-2.5-pro", "POLL_INTERVAL": "1",
    }  # fmt: skip
    with CeleryDeployment(variables=variables) as deployment:
        for partition in PARTITIONS:
            body = (DATA / partition / "reviews.csv").read_bytes()
            deployment.s3().put_object(Bucket=BUCKET, Key=f"reviews/{partition}/reviews.csv", Body=body)
        deployment.write_dag(EXAMPLE, (EXAMPLES / f"{EXAMPLE}.py").read_text())
        yield deployment


def keys_of(partition: str) -> list[str]:
    with (DATA / partition / "reviews.csv").open(newline="", encoding="utf-8") as f:
        return sorted(row["id"] for row in csv.DictReader(f))


def states(celery: CeleryDeployment, run: str) -> list[str]:
    tasks = celery.api.tasks(EXAMPLE, run)
    return sorted(str(one["state"]) for one in tasks if one["task_id"] == TASK)


def wait_for_jobs(celery: CeleryDeployment, run: str, before: set[str]) -> list[dict[str, Any]]:
    """Wait until every partition has its job and its task has left the worker; returns the jobs."""

    def all_wait() -> list[dict[str, Any]]:
        jobs = [job for job in celery.gemini.jobs(EXAMPLE) if job["name"] not in before]
        celery.check_running()
        waiting = states(celery, run) == ["deferred"] * len(PARTITIONS)
        return jobs if waiting and len(jobs) >= len(PARTITIONS) else []

    return wait_for(all_wait, what="every partition's task is deferred", seconds=300)


def finish(celery: CeleryDeployment, run: str) -> None:
    celery.gemini.finish(*celery.gemini.jobs(EXAMPLE, ("RUNNING", "PENDING")))

    def over() -> str | None:
        celery.check_running()
        state = celery.api.run_state(EXAMPLE, run)
        return state if state in ("success", "failed") else None

    state = wait_for(over, what="the run is over", seconds=300)
    logs = {n: celery.api.log(EXAMPLE, run, TASK, 1, n)[-3000:] for n in range(len(PARTITIONS))}
    assert state == "success", f"{states(celery, run)}\n{logs}"


def every_partition_has_its_own_table_plan_and_ledger(celery: CeleryDeployment, run: str) -> None:
    for index, partition in enumerate(PARTITIONS):
        found = celery.objects(f"summaries/{run}/{index}")
        rows = [
            row
            for name, body in found.items()
            if name.startswith("part-")
            for row in pq.ParquetFile(io.BytesIO(body)).read().to_pylist()
        ]
        assert sorted(row["key"] for row in rows) == keys_of(partition)
        assert {(row["status"], f"stars={row['stars']}") for row in rows} == {("ok", partition)}
        plan = json.loads(found["_gemini_batch/plan-1.json"])
        assert plan["run"] == {"dag_id": EXAMPLE, "task_id": TASK, "run_id": run, "map_index": index}
        assert [name for name in found if name.endswith("r0-00000/job.json")] == [
            f"_gemini_batch/{plan['work']}/slots/r0-00000/job.json"
        ]
        assert "_gemini_batch/manifest.json" in found


def test_each_partition_is_a_run_of_its_own_and_both_workers_take_part(celery: CeleryDeployment) -> None:
    before = {job["name"] for job in celery.gemini.jobs(EXAMPLE)}
    celery.api.trigger(EXAMPLE, "whole")
    jobs = wait_for_jobs(celery, "whole", before)
    finish(celery, "whole")
    assert len(jobs) == len(celery.gemini.jobs(EXAMPLE)) - len(before) == len(PARTITIONS)
    every_partition_has_its_own_table_plan_and_ledger(celery, "whole")
    assert [name for name in WORKERS if celery.took_part(name, EXAMPLE)] == list(WORKERS)


def test_a_worker_that_is_lost_in_the_middle_costs_nothing_but_time(celery: CeleryDeployment) -> None:
    before = {job["name"] for job in celery.gemini.jobs(EXAMPLE)}
    celery.gemini.faults(delay_seconds={"create": 3.0})
    celery.api.trigger(EXAMPLE, "lost")
    wait_for(lambda: len(celery.gemini.jobs(EXAMPLE)) > len(before), what="a job is created", seconds=180, every=0.1)
    celery.lose("worker-1")
    time.sleep(1)
    celery.gemini.faults()
    jobs = wait_for_jobs(celery, "lost", before)
    assert len(jobs) == len(PARTITIONS), "one job for each slot"
    finish(celery, "lost")
    assert len(celery.gemini.jobs(EXAMPLE)) - len(before) == len(PARTITIONS)
    every_partition_has_its_own_table_plan_and_ledger(celery, "lost")
