"""
The one door to google-genai, and the worker's blocking way to the service. Takes and returns our own types.

Uploads, creates and deletes go through the SDK; looks, lists, cancels and downloads through ``rest``, because the SDK
drops a job's counts and its error, refuses replies it cannot type, and downloads without checking the length.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import httpx
import orjson

from airflow_gemini_batch.core import rest
from airflow_gemini_batch.core.http import LIMITS, download, hold
from airflow_gemini_batch.core.jobs import Gone, Job, ListedFile, Seen, Unreachable
from airflow_gemini_batch.core.remote_files import AsIOBase, Progress, RemoteFile, piece_not_taken, remote_file
from airflow_gemini_batch.core.rest import Account
from airflow_gemini_batch.core.storage import StoragePath
from airflow_gemini_batch.core.survey import LEFT_ALONE, Entry, Survey
from airflow_gemini_batch.exceptions import (
    CreateInDoubt,
    CredentialsRefused,
    DownloadBroken,
    InvalidConfig,
    QuotaExceeded,
    RequestRefused,
    ServiceError,
    ServiceUnreachable,
)

if TYPE_CHECKING:
    import pydantic
    from google import genai

log = logging.getLogger(__name__)

R = TypeVar("R")

JSONL = "application/jsonl"  # "jsonl", as the docs have it, was at times refused (python-genai#1547)
ATTEMPTS = 4
"""Tries of one download, and of one upload's start; creates are never retried here."""


class Client:
    """A Gemini account, blocking. One per attempt; holds its ``genai.Client`` so that it is not closed while in use."""

    def __init__(self, account: Account, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self.account = account
        self._sleep = sleep
        self._survey = Survey()

    @cached_property
    def sdk(self) -> genai.Client:
        """The ``genai.Client``, made when first needed (importing it takes most of a second)."""
        from google import genai
        from google.genai import types

        # Airflow quiets httpx's line per request; SDK 3.x has moved to httpx2, which it does not know yet.
        if (http_log := logging.getLogger("httpx2")).level == logging.NOTSET:
            http_log.setLevel(logging.WARNING)
        return genai.Client(
            api_key=self.account.api_key,
            vertexai=False,  # else GOOGLE_GENAI_USE_VERTEXAI in the worker's environment would decide
            http_options=types.HttpOptions(
                base_url=self.account.base_url,
                api_version=self.account.api_version,
                timeout=math.ceil(self.account.timeout * 1000),  # the SDK counts milliseconds
                # A redirect would carry the key to another host, and send a create a second time.
                client_args={"follow_redirects": False, "event_hooks": {"response": [piece_not_taken]}},
            ),
        )

    @cached_property
    def _http(self) -> httpx.Client:
        return httpx.Client(limits=LIMITS)

    def close(self) -> None:
        """Close what was opened. The client can be used again afterwards."""
        for name in ("sdk", "_http"):
            if (opened := self.__dict__.pop(name, None)) is not None:
                opened.close()

    # Looking -----------------------------------------------------------------------------------------------

    def look(self, job: str) -> Seen:
        """Look at one job; see :func:`rest.looking`."""
        return hold(rest.looking(job), self._http, self.account)

    def confirm(self, gone: Gone) -> Seen:
        """Ask the list about a job that seems to be gone; see :func:`rest.confirming`."""
        return hold(rest.confirming(gone), self._http, self.account)

    def look_at_all(self, jobs: tuple[str, ...]) -> dict[str, Seen]:
        """Look at many jobs with as few calls as it takes; those that the list showed come without names and results."""
        seen: dict[str, Seen] = {}

        def take(entries: list[Entry]) -> Collection[str]:
            listed = {entry.name: job for entry in entries if (job := entry.job())}
            seen.update(listed)
            return listed.keys()

        missing, quiet = hold(self._survey.listed(jobs, take), self._http, self.account, self._sleep)
        for job in (job for job in jobs if job in missing):
            # A service that asks to be left alone is not asked for the others.
            seen[job] = one = Unreachable(job, LEFT_ALONE, quiet) if quiet else self.look(job)
            quiet = one.retry_after if isinstance(one, Unreachable) else None
        return {job: seen[job] for job in jobs}

    def list_jobs(self) -> list[Job]:
        """:raises ServiceError: the list could not be read to its end."""
        return hold(rest.listing(), self._http, self.account)

    def list_files(self) -> list[ListedFile]:
        """:raises ServiceError: the list could not be read to its end."""
        return hold(rest.listing_files(), self._http, self.account, self._sleep)

    def cancel(self, job: str) -> rest.Cancel:
        """Cancel a job, look what became of it and say so; see :func:`rest.cancelling`."""
        return hold(rest.cancelling(job), self._http, self.account)

    def test(self) -> None:
        """:raises ServiceError: the account cannot be used."""
        hold(rest.testing(), self._http, self.account)

    def count_tokens(self, model: str, request: Mapping[str, Any]) -> int:
        """
        Ask the API how many tokens a request has. Free of charge. Not through the SDK, whose call for this API refuses
        system instructions and tools.

        :raises ServiceError: it was not counted.
        """
        return hold(rest.counting(model, request), self._http, self.account)

    # Files -------------------------------------------------------------------------------------------------

    def upload(self, path: StoragePath, *, file_id: str, display_name: str, mime_type: str = JSONL) -> RemoteFile:
        """
        Upload a file under a name of our choice; a file that is already there under it is used instead.

        :raises QuotaExceeded: HTTP 429.
        :raises ServiceError: it could not be uploaded.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._upload(path, file_id, display_name, mime_type)
            except QuotaExceeded:
                raise
            except RequestRefused as e:
                # 409: it is there already. 404: a piece was taken although its answer was lost, and the upload is over.
                if e.code not in (404, 409):
                    raise
                if (there := self.file(f"files/{file_id}")) is not None:
                    log.info("The upload %s is there already, it is used", there.name)
                    return replace(there, found=True)
                if e.code == 409:  # the name is taken by what we may not see, e.g. a file that expired a moment ago
                    file_id = f"{file_id[:37]}-{attempt}"
            except ServiceUnreachable as e:
                if attempt == ATTEMPTS:
                    raise
                log.warning("Upload of %s failed (%s), trying again", path.name, e)
                self._sleep(2.0**attempt)
        raise ServiceUnreachable(f"{path.name} could not be uploaded under any name")

    def _upload(self, path: StoragePath, file_id: str, display_name: str, mime_type: str) -> RemoteFile:
        from google.genai import types

        config = types.UploadFileConfig(name=file_id, display_name=display_name, mime_type=mime_type)
        with path.open("rb") as f:
            told = Progress(path.name)
            file = self._told_apart(lambda: self.sdk.files.upload(file=AsIOBase(f, told), config=config), "upload")
        return remote_file(file.model_dump(), f"files/{file_id}")

    def file(self, name: str) -> RemoteFile | None:
        """Return a file's facts, None when the service does not have it (it answers 403 for that)."""
        try:
            return remote_file(self._told_apart(lambda: self.sdk.files.get(name=name), "look").model_dump(), name)
        except RequestRefused as e:
            if e.code in (403, 404):
                return None
            raise

    def cache_expiry(self, name: str) -> float | None:
        """
        Return when a cached content expires, as Unix time; None when the service does not have it.

        :raises ServiceError: it could not be told.
        """
        try:
            cache = self._told_apart(lambda: self.sdk.caches.get(name=name), "look")
        except RequestRefused as e:
            if e.code in (403, 404):
                return None
            raise
        return cache.expire_time.timestamp() if cache.expire_time else math.inf

    def delete_file(self, name: str) -> None:
        """:raises ServiceError: it could not be deleted; one that is gone already is no error."""
        try:
            self._told_apart(lambda: self.sdk.files.delete(name=name), "delete")
        except RequestRefused as e:
            if e.code not in (403, 404):
                raise

    def delete_job(self, name: str) -> None:
        """:raises ServiceError: it could not be deleted; one that is gone already is no error."""
        try:
            self._told_apart(lambda: self.sdk.batches.delete(name=name), "delete")
        except RequestRefused as e:
            if e.code != 404:
                raise

    def download(self, name: str, to: BinaryIO) -> int:
        """
        Stream a result file into ``to`` from its beginning; returns its size in bytes.

        The length is checked when the service gives one, and a break in the middle starts over: the API has no ranges.

        :raises QuotaExceeded: HTTP 429.
        :raises DownloadBroken: it came back short :data:`ATTEMPTS` times.
        :raises ServiceError: the file cannot be had.
        """
        return self._whole(f"{name}:download?alt=media", name, to)

    def download_job(self, name: str, to: BinaryIO) -> int:
        """Stream what the service says of a job, with its inlined responses, into ``to``; as :meth:`download` does."""
        return self._whole(name, name, to)

    def _whole(self, path: str, name: str, to: BinaryIO) -> int:
        for attempt in range(1, ATTEMPTS + 1):
            to.seek(0)
            to.truncate()
            try:
                return self._download(path, to)
            except QuotaExceeded:
                raise
            except (ServiceUnreachable, httpx.HTTPError) as e:
                if attempt == ATTEMPTS:
                    raise DownloadBroken(f"{name} could not be downloaded whole in {ATTEMPTS} tries: {e}") from e
                log.warning("Download of %s failed (%s), starting over", name, e)
                self._sleep(2.0**attempt)
        raise AssertionError("unreachable")

    def _download(self, path: str, to: BinaryIO) -> int:
        return download(path, to, self._http, self.account)

    # Paid --------------------------------------------------------------------------------------------------

    def create(
        self, *, model: str, file: str, display_name: str, seconds: float | None = None, embeddings: bool = False,
        inline: Sequence[Mapping[str, Any]] | None = None, fields: Mapping[str, Any] | None = None,
    ) -> str:  # fmt: skip
        """
        Create a batch job from an uploaded file and return its name. Sends exactly one request.

        :param inline: requests (``request``, ``metadata``) that the create itself carries, instead of the file.
        :param fields: further fields of the job as REST has them: ``priority``, ``webhookConfig``.
        :param seconds: time limit, for the service too (``X-Server-Timeout``); the account's by default.
        :raises RequestRefused: definitely not created, and the service said why.
        :raises CredentialsRefused: definitely not created: the key was refused.
        :raises QuotaExceeded: definitely not created: HTTP 429.
        :raises ServiceUnreachable: definitely not created: no connection could be made at all.
        :raises CreateInDoubt: anything else. It may have been created.
        """
        from google.genai import types

        # The SDK has no word for a priority, none for the keys of embeddings, and its own shape for a request.
        body = dict(fields or {}) | ({"inputConfig": {"requests": {"requests": list(inline)}}} if inline else {})
        once = types.HttpOptions(
            extra_body={"batch": body} if body else None,
            # Without this the SDK's own retries, and its aiohttp client's silent one, can create a second job.
            retry_options=types.HttpRetryOptions(attempts=1),
            timeout=math.ceil((seconds or self.account.timeout) * 1000),
        )

        def send() -> types.BatchJob:
            if not embeddings:
                config = types.CreateBatchJobConfig(display_name=display_name, http_options=once)
                return self.sdk.batches.create(model=model, src=[] if inline else file, config=config)
            named = types.CreateEmbeddingsBatchJobConfig(display_name=display_name, http_options=once)
            source: Any = {"inlined_requests": {"contents": []}} if inline else {"file_name": file}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the SDK calls it experimental
                return self.sdk.batches.create_embeddings(model=model, src=source, config=named)

        try:
            job = self._told_apart(send, "create")
        except (RequestRefused, CredentialsRefused, QuotaExceeded):
            raise
        except _NotConnected as e:
            raise ServiceUnreachable(str(e)) from e
        except Exception as e:
            # Everything else, whatever it is, leaves open whether the job exists.
            raise CreateInDoubt(f"The create request for {display_name!r} got no clear answer: {e}") from e
        if not job.name:
            raise CreateInDoubt(f"The create request for {display_name!r} was answered without a job name.")
        return str(job.name)

    def _told_apart(self, call: Callable[[], R], phase: str) -> R:
        """Make an SDK call; what it raises becomes one of ours, without the SDK's behind it: that may repeat the key."""
        from google.genai import errors

        error: Exception
        try:
            return call()
        except errors.APIError as e:
            details = orjson.loads(self.account.redact(orjson.dumps(e.details, default=str).decode()))
            raw = self.account.redact(str(e.message or "")).encode()
            again = str((getattr(e.response, "headers", None) or {}).get("retry-after") or "")
            error = rest.error_of(e.code, details, raw, phase=phase, retry_after=again)
        except (ServiceError, OSError):
            raise
        except Exception as e:
            # The SDK lets its HTTP library's errors through: httpx's for 2.x, httpx2's for 3.x. Tell them by their names.
            kinds = {kind.__name__ for kind in type(e).__mro__}
            said = self.account.redact(f"{type(e).__name__}: {e or 'no detail'}")
            endless = phase == "upload" and type(e) is ValueError  # all was sent, and the upload did not end
            if kinds & {"ConnectError", "ConnectTimeout", "UnsupportedProtocol"}:
                error = _NotConnected(said)
            elif kinds & {"HTTPError", "ValidationError", "JSONDecodeError", "KeyError"} or endless:
                error = ServiceUnreachable(said)
            else:
                raise
        raise error


class _NotConnected(ServiceUnreachable):
    """No connection was made, so nothing can have been done."""


# Config ---------------------------------------------------------------------------------------------------


def rest_config(config: object, *, embeddings: bool = False) -> dict[str, Any]:
    """
    Return a config (object or dict, snake_case or camelCase) as camelCase JSON, checked by the SDK.

    :param embeddings: it is an ``EmbedContentConfig``, not a ``GenerateContentConfig``.
    :raises InvalidConfig: a field is unknown or of the wrong type; the message names it.
    """
    import pydantic
    from google.genai import types

    kind = types.EmbedContentConfig if embeddings else types.GenerateContentConfig
    try:
        checked = config if isinstance(config, kind) else kind.model_validate(config)
        for tool in getattr(checked, "tools", None) or ():
            if callable(tool):
                raise InvalidConfig(
                    f"config.tools has the Python function {getattr(tool, '__name__', tool)!r}, but nobody calls functions "
                    "during a batch. Declare it, and read the functionCall parts of the answers: config={'tools': "
                    "[{'function_declarations': [types.FunctionDeclaration.from_callable_with_api_option(callable=...)]}]}."
                )
        return checked.model_dump(mode="json", by_alias=True, exclude_none=True)
    except pydantic.ValidationError as e:
        problems = "; ".join(f"{'.'.join(map(str, p['loc'])) or 'config'}: {p['msg']}" for p in e.errors()[:5])
        raise InvalidConfig(f"config is not {'an' if embeddings else 'a'} {kind.__name__}: {problems}") from e
    except (ValueError, TypeError, AttributeError) as e:
        # A serialisation error is a ValueError; the SDK's own validators slip, too.
        raise InvalidConfig(
            f"config cannot be written as JSON: {e}. A model or type goes into the task's output_schema; in config, a "
            "response schema is a dict."
        ) from e


@cache
def request_type() -> type[pydantic.BaseModel]:
    """
    The fields of a request as the SDK types them, for Pydantic to judge one by: those of generating and of embedding.

    Fields that it does not list are let through on the first level, and refused inside.
    """
    import pydantic
    from google.genai import types

    kinds: dict[str, Any] = {
        "contents": list[types.Content], "content": types.Content, "system_instruction": types.Content,
        "tools": list[types.Tool], "tool_config": types.ToolConfig, "safety_settings": list[types.SafetySetting],
        "cached_content": str, "labels": dict[str, str], "store": bool, "title": str, "output_dimensionality": int,
        # REST has image settings here, and its response formats differ from the SDK's.
        "generation_config": pydantic.create_model(
            "GenerationConfig", __base__=types.GenerationConfig,
            image_config=(types.ImageConfig | None, None), response_format=(Any, None),
        ),
    }  # fmt: skip
    config = pydantic.ConfigDict(**types.Content.model_config | {"extra": "ignore"})
    fields: dict[str, Any] = {name: (kind | None, None) for name, kind in kinds.items()}
    return pydantic.create_model("Request", __config__=config, **fields)
