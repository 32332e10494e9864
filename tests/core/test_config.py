from __future__ import annotations

import json
import re
from typing import Any

import pytest
from google import genai
from google.genai import types

from airflow_gemini_batch.core.config import CLIENT_FIELDS, RANGES, REQUEST_FIELDS, request_template
from airflow_gemini_batch.exceptions import InvalidConfig

SCHEMA = {
    "type": "object",
    "properties": {"type": {"type": "string"}, "n": {"type": "array", "items": {"type": "integer"}}},
}
SAMPLES: dict[str, Any] = {
    "system_instruction": "Be brief.",
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 40,
    "candidate_count": 2,
    "max_output_tokens": 100,
    "stop_sequences": ["END"],
    "response_logprobs": True,
    "logprobs": 3,
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "seed": 7,
    "response_mime_type": "application/json",
    "response_schema": SCHEMA,
    "response_json_schema": {"type": "object"},
    "safety_settings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}],
    "tools": [{"google_search": {}}, {"function_declarations": [{"name": "f", "description": "does f"}]}],
    "tool_config": {"function_calling_config": {"mode": "ANY", "allowed_function_names": ["f"]}},
    "cached_content": "cachedContents/x",
    "response_modalities": ["TEXT", "IMAGE"],
    "media_resolution": "MEDIA_RESOLUTION_LOW",
    "speech_config": {"voice_config": {"prebuilt_voice_config": {"voice_name": "Kore"}}},
    "thinking_config": {"thinking_budget": 0, "include_thoughts": True},
    "image_config": {"aspect_ratio": "16:9"},
    "service_tier": "flex",
    "enable_enhanced_civic_answers": True,
}


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_every_setting_lands_where_the_sdk_itself_puts_it(serve, name):
    """The SDK's own request, as it goes over the wire, is the oracle."""
    if name not in types.GenerateContentConfig.model_fields:
        pytest.skip("this release of the SDK does not know it")
    server = serve(lambda path, n: (200, {"Content-Type": "application/json"}, b"{}"))
    config = {name: SAMPLES[name]}
    with genai.Client(api_key="k", vertexai=False, http_options={"base_url": server.url}) as sdk:
        sdk.models.generate_content(model="gemini-2.5-flash", contents="x", config=config)
    wire = in_camel_case(json.loads(server.seen[-1][3]))
    del wire["contents"]
    wire.get("systemInstruction", {}).pop("role", None)  # the SDK names a role there; the API ignores it
    assert request_template(config, None) == {field: value for field, value in wire.items() if value != {}}


def in_camel_case(body: Any) -> Any:
    """The SDK spells some inner names with underscores; the API takes both."""
    if isinstance(body, list):
        return [in_camel_case(one) for one in body]
    if isinstance(body, dict):
        return {re.sub("_([a-z])", lambda m: m[1].upper(), name): in_camel_case(one) for name, one in body.items()}
    return body


def test_every_field_of_the_sdks_config_has_a_place():
    inside = {f.alias for f in types.GenerationConfig.model_fields.values()} | {"imageConfig"}
    for f in types.GenerateContentConfig.model_fields.values():
        assert f.alias in inside | REQUEST_FIELDS | CLIENT_FIELDS.keys() | {"systemInstruction"}, f.alias


@pytest.mark.parametrize(
    "config",
    [
        {"max_output_tokens": 5, "safety_settings": SAMPLES["safety_settings"]},
        {"maxOutputTokens": 5, "safetySettings": SAMPLES["safety_settings"]},
        types.GenerateContentConfig(max_output_tokens=5, safety_settings=SAMPLES["safety_settings"]),
    ],
    ids=["snake", "camel", "object"],
)
def test_objects_and_dicts_in_either_case_mean_the_same(config):
    assert request_template(config, None) == {
        "generationConfig": {"maxOutputTokens": 5},
        "safetySettings": SAMPLES["safety_settings"],
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
    ],
)
def test_a_system_instruction_may_come_in_several_forms(parameter, inside, parts):
    config = {"system_instruction": inside} if inside else None
    assert request_template(config, parameter) == {"systemInstruction": {"parts": parts}}


def test_a_system_instruction_given_twice_is_an_error():
    with pytest.raises(InvalidConfig, match="given twice"):
        request_template({"system_instruction": "a"}, "b")


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
        ({"response_schema": int}, "Give a response schema as a dict"),
        ({"response_schema": {"type": "array", "items": {"type": ["string", "null"]}}}, "response"),
    ],
)
def test_a_config_that_is_none_names_what_is_wrong(config, said):
    with pytest.raises(InvalidConfig) as caught:
        request_template(config, None)
    assert said.lower() in str(caught.value).lower()


def test_a_schemas_types_are_capitals_but_a_property_may_be_called_type():
    made = request_template({"response_schema": SCHEMA | {"anyOf": [{"type": "null"}]}}, None)
    assert made["generationConfig"]["responseSchema"] == {
        "type": "OBJECT",
        "properties": {"type": {"type": "STRING"}, "n": {"type": "ARRAY", "items": {"type": "INTEGER"}}},
        "propertyOrdering": ["type", "n"],
        "anyOf": [{"type": "NULL"}],
    }


def test_a_json_schema_stays_as_it_is():
    assert request_template({"response_json_schema": SCHEMA}, None)["generationConfig"]["responseJsonSchema"] == SCHEMA
