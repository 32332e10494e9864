"""What a run tells Airflow beside its result: links, asset events, lineage. Knows the manifest; decides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow_gemini_batch.links.batch import (
    GeminiJobLink,
    GeminiManifestLink,
    GeminiOutputLink,
    job_url,
    push,
    push_place,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

SUMMARY = (
    "output", "manifest", "file_format", "model", "rows", "counts", "files_count", "rounds", "usage", "cost", "started_at",
    "finished_at",
)  # fmt: skip
"""Of a manifest, what fits into an asset event: all but its lists."""


def show_nothing_yet(context: Any, links: Iterable[Any]) -> None:
    """Airflow asks for every link whenever the task leaves its worker, and logs an error for one that was never pushed."""
    for link in links:
        push(context, link, "")


def show_waiting(context: Any, output: object, jobs: Iterable[str]) -> None:
    """Links for while the task waits: Airflow itself stores them only when it has ended."""
    for job in jobs:
        push(context, GeminiJobLink, job_url(job))
        break
    push_place(context, GeminiOutputLink, str(output))


def show_landed(context: Any, output: object, manifest: str, jobs: Iterable[str]) -> None:
    show_waiting(context, output, jobs)
    push_place(context, GeminiManifestLink, manifest)


def announce(context: Any, outlets: Iterable[object], manifest: Mapping[str, Any]) -> None:
    """Put the manifest's summary into the ``extra`` of each outlet's event: who is scheduled on it finds the results."""
    events = context.get("outlet_events")
    if events is None:
        return
    from airflow.sdk import Asset
    from airflow.sdk.definitions.asset import AssetRef

    for outlet in outlets:
        if isinstance(outlet, Asset | AssetRef):  # an alias alone names no asset
            events[outlet].extra |= {name: manifest[name] for name in SUMMARY}


def measure(manifest: Mapping[str, Any], news: Mapping[str, Mapping[str, int]]) -> None:
    """Tell the metrics what they were not told before."""
    from airflow_gemini_batch.metrics import report

    report(manifest, news)
