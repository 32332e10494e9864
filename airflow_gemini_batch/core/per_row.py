"""Settings that differ from row to row: a value of the config may be ``"{column}"``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from airflow_gemini_batch.core import exact
from airflow_gemini_batch.core.config import check_cache, embed_template, request_template
from airflow_gemini_batch.core.prompts import is_null
from airflow_gemini_batch.core.rows import Row
from airflow_gemini_batch.exceptions import BadRow, InvalidConfig

MOST_TAILS = 10_000
"""Combinations of per-row values whose JSON is kept; rows rarely have more."""


class Tail(NamedTuple):
    """
    :param json: a row's settings without their outer braces.
    :param dimensions: how many they ask for.
    :param cache: the cached content that they name.
    """

    json: bytes
    dimensions: int | None
    cache: str | None


class PerRow:
    """
    The part of a request after its text, for rows that bring settings of their own.

    :param template: what all rows share, as REST has it.
    :param places: field of the config (dotted) → column.
    """

    def __init__(self, template: Mapping[str, Any], places: Mapping[str, str], *, embeddings: bool) -> None:
        self._template, self._places, self._embeddings = template, places, embeddings
        self._tails: dict[tuple[Any, ...], Tail] = {}

    def tail(self, row: Row) -> Tail:
        """
        Return what follows a row's text.

        A null, or a blank text, leaves the field out: the model's default holds for this row.

        :raises BadRow: a value cannot be used for its field.
        """
        values = tuple(row.values[column] for column in self._places.values())
        try:
            known = self._tails.get(values)
        except TypeError:  # a list or a mapping: stop sequences, tools, a schema
            return self._make(row, values)
        if known is not None:
            return known
        made = self._make(row, values)
        if len(self._tails) < MOST_TAILS:
            self._tails[values] = made
        return made

    def _make(self, row: Row, values: tuple[Any, ...]) -> Tail:
        whole = dict(self._template)
        for (name, column), value in zip(self._places.items(), values, strict=True):
            if is_null(value) or (isinstance(value, str) and not value.strip()):
                continue
            try:
                whole = merged(whole, self._fragment(name, value))
            except InvalidConfig as e:
                raise BadRow(row.where, f"the column {column!r} holds {value!r}, which cannot be used: {e}") from e
        try:
            check_cache(whole)
        except InvalidConfig as e:
            raise BadRow(row.where, str(e)) from e
        return Tail(exact.dumps(whole)[1:-1], whole.get("outputDimensionality"), whole.get("cachedContent"))

    def _fragment(self, name: str, value: Any) -> dict[str, Any]:
        if self._embeddings:
            return embed_template({name: value})
        config: Any = value
        for field in reversed(name.split(".")):
            config = {field: config}
        return request_template(config, None)


def merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """``other`` on top of ``one``, at every depth."""
    result = dict(one)
    for name, value in other.items():
        mine = result.get(name)
        result[name] = merged(mine, value) if isinstance(mine, Mapping) and isinstance(value, Mapping) else value
    return result
