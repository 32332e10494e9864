"""Answers that are read many at a time give the same table, the same counts and the same odd lines as one by one."""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_gemini_batch.core import answers, landing, pairing, stretches
from airflow_gemini_batch.core.attempt import Attempt, Policy, Run, Services
from airflow_gemini_batch.core.collecting import Ending, land
from airflow_gemini_batch.core.layout import OutputDirectory
from airflow_gemini_batch.core.ledger import Landed, Submitted
from airflow_gemini_batch.core.names import RunId
from airflow_gemini_batch.core.plan import Plan, Shard
from airflow_gemini_batch.core.reading import Reader
from airflow_gemini_batch.core.requests import Request, Spec
from airflow_gemini_batch.core.rows import RecordSource
from airflow_gemini_batch.core.shards import Limits, write_shards

TAGS = "list<struct<at: date, n: double>>"


def attempt_in(directory: Path, requests: list[Request], *, named: bool = False) -> tuple[Attempt, Shard]:
    prompt: Any = {"p": "{a}", "q": "{b}"} if named else "{a}"
    spec, run_id = Spec("gemini-2.5-flash", prompt, key="id", keep=("stars", "tags")), RunId("d", "t", "r")
    run = Run(run_id, lambda: RecordSource(()), spec, OutputDirectory(directory), Policy())
    plan = Plan(1, "work", run_id, spec.to_dict(), 0, {"stars": "int64", "tags": TAGS}, "2026-01-01T00:00:00Z")
    plan.commit(run.output)
    attempt = Attempt(run, plan, Services(client=None))  # type: ignore[arg-type]
    (shard,) = write_shards([(one, one.key) for one in requests], attempt.work, 0, Limits())
    return attempt, shard


def landed(
    directory: Path, requests: list[Request], results: bytes, *, state: str = "SUCCEEDED", named: bool = False
) -> tuple[Landed, list[dict[str, Any]], bytes, bytes]:
    """The record of a landed slot, its table, its unsettled rows and its rejected lines."""
    attempt, shard = attempt_in(directory, requests, named=named)
    path = attempt.work.results(shard.slot)
    path.parent.mkdir()
    path.write_bytes(results)
    record = land(attempt, shard, Submitted("batches/b", "m", "files/f", 0.0), Ending(state, at=1_900_000_000.0))
    aside = [attempt.work.unsettled(shard.slot), attempt.work.rejected(shard.slot)]
    rows = pq.read_table(attempt.run.output.path / record.part).to_pylist() if record.part else []
    return record, rows, *(one.read_bytes() if one.exists() else b"" for one in aside)


def line(key: str, text: str = "an answer", **more: Any) -> dict[str, Any]:
    candidate = {"content": {"parts": [{"text": text}], "role": "model"}, "finishReason": "STOP", "index": 0}
    usage = {
        "promptTokenCount": 7,
        "candidatesTokenCount": 3,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 7}],
    }
    response = {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "m-1", "responseId": f"r-{key}"}
    return {"key": key, "response": response | more}


PART = st.sampled_from([
    {"text": "fine"}, {"text": ""}, {"text": " \u200b"}, {"text": "a\x00\"\\\n\u2028😀"}, {"text": None}, {"text": 5}, {},
    None, "x",
    {"text": "x", "thought": True}, {"text": "x", "thought": False}, {"text": "x", "thought": None},
    {"text": "x", "thought": "yes"},
    {"text": "x", "functionCall": {"name": "f"}}, {"functionCall": {"name": "f"}}, {"thoughtSignature": "s"},
    {"inlineData": {"data": "AA==", "mimeType": "image/png"}},
])  # fmt: skip
COUNT = st.sampled_from([None, 0, 5, 10**14, 10**15, 2**70, -1, 1.0, "12", "x", True, [], float("nan")])
REASONS = ["STOP", "STOP", "MAX_TOKENS", "SAFETY", "OTHER", "", None, 5]
CANDIDATE = st.fixed_dictionaries({}, optional={
    "content": st.sampled_from([None, {}, {"parts": None}, {"parts": []}, {"parts": "x"}, [], "x"])
    | st.lists(PART, min_size=1, max_size=2).map(lambda parts: {"parts": parts}),
    "finishReason": st.sampled_from(REASONS), "finishMessage": st.just("why"),
    "avgLogprobs": st.sampled_from([float("nan"), 1e308]),
}) | st.none()  # fmt: skip
USAGE = st.none() | st.just("x") | st.fixed_dictionaries({}, optional={
    "promptTokenCount": COUNT, "candidatesTokenCount": COUNT, "thoughtsTokenCount": COUNT, "cachedContentTokenCount": COUNT,
    "toolUsePromptTokenCount": COUNT,
    "promptTokensDetails": st.sampled_from([None, [], [{}], [{"modality": "AUDIO", "tokenCount": 4}],
        [{"modality": "TEXT"}], "x"]),
})  # fmt: skip
CHANGES = st.fixed_dictionaries({}, optional={
    "candidates": st.lists(CANDIDATE, max_size=2) | st.none() | st.just("x"), "usageMetadata": USAGE,
    "modelVersion": st.sampled_from([None, "m-2", 5]), "responseId": st.sampled_from([None, "", "r\ud800", ["x"]]),
    "promptFeedback": st.sampled_from([None, {}, {"blockReason": None}, {"blockReason": "SAFETY"}, {"blockReason": ""}, "x"]),
    "other": st.sampled_from([{"deep": [{"x": None}]}, "b\udc00", 2**80]),
})  # fmt: skip
KEYS = [*"abcdefgh", "", "é", "e\u0301", "7", 'with "quotes"', "\n"]


def spoiled(data: st.DataObject, key: str) -> bytes:
    """One or more lines under a key, or what should have been one."""
    import json

    body = line(key, f"answer to {key}")
    how = data.draw(st.sampled_from(["fine"] * 8 + ["changed"] * 4 + list(SPOILED)))
    if how == "changed":
        body["response"] |= data.draw(CHANGES)
    whole = json.dumps(body, ensure_ascii=data.draw(st.booleans())).encode("utf-8", "replace")
    return SPOILED[how](key, whole) if how in SPOILED else whole


SPOILED = {
    "half": lambda key, whole: whole[: len(whole) // 2],
    "twice": lambda key, whole: whole + b"\n" + whole,
    "two on a line": lambda key, whole: whole + whole,
    "over two lines": lambda key, whole: whole.replace(b', "response"', b',\n"response"'),
    "with a mark": lambda key, whole: b"\xef\xbb\xbf" + whole,
    "with a return": lambda key, whole: whole + b"\r",
    "blank": lambda key, whole: b"  ",
    "not UTF-8": lambda key, whole: whole.replace(b"STOP", b"ST\xffOP"),
    "not UTF-8 where nobody looks": lambda key, whole: whole.replace(b'"model"', b'"mo\xffdel"'),
    "zero": lambda key, whole: whole + b"\0",
    "tail": lambda key, whole: whole + b" x}",
    "unknown": lambda key, whole: whole.replace(b'{"key": "', b'{"key": "nobody '),
    "number": lambda key, whole: whole.replace(b'{"key": "7"', b'{"key": 7'),
    "two keys": lambda key, whole: whole.replace(b'{"key"', b'{"key": "a", "key"'),
    "in metadata": lambda key, whole: whole.replace(b'{"key": ', b'{"metadata": {"key": ').replace(
        b', "response"', b'}, "response"'),
    "keyless": lambda key, whole: b'{"response": {}}',
    "list": lambda key, whole: b"[5]",
    "object": lambda key, whole: b"{}",
    "error": lambda key, whole: orjson.dumps({"key": key, "error": {"code": 13, "message": "broken"}}),
    "error and answer": lambda key, whole: whole[:-1] + b', "error": {"code": 5}}',
    "no response": lambda key, whole: orjson.dumps({"key": key, "response": None}),
    "text response": lambda key, whole: orjson.dumps({"key": key, "response": "x"}),
    "dropped": lambda key, whole: b"",
    "deep": lambda key, whole: whole[:-1] + b', "x": ' + b"[" * 1100 + b"]" * 1100 + b"}",
    "long number": lambda key, whole: whole[:-1] + b', "x": ' + b"9" * 5000 + b"}",
    "huge number": lambda key, whole: whole[:-1] + b', "x": 1e999}',
}  # fmt: skip


def nothing(file: object) -> Iterator[Any]:
    yield from ()


@settings(max_examples=200)
@given(st.data())
def test_many_at_a_time_gives_the_same_as_one_by_one(data: st.DataObject) -> None:
    keys = data.draw(st.lists(st.sampled_from(KEYS), unique=True, min_size=1))
    named = data.draw(st.booleans())
    requests = [
        Request(
            key,
            b"" if data.draw(st.integers(0, 9)) == 0 else b"{}\n",
            {"stars": n, "tags": [{"at": date(2026, 1, 1 + n), "n": math.inf}, None]} if n % 3 else {"stars": None},
            prompt="p" if named else None,
        )
        for n, key in enumerate(keys)
    ]
    requests = [one if one.line else replace(one, unsent="blank") for one in requests]
    lines = [spoiled(data, f"p/{key}" if named else key) for key in keys]
    if data.draw(st.booleans()):
        lines = data.draw(st.permutations(lines))
    results = b"\n".join(lines) + data.draw(st.sampled_from([b"", b"\n", b"\n\n"]))
    state = data.draw(st.sampled_from(["SUCCEEDED", "EXPIRED", "CANCELLED"]))
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(stretches, "BLOCK_BYTES", data.draw(st.sampled_from([1, 400, 2000, 1 << 20])))
        patch.setattr(stretches, "STRETCH_BYTES", data.draw(st.sampled_from([1, 1500, 1 << 20])))
        patch.setattr(stretches, "MOST_ODD", data.draw(st.sampled_from([0, 0.5, 1])))
        patch.setattr(pairing, "ROWS", data.draw(st.sampled_from([1, 3, 100])))
        patch.setattr(pairing, "ROWS_BYTES", data.draw(st.sampled_from([1, 500, 1 << 20])))
        patch.setattr(pairing, "MOST_BYTES", data.draw(st.sampled_from([1, 500, 1 << 20])))
        patch.setattr(landing, "BATCH_ROWS", data.draw(st.sampled_from([1, 4, 100])))
        together = landed(Path(directory) / "together", requests, results, state=state, named=named)
        patch.setattr(pairing, "stretches", nothing)
        assert landed(Path(directory) / "alone", requests, results, state=state, named=named) == together


@pytest.mark.parametrize("shuffled", [False, True])
def test_plain_answers_are_never_read_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shuffled: bool
) -> None:
    """What is fast has to stay so: only the lines that need a closer look get it."""
    requests = [Request(str(n), b"{}\n", {"stars": n % 5}) for n in range(20_000)]
    lines = [orjson.dumps(line(str(n), f"{n} é😀\n")) for n in range(20_000)]
    for n in range(7, 20_000, 1000):
        lines[n] = orjson.dumps(line(str(n), candidates=[]))
    del lines[5000]
    if shuffled:
        random.Random(5).shuffle(lines)
    read: list[str] = []
    whole = Reader.read
    monkeypatch.setattr(Reader, "read", lambda self, row, line: read.append(row["key"]) or whole(self, row, line))
    monkeypatch.setattr(answers.Answers, "take", None)
    record, rows, unsettled, _ = landed(tmp_path, requests, b"\n".join(lines))
    assert record.counts == {"ok": 19_979, "empty": 20}
    assert record.unsettled_auto == unsettled.count(b"\n") == 1
    assert [row["key"] for row in rows] == [str(n) for n in range(20_000) if n != 5000]
    assert all(row["text"] == f"{row['key']} é😀\n" for row in rows if row["status"] == "ok")
    assert read == [str(n) for n in range(7, 20_000, 1000)]


def test_a_large_file_is_taken_in_stretches_and_from_the_first_gap_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stretches, "BLOCK_BYTES", 10_000)
    monkeypatch.setattr(stretches, "STRETCH_BYTES", 50_000)
    monkeypatch.setattr(pairing, "MOST_BYTES", 30_000)
    requests = [Request(str(n), b"{}\n", {"stars": n % 5}) for n in range(3000)]
    lines = [orjson.dumps(line(str(n))) for n in range(3000) if n != 2000] + [orjson.dumps(line("5", "again"))]
    read: list[str] = []
    whole = Reader.read
    monkeypatch.setattr(Reader, "read", lambda self, row, line: read.append(row["key"]) or whole(self, row, line))
    record, rows, _, rejected = landed(tmp_path, requests, b"\n".join(lines))
    assert record.counts == {"ok": 2999}
    assert [row["key"] for row in rows] == [str(n) for n in range(3000) if n != 2000]
    assert record.oddities == answers.Oddities(duplicate=1)
    assert orjson.loads(rejected)["line"] == 3000
    assert 1000 <= len(read) < 1500
