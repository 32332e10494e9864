"""
The steps of a batch apart: prepare, upload, create, land. Each is safe to retry, and a thin face of ``core.steps`` or
``core.adopting``; all that is not about one step is :class:`GeminiBatchOperator`'s.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_gemini_batch import settings
from airflow_gemini_batch.core.checks import Check, a_job, as_seconds, job_names, or_none
from airflow_gemini_batch.exceptions import InvalidConfig
from airflow_gemini_batch.failures import failing_fast
from airflow_gemini_batch.links.batch import GeminiJobLink, GeminiOutputLink, job_url, push, push_place
from airflow_gemini_batch.operators.batch import GeminiBatchOperator, run_id_of
from airflow_gemini_batch.operators.checking import check_given, check_settings, is_open
from airflow_gemini_batch.operators.records import as_data, as_uri
from airflow_gemini_batch.operators.step_checks import (
    CREATES,
    CREATING,
    LANDING,
    PREPARING,
    UPLOADS,
    check_takes,
    rows_files,
    uploaded_name,
    webhook,
    without,
)

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_gemini_batch.core.attempt import Policy, Run, Services
    from airflow_gemini_batch.core.requests import Spec
    from airflow_gemini_batch.core.schema import OutputSchema

INLINE_BYTES = 19_000_000
"""Most bytes of requests in one create: the API takes 20 MB for the whole call, and there is a little around them."""


class GeminiPrepareRequestsOperator(GeminiBatchOperator):
    """
    Turn rows into files of requests, each of which one job can take. Sends nothing and costs nothing.

    Returns the URIs of the files of requests: ``create.expand(requests=prepare.output)`` makes a job of each. The XCom
    ``rows`` has the rows files that belong to them, for the land step, and the XCom ``summary`` has ``model``, ``count``,
    ``unsent`` (rows with nothing to ask) and ``bytes``. Takes the parameters of :class:`GeminiBatchOperator` that say what is
    asked: ``model``, ``source``, ``prompt``, ``system_instruction``, ``config``, ``output_schema``, ``key``, ``keep``,
    ``limits``, ``on_changed``, ``on_empty``, ``reuse`` and ``gemini_conn_id``.

    :param output: URI or path of a directory for the files; not the one that the results are landed in.
    """

    ui_color = "#eef3e8"
    operator_extra_links = (GeminiOutputLink(),)
    _takes = PREPARING

    def __init__(self, **kwargs: Any) -> None:
        check_takes(self._takes, kwargs, "prepare requests")
        super().__init__(deferrable=False, **kwargs)

    def _advance(self, run: Run, services: Services, outcomes: Any, starting: bool) -> Any:
        from airflow_gemini_batch.core.steps import prepare

        return prepare(run, services)

    def _done(self, context: Context, run: Run, reached: Any) -> Any:
        push_place(context, GeminiOutputLink, str(run.output.path))
        ti: Any = context["ti"]
        if hasattr(ti, "xcom_push"):
            ti.xcom_push(key="rows", value=reached["rows"])
            ti.xcom_push(key="summary", value={name: reached[name] for name in ("model", "count", "unsent", "bytes")})
        return reached["requests"]


class GeminiUploadFileOperator(BaseOperator):
    """
    Upload a file to the Files API, where it is kept for 48 hours.

    Returns ``name`` (``files/...``), ``uri`` (what requests call it), ``size`` in bytes, ``sha256``, ``mime_type``,
    ``expires_at`` (ISO 8601 in UTC, None if the API does not say) and ``found``: whether the same content was there already,
    and was used. Each is an XCom of its own, too: ``upload.output["uri"]``. A retry never uploads twice.

    :param source: URI of the file, on any storage that Airflow knows; it is streamed.
    :param mime_type: guessed from the name; ``application/jsonl`` for ``.jsonl``.
    :param display_name: for people; by default the file's name.
    :param fresh_for: seconds, or a ``timedelta``, that an earlier upload must still live to be used again. Requests are read
        when the job is created; media are read while it runs.
    :param gemini_conn_id: connection of type ``gemini_batch``.
    """

    template_fields: Sequence[str] = ("source", "mime_type", "display_name", "gemini_conn_id")
    ui_color = "#eef3e8"
    ui_fgcolor = "#1a3a8f"

    def __init__(
        self,
        *,
        source: str | os.PathLike[str],
        mime_type: str | None = None,
        display_name: str | None = None,
        fresh_for: timedelta | float = 12 * 3600.0,
        gemini_conn_id: str = settings.CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"multiple_outputs": True} | kwargs)
        self.source = as_uri(source)
        self.mime_type = mime_type
        self.display_name = display_name
        self.fresh_for = as_seconds(fresh_for)
        self.gemini_conn_id = gemini_conn_id
        check_given(self, UPLOADS)

    def execute(self, context: Context) -> dict[str, Any]:
        from airflow_gemini_batch.core.attempt import Services, utc
        from airflow_gemini_batch.core.steps import Upload, upload
        from airflow_gemini_batch.hooks.gemini import GeminiHook
        from airflow_gemini_batch.paths import resolve

        with failing_fast():
            self.source = as_uri(self.source)
            check_settings(self, UPLOADS, running=True)
            wanted = Upload(resolve(self.source), self.mime_type or None, self.display_name or None, self.fresh_for)
            services = Services(GeminiHook(self.gemini_conn_id).client)
            try:
                file = upload(wanted, services)
            finally:
                services.client.close()
            return {
                "name": file.name,
                "uri": file.uri or services.client.account.url(file.name),
                "size": file.size,
                "sha256": file.sha256,
                "mime_type": wanted.type,
                "expires_at": utc(file.expires_at) if file.expires_at else None,
                "found": file.found,
            }


class GeminiCreateBatchJobOperator(GeminiBatchOperator):
    """
    Create one batch job from requests that are ready. Returns the job's name, ``batches/...``.

    The job is created once, whatever dies: what was sent and which job it became is on record in ``ledger``, and a create
    whose reply was lost is looked for by its display name before another is sent. A retry and a clear return the same job.
    The URI of its rows file (the keys that were sent; ``""`` for an upload) is the XCom ``rows``, for the land step. Of
    :class:`GeminiBatchOperator`'s parameters it takes ``limits`` (by default what the API takes in one job),
    ``quota_timeout``, ``on_changed``, ``on_empty``, ``poll_interval``, ``cancel_on_kill`` and ``gemini_conn_id``, and those
    named here.

    :param model: bare model name, e.g. ``"gemini-2.5-flash"``.
    :param requests: URI of a JSONL file of ``{"key", "request"}`` lines, which is checked and uploaded; ``"files/..."``, a
        file that is uploaded already, or what the upload step returned of it; or a list of such mappings, or of texts, which
        the create itself carries.
    :param ledger: URI of a directory for the record of what was sent. By default ``<requests>.gemini`` beside a file of
        requests, else ``[gemini_batch] ledger`` of Airflow's configuration. Each task instance has its own directory in it.
    :param display_name: for people; it follows the name that the job is found by. By default DAG and task.
    :param priority: jobs with a higher one go first; the API's default is 0.
    :param webhook_config: whom the service tells, as the API has it: ``{"uris": [...], "user_metadata": {...}}``.
    :param wait: also wait until the job has ended, and fail if it did not succeed.
    :param timeout: with ``wait``: seconds that the job may take from its creation.
    :param on_timeout: with ``wait``: ``"cancel"`` a job that takes longer, or ``"leave"`` it; the task fails in any case.
    :param reuse: ``"auto"``, or ``"never"``: clearing the task creates, and pays, a new job. A retry never does.
    :param deferrable: wait in the triggerer; Airflow's ``[operators] default_deferrable`` by default.
    """

    template_fields: Sequence[str] = (
        "model", "requests", "ledger", "display_name", "priority", "webhook_config", "reuse", "on_changed", "gemini_conn_id",
    )  # fmt: skip
    template_fields_renderers = {"webhook_config": "json"}  # noqa: RUF012 - Airflow's own form
    operator_extra_links = (GeminiJobLink(),)
    _embeddings = False
    _takes = CREATING
    _rows = "requests"
    _checks: ClassVar[Mapping[str, Check]] = without("model", "source", "output")
    _own_checks: ClassVar[Mapping[str, Check]] = CREATES

    def __init__(
        self,
        *,
        model: str,
        requests: Any,
        ledger: str | None = None,
        display_name: str | None = None,
        priority: int | str | None = None,
        webhook_config: Mapping[str, Any] | None = None,
        wait: bool = False,
        **kwargs: Any,
    ) -> None:
        check_takes(self._takes, kwargs, "create a job")
        super().__init__(model=model, source=None, output="", **kwargs)
        self.requests = as_data(uploaded_name(as_uri(requests)))
        self.ledger: str | None = as_uri(settings.ledger(ledger))
        self.display_name = display_name
        self.priority = priority
        self.webhook_config = webhook_config
        self.wait = wait
        check_given(self, self._own_checks)
        if not is_open(self.requests):
            with failing_fast():
                self._home()

    def _run(self, context: Context) -> Run:
        # Another task may have returned a path, or what an upload returns.
        self.source = self.requests = uploaded_name(as_uri(self.requests))
        self.ledger = as_uri(self.ledger)
        self.output_uri = self._ledger(context)
        return super()._run(context)

    def _ledger(self, context: Context) -> str:
        return f"{self._home().rstrip('/')}/{run_id_of(context).hash('create')}"

    def _home(self) -> str:
        """Where it is recorded what was sent. :raises InvalidConfig: nobody has said where."""
        home = self.ledger
        if not home and isinstance(self.requests, str) and not self._uploaded:
            home = f"{self.requests}.gemini"
        if not home:
            raise InvalidConfig(
                "ledger is empty: name a directory on storage where it is recorded what was sent, so that a retry finds the "
                "job, or set [gemini_batch] ledger in Airflow's configuration."
            )
        return home

    @property
    def _uploaded(self) -> bool:
        return isinstance(self.requests, str) and self.requests.startswith("files/")

    def _spec(self, schema: OutputSchema | None) -> Spec:
        from airflow_gemini_batch.core.requests import Spec

        job: dict[str, Any] = {"label": self.display_name} if self.display_name else {}
        if self._uploaded:
            job["file"] = self.requests
        elif not isinstance(self.requests, str):
            job["inline"] = True
        fields: dict[str, Any] = {}
        if self.priority not in (None, ""):
            fields["priority"] = int(self.priority)
        if self.webhook_config:
            fields["webhookConfig"] = webhook(self.webhook_config)
        return Spec(
            model=self._models()[0], embeddings=self._embeddings, job=job | ({"fields": fields} if fields else {})
        )

    def _policy(self) -> Policy:
        from dataclasses import replace

        from airflow_gemini_batch.core.limits import API_FILE_BYTES, Limits

        inline = not isinstance(self.requests, str)
        size = INLINE_BYTES if inline else API_FILE_BYTES
        # One job takes it all; what it may hold is the API's to say.
        limits = self.limits or Limits(
            requests_per_job=10**9, bytes_per_job=size, bytes_per_request=min(size, 20_000_000)
        )
        return replace(super()._policy(), limits=limits, max_rounds=1)

    def _advance(self, run: Run, services: Services, outcomes: Any, starting: bool) -> Any:
        from airflow_gemini_batch.core.flow import Waiting
        from airflow_gemini_batch.core.steps import await_created, create

        created = create(run, services, starting=starting)
        if isinstance(created, Waiting) or not self.wait:
            return created
        return await_created(created, run, services, outcomes) or created

    def _done(self, context: Context, run: Run, reached: Any) -> Any:
        push(context, GeminiJobLink, job_url(reached.job))
        ti: Any = context["ti"]
        if hasattr(ti, "xcom_push"):
            ti.xcom_push(key="rows", value=reached.rows or "")
        return reached.job


class GeminiCreateEmbeddingsBatchJobOperator(GeminiCreateBatchJobOperator):
    """Create one batch job of requests for embeddings; all else is as with :class:`GeminiCreateBatchJobOperator`."""

    _embeddings = True


class GeminiLandResultsOperator(GeminiBatchOperator):
    """
    Land the results of finished jobs as one table; returns its manifest.

    Any job of the key's project will do: generate or embeddings, with a result file or inlined responses, made by this
    package or by anything else. One that still runs is waited for. Nothing is ever sent, so it costs nothing to repeat. Of
    :class:`GeminiBatchOperator`'s parameters it takes those about landing: ``output_schema``, ``table``, ``file_format``,
    ``include``, ``include_raw``, ``prices``, ``max_failed_ratio``, ``timeout``, ``poll_interval``, ``reuse``, ``on_empty``,
    ``deferrable`` and ``gemini_conn_id``.

    :param job: name of a job, ``batches/...``, or what a sensor returned of it; or a list of them.
    :param output: URI of the directory for the table; each run needs its own.
    :param rows: URI of the rows file that belongs to the requests (the XCom ``rows`` of the prepare and create steps), or a
        list with one for each job. Then every row that was sent is in the table with its kept columns, ``missing`` if it has
        no result. Without it every key of the results is a row; results without keys are numbered by their place.
    :param delete_remote: remove from the service what is landed: ``"never"`` (default: it may be somebody else's),
        ``"inputs"``, ``"all"``.
    :param on_changed: settings changed since the jobs were landed: ``"resubmit"`` (default, other than elsewhere: nothing is
        paid, they are just landed anew), ``"fail"``, or ``"keep"`` the old ones.
    """

    template_fields: Sequence[str] = (
        "job", "output_uri", "rows", "table", "reuse", "on_changed", "gemini_conn_id",
    )  # fmt: skip
    template_fields_renderers = {}  # noqa: RUF012 - Airflow's own form
    _checks: ClassVar[Mapping[str, Check]] = without("model", "source")
    _own_checks: ClassVar[Mapping[str, Check]] = {"job": a_job, "rows": or_none(rows_files)}
    _takes = LANDING

    def __init__(
        self,
        *,
        job: Any,
        output: str,
        rows: Any = None,
        delete_remote: str = "never",
        on_changed: str = "resubmit",
        **kwargs: Any,
    ) -> None:
        check_takes(self._takes, kwargs, "land results")
        # Jobs may be somebody else's: they are never cancelled. Landing anew pays nothing, so changed settings just apply.
        super().__init__(
            model="", source=None, output=output, delete_remote=delete_remote, on_changed=on_changed, on_timeout="leave",
            cancel_on_kill=False, **kwargs,
        )  # fmt: skip
        self.job = job
        self.rows = rows
        check_given(self, self._own_checks)

    def _spec(self, schema: OutputSchema | None) -> Spec:
        from airflow_gemini_batch.core.requests import Spec

        return Spec(
            model="", job={"names": list(job_names(self.job))}, output_schema=schema.json_schema if schema else None
        )

    def _advance(self, run: Run, services: Services, outcomes: Any, starting: bool) -> Any:
        from airflow_gemini_batch.core.adopting import land_jobs
        from airflow_gemini_batch.paths import resolve

        given = as_uri(self.rows)
        given = [given] if isinstance(given, str) else list(given or ())
        rows = [resolve(as_uri(uri)) for uri in given if uri]
        return land_jobs(run, services, rows=rows, outcomes=outcomes, starting=starting)
