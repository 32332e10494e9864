"""The rows that did not end well, in one file that can be a source again, and their reasons counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from airflow_gemini_batch.core import exact, storage
from airflow_gemini_batch.core.attempt import Attempt
from airflow_gemini_batch.core.names import wire_key
from airflow_gemini_batch.core.plan import Round, Shard, shards_of
from airflow_gemini_batch.core.requests import for_any_model
from airflow_gemini_batch.core.rounds import Leftovers
from airflow_gemini_batch.core.shards import read_rows_file

TOP = 5
REASON_CHARS = 160


@dataclass(frozen=True)
class Reason:
    """Why rows failed, how many, and the key of one of them."""

    text: str
    rows: int
    key: str


@dataclass
class Failures:
    """
    The rows that are not ok.

    :param written: those in the file; rows of jobs that others made are not: what was asked is not known.
    """

    rows: int = 0
    written: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, key: str, result: dict[str, Any]) -> None:
        code = f" code {result['error_code']}" if result.get("error_code") is not None else ""
        why = result.get("error_message") or result.get("block_reason") or result.get("finish_reason") or ""
        text = f"{result['status']}{code}{': ' if why else ''}{' '.join(str(why).split())[:REASON_CHARS]}"
        self.rows += 1
        if text in self.counts or len(self.counts) < 1000:  # reasons that name their row would fill the memory
            self.counts[text] += 1
            self.examples.setdefault(text, key)

    def top(self) -> Iterator[Reason]:
        """The most frequent reasons."""
        for text, rows in self.counts.most_common(TOP):
            yield Reason(text, rows, self.examples[text])


def write_failures(attempt: Attempt, rounds: list[Round], leftovers: Leftovers) -> Failures:
    """
    Write ``failures.jsonl``: every row that was to be sent and is not ``ok``, with its request and the reason.

    A line is a ready-made request, so the file can be a ``source``: ``{"key", "request", "failure"}`` and the kept columns.
    """
    failures = Failures()
    path = attempt.run.output.failures
    with storage.writing(path, keep_empty=False) as file:
        for shard in shards_of(rounds):
            failed = _failed(attempt, shard, leftovers)
            if not failed:
                continue
            with shard.requests_in(attempt.work).open("rb") as lines:
                for row in read_rows_file(shard.rows_in(attempt.work)):
                    line = b"" if "unsent" in row else lines.readline()
                    result = failed.get(wire_key(row))
                    if result is None:
                        continue
                    failures.add(row["key"], result)
                    if line:
                        sent = exact.loads(for_any_model(line))
                        record = {**row.get("keep", {}), **sent, "failure": _told(result, shard)}
                        file.write(exact.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
                        failures.written += 1
    if not failures.written:
        storage.remove(path)
    return failures


def _failed(attempt: Attempt, shard: Shard, leftovers: Leftovers) -> dict[str, dict[str, Any]]:
    """Key as sent → result, of the rows of a slot that ended badly in it."""
    failed = {wire_key(left["row"]): left["result"] for left in leftovers.of(shard.slot)}
    settled = attempt.work.failed(shard.slot)
    if settled.exists():
        with settled.open("rb") as lines:
            for line in lines:
                body = orjson.loads(line)
                failed[body["key"]] = body["result"]
    return failed


def _told(result: dict[str, Any], shard: Shard) -> dict[str, Any]:
    told = {
        name: result.get(name) for name in ("status", "error_code", "error_message", "finish_reason", "block_reason")
    }
    return {name: value for name, value in told.items() if value is not None} | {"round": shard.slot.round}
