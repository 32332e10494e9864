"""The small JSON that says where the results are. Written last: who finds it may trust every file that it names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
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
    :param by_round: of each round: model, rows, jobs, settled rows by status, unsettled ones, tokens, cost.
    :param jobs: name, slot, state and requests of every job.
    :param cost: ``estimated_usd`` (of what was sent), ``actual_usd``, ``prices_as_of``; null where unknown, never 0: a model
        without a known price, an answer that does not say what it used, a job that was given up and may have run on.
    :param estimate: tokens and cost as they were expected before anything was sent, and how that was reckoned.
    :param failures: URI of the rows that are not ok, as ready-made requests; None if there are none, or none
        of which the request is known: jobs that somebody else made.
    :param news: what this landing added, for metrics: rows by status, tokens by kind, jobs. Not kept.
    :param odd_lines: lines of the service's results that belong to no row.
    :param budget: the limits that were in force, None if there were none.
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
    by_round: tuple[Mapping[str, Any], ...] = ()
    estimate: Mapping[str, Any] = field(default_factory=dict)
    failures: str | None = None
    budget: Mapping[str, Any] | None = None
    news: Mapping[str, Mapping[str, int]] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if sum(self.counts.values()) != self.rows:
            raise CountsDoNotAddUp(f"{self.output}: {dict(self.counts)} is not {self.rows} rows.")

    def _facts(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "news"}

    def write(self, output: OutputDirectory) -> None:
        storage.publish(output.manifest, documents.dump("manifest", self._facts()))

    @classmethod
    def load(cls, output: OutputDirectory) -> Manifest | None:
        """Return the manifest, None when the run certainly has not finished."""
        body = documents.read("manifest", output.manifest)
        if body is None:
            return None
        with documents.understood(output.manifest):
            fields = documents.known(cls, body)
            usage, files, jobs = Usage(**fields["usage"]), tuple(fields["files"]), tuple(fields["jobs"])
            by_round = tuple(fields.get("by_round", ()))
            return cls(**fields | {"usage": usage, "files": files, "jobs": jobs, "by_round": by_round})

    def to_xcom(self) -> dict[str, Any]:
        """The task's return value: plain JSON, small whatever the batch's size."""
        return self._facts() | {
            "version": documents.VERSION,
            "files": list(self.files[:SHOWN]),
            "files_count": len(self.files),
            "jobs": [dict(job) for job in self.jobs[:SHOWN]],
            "jobs_count": len(self.jobs),
            "by_round": [dict(one) for one in self.by_round[-SHOWN:]],
        }
