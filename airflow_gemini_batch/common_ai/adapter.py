"""What common.ai's ``LLMBatchOperator`` asks of a service that runs batches, answered for the Gemini Developer API."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from time import sleep
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.ai.batch.base import BatchAdapter, BatchState, ExtractedOutput, SubmitResult
from airflow.providers.common.ai.exceptions import LLMBatchLimitExceededError, LLMBatchModelMismatchError

from airflow_gemini_batch.common_ai import submitting
from airflow_gemini_batch.common_ai.items import read_items
from airflow_gemini_batch.common_ai.lines import LIMITS, Lines, output_schema
from airflow_gemini_batch.core import ends
from airflow_gemini_batch.core.client import Client
from airflow_gemini_batch.core.config import request_template
from airflow_gemini_batch.core.downloading import fetch
from airflow_gemini_batch.core.jobs import Job, Phase
from airflow_gemini_batch.core.names import common_ai_identity
from airflow_gemini_batch.exceptions import DownloadBroken, ServiceUnreachable
from airflow_gemini_batch.hooks.gemini import GeminiHook, base_url_of, make_account

if TYPE_CHECKING:
    from airflow.providers.common.ai.batch.base import BatchRequest, RawResultItem
    from airflow.providers.common.ai.batch.output_schema import OutputSpec

log = logging.getLogger(__name__)

STATUS_OF_PHASE: dict[Phase, str] = {
    Phase.RUNNING: "in_progress",
    Phase.SUCCEEDED: "completed",
    Phase.FAILED: "failed",
    Phase.CANCELLED: "cancelled",
    Phase.EXPIRED: "expired",
}
"""Our word for what a state means → common.ai's."""

PREFIXES = ("google", "google-gla")
"""Of a ``model_id``; pydantic-ai has renamed the second to the first."""


class GoogleBatchAdapter(BatchAdapter):
    """
    Batches of the Gemini Developer API for ``model_id="google:gemini-..."``.

    A batch is one job; its id is the job's name, ``batches/...``. Of one job's requests all have the same model. The job's
    display name holds the identity of the task instance and the fingerprint of the input, so that one whose create was
    not recorded is found again.

    :param api_key: password of a ``pydanticai`` or ``gemini_batch`` connection.
    :param base_url: its host. common.ai passes nothing else of it on: other settings are at their defaults.
    :param client: a :class:`~airflow_gemini_batch.core.client.Client` to use instead.
    :raises InvalidConfig: there is no key, or it is one of Vertex AI's.
    """

    name: ClassVar[str] = "google"
    conn_types: ClassVar[frozenset[str]] = frozenset({"pydanticai", GeminiHook.conn_type})
    max_requests: ClassVar[int] = LIMITS.requests_per_job
    max_payload_bytes: ClassVar[int] = LIMITS.bytes_per_job
    allows_per_request_model: ClassVar[bool] = False

    def __init__(
        self, *, api_key: str | None = None, base_url: str | None = None, client: Client | None = None
    ) -> None:
        where = "The connection of llm_conn_id"
        self._client: Client = client or Client(make_account(where, api_key, base_url_of(base_url), {}))

    # Before anything is sent -------------------------------------------------------------------------------

    def validate_requests(
        self, requests: list[BatchRequest], *, model: str, output_spec: OutputSpec, idempotency_key: str, **kwargs: Any
    ) -> None:
        """
        :raises LLMBatchInputError: a subclass of it that says what cannot be sent.
        """
        self.check_custom_id_length(idempotency_key, len(requests))
        if len(requests) > self.max_requests:
            raise LLMBatchLimitExceededError(
                f"A Gemini batch takes at most {self.max_requests} requests; got {len(requests)}. Split the input with "
                f".expand() so that each mapped task submits at most {self.max_requests}."
            )
        size = 0
        for index, line in enumerate(self._lines(requests, model, output_spec, idempotency_key, kwargs)):
            size += len(line)
            if size > self.max_payload_bytes:
                directive = len(str(self.build_output_directive(output_spec)))
                raise LLMBatchLimitExceededError(
                    f"A Gemini batch takes at most {self.max_payload_bytes} bytes; this input has {size} at request {index} "
                    f"of {len(requests)} (the schema of output_type takes about {directive} of every request). Split the "
                    "input with .expand()."
                )

    def resolve_request_model(
        self, request_model: str | None, *, default_bare_model: str, request_index: int
    ) -> str:  # fmt: skip
        """Both our prefixes are one service, so a request may have either."""
        prefix, _, bare = (request_model or "").partition(":")
        if prefix in PREFIXES:
            request_model = f"{self.name}:{bare}"
        return str(
            super().resolve_request_model(
                request_model, default_bare_model=default_bare_model, request_index=request_index
            )
        )

    def _model(self, requests: list[BatchRequest], default: str) -> str:
        first: dict[str, int] = {}
        for index, request in enumerate(requests):
            bare = self.resolve_request_model(
                request.get("model"), default_bare_model=default, request_index=index
            ).removeprefix("models/")
            first.setdefault(bare, index)
        if len(first) > 1:
            named = ", ".join(f"{model} (first at request {index})" for model, index in first.items())
            raise LLMBatchModelMismatchError(
                f"A Gemini batch job has one model for all its requests; this input asks for {len(first)}: {named}. Give "
                "each model a task of its own: group the requests by model, and .expand_kwargs() over the groups with their "
                "model_id."
            )
        return next(iter(first), default)

    def _lines(
        self, requests: list[BatchRequest], model: str, spec: OutputSpec, identity: str, settings: dict[str, Any]
    ) -> Lines:
        return Lines(
            requests, model=self._model(requests, model), identity=identity, schema=output_schema(spec), settings=settings
        )  # fmt: skip

    def build_output_directive(self, spec: OutputSpec) -> dict[str, Any]:
        """
        Return the fields of a request that ask for answers of a type.

        :raises InvalidOutputType: the API cannot be asked for them.
        """
        schema = output_schema(spec)
        return request_template(None, None, schema) if schema else {}

    # The job -----------------------------------------------------------------------------------------------

    def submit(
        self, requests: list[BatchRequest], *, model: str, idempotency_key: str, input_fingerprint: str,
        output_spec: OutputSpec, **kwargs: Any,
    ) -> SubmitResult:  # fmt: skip
        """
        Upload the requests and create exactly one job; see :func:`submitting.submit`.

        :raises CreateInDoubt: a job may exist and could not be found; the next attempt looks for it.
        :raises ServiceError: nothing was created.
        """
        lines = self._lines(requests, model, output_spec, idempotency_key, kwargs)
        job, file = submitting.submit(
            self._client, lines, model=self._model(requests, model), identity=idempotency_key,
            fingerprint=input_fingerprint, sleep=sleep,
        )  # fmt: skip
        return SubmitResult(batch_id=job, provider_input_ref=file)

    def get_batch(self, batch_id: str) -> BatchState:
        """
        :raises NoSuchJob: there is no such job (any more); with ``status_code`` 404, as common.ai looks for it.
        :raises ServiceError: it could not be told.
        """
        job = ends.find(self._client, batch_id)
        error = None
        if job.phase is Phase.FAILED:
            told = job.error.message if job.error and job.error.message else "the service gave no reason"
            error = f"Batch {batch_id} ended as {job.state}: {told}."
        return BatchState(status=STATUS_OF_PHASE[job.phase], counts=_counts(job), error_message=error)

    def cancel_batch(self, batch_id: str) -> None:
        """
        :raises NoSuchJob: there is no such job (any more).
        :raises ServiceUnreachable: the service did not take it, and the job runs on.
        """
        cancel = self._client.cancel(batch_id)
        if not cancel.accepted:
            ends.find(self._client, batch_id)
            raise ServiceUnreachable(cancel.said)
        log.info("%s", cancel)

    def find_orphaned_batch(self, idempotency_key: str, input_fingerprint: str, not_before: str) -> str | None:
        """
        Look through all pages of the service's list for a job with both identifiers in its display name.

        :raises ServiceError: the list could not be read to its end.
        """
        return submitting.find(self._client, idempotency_key, input_fingerprint, not_before)

    # Its results -------------------------------------------------------------------------------------------

    def iter_results(self, batch_id: str) -> Iterator[RawResultItem]:
        """
        Download the results, whole, to a temporary file on this machine, and return an iterator over it.

        :raises NoSuchJob: there is no such job.
        :raises ResultsLost: the service does not give them out any more.
        :raises DownloadBroken: they could not be had this time.
        """
        job = ends.find(self._client, batch_id)
        if job.results is None:
            if job.phase in (Phase.RUNNING, Phase.SUCCEEDED):
                raise DownloadBroken(f"Batch {batch_id} is {job.state}, but names no result file.")
            return iter(())
        file = tempfile.TemporaryFile(prefix="gemini-batch-")  # noqa: SIM115  # the iterator closes it
        try:
            due = job.counts.total if job.phase is Phase.SUCCEEDED else job.counts.done
            fetch(
                self._client, batch_id, job.results, file, due=due, sleep=sleep,
                anew="Delete this task's file under _airflow_batch_state/",
            )  # fmt: skip
        except BaseException:
            file.close()
            raise
        return read_items(file, job.phase, common_ai_identity(job.display_name))

    def extract_output(self, raw: RawResultItem, spec: OutputSpec) -> ExtractedOutput:
        if raw.raw is None:  # blocked by nobody, but without text: thoughts alone, or a function call
            return ExtractedOutput(kind="absent")
        return ExtractedOutput(kind="json_text" if spec.is_structured else "text", text=raw.raw)


class GoogleGlaBatchAdapter(GoogleBatchAdapter):
    """The same for ``model_id="google-gla:gemini-..."``, the older name."""

    name: ClassVar[str] = "google-gla"


def _counts(job: Job) -> dict[str, int] | None:
    """The service's counts; None when it says nothing. What an expired or cancelled job leaves undone is of that kind."""
    counts = job.counts
    if not counts.total:
        return None
    # Without a result file not one answer comes, whatever was done.
    left = counts.total - (counts.done if job.results else 0)
    return {
        "succeeded": counts.succeeded,
        "errored": counts.failed,
        "expired": left if job.phase is Phase.EXPIRED else 0,
        "cancelled": left if job.phase is Phase.CANCELLED else 0,
    }
