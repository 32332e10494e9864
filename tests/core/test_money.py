"""Money before and after, to the last token and pico-dollar of what the server sent."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from airflow_gemini_batch.core import finishing, storage_quota
from airflow_gemini_batch.core.attempt import Run, Services
from airflow_gemini_batch.core.budget import Budget
from airflow_gemini_batch.core.flow import Waiting, advance
from airflow_gemini_batch.core.manifest import Manifest
from airflow_gemini_batch.core.plan import Plan
from airflow_gemini_batch.core.prices import PriceTable
from airflow_gemini_batch.core.reckoning import estimate_source
from airflow_gemini_batch.core.shards import Limits
from airflow_gemini_batch.emulator import Emulator, Faults, HttpError, Options, RowError
from airflow_gemini_batch.exceptions import InvalidConfig, JobTimedOut, OverBudget, QuotaExceeded, ServiceUnreachable

CENT = Budget(max_cost_usd=0.01)
ONE_DOLLAR = PriceTable.parse({"gemini-2.5-flash": {"input": 1, "output": 1}})
FIELDS = {
    "prompt_tokens": "promptTokenCount", "output_tokens": "candidatesTokenCount", "thoughts_tokens": "thoughtsTokenCount",
    "cached_tokens": "cachedContentTokenCount", "tool_tokens": "toolUsePromptTokenCount",
}  # fmt: skip


def served(emulator: Emulator) -> Counter[str]:
    """The exact token sums of every answer that the server sent."""
    sums: Counter[str] = Counter()
    for file in emulator.files:
        if "batch-" in file["name"]:
            for line in emulator.read_file(file["name"]).splitlines():
                meta = json.loads(line).get("response", {}).get("usageMetadata", {})
                sums.update({ours: int(meta.get(theirs, 0)) for ours, theirs in FIELDS.items()})
    return sums


def told(manifest: Manifest) -> Counter[str]:
    return Counter({name: getattr(manifest.usage, name) for name in FIELDS})


def soon(seconds: float) -> None:
    time.sleep(min(seconds, 0.02))


def over_budget(run: Run, finish: Any, **more: Any) -> OverBudget:
    with pytest.raises(OverBudget) as caught:
        finish(run, **more)
    return caught.value


# After


def test_tokens_and_cents_of_all_rounds_are_the_exact_sums_of_what_the_server_sent(emulator, make_run, finish):
    unlucky = {str(n): RowError(13, times=1 + n % 2) for n in range(0, 90, 3)}
    emulator.faults = Faults(fail_keys=unlucky, truncate_keys={"1", "4"}, blocked_keys={"7"})
    prices = PriceTable.parse({"gemini-2.5-flash": {"input": 0.15, "output": 1.25, "cached": 0.03}})
    run = make_run(
        (f"row {n} " * (n % 7 + 1) for n in range(90)), max_rounds=4, redo={"truncated": {}}, delete_remote="never",
        limits=Limits(requests_per_job=40), prices=prices,
    )  # fmt: skip
    manifest = finish(run)
    sums = served(emulator)
    assert told(manifest) == sums
    assert sums["thoughts_tokens"] > 0
    expected = sums["prompt_tokens"] * Decimal("0.15") + Decimal("1.25") * (
        sums["output_tokens"] + sums["thoughts_tokens"]
    )
    assert Decimal(str(manifest.cost["actual_usd"])) == expected / 1_000_000
    assert sum(Decimal(str(one["cost_usd"])) for one in manifest.by_round) == expected / 1_000_000
    assert {name: sum(one["usage"][name] for one in manifest.by_round) for name in FIELDS} == sums
    # Landed again, also in another format: each answer counts once.
    for file_format in ("jsonl", "csv", "parquet"):
        again = finish(replace(run, policy=replace(run.policy, file_format=file_format)))
        assert (told(again), again.cost) == (sums, manifest.cost)


def test_cached_tokens_cost_what_caching_costs(emulator, make_run, finish, client):
    from google.genai import types

    cache = client.sdk.caches.create(
        model="gemini-2.5-flash", config=types.CreateCachedContentConfig(contents=["long " * 3000], ttl="400000s")
    )
    prices = PriceTable.parse({"gemini-2.5-flash": {"input": 1, "output": 2, "cached": 0.1}})
    manifest = finish(make_run(template={"cachedContent": cache.name}, prices=prices, delete_remote="never"))
    sums = served(emulator)
    assert told(manifest) == sums
    assert sums["cached_tokens"] > 0
    cost = sums["prompt_tokens"] - sums["cached_tokens"] + Decimal("0.1") * sums["cached_tokens"]
    cost += 2 * (sums["output_tokens"] + sums["thoughts_tokens"])
    assert Decimal(str(manifest.cost["actual_usd"])) == cost / 1_000_000


def test_each_job_is_priced_by_the_day_it_ended(connect, make_run, finish):
    """Two jobs of one run, each a day long; prices change between their ends."""
    change = (datetime.now(UTC) + timedelta(hours=48)).date()
    prices = PriceTable.parse(
        {"gemini-2.5-flash": [{"input": 1, "output": 1}, {"input": 10, "output": 10, "from": str(change)}]}
    )
    run = make_run(list("abcd"), limits=Limits(requests_per_job=2, active_jobs=1), prices=prices, delete_remote="never")
    with Emulator(job_seconds=24 * 3600) as gemini:
        services = Services(connect(gemini.url), sleep=soon)
        assert isinstance(advance(run, services, starting=True), Waiting)
        gemini.clock.advance(24 * 3600 + 1)
        assert isinstance(advance(run, services), Waiting)  # the first is landed, the second runs
        gemini.clock.advance(24 * 3600 + 1)
        reached = advance(run, services)
        assert isinstance(reached, Manifest)
        costs = []
        for name in (f"files/batch-{job.name.removeprefix('batches/')}" for job in gemini.jobs):
            lines = map(json.loads, gemini.read_file(name).splitlines())
            costs.append(sum(line["response"]["usageMetadata"]["totalTokenCount"] for line in lines))
        assert len(costs) == 2
        assert Decimal(str(reached.cost["actual_usd"])) == Decimal(costs[0] + 10 * costs[1]) / 1_000_000
        # Later it is landed again, for the same money.
        gemini.clock.advance(30 * 24 * 3600)
        assert finish(replace(run, policy=replace(run.policy, file_format="csv")), services).cost == reached.cost


@pytest.mark.parametrize("keys", [{"1"}, {"0", "1", "2"}])
@pytest.mark.parametrize("file_format", ["parquet", "jsonl"])
def test_answers_that_do_not_say_what_they_used_have_an_unknown_cost_and_not_none(
    emulator, make_run, finish, keys, file_format
):
    emulator.faults = Faults(no_usage_keys=keys)
    manifest = finish(make_run(prices=ONE_DOLLAR, delete_remote="never", file_format=file_format))
    assert manifest.counts["ok"] == 3
    assert told(manifest) == served(emulator), "what was said is added up"
    assert manifest.cost["actual_usd"] is manifest.by_round[0]["cost_usd"] is None


def test_an_answer_that_does_not_say_what_it_used_counts_against_the_budget_as_it_was_estimated(
    emulator, make_run, finish
):
    emulator.faults = Faults(no_usage_keys={"0"})
    limits = Limits(requests_per_job=2, active_jobs=1)
    manifest = finish(make_run(map(str, range(6)), prices=ONE_DOLLAR, limits=limits, budget=Budget(max_cost_usd=100)))
    assert (manifest.counts["ok"], manifest.cost["actual_usd"]) == (6, None)
    # And where the estimate fills the budget, nothing more is sent.
    tight = Budget(max_cost_usd=0.000002 * 1024)
    run = make_run(map(str, range(6)), prices=ONE_DOLLAR, limits=limits, budget=tight, out="tight", run_id="tight")
    over_budget(run, finish)


def for_hours(run: Run, services: Services, clock: Any) -> None:
    for _ in range(12):
        clock.sleep(3700)
        advance(run, services)


def test_a_job_that_does_not_stop_has_an_unknown_cost(emulator, make_run, client, clock):
    clock.now = time.time()
    services = Services(client, clock, clock.sleep)
    emulator.faults = Faults(stuck="RUNNING", cancel_ignored=True)
    run = make_run(max_rounds=1, timeout=3600, prices=ONE_DOLLAR)
    advance(run, services, starting=True)
    with pytest.raises(JobTimedOut):
        for_hours(run, services, clock)
    manifest = Manifest.load(run.output)
    assert manifest is not None
    assert manifest.cost["actual_usd"] is manifest.by_round[0]["cost_usd"] is None


def test_a_job_that_does_not_stop_counts_against_the_budget_as_it_was_estimated(emulator, make_run, client, clock):
    clock.now = time.time()
    services = Services(client, clock, clock.sleep)
    emulator.faults = Faults(stuck="RUNNING", cancel_ignored=True)
    run = make_run(
        max_rounds=4, timeout=3600, prices=ONE_DOLLAR, assumed_output_tokens=1000, budget=Budget(max_cost_usd=0.004)
    )
    advance(run, services, starting=True)
    with pytest.raises((OverBudget, JobTimedOut)):
        for_hours(run, services, clock)
    assert emulator.jobs_created == 1, "it may still be billed, and another one would not fit"


def test_the_manifest_says_whose_prices_it_counts_with(make_run, finish):
    assert finish(make_run(prices=ONE_DOLLAR)).cost["prices_as_of"] == "the given prices"
    assert finish(make_run(out="again", run_id="again")).cost["prices_as_of"].startswith("genai-prices ")


def test_the_estimate_stands_beside_what_it_was(make_run, finish):
    manifest = finish(make_run(template={"generationConfig": {"maxOutputTokens": 500}}, prices=ONE_DOLLAR))
    assert manifest.estimate["requests"] == 3
    assert manifest.estimate["output_tokens"] == 1500
    assert manifest.cost["estimated_usd"] == (1500 + manifest.estimate["input_tokens"]) / 1e6
    assert 0 < manifest.cost["actual_usd"] < manifest.cost["estimated_usd"]


# Before


def test_over_a_cent_nothing_is_sent_and_nothing_is_left(emulator, make_run, finish):
    run = make_run(map(str, range(11)), budget=CENT, prices=ONE_DOLLAR, assumed_output_tokens=1000)
    error = over_budget(run, finish)
    assert error.estimate is not None
    assert error.estimate.output_tokens == 11_000
    assert emulator.jobs_created == emulator.calls["upload_start"] == 0
    assert not list(run.output.path.rglob("*.jsonl"))


def test_the_first_rows_that_fit_into_a_cent_are_sent_if_asked(emulator, make_run, finish):
    budget = Budget(max_cost_usd=0.01, on_exceed="truncate_rows")
    run = make_run(
        map(str, range(30)), budget=budget, prices=ONE_DOLLAR, assumed_output_tokens=1000, delete_remote="never"
    )
    manifest = finish(run)
    (job, *more) = emulator.jobs
    assert job.keys == tuple(map(str, range(9)))
    assert manifest.counts["ok"] == 9 + sum(len(one.keys) for one in more)
    assert manifest.counts["error"] == 30 - manifest.counts["ok"]
    assert manifest.cost["actual_usd"] == sum(served(emulator).values()) / 1e6
    assert manifest.cost["actual_usd"] < 0.01
    assert manifest.cost["estimated_usd"] < 0.01, "of what was sent"
    # Cleared with the same budget nothing is sent, with a larger one the rest.
    jobs = emulator.jobs_created
    assert finish(run).counts == manifest.counts
    assert emulator.jobs_created == jobs
    larger = replace(run, policy=replace(run.policy, budget=replace(budget, max_cost_usd=5)))
    whole = finish(larger)
    assert whole.counts["ok"] == 30
    asked = [key for job in emulator.jobs for key in job.keys]
    assert len(asked) == len(set(asked)) == 30
    assert whole.cost["estimated_usd"] > 0.03


@pytest.mark.parametrize("first", ["", "a"])
def test_where_not_one_row_fits_nothing_is_planned_also_behind_a_blank_one(emulator, make_run, finish, first):
    rows = [{"t": first}, {"t": "b"}, {"t": "c"}]
    budget = Budget(max_cost_usd=0.001, on_exceed="truncate_rows")
    run = make_run(rows, prompt="{t}", budget=budget, prices=ONE_DOLLAR, assumed_output_tokens=1000)
    over_budget(run, finish)
    assert emulator.jobs_created == 0
    assert not run.output.manifest.exists()


@pytest.mark.parametrize("on_exceed", ["fail", "skip"])
def test_a_budget_is_held_between_rounds_with_what_was_really_used(emulator, make_run, finish, on_exceed):
    emulator.faults = Faults(fail_keys={"1": RowError(13, "no luck")})
    budget = Budget(max_cost_usd=0.00001, on_exceed=on_exceed)
    run = make_run(budget=budget, prices=ONE_DOLLAR, assumed_output_tokens=1, max_rounds=3)
    error = over_budget(run, finish)
    assert emulator.jobs_created == 1, "the answers were longer than was assumed"
    manifest = Manifest.load(run.output)
    assert manifest is not None
    assert manifest.counts["ok"] == 2
    assert error.manifest == str(run.output.manifest)


def test_a_shard_that_no_longer_fits_fails_the_run_and_a_larger_budget_mends_it(emulator, make_run, finish):
    """What was used is more than was expected, so that the second job does not fit."""
    run = make_run(
        ["a " * 50] * 4, budget=Budget(max_cost_usd=0.0001), prices=ONE_DOLLAR, assumed_output_tokens=1,
        limits=Limits(requests_per_job=2, active_jobs=1),
    )  # fmt: skip
    error = over_budget(replace(run, policy=replace(run.policy, budget=Budget(max_cost_usd=0.00015))), finish)
    assert emulator.jobs_created == 1
    assert error.counts == {"ok": 2, "error": 2}
    manifest = finish(replace(run, policy=replace(run.policy, budget=Budget(max_cost_usd=5))))
    assert (manifest.counts["ok"], manifest.failure) == (4, None)
    assert emulator.jobs_created == 2


def test_a_somewhat_larger_budget_sends_as_many_more_rows_as_fit(emulator, make_run, finish):
    budget = Budget(max_cost_usd=0.01, on_exceed="truncate_rows")
    run = make_run(map(str, range(60)), budget=budget, prices=ONE_DOLLAR, assumed_output_tokens=1000)
    assert finish(run).counts["ok"] == 9
    first = emulator.jobs_created
    larger = replace(run, policy=replace(run.policy, budget=replace(budget, max_cost_usd=0.02)))
    manifest = finish(larger)
    assert emulator.jobs[first].keys == tuple(map(str, range(9, 27))), "0.02 dollars less what nine answers cost"
    asked = [key for job in emulator.jobs for key in job.keys]
    assert len(asked) == len(set(asked)) == manifest.counts["ok"] < 60
    assert manifest.cost["actual_usd"] < 0.02


def test_of_rows_that_failed_as_many_are_sent_again_as_fit_into_the_budget(emulator, make_run, finish):
    """Answers are longer than was assumed, so that what is left of the budget holds three more requests."""
    rows, settings = list(map(str, range(10))), {"prices": ONE_DOLLAR, "assumed_output_tokens": 1}
    faults = Faults(fail_keys={str(n): RowError(13, times=1) for n in range(5)})
    emulator.faults = faults
    used = finish(make_run(rows, **settings)).by_round[0]["cost_usd"]
    emulator.faults = replace(faults)
    budget = Budget(max_cost_usd=used + 0.000007, on_exceed="truncate_rows")
    manifest = finish(make_run(rows, **settings, budget=budget, out="tight", run_id="tight"))
    assert [job.keys for job in emulator.jobs[2:]] == [tuple(rows), ("0", "1", "2")]
    assert (manifest.counts["ok"], manifest.counts["error"]) == (8, 2)


def test_after_one_job_is_over_the_budget_no_smaller_one_is_sent(emulator, make_run, finish):
    run = make_run(
        ["a " * 50] * 9, budget=Budget(max_cost_usd=0.00035), prices=ONE_DOLLAR, assumed_output_tokens=1,
        limits=Limits(requests_per_job=4, active_jobs=1),
    )  # fmt: skip
    assert "Nothing more was sent" in str(over_budget(run, finish))
    assert [job.keys for job in emulator.jobs] == [("0", "1", "2", "3")]


def test_a_create_that_never_left_is_not_sent_after_all_when_it_fits_no_more(
    emulator, make_run, finish, client, clock, monkeypatch
):
    class Killed(BaseException):
        pass

    def killed(**_: Any) -> str:
        raise Killed

    clock.now = time.time()
    services = Services(client, clock, clock.sleep)
    run = make_run(map(str, range(4)), prices=ONE_DOLLAR, limits=Limits(requests_per_job=2, active_jobs=1), budget=CENT)
    advance(run, services, starting=True)
    with monkeypatch.context() as patch:
        patch.setattr(client, "create", killed)
        with pytest.raises(Killed):
            finish(run, services)
    less = replace(run, policy=replace(run.policy, budget=Budget(max_cost_usd=0.0001)))
    assert over_budget(less, finish, services=services).counts == {"ok": 2, "error": 2}
    assert emulator.jobs_created == 1


def test_a_death_before_an_end_over_the_budget_leaves_the_retry_the_same_end(emulator, make_run, finish, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(*_: Any) -> None:
        raise Killed

    run = make_run(
        ["a " * 50] * 4, budget=Budget(max_cost_usd=0.00015), prices=ONE_DOLLAR, assumed_output_tokens=1,
        limits=Limits(requests_per_job=2, active_jobs=1),
    )  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(finishing.media, "remove", killed)
        with pytest.raises(Killed):
            finish(run)
    assert over_budget(run, finish).counts == {"ok": 2, "error": 2}
    assert emulator.jobs_created == 1


def test_what_ended_but_cannot_be_fetched_counts_as_running(emulator, make_run, client):
    emulator.faults = Faults(http_errors={"download": HttpError(429)})
    run = make_run(
        ["a " * 50] * 4, budget=Budget(max_cost_usd=0.00025), prices=ONE_DOLLAR, assumed_output_tokens=1,
        limits=Limits(requests_per_job=2, active_jobs=1),
    )  # fmt: skip
    services = Services(client, sleep=soon)
    tight = replace(run, policy=replace(run.policy, budget=Budget(max_cost_usd=0.00015)))
    for _ in range(4):
        assert isinstance(advance(tight, services, starting=True), Waiting)
    assert emulator.jobs_created <= 2


def test_a_fallback_without_a_known_price_is_refused_before_anything_is_paid(emulator, make_run, finish):
    run = make_run(budget=CENT)
    run = replace(run, spec=replace(run.spec, fallbacks=("gemini-9.9-unpriced",)))
    with pytest.raises(InvalidConfig, match=r"gemini-9\.9-unpriced is not known"):
        finish(run)
    assert emulator.jobs_created == 0


def test_an_estimate_reads_everything_and_writes_and_sends_nothing(emulator, make_run, client, tmp_path):
    run = make_run(map(str, range(5000)), prices=ONE_DOLLAR, assumed_output_tokens=10)
    estimate = estimate_source(run, Services(client))
    assert (estimate.requests, estimate.output_tokens) == (5000, 50_000)
    assert not list(tmp_path.rglob("*.json*"))
    assert not emulator.calls


def test_the_api_counts_a_sample_if_asked_and_the_plan_is_scaled_by_it(emulator, make_run, finish, client):
    texts = [f"Ünïcödé wörds and {n} plain ones" for n in range(100)]
    run = make_run(texts, count_tokens=20, prices=ONE_DOLLAR, delete_remote="never")
    alone = estimate_source(run, Services(client))
    assert emulator.calls["count_tokens"] == 20
    manifest = finish(run)
    assert manifest.estimate["input_tokens"] == alone.input_tokens
    assert "scaled by the API's count of 20 requests" in str(manifest.estimate["how"])
    local = estimate_source(replace(run, policy=replace(run.policy, count_tokens=0)), Services(client)).input_tokens
    sent = served(emulator)["prompt_tokens"]
    assert abs(alone.input_tokens - sent) < abs(local - sent)
    plan = Plan.current(run.output)
    assert plan is not None
    assert plan.scale is not None
    assert plan.scale.requests == 20


# The project's storage


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_quota, "LARGE", 1000)
    monkeypatch.setattr(storage_quota, "PROJECT_BYTES", 20_000)


def test_a_large_upload_waits_until_the_project_has_room(emulator, make_run, client, tmp_path, small):
    other = tmp_path / "other.jsonl"
    other.write_bytes(b"x" * 19_000)
    theirs = client.upload(other, file_id="theirs", display_name="theirs", mime_type="text/plain")
    run = make_run(["long " * 300] * 2)
    services = Services(client, sleep=soon)
    for _ in range(2):
        reached = advance(run, services, starting=True)
        assert isinstance(reached, Waiting)
        assert (reached.waits, reached.not_before is not None) == ((), True)
    note = json.loads(run.output.quota.read_bytes())
    assert (note["phase"], note["quota"]) == ("upload", "storage of the project: 0.0 of 0 GB")
    assert emulator.calls["upload_start"] == 1
    client.delete_file(theirs.name)
    assert isinstance(advance(run, services), Waiting)
    assert isinstance(advance(run, services), Manifest)


def test_all_pages_of_the_list_of_files_count(connect, make_run, tmp_path, small):
    with Emulator(options=Options(max_page_size=3)) as gemini:
        client = connect(gemini.url)
        for n in range(10):
            (path := tmp_path / f"{n}.txt").write_bytes(b"x" * 1900)
            client.upload(path, file_id=f"f{n}", display_name="f", mime_type="text/plain")
        with pytest.raises(QuotaExceeded, match="the 10 files of this key's project have 19,000"):
            storage_quota.check_room(client, 1001)
        storage_quota.check_room(client, 1000)


def test_result_files_take_no_room_from_uploads_and_are_not_counted(connect, make_run, finish, tmp_path, small):
    with Emulator(job_seconds=0, options=Options(list_shows_result_files=True)) as gemini:
        client = connect(gemini.url)
        finish(make_run(["a", "b"]), Services(client, sleep=soon))
        (path := tmp_path / "x.txt").write_bytes(b"x" * 5000)
        client.upload(path, file_id="theirs", display_name="f", mime_type="text/plain")
        assert len(client.list_files()) == 2
        storage_quota.check_room(client, 15_000)
        with pytest.raises(QuotaExceeded, match="the 1 files of this key's project have 5,000 already"):
            storage_quota.check_room(client, 15_001)


def test_small_uploads_are_not_checked_and_a_list_that_cannot_be_read_stops_nothing(emulator, client, small):
    storage_quota.check_room(client, 999)
    assert not emulator.calls["file_list"]
    emulator.faults = Faults(http_errors={"file_list": HttpError(503)})
    with pytest.raises(ServiceUnreachable):
        client.list_files()
    storage_quota.check_room(client, 1000)


def test_a_service_that_refuses_for_want_of_storage_is_waited_for(connect, make_run, tmp_path):
    with Emulator(options=Options(storage_bytes=3000)) as gemini:
        client = connect(gemini.url)
        (path := tmp_path / "x.txt").write_bytes(b"x" * 2900)
        theirs = client.upload(path, file_id="theirs", display_name="f", mime_type="text/plain")
        run, services = make_run(["long " * 100]), Services(client, sleep=soon)
        assert isinstance(advance(run, services, starting=True), Waiting)
        assert json.loads(run.output.quota.read_bytes())["phase"] == "upload"
        client.delete_file(theirs.name)
        time.sleep(0.1)
        assert isinstance(advance(run, services), Waiting)
        assert isinstance(advance(run, services), Manifest)


def test_what_metrics_hear_is_told_once_however_often_it_is_landed(emulator, make_run, finish):
    emulator.faults = Faults(fail_keys={"1": RowError(13)})
    run = make_run(max_rounds=1, max_failed_ratio=0.0)
    heard: Counter[str] = Counter()
    for faults in (emulator.faults, emulator.faults, Faults(), Faults(), Faults()):
        emulator.faults = faults
        try:
            news = finish(run).news
        except Exception as e:
            news = e.news  # type: ignore[attr-defined]
        heard.update({f"{what} {name}".strip(): n for what, counts in news.items() for name, n in counts.items()})
    manifest = Manifest.load(run.output)
    assert manifest is not None
    assert Path(manifest.output).exists()
    assert heard["rows ok"] == 3
    assert heard["tokens prompt"] == manifest.usage.prompt_tokens
    assert heard["tokens output"] == manifest.usage.output_tokens
    assert heard["jobs"] == emulator.jobs_created == 3
