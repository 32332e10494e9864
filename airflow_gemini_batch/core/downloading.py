"""A result file is brought here whole, or it is not brought at all. Knows lines, not what is in them."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from typing import BinaryIO

import orjson

from airflow_gemini_batch.core.client import Client
from airflow_gemini_batch.exceptions import DownloadBroken, RequestRefused, ResultsLost, ServiceError

log = logging.getLogger("airflow_gemini_batch")

SHORT_TRIES = 3
"""Downloads of a file that holds fewer lines than are due, before that is taken for the truth."""

READ_BYTES = 1 << 20


def fetch(
    client: Client, job: str, name: str, to: BinaryIO, *, due: int, sleep: Callable[[float], None], anew: str
) -> None:
    """
    Download a result file into ``to``, again if it is shorter than it should be; ``to`` is then at its end.

    :param due: lines that it should have.
    :param anew: what somebody does to have the job done again, for the error.
    :raises ResultsLost: the service does not give it out any more.
    :raises DownloadBroken: it could not be had this time.
    """
    for tried in range(1, SHORT_TRIES + 1):
        size = _download(client, job, name, to, anew)
        lines, whole = _count_lines(to)
        # A last line that is broken, but the last one due, is a corrupt line like any other and no torn file.
        last = tried == SHORT_TRIES and (whole or lines >= due or size == _size_of(client, name))
        if (whole and lines >= due) or last:
            to.seek(0, io.SEEK_END)
            log.info("Fetched %s: %s lines, %s bytes", name, lines, size)
            return
        log.warning(
            "%s has %s lines%s, but %s are due; fetching it again",
            name, lines, "" if whole else " and ends in the middle of one", due,
        )  # fmt: skip
        sleep(1.0)
    raise DownloadBroken(f"{name} of {job} ended in the middle of a line {SHORT_TRIES} times.")


def _download(client: Client, job: str, name: str, to: BinaryIO, anew: str) -> int:
    try:
        return client.download(name, to)
    except RequestRefused as e:
        raise ResultsLost(
            f"The results of {job} ({name}) cannot be had any more: {e}. The service keeps results for some weeks and gives "
            f"them to their own project only. {anew} to ask, and pay, anew."
        ) from e


def _size_of(client: Client, name: str) -> int | None:
    """The size that the service gives for a result file apart from its download; None if it does not say."""
    try:
        file = client.file(name)
    except ServiceError:
        return None
    return file.size if file else None


def _count_lines(f: BinaryIO) -> tuple[int, bool]:
    """Lines with content, a torn last one included, and whether the last one is whole (it need not end with a newline)."""
    f.seek(0)
    lines, last = 0, b""
    # Many at a time: a result file has gigabytes.
    while some := f.readlines(READ_BYTES):
        lines += sum(not line.isspace() for line in some)
        last = next((line for line in reversed(some) if not line.isspace()), last)
    if not last or last.endswith(b"\n"):
        return lines, True
    try:
        orjson.loads(last)
    except orjson.JSONDecodeError:
        return lines, False
    return lines, True
