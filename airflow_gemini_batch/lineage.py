"""
What OpenLineage is told of a landed run: where rows came from, where answers went, and how many of which kind.

Imported only by a task whose deployment asks for lineage; Airflow's OpenLineage provider calls the operator then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_gemini_batch.operators.batch import GeminiBatchOperator

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
    Return Airflow's ``OperatorLineage``.

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

    from airflow_gemini_batch.sql.query import SqlQuery

    def dataset(kind: Any, uri: str, **more: Any) -> Any:
        namespace, name = place(uri)
        return kind(namespace=namespace, name=name, **more)

    source = operator.source
    inputs = [dataset(InputDataset, source)] if isinstance(source, str) and source else []
    jobs = {"sql": sql_job.SQLJobFacet(query=source.sql)} if isinstance(source, SqlQuery) else {}
    if manifest is None:
        return OperatorLineage(inputs=inputs, job_facets=jobs)
    statistics = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
        rowCount=manifest["rows"], fileCount=manifest["files_count"]
    )
    landed = dataset(OutputDataset, manifest["output"], outputFacets={"outputStatistics": statistics})
    return OperatorLineage(
        inputs=inputs, outputs=[landed], run_facets={"gemini_batch": _run_facet(manifest)}, job_facets=jobs
    )


def _run_facet(manifest: Mapping[str, Any]) -> Any:
    import attr
    from openlineage.client.facet_v2 import RunFacet  # type: ignore[import-not-found,unused-ignore]

    facet = attr.make_class("GeminiBatchRunFacet", [*TOLD], bases=(RunFacet,), kw_only=True)
    return facet(**{name: manifest[name] for name in TOLD})
