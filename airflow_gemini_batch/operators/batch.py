"""GeminiBatchOperator: rows in, a table of answers out. Turns its settings and Airflow's context into core values."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_gemini_batch import settings
from airflow_gemini_batch.core.checks import Check, as_seconds
from airflow_gemini_batch.exceptions import InvalidConfig
from airflow_gemini_batch.links.batch import LINKS
from airflow_gemini_batch.operators.checking import CHECKS, check_given, check_settings, rows
from airflow_gemini_batch.operators.records import as_data, as_uri
from airflow_gemini_batch.operators.running import RunningOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_gemini_batch.core.attempt import Loader, Policy, Run
    from airflow_gemini_batch.core.budget import Budget
    from airflow_gemini_batch.core.limits import Limits
    from airflow_gemini_batch.core.names import RunId
    from airflow_gemini_batch.core.prices import PriceTable
    from airflow_gemini_batch.core.requests import Spec
    from airflow_gemini_batch.core.rows import FileSource, RecordSource
    from airflow_gemini_batch.core.schema import OutputSchema
    from airflow_gemini_batch.sql.table import SqlTable


class GeminiBatchOperator(RunningOperator):
    """
    Ask Gemini once per row, at batch price, and land the answers as a table.

    Returns the manifest: where the table is, rows by status, tokens and cost. The work is submitted once, whatever dies:
    a retry or a clear adopts running jobs and finished results. What a setting cannot be is an error when the DAG file is
    parsed, unless it holds a template or another task's output. Every time may also be a ``timedelta``.

    :param model: bare model name, e.g. ``"gemini-2.5-flash"``; of several, each but the first serves a later round.
    :param source: URI, path, glob or directory of Parquet, JSONL or CSV files (also gzipped); a ``SqlQuery``; or a list of
        mappings or strings, or a DataFrame (also a task's output). Records ``{"key", "request"}`` are taken as ready-made
        requests.
    :param output: URI or path of the directory for the table; each run needs its own. Ours is ``_gemini_batch/`` in it.
    :param prompt: text with ``{column}`` places; ``{{`` and ``}}``, after Jinja, are literal braces. A mapping of names to
        such texts asks each of them for every row; the name is then in the column ``prompt``. Without a prompt the rows
        are strings or ready-made requests.
    :param system_instruction: text sent with every row, as it is; also a ``types.Content``, or a list of texts and parts.
    :param config: a ``google.genai.types.GenerateContentConfig`` or a dict of its fields, in either case. A value
        ``"{column}"`` is the row's own; a null leaves the field out for that row.
    :param output_schema: a Pydantic model, a type, or a JSON schema: what each answer must hold. It is asked for, checked
        when the answers land, and becomes the column ``output``.
    :param media: columns with URIs (or lists of them) of images, PDFs, sounds or films, which go before the text.
    :param key: column that identifies a row; by default its number, from 0.
    :param keep: columns copied to the result: a list, or a mapping to Arrow's names of their types, such as
        ``{"stars": "int64", "price": "decimal(10,2)"}`` (None: as the source has it). A value that does not fit is an error
        before anything is sent.
    :param table: also load the answers into a database; an ``SqlTable``.
    :param file_format: ``"parquet"``, ``"jsonl"`` or ``"csv"``.
    :param include: further columns, of ``"safety_ratings"``, ``"citations"``, ``"grounding"``, ``"url_context"``,
        ``"function_calls"``, ``"code"``, ``"logprobs"`` and ``"thoughts"``.
    :param include_raw: add each response as JSON text in a column ``raw``.
    :param limits: sizes of jobs and how many run at a time, a ``Limits``.
    :param canary: rows that are sent first, in a job of their own; the rest follows only if enough of them are ok.
    :param budget: what the run may cost at most, a ``Budget``. Checked before anything is sent, and before each job.
    :param prices: batch prices in US dollars per million tokens, e.g. ``{"my-model": {"input": 0.1, "output": 1}}``,
        where those of the genai-prices package will not do.
    :param assumed_output_tokens: of an answer, for the estimate; by default ``max_output_tokens``.
    :param count_tokens: of so many rows, spread over all, the API counts the tokens (free), and this scales the estimate.
        The source is read once more. By default all is counted locally.
    :param max_rounds: passes over the work; rows that failed for a passing reason are sent again until then. By default two,
        or as many as there are models.
    :param redo: statuses whose rows are sent again too (``"truncated"``, ``"invalid_output"``, ``"blocked"``, ``"empty"``,
        ``"error"``): a list, or a mapping to config fields for the next time,
        e.g. ``{"truncated": {"max_output_tokens": 8192}}``.
    :param max_failed_ratio: most rows without status ``ok``, as a part of all, before the task fails (after landing).
        By default it fails only if no row is ok; with 1 not even then.
    :param timeout: seconds that a job may take from its creation.
    :param pending_timeout: seconds that a job may stay pending.
    :param on_timeout: ``"cancel"`` a job that takes longer, and send its rows in the next round, or ``"leave"`` it and fail.
    :param split: into how many jobs the largest job's rows are divided in later rounds.
    :param quota_timeout: seconds for which a quota (HTTP 429) may refuse everything before the task fails; until then it
        waits, longer each time, and no retry is used. Any job that is created or landed starts the time anew, it does not run
        out while jobs of the run are at the service, and each retry has all of it.
    :param poll_interval: seconds between looks at the jobs, varied a little; by default ``[gemini_batch] poll_interval``, 60.
    :param reuse: ``"auto"``, or ``"never"``: clearing the task asks everything anew and pays anew. A retry never does.
    :param on_changed: settings changed since the run was planned: ``"fail"``, ``"keep"`` the old ones, or ``"resubmit"``.
    :param on_empty: no rows: ``"skip"`` the task, ``"succeed"`` or ``"fail"``.
    :param delete_remote: remove from the service what is landed: ``"inputs"``, ``"all"`` (jobs and results too), ``"never"``;
        by default ``[gemini_batch] delete_remote``, ``"inputs"``.
    :param deferrable: wait in the triggerer; Airflow's ``[operators] default_deferrable`` by default.
    :param cancel_on_kill: cancel the jobs when the task is stopped by a person or its run.
    :param gemini_conn_id: connection of type ``gemini_batch``.
    """

    template_fields: Sequence[str] = (
        "model",
        "source",
        "output_uri",
        "prompt",
        "system_instruction",
        "config",
        "media",
        "key",
        "keep",
        "table",
        "reuse",
        "on_changed",
        "gemini_conn_id",
    )
    template_fields_renderers = {"config": "json", "source.sql": "sql"}  # noqa: RUF012 - Airflow's own form
    ui_color = "#e8eefc"
    ui_fgcolor = "#1a3a8f"
    operator_extra_links = tuple(link() for link in LINKS)
    _checks: ClassVar[Mapping[str, Check]] = CHECKS
    _own_checks: ClassVar[Mapping[str, Check]] = {}  # of a subclass's own parameters, which it has checked itself
    _rows = "source"  # the parameter that says what is asked

    def __init__(
        self,
        *,
        model: str | Sequence[str],
        source: Any,
        output: str | os.PathLike[str],
        prompt: str | Mapping[str, str] | None = None,
        system_instruction: Any = None,
        config: Any = None,
        output_schema: Any = None,
        media: str | Sequence[str] = (),
        key: str | None = None,
        keep: Sequence[str] | Mapping[str, str | None] = (),
        table: SqlTable | None = None,
        file_format: str = "parquet",
        include: Sequence[str] = (),
        include_raw: bool = False,
        limits: Limits | None = None,
        canary: int = 0,
        budget: Budget | None = None,
        prices: Mapping[str, Any] | None = None,
        assumed_output_tokens: int | None = None,
        count_tokens: int = 0,
        max_rounds: int | None = None,
        redo: Sequence[str] | Mapping[str, Any] = (),
        max_failed_ratio: float | None = None,
        timeout: timedelta | float = 48 * 3600,
        pending_timeout: timedelta | float | None = None,
        on_timeout: str = "cancel",
        split: int = 1,
        quota_timeout: timedelta | float = 24 * 3600,
        poll_interval: timedelta | float | None = None,
        reuse: str = "auto",
        on_changed: str = "fail",
        on_empty: str = "skip",
        delete_remote: str | None = None,
        deferrable: bool | None = None,
        cancel_on_kill: bool = True,
        gemini_conn_id: str = settings.CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.model = model
        self.source = as_data(as_uri(source))
        self.output_uri = as_uri(output)  # BaseOperator has an ``output`` of its own: the task's XCom
        self.prompt = prompt
        self.system_instruction = system_instruction
        self.config = config
        self.output_schema = output_schema
        self.media = media
        self.key = key
        self.keep = keep
        self.table = table
        self.file_format = file_format
        self.include = include
        self.include_raw = include_raw
        self.limits = limits
        self.canary = canary
        self.budget = budget
        self.prices = prices
        self.assumed_output_tokens = assumed_output_tokens
        self.count_tokens = count_tokens
        self.max_rounds = max_rounds
        self.redo = redo
        self.max_failed_ratio = max_failed_ratio
        self.timeout = as_seconds(timeout)
        self.pending_timeout = as_seconds(pending_timeout)
        self.on_timeout = on_timeout
        self.split = split
        self.quota_timeout = as_seconds(quota_timeout)
        self.poll_interval = as_seconds(settings.poll_interval(poll_interval))
        self.reuse = reuse
        self.on_changed = on_changed
        self.on_empty = on_empty
        self.delete_remote = settings.delete_remote(delete_remote)
        self.deferrable = settings.deferrable(deferrable)
        self.cancel_on_kill = cancel_on_kill
        self.gemini_conn_id = gemini_conn_id
        check_given(self, self._checks)

    # What the core needs -----------------------------------------------------------------------------------

    def _run(self, context: Context) -> Run:
        from airflow_gemini_batch.core.attempt import Run
        from airflow_gemini_batch.core.layout import OutputDirectory
        from airflow_gemini_batch.core.schema import OutputSchema
        from airflow_gemini_batch.paths import resolve

        self.output_uri = as_uri(self.output_uri)
        checks = {**self._checks, **self._own_checks}
        checks.pop(self._rows, None)  # checked when it is opened: a run that is planned already does not do that
        check_settings(self, checks, running=True)
        ti, run_id = context["ti"], run_id_of(context)
        schema = OutputSchema.of(self.output_schema) if self.output_schema is not None else None
        return Run(
            id=run_id,
            source=self._open_source,
            spec=self._spec(schema),
            output=OutputDirectory(resolve(self.output_uri)),
            policy=self._policy(),
            clears=ti.max_tries if isinstance(getattr(ti, "max_tries", None), int) else None,
            schema=schema,
            loader=self._loader(run_id),
        )

    def _loader(self, run: RunId) -> Loader | None:
        if self.table is None:
            return None
        from airflow_gemini_batch.sql.loader import TableLoader

        return TableLoader(self.table, str(run))

    def _spec(self, schema: OutputSchema | None) -> Spec:
        from airflow_gemini_batch.core.config import generation_settings
        from airflow_gemini_batch.core.requests import Spec

        template, per_row = generation_settings(self.config, self.system_instruction, schema)
        return Spec(
            model=self._models()[0],
            fallbacks=self._models()[1:],
            prompt=self.prompt,
            template=template,
            key=self.key or None,
            keep=tuple(self.keep or ()),
            types=_types(self.keep),
            per_row=per_row,
            media=self._media(),
            output_schema=schema.json_schema if schema else None,
        )

    def _policy(self) -> Policy:
        from airflow_gemini_batch.core.attempt import Policy
        from airflow_gemini_batch.core.limits import Limits

        return Policy(
            file_format=self.file_format,
            include=tuple(self.include or ()),
            include_raw=self.include_raw,
            limits=self.limits or Limits(),
            canary=self.canary,
            budget=self.budget,
            prices=self._prices(),
            assumed_output_tokens=self.assumed_output_tokens,
            count_tokens=self.count_tokens,
            max_rounds=self._rounds(),
            redo=self._redo(),
            max_failed_ratio=self.max_failed_ratio,
            timeout=self.timeout,
            pending_timeout=self.pending_timeout,
            on_timeout=self.on_timeout,
            split=self.split,
            quota_timeout=self.quota_timeout,
            reuse=self.reuse,
            on_changed=self.on_changed,
            on_empty=self.on_empty,
            delete_remote=self.delete_remote,
        )

    def _models(self) -> tuple[str, ...]:
        given = [self.model] if isinstance(self.model, str) else self.model
        return tuple(one.strip().removeprefix("models/") for one in given)

    def _media(self) -> tuple[str, ...]:
        return ((self.media,) if self.media else ()) if isinstance(self.media, str) else tuple(self.media or ())

    def _rounds(self) -> int:
        models = 1 if isinstance(self.model, str) else len(self.model)
        return max(2, models) if self.max_rounds is None else self.max_rounds

    def _prices(self) -> PriceTable:
        """The operator's own prices before those of the connection."""
        from airflow_gemini_batch.core.prices import PriceTable

        table = self._hook().prices
        return PriceTable.parse(self.prices).over(table) if self.prices is not None else table

    def _redo(self) -> dict[str, dict[str, Any]]:
        from airflow_gemini_batch.core.config import request_template

        given = self.redo if isinstance(self.redo, Mapping) else dict.fromkeys(self.redo or ())
        return {status: request_template(fields, None) if fields else {} for status, fields in given.items()}

    def _open_source(self) -> FileSource | RecordSource:
        from airflow_gemini_batch.core.parquet import is_table, records_of
        from airflow_gemini_batch.core.rows import FileSource, RecordSource, is_known
        from airflow_gemini_batch.paths import expand

        self.source = as_uri(self.source)
        rows(self._rows, self.source)
        if isinstance(self.source, str):
            return FileSource(expand(self.source))
        if is_table(self.source):
            return RecordSource(records_of(self.source))
        if not isinstance(self.source, Iterable):
            return RecordSource(self.source.records())
        # A lazy sequence of mapped outputs is read again to name a duplicate: keep what it gave. Each may be a list of rows.
        records = [row for one in self.source for row in (one if isinstance(one, list) else [one])]
        self.source = records
        names = [one for one in records if isinstance(one, str) and is_known(one) and len(one.split()) == 1]
        if records and len(names) == len(records):
            raise InvalidConfig(
                f"{self._rows} is a list of file names ({names[0]!r}, ...), which would be sent as texts. Give one URI; "
                "for several files a pattern, such as '/data/*.csv' or '/data/{a,b}.csv', or their directory. Should the "
                'names be asked about, give mappings: {"text": name}.'
            )
        return RecordSource(records)

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """Called by Airflow's OpenLineage provider, if there is one."""
        from airflow_gemini_batch.lineage import facets

        return facets(self, self._landed)


def _types(keep: Any) -> dict[str, str]:
    """
    Kept column → its kind, of those that ``keep`` gives a type.

    :raises InvalidConfig: there is no such type.
    """
    from airflow_gemini_batch.core.kinds import arrow_type, kind_of

    kinds = {}
    for name, kind in keep.items() if isinstance(keep, Mapping) else ():
        if kind is not None:
            try:
                kinds[name] = kind_of(arrow_type(str(kind)))
            except InvalidConfig as e:
                raise InvalidConfig(f"keep has for {name!r} a type that there is not: {e}") from e
    return kinds


def run_id_of(context: Context) -> RunId:
    """Which task instance this is, whatever its try."""
    from airflow_gemini_batch.core.names import RunId

    ti = context["ti"]
    return RunId(ti.dag_id, ti.task_id, ti.run_id, ti.map_index if isinstance(ti.map_index, int) else -1)
