"""The calls on cached contents: enough for a batch that names one (https://ai.google.dev/api/caching)."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from airflow_gemini_batch.emulator.clock import SECOND
from airflow_gemini_batch.emulator.errors import ApiError
from airflow_gemini_batch.emulator.routes import Match
from airflow_gemini_batch.emulator.service import Cache, Service
from airflow_gemini_batch.emulator.wire import new_id, page, reply

DEFAULT_TTL = 3600


async def create(service: Service, request: Request, match: Match) -> Response:
    body = _body(await request.body())
    model = str(body.get("model") or "")
    if not model:
        raise ApiError(400, "CachedContent.model is required.")
    now = service.clock.now()
    name = f"cachedContents/{new_id(40)}"
    expires = now + round(_ttl(body.get("ttl")) * SECOND)
    cache = Cache(name, model, str(body.get("displayName") or body.get("display_name") or ""), now, expires)
    service.caches[name] = cache
    return reply(cache.resource())


async def get(service: Service, request: Request, match: Match) -> Response:
    return reply(_find(service, match).resource())


async def list_(service: Service, request: Request, match: Match) -> Response:
    now = service.clock.now()
    caches = sorted(service.caches.values(), key=lambda cache: cache.created, reverse=True)
    alive = [cache for cache in caches if cache.expires > now]
    shown, token = page(alive, request.query_params, order=lambda cache: cache.created, default=50, most=1000)
    body: dict[str, Any] = {"cachedContents": [cache.resource() for cache in shown]} if shown else {}
    return reply({**body, "nextPageToken": token} if token else body)


async def update(service: Service, request: Request, match: Match) -> Response:
    cache = _find(service, match)
    cache.expires = service.clock.now() + round(_ttl(_body(await request.body()).get("ttl")) * SECOND)
    return reply(cache.resource())


async def delete(service: Service, request: Request, match: Match) -> Response:
    del service.caches[_find(service, match).name]
    return reply({})


def _find(service: Service, match: Match) -> Cache:
    cache = service.caches.get(f"cachedContents/{match.id}")
    if cache is None or cache.expires <= service.clock.now():
        raise ApiError(403, "CachedContent not found (or permission denied)")
    return cache


def _body(raw: bytes) -> dict[str, Any]:
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as e:
        raise ApiError(400, f"Invalid JSON payload received. {e}") from e
    if not isinstance(body, dict):
        raise ApiError(400, "Invalid JSON payload received.")
    return body


def _ttl(text: object) -> float:
    if text is None:
        return DEFAULT_TTL
    try:
        return float(str(text).removesuffix("s"))
    except ValueError as e:
        raise ApiError(400, f"Illegal duration format: {text!r}") from e
