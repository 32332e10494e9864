"""Small JSON documents with a kind and a version: how plans, ledger steps and manifests cross processes and releases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import orjson

from airflow_gemini_batch.core import storage
from airflow_gemini_batch.core.storage import StoragePath
from airflow_gemini_batch.exceptions import StateTooNew, StateUnreadable

VERSION = 1


def dump(kind: str, body: Mapping[str, Any]) -> bytes:
    """Return the document's bytes: ``body`` under its kind and the version we write."""
    return orjson.dumps({"kind": kind, "version": VERSION, **body}, option=orjson.OPT_INDENT_2)


def parse(kind: str, data: bytes, *, where: str) -> dict[str, Any]:
    """
    Return a document's body.

    :raises StateUnreadable: it is damaged, or another kind of document.
    :raises StateTooNew: a later release wrote it.
    """
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError as e:
        raise StateUnreadable(f"{where} is damaged ({e}). Restore it, or remove its directory to start anew.") from e
    if not isinstance(body, dict) or body.get("kind") != kind or not isinstance(body.get("version"), int):
        raise StateUnreadable(f"{where} is not a {kind} document of this package.")
    if body["version"] > VERSION:
        raise StateTooNew(
            f"{where} has version {body['version']}; this release of airflow-gemini-batch reads up to {VERSION}. "
            "Upgrade it on this worker, or finish the run with the release that began it."
        )
    return body


@contextmanager
def understood(where: StoragePath) -> Iterator[None]:
    """:raises StateUnreadable: the block found a document's fields missing or of another shape."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise StateUnreadable(f"{where} lacks what it should hold: {type(e).__name__}: {e}") from e


def known(kind: type, body: Mapping[str, Any]) -> dict[str, Any]:
    """
    The fields of a dataclass that a document has. Those that an older release did not write take their defaults; those
    that only it, or only a later one, writes are passed over.
    """
    return {name: body[name] for name in kind.__dataclass_fields__ if name in body}  # type: ignore[attr-defined]


def read(kind: str, path: StoragePath) -> dict[str, Any] | None:
    """Return the document at ``path``, None when it certainly is not there; raises like :func:`parse`."""
    data = storage.read(path)
    return None if data is None else parse(kind, data, where=str(path))
