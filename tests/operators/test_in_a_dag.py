"""Operators in real DAG files, through ``dag.test()``: what other tasks return, templates, mapping."""

from __future__ import annotations

import importlib.util
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import orjson
import pytest

from airflow_gemini_batch.emulator import Emulator

from ..conftest import HOME

HEAD = """
from pathlib import Path
from airflow.sdk import DAG, task
from airflow_gemini_batch import GeminiBatchOperator, GeminiCreateBatchJobOperator

SETTINGS = dict(task_id="ask", model="gemini-2.5-flash", deferrable=True, poll_interval=0.1)
OUT = {here!r} + "/out"

with DAG({dag_id!r}, schedule=None) as dag:
    @task
    def up():
        return "from upstream"

"""


@pytest.fixture(scope="session")
def airflow_database() -> None:
    from airflow.utils.db import initdb

    initdb()


@pytest.fixture
def run_dag(airflow_database: None, connection: str, tmp_path: Path, request: Any) -> Any:
    def run(body: str) -> ModuleType:
        name = f"dag_of_{request.node.name}".split("[")[0][-60:]
        path = HOME / "dags" / f"{name}.py"
        path.write_text(HEAD.format(here=str(tmp_path), dag_id=name) + textwrap.indent(textwrap.dedent(body), "    "))
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        state = module.dag.test().state
        assert str(getattr(state, "value", state)) == "success"
        return module

    return run


def texts_sent(tmp_path: Path) -> list[str]:
    import json

    sent = sorted(tmp_path.glob("out/**/requests/*.jsonl"))
    lines = [line for path in sent for line in path.read_bytes().split(b"\n") if line]
    return [json.loads(line)["request"]["contents"][0]["parts"][0]["text"] for line in lines]


@pytest.mark.parametrize("source", [
    '[{"id": 1, "text": up()}, {"id": 2, "text": "{{ run_id }}"}]',
    '({"id": 1, "text": up()}, {"id": 2, "text": "{{ run_id }}"})',
    '[up(), "{{ run_id }}"]',
])  # fmt: skip
def test_another_tasks_output_among_the_rows_is_sent_and_braces_of_rows_are_left_alone(
    run_dag: Any, emulator: Emulator, tmp_path: Path, source: str
) -> None:
    prompt = '"{text}"' if "id" in source.partition(",")[0] else "None"
    module = run_dag(f"GeminiBatchOperator(**SETTINGS, source={source}, prompt={prompt}, output=OUT)")
    assert texts_sent(tmp_path) == ["from upstream", "{{ run_id }}"]
    assert module.dag.get_task("ask").upstream_task_ids == {"up"}


def test_a_parameter_of_the_dag_among_the_rows_is_sent_as_its_value(
    run_dag: Any, emulator: Emulator, tmp_path: Path
) -> None:
    run_dag("""
        from airflow.sdk.definitions.param import Param
        dag.params["n"] = Param(3)
        GeminiBatchOperator(**SETTINGS, source=[{"text": dag.param("n")}], prompt="Sum: {text}", output=OUT)
    """)
    assert texts_sent(tmp_path) == ["Sum: 3"]


def test_rows_of_mapped_tasks_are_one_source_whether_each_gives_a_row_or_a_list(
    run_dag: Any, emulator: Emulator, tmp_path: Path
) -> None:
    run_dag("""
        @task
        def rows(n):
            return [{"text": f"{n}.{i}"} for i in range(n)] if n else {"text": "one"}

        GeminiBatchOperator(**SETTINGS, source=rows.expand(n=[0, 1, 2]), prompt="{text}", output=OUT)
    """)
    assert texts_sent(tmp_path) == ["one", "1.0", "2.0", "2.1"]


def test_json_in_a_prompt_is_sent_as_the_error_says_to_write_it(
    run_dag: Any, emulator: Emulator, tmp_path: Path
) -> None:
    run_dag("""
        prompt = '{% raw %}As {{"mood": 1}}{% endraw %}: {text}, {{ params.x }}'
        GeminiBatchOperator(**SETTINGS, source=[{"text": "a"}], prompt=prompt, params={"x": "please"}, output=OUT)
    """)
    assert texts_sent(tmp_path) == ['As {"mood": 1}: a, please']


def test_an_uploaded_file_is_asked_about_in_a_ready_made_request(
    run_dag: Any, emulator: Emulator, tmp_path: Path
) -> None:
    """The cookbook's sample of a picture: upload it, then name its URI in a request."""
    (tmp_path / "jetpack.png").write_bytes(b"a picture")
    run_dag(f"""
        from airflow_gemini_batch import GeminiUploadFileOperator
        upload = GeminiUploadFileOperator(task_id="upload", source={str(tmp_path / "jetpack.png")!r})
        picture = {{"file_data": {{"file_uri": upload.output["uri"], "mime_type": upload.output["mime_type"]}}}}
        request = {{"contents": [{{"parts": [{{"text": "What is this?"}}, picture]}}]}}
        GeminiBatchOperator(**SETTINGS, source=[{{"key": "request_2_image", "request": request}}], output=OUT)
    """)
    (line,) = next(tmp_path.glob("out/**/requests/*.jsonl")).read_bytes().splitlines()
    sent = orjson.loads(line)["request"]["contents"][0]["parts"][1]["file_data"]
    assert sent["mime_type"] == "image/png"
    assert emulator.read_file(f"files/{sent['file_uri'].rpartition('/')[2]}") == b"a picture"


def test_a_content_of_the_sdk_is_taken_as_system_instruction(run_dag: Any, emulator: Emulator, tmp_path: Path) -> None:
    run_dag("""
        from google.genai import types
        words = types.Content(parts=[types.Part(text="Be brief.")])
        GeminiBatchOperator(**SETTINGS, source=["a"], system_instruction=words, output=OUT)
    """)
    (sent,) = tmp_path.glob("out/**/requests/*.jsonl")
    assert b'"systemInstruction":{"parts":[{"text":"Be brief."}]}' in sent.read_bytes()


def test_another_tasks_output_among_the_requests_of_a_create_is_sent(
    run_dag: Any, emulator: Emulator, tmp_path: Path
) -> None:
    module = run_dag("""
        GeminiCreateBatchJobOperator(
            **SETTINGS, ledger=OUT,
            requests=[{"key": "a", "request": {"contents": [{"parts": [{"text": up()}]}]}}],
        )
    """)
    assert texts_sent(tmp_path) == ["from upstream"]
    assert module.dag.get_task("ask").upstream_task_ids == {"up"}


def test_rows_of_mapped_tasks_may_hold_another_tasks_output(run_dag: Any, emulator: Emulator, tmp_path: Path) -> None:
    run_dag("""
        GeminiBatchOperator.partial(**SETTINGS, source=[up(), "{{ run_id }}"]).expand(output=[OUT + "/a"])
        GeminiBatchOperator.partial(**SETTINGS | {"task_id": "b"}, output=OUT + "/b{{ ti.map_index }}").expand(
            source=[["one", "{{ ds }}"], ["two"]]
        )
    """)
    assert texts_sent(tmp_path) == ["from upstream", "{{ run_id }}", "one", "{{ ds }}", "two"]


def test_a_connection_of_airflows_database_is_found_also_by_the_triggers_of_a_dag_test(
    run_dag: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.models.connection import Connection
    from airflow.utils.session import create_session

    monkeypatch.delenv("AIRFLOW_CONN_GEMINI_BATCH_DEFAULT")
    with create_session() as session:
        session.add(Connection("in_the_database", conn_type="gemini_batch", host=emulator.url, password="any-key"))
    run_dag('GeminiBatchOperator(**SETTINGS, source=["a"], output=OUT, gemini_conn_id="in_the_database")')
    assert emulator.jobs_created == 1
