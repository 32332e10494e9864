"""``/_emulator``: what tests in other processes may see and change. No key is needed."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from airflow_gemini_batch.emulator.errors import ApiError
from airflow_gemini_batch.emulator.faults import Faults, FaultsError
from airflow_gemini_batch.emulator.service import Service
from airflow_gemini_batch.emulator.wire import reply


async def handle(service: Service, request: Request) -> Response:
    """
    Answer one control request::

        GET  /_emulator                {"calls", "jobs_created", "jobs", "files", "faults", "now"}
        GET  /_emulator/requests       the requests seen, oldest first
        PUT  /_emulator/faults         the fields of Faults; {} resets
        POST /_emulator/clock          {"advance_seconds": n}
        POST /_emulator/jobs/{id}      {"state": "FAILED", "error": {...} or absent}
    """
    path, method = request.url.path.rstrip("/").removeprefix("/_emulator"), request.method
    try:
        body = orjson.loads(await request.body() or b"{}")
        return reply(_act(service, method, path, body))
    except ApiError as e:
        return e.response()
    except (orjson.JSONDecodeError, FaultsError, ValueError, KeyError, TypeError) as e:
        return ApiError(400, f"{type(e).__name__}: {e}" if isinstance(e, KeyError) else str(e)).response()


def _act(service: Service, method: str, path: str, body: Any) -> Any:
    if (method, path) == ("GET", ""):
        return service.snapshot()
    if (method, path) == ("GET", "/requests"):
        return {"requests": [asdict(seen) for seen in list(service.log)]}
    if (method, path) == ("PUT", "/faults"):
        service.faults = Faults.from_dict(body)
        return service.faults.to_dict()
    if (method, path) == ("POST", "/clock"):
        service.clock.advance(float(body["advance_seconds"]))
        return {"now": service.clock.now() / 1e9}
    if method == "POST" and path.startswith("/jobs/"):
        job = service.jobs.get(path.removeprefix("/jobs/").removeprefix("batches/"))
        service.set_state(job, body["state"], body.get("error"))
        return asdict(service.jobs.view(job))
    raise ApiError(404, f"No control call {method} /_emulator{path}")
