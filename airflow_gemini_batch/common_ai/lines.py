"""common.ai's requests become lines of a request file; its settings are Gemini's config, checked as our operators' are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import orjson
from airflow.providers.common.ai.batch.base import BatchRequest
from airflow.providers.common.ai.exceptions import LLMBatchInputError, LLMBatchOutputTypeError

from airflow_gemini_batch.core.client import rest_config
from airflow_gemini_batch.core.config import request_template
from airflow_gemini_batch.core.limits import Limits
from airflow_gemini_batch.core.requests import RequestBuilder, Spec
from airflow_gemini_batch.core.rows import Row
from airflow_gemini_batch.core.schema import OutputSchema
from airflow_gemini_batch.exceptions import InvalidConfig, InvalidInput

if TYPE_CHECKING:
    from airflow.providers.common.ai.batch.output_schema import OutputSpec

LIMITS = Limits()

MANAGED = frozenset({"model", "contents", "max_tokens"})
"""Parameters that the operator has its own words for; as with common.ai's own adapters, they are passed over."""

NESTED = ("generationConfig", "generation_config")

ANSWER_SHAPE = ("responseMimeType", "responseSchema", "responseJsonSchema")

BUILDERS = 64
"""Sets of settings that are kept ready; most batches have one, or a few."""


class InvalidBatch(InvalidInput, LLMBatchInputError):
    """A request or a setting of a batch cannot be used. Nothing was sent."""


class InvalidOutputType(InvalidConfig, LLMBatchOutputTypeError):
    """The API cannot be asked for answers of this type. Nothing was sent."""


def output_schema(spec: OutputSpec) -> OutputSchema | None:
    """
    Return what the answers must look like, None for plain text.

    :raises InvalidOutputType: the API cannot be told.
    """
    if not spec.is_structured:
        return None
    schema = spec.json_schema
    if spec.wrapped:
        # common.ai puts the whole schema under a property, its definitions too, where references do not look for them.
        inner = dict(schema["properties"]["response"])
        hoisted = {name: inner.pop(name) for name in ("$defs", "definitions") if name in inner}
        schema = {**schema, "properties": {"response": inner}, **hoisted}
    try:
        return OutputSchema.of(schema)
    except InvalidConfig as e:
        raise InvalidOutputType(f"output_type={spec.output_type!r}: {e}") from e


class Lines:
    """
    The lines of one batch.

    :param settings: ``system_prompt``, ``max_tokens`` and ``request_params`` of the operator; what else it passes to
        adapters is of other services.
    :raises InvalidBatch: ``request_params`` cannot be used.
    """

    def __init__(
        self, requests: Sequence[BatchRequest], *, model: str, identity: str, schema: OutputSchema | None,
        settings: Mapping[str, Any],
    ) -> None:  # fmt: skip
        self._requests, self._identity = requests, identity
        self._system, self._max_tokens = settings.get("system_prompt"), settings.get("max_tokens")
        self._params = _config(settings.get("request_params"), "request_params")

        @lru_cache(BUILDERS)
        def builder(asked: bytes) -> RequestBuilder:
            fields, system = orjson.loads(asked)
            spec = Spec(
                model, "{prompt}", request_template(fields, system or None, schema), key="custom_id",
                output_schema=schema.json_schema if schema else None,
            )  # fmt: skip
            return RequestBuilder(spec, max_bytes=LIMITS.bytes_per_request)

        self._builder, self._structured = builder, schema is not None

    def __iter__(self) -> Iterator[bytes]:
        """
        Yield a line for each request, in their order.

        :raises InvalidBatch: a request is empty, too large, or has a setting that cannot be used; it names the request.
        """
        for index, request in enumerate(self._requests):
            row = Row(index, {"custom_id": f"{self._identity}-{index}", "prompt": request["prompt"]}, "requests", index)
            try:
                (made,) = self._builder(self._asked(request, row.where)).build(row)
            except InvalidBatch:
                raise
            except InvalidInput as e:
                said = str(e)
                raise InvalidBatch(said if said.startswith(row.where) else f"{row.where}: {said}") from e
            if made.unsent:
                raise InvalidBatch(f"{row.where}: the prompt is empty, which the API refuses. Leave this request out.")
            yield made.line

    def _asked(self, request: BatchRequest, where: str) -> bytes:
        """Config and system instruction of one request, as a key."""
        if unknown := sorted(map(str, request.keys() - BatchRequest.__annotations__.keys())):
            raise InvalidBatch(
                f"{where}: it has {', '.join(map(repr, unknown))}; a request takes {', '.join(BatchRequest.__annotations__)}."
            )
        own = request.get("params")
        fields = {**self._params, **_config(own, f"{where}: params")} if own else dict(self._params)
        if self._structured:
            for name in ANSWER_SHAPE:
                fields.pop(name, None)
        most = request.get("max_tokens")
        if (most := self._max_tokens if most is None else most) is not None:
            fields["maxOutputTokens"] = most
        if system := request.get("system_prompt") or self._system:
            if not isinstance(system, str):
                raise InvalidBatch(f"{where}: system_prompt is {system!r}; it takes text.")
            fields.pop("systemInstruction", None)
        try:
            return orjson.dumps([fields, system])
        except TypeError as e:
            raise InvalidBatch(f"{where}: its settings cannot be sent: {e}.") from e


def _config(params: object, what: str) -> dict[str, Any]:
    """
    Parameters as fields of the config, whatever their spelling. What REST has under ``generationConfig`` may be there, too.
    """
    if not params:
        return {}
    if not isinstance(params, Mapping):
        raise InvalidBatch(f"{what}: it takes a mapping of fields of Gemini's config, not {params!r:.80}.")
    fields = {name: value for name, value in params.items() if name not in MANAGED}
    for name in NESTED:
        if isinstance(fields.get(name), Mapping):
            fields = {**fields.pop(name), **fields}
    try:
        return rest_config(fields)
    except InvalidConfig as e:
        raise InvalidBatch(f"{what}: {e} It takes the fields of google.genai.types.GenerateContentConfig.") from e
