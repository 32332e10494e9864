"""
Files that appear whole or not at all, on any path: a local one or an object store's.

A local file is written beside its final name and moved over it; on an object store one put of the final key is atomic
and a rename is not, so bytes are gathered on local disk and put at the end.
"""

from __future__ import annotations

import errno
import os
import pathlib
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, BinaryIO, Protocol, cast

from airflow_gemini_batch.exceptions import OutputNotWritable, StateUnreadable

COPY_BYTES = 1 << 20


class StoragePath(Protocol):
    """What we ask of a path: the part that ``pathlib.Path`` and Airflow's ``ObjectStoragePath`` have in common."""

    @property
    def name(self) -> str: ...
    @property
    def parent(self) -> Any: ...
    def __truediv__(self, name: str) -> Any: ...
    def open(self, mode: str) -> IO[Any]: ...
    def read_bytes(self) -> bytes: ...
    def write_bytes(self, data: bytes) -> Any: ...
    def unlink(self) -> None: ...
    def exists(self) -> bool: ...


def is_local(path: StoragePath) -> bool:
    """True for a plain ``pathlib.Path``: ``ObjectStoragePath`` is a subclass of it on Airflow 3.1, so compare types."""
    return type(path) is type(pathlib.Path())


def read(path: StoragePath) -> bytes | None:
    """
    Return a small document's bytes, or None when it certainly is not there.

    :raises StateUnreadable: it could not be told, which is another fact than "not there".
    """
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as e:
        raise StateUnreadable(f"Could not read {path}: {type(e).__name__}: {e}") from e


def publish(path: StoragePath, data: bytes) -> None:
    """Put ``data`` at ``path``, replacing what is there; no reader ever sees a part of it."""
    with writing(path) as f:
        f.write(data)


def claim(path: StoragePath, data: bytes) -> bool:
    """
    Create ``path`` with ``data`` unless it exists; False when somebody else was first.

    Local: a hard link of a finished file, so that whoever loses reads a whole document. Object stores: exclusive
    create (S3: a conditional put), which becomes visible at close.
    """
    with _telling_unwritable(path):
        if is_local(path) and (won := _claim_local(cast("pathlib.Path", path), data)) is not None:
            return won
        try:
            with path.open("xb") as f:
                f.write(data)
        except FileExistsError:
            return False
        return True


def _claim_local(path: pathlib.Path, data: bytes) -> bool | None:
    """Link a finished file to the name; None where the filesystem has no hard links."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        _write_synced(temporary, data)
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as e:
        if e.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        return None
    finally:
        temporary.unlink(missing_ok=True)
    return True


@contextmanager
def _telling_unwritable(path: StoragePath) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        if e.errno not in UNWRITABLE:
            raise
        raise OutputNotWritable(f"Cannot write {path}: {type(e).__name__}: {e}") from e


@contextmanager
def writing(path: StoragePath, *, keep_empty: bool = True) -> Iterator[BinaryIO]:
    """
    Give a binary file whose content becomes ``path`` when the block ends well, and vanishes when it does not.

    :param keep_empty: False: a file in which nothing was written does not appear.
    :raises OutputNotWritable: the place cannot be written to (no permission, not a directory, read-only).
    """
    with _telling_unwritable(path), _spool(path) as (spool, put):
        yield spool
        if keep_empty or spool.tell():
            put()


UNWRITABLE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR})
"""What a retry cannot mend. A full disk is not among them."""


@contextmanager
def _spool(path: StoragePath) -> Iterator[tuple[BinaryIO, Callable[[], None]]]:
    """A place to gather bytes, and how to put them at ``path`` once they are all there."""
    if is_local(path):
        local = cast("pathlib.Path", path)
        local.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(local)
        try:
            with temporary.open("x+b") as f:

                def move() -> None:
                    f.flush()
                    os.fsync(f.fileno())
                    temporary.replace(local)

                yield f, move
        finally:
            temporary.unlink(missing_ok=True)
        return
    with tempfile.TemporaryFile(prefix="gemini-batch-") as spool:

        def put() -> None:
            spool.seek(0)
            with path.open("wb") as target:
                shutil.copyfileobj(spool, target, COPY_BYTES)

        yield cast("BinaryIO", spool), put


@contextmanager
def local_copy(path: StoragePath) -> Iterator[BinaryIO]:
    """Open ``path`` for reading with cheap seeks: itself when local, else a copy on local disk for as long as needed."""
    if is_local(path):
        with path.open("rb") as f:
            yield cast("BinaryIO", f)
        return
    with tempfile.TemporaryFile(prefix="gemini-batch-") as copy:
        with path.open("rb") as f:
            shutil.copyfileobj(f, copy, COPY_BYTES)
        copy.seek(0)
        yield cast("BinaryIO", copy)


def remove(path: StoragePath) -> None:
    """Delete a file; no error when it is gone already."""
    with suppress(FileNotFoundError, NotADirectoryError):
        path.unlink()


def _beside(path: pathlib.Path) -> pathlib.Path:
    # A leading dot: readers of a directory (pyarrow, Spark, Hive) pass over such names.
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")


def _write_synced(path: pathlib.Path, data: bytes) -> None:
    with path.open("xb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
