"""What each setting may be. Asked while DAG files are parsed, so it imports nothing heavy; knows no templates."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any

from airflow_gemini_batch.core.limits import Limits
from airflow_gemini_batch.exceptions import InvalidConfig

Check = Callable[[str, Any], object]
"""
Takes the setting's name and its value; what it returns is not looked at.

:raises InvalidConfig: it is something else than the setting takes.
"""

INCLUDED = ("safety_ratings", "citations", "grounding", "url_context", "function_calls", "code", "logprobs", "thoughts")
"""What ``reading.EXTRAS`` can find in a response."""

REDONE = ("blocked", "empty", "error", "invalid_output", "truncated")
"""Statuses that ``redo`` may name. A row that failed for a passing reason is sent again without that."""

TITLED = "RETRIEVAL_DOCUMENT"
TASK_TYPES = (
    "SEMANTIC_SIMILARITY", "CLASSIFICATION", "CLUSTERING", TITLED, "RETRIEVAL_QUERY", "CODE_RETRIEVAL_QUERY",
    "QUESTION_ANSWERING", "FACT_VERIFICATION",
)  # fmt: skip
"""https://ai.google.dev/api/embeddings#tasktype"""

JOBS = "batches/"


def refused(name: str, value: object, takes: str) -> InvalidConfig:
    return InvalidConfig(f"{name} is {value!r}; it takes {takes}.")


def one_of(*allowed: str) -> Check:
    def check(name: str, value: Any) -> None:
        if not isinstance(value, str) or value not in allowed:
            raise refused(name, value, ", ".join(map(repr, allowed)))

    return check


def number(takes: str, fits: Callable[[Any], bool], kinds: Any = int | float) -> Check:
    """:param fits: also False for what is no number, as NaN."""

    def check(name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, kinds) or not fits(value):
            raise refused(name, value, takes)

    return check


def whole(least: int) -> Check:
    return number(f"a whole number of {least} or more", lambda value: value >= least, int)


def or_none(check: Check) -> Check:
    return lambda name, value: check(name, value) if value is not None else None


def some_of(*allowed: str) -> Check:
    def check(name: str, value: Any) -> None:
        if unknown := [one for one in names(name, value) if one not in allowed]:
            raise InvalidConfig(
                f"{name} names {', '.join(map(repr, unknown))}; it takes {', '.join(map(repr, allowed))}."
            )

    return check


def a(kind: type, takes: str) -> Check:
    def check(name: str, value: Any) -> None:
        if not isinstance(value, kind):
            raise refused(name, value, takes)

    return check


text = a(str, "text")
flag = a(bool, "True or False")
seconds = number("a number of seconds above 0, or a timedelta", lambda value: value > 0)
seconds_or_0 = number("a number of seconds, 0 or more, or a timedelta", lambda value: value >= 0)


def names(name: str, given: Iterable[str] | None) -> tuple[str, ...]:
    """:raises InvalidConfig: a text where a list of names is expected, which would count as a list of letters."""
    if isinstance(given, str):
        raise InvalidConfig(f"{name} is the text {given!r}; it takes a list of names.")
    if isinstance(given, Iterator):  # looking at it here would empty it
        raise refused(name, given, "a list of names")
    if given is not None and not (isinstance(given, Iterable) and all(isinstance(one, str) for one in given)):
        raise refused(name, given, "a list of names")
    return tuple(given or ())


def a_place(name: str, value: object) -> None:
    """A URI, as text or as a path."""
    if not isinstance(value, str | os.PathLike) or not str(value).strip():
        raise refused(name, value, "a URI, or a path")


def _redo(name: str, value: Any) -> None:
    some_of(*REDONE)(name, tuple(value) if isinstance(value, Mapping) else value)
    for status, fields in value.items() if isinstance(value, Mapping) else ():
        if fields is not None and not isinstance(fields, Mapping):
            raise refused(f"{name}[{status!r}]", fields, "a mapping of config fields, or None")


def _budget(name: str, value: object) -> None:
    from airflow_gemini_batch.core.budget import Budget

    a(Budget, "a Budget")(name, value)


def job_names(given: object, setting: str = "job") -> tuple[str, ...]:
    """
    Return the names of one or several jobs as the API spells them.

    :param given: ``"batches/..."``, with or without its prefix; what a sensor or a get returned of a job; or several.
    :raises InvalidConfig: there is none, or something else than a name.
    """
    names = [given] if isinstance(given, str | Mapping) else list(given) if isinstance(given, Iterable) else []
    if not names:
        raise refused(setting, given, "the name of a job, batches/..., or a list of them")
    return tuple(dict.fromkeys(_job_name(name, setting) for name in names))


def _job_name(name: object, setting: str) -> str:
    if isinstance(name, Mapping):
        name = name.get("job", name)
    bare = name.strip().removeprefix(JOBS) if isinstance(name, str) else ""
    if not bare or not bare.replace("-", "").replace("_", "").isalnum():
        raise InvalidConfig(f"{setting} names {name!r}, which is no job; jobs are called batches/...")
    return JOBS + bare


def a_job(name: str, value: object) -> None:
    job_names(value, name)


BEHAVIOUR: dict[str, Check] = {
    "file_format": one_of("parquet", "jsonl", "csv"),
    "include": some_of(*INCLUDED),
    "limits": a(Limits, "a Limits"),
    "max_rounds": whole(1),
    "max_failed_ratio": or_none(number("0 to 1", lambda value: 0 <= value <= 1)),
    "timeout": seconds,
    "pending_timeout": or_none(seconds),
    "on_timeout": one_of("cancel", "leave"),
    "split": whole(1),
    "redo": _redo,
    "canary": whole(0),
    "budget": or_none(_budget),
    "assumed_output_tokens": or_none(whole(0)),
    "count_tokens": whole(0),
    "reuse": one_of("auto", "never"),
    "on_changed": one_of("fail", "keep", "resubmit"),
    "on_empty": one_of("skip", "succeed", "fail"),
    "delete_remote": one_of("inputs", "all", "never"),
    "quota_timeout": seconds_or_0,
}
"""How a run behaves, apart from what it sends: the fields of ``attempt.Policy``."""


def as_seconds(time: Any) -> Any:
    """A ``timedelta`` as a number of seconds; all else as it is."""
    return time.total_seconds() if isinstance(time, timedelta) else time
