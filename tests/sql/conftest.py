"""The databases the SQL tests run on: SQLite anywhere; PostgreSQL, through both of its drivers, where there is a server."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from airflow_gemini_batch.sql.connecting import database
from airflow_gemini_batch.sql.query import SqlQuery
from airflow_gemini_batch.sql.table import SqlTable, load

SERVER = os.environ.get("AIRFLOW_GEMINI_BATCH_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/postgres")

POSTGRES = [pytest.param(driver, marks=pytest.mark.services) for driver in ("psycopg", "psycopg2")]


@dataclass
class Db:
    """
    A database of one test.

    :param environment: what a child process needs to find it.
    """

    kind: str
    conn_id: str
    environment: dict[str, str]

    @property
    def is_postgres(self) -> bool:
        return self.kind != "sqlite"

    def run(self, *statements: str) -> None:
        with closing(database(self.conn_id).get_conn()) as connection:
            for statement in statements:
                connection.cursor().execute(statement)
            connection.commit()

    def rows(self, sql: str, parameters: Any = None) -> list[dict[str, Any]]:
        return [dict(row) for row in SqlQuery(sql, self.conn_id, parameters).records()]

    def key_runs(self, table: str = "reviews") -> list[tuple[str, str]]:
        """Key and run of every row."""
        return [tuple(row.values()) for row in self.rows(f'SELECT "key", "run" FROM {table} ORDER BY 1, 2')]

    def table(self, name: str = "reviews", **settings: Any) -> SqlTable:
        return SqlTable(name, self.conn_id, **settings)

    def load(self, rows: list[tuple[Any, ...]], *, run: str = "run 1", **settings: Any) -> int:
        """Load rows of ``key, text`` in batches of two."""
        columns = settings.pop("columns", {"key": "string", "text": "string"})
        keys = settings.pop("keys", ["key"])
        batches = (rows[n : n + 2] for n in range(0, len(rows), 2))
        return load(self.table(**settings), columns=columns, batches=batches, keys=keys, run=run)


@pytest.fixture(params=["sqlite", *POSTGRES])
def db(request: pytest.FixtureRequest, make_db: Callable[[str], Db]) -> Db:
    return make_db(request.param)


@pytest.fixture
def make_db(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Db]]:
    made: list[str] = []

    def make(kind: str) -> Db:
        if kind == "sqlite":
            connection: dict[str, Any] = {"conn_type": "sqlite", "host": str(tmp_path / "a.db")}
        else:
            from airflow.providers.postgres.hooks import postgres

            monkeypatch.setattr(postgres, "USE_PSYCOPG3", kind == "psycopg")
            made.append(f"agb_test_{uuid.uuid4().hex[:12]}")
            administer(f"CREATE DATABASE {made[-1]}")
            connection = postgres_connection(made[-1])
        environment = {"AIRFLOW_CONN_A_DATABASE": json.dumps(connection)}
        monkeypatch.setenv("AIRFLOW_CONN_A_DATABASE", environment["AIRFLOW_CONN_A_DATABASE"])
        return Db(kind, "a_database", environment)

    yield make
    for name in made:
        administer(f"DROP DATABASE {name} WITH (FORCE)")


def postgres_connection(name: str) -> dict[str, Any]:
    server = urlsplit(SERVER)
    return {
        "conn_type": "postgres", "host": server.hostname, "port": server.port, "login": server.username,
        "password": server.password, "schema": name,
    }  # fmt: skip


def administer(statement: str) -> None:
    import psycopg

    with psycopg.connect(SERVER, autocommit=True) as connection:
        connection.execute(statement)
