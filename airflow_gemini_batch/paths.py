"""URIs as users write them become paths: plain ``pathlib`` for local ones, ``ObjectStoragePath`` for all others."""

from __future__ import annotations

import glob
import io
import logging
import os
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import IO, Any, cast

from airflow_gemini_batch.core.rows import is_known
from airflow_gemini_batch.core.storage import StoragePath, is_local
from airflow_gemini_batch.exceptions import InvalidConfig, SourceUnreadable

log = logging.getLogger("airflow_gemini_batch")

WILDCARDS = "*?["

READ_BYTES = 1 << 18

PART_BYTES = 5 << 20
"""Of an object that is written, in memory at a time: the smallest that S3 takes, 10,000 of them."""

BLOCK_BYTES = 2 << 20
"""Of an object that is read, asked for at a time."""

HIDDEN = ("_", ".")
"""What begins so is no data by the custom of Hive and Spark: ``_SUCCESS``, ``.part.crc``, our own ``_gemini_batch``."""


def resolve(uri: str) -> StoragePath:
    """
    Return the path a URI names: ``/data/x``, ``file:///data/x``, ``s3://bucket/x`` or ``s3://conn_id@bucket/x``.

    :raises InvalidConfig: the URI is empty, or its filesystem is not installed or not known.
    """
    if not uri or not uri.strip():
        raise InvalidConfig("an empty path")
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return Path(uri).expanduser().absolute()
    if scheme == "file":
        return Path(rest).absolute()
    try:
        path = _storage_path()(uri)
        _ = path.fs  # Airflow 3.1 looks for the filesystem only now
    except (ValueError, ImportError) as e:
        raise InvalidConfig(f"{uri} cannot be opened: {e}. Is the provider or extra for {scheme}:// installed?") from e
    return cast("StoragePath", path)


@cache
def _storage_path() -> type[Any]:
    """``ObjectStoragePath`` with files that read lines fast and hold little: fsspec's take 50 MB for each line on S3."""
    from airflow.providers.common.compat.sdk import ObjectStoragePath

    class StorageUri(ObjectStoragePath):  # type: ignore[misc, unused-ignore]
        def open(self, mode: str = "r", **more: Any) -> Any:  # type: ignore[override]
            file: Any = super().open(mode, **{"block_size": BLOCK_BYTES if mode == "rb" else PART_BYTES} | more)  # type: ignore[no-untyped-call]
            return io.BufferedReader(_Raw(file), READ_BYTES) if mode == "rb" else file

    return StorageUri


class _Raw(io.RawIOBase):
    """What a ``BufferedReader`` reads from."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        # A large read in one piece is in memory five times over on its way: 50 MB for the 8 MB that an upload asks for.
        data = self._file.read(min(len(buffer), READ_BYTES))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def expand(uri: str) -> tuple[StoragePath, ...]:
    """
    Return the files that a URI names, in the order of their names.

    :param uri: a file; a directory (all files of known kinds below it); or a pattern of ``*``, ``?``, ``[abc]``, ``**`` for
        any directories, and ``{a,b}`` for alternatives. What begins with ``_`` or ``.`` is found only by a pattern that
        spells that sign.
    :raises SourceUnreadable: there are none, or none for one of the alternatives.
    """
    files = {str(path): path for one in _alternatives(uri) for path in _named(one)}
    return tuple(files[name] for name in sorted(files))


def _alternatives(uri: str) -> Iterator[str]:
    braces = re.search(r"\{([^{}]*,[^{}]*)\}", uri)
    if braces is None or _is_a_name(uri):
        yield uri
        return
    for one in braces[1].split(","):
        yield from _alternatives(uri[: braces.start()] + one + uri[braces.end() :])


def _is_a_name(uri: str) -> bool:
    """True when a file's own name has the signs of a pattern, as in ``reviews[1].csv``."""
    return not any(sign in uri for sign in "*?") and bool(resolve(uri).exists())


def _named(uri: str) -> list[Any]:
    if not any(sign in uri for sign in WILDCARDS) or _is_a_name(uri):
        path: Any = resolve(uri)
        _forget_listings(path)
        if not path.exists():
            raise SourceUnreadable(f"{uri} does not exist.")
        return _all_below(path, uri) if path.is_dir() else [path]
    local = "://" not in uri or uri.startswith("file://")
    # Split before the first wildcard; a local one is made absolute first.
    base, _, pattern = (str(resolve(uri)) if local else uri).rpartition("/")
    while any(sign in base for sign in WILDCARDS):
        base, _, last = base.rpartition("/")
        pattern = f"{last}/{pattern}"
    root: Any = resolve(base or "/")
    spelled = [segment for segment in pattern.split("/") if segment.startswith(HIDDEN)]
    found = [name for name in _matching(root, pattern) if not _is_hidden(name, spelled)]
    if not found:
        raise SourceUnreadable(
            f"No file matches {uri}. A pattern names files: end it with e.g. /*.parquet or /**/*.csv"
        )
    return [root / name for name in found]


def _all_below(root: Any, uri: str) -> list[Any]:
    """:raises SourceUnreadable: no file below ``root`` is of a known kind."""
    names = [name for name in _below(root) if not _is_hidden(name, [])]
    known = [name for name in names if is_known(name)]
    if not known:
        raise SourceUnreadable(f"{uri} is a directory without .csv, .jsonl or .parquet files.")
    if others := sorted({*names} - {*known}):
        shown = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
        log.warning("%s: %d files of other kinds are not read: %s", uri, len(others), shown)
    return [root / name for name in known]


def _is_hidden(name: str, spelled: list[str]) -> bool:
    return any(
        segment.startswith(HIDDEN) and not any(fnmatchcase(segment, pattern) for pattern in spelled)
        for segment in name.split("/")
    )


# Listing ----------------------------------------------------------------------------------------------------


def _matching(root: Any, pattern: str) -> list[str]:
    """Names of the files, from ``root``, that match."""
    if is_local(root):
        names = glob.glob(pattern, root_dir=root, recursive=True, include_hidden=True)  # noqa: PTH207 - names from root
        return [name for name in names if (root / name).is_file()]
    # The filesystem's own glob tells files from directories at once; ``ObjectStoragePath`` asks for each.
    _forget_listings(root)
    return _files(root, root.fs.glob(f"{root.path.rstrip('/')}/{pattern}", detail=True))


def _below(root: Any) -> list[str]:
    if not is_local(root):
        return _files(root, root.fs.find(root.path, detail=True))
    names: list[str] = []
    seen: set[tuple[int, int]] = set()
    for directory, below, files in os.walk(root, followlinks=True):
        at = Path(directory).stat()
        if (at.st_dev, at.st_ino) in seen:  # a link to a directory above
            below.clear()
            continue
        seen.add((at.st_dev, at.st_ino))
        names += [str((Path(directory) / name).relative_to(root)) for name in files]
    return names


def _files(root: Any, listed: object) -> list[str]:
    prefix = f"{root.path.rstrip('/')}/"
    _forget_listings(root)
    return [
        name.removeprefix(prefix)
        for name, info in cast("dict[str, dict[str, Any]]", listed).items()
        # Some tools put an empty object in place of each directory.
        if info["type"] == "file" and not name.endswith("/")
    ]


def _forget_listings(path: Any) -> None:
    """Filesystems remember what they listed for as long as the process lives, and then miss what came and went."""
    if not is_local(path):
        path.fs.invalidate_cache()
