"""An emulator per test, and two ways to speak to it: the real SDK and plain HTTP."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from google import genai

from airflow_gemini_batch.emulator import Emulator

MODEL = "gemini-2.5-flash"
KEY = {"x-goog-api-key": "any"}


class Raw:
    """Plain HTTP to the emulator, with the few calls that most tests start from."""

    def __init__(self, url: str, version: str = "v1beta") -> None:
        self.version = version
        self.http = httpx.Client(base_url=url, headers=KEY, timeout=30, verify=False)

    def json(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        """The JSON of a call that must succeed."""
        reply = self.http.request(method, f"/{self.version}/{path}", **more)
        assert reply.status_code == 200, reply.text
        return reply.json()  # type: ignore[no-any-return]

    def upload(self, data: bytes) -> str:
        headers = {"X-Goog-Upload-Protocol": "raw", "Content-Type": "application/jsonl"}
        reply = self.http.post(f"/upload/{self.version}/files", headers=headers, content=data)
        assert reply.status_code == 200, reply.text
        return str(reply.json()["file"]["name"])

    def post(self, batch: dict[str, Any], *, model: str = MODEL, embeds: bool = False) -> httpx.Response:
        method = "asyncBatchEmbedContent" if embeds else "batchGenerateContent"
        return self.http.post(f"/{self.version}/models/{model}:{method}", json={"batch": batch})

    def create(self, *lines: dict[str, Any], model: str = MODEL, embeds: bool = False, **batch: Any) -> str:
        """Upload the lines, create a job from them, and return its name."""
        name = self.upload("".join(json.dumps(line) + "\n" for line in lines).encode())
        reply = self.post({"inputConfig": {"fileName": name}, **batch}, model=model, embeds=embeds)
        assert reply.status_code == 200, reply.text
        return str(reply.json()["name"])

    def create_inline(self, *requests: dict[str, Any], model: str = MODEL, embeds: bool = False, **batch: Any) -> str:
        """Create a job from items of the form ``{"request", "metadata"}``, and return its name."""
        config = {"requests": {"requests": list(requests)}}
        reply = self.post({"inputConfig": config, **batch}, model=model, embeds=embeds)
        assert reply.status_code == 200, reply.text
        return str(reply.json()["name"])

    def get(self, job: str) -> dict[str, Any]:
        return self.json("GET", job)

    def results(self, job: str) -> list[dict[str, Any]]:
        """The lines of a job that ends at the first look."""
        return [json.loads(line) for line in self.result_bytes(job).splitlines() if line.strip()]

    def result_bytes(self, job: str) -> bytes:
        end = time.monotonic() + 60  # on a slow machine large results are written for longer than a look waits for them
        while not (seen := self.get(job)).get("done") and time.monotonic() < end:
            pass
        file = seen["response"]["responsesFile"]
        reply = self.http.get(f"/{self.version}/{file}:download", params={"alt": "media"})
        assert reply.status_code == 200, reply.text
        return reply.content

    def answer(self, model: str = MODEL, **request: Any) -> dict[str, Any]:
        """The response to one request."""
        request.setdefault("contents", [{"role": "user", "parts": [{"text": "Describe the red bicycle"}]}])
        return self.results(self.create({"key": "a", "request": request}, model=model))[0]["response"]  # type: ignore[no-any-return]


@pytest.fixture
def line() -> Callable[..., dict[str, Any]]:
    """One line of an input file."""

    def make(key: str, text: str = "Summarise this", **request: Any) -> dict[str, Any]:
        return {"key": key, "request": {"contents": [{"role": "user", "parts": [{"text": text}]}], **request}}

    return make


@pytest.fixture
def item() -> Callable[..., dict[str, Any]]:
    """One inline request."""

    def make(key: str, text: str = "Summarise this") -> dict[str, Any]:
        return {"request": {"contents": [{"parts": [{"text": text}]}]}, "metadata": {"key": key}}

    return make


@pytest.fixture
def emulate() -> Iterator[Callable[..., Emulator]]:
    """Start an emulator with these settings; it ends with the test."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(Emulator(**settings))


@pytest.fixture
def gemini(emulate: Callable[..., Emulator]) -> Emulator:
    """An emulator whose jobs are done at the first look."""
    return emulate()


@pytest.fixture
def connect() -> Iterator[Callable[..., Raw]]:
    """Speak plain HTTP to an emulator."""
    with ExitStack() as stack:

        def to(emulator: Emulator, path: str = "", version: str = "v1beta") -> Raw:
            raw = Raw(emulator.url + path, version)
            stack.enter_context(raw.http)
            return raw

        yield to


@pytest.fixture
def raw(gemini: Emulator, connect: Callable[..., Raw]) -> Raw:
    return connect(gemini)


@pytest.fixture
def sdk() -> Iterator[Callable[..., genai.Client]]:
    """The real SDK, pointed at an emulator."""
    with ExitStack() as stack:

        def to(emulator: Emulator, path: str = "", **settings: Any) -> genai.Client:
            client = genai.Client(api_key="any", http_options={"base_url": emulator.url + path, **settings})
            stack.callback(client.close)
            return client

        yield to


@pytest.fixture
def client(gemini: Emulator, sdk: Callable[..., genai.Client]) -> genai.Client:
    return sdk(gemini)


@pytest.fixture
def make_lines(tmp_path: Path) -> Callable[..., Path]:
    """A JSONL file of these lines."""

    def write(*lines: dict[str, Any], name: str = "in.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(one) + "\n" for one in lines))
        return path

    return write
