"""
Documents and triggers outlive releases: an older one is read, a newer one refused in so many words, and a damaged one is
"could not read", which never leads to a paid request.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_gemini_batch.core import waiting
from airflow_gemini_batch.emulator import Faults, HttpError
from airflow_gemini_batch.exceptions import GeminiBatchError, QuotaExceeded, StateTooNew, StateUnreadable

ADDED_LATER: dict[str, list[str]] = {
    "plan-1.json": ["clears", "spec_digest"],
    "round-0.json": [],
    "upload.json": [],
    "claim-1.json": [],
    "refused-1.json": ["at"],
    "job.json": ["adopted"],
    "landed.json": ["job_error"],
    "manifest.json": ["failure"],
}
"""Fields that have a default, so that a document without them can be read."""

DOCUMENTS = tuple(ADDED_LATER)


def _prepare(bench: Any, document: str) -> Path:
    """Bring a run to where the next attempt reads this document to know whether to pay; return it."""
    from airflow_gemini_batch.core.flow import Waiting, advance

    services = bench.services()
    if document in ("upload.json", "claim-1.json", "refused-1.json"):
        bench.emulator.faults = Faults(http_errors={"create": HttpError(429)})
        with pytest.raises(QuotaExceeded):
            bench.attempt(quota_timeout=0)
        bench.emulator.faults = Faults()
    elif document in ("landed.json", "manifest.json"):
        bench.attempt()
    else:
        assert isinstance(advance(bench.a_run(), services, starting=True), Waiting)
    services.client.close()
    (path,) = (bench.directory / "out").rglob(document)
    return path  # type: ignore[no-any-return]


def _edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_document_with_fewer_and_unknown_fields_is_read(bench: Any, document: str) -> None:
    path = _prepare(bench, document)

    def change(body: dict[str, Any]) -> None:
        for name in ADDED_LATER[document]:
            body.pop(name, None)
        body["a_field_of_another_release"] = {"with": "anything"}

    _edit(path, change)
    bench.attempt()
    bench.check_paid_once()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_document_of_a_later_release_is_refused_and_nothing_is_sent(bench: Any, document: str) -> None:
    path = _prepare(bench, document)
    paid = bench.emulator.calls["create"]
    _edit(path, lambda body: body.update(version=2))
    with pytest.raises(StateTooNew, match=path.name) as caught:
        bench.attempt()
    assert not caught.value.retryable
    assert "version 2" in str(caught.value)
    assert bench.emulator.calls["create"] == paid
    _edit(path, lambda body: body.update(version=1))
    bench.attempt()
    bench.check_paid_once()


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "zeroes": lambda data: b"\0" * len(data),
    "not UTF-8": lambda data: data.replace(b'"kind"', b'"\xff\xfe"'),
    "another kind": lambda data: json.dumps(json.loads(data) | {"kind": "shopping list"}).encode(),
    "no version": lambda data: json.dumps({k: v for k, v in json.loads(data).items() if k != "version"}).encode(),
    "a list": lambda data: b"[]",
    "nothing but its head": lambda data: json.dumps({k: json.loads(data)[k] for k in ("kind", "version")}).encode(),
    "null": lambda data: b"null",
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_damaged_document_is_unreadable_and_nothing_is_sent(bench: Any, document: str, damage: str) -> None:
    path = _prepare(bench, document)
    paid = bench.emulator.calls["create"]
    before = path.read_bytes()
    path.write_bytes(DAMAGE[damage](before))
    with pytest.raises(StateUnreadable, match=path.name) as caught:
        bench.attempt()
    assert caught.value.retryable
    assert bench.emulator.calls["create"] == paid
    path.write_bytes(before)
    bench.attempt()
    bench.check_paid_once()


@pytest.mark.parametrize("document", ["plan-1.json", "round-0.json", "claim-1.json", "job.json", "manifest.json"])
def test_a_document_that_may_not_be_read_is_not_one_that_is_not_there(
    bench: Any, monkeypatch: pytest.MonkeyPatch, document: str
) -> None:
    path = _prepare(bench, document)
    paid = bench.emulator.calls["create"]
    read_bytes = Path.read_bytes

    def refuse(self: Path) -> bytes:
        if self == path:
            raise PermissionError(13, "Permission denied")
        return read_bytes(self)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(StateUnreadable, match=path.name):
        bench.attempt()
    assert bench.emulator.calls["create"] == paid
    monkeypatch.undo()
    bench.attempt()
    bench.check_paid_once()


def test_request_shards_that_changed_are_not_sent(bench: Any) -> None:
    path = _prepare(bench, "upload.json")
    path.unlink()
    (requests,) = (bench.directory / "out").rglob("requests/*.jsonl")
    before = requests.read_bytes()
    requests.write_bytes(before.replace(b"bicycle", b"unicycle"))
    paid = bench.emulator.calls["create"]
    with pytest.raises(GeminiBatchError, match="nothing was sent"):
        bench.attempt()
    assert bench.emulator.calls["create"] == paid
    requests.write_bytes(before)
    bench.attempt()
    bench.check_paid_once()


# What lies in Airflow's database ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda kwargs: {name: kwargs[name] for name in ("jobs", "gemini_conn_id")},
        lambda kwargs: kwargs | {"from_a_later_release": {"x": 1}, "and_another": None},
        lambda kwargs: kwargs | {"poll_interval": 1},
        lambda kwargs: kwargs | {"jobs": {job: int(at) for job, at in kwargs["jobs"].items()}},
    ],
    ids=["fewer", "more", "whole seconds", "whole deadlines"],
)
def test_a_trigger_serialised_by_another_release_runs(
    make_rig: Callable[..., Any], check_paid_once: Callable[..., None], change: Callable[[Any], Any]
) -> None:
    rig = make_rig()
    path, kwargs = rig.run(part="execute").told["deferred"]
    event = rig.run(part="trigger", more={"trigger": [path, change(kwargs)]})
    assert event.code == 0, event.told
    assert rig.run(part="resume", more={"event": event.told["event"]}).code == 0
    check_paid_once(rig, jobs=1)


@pytest.mark.parametrize(
    ("event", "error"),
    [
        (None, None),
        ({"version": 1, "outcomes": []}, None),
        ({"version": 1, "outcomes": [{"job": "batches/unknown", "how": "ended"}], "more": 1}, None),
        ({"version": 1, "outcomes": [{"job": "batches/unknown", "how": "in a new way"}]}, StateUnreadable),
        ({"version": 2, "outcomes": []}, StateTooNew),
        ({"status": "success"}, StateUnreadable),
        ({}, StateUnreadable),
        ([], StateUnreadable),
        ("success", StateUnreadable),
    ],
    ids=repr,
)
def test_an_event_is_read_or_refused_and_never_guessed(event: Any, error: type[GeminiBatchError] | None) -> None:
    if error is None:
        waiting.from_event(event)
    else:
        with pytest.raises(error):
            waiting.from_event(event)
