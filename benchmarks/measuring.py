"""What the benchmarks share: each figure in a fresh process, several times in turn, medians and ratios in one table."""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

PLAIN = "the review says that shipping was slow but the product quality is excellent and I would buy it again"
WORDS = [
    *PLAIN.split(),
    "größe",
    "naïve",
    "日本語",
    "価格",
    "😀",
    "“quoted”",
    '"plain"',
    "back\\slash",
    "new\nline",
    "tab\tstop",
]


def text(source: random.Random, words: int) -> str:
    return " ".join(source.choices(WORDS, k=words))


class Clock:
    """Adds up wall and CPU seconds (of all threads) of the blocks it is given."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall += time.perf_counter() - wall
        self.cpu += time.process_time() - cpu


def report(clock: Clock) -> None:
    """Print what a child process measured."""
    # Not getrusage: there a process begins with the peak of the one that started it.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0]) / 1024
    print(json.dumps({"wall": clock.wall, "cpu": clock.cpu, "peak_mb": peak}))


def in_turn(script: str, parts: Sequence[str], arguments: Sequence[str], repeat: int) -> dict[str, dict[str, float]]:
    """Run each part of a script in a process of its own, all of them in turn, ``repeat`` times; medians of each."""
    seen: dict[str, list[dict[str, float]]] = {part: [] for part in parts}
    for _ in range(repeat):
        for part in parts:
            command = [sys.executable, script, "--part", part, *arguments]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            seen[part].append(json.loads(done.stdout.splitlines()[-1]))
    return {
        part: {name: statistics.median(run[name] for run in runs) for name in runs[0]} for part, runs in seen.items()
    }


def record(
    figure: str, value: str, ratio: str, aim: str, cpu: float | None = None, peak_mb: float | None = None
) -> None:
    """Leave one line for the table of all benchmarks, if they are run together."""
    if (to := os.environ.get("BENCHMARKS_RECORD")) is not None:
        line = {"figure": figure, "value": value, "ratio": ratio, "aim": aim, "cpu": cpu, "peak_mb": peak_mb}
        with Path(to).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def table(results: dict[str, dict[str, float]], limit: str, items: int, *, figure: str, aim: str) -> None:
    """
    :param limit: the part that the others are compared with; a ratio above 1 is faster than it.
    :param figure: what is measured, and ``aim``, for the table of all benchmarks.
    """
    print(f"{'':28} {'wall s':>8} {'CPU s':>8} {'us/item':>8} {'of limit':>9} {'CPU':>6} {'peak MB':>8}")
    base = results[limit]
    for part, one in results.items():
        print(
            f"{part:28} {one['wall']:8.2f} {one['cpu']:8.2f} {one['wall'] / items * 1e6:8.2f} "
            f"{base['wall'] / one['wall']:8.2f}x {base['cpu'] / one['cpu']:5.2f}x {one['peak_mb']:8.0f}"
        )
        if part != limit:
            value, ratio = f"{one['wall']:.2f} s", f"{base['wall'] / one['wall']:.2f} of {limit} ({base['wall']:.2f} s)"
            record(f"{figure}: {part}", value, ratio, aim, one["cpu"], one["peak_mb"])
