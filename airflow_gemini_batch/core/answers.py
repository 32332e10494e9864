"""
The lines of a result file find their rows: exactly one result per key, in the order of the requests.

Keys are the only link. The service may shuffle, drop, repeat or rename lines; a line's position means nothing.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, BinaryIO, Protocol

import orjson

from airflow_gemini_batch.core.names import wire_key
from airflow_gemini_batch.core.reading import Reader
from airflow_gemini_batch.core.results import Result, Status


@dataclass
class Oddities:
    """Lines of a result file that belong to no row, and lines that came twice. Kept aside, never silently dropped."""

    corrupt: int = 0
    unknown_key: int = 0
    duplicate: int = 0

    def __add__(self, other: Oddities) -> Oddities:
        return Oddities(
            self.corrupt + other.corrupt, self.unknown_key + other.unknown_key, self.duplicate + other.duplicate
        )

    def __bool__(self) -> bool:
        return bool(self.corrupt or self.unknown_key or self.duplicate)


class Lines(Protocol):
    """Gives the line under a key, or None if there is none."""

    def take(self, key: str) -> Mapping[str, Any] | None: ...


Reject = Callable[[int, str, bytes], None]

NOT_SEEN, TAKEN = -1, -2

DEEPEST = 200
"""Levels of a line that the lenient way reads: no answer has as many, and everything that writes JSON takes them."""

PIECES = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[{]|[\]}]|[^"\[\]{}]+|"', re.DOTALL)
"""Texts, brackets, and what is between them."""

STEPS = {"[": 1, "{": 1, "]": -1, "}": -1}


class Answers:
    """
    The lines of one result file, taken by key.

    Reads forward only as far as needed. When the lines come in the order they are asked for, which is the rule, each is
    parsed once and nothing is held; a line that comes early is remembered by its offset, not by its content.

    :param file: the whole result file, seekable.
    :param keys: every key that was sent.
    :param reject: called with line number, reason and bytes of a line that belongs to no row.
    :param done: how much was dealt with before: bytes and lines from the file's beginning, and that many of the keys.
    """

    def __init__(
        self, file: BinaryIO, keys: Iterable[str], reject: Reject, done: tuple[int, int, int] = (0, 0, 0)
    ) -> None:
        self._file, self._reject = file, reject
        self._position, self._line, taken = done
        self._offsets = {key: TAKEN if i < taken else NOT_SEEN for i, key in enumerate(keys)}
        file.seek(self._position)
        self.oddities = Oddities()

    def take(self, key: str) -> Mapping[str, Any] | None:
        """Return the first line under this key, or None if there is none. A key can be taken once."""
        offset = self._offsets[key]
        if offset == NOT_SEEN:
            for found, at, parsed in self._forward():
                if found == key:
                    self._offsets[key] = TAKEN
                    return parsed
                self._offsets[found] = at
            return None
        self._offsets[key] = TAKEN
        self._file.seek(offset)
        early: Mapping[str, Any] = load(self._file.readline())
        self._file.seek(self._position)
        return early

    def finish(self) -> Oddities:
        """Read what is left, so that every line is accounted for, and return what was odd."""
        for found, at, _ in self._forward():
            self._offsets[found] = at
        return self.oddities

    def _forward(self) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
        while data := self._file.readline():
            at = self._position
            self._position += len(data)
            self._line += 1
            if not data.strip():
                continue
            try:
                parsed = load(data)
                key = key_of(parsed)
            except ValueError as e:  # orjson's error is one
                self.oddities.corrupt += 1
                self._reject(self._line, f"cannot be read: {e}", data)
                continue
            seen = self._offsets.get(key)
            if seen == NOT_SEEN:
                yield key, at, parsed
            elif seen is None:
                self.oddities.unknown_key += 1
                self._reject(self._line, "a key that was not sent", data)
            else:
                self.oddities.duplicate += 1
                self._reject(self._line, "another line under a key that has one already; the first counts", data)


def load(data: bytes) -> Any:
    """
    Read a line. The row is not lost by what one value in it is: a byte order mark is passed over, half of a surrogate pair
    becomes ``?`` and what is not UTF-8 U+FFFD; numbers that no float holds become null, as does what is nested too deeply.

    :raises ValueError: it is not JSON.
    """
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        # The standard library takes lone surrogates, which no file format could hold.
        text = _shallow(data.decode("utf-8", "replace"))
        lenient = json.loads(text, parse_constant=lambda _: None, parse_float=_finite, parse_int=_whole, strict=False)
        return orjson.loads(json.dumps(lenient, ensure_ascii=False).encode("utf-8", "replace"))


def _shallow(text: str) -> str:
    """JSON with null in place of what is below :data:`DEEPEST` levels."""
    if text.count("[") + text.count("{") <= DEEPEST:
        return text
    depth, kept = 0, []
    for piece in PIECES.findall(text):
        above, depth = depth, depth + STEPS.get(piece, 0)
        if max(above, depth) <= DEEPEST:
            kept.append(piece)
        elif above == DEEPEST:
            kept.append("null")
    return "".join(kept)


def _finite(digits: str) -> float | None:
    value = float(digits)
    return value if math.isfinite(value) else None


def _whole(digits: str) -> int | float | None:
    # Python refuses to read thousands of digits; beyond 64 bits orjson, too, makes a float of them.
    return int(digits) if len(digits) <= 20 else _finite(digits)


def key_of(line: object) -> str:
    """:raises ValueError: the line names no row."""
    if not isinstance(line, Mapping):
        raise ValueError("not a JSON object")
    key = line.get("key")
    if key is None and isinstance(line.get("metadata"), Mapping):
        key = line["metadata"].get("key")
    if key is None:
        raise ValueError("no key")
    return key if isinstance(key, str) else str(key)


def join(
    rows: Iterable[Mapping[str, Any]],
    answers: Lines | None,
    reader: Reader,
    *,
    unsendable: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[tuple[Mapping[str, Any], Result]]:
    """
    Pair every row with its result, in the order of the rows.

    :param rows: lines of a rows file: ``key``, and ``unsent`` where nothing was sent.
    :param answers: None when there is no result file at all: every row is then ``missing``.
    :param unsendable: key as sent → why it was not sent after all. An answer counts for more: another attempt may have
        sent it.
    """
    for row in rows:
        key = wire_key(row)
        if "unsent" in row:
            yield row, Result(row["key"], Status.EMPTY, error_message=row["unsent"], prompt=row.get("prompt"))
        elif answers is not None and (line := answers.take(key)) is not None:
            yield row, reader.read(row, line)
        elif key in unsendable:
            yield row, Result(row["key"], Status.ERROR, error_message=unsendable[key], prompt=row.get("prompt"))
        else:
            message = "the results have no line under this key"
            yield row, Result(row["key"], Status.MISSING, error_message=message, prompt=row.get("prompt"))
