from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from google.genai import types
from hypothesis import given
from hypothesis import strategies as st

from airflow_gemini_batch.core.config import CLIENT_FIELDS
from airflow_gemini_batch.core.readymade import FIELDS, KNOWN, check_request, meant_as_request, with_template
from airflow_gemini_batch.emulator import Emulator
from airflow_gemini_batch.exceptions import BadRow

MODEL = "gemini-2.5-flash"
CONTENTS: list[Any] = [{"role": "user", "parts": [{"text": "hi"}]}]
CONTENT: dict[str, Any] = {"parts": [{"text": "hi"}]}


def line(**request: Any) -> dict[str, Any]:
    return {"key": "a", "request": {"contents": CONTENTS} | request}


def embedding(**request: Any) -> dict[str, Any]:
    return {"key": "a", "request": {"content": CONTENT} | request}


def contents(*parts: Any, role: Any = "user") -> dict[str, Any]:
    return line(contents=[{"role": role, "parts": [*parts]}])


def problem(values: dict[str, Any], *, model: str = MODEL, **more: Any) -> str:
    with pytest.raises(BadRow) as caught:
        check_request(values, "x.jsonl:7", model=model, **more)
    assert caught.value.where == "x.jsonl:7"
    return caught.value.problem


@pytest.fixture(scope="module")
def service() -> Iterator[Callable[..., int]]:
    """The emulator's word on lines: the HTTP status of a create from a file of them."""
    with Emulator() as gemini, httpx.Client(base_url=gemini.url, headers={"x-goog-api-key": "k"}, verify=False) as http:

        def status(*lines: Any, embeddings: bool = False) -> int:
            data = "".join(json.dumps(one) + "\n" for one in lines).encode()
            headers = {"X-Goog-Upload-Protocol": "raw", "Content-Type": "application/jsonl"}
            file = http.post("/upload/v1beta/files", headers=headers, content=data).json()["file"]["name"]
            call = "gemini-embedding-001:asyncBatchEmbedContent" if embeddings else f"{MODEL}:batchGenerateContent"
            return http.post(f"/v1beta/models/{call}", json={"batch": {"inputConfig": {"fileName": file}}}).status_code

        yield status


FINE: list[dict[str, Any]] = [
    line(),
    {"request": {"contents": CONTENTS}},
    line(contents=[*CONTENTS, {"role": "model", "parts": [{"text": "yes"}]}, *CONTENTS]),
    line(contents=[{"parts": [{"inlineData": {"mimeType": "image/png", "data": "AAAA"}}, {"text": "what?"}]}]),
    line(generationConfig={"temperature": 0, "thinkingConfig": {"thinkingBudget": 0}, "responseSchema": {"type": "STRING"}}),
    line(generation_config={"max_output_tokens": 5, "thinking_config": {"include_thoughts": True}}),
    line(systemInstruction=CONTENT),
    line(system_instruction={"role": "system", "parts": [{"text": "be brief"}]}),
    line(cachedContent="cachedContents/x"),
    line(safety_settings=[{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}], tools=[{"googleSearch": {}}]),
    line(generationConfig=None, systemInstruction=None, model=None),
    line(model="models/gemini-2.5-flash"),
    line(model="gemini-2.5-flash"),
    # What the SDK's types do not know, or do not take.
    line(generationConfig={"_responseJsonSchema": {"$ref": "#"}, "imageConfig": {"aspectRatio": "1:1"}}),
    line(generationConfig={"responseFormat": {"text": {}}, "temperature": "0.5", "maxOutputTokens": "5", "seed": 5.0}),
    line(safetySettings=[{"category": 7, "threshold": 1}], generationConfig={"temperature": "1"}),
    line(safetySettings=[{"category": "HARM_CATEGORY_OF_TOMORROW", "threshold": "OFF"}]),
    contents({"text": "a"}, {"inline_data": {"mime_type": "image/png", "data": "aG\nk"}}),
    contents({"text": "a", "thought": True, "inlineData": None, "fileData": None}, role="model"),
    contents({"fileData": {"fileUri": "x"}, "documentMetadata": {"startPage": 1}}),
    contents({"fileData": {"fileUri": "x"}, "videoMetadata": {"fps": 1, "contentLayers": ["SPEECH"]}}),
    contents({"functionCall": {"name": "f", "args": {"any": ["thing"]}}, "thoughtSignature": "a+b_"}, role="model"),
    contents({"functionResponse": {"name": "f", "response": {"type": "text", "additionalProperties": {}}}}, role="function"),
    line(tools=[{"functionDeclarations": [{"name": "f", "parametersJsonSchema": {"additionalProperties": False}}]}]),
    line(generationConfig={"responseSchema": {"type": "OBJECT", "properties": {"ref": {"type": "STRING"}}}}),
    line(tools=[{"functionDeclarations": [{"name": "f", "parameters": {"type": "object"}}]}, {"googleSearch": {}}]),
    line(toolConfig={"function_calling_config": {"mode": "ANY", "allowed_function_names": ["f"]}}),
]  # fmt: skip

FINE_EMBEDDINGS: list[dict[str, Any]] = [
    embedding(),
    embedding(taskType="RETRIEVAL_DOCUMENT", title="t", outputDimensionality=256),
    embedding(task_type="RETRIEVAL_QUERY", output_dimensionality=256, model="models/gemini-embedding-001"),
]


def test_what_the_service_takes_passes(service):
    for values in FINE:
        check_request(values, "x", model=MODEL)
        assert service(values) == 200, values
    for values in FINE_EMBEDDINGS:
        check_request(values, "x", model="gemini-embedding-001", embeddings=True)
        assert service(values, embeddings=True) == 200, values


REFUSED: list[tuple[dict[str, Any], str]] = [
    # The wrapper.
    ({"custom_id": "a", "request": {"contents": CONTENTS}}, "custom_id is another vendor's field: rename it to key"),
    ({"id": 1, "request": {"contents": CONTENTS}}, "id is another vendor's field: rename it to key"),
    ({"request_id": 1, "request": {"contents": CONTENTS}}, "request_id is another vendor's field: rename it to key"),
    ({"custom_id": "b", **line()}, "not custom_id: remove custom_id"),
    ({"contents": CONTENTS}, 'without its wrapper. Write {"key": "...", "request": {...}} around it'),
    ({"contents": CONTENTS, "generationConfig": {}}, "without its wrapper"),
    ({"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": []}}, "another vendor's batch"),
    ({"messages": [{"role": "user", "content": "hi"}]}, "messages is another vendor's field"),
    ({"review": "nice"}, "it has review, but no request. A ready-made line is"),
    ({"key": "a"}, "it has no request. A ready-made line is"),
    ({**line(), "config": {"temperature": 0}}, "not config: it belongs inside request, as generationConfig"),
    ({**line(), "generationConfig": {}}, "not generationConfig: generationConfig belongs inside request"),
    ({**line(), "system_instruction": CONTENT}, "system_instruction belongs inside request"),
    ({**line(), "model": MODEL}, "has only key and request, not model: model belongs inside request"),
    ({**line(), "max_output_tokens": 5}, "max_output_tokens belongs into generationConfig, inside request"),
    ({**line(), "metadata": {"row": 1}}, "a file has only the key"),
    ({**line(), "stars": 5, "product": 1}, "not product, stars: name what shall be copied to the result in keep"),
    ({"key": "a", "request": {"contents": CONTENTS}, "requests": 1}, "did you mean request by requests?"),
    # The request's fields.
    (line(config={"temperature": 0}), "the SDK's word: the API has generationConfig"),
    (line(temperature=0), 'inside generationConfig: "generationConfig": {"temperature": ...}'),
    (line(max_output_tokens=5), 'inside generationConfig: "generationConfig": {"max_output_tokens": ...}'),
    (line(responseMimeType="text/plain"), "inside generationConfig"),
    (line(responseSchema={}), "inside generationConfig"),
    (line(thinkingConfig={}), "inside generationConfig"),
    (line(thinking_budget=0), 'inside thinkingConfig: "generationConfig": {"thinkingConfig": {"thinking_budget": ...}}'),
    (line(messages=[]), "another vendor's field; write \"contents\""),
    (line(content=CONTENT), "embeddings have one content (use the embeddings operator)"),
    (line(taskType="X"), "it is a field of embeddings; use the embeddings operator"),
    (line(prompt="hi"), "write \"contents\""),
    (line(custom_id="a"), 'beside request, as "key"'),
    (line(metadata={}), 'beside request, as "key"'),
    (line(systemInstructions=CONTENT), "did you mean 'systemInstruction'?"),
    (line(safety_setting=[]), "did you mean 'safety_settings'?"),
    (line(temprature=0), "did you mean 'temperature', inside generationConfig?"),
    (line(max_tokens=5), "did you mean 'max_output_tokens', inside generationConfig?"),
    (line(xyzzy=1), "it knows cachedContent, contents, "),
    (line(httpOptions={}), "it concerns one SDK call"),
    (line(automatic_function_calling={}), "nobody calls functions during a batch"),
    # Shapes.
    ({"key": "a", "request": {}}, "must be a JSON object with contents, not an empty object"),
    ({"key": "a", "request": "hi"}, "must be a JSON object with contents, not text"),
    ({"key": "a", "request": [line()]}, "not a list"),
    ({"key": "a", "request": None}, "not null"),
    (line(contents="hi"), 'its contents is text; it is a list of objects. Write "contents": [{"role"'),
    (line(contents=CONTENTS[0]), "its contents is one object; put it in a list"),
    (line(contents=["hi"]), 'contents[0] is text, but the API takes an object there. Write {"parts": [{"text": "..."}]}'),
    (line(contents=[*CONTENTS, {"role": "user", "content": "hi"}]), "contents[1] has the field 'content'"),
    (line(contents=[{"text": "hi"}]), "contents[0] has the field 'text', but a content has only role and parts"),
    (line(contents=[{"parts": "hi"}]), "parts of contents[0] must be a list of objects"),
    (line(contents=[{"parts": ["hi"]}]), "parts of contents[0] must be a list of objects"),
    (line(system_instruction="be brief"), 'systemInstruction is text, but the API takes an object there. Write {"parts"'),
    (line(systemInstruction=["be brief"]), "systemInstruction is a list"),
    (line(systemInstruction=[{"text": "be brief"}]), "systemInstruction is a list"),
    (line(generationConfig="hot"), "generationConfig must be an object, not text"),
    # generationConfig's fields.
    (line(generationConfig={"cachedContent": "x"}), "'cachedContent', which the API refuses: it belongs beside"),
    (line(generation_config={"cached_content": "x"}), "it belongs beside generationConfig, not inside"),
    (line(generationConfig={"safetySettings": []}), "it belongs beside generationConfig, not inside"),
    (line(generationConfig={"systemInstruction": CONTENT}), "it belongs beside generationConfig, not inside"),
    (line(generationConfig={"thinkingBudget": 0}), 'inside thinkingConfig: "thinkingConfig": {"thinkingBudget": ...}'),
    (line(generationConfig={"max_tokens": 1}), "did you mean 'max_output_tokens'?"),
    (line(generationConfig={"maxTokens": 1}), "did you mean 'maxOutputTokens'?"),
    (line(generationConfig={"routingConfig": {}}), "exists on Vertex AI only"),
    (line(generationConfig={"xyzzy": 1}), "it knows _responseJsonSchema, audioTranscriptionConfig, "),
    # Parts.
    (contents({"text": "a"}, {"type": "text", "text": "hi"}),
     "contents[0].parts[1] has the field 'type', which the API refuses: a part is {\"text\": \"...\"}"),
    (contents({"image_url": {"url": "https://x"}}), "contents[0].parts[0] has the field 'image_url'"),
    (contents({"text": 5}), "contents[0].parts[0].text is 5: input should be a valid string"),
    (contents({"inlineData": {"mimeType": "image/png", "data": "***"}}), "contents[0].parts[0].inlineData.data is '***'"),
    (contents({"functionCall": {"name": "f", "willContinue": True}}), "functionCall.willContinue, which exists on Vertex"),
    (contents({"text": "a", "fileData": {"uri": "x"}}), "contents[0].parts[0].fileData has the field 'uri', which the API "
     "refuses: did you mean 'fileUri'?"),
    (contents({"text": "a", "inline_data": {"mime_type": "image/png", "data": "aGk="}}),
     "contents has a part with text and inline_data, and a part is one of them: make it several"),
    (line(systemInstruction={"parts": [{"type": "text"}]}), "systemInstruction.parts[0] has the field 'type'"),
    # Tools and safety.
    (line(tools={"googleSearch": {}}), "tools must be a list: put what stands there into [...]"),
    (line(tools=["googleSearch"]), "tools[0] is 'googleSearch': input should be a valid dictionary or object"),
    (line(tools=[{"name": "f", "parameters": {"type": "OBJECT"}}]),
     'tools[0] has the field \'name\', which the API refuses: put functions into a list: {"functionDeclarations"'),
    (line(tools=[{"web_search": {}}]), "which the API refuses: it knows codeExecution, computerUse, fileSearch, fun"),
    (line(tools=[{"googleSearches": {}}]), "tools[0] has the field 'googleSearches', which the API refuses: did you mean"),
    (line(tools=[{"google_search": {"exclude_domains": ["a.com"]}}]), "googleSearch.excludeDomains, which exists on Vertex"),
    (line(safetySettings={"HARM_CATEGORY_HARASSMENT": "OFF"}), "safetySettings must be a list"),
    (line(safetySettings=[{"category": "HARM_CATEGORY_HARASSMENT", "level": "OFF"}]),
     "safetySettings[0] has the field 'level', which the API refuses: it knows category, threshold"),
    (line(safety_settings=[{"method": "SEVERITY"}]), "it has safetySettings.method, which exists on Vertex AI only"),
    # Values in generationConfig.
    (line(generationConfig={"temperature": "hot"}), "generationConfig.temperature is 'hot': input should be a valid number"),
    (line(generation_config={"stop_sequences": "x"}), "generation_config.stop_sequences must be a list"),
    (line(generationConfig={"thinkingConfig": {"budget": 0}}), "thinkingConfig has the field 'budget', which the API "
     "refuses: did you mean 'thinkingBudget'?"),
    (line(generationConfig={"responseSchema": {"$ref": "#/$defs/A", "$defs": {"A": {"type": "object"}}}}),
     "generationConfig.responseSchema has the field '$ref', which the API refuses: a responseSchema has no references; give"),
    (line(generationConfig={"responseSchema": {"type": "OBJECT", "properties": {"a": {"$ref": "#/$defs/A"}}}}),
     "generationConfig.responseSchema.properties.a has the field '$ref'"),
    (line(generationConfig={"responseSchema": {"type": ["string", "null"]}}), "where the API takes one word"),
    (line(generationConfig={"responseSchema": {"type": "ARRAY", "items": {"type": "OBJECT", "additionalProperties": False}}}),
     "generationConfig.responseSchema.items has the field 'additionalProperties', which the API refuses"),
    (line(tools=[{"function_declarations": [{"name": "f", "parameters": {"type": "OBJECT", "additional_properties": {}}}]}]),
     "tools[0].function_declarations[0].parameters has the field 'additional_properties', which the API refuses"),
    (contents({"text": "a"}, role=["user"]), "the role of contents[0] is ['user']"),
    (line(labels={"a": 1}), "labels.a is 1: input should be a valid string"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "said"), REFUSED, ids=[said[-40:] for _, said in REFUSED])
def test_a_mistake_is_named_with_its_mend(values, said):
    assert said in problem(values)


def test_what_is_refused_for_its_shape_the_service_would_refuse_too(service):
    for values, _ in REFUSED:
        if values.get("request"):  # an empty one is a row's error there, and costs the file nothing
            assert service(line(), values) == 400, values


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (contents({"text": "a"}, role="assistant"), "the role of contents[0] is 'assistant', which the API does"),
        (line(contents=[{"role": "system", "parts": [{"text": "a"}]}, *CONTENTS]), "put its text into systemInstruction"),
        (contents({}), "contents has an empty part"),
        (contents({"text": "a"}, {"text": None}), "contents has an empty part"),
        (line(generationConfig={"temperature": 5}), "temperature is 5; the API takes 0 to 2"),
    ],
)  # fmt: skip
def test_what_would_cost_a_row_each_is_refused_too(values, said):
    assert said in problem(values)


def test_requests_of_nothing_but_texts_are_judged_without_the_sdk():
    code = (
        "import sys\n"
        "from airflow_gemini_batch.core.readymade import check_request\n"
        f"check_request({line(systemInstruction=CONTENT)!r}, 'x', model={MODEL!r})\n"
        "assert 'google.genai' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


EMBEDDING_MISTAKES: list[tuple[dict[str, Any], str]] = [
    (line(), 'an embedding request has one content: "content": {"parts"'),
    (embedding(generationConfig={}), "embeddings have no such field"),
    (embedding(temperature=0), "embeddings have no such field"),
    (embedding(dimensions=256), "which the API refuses: "),
    (embedding(task="X"), "did you mean 'taskType'?"),
    (embedding(output_dimension=5), "did you mean 'output_dimensionality'?"),
    (embedding(content="hi"), "content is text, but the API takes an object there"),
    (embedding(content=[CONTENT]), "content is a list"),
    (embedding(content={"parts": [{"type": "text", "text": "hi"}]}), "content.parts[0] has the field 'type'"),
    (embedding(outputDimensionality="many"), "outputDimensionality is 'many': input should be a valid integer"),
    ({"key": "a", "request": {"taskType": "X"}}, "content is null"),
    ({"content": CONTENT}, "without its wrapper"),
    ({**embedding(), "taskType": "X"}, "taskType belongs inside request"),
    ({"key": "a"}, '"request": {"content": {"parts"'),
]


@pytest.mark.parametrize(("values", "said"), EMBEDDING_MISTAKES)
def test_a_mistake_in_an_embedding_request_is_named(values, said):
    assert said in problem(values, model="gemini-embedding-001", embeddings=True)


# Models


@pytest.mark.parametrize("task", ["gemini-2.5-flash", "models/gemini-2.5-flash"])
def test_another_model_than_the_tasks_is_refused(task):
    said = problem(line(model="models/gemini-2.5-pro"), model=task)
    assert f"names the model 'models/gemini-2.5-pro', but the task's is {task!r}" in said
    assert "split the file by model, or leave `model` out" in said
    for same in ("gemini-2.5-flash", "models/gemini-2.5-flash"):
        check_request(line(model=same), "x", model=task)


# Keys


@pytest.mark.parametrize("key", ["a", 7, 1.5, " a "])
def test_a_key_is_text_or_a_number(key):
    check_request(line() | {"key": key}, "x", model=MODEL)


@pytest.mark.parametrize(
    ("key", "said"), [("", "is empty"), ("  ", "is empty"), (None, "is empty"), (["a"], "its key is a list"),
                      ({"a": 1}, "its key is an object"), (True, "its key is true or false")],
)  # fmt: skip
def test_another_key_is_refused(key, said):
    assert said in problem(line() | {"key": key})


def test_keys_are_in_all_lines_or_in_none():
    keyless = {"request": {"contents": CONTENTS}}
    check_request(keyless, "x", model=MODEL, keyed=False)
    check_request(line(), "x", model=MODEL, keyed=True)
    assert "it has no key, but lines before it have one" in problem(keyless, keyed=True)
    assert "it has a key, but lines before it have none" in problem(line(), keyed=False)


def test_kept_columns_and_partitions_may_stand_beside():
    values = line() | {"stars": 5, "ds": "2026-01-01"}
    check_request(values, "x", model=MODEL, beside={"stars", "ds"})
    assert "not ds: name" in problem(values, beside=["stars"])


# Spellings


def test_one_field_in_both_spellings_is_refused_for_nobody_knows_which_counts():
    assert "generation_config and generationConfig, which are one field" in problem(
        line(generationConfig={}, generation_config={})
    )
    assert "top_p and topP" in problem(line(generationConfig={"topP": 1, "top_p": 1}))


@pytest.mark.parametrize("place", sorted(FIELDS))
def test_every_known_field_may_be_spelled_either_way(place):
    assert len(KNOWN[place]) == len(FIELDS[place]) + sum(name.lower() != name for name in FIELDS[place])


def test_the_requests_own_fields_win_over_the_tasks_in_either_spelling():
    template = {"systemInstruction": 1, "generationConfig": 2, "safetySettings": 3}
    request = {"contents": 4, "system_instruction": 5, "generationConfig": 6}
    assert with_template(template, request) == {
        "contents": 4, "system_instruction": 5, "generationConfig": 6, "safetySettings": 3,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["generationConfig", "generation_config"])
@pytest.mark.parametrize(
    ("own", "together"),
    [
        ({}, {"topK": 1, "responseMimeType": "application/json", "responseSchema": {}}),
        (
            {"top_k": 3, "seed": 1},
            {"top_k": 3, "seed": 1, "responseMimeType": "application/json", "responseSchema": {}},
        ),
        ({"response_schema": 5}, {"topK": 1, "responseMimeType": "application/json", "response_schema": 5}),
        ({"responseJsonSchema": 5}, {"topK": 1, "responseMimeType": "application/json", "responseJsonSchema": 5}),
    ],
)
def test_generation_settings_of_the_task_fill_those_that_a_request_leaves_open(name, own, together):
    """Else rows with a temperature of their own would be asked without the task's schema, and paid for in vain."""
    shared = {"topK": 1, "responseMimeType": "application/json", "responseSchema": {}}
    assert with_template({"generationConfig": shared}, {"contents": 4, name: own}) == {"contents": 4, name: together}


# The table


def aliases(kind: Any) -> set[str]:
    return {field.alias for field in kind.model_fields.values()}


def test_the_table_holds_every_field_the_sdk_knows():
    config = FIELDS["request"] | FIELDS["generationConfig"]
    assert aliases(types.GenerationConfig) <= FIELDS["generationConfig"] | CLIENT_FIELDS.keys()
    assert aliases(types.GenerateContentConfig) <= config | CLIENT_FIELDS.keys()
    assert aliases(types.EmbedContentConfig) <= FIELDS["embedding request"] | CLIENT_FIELDS.keys()
    assert aliases(types.Content) == FIELDS["content"]
    assert aliases(types.InlinedRequest) - {"config", "metadata"} <= FIELDS["request"]
    assert not config & CLIENT_FIELDS.keys()


# What is meant as a request


@pytest.mark.parametrize(
    ("values", "meant"),
    [
        (line(), True),
        ({"request": "x"}, True),
        ({"contents": CONTENTS}, True),
        ({"content": CONTENT}, True),
        ({"custom_id": "a", "body": {}}, True),
        ({"messages": []}, True),
        ({"text": "hello"}, False),
        ({"content": "a column of text", "body": "another"}, False),
    ],
)
def test_a_request_without_its_wrapper_is_told_from_a_row(values, meant):
    assert meant_as_request(values) is meant


NAMES = st.sampled_from(
    sorted(set().union(*KNOWN.values()) | {"key", "request", "custom_id", "config", "messages", "body"})
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(NAMES, JSON, max_size=4), st.booleans(), st.sampled_from([None, True, False]))
def test_whatever_it_is_it_is_a_known_shape_or_refused_as_a_bad_row(values, embeddings, keyed):
    for one in (values, {"key": "a", "request": values}):
        try:
            check_request(one, "x.jsonl:7", model=MODEL, embeddings=embeddings, keyed=keyed)
        except BadRow:
            continue
        assert one.keys() <= {"key", "request"}
        assert one["request"].keys() <= KNOWN["embedding request" if embeddings else "request"]
