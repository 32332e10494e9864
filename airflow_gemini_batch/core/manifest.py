"""The small JSON that says where the results are. Written last: who finds it may trust every file that it names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from airflow_gemini_batch.core import documents, storage
from airflow_gemini_batch.core.layout import OutputDirectory
from airflow_gemini_batch.core.usage import Usage
from airflow_gemini_batch.exceptions import CountsDoNotAddUp

SHOWN = 20
"""Files and jobs listed in the task's XCom value; the manifest on storage lists them all."""


@dataclass(frozen=True)
class Manifest:
    """
    :param output: the directory.
    :param files: URIs of the landed files; one row per key over all of them.
    :param counts: rows by status, all statuses, summing to ``rows``.
    :param jobs: name, slot, state and requests of every job.
    :param cost: ``estimated_usd``, ``actual_usd``, ``prices_as_of``; null where a price is unknown, never 0.
    :param odd_lines: lines of the service's results that belong to no row.
    :param failure: why the task failed although everything was landed, else None.
    """

    run: Mapping[str, Any]
    plan: int
    output: str
    files: tuple[str, ...]
    file_format: str
    model: str
    rows: int
    counts: Mapping[str, int]
    rounds: int
    jobs: tuple[Mapping[str, Any], ...]
    usage: Usage
    cost: Mapping[str, Any]
    odd_lines: Mapping[str, int]
    started_at: str
    finished_at: str
    manifest: str
    failure: str | None = None

    def __post_init__(self) -> None:
        if sum(self.counts.values()) != self.rows:
            raise CountsDoNotAddUp(f"{self.output}: {dict(self.counts)} is not {self.rows} rows.")

    def write(self, output: OutputDirectory) -> None:
        storage.publish(output.manifest, documents.dump("manifest", asdict(self)))

    @classmethod
    def load(cls, output: OutputDirectory) -> Manifest | None:
        """Return the manifest, None when the run certainly has not finished."""
        body = documents.read("manifest", output.manifest)
        if body is None:
            return None
        with documents.understood(output.manifest):
            fields = documents.known(cls, body)
            usage, files, jobs = Usage(**fields["usage"]), tuple(fields["files"]), tuple(fields["jobs"])
            return cls(**fields | {"usage": usage, "files": files, "jobs": jobs})

    def to_xcom(self) -> dict[str, Any]:
        """The task's return value: plain JSON, small whatever the batch's size."""
        body = asdict(self)
        return body | {
            "version": documents.VERSION,
            "files": list(self.files[:SHOWN]),
            "files_count": len(self.files),
            "jobs": [dict(job) for job in self.jobs[:SHOWN]],
            "jobs_count": len(self.jobs),
        }
