"""The countTokens call, spoken to by the real SDK and by plain HTTP."""

from __future__ import annotations

import pytest

from airflow_gemini_batch.emulator import Options

FOX = "The quick brown fox jumps over the lazy dog."
CONTENTS = [{"parts": [{"text": FOX}], "role": "user"}]
COUNT = "models/gemini-2.5-flash:countTokens"


def test_the_sdk_counts_a_text(client):
    counted = client.models.count_tokens(model="gemini-2.5-flash", contents=FOX)
    assert counted.total_tokens == 11


def test_what_is_counted_is_what_an_answer_says_it_used(raw):
    request = {"contents": CONTENTS, "systemInstruction": {"parts": [{"text": "Be brief."}]}}
    counted = raw.json("POST", COUNT, json={"generateContentRequest": {"model": "models/gemini-2.5-flash", **request}})
    used = raw.answer(**request)["usageMetadata"]
    assert counted["totalTokens"] == used["promptTokenCount"]
    assert counted["promptTokensDetails"] == used["promptTokensDetails"]


def test_both_spellings_are_read(raw):
    snake = {"generate_content_request": {"contents": CONTENTS, "system_instruction": {"parts": [{"text": "x" * 40}]}}}
    assert raw.json("POST", COUNT, json=snake)["totalTokens"] == 21


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "contents is not specified"),
        ({"contents": CONTENTS, "generateContentRequest": {"contents": CONTENTS}}, "mutually exclusive"),
        ({"content": CONTENTS}, "Cannot find field"),
        ({"contents": 5}, "Invalid value at 'contents'"),
    ],
)
def test_what_cannot_be_counted_is_refused(raw, body, said):
    reply = raw.http.post(f"/v1beta/{COUNT}", json=body)
    assert reply.status_code == 400
    assert said in reply.json()["error"]["message"]


def test_only_a_model_that_is_there_counts(emulate, connect):
    raw = connect(emulate(options=Options(models=("my-model",))))
    reply = raw.http.post(f"/v1beta/{COUNT}", json={"contents": CONTENTS})
    assert reply.status_code == 404
    assert "not supported for countTokens" in reply.json()["error"]["message"]
    assert raw.json("POST", "models/my-model:countTokens", json={"contents": CONTENTS})["totalTokens"] == 11
