"""A generation config becomes the fields of a REST request: each where the API wants it. Knows no rows and no files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_gemini_batch.core.client import rest_config
from airflow_gemini_batch.exceptions import InvalidConfig

REQUEST_FIELDS = frozenset(
    {"safetySettings", "tools", "toolConfig", "cachedContent", "labels", "serviceTier", "store", "continuationToken"}
)
"""Fields of the SDK's config that REST has beside ``generationConfig``, not inside it."""

CLIENT_FIELDS = {
    "httpOptions": "it concerns one SDK call, not a batch; use the connection's host and timeout",
    "shouldReturnHttpResponse": "it concerns one SDK call, not a batch",
    "automaticFunctionCalling": "nobody calls functions during a batch; read the functionCall parts of the answer",
    "routingConfig": "it exists on Vertex AI only",
    "modelSelectionConfig": "it exists on Vertex AI only",
    "modelArmorConfig": "it exists on Vertex AI only",
    "audioTimestamp": "it exists on Vertex AI only",
    "generationOutputConfig": "it exists on Vertex AI only",
    "automaticContinuation": "the SDK does it between calls, and a batch has one call per row",
}
"""What the SDK's config knows and a batch cannot do, and what to do instead."""

RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "topP": (0, 1),
    "topK": (1, 1_000_000),
    "candidateCount": (1, 8),
    "maxOutputTokens": (1, 10_000_000),
    "logprobs": (0, 20),
    "presencePenalty": (-2, 2),
    "frequencyPenalty": (-2, 2),
}
"""Values the API refuses outside of these bounds (https://ai.google.dev/api/generate-content#generationconfig)."""


def request_template(config: object | None, system_instruction: str | None) -> dict[str, Any]:
    """
    Return the part of a GenerateContentRequest that is the same for all rows.

    :param config: a ``google.genai.types.GenerateContentConfig`` or a dict of its fields, in either case.
    :param system_instruction: text; may also be inside ``config``, but not in both.
    :raises InvalidConfig: a field is unknown, of the wrong type, out of range, or makes no sense in a batch.
    """
    fields = rest_config(config) if config is not None else {}
    for name, reason in CLIENT_FIELDS.items():
        if name in fields:
            raise InvalidConfig(f"config.{name} cannot be used here: {reason}.")
    for name, (low, high) in RANGES.items():
        if name in fields and not low <= fields[name] <= high:
            raise InvalidConfig(f"config.{name} is {fields[name]}; the API takes {low} to {high}.")
    instruction = fields.pop("systemInstruction", None)
    if instruction is not None and system_instruction:
        raise InvalidConfig("system_instruction is given twice: as a parameter and inside config.")
    if isinstance(fields.get("responseSchema"), Mapping):
        fields["responseSchema"] = _api_schema(fields["responseSchema"])

    template: dict[str, Any] = {}
    if (instruction := system_instruction or instruction) is not None:
        template["systemInstruction"] = _content(instruction)
    template |= {name: fields.pop(name) for name in sorted(fields) if name in REQUEST_FIELDS}
    if fields:
        template["generationConfig"] = fields
    return template


def _content(instruction: object) -> object:
    if isinstance(instruction, str):
        return {"parts": [{"text": instruction}]}
    if isinstance(instruction, list):
        return {"parts": [{"text": part} if isinstance(part, str) else part for part in instruction]}
    return instruction


def _api_schema(schema: object) -> object:
    """
    What the SDK does to a schema given as a dict: the API spells types in capitals, JSON Schema in small letters, and
    without ``propertyOrdering`` the order of an answer's fields is the model's.
    """
    if isinstance(schema, list):
        return [_api_schema(one) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    shaped = {name: _api_schema(value) if name in ("items", "anyOf") else value for name, value in schema.items()}
    if isinstance(kind := shaped.get("type"), str):
        shaped["type"] = kind.upper()
    if isinstance(properties := shaped.get("properties"), Mapping):
        shaped["properties"] = {name: _api_schema(one) for name, one in properties.items()}
        if len(properties) > 1:
            shaped.setdefault("propertyOrdering", list(properties))
    return shaped
