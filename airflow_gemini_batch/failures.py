"""Our errors as Airflow's, in one place, for all operators."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_gemini_batch.exceptions import GeminiBatchError


@contextmanager
def failing_fast() -> Iterator[None]:
    """Tell Airflow not to retry what a retry cannot fix. The original error stays the cause."""
    try:
        yield
    except GeminiBatchError as e:
        if e.retryable:
            raise
        raise AirflowFailException(f"{type(e).__name__}: {e}") from e
