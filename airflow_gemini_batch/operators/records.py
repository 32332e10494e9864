"""Rows written into the DAG file: data, in which another task's output may stand."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from airflow.sdk import ObjectStoragePath, XComArg

# Not public, but what ``airflow.sdk.literal`` returns, and what Airflow looks for when it renders a field.
from airflow.sdk.definitions._internal.mixins import ResolveMixin
from airflow.sdk.definitions._internal.templater import LiteralValue

if TYPE_CHECKING:
    from airflow.sdk import Context


class Records(LiteralValue):
    """
    A list whose texts are data: braces in them are not Jinja's. Outputs of other tasks in it are dependencies, and their
    values, like those of ``dag.param()`` and ``literal()``, are put in their places.
    """

    def iter_references(self) -> Iterable[tuple[Any, str]]:
        return XComArg.iter_xcom_references(self.value)

    def resolve(self, context: Context) -> Any:
        return _resolved(self.value, context)


def _resolved(value: Any, context: Context) -> Any:
    if isinstance(value, ResolveMixin):
        return value.resolve(context)
    if isinstance(value, Mapping):
        return {name: _resolved(one, context) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_resolved(one, context) for one in value]
    return value


def as_data(given: Any) -> Any:
    """What stands for rows or requests in a task's settings: a list is data, all else is Airflow's to render."""
    return Records(given) if isinstance(given, list | tuple) else given


def as_uri(given: Any) -> Any:
    """A path as text, which Airflow renders and the core opens; all else as it is."""
    if isinstance(given, ObjectStoragePath):
        return str(given)
    return os.fspath(given) if isinstance(given, os.PathLike) else given
