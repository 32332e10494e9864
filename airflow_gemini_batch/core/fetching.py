"""
Result files come from the service to storage, and are read while they come.

A thread downloads; the reader gets each byte as soon as it is on local disk, and the end of the file only when all of it was
checked and lies on storage. So whoever has read to the end may rely on that, and on local disk the file lies once.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

from airflow_gemini_batch.core import storage
from airflow_gemini_batch.core.attempt import Attempt
from airflow_gemini_batch.core.downloading import READ_BYTES, fetch
from airflow_gemini_batch.core.storage import StoragePath
from airflow_gemini_batch.exceptions import GeminiBatchError

ABANDON_TAKES = 1.0
"""Seconds that a download gets to notice that nobody wants it any more, when the process is told to stop."""


class StartedOver(GeminiBatchError):
    """What was read belongs to a download that broke. The file is on storage now: read it anew, from its beginning."""


@contextmanager
def fetching(attempt: Attempt, path: StoragePath, *, job: str, name: str, due: int) -> Iterator[BinaryIO]:
    """
    Bring a result file to storage, and give it for reading meanwhile. If the block fails, the file is brought all the same:
    it is paid for, and the service does not keep it for ever.

    :param path: where it belongs; it appears whole or not at all.
    :param name: the service's name for it.
    :param due: lines it should have.
    :raises StartedOver: from a read; see there.
    :raises ResultsLost: from a read: the service does not give the file out any more.
    :raises DownloadBroken: from a read: it could not be had this time.
    """
    coming = _Coming()
    thread = threading.Thread(
        target=_run, args=(coming, attempt, path, job, name, due), name="gemini-fetch", daemon=True
    )
    thread.start()
    try:
        with io.BufferedReader(coming, READ_BYTES) as reader:
            yield cast("BinaryIO", reader)
        thread.join()
    except Exception:
        thread.join()
        raise
    except BaseException:  # the process is told to stop, and has seconds
        coming.abandon()
        thread.join(ABANDON_TAKES)
        raise


def _run(coming: _Coming, attempt: Attempt, path: StoragePath, job: str, name: str, due: int) -> None:
    try:
        _fetch(coming, attempt, path, job=job, name=name, due=due)
    except BaseException as e:  # whatever it is, it is the reader's to raise
        coming.end(e)
    else:
        coming.end()


def _fetch(coming: _Coming, attempt: Attempt, path: StoragePath, *, job: str, name: str, due: int) -> None:
    with storage.writing(path, keep_empty=False) as f:
        fetch(
            attempt.client, job, name, coming.written_to(f), due=due, sleep=attempt.services.sleep,
            anew='Clear the task with reuse="never"',
        )  # fmt: skip


class _Coming(io.RawIOBase):
    """
    The file on its way, for two threads. The reader has a descriptor of its own, so that the file may be moved, or put on an
    object store and forgotten, while it is still read.
    """

    def __init__(self) -> None:
        super().__init__()
        self._changed = threading.Condition()
        self._descriptor: int | None = None
        self._there = self._position = 0
        self._given = self._stale = self._over = self._abandoned = False
        self._error: BaseException | None = None

    # What the download does ----------------------------------------------------------------------------------

    def written_to(self, file: BinaryIO) -> BinaryIO:
        """Return the file that a download is to be written to. Readers see it, unless they have read of an earlier one."""
        with self._changed:
            self._begin_anew()
            self._let_go()
            if not self.closed:
                self._descriptor = os.dup(file.fileno())
        return cast("BinaryIO", _Told(file, self))

    def wrote(self, size: int) -> None:
        with self._changed:
            if self._abandoned:
                raise _Abandoned
            self._there += size
            self._changed.notify_all()

    def truncated(self) -> None:
        with self._changed:
            self._begin_anew()

    def _begin_anew(self) -> None:
        self._there = 0
        self._stale = self._given  # a reader then waits for the end, and hears that what it has is worth nothing

    def end(self, error: BaseException | None = None) -> None:
        with self._changed:
            self._over, self._error = True, error
            self._changed.notify_all()

    # What the reader does ------------------------------------------------------------------------------------

    def abandon(self) -> None:
        with self._changed:
            self._abandoned = True

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            raise io.UnsupportedOperation("the end is not known yet")
        self._position = offset + (self._position if whence == io.SEEK_CUR else 0)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        with self._changed:
            while not self._over and (self._stale or self._position >= self._there):
                self._changed.wait()
            if self._error is not None:
                raise self._error
            if self._stale:
                raise StartedOver
            if self._descriptor is None:
                return 0
            # Still under the lock: no bytes must mean the end, and never a file that is being truncated.
            size = os.preadv(self._descriptor, [buffer], self._position)
            self._given = self._given or size > 0
        self._position += size
        return size

    def close(self) -> None:
        with self._changed:
            self._let_go()
            super().close()

    def _let_go(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class _Told:
    """A file that tells what is done to it."""

    def __init__(self, file: BinaryIO, coming: _Coming) -> None:
        self._file, self._coming = file, coming

    def write(self, data: bytes) -> int:
        size = self._file.write(data)
        self._file.flush()
        self._coming.wrote(size)
        return size

    def truncate(self) -> int:
        self._coming.truncated()
        return self._file.truncate()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def readlines(self, hint: int = -1) -> list[bytes]:
        return self._file.readlines(hint)

    def flush(self) -> None:
        self._file.flush()


class _Abandoned(BaseException):
    """Ends a download that nobody wants any more; no handler of errors may take it for one."""
