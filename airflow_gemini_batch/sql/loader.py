"""How the core, which knows no databases, has its landed rows loaded into one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_gemini_batch.core.kinds import basic
from airflow_gemini_batch.exceptions import InvalidConfig, TableRefused
from airflow_gemini_batch.sql import table
from airflow_gemini_batch.sql.table import SqlTable


@dataclass(frozen=True)
class TableLoader:
    """
    A run's way into its table; a ``core.attempt.Loader``.

    :param run: the run, as the column ``run`` says it.
    """

    table: SqlTable
    run: str

    def check(self, kinds: Mapping[str, str]) -> None:
        """:raises InvalidConfig: the rows could not be loaded, as far as that can be known before there are any."""
        if "run" in kinds:
            raise InvalidConfig(
                "keep names 'run', which the table has as a column of its own. Rename it in the source."
            )
        columns = _columns(kinds)
        table.check(self.table, columns=columns, keys=_keys(columns))

    def load(self, kinds: Mapping[str, str], batches: Iterable[Sequence[tuple[Any, ...]]]) -> int:
        """
        Load rows and return their number; see :func:`table.load`.

        :raises TableRefused: also for what :meth:`check` would say: the rows are paid and landed by now.
        """
        columns = _columns(kinds)
        try:
            return table.load(self.table, columns=columns, batches=batches, keys=_keys(columns), run=self.run)
        except InvalidConfig as e:
            raise TableRefused(f"{e} The files are landed; mend it and clear the task to load them.") from e


def _columns(kinds: Mapping[str, str]) -> dict[str, str]:
    return {name: "json" if kind == "output" else basic(kind) for name, kind in kinds.items()}


def _keys(columns: Mapping[str, str]) -> list[str]:
    return [name for name in ("key", "prompt") if name in columns]
