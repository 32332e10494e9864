from __future__ import annotations

import inspect
import logging
import re
from typing import Any

import pytest
from google.genai import batches, types
from pydantic import BaseModel, Field

from airflow_gemini_batch.core.config import (
    CLIENT_FIELDS,
    REQUEST_FIELDS,
    generation_settings,
    request_template,
)
from airflow_gemini_batch.core.request_types import RANGES, VERTEX_ONLY
from airflow_gemini_batch.core.schema import OutputSchema
from airflow_gemini_batch.core.spelling import camel
from airflow_gemini_batch.exceptions import InvalidConfig

SCHEMA = {
    "type": "object",
    "properties": {"type": {"type": "string"}, "n": {"type": "array", "items": {"type": "integer"}}},
}
FILE = types.File(uri="https://x/files/a", mime_type="text/plain")
SAFETY = [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}]


def test_every_field_of_the_sdks_config_has_a_place():
    inside = {f.alias for f in types.GenerationConfig.model_fields.values()} | {"imageConfig"}
    for f in types.GenerateContentConfig.model_fields.values():
        assert f.alias in inside | REQUEST_FIELDS | CLIENT_FIELDS.keys() | {"systemInstruction"}, f.alias


@pytest.mark.parametrize(
    "config",
    [
        {"max_output_tokens": 5, "safety_settings": SAFETY},
        {"maxOutputTokens": 5, "safetySettings": SAFETY},
        types.GenerateContentConfig(max_output_tokens=5, safety_settings=SAFETY),
    ],
    ids=["snake", "camel", "object"],
)
def test_objects_and_dicts_in_either_case_mean_the_same(config):
    assert request_template(config, None) == {
        "generationConfig": {"maxOutputTokens": 5},
        "safetySettings": SAFETY,
    }


@pytest.mark.parametrize("config", [None, {}, types.GenerateContentConfig()])
def test_nothing_given_is_nothing_sent(config):
    assert request_template(config, None) == {}
    assert request_template(config, "") == {}


@pytest.mark.parametrize(
    ("parameter", "inside", "parts"),
    [
        ("Be brief.", None, [{"text": "Be brief."}]),
        (None, "Be brief.", [{"text": "Be brief."}]),
        (None, ["Be brief.", "Be kind."], [{"text": "Be brief."}, {"text": "Be kind."}]),
        (None, {"parts": [{"text": "Be brief."}]}, [{"text": "Be brief."}]),
        (None, types.Content(parts=[types.Part(text="Be brief.")]), [{"text": "Be brief."}]),
        (None, {"text": "Be brief."}, [{"text": "Be brief."}]),
        (None, types.Part(text="Be brief."), [{"text": "Be brief."}]),
        (None, [types.Part(text="Be brief."), "Be kind."], [{"text": "Be brief."}, {"text": "Be kind."}]),
        (None, FILE, [{"fileData": {"fileUri": "https://x/files/a", "mimeType": "text/plain"}}]),
        (types.Content(parts=[types.Part(text="Be brief.")]), None, [{"text": "Be brief."}]),
        (types.Part(text="Be brief."), None, [{"text": "Be brief."}]),
        (["Be brief.", FILE], None, [{"text": "Be brief."}, {"fileData": {"fileUri": FILE.uri, "mimeType": "text/plain"}}]),
    ],
)  # fmt: skip
def test_a_system_instruction_may_come_in_several_forms(parameter, inside, parts):
    config = {"system_instruction": inside} if inside else None
    assert generation_settings(config, parameter, None) == ({"systemInstruction": {"parts": parts}}, {})


@pytest.mark.parametrize("inside", [types.Part(), types.Content(parts=[types.Part()]), [types.Content(parts=[])]])
def test_a_system_instruction_that_would_be_lost_is_refused(inside):
    for config, parameter in (({"system_instruction": inside}, None), (None, inside)):
        with pytest.raises(InvalidConfig, match="system_instruction has a part without text"):
            generation_settings(config, parameter, None)


def test_a_system_instruction_that_is_none_is_refused():
    with pytest.raises(InvalidConfig, match=r"system_?[iI]nstruction"):
        generation_settings(None, 5, None)


def test_a_system_instruction_given_twice_is_an_error():
    with pytest.raises(InvalidConfig, match="given twice"):
        request_template({"system_instruction": "a"}, "b")
    for config in ({"systemInstruction": "a"}, types.GenerateContentConfig(system_instruction="a")):
        with pytest.raises(InvalidConfig, match="given twice"):
            generation_settings(config, types.Part(text="b"), None)


@pytest.mark.parametrize("name", sorted(CLIENT_FIELDS))
def test_a_setting_that_makes_no_sense_in_a_batch_says_what_to_do_instead(name):
    samples: dict[str, Any] = {
        "httpOptions": {"timeout": 1}, "shouldReturnHttpResponse": True, "automaticFunctionCalling": {"disable": True},
        "routingConfig": {"autoMode": {}}, "modelSelectionConfig": {}, "modelArmorConfig": {}, "audioTimestamp": True,
        "automaticContinuation": True, "generationOutputConfig": {},
    }  # fmt: skip
    with pytest.raises(InvalidConfig) as caught:
        request_template({name: samples[name]}, None)
    assert f"config.{name} cannot be used here: {CLIENT_FIELDS[name]}" in str(caught.value)


@pytest.mark.parametrize("name", sorted(RANGES))
def test_a_value_the_api_would_refuse_is_refused_before_anything_is_sent(name):
    low, high = RANGES[name]
    for fine in (low, high):
        assert request_template({name: fine}, None) == {"generationConfig": {name: fine}}
    for off in (low - 1, high + 1):
        with pytest.raises(InvalidConfig, match=f"config.{name} is .*; the API takes {low} to {high}"):
            request_template({name: off}, None)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"temprature": 1}, "temprature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"stop_sequences": "END"}, "stop"),
        ({"safety_settings": [{"treshold": "BLOCK_NONE"}]}, "treshold"),
        ("temperature=1", "GenerateContentConfig"),
        ({"tools": [print]}, "config"),
        ({"response_schema": int}, "goes into the task's output_schema"),
        ({"response_schema": {"type": "array", "items": {"type": ["string", "null"]}}},
         "generationConfig.responseSchema.items.type is ['string', 'null'], where the API takes one word; nullable stands"),
        ({"response_schema": {"type": "object", "properties": {"ref": {"type": "string"}}, "additionalProperties": False}},
         "config cannot be sent: generationConfig.responseSchema has the field 'additionalProperties', which the API"),
        (types.GenerateContentConfig(response_schema={"type": "object", "properties": {"a": {"const": "x"}}}),
         "generationConfig.responseSchema.properties.a has the field 'const', which the API refuses: the API's schemas have "
         "fewer words than JSON Schema, which goes into the task's output_schema"),
        ({"responseSchema": {"type": "integer", "enum": [1, 2]}}, "responseSchema.enum[0] is 1: input should"),
        ({"tools": ["google_search"]}, "tools[0] is 'google_search': input should be a valid dictionary"),
        ({"tools": [{"function_declarations": [{"name": "f", "parameters": {"additional_properties": False}}]}]},
         "tools[0].functionDeclarations[0].parameters has the field 'additionalProperties', which the API refuses"),
    ],
)  # fmt: skip
def test_a_config_that_is_none_names_what_is_wrong(config, said):
    with pytest.raises(InvalidConfig) as caught:
        request_template(config, None)
    assert said.lower() in str(caught.value).lower()


def test_a_schemas_types_are_capitals_but_a_property_may_be_called_type():
    made = request_template({"response_schema": SCHEMA}, None)
    assert made["generationConfig"]["responseSchema"] == {
        "type": "OBJECT",
        "properties": {"type": {"type": "STRING"}, "n": {"type": "ARRAY", "items": {"type": "INTEGER"}}},
        "propertyOrdering": ["type", "n"],
    }


@pytest.mark.parametrize(
    ("schema", "sent"),
    [
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, {"type": "STRING", "nullable": True}),
        ({"anyOf": [{"type": "null"}, SCHEMA]}, {
            "type": "OBJECT",
            "properties": {"type": {"type": "STRING"}, "n": {"type": "ARRAY", "items": {"type": "INTEGER"}}},
            "propertyOrdering": ["type", "n"],
            "nullable": True,
        }),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "null"}]},
         {"anyOf": [{"type": "STRING"}, {"type": "INTEGER"}], "nullable": True}),
        ({"type": "null"}, {"nullable": True}),
    ],
)  # fmt: skip
def test_a_value_that_may_be_null_is_nullable_wherever_it_stands(schema, sent):
    assert request_template({"response_schema": schema}, None)["generationConfig"]["responseSchema"] == sent
    inside = request_template({"response_schema": {"type": "array", "items": schema}}, None)
    assert inside["generationConfig"]["responseSchema"] == {"type": "ARRAY", "items": sent}


def test_a_models_json_schema_has_its_references_inlined():
    class Author(BaseModel):
        name: str

    class Book(BaseModel):
        author: Author
        editor: Author | None

    name = {"name": {"type": "STRING", "title": "Name"}}
    sent = request_template({"response_schema": Book.model_json_schema()}, None)["generationConfig"]["responseSchema"]
    assert "$" not in str(sent)
    assert sent["properties"]["author"]["properties"].keys() == name.keys()
    assert sent["properties"]["editor"]["nullable"] is True
    assert request_template({"response_schema": Author.model_json_schema()}, None)["generationConfig"]["responseSchema"]


def test_what_a_models_json_schema_loses_in_config_is_told(caplog):
    class Author(BaseModel):
        name: str
        books: int = Field(multiple_of=2)

    class Book(BaseModel):
        author: Author

    with caplog.at_level(logging.WARNING):
        request_template({"response_schema": Book.model_json_schema()}, None)
    assert "neither asked for nor checked are multipleOf at $.author.books. As the task's output_schema" in caplog.text


def test_a_reference_further_down_is_inlined_too():
    schema = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"$ref": "#/properties/a"}}}
    sent = request_template({"response_schema": schema}, None)["generationConfig"]["responseSchema"]
    assert sent["properties"]["b"]["type"] == "STRING"
    named = {"type": "OBJECT", "properties": {"definitions": {"type": "STRING"}}}
    assert request_template({"response_schema": named}, None)["generationConfig"]["responseSchema"] == named


# What the SDK refuses for the Developer API

KIND_OF_FIELD = {
    "GenerateContentConfig": "", "SafetySetting": "safetySettings.", "Tool": "tools.", "GoogleSearch": "tools.googleSearch.",
    "GoogleMaps": "tools.googleMaps.", "AuthConfig": "tools.googleMaps.authConfig.", "ImageConfig": "imageConfig.",
    "FunctionCallingConfig": "toolConfig.functionCallingConfig.", "FunctionCall": "contents.parts.functionCall.",
}  # fmt: skip
NOT_OF_A_REQUEST = {
    "BatchJobSource", "CreateBatchJobConfig", "ListBatchJobsConfig", "BatchJobDestination", "EmbedContentConfig",
}  # fmt: skip


def test_every_field_that_the_sdk_refuses_is_known_as_one_of_vertex_only():
    known = {*VERTEX_ONLY, *CLIENT_FIELDS}
    found = set()
    for name, function in vars(batches).items():
        kind = name.removeprefix("_").removesuffix("_to_mldev")
        if not name.endswith("_to_mldev") or kind in NOT_OF_A_REQUEST:
            continue
        source = inspect.getsource(function)
        fields = re.findall(r"if getv\(from_object, \['(\w+)'\]\)[^\n]*\n\s+raise ValueError", source)
        assert len(fields) == source.count("raise ValueError"), name
        found |= {KIND_OF_FIELD[kind] + camel(field) for field in fields}
    assert found - known == set()
    assert len(found) > 15


@pytest.mark.parametrize(
    ("config", "path"),
    [
        ({"safety_settings": [SAFETY[0] | {"method": "SEVERITY"}]}, "safetySettings.method"),
        ({"tools": [{"code_execution": {}}, {"google_search": {"exclude_domains": ["a.com"]}}]},
         "tools.googleSearch.excludeDomains"),
        ({"tools": [types.Tool(enterprise_web_search=types.EnterpriseWebSearch())]}, "tools.enterpriseWebSearch"),
        ({"imageConfig": {"outputMimeType": "image/png"}}, "imageConfig.outputMimeType"),
        ({"tool_config": {"function_calling_config": {"stream_function_call_arguments": True}}},
         "toolConfig.functionCallingConfig.streamFunctionCallArguments"),
    ],
)  # fmt: skip
def test_a_nested_field_that_exists_on_vertex_only_is_refused_with_its_path(config, path):
    with pytest.raises(
        InvalidConfig, match=re.escape(f"config.{path} cannot be used here: it exists on Vertex AI only")
    ):
        request_template(config, None)


# What the SDK puts where REST wants it


def test_a_voice_may_be_given_by_its_name_alone():
    speech = request_template({"speech_config": "Kore"}, None)["generationConfig"]["speechConfig"]
    assert speech == {"voiceConfig": {"prebuiltVoiceConfig": {"voiceName": "Kore"}}}


@pytest.mark.parametrize("name", ["abc", "cachedContents/abc"])
def test_a_cache_may_be_given_with_or_without_its_collection(name):
    assert request_template({"cached_content": name}, None) == {"cachedContent": "cachedContents/abc"}


def test_a_python_function_as_a_tool_is_refused_with_what_to_give_instead():
    def weather(city: str) -> str:
        """The weather of a city."""
        return city

    with pytest.raises(InvalidConfig, match="the Python function 'weather', but nobody calls functions during a batch"):
        request_template({"tools": [weather]}, None)
    declared = types.FunctionDeclaration.from_callable_with_api_option(callable=weather)
    sent = request_template({"tools": [{"function_declarations": [declared]}]}, None)
    assert sent["tools"][0]["functionDeclarations"][0]["name"] == "weather"


# Places


@pytest.mark.parametrize(
    ("config", "instruction", "said"),
    [
        (None, "Answer in {lang}.", "system_instruction is sent as it is: {lang} in it"),
        (None, types.Part(text="Answer in {lang}."), "system_instruction is sent as it is: {lang} in it"),
        ({"system_instruction": "Answer in {lang}."}, None, "system_instruction is sent as it is: {lang} in it"),
        ({"system_instruction": ["Be brief.", "{lang}"]}, None, "system_instruction is sent as it is: {lang} in it"),
        ({"stop_sequences": ["{lang}"]}, None, "stop_sequences is sent as it is: {lang} in it"),
        ({"safety_settings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "{level}"}]}, None,
         "threshold is sent as it is: {level} in it"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*is not a valid")
def test_a_place_that_is_none_is_told(config, instruction, said, caplog):
    generation_settings(config, instruction, None)
    assert said in caplog.text


def test_no_place_is_told_where_there_is_none(caplog):
    schema = {"type": "object", "properties": {"a": {"type": "string", "description": "like {this}"}}}
    settings = {"system_instruction": "{lang}", "response_schema": schema, "stop_sequences": ["{{end}}", "{}"]}
    assert generation_settings(settings, None, None)[1] == {"system_instruction": "lang"}
    assert not caplog.text


def test_a_json_schema_stays_as_it_is():
    assert request_template({"response_json_schema": SCHEMA}, None)["generationConfig"]["responseJsonSchema"] == SCHEMA


def test_an_output_schema_does_not_go_with_answers_of_bare_words():
    schema = OutputSchema.of({"type": "string", "enum": ["yes", "no"]})
    with pytest.raises(InvalidConfig, match=r"config\.responseMimeType is 'text/x\.enum', but output_schema needs"):
        request_template({"response_mime_type": "text/x.enum"}, None, schema)
