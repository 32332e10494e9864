"""A generation config becomes the fields of a REST request: each where the API wants it. Knows no rows and no files."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any

from airflow_gemini_batch.core.checks import TASK_TYPES
from airflow_gemini_batch.core.client import rest_config
from airflow_gemini_batch.core.request_types import RANGES, trouble, vertex_only
from airflow_gemini_batch.core.schema import OutputSchema
from airflow_gemini_batch.core.spelling import snake
from airflow_gemini_batch.exceptions import InvalidConfig

log = logging.getLogger("airflow_gemini_batch")

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

EMBED_FIELDS = frozenset({"taskType", "title", "outputDimensionality"})
"""What a request for an embedding has beside its content (https://ai.google.dev/api/embeddings#EmbedContentRequest)."""

NOT_SEARCHED = {"responseSchema", "response_schema", "responseJsonSchema", "response_json_schema", "tools"}
"""Fields of the config whose texts may look like a place and are none."""


GIVEN_TWICE = "system_instruction is given twice: as a parameter and inside config."


def generation_settings(
    config: object | None, system_instruction: object | None, output_schema: OutputSchema | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """
    Return what the settings say about a request: the part that all rows share, and field → column for the rest.

    :param config: a value of it may be ``"{column}"``.
    :param system_instruction: text, or what the SDK takes for it.
    :raises InvalidConfig: see :func:`request_template`.
    """
    if config is not None and not isinstance(config, Mapping):
        config = rest_config(config)
    text = system_instruction if isinstance(system_instruction, str) else None
    if system_instruction and text is None:
        if any((config or {}).get(name) for name in ("systemInstruction", "system_instruction")):
            raise InvalidConfig(GIVEN_TWICE)
        config = {**(config or {}), "system_instruction": system_instruction}
    fields, per_row = split_places(config) if config else ({}, {})
    template = request_template(fields, text, output_schema)
    for name, word in _literal_places(template):
        log.warning(
            "%s is sent as it is: %s in it is no place for a column. A column is the whole value of a field, as in "
            'config={"system_instruction": "{column}"}.', name, word,
        )  # fmt: skip
    return template, per_row


def _literal_places(value: object, name: str = "") -> Iterator[tuple[str, str]]:
    """Fields with texts that look as if they had a place, and what looks like one."""
    if isinstance(value, str) and (m := re.search(r"(?<!\{)\{[A-Za-z_]\w*\}(?!\})", value)):
        yield name, m[0]
    elif isinstance(value, Mapping):
        for field, inner in value.items():
            if field not in NOT_SEARCHED:
                yield from _literal_places(inner, name if name == "system_instruction" else snake(field))
    elif isinstance(value, list):
        for inner in value:
            yield from _literal_places(inner, name)


def split_places(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """
    Take the values that name a column (``"{column}"``, the whole value) out of a config.

    :return: the config without them, and field (dotted) → column.
    """
    places: dict[str, str] = {}

    def without(fields: Mapping[str, Any], path: str) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        for name, value in fields.items():
            if isinstance(value, str) and (m := re.fullmatch(r"\{([^{}]+)\}", value)) and m[1].strip():
                places[path + name] = m[1].strip()
            elif isinstance(value, Mapping) and name not in NOT_SEARCHED:
                inner = without(value, f"{path}{name}.")
                if inner or not value:
                    kept[name] = inner
            else:
                kept[name] = value
        return kept

    return without(config, ""), places


def request_template(
    config: object | None, system_instruction: str | None, output_schema: OutputSchema | None = None
) -> dict[str, Any]:
    """
    Return the part of a GenerateContentRequest that is the same for all rows.

    :param config: a ``google.genai.types.GenerateContentConfig`` or a dict of its fields, in either case.
    :param system_instruction: text; may also be inside ``config``, but not in both.
    :param output_schema: sent as ``responseSchema``; ``config`` must then have no schema of its own.
    :raises InvalidConfig: a field is unknown, of the wrong type, out of range, or makes no sense in a batch.
    """
    if isinstance(config, Mapping):  # the SDK slips on some schemas
        _check_sendable({"responseSchema": config.get("responseSchema", config.get("response_schema"))})
    fields = rest_config(config) if config is not None else {}
    for name, reason in CLIENT_FIELDS.items():
        if name in fields:
            raise InvalidConfig(f"config.{name} cannot be used here: {reason}.")
    for name, (low, high) in RANGES.items():
        if name in fields and not low <= fields[name] <= high:
            raise InvalidConfig(f"config.{name} is {fields[name]}; the API takes {low} to {high}.")
    if path := vertex_only(fields):
        raise InvalidConfig(f"config.{path} cannot be used here: it exists on Vertex AI only.")
    _check_sendable(fields)
    if isinstance(voice := fields.get("speechConfig"), str):
        fields["speechConfig"] = {"voiceConfig": {"prebuiltVoiceConfig": {"voiceName": voice}}}
    if isinstance(cache := fields.get("cachedContent"), str) and "/" not in cache:
        fields["cachedContent"] = f"cachedContents/{cache}"
    instruction = fields.pop("systemInstruction", None)
    if instruction is not None and system_instruction:
        raise InvalidConfig(GIVEN_TWICE)
    if isinstance(schema := fields.get("responseSchema"), Mapping):
        fields["responseSchema"] = _inlined(schema) if _has_references(schema) else _api_schema(schema)
    if output_schema is not None:
        _ask_for(output_schema, fields)

    template: dict[str, Any] = {}
    if (instruction := system_instruction or instruction) is not None:
        template["systemInstruction"] = content = _content(instruction)
        if not all(content.get("parts") or [None]):
            raise InvalidConfig(
                "system_instruction has a part without text. It takes text, a types.Content or types.Part, or a list of "
                "texts and parts."
            )
    template |= {name: fields.pop(name) for name in sorted(fields) if name in REQUEST_FIELDS}
    check_cache(template)
    if fields:
        template["generationConfig"] = fields
    return template


def _check_sendable(fields: Mapping[str, Any]) -> None:
    """:raises InvalidConfig: tools or a response schema hold what the SDK lets through and the API refuses."""
    judged: dict[str, Any] = {"tools": fields.get("tools")}
    if isinstance(schema := fields.get("responseSchema"), Mapping) and not _has_references(schema):
        judged["generationConfig"] = {"responseSchema": schema}
    if told := trouble({name: value for name, value in judged.items() if value}):
        raise InvalidConfig(f"config cannot be sent: {told}.")


def _ask_for(schema: OutputSchema, fields: dict[str, Any]) -> None:
    for name in ("responseSchema", "responseJsonSchema"):
        if name in fields:
            raise InvalidConfig(
                f"config.{name} and output_schema both say what the answer looks like; give one of them."
            )
    kind = fields.setdefault("responseMimeType", "application/json")
    if kind != "application/json":  # an answer of type text/x.enum is a bare word and no JSON
        raise InvalidConfig(
            f"config.responseMimeType is {kind!r}, but output_schema needs application/json; leave it out."
        )
    fields["responseSchema"] = schema.response_schema


def check_cache(fields: Mapping[str, Any]) -> None:
    """The API refuses a cache beside what the cache itself holds (HTTP 400)."""
    if "cachedContent" not in fields:
        return
    beside = [name for name in ("tools", "toolConfig", "systemInstruction") if fields.get(name)]
    if beside:
        raise InvalidConfig(
            f"config.cachedContent cannot go together with {', '.join(beside)}: put these into the cache when you create it."
        )


def embed_template(config: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return the part of an EmbedContentRequest beside its content.

    :param config: fields of the SDK's ``EmbedContentConfig``, in either case; those that are None are left out.
    :raises InvalidConfig: a field is unknown, of the wrong type, or exists on Vertex AI only.
    """
    fields = rest_config({name: value for name, value in config.items() if value is not None}, embeddings=True)
    fields.pop("httpOptions", None)
    if unknown := sorted(fields.keys() - EMBED_FIELDS):
        raise InvalidConfig(f"{', '.join(unknown)} cannot be set for embeddings in a batch.")
    if (task_type := fields.get("taskType")) is not None and task_type not in TASK_TYPES:
        raise InvalidConfig(f"task_type is {task_type!r}; it takes {', '.join(TASK_TYPES)}.")
    if (dimensions := fields.get("outputDimensionality")) is not None and not 1 <= dimensions <= 100_000:
        raise InvalidConfig(f"the number of dimensions is {dimensions}; it takes 1 or more.")
    return fields


def _content(instruction: object) -> dict[str, Any]:
    """What the SDK makes of an instruction: texts, parts and files become the parts of one content."""
    if isinstance(instruction, str):
        return {"parts": [{"text": instruction}]}
    if isinstance(instruction, list):
        return {"parts": [part for one in instruction for part in _content(one)["parts"]]}
    assert isinstance(instruction, dict)  # the SDK has checked it
    if "parts" in instruction or "role" in instruction:
        return instruction
    if "uri" in instruction:
        file = {"fileUri": instruction["uri"], "mimeType": instruction.get("mimeType")}
        return {"parts": [{"fileData": {name: value for name, value in file.items() if value is not None}}]}
    return {"parts": [instruction]}


def _inlined(schema: Mapping[str, Any]) -> dict[str, Any]:
    whole = OutputSchema.of(schema)
    if whole.checked_only:
        log.warning(
            "config.responseSchema: neither asked for nor checked are %s. As the task's output_schema they would be checked.",
            ", ".join(whole.checked_only),
        )
    return whole.response_schema


def _has_references(schema: Mapping[str, Any]) -> bool:
    return _refers(schema) or "$defs" in schema or "definitions" in schema


def _refers(schema: object) -> bool:
    if isinstance(schema, Mapping):
        return isinstance(schema.get("$ref"), str) or any(map(_refers, schema.values()))
    return isinstance(schema, list) and any(map(_refers, schema))


NULL = {"nullable": True}


def _api_schema(schema: object) -> object:
    """
    What the SDK does to a schema given as a dict: the API spells types in capitals, JSON Schema in small letters, and
    without ``propertyOrdering`` the order of an answer's fields is the model's. Its words may come in either case.
    """
    if isinstance(schema, list):
        return [_api_schema(one) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    words = {re.sub("_([a-z])", lambda m: m[1].upper(), name): value for name, value in schema.items()}
    shaped = {name: _api_schema(value) if name in ("items", "anyOf") else value for name, value in words.items()}
    if isinstance(kind := shaped.get("type"), str):
        shaped["type"] = kind.upper()
        if shaped["type"] == "NULL":
            del shaped["type"]
            shaped["nullable"] = True
    if isinstance(choices := shaped.get("anyOf"), list) and NULL in choices:
        del shaped["anyOf"]
        others = [one for one in choices if one != NULL]
        shaped |= NULL | ({"anyOf": others} if len(others) > 1 else others[0] if others else {})
    if isinstance(properties := shaped.get("properties"), Mapping):
        shaped["properties"] = {name: _api_schema(one) for name, one in properties.items()}
        if len(properties) > 1:
            shaped.setdefault("propertyOrdering", list(properties))
    return shaped
