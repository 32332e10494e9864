"""Sizes at the limit: files of 2 GB pass in flat memory, and nobody waits for them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time

import httpx
import psutil
import pytest

MEGABYTE = 1 << 20


@pytest.fixture
def process(tmp_path):
    """An emulator of its own process, whose memory can be measured."""
    options = tmp_path / "options.json"
    options.write_text(json.dumps({"answer_bytes": 20_000, "results_wait": 1}))
    command = [sys.executable, "-m", "airflow_gemini_batch.emulator", "--port", "0", "--options", str(options)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path)}
    ) as running:
        url = running.stdout.readline().split()[-1]
        try:
            yield url, psutil.Process(running.pid)
        finally:
            running.terminate()


def peak_memory(process: psutil.Process, stop: threading.Event, peak: list[int]) -> None:
    while not stop.wait(0.05):
        peak.append(process.memory_info().rss)


@pytest.mark.slow
def test_two_gigabytes_go_up_and_come_down_in_flat_memory(process):
    url, measured = process
    stop, peak = threading.Event(), []
    watcher = threading.Thread(target=peak_memory, args=(measured, stop, peak))
    watcher.start()
    filler = "word " * 4000
    count = (2 << 30) // 20_100
    text = '{"key":"row-%08d","request":{"contents":[{"parts":[{"text":"' + filler + '"}]}]}}\n'
    line_size = len(text % 0)
    digest = hashlib.sha256()

    def lines():
        for start in range(0, count, 50):
            data = "".join(text % i for i in range(start, min(start + 50, count))).encode()
            digest.update(data)
            yield data

    client = httpx.Client(base_url=url, headers={"x-goog-api-key": "any"}, timeout=600)
    try:
        size = str(count * line_size)
        start = client.post(
            "/upload/v1beta/files",
            headers={
                "X-Goog-Upload-Protocol": "resumable",
                "X-Goog-Upload-Command": "start",
                "X-Goog-Upload-Header-Content-Length": size,
            },
            json={"file": {"mime_type": "application/jsonl"}},
        )
        headers = {"X-Goog-Upload-Command": "upload, finalize", "X-Goog-Upload-Offset": "0", "Content-Length": size}
        began = time.monotonic()
        file = client.post(start.headers["x-goog-upload-url"], headers=headers, content=lines()).json()["file"]
        up = time.monotonic() - began
        began = time.monotonic()
        job = client.post(
            "/v1beta/models/gemini-2.5-flash:batchGenerateContent",
            json={"batch": {"inputConfig": {"fileName": file["name"]}}},
        ).json()
        checked = time.monotonic() - began
        began = time.monotonic()
        waits = []
        while not job.get("done"):
            looked = time.monotonic()
            job = client.get(f"/v1beta/{job['name']}").json()
            waits.append(time.monotonic() - looked)
        answered = time.monotonic() - began
        began, received, rows = time.monotonic(), 0, 0
        with client.stream("GET", f"/v1beta/{job['response']['responsesFile']}:download?alt=media") as reply:
            for data in reply.iter_bytes(MEGABYTE):
                received += len(data)
                rows += data.count(b"\n")
        down = time.monotonic() - began
    finally:
        stop.set()
        watcher.join()
        client.close()
    most = max(peak) / MEGABYTE
    times = f"up {up:.0f} s, check {checked:.0f} s, answers {answered:.0f} s, down {down:.0f} s"
    print(f"{int(size):,} B up, {received:,} B down, peak {most:.0f} MB; {times}")  # noqa: T201 - the figures are the point
    assert rows == count
    assert received > 2_000_000_000
    assert max(waits) < 10
    assert most < 300


def test_others_are_served_while_a_large_file_is_checked_and_answered(gemini, raw, line):
    body = "".join(json.dumps(line(f"{i}")) + "\n" for i in range(30_000)).encode()
    name = raw.upload(body)
    made: list[httpx.Response] = []
    creating = threading.Thread(target=lambda: made.append(raw.post({"inputConfig": {"fileName": name}})))
    creating.start()
    slowest = 0.0
    with httpx.Client(base_url=gemini.url, headers={"x-goog-api-key": "any"}) as other:
        while creating.is_alive():
            began = time.monotonic()
            assert other.get("/v1beta/files").status_code == 200
            slowest = max(slowest, time.monotonic() - began)
    creating.join()
    assert slowest < 0.5
    assert len(raw.results(made[0].json()["name"])) == 30_000
