"""
Ready-made requests are checked: ``{"key", "request"}`` records that somebody else wrote. Knows the request's fields and
the mistakes people make with them; changes nothing and knows no files.

The service refuses a whole file for one field it does not know, by line and column of a file that the user never saw.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NoReturn

from airflow_gemini_batch.core.config import CLIENT_FIELDS, REQUEST_FIELDS
from airflow_gemini_batch.core.request_types import trouble
from airflow_gemini_batch.core.spelling import camel, snake
from airflow_gemini_batch.exceptions import BadRow

FIELDS: dict[str, frozenset[str]] = {
    "request": REQUEST_FIELDS | {"model", "contents", "systemInstruction", "generationConfig"},
    "generationConfig": frozenset(
        {
            "candidateCount", "stopSequences", "maxOutputTokens", "temperature", "topP", "topK", "seed", "responseMimeType",
            "responseSchema", "responseJsonSchema", "_responseJsonSchema", "responseFormat", "responseModalities",
            "presencePenalty", "frequencyPenalty", "responseLogprobs", "logprobs", "enableEnhancedCivicAnswers",
            "speechConfig", "thinkingConfig", "imageConfig", "mediaResolution", "audioTranscriptionConfig",
            "translationConfig", "enableAffectiveDialog",
        }
    ),
    "content": frozenset({"role", "parts"}),
    "embedding request": frozenset(
        {
            "model", "content", "taskType", "title", "outputDimensionality", "autoTruncate", "mimeType", "documentOcr",
            "audioTrackExtraction", "embedContentConfig",
        }
    ),
}  # fmt: skip
"""What the API knows, by where it stands. Each may also be spelled with underscores."""

THINKING_FIELDS = frozenset({"thinkingBudget", "thinkingLevel", "includeThoughts"})

KEY_FIELDS = ("custom_id", "customId", "id", "request_id", "requestId")
"""What other vendors call the key."""

SHAPE = '{"key": "...", "request": {"contents": [{"role": "user", "parts": [{"text": "..."}]}]}}'
EMBEDDING_SHAPE = '{"key": "...", "request": {"content": {"parts": [{"text": "..."}]}}}'
CONTENTS = '"contents": [{"role": "user", "parts": [{"text": "..."}]}]'


KNOWN = {place: fields | {snake(name) for name in fields} for place, fields in FIELDS.items()}
"""Both spellings, for one comparison per object."""

TWO_SPELLINGS = {snake(name): name for fields in FIELDS.values() for name in fields if snake(name) != name}
SNAKE = frozenset(TWO_SPELLINGS)

WRAPPER = frozenset({"key", "request"})

LISTS = (list, tuple)


def meant_as_request(values: Mapping[str, Any]) -> bool:
    """True for a record that is a request in all but its wrapper, ours or another vendor's."""
    return (
        "request" in values
        or isinstance(values.get("contents"), list | Mapping)
        or isinstance(values.get("body"), Mapping)
        or isinstance(values.get("content"), Mapping)
        or isinstance(values.get("messages"), list)
    )


def check_request(
    values: Mapping[str, Any],
    where: str,
    *,
    model: str,
    embeddings: bool = False,
    keyed: bool | None = None,
    beside: Collection[str] = (),
) -> None:
    """
    Check one ready-made record.

    :param where: ``file:line`` or ``row N``, for the message.
    :param model: the task's model; a request may name it again, but no other.
    :param embeddings: the requests are EmbedContentRequests.
    :param keyed: whether the records before this one had a ``key``; None: this is the first.
    :param beside: columns that may stand beside ``key`` and ``request``: kept ones, and those of partitions.
    :raises BadRow: the service would refuse it; the message says what is wrong and how to mend it.
    """
    if (
        not values.keys() <= WRAPPER
        and not _failed_before(values)
        and (extra := [name for name in values if name not in WRAPPER and name not in beside])
    ):
        _explain_beside(values, extra, where, embeddings)
    if "request" not in values:
        raise BadRow(where, f"it has no request. A ready-made line is {EMBEDDING_SHAPE if embeddings else SHAPE}")
    _check_key(values, where, keyed)
    request = values["request"]
    if not isinstance(request, Mapping) or not request:
        what = "content" if embeddings else "contents"
        raise BadRow(where, f"request must be a JSON object with {what}, not {_kind(request)}")
    if not request.keys() <= KNOWN["embedding request" if embeddings else "request"]:
        _explain_field(request, where, embeddings)
    _check_spellings(request, "request", where)
    named = request.get("model")
    if named is not None and named != model and _bare(named) != _bare(model):
        raise BadRow(
            where,
            f"its request names the model {named!r}, but the task's is {model!r}. One job has one model: split the file by "
            "model, or leave `model` out",
        )
    if embeddings:
        if not _is_content(content := request.get("content")):
            _explain_content(content, "content", where)
    else:
        _check_contents(request.get("contents"), where)
        instruction = _either(request, "systemInstruction", "system_instruction")
        if instruction is not None and not _is_content(instruction):
            _explain_content(instruction, "systemInstruction", where)
        if (config := _either(request, "generationConfig", "generation_config")) is not None:
            _check_generation(config, where)
    if told := trouble(request):
        raise BadRow(where, told)


SCHEMAS = ("responseSchema", "responseJsonSchema", "_responseJsonSchema", "responseFormat")
"""Ways to say what an answer looks like; the API takes one of them."""


def with_template(template: Mapping[str, Any], request: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``request`` with the template's fields, and generation settings, that it does not have in either spelling."""
    whole = _missing(template, request) | dict(request)
    shared = template.get("generationConfig")
    for name in ("generationConfig", "generation_config"):
        if isinstance(own := request.get(name), Mapping) and isinstance(shared, Mapping):
            left = _missing(shared, own)
            if any(schema in own or snake(schema) in own for schema in SCHEMAS):
                left = {field: value for field, value in left.items() if field not in SCHEMAS}
            whole[name] = left | dict(own)
    return whole


def _missing(template: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in template.items() if name not in own and snake(name) not in own}


# Checks: each is quick where all is well ---------------------------------------------------------------------


def _failed_before(values: Mapping[str, Any]) -> bool:
    """A line of an earlier run's ``failures.jsonl``: it has the reason and kept columns beside its request."""
    return "request" in values and isinstance(values.get("failure"), Mapping)


def _check_key(values: Mapping[str, Any], where: str, keyed: bool | None) -> None:
    if "key" not in values:
        if keyed:
            raise BadRow(where, "it has no key, but lines before it have one. Give every line a key, or none at all")
        return
    if keyed is False:
        raise BadRow(where, "it has a key, but lines before it have none. Give every line a key, or none at all")
    key = values["key"]
    if isinstance(key, str) and key.strip():
        return
    if key is None or isinstance(key, str):
        raise BadRow(where, "the key column 'key' is empty; every row needs a key of its own")
    if isinstance(key, bool | list | tuple | Mapping):
        raise BadRow(where, f"its key is {_kind(key)}; write it as text")


def _check_contents(contents: object, where: str) -> None:
    if not isinstance(contents, LISTS) or not contents:
        if not contents:
            problem = "its request has no contents"
        elif isinstance(contents, Mapping):
            problem = "its contents is one object; put it in a list"
        else:
            problem = f"its contents is {_kind(contents)}; it is a list of objects"
        raise BadRow(where, f"{problem}. Write {CONTENTS}")
    for number, content in enumerate(contents):
        if not _is_content(content):
            _explain_content(content, f"contents[{number}]", where)


def _is_content(content: object) -> bool:
    if not isinstance(content, Mapping) or not content.keys() <= KNOWN["content"]:
        return False
    parts = content.get("parts")
    return isinstance(parts, LISTS) and bool(parts) and all(map(_is_object, parts))


def _check_generation(config: object, where: str) -> None:
    if not isinstance(config, Mapping):
        raise BadRow(where, f"generationConfig must be an object, not {_kind(config)}")
    if not config.keys() <= KNOWN["generationConfig"]:
        _explain_generation(config, where)
    _check_spellings(config, "generationConfig", where)


def _check_spellings(fields: Mapping[str, Any], place: str, where: str) -> None:
    if SNAKE.isdisjoint(fields):
        return
    for name in fields:
        if (other := TWO_SPELLINGS.get(name)) in fields and other is not None:
            raise BadRow(where, f"{place} has both {name} and {other}, which are one field. Keep one of them")


# What is wrong: only for records that will be refused -------------------------------------------------------


def _explain_beside(values: Mapping[str, Any], extra: list[str], where: str, embeddings: bool) -> NoReturn:
    shape = EMBEDDING_SHAPE if embeddings else SHAPE
    if isinstance(values.get("body"), Mapping) or {"method", "url"} & {*extra}:
        raise BadRow(where, f"this is a line of another vendor's batch (custom_id, method, url, body). Write {shape}")
    if "request" not in values:
        if "messages" in values:
            raise BadRow(where, f"messages is another vendor's field. Write {shape}")
        if (KNOWN["request"] | KNOWN["embedding request"]) & {*extra}:
            raise BadRow(
                where, 'this is a request without its wrapper. Write {"key": "...", "request": {...}} around it'
            )
        raise BadRow(where, f"it has {_listed(extra)}, but no request. A ready-made line is {shape}")
    told = f"a ready-made request has only key and request, not {_listed(extra)}"
    for name in extra:
        if name in KEY_FIELDS:
            mend = f"{name} is another vendor's field: rename it to key" if "key" not in values else f"remove {name}"
        elif name == "config" or camel(name) in FIELDS["request"] | FIELDS["embedding request"]:
            field = "generationConfig" if name == "config" else name
            mend = f"it belongs inside request, as {field}" if name == "config" else f"{name} belongs inside request"
        elif camel(name) in FIELDS["generationConfig"]:
            mend = f"{name} belongs into generationConfig, inside request"
        elif name == "metadata":
            mend = "metadata is for requests sent inline; a file has only the key"
        else:
            continue
        raise BadRow(where, f"{told}: {mend}")
    close = difflib.get_close_matches(extra[0], WRAPPER, 1)
    meant = f"did you mean {close[0]} by {extra[0]}?" if close else "name what shall be copied to the result in keep"
    raise BadRow(where, f"{told}: {meant}")


def _explain_field(request: Mapping[str, Any], where: str, embeddings: bool) -> NoReturn:
    place = "embedding request" if embeddings else "request"
    name = next(name for name in request if name not in KNOWN[place])
    field = camel(name)
    if embeddings and field == "contents":
        mend = 'an embedding request has one content: "content": {"parts": [{"text": "..."}]}'
    elif embeddings and field in FIELDS["request"] | FIELDS["generationConfig"]:
        mend = "it is for generated answers; embeddings have no such field"
    elif field == "content":
        mend = f"embeddings have one content (use the embeddings operator); generated answers have {CONTENTS}"
    elif field in FIELDS["embedding request"]:
        mend = "it is a field of embeddings; use the embeddings operator"
    elif name == "messages":
        mend = f"it is another vendor's field; write {EMBEDDING_SHAPE if embeddings else CONTENTS}"
    elif name == "config":
        mend = "it is the SDK's word: the API has generationConfig, and safetySettings, tools and the like beside it"
    elif field in FIELDS["generationConfig"]:
        mend = f'it belongs inside generationConfig: "generationConfig": {{"{name}": ...}}'
    elif field in THINKING_FIELDS:
        mend = f'it belongs inside thinkingConfig: "generationConfig": {{"thinkingConfig": {{"{name}": ...}}}}'
    elif name in KEY_FIELDS or name in ("key", "metadata"):
        mend = 'it belongs beside request, as "key"'
    elif name in ("prompt", "text", "input"):
        mend = f"write {EMBEDDING_SHAPE if embeddings else CONTENTS}"
    else:
        mend = _meant(name, place)
    raise BadRow(where, f"its request has the field {name!r}, which the API refuses: {mend}")


def _explain_content(content: object, name: str, where: str) -> NoReturn:
    mend = f'Write {{"parts": [{{"text": "..."}}]}} for {name}'
    if not isinstance(content, Mapping):
        raise BadRow(where, f"{name} is {_kind(content)}, but the API takes an object there. {mend}")
    for field in content:
        if field not in KNOWN["content"]:
            raise BadRow(where, f"{name} has the field {field!r}, but a content has only role and parts. {mend}")
    raise BadRow(where, f"parts of {name} must be a list of objects, and not empty. {mend}")


def _explain_generation(config: Mapping[str, Any], where: str) -> NoReturn:
    name = next(name for name in config if name not in KNOWN["generationConfig"])
    field = camel(name)
    if field in FIELDS["request"]:
        mend = "it belongs beside generationConfig, not inside"
    elif field in THINKING_FIELDS:
        mend = f'it belongs inside thinkingConfig: "thinkingConfig": {{"{name}": ...}}'
    else:
        mend = _meant(name, "generationConfig")
    raise BadRow(where, f"its generationConfig has the field {name!r}, which the API refuses: {mend}")


def _meant(name: str, place: str) -> str:
    if reason := CLIENT_FIELDS.get(camel(name)):
        return reason
    inside = FIELDS["generationConfig"] if place == "request" else frozenset[str]()
    if close := difflib.get_close_matches(camel(name), sorted(FIELDS[place] | inside), 1):
        likely = close[0] if camel(name) == name else snake(close[0])
        return f"did you mean {likely!r}{', inside generationConfig' if close[0] in inside else ''}?"
    return f"it knows {', '.join(sorted(FIELDS[place]))}"


def _is_object(value: object) -> bool:
    return isinstance(value, dict) or isinstance(value, Mapping)  # noqa: SIM101 - the first is quick, the second rare


def _either(fields: Mapping[str, Any], camel: str, snake: str) -> object:
    return fields[camel] if camel in fields else fields.get(snake)


def _bare(model: object) -> str:
    return str(model).removeprefix("models/")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return "an object" if value else "an empty object"
    names = {str: "text", list: "a list", tuple: "a list", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), type(value).__name__)
