"""Small things that many replies share: ids, names, pages and JSON replies."""

from __future__ import annotations

import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import orjson
from starlette.datastructures import QueryParams
from starlette.responses import Response

from airflow_gemini_batch.emulator.errors import JSON, ApiError

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
T = TypeVar("T")


def new_id(length: int) -> str:
    """A random id as the service makes them: 12 characters for files, 36 for batches."""
    return "".join(secrets.choice(ALPHABET) for _ in range(length))


def reply(body: Any, headers: dict[str, str] | None = None) -> Response:
    """A 200 with JSON. Nothing that succeeds has any other status: the SDK would raise."""
    return Response(orjson.dumps(body), 200, headers, JSON)


def query(params: QueryParams, name: str, snake_name: str) -> str | None:
    """A query parameter in either spelling."""
    return params.get(name) or params.get(snake_name) or None


def page(
    items: Sequence[T], params: QueryParams, *, order: Callable[[T], int], default: int, most: int
) -> tuple[list[T], str | None]:
    """
    One page and the token of the next one, None on the last.

    :param items: newest first.
    :param order: lower for older ones; a token holds that of the last one shown, so newer ones move nothing.
    """
    size_text, token = query(params, "pageSize", "page_size"), query(params, "pageToken", "page_token")
    try:
        size = int(size_text or 0)
        before = None if token is None else int(urlsafe_b64decode(token.encode() + b"=="))
    except ValueError as e:
        raise ApiError(400, "Invalid page token or page size.") from e
    if size < 0:
        raise ApiError(400, "Page size must not be negative.")
    rest = items if before is None else [item for item in items if order(item) < before]
    shown = list(rest[: min(size or default, most)])
    more = len(rest) > len(shown)
    return shown, urlsafe_b64encode(str(order(shown[-1])).encode()).decode().rstrip("=") if more else None
