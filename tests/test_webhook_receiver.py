"""The example receiver: the emulator's webhooks in, events of a real Airflow API server out."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from google import genai

from airflow_gemini_batch.emulator import Emulator, Faults, Options

from .serving import serving, wait_for

pytest.importorskip("standardwebhooks")

EXAMPLE = Path(__file__).resolve().parent.parent / "example_dags/webhook_receiver.py"
ASSET = "gemini://jobs/ended"


@pytest.fixture(scope="module")
def airflow() -> Iterator[tuple[str, str]]:
    """URL and token of an Airflow API server that knows the asset."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", "a secret of this test " * 4)
        from airflow.api_fastapi.app import create_app
        from airflow.models.asset import AssetActive, AssetModel
        from airflow.utils.db import initdb
        from airflow.utils.session import create_session

        initdb()
        with create_session() as session:
            asset = AssetModel(name=ASSET, uri=ASSET, group="asset")
            session.add_all([asset, AssetActive.for_asset(asset)])
        with serving(create_app(apps="core")) as url:
            yield url, httpx.get(f"{url}/auth/token").json()["access_token"]


@pytest.fixture
def gemini() -> Iterator[Emulator]:
    with Emulator(job_seconds=0, options=Options(webhook_pause=0.05, webhook_repeats=1)) as emulator:
        yield emulator


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("webhook_receiver", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "webhook_receiver", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def settings(example: Any, gemini: Emulator, airflow: tuple[str, str], tmp_path: Path) -> Any:
    url, token = airflow
    return example.Settings(
        api_key="k", asset=ASSET, airflow_url=url, airflow_token=token, gemini_url=gemini.url, seen=str(tmp_path / "seen")
    )  # fmt: skip


def events(settings: Any, job: str) -> list[dict[str, Any]]:
    """What Airflow was told of a job."""
    answer = httpx.get(
        f"{settings.airflow_url}/api/v2/assets/events", params={"limit": 100},
        headers={"Authorization": f"Bearer {settings.airflow_token}"},
    ).raise_for_status()  # fmt: skip
    return [one["extra"] for one in answer.json()["asset_events"] if one["extra"].get("job") == job]


def create(gemini: Emulator, **config: Any) -> str:
    client = genai.Client(api_key="k", http_options={"base_url": gemini.url})
    rows: Any = [{"contents": "hello"}]
    return str(client.batches.create(model="gemini-2.5-flash", src=rows, config=config).name)  # type: ignore[arg-type]


def register(gemini: Emulator, uri: str) -> str:
    body = {"uri": uri, "subscribed_events": ["batch.succeeded", "batch.failed"]}
    answer = httpx.post(f"{gemini.url}/v1/webhooks", json=body, headers={"x-goog-api-key": "k"})
    return str(answer.json()["new_signing_secret"])


@pytest.mark.parametrize("state", ["SUCCEEDED", "FAILED"])
def test_a_job_that_ends_becomes_one_asset_event_however_often_it_is_told(example, settings, gemini, state):
    gemini.faults = Faults(end_state=state)
    settings = replace(settings, secret="whsec_" + "A" * 44)
    secrets: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:  # the secret is known only once the URL is
        await example.make_app(replace(settings, secret=secrets[0]))(scope, receive, send)

    with serving(app) as url:
        secrets.append(register(gemini, f"{url}/gemini"))
        job = create(gemini, display_name="nightly")
        wait_for(lambda: gemini.webhooks_sent, 2)
    assert [status for _, _, status in gemini.webhooks_sent] == [200, 200]
    (event,) = events(settings, job)
    assert (event["state"], event["display_name"]) == (state, "nightly")


def test_a_webhook_of_a_create_call_is_taken_for_this_receiver_alone(example, settings, gemini):
    for audience, status in ((None, 200), ("https://other.example/gemini", 401)):
        heard: list[str] = []

        async def app(scope: Any, receive: Any, send: Any, audience: str | None = audience, heard: Any = heard) -> None:
            await example.make_app(replace(settings, audience=audience or heard[0]))(scope, receive, send)

        with serving(app) as url:
            heard.append(f"{url}/gemini")
            before = len(gemini.webhooks_sent)
            job = create(gemini, webhook_config={"uris": [heard[0]]})
            wait_for(lambda before=before: gemini.webhooks_sent[before:], 1)
        assert gemini.webhooks_sent[before][2] == status
        assert len(events(settings, job)) == (status == 200)


def test_messages_that_are_forged_old_or_about_nothing_are_refused(example, settings, gemini):
    import standardwebhooks

    secret = "whsec_c2VjcmV0IG9mIHRoaXMgdGVzdA=="
    settings = replace(settings, secret=secret)
    from datetime import UTC, datetime

    def send(url: str, body: bytes, *, late: float = 0, key: str = secret, job: str = "x") -> int:
        at = time.time() - late
        signature = standardwebhooks.Webhook(key).sign(f"msg_{job}", datetime.fromtimestamp(at, UTC), body.decode())
        headers = {"webhook-id": f"msg_{job}", "webhook-timestamp": str(int(at)), "webhook-signature": signature}
        return httpx.post(f"{url}/gemini", content=body, headers=headers, timeout=30).status_code

    job = create(gemini)
    good = json.dumps({"type": "batch.succeeded", "data": {"id": job}}).encode()
    missing = json.dumps({"type": "batch.succeeded", "data": {"id": "batches/nope"}}).encode()
    with serving(example.make_app(settings)) as url:
        assert send(url, good, key="whsec_b3RoZXI=") == 401
        assert send(url, good, late=301) == 401
        assert send(url, good, late=-320) == 401
        assert httpx.post(f"{url}/gemini", content=good).status_code == 401
        assert events(settings, job) == []
        assert send(url, missing) == 503
        assert send(url, missing) == 503  # it was not taken, so it is not taken for a repetition
        assert send(url, good, job="good") == 200
        assert len(events(settings, job)) == 1
