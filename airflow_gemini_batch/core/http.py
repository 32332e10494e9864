"""The two drivers of ``rest``, for a blocking httpx client and an async one; and the download, which is no conversation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, BinaryIO

import httpx
import orjson

from airflow_gemini_batch.core.rest import Account, Call, Conversation, Reply, T, error_of
from airflow_gemini_batch.exceptions import ServiceUnreachable

LIMITS = httpx.Limits(max_connections=8, max_keepalive_connections=4)
REDIRECTS = 5
DOWNLOAD_BYTES = 1 << 16
"""Of a download in memory at a time. Larger pieces leave holes in the memory of the thread that downloads."""
SLOWEST_DOWNLOAD = 1000
"""Bytes per second below which a download counts as broken, once it has taken longer than one call may."""


def hold(
    conversation: Conversation[T], http: httpx.Client, account: Account, sleep: Callable[[float], None] = time.sleep
) -> T:
    """Hold a conversation, blocking. What the conversation raises comes through."""
    try:
        call = next(conversation)
        while True:
            if call.after:
                sleep(call.after)
            call = conversation.send(_ask(call, http, account.within(call.within)))
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]


async def ahold(conversation: Conversation[T], http: httpx.AsyncClient, account: Account) -> T:
    """Hold a conversation without blocking the event loop."""
    try:
        call = next(conversation)
        while True:
            if call.after:
                await asyncio.sleep(call.after)
            call = conversation.send(await _aask(call, http, account.within(call.within)))
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]


def download(path: str, to: BinaryIO, http: httpx.Client, account: Account) -> int:
    """
    Stream a file into ``to``; returns its size in bytes.

    :raises ServiceUnreachable: it came back short, or too slowly.
    :raises ServiceError: the file cannot be had.
    """
    url, headers = account.url(path), account.headers()
    service = _origin(url)
    for _ in range(REDIRECTS):
        # Identity: with compression the Content-Length would not be the number of bytes we count.
        headers["Accept-Encoding"] = "identity"
        with http.stream("GET", url, headers=headers, timeout=account.timeout) as answer:
            if answer.has_redirect_location:
                url = str(answer.request.url.join(answer.headers["location"]))
                if _origin(url) != service:
                    headers.pop("x-goog-api-key", None)  # the key goes to the service and nobody else
                continue
            if answer.status_code != 200:
                raw = account.redact(answer.read().decode("utf-8", "replace")).encode()
                again = answer.headers.get("retry-after", "")
                raise error_of(answer.status_code, _json_or_none(raw), raw, phase="download", retry_after=again)
            size, started = 0, time.monotonic()
            for piece in answer.iter_raw(DOWNLOAD_BYTES):
                size += to.write(piece)
                seconds = time.monotonic() - started
                if seconds > account.timeout and size < seconds * SLOWEST_DOWNLOAD:
                    raise ServiceUnreachable(f"{size} bytes in {seconds:.0f} s")
            promised = answer.headers.get("content-length")
            if promised is not None and int(promised) != size:
                raise ServiceUnreachable(f"{size} bytes of {promised}")
            return size
    raise ServiceUnreachable(f"{path}: more than {REDIRECTS} redirects")


def _ask(call: Call, http: httpx.Client, account: Account) -> Reply:
    until = time.monotonic() + account.timeout
    try:
        with http.stream(call.method, account.url(call.path), **_arguments(call, account)) as answer:
            pieces = []
            for piece in answer.iter_bytes():
                pieces.append(piece)
                # httpx limits each read; an answer that drips in would be read for ever.
                if time.monotonic() > until:
                    raise httpx.ReadTimeout(f"not whole after {account.timeout:g} s")
            return _reply(answer, b"".join(pieces), account)
    except httpx.HTTPError as e:
        return _fault(call, e, account)


async def _aask(call: Call, http: httpx.AsyncClient, account: Account) -> Reply:
    try:
        async with asyncio.timeout(account.timeout):
            async with http.stream(call.method, account.url(call.path), **_arguments(call, account)) as answer:
                # Not its ``content``: httpx's answers sit in reference cycles, and would keep a page for a while.
                body = b"".join([piece async for piece in answer.aiter_bytes()])
                return _reply(answer, body, account)
    except TimeoutError:
        return _fault(call, httpx.ReadTimeout(f"not whole after {account.timeout:g} s"), account)
    except httpx.HTTPError as e:
        return _fault(call, e, account)


def _arguments(call: Call, account: Account) -> dict[str, Any]:
    # No redirects: the key would travel to whatever host they name.
    arguments: dict[str, Any] = {
        "params": dict(call.params), "headers": account.headers(), "timeout": account.timeout,
    }  # fmt: skip
    return arguments if call.body is None else arguments | {"json": call.body}


def _reply(answer: httpx.Response, body: bytes, account: Account) -> Reply:
    if answer.status_code == 200 and body.startswith(b"{"):
        return Reply(200, body)
    redacted = account.redact(body.decode("utf-8", "replace")).encode()
    return Reply(answer.status_code, redacted, retry_after=answer.headers.get("retry-after", ""))


def _fault(call: Call, e: httpx.HTTPError, account: Account) -> Reply:
    return Reply(0, fault=account.redact(f"{call.method} {call.path}: {type(e).__name__}: {e or 'no detail'}"))


def _origin(url: str) -> tuple[str, str, int | None]:
    parsed = httpx.URL(url)
    return parsed.scheme, parsed.host, parsed.port


def _json_or_none(raw: bytes) -> object:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
