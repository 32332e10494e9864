"""
``make demo``: the nightly reviews DAG on the emulator, through Airflow, with nothing to set up and no key.

Starts the emulator, gives Airflow a throw-away home, runs the DAG with ``airflow dags test`` (the task defers, its trigger
waits, the task resumes), and shows what landed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import unicodedata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
JOB_SECONDS, POLL_SECONDS = 15, 3
TAG = "example_nightly_reviews"


def main() -> int:
    home = Path(os.environ.get("DEMO_HOME", ".demo")).resolve()
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    emulator, url = start_emulator(home, JOB_SECONDS)
    try:
        print(f"The Gemini emulator runs at {url}. Airflow's home is {home}.", flush=True)
        code = run_dag(airflow_environment(home, url), home)
    finally:
        emulator.terminate()
        emulator.wait(10)
    manifests = sorted(home.glob("output/*/_gemini_batch/manifest.json"))
    if code or not manifests:
        print(f"The run failed; its whole log is {home / 'airflow.log'}", file=sys.stderr)
        return code or 1
    show(json.loads(manifests[-1].read_text()))
    return 0


def start_emulator(home: Path, job_seconds: float) -> tuple[subprocess.Popen[str], str]:
    """Start the emulator on a free port; returns its process and URL once it is ready."""
    log = (home / "emulator.log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "airflow_gemini_batch.emulator", "--port", "0", "--job-seconds", str(job_seconds)],
        stdout=subprocess.PIPE, stderr=log, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if "ready at " in line:
            return process, line.rpartition("ready at ")[2].strip()
    raise SystemExit(f"The emulator did not start; see {log.name}")


def airflow_environment(home: Path, url: str) -> dict[str, str]:
    connection = {"conn_type": "gemini_batch", "host": url, "password": "no-key-needed-here"}
    return os.environ | {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        "AIRFLOW__CORE__DAGS_FOLDER": str(HERE),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW_CONN_GEMINI_BATCH_DEFAULT": json.dumps(connection),
        "REVIEW_SUMMARIES": str(home / "output"),
        "POLL_INTERVAL": str(POLL_SECONDS),
        "NO_COLOR": "1",
    }


def run_dag(environment: dict[str, str], home: Path) -> int:
    """Run the DAG; its log goes to a file, the lines that a user looks for to the screen."""
    airflow = [sys.executable, "-m", "airflow"]
    print("Preparing Airflow's database ...", flush=True)
    with (home / "airflow.log").open("w") as log:
        code = subprocess.run(
            [*airflow, "db", "migrate"], env=environment, stdout=log, stderr=log, check=False
        ).returncode
        if code:
            return code
        print(f"airflow dags test {TAG}", flush=True)
        started = time.monotonic()
        process = subprocess.Popen(
            [*airflow, "dags", "test", TAG],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            log.flush()
            if told := worth_telling(line):
                print(f"  {time.monotonic() - started:5.1f} s  {told}", flush=True)
        return process.wait()


def worth_telling(line: str) -> str:
    """Our own log lines and the task's changes of state, without the frame that Airflow puts around them."""
    wanted = (
        "Planned ",
        "Uploaded ",
        "Created ",
        "batches/",
        "Fetched ",
        "Landed ",
        "Finished: ",
        "eferr",
        "ERROR",
        "[error",
    )
    if not any(word in line for word in wanted) or "HTTP Request" in line:
        return ""
    text = line.split("] ", 1)[-1] if line[:4].isdigit() else line
    return text.split(" [airflow", 1)[0].strip()[:200]


def show(manifest: dict[str, Any]) -> None:
    import pyarrow.parquet as pq

    rows = pq.read_table(manifest["output"]).to_pylist()
    print("\nManifest (the task's XCom value):")
    print(json.dumps({k: v for k, v in manifest.items() if k != "files"} | {"files": manifest["files"]}, indent=2))
    print(f"\nFirst rows of {len(rows)}:")
    columns = {"key": 7, "status": 7, "product": 18, "stars": 5, "language": 8, "text": 70}
    print("  ".join(pad(name, width) for name, width in columns.items()))
    for row in rows[:10]:
        print("  ".join(pad(str(row[name] or ""), width) for name, width in columns.items()))
    cost = manifest["cost"]["actual_usd"]
    usage = manifest["usage"]
    print(f"\nThe table:    {manifest['output']}")
    print(f"The manifest: {manifest['manifest']}")
    priced = "unknown" if cost is None else f"{cost:.4f} USD"
    print(
        f"It would have cost {priced} at batch price ({usage['prompt_tokens']:,} prompt and "
        f"{usage['output_tokens'] + usage['thoughts_tokens']:,} output tokens; {manifest['cost']['prices_as_of']})."
    )


def pad(text: str, width: int) -> str:
    """Cut or fill to a width in terminal columns: East Asian characters take two, combining ones none."""
    shown, used = "", 0
    for char in " ".join(text.split()):
        columns = 0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        if used + columns > width:
            break
        shown, used = shown + char, used + columns
    return shown + " " * (width - used)


if __name__ == "__main__":
    sys.exit(main())
