"""Every example runs green, as it stands, through Airflow's own ``dag.test()``; a new one needs no new test."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest

from .conftest import HOME

EXAMPLES = Path(__file__).resolve().parent.parent / "example_dags"


@pytest.fixture(scope="session")
def airflow_database() -> None:
    from airflow.utils.db import initdb

    initdb()


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("example_*.py")), ids=lambda path: path.stem)
def test_the_example_runs_green_and_lands_every_row(
    path: Path, airflow_database: None, connection: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setenv("REVIEW_SUMMARIES", str(tmp_path / "out"))
    monkeypatch.setenv("POLL_INTERVAL", "0.2")
    copy = HOME / "dags" / path.name  # dag.test() wants the file inside the DAGs folder
    shutil.copy(path, copy)
    monkeypatch.setenv("REVIEWS", str(EXAMPLES / "data/reviews.csv"))
    spec = importlib.util.spec_from_file_location(path.stem, copy)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    from airflow.sdk import DAG

    (dag,) = [value for value in vars(module).values() if isinstance(value, DAG)] or [module.summarise.dag]
    run = dag.test()
    assert str(getattr(run.state, "value", run.state)) == "success"

    import pyarrow.parquet as pq

    (output,) = (tmp_path / "out").iterdir()
    table = pq.read_table(output)
    assert table.num_rows == len(set(table["key"].to_pylist())) == 340
    assert set(table["status"].to_pylist()) == {"ok"}
