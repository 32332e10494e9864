"""
All benchmarks, one after the other, and one table: each figure beside its limit or rival, measured in the same run.

    python benchmarks                  # minutes
    python benchmarks --full           # the sizes of the aims: up to an hour on two cores
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
QUICK = {
    "import_cost.py": [],
    "build.py": ["--rows", "300000", "--repeat", "1"],
    "land.py": ["--megabytes", "300", "--repeat", "1"],
    "end_to_end.py": ["--rows", "100000", "--megabytes", "300", "--repeat", "1"],
    "watch.py": ["--jobs", "1000", "--interval", "10"],
    "flat.py": ["--gigabytes", "0.2", "--storage", "local"],
}
FULL = QUICK | {
    "build.py": ["--rows", "1000000", "--repeat", "3"],
    "land.py": ["--megabytes", "1000", "--repeat", "3"],
    "end_to_end.py": ["--rows", "100000", "--megabytes", "500", "--repeat", "3"],
    "watch.py": ["--jobs", "1000", "5000"],
    "flat.py": ["--gigabytes", "2", "--storage", "local"],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--only", nargs="+", choices=list(QUICK), default=list(QUICK))
    asked = parser.parse_args()
    failed = []
    with tempfile.TemporaryDirectory() as place:
        record = Path(place) / "record.jsonl"
        environment = os.environ | {"BENCHMARKS_RECORD": str(record), "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR"}
        for script in asked.only:
            arguments = (FULL if asked.full else QUICK)[script]
            print(f"\n== {script} {' '.join(arguments)}", flush=True)
            # A missed aim is told in the table; only a benchmark that measures nothing has failed.
            before = record.stat().st_size if record.exists() else 0
            subprocess.run([sys.executable, str(HERE / script), *arguments], env=environment)
            if not record.exists() or record.stat().st_size == before:
                failed.append(script)
        lines = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    print(f"\nPython {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    print("| figure | measured | beside its limit | aim | CPU s | peak MB |\n|---|---|---|---|---|---|")
    for one in lines:
        cpu = "" if one["cpu"] is None else f"{one['cpu']:.2f}"
        peak = "" if one["peak_mb"] is None else f"{one['peak_mb']:.0f}"
        print(f"| {one['figure']} | {one['value']} | {one['ratio']} | {one['aim']} | {cpu} | {peak} |")
    if failed:
        print(f"\nmeasured nothing: {', '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
