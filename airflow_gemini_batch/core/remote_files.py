"""Files at the Files API: what the service says of one, and how one of ours is read for it."""

from __future__ import annotations

import base64
import io
import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

from airflow_gemini_batch.core.jobs import timestamp

log = logging.getLogger("airflow_gemini_batch.core.client")

TELL_EVERY = 10.0
"""Seconds between two lines about one upload."""


@dataclass(frozen=True)
class RemoteFile:
    """
    A file at the Files API.

    :param expires_at: Unix time (the API keeps files for 48 hours), or None if it did not say.
    :param uri: how requests name it.
    :param state: ``PROCESSING`` at first for some kinds, ``ACTIVE`` once it can be used, ``FAILED`` with ``error``.
    :param sha256: of its content, in hex, None if it is not known.
    :param found: it was there already when it was to be uploaded.
    """

    name: str
    size: int
    expires_at: float | None = None
    uri: str = ""
    state: str = "ACTIVE"
    error: str = ""
    sha256: str | None = None
    found: bool = False


def remote_file(facts: Mapping[str, Any], name: str) -> RemoteFile:
    expires = facts.get("expiration_time")
    at = timestamp(expires) if isinstance(expires, str) else expires
    error = facts.get("error")
    return RemoteFile(
        str(facts.get("name") or name),
        int(facts.get("size_bytes") or 0),
        at.timestamp() if at else None,
        uri=str(facts.get("uri") or ""),
        state=str(getattr(facts.get("state"), "value", facts.get("state")) or "ACTIVE"),
        error=str(error.get("message") or "") if isinstance(error, Mapping) else "",
        sha256=_sha256(facts.get("sha256_hash")),
    )


def _sha256(told: object) -> str | None:
    """The service sends base64 of the digest in hex; base64 of the digest itself is read too."""
    try:
        raw = base64.b64decode(str(told or ""), validate=True)
    except ValueError:
        return None
    digest = raw.hex() if len(raw) == 32 else raw.decode("ascii", "replace").lower()
    return digest if re.fullmatch("[0-9a-f]{64}", digest) else None


def piece_not_taken(answer: Any) -> None:
    """
    For the SDK's HTTP client: an answer that refuses a piece of an upload for now loses the word that the upload is open.

    The SDK looks at that word before the HTTP status, and would go on with the next piece. Without it the piece is sent
    again, and a refusal that stays is an error with its status.
    """
    for_now = answer.status_code in (408, 429) or answer.status_code >= 500
    if for_now and "upload_id=" in str(answer.request.url):
        answer.headers.pop("x-goog-upload-status", None)


class AsIOBase(io.RawIOBase):
    """A file as the SDK insists on it: Airflow wraps those of object stores in a class that is no ``io.IOBase``."""

    def __init__(self, file: IO[Any], progress: Progress) -> None:
        super().__init__()
        self._file, self._progress = file, progress

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        self._progress.sent(self._file.tell())  # the SDK reads on when the service has what it read before
        data: bytes = self._file.read(size)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._file.seek(offset, whence)
        at = self._file.tell()
        if whence == io.SEEK_END:
            self._progress.size = at
        return at

    def tell(self) -> int:
        return self._file.tell()


class Progress:
    """Tells of an upload that takes its time, every :data:`TELL_EVERY`; the SDK asks for the size before it reads."""

    def __init__(self, name: str) -> None:
        self._name, self.size, self._told_at = name, 0, time.monotonic()

    def sent(self, size: int) -> None:
        now = time.monotonic()
        if now - self._told_at >= TELL_EVERY:
            self._told_at = now
            log.info("%s: %s of %s MB uploaded", self._name, f"{size / 1e6:,.0f}", f"{self.size / 1e6:,.0f}")
