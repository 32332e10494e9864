"""What a StatsD server hears of runs, through Airflow's own ``Stats``; each attempt is a process, as with Airflow."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from airflow_gemini_batch.emulator import Emulator, Faults, RowError

pytestmark = pytest.mark.slow  # minutes in all; each by itself is quick

ATTEMPT = """
import json, sys
from types import SimpleNamespace
from airflow.providers.common.compat.sdk import Stats
try:  # Airflow 3.3 sets its metrics up where it starts a task, others when they are first used
    from airflow.sdk.observability.metrics import stats_utils
    Stats.initialize(factory=stats_utils.get_stats_factory(), export_legacy_names=False)
except ImportError:
    pass
from airflow_gemini_batch.operators.batch import GeminiBatchOperator
settings = json.loads(sys.argv[1])
ti = SimpleNamespace(dag_id="a_dag", task_id="a_task", run_id="run-1", map_index=-1, try_number=1, max_tries=0)
manifest = GeminiBatchOperator(task_id="a_task", deferrable=False, poll_interval=0.05, **settings).execute({"ti": ti})
print(json.dumps(manifest))
"""
TAGS = "dag_id=a_dag,model=gemini-2.5-flash,task_id=a_task"


class Heard:
    """A StatsD server that only listens."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.settimeout(0.2)
        self.port: int = self._socket.getsockname()[1]
        self.counters: Counter[str] = Counter()
        self.others: dict[str, tuple[float, str]] = {}

    def listen(self) -> None:
        while True:
            try:
                packet = self._socket.recv(65536).decode()
            except TimeoutError:
                return
            for line in packet.splitlines():
                name, _, rest = line.partition(":")
                value, kind, *_ = rest.split("|")
                name = ",".join([name.split(",")[0], *sorted(name.split(",")[1:])])
                if "gemini_batch" not in name:
                    continue
                if kind == "c":
                    self.counters[name] += int(value)
                else:
                    self.others[name] = float(value), kind

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def heard() -> Any:
    server = Heard()
    yield server
    server.close()


def attempt(heard: Heard, connection: str, tmp_path: Path, **settings: Any) -> dict[str, Any] | None:
    """Run the task; returns its result, None if it failed."""
    metrics = {
        "AIRFLOW__METRICS__STATSD_ON": "True", "AIRFLOW__METRICS__STATSD_HOST": "127.0.0.1",
        "AIRFLOW__METRICS__STATSD_PORT": str(heard.port), "AIRFLOW__METRICS__STATSD_PREFIX": "airflow",
        "AIRFLOW__METRICS__STATSD_INFLUXDB_ENABLED": "True", "AIRFLOW__METRICS__LEGACY_NAMES_ON": "False",
    }  # fmt: skip
    source = tmp_path / "rows.jsonl"
    source.write_text('{"t": "a"}\n{"t": "b"}\n{"t": "c"}\n')
    given = {
        "model": "gemini-2.5-flash", "source": str(source), "prompt": "{t}", "output": str(tmp_path / "out"),
    } | settings  # fmt: skip
    ended = subprocess.run(
        [sys.executable, "-c", ATTEMPT, json.dumps(given)], env=os.environ | metrics, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    heard.listen()
    if ended.returncode:
        assert "TooManyFailedRows" in ended.stderr, ended.stderr
        return None
    return json.loads(ended.stdout.strip().splitlines()[-1])  # type: ignore[no-any-return]


def test_a_run_is_heard_with_its_tags_and_a_clear_that_lands_again_adds_nothing(
    heard: Heard, emulator: Emulator, connection: str, tmp_path: Path
) -> None:
    manifest = attempt(heard, connection, tmp_path)
    assert manifest is not None
    usage = manifest["usage"]
    expected = {
        f"airflow.gemini_batch.rows,{TAGS.replace('task_id', 'status=ok,task_id')}": 3,
        f"airflow.gemini_batch.jobs,{TAGS}": 1,
    } | {
        f"airflow.gemini_batch.tokens,dag_id=a_dag,kind={kind},model=gemini-2.5-flash,task_id=a_task": usage[f"{kind}_tokens"]
        for kind in ("prompt", "output", "thoughts")
    }  # fmt: skip
    assert heard.counters == expected
    assert heard.others[f"airflow.gemini_batch.cost_usd,{TAGS}"] == (manifest["cost"]["actual_usd"], "g")
    assert heard.others[f"airflow.gemini_batch.seconds,{TAGS}"][1] == "ms"
    heard.others.clear()
    assert attempt(heard, connection, tmp_path, file_format="csv") is not None
    assert heard.counters == expected
    assert not heard.others


def test_a_run_that_failed_is_heard_too_and_going_on_adds_only_what_is_new(
    heard: Heard, emulator: Emulator, connection: str, tmp_path: Path
) -> None:
    emulator.faults = Faults(fail_keys={"1": RowError(13)})
    settings: dict[str, Any] = {"max_rounds": 1, "max_failed_ratio": 0.0}
    assert attempt(heard, connection, tmp_path, **settings) is None
    rows = {name.partition("status=")[2].split(",")[0]: n for name, n in heard.counters.items() if "rows" in name}
    assert rows == {"ok": 2, "error": 1}
    emulator.faults = Faults()
    manifest = attempt(heard, connection, tmp_path, **settings)
    assert manifest is not None
    told = {name: n for name, n in heard.counters.items() if "tokens" in name and "kind=prompt" in name}
    assert list(told.values()) == [manifest["usage"]["prompt_tokens"]]
    assert [n for name, n in heard.counters.items() if "status=ok" in name] == [3]
    assert [n for name, n in heard.counters.items() if "gemini_batch.jobs" in name] == [2] == [emulator.jobs_created]
