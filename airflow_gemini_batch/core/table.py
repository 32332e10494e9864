"""The landed table: which columns it has and how a row gets its values. Fixed by the settings, not by what came back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from airflow_gemini_batch.core.columns import Column, as_text, reader
from airflow_gemini_batch.core.kinds import arrow_type
from airflow_gemini_batch.core.plain_lines import OF_LINE
from airflow_gemini_batch.core.reading import EXTRAS
from airflow_gemini_batch.core.results import Result
from airflow_gemini_batch.core.schema import OutputSchema
from airflow_gemini_batch.exceptions import InvalidConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    import pyarrow as pa

COLUMNS: dict[str, str] = {
    "key": "string",
    "prompt": "string",
    "status": "string",
    "text": "string",
    "output": "output",
    "embedding": "floats",
    "media": "strings",
    "finish_reason": "string",
    "block_reason": "string",
    "error_code": "int64",
    "error_message": "string",
    "model_version": "string",
    "response_id": "string",
    "prompt_tokens": "int64",
    "output_tokens": "int64",
    "thoughts_tokens": "int64",
    "cached_tokens": "int64",
    "job": "string",
    "round": "int64",
}
"""
Every column that a result may have, with its kind (see ``kinds``), in the order of the table. ``prompt``, ``output``,
``embedding`` and ``media`` are there only if the settings ask for what they hold; ``text`` is not, beside ``embedding``.
"""

OF_THE_JOB = ("job", "round")

CONSTANT = {
    "status": "ok", "finish_reason": "STOP", "media": None, "block_reason": None, "error_code": None, "error_message": None,
}  # fmt: skip
"""What a plain answer means for these columns."""

PLAIN = {"key", "prompt", *OF_LINE, *CONSTANT, *OF_THE_JOB}


@dataclass(frozen=True)
class Table:
    """
    The columns of one run's table. After those in :data:`COLUMNS` come the extras, the kept columns, and ``raw``.

    :param keep: kept column → its kind.
    :param prompts: a row has several prompts, and so several answers.
    :param embeddings: answers are vectors, not text.
    :param media: answers may hold images or sounds.
    :param schema: what ``output`` holds.
    :param include: names in :data:`reading.EXTRAS`.
    """

    keep: Mapping[str, str]
    prompts: bool = False
    embeddings: bool = False
    media: bool = False
    schema: OutputSchema | None = None
    include: tuple[str, ...] = ()
    raw: bool = False

    def __post_init__(self) -> None:
        """:raises InvalidConfig: a kept column would have the name of another one."""
        clash = sorted(self.keep.keys() & {*self._own, *self.include, *(("raw",) if self.raw else ())})
        if clash:
            raise InvalidConfig(
                f"keep names {', '.join(map(repr, clash))}, which the result has as columns of its own. Rename it in the "
                "source."
            )
        if unknown := sorted(set(self.include) - EXTRAS.keys()):
            raise InvalidConfig(
                f"include names {', '.join(map(repr, unknown))}; it takes {', '.join(map(repr, EXTRAS))}."
            )

    @classmethod
    def of(
        cls, spec: Mapping[str, Any], keep: Mapping[str, str], *, media: bool, schema: OutputSchema | None,
        include: tuple[str, ...], raw: bool,
    ) -> Table:  # fmt: skip
        """:param spec: a plan's settings; see ``requests.Spec.to_dict``."""
        prompts, embeddings = isinstance(spec.get("prompt"), Mapping), bool(spec.get("embeddings"))
        return cls(keep, prompts, embeddings, media and not embeddings, schema, include, raw)

    @cached_property
    def _own(self) -> dict[str, str]:
        missing = {
            "prompt": not self.prompts,
            "text": self.embeddings,
            "output": self.schema is None,
            "embedding": not self.embeddings,
            "media": not self.media,
        }
        return {name: kind for name, kind in COLUMNS.items() if not missing.get(name)}

    @cached_property
    def kinds(self) -> dict[str, str]:
        """Column → kind, in order."""
        extras = {name: "string" if name == "thoughts" else "json" for name in self.include}
        return {**self._own, **extras, **self.keep, **({"raw": "string"} if self.raw else {})}

    @cached_property
    def _of_result(self) -> Callable[[Result], tuple[Any, ...]]:
        return attrgetter(*(name for name in self._own if name not in OF_THE_JOB))

    def row(self, result: Result, keep: Mapping[str, Any], *, job: str | None, round_number: int) -> tuple[Any, ...]:
        """
        One row's values in the order of :attr:`kinds`.

        :param keep: values of the kept columns as a rows file holds them.
        """
        values = (*self._of_result(result), job, round_number)
        if self.include:
            values += tuple(result.extras.get(name) for name in self.include)
        if self.keep:
            values += tuple(keep.get(name) for name in self.keep)
        return (*values, result.raw) if self.raw else values

    @property
    def takes_plain(self) -> bool:
        """Plain answers (see ``stretches``) have all that its columns hold."""
        return not (self.embeddings or self.schema or self.include or self.raw) and self._own.keys() <= PLAIN

    def columns(
        self, rows: Sequence[Mapping[str, Any]], lines: Mapping[str, Column], *, job: str | None, round_number: int
    ) -> pa.RecordBatch:
        """
        The values of rows with plain answers, as :meth:`row` gives them for one row.

        :param rows: lines of the rows file.
        :param lines: what their answers say, by column.
        """
        import pyarrow as pa

        constant = {**CONSTANT, "job": job, "round": round_number}
        arrays = []
        for field, convert in zip(self.arrow_schema, self.converters(), strict=True):
            name = field.name
            if name in self.keep:
                values = [row["keep"].get(name) if "keep" in row else None for row in rows]
                values = [v if v is None else convert(v) for v in values] if convert else values
                arrays.append(pa.array(values, field.type))
            elif name in ("key", "prompt"):
                arrays.append(pa.array([row.get(name) for row in rows], field.type))
            else:
                arrays.append(
                    lines[name] if name in lines else pa.repeat(pa.scalar(constant[name], field.type), len(rows))
                )
        return pa.record_batch(arrays, schema=self.arrow_schema)

    @cached_property
    def arrow_schema(self) -> pa.Schema:
        import pyarrow as pa

        return pa.schema([
            pa.field(name, self.schema.arrow_type() if kind == "output" and self.schema else arrow_type(kind))
            for name, kind in self.kinds.items()
        ])  # fmt: skip

    def converters(self) -> list[Callable[[Any], Any] | None]:
        """How each column's values become Arrow's; None where they are it already. Kept ones are as JSON left them."""
        fitted = self.schema.fitted if self.schema else as_text
        return [
            reader(kind) if name in self.keep else fitted if kind == "output" else None
            for name, kind in self.kinds.items()
        ]
