"""
Links from a task to its job and to what it landed.

Airflow shows what is in XCom under a link's key. The operator pushes it as soon as there is something to show, so the
links are there while the task is deferred; when the task ends, Airflow asks :meth:`get_link` and stores the answer again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.providers.common.compat.sdk import BaseOperatorLink, XCom

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey

AI_STUDIO = "https://aistudio.google.com/batches"
"""AI Studio's list of batch jobs. It documents no page for one job; the fragment names it for who looks."""

CLOUD_CONSOLE = "https://console.cloud.google.com"


class _Pushed(BaseOperatorLink):
    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Return what the operator pushed, ``""`` if it has come to nothing yet."""
        return str(XCom.get_value(key=self.xcom_key, ti_key=ti_key) or "")


class GeminiJobLink(_Pushed):
    """To the job at the service; of several, to the first."""

    name = "Gemini batch job"
    xcom_key = "gemini_batch_job_link"


class GeminiOutputLink(_Pushed):
    """To the directory with the landed files."""

    name = "Landed files"
    xcom_key = "gemini_batch_output_link"


class GeminiManifestLink(_Pushed):
    """To the manifest."""

    name = "Manifest"
    xcom_key = "gemini_batch_manifest_link"


LINKS = (GeminiJobLink, GeminiOutputLink, GeminiManifestLink)


def job_url(job: str) -> str:
    """Where a person finds a job: of the Developer API in AI Studio, of Vertex AI in the Cloud console."""
    if job.startswith("projects/"):
        _, project, _, location, _, number = job.split("/", 5)
        return f"{CLOUD_CONSOLE}/vertex-ai/locations/{location}/batch-predictions/{number}?project={project}"
    return f"{AI_STUDIO}#{job}"


def place_url(uri: str, page: str = "") -> str:
    """
    Where a person finds a directory or a file: the store's own console. Airflow's UI shows links of the web only, so where
    there is no console it is ``page``, with the place named in its fragment for who looks.
    """
    scheme, _, rest = uri.partition("://")
    # A connection id may stand before the bucket: it is no part of the place.
    bucket, _, key = rest.rpartition("@")[2].partition("/")
    if (console := CONSOLES.get(scheme)) is not None:
        return console(bucket, quote(key))
    place = uri if rest else f"file://{uri}"
    return f"{page}#{quote(place, safe='/:@=')}" if page else place


CONSOLES: dict[str, Callable[[str, str], str]] = {
    "s3": lambda bucket, key: f"https://s3.console.aws.amazon.com/s3/buckets/{bucket}?prefix={key}",
    "gs": lambda bucket, key: f"{CLOUD_CONSOLE}/storage/browser/{bucket}/{key}",
}


def push(context: Any, link: _Pushed | type[_Pushed], url: str) -> None:
    """Show a link from now on."""
    ti = context["ti"]
    if hasattr(ti, "xcom_push"):
        ti.xcom_push(key=link.xcom_key, value=url)


def push_place(context: Any, link: _Pushed | type[_Pushed], uri: str) -> None:
    """Show where something was put, if need be on the task's own page of XComs, which has the manifest."""
    log_url = str(getattr(context["ti"], "log_url", ""))
    push(context, link, place_url(uri, f"{log_url.partition('?')[0]}/xcom" if log_url else ""))
