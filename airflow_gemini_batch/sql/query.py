"""``SqlQuery``: the rows of a SELECT as a source, one at a time. Knows drivers' cursors; knows nothing of requests."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any, ClassVar

from airflow_gemini_batch.exceptions import InvalidConfig, SourceUnreadable
from airflow_gemini_batch.sql.connecting import database, telling, tuple_cursor

FETCH_ROWS = 1000
"""Rows held at a time."""

CURSOR = "airflow_gemini_batch"


@dataclass(frozen=True)
class SqlQuery:
    """
    A SELECT as a source. Its rows stream from the server where the driver can, so a table of any size will do.

    :param sql: one statement that returns rows, or the name of a ``.sql`` file in the DAG's folder or its
        ``template_searchpath``. Templated.
    :param conn_id: any Airflow connection whose hook is a ``DbApiHook``. Templated.
    :param parameters: values for the placeholders in ``sql``, in the driver's style. Templated.
    """

    sql: str
    conn_id: str
    parameters: Mapping[str, Any] | Sequence[Any] | None = None

    template_fields: ClassVar[tuple[str, ...]] = ("sql", "conn_id", "parameters")

    def resolve(self, context: Any) -> SqlQuery:
        """
        Return the query with its templates rendered.

        Airflow calls this for a template field's value that has it, and puts the answer in the field. Its other way, to
        set the attributes of a nested object, would render a query that two tasks share only once.
        """
        task = context["task"]
        environment = task.get_template_env()
        sql = self.sql
        if sql.endswith(".sql"):
            sql = environment.loader.get_source(environment, sql)[0]
        return replace(
            self,
            sql=task.render_template(sql, context, environment),
            conn_id=task.render_template(self.conn_id, context, environment),
            parameters=task.render_template(self.parameters, context, environment),
        )

    def records(self) -> SqlRecords:
        """The rows; each pass over them asks the database anew."""
        return SqlRecords(self)


@dataclass(frozen=True)
class SqlRecords:
    """
    Rows of a query as mappings of column to value, read anew by every loop over them.

    Raised while reading: ``InvalidConfig`` (the connection, or a column name that comes twice) and ``SourceUnreadable``
    (the database refuses the query, with its words). A lost connection comes through as the driver's error, so that the
    task's retries are used.
    """

    query: SqlQuery

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        query = self.query
        if not query.sql.strip():
            raise InvalidConfig(f"SqlQuery on {query.conn_id!r}: the SQL is empty.")
        hook = database(query.conn_id)
        refused = f"The query on {query.conn_id!r} failed"
        with closing(hook.get_conn()) as connection, closing(_Cursor(connection)) as cursor:
            with telling(refused, SourceUnreadable):
                cursor.execute(hook.strip_sql_string(query.sql), query.parameters)
                rows = cursor.fetch()
            columns = _columns(cursor, query)
            while rows:
                for row in rows:
                    yield dict(zip(columns, map(_plain, row), strict=True))
                with telling(refused, SourceUnreadable):
                    rows = cursor.fetch()


class _Cursor:
    """A cursor that leaves the result on the server, where the driver has one."""

    def __init__(self, connection: Any) -> None:
        self._cursor = tuple_cursor(connection, name=CURSOR)

    def execute(self, sql: str, parameters: Any) -> None:
        # Without parameters a % in the SQL must stay as it is, and drivers see to that only when none are given.
        self._cursor.execute(*((sql,) if parameters is None else (sql, parameters)))

    def fetch(self) -> Sequence[Sequence[Any]]:
        """:raises SourceUnreadable: the statement gave no rows to fetch, or one holds a value Python has no type for."""
        try:
            rows: Sequence[Sequence[Any]] = self._cursor.fetchmany(FETCH_ROWS)
        except (ValueError, OverflowError) as e:
            raise SourceUnreadable(f"A value cannot be read: {e}. Cast its column to text in the query.") from e
        return rows

    @property
    def description(self) -> Sequence[Sequence[Any]] | None:
        """Set after the first fetch: psycopg2 knows no columns of a server-side cursor before."""
        described: Sequence[Sequence[Any]] | None = self._cursor.description
        return described

    def close(self) -> None:
        with suppress(Exception):  # the error that led here is the one to tell, and the connection is closed next
            self._cursor.close()


def _columns(cursor: _Cursor, query: SqlQuery) -> list[str]:
    if cursor.description is None:
        raise SourceUnreadable(f"The query on {query.conn_id!r} returns no rows; a source is a SELECT.")
    columns = [str(column[0]) for column in cursor.description]
    doubled = sorted({name for name in columns if columns.count(name) > 1})
    if doubled:
        raise InvalidConfig(
            f"The query on {query.conn_id!r} returns {', '.join(map(repr, doubled))} more than once. Give each column a name "
            "of its own with AS."
        )
    return columns


def _plain(value: Any) -> Any:
    """A database's value as one that can be put into a prompt and kept."""
    if value is None or isinstance(value, str | int | float | Decimal | bytes | date | time | timedelta):
        return value
    if isinstance(value, memoryview | bytearray):
        return bytes(value)
    if isinstance(value, Mapping):
        return {str(name): _json(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_json(one) for one in value]
    return str(value)


def _json(value: Any) -> Any:
    """The same for a value inside an array or a JSON document."""
    value = _plain(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, date | time):
        return value.isoformat()
    return str(value) if isinstance(value, Decimal | timedelta) else value
