"""
Every error this package raises: one tree, printed here from top to bottom.

``retryable`` says whether trying the same thing again can help. ``failures.failing_fast`` turns that into Airflow's
words: a final error fails the task at once, a retryable one uses the task's retries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_gemini_batch.core.estimate import Estimate


class GeminiBatchError(Exception):
    """Base of all our errors. Final unless a subclass says otherwise."""

    retryable = False

    def __reduce__(self) -> tuple[Any, ...]:
        return restored, (type(self), self.args, self.__dict__)  # facts that are keyword-only are not in ``args``


def restored(kind: type[GeminiBatchError], args: tuple[Any, ...], facts: dict[str, Any]) -> GeminiBatchError:
    """Make an error from what it says and knows: a copy, or one that comes out of a pickle."""
    error = kind.__new__(kind, *args)
    error.__dict__.update(facts)
    return error


# What the user gave us --------------------------------------------------------------------------------------


class InvalidInput(GeminiBatchError):
    """
    Something in the task's settings or in its source must be changed by a person. Mostly found before anything is sent; a
    setting that turns out wrong later, as a table's, leaves what runs and what landed as it is.
    """


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

    def __init__(
        self, *, key: str, first: str, second: str,
        advice: str = "name another column in `key`, or leave `key` out to number the rows",
    ) -> None:  # fmt: skip
        self.key, self.first, self.second = key, first, second
        super().__init__(second, f"the key {key!r} was used before, at {first}. Keys must be unique: {advice}.")


class UnknownColumn(InvalidInput):
    """A setting names a column that the source does not have."""


class NoRows(InvalidInput):
    """The source has no rows, and ``on_empty`` is not ``"succeed"``."""


# Storage ----------------------------------------------------------------------------------------------------


class OutputNotWritable(GeminiBatchError):
    """The output directory cannot be written to. What was sent before runs on; a clear lands it."""


class TableRefused(GeminiBatchError):
    """The database will not take a table or its rows. It was left as it was; what was landed in files is whole."""


class OutputTaken(InvalidInput):
    """The output directory belongs to another run that has not finished."""


class SettingsChanged(InvalidInput):
    """The task's settings are not those its plan was made with, and ``on_changed="fail"``."""


class StateUnreadable(GeminiBatchError):
    """A plan, ledger or manifest document is there but could not be read. This is not the same as "not there"."""

    retryable = True


class MediaUnreadable(GeminiBatchError):
    """A media file could not be read this time. One that is not there, or not allowed, is no error: its row says so."""

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
    """No usable answer: a network fault, a timeout, 5xx, 408, 429, or a page that is not the API's."""

    retryable = True


class QuotaExceeded(ServiceUnreachable):
    """
    HTTP 429, or as many jobs in the project as may run: nothing was done. Waited for, up to ``quota_timeout``.

    :param phase: what was refused: ``"upload"``, ``"create"``, ``"look"``, ``"list"``, ``"download"``, ``"cancel"``,
        ``"delete"``, ``"count"``.
    :param quota: which quota, in words.
    :param retry_after: seconds after which the service wants to be asked again, None if it did not say.
    """

    def __init__(self, message: str, *, phase: str, quota: str, retry_after: float | None = None) -> None:
        self.phase, self.quota, self.retry_after = phase, quota, retry_after
        super().__init__(message)


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


class NoSuchJob(ServiceError):
    """
    The service has no job of this name: it was deleted, it is another project's, or it never was.

    :ivar status_code: 404: the name by which other packages' operators tell "is not there" from all else.
    """

    status_code = 404


class NoSuchFile(ServiceError):
    """The service has no file of this name: it expired or was deleted, it is another project's, or it never was."""


class JobNotSucceeded(ServiceError):
    """
    A job ended otherwise than hoped, and nobody has landed what there may be of it.

    :param state: the API's word without its prefix, e.g. ``"EXPIRED"``.
    """

    def __init__(self, *, job: str, state: str, detail: str = "") -> None:
        self.job, self.state, self.detail = job, state, detail
        why = f": {detail.removesuffix('.')}" if detail else ""
        super().__init__(f"Batch job {job} ended as {state}{why}.")


class JobStillRunning(ServiceError):
    """
    A job passed its deadline and ``on_timeout="leave"``: it was left running and may still be billed.

    :param jobs: its name.
    :param counts: rows of this job by what the service says of them: ``succeeded``, ``failed``, ``total``.
    :param manifest: URI that the manifest will have, if the run writes one; there is none yet.
    """

    def __init__(self, message: str, *, jobs: tuple[str, ...], counts: Mapping[str, int], manifest: str = "") -> None:
        self.jobs, self.counts, self.manifest = jobs, dict(counts), manifest
        super().__init__(message)


# How a run ended --------------------------------------------------------------------------------------------


class RunFailed(GeminiBatchError):
    """
    The run is over and landed, but not as hoped. Clearing the task sends only the rows that are still unsettled.

    :param jobs: names of the jobs concerned.
    :param counts: rows by status.
    :param manifest: URI of the manifest.
    :ivar summary: what a run that ends well returns: rounds, usage, cost and all; None if nothing was landed.
    :ivar news: see ``Manifest``.
    """

    summary: Mapping[str, Any] | None = None
    news: Mapping[str, Mapping[str, int]] | None = None

    def __init__(self, message: str, *, jobs: tuple[str, ...], counts: Mapping[str, int], manifest: str) -> None:
        self.jobs, self.counts, self.manifest = jobs, dict(counts), manifest
        shown = ", ".join(f"{status} {n}" for status, n in self.counts.items() if n)
        super().__init__(f"{message} Rows: {shown}. What there is was landed: {manifest}" if manifest else message)


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


class JobRefused(RunFailed):
    """A job was refused for good, as by a fallback model that there is not, when others were paid for already."""


class JobStuck(RunFailed):
    """A job stayed pending for longer than ``pending_timeout``."""


class CanaryFailed(RunFailed):
    """Too few rows of the canary were ok, so the rest was not sent."""


class OverBudget(RunFailed):
    """
    Going on could cost more than the task's budget allows. What was paid for before is landed; nothing more was sent.

    :param estimate: what would have been sent (an ``Estimate``), None if it was found out later.
    """

    def __init__(
        self, message: str, *, jobs: tuple[str, ...] = (), counts: Mapping[str, int] | None = None, manifest: str = "",
        estimate: Estimate | None = None,
    ) -> None:  # fmt: skip
        self.estimate = estimate
        super().__init__(message, jobs=jobs, counts=counts or {}, manifest=manifest)


class TooManyFailedRows(RunFailed):
    """More rows failed than ``max_failed_ratio`` allows, or no row at all is ok."""


class CountsDoNotAddUp(GeminiBatchError):
    """Rows in and rows out differ: a defect of this package, never of the input."""


# A row's answer ---------------------------------------------------------------------------------------------


class InvalidAnswer(GeminiBatchError, ValueError):
    """An answer is not what ``output_schema`` asks for. Its row lands as ``invalid_output``, with the text as it came."""
