"""Which columns a source has: those of its records, and those that its directories are named for."""

from __future__ import annotations

import difflib
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote

from airflow_gemini_batch.core.prompts import LITERAL_BRACES
from airflow_gemini_batch.core.storage import StoragePath
from airflow_gemini_batch.exceptions import UnknownColumn

log = logging.getLogger("airflow_gemini_batch")

NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
"""What Hive and Spark write in a directory's name for a null."""


def check_columns(needed: Mapping[str, str], present: Iterable[str], where: str) -> None:
    """:raises UnknownColumn: a needed column is missing; it lists the columns and the likely meant one."""
    columns = list(present)
    for name, role in needed.items():
        if name not in columns:
            close = difflib.get_close_matches(name, columns, 1)
            meant = f" Did you mean {close[0]!r}?" if close else ""
            if role == "prompt" and not name.isidentifier() and not close:
                meant = f" {LITERAL_BRACES}"
            listed = ", ".join(map(repr, columns[:50])) or "none"
            raise UnknownColumn(
                f"{role} names the column {name!r}, which {where} does not have. Columns: {listed}.{meant}"
            )


class LeftOut:
    """
    Records that leave a column out where it is null, as BigQuery, Spark and many others write JSON.

    What tells that from a name that is wrong: at least one record has the column.

    :param needed: column → what needs it.
    """

    def __init__(self, needed: Mapping[str, str]) -> None:
        self._needed, self._nowhere = needed, set(needed)
        self._columns: dict[str, None] = {}
        self._counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def filled(self, values: Mapping[str, Any], where: str) -> Mapping[str, Any]:
        """
        Return a record with every needed column.

        :param where: it is, for messages.
        :raises UnknownColumn: it leaves its key out, which no record may.
        """
        if self._nowhere:
            self._nowhere -= values.keys()
            if len(self._columns) < 50:
                self._columns |= dict.fromkeys(values)
        if self._needed.keys() <= values.keys():
            return values
        for name in self._needed.keys() - values.keys():
            if self._needed[name] == "key":
                check_columns({name: "key"}, values, where)
            self._counts[name] += 1
            self._first.setdefault(name, where)
        return {**dict.fromkeys(self._needed), **values}

    def tell(self) -> None:
        """
        After the last record.

        :raises UnknownColumn: no record had a needed column, though there were some.
        """
        if not self._counts:
            return
        if self._nowhere:
            wrong = {name: role for name, role in self._needed.items() if name in self._nowhere}
            check_columns(wrong, self._columns, next(iter(self._first[name] for name in wrong)))
        for name, count in self._counts.items():
            log.info("%s rows leave the column %r out, the first is %s: it is null there", f"{count:,}", name,
                     self._first[name])  # fmt: skip


# Partitions -------------------------------------------------------------------------------------------------


def partitions_of(path: StoragePath) -> dict[str, str | None]:
    """Return the columns that a file's directories are named for."""
    columns: dict[str, str | None] = {}
    for segment in str(path).split("/")[:-1]:
        name, equals, value = segment.partition("=")
        if name and equals:
            columns[_decoded(name)] = None if value == NULL_PARTITION else _decoded(value)
    return columns


def _decoded(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:  # not written by Hive's rules: then it stands for itself
        return text
