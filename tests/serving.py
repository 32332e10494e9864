"""An ASGI app on a port of this machine, for tests that need somebody to call."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """Serve an app in a thread; gives its base URL."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_config=None, lifespan="auto", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=10)


@dataclass
class Received:
    """What came in, as headers and body. ``answers`` are the statuses of the first answers; later ones are 200."""

    url: str = ""
    answers: list[int] = field(default_factory=list)
    came: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    def messages(self) -> list[tuple[dict[str, str], bytes]]:
        return list(self.came)


@contextmanager
def receiving() -> Iterator[Received]:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    received = Received()

    async def take(request: Request) -> Response:
        received.came.append((dict(request.headers), await request.body()))
        return Response(status_code=received.answers.pop(0) if received.answers else 200)

    with serving(Starlette(routes=[Route("/hook", take, methods=["POST"])])) as url:
        received.url = f"{url}/hook"
        yield received


def wait_for(found: Callable[[], list[Any]], count: int, seconds: float = 30.0) -> list[Any]:
    """Wait until there are so many, and return them."""
    end = time.monotonic() + seconds
    while len(found()) < count:
        assert time.monotonic() < end, f"{len(found())} of {count} after {seconds} s"
        time.sleep(0.02)
    return found()
