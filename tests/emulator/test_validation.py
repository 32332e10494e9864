"""What a create refuses: bad lines of a file by number and column, bad fields of a body by path."""

from __future__ import annotations

import json

import pytest
from google.genai import errors
from hypothesis import given
from hypothesis import strategies as st

from airflow_gemini_batch.emulator import Emulator, Options
from airflow_gemini_batch.emulator.columns import explain
from airflow_gemini_batch.emulator.protojson import read
from airflow_gemini_batch.emulator.schema import MESSAGES, snake


@pytest.fixture(scope="module")
def gemini():
    """One emulator for all of these tests: what is refused leaves nothing behind."""
    with Emulator() as gemini:
        yield gemini


CONTENTS = '"contents":[{"parts":[{"text":"x"}]}]'
GOOD = '{"key":"a","request":{' + CONTENTS + "}}"


def refused(raw, *lines: str, embeds: bool = False) -> str:
    """The message that refuses these lines."""
    name = raw.upload("\n".join(lines).encode() + b"\n")
    reply = raw.post(
        {"inputConfig": {"fileName": name}},
        model="gemini-embedding-001" if embeds else "gemini-2.5-flash",
        embeds=embeds,
    )
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["status"]) == (400, 400, "INVALID_ARGUMENT")
    return str(error["message"])


def test_a_bad_line_is_refused_with_its_number(raw, gemini):
    bad = '{"key":"b","request":{' + CONTENTS + ',"thinking_config":{"thinking_budget":0}}}'
    column = bad.index('"thinking_config"') + len('"thinking_config"') + 1
    text = f"Error on line 2: invalid JSON, near column {column}: no such field: 'thinking_config'"
    before = gemini.jobs_created
    assert refused(raw, GOOD, bad, GOOD) == text
    assert gemini.jobs_created == before


def test_an_array_in_place_of_an_object_is_named(raw):
    bad = '{"request":{"systemInstruction":[{"text":"x"}]}}'
    column = bad.index("[") + 1
    assert (
        refused(raw, bad)
        == f"Error on line 1: invalid JSON, near column {column}: unexpected character: '['; expected '{{'"
    )


def test_several_bad_lines_come_in_one_message(raw):
    message = refused(raw, '{"custom_id":"a"}', GOOD, "[]", GOOD, "not json")
    assert [text.split(":")[0] for text in message.split("\n")] == [
        "Error on line 1",
        "Error on line 3",
        "Error on line 5",
    ]
    assert "no such field: 'custom_id'" in message


def test_the_sdk_raises_what_the_file_check_says(client, raw):
    name = raw.upload(b'{"key": "a", "request": {"cachedContents": "x"}}\n')
    with pytest.raises(errors.ClientError, match=r"Error on line 1: .*no such field: 'cachedContents'"):
        client.batches.create(model="gemini-2.5-flash", src=name)


@pytest.mark.parametrize(
    ("request_json", "wrong"),
    [
        ('{"thinkingConfig":{}}', "no such field: 'thinkingConfig'"),
        ('{"temperature":1}', "no such field: 'temperature'"),
        ('{"prompt":"x"}', "no such field: 'prompt'"),
        ('{"generationConfig":{"cachedContent":"x"}}', "no such field: 'cachedContent'"),
        ('{"generationConfig":{"thinking_budget":1}}', "no such field: 'thinking_budget'"),
        ('{"generationConfig":{"thinkingConfig":{"budget":1}}}', "no such field: 'budget'"),
        ('{"generationConfig":{"responseSchema":{"$ref":"x"}}}', "no such field: '$ref'"),
        (
            '{"generationConfig":{"responseSchema":{"additionalProperties":false}}}',
            "no such field: 'additionalProperties'",
        ),
        ('{"contents":[{"text":"x"}]}', "no such field: 'text'"),
        ('{"contents":"x"}', "unexpected character: '\"'; expected '['"),
        ('{"contents":{"parts":[]}}', "unexpected character: '{'; expected '['"),
        ('{"contents":[{"parts":[{"text":5}]}]}', "unexpected character: '5'; expected '\"'"),
        ('{"contents":[{"parts":["x"]}]}', "unexpected character: '\"'; expected '{'"),
        ('{"generationConfig":{"maxOutputTokens":"many"}}', 'invalid value for int32: "many"'),
        ('{"generationConfig":{"maxOutputTokens":1.5}}', "invalid value for int32: 1.5"),
        ('{"generationConfig":{"temperature":true}}', "invalid value for number: true"),
        ('{"tools":[{"googleSearches":{}}]}', "no such field: 'googleSearches'"),
        ('{"toolConfig":{"functionCallingConfig":{"mode":"ANY","names":[]}}}', "no such field: 'names'"),
        ('{"content":{"parts":[]}}', "no such field: 'content'"),
        (
            '{"contents":[{"parts":[{"text":"a","fileData":{"fileUri":"x"}}]}]}',
            "'fileData' has already been set (either directly or as part of a oneof)",
        ),
        ('{"tools":[{"googleSearch":{"excludeDomains":["a.com"]}}]}', "no such field: 'excludeDomains'"),
        ('{"tools":[{"googleSearch":{"blockingConfidence":"X"}}]}', "no such field: 'blockingConfidence'"),
        ('{"tools":[{"googleMaps":{"groundingTypes":{}}}]}', "no such field: 'groundingTypes'"),
        (
            '{"toolConfig":{"functionCallingConfig":{"streamFunctionCallArguments":true}}}',
            "no such field: 'streamFunctionCallArguments'",
        ),
        ('{"contents":[{"parts":[{"functionCall":{"willContinue":true}}]}]}', "no such field: 'willContinue'"),
        ('{"contents":[{"parts":[{"inlineData":{"data":"***"}}]}]}', 'invalid value for bytes: "***"'),
    ],
)
def test_a_field_at_the_wrong_level_or_of_the_wrong_type_is_refused(raw, request_json, wrong):
    message = refused(raw, '{"key":"a","request":' + request_json + "}")
    assert message.startswith("Error on line 1: invalid JSON, near column ")
    assert message.endswith(f": {wrong}")


@pytest.mark.parametrize("data", ["", "aGk=", "aGk", "a+/-_", "aG\\nk=\\n"])
def test_bytes_may_come_in_either_alphabet_without_padding_and_in_lines(raw, data):
    name = raw.upload(
        b'{"key":"a","request":{"contents":[{"parts":[{"inlineData":{"data":"' + data.encode() + b'"}}]}]}}'
    )
    assert raw.post({"inputConfig": {"fileName": name}}).status_code == 200


@pytest.mark.parametrize(
    "bad",
    ['{"key":"a"', '{"key":"a",}', '{"key":"a"} x', '{"key":"\x01"}', "\ufeff{}", '{"key":\\u0041}', "nul", '"a"'],
)
def test_lines_that_are_not_json_objects_are_refused(raw, bad):
    assert refused(raw, bad).startswith("Error on line 1: ")


def test_bytes_that_are_not_utf8_are_refused(raw):
    name = raw.upload(b'{"key":"\xff"}\n')
    assert "line 1: invalid UTF-8" in raw.post({"inputConfig": {"fileName": name}}).json()["error"]["message"]


def test_requests_of_the_other_kind_are_refused(raw):
    assert "no such field: 'contents'" in refused(raw, GOOD, embeds=True)


def test_an_empty_file_is_refused_and_blank_lines_are_not(raw):
    assert "no requests" in refused(raw, "", " ")
    name = raw.upload(f"\n{GOOD}\n\n{GOOD}".encode())
    job = raw.post({"inputConfig": {"fileName": name}}).json()
    assert job["metadata"]["batchStats"]["requestCount"] == "2"


def test_a_full_request_in_either_spelling_passes(raw):
    request = {
        "model": "models/x",
        "contents": [
            {"role": "user", "parts": [{"text": "x"}, {"inlineData": {"mimeType": "image/png", "data": "AAAA"}}]},
            {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {"any_thing": [1]}}}, {"thought": True}]},
            {"role": "user", "parts": [{"fileData": {"mimeType": "video/mp4", "fileUri": "u"}, "videoMetadata": {}}]},
        ],
        "systemInstruction": {"parts": [{"text": "brief"}]},
        "tools": [
            {"functionDeclarations": [{"name": "f", "parameters": {"properties": {"any_thing": {"type": "STRING"}}}}]},
            {"googleSearch": {}}, {"codeExecution": {}}, {"urlContext": {}},
        ],
        "toolConfig": {"functionCallingConfig": {"mode": "AUTO"}},
        "safetySettings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}],
        "labels": {"team": "a"},
        "generationConfig": {
            "temperature": 0.5, "topP": 0.9, "topK": 40.0, "maxOutputTokens": "100", "stopSequences": ["."], "seed": 1,
            "candidateCount": 1, "responseMimeType": "application/json", "responseModalities": ["TEXT"],
            "responseSchema": {"type": "ARRAY", "items": {"anyOf": [{"type": "STRING"}]}, "minItems": "1"},
            "thinkingConfig": {"thinkingBudget": -1, "includeThoughts": True}, "imageConfig": {"aspectRatio": "1:1"},
            "speechConfig": {"voiceConfig": {"prebuiltVoiceConfig": {"voiceName": "Kore"}}},
            "mediaResolution": "MEDIA_RESOLUTION_LOW",
            "presencePenalty": 0.1, "frequencyPenalty": 0.1, "responseLogprobs": False, "logprobs": None,
        },
    }  # fmt: skip

    def snaked(value, message):
        if isinstance(value, list):
            return [snaked(one, message) for one in value]
        if not isinstance(value, dict) or message not in MESSAGES:
            return value
        return {snake(name): snaked(one, MESSAGES[message][name][1].removeprefix("[]")) for name, one in value.items()}

    one, two = (
        raw.create({"key": "a", "request": spelled}) for spelled in (request, snaked(request, "GenerateContentRequest"))
    )
    assert raw.results(one) == raw.results(two)


def test_an_unknown_field_of_a_create_is_refused_with_its_path(raw, gemini):
    requests = [{"request": {"contents": [], "thinkingConfig": {}}}, {"key": "b", "request": {}}]
    before = gemini.jobs_created
    error = raw.post({"inputConfig": {"requests": {"requests": requests}}}).json()["error"]
    at = "batch.input_config.requests.requests"
    unknown = "Invalid JSON payload received. Unknown name"
    first = f"{unknown} \"thinkingConfig\" at '{at}[0].request': Cannot find field."
    second = f"{unknown} \"key\" at '{at}[1]': Cannot find field."
    assert (error["code"], error["status"], error["message"]) == (400, "INVALID_ARGUMENT", f"{first}\n{second}")
    (detail,) = error["details"]
    assert detail["@type"] == "type.googleapis.com/google.rpc.BadRequest"
    assert detail["fieldViolations"][0] == {
        "field": "batch.input_config.requests.requests[0].request",
        "description": first,
    }
    assert gemini.jobs_created == before


@pytest.mark.parametrize(
    ("batch", "wrong"),
    [
        ({"displayName": 5}, "Invalid value at 'batch.display_name' (TYPE_STRING), 5"),
        ({"priority": "high"}, "Invalid value at 'batch.priority' (TYPE_INT64), \"high\""),
        ({"inputConfig": []}, "Proto field is not repeating, cannot start list."),
        ({"inputConfig": {"requests": []}}, "Proto field is not repeating, cannot start list."),
        ({"dest": "x"}, "Unknown name \"dest\" at 'batch'"),
        ({}, "input_config is not set"),
        ({"inputConfig": {"requests": {"requests": []}}}, "input_config is not set or has no requests"),
        ({"inputConfig": {"fileName": "files/x", "requests": {"requests": [{}]}}}, "oneof"),
    ],
)
def test_a_body_of_the_wrong_shape_is_refused(raw, batch, wrong):
    reply = raw.post(batch)
    assert reply.status_code == 400
    assert wrong in reply.json()["error"]["message"]


def test_a_body_without_the_batch_wrapper_or_without_json_is_refused(raw):
    path = "/v1beta/models/gemini-2.5-flash:batchGenerateContent"
    unwrapped = raw.http.post(path, json={"inputConfig": {"fileName": "files/x"}})
    assert 'Unknown name "inputConfig": Cannot find field.' in unwrapped.json()["error"]["message"]
    assert raw.http.post(path, content=b"{").status_code == 400


def test_keys_come_back_word_for_word(raw):
    keys = ["ä 💡 \u2028", '"quoted"\\', "  padded ", "0", "a" * 2000, "row\n1"]
    name = raw.upload(
        "".join(
            json.dumps({"key": key, "request": {"contents": [{"parts": [{"text": "x"}]}]}}) + "\n" for key in keys
        ).encode()
    )
    job = raw.post({"inputConfig": {"fileName": name}}).json()["name"]
    assert [row["key"] for row in raw.results(job)] == keys


def test_a_key_may_be_missing_or_used_twice(raw, line):
    keyless = line("a")
    del keyless["key"]
    rows = raw.results(raw.create(keyless, line("b"), line("b")))
    assert [row.get("key") for row in rows] == [None, "b", "b"]


def test_what_is_not_known_for_sure_can_be_switched(emulate, connect, line):
    strict = connect(emulate(options=Options(unique_keys=True)))
    assert "duplicate key: 'a'" in refused(strict, GOOD, GOOD)
    lenient = connect(emulate(options=Options(bare_requests=True, flat_generation_fields=True)))
    flat = line("a", temperature=0.5)
    bare = {"contents": [{"parts": [{"text": "x"}]}]}
    assert len(lenient.results(lenient.create(flat, bare))) == 2
    assert "no such field: 'nope'" in refused(lenient, '{"key":"a","request":{"nope":1}}')


def test_a_request_the_model_cannot_take_is_a_row_error_and_the_job_succeeds(raw, line):
    empty = {"key": "b", "request": {"contents": []}}
    cached = line("c", cachedContent="cachedContents/x", systemInstruction={"parts": [{"text": "brief"}]})
    job = raw.create(line("a"), empty, cached, line("d", generationConfig={"temperature": 9}))
    operation, rows = raw.get(job), raw.results(job)
    assert operation["metadata"]["state"] == "BATCH_STATE_SUCCEEDED"
    assert operation["metadata"]["batchStats"] == {
        "requestCount": "4",
        "successfulRequestCount": "1",
        "failedRequestCount": "3",
    }
    assert [row.get("error", {}).get("code") for row in rows] == [None, 3, 3, 3]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["key", "request", "contents", "parts", "text", "generationConfig", "seed", "x"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@given(VALUES)
def test_both_readers_agree_on_what_is_wrong(value):
    problems: list = []
    read(value, "GenerateLine", "", problems)
    assert bool(explain(json.dumps(value), "GenerateLine")) is bool(problems)


@given(VALUES, st.integers(0, 40))
def test_a_cut_line_is_always_explained(value, end):
    text = json.dumps({"key": "a", "request": value})
    assert explain(text[: min(end, len(text) - 1)], "GenerateLine")
