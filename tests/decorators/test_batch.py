"""@task.gemini_batch in real DAG files, through ``dag.test()``, against the emulator."""

from __future__ import annotations

import importlib.util
import textwrap
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException

from airflow_gemini_batch.decorators.batch import GeminiBatchDecoratedOperator, gemini_batch
from airflow_gemini_batch.emulator import Emulator
from airflow_gemini_batch.exceptions import InvalidConfig

from ..conftest import HOME, landed, run_operator, task_context

HEAD = """
from pathlib import Path
from airflow.sdk import DAG, task
from airflow_gemini_batch.decorators.batch import gemini_batch

HERE = Path({here!r})
CALLS = HERE / "calls"
SETTINGS = dict(model="gemini-2.5-flash", output=str(HERE / "out/{{{{ task.task_id }}}}-{{{{ ti.map_index }}}}"),
                deferrable=True, poll_interval=0.1)


def called():
    with CALLS.open("a") as f:
        f.write("x")


@task
def keep(manifest):
    import json
    (HERE / f"{{manifest['run']['task_id']}}-{{manifest['run']['map_index']}}.json").write_text(json.dumps(manifest))

with DAG({dag_id!r}, schedule=None) as dag:
"""


@pytest.fixture(scope="session")
def airflow_database() -> None:
    from airflow.utils.db import initdb

    initdb()


@pytest.fixture
def run_dag(airflow_database: None, connection: str, tmp_path: Path, request: Any) -> Any:
    def run(body: str) -> dict[str, Any]:
        import json

        name = f"decorated_{request.node.name}".split("[")[0][-60:]
        path = HOME / "dags" / f"{name}.py"
        path.write_text(HEAD.format(here=str(tmp_path), dag_id=name) + textwrap.indent(textwrap.dedent(body), "    "))
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        state = module.dag.test().state
        assert str(getattr(state, "value", state)) == "success"
        return {one.stem: json.loads(one.read_text()) for one in sorted(tmp_path.glob("*.json"))}

    return run


def texts_sent(tmp_path: Path) -> list[str]:
    import json

    sent = sorted(tmp_path.glob("out/*/_gemini_batch/*/requests/*.jsonl"))
    lines = [line for path in sent for line in path.read_bytes().split(b"\n") if line]
    return [json.loads(line)["request"]["contents"][0]["parts"][0]["text"] for line in lines]


def test_a_generator_is_called_once_for_all_deferrals_and_nothing_of_it_is_rendered(
    run_dag: Any, emulator: Emulator, tmp_path: Path
) -> None:
    manifests = run_dag("""
        @task.gemini_batch(**SETTINGS, prompt="Say {text}", key="id")
        def ask(first, ti=None):
            called()
            for n in range(3):
                yield {"id": f"{ti.run_id[:0]}k{n}", "text": "{{ ds }} " + str(first + n)}

        keep(ask(10))
    """)
    (manifest,) = manifests.values()
    assert [row["key"] for row in landed(manifest)] == ["k0", "k1", "k2"]
    assert texts_sent(tmp_path) == ["Say {{ ds }} 10", "Say {{ ds }} 11", "Say {{ ds }} 12"]
    assert (tmp_path / "calls").read_text() == "x"
    assert emulator.jobs_created == 1


def test_it_can_be_mapped_and_takes_what_other_tasks_return(run_dag: Any, emulator: Emulator, tmp_path: Path) -> None:
    manifests = run_dag("""
        @task
        def words():
            return ["one", "two"]

        @task.gemini_batch(**SETTINGS)
        def ask(word, times):
            return [f"{word} {n}" for n in range(times)]

        keep.expand(manifest=ask.partial(times=2).expand(word=words()))
    """)
    assert sorted(manifests) == ["ask-0", "ask-1"]
    assert texts_sent(tmp_path) == ["one 0", "one 1", "two 0", "two 1"]
    assert [manifest["counts"]["ok"] for manifest in manifests.values()] == [2, 2]


def test_each_field_of_the_manifest_is_an_xcom_where_several_are_asked_for(
    run_dag: Any, emulator: Emulator, tmp_path: Path
) -> None:
    manifests = run_dag("""
        @task.gemini_batch(**SETTINGS, multiple_outputs=True)
        def ask() -> list[str]:
            return ["one", "two"]

        @task
        def see(counts, files):
            assert (counts["ok"], len(files)) == (2, 1)

        asked = ask()
        see(asked["counts"], asked["files"])
        keep(asked)
    """)
    assert manifests["ask--1"]["rows"] == 2


def test_the_names_of_mapped_tasks_may_come_from_what_the_function_is_called_with(
    run_dag: Any, emulator: Emulator, tmp_path: Path
) -> None:
    run_dag("""
        @task.gemini_batch(**SETTINGS, map_index_template="{{ city }}")
        def ask(city):
            return [city]

        ask.expand(city=["Bonn", "Ulm"])
    """)
    assert texts_sent(tmp_path) == ["Bonn", "Ulm"]


def test_the_typed_spelling_is_the_same_task(run_dag: Any, emulator: Emulator, tmp_path: Path) -> None:
    manifests = run_dag("""
        @gemini_batch(**SETTINGS)
        def ask():
            return [{"key": "a", "request": {"contents": [{"parts": [{"text": "ready {{ made }}"}]}]}}]

        keep(ask())
    """)
    assert [row["key"] for row in landed(manifests["ask--1"])] == ["a"]
    assert texts_sent(tmp_path) == ["ready {{ made }}"]


def decorated(tmp_path: Path, function: Any, **settings: Any) -> GeminiBatchDecoratedOperator:
    defaults: dict[str, Any] = {"model": "gemini-2.5-flash", "output": str(tmp_path / "out"), "poll_interval": 0.05}
    return GeminiBatchDecoratedOperator(task_id="ask", python_callable=function, **(defaults | settings))


@pytest.mark.parametrize("returned", [None, "one text", {"a": 1}, b"x", 5], ids=repr)
def test_what_is_nothing_to_ask_is_told_and_not_paid(
    connection: str, emulator: Emulator, tmp_path: Path, returned: Any
) -> None:
    with pytest.raises(AirflowFailException, match="returned"):
        run_operator(decorated(tmp_path, lambda: returned))
    assert emulator.jobs_created == 0


@pytest.mark.parametrize("make", [lambda table: table, lambda table: table.to_reader()], ids=["table", "reader"])
def test_a_table_is_its_rows(connection: str, emulator: Emulator, tmp_path: Path, make: Any) -> None:
    returned = make(pa.table({"id": ["a", "b"], "word": ["one", "two"]}))
    rows = landed(run_operator(decorated(tmp_path, lambda: returned, prompt="Say {word}", key="id", keep=["word"])))
    assert [(row["key"], row["word"]) for row in rows] == [("a", "one"), ("b", "two")]


def test_no_rows_skip_the_task(connection: str, tmp_path: Path) -> None:
    with pytest.raises(AirflowSkipException):
        run_operator(decorated(tmp_path, list))
    with pytest.raises(AirflowSkipException):
        run_operator(decorated(tmp_path / "2", lambda: iter(())))


def test_duplicates_of_a_generator_are_told_by_their_numbers(connection: str, tmp_path: Path) -> None:
    def ask() -> Any:
        for key in ("a", "b", "a"):
            yield {"id": key, "text": key}

    with pytest.raises(AirflowFailException, match=r"row 2: the key 'a' was used before, at row 0"):
        run_operator(decorated(tmp_path, ask, prompt="{text}", key="id"))


def test_a_retry_of_a_planned_run_does_not_call_the_function_again(
    connection: str, emulator: Emulator, tmp_path: Path
) -> None:
    def never() -> Any:
        raise AssertionError("called again")

    first = run_operator(decorated(tmp_path, lambda: ["x"]), task_context(task_id="ask"))
    again = run_operator(decorated(tmp_path, never), task_context(task_id="ask", try_number=2))
    assert first["counts"] == again["counts"]
    assert emulator.jobs_created == 1


def test_a_source_beside_the_function_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="source cannot be used"):
        decorated(tmp_path, list, source=["x"])


def test_the_typed_spelling_names_every_parameter_of_the_operator() -> None:
    import inspect
    from typing import get_overloads

    from airflow_gemini_batch.operators.batch import GeminiBatchOperator

    (typed,) = (one for one in get_overloads(gemini_batch) if "prompt" in inspect.signature(one).parameters)
    own = {name: p.default for name, p in inspect.signature(GeminiBatchOperator.__init__).parameters.items()}
    told = {name: p.default for name, p in inspect.signature(typed).parameters.items()}
    assert told.keys() - {"python_callable"} == own.keys() - {"self", "source"}
    assert {name: told[name] for name in told if name in own} == {name: own[name] for name in told if name in own}
