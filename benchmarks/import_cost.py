"""
What our modules add to a DAG file's parsing: each in fresh processes, beside ``import airflow.sdk``, median of five.

    python benchmarks/import_cost.py

DAG files are parsed every few seconds and in every task segment, so the limit is 30 ms.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

from measuring import record

MODULES = (
    "airflow_gemini_batch.operators.batch",
    "airflow_gemini_batch.triggers.batch",
    "airflow_gemini_batch.hooks.gemini",
)
RUNS = 5
LIMIT_MS = 30.0

CODE = """
import time
from airflow.sdk import DAG, BaseHook, BaseOperator
before = time.perf_counter()
import {module}
print((time.perf_counter() - before) * 1000)
"""


def milliseconds(module: str) -> float:
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(module=module)], capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


def main() -> int:
    print(f"{'module':45} {'median ms':>10} {'of limit':>9}")
    worst = 0.0
    for module in MODULES:
        median = statistics.median(milliseconds(module) for _ in range(RUNS))
        worst = max(worst, median)
        print(f"{module:45} {median:10.1f} {median / LIMIT_MS:9.0%}")
        record(f"import {module}", f"{median:.1f} ms", f"{median / LIMIT_MS:.0%} of {LIMIT_MS:g} ms", "100%")
    return int(worst > LIMIT_MS)


if __name__ == "__main__":
    sys.exit(main())
