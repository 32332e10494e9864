"""
What OpenLineage is told of a landed run: where rows came from, where answers went, and how many of which kind.

Imported only by a task whose deployment asks for lineage; Airflow's OpenLineage provider calls the operator then.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from airflow_gemini_batch.sql.connecting import database
from airflow_gemini_batch.sql.query import SqlQuery
from airflow_gemini_batch.sql.table import SqlTable, parts_of

if TYPE_CHECKING:
    from airflow_gemini_batch.operators.batch import GeminiBatchOperator

log = logging.getLogger(__name__)

TOLD = ("counts", "usage", "cost", "model", "rounds", "jobs_count", "manifest")


def place(uri: str) -> tuple[str, str]:
    """
    Return a dataset's namespace and name: https://openlineage.io/docs/spec/naming.

    A connection id before the bucket is no part of the place.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme == "file":
        return "file", (rest if separator else uri) or "/"
    bucket, _, key = rest.rpartition("@")[2].partition("/")
    return f"{scheme}://{bucket}", key or "/"


def facets(operator: GeminiBatchOperator, manifest: Mapping[str, Any] | None) -> Any:
    """
    Return Airflow's ``OperatorLineage``. Of a database, tables are told where its hook says what they are called there.

    :param manifest: as in XCom; None if nothing was landed.
    """
    from airflow.providers.openlineage.extractors import (  # type: ignore[import-not-found,unused-ignore]
        OperatorLineage,
    )
    from openlineage.client.event_v2 import (  # type: ignore[import-not-found,unused-ignore]
        InputDataset,
        OutputDataset,
    )
    from openlineage.client.facet_v2 import (  # type: ignore[import-not-found,unused-ignore]
        output_statistics_output_dataset,
        sql_job,
    )

    def dataset(kind: Any, uri: str, **more: Any) -> Any:
        namespace, name = place(uri)
        return kind(namespace=namespace, name=name, **more)

    source, jobs = operator.source, {}
    inputs = [dataset(InputDataset, source)] if isinstance(source, str) and source else []
    if isinstance(source, SqlQuery):
        jobs["sql"] = sql_job.SQLJobFacet(query=source.sql)
        inputs = [InputDataset(namespace=one.namespace, name=one.name) for one in _tables_read(source)]
    if manifest is None:
        return OperatorLineage(inputs=inputs, job_facets=jobs)
    statistics = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
        rowCount=manifest["rows"], fileCount=manifest["files_count"]
    )
    landed = dataset(OutputDataset, manifest["output"], outputFacets={"outputStatistics": statistics})
    tables = _table_loaded(operator.table) if operator.table else []
    loaded = [OutputDataset(namespace=namespace, name=name) for namespace, name in tables]
    return OperatorLineage(
        inputs=inputs, outputs=[landed, *loaded], run_facets={"gemini_batch": _run_facet(manifest)}, job_facets=jobs
    )


def _tables_read(query: SqlQuery) -> list[Any]:
    """The datasets that a query reads, as the database's own operators tell them; none if that cannot be told."""
    from airflow.providers.openlineage.sqlparser import SQLParser  # type: ignore[import-not-found,unused-ignore]

    found: list[Any] = []
    with _asking(query.conn_id):
        hook, connection, info = _database(query.conn_id)
        if info is not None:
            parser = SQLParser(hook.get_openlineage_database_dialect(connection), hook.get_openlineage_default_schema())
            told = parser.generate_openlineage_metadata_from_sql(
                sql=query.sql, hook=hook, database_info=info, use_connection=False
            )
            found += told.inputs
    return found


def _table_loaded(table: SqlTable) -> list[tuple[str, str]]:
    """A table's namespace and name; none if that cannot be told."""
    from airflow.providers.openlineage.sqlparser import SQLParser

    found: list[tuple[str, str]] = []
    with _asking(table.conn_id):
        hook, _, info = _database(table.conn_id)
        if info is not None:
            parts = parts_of(table.name)
            schema = parts if len(parts) > 1 else (hook.get_openlineage_default_schema(), *parts)
            name = ".".join(part for part in (info.database if len(schema) < 3 else None, *schema) if part)
            found.append((SQLParser.create_namespace(info), name.upper() if info.is_uppercase_names else name))
    return found


def _database(conn_id: str) -> tuple[Any, Any, Any]:
    """A connection's hook, the connection, and what OpenLineage calls the database; None where its hook does not say."""
    hook: Any = database(conn_id)
    connection = hook.get_connection(conn_id)
    return hook, connection, hook.get_openlineage_database_info(connection)


@contextmanager
def _asking(conn_id: str) -> Iterator[None]:
    """The database may be away, or its hook unable to tell; the rest is told all the same."""
    try:
        yield
    except Exception as e:
        log.info("OpenLineage is not told of tables on %r: %s: %s", conn_id, type(e).__name__, e)


def _run_facet(manifest: Mapping[str, Any]) -> Any:
    import attr
    from openlineage.client.facet_v2 import RunFacet  # type: ignore[import-not-found,unused-ignore]

    facet = attr.make_class("GeminiBatchRunFacet", [*TOLD], bases=(RunFacet,), kw_only=True)
    return facet(**{name: manifest[name] for name in TOLD})
