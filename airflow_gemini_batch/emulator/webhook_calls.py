"""The calls on registered webhooks. Unlike all else in this API they speak snake_case only."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from airflow_gemini_batch.emulator.errors import ApiError
from airflow_gemini_batch.emulator.routes import Match
from airflow_gemini_batch.emulator.service import Service
from airflow_gemini_batch.emulator.webhooks import EVENT_OF_STATE, Webhook, check_uri
from airflow_gemini_batch.emulator.wire import new_id, page, reply

EVENTS = frozenset(EVENT_OF_STATE.values()) | {"interaction.completed", "video.generated"}
REVOCATIONS = {"revoke_previous_secrets_after_h24": True, "revoke_previous_secrets_immediately": False}
"""``revocation_behavior`` → whether the old secrets sign along for a day."""
CHANGEABLE = frozenset({"uri", "subscribed_events", "name", "state"})


async def create(service: Service, request: Request, match: Match) -> Response:
    body = await _body(request)
    now = service.clock.now()
    webhooks = service.webhooks.registered
    webhook = Webhook(new_id(20), "", [], "", now, now, len(webhooks) + 1)
    _change(webhook, {"uri": "", "subscribed_events": [], **body})
    secret = webhook.rotate(now, keep_old=False)
    webhooks[webhook.id] = webhook
    return reply({**webhook.resource(now), "new_signing_secret": secret})


async def get(service: Service, request: Request, match: Match) -> Response:
    return reply(_find(service, match).resource(service.clock.now()))


async def list_(service: Service, request: Request, match: Match) -> Response:
    known = sorted(service.webhooks.registered.values(), key=lambda one: -one.number)
    shown, token = page(known, request.query_params, order=lambda one: one.number, default=50, most=1000)
    now = service.clock.now()
    body: dict[str, Any] = {"webhooks": [one.resource(now) for one in shown]} if shown else {}
    return reply({**body, "next_page_token": token} if token else body)


async def update(service: Service, request: Request, match: Match) -> Response:
    webhook = _find(service, match)
    _change(webhook, await _body(request))
    webhook.updated = service.clock.now()
    return reply(webhook.resource(webhook.updated))


async def delete(service: Service, request: Request, match: Match) -> Response:
    del service.webhooks.registered[_find(service, match).id]
    return reply({})


async def ping(service: Service, request: Request, match: Match) -> Response:
    service.webhooks.ping(_find(service, match))
    return reply({})


async def rotate(service: Service, request: Request, match: Match) -> Response:
    webhook = _find(service, match)
    asked = (await _body(request)).get("revocation_behavior", "revoke_previous_secrets_after_h24")
    if asked not in REVOCATIONS:
        raise ApiError(400, f"Invalid revocation_behavior: {asked!r}")
    return reply({"secret": webhook.rotate(service.clock.now(), keep_old=REVOCATIONS[asked])})


def _find(service: Service, match: Match) -> Webhook:
    webhook = service.webhooks.registered.get(match.id)
    if webhook is None:
        raise ApiError(404)
    return webhook


async def _body(request: Request) -> dict[str, Any]:
    try:
        body = orjson.loads(await request.body() or b"{}")
    except orjson.JSONDecodeError as e:
        raise ApiError(400, f"Invalid JSON payload received. {e}") from e
    if not isinstance(body, dict):
        raise ApiError(400, "Invalid JSON payload received. It is not an object.")
    return body


def _change(webhook: Webhook, body: dict[str, Any]) -> None:
    """:raises ApiError: 400: an unknown field, or a value that cannot be."""
    if unknown := sorted(body.keys() - CHANGEABLE):
        raise ApiError(400, f'Invalid JSON payload received. Unknown name "{unknown[0]}": Cannot find field.')
    if "uri" in body:
        check_uri(str(body["uri"]))
        webhook.uri = str(body["uri"])
    if "subscribed_events" in body:
        events = body["subscribed_events"]
        if not isinstance(events, list) or not events or not set(events) <= EVENTS:
            raise ApiError(400, f"subscribed_events takes a list of {', '.join(sorted(EVENTS))}; got {events!r}")
        webhook.events = list(dict.fromkeys(events))
    if "state" in body:
        if body["state"] not in ("enabled", "disabled"):
            raise ApiError(400, f"Invalid state: {body['state']!r}")
        webhook.state = body["state"]
    if "name" in body:
        webhook.name = str(body["name"])
