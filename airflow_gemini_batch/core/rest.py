"""
Our own words with the REST API, for what the SDK drops (a job's counts and error) or cannot do (a checked download).

Nothing here does I/O: a conversation is a generator that yields :class:`Call` and is sent :class:`Reply`, so the worker's
blocking client and the triggerer's async one hold the same conversation (as httpx does with its ``auth_flow``).
Endpoints: https://ai.google.dev/api/batch-api.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import orjson

from airflow_gemini_batch.core.jobs import Gone, Job, ListedFile, Refused, Seen, Unreachable, cut
from airflow_gemini_batch.core.quotas import quota_exceeded
from airflow_gemini_batch.exceptions import (
    CredentialsRefused,
    QuotaExceeded,
    RequestRefused,
    ServiceError,
    ServiceUnreachable,
)

DEFAULT_BASE_URL = "https://generativelanguage.googleapis.com"
DEFAULT_API_VERSION = "v1beta"
DEFAULT_TIMEOUT = 120.0
"""Seconds for one call, also told to the service as its own deadline (``X-Server-Timeout``)."""

SHORTEST_KEY = 8
LONGEST_MESSAGE = 1000
"""Characters kept of what the service says of an error: they go into logs, the ledger, and Airflow's database."""
PAGE_SIZE = 100
MAX_PAGES = 10_000


@dataclass(frozen=True)
class Account:
    """
    Who asks, and where. The key never shows in a repr.

    :param timeout: seconds for one call.
    """

    api_key: str = field(repr=False)
    base_url: str = DEFAULT_BASE_URL
    api_version: str = DEFAULT_API_VERSION
    timeout: float = DEFAULT_TIMEOUT

    def url(self, path: str) -> str:
        return f"{self.base_url.rstrip('/')}/{self.api_version}/{path}"

    def redact(self, text: str) -> str:
        """Some errors of the service, and some proxies' pages, repeat the key: it must not get into logs and ledgers."""
        # No real key is that short, and the made-up one of a test ("k") may be a part of any word.
        return text.replace(self.api_key, "***") if len(self.api_key) >= SHORTEST_KEY else text

    def within(self, seconds: float) -> Account:
        """The same, for calls that may take so long at most."""
        return self if seconds >= self.timeout else replace(self, timeout=seconds)

    def headers(self) -> dict[str, str]:
        return {"x-goog-api-key": self.api_key, "X-Server-Timeout": str(math.ceil(self.timeout))}


@dataclass(frozen=True)
class Call:
    """
    One HTTP request: ``path`` is relative to the API version.

    :param after: seconds to wait before it is sent.
    :param within: seconds that it may take, if that is less than the account's time limit.
    """

    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None
    after: float = 0.0
    within: float = math.inf


@dataclass(frozen=True)
class Reply:
    """
    One HTTP answer, or the fault instead of one (then ``status`` is 0 and ``fault`` says what happened).

    :param retry_after: the header of this name.
    """

    status: int
    body: bytes = b""
    fault: str = ""
    retry_after: str = ""


T = TypeVar("T")
Conversation = Generator[Call, Reply, T]


def read_reply(reply: Reply, phase: str = "look") -> dict[str, Any]:
    """
    Return the JSON object of a good answer.

    :param phase: what is being done, for a refusal by a quota.
    :raises QuotaExceeded: 429.
    :raises ServiceUnreachable: no answer, 5xx, 408, or a page that is not the API's JSON.
    :raises CredentialsRefused: the key was refused (HTTP 400 ``API_KEY_INVALID``, 401, or 403 about the key).
    :raises RequestRefused: any other definite 4xx.
    """
    if reply.fault:
        raise ServiceUnreachable(reply.fault)
    try:
        body = orjson.loads(reply.body)
    except orjson.JSONDecodeError:  # also an empty body: it says nothing, least of all that there is nothing
        body = None
    if reply.status == 200 and isinstance(body, dict):
        return body
    raise error_of(reply.status, body, reply.body, phase=phase, retry_after=reply.retry_after)


def error_of(
    status: int, body: object, raw: bytes = b"", *, phase: str = "look", retry_after: str = ""
) -> ServiceError:
    """Tell what an answer other than a good one means; see section "Errors" of the API's troubleshooting guide."""
    if isinstance(body, list) and len(body) == 1:
        body = body[0]
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        page = " ".join(raw[:200].decode("utf-8", "replace").split())
        odd = f"HTTP {status} with something that is not the API's JSON: {page or 'an empty body'}"
        if status == 429:
            return quota_exceeded(None, odd, phase=phase, retry_after=retry_after)
        return ServiceUnreachable(odd)
    message = cut(str(error.get("message") or "no message"), LONGEST_MESSAGE)
    word = str(error.get("status") or "")
    said = f"HTTP {status} {word}: {message}"
    if status == 429:
        return quota_exceeded(error, said, phase=phase, retry_after=retry_after)
    if status in (408, 499) or status >= 500:  # 499: the service thinks that we went away
        return ServiceUnreachable(said)
    reasons = {d.get("reason") for d in error.get("details") or () if isinstance(d, dict)}
    if status == 401 or reasons & KEY_REASONS or "api key" in message.lower():
        return CredentialsRefused(said)
    return RequestRefused(said, code=status, status=word)


KEY_REASONS = frozenset(
    {"API_KEY_INVALID", "API_KEY_SERVICE_BLOCKED", "API_KEY_HTTP_REFERRER_BLOCKED", "API_KEY_IP_ADDRESS_BLOCKED",
     "CONSUMER_SUSPENDED", "SERVICE_DISABLED", "ACCESS_TOKEN_SCOPE_INSUFFICIENT"}
)  # fmt: skip


def looking(job: str) -> Conversation[Seen]:
    """Look at one job. Never raises for what the service does: every answer is one of the kinds of ``Seen``."""
    try:
        return Job.of_operation(read_reply((yield Call("GET", job))))
    except (ServiceUnreachable, ValueError, TypeError, AttributeError) as e:
        return _unreachable(job, e)
    except CredentialsRefused as e:
        return Refused(job, str(e))
    except RequestRefused as e:
        refusal = e
    if refusal.code == 404:
        return Gone(job, str(refusal))
    # 403 stands for "no such thing" as well as for "you may not". Listing needs the same right, so it tells them apart.
    try:
        read_reply((yield Call("GET", "batches", {"pageSize": "1"})))
    except ServiceUnreachable as e:
        return _unreachable(job, e)
    except ServiceError:
        return Refused(job, str(refusal))
    return Gone(job, str(refusal)) if refusal.code == 403 else Unreachable(job, str(refusal))


def _unreachable(job: str, e: Exception, context: str = "") -> Unreachable:
    if isinstance(e, QuotaExceeded):
        return Unreachable(job, f"{context}{e} (quota: {e.quota})", e.retry_after or 0.0, e.quota)
    return Unreachable(job, f"{context}{e}")


def confirming(gone: Gone) -> Conversation[Seen]:
    """
    Ask the list about a job that ``get`` denies. Only a whole list without it leaves it gone: what is called lost is soon
    paid for again, and the job may run on.
    """
    try:
        jobs = yield from listing()
    except ServiceError as e:
        return _unreachable(gone.job, e, f"{gone.detail}, and the list that should confirm it: ")
    return next((job for job in jobs if job.name == gone.job), gone)


def listing() -> Conversation[list[Job]]:
    """
    List every job of this key's project, all pages.

    :raises ServiceError: a page could not be read; a partial list is never returned.
    """
    return (yield from _pages("batches", jobs_of_page))


def listing_files() -> Conversation[list[ListedFile]]:
    """List every file of this key's project, all pages; as :func:`listing` does."""
    return (yield from _pages("files", _files_of_page))


def _pages(path: str, read: Callable[[Mapping[str, Any]], Iterable[T]]) -> Conversation[list[T]]:
    found: list[T] = []
    token = ""
    read_already = {token}
    for _ in range(MAX_PAGES):
        params = {"pageSize": str(PAGE_SIZE)} | ({"pageToken": token} if token else {})
        page = read_reply((yield Call("GET", path, params)), "list")
        found += read(page)
        token = str(page.get("nextPageToken") or "")
        if not token:
            return found
        if token in read_already:
            raise ServiceUnreachable(f"the list of {path} repeats itself")
        read_already.add(token)
    raise ServiceUnreachable(f"the list of {path} did not end after {MAX_PAGES} pages")


def _files_of_page(page: Mapping[str, Any]) -> Iterable[ListedFile]:
    """:raises ServiceUnreachable: it is not a page of files. Only ``{}`` means that there are none."""
    if "files" not in page and page.keys() - {"nextPageToken"}:
        raise ServiceUnreachable(f"the list of files came as {', '.join(page)}")
    try:
        return [ListedFile.of_resource(one) for one in page.get("files") or ()]
    except (ValueError, TypeError, AttributeError) as e:
        raise ServiceUnreachable(f"an entry of the list of files is not a file: {e}") from e


def jobs_of_page(page: Mapping[str, Any]) -> Iterable[Job]:
    """:raises ServiceUnreachable: it is not a page of jobs, or not a whole one. Only ``{}`` means that there are none."""
    if page.get("unreachable") or ("operations" not in page and page.keys() - {"nextPageToken", "unreachable"}):
        raise ServiceUnreachable(f"the list of jobs came as {', '.join(page) or 'nothing'}")
    for operation in page.get("operations") or ():
        try:
            yield Job.of_operation(operation)
        except (ValueError, TypeError, AttributeError) as e:
            raise ServiceUnreachable(f"an entry of the list of jobs is not an operation: {e}") from e


@dataclass(frozen=True)
class Cancel:
    """
    What became of a cancel; prints as a sentence.

    :param accepted: the service took it, or the job had ended anyway.
    :param quota: it was refused for want of this.
    """

    said: str
    accepted: bool
    quota: QuotaExceeded | None = None

    def __str__(self) -> str:
        return self.said


def cancelling(job: str) -> Conversation[Cancel]:
    """Ask for a job to be cancelled and look what became of it. Best effort, as the API's own: it may still succeed."""
    try:
        read_reply((yield Call("POST", f"{job}:cancel")), "cancel")
    except ServiceError as e:
        refused, accepted = f"the cancel was not accepted ({e}); ", False
        quota = e if isinstance(e, QuotaExceeded) else None
    else:
        refused, accepted, quota = "", True, None
    seen = yield from looking(job)
    if not isinstance(seen, Job):
        said = f"{job}: {refused}could not be looked at afterwards ({seen.detail}). It may run on and be billed."
        return Cancel(said, accepted, quota)
    done = f"{seen.counts.done} of {seen.counts.total} requests were done"
    if seen.phase.ended:
        return Cancel(f"{job}: {refused}{seen.state}; {done} and may be billed.", accepted=True)
    state = seen.state or "in an unnamed state"
    return Cancel(f"{job}: {refused}still {state}; {done}. What is done until it stops may be billed.", accepted, quota)


def testing() -> Conversation[None]:
    """One cheap call that needs the same right as all others."""
    read_reply((yield Call("GET", "batches", {"pageSize": "1"})), "list")


def counting(model: str, request: Mapping[str, Any]) -> Conversation[int]:
    """
    Ask how many tokens a whole GenerateContentRequest has: contents, system instruction and tools (https://ai.google.dev/api/tokens).

    :raises ServiceError: it was not counted.
    """
    name = model if model.startswith("tunedModels/") else f"models/{model.removeprefix('models/')}"
    body = {"generateContentRequest": {**request, "model": name}}
    counted = read_reply((yield Call("POST", f"{name}:countTokens", body=body)), "count")
    # A zero is left out, as everywhere in this API.
    return int(counted.get("totalTokens") or 0)
