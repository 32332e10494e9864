"""The two drivers of ``rest``: the same conversations, held with a blocking httpx client or an async one."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx

from airflow_gemini_batch.core.rest import Account, Call, Conversation, Reply, T

LIMITS = httpx.Limits(max_connections=8, max_keepalive_connections=4)


def hold(conversation: Conversation[T], http: httpx.Client, account: Account) -> T:
    """Hold a conversation, blocking. What the conversation raises comes through."""
    try:
        call = next(conversation)
        while True:
            call = conversation.send(_ask(call, http, account))
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]


async def ahold(conversation: Conversation[T], http: httpx.AsyncClient, account: Account) -> T:
    """Hold a conversation without blocking the event loop."""
    try:
        call = next(conversation)
        while True:
            call = conversation.send(await _aask(call, http, account))
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]


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
            return _reply(answer.status_code, b"".join(pieces), account)
    except httpx.HTTPError as e:
        return _fault(call, e, account)


async def _aask(call: Call, http: httpx.AsyncClient, account: Account) -> Reply:
    try:
        async with asyncio.timeout(account.timeout):
            answer = await http.request(call.method, account.url(call.path), **_arguments(call, account))
            return _reply(answer.status_code, answer.content, account)
    except TimeoutError:
        return _fault(call, httpx.ReadTimeout(f"not whole after {account.timeout:g} s"), account)
    except httpx.HTTPError as e:
        return _fault(call, e, account)


def _arguments(call: Call, account: Account) -> dict[str, Any]:
    # No redirects: the key would travel to whatever host they name.
    return {"params": dict(call.params), "headers": account.headers(), "timeout": account.timeout}


def _reply(status: int, body: bytes, account: Account) -> Reply:
    if status == 200 and body.startswith(b"{"):
        return Reply(status, body)
    return Reply(status, account.redact(body.decode("utf-8", "replace")).encode())


def _fault(call: Call, e: httpx.HTTPError, account: Account) -> Reply:
    return Reply(0, fault=account.redact(f"{call.method} {call.path}: {type(e).__name__}: {e or 'no detail'}"))
