"""How large a run's jobs may get. Imports nothing heavy: DAG files use it."""

from __future__ import annotations

from dataclasses import dataclass

from airflow_gemini_batch.exceptions import InvalidConfig

API_FILE_BYTES = 2_000_000_000
"""Largest file that the Files API takes (https://ai.google.dev/gemini-api/docs/files)."""

API_ACTIVE_JOBS = 100
"""Jobs that may be active in one project (https://ai.google.dev/gemini-api/docs/rate-limits)."""


@dataclass(frozen=True)
class Limits:
    """
    How large things may get.

    :param requests_per_job: the API publishes no number for this.
    :param bytes_per_job: of one request file; at most :data:`API_FILE_BYTES`.
    :param bytes_per_request: of one line.
    :param active_jobs: jobs of one run in flight at a time; at most :data:`API_ACTIVE_JOBS`.
    :param project_jobs: jobs of everybody in the key's project while which no other is created.
    :param enqueued_tokens: input tokens of one run in flight at a time, as ``estimate`` counts them; None: no
        limit. The API has one for each model and tier (https://ai.google.dev/gemini-api/docs/rate-limits#batch-mode).
    """

    requests_per_job: int = 50_000
    bytes_per_job: int = 1_900_000_000
    bytes_per_request: int = 20_000_000
    active_jobs: int = 20
    project_jobs: int = API_ACTIVE_JOBS
    enqueued_tokens: int | None = None

    def __post_init__(self) -> None:
        for name, most in (
            ("requests_per_job", None),
            ("bytes_per_job", API_FILE_BYTES),
            ("bytes_per_request", self.bytes_per_job),
            ("active_jobs", API_ACTIVE_JOBS),
            ("project_jobs", None),
            ("enqueued_tokens", None),
        ):
            value = getattr(self, name)
            if name == "enqueued_tokens" and value is None:
                continue
            if (
                isinstance(value, bool)
                or not isinstance(value, int)
                or value < 1
                or (most is not None and value > most)
            ):
                upto = f" to {most:,}" if most is not None else " or more"
                raise InvalidConfig(f"Limits.{name} is {value!r}; it takes 1{upto}.")
