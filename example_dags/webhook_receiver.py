"""
Gemini's webhooks become Airflow asset events: a small web service of its own, no DAG.

    pip install standardwebhooks
    uvicorn --factory webhook_receiver:from_environment --port 8000    # behind a proxy that speaks HTTPS

A webhook is only a hint: it is verified, taken once, and then the job itself is asked how it ended. What cannot be verified
gets 401; what cannot be done now gets 503, and the service sends it again.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import httpx
import jwt
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

TOLERANCE = 300.0
"""Seconds by which a message's time may differ from ours."""

ENDED = ("SUCCEEDED", "FAILED", "CANCELLED", "EXPIRED")


class NotGenuine(Exception):
    """The message was not sent by the service, or not now, or not to us."""


class NotNow(Exception):
    """It could not be done this time; another delivery may fare better."""


@dataclass(frozen=True)
class Settings:
    """
    :param secret: ``whsec_...`` of a registered webhook, None to refuse those.
    :param audience: this receiver's public URL, as given in ``webhook_config``; None to refuse webhooks of create calls.
    :param asset: URI of the asset that gets an event for each job that ended.
    :param airflow_token: for Airflow's REST API.
    :param seen: path of the file that remembers which messages were taken.
    """

    api_key: str
    asset: str
    airflow_url: str
    airflow_token: str
    secret: str | None = None
    audience: str | None = None
    gemini_url: str = "https://generativelanguage.googleapis.com"
    seen: str = "webhooks-seen.db"


def from_environment() -> Starlette:
    """The app with its settings from RECEIVER_API_KEY, RECEIVER_ASSET and so on."""
    names = Settings.__dataclass_fields__
    return make_app(Settings(**{n: v for n in names if (v := os.environ.get(f"RECEIVER_{n.upper()}")) is not None}))


def make_app(settings: Settings) -> Starlette:
    """An app with one path, ``/gemini``."""
    keys = jwt.PyJWKClient(f"{settings.gemini_url}/.well-known/jwks.json")
    with closing(_memory(settings)) as memory, memory:
        memory.execute("CREATE TABLE IF NOT EXISTS seen (id TEXT PRIMARY KEY, at REAL)")

    def take(headers: Mapping[str, str], body: bytes) -> str:
        verify(settings, keys, headers, body)
        event = json.loads(body)
        if not str(event.get("type", "")).startswith("batch."):
            return "not about a batch"
        if not remember(settings, headers["webhook-id"]):
            return "taken before"
        try:
            job = look(settings, str(event["data"]["id"]))
            announce(settings, job)
        except BaseException:
            forget(settings, headers["webhook-id"])
            raise
        return str(job["state"])

    async def gemini(request: Request) -> JSONResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        try:
            said = await run_in_threadpool(take, headers, await request.body())
        except NotGenuine as e:
            return JSONResponse({"error": str(e)}, 401)
        except (NotNow, httpx.HTTPError, sqlite3.Error) as e:
            return JSONResponse({"error": f"{type(e).__name__}: {e}"}, 503)
        return JSONResponse({"done": said})

    return Starlette(routes=[Route("/gemini", gemini, methods=["POST"])])


# Verifying ---------------------------------------------------------------------------------------------------


def verify(settings: Settings, keys: jwt.PyJWKClient, headers: Mapping[str, str], body: bytes) -> None:
    """:raises NotGenuine: the message is not one of the service to us, or is too old."""
    try:
        at, signature = float(headers["webhook-timestamp"]), headers["webhook-signature"]
        _ = headers["webhook-id"]
    except (KeyError, ValueError) as e:
        raise NotGenuine(f"a header is missing or wrong: {e}") from e
    if not abs(time.time() - at) <= TOLERANCE:
        raise NotGenuine("the message is too old, or from the future")
    if signature.startswith("v1,"):
        _verify_registered(settings, headers, body)
    else:
        _verify_of_create(settings, keys, signature)


def _verify_registered(settings: Settings, headers: Mapping[str, str], body: bytes) -> None:
    from standardwebhooks import Webhook, WebhookVerificationError

    if settings.secret is None:
        raise NotGenuine("no webhook is registered with this receiver")
    try:
        Webhook(settings.secret).verify(body, dict(headers), json_parse=False)
    except (WebhookVerificationError, ValueError) as e:
        raise NotGenuine(f"the signature is wrong: {e}") from e


def _verify_of_create(settings: Settings, keys: jwt.PyJWKClient, token: str) -> None:
    """The token proves who sent it and to whom, not what is in the body: one more reason to ask for the job itself."""
    if settings.audience is None:
        raise NotGenuine("webhooks of create calls are not taken")
    try:
        key = keys.get_signing_key_from_jwt(token)
        jwt.decode(token, key, algorithms=["RS256"], audience=settings.audience, options={"require": ["aud", "exp"]})
    except jwt.PyJWKClientConnectionError as e:
        raise NotNow(f"the service's keys cannot be had: {e}") from e
    except jwt.PyJWTError as e:
        raise NotGenuine(f"the token is wrong: {e}") from e


# Once --------------------------------------------------------------------------------------------------------


def _memory(settings: Settings) -> sqlite3.Connection:
    return sqlite3.connect(settings.seen, timeout=10)


def remember(settings: Settings, message: str) -> bool:
    """False if a delivery of the same message has been taken; also by another process that shares the file."""
    with closing(_memory(settings)) as memory, memory:
        # The service sends for a day; who comes later than the tolerance with an old signature is refused anyway.
        memory.execute("DELETE FROM seen WHERE at < ?", [time.time() - 3 * 86_400])
        return memory.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", [message, time.time()]).rowcount == 1


def forget(settings: Settings, message: str) -> None:
    with closing(_memory(settings)) as memory, memory:
        memory.execute("DELETE FROM seen WHERE id = ?", [message])


# Job and event -----------------------------------------------------------------------------------------------


def look(settings: Settings, job: str) -> dict[str, Any]:
    """
    Return what the service says of the job now.

    :raises NotNow: it could not be asked, or the job has not ended.
    """
    name = f"batches/{job.removeprefix('batches/')}"
    answer = httpx.get(f"{settings.gemini_url}/v1beta/{name}", headers={"x-goog-api-key": settings.api_key}, timeout=30)
    if answer.status_code != 200:
        raise NotNow(f"{name} cannot be looked at: HTTP {answer.status_code}")
    told = answer.json()["metadata"]
    state = str(told.get("state", "")).removeprefix("BATCH_STATE_")
    if state not in ENDED:
        raise NotNow(f"{name} is {state}")
    return {
        "job": name,
        "state": state,
        "display_name": told.get("displayName", ""),
        "results": told.get("output", {}).get("responsesFile"),
        "counts": told.get("batchStats", {}),
    }


def announce(settings: Settings, job: dict[str, Any]) -> None:
    """:raises httpx.HTTPError: Airflow did not take the event. :raises NotNow: it does not know the asset."""
    api = f"{settings.airflow_url.rstrip('/')}/api/v2"
    with httpx.Client(headers={"Authorization": f"Bearer {settings.airflow_token}"}, timeout=30) as airflow:
        found = airflow.get(f"{api}/assets", params={"uri_pattern": settings.asset}).raise_for_status().json()
        ids = [one["id"] for one in found["assets"] if one["uri"] == settings.asset]
        if not ids:
            raise NotNow(f"Airflow has no asset {settings.asset!r}; a DAG must name it")
        airflow.post(f"{api}/assets/events", json={"asset_id": ids[0], "extra": job}).raise_for_status()
