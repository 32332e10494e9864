"""
The one door to google-genai, and the worker's blocking way to the service. Takes and returns our own types.

Uploads, creates and deletes go through the SDK; looks, lists, cancels and downloads through ``rest``, because the SDK
drops a job's counts and its error, refuses replies it cannot type, and downloads without checking the length.
"""

from __future__ import annotations

import io
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import IO, TYPE_CHECKING, Any, BinaryIO, TypeVar

import httpx
import orjson

from airflow_gemini_batch.core import rest
from airflow_gemini_batch.core.http import LIMITS, hold
from airflow_gemini_batch.core.jobs import Job, Seen, timestamp
from airflow_gemini_batch.core.rest import Account
from airflow_gemini_batch.core.storage import StoragePath
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
    from google import genai

log = logging.getLogger(__name__)

R = TypeVar("R")

JSONL = "application/jsonl"  # "jsonl", as the docs have it, was at times refused (python-genai#1547)
ATTEMPTS = 4
"""Tries of one download, and of one upload's start; creates are never retried here."""
REDIRECTS = 5
SLOWEST_DOWNLOAD = 1000
"""Bytes per second below which a download counts as broken, once it has taken longer than one call may."""


@dataclass(frozen=True)
class RemoteFile:
    """
    A file at the Files API.

    :param expires_at: Unix time (the API keeps files for 48 hours), or None if it did not say.
    """

    name: str
    size: int
    expires_at: float | None = None


class Client:
    """A Gemini account, blocking. One per attempt; holds its ``genai.Client`` so that it is not closed while in use."""

    def __init__(self, account: Account, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self.account = account
        self._sleep = sleep

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
                client_args={"follow_redirects": False},
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

    def look_at_all(self, jobs: tuple[str, ...]) -> dict[str, Seen]:
        return {job: self.look(job) for job in jobs}

    def list_jobs(self) -> list[Job]:
        """:raises ServiceError: the list could not be read to its end."""
        return hold(rest.listing(), self._http, self.account)

    def cancel(self, job: str) -> rest.Cancel:
        """Cancel a job, look what became of it and say so; see :func:`rest.cancelling`."""
        return hold(rest.cancelling(job), self._http, self.account)

    def test(self) -> None:
        """:raises ServiceError: the account cannot be used."""
        hold(rest.testing(), self._http, self.account)

    # Files -------------------------------------------------------------------------------------------------

    def upload(self, path: StoragePath, *, file_id: str, display_name: str, mime_type: str = JSONL) -> RemoteFile:
        """
        Upload a file under a name of our choice; a file that is already there under it is used instead.

        :raises ServiceError: it could not be uploaded.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._upload(path, file_id, display_name, mime_type)
            except RequestRefused as e:
                # 409: it is there already. 404: a piece was taken although its answer was lost, and the upload is over.
                if e.code not in (404, 409):
                    raise
                if (there := self.file(f"files/{file_id}")) is not None:
                    log.info("The upload %s is there already, it is used", there.name)
                    return there
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
            file = self._told_apart(lambda: self.sdk.files.upload(file=_AsIOBase(f), config=config))
        return _remote_file(file.model_dump(), f"files/{file_id}")

    def file(self, name: str) -> RemoteFile | None:
        """Return a file's facts, None when the service does not have it (it answers 403 for that)."""
        try:
            return _remote_file(self._told_apart(lambda: self.sdk.files.get(name=name)).model_dump(), name)
        except RequestRefused as e:
            if e.code in (403, 404):
                return None
            raise

    def delete_file(self, name: str) -> None:
        """:raises ServiceError: it could not be deleted; one that is gone already is no error."""
        try:
            self._told_apart(lambda: self.sdk.files.delete(name=name))
        except RequestRefused as e:
            if e.code not in (403, 404):
                raise

    def delete_job(self, name: str) -> None:
        """:raises ServiceError: it could not be deleted; one that is gone already is no error."""
        try:
            self._told_apart(lambda: self.sdk.batches.delete(name=name))
        except RequestRefused as e:
            if e.code != 404:
                raise

    def download(self, name: str, to: BinaryIO) -> int:
        """
        Stream a result file into ``to`` from its beginning; returns its size in bytes.

        The length is checked when the service gives one, and a break in the middle starts over: the API has no ranges.

        :raises DownloadBroken: it came back short :data:`ATTEMPTS` times.
        :raises ServiceError: the file cannot be had.
        """
        for attempt in range(1, ATTEMPTS + 1):
            to.seek(0)
            to.truncate()
            try:
                return self._download(name, to)
            except (ServiceUnreachable, httpx.HTTPError) as e:
                if attempt == ATTEMPTS:
                    raise DownloadBroken(f"{name} could not be downloaded whole in {ATTEMPTS} tries: {e}") from e
                log.warning("Download of %s failed (%s), starting over", name, e)
                self._sleep(2.0**attempt)
        raise AssertionError("unreachable")

    def _download(self, name: str, to: BinaryIO) -> int:
        url, headers = self.account.url(f"{name}:download?alt=media"), self.account.headers()
        service = _origin(url)
        for _ in range(REDIRECTS):
            # Identity: with compression the Content-Length would not be the number of bytes we count.
            headers["Accept-Encoding"] = "identity"
            with self._http.stream("GET", url, headers=headers, timeout=self.account.timeout) as answer:
                if answer.has_redirect_location:
                    url = str(answer.request.url.join(answer.headers["location"]))
                    if _origin(url) != service:
                        headers.pop("x-goog-api-key", None)  # the key goes to the service and nobody else
                    continue
                if answer.status_code != 200:
                    raw = self.account.redact(answer.read().decode("utf-8", "replace")).encode()
                    raise rest.error_of(answer.status_code, _json_or_none(raw), raw)
                size, started = 0, time.monotonic()
                for piece in answer.iter_raw(1 << 20):
                    size += to.write(piece)
                    seconds = time.monotonic() - started
                    if seconds > self.account.timeout and size < seconds * SLOWEST_DOWNLOAD:
                        raise ServiceUnreachable(f"{size} bytes in {seconds:.0f} s")
                promised = answer.headers.get("content-length")
                if promised is not None and int(promised) != size:
                    raise ServiceUnreachable(f"{size} bytes of {promised}")
                return size
        raise ServiceUnreachable(f"{name}: more than {REDIRECTS} redirects")

    # Paid --------------------------------------------------------------------------------------------------

    def create(self, *, model: str, file: str, display_name: str, seconds: float | None = None) -> str:
        """
        Create a batch job from an uploaded file and return its name. Sends exactly one request.

        :param seconds: time limit, for the service too (``X-Server-Timeout``); the account's by default.
        :raises RequestRefused: definitely not created, and the service said why.
        :raises CredentialsRefused: definitely not created: the key was refused.
        :raises QuotaExceeded: definitely not created: HTTP 429.
        :raises ServiceUnreachable: definitely not created: no connection could be made at all.
        :raises CreateInDoubt: anything else. It may have been created.
        """
        from google.genai import types

        once = types.HttpOptions(
            # Without this the SDK's own retries, and its aiohttp client's silent one, can create a second job.
            retry_options=types.HttpRetryOptions(attempts=1),
            timeout=math.ceil((seconds or self.account.timeout) * 1000),
        )
        config = types.CreateBatchJobConfig(display_name=display_name, http_options=once)
        try:
            job = self._told_apart(lambda: self.sdk.batches.create(model=model, src=file, config=config))
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

    def _told_apart(self, call: Callable[[], R]) -> R:
        """Make an SDK call; what it raises becomes one of ours, without the SDK's behind it: that may repeat the key."""
        from google.genai import errors

        error: Exception
        try:
            return call()
        except errors.APIError as e:
            details = orjson.loads(self.account.redact(orjson.dumps(e.details, default=str).decode()))
            error = rest.error_of(e.code, details, self.account.redact(str(e.message or "")).encode())
            if e.code == 429:
                error = QuotaExceeded(str(error))
        except (ServiceError, OSError):
            raise
        except Exception as e:
            # The SDK lets its HTTP library's errors through: httpx's for 2.x, httpx2's for 3.x. Tell them by their names.
            kinds = {kind.__name__ for kind in type(e).__mro__}
            said = self.account.redact(f"{type(e).__name__}: {e or 'no detail'}")
            if kinds & {"ConnectError", "ConnectTimeout", "UnsupportedProtocol"}:
                error = _NotConnected(said)
            elif kinds & {"HTTPError", "ValidationError", "JSONDecodeError", "KeyError"}:
                error = ServiceUnreachable(said)
            else:
                raise
        raise error


class _AsIOBase(io.RawIOBase):
    """A file as the SDK insists on it: Airflow wraps those of object stores in a class that is no ``io.IOBase``."""

    def __init__(self, file: IO[Any]) -> None:
        super().__init__()
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._file.read(size)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._file.seek(offset, whence)
        return self._file.tell()

    def tell(self) -> int:
        return self._file.tell()


class _NotConnected(ServiceUnreachable):
    """No connection was made, so nothing can have been done."""


def _remote_file(facts: Mapping[str, Any], name: str) -> RemoteFile:
    expires = facts.get("expiration_time")
    at = timestamp(expires) if isinstance(expires, str) else expires
    return RemoteFile(str(facts.get("name") or name), int(facts.get("size_bytes") or 0), at.timestamp() if at else None)


def _origin(url: str) -> tuple[str, str, int | None]:
    parsed = httpx.URL(url)
    return parsed.scheme, parsed.host, parsed.port


def _json_or_none(raw: bytes) -> object:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None


# Config ---------------------------------------------------------------------------------------------------


def rest_config(config: object) -> dict[str, Any]:
    """
    Return a ``GenerateContentConfig`` (object or dict, snake_case or camelCase) as camelCase JSON, checked by the SDK.

    :raises InvalidConfig: a field is unknown or of the wrong type; the message names it.
    """
    import pydantic
    from google.genai import types

    try:
        checked = (
            config
            if isinstance(config, types.GenerateContentConfig)
            else types.GenerateContentConfig.model_validate(config)
        )
        dumped = checked.model_dump(mode="json", by_alias=True, exclude_none=True)
    except pydantic.ValidationError as e:
        problems = "; ".join(f"{'.'.join(map(str, p['loc'])) or 'config'}: {p['msg']}" for p in e.errors()[:5])
        raise InvalidConfig(f"config is not a GenerateContentConfig: {problems}") from e
    except (
        ValueError,
        TypeError,
        AttributeError,
    ) as e:  # a serialisation error is a ValueError; SDK validators slip, too
        raise InvalidConfig(f"config cannot be written as JSON: {e}. Give a response schema as a dict.") from e
    return dumped
