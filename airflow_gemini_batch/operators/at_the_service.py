"""What the operators on jobs and on files share: a connection, and what their parameters take."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_gemini_batch import settings
from airflow_gemini_batch.core.checks import Check, flag, refused, text, whole
from airflow_gemini_batch.core.jobs import PHASE_OF_STATE, bare_state
from airflow_gemini_batch.exceptions import InvalidConfig
from airflow_gemini_batch.failures import failing_fast
from airflow_gemini_batch.operators.checking import check_given
from airflow_gemini_batch.operators.step_checks import FILES, uploaded_name

if TYPE_CHECKING:
    from airflow_gemini_batch.core.client import Client


class AtTheService(BaseOperator):
    """What these operators share: a connection and a look."""

    template_fields: Sequence[str] = ("gemini_conn_id",)
    ui_color = "#f3eee8"
    ui_fgcolor = "#1a3a8f"

    def __init__(self, *, gemini_conn_id: str = settings.CONN_ID, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.gemini_conn_id = gemini_conn_id
        check_given(self, {"gemini_conn_id": text})

    @contextmanager
    def _client(self) -> Iterator[Client]:
        from airflow_gemini_batch.hooks.gemini import GeminiHook

        with failing_fast():
            client = GeminiHook(self.gemini_conn_id).client
            try:
                yield client
            finally:
                client.close()


AGE = "an age in seconds, 0 or more, or a timedelta"


def ago(setting: str, age: timedelta | float | str | None) -> float | None:
    """Unix time so long ago. :raises InvalidConfig: it is no age."""
    if age is None or age == "":
        return None
    try:
        seconds = age.total_seconds() if isinstance(age, timedelta) else float(age)
    except (TypeError, ValueError):
        seconds = -1.0
    if not seconds >= 0:
        raise refused(setting, age, AGE)
    return time.time() - seconds


def an_age(name: str, value: Any) -> None:
    if ago(name, value) is None:
        raise refused(name, value, AGE)


def is_true(setting: str, given: bool | str) -> bool:
    """A template gives text: ``"{{ params.dry_run }}"``."""
    word = str(given).strip().lower()
    if word not in ("true", "false"):
        raise refused(setting, given, "True or False")
    return word == "true"


def named_states(setting: str, given: Any) -> set[str]:
    names = (given,) if isinstance(given, str) else given if given is not None else ()
    if not isinstance(names, Iterable) or not all(isinstance(one, str) for one in names):
        raise refused(setting, given, "a state, or a list of states")
    states = {bare_state(one.strip().upper()) for one in names if one.strip()}
    if unknown := sorted(states - PHASE_OF_STATE.keys()):
        raise InvalidConfig(f"{setting} names {', '.join(unknown)}; it takes {', '.join(PHASE_OF_STATE)}.")
    return states


def file_names(name: str, given: Any) -> list[str]:
    """:raises InvalidConfig: something in it is not a file's name."""
    several = given if isinstance(given, Iterable) and not isinstance(given, str | Mapping) else [given]
    names = [uploaded_name(one) for one in several]
    if not names or not all(isinstance(one, str) and one.startswith(FILES) and one != FILES for one in names):
        raise refused(name, given, 'the name of a file, "files/...", or a list of them')
    return list(dict.fromkeys(names))


LISTING: dict[str, Check] = {
    "states": named_states, "older_than": ago, "newer_than": ago, "ours_only": flag, "limit": whole(0),
}  # fmt: skip
CLEANING: dict[str, Check] = {"older_than": an_age, "dry_run": is_true, "files": flag, "jobs": flag}
