"""An answer line becomes a result: its status, its text or vector or files, and what else was asked for."""

from __future__ import annotations

import base64
import math
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import orjson

from airflow_gemini_batch.core.results import Result, Status
from airflow_gemini_batch.core.schema import OutputSchema
from airflow_gemini_batch.core.usage import Usage
from airflow_gemini_batch.exceptions import InvalidAnswer

BLOCKING_REASONS = frozenset(
    {"SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT",
     "IMAGE_RECITATION", "MODEL_ARMOR", "JAILBREAK"}
)  # fmt: skip
"""Finish reasons that mean the answer was withheld."""

FINE_REASONS = frozenset({"STOP", "", "FINISH_REASON_UNSPECIFIED"})

ODD = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What reading an answer of an unforeseen shape may raise. One row, not the landing."""


Blob: TypeAlias = tuple[str, bytes]
"""MIME type and content of an image or a sound."""


class MediaSink(Protocol):
    """Takes the images and sounds of answers; see ``core.media_files``."""

    def save(self, row: Mapping[str, Any], number: int, mime_type: str, data: bytes) -> str: ...


@dataclass(frozen=True)
class Reader:
    """
    How answers are read: fixed by the settings.

    :param embeddings: the answers are vectors.
    :param dimensions: how many numbers each vector must have, unless its row says otherwise.
    :param schema: what each answer's text must hold.
    :param include: names in :data:`EXTRAS`.
    :param raw: keep the response as JSON text.
    :param media: where images and sounds go; None leaves them in the raw results.
    """

    embeddings: bool = False
    dimensions: int | None = None
    schema: OutputSchema | None = None
    include: tuple[str, ...] = ()
    raw: bool = False
    media: MediaSink | None = None

    def read(self, row: Mapping[str, Any], line: Mapping[str, Any]) -> Result:
        """
        Judge one line of a result file. No line raises: a shape nobody knows becomes an ``error`` that says so.

        :param row: the line of the rows file that it answers.
        """
        media: list[Blob] = []
        try:
            result = self._judge(row, line, media)
        except ODD as e:
            message = f"the answer cannot be read: {type(e).__name__}: {e!s:.200}"
            result = Result(row["key"], Status.ERROR, error_message=message)
        result.prompt = row.get("prompt")
        if media and self.media is not None:  # not above: storage that fails is no matter of the line
            result.media = [self.media.save(row, n, kind, data) for n, (kind, data) in enumerate(media)]
        return result

    def _judge(self, row: Mapping[str, Any], line: Mapping[str, Any], media: list[Blob]) -> Result:
        key, response, error = row["key"], line.get("response"), line.get("error")
        if isinstance(response, Mapping) and (response or not error):
            result = self._vector(row, key, response) if self.embeddings else self._answer(key, response, media)
            if self.raw:
                result.raw = _json(response)
            return result
        if error and isinstance(error, Mapping | str):
            return _error(key, error if isinstance(error, Mapping) else {"message": error})
        return Result(key, Status.ERROR, error_message="the result line has neither a response nor an error")

    def _answer(self, key: str, response: Mapping[str, Any], media: list[Blob]) -> Result:
        candidate = _first(response.get("candidates"))
        content = candidate.get("content")
        parts = content.get("parts") if isinstance(content, Mapping) else None
        texts, other = [], False
        for part in parts if isinstance(parts, list) else ():
            if not isinstance(part, Mapping) or part.get("thought"):
                continue
            if isinstance(part.get("text"), str):
                texts.append(part["text"])
            elif _holds_something(part):
                other = True
        text = texts[0] if len(texts) == 1 else "".join(texts)
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
        elif other or text.strip():
            status = Status.OK
        else:
            status = Status.EMPTY
        result = Result(
            key,
            status,
            text or None,
            finish or None,
            str(block) if block else None,
            None,
            str(message) if message else None,
            _text(response.get("modelVersion")),
            _text(response.get("responseId")),
            Usage.of_response(response.get("usageMetadata")),
        )
        if self.schema is not None and status is Status.OK:
            self._check_output(result, self.schema)
        if self.include:
            result.extras = dict(self._extras(response, candidate, parts))
        if self.media is not None and other:
            _read_media(result, parts, media)
        return result

    def _extras(
        self, response: Mapping[str, Any], candidate: Mapping[str, Any], parts: Any
    ) -> Iterator[tuple[str, str]]:
        for name in self.include:
            found = EXTRAS[name](response, candidate, parts)
            text = found if name == "thoughts" else _json(found)
            if found and text:
                yield name, text

    def _check_output(self, result: Result, schema: OutputSchema) -> None:
        try:
            result.output = schema.check(result.text or "")
        except InvalidAnswer as e:
            result.status, result.error_message = Status.INVALID_OUTPUT, str(e)

    def _vector(self, row: Mapping[str, Any], key: str, response: Mapping[str, Any]) -> Result:
        embedding = response.get("embedding")
        values = embedding.get("values") if isinstance(embedding, Mapping) else None
        usage = Usage.of_response(response.get("usageMetadata")) or Usage.of_embedding(response)
        expected = row.get("dimensions") or self.dimensions
        vector = _numbers(values)
        result = Result(
            key, Status.OK, usage=usage, embedding=vector, model_version=_text(response.get("modelVersion"))
        )
        if not values:
            result.status, result.error_message = Status.EMPTY, "the response has no embedding"
        elif vector is None:
            result.status = Status.INVALID_OUTPUT
            result.error_message = "the embedding is not a list of numbers that float32 holds"
        elif expected and len(vector) != expected:
            result.status = Status.INVALID_OUTPUT
            result.error_message = f"the embedding has {len(vector)} dimensions, {expected} were asked for"
        return result


URL_SAFE = str.maketrans("-_", "+/")
"""Proto JSON takes both alphabets of base64."""


def _read_media(result: Result, parts: Any, media: list[Blob]) -> None:
    for part in parts:
        blob = part.get("inlineData") if isinstance(part, Mapping) and not part.get("thought") else None
        if not isinstance(blob, Mapping) or not isinstance(blob.get("data"), str) or not blob["data"]:
            continue
        try:
            data = base64.b64decode(blob["data"].translate(URL_SAFE), validate=True)
        except ValueError as e:
            if result.status is Status.OK:  # any other says more
                result.status = Status.INVALID_OUTPUT
            result.error_message = result.error_message or f"an image or sound is not base64: {e}"
            continue
        media.append((str(blob.get("mimeType") or "application/octet-stream"), data))


def _holds_something(part: Mapping[str, Any]) -> bool:
    """A part that is no text: an image, a call, code, or what nobody knows yet."""
    blob = part.get("inlineData")
    empty = {"inlineData"} if isinstance(blob, Mapping) and not blob.get("data") else set()
    return bool(part.keys() - {"text", "thought", "thoughtSignature"} - empty)


def _json(value: Any) -> str | None:
    """JSON text, None if it is nested more deeply than it could be written."""
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        return None


def _error(key: str, error: Mapping[str, Any]) -> Result:
    code = error.get("code")
    return Result(
        key,
        Status.ERROR,
        error_code=_whole(code),
        error_message=str(error.get("message") or (f"error code {code}" if code is not None else "no message")),
    )


def _first(candidates: object) -> Mapping[str, Any]:
    first = candidates[0] if isinstance(candidates, list) and candidates else None
    return first if isinstance(first, Mapping) else {}


def _numbers(values: object) -> list[float] | None:
    """The values as float32 has them, in every format alike; None if one is anything else, or too large for it."""
    if not isinstance(values, list) or not {type(value) for value in values} <= {float, int}:
        return None
    numbers = array("f", values).tolist()
    return numbers if all(map(math.isfinite, numbers)) else None


def _whole(code: object) -> int | None:
    """A number of 32 bits, also as 13.0 or "13", as which JSON of a proto may be read."""
    if isinstance(code, str) and len(code) < 11 and code.isdecimal():
        code = int(code)
    if isinstance(code, bool) or not isinstance(code, int | float) or not abs(code) < 2**31 or code != int(code):
        return None
    return int(code)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


Extract = Callable[[Mapping[str, Any], Mapping[str, Any], Any], Any]


def _of_candidate(name: str) -> Extract:
    return lambda response, candidate, parts: candidate.get(name)


def _safety(response: Mapping[str, Any], candidate: Mapping[str, Any], parts: Any) -> Any:
    feedback = response.get("promptFeedback")
    return candidate.get("safetyRatings") or (feedback.get("safetyRatings") if isinstance(feedback, Mapping) else None)


def _in_parts(*names: str) -> Extract:
    def found(response: Mapping[str, Any], candidate: Mapping[str, Any], parts: Any) -> list[Any]:
        wanted = [part for part in parts if isinstance(part, Mapping)] if isinstance(parts, list) else []
        if len(names) == 1:
            return [part[names[0]] for part in wanted if names[0] in part]
        return [{name: part[name]} for part in wanted for name in names if name in part]

    return found


def _thoughts(response: Mapping[str, Any], candidate: Mapping[str, Any], parts: Any) -> str:
    wanted: Sequence[Any] = parts if isinstance(parts, list) else ()
    return "".join(str(part.get("text") or "") for part in wanted if isinstance(part, Mapping) and part.get("thought"))


EXTRAS: dict[str, Extract] = {
    "safety_ratings": _safety,
    "citations": _of_candidate("citationMetadata"),
    "grounding": _of_candidate("groundingMetadata"),
    "url_context": _of_candidate("urlContextMetadata"),
    "function_calls": _in_parts("functionCall"),
    "code": _in_parts("executableCode", "codeExecutionResult"),
    "logprobs": _of_candidate("logprobsResult"),
    "thoughts": _thoughts,
}
"""
Columns that ``include`` may ask for, and where a response has them (https://ai.google.dev/api/generate-content): JSON, but
for ``thoughts``, which is text. Null where a response has none.
"""
