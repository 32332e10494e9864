"""Images and sounds of answers become files beside the table, under names that tell their rows."""

from __future__ import annotations

import hashlib
import io
import re
import wave
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from airflow_gemini_batch.core import storage
from airflow_gemini_batch.core.media_types import suffix_of
from airflow_gemini_batch.core.storage import StoragePath

AT_ONCE = 8
"""Files written at a time; as many more are held in memory."""

NAME_CHARS = 80
PCM_RATE = 24000
"""Samples per second of speech, where its type does not say (https://ai.google.dev/gemini-api/docs/speech-generation)."""


class MediaFiles:
    """Files under ``<output>/media/``. Use :func:`saving`, which waits for them all. Writing one again changes nothing."""

    def __init__(self, directory: StoragePath, pool: ThreadPoolExecutor) -> None:
        self._directory, self._pool = directory, pool
        self._under_way: deque[Future[None]] = deque()

    def save(self, row: Mapping[str, Any], number: int, mime_type: str, data: bytes) -> str:
        """
        Write one file and return its URI.

        :param row: the line of the rows file whose answer it is of.
        :param number: from 0, in the order of the answer's parts.
        """
        suffix, data = playable(mime_type, data)
        path = self._directory / f"{safe_name(row)}-{number}{suffix}"
        if len(self._under_way) >= 2 * AT_ONCE:
            self._under_way.popleft().result()
        self._under_way.append(self._pool.submit(storage.publish, path, data))
        return str(path)

    def finish(self) -> None:
        """Wait for every file; raises what writing one raised."""
        while self._under_way:
            self._under_way.popleft().result()


@contextmanager
def saving(directory: StoragePath) -> Iterator[MediaFiles]:
    """Give a place for media; at the end of the block every file is there, or an error is raised."""
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="gemini-media") as pool:
        files = MediaFiles(directory, pool)
        yield files
        files.finish()


def safe_name(row: Mapping[str, Any]) -> str:
    """
    A row's key, and its prompt if there are several, as part of a file's name.

    What no path should hold becomes ``_``; a hash of the key is added then, and to a key that ends as if it had one, so that
    two keys never share a name.
    """
    key = str(row["key"])
    safe = re.sub(r"[^A-Za-z0-9._=@+-]", "_", key)[:NAME_CHARS].lstrip(".-")
    if safe != key or re.search(r"-[0-9a-f]{16}$", key):
        safe = f"{safe}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    return f"{safe}~{row['prompt']}" if row.get("prompt") is not None else safe


def playable(mime_type: str, data: bytes) -> tuple[str, bytes]:
    """The suffix of a file of this type, and its content: bare samples get a WAV header."""
    kind, _, parameters = mime_type.partition(";")
    kind = kind.strip().lower()
    if kind in ("audio/l16", "audio/pcm"):
        # No zeros, and nothing that a header has no room for: the default is as good a guess.
        rate = re.search(r"rate=([1-9]\d{0,5})(?!\d)", parameters)
        channels = re.search(r"channels=([1-9]\d?)(?!\d)", parameters)
        with io.BytesIO() as out:
            with wave.open(out, "wb") as file:
                file.setnchannels(int(channels[1]) if channels else 1)
                file.setsampwidth(2)
                file.setframerate(int(rate[1]) if rate else PCM_RATE)
                file.writeframes(data)
            return ".wav", out.getvalue()
    return suffix_of(kind) or ".bin", data
