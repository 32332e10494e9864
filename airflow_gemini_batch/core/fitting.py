"""Kept values whose type the settings fix: a value fits, or its row is refused before anything is sent."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from airflow_gemini_batch.core import exact
from airflow_gemini_batch.core.columns import as_stored, reader
from airflow_gemini_batch.core.kinds import arrow_type, basic, in_microseconds

UNFIT = (ValueError, TypeError, ArithmeticError, AttributeError, KeyError)
"""What the maker of a value may raise; Arrow's own errors are among them."""

FROM_TEXT: dict[str, Callable[[str], Any]] = {
    "int64": int,
    "bool": lambda text: {"true": True, "false": False}[text.lower()],
    "json": lambda text: exact.loads(text.encode()),
}
"""How text (all of CSV is text) becomes what a kind has in JSON, where that is not text itself."""


def fitting(kind: str) -> Callable[[Any], Any]:
    """
    Return what makes a value one of the kind, without any loss but that of fractions to the kind's precision.

    Text that is blank is a null, unless the kind is text itself. What is made raises one of :data:`UNFIT`.
    """
    import pyarrow as pa

    arrow: Any = arrow_type(kind)
    coarse, read, base = in_microseconds(arrow), reader(kind), basic(kind)
    textual = pa.types.is_string(arrow) or base == "binary"
    numeric = pa.types.is_integer(arrow) or pa.types.is_floating(arrow) or pa.types.is_decimal(arrow)
    from_text = FROM_TEXT.get("int64" if pa.types.is_integer(arrow) else base)

    def fit(value: Any) -> Any:
        (stored,) = as_stored([value])
        if isinstance(stored, str) and not textual:
            stored = stored.strip() or None
            if numeric and "_" in (stored or ""):
                raise ValueError(f"{stored!r} is a number to Python alone")
            if stored is not None and from_text is not None:
                stored = from_text(stored)
        if stored is None:
            return None
        if not textual and (isinstance(stored, bool) != (kind == "bool") or _too_fine(stored)):
            raise ValueError(f"{stored!r} would change")
        wanted = read(stored)
        if isinstance(wanted, float) and isinstance(stored, int) and int(wanted) != stored:
            raise ValueError(f"{stored} would lose digits")
        array: Any = pa.array([wanted], arrow)
        found = (array if coarse == arrow else array.cast(coarse))[0].as_py()
        if not _same(wanted, found):
            raise ValueError(f"{wanted!r} would become {found!r}")
        return found

    return fit


def _too_fine(stored: object) -> bool:
    """Python leaves off what it reads beyond microseconds."""
    return isinstance(stored, str) and re.search(r"\d\.\d{6}\d*[1-9]", stored) is not None and ":" in stored


def _same(wanted: Any, found: Any) -> bool:
    """Arrow cuts fractions and times to fit, without a word. Only digits beyond a float's precision may go."""
    if isinstance(wanted, float) and isinstance(found, float):
        return math.isfinite(wanted) == math.isfinite(found)
    if isinstance(wanted, list | tuple):
        return len(wanted) == len(found) and all(map(_same, wanted, found))
    if isinstance(wanted, dict):
        return all(_same(value, found[name]) for name, value in wanted.items())
    return bool(wanted == found)
