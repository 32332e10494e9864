"""GeminiBatchOperator, through execute, trigger and resume, against the emulator."""

from __future__ import annotations

import csv
import gzip
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException, TaskDeferred

from airflow_gemini_batch.core.shards import Limits
from airflow_gemini_batch.emulator import Faults
from airflow_gemini_batch.exceptions import (
    BadRow,
    CredentialsRefused,
    DuplicateKey,
    GeminiBatchError,
    InvalidConfig,
    NoRows,
    OutputNotWritable,
    OutputTaken,
    RequestRefused,
    SettingsChanged,
    SourceUnreadable,
    TooManyFailedRows,
    UnknownColumn,
)

from ..conftest import batch_operator, landed, point_at, run_operator, task_context

REVIEWS = [
    {"id": "a", "text": "It works.", "stars": 5},
    {"id": "b", "text": 'Line one\u2028line two\u0085three, "quoted"\nfour', "stars": 1},
    {"id": "ключ \U0001f600", "text": "壊れていた。", "stars": 2},
]


@pytest.mark.parametrize("deferrable", [True, False], ids=["deferred", "waiting"])
@pytest.mark.parametrize("file_format", ["parquet", "jsonl", "csv"])
def test_every_row_lands_once_under_its_own_key(batch: Any, emulator: Any, deferrable: bool, file_format: str) -> None:
    manifest = batch(
        source=REVIEWS,
        prompt="Echo {id}: {text}",
        key="id",
        keep=["stars"],
        deferrable=deferrable,
        file_format=file_format,
    )
    rows = landed(manifest)
    assert [row["key"] for row in rows] == [review["id"] for review in REVIEWS]
    assert {row["status"] for row in rows} == {"ok"}
    assert [str(row["stars"]) for row in rows] == ["5", "1", "2"]
    assert manifest["rows"] == sum(manifest["counts"].values()) == manifest["counts"]["ok"] == 3
    assert emulator.jobs_created == 1


def test_deferred_and_waiting_runs_land_the_same_table(emulator: Any, connection: str, tmp_path: Path) -> None:
    tables = []
    for deferrable in (True, False):
        operator = batch_operator(
            tmp_path / str(deferrable), source=REVIEWS, prompt="{text}", key="id", deferrable=deferrable
        )
        tables.append([{**row, "job": None, "response_id": None} for row in landed(run_operator(operator))])
    assert tables[0] == tables[1]


def write_csv(path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, ["id", "text", "stars"])
        writer.writeheader()
        writer.writerows(REVIEWS)


def write_csv_gz(path: Path) -> None:
    plain = path.with_name("plain.tmp")
    write_csv(plain)
    path.write_bytes(gzip.compress(plain.read_bytes()))


def write_jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps(review, ensure_ascii=False) + "\n" for review in REVIEWS), encoding="utf-8")


def write_jsonl_gz(path: Path) -> None:
    path.write_bytes(gzip.compress("".join(json.dumps(review) + "\n" for review in REVIEWS).encode()))


def write_parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(REVIEWS), path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("rows.csv", write_csv),
        ("rows.csv.gz", write_csv_gz),
        ("rows.jsonl", write_jsonl),
        ("rows.jsonl.gz", write_jsonl_gz),
        ("rows.parquet", write_parquet),
    ],
)
def test_each_file_format_gives_the_same_rows(batch: Any, emulator: Any, tmp_path: Path, name: str, write: Any) -> None:
    write(tmp_path / name)
    manifest = batch(source=str(tmp_path / name), prompt="{text}", key="id", keep=["stars"])
    rows = landed(manifest)
    assert [(row["key"], row["status"]) for row in rows] == [(review["id"], "ok") for review in REVIEWS]
    assert [str(row["stars"]) for row in rows] == ["5", "1", "2"]
    assert prompts_sent(tmp_path) == {review["id"]: review["text"] for review in REVIEWS}


def prompts_sent(tmp_path: Path) -> dict[str, str]:
    (sent,) = (tmp_path / "out").glob("_gemini_batch/*/requests/r0-00000.jsonl")
    requests = [json.loads(line) for line in sent.read_bytes().split(b"\n") if line]
    return {one["key"]: one["request"]["contents"][0]["parts"][0]["text"] for one in requests}


def test_a_glob_reads_all_its_files_in_order(batch: Any, tmp_path: Path) -> None:
    for part in ("ds=2", "ds=1"):
        (tmp_path / "in" / part).mkdir(parents=True)
        (tmp_path / "in" / part / "x.jsonl").write_text(f'{{"id": "{part}", "t": "hello"}}\n')
    manifest = batch(source=f"file://{tmp_path}/in/*/*.jsonl", prompt="{t}", key="id")
    assert [row["key"] for row in landed(manifest)] == ["ds=1", "ds=2"]


def test_without_a_key_rows_are_numbered_from_zero(batch: Any) -> None:
    assert [row["key"] for row in landed(batch(source=["one", "two"]))] == ["0", "1"]


def test_ready_made_requests_are_sent_as_they_are(batch: Any, emulator: Any) -> None:
    request = {"contents": [{"parts": [{"text": "hi"}]}], "generationConfig": {"maxOutputTokens": 500}}
    manifest = batch(source=[{"key": "k1", "request": request}])
    assert [(row["key"], row["finish_reason"]) for row in landed(manifest)] == [("k1", "STOP")]


def test_kept_columns_come_back_with_their_types(batch: Any, tmp_path: Path) -> None:
    from datetime import UTC, date, datetime

    row = {
        "id": "1", "t": "x", "whole": 2**40, "real": 0.5, "yes": True, "day": date(2026, 11, 20),
        "at": datetime(2026, 11, 20, 1, 2, 3, 4, tzinfo=UTC), "money": Decimal("12.30"),
        "raw_bytes": b"\x00\xff", "none": None,
    }  # fmt: skip
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "in.parquet")
    keep = [name for name in row if name not in ("id", "t")]
    (back,) = landed(batch(source=str(tmp_path / "in.parquet"), prompt="{t}", key="id", keep=keep))
    assert {name: back[name] for name in keep} == {name: row[name] for name in keep}


@pytest.mark.parametrize("file_format", ["parquet", "jsonl"])
def test_types_in_keep_make_numbers_of_a_csv(batch: Any, tmp_path: Path, file_format: str) -> None:
    (tmp_path / "in.csv").write_text("id,stars,price,tags\na,5,1.5,[1]\nb,,,\n")
    keep = {"stars": "int8", "price": "decimal(10,2)", "tags": "list<int64>", "id": None}
    settings = {"prompt": "{id}", "key": "id", "keep": keep, "file_format": file_format}
    manifest = batch(source=str(tmp_path / "in.csv"), **settings)
    one, other = landed(manifest)
    price = Decimal("1.50") if file_format == "parquet" else "1.50"
    assert [one[name] for name in keep] == [5, price, [1], "a"]
    assert [other[name] for name in keep] == [None, None, None, "b"]
    if file_format == "parquet":
        schema = pq.read_schema(manifest["files"][0])
        assert [schema.field(name).type for name in ("stars", "price")] == [pa.int8(), pa.decimal128(10, 2)]


def test_a_value_of_another_type_than_keep_says_is_told_before_anything_is_sent(batch: Any, emulator: Any) -> None:
    rows = [{"id": "a", "stars": 5}, {"id": "b", "stars": "five"}]
    with pytest.raises(AirflowFailException, match=r"row 1.*'stars' holds 'five', which is no int64"):
        batch(source=rows, prompt="{id}", keep={"stars": "int64"})
    assert emulator.jobs_created == 0


def test_a_type_that_there_is_not_is_told_with_its_column(batch: Any) -> None:
    with pytest.raises(AirflowFailException, match=r"keep has for 'stars'.*'varchar'"):
        batch(source=[{"id": "a", "stars": 5}], prompt="{id}", keep={"stars": "varchar"})


def test_writing_down_the_types_that_a_plan_has_is_no_change_and_others_are(batch: Any, emulator: Any) -> None:
    settings = {"source": [{"id": "a", "stars": 5}], "prompt": "{id}"}
    batch(**settings, keep=["stars"])
    batch(**settings, keep={"stars": "int64"})
    with pytest.raises(AirflowFailException, match="type of stars"):
        batch(**settings, keep={"stars": "double"})
    assert emulator.jobs_created == 1


def test_a_row_with_an_empty_prompt_lands_with_a_status_and_is_not_paid(batch: Any, emulator: Any) -> None:
    source = [{"id": "a", "t": "x"}, {"id": "b", "t": "  "}, {"id": "c", "t": None}]
    manifest = batch(source=source, prompt="Read:\n{t}", key="id")
    assert [(row["key"], row["status"]) for row in landed(manifest)] == [("a", "ok"), ("b", "empty"), ("c", "empty")]
    assert emulator.jobs[0].request_count == 1


def test_many_shards_land_as_one_table(batch: Any, emulator: Any) -> None:
    source = [{"id": str(i), "t": f"text {i}"} for i in range(25)]
    manifest = batch(source=source, prompt="{t}", key="id", limits=Limits(requests_per_job=4, active_jobs=2))
    assert emulator.jobs_created == len(manifest["jobs"]) == 7
    assert [row["key"] for row in landed(manifest)] == [str(i) for i in range(25)]


def test_what_the_service_shuffles_drops_repeats_and_renames_stays_honest(batch: Any, emulator: Any) -> None:
    emulator.faults = Faults(shuffle_rows=True, drop_keys={"3"}, duplicate_keys={"4"}, rename_keys={"5": "other"})
    source = [{"id": str(i), "t": f"number {i}"} for i in range(10)]
    manifest = batch(source=source, prompt="Say {t}", key="id", max_rounds=1)
    rows = {row["key"]: row for row in landed(manifest)}
    assert sorted(rows) == [str(i) for i in range(10)]
    assert {key for key, row in rows.items() if row["status"] == "missing"} == {"3", "5"}
    assert manifest["counts"]["ok"] == 8
    assert manifest["odd_lines"] == {"corrupt": 0, "unknown_key": 1, "duplicate": 1}


def test_rows_that_failed_for_a_passing_reason_are_sent_again_alone(batch: Any, emulator: Any) -> None:
    emulator.faults = Faults(fail_keys={"1": {"code": 13, "message": "internal"}, "2": {"code": 3, "message": "bad"}})
    source = [{"id": str(i), "t": f"number {i}"} for i in range(5)]
    manifest = batch(source=source, prompt="Say {t}", key="id", max_rounds=2)
    rows = {row["key"]: row for row in landed(manifest)}
    assert [job.request_count for job in emulator.jobs] == [5, 1]
    assert (rows["1"]["status"], rows["1"]["error_code"], rows["1"]["round"]) == ("error", 13, 1)
    assert (rows["2"]["status"], rows["2"]["error_code"], rows["2"]["round"]) == ("error", 3, 0)
    assert sum(manifest["counts"].values()) == 5


def test_the_config_goes_where_rest_wants_it(batch: Any, emulator: Any, tmp_path: Path) -> None:
    config = {"temperature": 0.1, "maxOutputTokens": 99, "thinking_config": {"thinking_budget": 0},
              "safety_settings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}]}  # fmt: skip
    batch(source=["x"], config=config, system_instruction="Be brief.")
    (sent,) = (tmp_path / "out").glob("_gemini_batch/*/requests/r0-00000.jsonl")
    assert json.loads(sent.read_text()) == {
        "key": "0",
        "request": {
            "contents": [{"role": "user", "parts": [{"text": "x"}]}],
            "systemInstruction": {"parts": [{"text": "Be brief."}]},
            "safetySettings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}],
            "generationConfig": {"temperature": 0.1, "maxOutputTokens": 99, "thinkingConfig": {"thinkingBudget": 0}},
        },
    }


# fmt: off
BAD_INPUT: list[tuple[str, dict[str, Any], type[GeminiBatchError], str]] = [
    ("a list of file names for a prompt", {"source": ["/data/a.csv"], "prompt": "Sum up {text}", "key": None},
     InvalidConfig, "would be sent as texts"),
    ("a list of file names", {"source": ["/data/a.csv", "b.jsonl.gz"], "prompt": None, "key": None},
     InvalidConfig, "Give one URI"),
    ("a missing file", {"source": "{tmp}/none.csv"}, SourceUnreadable, "none.csv does not exist"),
    ("a directory of nothing", {"source": "{tmp}/empty"}, SourceUnreadable, "is a directory without"),
    ("a glob without files", {"source": "{tmp}/*.avro"}, SourceUnreadable, "No file matches"),
    ("an unknown ending", {"source": "{tmp}/x.xlsx"}, SourceUnreadable, "Known endings"),
    ("a file that is no Parquet", {"source": "{tmp}/fake.parquet"}, SourceUnreadable, "fake.parquet is not a readable"),
    ("a gzip cut short", {"source": "{tmp}/cut.jsonl.gz"}, SourceUnreadable, "not a whole gzip file"),
    ("a ragged CSV line", {"source": "{tmp}/ragged.csv"}, BadRow, "ragged.csv:3: 3 fields, but the header has 2"),
    ("an open quote", {"source": "{tmp}/quote.csv"}, BadRow, "quote.csv:3: broken CSV"),
    ("a CSV that is not UTF-8", {"source": "{tmp}/latin1.csv"}, BadRow, "latin1.csv:2: not UTF-8"),
    ("a broken JSON line", {"source": "{tmp}/broken.jsonl"}, BadRow, "broken.jsonl:2: broken JSON"),
    ("an unknown column",
     {"source": [{"id": 1, "text": "x"}], "prompt": "{texts}"}, UnknownColumn, "'texts'.*'id', 'text'.*Did you mean 'text'"),
    ("an unknown key column", {"key": "uid"}, UnknownColumn, "key names the column 'uid'"),
    ("an unknown kept column", {"keep": ["u"]}, UnknownColumn, "keep names the column 'u'"),
    ("a clash of kept columns",
     {"source": [{"id": 1, "t": "x", "status": "y"}], "keep": ["status"]}, InvalidConfig, "Rename"),
    ("a duplicate key",
     {"source": "{tmp}/twice.csv"}, DuplicateKey, r"twice.csv:4: the key 'a' was used before, at twice.csv:2"),
    ("a null key", {"source": [{"id": None, "t": "x"}]}, BadRow, "row 0: the key column 'id' is empty"),
    ("an empty key", {"source": "{tmp}/nokey.csv"}, BadRow, "nokey.csv:2: the key column 'id' is empty"),
    ("a row too large",
     {"limits": Limits(bytes_per_request=300), "source": [{"id": 1, "t": "x" * 300}]}, BadRow, "'1'.* bytes"),
    ("text that is no Unicode", {"source": [{"id": 1, "t": "\ud800"}]}, BadRow, "row 0: its text is not valid Unicode"),
    ("a lone brace", {"prompt": "{t} {"}, InvalidConfig, "lone '{'"),
    ("a row that is a number", {"source": [7]}, BadRow, "row 0: a row is a mapping or a string, not int"),
    ("an unknown config field", {"config": {"temprature": 1}}, InvalidConfig, "temprature"),
    ("a config of the wrong type", {"config": {"temperature": "hot"}}, InvalidConfig, "temperature"),
    ("a config out of range",
     {"config": {"temperature": 9}}, InvalidConfig, "temperature is 9.0; the API takes 0 to 2"),
    ("an empty model", {"model": " "}, InvalidConfig, "model is empty"),
    ("an unwritable output", {"output": "{tmp}/plain.txt/out"}, OutputNotWritable, "Cannot write"),
    ("an empty output", {"output": ""}, InvalidConfig, "output is ''; it takes a URI"),
    ("an unknown format", {"file_format": "xlsx"}, InvalidConfig, "file_format is 'xlsx'"),
    ("a missing connection", {"gemini_conn_id": "nope"}, InvalidConfig, "no connection 'nope'"),
    ("no rows, if asked to fail", {"source": [], "on_empty": "fail"}, NoRows, "no rows"),
]
# fmt: on


@pytest.fixture
def bad_files(tmp_path: Path) -> Path:
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.xlsx").write_text("x")
    (tmp_path / "plain.txt").write_text("x")
    (tmp_path / "fake.parquet").write_text("not parquet at all")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"id": 1, "t": "x"}\n' * 1000)[:-20])
    (tmp_path / "ragged.csv").write_text("id,t\n1,x\n2,y,z\n")
    (tmp_path / "quote.csv").write_text('id,t\n1,x\n2,"never closed\nmore\n')
    (tmp_path / "latin1.csv").write_bytes("id,t\n1,é\n".encode("latin-1"))
    (tmp_path / "broken.jsonl").write_text('{"id": 1, "t": "x"}\n{"id": 2, \n')
    (tmp_path / "twice.csv").write_text("id,t\na,x\nb,y\na,z\n")
    (tmp_path / "nokey.csv").write_text("id,t\n,x\n")
    return tmp_path


@pytest.mark.parametrize(
    ("settings", "error", "message"), [case[1:] for case in BAD_INPUT], ids=[c[0] for c in BAD_INPUT]
)
def test_bad_input_is_a_final_error_and_nothing_is_sent(
    batch: Any, emulator: Any, bad_files: Path, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    filled = {k: v.replace("{tmp}", str(bad_files)) if isinstance(v, str) else v for k, v in settings.items()}
    base = {"source": [{"id": "a", "t": "x"}], "prompt": "{t}", "key": "id"} | filled
    with pytest.raises(AirflowFailException) as caught:
        batch(**base)
    assert isinstance(caught.value.__cause__, error)
    assert caught.match(message)
    assert emulator.jobs_created == 0
    assert not any(name.startswith(("upload", "create")) for name in emulator.calls)


@pytest.mark.parametrize("limits", [{"active_jobs": 101}, {"bytes_per_job": 2_000_000_001}, {"requests_per_job": 0}])
def test_limits_over_the_apis_are_refused_when_the_dag_is_read(limits: dict[str, int]) -> None:
    with pytest.raises(InvalidConfig, match=rf"Limits.{next(iter(limits))} is"):
        Limits(**limits)


def test_no_rows_skip_the_task_by_default(batch: Any, emulator: Any) -> None:
    with pytest.raises(AirflowSkipException):
        batch(source=[], prompt="{t}")
    assert emulator.jobs_created == 0


def test_no_rows_can_succeed_with_an_empty_manifest(batch: Any) -> None:
    manifest = batch(source=[], prompt="{t}", on_empty="succeed")
    assert manifest["rows"] == 0
    assert manifest["files"] == []


def test_a_refused_key_is_a_final_error(emulator: Any, monkeypatch: Any, tmp_path: Path) -> None:
    point_at(emulator.url, monkeypatch, key="invalid-key")
    with pytest.raises(AirflowFailException) as caught:
        run_operator(batch_operator(tmp_path, source=["x"]))
    assert isinstance(caught.value.__cause__, CredentialsRefused)


def test_an_unknown_model_is_a_final_error_that_says_what_the_service_said(batch: Any) -> None:
    with pytest.raises(AirflowFailException, match="404") as caught:
        batch(source=["x"], model="no-such-model")
    assert isinstance(caught.value.__cause__, RequestRefused)


def test_a_run_without_one_good_row_fails_after_landing(batch: Any, emulator: Any, tmp_path: Path) -> None:
    emulator.faults = Faults(fail_keys={"0": {"code": 3, "message": "bad request"}})
    with pytest.raises(AirflowFailException) as caught:
        batch(source=["x"])
    assert isinstance(caught.value.__cause__, TooManyFailedRows)
    manifest = json.loads((tmp_path / "out/_gemini_batch/manifest.json").read_text())
    assert [(row["status"], row["error_message"]) for row in landed(manifest)] == [("error", "bad request")]


def test_more_failed_rows_than_allowed_fail_the_task(batch: Any, emulator: Any) -> None:
    emulator.faults = Faults(fail_keys={"0": {"code": 3, "message": "bad request"}})
    with pytest.raises(AirflowFailException, match=r"1 of 4 rows are not ok"):
        batch(source=["a", "b", "c", "d"], max_failed_ratio=0.2)


def test_the_file_of_failed_rows_is_a_source_as_it_is(batch: Any, emulator: Any, tmp_path: Path) -> None:
    rows = [{"id": name, "text": name, "shop": "Bonn"} for name in "abc"]
    emulator.faults = Faults(fail_keys={"b": {"code": 3, "message": "bad request", "times": 1}})
    first = batch(source=rows, prompt="{text}", key="id", keep=["shop"])
    for number, keep in enumerate(([], ["shop"], ["shop", "failure"])):
        again = batch(
            task_context(run_id=f"again-{number}"), source=first["failures"], keep=keep,
            output=str(tmp_path / f"again-{number}"),
        )  # fmt: skip
        (row,) = landed(again)
        assert (row["key"], row["status"]) == ("b", "ok")
        assert [row[name] is not None for name in keep] == [True] * len(keep)


def test_a_retry_after_the_end_lands_again_and_pays_nothing(batch: Any, emulator: Any) -> None:
    first = landed(batch(source=REVIEWS, prompt="{text}", key="id"))
    assert landed(batch(source=REVIEWS, prompt="{text}", key="id")) == first
    assert emulator.jobs_created == 1


def test_a_clear_lands_in_another_format_without_paying(batch: Any, emulator: Any, tmp_path: Path) -> None:
    batch(source=REVIEWS, prompt="{text}", key="id")
    manifest = batch(task_context(max_tries=1), source=REVIEWS, prompt="{text}", key="id", file_format="csv")
    assert len(landed(manifest)) == 3
    assert [path.name for path in (tmp_path / "out").glob("part-*")] == ["part-r0-00000.csv"]
    assert emulator.jobs_created == 1


def test_reuse_never_pays_again_after_a_clear_but_not_on_a_retry(batch: Any, emulator: Any) -> None:
    settings = {"source": REVIEWS, "prompt": "{text}", "key": "id", "reuse": "never"}
    batch(task_context(max_tries=0), **settings)
    batch(task_context(max_tries=0), **settings)
    assert emulator.jobs_created == 1
    manifest = batch(task_context(max_tries=1), **settings)
    assert emulator.jobs_created == 2
    assert len(landed(manifest)) == 3


def test_a_clear_of_a_failed_run_sends_only_what_is_unsettled(batch: Any, emulator: Any) -> None:
    emulator.faults = Faults(end_state="FAILED")
    settings = {"source": REVIEWS, "prompt": "{text}", "key": "id", "max_rounds": 1}
    with pytest.raises(AirflowFailException, match="failed"):
        batch(**settings)
    emulator.faults = Faults()
    manifest = batch(task_context(max_tries=1), **settings)
    assert manifest["counts"]["ok"] == 3
    assert len(landed(manifest)) == 3
    assert emulator.jobs_created == 2


def test_changed_settings_are_refused_kept_or_resubmitted(batch: Any, emulator: Any) -> None:
    batch(source=REVIEWS, prompt="{text}", key="id")
    with pytest.raises(AirflowFailException, match="prompt") as caught:
        batch(source=REVIEWS, prompt="Other: {text}", key="id")
    assert isinstance(caught.value.__cause__, SettingsChanged)
    batch(source=REVIEWS, prompt="Other: {text}", key="id", on_changed="keep")
    assert emulator.jobs_created == 1
    batch(source=REVIEWS, prompt="Other: {text}", key="id", on_changed="resubmit")
    assert emulator.jobs_created == 2


def test_what_changed_is_told_by_the_names_of_the_parameters(batch: Any, emulator: Any) -> None:
    batch(source=REVIEWS, prompt="{text}", key="id")
    for changed, named in [
        ({"config": {"temperature": 0.5}}, "config"),
        ({"config": {"temperature": "{stars}"}}, "config"),
        ({"system_instruction": "Be brief."}, "system_instruction"),
        ({"output_schema": int}, "output_schema"),
        ({"keep": ["text"], "model": "gemini-2.5-pro"}, "keep, model"),
    ]:
        with pytest.raises(SettingsChanged, match=rf"Z: {named}\. Set on_changed"):
            batch(**{"source": REVIEWS, "prompt": "{text}", "key": "id"} | changed)
    assert emulator.jobs_created == 1


def test_a_changed_source_cannot_change_what_was_planned(batch: Any, emulator: Any, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    write_jsonl(source)
    batch(source=str(source), prompt="{text}", key="id")
    source.write_text('{"id": "new", "text": "new"}\n')
    assert [row["key"] for row in landed(batch(source=str(source), prompt="{text}", key="id"))] == [
        r["id"] for r in REVIEWS
    ]


def test_an_output_of_an_unfinished_run_is_refused_with_its_owner(
    connection: str, emulator: Any, tmp_path: Path
) -> None:
    emulator.faults = Faults(stuck="RUNNING")
    operator = batch_operator(tmp_path, source=["x"])
    operator.source = ["x"]
    with pytest.raises(TaskDeferred):
        operator.execute(task_context(run_id="first"))
    with pytest.raises(AirflowFailException, match="run first") as caught:
        run_operator(batch_operator(tmp_path, source=["x"]), task_context(run_id="second"))
    assert isinstance(caught.value.__cause__, OutputTaken)
    assert emulator.jobs_created == 1


def test_a_finished_output_is_replaced_by_the_next_run(batch: Any, tmp_path: Path) -> None:
    batch(task_context(run_id="first"), source=["a", "b"], limits=Limits(requests_per_job=1))
    manifest = batch(task_context(run_id="second"), source=["c"])
    assert [path.name for path in (tmp_path / "out").glob("part-*")] == ["part-r0-00000.parquet"]
    assert manifest["run"]["run_id"] == "second"
    assert len(landed(manifest)) == 1


def test_the_manifest_of_a_large_run_stays_small_in_xcom(batch: Any) -> None:
    manifest = batch(source=[f"text {i}" for i in range(120)], limits=Limits(requests_per_job=2, active_jobs=60))
    assert manifest["jobs_count"] == manifest["files_count"] == 60
    assert len(json.dumps(manifest)) < 16_000


def test_tasks_of_one_run_cannot_take_each_others_output(batch: Any, emulator: Any) -> None:
    batch(task_context(map_index=0), source=["a"])
    with pytest.raises(AirflowFailException, match=r"\[0\] of run run-1.*map_index") as caught:
        batch(task_context(map_index=1), source=["b"])
    assert isinstance(caught.value.__cause__, OutputTaken)
    assert emulator.jobs_created == 1


def test_a_template_that_says_something_else_after_the_wait_costs_nothing(
    connection: str, emulator: Any, tmp_path: Path
) -> None:
    operator = batch_operator(tmp_path, source=["a"], system_instruction="It is noon.", on_changed="resubmit")
    manifest = run_operator(operator, on_defer=lambda _: setattr(operator, "system_instruction", "It is one o'clock."))
    assert manifest["counts"]["ok"] == 1
    assert emulator.jobs_created == 1


def test_a_redirected_create_is_not_sent_again_and_takes_no_key_elsewhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, emulator: Any
) -> None:
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    seen: list[tuple[str, str | None]] = []

    class Redirecting(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append((self.path, self.headers.get("x-goog-api-key")))
            self.send_response(307)
            self.send_header("Location", emulator.url + self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Redirecting)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        point_at(f"http://127.0.0.1:{server.server_port}", monkeypatch)
        monkeypatch.setattr("airflow_gemini_batch.core.client.ATTEMPTS", 1)
        with pytest.raises(GeminiBatchError) as caught:
            run_operator(batch_operator(tmp_path, source=["a"]))
    finally:
        server.shutdown()
        server.server_close()
    assert getattr(caught.value, "retryable", False)
    assert len(seen) == 1
    assert sum(emulator.calls.values()) == 0


def test_a_replaced_plan_takes_its_unrecorded_job_along(
    batch: Any, emulator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_gemini_batch.core.ledger import Ledger

    emulator.faults = Faults(stuck="RUNNING")
    with monkeypatch.context() as patch:

        def dies(*_: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(Ledger, "submitted", dies)
        with pytest.raises(KeyboardInterrupt):
            batch(task_context(max_tries=0), source=["a"], reuse="never")
    emulator.faults = Faults(stuck_models={"gemini-2.5-flash": "RUNNING"})
    manifest = batch(task_context(max_tries=1), source=["a"], reuse="never", model="gemini-2.5-pro")
    assert manifest["counts"]["ok"] == 1
    assert [job.state for job in emulator.jobs] == ["CANCELLED", "SUCCEEDED"]
