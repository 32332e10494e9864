"""The two drivers of ``rest``: the same conversations, held with a blocking httpx client or an async one."""

from __future__ import annotations

from typing import Any

import httpx

from airflow_gemini_batch.core.rest import Account, Call, Conversation, Reply, T

LIMITS = httpx.Limits(max_connections=8, max_keepalive_connections=4)


def hold(conversation: Conversation[T], http: httpx.Client, account: Account) -> T:
    """Hold a conversation, blocking. What the conversation raises comes through."""
    try:
        call = next(conversation)
        while True:
            try:
                answer = http.request(call.method, account.url(call.path), **_arguments(call, account))
                reply = Reply(answer.status_code, answer.content)
            except httpx.HTTPError as e:
                reply = _fault(call, e)
            call = conversation.send(reply)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]


async def ahold(conversation: Conversation[T], http: httpx.AsyncClient, account: Account) -> T:
    """Hold a conversation without blocking the event loop."""
    try:
        call = next(conversation)
        while True:
            try:
                answer = await http.request(call.method, account.url(call.path), **_arguments(call, account))
                reply = Reply(answer.status_code, answer.content)
            except httpx.HTTPError as e:
                reply = _fault(call, e)
            call = conversation.send(reply)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]


def _arguments(call: Call, account: Account) -> dict[str, Any]:
    # No redirects: the key would travel to whatever host they name.
    return {"params": dict(call.params), "headers": account.headers(), "timeout": account.timeout}


def _fault(call: Call, e: httpx.HTTPError) -> Reply:
    return Reply(0, fault=f"{call.method} {call.path}: {type(e).__name__}: {e or 'no detail'}")
