"""
Webhooks: who wants to be told of a job's end, how a message is signed, and its delivery, again until it is taken.

Registered ones are signed as Standard Webhooks says (https://www.standardwebhooks.com); those that a create call names, with
a JWT. What is not known for sure of the real ones: which claims the JWT has beside ``aud``, and where user metadata stand.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import orjson

from airflow_gemini_batch.emulator.clock import SECOND, timestamp
from airflow_gemini_batch.emulator.errors import ApiError
from airflow_gemini_batch.emulator.jobs import Job
from airflow_gemini_batch.emulator.wire import new_id

if TYPE_CHECKING:
    from airflow_gemini_batch.emulator.service import Service

EVENT_OF_STATE = {
    "SUCCEEDED": "batch.succeeded",
    "PARTIALLY_SUCCEEDED": "batch.succeeded",
    "FAILED": "batch.failed",
    "CANCELLED": "batch.cancelled",
    "EXPIRED": "batch.expired",
}
TICK = 0.05
"""Seconds between two looks at the jobs whose end somebody waits for."""
TAKEN_WITHIN = 5.0
OLD_SECRETS_LIVE = 24 * 3600 * SECOND
LOOPBACK = ("localhost", "127.0.0.1", "::1")
ISSUER = "https://generativelanguage.googleapis.com"


@dataclass
class Webhook:
    """A registered webhook. ``secrets`` are the present one, then older ones with the time of their end, in nanoseconds."""

    id: str
    uri: str
    events: list[str]
    name: str
    created: int
    updated: int
    number: int
    state: str = "enabled"
    secrets: list[tuple[str, int | None]] = field(default_factory=list, repr=False)

    def rotate(self, now: int, *, keep_old: bool) -> str:
        """Make a new secret; the old ones sign along for a day, or not at all."""
        kept = [(secret, end or now + OLD_SECRETS_LIVE) for secret, end in self.valid(now)] if keep_old else []
        fresh = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
        self.secrets = [(fresh, None), *kept]
        return fresh

    def valid(self, now: int) -> list[tuple[str, int | None]]:
        return [(secret, end) for secret, end in self.secrets if end is None or end > now]

    def resource(self, now: int) -> dict[str, Any]:
        """It as the API shows it: secrets by their last characters."""
        return {
            "id": self.id,
            "name": self.name,
            "uri": self.uri,
            "subscribed_events": self.events,
            "state": self.state,
            "signing_secrets": [
                {"truncated_secret": f"...{secret[-4:]}"} | ({"expire_time": timestamp(end)} if end else {})
                for secret, end in self.valid(now)
            ],
            "create_time": timestamp(self.created),
            "update_time": timestamp(self.updated),
        }


@dataclass(frozen=True)
class Message:
    """One event for one receiver. Its id stays the same, however often it is sent."""

    id: str
    uri: str
    body: bytes
    webhook: Webhook | None = None


def check_uri(uri: str) -> None:
    """:raises ApiError: 400: not HTTPS. Plain HTTP is for this machine alone."""
    parts = urlsplit(uri)
    if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK):
        return
    raise ApiError(400, f"Webhook uri must be an HTTPS URL: {uri!r}")


class Webhooks:
    """All webhooks of a project, and the messages on their way."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.registered: dict[str, Webhook] = {}
        self.delivered: list[tuple[str, str, int | None]] = []
        """Every try: message id, URI, and the status of the answer, None if there was none."""
        self._watched: dict[str, Job] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.Task[None] | None = None

    # Signing -----------------------------------------------------------------------------------------------

    @cached_property
    def _key(self) -> tuple[str, Any]:
        """Id and private key of the service; made when first needed."""
        from cryptography.hazmat.primitives.asymmetric import rsa

        return new_id(12), rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def jwks(self) -> dict[str, Any]:
        """The public key, as ``/.well-known/jwks.json`` shows it."""
        from jwt.algorithms import RSAAlgorithm

        kid, key = self._key
        public = RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
        return {"keys": [{**public, "kid": kid, "alg": "RS256", "use": "sig"}]}

    def headers(self, message: Message) -> dict[str, str]:
        """Headers of one try: the time is that of the try, and signed."""
        at = self.service.clock.now() // SECOND
        return {
            "content-type": "application/json",
            "webhook-id": message.id,
            "webhook-timestamp": str(at),
            "webhook-signature": self._hmacs(message, at) if message.webhook else self._jwt(message, at),
        }

    def _hmacs(self, message: Message, at: int) -> str:
        assert message.webhook is not None
        signed = f"{message.id}.{at}.".encode() + message.body
        keys = [base64.b64decode(one[6:]) for one, _ in message.webhook.valid(self.service.clock.now())]
        made = [hmac.new(key, signed, hashlib.sha256).digest() for key in keys]
        return " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in made)

    def _jwt(self, message: Message, at: int) -> str:
        import jwt

        kid, key = self._key
        claims = {"iss": ISSUER, "aud": message.uri, "iat": at, "exp": at + 300, "jti": message.id}
        return jwt.encode(claims, key, algorithm="RS256", headers={"kid": kid})

    # Watching ----------------------------------------------------------------------------------------------

    def watch(self, job: Job) -> None:
        """Tell of the job's end whoever wants to know. Jobs without a script then end by the clock, looked at or not."""
        if job.webhook or any(one.state == "enabled" for one in self.registered.values()):
            self._watched[job.id] = job
            self._start()

    def ping(self, webhook: Webhook) -> None:
        self._send(Message(f"msg_{new_id(24)}", webhook.uri, self._body("ping", {"id": webhook.id}), webhook))

    def _start(self) -> None:
        if self._loop is None or self._loop.done():
            self._loop = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while self._watched and not self.service.closing.is_set():
            for job in list(self._watched.values()):
                if self.service.jobs.states is None:
                    await self.service.move(job, 0.0)
                if job.done:
                    del self._watched[job.id]
                    for message in self._messages(job):
                        self._send(message)
            await asyncio.sleep(TICK)

    def _messages(self, job: Job) -> Iterator[Message]:
        event = EVENT_OF_STATE[job.state]
        data: dict[str, Any] = {"id": job.name}
        if job.results and job.input_file:
            data["output_file_uri"] = f"files/batch-{job.id}"
        if job.error:
            data |= {"error_code": job.error.get("code"), "error_message": job.error.get("message")}
        if job.webhook:  # instead of those that are registered
            if metadata := job.webhook.get("userMetadata"):
                data["user_metadata"] = metadata
            for uri in job.webhook.get("uris") or ():
                yield Message(f"msg_{new_id(24)}", uri, self._body(event, data))
            return
        for webhook in self.registered.values():
            if webhook.state == "enabled" and event in webhook.events:
                yield Message(f"msg_{new_id(24)}", webhook.uri, self._body(event, data), webhook)

    def _body(self, event: str, data: dict[str, Any]) -> bytes:
        at = timestamp(self.service.clock.now())
        return orjson.dumps({"type": event, "version": "v1", "timestamp": at, "data": data})

    # Delivery ----------------------------------------------------------------------------------------------

    def _send(self, message: Message) -> None:
        task = asyncio.create_task(self._deliver(message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deliver(self, message: Message) -> None:
        """At least once: until it is taken, or tried as often as the options say."""
        options = self.service.options
        pause = options.webhook_pause
        async with httpx.AsyncClient(timeout=TAKEN_WITHIN) as client:
            for _ in range(options.webhook_tries):
                status = await self._try(client, message)
                if status is not None and 200 <= status < 300:
                    for _ in range(options.webhook_repeats):
                        await self._try(client, message)
                    return
                end = time.monotonic() + pause
                pause *= 2
                while time.monotonic() < end and not self.service.closing.is_set():
                    await asyncio.sleep(min(TICK, pause))
                if self.service.closing.is_set():
                    return
        if message.webhook:
            message.webhook.state = "disabled_due_to_failed_deliveries"

    async def _try(self, client: httpx.AsyncClient, message: Message) -> int | None:
        try:
            answer = await client.post(message.uri, content=message.body, headers=self.headers(message))
            status: int | None = answer.status_code
        except httpx.HTTPError:
            status = None
        self.delivered.append((message.id, message.uri, status))
        return status
