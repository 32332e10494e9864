"""
What it costs to wait for many jobs in one process, and how soon their ends are noticed.

    python benchmarks/watch.py --jobs 1000 5000

Each contender waits in a process of its own, for the same jobs of a counting server of its own:

- ``triggers``: one ``GeminiBatchTrigger.run()`` per job, log lines at INFO and all.
- ``bare list``: a loop that fetches the pages of the list and parses them (httpx, orjson); the least that listing can cost.
- ``SDK get``: one task per job with google-genai's async client.
- ``idle``: the process with nothing to wait for, but a connection looked up (for which Airflow starts a thread). Its CPU
  time, that of the measuring itself, is taken off the others'.

CPU ``start`` is until every job was looked at once, imports apart, ``waiting`` the rest. Memory is the peak over that of a
process with Airflow's triggerer loaded and nothing else. Lag is how much later than asked a sleep of
50 ms ends, once all are waiting.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from measuring import record

HERE = Path(__file__).parent
INTERVAL = 20.0
ROUNDS = 4
ENDING = 100
TICK = 0.05
IDLE, BARE, SDK, OURS = "idle", "bare list", "SDK get", "triggers"


# One contender, in its own process -----------------------------------------------------------------------------


def status(field: str) -> int:
    """A number of this process: ``VmRSS`` and ``VmHWM`` in KiB, ``Threads``."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.partition(f"{field}:")[2].split()[0])


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Noticed:
    """When each job's end was noticed, and how many jobs were looked at for the first time."""

    def __init__(self, url: str, jobs: list[str], interval: float) -> None:
        self.url, self.jobs, self.interval = url, jobs, interval
        self.ends: dict[str, float] = {}

    def end(self, job: str) -> None:
        self.ends.setdefault(job, time.time())


def connect(url: str) -> None:
    os.environ["AIRFLOW_CONN_GEMINI_BATCH_DEFAULT"] = json.dumps(
        {"conn_type": "gemini_batch", "host": url, "password": "test-key"}
    )


async def triggers(noticed: Noticed) -> None:
    connect(noticed.url)
    from airflow_gemini_batch.triggers.batch import GeminiBatchTrigger

    async def wait(job: str) -> None:
        trigger = GeminiBatchTrigger(
            jobs={job: time.time() + 48 * 3600}, gemini_conn_id="gemini_batch_default", poll_interval=noticed.interval
        )
        async for event in trigger.run():
            for outcome in event.payload["outcomes"]:
                assert outcome["how"] == "ended", outcome
                noticed.end(outcome["job"])

    await asyncio.gather(*(wait(job) for job in noticed.jobs))


async def sdk_get(noticed: Noticed) -> None:
    from google import genai

    client = genai.Client(api_key="test-key", vertexai=False, http_options={"base_url": noticed.url})

    async def wait(job: str) -> None:
        while True:
            if (await client.aio.batches.get(name=job)).done:
                return noticed.end(job)
            await asyncio.sleep(noticed.interval * random.uniform(0.9, 1))

    await asyncio.gather(*(wait(job) for job in noticed.jobs))


async def bare_list(noticed: Noticed) -> None:
    import httpx
    import orjson

    async with httpx.AsyncClient() as http:
        while True:
            began, token = time.monotonic(), ""
            while True:
                params = {"pageSize": "1000"} | ({"pageToken": token} if token else {})
                page = orjson.loads((await http.get(f"{noticed.url}/v1beta/batches", params=params)).content)
                token = page.get("nextPageToken", "")
                if not token:
                    break
            await asyncio.sleep(noticed.interval * 0.95 - (time.monotonic() - began))


async def idle(noticed: Noticed) -> None:
    from airflow_gemini_batch.hooks.gemini import GeminiHook

    connect(noticed.url)
    await GeminiHook().aaccount()
    await asyncio.Event().wait()


CONTENDERS: dict[str, Callable[[Noticed], Coroutine[Any, Any, None]]] = {
    IDLE: idle, BARE: bare_list, SDK: sdk_get, OURS: triggers,
}  # fmt: skip


LOADS = {
    IDLE: ("airflow_gemini_batch.hooks.gemini",),
    BARE: ("httpx", "orjson"),
    SDK: ("google.genai.types", "google.genai.batches"),
    OURS: (
        "airflow_gemini_batch.triggers.batch",
        "airflow_gemini_batch.hooks.gemini",
        "airflow_gemini_batch.core.watcher",
    ),
}


def ask(url: str, method: str = "GET") -> Any:
    with urlopen(Request(url, method=method), timeout=60) as answer:
        return json.load(answer)


async def measured(name: str, noticed: Noticed, starting: float, base: int) -> dict[str, Any]:
    lags: list[float] = []
    threads = status("Threads")
    began = cpu()
    work = asyncio.create_task(CONTENDERS[name](noticed))

    async def for_seconds(seconds: float) -> None:
        nonlocal threads
        until = time.monotonic() + seconds
        while (asked := time.monotonic()) < until and not work.done():
            await asyncio.sleep(TICK)
            lags.append(time.monotonic() - asked - TICK)
            if len(lags) % 20 == 0:
                threads = max(threads, status("Threads"))

    await for_seconds(starting)
    started, first_lag = cpu(), max(lags)
    before, planned = ask(f"{noticed.url}/stats"), ask(
        f"{noticed.url}/begin?from={noticed.interval / 2}&to={noticed.interval * (ROUNDS - 1.6)}", "POST"
    )  # fmt: skip
    lags.clear()
    await for_seconds(noticed.interval * ROUNDS)
    ended, stats = cpu(), ask(f"{noticed.url}/stats")
    if work.done():
        work.result()
    work.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await work
    delays = sorted(at - planned[job] for job, at in noticed.ends.items())
    lags.sort()
    return {
        "calls": sum(stats["calls"].values()) - sum(before["calls"].values()),
        "cpu_start": started - began,
        "cpu_waiting": ended - started,
        "memory_mb": (status("VmHWM") - base) / 1024,
        "connections": stats["connections"],
        "threads": threads,
        "lag_p99_ms": lags[int(len(lags) * 0.99)] * 1000,
        "lag_max_ms": lags[-1] * 1000,
        "start_lag_ms": first_lag * 1000,
        "delay_p50": statistics.median(delays) if delays else None,
        "delay_max": max(delays) if delays else None,
        "unnoticed": len(planned) - len(delays) if name in (OURS, SDK) else 0,
    }


def contend(given: argparse.Namespace) -> None:
    """Be one contender, and write what was measured to a file: Airflow's log lines go to stdout."""
    import_module("airflow.jobs.triggerer_job_runner")  # what an idle triggerer has loaded
    jobs = [name for n in range(given.jobs[0]) if (name := f"batches/{n:036d}")]
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is counted from here
    base = status("VmRSS")
    for module in LOADS.get(given.contender, ()):  # counted as memory, but not as CPU time: it is done once
        import_module(module)
    noticed = Noticed(given.url, jobs, given.interval)
    result = asyncio.run(measured(given.contender, noticed, given.starting, base))
    Path(given.result).write_text(json.dumps(result), encoding="utf-8")


# All of them ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def server(jobs: int) -> Iterator[str]:
    command = [sys.executable, str(HERE / "counting_server.py"), "--jobs", str(jobs), "--others", str(jobs // 10)]
    with subprocess.Popen([*command, "--ending", str(ENDING)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()


def run(name: str, jobs: int, interval: float) -> dict[str, Any]:
    with server(jobs) as url, tempfile.TemporaryDirectory() as home:
        result = Path(home) / "result.json"
        environment = os.environ | {"AIRFLOW_HOME": home, "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
        # Enough for the slowest to have looked at every job once.
        command = [
            sys.executable, __file__, "--contender", name, "--jobs", str(jobs), "--url", url, "--result", str(result),
            "--interval", str(interval), "--starting", str(interval),
        ]  # fmt: skip
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if not result.exists():
            raise SystemExit(f"{name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        measured: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return measured


COLUMNS = {
    "calls": "{:.0f}", "cpu_start": "{:.2f}", "cpu_waiting": "{:.3f}", "memory_mb": "{:.1f}", "connections": "{}",
    "threads": "{}", "lag_p99_ms": "{:.1f}", "lag_max_ms": "{:.0f}", "start_lag_ms": "{:.0f}", "delay_p50": "{:.1f}",
    "delay_max": "{:.1f}", "unnoticed": "{}",
}  # fmt: skip


def compare(jobs: int, interval: float) -> bool:
    print(f"\n{jobs} jobs, looked at every {interval:g} s, for {ROUNDS} intervals; {ENDING} of them end")
    print("  ".join(f"{title:>12}" for title in ("", *COLUMNS)))
    results = {}
    for name in CONTENDERS:
        one = results[name] = run(name, jobs, interval)
        if name != IDLE:
            # Both are the same length for all; what is left is the contender's own.
            one["cpu_waiting"] -= results[IDLE]["cpu_waiting"]
            one["cpu_start"] -= results[IDLE]["cpu_start"]
        cells = ["-" if one[key] is None else form.format(one[key]) for key, form in COLUMNS.items()]
        print("  ".join(f"{cell:>12}" for cell in (name, *cells)), flush=True)
    ours, bare, sdk = results[OURS], results[BARE], results[SDK]
    total = {name: one["cpu_start"] + one["cpu_waiting"] for name, one in results.items()}
    aims = [
        ("fewer calls than SDK get", sdk["calls"] / ours["calls"], ">=", 50),
        ("less CPU than SDK get, waiting", sdk["cpu_waiting"] / ours["cpu_waiting"], ">=", 30),
        ("less CPU than SDK get, with start", total[SDK] / total[OURS], ">=", 30),
        ("CPU of the bare list, waiting", ours["cpu_waiting"] / bare["cpu_waiting"], "<=", 2),
        ("connections", ours["connections"], "<=", 1),
        ("threads more than idle", ours["threads"] - results[IDLE]["threads"], "<=", 0),
        ("lag p99, ms", ours["lag_p99_ms"], "<=", 20),
        ("MB over idle", ours["memory_mb"] - results[IDLE]["memory_mb"], "<=", 50),
        ("latest notice of an end, s", ours["delay_max"] or 0.0, "<=", interval + 5),
        ("ends not noticed", ours["unnoticed"], "<=", 0),
    ]
    good = True
    for what, value, way, aim in aims:
        met = value >= aim if way == ">=" else value <= aim
        good = good and met
        print(f"  {what:36} {value:10.2f}   aim {way} {aim:g}   {'met' if met else 'MISSED'}")
        record(f"watch {jobs:,} jobs: {what}", f"{value:.2f}", "met" if met else "missed", f"{way} {aim:g}")
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1000, 5000])
    parser.add_argument("--interval", type=float, default=INTERVAL, help="seconds between looks")
    parser.add_argument("--contender", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    for name, kind in (("url", str), ("result", str), ("starting", float)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.contender:
        contend(given)
        return 0
    met = [compare(jobs, given.interval) for jobs in given.jobs]
    return int(not all(met))


if __name__ == "__main__":
    sys.exit(main())
