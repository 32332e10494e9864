"""Every example runs green, as it stands, through Airflow's own ``dag.test()``; a new one needs no new test."""

from __future__ import annotations

import csv
import importlib.util
import json
import shutil
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from .conftest import HOME

EXAMPLES = Path(__file__).resolve().parent.parent / "example_dags"
DATA = EXAMPLES / "data"


@pytest.fixture(scope="session")
def airflow_database() -> None:
    from airflow.utils.db import initdb

    initdb()


@pytest.fixture
def warehouse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The database of the connection ``warehouse``, with the reviews as a table."""
    path = tmp_path / "warehouse.db"
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps({"conn_type": "sqlite", "host": str(path)}))
    with closing(sqlite3.connect(path)) as connection, connection, (DATA / "reviews.csv").open(newline="") as f:
        connection.execute("CREATE TABLE reviews (id TEXT PRIMARY KEY, product TEXT, stars INTEGER, body TEXT)")
        connection.executemany("INSERT INTO reviews VALUES (:id, :product, :stars, :text)", csv.DictReader(f))
    return path


@pytest.fixture
def run_example(
    airflow_database: None, connection: str, warehouse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """Run one example to its end; returns the manifests of what it landed."""
    monkeypatch.setenv("EXAMPLE_DATA", str(DATA))
    monkeypatch.setenv("REVIEWS", str(DATA / "reviews.csv"))
    for name in ("EXAMPLE_OUTPUT", "REVIEW_SUMMARIES"):
        monkeypatch.setenv(name, str(tmp_path / "out"))
    monkeypatch.setenv("POLL_INTERVAL", "0.2")
    monkeypatch.setenv("PARTITIONED_REVIEWS", str(DATA / "reviews_by_stars"))

    def run(name: str) -> list[dict[str, Any]]:
        copy = HOME / "dags" / f"{name}.py"  # dag.test() wants the file inside the DAGs folder
        shutil.copy(EXAMPLES / copy.name, copy)
        spec = importlib.util.spec_from_file_location(name, copy)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)  # as Airflow does; Pydantic looks types up there
        spec.loader.exec_module(module)
        from airflow.sdk import DAG

        (dag,) = [value for value in vars(module).values() if isinstance(value, DAG) and value.dag_id == name]
        ended = dag.test()
        assert str(getattr(ended.state, "value", ended.state)) == "success"
        return [json.loads(path.read_bytes()) for path in (tmp_path / "out").glob("**/_gemini_batch/manifest.json")]

    return run


NOT_OURS = {"example_common_ai"}
"""Examples whose tables another provider writes."""


def test_all_examples_can_be_read_without_any_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of them is otherwise a banner of import errors on the first screen."""
    from airflow.sdk.definitions.decorators import TaskDecoratorCollection

    found = TaskDecoratorCollection.__getattr__

    def plain(self: Any, name: str) -> Any:
        if name.startswith("llm"):
            raise AttributeError(f"task decorator {name!r} not found")
        return found(self, name)

    monkeypatch.setattr(TaskDecoratorCollection, "__getattr__", plain)
    for path in sorted(EXAMPLES.glob("example_*.py")):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, path.stem, module)
        spec.loader.exec_module(module)


@pytest.mark.parametrize("name", sorted({path.stem for path in EXAMPLES.glob("example_*.py")} - NOT_OURS))
def test_the_example_runs_green_and_lands_every_row(name: str, run_example: Any) -> None:
    import pyarrow.parquet as pq

    manifests = run_example(name)
    assert manifests
    for manifest in manifests:
        rows = pq.read_table(manifest["files"]).to_pylist()
        assert len(rows) == len({(row["key"], row.get("prompt")) for row in rows}) == manifest["rows"] > 0
        assert {row["status"] for row in rows} == {"ok"}


def test_the_example_for_common_ai_runs_green_and_answers_every_prompt(run_example: Any, tmp_path: Path) -> None:
    pytest.importorskip("airflow.providers.common.ai", reason="needs the extra common-ai")
    run_example("example_common_ai")
    lines = [line for path in (tmp_path / "out").glob("**/*.jsonl") for line in path.read_text().splitlines()]
    statuses = {(row := json.loads(line))["index"]: row["status"] for line in lines}
    assert len(statuses) == len(lines) == 340
    assert set(statuses.values()) == {"success"}


def test_the_nightly_example_asks_about_every_review(run_example: Any) -> None:
    assert [manifest["rows"] for manifest in run_example("example_nightly_reviews")] == [340]


@pytest.mark.parametrize(
    ("name", "table", "rows"),
    [("example_extract_to_database", "review_findings", 340), ("example_sql_to_sql", "review_reasons", 100)],
)
def test_answers_of_the_example_are_in_the_database(
    name: str, table: str, rows: int, run_example: Any, warehouse: Path
) -> None:
    run_example(name)
    with closing(sqlite3.connect(warehouse)) as connection:
        (loaded,) = connection.execute(f"SELECT count(DISTINCT key) FROM {table} WHERE status = 'ok'").fetchone()
    assert loaded == rows
