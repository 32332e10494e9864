"""
What stands inside a ready-made request is judged: parts, tools, settings. By the SDK's own types, which are asked only
where a request is more than texts, and once for equal settings.
"""

from __future__ import annotations

import difflib
import re
import reprlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeAlias, get_args

import orjson

from airflow_gemini_batch.core.client import request_type
from airflow_gemini_batch.core.spelling import camel, snake

Path: TypeAlias = tuple[str | int, ...]

ROLES = ("user", "model", None, "", "function", "tool")

ONLY_REST = frozenset(
    {
        "_responseJsonSchema", "audioMetadata", "documentMetadata", "spreadsheetMetadata", "contentLayers", "sourceText",
        "mediaResolution", "videoMetadata",
    }
)  # fmt: skip
"""Fields that the API has and the types of one SDK or another that we work with have not, or not everywhere."""

MOST_SETTINGS = 256
"""Different settings that are remembered; requests of one file rarely have more."""

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


VERTEX_ONLY = (
    "safetySettings.method", "tools.retrieval", "tools.enterpriseWebSearch", "tools.parallelAiSearch", "tools.exaAiSearch",
    "tools.googleSearch.excludeDomains", "tools.googleSearch.blockingConfidence", "tools.googleMaps.groundingTypes",
    "toolConfig.functionCallingConfig.streamFunctionCallArguments",
    "imageConfig.personGeneration", "imageConfig.prominentPeople", "imageConfig.outputMimeType",
    "imageConfig.outputCompressionQuality", "imageConfig.imageOutputOptions",
    *(f"tools.googleMaps.authConfig.{name}" for name in (
        "apiKeyConfig", "authType", "googleServiceAccountConfig", "httpBasicAuthConfig", "oauthConfig", "oidcConfig",
    )),
    "contents.parts.functionCall.partialArgs", "contents.parts.functionCall.willContinue",
)  # fmt: skip
"""Fields inside of other fields that the SDK knows and the Developer API does not: it refuses the whole file (HTTP 400)."""

HAVE_SCHEMAS = (
    ("generationConfig", "responseSchema"), ("tools", "functionDeclarations", "parameters"),
    ("tools", "functionDeclarations", "response"),
)  # fmt: skip
"""Where schemas of the API's own kind stand."""

ONLY_JSON_SCHEMA = frozenset({"additionalProperties", "defs", "ref"})
"""Words of schemas that the SDK's types know for Vertex AI's sake."""

CONTENT = frozenset({"role", "parts"})
ONE_CONTENT = ("content", "systemInstruction", "system_instruction")

VERTEX_FIELDS = frozenset(path.rpartition(".")[2] for path in VERTEX_ONLY)

DATA = frozenset(
    {
        "text", "inlineData", "fileData", "functionCall", "functionResponse", "executableCode", "codeExecutionResult",
        "toolCall", "toolResponse",
    }
)  # fmt: skip
"""What a part holds: one of these (https://ai.google.dev/api/caching#Part)."""

MENDS = {
    "part": 'a part is {"text": "..."}, {"fileData": {"fileUri": "...", "mimeType": "..."}} or the like',
    "function": 'put functions into a list: {"functionDeclarations": [{"name": "...", "parameters": {...}}]}',
    "schema": "the API's schemas have fewer words than JSON Schema, which goes into the task's output_schema",
    "reference": "a responseSchema has no references; give a JSON schema as responseJsonSchema",
}


def trouble(request: Mapping[str, Any]) -> str | None:
    """
    Return what the API would refuse inside a request, and how to mend it; None if nothing.

    :param request: its own fields are known, and its contents have the shape of contents.
    """
    told = None
    settings = dict(request)
    settings.pop("model", None)
    for name in ("contents", "content"):
        if (contents := settings.pop(name, None)) and not all(
            map(_is_plain, contents if name == "contents" else [contents])
        ):
            told = told or (name == "contents" and _wrong_role(contents)) or _judged({name: contents})
    for name in ("systemInstruction", "system_instruction"):
        if name in settings and _is_plain(settings[name], any_role=True):
            del settings[name]
    if settings and not told:
        try:
            told = _wrong_settings(orjson.dumps(settings))
        except TypeError:
            return None  # no JSON: that is said when its line is written
    return told or None


def _is_plain(content: Mapping[str, Any], any_role: bool = False) -> bool:
    return (
        content is not None
        and content.keys() <= CONTENT
        and (any_role or content.get("role") in ROLES)
        and all(len(part) == 1 and type(part.get("text")) is str for part in content["parts"])
    )


def _wrong_role(contents: list[Mapping[str, Any]]) -> str | None:
    for number, content in enumerate(contents):
        if (role := content.get("role")) in ROLES:
            continue
        mend = {"assistant": "write model", "system": "put its text into systemInstruction"}.get(
            str(role), "write user or model"
        )
        return f"the role of contents[{number}] is {role!r}, which the API does not know: {mend}"
    return None


@lru_cache(MOST_SETTINGS)
def _wrong_settings(data: bytes) -> str | None:
    settings = orjson.loads(data)
    if told := _judged(settings):
        return told
    for name, value in _flat(settings).items():
        low, high = RANGES.get(camel(name), (0, 0))
        if low != high and isinstance(value, int | float) and not low <= value <= high:
            return f"{name} is {value}; the API takes {low} to {high}"
    return None


def _judged(fields: Mapping[str, Any]) -> str | None:
    for names in HAVE_SCHEMAS:
        for place, schema in _at(fields, names):
            if told := _wrong_word(schema, place):
                return told
    if told := _misfit(fields):
        return told
    if path := vertex_only(_flat(fields)):
        return f"it has {path}, which exists on Vertex AI only: leave it out"
    for name, value in fields.items():
        for content in value if name == "contents" else [value] if name in ONE_CONTENT else []:
            for part in content["parts"] if content else ():
                if all(it is None for it in part.values()):
                    return f"{name} has an empty part: {MENDS['part']}"
                if len(several := [field for field in part if camel(field) in DATA and part[field] is not None]) > 1:
                    return f"{name} has a part with {' and '.join(several)}, and a part is one of them: make it several"
    return None


def _misfit(fields: Mapping[str, Any]) -> str | None:
    """What the SDK's types do not take, apart from what only REST has."""
    import pydantic

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the SDK's, of enums that it does not know yet
            request_type().model_validate(fields)
    except pydantic.ValidationError as e:
        for one in e.errors(include_url=False):
            path, value = one["loc"], one["input"]
            if one["type"] == "extra_forbidden":
                if camel(str(path[-1])) not in ONLY_REST:
                    return _unknown(path)
            elif one["type"] == "list_type":
                return f"{_spelled(path)} must be a list: put what stands there into [...]"
            elif one["type"] != "bytes_invalid_encoding" or not _is_base64(value):
                return f"{_spelled(path)} is {reprlib.repr(value)}: {one['msg'][:1].lower()}{one['msg'][1:]}"
    except AttributeError as e:
        # The SDK's enums slip on what is no text. REST takes numbers there, and nothing else.
        if "'int'" not in str(e):
            return "a list or an object stands where the API takes one word (a type, a category, a mode)"
    return None


def _wrong_word(schema: object, place: Path) -> str | None:
    """What only JSON Schema knows in a schema of the API's own kind, anywhere but in the names of properties."""
    if isinstance(schema, list):
        return next(filter(None, (_wrong_word(one, (*place, n)) for n, one in enumerate(schema))), None)
    for name, value in schema.items() if isinstance(schema, Mapping) else ():
        told, inside = None, (*place, str(name))
        if camel(str(name)) in ONLY_JSON_SCHEMA and value is not None:
            return f"{_spelled(place)} has the field {name!r}, which the API refuses: {MENDS['schema']}"
        if name == "type" and isinstance(value, list | Mapping):
            return (
                f"{_spelled(inside)} is {reprlib.repr(value)}, where the API takes one word; nullable stands beside it"
            )
        if name in ("items", "anyOf", "any_of"):
            told = _wrong_word(value, inside)
        elif name == "properties" and isinstance(value, Mapping):
            told = next(filter(None, (_wrong_word(one, (*inside, key)) for key, one in value.items())), None)
        if told:
            return told
    return None


def _at(value: object, path: Sequence[str], place: Path = ()) -> Iterator[tuple[Path, object]]:
    """What stands at a path, in either spelling and in every item of a list, with its place."""
    if not path:
        yield place, value
    elif isinstance(value, list):
        for n, one in enumerate(value):
            yield from _at(one, path, (*place, n))
    elif isinstance(value, Mapping):
        for name in {path[0]: None, snake(path[0]): None}:
            if name in value:
                yield from _at(value[name], path[1:], (*place, name))


def _is_base64(text: object) -> bool:
    """In the API's eyes: line breaks do no harm, and nor does missing padding."""
    return isinstance(text, str) and re.fullmatch(r"[\w+/-]*={0,2}", re.sub(r"\s", "", text), re.ASCII) is not None


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As a config has them: those for the generation beside the others."""
    return dict(settings) | (settings.get("generationConfig") or settings.get("generation_config") or {})


def _unknown(path: tuple[str | int, ...]) -> str:
    *parents, name = path
    last = [step for step in parents if isinstance(step, str)][-1:]
    if str(name).startswith("$") or name == "definitions":
        mend = MENDS["reference"]
    elif last == ["parts"]:
        mend = MENDS["part"]
    elif last == ["tools"] and name in ("name", "parameters", "description", "function", "input_schema"):
        mend = MENDS["function"]
    else:
        known = [field for field in _fields_at(parents) if field not in VERTEX_FIELDS | ONLY_JSON_SCHEMA]
        mend = _meant(camel(str(name)), known)
        if mend.startswith("it knows") and {"responseSchema", "response_schema"} & {*parents}:
            mend = MENDS["schema"]
    return f"{_spelled(parents)} has the field {name!r}, which the API refuses: {mend}"


def _fields_at(path: Sequence[str | int]) -> list[str]:
    """What may stand in a place of a request."""
    here: Any = request_type()
    for step in path:
        if isinstance(step, int):
            continue
        fields = getattr(here, "model_fields", {})
        field = next((f for name, f in fields.items() if step in (name, f.alias)), None)
        here = field.annotation if field else None
        while inner := [one for one in get_args(here) if one is not type(None)]:
            here = inner[-1]  # of an optional, a list, a mapping's values
    return sorted(f.alias for f in getattr(here, "model_fields", {}).values() if f.alias)


def _meant(name: str, known: list[str]) -> str:
    ending = [field for field in known if field.lower().endswith(name.lower())]
    if close := difflib.get_close_matches(name, known, 1, cutoff=0.8) or ending[:1]:
        return f"did you mean {close[0]!r}?"
    return f"it knows {', '.join(known)}"


def _spelled(path: Sequence[str | int]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


def vertex_only(fields: Mapping[str, Any]) -> str | None:
    """Return the first of :data:`VERTEX_ONLY` that a config has, in either spelling."""
    return next((path for path in VERTEX_ONLY if any(one is not None for _, one in _at(fields, path.split(".")))), None)
