"""JSON with whole numbers of any size: what is beyond 64 bits, orjson reads as a rounded fraction and refuses to write."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import orjson

TO_ZEROS = bytes.maketrans(b"123456789", b"000000000")
MANY_DIGITS = b"0" * 19
"""Fewer than these fit into 64 bits."""


def loads(data: bytes) -> Any:
    """:raises ValueError: no JSON (``orjson.JSONDecodeError``)."""
    value = orjson.loads(data)
    if MANY_DIGITS in data.translate(TO_ZEROS):  # half the cost of a search by pattern
        try:
            return json.loads(data)
        except (ValueError, RecursionError):  # over 4300 digits, or nested deeper than Python goes
            pass
    return value


def dumps(value: Any, default: Callable[[Any], Any] | None = None, option: int = 0) -> bytes:
    """:raises TypeError: JSON has no word for something in it."""
    try:
        return orjson.dumps(value, default, option)
    except TypeError as e:
        if "64-bit" not in str(e):
            raise
        return orjson.dumps(_spelled(value), default, option)


def _spelled(value: Any) -> Any:
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return orjson.Fragment(str(value))
    if isinstance(value, dict):
        return {name: _spelled(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_spelled(one) for one in value]
    return value
