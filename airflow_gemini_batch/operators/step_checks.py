"""What the steps take: of the whole operator's parameters, and for their own. Told when the DAG file is parsed."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any

from airflow_gemini_batch.core.checks import Check, a_place, flag, or_none, refused, seconds_or_0, text
from airflow_gemini_batch.exceptions import InvalidConfig
from airflow_gemini_batch.operators.batch import GeminiBatchOperator
from airflow_gemini_batch.operators.checking import CHECKS, one_model, rows
from airflow_gemini_batch.operators.records import as_uri

PREPARING = frozenset({
    "model", "source", "output", "prompt", "system_instruction", "config", "output_schema", "key", "keep", "limits", "reuse",
    "on_changed", "on_empty", "gemini_conn_id",
})  # fmt: skip
CREATING = frozenset({
    "limits", "timeout", "on_timeout", "quota_timeout", "poll_interval", "reuse", "on_changed", "on_empty", "deferrable",
    "cancel_on_kill", "gemini_conn_id",
})  # fmt: skip
LANDING = frozenset({
    "output_schema", "table", "file_format", "include", "include_raw", "prices", "max_failed_ratio", "timeout",
    "poll_interval", "reuse", "on_empty", "deferrable", "gemini_conn_id",
})  # fmt: skip
"""What each step takes of :class:`GeminiBatchOperator`'s parameters beside those that it names itself."""

FILES = "files/"


def check_takes(takes: frozenset[str], given: Mapping[str, Any], step: str) -> None:
    """:raises InvalidConfig: a parameter of the whole operator that would be passed over, such as a budget."""
    known = inspect.signature(GeminiBatchOperator.__init__).parameters.keys() - {"self", "kwargs"}
    if useless := sorted((known - takes) & given.keys()):
        raise InvalidConfig(f"{', '.join(useless)} cannot be used to {step}.")


def without(*names: str) -> dict[str, Check]:
    """What the whole operator checks, without what a step does not take."""
    return {name: check for name, check in CHECKS.items() if name not in names}


def uploaded_name(requests: Any) -> Any:
    """The file's name out of what an upload returned; all else as it is."""
    name = requests.get("name") if isinstance(requests, Mapping) else None
    return name if isinstance(name, str) and name.startswith(FILES) else requests


def _requests(name: str, value: Any) -> None:
    value = uploaded_name(value)
    rows(name, value)
    if isinstance(value, str) and (meant := re.fullmatch(r"(?:file|https?://.+/files)/([\w-]+)", value)):
        raise InvalidConfig(f"{name} is {value!r}. Did you mean {FILES + meant[1]!r}?")


def rows_files(name: str, value: Any) -> None:
    if isinstance(value, Mapping) or not isinstance(as_uri(value), Iterable):
        raise refused(name, value, "the URI of a rows file, or a list of them")


def _priority(name: str, value: Any) -> None:
    whole = isinstance(value, str) and re.fullmatch(r"(\s*[+-]?\d+\s*)?", value)
    if isinstance(value, bool) or not (whole or isinstance(value, int)):
        raise refused(name, value, "a whole number")


def _webhook_config(name: str, config: Any) -> None:
    if not isinstance(config, Mapping):
        raise refused(name, config, 'a mapping, {"uris": [...], "user_metadata": {...}}')
    if config:
        webhook(config)


def webhook(config: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return the config as REST has it.

    :raises InvalidConfig: it is not what the API takes.
    """
    names = {"uris": "uris", "user_metadata": "userMetadata", "userMetadata": "userMetadata"}
    uris = config.get("uris")
    if unknown := sorted(config.keys() - names.keys()):
        raise InvalidConfig(f"webhook_config has {', '.join(map(repr, unknown))}; it takes uris and user_metadata.")
    if not isinstance(uris, list | tuple) or not uris or not all(str(uri).startswith("https://") for uri in uris):
        raise InvalidConfig(f"webhook_config.uris is {uris!r}; it takes a list of https:// addresses.")
    for name, value in config.items():
        if name != "uris" and not isinstance(value, Mapping):
            raise refused(f"webhook_config.{name}", value, "a mapping")
    return {names[name]: list(value) if name == "uris" else dict(value) for name, value in config.items()}


UPLOADS: dict[str, Check] = {
    "source": a_place,
    "mime_type": or_none(text),
    "display_name": or_none(text),
    "fresh_for": seconds_or_0,
    "gemini_conn_id": text,
}
CREATES: dict[str, Check] = {
    "model": one_model,
    "requests": _requests,
    "ledger": or_none(a_place),
    "display_name": or_none(text),
    "priority": or_none(_priority),
    "webhook_config": or_none(_webhook_config),
    "wait": flag,
}
"""Parameters of the steps' own."""
