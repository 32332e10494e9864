"""
One file per setting: how a user may write it, in both cases, and what then is in the request.

``snake`` and ``camel`` are written by hand; ``request`` is what the SDK itself puts on the wire for one call with ``snake``.
After adding a file, or for a new release of the SDK::

    UPDATE_GOLDENS=1 python -m pytest tests/core/test_config_golden.py
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from google import genai
from google.genai import types

from airflow_gemini_batch.core.config import CLIENT_FIELDS, EMBED_FIELDS, embed_template, request_template
from airflow_gemini_batch.exceptions import InvalidConfig

GOLDEN = Path(__file__).parent / "golden"
CONFIG = sorted((GOLDEN / "config").glob("*.json"))
EMBEDDINGS = sorted((GOLDEN / "embeddings").glob("*.json"))

NAMES_OF_THE_USER = {"properties", "labels"}
"""Below these, names are data, and the request has them as they were written."""


def read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def in_camel_case(body: Any, *, data: bool = False) -> Any:
    """The SDK spells some inner names with underscores; the API takes both."""
    if isinstance(body, list):
        return [in_camel_case(one) for one in body]
    if isinstance(body, dict):
        return {
            name if data else re.sub("_([a-z])", lambda m: m[1].upper(), name): in_camel_case(
                one, data=name in NAMES_OF_THE_USER and not data
            )
            for name, one in body.items()
        }
    return body


def on_the_wire(serve: Any, path: Path, snake: dict[str, Any]) -> Any:
    server = serve(lambda path, n: (200, {"Content-Type": "application/json"}, b"{}"))
    with genai.Client(api_key="k", vertexai=False, http_options={"base_url": server.url}) as sdk:
        if path.parent.name == "config":
            sdk.models.generate_content(model="gemini-2.5-flash", contents="x", config=snake)
            wire = json.loads(server.seen[-1][3])
            del wire["contents"]
        else:
            sdk.models.embed_content(model="gemini-embedding-001", contents="x", config=snake)
            wire = json.loads(server.seen[-1][3])["requests"][0]
            del wire["content"], wire["model"]
    wire = in_camel_case(wire)
    wire.get("systemInstruction", {}).pop("role", None)  # the SDK names a role there; the API ignores it
    return {field: value for field, value in wire.items() if value != {}}


@pytest.mark.parametrize("path", CONFIG + EMBEDDINGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_golden_request_is_what_the_sdk_itself_sends(serve, path):
    golden = read(path)
    sent = on_the_wire(serve, path, golden["snake"])
    if os.environ.get("UPDATE_GOLDENS"):
        path.write_text(json.dumps(golden | {"request": sent}, indent=2, ensure_ascii=False) + "\n", "utf-8")
    assert read(path)["request"] == sent


@pytest.mark.parametrize("case", ["snake", "camel"])
@pytest.mark.parametrize("path", CONFIG, ids=lambda path: path.stem)
def test_a_setting_in_either_case_makes_exactly_the_golden_request(path, case):
    golden = read(path)
    assert request_template(golden[case], None) == golden["request"]


@pytest.mark.parametrize("path", CONFIG, ids=lambda path: path.stem)
def test_a_setting_of_the_sdks_own_object_makes_exactly_the_golden_request(path):
    golden = read(path)
    assert request_template(types.GenerateContentConfig(**golden["snake"]), None) == golden["request"]


@pytest.mark.parametrize("case", ["snake", "camel"])
@pytest.mark.parametrize("path", EMBEDDINGS, ids=lambda path: path.stem)
def test_a_setting_of_embeddings_in_either_case_makes_exactly_the_golden_request(path, case):
    golden = read(path)
    assert embed_template(golden[case]) == golden["request"]


def test_there_is_a_golden_file_for_every_setting_that_a_batch_takes():
    taken = {
        name for name, field in types.GenerateContentConfig.model_fields.items() if field.alias not in CLIENT_FIELDS
    }
    assert {path.stem for path in CONFIG} == taken
    fields = types.EmbedContentConfig.model_fields
    assert {path.stem for path in EMBEDDINGS} == {name for name, field in fields.items() if field.alias in EMBED_FIELDS}


@pytest.mark.parametrize("path", CONFIG + EMBEDDINGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_golden_file_shows_its_own_setting_in_both_cases(path):
    golden = read(path)
    assert list(golden) == ["snake", "camel", "request"]
    assert list(golden["snake"]) == [path.stem]
    assert golden["camel"] == in_camel_case(golden["snake"])


REFUSED = {
    "http_options": {"timeout": 1}, "should_return_http_response": True, "automatic_function_calling": {"disable": True},
    "routing_config": {"auto_mode": {}}, "model_selection_config": {}, "model_armor_config": {}, "audio_timestamp": True,
    "automatic_continuation": True, "generation_output_config": {},
}  # fmt: skip


@pytest.mark.parametrize("case", ["snake", "camel"])
@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_setting_that_no_batch_has_is_refused_in_either_case(name, case):
    config = {name: REFUSED[name]} if case == "snake" else in_camel_case({name: REFUSED[name]})
    with pytest.raises(InvalidConfig, match="cannot be used here"):
        request_template(config, None)


def test_every_setting_of_the_sdk_is_either_golden_or_refused():
    assert {path.stem for path in CONFIG} | REFUSED.keys() == types.GenerateContentConfig.model_fields.keys()
