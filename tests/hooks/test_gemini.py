"""GeminiHook: a connection becomes a client, in both worlds, and says in words what is wrong with it."""

from __future__ import annotations

import asyncio
import gc
import json
from typing import Any

import pytest

from airflow_gemini_batch.exceptions import InvalidConfig
from airflow_gemini_batch.hooks.gemini import GeminiHook

from ..conftest import point_at


def connect(monkeypatch: pytest.MonkeyPatch, **fields: Any) -> GeminiHook:
    monkeypatch.setenv("AIRFLOW_CONN_GEMINI_BATCH_DEFAULT", json.dumps({"conn_type": "gemini_batch", **fields}))
    return GeminiHook()


def test_the_connection_test_says_yes_to_a_good_key(connection: str, emulator: Any) -> None:
    assert GeminiHook().test_connection() == (True, f"Connected to {emulator.url} (v1beta).")
    assert sum(emulator.calls.values()) == 1


def test_the_connection_test_names_a_bad_key(emulator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at(emulator.url, monkeypatch, key="invalid-key")
    worked, said = GeminiHook().test_connection()
    assert not worked
    assert said.startswith("The API key was refused; check the password field.")
    assert "API key not valid" in said
    assert "invalid-key" not in said


def test_the_connection_test_names_an_unreachable_host(monkeypatch: pytest.MonkeyPatch) -> None:
    worked, said = connect(monkeypatch, host="http://127.0.0.1:9", password="k").test_connection()
    assert not worked
    assert said.startswith("http://127.0.0.1:9 cannot be reached")


def test_the_connection_test_names_a_host_that_is_not_gemini(emulator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    worked, said = connect(monkeypatch, host=emulator.url, password="k", extra={"api_version": "v9"}).test_connection()
    assert not worked
    assert "404" in said


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "has no password"),
        ({"password": "k", "extra": {"backend": "vertex"}}, "Vertex AI's backend"),
        ({"password": "k", "host": "https://europe-west1-aiplatform.googleapis.com"}, "Vertex AI's backend"),
        ({"password": '{"type": "service_account"}'}, "Google Cloud credential"),
        ({"password": "k", "extra": {"timeout": "soon"}}, "timeout is 'soon'"),
        ({"password": "k", "extra": {"timeout": -1}}, "timeout is -1"),
    ],
)
def test_a_connection_that_cannot_work_says_why(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], said: str
) -> None:
    hook = connect(monkeypatch, **fields)
    with pytest.raises(InvalidConfig, match=said):
        _ = hook.account
    assert hook.test_connection()[0] is False


@pytest.mark.parametrize(("prices", "said"), [("{", "prices is no JSON"), ({"m": 5}, "'m'] is 5")])
def test_the_connection_test_names_prices_that_no_task_could_read(
    emulator: Any, monkeypatch: pytest.MonkeyPatch, prices: Any, said: str
) -> None:
    hook = connect(monkeypatch, host=emulator.url, password="k", extra={"prices": prices})
    worked, told = hook.test_connection()
    assert (worked, said in told) == (False, True), told


def test_both_ways_in_give_the_same_account(connection: str) -> None:
    assert asyncio.run(GeminiHook().aaccount()) == GeminiHook().account


def test_a_missing_connection_is_named_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidConfig, match="no connection 'nope'"):
        _ = GeminiHook("nope").account
    with pytest.raises(InvalidConfig, match="no connection 'nope'"):
        asyncio.run(GeminiHook("nope").aaccount())


def test_a_connection_uri_gives_the_same_base_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_GEMINI_BATCH_DEFAULT", "gemini-batch://:key@localhost:8089/http?timeout=7")
    account = GeminiHook().account
    assert (account.base_url, account.api_key, account.timeout) == ("http://localhost:8089", "key", 7.0)


def test_the_sdk_client_stays_open_as_long_as_the_hook(connection: str, emulator: Any) -> None:
    hook = GeminiHook()
    batches = hook.get_conn().batches
    gc.collect()
    assert list(batches.list()) == []
    hook.client.close()


def test_the_sdk_goes_to_the_developer_api_whatever_the_environment_says(
    connection: str, emulator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_GENAI_USE_VERTEXAI", "true")
    monkeypatch.setenv("GOOGLE_API_KEY", "another-key")
    hook = GeminiHook()
    assert list(hook.get_conn().batches.list()) == []
    assert emulator.calls["list"] == 1
    hook.client.close()


def test_the_key_is_in_no_repr(connection: str) -> None:
    assert "test-key" not in repr(GeminiHook().account)
