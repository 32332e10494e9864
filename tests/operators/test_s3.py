"""A whole run with source and output on an S3 service (moto's): the same promises as on a local disk."""

from __future__ import annotations

import io
import json
import threading
import tracemalloc
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from airflow_gemini_batch.core import storage
from airflow_gemini_batch.core.landing import Part
from airflow_gemini_batch.core.ledger import Ledger
from airflow_gemini_batch.core.shards import Limits
from airflow_gemini_batch.emulator import Emulator, Faults, Truncation
from airflow_gemini_batch.exceptions import SettingsChanged
from airflow_gemini_batch.paths import resolve

from ..conftest import batch_operator, run_operator, task_context
from ..test_paths import BUCKET, s3, s3_connection  # noqa: F401 - a fixture

pytestmark = pytest.mark.services

ROWS = [{"id": f"k{n}", "text": f"row {n}"} for n in range(6)]


@pytest.fixture
def lake(s3: str, connection: str, monkeypatch: pytest.MonkeyPatch) -> str:  # noqa: F811
    monkeypatch.setenv("AIRFLOW_CONN_LAKE_S3", s3_connection(s3))
    place = f"s3://lake_s3@{BUCKET}/{uuid.uuid4().hex}"
    resolve(f"{place}/in/rows.jsonl").write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in ROWS))
    return place


@pytest.fixture
def ask(lake: str, tmp_path: Path) -> Callable[..., Any]:
    """Run the task, three slots of two rows; returns its manifest."""

    def run(context: Any = None, **settings: Any) -> Any:
        defaults = {
            "source": f"{lake}/in/*.jsonl", "output": f"{lake}/out", "prompt": "Say {text}", "key": "id",
            "keep": ["text"], "limits": Limits(requests_per_job=2),
        }  # fmt: skip
        return run_operator(batch_operator(tmp_path, **(defaults | settings)), context)

    return run


def table(manifest: Any) -> list[dict[str, Any]]:
    files = [io.BytesIO(resolve(name).read_bytes()) for name in manifest["files"]]
    rows = [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]
    return sorted(rows, key=lambda row: str(row["key"]))


def is_whole(manifest: Any) -> bool:
    landed = [(row["key"], row["status"], row["text"] is not None) for row in table(manifest)]
    return landed == [(row["id"], "ok", True) for row in ROWS] and all(manifest["counts"][s] == 0 for s in ("missing",))


@pytest.mark.parametrize("file_format", ["parquet", "jsonl", "csv"])
def test_every_row_lands_once(ask: Callable[..., Any], lake: str, emulator: Emulator, file_format: str) -> None:
    manifest = ask(keep=[], file_format=file_format)
    assert manifest["counts"]["ok"] == len(ROWS)
    assert emulator.jobs_created == 3
    assert all(name.startswith(f"{lake}/out/part-") for name in manifest["files"])
    content = b"".join(resolve(name).read_bytes() for name in manifest["files"])
    if file_format != "parquet":
        assert all(row["id"].encode() in content for row in ROWS)


def test_a_cleared_run_lands_again_and_pays_nothing(ask: Callable[..., Any], emulator: Emulator) -> None:
    first = ask(keep=[])
    before = table(first)
    for name in first["files"]:
        resolve(name).unlink()
    again = ask(task_context(try_number=2, max_tries=1), keep=[])
    assert table(again) == before
    assert emulator.jobs_created == 3


def test_never_reuse_pays_anew_when_cleared_and_a_changed_prompt_is_refused(
    ask: Callable[..., Any], emulator: Emulator
) -> None:
    ask(keep=[])
    manifest = ask(task_context(try_number=2, max_tries=1), keep=[], reuse="never")
    assert is_whole(manifest)
    assert emulator.jobs_created == 6
    with pytest.raises(Exception, match="prompt") as caught:
        ask(task_context(try_number=3, max_tries=1), keep=[], prompt="Sing {text}")
    assert SettingsChanged.__name__ in repr(caught.value) or isinstance(caught.value.__cause__, SettingsChanged)


class Killed(BaseException):
    """As SIGKILL, as far as storage can tell: nothing after it is written."""


@pytest.mark.parametrize(
    ("where", "method", "nth"),
    [(Ledger, "claim", 2), (Ledger, "submitted", 2), (Part, "add_columns", 2), (Ledger, "landed", 2)],
    ids=["after a claim", "after a create, before its record", "while landing", "before a slot is recorded as landed"],
)
def test_killed_and_retried_it_pays_once(
    ask: Callable[..., Any], emulator: Emulator, monkeypatch: pytest.MonkeyPatch, where: type, method: str, nth: int
) -> None:
    original, calls = getattr(where, method), []

    def killed(*args: Any, **more: Any) -> Any:
        calls.append(method)
        if len(calls) == nth:
            if method == "claim":
                original(*args, **more)
            raise Killed
        return original(*args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(where, method, killed)
        with pytest.raises(Killed):
            ask(keep=[])
    assert is_whole(ask(task_context(try_number=2), keep=[]))
    assert emulator.jobs_created == 3


@pytest.mark.parametrize("how", ["drop", "short"])
def test_a_download_that_breaks_while_it_is_read_lands_whole(
    ask: Callable[..., Any], emulator: Emulator, how: str
) -> None:
    emulator.faults = Faults(truncate_download=Truncation(at=0.6, how=how, times=2))  # type: ignore[arg-type]
    assert is_whole(ask(keep=[]))
    assert emulator.jobs_created == 3


def test_of_many_claims_at_once_one_wins(lake: str) -> None:
    together = threading.Barrier(8)

    def claim(number: int) -> bool:
        together.wait()
        return storage.claim(resolve(f"{lake}/claim.json"), b"%d" % number)

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(claim, range(8)))
    assert won.count(True) == 1
    assert resolve(f"{lake}/claim.json").read_bytes() == b"%d" % won.index(True)


def test_lines_of_a_large_object_are_read_with_little_memory(lake: str) -> None:
    line = b"x" * 999 + b"\n"
    path = resolve(f"{lake}/large.jsonl")
    with storage.writing(path) as file:
        for _ in range(30):
            file.write(line * 1000)
    tracemalloc.start()
    try:
        with path.open("rb") as lines:
            assert sum(one == line for one in lines) == 30_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    server_side = 30_000 * len(line)  # moto answers in this process, and holds the whole object for each piece
    assert peak < server_side + 20e6
