from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_gemini_batch.core import storage
from airflow_gemini_batch.core.layout import OutputDirectory
from airflow_gemini_batch.core.manifest import SHOWN, Manifest
from airflow_gemini_batch.core.results import Status
from airflow_gemini_batch.core.usage import Usage
from airflow_gemini_batch.exceptions import CountsDoNotAddUp, StateTooNew, StateUnreadable

JOB = {"name": "batches/x", "slot": "r0-00000", "state": "SUCCEEDED", "requests": 3}
MANIFEST = Manifest(
    run={"dag_id": "d", "task_id": "t", "run_id": "r", "map_index": -1}, plan=1, output="/out",
    files=("/out/part-r0-00000.csv",),
    file_format="csv", model="m", rows=3, counts={"ok": 2, "error": 1}, rounds=1, jobs=(JOB,), usage=Usage(1, 2, 3, 4, 5),
    cost={"estimated_usd": None, "actual_usd": 0.5, "prices_as_of": "x"}, odd_lines={"corrupt": 0},
    started_at="2026-01-01T00:00:00Z", finished_at="2026-01-01T01:00:00Z", manifest="/out/_gemini_batch/manifest.json",
    failure=None,
)  # fmt: skip


@pytest.fixture
def output(tmp_path) -> OutputDirectory:
    return OutputDirectory(tmp_path)


@pytest.mark.parametrize("manifest", [MANIFEST, replace(MANIFEST, failure="Job x failed", files=(), jobs=())])
def test_a_manifest_reads_back_as_it_was_written(output, manifest):
    manifest.write(output)
    assert Manifest.load(output) == manifest


def test_a_run_that_is_not_over_has_no_manifest(output):
    assert Manifest.load(output) is None


@pytest.mark.parametrize(
    ("data", "error"), [(b"{", StateUnreadable), (b'{"kind":"manifest","version":9}', StateTooNew)]
)
def test_a_manifest_that_cannot_be_read_is_not_a_missing_one(output, data, error):
    storage.publish(output.manifest, data)
    with pytest.raises(error):
        Manifest.load(output)


@given(st.dictionaries(st.sampled_from([s.value for s in Status]), st.integers(0, 100)), st.integers(-3, 3))
def test_counts_that_are_not_the_rows_make_no_manifest(counts, off):
    rows = sum(counts.values())
    if off:
        with pytest.raises(CountsDoNotAddUp):
            replace(MANIFEST, counts=counts, rows=rows + off)
    else:
        assert replace(MANIFEST, counts=counts, rows=rows).rows == rows


def test_the_task_returns_small_plain_json_however_many_files_there_are():
    files = tuple(f"/out/part-r0-{n:05d}.parquet" for n in range(5000))
    manifest = replace(MANIFEST, files=files, jobs=(JOB,) * 5000)
    xcom = manifest.to_xcom()
    assert len(json.dumps(xcom)) < 10_000
    assert (xcom["files"], xcom["files_count"]) == (list(files[:SHOWN]), 5000)
    assert (len(xcom["jobs"]), xcom["jobs_count"]) == (SHOWN, 5000)


def test_the_tasks_value_has_the_documented_names():
    documented = {
        "version", "output", "files", "file_format", "model", "rows", "counts", "rounds", "jobs", "usage", "cost",
        "started_at",
        "finished_at",
    }  # fmt: skip
    assert documented <= MANIFEST.to_xcom().keys()
    assert json.loads(json.dumps(MANIFEST.to_xcom())) == MANIFEST.to_xcom()
