"""Money and ends as a DAG author meets them: parameters, skips, errors that keep their class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException

from airflow_gemini_batch import Budget, GeminiEstimateCostOperator
from airflow_gemini_batch.emulator import Emulator, Faults, RowError
from airflow_gemini_batch.exceptions import InvalidConfig, JobExpired, OverBudget, RunFailed, TooManyFailedRows

from ..conftest import landed, task_context

PRICES = {"gemini-2.5-flash": {"input": 1, "output": 2}}
ROWS = [{"id": f"k{n}", "t": f"row {n}"} for n in range(10)]
ASK: dict[str, Any] = {"source": ROWS, "prompt": "{t}", "key": "id", "prices": PRICES}


def estimated(**settings: Any) -> dict[str, Any]:
    from airflow.sdk.definitions._internal.templater import LiteralValue

    operator = GeminiEstimateCostOperator(task_id="an_estimate", **({"model": "gemini-2.5-flash"} | ASK | settings))
    if isinstance(operator.source, LiteralValue):
        operator.source = operator.source.resolve({})  # what rendering the templates does
    return operator.execute(task_context())


def test_an_estimate_costs_nothing_and_says_what_it_rests_on(emulator: Emulator, connection: str) -> None:
    told = estimated(config={"max_output_tokens": 100})
    assert set(told) == {"requests", "input_tokens", "output_tokens", "usd", "model", "how"}
    assert (told["requests"], told["output_tokens"], told["model"]) == (10, 1000, "gemini-2.5-flash")
    assert told["usd"] == (told["input_tokens"] + 2000) / 1e6
    assert told["how"] == "input counted locally (10); output at most maxOutputTokens (10)"
    assert not emulator.calls


def test_an_estimate_is_that_of_the_task_with_the_same_settings(
    emulator: Emulator, connection: str, batch: Any, tmp_path: Path
) -> None:
    for more in ({}, {"count_tokens": 4}, {"assumed_output_tokens": 7}):
        told = estimated(**more)
        manifest = batch(**ASK, **more, output=str(tmp_path / f"out-{len(more)}-{sorted(more)}"))
        assert told["usd"] == manifest["cost"]["estimated_usd"]
        assert told["input_tokens"] == manifest["estimate"]["input_tokens"]


def test_the_api_counts_a_sample_for_the_estimate_if_asked(emulator: Emulator, connection: str) -> None:
    assert "scaled by the API's count of 5 requests" in estimated(count_tokens=5)["how"]
    assert emulator.calls["count_tokens"] == 5
    assert set(emulator.calls) == {"count_tokens"}


def test_what_the_api_counts_of_text_says_nothing_about_pictures_that_are_uploaded_later(
    emulator: Emulator, connection: str, batch: Any, tmp_path: Path
) -> None:
    rows: list[dict[str, Any]] = [{"id": str(n), "t": "漢字仮名交じり文" * 3, "pic": None} for n in range(10)]
    for row in rows[::2]:
        picture = tmp_path / f"{row['id']}.png"
        picture.write_bytes(b"\x89PNG\r\n\x1a\n" + row["id"].encode())
        row["pic"] = str(picture)
    manifest = batch(source=rows, prompt="{t}", key="id", media="pic", count_tokens=5)
    assert manifest["usage"]["modalities"] == {"prompt_image": 5 * 258}
    assert manifest["estimate"]["input_tokens"] == manifest["usage"]["prompt_tokens"]


def test_an_unknown_price_is_none_and_no_rows_are_nothing(emulator: Emulator, connection: str) -> None:
    assert estimated(model="gemini-9.9-unpriced")["usd"] is None
    told = estimated(source=[])
    assert (told["requests"], told["usd"], told["model"]) == (0, 0.0, "gemini-2.5-flash")


def test_a_source_that_cannot_be_used_fails_the_estimate_as_it_would_the_task(connection: str) -> None:
    with pytest.raises(AirflowFailException, match="prompt names the column 'text'"):
        estimated(prompt="{text}")


@pytest.mark.parametrize("on_exceed", ["fail", "skip", "truncate_rows"])
def test_over_a_cent_the_task_does_what_the_budget_says(batch: Any, emulator: Emulator, on_exceed: Any) -> None:
    settings = ASK | {"budget": Budget(max_cost_usd=0.01, on_exceed=on_exceed), "assumed_output_tokens": 1500}
    if on_exceed == "truncate_rows":
        manifest = batch(**settings)
        assert 3 <= manifest["counts"]["ok"] < 10
        assert manifest["cost"]["actual_usd"] <= 0.01
        return
    with pytest.raises(
        AirflowSkipException if on_exceed == "skip" else OverBudget, match=r"Over the budget of 0\.01 USD"
    ):
        batch(**settings)
    assert emulator.jobs_created == emulator.calls["upload_start"] == 0


def test_a_budget_that_is_overdrawn_on_the_way_skips_the_task_after_landing(
    batch: Any, emulator: Emulator, tmp_path: Path
) -> None:
    emulator.faults = Faults(fail_keys={"k1": RowError(13)})
    budget = Budget(max_cost_usd=0.0001, on_exceed="skip")
    with pytest.raises(AirflowSkipException):
        batch(**ASK, budget=budget, assumed_output_tokens=1)
    assert emulator.jobs_created == 1
    manifest = json.loads((tmp_path / "out/_gemini_batch/manifest.json").read_text())
    assert manifest["counts"]["ok"] == 9


@pytest.mark.parametrize(
    ("faults", "kind"),
    [(Faults(fail_keys={"*": RowError(3)}), TooManyFailedRows), (Faults(end_state="EXPIRED"), JobExpired)],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_callbacks_can_tell_the_ends_apart_and_read_their_facts(
    batch: Any, emulator: Emulator, faults: Faults, kind: type[RunFailed]
) -> None:
    emulator.faults = faults
    with pytest.raises(kind) as caught:
        batch(**ASK)
    error = caught.value
    assert isinstance(error, AirflowFailException), "a retry cannot help"
    assert type(error).__name__ == kind.__name__
    assert set(error.jobs) <= {job.name for job in emulator.jobs}
    assert error.jobs
    assert error.counts == {"error": 10}
    assert json.loads(Path(error.manifest).read_text())["failure"] == str(error)


def test_redo_and_fallbacks_are_written_as_a_config_is(batch: Any, emulator: Emulator, tmp_path: Path) -> None:
    manifest = batch(
        model=["gemini-2.5-flash", "gemini-2.5-flash-lite"], source=["tell me " * 30], delete_remote="never",
        config={"max_output_tokens": 4}, redo={"truncated": {"max_output_tokens": 4096}},
    )  # fmt: skip
    (row,) = landed(manifest)
    assert (row["status"], row["round"]) == ("ok", 1)
    assert [job.model.removeprefix("models/") for job in emulator.jobs] == ["gemini-2.5-flash", "gemini-2.5-flash-lite"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"redo": "truncated"}, "redo is the text"), ({"redo": ["lost"]}, "redo names 'lost'"),
        ({"redo": {"truncated": {"max_tokens": 1}}}, "max_tokens"), ({"budget": 5}, "it takes a Budget"),
        ({"prices": {"gemini-2.5-flash": {"in": 1}}}, "prices"), ({"model": []}, "model is empty"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_meant_are_refused_before_anything_is_sent(
    batch: Any, emulator: Emulator, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidConfig, match=said):
        batch(**(ASK | settings))
    assert emulator.jobs_created == 0


def test_prices_of_the_connection_hold_unless_the_task_has_its_own(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, batch: Any, connection: str, tmp_path: Path
) -> None:
    extra = {"timeout": 2.0, "prices": {"gemini-2.5-flash": {"input": 100, "output": 100}}}
    monkeypatch.setenv(
        "AIRFLOW_CONN_GEMINI_BATCH_DEFAULT",
        json.dumps({"conn_type": "gemini_batch", "host": emulator.url, "password": "test-key", "extra": extra}),
    )
    dear = estimated(prices=None)
    assert dear["usd"] == (dear["input_tokens"] + dear["output_tokens"]) / 1e4
    assert estimated()["usd"] == (dear["input_tokens"] + 2 * dear["output_tokens"]) / 1e6
