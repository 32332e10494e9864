"""Whether a large upload fits into what the project may store. Knows no plan and no ledger."""

from __future__ import annotations

from airflow_gemini_batch.core.attempt import log
from airflow_gemini_batch.core.client import Client
from airflow_gemini_batch.exceptions import QuotaExceeded, ServiceError

PROJECT_BYTES = 20_000_000_000
"""What all files of a project may have together (https://ai.google.dev/gemini-api/docs/files)."""

LARGE = 100_000_000
"""Uploads from this size on are worth a look at the list of files first."""

RESULTS = "files/batch-"
"""Names of result files begin so. They are the service's own, and nobody could make room by removing them."""


def check_room(client: Client, size: int) -> None:
    """
    :param size: bytes that are to be uploaded.
    :raises QuotaExceeded: they do not fit. Files are removed 48 hours after their upload, so that this passes.
    """
    if size < LARGE:
        return
    try:
        files = client.list_files()
    except ServiceError as e:
        log.info("The project's files could not be counted: %s", e)  # the service itself refuses what is too much
        return
    uploads = [file for file in files if not file.name.startswith(RESULTS)]
    used = sum(file.size for file in uploads)
    if used + size > PROJECT_BYTES:
        raise QuotaExceeded(
            f"{size:,} bytes are to be uploaded, but the {len(uploads):,} files of this key's project have {used:,} already. "
            "Files that are no longer needed can be deleted; the service removes each after 48 hours.",
            phase="upload",
            quota=f"storage of the project: {used / 1e9:.1f} of {PROJECT_BYTES / 1e9:.0f} GB",
        )
