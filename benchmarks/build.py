"""
Building requests from Parquet, beside a bare loop of ``orjson.dumps`` over the same requests as dicts.

    python benchmarks/build.py --rows 1000000

Ours is all that planning does: read the file, write request shards and rows files (synced to disk), fingerprints, the check
for duplicate keys, kept columns' types, the plan. The limit's clock runs in the loop alone: its dicts are made outside of
it, and nothing is written.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path

from measuring import Clock, in_turn, report, table, text

PROMPT = "Summarise this review in one sentence.\nTitle: {title}\nReview: {body}"
TEMPLATE = {"generationConfig": {"temperature": 0, "maxOutputTokens": 256}}


def make(path: Path, rows: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    source, writer = random.Random(1), None
    bodies = [text(source, 45) for _ in range(20_000)]
    for start in range(0, rows, 100_000):
        numbers = range(start, min(rows, start + 100_000))
        batch = pa.table({
            "review_id": [f"review-{n:09d}" for n in numbers],
            "title": [text(source, 5) for _ in numbers],
            "body": [f"{bodies[n % len(bodies)]} {n}" for n in numbers],
            "stars": [n % 5 for n in numbers],
            "unused": [n / 7 for n in numbers],
        })  # fmt: skip
        writer = writer or pq.ParquetWriter(path, batch.schema)
        writer.write_table(batch)
    writer.close()


def limit(path: Path) -> Clock:
    import orjson
    import pyarrow.parquet as pq

    clock = Clock()
    for batch in pq.ParquetFile(path).iter_batches(4096, columns=["review_id", "title", "body"]):
        dicts = [
            {
                "key": row["review_id"],
                "request": {
                    "contents": [{
                        "parts": [{"text": PROMPT.format(title=row["title"], body=row["body"])}], "role": "user",
                    }],
                    **TEMPLATE,
                },
            }
            for row in batch.to_pylist()
        ]  # fmt: skip
        with clock.running():
            for one in dicts:
                orjson.dumps(one)
    return clock


def ours(path: Path) -> Clock:
    import pyarrow.compute  # a worker has them already
    import pyarrow.parquet  # noqa: F401

    from airflow_gemini_batch.core.attempt import Policy, Run, Services
    from airflow_gemini_batch.core.layout import OutputDirectory
    from airflow_gemini_batch.core.names import RunId
    from airflow_gemini_batch.core.planning import find_or_make_plan
    from airflow_gemini_batch.core.requests import Spec
    from airflow_gemini_batch.core.rows import FileSource

    spec = Spec("gemini-2.5-flash", PROMPT, TEMPLATE, "review_id", ("stars",))
    clock = Clock()
    with tempfile.TemporaryDirectory(dir=path.parent) as directory:
        output = OutputDirectory(Path(directory))
        run = Run(RunId("dag", "task", "run"), lambda: FileSource((path,)), spec, output, Policy())
        services = Services(client=None)  # type: ignore[arg-type]  # planning asks no service
        with clock.running():
            find_or_make_plan(run, services, starting=True)
    return clock


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--directory", default=None, help="where the files go; default: a temporary one")
    parser.add_argument("--part", choices=("limit", "ours"))
    parser.add_argument("--file", type=Path)
    asked = parser.parse_args()
    if asked.part:
        report({"limit": limit, "ours": ours}[asked.part](asked.file))
        return
    with tempfile.TemporaryDirectory(dir=asked.directory) as directory:
        path = Path(directory) / "reviews.parquet"
        make(path, asked.rows)
        results = in_turn(__file__, ("limit", "ours"), ("--file", str(path)), asked.repeat)
    print(f"building {asked.rows:,} requests from Parquet, median of {asked.repeat}")
    table(
        results, "limit", asked.rows, figure=f"build {asked.rows:,} requests from Parquet", aim="1 of the limit, 300 MB"
    )


if __name__ == "__main__":
    main()
