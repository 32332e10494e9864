"""``SqlTable``: results go into a database's table, whole or not at all. Knows modes and errors; knows no result columns."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from airflow_gemini_batch.exceptions import InvalidConfig, TableRefused
from airflow_gemini_batch.sql.connecting import database, telling

if TYPE_CHECKING:
    from airflow_gemini_batch.sql.databases import Batches, Database

log = logging.getLogger(__name__)

MODES = ("replace_keys", "append", "truncate")

PART_OF_NAME = re.compile(r'"((?:[^"]|"")+)"|([^".]+)')


@dataclass(frozen=True)
class SqlTable:
    """
    A table that results are loaded into, in one transaction. It is created if it is not there.

    Loading is safe to repeat in every mode: a column ``run`` says which run loaded a row, and a run's load replaces the rows
    that the same run loaded before.

    :param name: the table, with its schema if need be: ``"analytics.reviews"``. Taken letter by letter, so capitals count;
        a part with a dot in it is written in double quotes. Templated.
    :param conn_id: connection to PostgreSQL or SQLite, or to any other database whose hook is a ``DbApiHook``. Templated.
    :param mode: ``"replace_keys"`` (default) replaces rows that have the key of a new one, ``"append"`` keeps all rows of
        other runs, ``"truncate"`` keeps none.
    """

    name: str
    conn_id: str
    mode: Literal["replace_keys", "append", "truncate"] = "replace_keys"

    template_fields: ClassVar[tuple[str, ...]] = ("name", "conn_id")

    def resolve(self, context: Any) -> SqlTable:
        """Return the table with its templates rendered: Airflow's call, as in :meth:`SqlQuery.resolve`."""
        task = context["task"]
        return replace(
            self,
            name=task.render_template(self.name, context),
            conn_id=task.render_template(self.conn_id, context),
        )


def check(table: SqlTable, *, columns: Mapping[str, str], keys: Sequence[str]) -> None:
    """
    Say what would keep the rows from being loaded, as far as that can be known before there are any. Writes nothing.

    :param columns: as for :func:`load`; the kinds only tell which columns to add.
    :raises InvalidConfig: the connection, the name, the mode or a column's name is wrong, the table lacks columns, or the
        database would not take rows, e.g. for want of a schema or of rights.
    """
    would_refuse = f"The table {table.name} on {table.conn_id!r} cannot take the results"
    with _opened(table, columns, keys, run="") as opened, telling(would_refuse, InvalidConfig):
        opened.rehearse()


def load(table: SqlTable, *, columns: Mapping[str, str], batches: Batches, keys: Sequence[str], run: str) -> int:
    """
    Load rows in one transaction and return their number. A failure at any point leaves the table as it was.

    Holds one batch at a time. Text that the database cannot store (NUL on PostgreSQL, half a surrogate pair anywhere) gets
    U+FFFD in its place, and a warning tells how often.

    :param columns: column → kind: those of ``core.kinds.basic``, among them ``"json"`` (what JSON can hold), ``"floats"`` or
        ``"strings"`` (lists). Values are of the kind's Python type, or None.
    :param batches: rows in the order of ``columns``.
    :param keys: columns that identify a row; never null, and unique over all rows.
    :param run: goes into the column ``run``: the same for every attempt of one task instance.
    :raises InvalidConfig: as for :func:`check`.
    :raises TableRefused: the database refuses the rows or the table, with its words. A lost connection or a deadlock comes
        through as the driver's error, so that the task's retries are used.
    """
    with _opened(table, columns, keys, run) as opened:
        count = opened.write(batches)
        if replaced := opened.texts.replaced:
            log.warning(
                "%s: %s characters that it cannot store (NUL, half surrogate pairs) became U+FFFD", table.name, replaced
            )
        log.info("Loaded %s rows into %s (%s)", count, opened.target, table.mode)
        return count


@contextmanager
def _opened(table: SqlTable, columns: Mapping[str, str], keys: Sequence[str], run: str) -> Iterator[Database]:
    from airflow_gemini_batch.sql.databases import DATABASES, AnyOther, Load

    if table.mode not in MODES:
        raise InvalidConfig(f"SqlTable has mode={table.mode!r}; it takes {', '.join(map(repr, MODES))}.")
    load = Load(parts_of(table.name), columns, tuple(keys), table.mode, run)
    hook = database(table.conn_id)
    kinds = ", ".join(f"{name} {kind}" for name, kind in columns.items())
    refused = f"The table {table.name} on {table.conn_id!r} was left as it was: the database refuses ({kinds})"
    with closing(hook.get_conn()) as connection, telling(refused, TableRefused):
        try:
            yield DATABASES.get(hook.dialect_name, AnyOther)(hook, connection, load)
        except BaseException:
            # Closed with a statement that the error's traceback still holds, SQLite keeps its lock.
            with suppress(Exception):
                connection.rollback()
            raise


def parts_of(name: str) -> tuple[str, ...]:
    """
    Return a table's name and what stands before it, such as its schema.

    :raises InvalidConfig: the text names no table.
    """
    parts, rest = [], name.strip()
    while match := PART_OF_NAME.match(rest):
        parts.append(match[1].replace('""', '"') if match[1] else match[2])
        rest = rest[match.end() :]
        if not rest:
            return tuple(parts)
        if not rest.startswith("."):
            break
        rest = rest[1:]
    raise InvalidConfig(
        f'SqlTable has name={name!r}; write table or schema.table, and a part with a dot or quote in it as "...".'
    )
