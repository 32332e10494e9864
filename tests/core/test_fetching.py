"""A result file is read while it comes; its end is seen only when it is whole and on storage."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import pytest

from airflow_gemini_batch.core.downloading import SHORT_TRIES
from airflow_gemini_batch.core.fetching import StartedOver, fetching
from airflow_gemini_batch.exceptions import DownloadBroken, RequestRefused, ResultsLost

LINES = [b'{"key":"%d"}\n' % n for n in range(3)]
WHOLE = b"".join(LINES)
SOON = 20.0

Download = Callable[[BinaryIO], None]


@contextmanager
def coming(path: Path, *downloads: Download, due: int = len(LINES)) -> Iterator[BinaryIO]:
    """Give the file that these downloads, one after the other, bring; the last one is repeated."""
    left = list(downloads)

    def download(name: str, to: BinaryIO) -> int:
        to.seek(0)
        to.truncate()
        (left.pop(0) if len(left) > 1 else left[0])(to)
        return 0

    attempt: Any = SimpleNamespace(
        client=SimpleNamespace(download=download, file=lambda name: None),
        services=SimpleNamespace(sleep=lambda seconds: None),
    )
    with fetching(attempt, path, job="batches/a", name="files/a", due=due) as file:
        yield file


def writes(*pieces: bytes) -> Download:
    def download(to: BinaryIO) -> None:
        for piece in pieces:
            to.write(piece)

    return download


def test_a_line_is_read_before_the_next_one_has_come(tmp_path: Path) -> None:
    was_read = threading.Event()

    def download(to: BinaryIO) -> None:
        to.write(LINES[0])
        assert was_read.wait(SOON)
        to.write(LINES[1] + LINES[2])

    with coming(tmp_path / "x", download) as file:
        assert file.readline() == LINES[0]
        was_read.set()
        assert file.readlines() == LINES[1:]


def test_the_end_is_seen_when_the_file_is_on_storage(tmp_path: Path) -> None:
    path = tmp_path / "results" / "x"
    with coming(path, writes(*LINES)) as file:
        assert file.read() == WHOLE
        assert path.read_bytes() == WHOLE


def test_earlier_lines_can_be_read_again_from_their_place(tmp_path: Path) -> None:
    with coming(tmp_path / "x", writes(WHOLE)) as file:
        assert file.readlines() == LINES
        file.seek(len(LINES[0]))
        assert file.readline() == LINES[1]
        file.seek(len(WHOLE))
        assert file.readline() == b""


@pytest.mark.parametrize("how", ["within a download", "by another download"])
def test_what_was_read_before_a_download_started_over_counts_for_nothing(tmp_path: Path, how: str) -> None:
    was_read = threading.Event()

    def breaks(to: BinaryIO) -> None:
        to.write(b"another line\n")
        assert was_read.wait(SOON)
        if how == "within a download":
            to.seek(0)
            to.truncate()
            to.write(WHOLE)

    with pytest.raises(StartedOver), coming(tmp_path / "x", breaks, writes(WHOLE)) as file:  # noqa: PT012
        assert file.readline() == b"another line\n"
        was_read.set()
        file.readline()
    assert (tmp_path / "x").read_bytes() == WHOLE


def test_a_download_that_started_over_before_anything_was_read_is_nothing_special(tmp_path: Path) -> None:
    with coming(tmp_path / "x", writes(), writes(WHOLE)) as file:
        assert file.read() == WHOLE


def test_a_file_that_stays_short_is_taken_for_the_truth_and_one_that_is_torn_is_not(tmp_path: Path) -> None:
    with coming(tmp_path / "short", *[writes()] * (SHORT_TRIES - 1), writes(LINES[0])) as file:
        assert file.read() == LINES[0]
    with pytest.raises(DownloadBroken), coming(tmp_path / "torn", writes(LINES[0] + b'{"key')) as file:
        file.read()
    assert not (tmp_path / "torn").exists()


def test_an_empty_file_does_not_appear(tmp_path: Path) -> None:
    with coming(tmp_path / "x", writes()) as file:
        assert file.read() == b""
    assert list(tmp_path.iterdir()) == []


def test_results_that_are_refused_are_an_error_where_they_are_read(tmp_path: Path) -> None:
    def refused(to: BinaryIO) -> None:
        raise RequestRefused("it is gone", code=404)

    with pytest.raises(ResultsLost, match="it is gone"), coming(tmp_path / "x", refused) as file:
        file.readline()


def test_a_landing_that_fails_leaves_the_results_on_storage(tmp_path: Path) -> None:
    failed = threading.Event()

    def download(to: BinaryIO) -> None:
        to.write(LINES[0])
        assert failed.wait(SOON)
        to.write(LINES[1] + LINES[2])

    with pytest.raises(ZeroDivisionError), coming(tmp_path / "x", download) as file:  # noqa: PT012
        file.readline()
        threading.Timer(0.1, failed.set).start()
        raise ZeroDivisionError
    assert (tmp_path / "x").read_bytes() == WHOLE


def test_a_process_that_is_told_to_stop_does_not_wait_for_its_download(tmp_path: Path) -> None:
    stopped, told = threading.Event(), threading.Event()

    def endless(to: BinaryIO) -> None:
        try:
            while not told.wait(0.01):
                to.write(LINES[0])
        finally:
            stopped.set()

    with pytest.raises(KeyboardInterrupt), coming(tmp_path / "x", endless) as file:  # noqa: PT012
        file.readline()
        raise KeyboardInterrupt
    assert stopped.wait(SOON)
    told.set()
