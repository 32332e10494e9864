"""What a run shows in Airflow beside its table: links, asset events, lineage, configuration, colours, a repr."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import conf
from airflow.sdk import Asset, AssetAlias

from airflow_gemini_batch import settings
from airflow_gemini_batch.emulator import Emulator, Faults
from airflow_gemini_batch.exceptions import GeminiBatchError, RunFailed
from airflow_gemini_batch.links.batch import LINKS, job_url, place_url
from airflow_gemini_batch.operators.batch import GeminiBatchOperator
from airflow_gemini_batch.sql.query import SqlQuery
from airflow_gemini_batch.sql.table import SqlTable

from ..conftest import batch_operator, point_at, run_operator, task_context

ROWS = [{"id": "a", "text": "x"}, {"id": "b", "text": "y"}]


class Ti:
    """A task instance that keeps what is pushed."""

    def __init__(self, **ids: Any) -> None:
        self.__dict__.update(task_context(**ids)["ti"].__dict__)
        self.pushed: dict[str, Any] = {}
        self.log_url = ""

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value


@pytest.mark.parametrize("deferrable", [True, False])
def test_links_are_there_while_the_task_waits(monkeypatch: pytest.MonkeyPatch, tmp_path: Any, deferrable: bool) -> None:
    ti, seen = Ti(), []
    with Emulator(states=["PENDING", "RUNNING", "SUCCEEDED"]) as gemini:
        point_at(gemini.url, monkeypatch)
        operator = batch_operator(tmp_path, source=ROWS, prompt="{text}", deferrable=deferrable)
        ti.log_url = "http://airflow:8080/dags/d/runs/r/tasks/t?try_number=1"
        manifest = run_operator(operator, {"ti": ti}, on_defer=lambda _: seen.append(dict(ti.pushed)))
        job = gemini.jobs[0].name
    xcoms = "http://airflow:8080/dags/d/runs/r/tasks/t/xcom"
    for pushed in (*seen, ti.pushed):
        assert pushed["gemini_batch_job_link"] == f"https://aistudio.google.com/batches#{job}"
        assert pushed["gemini_batch_output_link"] == f"{xcoms}#file://{tmp_path}/out"
    assert ti.pushed["gemini_batch_manifest_link"] == f"{xcoms}#file://{manifest['manifest']}"
    assert len(seen) == deferrable


def test_every_link_has_a_value_before_anything_is_known(connection: str, tmp_path: Any) -> None:
    """Airflow logs an error, in every task's log, for each link that it asks for and does not find."""
    ti = Ti()
    with pytest.raises(GeminiBatchError):
        run_operator(batch_operator(tmp_path, source=str(tmp_path / "missing.csv"), prompt="{text}"), {"ti": ti})
    assert {link.xcom_key: "" for link in LINKS}.items() <= ti.pushed.items()


def test_a_run_that_failed_after_landing_links_to_its_manifest(
    connection: str, emulator: Emulator, tmp_path: Any
) -> None:
    emulator.faults = Faults(end_state="EXPIRED")
    ti = Ti()
    with pytest.raises(RunFailed):
        run_operator(batch_operator(tmp_path, source=ROWS, prompt="{text}", max_rounds=1), {"ti": ti})
    assert ti.pushed["gemini_batch_manifest_link"].endswith("/manifest.json")


@pytest.mark.parametrize(("uri", "url"), [
    ("/data/out", "file:///data/out"),
    ("file:///data/out", "file:///data/out"),
    ("s3://aws@lake/out/ds=1", "https://s3.console.aws.amazon.com/s3/buckets/lake?prefix=out/ds%3D1"),
    ("gs://lake/out/x", "https://console.cloud.google.com/storage/browser/lake/out/x"),
    ("abfs://c@account/out", "abfs://c@account/out"),
])  # fmt: skip
def test_a_place_links_to_its_stores_console(uri: str, url: str) -> None:
    assert place_url(uri) == url
    page = "http://airflow:8080/dags/d/runs/r/tasks/t/xcom"
    assert place_url(uri, page) == (url if url.startswith("https:") else f"{page}#{url}")


def test_a_job_of_vertex_links_to_the_cloud_console() -> None:
    assert job_url("projects/p/locations/us-central1/batchPredictionJobs/12") == (
        "https://console.cloud.google.com/vertex-ai/locations/us-central1/batch-predictions/12?project=p"
    )


def test_airflow_asks_a_link_for_what_was_pushed(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.providers.common.compat.sdk import XCom

    for link in LINKS:
        monkeypatch.setattr(XCom, "get_value", lambda *, ti_key, key: f"{ti_key}/{key}")
        assert link().get_link(None, ti_key="ti") == f"ti/{link.xcom_key}"  # type: ignore[arg-type]
        monkeypatch.setattr(XCom, "get_value", lambda *, ti_key, key: None)
        assert link().get_link(None, ti_key="ti") == ""  # type: ignore[arg-type]


class ByAsset:
    """What Airflow keeps by asset; before 3.2 assets are no keys of a dict."""

    def __init__(self, items: Any) -> None:
        self._items = list(items)

    def __getitem__(self, asset: Asset) -> Any:
        return next(value for one, value in self._items if one == asset)


def test_an_outlet_may_be_named_by_a_reference(connection: str, emulator: Emulator, tmp_path: Any) -> None:
    one, uri = Asset.ref(name="summaries"), Asset.ref(uri="s3://lake/other")
    events = ByAsset((ref, SimpleNamespace(extra={})) for ref in (one, uri))
    outlets = [AssetAlias("alias"), one, uri]
    operator = batch_operator(tmp_path, source=ROWS, prompt="{text}", outlets=outlets)
    run_operator(operator, {**task_context(), "outlet_events": events})
    assert [events[ref].extra["rows"] for ref in (one, uri)] == [2, 2]


@pytest.mark.parametrize("deferrable", [True, False])
def test_outlets_tell_what_was_landed(connection: str, emulator: Emulator, tmp_path: Any, deferrable: bool) -> None:
    summaries, other = Asset(name="summaries", uri="s3://lake/summaries"), Asset(name="other", uri="x://other")
    events = ByAsset((asset, SimpleNamespace(extra={"mine": 1})) for asset in (summaries, other))
    operator = batch_operator(tmp_path, source=ROWS, prompt="{text}", outlets=[summaries], deferrable=deferrable)
    manifest = run_operator(operator, {**task_context(), "outlet_events": events})
    extra = events[summaries].extra
    assert (extra["mine"], extra["rows"], extra["counts"]["ok"]) == (1, 2, 2)
    assert (extra["manifest"], extra["output"]) == (manifest["manifest"], manifest["output"])
    assert events[other].extra == {"mine": 1}


def test_lineage_tells_inputs_outputs_and_counts(connection: str, emulator: Emulator, tmp_path: Any) -> None:
    pytest.importorskip("airflow.providers.openlineage")
    (tmp_path / "in.jsonl").write_text('{"id": "a", "text": "x"}\n')
    operator = batch_operator(tmp_path, source=str(tmp_path / "in.jsonl"), prompt="{text}")
    before = operator.get_openlineage_facets_on_complete(None)
    assert ([one.name for one in before.inputs], before.outputs) == ([f"{tmp_path}/in.jsonl"], [])
    run_operator(operator)
    told = operator.get_openlineage_facets_on_complete(None)
    (landed,) = told.outputs
    assert (landed.namespace, landed.name) == ("file", f"{tmp_path}/out")
    assert landed.outputFacets["outputStatistics"].rowCount == 1
    assert told.run_facets["gemini_batch"].counts["ok"] == 1


def test_lineage_names_tables_as_the_database_does(
    connection: str, emulator: Emulator, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("airflow.providers.openlineage")
    from airflow.providers.openlineage.sqlparser import DatabaseInfo
    from airflow.providers.sqlite.hooks.sqlite import SqliteHook

    with closing(sqlite3.connect(tmp_path / "w.db")) as warehouse, warehouse:
        warehouse.execute("CREATE TABLE reviews (id TEXT, text TEXT)")
        warehouse.execute("INSERT INTO reviews VALUES ('a', 'x')")
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps({"conn_type": "sqlite", "host": str(tmp_path / "w.db")}))
    query = SqlQuery("SELECT id, text FROM reviews", "warehouse")
    operator = batch_operator(tmp_path, source=query, prompt="{text}", key="id", table=SqlTable("answers", "warehouse"))
    run_operator(operator)
    told = operator.get_openlineage_facets_on_complete(None)
    assert (told.inputs, len(told.outputs)) == ([], 1)  # SQLite's hook has no name for its database
    assert told.job_facets["sql"].query == "SELECT id, text FROM reviews"

    info = DatabaseInfo(scheme="postgres", authority="db:5432", database="shop")
    monkeypatch.setattr(SqliteHook, "get_openlineage_database_info", lambda *_: info)
    told = operator.get_openlineage_facets_on_complete(None)
    assert [(one.namespace, one.name) for one in told.inputs] == [("postgres://db:5432", "shop.public.reviews")]
    assert told.outputs[0].namespace == "file"
    assert [(one.namespace, one.name) for one in told.outputs[1:]] == [("postgres://db:5432", "shop.public.answers")]

    def away(*_: Any) -> Any:
        raise ConnectionError("no way to the database")

    monkeypatch.setattr(SqliteHook, "get_openlineage_default_schema", away)
    told = operator.get_openlineage_facets_on_complete(None)
    assert (told.inputs, len(told.outputs)) == ([], 1)


@pytest.mark.parametrize(("uri", "dataset"), [
    ("/data/x", ("file", "/data/x")), ("file:///data/x", ("file", "/data/x")),
    ("s3://conn@lake/a/b", ("s3://lake", "a/b")), ("gs://lake", ("gs://lake", "/")),
])  # fmt: skip
def test_datasets_are_named_as_openlineage_names_them(uri: str, dataset: tuple[str, str]) -> None:
    from airflow_gemini_batch.lineage import place

    assert place(uri) == dataset


def test_the_configuration_has_the_documented_defaults(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.providers_manager import ProvidersManager

    ProvidersManager().initialize_providers_configuration()  # Airflow's processes do that when they start
    for name, option in settings.CONFIG["gemini_batch"]["options"].items():
        assert conf.get("gemini_batch", name, fallback="none") == option["default"]
    plain: dict[str, Any] = {"task_id": "t", "model": "m", "source": "s", "output": "o"}
    task = GeminiBatchOperator(**plain)
    assert (task.poll_interval, task.delete_remote) == (60.0, "inputs")
    monkeypatch.setenv("AIRFLOW__GEMINI_BATCH__POLL_INTERVAL", "7")
    monkeypatch.setenv("AIRFLOW__GEMINI_BATCH__DELETE_REMOTE", "never")
    task = GeminiBatchOperator(**plain)
    assert (task.poll_interval, task.delete_remote) == (7.0, "never")
    assert GeminiBatchOperator(**plain, poll_interval=5, delete_remote="all").poll_interval == 5


def test_the_ledger_may_come_from_the_configuration(
    connection: str, emulator: Emulator, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_gemini_batch.operators.steps import GeminiCreateBatchJobOperator

    monkeypatch.setenv("AIRFLOW__GEMINI_BATCH__LEDGER", str(tmp_path / "ledger"))
    (tmp_path / "r.jsonl").write_text('{"key": "a", "request": {"contents": [{"parts": [{"text": "x"}]}]}}\n')
    create = GeminiCreateBatchJobOperator(task_id="c", model="gemini-2.5-flash", requests=str(tmp_path / "r.jsonl"))
    assert run_operator(create) == emulator.jobs[0].name
    assert list((tmp_path / "ledger").glob("*/_gemini_batch/plan-1.json"))


def test_a_task_says_what_it_is() -> None:
    task = GeminiBatchOperator(task_id="summarise", model="m", source="s", output="o")
    assert "GeminiBatchOperator" in repr(task)
    assert "summarise" in repr(task)
    assert task.ui_color != task.ui_fgcolor


def example(name: str) -> Any:
    import importlib.util
    from pathlib import Path

    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[2] / f"example_dags/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_failure_callback_gets_jobs_counts_and_cost(connection: str, emulator: Emulator, tmp_path: Any) -> None:
    from airflow_gemini_batch.emulator import RowError

    emulator.faults = Faults(fail_keys={"a": RowError(code=3, message="bad")})
    with pytest.raises(RunFailed) as failed:
        run_operator(batch_operator(tmp_path, source=ROWS, prompt="{text}", key="id", max_failed_ratio=0.1))
    said = example("example_error_callback").describe(failed.value)
    assert emulator.jobs[0].name in said
    assert "rows: 1 ok, 1 error" in said
    assert " USD; see " in said


def test_a_reader_finds_the_results_in_the_asset_event() -> None:
    module = example("example_scheduled_on_landed")
    extra = {"output": "s3://lake/x", "counts": {"ok": 3}, "cost": {"actual_usd": 0.5}}
    told = module.read.function(triggering_asset_events=ByAsset([(module.summaries, [SimpleNamespace(extra=extra)])]))
    assert told == [{"output": "s3://lake/x", "ok": 3, "usd": 0.5}]


def test_the_query_of_a_source_is_shown_as_sql_under_rendered_templates(tmp_path: Any) -> None:
    from airflow.sdk.execution_time.task_runner import _serialize_rendered_fields

    query = SqlQuery("SELECT id FROM reviews WHERE day = '{{ ds }}'", conn_id="warehouse")
    operator = batch_operator(tmp_path, source=query, prompt="{id}")
    operator.render_template_fields({"task": operator, "ds": "2026-11-01"})  # type: ignore[typeddict-item]
    shown = _serialize_rendered_fields(operator)
    assert shown["source.sql"] == "SELECT id FROM reviews WHERE day = '2026-11-01'"
    assert operator.template_fields_renderers["source.sql"] == "sql"
    assert "source.sql" not in _serialize_rendered_fields(batch_operator(tmp_path, source=ROWS))
