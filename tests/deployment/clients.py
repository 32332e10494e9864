"""What tests say to a running deployment: Airflow's REST API, as the UI's buttons do, and the emulator's control calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any
from urllib.parse import quote

import httpx

OVER = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})
"""States in which a task instance stays."""


class AirflowApi:
    """
    REST v2. Reading survives an api-server that is away for a while; writing is not repeated.

    :param alive: raises when a component has died by itself, which ends every wait.
    """

    def __init__(self, url: str, *, alive: Callable[[], None]) -> None:
        self.url, self._alive = url, alive
        self._http = httpx.Client(base_url=f"{url}/api/v2", timeout=60)
        self._token = ""

    def close(self) -> None:
        self._http.close()

    def _call(self, method: str, path: str, **more: Any) -> httpx.Response:
        for attempt in range(60):
            try:
                if not self._token:
                    token = self._http.get(f"{self.url}/auth/token")
                    token.raise_for_status()
                    self._token = token.json()["access_token"]
                reply = self._http.request(method, path, headers={"Authorization": f"Bearer {self._token}"}, **more)
                # The first call after its database connections were cut finds a dead one.
                if method != "GET" or reply.status_code < 500:
                    return reply
            except (httpx.TransportError, httpx.HTTPStatusError):
                if method != "GET" or attempt == 59:
                    raise
            time.sleep(1)
        return reply

    def _json(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        reply = self._call(method, path, **more)
        if reply.status_code >= 400:
            raise AssertionError(f"{method} {path} {more}: {reply.status_code} {reply.text[:1000]}")
        return reply.json() if reply.content else {}

    def health(self) -> dict[str, Any] | None:
        """What the api-server says about all components; None while it does not answer."""
        try:
            reply = self._http.get("/monitor/health")
            return reply.json() if reply.status_code == 200 else None
        except (httpx.TransportError, ValueError):
            return None

    # DAGs and runs -------------------------------------------------------------------------------------------

    def parsed_at(self, dag_id: str) -> str | None:
        reply = self._call("GET", f"/dags/{dag_id}")
        return reply.json()["last_parsed_time"] if reply.status_code == 200 else None

    def import_errors(self, file: str) -> str:
        errors = self._json("GET", "/importErrors", params={"limit": 100})["import_errors"]
        return "\n".join(one["stack_trace"] for one in errors if one["filename"].endswith(file))

    def trigger(self, dag_id: str, run_id: str, conf: dict[str, Any] | None = None) -> str:
        body = {"dag_run_id": run_id, "logical_date": None, "conf": conf or {}}
        self._json("POST", f"/dags/{dag_id}/dagRuns", json=body)
        return run_id

    def run_state(self, dag_id: str, run_id: str) -> str:
        return str(self._json("GET", _run(dag_id, run_id))["state"])

    def set_run_state(self, dag_id: str, run_id: str, state: str) -> None:
        """The buttons "mark run as failed" and "... as success"."""
        self._json("PATCH", _run(dag_id, run_id), json={"state": state})

    def delete_run(self, dag_id: str, run_id: str) -> httpx.Response:
        """The button "delete run"; the reply tells whether Airflow did it (it refuses a running one)."""
        return self._call("DELETE", _run(dag_id, run_id))

    # Task instances ------------------------------------------------------------------------------------------

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Every task instance of a run, mapped ones one by one."""
        return self._json("GET", f"{_run(dag_id, run_id)}/taskInstances", params={"limit": 100})["task_instances"]  # type: ignore[no-any-return]

    def task(self, dag_id: str, run_id: str, task_id: str) -> dict[str, Any]:
        return self._json("GET", f"{_run(dag_id, run_id)}/taskInstances/{task_id}")

    def wait_task(
        self, dag_id: str, run_id: str, task_id: str, *states: str, tries: int | None = None, seconds: float = 180.0
    ) -> dict[str, Any]:
        """
        Wait for one of the states, in this try if one is named.

        :raises AssertionError: the task has come to rest in another state, or is not there in time; shows its log.
        """
        end = time.monotonic() + seconds
        while True:
            self._alive()
            task = self.task(dag_id, run_id, task_id)
            right_try = tries is None or task["try_number"] == tries
            if task["state"] in states and right_try:
                return task
            if (task["state"] in OVER and right_try) or time.monotonic() > end:
                log = self.log(dag_id, run_id, task_id, max(1, task["try_number"]))
                raise AssertionError(
                    f"{dag_id}.{task_id} is {task['state']} in try {task['try_number']}, not {'/'.join(states)}"
                    f"{f' in try {tries}' if tries else ''}:\n{log[-6000:]}"
                )
            time.sleep(0.5)

    def clear(self, dag_id: str, run_id: str, *task_ids: str) -> None:
        """The button "clear task instance"."""
        body = {
            "dry_run": False, "dag_run_id": run_id, "task_ids": list(task_ids), "only_failed": False,
            "reset_dag_runs": True,
        }  # fmt: skip
        self._json("POST", f"/dags/{dag_id}/clearTaskInstances", json=body)

    def mark(self, dag_id: str, run_id: str, task_id: str, state: str) -> None:
        """The buttons "mark as failed" and "mark as success"."""
        self._json("PATCH", f"{_run(dag_id, run_id)}/taskInstances/{task_id}", json={"new_state": state})

    def log(self, dag_id: str, run_id: str, task_id: str, try_number: int, map_index: int = -1) -> str:
        """The text of one try's log, as the UI shows it, triggerer's lines included."""
        reply = self._call(
            "GET",
            f"{_run(dag_id, run_id)}/taskInstances/{task_id}/logs/{try_number}",
            params={"full_content": "true", "map_index": map_index},
        )
        if reply.status_code >= 400:
            return f"<no log: {reply.status_code} {reply.text[:200]}>"
        content = reply.json().get("content", "")
        if isinstance(content, str):
            return content
        return "\n".join(line if isinstance(line, str) else _line(line) for line in content)

    def xcom(self, dag_id: str, run_id: str, task_id: str) -> Any:
        """The task's return value."""
        path = f"{_run(dag_id, run_id)}/taskInstances/{task_id}/xcomEntries/return_value"
        return self._json("GET", path, params={"deserialize": "false"})["value"]


def _run(dag_id: str, run_id: str) -> str:
    return f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}"


def _line(line: dict[str, Any]) -> str:
    """One structured log line with all that it carries, tracebacks included."""
    rest = {name: value for name, value in line.items() if name not in ("timestamp", "event", "level", "logger")}
    return f"{line.get('timestamp', '')} {line.get('level', '')} {line.get('event', '')} {rest or ''}".strip()


class Gemini:
    """The emulator's control calls. Jobs of :data:`HELD` run until they are told to end; others end at the first look."""

    HELD = "gemini-2.5-pro"
    QUICK = "gemini-2.5-flash"

    def __init__(self, url: str) -> None:
        self.url = url
        self._http = httpx.Client(base_url=f"{url}/_emulator", timeout=60)
        self.faults()

    def close(self) -> None:
        self._http.close()

    def _json(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        reply = self._http.request(method, path, **more)
        assert reply.status_code == 200, reply.text
        return reply.json()  # type: ignore[no-any-return]

    def faults(self, **faults: Any) -> None:
        """Set what goes wrong; without arguments nothing does."""
        self._json("PUT", "/faults", json={"stuck_models": {self.HELD: "RUNNING"}} | faults)

    def look(self) -> dict[str, Any]:
        """All that the emulator tells: ``calls``, ``jobs_created``, ``jobs``, ``files``, ``faults``, ``now``."""
        return self._json("GET", "")

    def jobs(self, dag_id: str = "", states: Collection[str] = ()) -> list[dict[str, Any]]:
        """Jobs of one DAG, oldest first."""
        wanted = (job for job in self.look()["jobs"] if f" {dag_id}" in job["display_name"] or not dag_id)
        return [job for job in wanted if not states or job["state"] in states]

    def requests(self) -> list[dict[str, Any]]:
        """The last requests seen: ``call``, ``time``, ``status`` (None: no reply was sent) and more."""
        return self._json("GET", "/requests")["requests"]  # type: ignore[no-any-return]

    def finish(self, *jobs: dict[str, Any], state: str = "SUCCEEDED", error: dict[str, Any] | None = None) -> None:
        """Let held jobs end."""
        for job in jobs:
            body = {"state": state} | ({"error": error} if error else {})
            self._json("POST", f"/jobs/{job['name'].removeprefix('batches/')}", json=body)
