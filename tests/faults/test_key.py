"""
The key stays secret: a key that can be recognised is used, everything is logged at DEBUG, much goes wrong, and then
every file and every word that left the process is searched for it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from airflow_gemini_batch.emulator import Faults, HttpError
from airflow_gemini_batch.exceptions import GeminiBatchError

from ..looking import look

CANARY = "AIzaSyCanaryCanaryCanaryCanaryCanary123"
# What the service says of a suspended project, word for word: it holds the key.
SUSPENDED = f"Permission denied: Consumer 'api_key:{CANARY}' has been suspended."
ECHO = f"<html><pre>GET /v1beta/batches\nx-goog-api-key: {CANARY}\n</pre>Bad gateway"
KEY_FAULTS = {
    "suspended": HttpError(403, message=SUSPENDED),
    "a page that repeats the request": HttpError(502, body=ECHO),
}


def _search(rig: Any) -> None:
    searched = 0
    for path in rig.directory.rglob("*"):
        if path.is_file() and path.name not in ("settings.json", ".key"):  # the settings are how the key came in
            data = path.read_bytes()
            assert CANARY.encode() not in data, f"{path.relative_to(rig.directory)}: {_around(data)}"
            searched += 1
    assert searched > 5


def _around(data: bytes) -> bytes:
    at = data.index(CANARY.encode())
    return data[max(0, at - 200) : at + 60]


FAULTS: dict[str, Faults] = {
    "nothing": Faults(),
    "503 for a while": Faults(http_errors={"create": HttpError(503, times=1), "get": HttpError(503, times=2)}),
    "resets": Faults(drop_before={"create": 1, "get": 2}),
    "a create in doubt": Faults(drop_after={"create": 1}),
    "a create refused": Faults(http_errors={"create": HttpError(400)}),
    "a key that is not valid": Faults(http_errors={"*": HttpError(400, message="API key not valid.")}),
    "no right to look": Faults(http_errors={"get": HttpError(403), "list": HttpError(403)}),
    "HTML pages": Faults(http_errors={"create": HttpError(502, html=True), "get": HttpError(502, html=True, times=2)}),
    "downloads that break": Faults(truncate_download={"times": 1}),
    "a job that failed": Faults(end_state="FAILED", end_error={"code": 3, "message": "The input is invalid."}),
}  # fmt: skip


@pytest.mark.parametrize("deferrable", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["deferred", "waiting"])
@pytest.mark.parametrize("fault", FAULTS)
def test_the_key_is_in_no_log_file_document_or_error(
    make_rig: Callable[..., Any], fault: str, deferrable: bool
) -> None:
    rig = make_rig({"faults": FAULTS[fault]}, deferrable=deferrable)
    rig.key = CANARY
    ended = rig.run(more={"log_level": "DEBUG"})
    assert "httpcore" in ended.log, "everything is logged"
    assert {seen.headers["x-goog-api-key"] for seen in rig.emulator.requests if seen.call == "list"} <= {CANARY}
    assert CANARY not in json.dumps(ended.told)
    _search(rig)


@pytest.mark.parametrize("call", ["upload_start", "create", "get", "list", "download"])
@pytest.mark.parametrize("answer", KEY_FAULTS)
def test_an_answer_that_repeats_the_key_is_not_repeated(make_rig: Callable[..., Any], answer: str, call: str) -> None:
    """The service does that itself when a project is suspended."""
    # Often enough to be believed, and not for ever: pages are waited through.
    faults = {call: HttpError.from_dict(KEY_FAULTS[answer].to_dict() | {"times": 8})}
    if call == "get":
        faults["list"] = faults["get"]  # a 403 is told apart by asking for the list
    rig = make_rig({"faults": Faults(http_errors=faults, drop_after={"create": 1} if call == "list" else {})})
    rig.key = CANARY
    ended = rig.run(more={"log_level": "DEBUG"}, timeout=10.0)
    assert CANARY not in json.dumps(ended.told)
    _search(rig)


@pytest.mark.parametrize("answer", KEY_FAULTS)
def test_the_event_of_a_trigger_does_not_hold_the_key(make_rig: Callable[..., Any], answer: str) -> None:
    rig = make_rig({"states": ["RUNNING"]})
    rig.key = CANARY
    deferred = rig.run(part="execute").told["deferred"]
    assert CANARY not in json.dumps(deferred)
    rig.emulator.faults = Faults(http_errors={"*": KEY_FAULTS[answer]})
    deferred[1]["jobs"] = dict.fromkeys(deferred[1]["jobs"], 1.0)  # past its deadline: it ends after the first look
    ended = rig.run(part="trigger", more={"trigger": deferred, "log_level": "DEBUG"})
    assert ended.told["event"]["outcomes"]
    assert CANARY not in json.dumps(ended.told)
    _search(rig)


def test_a_refused_connection_does_not_show_the_key(bench: Any, caplog: pytest.LogCaptureFixture) -> None:
    bench.key, bench.url = CANARY, "http://127.0.0.1:1"
    with caplog.at_level("DEBUG"), pytest.raises(GeminiBatchError) as caught:
        bench.attempt()
    assert caught.value.retryable
    assert CANARY not in str(caught.value) + caplog.text


def test_values_that_hold_the_key_do_not_show_it(bench: Any) -> None:
    bench.key = CANARY
    services, run = bench.services(), bench.a_run()
    for value in (bench.account, services, services.client, run, services.client.sdk, services.client._http):
        assert CANARY not in repr(value)
        assert CANARY not in str(value)
    services.client.close()


def test_errors_and_their_causes_do_not_show_the_key(bench: Any) -> None:
    bench.key = "invalid-" + CANARY
    with pytest.raises(GeminiBatchError) as caught:
        bench.attempt()
    one: BaseException | None = caught.value
    while one is not None:
        assert CANARY not in f"{one} {one!r} {one.args} {getattr(one, 'details', '')}"
        one = one.__cause__ or one.__context__


def test_looks_of_the_triggerer_do_not_show_the_key(bench: Any, caplog: pytest.LogCaptureFixture) -> None:
    from airflow_gemini_batch.core.watcher import Watcher

    bench.key = CANARY
    bench.emulator.faults = Faults(http_errors={"*": KEY_FAULTS["suspended"]})

    async def look_and_cancel() -> Any:
        async with Watcher.shared(bench.account) as watcher:
            return await look(watcher, ("batches/a",)), await watcher.cancel("batches/a")

    with caplog.at_level("DEBUG"):
        seen = asyncio.run(look_and_cancel())
    assert CANARY not in repr(seen)
    assert CANARY not in caplog.text
