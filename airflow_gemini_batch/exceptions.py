"""
Every error this package raises: one tree, printed here from top to bottom.

``retryable`` says whether trying the same thing again can help. ``failures.failing_fast`` turns that into Airflow's
words: a final error fails the task at once, a retryable one uses the task's retries.
"""

from __future__ import annotations

from collections.abc import Mapping


class GeminiBatchError(Exception):
    """Base of all our errors. Final unless a subclass says otherwise."""

    retryable = False


# What the user gave us --------------------------------------------------------------------------------------


class InvalidInput(GeminiBatchError):
    """Something in the task's settings or in its source must be changed by a person. Nothing was sent."""


class InvalidConfig(InvalidInput):
    """A parameter of the task, or the connection, is wrong."""


class SourceUnreadable(InvalidInput):
    """The source is missing, cannot be opened, or is not what its name says."""


class BadRow(InvalidInput):
    """
    One row of the source cannot be used.

    :param where: ``file:line``, or ``row N`` for rows that came as a list (N counts from 0, as Python does).
    """

    def __init__(self, where: str, problem: str) -> None:
        self.where, self.problem = where, problem
        super().__init__(f"{where}: {problem}")


class DuplicateKey(BadRow):
    """Two rows have the same key, so their answers could not be told apart."""

    def __init__(self, *, key: str, first: str, second: str) -> None:
        self.key, self.first, self.second = key, first, second
        super().__init__(
            second,
            f"the key {key!r} was used before, at {first}. Keys must be unique: name another column in `key`, "
            "or leave `key` out to number the rows.",
        )


class UnknownColumn(InvalidInput):
    """A setting names a column that the source does not have."""


class NoRows(InvalidInput):
    """The source has no rows, and ``on_empty`` is not ``"succeed"``."""


# Storage ----------------------------------------------------------------------------------------------------


class OutputNotWritable(InvalidInput):
    """The output directory cannot be written to."""


class OutputTaken(InvalidInput):
    """The output directory belongs to another run that has not finished."""


class SettingsChanged(InvalidInput):
    """The task's settings are not those its plan was made with, and ``on_changed="fail"``."""


class StateUnreadable(GeminiBatchError):
    """A plan, ledger or manifest document is there but could not be read. This is not the same as "not there"."""

    retryable = True


class StateTooNew(GeminiBatchError):
    """A document was written by a later release of this package."""


class Superseded(GeminiBatchError):
    """Another attempt has made a new plan for this output; this attempt must not go on."""


class ShardDamaged(GeminiBatchError):
    """A request shard on storage is not the one the plan was committed with."""


# The service ------------------------------------------------------------------------------------------------


class ServiceError(GeminiBatchError):
    """The Gemini service answered, or failed to answer, in a way that ends this step."""


class ServiceUnreachable(ServiceError):
    """No usable answer: a network fault, a timeout, 5xx, 408, 429 while asking, or a page that is not the API's."""

    retryable = True


class QuotaExceeded(ServiceError):
    """HTTP 429 for a paid call: nothing was created."""

    retryable = True


class CredentialsRefused(ServiceError):
    """The API key (or what it may do) was refused."""


class RequestRefused(ServiceError):
    """
    A definite 4xx: the service understood the request and will not do it. Nothing was created.

    :param code: the HTTP status.
    """

    def __init__(self, message: str, *, code: int, status: str | None = None) -> None:
        self.code, self.status = code, status
        super().__init__(message)


class CreateInDoubt(ServiceError):
    """A job may or may not have been created; it could not be found yet. The next attempt looks again before it sends."""

    retryable = True


class DownloadBroken(ServiceError):
    """A result file came back short several times in a row."""

    retryable = True


class ResultsLost(ServiceError):
    """A job succeeded, but its results are no longer given out."""


# How a run ended --------------------------------------------------------------------------------------------


class RunFailed(GeminiBatchError):
    """
    The run is over and landed, but not as hoped. Clearing the task sends only the rows that are still unsettled.

    :param jobs: names of the jobs concerned.
    :param counts: rows by status.
    :param manifest: URI of the manifest.
    """

    def __init__(self, message: str, *, jobs: tuple[str, ...], counts: Mapping[str, int], manifest: str) -> None:
        self.jobs, self.counts, self.manifest = jobs, dict(counts), manifest
        shown = ", ".join(f"{status} {n}" for status, n in self.counts.items() if n)
        super().__init__(f"{message} Rows: {shown}. What there is was landed: {manifest}")


class JobFailed(RunFailed):
    """A job ended as FAILED."""


class JobExpired(RunFailed):
    """A job ended as EXPIRED: the service gave it up after 48 hours."""


class JobCancelled(RunFailed):
    """A job was cancelled by somebody else."""


class JobTimedOut(RunFailed):
    """A job did not end within the task's ``timeout``."""


class JobGone(RunFailed):
    """A job that this run submitted is no longer at the service."""


class TooManyFailedRows(RunFailed):
    """More rows failed than ``max_failed_ratio`` allows, or no row at all is ok."""


class JobStillRunning(ServiceError):
    """A job passed its deadline and ``on_timeout="leave"``: it was left running and may still be billed."""


class CountsDoNotAddUp(GeminiBatchError):
    """Rows in and rows out differ: a defect of this package, never of the input."""
