"""
Looking at many jobs with few calls: pages of the account's list, then a ``get`` for each job that they leave open.

The rule: **a list is read while it is cheaper than asking for each job, and what it does not show is asked for.** A page
of the list can only ever say that a job is there and how it does; that one is gone, or the key refused, only ``get`` says. So
a job that the list leaves out, a list that fails, ends early, or shifts while it is read cost calls and nothing else.

No I/O here, as in ``rest``: the worker reads the list with :func:`http.hold`, the triggerer's watcher with ``ahold``.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Collection
from contextlib import suppress

import msgspec

from airflow_gemini_batch.core.jobs import Job
from airflow_gemini_batch.core.rest import Call, Conversation, Reply, read_reply
from airflow_gemini_batch.exceptions import QuotaExceeded, ServiceError, ServiceUnreachable

log = logging.getLogger(__name__)

PAGE_SIZE = 1000
"""Jobs asked for in a page; services may send fewer. Reading so many (0.5 MB) holds the event loop for about 2 ms."""

JOBS_PER_GET = 100
"""Listed jobs that cost as much time as one call more, roughly: a page of 1000 costs eleven times what a ``get`` does."""

FADING = 0.98
"""What a round of ``get`` leaves of the price that the list had: after some dozens of them it is tried again."""

TRIES = 3
"""Tries of one page, while there is time for them; a list that failed gets one, until it is back."""

RETRY_AFTER = 0.5
"""Seconds before a page is asked for again, at most, doubled each time."""

PATIENCE = 2.0
"""Seconds that a page may take in all its tries: whoever waits for a list that hangs is better served by ``get``."""

MOST_PATIENCE = 20.0
"""The same where pages were seen to take their time."""

LEFT_ALONE = "the service asked not to be asked for now"
"""Why a job was not looked at, when the list or the look at another job was refused with a time to come back."""


class Stats(msgspec.Struct, rename="camel", frozen=True, gc=False):
    request_count: str | int | float | None = None
    successful_request_count: str | int | float | None = None
    failed_request_count: str | int | float | None = None
    pending_request_count: str | int | float | None = None


class Status(msgspec.Struct, frozen=True, gc=False):
    code: int | None = None
    message: str | None = None


class Metadata(msgspec.Struct, rename="camel", frozen=True, gc=False):
    state: str | None = None
    create_time: str | None = None
    batch_stats: Stats | None = None


class Entry(msgspec.Struct, frozen=True, gc=False):
    """What is read of a listed job. Everything else, whatever its size, is skipped without becoming objects."""

    name: str
    done: bool | None = None
    metadata: Metadata | None = None
    error: Status | None = None

    @property
    def tells(self) -> bool:
        """Whether enough is said of the job to go by."""
        return bool(self.name and (self.done or (self.metadata and self.metadata.state)))

    def job(self) -> Job | None:
        """The job as listed (without results and names), or None if too little is said of it to go by."""
        return Job.of_operation(msgspec.to_builtins(self)) if self.tells else None


class Page(msgspec.Struct, rename="camel", gc=False):
    operations: list[Entry] | None = None
    next_page_token: str | None = None


class _AnyPage(msgspec.Struct, rename="camel"):
    operations: list[msgspec.Raw] | None = None
    next_page_token: str | None = None


_page = msgspec.json.Decoder(Page)
_any_page = msgspec.json.Decoder(_AnyPage)
_entry = msgspec.json.Decoder(Entry)

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are no JSON or another shape, for text that is none, and for endless nesting."""


def page_of(reply: Reply) -> Page:
    """
    Read a page of the list. An entry of an unknown shape is left out: its job counts as not listed.

    :raises ServiceError: it is not a page.
    """
    if reply.status != 200:
        read_reply(reply)  # raises what it means
    with suppress(*UNREADABLE):
        return _page.decode(reply.body)
    # One odd entry, maybe another tool's, must not cost us the others.
    try:
        page = _any_page.decode(reply.body)
    except UNREADABLE as e:
        raise ServiceUnreachable(f"the list of jobs is not one: {e}") from e
    entries = []
    for raw in page.operations or ():
        with suppress(*UNREADABLE):
            entries.append(_entry.decode(raw))
    return Page(entries, page.next_page_token)


def reading(token: str, seconds: float, most: int) -> Conversation[Page]:
    """
    Read one page, if need be in several tries.

    :param seconds: that they may take in all, about.
    :param most: tries.
    :raises ServiceError: it could not be read.
    """
    params = {"pageSize": str(PAGE_SIZE)} | ({"pageToken": token} if token else {})
    wait, tries, until = 0.0, 0, time.monotonic() + seconds
    while True:
        reply = yield Call("GET", "batches", params, after=wait, within=until - time.monotonic() - wait)
        tries += 1
        wait = RETRY_AFTER * 2 ** (tries - 1) * random.uniform(0.5, 1)
        try:
            return page_of(reply)
        except ServiceUnreachable as e:
            asked_for_quiet = isinstance(e, QuotaExceeded) and e.retry_after
            if asked_for_quiet or tries >= most or time.monotonic() + wait >= until:
                raise


class Survey:
    """What was learnt of an account's list in earlier rounds: what it costs to find the jobs in it, in ``get`` calls."""

    def __init__(self) -> None:
        self._price, self._patience, self._tries = price_of(PAGE_SIZE), PATIENCE, TRIES

    def listed(
        self, jobs: Collection[str], take: Callable[[list[Entry]], Collection[str]]
    ) -> Conversation[tuple[set[str], float | None]]:
        """
        Read the list if that pays, and only as far as it pays. Returns the jobs that must be asked for one by one, and the
        ``retry_after`` of an ``Unreachable`` for the list, None if it was not refused.

        :param take: is given each page's entries, and returns the names of those it could use.
        """
        missing = set(jobs)
        if len(missing) <= self._price:
            self._price = max(1.0, self._price * FADING)
            return missing, None
        spent = wasted = 0.0
        token = ""
        while True:
            try:
                page = yield from self._page(token)
            except QuotaExceeded as e:
                return missing, e.retry_after or 0.0
            except ServiceError:
                return missing, None  # says nothing about the price
            except Exception:
                # A mistake of ours must not hide the jobs either: ``get`` still tells.
                log.exception("The list of jobs could not be read")
                return missing, None
            entries = page.operations or []
            before = len(missing)
            missing.difference_update(take(entries))
            price = price_of(len(entries))
            spent += price
            wasted = 0.0 if before - len(missing) >= price else wasted + price
            last, token = token, page.next_page_token or ""
            if not missing or not token or token == last:
                self._price = spent
                return missing, None
            if len(missing) <= wasted + price:
                # The next page, with those read in vain so far, would cost more than asking. The rest of the list is
                # anybody's guess; as much again.
                self._price = spent + wasted
                return missing, None

    def _page(self, token: str) -> Conversation[Page]:
        began = time.monotonic()
        try:
            page = yield from reading(token, self._patience, self._tries)
        except ServiceError:
            if self._tries == 1 and time.monotonic() - began >= self._patience:  # twice: maybe it only takes longer
                self._patience = min(MOST_PATIENCE, 2 * self._patience)
            self._tries = 1
            raise
        self._patience, self._tries = min(MOST_PATIENCE, max(PATIENCE, 2 * (time.monotonic() - began))), TRIES
        return page


def price_of(entries: int) -> float:
    return 1 + entries / JOBS_PER_GET
