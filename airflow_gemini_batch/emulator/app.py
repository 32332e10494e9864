"""The ASGI app: key, faults, handler, reply, for every request. It stands bare so that it can close connections."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from airflow_gemini_batch.emulator import batch_calls, cache_calls, control, file_calls, webhook_calls
from airflow_gemini_batch.emulator.errors import ApiError, bad_key, html_error, missing_key
from airflow_gemini_batch.emulator.file_calls import BrokenBodyError
from airflow_gemini_batch.emulator.routes import Match, find
from airflow_gemini_batch.emulator.service import RequestSeen, Service
from airflow_gemini_batch.emulator.wire import reply

Handler = Callable[[Service, Request, Match], Awaitable[Response]]
HANDLERS: dict[str, Handler] = {
    "create": batch_calls.create,
    "create_embeddings": batch_calls.create,
    "get": batch_calls.get,
    "list": batch_calls.list_,
    "cancel": batch_calls.cancel,
    "delete": batch_calls.delete,
    "update": batch_calls.update,
    "count_tokens": batch_calls.count_tokens,
    "models": batch_calls.model_get,
    "model_list": batch_calls.model_list,
    "cache_create": cache_calls.create,
    "cache_list": cache_calls.list_,
    "cache_get": cache_calls.get,
    "cache_update": cache_calls.update,
    "cache_delete": cache_calls.delete,
    "webhook_create": webhook_calls.create,
    "webhook_list": webhook_calls.list_,
    "webhook_get": webhook_calls.get,
    "webhook_update": webhook_calls.update,
    "webhook_delete": webhook_calls.delete,
    "webhook_ping": webhook_calls.ping,
    "webhook_rotate": webhook_calls.rotate,
    "upload_start": file_calls.start,
    "upload_chunk": file_calls.chunk,
    "upload_query": file_calls.query,
    "upload_cancel": file_calls.cancel,
    "upload_raw": file_calls.raw,
    "upload_multipart": file_calls.multipart,
    "file_get": file_calls.get,
    "file_list": file_calls.list_,
    "file_delete": file_calls.delete,
    "download": file_calls.download,
}
JWKS = "/.well-known/jwks.json"
WITHOUT_KEY = ("upload_chunk", "upload_query", "upload_cancel")  # the upload id is key enough


class App:
    """One service over HTTP."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        if request.url.path.startswith("/_emulator"):
            await (await control.handle(self.service, request))(scope, receive, send)
            return
        if request.url.path == JWKS:
            await reply(self.service.webhooks.jwks())(scope, receive, send)
            return
        match = find(request.method, request.url.path)
        if match is None:
            self._note("unknown", request).status = 404
            await html_error(404, f"The requested URL {request.url.path} was not found on this server.").response()(
                scope, receive, send
            )
            return
        call = file_calls.upload_call(request) if match.call == "upload" else match.call
        seen = self._note(call, request)
        response = await self._respond(call, match, request)
        if response is None:
            await _hang_up(receive, send)
            return
        seen.status = response.status_code
        try:
            await response(scope, receive, send)
        except BrokenBodyError:
            await _hang_up(receive, send)

    async def _respond(self, call: str, match: Match, request: Request) -> Response | None:
        """The reply, or None if there is to be none."""
        counters = self.service.counters
        try:
            self._check_key(call, request)
            await self._delay(call, request)
            if counters.drops("before", call):
                return None
            if error := counters.http_error(call, recorded=False):
                await _read_all(request)
                raise error.error()
            response = await HANDLERS[call](self.service, request, match)
            if error := counters.http_error(call, recorded=True):
                raise error.error()
        except ApiError as e:
            if call == "upload_start":
                e.headers.setdefault(file_calls.STATUS, "final")
            response = e.response()
        except ClientDisconnect:
            return None
        return None if counters.drops("after", call) else response

    def _note(self, call: str, request: Request) -> RequestSeen:
        headers = dict(request.headers.items())
        seen = RequestSeen(call, request.method, request.url.path, request.url.query, headers, time.time())
        self.service.calls[call] += 1
        self.service.log.append(seen)
        return seen

    def _check_key(self, call: str, request: Request) -> None:
        """:raises ApiError: no key is a 403, a wrong one a 400."""
        if call in WITHOUT_KEY:
            return
        key = request.headers.get("x-goog-api-key") or request.query_params.get("key")
        if not key:
            if request.headers.get("authorization", "").startswith("Bearer "):
                return
            raise missing_key()
        if not self.service.key_works(key):
            raise bad_key()

    async def _delay(self, call: str, request: Request) -> None:
        """:raises ApiError: 504 when the client's own deadline comes first, as the real front end does."""
        delays = self.service.faults.delay_seconds
        seconds = float(delays.get(call, delays.get("*", 0.0)))
        if seconds <= 0:
            return
        deadline = request.headers.get("x-server-timeout", "")
        limit = float(deadline) if deadline.replace(".", "", 1).isdigit() else math.inf
        await self.service.sleep(min(seconds, limit))
        if limit < seconds:
            raise ApiError(504)


async def _read_all(request: Request) -> None:
    async for _ in request.stream():
        pass


async def _hang_up(receive: Receive, send: Send) -> None:
    """
    Close the connection without another byte.

    ASGI has no word for this, so it reaches for uvicorn's transport behind the bare ``send``.
    """
    transport: Any = getattr(getattr(send, "__self__", None), "transport", None)
    if transport is None:
        raise RuntimeError("Connections can only be dropped when the app runs under uvicorn without middleware")
    transport.close()
    while True:
        message: Message = await receive()
        if message["type"] == "http.disconnect":
            return
