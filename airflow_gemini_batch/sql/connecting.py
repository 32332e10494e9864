"""A connection id becomes a hook; a database's errors become ours where a retry cannot help."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from airflow_gemini_batch.exceptions import GeminiBatchError, InvalidConfig

if TYPE_CHECKING:
    from airflow.providers.common.sql.hooks.sql import DbApiHook

FINAL_ERRORS = frozenset({"ProgrammingError", "DataError", "IntegrityError", "NotSupportedError"})
"""
The DB-API's names for what a retry cannot mend. ``OperationalError`` (no connection, deadlock, disk full) and the rest may
pass. Every driver has classes of its own under these names.
"""

SQLITE_ERROR = 1
"""SQLite's code for wrong SQL; Python gives it out as an ``OperationalError``, as it does "database is locked"."""


def database(conn_id: str) -> DbApiHook:
    """
    Return the hook of a connection.

    :raises InvalidConfig: there is no such connection, its provider is not installed, or it is not one of a database.
    """
    from airflow.providers.common.compat.sdk import AirflowException, AirflowNotFoundException, BaseHook
    from airflow.providers.common.sql.hooks.sql import DbApiHook

    try:
        connection: Any = BaseHook.get_connection(conn_id)
    except AirflowNotFoundException as e:
        raise InvalidConfig(f"There is no connection {conn_id!r}. Create one for the database.") from e
    kind = connection.conn_type
    try:
        hook = connection.get_hook()
    except (AirflowException, ImportError) as e:
        raise InvalidConfig(
            f"Connection {conn_id!r} is of type {kind!r}, which has no usable hook: {e}. Is its provider installed?"
        ) from e
    if not isinstance(hook, DbApiHook):
        raise InvalidConfig(
            f"Connection {conn_id!r} is of type {kind!r}, which is not a database's: {type(hook).__name__} is no DbApiHook."
        )
    return hook


def tuple_cursor(connection: Any, *, name: str | None = None) -> Any:
    """
    Return a cursor whose rows are tuples, also where the connection's extra asks for dictionaries or named tuples.

    :param name: leave the result on the server, where the driver can, under this name.
    """
    named = () if name is None else (name,)
    driver = type(connection).__module__.partition(".")[0]
    if driver == "psycopg2":
        return connection.cursor(*named, cursor_factory=import_module("psycopg2.extensions").cursor)
    if driver == "psycopg":
        return connection.cursor(*named, row_factory=import_module("psycopg.rows").tuple_row)
    if driver in ("MySQLdb", "pymysql"):
        cursors = import_module(f"{driver}.cursors")
        return connection.cursor(cursors.SSCursor if name else cursors.Cursor)
    return connection.cursor()


@contextmanager
def telling(what: str, error: type[GeminiBatchError]) -> Iterator[None]:
    """
    Raise ``error`` with the database's own words for what a retry cannot mend; anything else comes through as it is.

    :param what: begins the message: what was being done, and where.
    """
    try:
        yield
    except Exception as e:
        if _is_final(e):
            raise error(f"{what}: {' '.join(str(e).split())}") from e
        raise


def _is_final(e: Exception) -> bool:
    names = {kind.__name__ for kind in type(e).__mro__}
    if "DatabaseError" not in names:
        return False
    if type(e).__module__ == "sqlite3" and "OperationalError" in names:
        # Without a code it is Python's own, about a value that it cannot read.
        return getattr(e, "sqlite_errorcode", SQLITE_ERROR) == SQLITE_ERROR
    return bool(names & FINAL_ERRORS)
