"""A batch job as the service describes it, and the one table of job states. Knows the wire's words, not how to ask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any


class Phase(Enum):
    """What a state means to someone who waits."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def ended(self) -> bool:
        return self is not Phase.RUNNING


PHASE_OF_STATE: dict[str, Phase] = {
    "UNSPECIFIED": Phase.RUNNING,
    "QUEUED": Phase.RUNNING,
    "PENDING": Phase.RUNNING,
    "RUNNING": Phase.RUNNING,
    "CANCELLING": Phase.RUNNING,
    "PAUSED": Phase.RUNNING,
    "UPDATING": Phase.RUNNING,
    "SUCCEEDED": Phase.SUCCEEDED,
    # Terminal, though the SDK's JOB_STATES_ENDED leaves it out; its rows are judged one by one.
    "PARTIALLY_SUCCEEDED": Phase.SUCCEEDED,
    "FAILED": Phase.FAILED,
    "CANCELLED": Phase.CANCELLED,
    "EXPIRED": Phase.EXPIRED,
}
"""Every state of the SDK's ``JobState`` without its prefix. A state that is not here counts as running."""


@dataclass(frozen=True)
class Counts:
    """Requests of a job as it counts them (``batchStats``); all zero when the service says nothing."""

    total: int = 0
    succeeded: int = 0
    failed: int = 0
    pending: int = 0

    @property
    def done(self) -> int:
        return self.succeeded + self.failed


@dataclass(frozen=True)
class JobError:
    """Why a job failed: a gRPC status code (not HTTP's) and a sentence."""

    code: int | None
    message: str


@dataclass(frozen=True)
class Job:
    """
    One look at a job.

    :param state: the wire's word without ``BATCH_STATE_`` or ``JOB_STATE_``, e.g. ``"RUNNING"``.
    :param results: name of the result file (``files/batch-...``), once there is one.
    """

    name: str
    state: str = ""
    phase: Phase = Phase.RUNNING
    display_name: str = ""
    model: str = ""
    created_at: datetime | None = None
    ended_at: datetime | None = None
    counts: Counts = Counts()
    input_file: str | None = None
    results: str | None = None
    error: JobError | None = None
    embeddings: bool = False

    @classmethod
    def of_operation(cls, operation: Mapping[str, Any]) -> Job:
        """
        Read an Operation of the REST API (https://ai.google.dev/api/batch-api).

        :raises ValueError: it has no name, so it is not an operation.
        """
        name = operation.get("name")
        if not isinstance(name, str) or not name:
            raise ValueError("an operation without a name")
        meta = _mapping(operation.get("metadata"))
        response = _mapping(operation.get("response"))
        error = _error(operation.get("error"))
        state = bare_state(meta.get("state"))
        phase = PHASE_OF_STATE.get(state, Phase.RUNNING)
        if operation.get("done") and not phase.ended:
            # Over is over, whatever the state is called or whether there is one.
            phase = Phase.FAILED if error else Phase.SUCCEEDED
            state = phase.name
        return cls(
            name=name,
            state=state,
            phase=phase,
            display_name=str(meta.get("displayName") or ""),
            model=str(meta.get("model") or "").removeprefix("models/"),
            created_at=timestamp(meta.get("createTime")),
            ended_at=timestamp(meta.get("endTime")),
            counts=_counts(_mapping(meta.get("batchStats"))),
            input_file=_mapping(meta.get("inputConfig")).get("fileName"),
            # Both places carry it; a server that fills only one of them must not cost us the results.
            results=_mapping(meta.get("output")).get("responsesFile") or response.get("responsesFile"),
            error=error,
            embeddings=str(meta.get("@type") or "").endswith("EmbedContentBatch"),
        )

    @property
    def known_state(self) -> bool:
        return self.state in PHASE_OF_STATE


@dataclass(frozen=True)
class ListedFile:
    """
    A file as the list of files has it.

    :param size: bytes.
    """

    name: str
    display_name: str = ""
    size: int = 0
    created_at: datetime | None = None
    expires_at: datetime | None = None

    @classmethod
    def of_resource(cls, resource: Mapping[str, Any]) -> ListedFile:
        """:raises ValueError: it has no name, so it is not a file."""
        name = resource.get("name")
        if not isinstance(name, str) or not name:
            raise ValueError("a file without a name")
        return cls(
            name,
            str(resource.get("displayName") or ""),
            count(resource.get("sizeBytes")),
            timestamp(resource.get("createTime")),
            timestamp(resource.get("expirationTime")),
        )


@dataclass(frozen=True)
class Gone:
    """The service says there is no such job (404, or 403 while the key itself works)."""

    job: str
    detail: str


@dataclass(frozen=True)
class Refused:
    """The service does not take the key any more."""

    job: str
    detail: str


@dataclass(frozen=True)
class Unreachable:
    """
    No usable answer this time: "could not look" is never "is not there".

    :param retry_after: seconds for which the service asked not to be asked again; 0 if a quota refused the look and no time
        was named, None if it was no quota.
    :param quota: which one, where there was one.
    """

    job: str
    detail: str
    retry_after: float | None = None
    quota: str = ""


Seen = Job | Gone | Refused | Unreachable
"""All that one look can bring."""


def bare_state(state: object) -> str:
    """``"BATCH_STATE_RUNNING"`` and ``"JOB_STATE_RUNNING"`` become ``"RUNNING"``; anything else stays as it is."""
    return str(state or "").removeprefix("BATCH_STATE_").removeprefix("JOB_STATE_")


def timestamp(text: object) -> datetime | None:
    """Read an RFC 3339 time (nanoseconds are cut to microseconds); None when it is missing or not a time."""
    try:
        return datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None


def count(value: object) -> int:
    """
    Read an int64, which travels as a string; a zero is left out altogether. What is no number counts as zero too: counts are
    there to be shown, and nothing must hang on them.
    """
    try:
        return max(0, int(float(value))) if isinstance(value, str | int | float) else 0
    except (ValueError, OverflowError):
        return 0


def _counts(stats: Mapping[str, Any]) -> Counts:
    return Counts(
        total=count(stats.get("requestCount")),
        succeeded=count(stats.get("successfulRequestCount")),
        failed=count(stats.get("failedRequestCount")),
        pending=count(stats.get("pendingRequestCount")),
    )


def cut(text: str, most: int) -> str:
    """The text with so many characters at most."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _error(error: object) -> JobError | None:
    if not isinstance(error, Mapping) or not error:
        return None
    code = error.get("code")
    return JobError(code if isinstance(code, int) else None, str(error.get("message") or ""))


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
