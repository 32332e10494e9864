"""The whole way without Airflow: rows in, landed rows out, against the emulator; time passes only where a test says so."""

from __future__ import annotations

import csv
import json
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_gemini_batch.core import storage
from airflow_gemini_batch.core.attempt import Policy, Run, Services
from airflow_gemini_batch.core.client import Client
from airflow_gemini_batch.core.flow import CANCEL_TAKES, Waiting, advance, cancel_running, note_cleared
from airflow_gemini_batch.core.layout import OutputDirectory
from airflow_gemini_batch.core.manifest import Manifest
from airflow_gemini_batch.core.names import RunId
from airflow_gemini_batch.core.plan import Plan
from airflow_gemini_batch.core.requests import Spec
from airflow_gemini_batch.core.rest import Account
from airflow_gemini_batch.core.rows import RecordSource
from airflow_gemini_batch.core.shards import Limits
from airflow_gemini_batch.core.waiting import Outcome
from airflow_gemini_batch.emulator import Emulator, Faults, HttpError, Options, RowError, Truncation
from airflow_gemini_batch.exceptions import (
    BadRow,
    CredentialsRefused,
    DuplicateKey,
    InvalidConfig,
    InvalidInput,
    JobCancelled,
    JobExpired,
    JobFailed,
    JobGone,
    JobStillRunning,
    JobTimedOut,
    NoRows,
    OutputTaken,
    QuotaExceeded,
    RequestRefused,
    RunFailed,
    ServiceUnreachable,
    SettingsChanged,
    ShardDamaged,
    StateUnreadable,
    Superseded,
    TooManyFailedRows,
)

AWKWARD = 'a,"b"\r\nc\u2028d\u2029e\u0085f\x1cg\x0bh\ti 😀 \\n é\x01'


def soon(seconds: float) -> None:
    """Pauses that are there for the real service's sake."""
    time.sleep(min(seconds, 0.02))


def landed(manifest: Manifest) -> list[dict[str, Any]]:
    """Every row of the files that the manifest names, and of no others."""
    rows: list[dict[str, Any]] = []
    for name in map(Path, manifest.files):
        if name.suffix == ".parquet":
            rows += pq.read_table(name).to_pylist()
        elif name.suffix == ".jsonl":
            rows += [json.loads(line) for line in name.read_bytes().split(b"\n") if line]
        else:
            with name.open(newline="", encoding="utf-8") as f:
                rows += list(csv.DictReader(f, strict=True))
    return rows


def parts(run: Run) -> set[str]:
    return {path.name for path in run.output.path.iterdir() if path.is_file()}


def check(manifest: Manifest, keys: list[str]) -> dict[str, dict[str, Any]]:
    """One row per key, counts that add up, and only the named files."""
    rows = landed(manifest)
    assert sorted(row["key"] for row in rows) == sorted(keys)
    assert Counter(row["status"] for row in rows) == Counter({s: n for s, n in manifest.counts.items() if n})
    assert manifest.rows == len(keys) == sum(manifest.counts.values())
    assert {Path(name).name for name in manifest.files} == {
        path.name for path in Path(manifest.output).iterdir() if path.is_file()
    }
    return {row["key"]: row for row in rows}


# Rows in, rows out


@pytest.mark.parametrize("file_format", ["parquet", "jsonl", "csv"])
def test_rows_in_are_rows_out_under_their_own_keys_with_awkward_text(emulator, make_run, finish, file_format):
    rows = [{"id": f"{AWKWARD}{n}", "review": f"{AWKWARD} review {n}", "title": f"{n}{AWKWARD}"} for n in range(5)]
    run = make_run(
        rows, prompt="Sum up: {review}", key="id", keep=("title",), file_format=file_format, delete_remote="never"
    )
    manifest = finish(run)
    by_key = check(manifest, [row["id"] for row in rows])
    assert {key: row["title"] for key, row in by_key.items()} == {row["id"]: row["title"] for row in rows}
    assert all(row["status"] == "ok" and row["text"] for row in by_key.values())
    # What went over the wire is what was meant.
    (file,) = (file for file in emulator.files if "batch-" not in file["name"])
    sent = [json.loads(line) for line in emulator.read_file(file["name"]).split(b"\n") if line]
    assert [(one["key"], one["request"]["contents"][0]["parts"][0]["text"]) for one in sent] == [
        (row["id"], f"Sum up: {row['review']}") for row in rows
    ]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_file_of_any_kind_goes_through(tmp_path, make_run, finish, kind):
    import pyarrow as pa

    path = tmp_path / f"in.{kind}"
    rows = [{"id": str(n), "review": f"{AWKWARD}{n}"} for n in range(4)]
    if kind == "csv":
        with path.open("w", newline="", encoding="utf-8") as f:
            writer = csv.DictWriter(f, ["id", "review"], quoting=csv.QUOTE_ALL)
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "jsonl":
        path.write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8", newline=""
        )
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    manifest = finish(make_run([path], prompt="{review}", key="id", keep=("review",)))
    by_key = check(manifest, [row["id"] for row in rows])
    assert {key: row["review"] for key, row in by_key.items()} == {row["id"]: row["review"] for row in rows}


def test_the_same_prompt_gets_the_same_answer_in_its_own_row(make_run, finish):
    """The emulator answers by rule, so a row that got its neighbour's answer would show."""
    alone = {text: landed(finish(make_run([text], out=text)))[0]["text"] for text in ("apples", "pears", "plums")}
    together = landed(finish(make_run(list(alone))))
    assert [row["text"] for row in together] == list(alone.values())


def test_a_large_source_is_cut_into_jobs_and_no_row_is_lost(emulator, make_run, finish):
    manifest = finish(make_run([f"row {n}" for n in range(25)], limits=Limits(requests_per_job=4)))
    check(manifest, [str(n) for n in range(25)])
    assert [job.request_count for job in emulator.jobs] == [4, 4, 4, 4, 4, 4, 1]
    assert [job["slot"] for job in manifest.jobs] == [f"r0-{n:05d}" for n in range(7)]
    assert len(manifest.files) == 7


def test_the_manifest_tells_tokens_and_cost(make_run, finish):
    manifest = finish(make_run())
    rows = landed(manifest)
    assert manifest.usage.prompt_tokens == sum(row["prompt_tokens"] for row in rows) > 0
    assert manifest.usage.thoughts_tokens == sum(row["thoughts_tokens"] for row in rows)
    assert manifest.cost["actual_usd"] > 0
    assert Manifest.load(OutputDirectory(Path(manifest.output))) == manifest


def test_an_unknown_price_is_null(make_run, finish):
    assert finish(make_run(model="gemini-9.9-unpriced")).cost["actual_usd"] is None


CHAOS = st.fixed_dictionaries(
    {},
    optional={
        "shuffle_rows": st.booleans(), "no_trailing_newline": st.booleans(), "blank_lines": st.booleans(),
        "crlf": st.booleans(),
        "drop_keys": st.sets(st.sampled_from("0123")), "duplicate_keys": st.sets(st.sampled_from("4567")),
        "rename_keys": st.dictionaries(st.sampled_from("0189"), st.sampled_from(["9", "stranger", "2"]), max_size=2),
        "keyless_keys": st.sets(st.sampled_from("23"), max_size=1), "extra_keys": st.lists(st.sampled_from(["x",
        "y"]), max_size=2),
        "corrupt_lines": st.sets(st.integers(1, 10), max_size=3), "empty_keys": st.sets(st.sampled_from("56"), max_size=1),
        "blocked_keys": st.sets(st.sampled_from("57"), max_size=1), "truncate_keys": st.sets(st.sampled_from("6"),
        max_size=1),
        "fail_keys": st.dictionaries(st.sampled_from("3789"), st.builds(RowError, st.sampled_from([3, 8, 13])), max_size=3),
        "fail_ratio": st.sampled_from([0.0, 0.3]),
    },
)  # fmt: skip


@settings(max_examples=15)
@given(CHAOS, st.sampled_from(["parquet", "jsonl", "csv"]), st.integers(1, 3), st.sampled_from([3, 50]))
def test_every_row_lands_once_whatever_the_result_files_do(faults, file_format, rounds, per_job):
    keys = [str(n) for n in range(10)]
    with Emulator(faults=Faults(**faults)) as gemini, tempfile.TemporaryDirectory() as directory:
        client = Client(Account("k", gemini.url, timeout=5), sleep=lambda _: None)
        run = Run(
            RunId("d", "t", "r"), lambda: RecordSource([f"row {key}" for key in keys]), Spec("gemini-2.5-flash"),
            OutputDirectory(Path(directory) / "out"),
            Policy(file_format=file_format, max_rounds=rounds, limits=Limits(requests_per_job=per_job)),
        )  # fmt: skip
        services = Services(client, sleep=soon)
        try:
            reached: Waiting | Manifest = advance(run, services, starting=True)
            while isinstance(reached, Waiting):
                reached = advance(run, services)
        except TooManyFailedRows:
            reached = Manifest.load(run.output)  # landed all the same
        finally:
            client.close()
        check(reached, keys)
        assert reached.rounds <= rounds
        assert gemini.calls["create"] == gemini.jobs_created == len(reached.jobs)


# Input that cannot be used: nothing is sent, nothing is left


def test_duplicate_keys_name_both_rows_and_nothing_is_sent(tmp_path, emulator, make_run, finish):
    path = tmp_path / "in.csv"
    path.write_text('id,review\na,1\n"b",2\nc,"3\n3"\nb,4\n')
    run = make_run([path], prompt="{review}", key="id", limits=Limits(requests_per_job=2))
    with pytest.raises(DuplicateKey) as caught:
        finish(run)
    assert (caught.value.key, caught.value.first, caught.value.second) == ("b", "in.csv:3", "in.csv:6")
    assert not emulator.calls
    assert [path for path in run.output.path.rglob("*") if path.is_file()] == []


def test_a_bad_last_row_leaves_nothing_behind(emulator, make_run, finish):
    run = make_run(["a", "b", "c", 5], limits=Limits(requests_per_job=2))
    with pytest.raises(InvalidInput, match="row 3"):
        finish(run)
    assert not emulator.calls
    assert [path for path in run.output.path.rglob("*") if path.is_file()] == []


def test_a_row_that_is_no_unicode_is_named_and_nothing_is_sent(emulator, make_run, finish):
    with pytest.raises(InvalidInput, match="row 1"):
        finish(make_run(["fine", "\ud800"]))
    assert not emulator.calls


@pytest.mark.parametrize("on_empty", ["skip", "fail"])
def test_a_source_without_rows_is_told(emulator, make_run, finish, on_empty):
    with pytest.raises(NoRows):
        finish(make_run([], on_empty=on_empty))
    assert not emulator.calls


def test_a_source_without_rows_may_be_fine(emulator, make_run, finish):
    manifest = finish(make_run([], on_empty="succeed"))
    assert (manifest.rows, manifest.files, manifest.jobs) == (0, (), ())
    assert not emulator.calls["create"]


def test_blank_rows_are_landed_as_empty_and_not_paid(emulator, make_run, finish):
    manifest = finish(make_run(["a", " ", "", "d"]))
    by_key = check(manifest, ["0", "1", "2", "3"])
    assert [by_key[key]["status"] for key in "0123"] == ["ok", "empty", "empty", "ok"]
    assert by_key["1"]["job"] is None
    assert [job.request_count for job in emulator.jobs] == [2]


def test_nothing_but_blank_rows_costs_nothing(emulator, make_run, finish):
    with pytest.raises(TooManyFailedRows, match="Not one of 2 rows is ok"):
        finish(make_run(["", " "]))
    assert not emulator.calls["create"]
    assert not emulator.calls["upload_start"]


@pytest.mark.parametrize(
    "policy",
    [{"file_format": "xml"}, {"timeout": 0}, {"max_rounds": 0}, {"max_failed_ratio": 1.5}, {"on_timeout": "wait"},
     {"reuse": "always"}, {"on_changed": "ask"}, {"on_empty": ""}, {"delete_remote": True}],
)  # fmt: skip
def test_a_setting_that_makes_no_sense_says_what_it_takes(policy):
    with pytest.raises(InvalidConfig, match=f"{next(iter(policy))} is .*; it takes"):
        Policy(**policy)


# Paid once


@pytest.mark.parametrize(
    "faults",
    [
        {"drop_after": {"create": 1}},
        {"drop_before": {"create": 1}},
        {"http_errors": {"create": HttpError(503, times=1, recorded=True)}},
        {"http_errors": {"create": HttpError(500, times=1)}},
        {"http_errors": {"create": HttpError(200, times=1, recorded=True, body="<html>")}},
        {"drop_after": {"create": 1}, "list_lag": 0.3},
        {"http_errors": {"create": HttpError(404, times=1, html=True)}},
    ],
    ids=lambda faults: "+".join(faults),
)
def test_a_create_in_doubt_is_looked_for_before_another_is_sent(emulator, make_run, finish, connect, faults):
    emulator.faults = Faults(**faults)
    # A short time limit, so that the doubt is soon resolved.
    manifest = finish(make_run(), Services(connect(timeout=0.4), sleep=soon))
    check(manifest, ["0", "1", "2"])
    assert emulator.jobs_created == 1


def test_a_list_that_cannot_be_read_never_leads_to_another_create(emulator, make_run, finish):
    emulator.faults = Faults(drop_after={"create": 1}, http_errors={"list": HttpError(503)})
    run = make_run()
    with pytest.raises(ServiceUnreachable):
        finish(run)
    assert emulator.calls["create"] == 1
    emulator.faults = Faults()
    check(finish(run), ["0", "1", "2"])
    assert emulator.calls["create"] == emulator.jobs_created == 1


class Killed(BaseException):
    """What SIGKILL looks like from the inside: nothing that is written for errors sees it."""


class Countdown:
    """Kills at the n-th event."""

    def __init__(self, events: int) -> None:
        self.left = events

    def tick(self) -> None:
        if self.left == 0:
            self.left -= 1
            raise Killed
        self.left -= 1

    def watch(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.tick()
            result = function(*args, **kwargs)
            self.tick()
            return result

        return watched


def kill_in_service_calls(patch: pytest.MonkeyPatch, countdown: Countdown) -> None:
    for name in ("upload", "create", "list_jobs", "look", "download", "delete_file"):
        patch.setattr(Client, name, countdown.watch(getattr(Client, name)))


def kill_in_storage(patch: pytest.MonkeyPatch, countdown: Countdown) -> None:
    writing = storage.writing

    @contextmanager
    def watched(*args: Any, **kwargs: Any) -> Any:
        countdown.tick()
        with writing(*args, **kwargs) as f:
            yield f
            countdown.tick()  # written, but not in place
        countdown.tick()

    patch.setattr(storage, "writing", watched)
    patch.setattr(storage, "claim", countdown.watch(storage.claim))


@pytest.mark.parametrize("kill", [kill_in_service_calls, kill_in_storage])
def test_killed_at_any_moment_the_next_attempt_goes_on_and_pays_once(emulator, make_run, finish, connect, kill):
    client = connect(timeout=0.8)
    deaths = 0
    for moment in range(200):
        run = make_run(["a", "b", "c"], out=f"out-{moment}", run_id=str(moment))
        before = emulator.jobs_created
        countdown = Countdown(moment)
        with pytest.MonkeyPatch.context() as patch:
            kill(patch, countdown)
            try:
                finish(run, Services(client, sleep=soon))
            except Killed:
                deaths += 1
        check(finish(run, Services(client, sleep=soon)), ["0", "1", "2"])
        assert emulator.jobs_created - before == 1, f"killed at event {moment}"
        if countdown.left >= 0:
            break
    assert deaths > 10
    assert countdown.left >= 0, "there are more moments to be killed at"


def test_attempts_that_overlap_pay_once_and_land_the_same(emulator, make_run, finish, connect):
    clients = [connect(timeout=1.0) for _ in range(3)]
    start = threading.Barrier(len(clients))

    def attempt(client: Client) -> Manifest:
        start.wait()
        return finish(make_run(["a", "b", "c"], limits=Limits(requests_per_job=2)), Services(client, sleep=soon))

    with ThreadPoolExecutor(len(clients)) as pool:
        manifests = list(pool.map(attempt, clients))
    assert emulator.jobs_created == 2
    for manifest in manifests:
        check(manifest, ["0", "1", "2"])


def test_a_finished_run_that_is_asked_for_again_pays_nothing_and_lands_the_same(emulator, make_run, finish):
    run = make_run()
    first = landed(finish(run))
    for path in run.output.path.glob("part-*"):
        path.unlink()
    assert landed(finish(run)) == first
    assert emulator.jobs_created == 1


def test_another_format_is_landed_from_what_is_there(emulator, make_run, finish):
    finish(make_run(file_format="jsonl"))
    run = make_run(file_format="csv")
    check(finish(run), ["0", "1", "2"])
    assert parts(run) == {"part-r0-00000.csv"}
    assert emulator.jobs_created == 1


def test_a_source_that_changes_later_changes_nothing(emulator, make_run, finish):
    check(finish(make_run(["a", "b"])), ["0", "1"])
    check(finish(make_run(["x", "y", "z"])), ["0", "1"])
    assert emulator.jobs_created == 1


def test_a_damaged_request_file_is_never_sent(emulator, make_run, finish):
    run = make_run()
    emulator.faults = Faults(http_errors={"upload_start": HttpError(400)})
    with pytest.raises(Exception, match="HTTP 400"):
        finish(run)
    emulator.faults = Faults()
    (path,) = run.output.path.rglob("requests/*.jsonl")
    path.write_bytes(path.read_bytes().replace(b'"a"', b'"b"'))
    with pytest.raises(ShardDamaged):
        finish(run)
    assert not emulator.calls["create"]


@pytest.mark.parametrize("step", ["claim-1", "job"])
def test_a_ledger_that_cannot_be_read_leads_to_no_second_job(emulator, make_run, client, finish, step):
    emulator.faults = Faults(stuck="RUNNING")
    run = make_run()
    advance(run, Services(client, sleep=soon), starting=True)
    (path,) = run.output.path.rglob(f"{step}.json")
    if step == "claim-1":
        next(run.output.path.rglob("job.json")).unlink()
    path.write_bytes(b"{")
    with pytest.raises(StateUnreadable):
        finish(run)
    assert emulator.jobs_created == 1


def test_an_upload_that_is_gone_is_sent_again(emulator, make_run, finish):
    run = make_run(quota_timeout=0)
    emulator.faults = Faults(http_errors={"create": HttpError(429)})
    with pytest.raises(QuotaExceeded):
        finish(run)
    emulator.clock.advance(49 * 3600)
    emulator.faults = Faults()
    check(finish(run), ["0", "1", "2"])
    assert emulator.calls["upload_start"] == 2
    assert emulator.jobs_created == 1


# Quotas


@pytest.mark.parametrize("active", [1, 2, 20])
def test_more_jobs_than_may_be_active_run_one_after_the_other(connect, make_run, finish, active):
    with Emulator(options=Options(concurrent_jobs=active), states=["RUNNING", "SUCCEEDED"]) as gemini:
        run = make_run([f"row {n}" for n in range(6)], limits=Limits(requests_per_job=1, active_jobs=4))
        check(finish(run, Services(connect(gemini.url))), [str(n) for n in range(6)])
        assert gemini.jobs_created == 6


def test_a_run_that_has_no_patience_fails_at_the_first_refusal_and_is_worth_a_retry(emulator, make_run, finish):
    emulator.faults = Faults(http_errors={"create": HttpError(429)})
    with pytest.raises(QuotaExceeded) as caught:
        finish(make_run(quota_timeout=0))
    assert caught.value.retryable
    assert emulator.calls["create"] == 1


# Rounds


def test_a_row_that_failed_for_a_passing_reason_is_sent_again_alone(emulator, make_run, finish):
    emulator.faults = Faults(fail_keys={"1": RowError(13, times=1)}, drop_keys=())
    manifest = finish(make_run())
    by_key = check(manifest, ["0", "1", "2"])
    assert {key: (row["status"], row["round"]) for key, row in by_key.items()} == {
        "0": ("ok", 0), "1": ("ok", 1), "2": ("ok", 0),
    }  # fmt: skip
    assert [job.keys for job in emulator.jobs] == [("0", "1", "2"), ("1",)]


def test_a_row_that_failed_for_good_is_not_sent_again(emulator, make_run, finish):
    emulator.faults = Faults(fail_keys={"1": RowError(3, "too long")}, blocked_keys={"2"})
    by_key = check(finish(make_run(max_rounds=5)), ["0", "1", "2"])
    assert [by_key[key]["status"] for key in "012"] == ["ok", "error", "blocked"]
    assert (by_key["1"]["error_code"], by_key["1"]["error_message"]) == (3, "too long")
    assert emulator.jobs_created == 1


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_rounds_end_and_what_is_left_is_landed_with_its_reason(emulator, make_run, finish, rounds):
    emulator.faults = Faults(fail_keys={"1": RowError(8, "quota")}, drop_keys={"2"})
    by_key = check(finish(make_run(max_rounds=rounds)), ["0", "1", "2"])
    assert [(by_key[k]["status"], by_key[k]["round"]) for k in "012"] == [
        ("ok", 0),
        ("error", rounds - 1),
        ("missing", rounds - 1),
    ]
    assert by_key["1"]["error_message"] == "quota"
    assert [job.keys for job in emulator.jobs] == [("0", "1", "2")] + [("1", "2")] * (rounds - 1)


def test_lines_that_belong_to_no_row_are_kept_aside_and_counted(emulator, make_run, finish):
    emulator.faults = Faults(extra_keys=["stranger"], duplicate_keys={"0"}, keyless_keys={"2"})
    run = make_run(max_rounds=1)
    manifest = finish(run)
    assert manifest.odd_lines == {"corrupt": 1, "unknown_key": 1, "duplicate": 1}
    (aside,) = run.output.path.rglob("rejected/*.jsonl")
    rejected = [json.loads(line) for line in aside.read_bytes().splitlines()]
    assert len(rejected) == 3
    assert any("stranger" in one["text"] for one in rejected)


@pytest.mark.parametrize("how", ["short", "drop", "chunked"])
def test_a_result_file_that_comes_short_is_fetched_again(emulator, make_run, finish, client, how):
    emulator.faults = Faults(truncate_download=Truncation(how=how, at=0.4, times=1))
    check(finish(make_run(), Services(client, sleep=soon)), ["0", "1", "2"])
    assert emulator.calls["download"] == 2
    assert emulator.jobs_created == 1


@pytest.mark.parametrize(("ratio", "fails"), [(None, False), (0.5, False), (0.3, True), (0.0, True)])
def test_too_many_failed_rows_fail_the_run_after_landing(emulator, make_run, finish, ratio, fails):
    emulator.faults = Faults(fail_keys={"1": RowError(3), "3": RowError(3)})
    run = make_run(list("abcde"), max_failed_ratio=ratio)
    if fails:
        with pytest.raises(TooManyFailedRows, match="2 of 5 rows are not ok"):
            finish(run)
    else:
        finish(run)
    check(Manifest.load(run.output), list("01234"))


# Jobs that do not end well


@pytest.mark.parametrize(
    ("state", "error", "jobs"),
    [("FAILED", JobFailed, 2), ("EXPIRED", JobExpired, 2), ("CANCELLED", JobCancelled, 1)],
)
def test_a_job_that_ends_badly_fails_the_run_and_a_clear_sends_only_what_is_left(
    emulator, make_run, finish, state, error, jobs
):
    emulator.faults = Faults(end_state=state)
    run = make_run(["a", "", "c"])
    with pytest.raises(error) as caught:
        finish(run)
    assert not caught.value.retryable
    assert emulator.jobs_created == jobs
    by_key = check(Manifest.load(run.output), ["0", "1", "2"])
    assert [by_key[key]["status"] for key in "012"] == ["error", "empty", "error"]
    assert state in by_key["0"]["error_message"]

    emulator.faults = Faults()
    check(finish(run), ["0", "1", "2"])
    assert [job.keys for job in emulator.jobs][-1] == ("0", "2")
    assert emulator.jobs_created == jobs + 1


@pytest.mark.parametrize(("code", "jobs"), [(13, 2), (14, 2), (8, 2), (3, 1), (5, 1), (9, 1)])
def test_a_failed_job_is_sent_again_only_if_its_error_may_pass(emulator, make_run, finish, code, jobs):
    emulator.faults = Faults(end_state="FAILED", end_state_jobs=1, end_error={"code": code, "message": "so it goes"})
    run = make_run()
    if jobs == 2:
        check(finish(run), ["0", "1", "2"])
    else:
        with pytest.raises(JobFailed, match="so it goes"):
            finish(run)
    assert emulator.jobs_created == jobs


def test_what_a_partly_succeeded_job_answered_is_kept_and_the_rest_sent_again(emulator, make_run, finish):
    emulator.faults = Faults(end_state="PARTIALLY_SUCCEEDED", end_state_jobs=1, end_results=0.5)
    check(finish(make_run(list("abcd"))), list("0123"))
    assert [job.keys for job in emulator.jobs] == [("0", "1", "2", "3"), ("2", "3")]


def test_results_of_an_expired_job_are_not_thrown_away(emulator, make_run, finish):
    emulator.faults = Faults(end_state="EXPIRED", end_state_jobs=1, end_results=0.5)
    check(finish(make_run(list("abcd"))), list("0123"))
    assert [job.keys for job in emulator.jobs] == [("0", "1", "2", "3"), ("2", "3")]


def test_a_job_that_vanished_is_told_and_not_paid_again_by_itself(emulator, make_run, finish, client):
    emulator.faults = Faults(stuck="RUNNING")
    run = make_run()
    waiting = advance(run, Services(client, sleep=soon), starting=True)
    client.delete_job(waiting.waits[0].job)
    with pytest.raises(JobGone):
        finish(run)
    assert emulator.jobs_created == 1


@pytest.mark.parametrize("list_fails", [{}, {"list": HttpError(503)}], ids=["listed", "no list"])
def test_a_job_that_get_denies_is_never_called_lost_while_the_list_may_have_it(
    emulator, make_run, client, finish, list_fails
):
    emulator.faults = Faults(stuck="RUNNING")
    run = make_run()
    waiting = advance(run, Services(client, sleep=soon), starting=True)
    (wait,) = waiting.waits
    emulator.faults = Faults(stuck="RUNNING", http_errors={"get": HttpError(404), **list_fails})
    for _ in range(3):
        assert advance(run, Services(client, sleep=soon), outcomes=(Outcome(wait.job, "gone"),)) == waiting
    emulator.faults = Faults()
    check(finish(run), ["0", "1", "2"])
    assert emulator.jobs_created == 1


def test_a_job_that_only_the_list_shows_is_landed_when_it_has_ended(emulator, make_run, finish):
    emulator.faults = Faults(http_errors={"get": HttpError(404)})
    check(finish(make_run()), ["0", "1", "2"])
    assert emulator.jobs_created == 1


def test_a_job_that_only_the_list_shows_is_cancelled_at_its_deadline(emulator, make_run, patient, clock):
    emulator.faults = Faults(stuck="RUNNING", http_errors={"get": HttpError(404)})
    run = make_run()
    advance(run, patient, starting=True)
    clock.now += 49 * 3600
    advance(run, patient)
    assert [job.state for job in emulator.jobs] == ["CANCELLED"]


def test_one_look_that_says_gone_proves_nothing(emulator, make_run, client):
    emulator.faults = Faults(stuck="RUNNING")
    run = make_run()
    waiting = advance(run, Services(client, sleep=soon), starting=True)
    emulator.faults = Faults(stuck="RUNNING", http_errors={"get": HttpError(404)})
    assert advance(run, Services(client, sleep=soon)) == waiting


def test_a_state_nobody_knows_is_waited_out(emulator, make_run, finish):
    emulator.faults = Faults(unknown_state="BATCH_STATE_HIBERNATING", unknown_state_looks=3)
    check(finish(make_run()), ["0", "1", "2"])


# Deadlines


@pytest.fixture
def patient(client, clock) -> Services:
    """The emulator's client in a time that passes only in sleep."""
    clock.now = time.time()
    return Services(client, clock, clock.sleep)


def test_a_job_past_its_deadline_is_cancelled_and_its_rows_sent_again(emulator, make_run, finish, patient, clock):
    emulator.faults = Faults(stuck="RUNNING")
    run = make_run(timeout=3600)
    began = clock.now
    with pytest.raises(JobTimedOut):
        finish(run, patient, interval=300)
    assert [job.state for job in emulator.jobs] == ["CANCELLED", "CANCELLED"]
    assert clock.now - began == pytest.approx(2 * 3600, abs=120)
    check(Manifest.load(run.output), ["0", "1", "2"])


def test_a_job_that_may_run_on_is_left_alone_and_its_run_can_be_taken_up(emulator, make_run, finish, patient):
    emulator.faults = Faults(stuck="RUNNING")
    with pytest.raises(JobStillRunning, match="left running"):
        finish(make_run(timeout=3600, on_timeout="leave"), patient, interval=300)
    assert [job.state for job in emulator.jobs] == ["RUNNING"]
    assert not emulator.calls["cancel"]
    emulator.faults = Faults()
    check(finish(make_run(timeout=7200, on_timeout="leave"), patient), ["0", "1", "2"])
    assert emulator.jobs_created == 1


def test_a_cancel_that_changes_nothing_is_given_up_after_a_while(emulator, make_run, finish, patient, clock):
    emulator.faults = Faults(stuck="RUNNING", cancel_ignored=True)
    began = clock.now
    with pytest.raises(JobTimedOut):
        finish(make_run(timeout=3600, max_rounds=1), patient, interval=300)
    assert clock.now - began == pytest.approx(3600 + CANCEL_TAKES, abs=60)


def test_a_job_that_ends_while_it_is_cancelled_is_landed(emulator, make_run, finish, patient):
    emulator.faults = Faults(stuck="RUNNING", cancel_race=True)
    check(finish(make_run(timeout=3600), patient, interval=300), ["0", "1", "2"])
    assert emulator.jobs_created == 1


def test_a_service_that_is_away_at_the_deadline_is_no_end(emulator, make_run, patient, clock):
    emulator.faults = Faults(stuck="RUNNING")
    run = make_run(timeout=3600)
    (wait,) = advance(run, patient, starting=True).waits
    clock.now = wait.deadline + 1
    emulator.faults = Faults(stuck="RUNNING", http_errors={"*": HttpError(503)})
    assert isinstance(advance(run, patient, outcomes=[Outcome(wait.job, "timed_out")]), Waiting)
    clock.now += 700
    with pytest.raises(ServiceUnreachable):
        advance(run, patient, outcomes=[Outcome(wait.job, "timed_out")])
    emulator.faults = Faults()
    assert isinstance(advance(run, patient), Manifest)
    assert emulator.jobs_created == 1


def test_a_key_that_is_refused_at_the_deadline_is_no_end_either(emulator, make_run, patient, connect, clock):
    """The job cannot have been cancelled, so it must not be counted as such, or its rows would be paid twice."""
    emulator.faults = Faults(stuck="RUNNING")
    run = make_run(timeout=3600)
    (wait,) = advance(run, patient, starting=True).waits
    clock.now = wait.deadline + 1
    with pytest.raises(CredentialsRefused):
        advance(run, Services(connect(key="invalid"), clock, clock.sleep), outcomes=[Outcome(wait.job, "timed_out")])
    assert [job.state for job in emulator.jobs] == ["RUNNING"]


def test_a_cancel_that_was_not_accepted_is_tried_again(emulator, make_run, finish, patient):
    emulator.faults = Faults(stuck="RUNNING", http_errors={"cancel": HttpError(503, times=1)})
    with pytest.raises(RunFailed):
        finish(make_run(timeout=3600, max_rounds=1), patient, interval=300)
    assert [job.state for job in emulator.jobs] == ["CANCELLED"]


def test_a_refused_key_is_told_when_the_wait_was_sure_of_it(emulator, make_run, client, connect):
    emulator.faults = Faults(stuck="RUNNING")
    run = make_run()
    (wait,) = advance(run, Services(client, sleep=soon), starting=True).waits
    refused = Services(connect(key="invalid"))
    assert advance(run, refused).waits[0].job == wait.job
    with pytest.raises(CredentialsRefused, match="adopted"):
        advance(run, refused, outcomes=[Outcome(wait.job, "refused")])
    emulator.faults = Faults()
    assert isinstance(advance(run, Services(client, sleep=soon), starting=True), Manifest)
    assert emulator.jobs_created == 1


# Settings, runs and outputs


def test_changed_settings_stop_the_run_by_default(emulator, make_run, finish):
    finish(make_run(model="gemini-2.5-flash"))
    with pytest.raises(SettingsChanged, match="model"):
        finish(make_run(model="gemini-2.5-pro"))
    assert emulator.jobs_created == 1


def test_changed_settings_may_be_passed_over(emulator, make_run, finish):
    finish(make_run(model="gemini-2.5-flash"))
    assert finish(make_run(model="gemini-2.5-pro", on_changed="keep")).model == "gemini-2.5-flash"
    assert emulator.jobs_created == 1


def test_changed_settings_may_be_paid_for_anew_and_old_jobs_are_cancelled(emulator, make_run, finish, client):
    emulator.faults = Faults(stuck_models={"gemini-2.5-flash": "RUNNING"})
    advance(make_run(list("abc"), limits=Limits(requests_per_job=1)), Services(client, sleep=soon), starting=True)
    run = make_run(["x"], model="gemini-2.5-pro", on_changed="resubmit")
    manifest = finish(run)
    check(manifest, ["0"])
    assert manifest.plan == 2
    assert [job.state for job in emulator.jobs] == ["CANCELLED"] * 3 + ["SUCCEEDED"]


def test_never_reuse_pays_anew_for_a_clear_and_not_for_a_retry(emulator, make_run, finish):
    for clears, jobs in [(0, 1), (0, 1), (1, 2), (1, 2), (5, 3)]:
        check(finish(make_run(reuse="never", clears=clears)), ["0", "1", "2"])
        assert emulator.jobs_created == jobs


def test_never_reuse_also_knows_a_clear_of_a_running_task_by_the_note_it_left(emulator, make_run, finish):
    finish(make_run(reuse="never"))
    note_cleared(make_run())
    finish(make_run(reuse="never"))
    assert emulator.jobs_created == 2


def test_an_output_of_an_unfinished_run_is_not_taken_over(emulator, make_run, finish, client):
    emulator.faults = Faults(stuck="RUNNING")
    advance(make_run(), Services(client, sleep=soon), starting=True)
    with pytest.raises(OutputTaken, match="run-1"):
        finish(make_run(run_id="run-2"))
    assert emulator.jobs_created == 1


def test_an_output_of_a_finished_run_is_replaced_whole(make_run, finish):
    finish(make_run(list("abcde"), limits=Limits(requests_per_job=1)))
    run = make_run(["x"], run_id="run-2")
    check(finish(run), ["0"])
    assert parts(run) == {"part-r0-00000.jsonl"}


def test_an_attempt_whose_plan_was_replaced_stops(emulator, make_run, client, connect, monkeypatch):
    emulator.faults = Faults(stuck="RUNNING")
    run = make_run()
    advance(run, Services(client, sleep=soon), starting=True)
    slow, upload = connect(), client.upload
    once = iter([True])

    def upload_while_another_attempt_plans(*args: Any, **kwargs: Any) -> Any:
        if next(once, False):
            changed = make_run(model="gemini-2.5-flash-lite", on_changed="resubmit")
            advance(changed, Services(client, sleep=soon), starting=True)
        return upload(*args, **kwargs)

    monkeypatch.setattr(slow, "upload", upload_while_another_attempt_plans)
    with pytest.raises(Superseded):
        advance(make_run(model="gemini-2.5-pro", on_changed="resubmit"), Services(slow), starting=True)
    assert Plan.current(run.output).number == 3
    assert Counter(job.model for job in emulator.jobs) == {"gemini-2.5-flash": 1, "gemini-2.5-flash-lite": 1}


@pytest.mark.parametrize(("policy", "files", "jobs"), [("inputs", 1, 1), ("never", 2, 1), ("all", 0, 0)])
def test_what_is_deleted_at_the_service_is_what_was_asked(emulator, make_run, finish, policy, files, jobs):
    check(finish(make_run(delete_remote=policy)), ["0", "1", "2"])
    assert (len(emulator.files), len(emulator.jobs)) == (files, jobs)


def test_a_delete_that_fails_does_not_fail_the_run(emulator, make_run, finish):
    emulator.faults = Faults(http_errors={"file_delete": HttpError(503), "delete": HttpError(500)})
    check(finish(make_run(delete_remote="all")), ["0", "1", "2"])


def test_cancelling_a_run_cancels_what_runs_and_nothing_else(emulator, make_run, client):
    emulator.faults = Faults(stuck="RUNNING")
    run = make_run(list("abc"), limits=Limits(requests_per_job=1))
    advance(run, Services(client, sleep=soon), starting=True)
    other = make_run(["x"], out="other", run_id="run-2")
    advance(other, Services(client, sleep=soon), starting=True)
    assert len(list(cancel_running(run, Services(client, sleep=soon)))) == 3
    assert [job.state for job in emulator.jobs] == ["CANCELLED"] * 3 + ["RUNNING"]
    assert list(cancel_running(make_run(out="nothing here"), Services(client, sleep=soon))) == []


def test_a_job_that_was_given_up_and_succeeds_late_changes_nothing(emulator, make_run, finish, patient):
    emulator.faults = Faults(stuck="RUNNING", cancel_ignored=True)
    run = make_run(timeout=3600, max_rounds=1)
    with pytest.raises(RunFailed):
        finish(run, patient, interval=300)
    late = emulator.jobs[0].name
    emulator.faults = Faults()
    first = landed(finish(run))
    emulator.set_state(late, "SUCCEEDED")
    assert landed(finish(run)) == first
    assert emulator.jobs_created == 2


# Ready-made requests


def ready_made(key: str, part: dict[str, Any], **request: Any) -> str:
    return json.dumps({"key": key, "request": {"contents": [{"role": "user", "parts": [part]}]} | request}) + "\n"


def test_a_wrong_part_in_the_last_of_many_requests_costs_nothing_and_names_file_and_line(
    make_run, finish, emulator, tmp_path
):
    lines = [ready_made(str(n), {"text": "hi"}) for n in range(4)] + [ready_made("4", {"type": "text", "text": "hi"})]
    (tmp_path / "r.jsonl").write_text("\n".join(lines))  # every other line is empty
    with pytest.raises(BadRow, match=r"r\.jsonl:9: contents\[0\]\.parts\[0\] has the field 'type'"):
        finish(make_run([tmp_path / "r.jsonl"], limits=Limits(requests_per_job=2)))
    assert emulator.jobs_created == 0


def test_a_line_that_only_the_service_refuses_is_named_by_its_key(make_run, finish, tmp_path):
    odd = {"fileData": {"fileUri": "x", "sourceText": "y"}}  # a field that only REST has, and in another place
    lines = [ready_made("one", {"text": "hi"}), ready_made("two", odd)]
    (tmp_path / "r.jsonl").write_text("".join(lines))
    with pytest.raises(RequestRefused, match=r"Error on line 2: .*no such field.*line 2 has the key 'two'\.") as caught:
        finish(make_run([tmp_path / "r.jsonl"]))
    assert caught.value.code == 400
