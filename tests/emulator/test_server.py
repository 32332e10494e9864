"""The emulator as a thing to start: in this process, in another one, and its control calls."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from airflow_gemini_batch.emulator import Emulator, Faults

MODULE = [sys.executable, "-m", "airflow_gemini_batch.emulator"]


def test_it_is_ready_at_once_and_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = threading.active_count()
    with Emulator() as gemini:
        assert httpx.get(f"{gemini.url}/_emulator").status_code == 200
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())
    assert threading.active_count() == before
    with pytest.raises(httpx.ConnectError):
        httpx.get(gemini.url)
    gemini.stop()


def test_several_run_side_by_side(emulate, connect, item):
    one, two = emulate(), emulate()
    connect(one).create_inline(item("a"))
    assert (one.jobs_created, two.jobs_created) == (1, 0)


def test_a_port_in_use_is_an_error(gemini):
    other = Emulator(port=gemini.port)
    with pytest.raises(OSError, match="in use"):
        other.start()
    other.stop()


def test_it_tells_what_was_asked(gemini, raw, item):
    raw.create_inline(item("a"))
    seen = gemini.requests[-1]
    assert (seen.call, seen.method, seen.status) == ("create", "POST", 200)
    assert seen.path == "/v1beta/models/gemini-2.5-flash:batchGenerateContent"
    assert seen.headers["x-goog-api-key"] == "any"
    assert gemini.calls == {"create": 1}
    assert gemini.calls["never"] == 0


def test_a_view_does_not_change(gemini, raw, item):
    name = raw.create_inline(item("a"))
    before = gemini.jobs[0]
    raw.get(name)
    assert (before.state, gemini.jobs[0].state) == ("PENDING", "SUCCEEDED")


def test_other_processes_control_it_without_a_key(gemini, raw, item):
    control = httpx.Client(base_url=gemini.url)
    name = raw.create_inline(item("a"), displayName="d")
    state = control.get("/_emulator").json()
    assert (state["calls"], state["jobs_created"], state["files"]) == ({"create": 1}, 1, [])
    assert (state["jobs"][0]["name"], state["jobs"][0]["display_name"]) == (name, "d")
    assert control.put("/_emulator/faults", json={"stuck": "RUNNING"}).json() == {"stuck": "RUNNING"}
    assert gemini.faults == Faults(stuck="RUNNING")
    assert control.get("/_emulator").json()["faults"] == {"stuck": "RUNNING"}
    wrong = control.put("/_emulator/faults", json={"nope": 1})
    assert (wrong.status_code, "Unknown field in Faults: nope" in wrong.json()["error"]["message"]) == (400, True)
    assert control.post("/_emulator/clock", json={"advance_seconds": 48 * 3600 + 1}).status_code == 200
    assert raw.get(name)["metadata"]["state"] == "BATCH_STATE_EXPIRED"
    assert control.put("/_emulator/faults", json={}).json() == {}
    error = {"code": 3, "message": "m"}
    path = f"/_emulator/jobs/{name.removeprefix('batches/')}"
    assert control.post(path, json={"state": "FAILED", "error": error}).json()["state"] == "FAILED"
    assert raw.get(name)["error"] == error
    assert control.post("/_emulator/jobs/nope", json={"state": "FAILED"}).status_code == 404
    assert control.post("/_emulator/clock", json={}).status_code == 400
    assert control.post("/_emulator/clock", json={"advance_seconds": -1}).status_code == 400
    assert control.get("/_emulator/nope").status_code == 404
    assert control.get("/_emulator/requests").json()["requests"][0]["call"] == "create"
    control.close()


def test_control_calls_are_not_counted(gemini):
    httpx.get(f"{gemini.url}/_emulator")
    assert gemini.calls == {}


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_it_runs_as_a_process_and_stops_on_a_signal(tmp_path, how):
    faults = tmp_path / "faults.json"
    faults.write_text(json.dumps({"drop_keys": ["a"]}))
    ready = tmp_path / "ready"
    command = [*MODULE, "--port", "0", "--job-seconds", "20", "--faults", str(faults), "--ready-file", str(ready)]
    (tmp_path / "t").mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path / "t")}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, env=environment) as process, ExitStack() as stack:
        stack.callback(process.kill)  # a failure below must not leave it running
        first = process.stdout.readline()
        assert first.startswith("Gemini emulator ready at http://127.0.0.1:")
        url = first.split()[-1]
        assert ready.read_text() == url
        assert httpx.get(f"{url}/_emulator").json()["faults"] == {"drop_keys": ["a"]}
        process.send_signal(how)
        assert process.communicate(timeout=20) == ("", "")
    assert process.returncode == 0
    assert not list((tmp_path / "t").iterdir())


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ('{"drop_key": []}', "Unknown field in Faults: drop_key. Known: "),
        ("{", "is not JSON"),
        ('{"stuck": "x"}', "stuck"),
    ],
)
def test_a_bad_faults_file_is_an_error(tmp_path: Path, text, wrong):
    path = tmp_path / "faults.json"
    path.write_text(text)
    done = subprocess.run(
        [*MODULE, "--port", "0", "--faults", str(path)], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert wrong in done.stderr
    assert str(path) in done.stderr


def test_it_imports_nothing_else_of_the_package():
    code = (
        "import sys, airflow_gemini_batch.emulator; "
        "own = 'airflow_gemini_batch.emulator'; "
        "print([m for m in sys.modules if m.startswith(('google', 'airflow')) and not m.startswith(own)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert set(json.loads(done.stdout.replace("'", '"'))) <= {"airflow_gemini_batch", "google"}
