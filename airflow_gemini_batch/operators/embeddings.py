"""GeminiBatchEmbeddingsOperator: rows in, a table of vectors out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_gemini_batch.core.checks import TASK_TYPES, TITLED, Check, or_none, refused
from airflow_gemini_batch.core.checks import text as a_text
from airflow_gemini_batch.exceptions import InvalidConfig
from airflow_gemini_batch.failures import failing_fast
from airflow_gemini_batch.operators.batch import GeminiBatchOperator
from airflow_gemini_batch.operators.checking import CHECKS, check_given, is_open

if TYPE_CHECKING:
    from airflow_gemini_batch.core.requests import Spec
    from airflow_gemini_batch.core.schema import OutputSchema


PLACE = re.compile(r"\{[^{}]*[^{}\s][^{}]*\}")


def _task_type(name: str, value: Any) -> None:
    if value and not (isinstance(value, str) and (value in TASK_TYPES or PLACE.fullmatch(value))):
        raise refused(name, value, f'{", ".join(TASK_TYPES)}, or "{{column}}"')


def _dimensions(name: str, value: Any) -> None:
    if value == "" or (isinstance(value, str) and PLACE.fullmatch(value)):
        return
    number = int(value) if isinstance(value, str) and value.strip().isdecimal() else value
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise refused(name, value, 'a whole number of 1 or more, or "{column}"')


class GeminiBatchEmbeddingsOperator(GeminiBatchOperator):
    """
    Ask Gemini for one vector per row, at batch price, and land them as a table with a column ``embedding``.

    All else is as with :class:`GeminiBatchOperator`, whose other parameters it takes; the model is then, for one,
    ``"gemini-embedding-001"``.

    :param text: what is embedded: text with ``{column}`` places, or a mapping of several; without it the rows are strings
        or ready-made requests ``{"key", "request": {"content": ...}}``.
    :param task_type: what the vectors are for, e.g. ``"RETRIEVAL_DOCUMENT"``; ``"{column}"``: the row's own.
    :param title_column: column with the documents' titles (with ``task_type="RETRIEVAL_DOCUMENT"``).
    :param dimensions: numbers in each vector; ``"{column}"``: the row's own. Each vector is checked for it.
    """

    template_fields: Sequence[str] = (
        *(name for name in GeminiBatchOperator.template_fields if name not in ("system_instruction", "config")),
        "embedding_task",
        "title_column",
        "dimensions",
    )

    _checks: ClassVar[Mapping[str, Check]] = {name: check for name, check in CHECKS.items() if name != "prompt"}
    _own_checks: ClassVar[Mapping[str, Check]] = {
        "text": CHECKS["prompt"],
        "task_type": or_none(_task_type),
        "title_column": or_none(a_text),
        "dimensions": or_none(_dimensions),
    }

    def __init__(
        self,
        *,
        text: Any = None,
        task_type: str | None = None,
        title_column: str | None = None,
        dimensions: int | str | None = None,
        **kwargs: Any,
    ) -> None:
        useless = sorted({"prompt", "system_instruction", "config", "output_schema", "include", "redo"} & kwargs.keys())
        if useless:
            raise InvalidConfig(f"{', '.join(useless)} cannot be used for embeddings.")
        super().__init__(prompt=text, **kwargs)
        self.embedding_task = task_type  # BaseOperator has a ``task_type`` of its own: the operator's class
        self.title_column = title_column
        self.dimensions = dimensions
        check_given(self, self._own_checks)
        if not is_open([task_type, title_column]):
            with failing_fast():
                self._check_title()

    def _check_title(self) -> None:
        if self.title_column and self.embedding_task != TITLED:
            raise InvalidConfig(f"title_column goes with task_type={TITLED!r} only, not with {self.embedding_task!r}.")

    def _spec(self, schema: OutputSchema | None) -> Spec:
        from dataclasses import replace

        from airflow_gemini_batch.core.config import embed_template, split_places

        config = {
            "task_type": self.embedding_task or None,
            "title": f"{{{self.title_column}}}" if self.title_column else None,
            "output_dimensionality": self.dimensions if self.dimensions != "" else None,
        }
        self._check_title()
        fields, per_row = split_places(config)
        return replace(super()._spec(None), template=embed_template(fields), per_row=per_row, embeddings=True)
