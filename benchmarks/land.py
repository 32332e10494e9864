"""
Landing result lines to Parquet, beside a bare loop that reads the file and ``orjson.loads`` each line.

    python benchmarks/land.py --megabytes 1000

Ours is ``collecting.land`` on raw results that are on storage already, one job of 50,000 lines after the other: every line
under its row, statuses, token sums, lines that belong to no row, Parquet parts synced to disk, the ledger. ``shuffled`` is
the same with each job's lines in another order, ``missing`` with one line in a hundred left out.
"""

from __future__ import annotations

import argparse
import itertools
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from measuring import Clock, in_turn, report, table, text

if TYPE_CHECKING:
    from airflow_gemini_batch.core.attempt import Attempt
    from airflow_gemini_batch.core.requests import Request

LINES = 50_000
VARIANTS = ("ours", "shuffled", "missing")


def line(source: random.Random, number: int, answer: str) -> bytes:
    import orjson

    asked, said = source.randint(50, 900), source.randint(30, 90)
    response = {
        "candidates": [{
            "content": {"parts": [{"text": answer}], "role": "model"}, "finishReason": "STOP", "index": 0,
            "avgLogprobs": -source.random(),
        }],
        "usageMetadata": {
            "promptTokenCount": asked, "candidatesTokenCount": said, "totalTokenCount": asked + said,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": asked}], "trafficType": "ON_DEMAND",
        },
        "modelVersion": "gemini-2.5-flash", "responseId": f"{source.getrandbits(96):024x}",
    }  # fmt: skip
    return orjson.dumps({"key": f"review-{number:09d}", "response": response}, option=orjson.OPT_APPEND_NEWLINE)


def make(directory: Path, megabytes: int) -> None:
    source = random.Random(1)
    answers = [text(source, 34) for _ in range(20_000)]
    total = size = 0
    with (directory / "results.jsonl").open("wb") as f:
        while size < megabytes * 1_000_000:
            size += f.write(line(source, total, f"{answers[total % len(answers)]} {total}"))
            total += 1


def limit(directory: Path) -> Clock:
    import orjson

    clock = Clock()
    with clock.running(), (directory / "results.jsonl").open("rb") as f:
        for one in f:
            orjson.loads(one)
    return clock


def attempt_in(directory: Path) -> Attempt:
    import pyarrow.compute
    import pyarrow.json
    import pyarrow.parquet  # noqa: F401  # a worker has them already

    from airflow_gemini_batch.core.attempt import Attempt, Policy, Run, Services
    from airflow_gemini_batch.core.layout import OutputDirectory
    from airflow_gemini_batch.core.names import RunId
    from airflow_gemini_batch.core.plan import Plan
    from airflow_gemini_batch.core.requests import Spec
    from airflow_gemini_batch.core.rows import RecordSource
    from airflow_gemini_batch.core.shards import Limits

    spec, run_id = Spec("gemini-2.5-flash", "{body}", key="id", keep=("stars",)), RunId("dag", "task", "run")
    run = Run(
        run_id,
        lambda: RecordSource(()),
        spec,
        OutputDirectory(directory),
        Policy(limits=Limits(requests_per_job=LINES)),
    )
    plan = Plan(1, "work", run_id, spec.to_dict(), 0, {"stars": "int64"}, "2026-01-01T00:00:00Z")
    plan.commit(run.output)
    return Attempt(run, plan, Services(client=None))  # type: ignore[arg-type]  # landing asks no service


def prepare(directory: Path, variant: str) -> None:
    """Write what planning and fetching leave behind. In a process of its own, so that its memory is not ours."""
    from airflow_gemini_batch.core.plan import Round
    from airflow_gemini_batch.core.requests import Request
    from airflow_gemini_batch.core.shards import write_shards

    attempt, source = attempt_in(directory / variant), random.Random(2)

    def rows() -> Iterator[tuple[Request, str]]:
        for i, _ in enumerate((directory / "results.jsonl").open("rb")):
            yield Request(f"review-{i:09d}", b"{}\n", {"stars": i % 5}), ""

    shards = write_shards(rows(), attempt.work, 0, attempt.run.policy.limits)
    Round(0, 0, shards).commit(attempt.work)
    with (directory / "results.jsonl").open("rb") as results:
        for shard in shards:
            lines = list(itertools.islice(results, shard.rows))
            if variant == "shuffled":
                source.shuffle(lines)
            if variant == "missing":
                lines = [one for one in lines if source.random() > 0.01]
            path = attempt.work.results(shard.slot)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"".join(lines))


def ours(directory: Path, variant: str) -> Clock:
    from airflow_gemini_batch.core.collecting import Ending, land
    from airflow_gemini_batch.core.ledger import Submitted
    from airflow_gemini_batch.core.plan import Round

    attempt, clock = attempt_in(directory / variant), Clock()
    (one,) = Round.load_all(attempt.work)
    with clock.running():
        for shard in one.shards:
            submitted = Submitted(f"batches/{shard.slot}", "gemini-2.5-flash", "files/x", 0.0)
            landed = land(attempt, shard, submitted, Ending("SUCCEEDED"))
            assert sum(landed.counts.values()) + landed.unsettled_auto == shard.rows, landed
    return clock


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--directory", default=None, help="where the files go; default: a temporary one")
    parser.add_argument("--part", choices=("prepare", "limit", *VARIANTS))
    parser.add_argument("--made", type=Path)
    parser.add_argument("--variants", nargs="*", default=VARIANTS, choices=VARIANTS)
    asked = parser.parse_args()
    if asked.part == "prepare":
        make(asked.made, asked.megabytes)
        for variant in asked.variants:
            prepare(asked.made, variant)
        return
    if asked.part:
        report(limit(asked.made) if asked.part == "limit" else ours(asked.made, asked.part))
        return
    with tempfile.TemporaryDirectory(dir=asked.directory) as directory:
        command = (__file__, "--part", "prepare", "--made", directory, "--megabytes", str(asked.megabytes))
        subprocess.run([sys.executable, *command, "--variants", *asked.variants], check=True)
        lines = (Path(directory) / "results.jsonl").read_bytes().count(b"\n")
        results = in_turn(__file__, ("limit", *asked.variants), ("--made", directory), asked.repeat)
    print(f"landing {asked.megabytes:,} MB, {lines:,} lines, to Parquet; median of {asked.repeat}")
    figure = f"land {asked.megabytes:,} MB of results to Parquet"
    table(results, "limit", lines, figure=figure, aim="0.7 of the limit, 300 MB")


if __name__ == "__main__":
    main()
