"""Rows out of a database and answers into one, through the operator: nothing twice, whatever is repeated."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from datetime import date, time, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from pydantic import BaseModel

from airflow_gemini_batch import SqlQuery, SqlTable
from airflow_gemini_batch.emulator import Faults
from airflow_gemini_batch.exceptions import InvalidInput, TableRefused

from ..conftest import landed, task_context


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "shop.db"
    monkeypatch.setenv("AIRFLOW_CONN_SHOP", json.dumps({"conn_type": "sqlite", "host": str(path)}))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE reviews (id INTEGER, body TEXT, stars INTEGER, at TEXT)")
        rows = [(n, f'It\'s "review" {n}\nwith é and 製品', n % 5, "2026-11-20") for n in range(10)]
        connection.executemany("INSERT INTO reviews VALUES (?, ?, ?, ?)", rows)
    return path


def rows_of(database: Path, sql: str = "SELECT * FROM answers ORDER BY key") -> list[dict[str, Any]]:
    with closing(sqlite3.connect(database)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(sql)]


def ask(batch: Any, context: Any = None, **settings: Any) -> Any:
    defaults = {
        "source": SqlQuery("SELECT id, body, stars FROM reviews", "shop"), "prompt": "Sum up: {body}", "key": "id",
        "keep": ["stars"], "table": SqlTable("answers", "shop"),
    }  # fmt: skip
    return batch(context, **(defaults | settings))


@pytest.mark.parametrize("file_format", ["parquet", "jsonl", "csv"])
def test_a_query_goes_in_and_a_table_comes_out(batch, database, file_format):
    manifest = ask(batch, file_format=file_format)
    rows = rows_of(database)
    assert [row["key"] for row in rows] == [str(n) for n in range(10)]
    assert [row["stars"] for row in rows] == [n % 5 for n in range(10)]
    assert {row["run"] for row in rows} == {"a_dag.a_task of run run-1"}
    texts = {row["key"]: row["text"] for row in landed(manifest)}
    assert {row["key"]: row["text"] for row in rows} == texts
    assert all(isinstance(row["prompt_tokens"], int) for row in rows)


def test_a_task_that_is_cleared_loads_again_without_doubles(batch, emulator, database):
    ask(batch)
    ask(batch, task_context(max_tries=1))
    assert len(rows_of(database)) == 10
    assert emulator.jobs_created == 1


def test_a_table_that_has_lost_a_column_by_the_time_of_landing_is_mended_and_loaded_without_paying_again(
    batch, emulator, database
):
    ask(batch)
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("ALTER TABLE answers DROP COLUMN stars")
    with pytest.raises(AirflowFailException, match="clear the task to load them") as caught:
        ask(batch, task_context(max_tries=1))
    assert isinstance(caught.value, TableRefused)
    assert not isinstance(caught.value, InvalidInput)
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("ALTER TABLE answers ADD COLUMN stars INTEGER")
    ask(batch, task_context(max_tries=2))
    assert [row["stars"] for row in rows_of(database)] == [n % 5 for n in range(10)]
    assert emulator.jobs_created == 1


def test_the_next_run_replaces_the_keys_it_has_and_keeps_the_others(batch, database, tmp_path):
    ask(batch)
    ask(
        batch, task_context(run_id="run-2"), output=str(tmp_path / "out-2"), prompt="Other: {body}",
        source=SqlQuery("SELECT id, body, stars FROM reviews WHERE id >= ?", "shop", (7,)),
    )  # fmt: skip
    runs = {row["key"]: row["run"][-5:] for row in rows_of(database)}
    assert runs == {str(n): "run-2" if n >= 7 else "run-1" for n in range(10)}


def test_a_table_that_lacks_a_column_is_told_before_anything_is_sent(batch, emulator, database):
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("CREATE TABLE answers (key TEXT, status TEXT)")
    with pytest.raises(Exception, match="ALTER TABLE"):
        ask(batch)
    assert emulator.jobs_created == 0


def test_a_database_that_fails_after_landing_pays_nothing_more_on_the_retry(batch, emulator, database, monkeypatch):
    from airflow_gemini_batch.sql import table

    load, failures = table.load, iter([True])

    def fail_once(*args: Any, **kwargs: Any) -> int:
        if next(failures, False):
            raise ConnectionError("the database went away")
        return load(*args, **kwargs)

    monkeypatch.setattr(table, "load", fail_once)
    with pytest.raises(ConnectionError):
        ask(batch)
    assert not (database.parent / "out/_gemini_batch/manifest.json").exists()
    ask(batch, task_context(try_number=2))
    assert len(rows_of(database)) == 10
    assert emulator.jobs_created == 1


def test_rows_that_failed_are_in_the_table_with_their_reason(batch, emulator, database):
    emulator.faults = Faults(drop_keys={"3"})
    ask(batch, max_rounds=1)
    assert {row["key"]: row["status"] for row in rows_of(database) if row["status"] != "ok"} == {"3": "missing"}


class Mood(BaseModel):
    mood: str
    words: list[str]


def test_structured_answers_of_several_prompts_load_as_json(batch, database):
    ask(batch, prompt={"a": "A {body}", "b": "B {body}"}, output_schema=Mood)
    rows = rows_of(database, "SELECT key, prompt, output FROM answers ORDER BY CAST(key AS INTEGER), prompt")
    assert [(row["key"], row["prompt"]) for row in rows] == [(str(n), p) for n in range(10) for p in "ab"]
    assert all(isinstance(Mood.model_validate_json(row["output"]), Mood) for row in rows)


def test_kept_values_keep_their_types_on_the_way(batch, database):
    rows = [{"id": 1, "day": date(2026, 1, 2), "on": True, "price": 1.5, "tags": ["a"]}]
    for file_format in ("parquet", "jsonl", "csv"):
        ask(
            batch, task_context(run_id=file_format), source=rows, prompt="{id}", keep=["day", "on", "price", "tags"],
            file_format=file_format, output=str(database.parent / file_format),
        )  # fmt: skip
        (row,) = rows_of(database)
        assert (row["day"], row["on"], row["price"], json.loads(row["tags"])) == ("2026-01-02", 1, 1.5, ["a"])


@pytest.mark.parametrize("file_format", ["parquet", "jsonl", "csv"])
def test_nested_values_times_and_spans_load_alike_from_all_formats(batch, database, tmp_path, file_format):
    columns = {
        "tags": pa.array([["a", None], None]), "box": pa.array([{"n": 1, "at": date(2026, 1, 2)}, None]),
        "hour": pa.array([time(1, 2, 3), None]), "took": pa.array([timedelta(1), None]),
        "large": pa.array([2**64 - 1, None], pa.uint64()),
    }  # fmt: skip
    pq.write_table(pa.table({"id": ["a", "b"], **columns}), tmp_path / "in.parquet")
    ask(batch, source=str(tmp_path / "in.parquet"), prompt="{id}", keep=list(columns), file_format=file_format)
    one, other = rows_of(database)
    assert [one[name] for name in columns] == [
        '["a",null]', '{"n":1,"at":"2026-01-02"}', "01:02:03", "P1DT0H0M0S", "18446744073709551615",
    ]  # fmt: skip
    assert [other[name] for name in columns] == [None] * 5


def test_a_kept_column_called_run_is_refused(batch, emulator, database):
    with pytest.raises(Exception, match="keep names 'run'"):
        ask(batch, source=[{"id": 1, "run": 2}], prompt="{id}", keep=["run"])
    assert emulator.jobs_created == 0
