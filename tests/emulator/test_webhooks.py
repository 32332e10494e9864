"""Webhooks that the emulator sends, taken by a real server and verified with the libraries that receivers use."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import jwt
import pytest
from google import genai

from airflow_gemini_batch.emulator import Emulator, Faults, Options

from ..serving import Received, receiving, wait_for

standardwebhooks = pytest.importorskip("standardwebhooks", reason="pip install standardwebhooks")

EVENTS = ["batch.succeeded", "batch.failed", "batch.expired", "batch.cancelled"]
ROW = [{"contents": "hello"}]


@pytest.fixture
def received() -> Iterator[Received]:
    with receiving() as received:
        yield received


@pytest.fixture
def gemini() -> Iterator[Emulator]:
    with Emulator(job_seconds=0.2, options=Options(webhook_pause=0.05)) as emulator:
        yield emulator


def call(emulator: Emulator, method: str, path: str, body: Any = None) -> httpx.Response:
    return httpx.request(method, f"{emulator.url}/v1beta/{path}", json=body, headers={"x-goog-api-key": "k"})


def register(emulator: Emulator, uri: str, events: list[str] = EVENTS) -> dict[str, Any]:
    answer = call(emulator, "POST", "webhooks", {"uri": uri, "subscribed_events": events})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def create(emulator: Emulator, **config: Any) -> str:
    client = genai.Client(api_key="k", http_options={"base_url": emulator.url})
    return str(client.batches.create(model="gemini-2.5-flash", src=ROW, config=config).name)  # type: ignore[arg-type]


def test_a_registered_webhook_is_told_of_a_jobs_end_though_nobody_looks(gemini, received):
    secret = register(gemini, received.url)["new_signing_secret"]
    job = create(gemini)
    headers, body = wait_for(received.messages, 1)[0]
    told = standardwebhooks.Webhook(secret).verify(body, headers)
    assert (told["type"], told["version"], told["data"]["id"]) == ("batch.succeeded", "v1", job)
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 60
    assert gemini.calls["get"] == 0
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(secret).verify(body + b" ", headers)


@pytest.mark.parametrize("state", ["FAILED", "EXPIRED", "CANCELLED"])
def test_every_end_has_its_event(gemini, received, state):
    gemini.faults = Faults(end_state=state)
    register(gemini, received.url)
    create(gemini)
    told = json.loads(wait_for(received.messages, 1)[0][1])
    assert told["type"] == f"batch.{state.lower()}"
    assert told["data"]["error_message"]


def test_a_create_names_its_own_receiver_and_signs_with_a_key_that_all_can_read(gemini, received):
    register(gemini, "https://elsewhere.invalid/")  # it is not told: the job has its own
    job = create(gemini, webhook_config={"uris": [received.url], "user_metadata": {"run": "42"}})
    headers, body = wait_for(received.messages, 1)[0]
    told = json.loads(body)
    assert (told["data"]["id"], told["data"]["user_metadata"]) == (job, {"run": "42"})
    keys = jwt.PyJWKClient(f"{gemini.url}/.well-known/jwks.json")
    token = headers["webhook-signature"]
    claims = jwt.decode(token, keys.get_signing_key_from_jwt(token), algorithms=["RS256"], audience=received.url)
    assert claims["jti"] == headers["webhook-id"]
    assert len(wait_for(lambda: gemini.webhooks_sent, 1)) == 1


def test_what_is_not_taken_is_sent_again_under_the_same_id(gemini, received):
    received.answers = [500, 503]
    register(gemini, received.url)
    create(gemini)
    sent = wait_for(lambda: gemini.webhooks_sent, 3)  # the emulator notes a try once its answer is in
    assert [status for _, _, status in sent] == [500, 503, 200]
    assert len({headers["webhook-id"] for headers, _ in received.messages()}) == 1


def test_a_webhook_that_is_never_taken_is_switched_off(received):
    received.answers = [500] * 9
    with Emulator(job_seconds=0, options=Options(webhook_pause=0.01, webhook_tries=3)) as gemini:
        webhook = register(gemini, received.url)
        create(gemini)
        wait_for(received.messages, 3)
        off: Callable[[], Any] = lambda: (  # noqa: E731
            [1] if call(gemini, "GET", f"webhooks/{webhook['id']}").json()["state"] != "enabled" else []
        )
        wait_for(off, 1)
        assert len(gemini.webhooks_sent) == 3


def test_registered_webhooks_can_be_listed_changed_pinged_and_deleted(gemini, received):
    made = register(gemini, received.url, ["batch.failed"])
    path = f"webhooks/{made['id']}"
    assert "new_signing_secret" not in call(gemini, "GET", path).json()
    assert [one["id"] for one in call(gemini, "GET", "webhooks").json()["webhooks"]] == [made["id"]]
    assert call(gemini, "PATCH", path, {"name": "mine"}).json()["name"] == "mine"
    call(gemini, "POST", f"{path}:ping")
    assert json.loads(wait_for(received.messages, 1)[0][1])["type"] == "ping"
    create(gemini)  # it succeeds, which this one does not want to know
    assert call(gemini, "DELETE", path).json() == {}
    assert call(gemini, "GET", path).status_code == 404
    assert call(gemini, "GET", "webhooks").json() == {}
    assert len(wait_for(lambda: gemini.webhooks_sent, 1)) == 1


@pytest.mark.parametrize("at_once", [False, True])
def test_a_rotated_secret_signs_beside_the_old_one_for_a_day(gemini, received, at_once):
    made = register(gemini, received.url)
    how = "revoke_previous_secrets_immediately" if at_once else "revoke_previous_secrets_after_h24"
    fresh = call(
        gemini, "POST", f"webhooks/{made['id']}:rotateSigningSecret", {"revocation_behavior": how}
    ).json()["secret"]  # fmt: skip
    create(gemini)
    headers, body = wait_for(received.messages, 1)[0]
    standardwebhooks.Webhook(fresh).verify(body, headers)
    assert len(headers["webhook-signature"].split(" ")) == (1 if at_once else 2)
    if not at_once:
        standardwebhooks.Webhook(made["new_signing_secret"]).verify(body, headers)


@pytest.mark.parametrize(
    "body",
    [
        {"uri": "http://example.com/", "subscribed_events": ["batch.failed"]},
        {"uri": "https://example.com/", "subscribed_events": ["batch.completed"]},
        {"uri": "https://example.com/", "subscribed_events": []},
        {"uri": "https://example.com/", "subscribed_events": ["batch.failed"], "colour": "red"},
        {"subscribed_events": ["batch.failed"]},
    ],
)
def test_a_webhook_that_cannot_be_is_refused(gemini, body):
    assert call(gemini, "POST", "webhooks", body).status_code == 400
    assert call(gemini, "GET", "webhooks").json() == {}


def test_a_create_with_a_receiver_that_is_not_https_is_refused(gemini):
    with pytest.raises(Exception, match="HTTPS"):
        create(gemini, webhook_config={"uris": ["http://example.com/"]})
    assert gemini.jobs_created == 0
