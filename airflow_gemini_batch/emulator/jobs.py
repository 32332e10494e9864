"""Batch jobs: what they are, and how one look after the other moves them through their states."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airflow_gemini_batch.emulator.clock import SECOND, Clock
from airflow_gemini_batch.emulator.errors import ApiError, help_links, quota_failure
from airflow_gemini_batch.emulator.faults import QUOTA, Counters, Faults
from airflow_gemini_batch.emulator.options import Options

ENDED = ("SUCCEEDED", "FAILED", "CANCELLED", "EXPIRED", "PARTIALLY_SUCCEEDED")
STATES = ("UNSPECIFIED", "PENDING", "RUNNING", *ENDED)
USUAL_ERROR: dict[str, dict[str, Any]] = {
    "FAILED": {"code": 13, "message": "The batch failed because of an internal error."},
    "CANCELLED": {"code": 1, "message": "The batch was cancelled."},
    "EXPIRED": {"code": 4, "message": "The batch expired before it could be completed."},
}
KEPT_KEYS = 10_000


@dataclass
class Results:
    """What a job produced: a file of lines, how many of them are answers, and whether all is written."""

    path: Path
    ok: int = 0
    failed: int = 0
    size: int = 0
    sha256: str = ""


@dataclass
class Job:
    """One batch job. Times in nanoseconds; ``state`` is bare, as in ``PENDING``."""

    id: str
    embeds: bool
    model: str
    display_name: str
    input_file: str | None
    input_path: Path
    request_count: int
    keys: tuple[str, ...]
    created: int
    tokens: int = 0
    number: int = 0
    priority: int = 0
    webhook: dict[str, Any] | None = None
    state: str = "PENDING"
    updated: int = 0
    ended: int | None = None
    error: dict[str, Any] | None = None
    looks: int = 0
    forced: str | None = None
    forced_error: dict[str, Any] | None = None
    results: Results | None = None
    expired_results: bool = False
    running: Any = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return f"batches/{self.id}"

    @property
    def done(self) -> bool:
        return self.state in ENDED


@dataclass(frozen=True)
class JobView:
    """What a test may want to know about a job, as of now. ``keys`` holds the first ten thousand."""

    name: str
    display_name: str
    model: str
    state: str
    kind: str
    input_file: str | None
    request_count: int
    successful_count: int
    failed_count: int
    priority: int
    webhook: dict[str, Any] | None
    error: dict[str, Any] | None
    looks: int
    keys: tuple[str, ...]


class JobStore:
    """
    All jobs of one project.

    :param states: what the looks at each job show, one after the other; the last one stays. None: jobs move by clock.
    :param job_seconds: how long a job takes by clock, a quarter of it PENDING.
    """

    def __init__(self, clock: Clock, options: Options, *, states: Sequence[str] | None, job_seconds: float) -> None:
        self.clock, self.options, self.job_seconds = clock, options, job_seconds
        self.states = None if states is None else [plain_state(state) for state in states]
        self.created = 0
        self.lock = threading.RLock()
        self._jobs: dict[str, Job] = {}

    def add(self, job: Job) -> None:
        with self.lock:
            self.created += 1
            job.number = self.created
            self._jobs[job.id] = job

    def check_room(self, faults: Counters, *, model: str = "", tokens: int = 0) -> None:
        """
        :param tokens: of the job that is to be made for this model.
        :raises ApiError: 429 when as many jobs, or input tokens, as allowed are under way.
        """
        with self.lock:
            active = [job for job in self if self._reached(job, faults.faults) not in ENDED]
        named = self.options.quota_details
        if len(active) >= (most := self.options.concurrent_jobs):
            details = [quota_failure("batch_concurrent_jobs", limit=most)] if named else None
            raise ApiError(429, details=details)
        allowed = self.options.tokens_allowed(model)
        if allowed is not None and sum(job.tokens for job in active if job.model == model) + tokens > allowed:
            details = [help_links()]
            details += [quota_failure("batch_enqueued_tokens", model=model, limit=allowed)] if named else []
            raise ApiError(429, QUOTA, details=details)

    def get(self, job_id: str) -> Job:
        """:raises ApiError: 404."""
        with self.lock:
            job = self._jobs.get(job_id)
        if job is None:
            raise ApiError(404)
        return job

    def delete(self, job_id: str) -> Job:
        """Forget the job. Its results stay where they are."""
        with self.lock:
            self.get(job_id)
            return self._jobs.pop(job_id)

    def __iter__(self) -> Iterator[Job]:
        """Newest first."""
        with self.lock:
            return iter(sorted(self._jobs.values(), key=lambda job: -job.number))

    def heading(self, job: Job, faults: Counters) -> str:
        """The state a look at this moment would find, were the results written already."""
        state, end = self._reached(job, faults.faults), faults.faults.end_state
        if state != "SUCCEEDED" or not end or job.done or job.forced:
            return state
        return plain_state(end) if faults.claims("end_state", job.id, jobs=faults.faults.end_state_jobs) else state

    def _reached(self, job: Job, faults: Faults) -> str:
        """How far the job has come by script, clock or force, with every success an end like any other."""
        if job.done:
            return job.state
        if job.forced:
            return job.forced
        now, expiry = self.clock.now(), job.created + round(self.options.job_expiry_seconds * SECOND)
        stuck = faults.stuck or faults.stuck_models.get(job.model)
        if self.states is not None:
            state = self.states[min(job.looks, len(self.states)) - 1] if job.looks else "PENDING"
        else:
            age, whole = now - job.created, round(self.job_seconds * SECOND)
            state = "SUCCEEDED" if age >= whole else "PENDING" if age * 4 < whole else "RUNNING"
        if stuck and (state in ENDED or stuck == "PENDING"):
            state = stuck
        overdue = self.states is not None or stuck or self.job_seconds > self.options.job_expiry_seconds
        if now >= expiry and overdue and (stuck or state not in ENDED):
            return "EXPIRED"
        return state

    def enter(self, job: Job, state: str, faults: Counters) -> None:
        """Put the job into the state, with the error that belongs to it."""
        with self.lock:
            if job.done or (state == job.state and not job.forced):
                return
            job.state, job.updated = state, self.clock.now()
            if state not in ENDED:
                return
            job.ended = job.updated
            if self.states is None and not job.forced and state == "SUCCEEDED":
                job.ended = job.updated = min(job.updated, job.created + round(self.job_seconds * SECOND))
            job.error = self.usual_error(job, state, faults)

    def usual_error(self, job: Job, state: str, faults: Counters) -> dict[str, Any] | None:
        if job.forced:
            return job.forced_error
        if state in ("SUCCEEDED", "PARTIALLY_SUCCEEDED"):
            return None
        if faults.faults.end_error is not None:
            return dict(faults.faults.end_error)
        if faults.faults.end_without_error or (state != "FAILED" and not self.options.ended_errors):
            return None
        return USUAL_ERROR.get(state)

    def progress(self, job: Job) -> float:
        """Share of a running job's requests that are through, by the clock or else by half."""
        if self.states is not None or self.job_seconds <= 0:
            return 0.5
        quarter = self.job_seconds / 4
        past = (self.clock.now() - job.created) / SECOND - quarter
        return min(max(past / (self.job_seconds - quarter), 0.0), 0.99)

    def view(self, job: Job) -> JobView:
        results = job.results
        return JobView(
            name=job.name, display_name=job.display_name, model=job.model, state=job.state,
            kind="embed" if job.embeds else "generate", input_file=job.input_file, request_count=job.request_count,
            successful_count=results.ok if results else 0, failed_count=results.failed if results else 0,
            priority=job.priority, webhook=job.webhook, error=job.error, looks=job.looks, keys=job.keys,
        )  # fmt: skip


def plain_state(state: str) -> str:
    """``BATCH_STATE_RUNNING``, ``JOB_STATE_RUNNING`` or ``running`` → ``RUNNING``. Unknown ones pass."""
    return state.upper().removeprefix("BATCH_STATE_").removeprefix("JOB_STATE_")
