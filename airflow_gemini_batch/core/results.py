"""
Answer lines become results: exactly one per key, under its own key, in the order of the requests.

Keys are the only link. The service may shuffle, drop, repeat or rename lines; a line's position means nothing.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, BinaryIO

import orjson

from airflow_gemini_batch.core.usage import Usage


class Status(StrEnum):
    """What became of one row."""

    OK = "ok"
    ERROR = "error"
    BLOCKED = "blocked"
    TRUNCATED = "truncated"
    INVALID_OUTPUT = "invalid_output"
    EMPTY = "empty"
    MISSING = "missing"


BLOCKING_REASONS = frozenset(
    {"SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT",
     "IMAGE_RECITATION", "MODEL_ARMOR", "JAILBREAK"}
)  # fmt: skip
"""Finish reasons that mean the answer was withheld."""

FINE_REASONS = frozenset({"STOP", "", "FINISH_REASON_UNSPECIFIED"})

PASSING_CODES = frozenset({1, 2, 4, 8, 10, 13, 14})
"""
gRPC codes of a row or job that may go away by itself: CANCELLED, UNKNOWN, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, ABORTED,
INTERNAL, UNAVAILABLE. All others are final: the same request would fail again.
"""


@dataclass(slots=True)
class Result:
    """One row's outcome. ``usage`` is what this one answer cost in tokens; None when there was no answer."""

    key: str
    status: Status
    text: str | None = None
    finish_reason: str | None = None
    block_reason: str | None = None
    error_code: int | None = None
    error_message: str | None = None
    model_version: str | None = None
    response_id: str | None = None
    usage: Usage | None = None
    raw: str | None = None

    @property
    def passing(self) -> bool:
        """It failed for a reason that may pass: asking again can help."""
        return self.status is Status.MISSING or (self.status is Status.ERROR and self.error_code in PASSING_CODES)

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Result:
        fields = dict(body)
        fields["status"] = Status(fields["status"])
        if "usage" in fields:
            fields["usage"] = Usage(**fields["usage"])
        return cls(**fields)


def read_answer(key: str, line: Mapping[str, Any], *, include_raw: bool = False) -> Result:
    """Judge one line of a result file. Never raises: a shape nobody knows becomes an ``error`` that says so."""
    response, error = line.get("response"), line.get("error")
    if isinstance(response, Mapping):
        result = _of_response(key, response)
        if include_raw:
            result.raw = orjson.dumps(response).decode()
        return result
    if isinstance(error, Mapping):
        code = error.get("code")
        plain = isinstance(code, int) and not isinstance(code, bool) and abs(code) < 2**31
        return Result(
            key,
            Status.ERROR,
            error_code=code if plain else None,
            error_message=str(error.get("message") or (f"error code {code}" if code is not None else "no message")),
        )
    return Result(key, Status.ERROR, error_message="the result line has neither a response nor an error")


def _of_response(key: str, response: Mapping[str, Any]) -> Result:
    candidates = response.get("candidates")
    first = candidates[0] if isinstance(candidates, list) and candidates else None
    candidate = first if isinstance(first, Mapping) else {}
    content = candidate.get("content")
    parts = content.get("parts") if isinstance(content, Mapping) else None
    texts, other = [], False
    for part in parts if isinstance(parts, list) else ():
        if not isinstance(part, Mapping) or part.get("thought"):
            continue
        if isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif part.keys() - {"thoughtSignature", "text"}:
            other = True
    text = "".join(texts)
    finish = str(candidate.get("finishReason") or "")
    feedback = response.get("promptFeedback")
    block = feedback.get("blockReason") if isinstance(feedback, Mapping) else None

    message = None
    if block and not text:
        status = Status.BLOCKED
    elif finish in BLOCKING_REASONS:
        status = Status.BLOCKED
        message = candidate.get("finishMessage")
    elif finish == "MAX_TOKENS":
        status = Status.TRUNCATED
    elif finish not in FINE_REASONS:
        status = Status.ERROR
        message = candidate.get("finishMessage") or f"the model stopped with {finish}"
    elif text.strip() or other:
        status = Status.OK
    else:
        status = Status.EMPTY
    return Result(
        key,
        status,
        text=text or None,
        finish_reason=finish or None,
        block_reason=str(block) if block else None,
        error_message=str(message) if message else None,
        model_version=_text(response.get("modelVersion")),
        response_id=_text(response.get("responseId")),
        usage=Usage.of_response(response.get("usageMetadata")),
    )


def _text(value: object) -> str | None:
    return None if value is None else str(value)


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


Reject = Callable[[int, str, bytes], None]

NOT_SEEN, TAKEN = -1, -2


class Answers:
    """
    The lines of one result file, taken by key.

    Reads forward only as far as needed. When the lines come in the order they are asked for, which is the rule, each is
    parsed once and nothing is held; a line that comes early is remembered by its offset, not by its content.

    :param file: the whole result file, seekable.
    :param keys: every key that was sent.
    :param reject: called with line number, reason and bytes of a line that belongs to no row.
    """

    def __init__(self, file: BinaryIO, keys: Iterable[str], reject: Reject) -> None:
        self._file, self._reject = file, reject
        self._offsets = dict.fromkeys(keys, NOT_SEEN)
        self._position = self._line = 0
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
        early: Mapping[str, Any] = _load(self._file.readline())
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
                parsed = _load(data)
                key = _key_of(parsed)
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


def _load(data: bytes) -> Any:
    """
    Read a line; a byte order mark is passed over, and half of a surrogate pair becomes ``?``: the row is not lost by it.

    :raises ValueError: it is not JSON.
    """
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        # The standard library takes lone surrogates, which no file format could hold.
        return orjson.loads(json.dumps(json.loads(data), ensure_ascii=False).encode("utf-8", "replace"))


def _key_of(line: object) -> str:
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
    rows: Iterable[Mapping[str, Any]], answers: Answers | None, *, include_raw: bool = False
) -> Iterator[tuple[Mapping[str, Any], Result]]:
    """
    Pair every row with its result, in the order of the rows.

    :param rows: lines of a rows file: ``key``, and ``unsent`` where nothing was sent.
    :param answers: None when there is no result file at all: every row is then ``missing``.
    """
    for row in rows:
        key = row["key"]
        if "unsent" in row:
            yield row, Result(key, Status.EMPTY, error_message=row["unsent"])
        elif answers is None or (line := answers.take(key)) is None:
            yield row, Result(key, Status.MISSING, error_message="the results have no line under this key")
        else:
            yield row, read_answer(key, line, include_raw=include_raw)
