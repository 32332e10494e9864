"""
The deployment as it is when work is spread over machines: two Celery workers behind Redis, and all data on an S3 service
(moto's, in a process of its own).

Beside what ``rig`` needs there must be a Redis (``AIRFLOW_GEMINI_BATCH_TEST_REDIS``, by default ``redis://127.0.0.1:6379/15``).
Keys in it have a prefix of their own, and go at the end.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psutil  # type: ignore[import-untyped]

from tests.deployment.rig import AIRFLOW, Deployment, NotAvailable, free_port, wait_for

REDIS = os.environ.get("AIRFLOW_GEMINI_BATCH_TEST_REDIS", "redis://127.0.0.1:6379/15")
WORKERS = ("worker-1", "worker-2")
BUCKET = "lake"
PLACE = f"s3://lake_s3@{BUCKET}"
KEYS = {"aws_access_key_id": "k", "aws_secret_access_key": "s", "region_name": "us-east-1"}
NEEDED = {
    "redis": "redis", "moto.server": "moto[server]", "s3fs": "apache-airflow-providers-amazon[s3fs]",
    "airflow.providers.celery": "apache-airflow-providers-celery",
}  # fmt: skip


@dataclass
class CeleryDeployment(Deployment):
    """
    :param variables: more environment of all processes, also of those that parse DAG files.
    """

    variables: dict[str, str] | None = None

    def _start(self) -> None:
        super()._start()
        for name in WORKERS:
            command = [
                *AIRFLOW,
                "celery",
                "worker",
                "--concurrency",
                "2",
                "--celery-hostname",
                name,
                "--skip-serve-logs",
            ]
            self._add(name, command, self.env).start()
        wait_for(lambda: all(self.is_ready(name) for name in WORKERS), what="the workers are ready", seconds=180)

    def is_ready(self, name: str) -> bool:
        self.check_running()
        return f"{name} ready." in self.components[name].log.read_text(errors="replace")

    def took_part(self, name: str, dag_id: str) -> bool:
        """True if this worker ran a task of the DAG."""
        lines = self.components[name].log.read_text(errors="replace").splitlines()
        return any("Executing workload" in line and dag_id in line for line in lines)

    def lose(self, worker: str) -> None:
        """What happens when its machine is gone: the worker and everything that it started, at once."""
        process = self.components[worker].process
        assert process is not None
        for one in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            one.kill()
        self.components[worker].kill()
        self.components[worker].process = None

    def _environment(self, port: int) -> dict[str, str]:
        s3 = self._start_s3()
        extra = {"endpoint_url": s3, "region_name": "us-east-1"}
        result_backend = urlunsplit(urlsplit(self.database_url)._replace(scheme="db+postgresql"))
        return (
            super()._environment(port)
            | {
                "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
                "AIRFLOW__CORE__DEFAULT_TASK_RETRY_DELAY": "2",
                "AIRFLOW__CELERY__BROKER_URL": REDIS,
                "AIRFLOW__CELERY__RESULT_BACKEND": result_backend,
                "AIRFLOW__CELERY_BROKER_TRANSPORT_OPTIONS__GLOBAL_KEYPREFIX": self.database,
                "AIRFLOW_CONN_LAKE_S3": json.dumps({"conn_type": "aws", "login": "k", "password": "s", "extra": extra}),
            }
            | (self.variables or {})
        )

    def _start_s3(self) -> str:
        port = free_port()
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        self._add("s3", command, self._bare_environment()).start()
        self.s3_url = f"http://127.0.0.1:{port}"
        wait_for(self._make_bucket, what="the S3 service answers", seconds=60)
        return self.s3_url

    def _make_bucket(self) -> bool:
        from botocore.exceptions import EndpointConnectionError

        try:
            self.s3().create_bucket(Bucket=BUCKET)
        except EndpointConnectionError:
            return False
        return True

    def s3(self) -> Any:
        import boto3

        return boto3.client("s3", endpoint_url=self.s3_url, **KEYS)

    def objects(self, prefix: str) -> dict[str, bytes]:
        """All objects below a prefix: the rest of their name → content."""
        s3, found = self.s3(), {}
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/"):
            for one in page.get("Contents", []):
                body = s3.get_object(Bucket=BUCKET, Key=one["Key"])["Body"].read()
                found[one["Key"].removeprefix(f"{prefix}/")] = body
        return found

    def stop(self) -> None:
        super().stop()
        if importlib.util.find_spec("redis") is not None:
            import redis

            with redis.Redis.from_url(REDIS) as client:
                for key in client.scan_iter(f"{self.database}*"):
                    client.delete(key)


def check_celery_available() -> None:
    """:raises NotAvailable: something that the deployment needs is missing; says what."""
    for module, package in NEEDED.items():
        try:
            missing = importlib.util.find_spec(module) is None
        except ModuleNotFoundError:
            missing = True
        if missing:
            raise NotAvailable(f"{package} is needed")
    import redis

    try:
        with redis.Redis.from_url(REDIS) as client:
            client.ping()
    except redis.ConnectionError as e:
        raise NotAvailable(f"No Redis at {REDIS}: {e}") from e
