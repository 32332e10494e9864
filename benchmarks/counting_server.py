"""
The two calls of the Batch API that looking takes, fast, and counted. Not the emulator: that does more, and costs more than
what is measured against it.

    python benchmarks/counting_server.py --jobs 5000 --others 500 --ending 100

Serves ``GET /{v}/batches`` (newest first) and ``GET /{v}/batches/{id}``. ``POST /begin?from=10&to=30`` makes ``--ending`` of
the jobs end, evenly spread over those seconds from now, and returns their times; ``GET /stats`` tells what was counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import Any
from urllib.parse import parse_qs, urlsplit

MAX_PAGE = 1000
STAMP = "2026-11-01T08:15:30.123456789Z"


def name_of(number: int) -> str:
    return f"batches/{number:036d}"


def operation(name: str, *, ended: bool) -> bytes:
    """An operation as section 1.3 and 1.4 of the wire reference have it; a finished job's names its result file."""
    metadata: dict[str, Any] = {
        "@type": "type.googleapis.com/google.ai.generativelanguage.v1main.GenerateContentBatch",
        "model": "models/gemini-2.5-flash",
        "displayName": "agb1.0123456789abcdef.r0-00007.0123456789abcdef nightly.summarise_reviews",
        "inputConfig": {"fileName": "files/a1b2c3d4e5f6"},
        "createTime": STAMP,
        "updateTime": STAMP,
        "batchStats": {"requestCount": "300", "pendingRequestCount": "300"},
        "state": "BATCH_STATE_RUNNING",
        "name": name,
    }
    if not ended:
        return json.dumps({"name": name, "metadata": metadata}).encode()
    file = {"responsesFile": name.replace("batches/", "files/batch-")}
    metadata |= {
        "state": "BATCH_STATE_SUCCEEDED",
        "endTime": STAMP,
        "output": file,
        "batchStats": {"requestCount": "300", "successfulRequestCount": "300"},
    }
    return json.dumps({"name": name, "metadata": metadata, "done": True, "response": file}).encode()


class Account:
    """The jobs: ``0`` up to ``jobs`` are waited for, the others are in between."""

    def __init__(self, jobs: int, others: int, ending: int) -> None:
        self.names = [name_of(n) for n in range(jobs)]
        between = iter(name_of(10**9 + n) for n in range(others))
        self.listed: list[str] = []
        for n, name in enumerate(self.names):
            self.listed.append(name)
            if others and n % max(1, jobs // others) == 0 and (other := next(between, None)):
                self.listed.append(other)
        self.ending = ending
        self.ends: dict[str, float] = {}
        self.running = {name: operation(name, ended=False) for name in self.listed}
        self.calls = {"get": 0, "list": 0}
        self.connections = self.most_connections = 0

    def begin(self, first: float, last: float) -> dict[str, float]:
        now, step = time.time(), (last - first) / max(1, self.ending)
        chosen = self.names[:: max(1, len(self.names) // max(1, self.ending))][: self.ending]
        self.ends = {name: now + first + n * step for n, name in enumerate(chosen)}
        return self.ends

    def shown(self, name: str, now: float) -> bytes:
        if (end := self.ends.get(name)) is not None and end <= now:
            return operation(name, ended=True)
        return self.running[name]

    def page(self, query: dict[str, list[str]]) -> bytes:
        self.calls["list"] += 1
        size = min(int(query.get("pageSize", ["50"])[0]), MAX_PAGE)
        start, now = int(query.get("pageToken", ["0"])[0]), time.time()
        shown = b",".join(self.shown(name, now) for name in self.listed[start : start + size])
        more = b',"nextPageToken":"%d"' % (start + size) if start + size < len(self.listed) else b""
        return b'{"operations":[%b]%b}' % (shown, more)

    def answer(self, target: str) -> bytes | None:
        url = urlsplit(target)
        query = parse_qs(url.query)
        if url.path == "/stats":
            return json.dumps({"calls": self.calls, "connections": self.most_connections}).encode()
        if url.path == "/begin":
            return json.dumps(self.begin(float(query["from"][0]), float(query["to"][0]))).encode()
        path = url.path.split("/", 2)[2]  # without the version
        if path == "batches":
            return self.page(query)
        self.calls["get"] += 1
        return self.shown(path, time.time()) if path in self.running else None


class Connection(asyncio.Protocol):
    """HTTP/1.1 without bodies in, kept alive."""

    def __init__(self, account: Account) -> None:
        self.account, self.buffer, self.counted = account, b"", False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.account.connections -= self.counted

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            target = self.buffer[: self.buffer.find(b"\r\n")].split(b" ")[1].decode()
            self.buffer = self.buffer[end + 4 :]
            if not self.counted and "/batches" in target:
                self.counted = True
                self.account.connections += 1
                self.account.most_connections = max(self.account.most_connections, self.account.connections)
            body = self.account.answer(target)
            status = b"200 OK" if body is not None else b"404 Not Found"
            body = body or b'{"error":{"code":404,"message":"Requested entity was not found.","status":"NOT_FOUND"}}'
            head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (status, len(body))
            self.transport.write(head + body)


async def serve(account: Account) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(account), "127.0.0.1", 0, backlog=8192)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--others", type=int, default=0)
    parser.add_argument("--ending", type=int, default=0)
    given = parser.parse_args()
    asyncio.run(serve(Account(given.jobs, given.others, given.ending)))
