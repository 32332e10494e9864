"""
A whole run over the emulator, beside a bare script that makes the service do the same work: upload, create, wait, download.

    python benchmarks/end_to_end.py --rows 100000

The emulator runs in a process of its own, and its jobs end as soon as their results are written. The limit sends the very
request file that our run sent, and only stores what comes back; the difference is what planning, bookkeeping and landing
cost on top of the service's own time. ``upload`` is our upload of one large file beside the SDK's of the same file.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

from measuring import Clock, in_turn, report, table, text

MODEL = "gemini-2.5-flash"


@contextmanager
def emulator() -> Iterator[str]:
    command = [sys.executable, "-m", "airflow_gemini_batch.emulator", "--port", "0", "--job-seconds", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = next(line for line in process.stdout if "http://" in line)
        try:
            yield "http://" + address.split("http://")[1].split()[0].rstrip("/.,")
        finally:
            process.terminate()


def make(directory: Path, rows: int) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = random.Random(1)
    bodies = [text(source, 40) for _ in range(997)]
    path = directory / "rows.parquet"
    pq.write_table(
        pa.table({"id": [f"r{n}" for n in range(rows)], "body": [bodies[n % 997] for n in range(rows)]}), path
    )
    return path


def ours(directory: Path, url: str, clock: Clock) -> None:
    os.environ |= {
        "AIRFLOW_HOME": str(directory / "airflow"),
        "AIRFLOW_CONN_GEMINI_BATCH_DEFAULT": json.dumps({"conn_type": "gemini_batch", "host": url, "password": "any"}),
    }
    from google import genai  # noqa: F401 - as in the limit, its import is not what is measured

    from airflow_gemini_batch.operators.batch import GeminiBatchOperator

    operator = GeminiBatchOperator(
        task_id="t", model=MODEL, source=str(directory / "rows.parquet"), prompt="Sum up:\n{body}", key="id",
        output=str(directory / f"out-{time.time_ns()}"), deferrable=False, poll_interval=0.2, delete_remote="never",
    )  # fmt: skip
    ti = SimpleNamespace(dag_id="d", task_id="t", run_id=str(time.time_ns()), map_index=-1, try_number=1, max_tries=0)
    with clock.running():
        manifest = operator.execute({"ti": ti})  # type: ignore[arg-type]
    assert manifest["counts"]["ok"] == manifest["rows"], manifest["counts"]


def bare(directory: Path, url: str, clock: Clock) -> None:
    """What the service itself takes, with the files of the newest run of ours."""
    from google import genai

    newest = max(directory.glob("out-*"))
    files = sorted(newest.glob("_gemini_batch/*/requests/*.jsonl"))
    with genai.Client(api_key="any", http_options={"base_url": url}) as client, clock.running():
        jobs = []
        for path in files:
            file = client.files.upload(file=str(path), config={"mime_type": "application/jsonl"})
            jobs.append(client.batches.create(model=MODEL, src=file.name))
        for job in jobs:
            while not job.done:
                time.sleep(0.2)
                job = client.batches.get(name=job.name)
            client.files.download(file=job.dest.file_name, destination=str(directory / "bare.jsonl"))


def upload_ours(directory: Path, url: str, clock: Clock) -> None:
    from airflow_gemini_batch.core.client import Client
    from airflow_gemini_batch.core.rest import Account

    client = Client(Account("any", url))
    assert client.sdk  # importing it takes most of a second, and is not what is measured
    with clock.running():
        client.upload(directory / "large.jsonl", file_id=f"ours-{time.time_ns()}", display_name="large")
    client.close()


def upload_sdk(directory: Path, url: str, clock: Clock) -> None:
    from google import genai

    with genai.Client(api_key="any", http_options={"base_url": url}) as client, clock.running():
        client.files.upload(file=str(directory / "large.jsonl"), config={"mime_type": "application/jsonl"})


PARTS = {"ours": ours, "service alone": bare, "upload, ours": upload_ours, "upload, SDK": upload_sdk}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--megabytes", type=int, default=500, help="size of the upload")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--made", type=Path)
    parser.add_argument("--url")
    asked = parser.parse_args()
    if asked.part:
        clock = Clock()
        PARTS[asked.part](asked.made, asked.url, clock)
        report(clock)
        return
    with tempfile.TemporaryDirectory() as place, emulator() as url:
        directory = Path(place)
        make(directory, asked.rows)
        with (directory / "large.jsonl").open("wb") as file:
            line = b'{"key":"%09d","request":{"contents":[{"parts":[{"text":"' + b"x" * 900 + b'"}]}]}}\n'
            for number in range(asked.megabytes * 1000):
                file.write(line % number)
        arguments = ("--made", place, "--url", url)
        runs = in_turn(__file__, ("ours", "service alone"), arguments, asked.repeat)
        uploads = in_turn(__file__, ("upload, ours", "upload, SDK"), arguments, asked.repeat)
    print(f"{asked.rows:,} rows from Parquet to Parquet; median of {asked.repeat}")
    figure = f"{asked.rows:,} rows from end to end"
    table(runs, "service alone", asked.rows, figure=figure, aim="the service's own time, 300 MB")
    print(f"uploading {asked.megabytes:,} MB; median of {asked.repeat}")
    figure = f"upload {asked.megabytes:,} MB"
    table(uploads, "upload, SDK", asked.megabytes, figure=figure, aim="the SDK's own upload")


if __name__ == "__main__":
    main()
