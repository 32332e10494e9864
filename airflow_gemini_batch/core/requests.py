"""
Second step: a row becomes keyed requests; keys are stable. Knows the request's JSON; knows nothing of files or jobs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from airflow_gemini_batch.core import exact
from airflow_gemini_batch.core.blocks import Frame
from airflow_gemini_batch.core.fitting import UNFIT, fitting
from airflow_gemini_batch.core.media_types import is_remote, media_type
from airflow_gemini_batch.core.names import wire_key
from airflow_gemini_batch.core.per_row import PerRow
from airflow_gemini_batch.core.prompts import Prompt, bytes_text, is_null, unsendable
from airflow_gemini_batch.core.readymade import SCHEMAS, WRAPPER, check_request, meant_as_request, with_template
from airflow_gemini_batch.core.rows import TEXT_COLUMN, Row
from airflow_gemini_batch.core.source_columns import LeftOut, check_columns
from airflow_gemini_batch.core.spelling import camel, snake
from airflow_gemini_batch.exceptions import BadRow, InvalidConfig

MEDIA_MODELS = ("-image", "-tts", "nano-banana")
"""Parts of the names of models that answer with images or sounds without being asked to."""

MOST_CACHES = 100
"""Cached contents of single requests that are looked up before a job is created."""

EMBEDDING_SETTINGS = {"task_type": "task_type", "title": "title_column", "output_dimensionality": "dimensions"}
"""Field of the SDK's config → what the embeddings operator calls it."""


@dataclass(frozen=True)
class Spec:
    """
    What one run asks of every row: all that decides the bytes sent, and nothing else.

    :param prompt: None: rows are strings, or ready-made ``{"key", "request"}`` records. A mapping: several prompts by name.
    :param template: the fields of a request that all rows share.
    :param per_row: field of the config (dotted) → column that holds its value for the row.
    :param key: column that identifies a row; None: its number.
    :param keep: columns copied to the result.
    :param types: kept column → its kind (see ``kinds``), where the values have no say in it. Once planned, it is the plan's.
    :param media: columns that hold URIs of images, documents, sounds or films.
    :param embeddings: ask for vectors instead of answers.
    :param output_schema: JSON schema of the answers.
    :param fallbacks: models of later rounds.
    :param job: how the job is created, where that is not the usual way: ``label`` (for people, in the display name),
        ``fields`` (``priority``, ``webhookConfig``), ``inline`` (the create carries the requests), ``file`` (somebody has
        uploaded them); or ``names`` of jobs that are there already, so that nothing is sent at all.
    """

    model: str
    prompt: str | Mapping[str, str] | None = None
    template: Mapping[str, Any] = field(default_factory=dict)
    key: str | None = None
    keep: tuple[str, ...] = ()
    types: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    per_row: Mapping[str, str] = field(default_factory=dict)
    media: tuple[str, ...] = ()
    embeddings: bool = False
    output_schema: Mapping[str, Any] | None = None
    fallbacks: tuple[str, ...] = ()
    job: Mapping[str, Any] = field(default_factory=dict)

    @property
    def asks(self) -> str:
        """What the user calls the text that a row is asked."""
        return "text" if self.embeddings else "prompt"

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": [self.model, *self.fallbacks] if self.fallbacks else self.model,
            "prompt": dict(self.prompt) if isinstance(self.prompt, Mapping) else self.prompt,
            "template": dict(self.template),
            "key": self.key,
            "keep": list(self.keep),
            "per_row": dict(self.per_row),
            "media": list(self.media),
            "embeddings": self.embeddings,
            "output_schema": dict(self.output_schema) if self.output_schema is not None else None,
        } | ({"job": dict(self.job)} if self.job else {})


@dataclass(frozen=True, slots=True)
class Request:
    """
    A keyed request, or the reason why nothing is sent for this key.

    :param key: the row's.
    :param line: the JSONL line as it is sent, with its newline; empty when ``unsent`` says why.
    :param prompt: the prompt's name, if a row has several.
    :param media: URIs in the line's ``fileData`` that the service cannot open; they are uploaded before it is sent.
    :param dimensions: how many numbers its vector must have, if that is not the same for all rows.
    :param begins_job: it goes into another job than the request before it.
    :param earlier: what an earlier round brought: ``result``, ``job`` and ``round``.
    """

    key: str
    line: bytes
    keep: Mapping[str, Any]
    unsent: str | None = None
    prompt: str | None = None
    media: tuple[str, ...] = ()
    dimensions: int | None = None
    begins_job: bool = False
    earlier: Mapping[str, Any] | None = None


class RequestBuilder:
    """
    Turns rows into requests under one spec.

    :param max_bytes: most bytes of one line.
    :raises InvalidConfig: a prompt cannot be read.
    """

    def __init__(self, spec: Spec, *, max_bytes: int) -> None:
        self._spec, self._max_bytes = spec, max_bytes
        self._named = isinstance(spec.prompt, Mapping)
        prompts: Mapping[str, str] = (
            spec.prompt if isinstance(spec.prompt, Mapping) else {"": spec.prompt} if spec.prompt is not None else {}
        )
        if self._named and not prompts:
            raise InvalidConfig(f"{spec.asks} is an empty mapping; give at least one {spec.asks} under a name.")
        self._prompts = [(name or None, Prompt.parse(text, name, setting=spec.asks)) for name, text in prompts.items()]
        self.caches: dict[str, None] = {}
        """Cached contents that single requests built so far name, the first :data:`MOST_CACHES` of them."""
        self._per_row = PerRow(spec.template, spec.per_row, embeddings=spec.embeddings)
        self._fits = {name: fitting(kind) for name, kind in spec.types.items()}
        self._tail = orjson.dumps(dict(spec.template))[1:-1]
        self._open, self._close = (
            (b'{"content":{"parts":[', b"]}") if spec.embeddings else (b'{"contents":[{"parts":[', b'],"role":"user"}]')
        )
        needed: dict[str, str] = {}
        for _, prompt in self._prompts:
            needed |= dict.fromkeys(prompt.columns, spec.asks)
        for name in spec.media:
            needed.setdefault(name, "media")
        for field_name, column in spec.per_row.items():
            needed.setdefault(
                column, EMBEDDING_SETTINGS[snake(field_name)] if spec.embeddings else f"config.{field_name}"
            )
        if spec.key is not None:
            needed.setdefault(spec.key, "key")
        for name in spec.keep:
            needed.setdefault(name, "keep")
        self._needed = needed
        self.left_out = LeftOut({} if self._prompts else needed)
        """Of ready-made requests; rows that are read for a prompt have every column."""
        self._keyed: bool | None = None
        self._ready_made_so_far = False
        self.asks_for_media = any(sign in spec.model for sign in MEDIA_MODELS) or asks_for_media(dict(spec.template))
        """Answers may hold images or sounds, as far as the settings and the requests built so far tell."""

    @property
    def needed(self) -> dict[str, str]:
        """Column → the setting that names it. Empty when every row must be read whole."""
        return self._needed if self._prompts else {}

    @property
    def frame(self) -> Frame | None:
        """What is around the texts of every line, where nothing but those texts differs from row to row."""
        spec = self._spec
        if self._named or len(self._prompts) != 1 or spec.media or spec.per_row:
            return None
        prompt = self._prompts[0][1]
        if not prompt.columns:
            return None
        return Frame(
            before='{"key":"',
            between='","request":' + self._open.decode() + '{"text":"',
            after='"}' + self._close.decode() + ("," + self._tail.decode() if self._tail else "") + "}}\n",
            prompt=prompt,
            key=spec.key,
            keep=tuple(dict.fromkeys(spec.keep)),
            types=spec.types,
            max_bytes=self._max_bytes,
        )

    @property
    def per_source_row(self) -> int:
        """Requests that one row of the source becomes."""
        return max(1, len(self._prompts))

    @property
    def same_for_all(self) -> bool:
        """No prompt has a place, so every row would ask the same."""
        return bool(self._prompts) and not self._spec.media and not any(p.columns for _, p in self._prompts)

    def build(self, row: Row) -> Iterator[Request]:
        """
        Yield a row's requests: one, or one for each of several prompts.

        :raises BadRow: the row has no usable key, holds text that is not valid Unicode, or is too large.
        :raises UnknownColumn: it lacks a column that the settings name.
        """
        values = row.values
        if not self._prompts and (self._ready_made_so_far or meant_as_request(values)):
            filled = self.left_out.filled(values, row.where)
            yield self._ready_made(row if filled is values else replace(row, values=filled))
            return
        for name in self._needed:
            if name not in values:
                check_columns(self._needed, values, row.where)
        if values.keys() == WRAPPER and "request" not in self._needed and isinstance(values["request"], Mapping):
            raise InvalidConfig(
                f"{row.where} is a ready-made request, which the prompt would replace: leave prompt out."
            )
        key = self._key(row)
        keep = self._kept(row)
        media = self._media(row) if self._spec.media else ()
        tail, dimensions, cache = self._per_row.tail(row) if self._spec.per_row else (self._tail, None, None)
        self._note_cache(cache)
        for named, prompt in self._prompts or ((None, None),):
            yield self._request(row, key, keep, prompt, media, tail, dimensions, named)

    def _request(
        self, row: Row, key: str, keep: Mapping[str, Any], prompt: Prompt | None, media: Sequence[tuple[str, str | None]],
        tail: bytes, dimensions: int | None, name: str | None,
    ) -> Request:  # fmt: skip
        try:
            text = prompt.fill(row.values) if prompt else self._bare_text(row)
            # A prompt without places is no reason to ask when the media that it speaks of are not there.
            if not text.strip() or (self._spec.media and not media and not (prompt and prompt.columns)):
                return Request(key, b"", keep, f"the {self._spec.asks} is empty, so nothing was sent", name)
            parts = b'{"text":' + orjson.dumps(text) + b"}"
            if media:
                files = [{"fileData": {"fileUri": uri} | ({"mimeType": kind} if kind else {})} for uri, kind in media]
                parts = orjson.dumps(files)[1:-1] + b"," + parts
        except TypeError as e:
            raise BadRow(row.where, f"its text {unsendable(e)}") from e
        body = self._open + parts + self._close + (b"," + tail if tail else b"") + b"}"
        line = self._line(row, wire_key({"key": key, "prompt": name}) if name else key, body)
        return Request(key, line, keep, None, name, tuple(uri for uri, _ in media if not is_remote(uri)), dimensions)

    def _media(self, row: Row) -> list[tuple[str, str | None]]:
        found = []
        for column in self._spec.media:
            value = row.values[column]
            for uri in value if isinstance(value, list | tuple) else [value]:
                if is_null(uri):
                    continue
                if not isinstance(uri, str):
                    raise BadRow(row.where, f"media column {column!r} holds {uri!r}; it takes URIs or lists of them")
                if uri.strip():
                    found.append((uri.strip(), media_type(uri.strip())))
        return found

    def _ready_made(self, row: Row) -> Request:
        values, spec = row.values, self._spec
        if spec.per_row or spec.media:
            raise InvalidConfig(
                f"{row.where} is a ready-made request, which has its settings and media in itself: leave media, and places "
                "in config, out."
            )
        check_request(
            values, row.where, model=spec.model, embeddings=spec.embeddings, keyed=self._keyed,
            beside=self._needed.keys() | row.partitions,
        )  # fmt: skip
        if spec.key is None:
            self._keyed = "key" in values
        self._ready_made_so_far = True
        key = self._key(row, default="key")
        keep = self._kept(row)
        request = values["request"]
        if "failure" in values:  # with the settings that it has it failed: the task's own come first
            request = _on_top(request, spec.template)
        dimensions = _dimensions(request) if spec.embeddings else None
        # What an earlier run could not settle names its media as their column did.
        media = tuple(_local_media(request)) if "failure" in values else ()
        self.asks_for_media = self.asks_for_media or asks_for_media(request)
        self._note_cache(request.get("cachedContent") or request.get("cached_content"))
        if row.raw is not None and not spec.template and spec.key in (None, "key"):
            line = row.raw + b"\n"
            self._check_size(row, key, line)
            return Request(key, line, keep, dimensions=dimensions)
        try:
            body = exact.dumps(with_template(spec.template, request), option=orjson.OPT_NON_STR_KEYS)
        except TypeError as e:
            raise BadRow(row.where, f"its request {unsendable(e)}") from e
        return Request(key, self._line(row, key, body), keep, media=media, dimensions=dimensions)

    def _kept(self, row: Row) -> dict[str, Any]:
        keep = {name: row.values[name] for name in self._spec.keep}
        for name, fit in self._fits.items():
            try:
                keep[name] = fit(keep[name])
            except UNFIT as e:
                kind = self._spec.types[name]
                raise BadRow(
                    row.where, f"the kept column {name!r} holds {keep[name]!r:.200}, which is no {kind}"
                ) from e
        return keep

    def _note_cache(self, name: str | None) -> None:
        if name is not None and len(self.caches) < MOST_CACHES:
            self.caches[name] = None

    def _key(self, row: Row, default: str | None = None) -> str:
        column = self._spec.key or (default if default and default in row.values else None)
        if column is None:
            return str(row.number)
        value = row.values[column]
        if isinstance(value, float) and abs(value) >= 2**53:
            raise BadRow(row.where, f"the key {value!r} is a number that has lost digits; write long ids as text")
        try:
            key = "" if is_null(value) else bytes_text(value) if isinstance(value, bytes) else str(value)
        except TypeError as e:
            raise BadRow(row.where, f"its key {unsendable(e)}") from e
        if not key.strip():
            raise BadRow(row.where, f"the key column {column!r} is empty; every row needs a key of its own")
        return key

    def _bare_text(self, row: Row) -> str:
        text = row.values.get(TEXT_COLUMN)
        if (text is not None and not isinstance(text, str)) or row.values.keys() - row.partitions != {TEXT_COLUMN}:
            columns, asks = ", ".join(map(repr, row.values)), self._spec.asks
            if self._spec.job:
                raise InvalidConfig(
                    f'{row.where}: a request is {{"key": ..., "request": {{...}}}}, or a text; this one has {columns}.'
                )
            raise InvalidConfig(
                f"{row.where}: without a {asks}, rows must be strings or ready-made requests, but this one has the columns "
                f"{columns}. Give a {asks} with {{column}} places."
            )
        return text or ""

    def _line(self, row: Row, key: str, body: bytes) -> bytes:
        try:
            line = b'{"key":' + orjson.dumps(key) + b',"request":' + body + b"}\n"
        except TypeError as e:
            raise BadRow(row.where, f"its key {unsendable(e)}") from e
        self._check_size(row, key, line)
        return line

    def _check_size(self, row: Row, key: str, line: bytes) -> None:
        if len(line) > self._max_bytes:
            raise BadRow(
                row.where,
                f"its request (key {key!r}) has {len(line):,} bytes; one request may have {self._max_bytes:,}. "
                "Shorten the row, or send large content as a file.",
            )


def _local_media(request: Mapping[str, Any]) -> Iterator[str]:
    for content in request.get("contents") or [request.get("content") or {}]:
        for part in content["parts"]:
            uri = part.get("fileData", {}).get("fileUri")
            if isinstance(uri, str) and not is_remote(uri):
                yield uri


def _dimensions(request: Mapping[str, Any]) -> int | None:
    asked = request.get("outputDimensionality", request.get("output_dimensionality"))
    return int(asked) if isinstance(asked, int | str) and str(asked).isdecimal() else None


def asks_for_media(request: Mapping[str, Any]) -> bool:
    """True if a request's own settings ask for images or sounds."""
    config = request.get("generationConfig", request.get("generation_config"))
    asked = config.get("responseModalities", config.get("response_modalities")) if isinstance(config, Mapping) else None
    return isinstance(asked, list) and bool({"IMAGE", "AUDIO"} & {str(one).upper() for one in asked})


def for_any_model(line: bytes) -> bytes:
    """A request line without the model that it may name: the one of its job answers, and that is another."""
    if b'"model"' not in line:
        return line
    body = exact.loads(line)
    named = body["request"].pop("model", None)
    return line if named is None else exact.dumps(body, option=orjson.OPT_APPEND_NEWLINE)


def overridden(line: bytes, fields: Mapping[str, Any]) -> bytes:
    """
    Put other settings on top of a request line's own.

    :param fields: of a request, as REST has them; each replaces the line's, however that spells it.
    """
    body = exact.loads(line)
    body["request"] = _on_top(body["request"], fields)
    return exact.dumps(body, option=orjson.OPT_APPEND_NEWLINE)


def _on_top(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(mine)
    if not theirs.keys().isdisjoint(SCHEMAS):
        result = {name: value for name, value in mine.items() if camel(name) not in SCHEMAS}
    for name, value in theirs.items():
        before = result.pop(snake(name), None) if name not in result else result[name]
        both = isinstance(before, Mapping) and isinstance(value, Mapping)
        result[name] = _on_top(before, value) if both else value
    return result
