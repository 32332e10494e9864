"""
Landing is safe: whatever a download or a disk does, no row is lost, none is doubled, and a part appears whole or not at
all. What belongs to no row is kept aside with its line number.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from airflow_gemini_batch.core import documents, landing, storage
from airflow_gemini_batch.emulator import Faults, HttpError, Truncation
from airflow_gemini_batch.exceptions import DownloadBroken, GeminiBatchError

ROWS = 200


def _many(bench: Any) -> Any:
    bench.rows = [{"id": f"row-{n}", "text": f"a bicycle, well kept {n}", "kept": n} for n in range(ROWS)]
    return bench


def _parts(bench: Any) -> list[Path]:
    return [path for path in (bench.directory / "out").glob("*") if not path.name.startswith(("_", "."))]


def _rejected(bench: Any) -> list[dict[str, Any]]:
    files = sorted((bench.directory / "out").rglob("rejected/*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


BROKEN: dict[str, Faults] = {
    "a break in the middle": Faults(truncate_download=Truncation(at=0.5, how="drop", times=2)),
    "a break in the first line": Faults(truncate_download=Truncation(at=40, how="drop", times=2)),
    "a break without an announced length": Faults(truncate_download=Truncation(at=0.5, how="chunked", times=2)),
    "a short file with a consistent length": Faults(truncate_download=Truncation(at=0.5, how="short", times=2)),
    "an empty file": Faults(truncate_download=Truncation(at=0, how="short", times=2)),
    "503": Faults(http_errors={"download": HttpError(503, times=2)}),
    "an HTML page": Faults(http_errors={"download": HttpError(502, html=True, times=2)}),
    "a reset": Faults(drop_before={"download": 2}),
    "the answer lost": Faults(drop_after={"download": 2}),
    "slow": Faults(slow_body=200_000),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_download_that_fails_twice_is_fetched_again_and_lands_whole(make_bench: Callable[..., Any], how: str) -> None:
    bench = _many(make_bench({"faults": BROKEN[how]}))
    bench.attempt()
    bench.check_paid_once()
    assert not _rejected(bench)


@pytest.mark.parametrize(
    "faults",
    [
        Faults(truncate_download=Truncation(at=0.5, how="drop")),
        Faults(truncate_download=Truncation(at=0.5, how="chunked")),
        Faults(http_errors={"download": HttpError(503)}),
        Faults(drop_before={"download": 1000}),
        Faults(http_errors={"download": HttpError(502, html=True)}),
    ],
    ids=["breaks", "breaks without an announced length", "503", "resets", "HTML pages"],
)
def test_a_download_that_keeps_failing_lands_nothing_and_the_next_attempt_has_it(
    make_bench: Callable[..., Any], faults: Faults
) -> None:
    bench = _many(make_bench({"faults": faults}))
    with pytest.raises(GeminiBatchError) as caught:
        bench.attempt()
    assert caught.value.retryable
    assert isinstance(caught.value, DownloadBroken)
    assert not _parts(bench)
    bench.emulator.faults = Faults()
    bench.attempt()
    bench.check_paid_once()


def test_a_file_that_always_ends_in_the_middle_of_a_line_is_not_taken_for_the_whole(
    make_bench: Callable[..., Any],
) -> None:
    """The job says how much it answered; sending the missing rows again would pay for them twice."""
    bench = _many(make_bench({"faults": Faults(truncate_download=Truncation(at=0.505, how="short"))}))
    with pytest.raises(GeminiBatchError) as caught:
        bench.attempt()
    assert caught.value.retryable
    bench.emulator.faults = Faults()
    bench.attempt()
    bench.check_paid_once()


@pytest.mark.parametrize("no_trailing_newline", [True, False])
@pytest.mark.parametrize("lines", [{1}, {100}, {ROWS}, {1, 2, 3, 50, 199, ROWS}], ids=str)
def test_corrupt_lines_are_kept_aside_and_only_their_rows_asked_again(
    make_bench: Callable[..., Any], lines: set[int], no_trailing_newline: bool
) -> None:
    bench = _many(make_bench({"faults": Faults(corrupt_lines=lines, no_trailing_newline=no_trailing_newline)}))
    manifest = bench.attempt(max_rounds=1)
    rejected = _rejected(bench)
    assert {one["line"] for one in rejected} == lines
    assert all(one["text"].startswith('{"') for one in rejected)
    assert manifest.odd_lines["corrupt"] == len(lines)
    assert manifest.counts["ok"] == ROWS - len(lines)
    assert manifest.counts["missing"] == len(lines)
    landed = bench.landed()
    assert all(row["text"] is None for row in landed.values() if row["status"] == "missing")


def test_corrupt_lines_rows_are_asked_again_in_the_next_round(make_bench: Callable[..., Any]) -> None:
    bench = _many(make_bench({"faults": Faults(corrupt_lines={7, 9})}))
    bench.attempt()
    bench.check_paid_once(jobs=2)
    assert {one["line"] for one in _rejected(bench)} == {7, 9}
    assert [job.request_count for job in bench.emulator.jobs] == [ROWS, 2]


ODD: dict[str, tuple[Faults, dict[str, int]]] = {
    "shuffled": (Faults(shuffle_rows=True), {}),
    "duplicated": (Faults(duplicate_keys={"row-3", "row-150"}), {"duplicate": 2}),
    "all duplicated": (Faults(duplicate_keys={"*"}), {"duplicate": ROWS}),
    "under unknown keys as well": (Faults(extra_keys=["row-1000", "nobody"]), {"unknown_key": 2}),
    "blank lines between": (Faults(blank_lines=True), {}),
    "carriage returns": (Faults(crlf=True), {}),
    "no newline at the end": (Faults(no_trailing_newline=True), {}),
    "all of it": (
        Faults(
            shuffle_rows=True, duplicate_keys={"row-3"}, extra_keys=["nobody"], blank_lines=True, crlf=True,
            no_trailing_newline=True,
        ),
        {"duplicate": 1, "unknown_key": 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", ODD)
def test_odd_lines_cost_no_row_and_are_counted(make_bench: Callable[..., Any], how: str) -> None:
    faults, odd = ODD[how]
    bench = _many(make_bench({"faults": faults}))
    manifest = bench.attempt()
    bench.check_paid_once()
    assert {name: n for name, n in manifest.odd_lines.items() if n} == odd
    assert len(_rejected(bench)) == sum(odd.values())


def test_a_row_under_another_rows_key_is_never_taken_for_it(make_bench: Callable[..., Any]) -> None:
    """row-1's answer comes back as a second row-2: the first line under the key counts, row-1 is asked again."""
    bench = make_bench({"faults": Faults(rename_keys={"row-4": "row-2"})})
    manifest = bench.attempt(max_rounds=1)
    landed = bench.landed()
    assert "row-2" in landed["row-2"]["text"]
    assert landed["row-4"]["status"] == "missing"
    assert manifest.odd_lines["duplicate"] == 1


@pytest.mark.parametrize(
    "faults",
    [Faults(drop_keys={"row-1", "row-5"}), Faults(keyless_keys={"row-1", "row-5"})],
    ids=["dropped", "keyless"],
)
def test_rows_without_a_line_are_landed_as_missing(make_bench: Callable[..., Any], faults: Faults) -> None:
    bench = make_bench({"faults": faults})
    manifest = bench.attempt()
    assert manifest.rounds == 2
    assert {key for key, row in bench.landed().items() if row["status"] == "missing"} == {"row-1", "row-5"}
    assert [job.request_count for job in bench.emulator.jobs] == [6, 2]


# The disk ---------------------------------------------------------------------------------------------------------


class FullDisk:
    """Fails once, at the nth call of a function."""

    def __init__(self, original: Callable[..., Any], nth: int, code: int) -> None:
        self.original, self.left, self.code = original, nth, code

    def __call__(self, *args: Any, **more: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise OSError(self.code, "as a full or failing disk would have it")
        return self.original(*args, **more)

    def __get__(self, instance: Any, owner: Any) -> Any:
        return self if instance is None else lambda *args, **more: self(instance, *args, **more)


DISK: dict[str, tuple[Any, str, int]] = {
    "writing request shards": (storage, "writing", 2),
    "putting the plan in force": (storage.os, "link", 2),
    "recording the upload": (storage.os, "fsync", 5),
    "claiming": (storage.os, "link", 3),
    "recording the job": (storage, "publish", 2),
    "fetching the results": (storage.os, "fsync", 9),
    "landing, the first rows": (landing.Part, "add_columns", 1),
    "landing, in a thread": (pq.ParquetWriter, "write_table", 1),
    "landing, another slot": (pq.ParquetWriter, "write_table", 2),
    "landing, at the end": (landing.Part, "close", 1),
    "recording what is landed": (storage, "publish", 6),
    "writing the manifest": (storage, "publish", 7),
}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT], ids=errno.errorcode.get)
@pytest.mark.parametrize("where", DISK)
def test_a_disk_that_fails_once_costs_nothing(
    bench: Any, monkeypatch: pytest.MonkeyPatch, where: str, code: int
) -> None:
    _many(bench)
    owner, name, nth = DISK[where]
    monkeypatch.setattr(owner, name, failing := FullDisk(getattr(owner, name), nth, code))
    with pytest.raises((OSError, GeminiBatchError)) as caught:
        bench.attempt(jobs_of=100)
    assert failing.left == 0, f"the disk was asked {nth - failing.left} times only"
    assert getattr(caught.value, "retryable", True), "a disk can be emptied"
    _check_no_half_parts(bench)
    bench.attempt(jobs_of=100)
    bench.check_paid_once(jobs=2)


def _check_no_half_parts(bench: Any) -> None:
    for path in _parts(bench):
        assert path.suffix == ".parquet"
        assert pq.read_table(path).num_rows == 100


def test_a_ledger_that_cannot_be_written_sends_nothing(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = storage.claim

    def refuse(path: Any, data: bytes) -> bool:
        if path.name.startswith("claim-"):
            raise OSError(errno.ENOSPC, "full")
        return claim(path, data)

    monkeypatch.setattr(storage, "claim", refuse)
    for _ in range(2):
        with pytest.raises(OSError, match="full"):
            bench.attempt()
    assert bench.emulator.calls["create"] == 0


@pytest.mark.parametrize("step", ["claim", "job", "landed", "upload", "cancel", "plan", "round"])
def test_a_ledger_that_cannot_be_read_sends_nothing(bench: Any, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Could not read is another fact than not there."""
    read = documents.storage.read

    def refuse(path: Any) -> bytes | None:
        if path.name.startswith(step):
            from airflow_gemini_batch.exceptions import StateUnreadable

            raise StateUnreadable(f"Could not read {path}")
        return read(path)

    from airflow_gemini_batch.core.flow import Waiting, advance

    services = bench.services()
    assert isinstance(advance(bench.a_run(), services, starting=True), Waiting)
    monkeypatch.setattr(storage, "read", refuse)
    if step in ("upload", "claim"):  # not asked for once the job is recorded
        (job,) = (bench.directory / "out").rglob("job.json")
        job.unlink()
    with pytest.raises(GeminiBatchError) as caught:
        advance(bench.a_run(), services, starting=True)
    services.client.close()
    assert caught.value.retryable
    assert bench.emulator.calls["create"] == 1
