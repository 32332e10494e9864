"""SqlQuery: what a row looks like, what is refused, and that nothing is held."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from airflow_gemini_batch.core.columns import SeenTypes
from airflow_gemini_batch.core.requests import RequestBuilder, Spec
from airflow_gemini_batch.core.rows import RecordSource, read_rows
from airflow_gemini_batch.exceptions import InvalidConfig, SourceUnreadable
from airflow_gemini_batch.sql.query import FETCH_ROWS, SqlQuery

from .conftest import Db

NUMBERS = "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < {}) SELECT n FROM t"


def test_every_row_comes_once_under_its_columns_names(db: Db) -> None:
    db.run("CREATE TABLE r (id INTEGER, body TEXT)", "INSERT INTO r VALUES (1, 'one'), (2, NULL)")
    assert db.rows("SELECT id, body AS text FROM r ORDER BY id;") == [{"id": 1, "text": "one"}, {"id": 2, "text": None}]


def test_more_rows_than_are_fetched_at_once_all_come_in_order(db: Db) -> None:
    many = 2 * FETCH_ROWS + 7
    assert [row["n"] for row in db.rows(NUMBERS.format(many))] == list(range(1, many + 1))


def test_a_query_without_rows_is_an_empty_source(db: Db) -> None:
    assert db.rows("SELECT 1 AS one WHERE 1 = 0") == []


def test_rows_can_be_read_twice_so_that_a_duplicate_key_can_be_named(db: Db) -> None:
    records = SqlQuery("SELECT 1 AS id", db.conn_id).records()
    assert list(records) == list(records) == [{"id": 1}]


def test_parameters_are_bound_and_a_percent_sign_without_them_is_text(db: Db) -> None:
    place = "%s" if db.is_postgres else "?"
    named = "%(who)s" if db.is_postgres else ":who"
    cast = "CAST({} AS TEXT)"
    assert db.rows(f"SELECT {cast.format(place)} AS who", ["O'Brien"]) == [{"who": "O'Brien"}]
    assert db.rows(f"SELECT {cast.format(named)} AS who", {"who": "%s"}) == [{"who": "%s"}]
    assert db.rows("SELECT 1 AS hit WHERE 'abc' LIKE 'a%'") == [{"hit": 1}]


def test_two_columns_of_one_name_are_named(db: Db) -> None:
    with pytest.raises(InvalidConfig, match="returns 'id' more than once"):
        db.rows("SELECT 1 AS id, 2 AS id, 3 AS other")
    with pytest.raises(InvalidConfig, match="returns 'id' more than once"):
        db.rows("SELECT 1 AS id, 2 AS id WHERE 1 = 0")


@pytest.mark.parametrize(
    ("sql", "said"),
    [("SELEKT 1", "SELEKT"), ("SELECT * FROM nowhere", "nowhere"), ("SELECT no FROM (SELECT 1) t", "no")],
)
def test_wrong_sql_is_final_and_tells_the_databases_words(db: Db, sql: str, said: str) -> None:
    with pytest.raises(SourceUnreadable, match=said) as told:
        db.rows(sql)
    assert "'a_database'" in str(told.value)


@pytest.mark.services
@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_a_value_that_breaks_the_query_half_way_is_told(make_db: Any, driver: str) -> None:
    with pytest.raises(SourceUnreadable, match="division by zero"):
        make_db(driver).rows("SELECT 1 / (5000 - n) FROM generate_series(1, 9000) n")


def test_a_statement_without_rows_is_no_source(db: Db) -> None:
    with pytest.raises(SourceUnreadable):
        db.rows("CREATE TABLE made_by_a_source (id INTEGER)")


def test_empty_sql_is_named(db: Db) -> None:
    with pytest.raises(InvalidConfig, match="empty"):
        db.rows(" \n")


def test_a_connection_that_is_missing_or_no_database_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_GEMINI", json.dumps({"conn_type": "gemini_batch", "password": "k"}))
    monkeypatch.setenv("AIRFLOW_CONN_ODD", json.dumps({"conn_type": "odd"}))
    for conn_id, said in (
        ("nope", "no connection 'nope'"),
        ("gemini", "no DbApiHook"),
        ("odd", "its provider installed"),
    ):
        with pytest.raises(InvalidConfig, match=said):
            list(SqlQuery("SELECT 1", conn_id).records())


@pytest.mark.services
def test_a_server_that_cannot_be_reached_uses_the_tasks_retries(make_db: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import psycopg

    db = make_db("psycopg")
    unreachable = json.loads(db.environment["AIRFLOW_CONN_A_DATABASE"]) | {"port": 9}
    monkeypatch.setenv("AIRFLOW_CONN_A_DATABASE", json.dumps(unreachable))
    with pytest.raises(psycopg.OperationalError):
        db.rows("SELECT 1")


def test_a_locked_database_uses_the_tasks_retries(make_db: Any) -> None:
    import sqlite3

    db = make_db("sqlite")
    db.run("CREATE TABLE t (n INTEGER)")
    path = json.loads(db.environment["AIRFLOW_CONN_A_DATABASE"])["host"]
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            db.rows("SELECT * FROM t")
    finally:
        blocker.close()


@pytest.mark.services
@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_postgres_values_can_be_kept_and_put_into_a_prompt(make_db: Any, driver: str) -> None:
    db: Db = make_db(driver)
    query = SqlQuery(
        """SELECT 7::bigint AS whole, 1.50::numeric AS price, DATE '2024-02-29' AS day,
                  TIMESTAMP '2024-01-01 10:00' AS at, TIMESTAMPTZ '2024-01-01 10:00+02' AS at_utc, true AS yes,
                  '\\x00ff'::bytea AS raw, 'ab1d8d1e-1f38-4c7a-9d2e-0c2f5e7f3a11'::uuid AS id, ARRAY[1, 2] AS list,
                  ARRAY[1.5, 2] AS prices, '{"a": [1, null]}'::jsonb AS doc, INTERVAL '1 day' AS span,
                  TIME '10:00' AS clock, '10.0.0.1'::inet AS host, NULL AS nothing""",
        db.conn_id,
    )
    (row,) = query.records()
    assert row == {
        "whole": 7, "price": Decimal("1.50"), "day": date(2024, 2, 29), "at": datetime(2024, 1, 1, 10),
        "at_utc": datetime(2024, 1, 1, 8, tzinfo=UTC), "yes": True, "raw": b"\x00\xff",
        "id": "ab1d8d1e-1f38-4c7a-9d2e-0c2f5e7f3a11", "list": [1, 2], "prices": ["1.5", "2"], "doc": {"a": [1, None]},
        "span": timedelta(1), "clock": time(10), "host": "10.0.0.1", "nothing": None,
    }  # fmt: skip
    seen = SeenTypes(row)
    seen.add(row)
    kinds = seen.types()
    assert [kinds[name] for name in ("whole", "price", "at_utc", "raw", "span", "clock")] == [
        "int64", "decimal2", "timestamp_utc", "binary", "duration[us]", "time64[us]",
    ]  # fmt: skip
    texts = " ".join(f"{{{name}}}" for name in row if name != "raw")
    spec = Spec(model="m", prompt=texts, key="id", keep=tuple(row))
    (source_row,) = read_rows(RecordSource(query.records()), {})
    (request,) = RequestBuilder(spec, max_bytes=10_000).build(source_row)
    assert request.key == row["id"]


@pytest.mark.services
@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_a_connection_set_to_give_dictionaries_gives_the_same_rows(
    make_db: Any, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    db: Db = make_db(driver)
    connection = json.loads(db.environment["AIRFLOW_CONN_A_DATABASE"]) | {"extra": {"cursor": "dictcursor"}}
    monkeypatch.setenv("AIRFLOW_CONN_A_DATABASE", json.dumps(connection))
    assert db.rows("SELECT 1 AS a, 2 AS b") == [{"a": 1, "b": 2}]


@pytest.mark.services
@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_a_value_that_python_has_no_type_for_is_told(make_db: Any, driver: str) -> None:
    with pytest.raises(SourceUnreadable):
        make_db(driver).rows("SELECT TIMESTAMP '20000-01-01' AS far")


@pytest.mark.services
@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_rows_left_half_read_leave_no_connection_behind(make_db: Any, driver: str) -> None:
    db: Db = make_db(driver)
    records: Iterator[Any] = iter(SqlQuery("SELECT * FROM generate_series(1, 100000) n", db.conn_id).records())
    next(records)
    others = "datname = current_database() AND pid != pg_backend_pid()"
    open_now = f"SELECT count(*) AS n FROM pg_stat_activity WHERE {others}"
    assert db.rows(open_now) == [{"n": 1}]
    records.close()  # type: ignore[attr-defined]
    for _ in range(100):
        if db.rows(open_now) == [{"n": 0}]:
            return
    pytest.fail("the server still has the connection")


# Templates --------------------------------------------------------------------------------------------------


def operator(tmp_path: Path, source: Any) -> Any:
    """A task with a templated field, in a DAG whose file would be in ``tmp_path``."""
    from airflow.providers.common.compat.sdk import BaseOperator
    from airflow.sdk import DAG

    class Reader(BaseOperator):
        template_fields = ("source",)

        def __init__(self, *, source: Any, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.source = source

    with DAG("a_dag", schedule=None, template_searchpath=[str(tmp_path)]):
        return Reader(task_id=f"read_{id(source)}", source=source)


def rendered(task: Any, **context: Any) -> Any:
    task.render_template_fields({"task": task, **context})
    return task.source


def test_the_sql_the_connection_and_the_parameters_are_templated(tmp_path: Path) -> None:
    query = SqlQuery("SELECT '{{ ds }}'", "db_{{ team }}", {"day": "{{ ds }}"})
    task = operator(tmp_path, query)
    assert rendered(task, ds="2024-01-01", team="a") == SqlQuery("SELECT '2024-01-01'", "db_a", {"day": "2024-01-01"})
    # Two tasks may share it: what one rendered is not what the other finds.
    assert query.sql == "SELECT '{{ ds }}'"


def test_a_sql_file_is_read_and_its_templates_rendered(tmp_path: Path) -> None:
    (tmp_path / "reviews.sql").write_text("SELECT * FROM reviews\nWHERE day = '{{ ds }}'\n")
    found = rendered(operator(tmp_path, SqlQuery("reviews.sql", "db")), ds="2024-01-01")
    assert found.sql.split() == ["SELECT", "*", "FROM", "reviews", "WHERE", "day", "=", "'2024-01-01'"]


def test_a_missing_sql_file_is_named(tmp_path: Path) -> None:
    import jinja2

    with pytest.raises(jinja2.TemplateNotFound, match=r"nope\.sql"):
        rendered(operator(tmp_path, SqlQuery("nope.sql", "db")))


def test_naming_a_query_or_a_table_in_a_dag_file_loads_no_driver() -> None:
    code = (
        "import json, sys; from airflow_gemini_batch import SqlQuery, SqlTable; SqlQuery('SELECT 1', 'db'); "
        "SqlTable('t', 'db'); print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert not loaded & {"airflow", "pandas", "psycopg", "psycopg2", "sqlalchemy", "orjson", "pyarrow"}


# Memory -----------------------------------------------------------------------------------------------------

MEASURE = """
import json, sys
from pathlib import Path
if sys.argv[1] == "psycopg2":
    from airflow.providers.postgres.hooks import postgres
    postgres.USE_PSYCOPG3 = False
from airflow_gemini_batch.sql.query import SqlQuery
def peak():  # not ru_maxrss, which begins with the size of the process that started this one
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) // 1024
rows = 0
for row in SqlQuery(sys.argv[2], "a_database").records():
    rows += 1
    if rows == 1000:
        before = peak()
print(json.dumps({"rows": rows, "before": before, "peak": peak()}))
"""


@pytest.mark.slow
def test_a_million_rows_come_in_flat_memory(db: Db) -> None:
    body = "repeat('x', 500)" if db.is_postgres else "printf('%.*c', 500, 'x')"
    sql = NUMBERS.format(1_000_000).replace("SELECT n FROM", f"SELECT n, {body} AS body FROM")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, db.kind, sql], env=os.environ | db.environment, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    seen = types.SimpleNamespace(**json.loads(done.stdout.splitlines()[-1]))
    assert seen.rows == 1_000_000
    # MB. Held at once the rows would be 600 and more.
    assert seen.peak - seen.before < 50
    assert seen.peak < 300
