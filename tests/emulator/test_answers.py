"""The pretend model: the same question, the same answer; answers fit what was asked for."""

from __future__ import annotations

import base64
import json
import math
import random
import re
import struct
import zlib

import jsonschema
import pytest
from google.genai import types
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from airflow_gemini_batch.emulator import Emulator, Options
from airflow_gemini_batch.emulator.shapes import Shaper
from airflow_gemini_batch.emulator.tokens import text_tokens

IMAGE_MODEL = "gemini-3-pro-image-preview"


@pytest.fixture(scope="module")
def gemini():
    """One emulator for all of these tests: answers have no memory."""
    with Emulator() as gemini:
        yield gemini


def text_of(response: dict) -> str:
    return "".join(
        part.get("text", "") for part in response["candidates"][0]["content"]["parts"] if not part.get("thought")
    )


def json_of(raw, schema: dict, kind: str = "responseSchema"):
    return json.loads(text_of(raw.answer(generationConfig={"responseMimeType": "application/json", kind: schema})))


def test_the_same_question_gets_the_same_answer_anywhere(raw, emulate, connect):
    assert raw.answer() == connect(emulate()).answer()


def test_another_prompt_model_or_seed_changes_the_answer(raw):
    other = [{"parts": [{"text": "Describe the blue bicycle"}]}]
    answers = [
        raw.answer(),
        raw.answer(contents=other),
        raw.answer("gemini-2.5-pro"),
        raw.answer(generationConfig={"seed": 7}),
    ]
    assert len({one["responseId"] for one in answers}) == 4


def test_an_answer_looks_like_the_services(raw):
    response = raw.answer()
    assert "red bicycle" in text_of(response)
    assert list(response) == ["candidates", "usageMetadata", "modelVersion", "responseId"]
    (candidate,) = response["candidates"]
    assert (candidate["finishReason"], candidate["index"], candidate["content"]["role"]) == ("STOP", 0, "model")
    assert len(base64.urlsafe_b64decode(response["responseId"] + "==")) == 16
    assert len(response["responseId"]) == 22
    assert response["modelVersion"] == "gemini-2.5-flash"
    types.GenerateContentResponse.model_validate(response)


def test_token_counts_add_up(raw):
    usage = raw.answer(systemInstruction={"parts": [{"text": "Be brief, please."}]})["usageMetadata"]
    parts = usage["promptTokenCount"] + usage["candidatesTokenCount"] + usage["thoughtsTokenCount"]
    assert usage["totalTokenCount"] == parts
    assert sum(one["tokenCount"] for one in usage["promptTokensDetails"]) == usage["promptTokenCount"]
    assert usage["promptTokenCount"] == text_tokens("Describe the red bicycle") + text_tokens("Be brief, please.")


def test_media_is_counted_by_modality_and_a_cache_is_part_of_the_prompt(raw):
    image = {"inlineData": {"mimeType": "image/png", "data": "AAAA"}}
    usage = raw.answer(contents=[{"parts": [{"text": "What is this?"}, image]}], cachedContent="cachedContents/x")[
        "usageMetadata"
    ]
    assert {one["modality"] for one in usage["promptTokensDetails"]} == {"TEXT", "IMAGE"}
    assert usage["promptTokenCount"] > usage["cachedContentTokenCount"] >= 2048


@pytest.mark.parametrize(
    ("text", "least", "most"), [("", 0, 0), ("abcd" * 25, 25, 25), ("日本語" * 10, 15, 30), ("한국어", 1, 3)]
)
def test_tokens_are_about_right(text, least, most):
    assert least <= text_tokens(text) <= most


def test_thinking_is_counted_can_be_shown_and_can_be_off(raw):
    shown = raw.answer(generationConfig={"thinkingConfig": {"includeThoughts": True, "thinkingBudget": 100}})
    first, *rest = shown["candidates"][0]["content"]["parts"]
    assert first["thought"] is True
    assert len(rest) == 1
    assert 0 < shown["usageMetadata"]["thoughtsTokenCount"] <= 100
    off = raw.answer(generationConfig={"thinkingConfig": {"thinkingBudget": 0}})
    assert "thoughtsTokenCount" not in off["usageMetadata"]
    assert "thoughtsTokenCount" not in raw.answer("gemini-2.5-flash-lite")["usageMetadata"]


@pytest.mark.parametrize("limit", [1, 4, 10])
def test_a_low_token_limit_cuts_the_answer(raw, limit):
    response = raw.answer(generationConfig={"maxOutputTokens": limit})
    usage = response["usageMetadata"]
    assert response["candidates"][0]["finishReason"] == "MAX_TOKENS"
    assert usage["candidatesTokenCount"] + usage.get("thoughtsTokenCount", 0) <= limit
    assert text_of(response)


def test_stop_sequences_and_candidate_counts_are_kept(raw):
    response = raw.answer(generationConfig={"stopSequences": ["bicycle"], "candidateCount": 3})
    assert [one["index"] for one in response["candidates"]] == [0, 1, 2]
    assert "bicycle" not in text_of(response)


OPEN_API = {
    "type": "OBJECT",
    "properties": {
        "name": {"type": "STRING", "minLength": "3", "maxLength": "20"},
        "mood": {"type": "STRING", "enum": ["good", "bad"]},
        "stars": {"type": "INTEGER", "minimum": 1, "maximum": 5},
        "score": {"type": "NUMBER", "minimum": -1.0, "maximum": 1.0},
        "sure": {"type": "BOOLEAN"},
        "day": {"type": "STRING", "format": "date"},
        "note": {"type": "STRING", "nullable": True},
        "tags": {"type": "ARRAY", "items": {"type": "STRING"}, "minItems": "2", "maxItems": "4"},
        "inner": {"type": "OBJECT", "properties": {"a": {"type": "INTEGER"}}, "required": ["a"]},
        "either": {"anyOf": [{"type": "INTEGER"}, {"type": "STRING"}]},
    },
    "required": ["name", "mood", "stars", "score", "sure", "day", "tags", "inner", "either"],
    "propertyOrdering": ["stars", "name"],
}


def test_json_fits_a_response_schema(raw):
    made = json_of(raw, OPEN_API)
    assert list(made)[:2] == ["stars", "name"]
    assert set(OPEN_API["required"]) <= set(made)
    assert made["mood"] in ("good", "bad")
    assert 1 <= made["stars"] <= 5
    assert -1 <= made["score"] <= 1
    assert 2 <= len(made["tags"]) <= 4
    assert 3 <= len(made["name"]) <= 20
    assert isinstance(made["inner"]["a"], int)
    assert len(made["day"]) == 10


class Leaf(BaseModel):
    colour: str
    weight: float = Field(ge=0, le=2)


class Tree(BaseModel):
    name: str = Field(min_length=2, max_length=30)
    leaves: list[Leaf] = Field(min_length=1, max_length=3)
    parent: Tree | None = None
    size: int | None = None


def test_json_fits_a_json_schema_with_references(raw):
    for seed in range(5):
        config = {"responseMimeType": "application/json", "responseJsonSchema": Tree.model_json_schema(), "seed": seed}
        Tree.model_validate_json(text_of(raw.answer(generationConfig=config)))


def test_the_sdk_may_send_pydantic_models(client):
    config = {"response_mime_type": "application/json", "response_schema": list[Leaf]}
    job = client.batches.create(model="gemini-2.5-flash", src=[{"contents": "leaves", "config": config}])
    text = client.batches.get(name=job.name).dest.inlined_responses[0].response.text
    assert [Leaf.model_validate(one) for one in json.loads(text)]


def test_an_enum_is_answered_with_one_of_its_values(raw):
    config = {"responseMimeType": "text/x.enum", "responseSchema": {"type": "STRING", "enum": ["yes", "no"]}}
    assert text_of(raw.answer(generationConfig=config)) in ("yes", "no")


LEAVES = st.one_of(
    st.builds(
        lambda low, span: {"type": "integer", "minimum": low, "maximum": low + span},
        st.integers(-99, 99),
        st.integers(0, 50),
    ),
    st.builds(
        lambda low, span: {"type": "number", "minimum": low, "maximum": low + span},
        st.integers(-9, 9),
        st.integers(0, 9),
    ),
    st.builds(
        lambda low, span: {"type": "string", "minLength": low, "maxLength": low + span},
        st.integers(0, 40),
        st.integers(0, 9),
    ),
    st.builds(lambda values: {"enum": values}, st.lists(st.text(max_size=3) | st.integers(), min_size=1, max_size=3)),
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": ["string", "null"]}, {"const": 3}]),
    st.builds(lambda n: {"type": "integer", "multipleOf": n, "exclusiveMinimum": 0}, st.integers(1, 9)),
)
SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(
            lambda one, low, span: {"type": "array", "items": one, "minItems": low, "maxItems": low + span},
            inner, st.integers(0, 3), st.integers(0, 2),
        ),
        st.builds(
            lambda all_: {"type": "object", "properties": all_, "required": list(all_)[:1]},
            st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, max_size=3),
        ),
        st.builds(lambda several: {"anyOf": several}, st.lists(inner, min_size=1, max_size=3)),
    ),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=150)
@given(SCHEMAS, st.integers(0, 99))
def test_what_is_made_for_a_schema_is_valid_under_it(schema, seed):
    jsonschema.validate(Shaper(schema, random.Random(seed), "about this").value(), schema)


@pytest.mark.parametrize(
    "pattern", [r"^\d{4}-\d{2}-\d{2}$", "^[A-Z]{3}$", r"^-?\d+(\.\d+)?$", "^[0-9]{5}$", "@", "^https?://", "("]
)
def test_a_text_fits_a_usual_pattern_and_one_that_is_none_is_passed_over(pattern):
    text = Shaper({"type": "string", "pattern": pattern}, random.Random(1), "").value()
    assert pattern == "(" or re.search(pattern, text)


@pytest.mark.parametrize("size", [1, 256, 3072])
def test_embeddings_have_the_asked_size_and_unit_length(raw, size):
    request = {"content": {"parts": [{"text": "one"}]}, "outputDimensionality": size}
    job = raw.create({"key": "a", "request": request}, model="gemini-embedding-001", embeds=True)
    values = raw.results(job)[0]["response"]["embedding"]["values"]
    assert len(values) == size
    assert math.isclose(math.hypot(*values), 1.0, rel_tol=1e-6)


def test_embeddings_have_3072_numbers_unless_asked_and_differ(raw):
    rows = [{"key": text, "request": {"content": {"parts": [{"text": text}]}}} for text in ("one", "two")]
    one, two = raw.results(raw.create(*rows, model="gemini-embedding-001", embeds=True))
    assert len(one["response"]["embedding"]["values"]) == 3072
    assert one["response"]["embedding"] != two["response"]["embedding"]


@pytest.mark.parametrize(("ratio", "size"), [(None, (32, 32)), ("16:9", (32, 18)), ("9:16", (18, 32))])
def test_image_models_draw_real_pngs(raw, ratio, size):
    config = {"responseModalities": ["TEXT", "IMAGE"], **({"imageConfig": {"aspectRatio": ratio}} if ratio else {})}
    text, image = raw.answer(IMAGE_MODEL, generationConfig=config)["candidates"][0]["content"]["parts"]
    assert text["text"]
    assert image["inlineData"]["mimeType"] == "image/png"
    data = base64.b64decode(image["inlineData"]["data"])
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", data[16:24]) == size
    start = data.index(b"IDAT")
    length = struct.unpack(">I", data[start - 4 : start])[0]
    pixels = zlib.decompress(data[start + 4 : start + 4 + length])
    assert len(pixels) == size[1] * (1 + 3 * size[0])
    assert struct.unpack(">I", data[start + 4 + length : start + 8 + length])[0] == zlib.crc32(
        data[start : start + 4 + length]
    )


def test_only_an_image_comes_if_only_an_image_is_asked_for(raw):
    (part,) = raw.answer(generationConfig={"responseModalities": ["IMAGE"]})["candidates"][0]["content"]["parts"]
    assert part["inlineData"]["mimeType"] == "image/png"


def test_speech_models_answer_with_pcm(raw):
    for model, config in (("gemini-2.5-flash-tts", {}), ("gemini-2.5-flash", {"responseModalities": ["AUDIO"]})):
        response = raw.answer(model, generationConfig=config)
        (part,) = response["candidates"][0]["content"]["parts"]
        assert part["inlineData"]["mimeType"] == "audio/L16;codec=pcm;rate=24000"
        assert len(base64.b64decode(part["inlineData"]["data"])) % 2 == 0
        assert response["usageMetadata"]["candidatesTokensDetails"][0]["modality"] == "AUDIO"


def test_search_brings_grounding(raw):
    metadata = raw.answer(tools=[{"google_search": {}}])["candidates"][0]["groundingMetadata"]
    assert metadata["webSearchQueries"]
    assert metadata["groundingChunks"][0]["web"]["uri"].startswith("https://")


def test_mode_any_calls_an_allowed_function_with_fitting_arguments(raw):
    parameters = {
        "type": "OBJECT",
        "properties": {"city": {"type": "STRING"}, "days": {"type": "INTEGER"}},
        "required": ["city", "days"],
    }
    tools = [{"functionDeclarations": [{"name": "a"}, {"name": "weather", "parameters": parameters}]}]
    settings_ = {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["weather"]}}
    (part,) = raw.answer(tools=tools, toolConfig=settings_)["candidates"][0]["content"]["parts"]
    assert part["functionCall"]["name"] == "weather"
    assert isinstance(part["functionCall"]["args"]["days"], int)
    assert "text" in raw.answer(tools=tools)["candidates"][0]["content"]["parts"][0]


def test_answers_can_be_made_long(emulate, connect):
    raw = connect(emulate(options=Options(answer_bytes=5000)))
    assert len(text_of(raw.answer())) == 5000
