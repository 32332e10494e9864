"""SqlTable: what is in the table after a load, a second one, a broken one, and two at once."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from airflow_gemini_batch.exceptions import InvalidConfig, TableRefused
from airflow_gemini_batch.sql import databases
from airflow_gemini_batch.sql.table import SqlTable, check, load

from .conftest import Db

ABC = [("a", "one"), ("b", "two"), ("c", "three")]
TEXTS = 'SELECT "key", "text" FROM reviews ORDER BY 1'


def texts(db: Db) -> dict[str, Any]:
    return {row["key"]: row["text"] for row in db.rows(TEXTS)}


# One load ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["replace_keys", "append", "truncate"])
def test_the_first_load_makes_the_table(db: Db, mode: str) -> None:
    assert db.load(ABC, mode=mode) == 3
    assert texts(db) == dict(ABC)
    assert db.key_runs() == [("a", "run 1"), ("b", "run 1"), ("c", "run 1")]


@pytest.mark.parametrize("mode", ["replace_keys", "append", "truncate"])
def test_a_load_without_rows_makes_the_table_all_the_same(db: Db, mode: str) -> None:
    assert db.load([], mode=mode) == 0
    assert db.key_runs() == []


def test_the_columns_have_fitting_types(db: Db) -> None:
    kinds = (
        "string", "int64", "double", "bool", "date", "timestamp", "timestamp_utc", "binary", "decimal2", "json", "strings",
        "floats",
    )  # fmt: skip
    db.load([], columns={"key": "string"} | {f"a_{kind}": kind for kind in kinds})
    if not db.is_postgres:
        found = [row["type"] for row in db.rows("SELECT type FROM pragma_table_info('reviews')")]
        assert found == [
            "TEXT", "TEXT", "INTEGER", "REAL", "BOOLEAN", "DATE", "TIMESTAMP", "TIMESTAMP", "BLOB", "TEXT", "TEXT", "TEXT",
            "TEXT", "TEXT",
        ]  # fmt: skip
        return
    sql = "SELECT format_type(atttypid, atttypmod) t FROM pg_attribute WHERE attrelid = 'reviews'::regclass AND attnum > 0"
    assert [row["t"] for row in db.rows(sql)] == [
        "text", "text", "bigint", "double precision", "boolean", "date", "timestamp without time zone",
        "timestamp with time zone", "bytea", "numeric", "jsonb", "jsonb", "real[]", "text",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name", ["Order", 'a "quoted" one', "50% off, %s", "a.b", "naïve 列", "tab\there", "x?{y}", "it's"]
)
def test_a_column_may_have_any_name(db: Db, name: str) -> None:
    for run in ("run 1", "run 2"):
        db.load([("k", 1)], columns={"key": "string", name: "int64"}, run=run)
        db.load([("k", 1)], columns={name: "string", "n": "int64"}, keys=[name], name="by_name", run=run)
    assert db.rows("SELECT * FROM reviews") == [{"key": "k", name: 1, "run": "run 2"}]
    assert db.rows("SELECT * FROM by_name") == [{name: "k", "n": 1, "run": "run 2"}]


def test_a_table_may_have_a_schema_and_any_name(db: Db) -> None:
    schema = "main"
    if db.is_postgres:
        schema = "analytics"
        db.run("CREATE SCHEMA analytics")
    for written, quoted in (("Reviews", '"Reviews"'), ('"v1.2 50%"', '"v1.2 50%"'), ('"a""b"', '"a""b"')):
        for run in ("run 1", "run 2"):
            db.load(ABC, name=f"{schema}.{written}", run=run)
        assert len(db.key_runs(f"{schema}.{quoted}")) == 3


@pytest.mark.parametrize("name", ["", " ", "a..b", ".a", "a.", '"a', 'a"b', '""'])
def test_a_name_that_names_no_table_is_refused(db: Db, name: str) -> None:
    with pytest.raises(InvalidConfig, match="SqlTable has name="):
        db.load(ABC, name=name)


# Repeating --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["replace_keys", "append", "truncate"])
def test_a_load_that_is_repeated_leaves_each_row_once(db: Db, mode: str) -> None:
    db.load([("z", "old")], mode=mode, run="run 0")
    for _ in range(3):
        db.load(ABC, mode=mode)
    others = [] if mode == "truncate" else [("z", "run 0")]
    assert db.key_runs() == [("a", "run 1"), ("b", "run 1"), ("c", "run 1"), *others]


@pytest.mark.parametrize("mode", ["replace_keys", "append", "truncate"])
def test_a_runs_second_load_replaces_its_first_also_where_a_row_is_gone(db: Db, mode: str) -> None:
    db.load(ABC, mode=mode)
    db.load([("a", "new")], mode=mode)
    assert texts(db) == {"a": "new"}


def test_replace_keys_replaces_the_rows_of_other_runs_with_the_same_key(db: Db) -> None:
    db.load(ABC, run="run 1")
    db.load([("b", "new"), ("d", "four")], run="run 2")
    assert db.key_runs() == [("a", "run 1"), ("b", "run 2"), ("c", "run 1"), ("d", "run 2")]
    assert texts(db)["b"] == "new"


def test_replace_keys_goes_by_key_and_prompt_where_there_are_several(db: Db) -> None:
    columns, keys = {"key": "string", "prompt": "string", "text": "string"}, ["key", "prompt"]
    db.load([("a", "p", "1"), ("a", "q", "2"), ("b", "p", "3")], columns=columns, keys=keys, run="run 1")
    db.load([("a", "q", "new")], columns=columns, keys=keys, run="run 2")
    found = db.rows('SELECT "key", "prompt", "text" FROM reviews ORDER BY 1, 2')
    assert [tuple(row.values()) for row in found] == [("a", "p", "1"), ("a", "q", "new"), ("b", "p", "3")]


def test_append_keeps_the_same_key_of_other_runs(db: Db) -> None:
    db.load(ABC[:1], mode="append", run="run 1")
    db.load(ABC[:1], mode="append", run="run 2")
    assert db.key_runs() == [("a", "run 1"), ("a", "run 2")]


def test_truncate_keeps_no_other_row(db: Db) -> None:
    db.load(ABC, mode="append", run="run 1")
    db.load([("z", "last")], mode="truncate", run="run 2")
    assert db.key_runs() == [("z", "run 2")]


def test_a_key_too_long_for_an_index_is_loaded(db: Db) -> None:
    key = "".join(chr(0x4E00 + n * 7919 % 20000) for n in range(10_000))
    db.load([(key, "long")])
    db.load([(key, "longer")], run="run 2")
    assert texts(db) == {key: "longer"}


def test_deleting_by_key_does_not_read_the_whole_table(db: Db) -> None:
    db.load([(str(n), "x") for n in range(5000)])
    if not db.is_postgres:
        (plan, *_) = db.rows("EXPLAIN QUERY PLAN DELETE FROM reviews WHERE (\"key\") IN (SELECT 'a')")
        assert "reviews_keys" in plan["detail"]
        return
    found = db.rows("SELECT indexdef FROM pg_indexes WHERE tablename = 'reviews'")
    assert {row["indexdef"].partition("USING ")[2] for row in found} == {"btree (run)", "hash (key)"}


# Breaking ---------------------------------------------------------------------------------------------------


class Broken(Exception):
    pass


def breaking_after(rows: int) -> Iterator[list[tuple[Any, ...]]]:
    for n in range(rows):
        yield [(str(n), "new")]
    raise Broken


@pytest.mark.parametrize("mode", ["replace_keys", "append", "truncate"])
@pytest.mark.parametrize("after", [0, 3])
def test_rows_that_break_off_leave_the_table_as_it_was(db: Db, mode: str, after: int) -> None:
    db.load([("0", "old")], run="run 0")
    with pytest.raises(Broken):
        load(
            db.table(mode=mode), columns={"key": "string", "text": "string"}, batches=breaking_after(after), keys=["key"],
            run="run 1",
        )  # fmt: skip
    assert texts(db) == {"0": "old"}


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("mode", ["replace_keys", "append", "truncate"])
def test_an_end_at_any_statement_leaves_all_or_nothing_and_the_retry_completes_it(
    db: Db, mode: str, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {"b": "old", "z": "old"} if there else None
    after = dict(ABC) | ({"z": "old"} if there and mode != "truncate" else {})
    execute = databases.Database.execute
    statements = 0

    def counting(self: Any, sql: str, *values: Any) -> Any:
        nonlocal statements
        statements += 1
        if statements == ends_at:
            raise Broken
        return execute(self, sql, *values)

    for ends_at in range(1, 50):
        db.run("DROP TABLE IF EXISTS reviews")
        if there:
            db.load([("b", "old")], run="run 1", mode="append")
            db.load([("z", "old")], run="run 0", mode="append")
        statements = 0
        with monkeypatch.context() as patched:
            patched.setattr(databases.Database, "execute", counting)
            try:
                db.load(ABC, mode=mode)
            except Broken:
                exists = bool(db.rows(TABLES[db.is_postgres]))
                assert (texts(db) if exists else None) == before
            else:
                assert statements < ends_at
                break
        db.load(ABC, mode=mode)
        assert texts(db) == after
        assert len(db.key_runs()) == len(after)
    assert texts(db) == after
    assert ends_at > 10


TABLES = {
    True: "SELECT tablename FROM pg_tables WHERE tablename = 'reviews'",
    False: "SELECT name FROM sqlite_master WHERE name = 'reviews'",
}

KILLED = """
import os, signal, sys
if sys.argv[1] == "psycopg2":
    from airflow.providers.postgres.hooks import postgres
    postgres.USE_PSYCOPG3 = False
from airflow_gemini_batch.sql import databases
from airflow_gemini_batch.sql.table import SqlTable, load

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def batches():
    for n in range(200):
        yield [(f"{n}-{m}", "new" * 100) for m in range(100)]
        if sys.argv[2] == "rows" and n == 150:
            kill()

if sys.argv[2] == "merge":
    merge = databases.Database.merge
    databases.Database.merge = lambda *args: (merge(*args), kill())
load(SqlTable("reviews", "a_database", "truncate"), columns={"key": "string", "text": "string"}, batches=batches(),
     keys=["key"], run="run 1")
"""


@pytest.mark.parametrize("when", ["rows", "merge"])
def test_a_process_killed_while_it_loads_leaves_nothing_half(db: Db, when: str) -> None:
    db.load([("0-0", "old")], run="run 0")
    done = subprocess.run([sys.executable, "-c", KILLED, db.kind, when], env=os.environ | db.environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert texts(db) == {"0-0": "old"}
    db.load([("0-0", "new")])
    assert texts(db) == {"0-0": "new"}


# What is refused --------------------------------------------------------------------------------------------


def test_a_table_that_lacks_columns_is_told_with_what_to_run(db: Db) -> None:
    db.run('CREATE TABLE reviews ("key" TEXT, note TEXT)', "INSERT INTO reviews VALUES ('z', 'mine')")
    columns = {"key": "string", "stars": "int64", 'a "b"': "json"}
    for act in (
        lambda: check(db.table(), columns=columns, keys=["key"]),
        lambda: db.load([("a", 1, [1])], columns=columns),
    ):
        with pytest.raises(InvalidConfig, match=r"""lacks 'stars', 'a "b"', 'run'""") as told:
            act()
    to_run = str(told.value).partition("or run: ")[2].rstrip(";").split(";")
    db.run(*to_run)
    check(db.table(), columns=columns, keys=["key"])
    db.load([("a", 1, [1])], columns=columns)
    # A column of the table's own stays, and is null in new rows.
    assert [tuple(row.values()) for row in db.rows('SELECT "key", note, run FROM reviews ORDER BY 1')] == [
        ("a", None, "run 1"), ("z", "mine", None),
    ]  # fmt: skip


def test_a_check_writes_nothing(db: Db) -> None:
    check(db.table(), columns={"key": "string"}, keys=["key"])
    assert db.rows(TABLES[db.is_postgres]) == []


def test_a_check_leaves_a_table_and_its_rows_as_they_are(db: Db) -> None:
    db.load(ABC)
    for mode in ("replace_keys", "append", "truncate"):
        check(db.table(mode=mode), columns={"key": "string", "text": "string"}, keys=["key"])
    assert texts(db) == dict(ABC)


@pytest.mark.parametrize(
    ("kind", "name", "column", "said"),
    [
        ("sqlite", "nowhere.reviews", "text", "unknown database .?nowhere"),
        ("sqlite", "sqlite_reviews", "text", "reserved"),
        *(
            pytest.param(driver, *case, marks=pytest.mark.services)
            for driver in ("psycopg", "psycopg2")
            for case in [("nowhere.reviews", "text", '"nowhere" does not exist'), ("reviews", "xmin", "system column")]
        ),
    ],
)
def test_what_the_database_would_refuse_is_told_before_there_are_rows(
    make_db: Callable[[str], Db], kind: str, name: str, column: str, said: str
) -> None:
    db = make_db(kind)
    with pytest.raises(InvalidConfig, match=said):
        check(db.table(name), columns={"key": "string", column: "string"}, keys=["key"])


@pytest.mark.services
@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
@pytest.mark.parametrize(
    ("rights", "said"),
    [
        ("SELECT, DELETE", "permission denied for table reviews"),
        ("SELECT, INSERT", "permission denied for table reviews"),
        ("SELECT, INSERT, DELETE", None),
    ],
)
def test_missing_rights_are_told_before_there_are_rows(
    make_db: Callable[[str], Db], monkeypatch: pytest.MonkeyPatch, driver: str, rights: str, said: str | None
) -> None:
    db = make_db(driver)
    db.run(
        'CREATE TABLE reviews ("key" TEXT, "text" TEXT, run TEXT)',
        f"GRANT {rights} ON reviews TO pg_monitor",
        f"GRANT TEMP ON DATABASE {json.loads(db.environment['AIRFLOW_CONN_A_DATABASE'])['schema']} TO pg_monitor",
    )
    connection = json.loads(db.environment["AIRFLOW_CONN_A_DATABASE"]) | {"extra": {"options": "-c role=pg_monitor"}}
    monkeypatch.setenv("AIRFLOW_CONN_A_DATABASE", json.dumps(connection))
    columns = {"key": "string", "text": "string"}
    if said is None:
        check(db.table(), columns=columns, keys=["key"])
        assert db.load(ABC) == 3
    else:
        with pytest.raises(InvalidConfig, match=said):
            check(db.table(), columns=columns, keys=["key"])


def test_a_column_named_run_is_refused(db: Db) -> None:
    with pytest.raises(InvalidConfig, match="'run' cannot be loaded"):
        check(db.table(), columns={"key": "string", "run": "int64"}, keys=["key"])


@pytest.mark.parametrize("names", [("key", "Key"), ("key", "RUN")])
def test_columns_that_are_one_to_sqlite_are_refused_before_there_are_rows(
    make_db: Callable[[str], Db], names: tuple[str, str]
) -> None:
    db = make_db("sqlite")
    with pytest.raises(InvalidConfig):
        check(db.table(), columns=dict.fromkeys(names, "string"), keys=["key"])


def test_a_load_that_is_refused_keeps_no_lock(db: Db) -> None:
    db.run('CREATE TABLE reviews ("key" TEXT, "text" TEXT, "run" TEXT, CHECK ("key" <> \'b\'))')
    with pytest.raises(TableRefused) as caught:  # the error is still held when the next one comes
        db.load(ABC)
    db.run("DROP TABLE reviews")
    assert db.load(ABC) == 3, caught


def test_a_mode_that_does_not_exist_is_refused(db: Db) -> None:
    with pytest.raises(InvalidConfig, match="mode='upsert'; it takes 'replace_keys', 'append', 'truncate'"):
        db.load(ABC, mode="upsert")


def test_a_schema_that_does_not_exist_is_told(db: Db) -> None:
    with pytest.raises(TableRefused, match="nowhere"):
        db.load(ABC, name="nowhere.reviews")


def test_a_value_that_does_not_fit_is_told_with_its_column(db: Db) -> None:
    strict = "" if db.is_postgres else " STRICT"
    db.run(f'CREATE TABLE reviews ("key" TEXT, "text" INTEGER, run TEXT){strict}')
    with pytest.raises(TableRefused, match="left as it was") as told:
        db.load([("a", "1"), ("b", "many")])
    assert "text" in str(told.value).partition("text string")[2]
    assert db.key_runs() == []


def test_a_column_that_must_not_be_null_is_told(db: Db) -> None:
    db.run('CREATE TABLE reviews ("key" TEXT, "text" TEXT, run TEXT, price INTEGER NOT NULL)')
    with pytest.raises(TableRefused, match="price"):
        db.load(ABC)


@pytest.mark.services
@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_a_constraint_that_is_checked_at_the_end_undoes_it_all(make_db: Callable[[str], Db], driver: str) -> None:
    db = make_db(driver)
    db.run('CREATE TABLE reviews ("key" TEXT, "text" TEXT UNIQUE DEFERRABLE INITIALLY DEFERRED, run TEXT)')
    db.load(ABC, run="run 0")
    with pytest.raises(TableRefused, match="duplicate key"):
        db.load([("d", "one")])
    assert texts(db) == dict(ABC)


@pytest.mark.services
def test_a_name_that_postgresql_would_cut_is_refused(make_db: Callable[[str], Db]) -> None:
    with pytest.raises(InvalidConfig, match="takes 63 bytes"):
        make_db("psycopg").load([("a", 1)], columns={"key": "string", "é" * 32: "int64"})


@pytest.mark.services
@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_values_go_into_columns_of_other_types_that_can_hold_them(make_db: Callable[[str], Db], driver: str) -> None:
    db = make_db(driver)
    db.run(
        'CREATE TABLE reviews ("key" varchar(5), n integer, at timestamp, doc text, vector jsonb, day timestamptz, run text)'
    )
    columns = {
        "key": "string", "n": "string", "at": "timestamp_utc", "doc": "json", "vector": "floats", "day": "date",
    }  # fmt: skip
    noon = datetime(2024, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    db.load([("a", "7", noon, {"a": 1}, [0.5, 1.0], date(2024, 1, 1))], columns=columns)
    (row,) = db.rows("SELECT n, at, doc, vector, day AT TIME ZONE 'UTC' AS day FROM reviews")
    assert row == {
        "n": 7, "at": datetime(2024, 1, 1, 10), "doc": '{"a":1}', "vector": [0.5, 1.0], "day": datetime(2024, 1, 1),
    }  # fmt: skip


@pytest.mark.services
@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_a_connection_set_to_give_dictionaries_is_loaded_all_the_same(
    make_db: Callable[[str], Db], driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = make_db(driver)
    connection = json.loads(db.environment["AIRFLOW_CONN_A_DATABASE"]) | {"extra": {"cursor": "dictcursor"}}
    monkeypatch.setenv("AIRFLOW_CONN_A_DATABASE", json.dumps(connection))
    for _ in range(2):
        db.load(ABC)
    assert texts(db) == dict(ABC)


# Texts ------------------------------------------------------------------------------------------------------


def test_characters_that_cannot_be_stored_are_replaced_and_counted(db: Db, caplog: pytest.LogCaptureFixture) -> None:
    columns = {"key": "string", "text": "string", "doc": "json"}
    with caplog.at_level(logging.WARNING, "airflow_gemini_batch"):
        db.load([("a", "x\ud83dy", ["\udc00", "\\u0000"]), ("b", "plain", None)], columns=columns)
    assert "2 characters that it cannot store" in caplog.text
    assert db.rows('SELECT "text" FROM reviews WHERE "key" = \'a\'') == [{"text": "x\ufffdy"}]
    (row,) = db.rows("SELECT doc FROM reviews WHERE \"key\" = 'a'")
    assert (row["doc"] if db.is_postgres else json.loads(row["doc"])) == ["\ufffd", "\\u0000"]


def test_a_nul_is_replaced_only_where_it_cannot_be_stored(db: Db, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "airflow_gemini_batch"):
        db.load([("a", "x\x00y", {"k\x00": "\\\x00"})], columns={"key": "string", "text": "string", "doc": "json"})
    (row,) = db.rows('SELECT "text", doc FROM reviews')
    shown = "\ufffd" if db.is_postgres else "\x00"
    assert row["text"] == f"x{shown}y"
    assert (row["doc"] if db.is_postgres else json.loads(row["doc"])) == {f"k{shown}": f"\\{shown}"}
    assert ("3 characters" in caplog.text) is db.is_postgres


# Two at once ------------------------------------------------------------------------------------------------


def load_at_once(db: Db, loads: list[list[tuple[Any, ...]]], **settings: Any) -> None:
    """Load from as many threads, none of which goes on before all have read their rows."""
    all_read = threading.Barrier(len(loads))
    failures: list[Exception] = []

    def batches(rows: list[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
        yield rows
        all_read.wait(60)

    def one(number: int, rows: list[tuple[Any, ...]]) -> None:
        try:
            load(
                db.table(**settings), columns={"key": "string", "text": "string"}, batches=batches(rows), keys=["key"],
                run=f"run {number}",
            )  # fmt: skip
        except Exception as e:
            failures.append(e)

    threads = [threading.Thread(target=one, args=(number, rows)) for number, rows in enumerate(loads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("mode", ["replace_keys", "append"])
def test_loads_of_different_keys_at_once_all_arrive(db: Db, there: bool, mode: str) -> None:
    if there:
        db.load([], mode=mode)
    load_at_once(db, [[(f"{part}-{n}", "x") for n in range(500)] for part in range(4)], mode=mode)
    assert len({key for key, _ in db.key_runs()}) == len(db.key_runs()) == 2000


@pytest.mark.parametrize("there", [True, False])
def test_loads_of_the_same_keys_at_once_leave_each_key_once(db: Db, there: bool) -> None:
    keys = [str(n) for n in range(500)]
    if there:
        db.load([(key, "old") for key in keys], run="run before")
    load_at_once(db, [[(key, str(part)) for key in keys[:: (1, -1)[part % 2]]] for part in range(4)])
    assert sorted(key for key, _ in db.key_runs()) == sorted(keys)
    assert len({run for _, run in db.key_runs()}) == 1  # the last one replaced them all


@pytest.mark.services
def test_loads_at_once_leave_each_key_once_also_where_transactions_are_serializable(
    make_db: Callable[[str], Db], monkeypatch: pytest.MonkeyPatch
) -> None:
    db = make_db("psycopg")
    connection = json.loads(db.environment["AIRFLOW_CONN_A_DATABASE"])
    strict = connection | {"extra": {"options": "-c default_transaction_isolation=serializable"}}
    monkeypatch.setenv("AIRFLOW_CONN_A_DATABASE", json.dumps(strict))
    load_at_once(db, [[(str(n), str(part)) for n in range(500)] for part in range(4)])
    assert len(db.key_runs()) == 500


# Other databases --------------------------------------------------------------------------------------------


@pytest.fixture
def unknown(db: Db, monkeypatch: pytest.MonkeyPatch) -> Db:
    """The same databases, as one finds a database we know nothing of."""
    monkeypatch.setattr(databases, "DATABASES", {})
    monkeypatch.setitem(databases.AnyOther.types, "binary", "BYTEA" if db.is_postgres else "BLOB")  # type: ignore[arg-type]
    if not db.is_postgres:
        import sqlite3

        # Its driver takes no decimals by itself, as those of servers do.
        sqlite3.register_adapter(Decimal, str)
    return db


@pytest.mark.parametrize("mode", ["replace_keys", "append", "truncate"])
def test_any_other_database_is_loaded_and_repeated_with_plain_statements(unknown: Db, mode: str) -> None:
    columns = {"key": "string", "50% ?": "decimal2", "doc": "json", "raw": "binary", "yes": "bool"}
    for _ in range(2):
        unknown.load([(k, Decimal("1.50"), [k], b"\x00", True) for k in "abc"], columns=columns, mode=mode)
    unknown.load([("c", None, None, None, None)], columns=columns, mode=mode, run="run 2")
    assert (
        unknown.key_runs()
        == {
            "replace_keys": [("a", "run 1"), ("b", "run 1"), ("c", "run 2")],
            "append": [("a", "run 1"), ("b", "run 1"), ("c", "run 1"), ("c", "run 2")],
            "truncate": [("c", "run 2")],
        }[mode]
    )
    if mode != "truncate":
        (row,) = unknown.rows("SELECT * FROM reviews WHERE \"key\" = 'a'")
        assert (float(row["50% ?"]), row["doc"], row["raw"], bool(row["yes"])) == (1.5, '["a"]', b"\x00", True)


def test_rows_that_break_off_leave_any_other_databases_table_as_it_was(unknown: Db) -> None:
    unknown.load([("0", "old")], run="run 0")
    with pytest.raises(Broken):
        load(
            unknown.table(), columns={"key": "string", "text": "string"}, batches=breaking_after(3), keys=["key"],
            run="run 1",
        )  # fmt: skip
    assert texts(unknown) == {"0": "old"}


# Templates and memory ---------------------------------------------------------------------------------------


def test_the_name_and_the_connection_are_templated(tmp_path: Any) -> None:
    from .test_query import operator, rendered

    table = SqlTable("reviews_{{ team }}", "db_{{ team }}", "append")
    assert rendered(operator(tmp_path, table), team="a") == SqlTable("reviews_a", "db_a", "append")


MEASURE = """
import json, sys
from pathlib import Path
if sys.argv[1] == "psycopg2":
    from airflow.providers.postgres.hooks import postgres
    postgres.USE_PSYCOPG3 = False
from airflow_gemini_batch.sql.table import SqlTable, load
def peak():  # not ru_maxrss, which begins with the size of the process that started this one
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) // 1024
seen = {}
def batches():
    for n in range(250):
        yield [(f"{n}-{m}", "x" * 500) for m in range(4000)]
        if n == 1:
            seen["before"] = peak()
seen["rows"] = load(SqlTable("reviews", "a_database"), columns={"key": "string", "text": "string"}, batches=batches(),
                    keys=["key"], run="run 1")
print(json.dumps(seen | {"peak": peak()}))
"""


@pytest.mark.slow
def test_a_million_rows_go_in_and_are_replaced_in_flat_memory(db: Db) -> None:
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, db.kind], env=os.environ | db.environment, capture_output=True, text=True,
            check=True,
        )  # fmt: skip
        seen = json.loads(done.stdout.splitlines()[-1])
        assert seen["rows"] == 1_000_000
        # MB. Held at once the rows would be 600 and more.
        assert seen["peak"] - seen["before"] < 50
        assert seen["peak"] < 300
    assert db.rows('SELECT count(*) AS n, count(DISTINCT "key") AS keys FROM reviews') == [
        {"n": 1_000_000, "keys": 1_000_000}
    ]
