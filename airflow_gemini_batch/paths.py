"""URIs as users write them become paths: plain ``pathlib`` for local ones, ``ObjectStoragePath`` for all others."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

from airflow_gemini_batch.core.storage import StoragePath
from airflow_gemini_batch.exceptions import InvalidConfig, SourceUnreadable

WILDCARDS = "*?["


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
    from airflow.providers.common.compat.sdk import ObjectStoragePath

    try:
        return ObjectStoragePath(uri)
    except (ValueError, ImportError) as e:
        raise InvalidConfig(f"{uri} cannot be opened: {e}. Is the provider or extra for {scheme}:// installed?") from e


def expand(uri: str) -> tuple[StoragePath, ...]:
    """
    Return the files that a URI or glob names, in the order of their names.

    :raises SourceUnreadable: there are none.
    """
    if not any(sign in uri for sign in WILDCARDS):
        path = resolve(uri)
        _check_there(path, uri)
        return (path,)
    if "://" not in uri or uri.startswith("file://"):
        local = str(resolve(uri))
        found: list[Any] = [Path(name) for name in sorted(glob.glob(local, recursive=True))]  # noqa: PTH207 - absolute
    else:
        # Split before the first wildcard: glob() is relative to a path.
        base, _, pattern = uri.rpartition("/")
        while any(sign in base for sign in WILDCARDS):
            base, _, last = base.rpartition("/")
            pattern = f"{last}/{pattern}"
        root: Any = resolve(base)
        found = sorted(root.glob(pattern), key=str)
    files = tuple(path for path in found if path.is_file())
    if not files:
        raise SourceUnreadable(f"No file matches {uri}.")
    return files


def _check_there(path: Any, uri: str) -> None:
    if not path.exists():
        raise SourceUnreadable(f"{uri} does not exist.")
    if path.is_dir():
        raise SourceUnreadable(f"{uri} is a directory. Name the files in it, e.g. {uri.rstrip('/')}/*.parquet")
