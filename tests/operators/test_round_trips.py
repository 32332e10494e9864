"""
What went in under each key is what its answer row carries: any text, any key, from every source and into every format.

The pretend model's ``responseId`` is a digest of the whole request, so it tells which prompt an answer was given to. What it
should be is worked out here from the row as the test wrote it, without any of the package's own reading or building.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import re
import sqlite3
from base64 import b64encode
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_gemini_batch import SqlQuery, SqlTable
from airflow_gemini_batch.emulator.answers import Row
from airflow_gemini_batch.emulator.options import Options
from airflow_gemini_batch.operators.embeddings import GeminiBatchEmbeddingsOperator

from ..conftest import batch_operator, landed, run_operator, task_context
from .test_answers import requests_of

pytestmark = pytest.mark.slow  # minutes in all; each by itself is quick

MODEL = "gemini-2.5-flash"
SOURCES = ["list", "jsonl", "csv", "tsv", "parquet", "sqlite"]
FORMATS = ["parquet", "jsonl", "csv"]

AWKWARD = [
    "plain", "PLAIN", " plain ", "plain\n", "tab\there", "LF\nhere", "CR\rhere", "CRLF\r\nhere", "\nfirst",
    "last\r\n", 'double "quotes"', "'single'", '"', '""', "a,b;c|d", "back\\slash", "\\N", "\\n", "{text}",
    "{{text}}", "{", "}}", "%s %(x)s", "\u2028 line separator", "\u2029 paragraph separator",
    "\u0085 next line", "\x1c file separator", "\x0b\x0c", "\x7f", "NUL \x00 inside", "\x00",
    "\ufeffmark first", "mark \ufeff inside", "\ufffe\uffff not characters",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 family", "\U0001f1e9\U0001f1ea", "e\u0301 and é", "日本語の製品",
    "مرحبا", "\u202eright to left", "null", "None", "NaN", "true", "-0", "007", "1e5", "0x1F", "1.0", "١٢٣",
    "=SUM(A1)", "@cmd", "__proto__", "constructor", "toString", "key", "request", "../../etc/passwd",
    "/etc/passwd", "C:\\Windows", "a/b", "a//b", "./", "..", "s3://bucket/key", "?x=1&y=2#z",
    "<script>alert(1)</script>", "&amp;", "' OR 1=1; --", '{"key": "x", "request": {}}', '{"a": [1, 2]}', "[]",
    "long " * 3000,
]  # fmt: skip

TEXTS = st.one_of(st.sampled_from(AWKWARD), st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
TABLES = st.lists(
    st.tuples(TEXTS.filter(str.strip), TEXTS, st.one_of(st.none(), TEXTS)),
    min_size=1, max_size=40, unique_by=lambda row: row[0],
)  # fmt: skip

runs = itertools.count()


@cache
def answer_to(prompt: str) -> tuple[str, str]:
    """The id and the text of the pretend model's answer to a prompt."""
    response = Row({"contents": [{"role": "user", "parts": [{"text": prompt}]}]}, MODEL, Options()).generate()
    return response["responseId"], response["candidates"][0]["content"]["parts"][0]["text"]


def written(rows: list[dict[str, Any]], kind: str, where: Path) -> Any:
    """Write rows as a source of this kind, by means that have nothing to do with the package."""
    if kind == "list":
        return rows
    if kind == "sqlite":
        with closing(sqlite3.connect(where / "in.db")) as connection, connection:
            connection.execute("DROP TABLE IF EXISTS rows")
            connection.execute("CREATE TABLE rows (id TEXT, body TEXT, note TEXT)")
            connection.executemany("INSERT INTO rows VALUES (:id, :body, :note)", rows)
        return SqlQuery("SELECT id, body, note FROM rows ORDER BY rowid", "in_db")
    path = where / f"{next(runs)}.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows, pa.schema([(name, pa.string()) for name in rows[0]])), path)
    elif kind == "jsonl":
        path.write_text(
            "".join(json.dumps(row, ensure_ascii=len(rows) % 2 == 0) + "\n" for row in rows), "utf-8", newline=""
        )
    else:
        with path.open("w", encoding="utf-8", newline="") as f:
            writer = csv.DictWriter(f, list(rows[0]), delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return str(path)


@pytest.fixture
def ask(connection: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("in", "out"):
        at = {"conn_type": "sqlite", "host": str(tmp_path / f"{name}.db")}
        monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}_DB", json.dumps(at))

    def run(rows: list[dict[str, Any]], kind: str, **more: Any) -> Any:
        number = f"{next(runs)}"
        operator = batch_operator(
            tmp_path, source=written(rows, kind, tmp_path), key="id", keep=["note"], output=str(tmp_path / f"out-{number}"),
            max_failed_ratio=1.0, **more,
        )  # fmt: skip
        return run_operator(operator, task_context(run_id=number))

    return run


def expected(rows: list[dict[str, Any]], prompts: dict[str | None, str]) -> list[tuple[Any, ...]]:
    """(key, prompt, status, id, text, note) of every row that has to land."""
    lines: list[tuple[Any, ...]] = []
    for row in rows:
        for name, prompt in prompts.items():
            if (row["body"] or "").strip():
                answered = ("ok", *answer_to(prompt.replace("{body}", row["body"])))
            else:
                answered = ("empty", None, None)
            lines.append((row["id"], name, *answered, row["note"]))
    return lines


def found(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [
        (row["key"], row.get("prompt"), row["status"], row["response_id"], row["text"], row["note"]) for row in rows
    ]


def as_rows(table: list[tuple[str, str, str | None]], kind: str) -> list[dict[str, Any]]:
    rows = [{"id": key, "body": body, "note": note} for key, body, note in table]
    # A CSV file has no nulls: what is not there is an empty text.
    return [row | {"note": row["note"] or ""} for row in rows] if kind in ("csv", "tsv") else rows


def blanked(lines: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """As CSV has it, where a null is an empty text."""
    return [tuple("" if value is None and place != 1 else value for place, value in enumerate(line)) for line in lines]


PROPERTY = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
ALL = [
    (f"{key}", text, AWKWARD[-n])
    for n, (key, text) in enumerate(zip(AWKWARD, reversed(AWKWARD), strict=True))
    if key.strip()
]


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("kind", SOURCES)
def test_every_awkward_text_and_key_comes_back_under_its_own(ask, kind, file_format):
    rows = as_rows(ALL, kind)
    manifest = ask(rows, kind, prompt="Sum up {body}", file_format=file_format)
    wanted = expected(rows, {None: "Sum up {body}"})
    assert found(landed(manifest)) == (blanked(wanted) if file_format == "csv" else wanted)


def test_every_awkward_text_and_key_comes_back_under_each_prompt(ask):
    rows, prompts = as_rows(ALL, "list"), {"sum": "Sum up {body}", "fr": "{body} in French"}
    assert found(landed(ask(rows, "list", prompt=prompts))) == expected(rows, dict(prompts))


@given(table=TABLES, kind=st.sampled_from(SOURCES), file_format=st.sampled_from(FORMATS))
@PROPERTY
def test_any_text_and_key_comes_back_under_its_own_with_several_prompts(ask, table, kind, file_format):
    rows = as_rows(table, kind)
    prompts = {"sum": "Sum up {body}", "fr-CA": "{body} en français\r\n"}
    manifest = ask(rows, kind, prompt=prompts, file_format=file_format)
    wanted = expected(rows, dict(prompts))
    assert found(landed(manifest)) == (blanked(wanted) if file_format == "csv" else wanted)
    assert manifest["rows"] == 2 * len(rows)


@given(table=TABLES, mode=st.sampled_from(["replace_keys", "append", "truncate"]), file_format=st.sampled_from(FORMATS))
@PROPERTY
def test_any_text_and_key_goes_from_a_database_into_a_database(ask, tmp_path, table, mode, file_format):
    """Twice, with another prompt: only if told to append are the first run's answers still there."""
    rows = as_rows(table, "sqlite")
    with closing(sqlite3.connect(tmp_path / "out.db")) as connection:
        connection.execute("DROP TABLE IF EXISTS answers")
    for prompt in ("Sum up {body}", "{body} in French"):
        ask(rows, "sqlite", prompt=prompt, file_format=file_format, table=SqlTable("answers", "out_db", mode))
    with closing(sqlite3.connect(tmp_path / "out.db")) as connection:
        connection.row_factory = sqlite3.Row
        loaded = [dict(row) for row in connection.execute("SELECT * FROM answers ORDER BY rowid")]
    wanted = expected(rows, {None: "{body} in French"})
    if mode == "append":
        wanted = expected(rows, {None: "Sum up {body}"}) + wanted
    # On its way through a CSV file an empty text becomes a null, which CSV cannot tell from it.
    assert found(loaded) == ([(*line[:-1], line[-1] or None) for line in wanted] if file_format == "csv" else wanted)


@given(texts=st.lists(TEXTS, min_size=1, max_size=40), kind=st.sampled_from(["list", "jsonl", "json.gz"]))
@PROPERTY
def test_any_list_of_texts_is_answered_in_its_order(batch, tmp_path, texts, kind):
    number, source = f"{next(runs)}", tmp_path / f"{next(runs)}.{kind}"
    lines = "".join(json.dumps(text) + "\n" for text in texts).encode()
    source.write_bytes(gzip.compress(lines) if kind == "json.gz" else lines)
    manifest = batch(
        task_context(run_id=number), source=texts if kind == "list" else str(source), max_failed_ratio=1,
        output=str(tmp_path / number),
    )  # fmt: skip
    wanted = [(f"{n}", answer_to(text)[1] if text.strip() else None) for n, text in enumerate(texts)]
    assert [(row["key"], row["text"]) for row in landed(manifest)] == wanted


COLUMNS = ["a b", "a.b", "a-b", "1", "日本語", "text ", "é", "key", "prompt", "SELECT", "x'y", 'x"y', "%s", "text"]


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("kind", ["list", "jsonl", "csv", "parquet"])
def test_columns_of_any_name_are_told_apart(batch, tmp_path, kind, file_format):
    rows = [{name: f"{place} of {n}" for place, name in enumerate(COLUMNS)} for n in range(3)]
    asked, keep = COLUMNS[:5], ["a b", "日本語", "SELECT", "x'y", 'x"y', "%s"]
    manifest = batch(
        source=written(rows, kind, tmp_path), prompt=" ".join(f"{{{name}}}" for name in asked), key="x'y", keep=keep,
        file_format=file_format,
    )  # fmt: skip
    for row, lands in zip(rows, landed(manifest), strict=True):
        assert lands["key"] == row["x'y"]
        assert lands["response_id"] == answer_to(" ".join(row[name] for name in asked))[0]
        assert {name: lands[name] for name in keep} == {name: row[name] for name in keep}


PARTS = st.one_of(
    TEXTS.filter(str.strip).map(lambda text: {"text": text}),
    st.binary(min_size=1, max_size=9).map(
        lambda data: {"inline_data": {"mime_type": "image/png", "data": b64encode(data).decode()}}
    ),
)
TURNS = st.lists(st.lists(PARTS, min_size=1, max_size=3), min_size=1, max_size=3).map(
    lambda turns: [{"role": ("user", "model")[n % 2], "parts": parts} for n, parts in enumerate(turns)]
)
REQUESTS = st.fixed_dictionaries(
    {"contents": TURNS},
    optional={
        "system_instruction": st.builds(lambda text: {"parts": [{"text": text}]}, TEXTS.filter(str.strip)),
        "generation_config": st.fixed_dictionaries({"seed": st.integers(0, 9)}, optional={"top_k": st.integers(1, 9)}),
        "tools": st.just([{"google_search": {}}]),
    },
)
READY_MADE = st.dictionaries(TEXTS.filter(str.strip), REQUESTS, min_size=1, max_size=20)


def in_camel_case(value: Any) -> Any:
    """As the service reads what is spelled with underscores."""
    if isinstance(value, list):
        return [in_camel_case(one) for one in value]
    if isinstance(value, dict):
        return {re.sub("_(.)", lambda m: m[1].upper(), name): in_camel_case(one) for name, one in value.items()}
    return value


@given(
    requests=READY_MADE,
    camel=st.booleans(),
    ascii_only=st.booleans(),
    kept=st.booleans(),
    file_format=st.sampled_from(FORMATS),
)
@PROPERTY
def test_any_ready_made_request_is_answered_under_its_own_key(
    batch, tmp_path, requests, camel, ascii_only, kept, file_format
):
    path = tmp_path / f"{next(runs)}.jsonl"
    lines = [
        {"key": key, "request": in_camel_case(request) if camel else request} | ({"note": key[::-1]} if kept else {})
        for key, request in requests.items()
    ]
    path.write_text("".join(json.dumps(line, ensure_ascii=ascii_only) + "\n" for line in lines), "utf-8", newline="")
    manifest = batch(
        task_context(run_id=path.stem), source=str(path), keep=["note"] if kept else [], file_format=file_format,
        output=str(tmp_path / path.stem),
    )  # fmt: skip
    wanted = {key: Row(in_camel_case(request), MODEL, Options()).id for key, request in requests.items()}
    rows = landed(manifest)
    assert [(row["key"], row["response_id"]) for row in rows] == list(wanted.items())
    assert not kept or [row["note"] for row in rows] == [key[::-1] for key in requests]


def test_a_ready_made_request_may_leave_a_kept_column_out_where_it_is_null(batch, tmp_path):
    asking = {"contents": [{"parts": [{"text": "hello"}]}]}
    lines = [{"key": "a", "request": asking}, {"key": "b", "request": asking, "note": "x"}]
    source = written(lines, "jsonl", tmp_path)
    rows = landed(batch(source=source, keep=["note"]))
    assert [(row["key"], row["note"]) for row in rows] == [("a", None), ("b", "x")]
    source = written(lines[:1], "jsonl", tmp_path)
    with pytest.raises(Exception, match=r"keep names the column 'note', which .*:1 does not have"):
        batch(task_context(run_id="run-2"), source=source, keep=["note"], output=str(tmp_path / "2"))


@given(table=TABLES, file_format=st.sampled_from(FORMATS))
@PROPERTY
def test_any_text_has_its_own_vector_under_its_own_key(connection, tmp_path, table, file_format):
    rows = as_rows([row for row in table if row[1].strip()] or [("k", "v", None)], "list")
    for row, dimensions in zip(rows, itertools.cycle([1, 3, 64]), strict=False):
        row["note"] = str(dimensions)
    number = f"{next(runs)}"
    manifest = run_operator(
        GeminiBatchEmbeddingsOperator(
            task_id="embed", model="gemini-embedding-001", source=rows, text="{body}", key="id",
            dimensions="{note}", output=str(tmp_path / number), deferrable=True, poll_interval=0.05, file_format=file_format,
        ),
        task_context(run_id=number),
    )  # fmt: skip
    for row, lands in zip(rows, landed(manifest), strict=True):
        request = {"content": {"parts": [{"text": row["body"]}]}, "outputDimensionality": int(row["note"])}
        wanted = Row(request, "gemini-embedding-001", Options()).embed()["embedding"]["values"]
        got = json.loads(lands["embedding"]) if file_format == "csv" else lands["embedding"]
        assert lands["key"] == row["id"]
        assert got == pytest.approx(wanted, rel=1e-6)


NAMES = [
    "a.png",
    "a b.png",
    "é 製品.jpg",
    "100%.png",
    "x#1.png",
    "what?.webp",
    "q&a=b.pdf",
    "'quoted'.pdf",
    "upper.PNG",
    "{b}.png",
]


@pytest.mark.parametrize("kind", ["list", "jsonl", "parquet"])
def test_each_row_is_asked_about_its_own_files_in_their_order(batch, emulator, tmp_path, kind):
    """Awkward names, one content under two names, several files of a row; looked up at the service by their URIs."""
    for place, name in enumerate(NAMES):
        (tmp_path / name).write_bytes(f"content {place // 2}".encode())
    rows = [
        {"id": key, "files": [str(tmp_path / NAMES[(n + step) % len(NAMES)]) for step in range(n % 4)], "body": key}
        for n, key in enumerate(key for key in AWKWARD if key.strip())
    ]
    if kind == "list":
        source: Any = rows
    elif kind == "jsonl":
        source = written(rows, kind, tmp_path)
    else:
        source = str(tmp_path / "rows.parquet")
        pq.write_table(pa.Table.from_pylist(rows), source)
    manifest = batch(
        source=source, prompt="About {body}", media=["files"], key="id", delete_remote="never", max_rounds=1
    )
    assert manifest["counts"]["ok"] == len(rows)
    sent = {line["key"]: line["request"]["contents"][0]["parts"] for line in requests_of(emulator)}
    for row in rows:
        *files, text = sent[row["id"]]
        assert text == {"text": f"About {row['body']}"}
        contents = [emulator.read_file(f"files/{part['fileData']['fileUri'].rpartition('/')[2]}") for part in files]
        assert contents == [Path(name).read_bytes() for name in row["files"]]


@pytest.mark.parametrize("file_format", FORMATS)
def test_any_key_names_its_own_image_inside_the_output(batch, tmp_path, file_format):
    """Keys that look like paths, differ in signs that no file name has, or are too long for one."""
    keys = [*AWKWARD, *(f"{'k' * 300}{n}" for n in range(3)), "K", "k", ".", "-", "-0", "CON", "a_b", "a b", "a:b"]
    keys = list(dict.fromkeys(key for key in keys if key.strip()))
    manifest = batch(
        model="gemini-2.5-flash-image", source=[{"id": key} for key in keys], prompt="Draw {id}", key="id",
        config={"response_modalities": ["IMAGE"]}, file_format=file_format,
    )  # fmt: skip
    rows = landed(manifest)
    assert [row["key"] for row in rows] == keys
    media = tmp_path / "out" / "media"
    for row in rows:
        request = {
            "contents": [{"role": "user", "parts": [{"text": f"Draw {row['key']}"}]}],
            "generationConfig": {"responseModalities": ["IMAGE"]},
        }
        response = Row(request, "gemini-2.5-flash-image", Options()).generate()
        wanted = response["candidates"][0]["content"]["parts"][0]["inlineData"]["data"]
        (file,) = map(Path, json.loads(row["media"]) if file_format == "csv" else row["media"])
        assert file.parent == media
        assert b64encode(file.read_bytes()).decode() == wanted
    assert len(list(media.iterdir())) == len(keys)
