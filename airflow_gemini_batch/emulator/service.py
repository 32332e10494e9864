"""Everything one emulated project has: its clock, options, faults, files, jobs, and a log of what was called."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter, deque
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from airflow_gemini_batch.emulator.clock import Clock, timestamp
from airflow_gemini_batch.emulator.errors import ApiError
from airflow_gemini_batch.emulator.faults import Counters, Faults, hits
from airflow_gemini_batch.emulator.files import FileStore, StoredFile
from airflow_gemini_batch.emulator.jobs import ENDED, Job, JobStore, plain_state
from airflow_gemini_batch.emulator.options import Options
from airflow_gemini_batch.emulator.results import CANCELLED_ROW, write_results
from airflow_gemini_batch.emulator.webhooks import Webhooks

LOG_LENGTH = 20_000


@dataclass
class RequestSeen:
    """One request as it came in. ``headers`` have lower-case names; ``status`` is None if no reply was sent."""

    call: str
    method: str
    path: str
    query: str
    headers: dict[str, str] = field(repr=False)
    time: float
    status: int | None = None


@dataclass
class Cache:
    """A cached content; times in nanoseconds of the emulator's clock."""

    name: str
    model: str
    display_name: str
    created: int
    expires: int

    def resource(self) -> dict[str, Any]:
        """It as the API shows it: never with its content."""
        shown = {
            "name": self.name,
            "model": self.model,
            "displayName": self.display_name,
            "createTime": timestamp(self.created),
            "updateTime": timestamp(self.created),
            "expireTime": timestamp(self.expires),
        }
        return {name: value for name, value in shown.items() if value}


class Service:
    """The state behind the routes. One per emulator; all of it is safe to use from several threads."""

    def __init__(
        self,
        directory: Path,
        *,
        faults: Faults,
        options: Options,
        states: Sequence[str] | None = None,
        job_seconds: float = 0.0,
        processing_seconds: float = 0.0,
        api_keys: Collection[str] | None = None,
    ) -> None:
        self.directory, self.options, self.api_keys = directory, options, api_keys
        self.clock = Clock()
        self.closing = threading.Event()
        self.counters = Counters(faults, self.clock)
        self.calls: Counter[str] = Counter()
        self.caches: dict[str, Cache] = {}
        self.log: deque[RequestSeen] = deque(maxlen=LOG_LENGTH)
        self.files = FileStore(directory, self.clock, options, processing_seconds)
        self.jobs = JobStore(self.clock, options, states=states, job_seconds=job_seconds)
        self.webhooks = Webhooks(self)

    @property
    def faults(self) -> Faults:
        return self.counters.faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        self.counters = Counters(faults, self.clock)

    def key_works(self, key: str) -> bool:
        """Any key does unless it says ``invalid`` up front; ``api_keys`` is stricter."""
        return key in self.api_keys if self.api_keys is not None else not key.lower().startswith("invalid")

    async def sleep(self, seconds: float) -> None:
        """Wait, but not past the end of the emulator."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self.closing.is_set():
            await asyncio.sleep(min(left, 0.05))

    async def look(self, *jobs: Job) -> None:
        """Move the jobs on, as a client looks at them. Results are written when they are first needed."""
        end = time.monotonic() + self.options.results_wait
        for job in jobs:
            await self._look(job, max(end - time.monotonic(), 0.0))

    async def _look(self, job: Job, wait: float) -> None:
        job.looks += 1
        await self.move(job, wait)

    async def move(self, job: Job, wait: float) -> None:
        """
        Move a job on as far as it has come.

        :param wait: seconds for which results may be waited for.
        """
        if job.done:
            self._forget_old_results(job)
            return
        state = self.jobs.heading(job, self.counters)
        if state in ENDED and job.results is None and (share := self._share_answered(state)) > 0:
            if job.running is None:
                job.running = asyncio.create_task(asyncio.to_thread(self._work, job, state, share))
            await asyncio.wait({job.running}, timeout=wait)
            if not job.running.done():
                self.jobs.enter(job, "RUNNING", self.counters)
                return
            job.running.result()
        self._end(job, self.jobs.heading(job, self.counters))

    def _end(self, job: Job, state: str) -> None:
        if state in ENDED and not job.done and self._share_answered(state) <= 0:
            job.results = job.running = None  # Ended otherwise while results were being written.
        if job.results and job.input_file and state in ENDED and not job.done:
            self.files.add_result(
                f"batch-{job.id}", job.results.path, job.results.size, job.results.sha256, job.display_name
            )
        self.jobs.enter(job, state, self.counters)
        if job.done and job.results:
            job.input_path.unlink(missing_ok=True)

    def _share_answered(self, state: str) -> float:
        """Part of the rows that a job ending in this state has answers for."""
        if state == "SUCCEEDED":
            return 1.0
        if state == "CANCELLED" and self.options.cancelled_results:
            return 0.5
        if self.faults.end_results is not None:
            return self.faults.end_results
        return 1.0 if state == "PARTIALLY_SUCCEEDED" else 0.0

    def _work(self, job: Job, state: str, share: float) -> None:
        path = self.directory / f"results-{job.id}"
        stopped = self.closing.is_set
        rest = CANCELLED_ROW if state == "CANCELLED" and self.options.cancelled_rows_as_errors else None
        job.results = write_results(
            job, path, self.counters, self.options,
            share=share, rest=rest, stopped=stopped, state_of_file=self.state_of_id,
        )  # fmt: skip

    def _forget_old_results(self, job: Job) -> None:
        kept = self.options.result_seconds * 1e9
        if job.results and job.ended and self.clock.now() > job.ended + kept:
            job.expired_results = True

    def cancel(self, job: Job) -> None:
        """
        Ask for the job's end.

        :raises ApiError: if the job has ended and the options want that refused.
        """
        if job.done or self.jobs.heading(job, self.counters) in ENDED:
            if self.options.cancel_ended_status != 200:
                raise ApiError(
                    self.options.cancel_ended_status, "Precondition check failed.", status="FAILED_PRECONDITION"
                )
            return
        if self.faults.cancel_ignored:
            return
        self.set_state(job, "SUCCEEDED" if self.faults.cancel_race else "CANCELLED", usual_error=True)

    def set_state(
        self, job: Job, state: str, error: dict[str, Any] | None = None, *, usual_error: bool = False
    ) -> None:
        """Force the job into a state: at once if that needs no results, else at the next look."""
        with self.jobs.lock:
            state = plain_state(state)
            if usual_error:
                job.forced = None
                error = self.jobs.usual_error(job, state, self.counters)
            if job.done:  # A test may take back an end.
                job.state, job.ended, job.error = "RUNNING", None, None
            job.forced, job.forced_error = state, error
            if state not in ENDED or self._share_answered(state) <= 0:
                self.jobs.enter(job, state, self.counters)

    def delete(self, job_id: str) -> None:
        """Forget the job. A result file stays a file."""
        job = self.jobs.delete(job_id)
        job.input_path.unlink(missing_ok=True)
        if job.results and not job.input_file:
            job.results.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Stop writing results, drop unfinished uploads."""
        self.closing.set()
        self.files.close()

    def snapshot(self) -> dict[str, Any]:
        """All of it, as JSON for tests in other processes."""
        return {
            "calls": dict(self.calls),
            "jobs_created": self.jobs.created,
            "jobs": [asdict(self.jobs.view(job)) for job in reversed(list(self.jobs))],
            "files": [self.shown(file) for file in self.files],
            "faults": self.faults.to_dict(),
            "now": self.clock.now() / 1e9,
        }

    def shown(self, file: StoredFile) -> dict[str, Any]:
        return file.resource(self.clock.now(), self.state_of(file))

    def state_of(self, file: StoredFile) -> str:
        if self.clock.now() < file.ready:
            return "PROCESSING"
        return "FAILED" if not file.generated and hits(self.faults.fail_files, file.mime_type) else "ACTIVE"

    def state_of_id(self, file_id: str) -> str | None:
        """The state of a file as a request finds it, None if there is no such file for it."""
        file = None if hits(self.faults.hide_files, file_id) else self.files.find(file_id)
        return None if file is None else self.state_of(file)
