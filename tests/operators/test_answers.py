"""What can be asked and what comes back, through the operators and the emulator: each row under its own key, in any shape."""

from __future__ import annotations

import io
import json
import wave
from collections.abc import Iterator
from datetime import date, datetime
from decimal import Decimal
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import BaseModel, Field, HttpUrl

from airflow_gemini_batch.core.shards import Limits
from airflow_gemini_batch.emulator import Faults
from airflow_gemini_batch.exceptions import InvalidConfig, InvalidInput, SettingsChanged
from airflow_gemini_batch.operators.embeddings import GeminiBatchEmbeddingsOperator

from ..conftest import landed, run_operator, task_context

REVIEWS = [{"id": f"r{n}", "text": f"Review number {n}", "stars": n % 5, "heat": n / 10} for n in range(7)]


def requests_of(emulator: Any) -> list[dict[str, Any]]:
    """Every request line that the emulator's jobs were made from."""
    return [orjson.loads(line) for job in emulator.jobs for line in emulator.read_file(job.input_file).splitlines()]


# Several prompts ---------------------------------------------------------------------------------------------


def test_several_prompts_give_each_row_an_answer_under_each_name(batch):
    prompts = {
        "sentiment": "Sentiment of: {text}",
        "fr-CA": "Into French: {text}",
        "themes": "Themes in {text}, {stars} stars",
    }
    manifest = batch(source=REVIEWS, prompt=prompts, key="id", keep=["stars"])
    rows = landed(manifest)
    assert manifest["rows"] == 21
    assert manifest["counts"]["ok"] == 21
    assert [(row["key"], row["prompt"]) for row in rows] == [(r["id"], name) for r in REVIEWS for name in prompts]
    assert len({row["text"] for row in rows}) == 21
    assert all(row["stars"] == int(row["key"][1:]) % 5 for row in rows)


def test_a_key_used_twice_is_named_once_with_several_prompts(batch):
    with pytest.raises(Exception, match="row 2: the key 'a' was used before, at row 0"):
        batch(source=[{"k": "a"}, {"k": "b"}, {"k": "a"}], prompt={"x": "{k}", "y": "{k}?"}, key="k")


@pytest.mark.parametrize(
    ("prompt", "said"),
    [({}, "empty mapping"), ({"a b": "{text}"}, "prompt name 'a b'"), ({"a": "{nope}"}, "nope"), ({"a": None}, "'a'")],
)
def test_prompts_that_cannot_be_used_are_named(batch, emulator, prompt, said):
    with pytest.raises(Exception, match=said):
        batch(source=REVIEWS, prompt=prompt)
    assert emulator.jobs_created == 0


def test_rows_of_several_prompts_that_failed_are_sent_again_alone(batch, emulator):
    emulator.faults = Faults(drop_keys={"fr/r2", "sum/r5"})
    manifest = batch(source=REVIEWS, prompt={"sum": "Sum up {text}", "fr": "French: {text}"}, key="id", max_rounds=2)
    assert manifest["rounds"] == 2
    missing = [(row["key"], row["prompt"]) for row in landed(manifest) if row["status"] == "missing"]
    assert sorted(missing) == [("r2", "fr"), ("r5", "sum")]
    assert manifest["counts"] | {"ok": 12, "missing": 2} == manifest["counts"]


def test_a_ratio_of_one_lets_the_task_succeed_whatever_came_back(batch):
    """A night whose only reviews are blank is no failure, if the DAG says so."""
    assert batch(source=["", " "], max_failed_ratio=1)["counts"]["empty"] == 2


# Settings of each row's own ----------------------------------------------------------------------------------


def test_a_setting_may_be_each_rows_own(batch, emulator):
    rows = [{"id": n, "heat": heat, "most": 100 + n, "budget": n * 10} for n, heat in enumerate([0.5, None, 1.5])]
    config = {
        "temperature": "{heat}", "max_output_tokens": "{most}", "top_k": 3,
        "thinking_config": {"thinking_budget": "{budget}"},
    }  # fmt: skip
    batch(source=rows, prompt="Number {id}", config=config, key="id", delete_remote="never")
    sent = {line["key"]: line["request"]["generationConfig"] for line in requests_of(emulator)}
    assert sent["0"] == {"topK": 3, "temperature": 0.5, "maxOutputTokens": 100, "thinkingConfig": {"thinkingBudget": 0}}
    assert sent["1"] == {"topK": 3, "maxOutputTokens": 101, "thinkingConfig": {"thinkingBudget": 10}}
    assert sent["2"]["temperature"] == 1.5


def test_a_rows_setting_that_cannot_be_used_names_the_row_and_the_column(batch, emulator):
    rows = [{"id": 1, "heat": 0.5}, {"id": 2, "heat": 5}]
    with pytest.raises(Exception, match=r"row 1: the column 'heat' holds 5.*temperature.*0 to 2"):
        batch(source=rows, prompt="{id}", config={"temperature": "{heat}"})
    assert emulator.jobs_created == 0


def test_a_system_instruction_may_be_each_rows_own(batch, emulator):
    rows = [{"id": 1, "tone": "Be kind."}, {"id": 2, "tone": None}]
    batch(source=rows, prompt="{id}", key="id", config={"system_instruction": "{tone}"}, delete_remote="never")
    sent = {line["key"]: line["request"].get("systemInstruction") for line in requests_of(emulator)}
    assert sent == {"1": {"parts": [{"text": "Be kind."}]}, "2": None}


# Output schemas ----------------------------------------------------------------------------------------------


class Finding(BaseModel):
    name: str
    weight: float


class Verdict(BaseModel):
    mood: Literal["good", "bad", "mixed"]
    stars: int = Field(ge=0, le=1_000_000)
    findings: list[Finding]
    remark: str | None = None


@pytest.mark.parametrize("file_format", ["parquet", "jsonl", "csv"])
def test_structured_answers_land_typed(batch, file_format):
    manifest = batch(source=REVIEWS, prompt="Judge {text}", key="id", output_schema=Verdict, file_format=file_format)
    rows = landed(manifest)
    assert manifest["counts"]["ok"] == len(REVIEWS)
    for row in rows:
        output = json.loads(row["output"]) if file_format == "csv" else row["output"]
        assert Verdict.model_validate(output) == Verdict.model_validate_json(row["text"])
    if file_format == "parquet":
        column = pq.read_schema(manifest["files"][0]).field("output").type
        finding = pa.struct([("name", pa.string()), ("weight", pa.float64())])
        assert column == pa.struct([
            ("mood", pa.string()), ("stars", pa.int64()), ("findings", pa.list_(finding)), ("remark", pa.string()),
        ])  # fmt: skip


class Strict(BaseModel):
    n: int = Field(ge=1, le=99, multiple_of=100)  # the pretend model does not know of it: multipleOf is not sent


def test_an_answer_that_is_not_what_was_asked_for_keeps_its_text(batch, tmp_path):
    with pytest.raises(Exception, match=r"Not one of 2 rows is ok\. Rows: invalid_output 2"):
        batch(source=["a", "b"], output_schema=Strict)
    for row in pq.read_table(tmp_path / "out" / "part-r0-00000.parquet").to_pylist():
        assert row["status"] == "invalid_output"
        assert row["output"] is None
        assert isinstance(json.loads(row["text"])["n"], int)
        assert row["error_message"].startswith("$.n: ")


class Size(IntEnum):
    SMALL = 1
    LARGE = 2


class Invoice(BaseModel):
    day: date
    at: datetime
    ident: UUID
    total: Decimal
    page: HttpUrl
    size: Size
    version: Literal[3]
    share: float = Field(gt=0, lt=1)


def test_dates_ids_and_numbered_choices_are_answered_as_they_were_asked_for(batch):
    rows = landed(batch(source=[f"invoice {n}" for n in range(20)], output_schema=Invoice, max_failed_ratio=0))
    assert all(Invoice.model_validate(row["output"]) for row in rows)


def test_a_schema_beside_a_schema_is_refused(batch, emulator):
    with pytest.raises(Exception, match="output_schema both say"):
        batch(source=["a"], output_schema=Verdict, config={"response_schema": {"type": "OBJECT"}})
    assert emulator.jobs_created == 0


# Embeddings --------------------------------------------------------------------------------------------------


@pytest.fixture
def embed(connection, tmp_path):
    def run(**settings: Any) -> Any:
        defaults = {
            "task_id": "e",
            "model": "gemini-embedding-001",
            "output": str(tmp_path / "vectors"),
            "deferrable": True,
        }
        return run_operator(GeminiBatchEmbeddingsOperator(poll_interval=0.05, **(defaults | settings)))

    return run


def test_embeddings_land_under_their_keys_as_float32_lists(embed):
    manifest = embed(source=REVIEWS, text="{text}", key="id", keep=["text"], dimensions=16)
    rows = landed(manifest)
    assert [row["key"] for row in rows] == [r["id"] for r in REVIEWS]
    assert {len(row["embedding"]) for row in rows} == {16}
    assert len({tuple(row["embedding"]) for row in rows}) == len(REVIEWS)
    assert [row["text"] for row in rows] == [r["text"] for r in REVIEWS]  # kept: the table has no text of its own
    assert pq.read_schema(manifest["files"][0]).field("embedding").type == pa.list_(pa.float32())
    assert manifest["usage"]["prompt_tokens"] > 0


def test_every_row_may_have_its_own_dimensions_title_and_task(embed, emulator):
    rows = [{"id": n, "body": f"text {n}", "dims": 8 + n, "title": f"Title {n}"} for n in range(3)]
    manifest = embed(
        source=rows, text="{body}", key="id", dimensions="{dims}", task_type="RETRIEVAL_DOCUMENT", title_column="title",
        delete_remote="never",
    )  # fmt: skip
    assert [len(row["embedding"]) for row in landed(manifest)] == [8, 9, 10]
    assert [line["request"]["title"] for line in requests_of(emulator)] == ["Title 0", "Title 1", "Title 2"]
    assert {line["request"]["taskType"] for line in requests_of(emulator)} == {"RETRIEVAL_DOCUMENT"}


def test_ready_made_embedding_lines_are_checked_for_their_own_dimensions(embed, tmp_path):
    """Google's own sample: each line with a dimension of its own."""
    lines = [
        {
            "key": f"request_{n}",
            "request": {"output_dimensionality": size, "content": {"parts": [{"text": "Explain it"}]}},
        }
        for n, size in enumerate([64, 32])
    ]
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join(map(orjson.dumps, lines)))
    assert [len(row["embedding"]) for row in landed(embed(source=str(path)))] == [64, 32]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"task_type": "SEARCH"}, "task_type is 'SEARCH'"),
        ({"dimensions": 0}, "dimensions is 0"),
        ({"title_column": "text"}, "title_column goes with"),
        ({"dimensions": "many"}, "dimensions is 'many'"),
    ],
)
def test_settings_that_embeddings_do_not_have_are_named(embed, emulator, settings, said):
    with pytest.raises(Exception, match=said):
        embed(source=REVIEWS, text="{text}", **settings)
    assert emulator.jobs_created == 0


def test_errors_about_embeddings_name_their_own_parameters(embed, emulator):
    for settings, said in [
        ({"text": "{txt}"}, "^text names the column 'txt'"),
        ({"text": "{text}", "dimensions": "{dims}"}, "^dimensions names the column 'dims'"),
        ({}, "without a text, rows must be strings .* Give a text with"),
    ]:
        with pytest.raises(InvalidInput, match=said):
            embed(source=REVIEWS, key="id", **settings)
    rows = landed(embed(source=[{"id": 1, "text": " "}, {"id": 2, "text": "x"}], text="{text}", key="id"))
    assert rows[0]["error_message"] == "the text is empty, so nothing was sent"
    with pytest.raises(SettingsChanged, match=r": dimensions, text\. Set on_changed"):
        embed(source=[{"id": 2, "text": "x"}], text="a {text}", key="id", dimensions=8)


def test_prompts_do_not_go_with_embeddings():
    with pytest.raises(InvalidConfig, match="output_schema, system_instruction"):
        GeminiBatchEmbeddingsOperator(
            task_id="e", model="m", source=[], output="/x", system_instruction="x", output_schema=Verdict
        )


# Media that go in --------------------------------------------------------------------------------------------


def test_media_go_before_the_text_once_per_content_and_a_missing_one_costs_one_row(batch, emulator, tmp_path):
    for name, content in {"a.png": b"\x89PNG 1", "b.png": b"\x89PNG 1", "c.pdf": b"%PDF-1.7"}.items():
        (tmp_path / name).write_bytes(content)
    rows = [
        {"id": "one", "picture": str(tmp_path / "a.png"), "more": [str(tmp_path / "b.png"), str(tmp_path / "c.pdf")]},
        {"id": "two", "picture": str(tmp_path / "missing.png"), "more": None},
        {"id": "three", "picture": None, "more": []},
        {"id": "film", "picture": "https://www.youtube.com/watch?v=9hE5-98ZeCg", "more": None},
    ]
    manifest = batch(
        source=rows, prompt={"what": "What is it?", "who": "Who is it?"}, media=["picture", "more"], key="id",
        delete_remote="never",
    )  # fmt: skip
    found = {(row["key"], row["prompt"]): row for row in landed(manifest)}
    assert len(found) == manifest["rows"] == 8
    for prompt in ("what", "who"):
        assert found["one", prompt]["status"] == "ok"
        assert found["two", prompt]["status"] == "error"
        assert "missing.png" in found["two", prompt]["error_message"]
        assert (found["one", prompt]["job"], found["two", prompt]["job"]) == (emulator.jobs[0].name, None)
        assert found["three", prompt]["status"] == "empty"
    uploads = [file for file in emulator.files if file["mimeType"] != "application/jsonl"]
    assert sorted(file["mimeType"] for file in uploads if "image" in file["mimeType"] or "pdf" in file["mimeType"]) == [
        "application/pdf", "image/png",
    ]  # fmt: skip
    sent = {line["key"]: line["request"]["contents"][0]["parts"] for line in requests_of(emulator)}
    assert [list(part) for part in sent["what/one"]] == [["fileData"], ["fileData"], ["fileData"], ["text"]]
    assert sent["what/film"][0] == {"fileData": {"fileUri": "https://www.youtube.com/watch?v=9hE5-98ZeCg"}}


# Images and sounds -------------------------------------------------------------------------------------------


def test_images_become_files_named_by_their_rows(batch, tmp_path):
    rows = [{"id": "a cat/1", "what": "a cat"}, {"id": "dog", "what": "a dog"}]
    manifest = batch(
        model="gemini-2.5-flash-image", source=rows, prompt="Draw {what}", key="id",
        config={"response_modalities": ["TEXT", "IMAGE"]},
    )  # fmt: skip
    for row in landed(manifest):
        assert row["status"] == "ok"
        (file,) = map(Path, row["media"])
        assert file.parent == tmp_path / "out" / "media"
        assert file.read_bytes().startswith(b"\x89PNG")
    names = sorted(path.name for path in (tmp_path / "out" / "media").iterdir())
    assert names[1] == "dog-0.png"
    assert names[0].startswith("a_cat_1-")


def test_speech_becomes_a_file_that_plays(batch):
    manifest = batch(
        model="gemini-2.5-flash-preview-tts", source=["Say it"], config={"response_modalities": ["AUDIO"]},
    )  # fmt: skip
    (row,) = landed(manifest)
    with wave.open(io.BytesIO(Path(row["media"][0]).read_bytes())) as sound:
        assert sound.getframerate() == 24000
        assert sound.getnframes() > 0


def test_the_media_column_is_there_for_ready_made_lines_that_ask_for_images(batch):
    request = {
        "contents": [{"parts": [{"text": "Draw"}]}], "generationConfig": {"responseModalities": ["IMAGE"]},
    }  # fmt: skip
    (row,) = landed(batch(model="gemini-3-pro-image-preview", source=[{"key": "k", "request": request}]))
    assert len(row["media"]) == 1


# What else an answer may hold --------------------------------------------------------------------------------


def test_sources_of_a_search_land_when_asked_for(batch):
    manifest = batch(
        source=["Who won?"], config={"tools": [{"google_search": {}}]}, include=["grounding", "safety_ratings", "thoughts"],
    )  # fmt: skip
    (row,) = landed(manifest)
    assert json.loads(row["grounding"])["groundingChunks"]
    assert "citations" not in row


def test_function_calls_land_when_asked_for(batch):
    tools = [{"function_declarations": [{"name": "light", "description": "switch a light"}]}]
    config = {"tools": tools, "tool_config": {"function_calling_config": {"mode": "ANY"}}}
    (row,) = landed(batch(source=["Light on"], config=config, include=["function_calls"], file_format="jsonl"))
    assert row["function_calls"][0]["name"] == "light"
    assert row["status"] == "ok"


def test_an_unknown_column_to_include_is_named(batch, emulator):
    with pytest.raises(Exception, match="include names 'sources'; it takes 'safety_ratings'"):
        batch(source=["a"], include=["sources"])
    assert emulator.jobs_created == 0


def test_a_kept_column_must_not_hide_one_that_was_asked_for(batch):
    with pytest.raises(Exception, match="'grounding'"):
        batch(source=[{"grounding": 1, "q": "x"}], prompt="{q}", keep=["grounding"], include=["grounding"])


# Caches ------------------------------------------------------------------------------------------------------


def make_cache(emulator: Any, seconds: int) -> str:
    from google import genai

    with genai.Client(api_key="test-key", vertexai=False, http_options={"base_url": emulator.url}) as sdk:
        return str(sdk.caches.create(model="gemini-2.5-flash", config={"ttl": f"{seconds}s", "contents": "long"}).name)


def test_a_cache_that_outlives_the_deadline_is_used(batch, emulator):
    cache = make_cache(emulator, 7200)
    batch(source=["a"], config={"cached_content": cache}, timeout=3600, delete_remote="never")
    assert requests_of(emulator)[0]["request"]["cachedContent"] == cache


def test_a_cache_that_would_expire_before_the_deadline_is_refused_before_anything_is_sent(batch, emulator):
    with pytest.raises(Exception, match=r"expires at .* but a job may take until"):
        batch(source=["a"], config={"cached_content": make_cache(emulator, 600)}, timeout=3600)
    assert emulator.jobs_created == 0
    assert emulator.calls["upload_start"] == 0


def test_a_cache_that_is_gone_is_refused_before_anything_is_sent(batch, emulator):
    with pytest.raises(Exception, match="is not at the service"):
        batch(source=["a"], config={"cached_content": "cachedContents/none"}, timeout=3600)
    assert emulator.jobs_created == 0


def test_caches_that_single_rows_name_are_looked_up_too(batch, emulator, tmp_path):
    good = make_cache(emulator, 7200)
    rows = [{"c": good, "q": "a"}, {"c": None, "q": "b"}, {"c": "cachedContents/none", "q": "c"}]
    settings = {"prompt": "{q}", "config": {"cached_content": "{c}"}, "timeout": 3600, "delete_remote": "never"}
    with pytest.raises(Exception, match=r"cachedContents/none is not at the service"):
        batch(source=rows, output=str(tmp_path / "gone"), **settings)
    assert emulator.jobs_created == 0
    looked = emulator.calls["cache_get"]
    batch(source=rows[:2], limits=Limits(requests_per_job=1), **settings)
    assert emulator.jobs_created == 2
    assert emulator.calls["cache_get"] == looked + 1


@pytest.mark.parametrize("name", ["cachedContent", "cached_content"])
def test_caches_that_ready_made_requests_name_are_looked_up_too(batch, emulator, name):
    contents = [{"role": "user", "parts": [{"text": "a"}]}]
    source = [{"key": n, "request": {"contents": contents, name: cache}} for n, cache in
              (("a", make_cache(emulator, 7200)), ("b", make_cache(emulator, 600)))]  # fmt: skip
    with pytest.raises(Exception, match=r"expires at .* but a job may take until"):
        batch(source=source, timeout=3600)
    assert emulator.jobs_created == 0


def test_a_cache_beside_what_it_holds_is_refused(batch):
    with pytest.raises(Exception, match="cannot go together with systemInstruction"):
        batch(source=["a"], config={"cached_content": "cachedContents/x"}, system_instruction="Be brief.")


def test_a_change_of_columns_lands_all_parts_alike_and_asks_nothing_again(batch, emulator):
    asked = {
        "source": ["a", "b", "c", "d"], "prompt": "{text}", "limits": Limits(requests_per_job=2), "max_rounds": 1,
        "max_failed_ratio": 0,
    }  # fmt: skip
    emulator.faults = Faults(drop_keys={"0"})
    with pytest.raises(Exception, match="1 of 4 rows are not ok"):
        batch(**asked)
    emulator.faults = Faults()
    manifest = batch(task_context(try_number=2, max_tries=1), **asked, include=["thoughts"], include_raw=True)
    assert len({tuple(pq.read_schema(name).names) for name in manifest["files"]}) == 1
    assert all(row["raw"] for row in landed(manifest))
    assert [one["requests"] for one in manifest["jobs"]] == [2, 2, 1]


@pytest.mark.parametrize(("source", "said"), [
    (5, "source is 5; it takes a URI, a list"), (None, "let it return"),
    ("[{'id': 1}]", "source is a list as text .* Give the task's output itself"), ('["a", "b"]', "is a list as text"),
])  # fmt: skip
def test_a_source_that_holds_no_rows_is_refused_with_what_to_give(batch, emulator, source, said):
    with pytest.raises(Exception, match=said):
        batch(source=source, prompt="{a}")
    assert emulator.jobs_created == 0


class Frame:
    """A DataFrame as pandas and Polars make them: a loop over it gives the names of its columns."""

    def __init__(self, **columns: Any) -> None:
        self.table = pa.table(columns)

    def __iter__(self) -> Iterator[str]:
        return iter(self.table.column_names)

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self.table.__arrow_c_stream__(requested_schema)


def test_a_data_frame_is_its_rows_and_not_the_names_of_its_columns(batch):
    source = Frame(id=[1, 2], text=["mug", None], at=pa.array([0, None], pa.timestamp("ns")))
    rows = landed(batch(source=source, prompt="About {text}", key="id", keep=["at"], max_failed_ratio=1))
    assert [(row["key"], row["status"], row["at"]) for row in rows] == [
        ("1", "ok", datetime(1970, 1, 1)), ("2", "empty", None),
    ]  # fmt: skip


def test_a_frame_that_cannot_be_read_is_refused_instead_of_asking_about_its_columns(batch, emulator):
    with pytest.raises(Exception, match=r"Spark cannot be read .* give a list of mappings"):
        batch(source=type("Spark", (), {"columns": ["id"], "__iter__": lambda self: iter(["id"])})())
    assert emulator.jobs_created == 0
