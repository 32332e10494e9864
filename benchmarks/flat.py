"""
Peak memory and local disk of a whole run: a task's process, the emulator and an S3 service, each a process of its own.

    python benchmarks/flat.py --gigabytes 2 --storage s3
    python benchmarks/flat.py --gigabytes 2 --storage local --source parquet

The source has one column of text; prompts and answers are each as large as asked for in all. Limits: 300 MB of memory for the
task and for the emulator, and on object stores local disk of two shards for the task (a shard is what one job takes, or
brings). Files that are deleted but still open count as disk; they are found by their descriptors. The S3 service is moto's,
which reads a whole object for each piece of it that is asked for: that is why the shards here are many and small.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MEGABYTE = 1e6
MEMORY_LIMIT = 300e6
SHARDS_ON_DISK = 2.0
BUCKET = "lake"
KEYS = {"aws_access_key_id": "k", "aws_secret_access_key": "s", "region_name": "us-east-1"}

TASK = """
import json, sys, time
from types import SimpleNamespace
from airflow_gemini_batch.core.shards import Limits
from airflow_gemini_batch.operators.batch import GeminiBatchOperator

settings = json.loads(sys.argv[1])
limits = Limits(**settings.pop("limits"))
operator = GeminiBatchOperator(task_id="flat", limits=limits, deferrable=False, poll_interval=0.5, **settings)
ti = SimpleNamespace(dag_id="flat", task_id="flat", run_id="r1", map_index=-1, try_number=1, max_tries=0)
began = time.monotonic()
manifest = operator.execute({"ti": ti})
with open(sys.argv[2], "w") as told:
    json.dump({"manifest": manifest, "seconds": time.monotonic() - began}, told)
sys.stdin.readline()  # so that its peak can still be read
"""


@dataclass
class Peaks:
    """
    What was seen of one process.

    :param memory: resident bytes, at their peak.
    :param libraries: those of them that are pages of mapped files. Processes share them, the kernel may drop them; how many
        there are hangs on its page cache: for the same code 58 to 105 MB were seen.
    :param disk: bytes in its temporary directory, deleted files that are open included.
    """

    memory: float = 0
    libraries: float = 0
    disk: float = 0

    @property
    def own(self) -> float:
        return self.memory - self.libraries


@dataclass
class Measured:
    task: Peaks
    emulator: Peaks
    shard: float
    seconds: float
    manifest: dict[str, Any]
    log: str = field(repr=False)

    @property
    def shards_on_disk(self) -> float:
        return self.task.disk / self.shard


def measure(
    gigabytes: float,
    *,
    storage: str = "s3",
    source: str = "jsonl",
    file_format: str = "parquet",
    shards: int = 20,
    row_bytes: int = 20_000,
) -> Measured:
    """
    Run one task over a source of this size, with answers of the same size in all.

    :param storage: where source and output lie: ``s3`` or ``local``.
    :param source: ``jsonl`` or ``parquet`` (one row group, as many writers make it).
    :param shards: jobs that the rows are spread over, and files of the source.
    """
    with ExitStack() as stack:
        home = Path(tempfile.mkdtemp(prefix="flat-"))
        stack.callback(shutil.rmtree, home, ignore_errors=True)
        rows = int(gigabytes * 1e9 / row_bytes)
        airflow = home / "airflow"
        env = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")} | {
            "AIRFLOW_HOME": str(airflow), "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{airflow}/airflow.db",
        }  # fmt: skip
        emulator, url = _emulator(stack, home, env, row_bytes)
        place = str(home / "lake")
        if storage == "s3":
            place = _s3(stack, home, env)
        for number in range(shards):  # moto reads a whole object for each piece of it that is asked for
            first, last = (rows * n // shards for n in (number, number + 1))
            _write_source(place, f"{number:04}.{source}", range(first, last), row_bytes, env)
        env["AIRFLOW_CONN_GEMINI_BATCH_DEFAULT"] = json.dumps(
            {"conn_type": "gemini_batch", "host": url, "password": "any", "extra": {"timeout": 600}}
        )
        settings = {
            "model": "gemini-2.5-flash", "source": f"{place}/rows/*.{source}", "prompt": "{text}",
            "output": f"{place}/out", "file_format": file_format,
            "limits": {"requests_per_job": -(-rows // shards), "bytes_per_job": 1_900_000_000},
        }  # fmt: skip
        task_tmp = home / "task"
        task_tmp.mkdir()
        result = home / "result.json"
        with (home / "log").open("wb") as log:
            task = subprocess.Popen(
                [sys.executable, "-c", TASK, json.dumps(settings), str(result)],
                env=env | {"TMPDIR": str(task_tmp)}, stdin=subprocess.PIPE, stdout=log, stderr=log,
            )  # fmt: skip
            with _watching(task.pid, task_tmp) as of_task, _watching(emulator.pid, home / "emulator") as of_emulator:
                while task.poll() is None and not (result.exists() and result.stat().st_size):
                    time.sleep(0.1)
            task.communicate(b"\n")
        text = (home / "log").read_text(errors="replace")
        if task.returncode:
            raise RuntimeError(f"the task ended with {task.returncode}:\n{text[-5000:]}")
        told = json.loads(result.read_text())
        assert told["manifest"]["counts"]["ok"] == rows
        shard = gigabytes * 1e9 / shards
        return Measured(of_task, of_emulator, shard, told["seconds"], told["manifest"], text)


def _emulator(stack: ExitStack, home: Path, env: dict[str, str], answer: int) -> tuple[subprocess.Popen[bytes], str]:
    directory = home / "emulator"
    directory.mkdir()
    (home / "options.json").write_text(json.dumps({"answer_bytes": answer}))
    ready = home / "ready"
    process = subprocess.Popen(
        [
            sys.executable, "-m", "airflow_gemini_batch.emulator", "--port", "0", "--ready-file", str(ready),
            "--options", str(home / "options.json"),
        ],
        env=env | {"TMPDIR": str(directory)}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    stack.callback(_end, process)
    while not ready.exists():
        time.sleep(0.05)
    return process, ready.read_text()


def _s3(stack: ExitStack, home: Path, env: dict[str, str]) -> str:
    import boto3
    from botocore.exceptions import EndpointConnectionError

    directory = home / "moto"
    directory.mkdir()
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    with (home / "moto.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            env=env | {"TMPDIR": str(directory)}, stdout=log, stderr=log,
        )  # fmt: skip
    stack.callback(_end, process)
    url = f"http://127.0.0.1:{port}"
    while True:
        try:
            boto3.client("s3", endpoint_url=url, **KEYS).create_bucket(Bucket=BUCKET)
            break
        except EndpointConnectionError:
            time.sleep(0.2)
    extra = {"endpoint_url": url, "region_name": "us-east-1"}
    env["AIRFLOW_CONN_LAKE_S3"] = json.dumps({"conn_type": "aws", "login": "k", "password": "s", "extra": extra})
    env["FLAT_S3"] = url
    return f"s3://lake_s3@{BUCKET}"


def _write_source(place: str, name: str, rows: range, row_bytes: int, env: dict[str, str]) -> None:
    """A local file; on S3 it is put from there."""
    on_s3 = place.startswith("s3:")
    directory = Path(tempfile.mkdtemp(prefix="flat-")) if on_s3 else Path(place) / "rows"
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    texts = (f"{n} " + "word " * ((row_bytes - 60) // 5) for n in rows)
    if name.endswith(".parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        # One row group, and nothing that makes it small.
        pq.write_table(pa.table({"text": list(texts)}), path, compression="none", use_dictionary=False)
    else:
        with path.open("w") as f:
            f.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    if on_s3:
        import boto3

        boto3.client("s3", endpoint_url=env["FLAT_S3"], **KEYS).upload_file(str(path), BUCKET, f"rows/{name}")
        shutil.rmtree(directory)


@contextmanager
def _watching(pid: int, directory: Path) -> Iterator[Peaks]:
    peaks, stop = Peaks(), threading.Event()

    def watch() -> None:
        while not stop.wait(0.1):
            peaks.disk = max(peaks.disk, _disk(pid, directory))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peaks
    finally:
        stop.set()
        thread.join()
        with suppress(OSError):  # it has ended badly, and will say so
            peaks.memory, peaks.libraries = _memory(pid)


def _memory(pid: int) -> tuple[float, float]:
    """The most that was ever resident, and what is resident of files, in bytes, by the kernel's own account."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    highest, of_files = (int(status[name].split()[0]) * 1024.0 for name in ("VmHWM", "RssFile"))
    return highest, of_files


def _disk(pid: int, directory: Path) -> float:
    files: dict[tuple[int, int], int] = {}
    try:
        open_files = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        open_files = []
    for path in (*directory.rglob("*"), *open_files):
        try:
            if path in open_files and not os.readlink(path).startswith(str(directory)):  # noqa: PTH115 - may be deleted
                continue
            facts = path.stat()
            files[facts.st_dev, facts.st_ino] = facts.st_blocks * 512
        except OSError:
            continue
    return sum(files.values())


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main() -> int:
    from measuring import record

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--storage", choices=("s3", "local"), default="s3")
    parser.add_argument("--source", choices=("jsonl", "parquet"), default="jsonl")
    parser.add_argument("--file-format", choices=("parquet", "jsonl", "csv"), default="parquet")
    parser.add_argument("--shards", type=int, default=20)
    parser.add_argument("--row-bytes", type=int, default=20_000)
    args = parser.parse_args()
    measured = measure(**vars(args))
    for name, peaks in (("task", measured.task), ("emulator", measured.emulator)):
        print(
            f"{name:9} {peaks.memory / MEGABYTE:7.0f} MB memory, {peaks.libraries / MEGABYTE:.0f} of it mapped files "
            f"{peaks.disk / MEGABYTE:9.0f} MB temporary disk"
        )
        memory = f"{peaks.memory / MEGABYTE:.0f} MB"
        figure = f"{args.gigabytes:g} GB in and out on {args.storage}: memory of the {name}"
        record(figure, memory, f"{peaks.memory / MEMORY_LIMIT:.2f} of {MEMORY_LIMIT / MEGABYTE:.0f} MB", "1")
    print(
        f"shard     {measured.shard / MEGABYTE:7.0f} MB; the task had {measured.shards_on_disk:.2f} on local disk at most"
    )
    print(f"{measured.manifest['rows']:,} rows in {measured.seconds:.0f} s, {measured.manifest['jobs_count']} jobs")
    flat = measured.task.memory <= MEMORY_LIMIT and measured.emulator.memory <= MEMORY_LIMIT
    return 0 if flat and (args.storage == "local" or measured.shards_on_disk <= SHARDS_ON_DISK) else 1


if __name__ == "__main__":
    sys.exit(main())
