"""Our errors as Airflow's, in one place, for all operators."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_gemini_batch.exceptions import GeminiBatchError, restored


@contextmanager
def failing_fast() -> Iterator[None]:
    """
    Tell Airflow not to retry what a retry cannot fix.

    What is raised then is an ``AirflowFailException`` and still the error that it was, with all its facts: callbacks and
    retry policies can ask for ``isinstance(error, JobExpired)`` and read ``error.jobs``.
    """
    try:
        yield
    except GeminiBatchError as e:
        if e.retryable:
            raise
        raise _final(type(e), e.args, e.__dict__) from e


def _final(kind: type[GeminiBatchError], args: tuple[Any, ...], facts: dict[str, Any]) -> GeminiBatchError:
    def reduce(self: GeminiBatchError) -> tuple[Any, ...]:
        return _final, (kind, self.args, self.__dict__)  # the class is made here, so nobody finds it by its name

    body = {"__module__": kind.__module__, "__doc__": kind.__doc__, "__reduce__": reduce}
    return restored(type(kind.__name__, (kind, AirflowFailException), body), args, facts)
