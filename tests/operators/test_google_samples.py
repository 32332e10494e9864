"""
Google's own batch samples, as tasks: the guide (https://ai.google.dev/gemini-api/docs/batch-api) and the cookbook's notebook
(quickstarts/Batch_mode.ipynb). Files are taken as they stand there, with their names and spellings.
"""

from __future__ import annotations

import json
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from google import genai
from google.genai import types
from pydantic import BaseModel

from airflow_gemini_batch.emulator import Emulator
from airflow_gemini_batch.operators.embeddings import GeminiBatchEmbeddingsOperator

from ..conftest import landed, run_operator, task_context
from .test_answers import requests_of

PHOTOSYNTHESIS, PIZZA = (
    "Describe the process of photosynthesis.",
    "What are the main ingredients in a Margherita pizza?",
)
LETTERS = [f"A big letter {letter} surrounded by animals starting with the {letter} letter" for letter in "AB"]


def write_lines(path: Path, lines: list[dict[str, Any]]) -> str:
    with path.open("w") as f:
        for line in lines:
            f.write(json.dumps(line) + "\n")
    return str(path)


def asking(text: str, **more: Any) -> dict[str, Any]:
    return {"contents": [{"parts": [{"text": text}]}], **more}


def one_by_one(emulator: Emulator, model: str, requests: list[dict[str, Any]]) -> list[types.GenerateContentResponse]:
    """The answers that the SDK's own inline batch gets for these samples, in order."""
    with genai.Client(api_key="test-key", vertexai=False, http_options={"base_url": emulator.url}) as sdk:
        job = sdk.batches.create(model=model, src=requests, config={"display_name": "inlined-requests-job-1"})
        job = sdk.batches.get(name=job.name)
    return [one.response for one in job.dest.inlined_responses]


# Inline ------------------------------------------------------------------------------------------------------


def test_inline_requests_are_rows(batch, emulator):
    """The sample's list of contents, as strings; the answers are those that the sample itself gets."""
    jokes = ["Tell me a one-sentence joke.", "Why is the sky blue?"]
    sample = [{"contents": [{"parts": [{"text": text}], "role": "user"}]} for text in jokes]
    rows = landed(batch(model="models/gemini-3-flash-preview", source=jokes))
    assert [row["text"] for row in rows] == [one.text for one in one_by_one(emulator, "gemini-3-flash-preview", sample)]


def test_an_inline_request_pasted_as_it_is_says_what_to_write(batch, emulator):
    sample = [
        {"contents": [{"parts": [{"text": "Who won the euro 2025?"}]}], "config": {"tools": [{"google_search": {}}]}}
    ]
    with pytest.raises(Exception, match=r'row 0: this is a request without its wrapper. Write \{"key"'):
        batch(source=sample)
    with pytest.raises(Exception, match=r"row 0: its request has the field 'config'.* generationConfig, and .*tools"):
        batch(source=[{"key": "euro", "request": sample[0]}])
    with pytest.raises(Exception, match="metadata is for requests sent inline; a file has only the key"):
        batch(source=[{"request": asking(PHOTOSYNTHESIS), "metadata": {"key": "request-1"}}])
    assert emulator.jobs_created == 0


def test_a_system_instruction_for_one_of_the_requests(batch, emulator):
    rows = [
        {"text": "Write a short poem about a cloud.", "who": None},
        {"text": "Write a short poem about a cat.", "who": "You are a cat. Your name is Neko."},
    ]
    sample = [
        asking(rows[0]["text"]),
        asking(rows[1]["text"], config={"system_instruction": {"parts": [{"text": rows[1]["who"]}]}}),
    ]
    poems = landed(batch(source=rows, prompt="{text}", config={"system_instruction": "{who}"}, delete_remote="never"))
    sent = [line["request"].get("systemInstruction") for line in requests_of(emulator)]
    assert sent == [None, {"parts": [{"text": "You are a cat. Your name is Neko."}]}]
    assert poems[0]["text"] == one_by_one(emulator, "gemini-2.5-flash", sample)[0].text


def test_the_search_tool_for_all_or_for_one_of_the_requests(batch):
    questions = ["Who won the euro 1998?", "Who won the euro 2025?"]
    settings = {"config": {"tools": [{"google_search": {}}]}, "include": ["grounding"]}
    rows = landed(batch(source=questions, **settings))
    assert all(json.loads(row["grounding"])["webSearchQueries"] for row in rows)
    ready_made = [
        {"key": "1998", "request": asking(questions[0])},
        {"key": "2025", "request": asking(questions[1], tools=[{"google_search": {}}])},
    ]
    rows = landed(batch(task_context(run_id="run-2"), source=ready_made, include=["grounding"]))
    assert [row["grounding"] is not None for row in rows] == [False, True]


class Recipe(BaseModel):
    recipe_name: str
    ingredients: list[str]


@pytest.mark.parametrize("file_format", ["parquet", "jsonl", "csv"])
def test_structured_output_of_a_list_of_models(batch, file_format):
    questions = [
        "List a few popular cookie recipes, and include the amounts of ingredients.",
        "List a few popular gluten free cookie recipes, and include the amounts of ingredients.",
    ]
    rows = landed(batch(source=questions, output_schema=list[Recipe], file_format=file_format))
    for row in rows:
        output = json.loads(row["output"]) if file_format == "csv" else row["output"]
        assert [Recipe.model_validate(one) for one in output]
        assert output == json.loads(row["text"])


def test_structured_output_as_the_javascript_sample_spells_it(batch):
    text = {"type": "STRING", "description": "Name of the recipe", "nullable": False}
    schema = {
        "type": "ARRAY",
        "items": {
            "type": "OBJECT",
            "properties": {"recipeName": text, "ingredients": {"type": "ARRAY", "items": text}},
            "required": ["recipeName"],
        },
    }
    config = {"responseMimeType": "application/json", "responseSchema": schema}
    (row,) = landed(batch(source=["List a few popular cookie recipes"], config=config))
    assert isinstance(json.loads(row["text"])[0]["recipeName"], str)


def test_a_type_inside_config_is_told_where_it_goes(batch, emulator):
    """The Python sample's own spelling; the SDK puts types into JSON only on its way to the service."""
    config = {"response_mime_type": "application/json", "response_schema": list[Recipe]}
    with pytest.raises(Exception, match="A model or type goes into the task's output_schema"):
        batch(source=["List a few popular cookie recipes"], config=config)
    assert emulator.jobs_created == 0


def test_a_schema_of_the_task_is_asked_of_ready_made_requests_with_settings_of_their_own(batch):
    source = [{"key": "cookies", "request": asking("Cookies?", generation_config={"temperature": 0.7})}]
    (row,) = landed(batch(source=source, output_schema=Recipe))
    assert Recipe.model_validate(row["output"])


# Files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["my-batch-requests.json", "my-batch-requests.jsonl"])
def test_an_input_file_under_either_name(batch, tmp_path, name):
    """The guide and the notebook call their JSON lines .json, or .jsonl."""
    lines = [
        {"key": "request-1", "request": asking(PHOTOSYNTHESIS, generation_config={"temperature": 0.7})},
        {"key": "request-2", "request": asking(PIZZA)},
    ]
    path = write_lines(tmp_path / name, lines)
    rows = landed(batch(source=path))
    assert [(row["key"], row["status"]) for row in rows] == [("request-1", "ok"), ("request-2", "ok")]


def test_bare_requests_of_the_curl_sample_say_what_to_write(batch, emulator, tmp_path):
    path = write_lines(
        tmp_path / "batch_input.json", [asking(PHOTOSYNTHESIS, generationConfig={"temperature": 0.7}), asking(PIZZA)]
    )
    with pytest.raises(Exception, match=r'batch_input.json:1: this is a request without its wrapper. Write \{"key"'):
        batch(source=path)
    assert emulator.jobs_created == 0


def test_embeddings_with_dimensions_of_each_rows_own(connection, tmp_path):
    lines = [
        {"key": "request_1", "request": {"output_dimensionality": 3, "content": {"parts": [{"text": "1"}]}}},
        {"key": "request_2", "request": {"output_dimensionality": 4, "content": {"parts": [{"text": "2"}]}}},
    ]
    manifest = run_operator(
        GeminiBatchEmbeddingsOperator(
            task_id="embed", model="gemini-embedding-001", output=str(tmp_path / "out"), poll_interval=0.05,
            source=write_lines(tmp_path / "embeddings_batch_requests.jsonl", lines),
        )
    )  # fmt: skip
    assert [(row["key"], len(row["embedding"])) for row in landed(manifest)] == [("request_1", 3), ("request_2", 4)]


# Images in ---------------------------------------------------------------------------------------------------


def test_an_image_that_the_user_uploaded_is_named_by_its_uri(batch, emulator, tmp_path):
    """The notebook's way: a request with the uri that the Files API gave, here beside one without an image."""
    (tmp_path / "jetpack.jpg").write_bytes(b"\xff\xd8\xff\xe0 a jetpack")
    with genai.Client(api_key="test-key", vertexai=False, http_options={"base_url": emulator.url}) as sdk:
        image = sdk.files.upload(file=tmp_path / "jetpack.jpg")
    question = [
        {"text": "What is in this image? Describe it in detail."},
        {"file_data": {"file_uri": image.uri, "mime_type": image.mime_type}},
    ]
    lines = [
        {"key": "request_1", "request": asking("Explain how AI works in a few words")},
        {"key": "request_2_image", "request": {"contents": [{"parts": question}]}},
    ]
    rows = landed(batch(source=write_lines(tmp_path / "batch_requests_with_image.json", lines)))
    assert [(row["key"], row["status"]) for row in rows] == [("request_1", "ok"), ("request_2_image", "ok")]
    assert rows[1]["prompt_tokens"] > 250  # an image counts 258


def test_an_image_inside_the_request_and_several_turns(batch, emulator):
    image = {"mime_type": "image/png", "data": b64encode(b"\x89PNG\r\n\x1a\n small").decode()}
    contents = [
        {"role": "user", "parts": [{"inline_data": image}, {"text": "What is this?"}]},
        {"role": "model", "parts": [{"text": "A small picture."}]},
        {"role": "user", "parts": [{"text": "Of what?"}]},
    ]
    source = [
        {"key": "chat", "request": {"contents": contents, "system_instruction": {"parts": [{"text": "Be brief."}]}}}
    ]
    (row,) = landed(batch(source=source, delete_remote="never"))
    assert row["status"] == "ok"
    assert "Of what" in row["text"]
    assert requests_of(emulator)[0]["request"]["contents"] == contents  # letter by letter


def test_an_image_of_the_users_own_disk(batch, emulator, tmp_path):
    """The same question the package's way: the image is uploaded, waited for, and removed."""
    (tmp_path / "jetpack.jpg").write_bytes(b"\xff\xd8\xff\xe0 a jetpack")
    (row,) = landed(
        batch(source=[{"picture": str(tmp_path / "jetpack.jpg")}], prompt="What is in this image?", media=["picture"])
    )
    assert row["status"] == "ok"
    assert row["prompt_tokens"] > 250
    assert not [file for file in emulator.files if file["mimeType"] == "image/jpeg"]


# Images out --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modalities", ["responseModalities", "response_modalities"])
def test_images_of_a_file_of_requests(batch, tmp_path, modalities):
    lines = [
        {"key": f"request-{n}", "request": asking(text, generation_config={modalities: ["TEXT", "IMAGE"]})}
        for n, text in enumerate(LETTERS, 1)
    ]
    source = write_lines(tmp_path / "my-batch-image-requests.jsonl", lines)
    rows = landed(batch(model="gemini-2.5-flash-image", source=source))
    for row in rows:
        assert [Path(file).name for file in row["media"]] == [f"{row['key']}-0.png"]
        assert Path(row["media"][0]).read_bytes().startswith(b"\x89PNG")
        assert row["text"]


def test_images_of_rows_of_any_aspect_ratio(batch, emulator):
    source = [{"what": text, "shape": shape} for text, shape in zip(LETTERS, ["16:9", None], strict=True)]
    config = {"response_modalities": ["IMAGE"], "image_config": {"aspect_ratio": "{shape}"}}
    rows = landed(
        batch(model="gemini-3-pro-image-preview", source=source, prompt="{what}", config=config, delete_remote="never")
    )
    assert [len(row["media"]) for row in rows] == [1, 1]
    sent = [line["request"]["generationConfig"].get("imageConfig") for line in requests_of(emulator)]
    assert sent == [{"aspectRatio": "16:9"}, None]
