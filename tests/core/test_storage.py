from __future__ import annotations

import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from airflow_gemini_batch.core import storage
from airflow_gemini_batch.exceptions import OutputNotWritable, StateUnreadable


@pytest.fixture(params=["local", "object store"])
def directory(request, tmp_path) -> Any:
    """The same claims for a plain path and for what Airflow's ``ObjectStoragePath`` is made of (a store in memory)."""
    return tmp_path if request.param == "local" else UPath(f"memory://{tmp_path.name}")


def names(directory: Any) -> list[str]:
    return sorted(path.name for path in directory.iterdir()) if directory.exists() else []


def test_what_is_published_is_read(directory):
    path = directory / "a" / "b.json"
    storage.publish(path, b"one")
    assert storage.read(path) == b"one"
    storage.publish(path, b"two, longer")
    storage.publish(path, b"3")
    assert storage.read(path) == b"3"


def test_a_file_that_is_not_there_is_none(directory):
    assert storage.read(directory / "gone") is None
    assert storage.read(directory / "no" / "such" / "gone") is None


def test_a_place_under_a_file_holds_nothing(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    assert storage.read(tmp_path / "file" / "below") is None


def test_could_not_tell_is_not_none(tmp_path):
    with pytest.raises(StateUnreadable, match="Could not read"):
        storage.read(tmp_path)


def test_a_block_that_fails_leaves_nothing_and_keeps_what_was_there(directory):
    storage.publish(directory / "old", b"old")

    def fail_half_way(name: str) -> None:
        with storage.writing(directory / name) as f:
            f.write(b"half a")
            raise RuntimeError

    for name in ("old", "new"):
        with pytest.raises(RuntimeError):
            fail_half_way(name)
    assert names(directory) == ["old"]
    assert storage.read(directory / "old") == b"old"


def test_nobody_sees_a_file_before_it_is_whole(directory):
    path = directory / "x"
    with storage.writing(path) as f:
        f.write(b"half")
        f.flush()
        assert storage.read(path) is None
    assert storage.read(path) == b"half"


def test_a_file_in_the_making_has_a_name_that_readers_of_tables_pass_over(tmp_path):
    with storage.writing(tmp_path / "part.parquet") as f:
        f.write(b"x")
        assert [name for name in names(tmp_path) if not name.startswith((".", "_"))] == []
    assert names(tmp_path) == ["part.parquet"]


def test_an_empty_file_appears_only_if_it_is_wanted(directory):
    with storage.writing(directory / "wanted"):
        pass
    with storage.writing(directory / "unwanted", keep_empty=False):
        pass
    assert names(directory) == ["wanted"]


def test_a_block_may_read_back_and_start_over(directory):
    with storage.writing(directory / "x") as f:
        f.write(b"first try")
        f.seek(0)
        assert f.read() == b"first try"
        f.seek(0)
        f.truncate()
        f.write(b"second")
    assert storage.read(directory / "x") == b"second"


def test_a_place_that_cannot_be_written_says_so_and_a_retry_is_not_asked_for(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "directory").mkdir()
    for path in (tmp_path / "file" / "x", tmp_path / "file" / "y" / "x", tmp_path / "directory"):
        with pytest.raises(OutputNotWritable) as caught:
            storage.publish(path, b"x")
        assert str(path) in str(caught.value)
        assert not caught.value.retryable


def test_a_claim_in_a_place_that_cannot_be_written_says_so_too(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(OutputNotWritable):
        storage.claim(tmp_path / "file" / "claim", b"x")


def test_the_first_claim_wins_and_stays_as_it_is(directory):
    path = directory / "claims" / "claim-1"
    assert storage.claim(path, b"first")
    assert not storage.claim(path, b"second")
    assert storage.read(path) == b"first"
    assert names(directory / "claims") == ["claim-1"]


def test_exactly_one_of_many_threads_wins_a_claim_and_every_loser_reads_it_whole(tmp_path):
    data = {n: f"{n:02d}".encode() * 50_000 for n in range(16)}
    start = threading.Barrier(len(data))

    def attempt(n: int) -> tuple[bool, bytes | None]:
        start.wait()
        won = storage.claim(tmp_path / "claim", data[n])
        return won, storage.read(tmp_path / "claim")

    with ThreadPoolExecutor(len(data)) as pool:
        results = list(pool.map(attempt, data))
    winners = [n for n, (won, _) in zip(data, results, strict=True) if won]
    assert len(winners) == 1
    assert {seen for _, seen in results} == {data[winners[0]]}
    assert names(tmp_path) == ["claim"]


def _claim_many(directory: Path, who: int, wins: Any) -> None:
    for n in range(200):
        if storage.claim(directory / f"claim-{n}", str(who).encode()):
            wins.put((n, who))
    wins.put(None)


def test_exactly_one_of_many_processes_wins_each_claim(tmp_path):
    context = multiprocessing.get_context("spawn")
    wins = context.Queue()
    processes = [context.Process(target=_claim_many, args=(tmp_path, who, wins)) for who in range(2)]
    for process in processes:
        process.start()
    won: list[tuple[int, int]] = []
    ended = 0
    while ended < len(processes):
        one = wins.get(timeout=30)
        ended += one is None
        won += [one] if one else []
    for process in processes:
        process.join()
    assert sorted(n for n, _ in won) == list(range(200))
    assert all(storage.read(tmp_path / f"claim-{n}") == str(who).encode() for n, who in won)


def test_a_copy_for_seeking_has_the_same_bytes(directory):
    storage.publish(directory / "x", b"0123456789" * 300_000)
    with storage.local_copy(directory / "x") as f:
        f.seek(10)
        assert f.read(4) == b"0123"
        assert f.seek(0, 2) == 3_000_000


def test_removing_twice_is_no_error(directory):
    storage.publish(directory / "x", b"x")
    storage.remove(directory / "x")
    storage.remove(directory / "x")
    assert storage.read(directory / "x") is None


def test_only_plain_paths_are_local(directory, tmp_path):
    assert storage.is_local(tmp_path / "x")
    assert storage.is_local(directory) is (directory == tmp_path)
