"""
Proto JSON in: one walk over parsed JSON checks it against the tables in schema.py and turns names into camelCase.

What an unknown field or a wrong type is called differs by call: a create body gets field violations with paths (here),
a line of a file gets a column (columns.py).
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NamedTuple

from airflow_gemini_batch.emulator.errors import ApiError, field_violations
from airflow_gemini_batch.emulator.schema import MESSAGES, ONEOFS, snake

PACKAGE = "type.googleapis.com/google.ai.generativelanguage.v1beta."
BASE64 = re.compile(r"[A-Za-z0-9+/_\s-]*=?\s*=?\s*")  # line breaks, both alphabets and missing padding are taken
INT_RANGE = {"int32": 2**31, "int64": 2**63}


class Problem(NamedTuple):
    """Something the service would refuse: ``path`` in snake_case, and the text about it."""

    path: str
    text: str


def read(value: Any, message: str, path: str, problems: list[Problem]) -> dict[str, Any]:
    """
    Check an object and return it with camelCase names, without its nulls; what is wrong is added to ``problems``.

    :param message: a name in ``MESSAGES``.
    :param path: where the object stands, for the texts.
    """
    if not isinstance(value, dict):
        problems.append(_wrong(path, message, value))
        return {}
    table = MESSAGES[message]
    either = ONEOFS.get(message)
    clean: dict[str, Any] = {}
    for given, inner in value.items():
        known = table.get(given)
        if known is None:
            at = f" at '{path}'" if path else ""
            problems.append(
                Problem(path, f'Invalid JSON payload received. Unknown name "{given}"{at}: Cannot find field.')
            )
            continue
        if inner is None:
            continue
        name, kind = known
        if either and name in either and not either.isdisjoint(clean):
            already = f"oneof field 'data' is already set. Cannot set '{name}'"
            problems.append(Problem(path, f"Invalid value at '{path}' (oneof), {already}"))
        if kind == "string" and type(inner) is str:  # the common case, first
            clean[name] = inner
            continue
        clean[name] = _read_field(inner, kind, f"{path}.{snake(name)}" if path else snake(name), problems)
    return clean


def _read_field(value: Any, kind: str, path: str, problems: list[Problem]) -> Any:
    if kind.startswith("[]"):
        if not isinstance(value, list):
            problems.append(_wrong(path, kind[2:], value))
            return []
        return [_read_field(one, kind[2:], f"{path}[{i}]", problems) for i, one in enumerate(value)]
    if kind == "map" or kind.startswith("map:"):
        if not isinstance(value, dict):
            problems.append(_wrong(path, "map", value))
            return {}
        inner = kind[4:] or "string"
        return {name: _read_field(one, inner, f"{path}[{name}]", problems) for name, one in value.items()}
    if kind in MESSAGES:
        if isinstance(value, list):
            parent, _, last = path.rpartition(".")
            text = f"Unknown name \"{last}\" at '{parent}': Proto field is not repeating, cannot start list."
            problems.append(Problem(parent, f"Invalid JSON payload received. {text}"))
            return {}
        return read(value, kind, path, problems)
    good, clean = scalar(value, kind)
    if not good:
        problems.append(_wrong(path, kind, value))
    return clean


def scalar(value: Any, kind: str) -> tuple[bool, Any]:
    """Whether proto JSON takes the value for this type, and the value as Python keeps it."""
    if kind == "any":
        return True, value
    if kind == "string":
        return isinstance(value, str), value
    if kind == "bytes":
        return isinstance(value, str) and BASE64.fullmatch(value) is not None, value
    if kind == "struct":
        return isinstance(value, dict), value
    if kind == "bool":
        return isinstance(value, bool), value
    if isinstance(value, bool):
        return False, value
    if kind == "enum":
        return isinstance(value, (str, int)), value
    try:
        number = float(value) if isinstance(value, (int, float, str)) else math.nan
        if kind == "number":
            return isinstance(value, (int, float, str)), number
        whole = int(value)
    except (TypeError, ValueError, OverflowError):
        return False, value
    return whole == number and -INT_RANGE[kind] <= whole < INT_RANGE[kind], whole


def refuse(problems: list[Problem]) -> None:
    """
    :raises ApiError: a 400 with every problem in its message and as a field violation.
    """
    if problems:
        texts = [problem.text for problem in problems[:100]]
        raise ApiError(400, "\n".join(texts), details=[field_violations([(p.path, p.text) for p in problems[:100]])])


def _wrong(path: str, kind: str, value: Any) -> Problem:
    shown = kind if kind in MESSAGES or kind == "map" else f"TYPE_{kind.upper()}"
    shown = PACKAGE + kind if kind in MESSAGES else shown
    return Problem(path, f"Invalid value at '{path}' ({shown}), {json.dumps(value, ensure_ascii=False)[:200]}")
