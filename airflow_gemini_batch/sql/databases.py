"""
What differs between databases when a table is loaded: names, types, how rows travel, what keeps two loads apart.

Every load is one transaction. PostgreSQL and SQLite take the rows into a temporary table first, without a lock, and hold
one only while that is merged; it is the same lock for all loads of a table, so two of them can neither deadlock nor both
insert one key. Any other database deletes and inserts row by row in one transaction, with its own locks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_gemini_batch.exceptions import InvalidConfig
from airflow_gemini_batch.sql.connecting import tuple_cursor
from airflow_gemini_batch.sql.copying import Lines, Readable
from airflow_gemini_batch.sql.values import (
    UNSTORABLE,
    Cell,
    Texts,
    base,
    bound_cells,
    copy_cells,
    float_array,
    row_maker,
    sqlite_cells,
)

if TYPE_CHECKING:
    from airflow.providers.common.sql.hooks.sql import DbApiHook

RUN = "run"
"""Column that says which run loaded a row: what makes a second load of the same run replace the first."""

STAGED = "airflow_gemini_batch_rows"

VALUE = "\0"
"""Stands for a bound value in our SQL: no name can hold it, as one might hold ``?`` or ``%s``."""

Batches = Iterable[Sequence[tuple[Any, ...]]]


@dataclass(frozen=True)
class Load:
    """
    What goes where.

    :param name: the table's name in parts: schemas, then the table.
    :param columns: column → kind, without ``run``.
    """

    name: tuple[str, ...]
    columns: Mapping[str, str]
    keys: tuple[str, ...]
    mode: str
    run: str


class Database(ABC):
    """One connection and what is loaded through it. The caller commits nothing and closes the connection."""

    types: ClassVar[Mapping[str, str]]
    nul: ClassVar[bool] = True

    def __init__(self, hook: DbApiHook, connection: Any, load: Load) -> None:
        self.hook, self.connection, self.load = hook, connection, load
        self.cursor = tuple_cursor(connection)
        self.texts = Texts(nul=self.nul)
        self.target = ".".join(map(self.quote, load.name))
        self.columns = [self.quote(name) for name in load.columns]
        self.keys = [self.quote(name) for name in load.keys]
        self.run = self.quote(RUN)

    @abstractmethod
    def write(self, batches: Batches) -> int:
        """Load the rows in one transaction and return how many there were."""

    def check(self) -> bool:
        """
        Return whether the table is there.

        :raises InvalidConfig: it is, but lacks columns, or a name cannot be used.
        """
        names = [*self.load.columns, RUN]
        clash = [name for name in self.load.columns if self.same_name(name) == RUN]
        if clash:
            raise InvalidConfig(
                f"The column {clash[0]!r} cannot be loaded: {RUN!r} says which run loaded a row. Rename it in the source."
            )
        spelled: dict[str, str] = {}
        for name in names:
            if (other := spelled.setdefault(self.same_name(name), name)) != name:
                raise InvalidConfig(
                    f"The columns {other!r} and {name!r} are one to this database. Rename what keep names in the source."
                )
        for name in (*self.load.name, *names):
            self.check_name(name)
        present = self.present()
        if present is None:
            return False
        there = {self.same_name(name) for name in present}
        missing = [name for name in names if self.same_name(name) not in there]
        if missing:
            added = " ".join(
                f"ALTER TABLE {self.target} ADD COLUMN {self.quote(name)} {self.type_of(name)};" for name in missing
            )
            raise InvalidConfig(
                f"The table {self.target} lacks {', '.join(map(repr, missing))}. Name another table, or run: {added}"
            )
        return True

    def rehearse(self) -> None:
        """
        Have the database refuse now what it would refuse once there are rows: a schema that is not there, a name of its own,
        missing rights. Nothing of it stays when the connection is closed. In many databases a table that is created stays:
        there only the check is made.

        :raises InvalidConfig: as :meth:`check`.
        """
        self.check()

    def check_name(self, name: str) -> None:
        """:raises InvalidConfig: no table or column can have this name."""
        if not name or UNSTORABLE.search(name):
            raise InvalidConfig(f"{name!r} cannot be the name of a table or column.")

    def same_name(self, name: str) -> str:
        """Names that give the same answer are one column."""
        return name

    @abstractmethod
    def present(self) -> list[str] | None:
        """Names of the table's columns, None if there is no table."""

    def quote(self, name: str) -> str:
        return '"' + name.replace('"', '""') + '"'

    def type_of(self, name: str) -> str:
        kind = self.load.columns.get(name, "string")
        return self.types[base(kind)].format(scale=kind[7:])

    def create(self) -> None:
        self.execute(f"CREATE TABLE {self.target} ({self.definitions([*self.load.columns, RUN])})")

    def definitions(self, names: Iterable[str]) -> str:
        return ", ".join(f"{self.quote(name)} {self.type_of(name)}" for name in names)

    def execute(self, sql: str, *values: Any) -> Any:
        # Drivers look for placeholders only when there are values: only then a % in a name must be written twice.
        if values:
            self.cursor.execute(self.bound(sql), values)
        else:
            self.cursor.execute(sql)
        return self.cursor

    def bound(self, sql: str) -> str:
        place = self.hook.placeholder
        return (sql.replace("%", "%%") if place == "%s" else sql).replace(VALUE, place)

    def cells(self, by_kind: Mapping[str, Cell]) -> list[Cell]:
        return [by_kind[base(kind)] for kind in self.load.columns.values()]

    def remove_replaced(self, staged: str | None) -> None:
        """Delete what this load replaces: its own run's rows, and what the mode says."""
        if self.load.mode == "truncate":
            self.execute(f"DELETE FROM {self.target}")  # TRUNCATE would commit, or lock out readers
            return
        self.execute(f"DELETE FROM {self.target} WHERE {self.run} = {VALUE}", self.load.run)
        if staged and self.load.mode == "replace_keys":
            keys = ", ".join(self.keys)
            self.execute(f"DELETE FROM {self.target} WHERE ({keys}) IN (SELECT {keys} FROM {staged})")

    def merge(self, staged: str) -> None:
        self.remove_replaced(staged)
        self.execute(self.insertion(staged), self.load.run)

    def insertion(self, staged: str) -> str:
        columns = ", ".join(self.columns)
        return f"INSERT INTO {self.target} ({columns}, {self.run}) SELECT {columns}, {VALUE} FROM {staged}"


class Postgres(Database):
    types: ClassVar[Mapping[str, str]] = {
        "string": "TEXT", "int64": "BIGINT", "double": "DOUBLE PRECISION", "bool": "BOOLEAN", "date": "DATE",
        "timestamp": "TIMESTAMP", "timestamp_utc": "TIMESTAMPTZ", "binary": "BYTEA", "decimal": "NUMERIC",
        "json": "JSONB", "strings": "JSONB", "floats": "REAL[]",
    }  # fmt: skip
    nul = False

    def write(self, batches: Batches) -> int:
        staged = f"pg_temp.{STAGED}"
        # Whoever waited for the lock must see what the other load committed meanwhile; a connection may ask for more.
        self.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
        self.execute("SET LOCAL TIME ZONE 'UTC'")
        self._stage()
        count = self._copy(staged, batches)
        self.execute(f"ANALYZE {staged}")
        self._lock()
        if not self.check():
            self.create()
        self.merge(staged)
        self.connection.commit()
        return count

    def rehearse(self) -> None:
        self._stage()
        if not self.check():
            self._lock()
            if not self.check():
                self.create()
        # Explaining asks for the same rights, but touches no row and fires no trigger.
        self.execute(f"EXPLAIN {self.insertion(f'pg_temp.{STAGED}')}", "")
        self.execute(f"EXPLAIN DELETE FROM {self.target} WHERE {self.run} = {VALUE}", "")

    def _stage(self) -> None:
        if self.check():
            # Of the table's own types: COPY then names the line and column of a value that does not fit.
            columns = ", ".join(self.columns)
            self.execute(
                f"CREATE TEMP TABLE {STAGED} ON COMMIT DROP AS SELECT {columns} FROM {self.target} WITH NO DATA"
            )
        else:
            self.execute(f"CREATE TEMP TABLE {STAGED} ({self.definitions(self.load.columns)}) ON COMMIT DROP")

    def _lock(self) -> None:
        # Named by the table without its schema, which may be spelled or left out. Taken before the table is created:
        # CREATE TABLE IF NOT EXISTS fails when two do it at once.
        self.execute(
            f"SELECT pg_advisory_xact_lock(hashtextextended({VALUE}, 0))", f"airflow_gemini_batch {self.load.name[-1]}"
        )

    def check_name(self, name: str) -> None:
        super().check_name(name)
        if len(name.encode("utf-8", "replace")) > 63:
            raise InvalidConfig(f"{name!r} is too long for a name in PostgreSQL, which takes 63 bytes. Shorten it.")

    def present(self) -> list[str] | None:
        if self.execute(f"SELECT to_regclass({VALUE})::oid", self.target).fetchone()[0] is None:
            return None
        return [column[0] for column in self.execute(f"SELECT * FROM {self.target} WHERE FALSE").description]

    def create(self) -> None:
        super().create()
        # Deleting by key must not read the whole table. Not unique: in mode "append" every run has its own rows. Hash, as
        # a key longer than 2.7 kB does not fit into a B-tree; it takes one column, and the key alone picks enough.
        if self.keys:
            self.execute(f"CREATE INDEX ON {self.target} USING hash ({self.keys[0]})")
        self.execute(f"CREATE INDEX ON {self.target} ({self.run})")

    def _copy(self, staged: str, batches: Batches) -> int:
        lines = Lines(batches, row_maker(self._copy_cells(staged)))
        sql = f"COPY {staged} ({', '.join(self.columns)}) FROM STDIN WITH (ENCODING 'UTF8')"
        if hasattr(self.cursor, "copy"):  # psycopg 3
            with self.cursor.copy(sql) as copy:
                for chunk in lines:
                    copy.write(chunk)
            return lines.count
        source = Readable(lines)
        try:
            self.cursor.copy_expert(sql, source)
        except Exception:
            if source.failed is not None:  # psycopg2 says only that reading failed
                raise source.failed from None
            raise
        return lines.count

    def _copy_cells(self, staged: str) -> list[Cell]:
        found = self.execute(
            "SELECT attname FROM pg_attribute JOIN pg_type ON pg_type.oid = atttypid "
            f"WHERE attrelid = to_regclass({VALUE}) AND typcategory = 'A'",
            staged,
        )
        arrays = {name for (name,) in found.fetchall()}
        # In a column of the user's that is no array, JSONB or a vector type, a list is written as JSON.
        return [
            float_array if kind == "floats" and name in arrays else cell
            for (name, kind), cell in zip(self.load.columns.items(), self.cells(copy_cells(self.texts)), strict=True)
        ]


class Sqlite(Database):
    types: ClassVar[Mapping[str, str]] = {
        "string": "TEXT", "int64": "INTEGER", "double": "REAL", "bool": "BOOLEAN", "date": "DATE",
        "timestamp": "TIMESTAMP", "timestamp_utc": "TIMESTAMP", "binary": "BLOB", "decimal": "TEXT",
        "json": "TEXT", "strings": "TEXT", "floats": "TEXT",
    }  # fmt: skip
    BUSY_SECONDS = 60
    """How long to wait while another load merges its rows: eight seconds for a million that replace as many."""

    def write(self, batches: Batches) -> int:
        staged = f"temp.{STAGED}"
        self._prepare()
        self.check()
        # The temporary table is in a file of its own, so this transaction keeps nobody waiting.
        self.execute("BEGIN")
        self.execute(f"CREATE TEMP TABLE {STAGED} ({self.definitions(self.load.columns)})")
        insert = f"INSERT INTO {staged} VALUES ({', '.join('?' * len(self.columns))})"
        make = row_maker(self.cells(sqlite_cells(self.texts)))
        count = 0
        for batch in batches:
            self.cursor.executemany(insert, map(make, batch))
            count += len(batch)
        self.execute("COMMIT")
        self.execute("BEGIN IMMEDIATE")
        if not self.check():
            self.create()
        self.merge(staged)
        self.execute("COMMIT")
        return count

    def rehearse(self) -> None:
        self._prepare()
        if not self.check():
            self.execute("BEGIN IMMEDIATE")
            if not self.check():
                self.create()
            self.execute("ROLLBACK")

    def _prepare(self) -> None:
        self.connection.isolation_level = None  # transactions begin and end where it is written here
        self.execute(f"PRAGMA busy_timeout = {self.BUSY_SECONDS * 1000}")

    def same_name(self, name: str) -> str:
        return name.lower()

    def present(self) -> list[str] | None:
        *schema, table = self.load.name
        pragma = f"PRAGMA {''.join(self.quote(name) + '.' for name in schema)}table_info({self.quote(table)})"
        return [row[1] for row in self.execute(pragma).fetchall()] or None

    def create(self) -> None:
        super().create()
        *schema, table = self.load.name
        for name, columns in (("keys", self.keys), ("run", [self.run])):
            if columns:
                index = ".".join(map(self.quote, (*schema, f"{table}_{name}")))
                self.execute(f"CREATE INDEX IF NOT EXISTS {index} ON {self.quote(table)} ({', '.join(columns)})")


class AnyOther(Database):
    """A database we know only by the DB-API: types most have, row-wise statements, and no index."""

    types: ClassVar[Mapping[str, str]] = {
        "string": "TEXT", "int64": "BIGINT", "double": "DOUBLE PRECISION", "bool": "BOOLEAN", "date": "DATE",
        "timestamp": "TIMESTAMP", "timestamp_utc": "TIMESTAMP", "binary": "BLOB", "decimal": "DECIMAL(38, {scale})",
        "json": "TEXT", "strings": "TEXT", "floats": "TEXT",
    }  # fmt: skip

    def write(self, batches: Batches) -> int:
        if self.hook.supports_autocommit:
            self.hook.set_autocommit(self.connection, False)
        if not self.check():
            self.create()
        self.remove_replaced(None)
        make = row_maker(self.cells(bound_cells(self.texts)))
        names = list(self.load.columns)
        places = [names.index(name) for name in self.load.keys]
        matches = " AND ".join(f"{key} = {VALUE}" for key in self.keys)
        delete = self.bound(f"DELETE FROM {self.target} WHERE {matches}")
        columns = ", ".join([*self.columns, self.run])
        insert = self.bound(
            f"INSERT INTO {self.target} ({columns}) VALUES ({', '.join(VALUE for _ in (*self.columns, RUN))})"
        )
        count = 0
        for batch in batches:
            rows = [(*make(row), self.load.run) for row in batch]
            if self.load.mode == "replace_keys" and rows:
                self.cursor.executemany(delete, [tuple(row[place] for place in places) for row in rows])
            if rows:
                self.cursor.executemany(insert, rows)
            count += len(rows)
        self.connection.commit()
        return count

    def quote(self, name: str) -> str:
        form: str = self.hook.escape_word_format
        closing = form[-1]
        return form.format(name.replace(closing, closing * 2))

    def present(self) -> list[str] | None:
        try:
            return [column[0] for column in self.execute(f"SELECT * FROM {self.target} WHERE 1 = 0").description]
        except Exception as e:
            if "DatabaseError" not in {kind.__name__ for kind in type(e).__mro__}:
                raise
            # How a missing table is told differs from one to the next. If it is something else, CREATE TABLE will say.
            self.connection.rollback()
            return None


DATABASES: dict[str, type[Database]] = {"postgresql": Postgres, "sqlite": Sqlite}
"""By the hook's name for its dialect; ``AnyOther`` serves the rest."""
