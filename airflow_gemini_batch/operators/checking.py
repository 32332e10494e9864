"""
A task's settings, checked when its DAG file is parsed: those that hold a template or another task's output when it runs.

Nothing heavy is imported here: what only the SDK can tell of a config is told when the task runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from airflow.sdk.definitions._internal.mixins import ResolveMixin

from airflow_gemini_batch.core.checks import (
    BEHAVIOUR,
    Check,
    a,
    a_place,
    flag,
    names,
    or_none,
    refused,
    seconds,
    text,
)  # fmt: skip
from airflow_gemini_batch.exceptions import InvalidConfig
from airflow_gemini_batch.failures import failing_fast
from airflow_gemini_batch.operators.records import Records

MODEL = 'text, e.g. "gemini-2.5-flash", or a list of such texts'
SOURCE = "a URI, a list of mappings or strings, or a SqlQuery"


def is_open(value: object) -> bool:
    """True if only the run can tell a templated setting: it holds a template, or what another task returns."""
    if isinstance(value, str):
        return "{{" in value or "{%" in value or "{#" in value
    if isinstance(value, Records):
        return False
    if isinstance(value, Mapping):
        return any(map(is_open, value.values()))
    return any(map(is_open, value)) if isinstance(value, list | tuple | set) else isinstance(value, ResolveMixin)


def check_settings(task: Any, checks: Mapping[str, Check], *, running: bool) -> None:
    """
    :param checks: parameter → what it takes. The attribute has the same name, or Airflow's own has it already.
    :param running: the templates are rendered: nothing is left open.
    :raises InvalidConfig: a setting is something else than it takes.
    """
    for name, check in checks.items():
        attribute = ATTRIBUTES.get(name, name)
        value = getattr(task, attribute)
        if running or attribute not in task.template_fields or not is_open(value):
            check(name, value)


def check_given(task: Any, checks: Mapping[str, Check]) -> None:
    """What the DAG file tells; called by ``__init__``. Fails for good, as a mapped task is made only when it runs."""
    with failing_fast():
        check_settings(task, checks, running=False)


ATTRIBUTES = {"output": "output_uri", "text": "prompt", "task_type": "embedding_task", "dry_run": "only_look"}
"""Parameter → attribute, where they differ."""


def _model(name: str, value: Any) -> None:
    models = [value] if isinstance(value, str) else value
    if not isinstance(models, Sequence) or not all(isinstance(one, str) for one in models):
        raise refused(name, value, MODEL)
    if not models or not all(one.strip().removeprefix("models/") for one in models):
        raise InvalidConfig('model is empty; name one, e.g. "gemini-2.5-flash".')


def one_model(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise refused(name, value, "one model, as text: the job is created once")
    _model(name, value)


def rows(name: str, value: Any) -> None:
    """What may stand for rows or requests."""
    if value is None:
        raise InvalidConfig(
            f"{name} is None; give a URI, or a list of mappings or strings. A task that yields its rows gives None: let it "
            "return them."
        )
    if isinstance(value, Mapping):
        raise InvalidConfig(f"{name} is one mapping; give a list of them, a list of strings, or a URI.")
    if isinstance(value, str) or hasattr(value, "__fspath__"):
        a_place(name, value)
        if str(value).lstrip().startswith(("[{", "['", '["', "{'", '{"')):
            raise InvalidConfig(
                f"{name} is a list as text ({value!r:.60}), which is what a template makes of one. Give the task's output "
                f"itself, as in {name}=find_rows(), or set render_template_as_native_obj=True for the DAG."
            )
    elif not isinstance(value, Records | Iterable) and not hasattr(value, "__arrow_c_stream__"):
        from airflow_gemini_batch.sql.query import SqlQuery

        a(SqlQuery, SOURCE)(name, value)


def _prompt(name: str, value: Any) -> None:
    from airflow_gemini_batch.core.prompts import Prompt

    if value is None:
        return
    if not isinstance(value, str | Mapping):
        raise refused(name, value, "text with {column} places, or a mapping of names to such texts")
    if isinstance(value, Mapping) and not value:
        raise InvalidConfig(f"{name} is an empty mapping; give at least one {name} under a name.")
    for key, one in value.items() if isinstance(value, Mapping) else [("", value)]:
        Prompt.parse(one, key, setting=name)


def _instruction(name: str, value: Any) -> None:
    if not isinstance(value, str | Mapping | list | tuple) and not hasattr(value, "model_dump"):
        raise refused(name, value, "text, a types.Content or types.Part, or a list of texts and parts")


def _config(name: str, value: Any) -> None:
    if value is not None and not isinstance(value, Mapping) and not hasattr(value, "model_dump"):
        raise refused(name, value, "a GenerateContentConfig, or a mapping of its fields")


def _output_schema(name: str, value: object) -> None:
    from airflow_gemini_batch.core.schema import OutputSchema

    OutputSchema.of(value)


def _prices(name: str, value: object) -> None:
    from airflow_gemini_batch.core.prices import PriceTable

    PriceTable.parse(value)


def _table(name: str, value: object) -> None:
    from airflow_gemini_batch.sql.table import SqlTable

    a(SqlTable, "an SqlTable")(name, value)


def _columns(name: str, value: Any) -> None:
    names(name, value)
    for column, kind in value.items() if isinstance(value, Mapping) else ():
        if kind is not None and not isinstance(kind, str):
            raise refused(f"{name}[{column!r}]", kind, 'the name of a type as text, such as "int64", or None')


def _media(name: str, value: Any) -> None:
    names(name, (value,) if isinstance(value, str) else value)


CHECKS: dict[str, Check] = {
    **BEHAVIOUR,
    "model": _model,
    "source": rows,
    "output": a_place,
    "prompt": _prompt,
    "system_instruction": or_none(_instruction),
    "config": _config,
    "output_schema": or_none(_output_schema),
    "media": _media,
    "key": or_none(text),
    "keep": _columns,
    "table": or_none(_table),
    "prices": or_none(_prices),
    "poll_interval": seconds,
    "include_raw": flag,
    "deferrable": flag,
    "cancel_on_kill": flag,
    "gemini_conn_id": text,
    "max_rounds": or_none(BEHAVIOUR["max_rounds"]),
    "limits": or_none(BEHAVIOUR["limits"]),
}
"""Of ``GeminiBatchOperator``."""
