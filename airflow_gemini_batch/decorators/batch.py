"""``@task.gemini_batch``: a function says what is asked, ``GeminiBatchOperator`` does the rest."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, overload

from airflow.providers.common.compat.sdk import (
    DecoratedOperator,
    context_merge,
    determine_kwargs,
    task_decorator_factory,
)

from airflow_gemini_batch import settings
from airflow_gemini_batch.core.checks import Check
from airflow_gemini_batch.exceptions import InvalidConfig
from airflow_gemini_batch.operators.batch import GeminiBatchOperator
from airflow_gemini_batch.operators.checking import CHECKS

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import TaskDecorator
    from airflow.sdk import Context
    from airflow.sdk.bases.decorator import Task

    from airflow_gemini_batch.core.attempt import Run
    from airflow_gemini_batch.core.budget import Budget
    from airflow_gemini_batch.core.limits import Limits
    from airflow_gemini_batch.core.rows import FileSource, RecordSource
    from airflow_gemini_batch.sql.query import SqlQuery
    from airflow_gemini_batch.sql.table import SqlTable

    P = ParamSpec("P")
    Asked = Iterable[str] | Iterable[Mapping[str, Any]] | SqlQuery


class GeminiBatchDecoratedOperator(DecoratedOperator, GeminiBatchOperator):
    """
    A :class:`GeminiBatchOperator` whose source is what a function returns or yields.

    The function is called once, when the run is planned: not after a wait, and not by a retry of a run that was planned. What
    it yields is streamed to storage, and no Jinja is looked for in it.

    :param python_callable: returns or yields texts, rows (mappings) or requests (``{"key", "request"}``).
    """

    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        *(name for name in GeminiBatchOperator.template_fields if name != "source"),
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {
        **DecoratedOperator.template_fields_renderers,
        **GeminiBatchOperator.template_fields_renderers,
    }
    custom_operator_name = "@task.gemini_batch"
    _checks: ClassVar[Mapping[str, Check]] = {name: check for name, check in CHECKS.items() if name != "source"}

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if "source" in kwargs:
            raise InvalidConfig(
                "source cannot be used with @task.gemini_batch: what the function returns is the source."
            )
        super().__init__(
            python_callable=python_callable, op_args=op_args, op_kwargs=op_kwargs, source=None, **kwargs
        )  # fmt: skip
        self._called = False

    def _run(self, context: Context) -> Run:
        names: Any = context
        for name, value in self.op_kwargs.items():  # as with @task: a map_index_template may name them
            names.setdefault(name, value)
        self._context = context
        return super()._run(context)

    def _open_source(self) -> FileSource | RecordSource:
        from airflow_gemini_batch.core.parquet import is_table
        from airflow_gemini_batch.core.rows import RecordSource

        if not self._called:
            self._called = True
            self.source = self._call()
        if isinstance(self.source, Iterator) and not is_table(self.source):
            # Read once and forgotten. Who asks again, to tell where a duplicate stood, is left with the rows' numbers.
            rows, self.source = self.source, []
            return RecordSource(rows)
        return super()._open_source()

    def _call(self) -> Any:
        context: Any = dict(self._context)
        context_merge(context, self.op_kwargs)
        kwargs = determine_kwargs(self.python_callable, self.op_args, context)
        asked = self.python_callable(*self.op_args, **kwargs)
        from airflow_gemini_batch.core.parquet import is_table
        from airflow_gemini_batch.sql.query import SqlQuery

        several = isinstance(asked, Iterable | SqlQuery) or is_table(asked)
        if isinstance(asked, str | bytes | Mapping) or not several:
            what = "nothing" if asked is None else f"one {type(asked).__name__}"
            raise InvalidConfig(
                f"{self.python_callable.__name__} returned {what}; it returns or yields texts, rows (mappings) or requests."
            )
        return asked


@overload
def gemini_batch(
    python_callable: Callable[P, Asked], *, model: str | Sequence[str], output: str | os.PathLike[str], **kwargs: Any
) -> Task[P, Any]: ...


@overload
def gemini_batch(
    python_callable: None = None,
    *,
    model: str | Sequence[str],
    output: str | os.PathLike[str],
    prompt: str | Mapping[str, str] | None = None,
    system_instruction: Any = None,
    config: Any = None,
    output_schema: Any = None,
    media: str | Sequence[str] = (),
    key: str | None = None,
    keep: Sequence[str] | Mapping[str, str | None] = (),
    table: SqlTable | None = None,
    file_format: str = "parquet",
    include: Sequence[str] = (),
    include_raw: bool = False,
    limits: Limits | None = None,
    canary: int = 0,
    budget: Budget | None = None,
    prices: Mapping[str, Any] | None = None,
    assumed_output_tokens: int | None = None,
    count_tokens: int = 0,
    max_rounds: int | None = None,
    redo: Sequence[str] | Mapping[str, Any] = (),
    max_failed_ratio: float | None = None,
    timeout: timedelta | float = 48 * 3600,
    pending_timeout: timedelta | float | None = None,
    on_timeout: str = "cancel",
    split: int = 1,
    quota_timeout: timedelta | float = 24 * 3600,
    poll_interval: timedelta | float | None = None,
    reuse: str = "auto",
    on_changed: str = "fail",
    on_empty: str = "skip",
    delete_remote: str | None = None,
    deferrable: bool | None = None,
    cancel_on_kill: bool = True,
    gemini_conn_id: str = settings.CONN_ID,
    **kwargs: Any,
) -> Callable[[Callable[P, Asked]], Task[P, Any]]: ...


def gemini_batch(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator | Any:
    """
    Make a task of a function that returns or yields what is asked.

    The same as ``@task.gemini_batch``, which editors know nothing of; this one they do. The task's result is the manifest.
    All parameters are those of :class:`GeminiBatchOperator`, but for ``source``. With ``multiple_outputs=True`` each field
    of the manifest is an XCom, too: ``letters()["counts"]``.
    """
    # Not guessed from the function's annotations: the result is the manifest, not what the function returns.
    kwargs["multiple_outputs"] = bool(kwargs.get("multiple_outputs"))
    return task_decorator_factory(
        python_callable=python_callable, decorated_operator_class=GeminiBatchDecoratedOperator, **kwargs
    )
