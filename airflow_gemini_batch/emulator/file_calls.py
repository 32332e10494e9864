"""The calls on files: uploads in their three protocols, metadata, downloads. Bytes pass through, never piling up."""

from __future__ import annotations

import asyncio
import mmap
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from airflow_gemini_batch.emulator.errors import ApiError, no_such_file
from airflow_gemini_batch.emulator.faults import Truncation, hits
from airflow_gemini_batch.emulator.files import StoredFile, Upload
from airflow_gemini_batch.emulator.routes import Match
from airflow_gemini_batch.emulator.service import Service
from airflow_gemini_batch.emulator.wire import new_id, page, reply

PIECE = 1 << 20
STATUS = "X-Goog-Upload-Status"


class BrokenBodyError(Exception):
    """Raised inside a reply's body: the connection is to break here."""


def upload_call(request: Request) -> str:
    """Which of the upload calls a request to the upload path is."""
    if request.query_params.get("upload_id"):
        commands = _commands(request)
        return "upload_query" if "query" in commands else "upload_cancel" if "cancel" in commands else "upload_chunk"
    protocol = request.headers.get("x-goog-upload-protocol", request.query_params.get("uploadType", "")).lower()
    return {"raw": "upload_raw", "media": "upload_raw", "multipart": "upload_multipart"}.get(protocol, "upload_start")


def _commands(request: Request) -> set[str]:
    return {part.strip().lower() for part in request.headers.get("x-goog-upload-command", "").split(",")}


async def start(service: Service, request: Request, match: Match) -> Response:
    """First step of the resumable protocol: announce a file, get an address for its bytes."""
    if "start" not in _commands(request):
        raise ApiError(400, "Missing or unknown X-Goog-Upload-Command. Start an upload with 'start'.")
    announced = _file_message(await request.body())
    total = _number(request.headers.get("x-goog-upload-header-content-length"))
    size = _number(announced.get("sizeBytes") or announced.get("size_bytes"))
    upload_id = service.files.start(
        **_named(announced, request.headers.get("x-goog-upload-header-content-type", "")),
        total=size if total is None else total,
    )
    scheme = request.headers.get("x-forwarded-proto", request.url.scheme)
    origin = f"{scheme}://{request.headers.get('host', request.url.netloc)}"
    url = f"{origin}{match.prefix}/upload/{match.version}/files?upload_id={upload_id}&upload_protocol=resumable"
    headers = {
        "X-Goog-Upload-URL": url, "X-Goog-Upload-Control-URL": url, STATUS: "active",
        "X-Goog-Upload-Chunk-Granularity": "262144", "X-GUploader-UploadID": upload_id,
    }  # fmt: skip
    return Response(b"", 200, headers)


def _file_message(raw: bytes) -> dict[str, Any]:
    try:
        body = orjson.loads(raw or b"{}")
        announced = body.get("file") or {}
        announced.get("name")
    except (orjson.JSONDecodeError, AttributeError) as e:
        raise ApiError(400, "Invalid JSON payload received. Expected an object with a file.") from e
    return dict(announced)


def _named(announced: dict[str, Any], header_type: str) -> dict[str, str]:
    mime_type = announced.get("mimeType") or announced.get("mime_type") or header_type or "application/octet-stream"
    return {
        "file_id": str(announced.get("name") or "").removeprefix("files/"),
        "display_name": str(announced.get("displayName") or announced.get("display_name") or ""),
        "mime_type": str(mime_type),
    }


def _number(text: Any) -> int | None:
    if text is None:
        return None
    try:
        return int(text)
    except (TypeError, ValueError) as e:
        raise ApiError(400, f"Not a number of bytes: {text!r}") from e


async def query(service: Service, request: Request, match: Match) -> Response:
    """How much has come. A finished or unknown upload is final."""
    upload = service.files.uploads.get(request.query_params["upload_id"])
    if upload is None:
        raise ApiError(404, "Upload not found.", headers={STATUS: "final"})
    return Response(b"", 200, {STATUS: "active", "X-Goog-Upload-Size-Received": str(upload.received)})


async def cancel(service: Service, request: Request, match: Match) -> Response:
    if upload := service.files.uploads.pop(request.query_params["upload_id"], None):
        upload.discard()
    return reply({}, {STATUS: "cancelled"})


async def chunk(service: Service, request: Request, match: Match) -> Response:
    """Take bytes at the right offset; with ``finalize``, make the file."""
    upload_id, commands = request.query_params["upload_id"], _commands(request)
    upload = service.files.uploads.get(upload_id)
    if upload is None:
        await _drain(request)
        raise ApiError(404, "Upload not found or already finalized.", headers={STATUS: "final"})
    faults = service.faults
    if faults.upload_chunk_no_status and service.counters.strikes("chunk", times=faults.upload_chunk_no_status):
        await _drain(request)
        raise ApiError(503)
    active = {STATUS: "active"}
    if not commands & {"upload", "finalize"}:
        raise ApiError(400, "X-Goog-Upload-Command must be upload, finalize, query or cancel.", headers=active)
    if upload.busy:
        raise ApiError(409, "Another request is writing to this upload.", status="ABORTED", headers=active)
    upload.busy = True
    try:
        if "upload" in commands:
            await _take(service, request, upload, active)
        if "finalize" not in commands:
            return Response(b"", 200, {**active, "X-Goog-Upload-Size-Received": str(upload.received)})
        if upload.total is not None and upload.received != upload.total:
            service.files.uploads.pop(upload_id, None)
            upload.discard()
            raise ApiError(
                400,
                f"Upload finalized at {upload.received} bytes, but {upload.total} were announced.",
                headers={STATUS: "final"},
            )
        try:
            file = service.files.finish(upload_id)
        except ApiError as e:
            e.headers[STATUS] = "final"
            raise
        return reply({"file": service.shown(file)}, {STATUS: "final"})
    finally:
        upload.busy = False


async def _take(service: Service, request: Request, upload: Upload, headers: dict[str, str]) -> None:
    offset = _number(request.headers.get("x-goog-upload-offset", "0"))
    if offset != upload.received:
        await _drain(request)
        raise ApiError(400, f"Expected offset {upload.received}, got {offset}.", headers=headers)
    most = service.options.max_file_bytes if upload.total is None else upload.total
    upload.begin()
    try:
        async for piece in _pieces(request):
            if upload.received + len(piece) > most:
                await asyncio.to_thread(upload.undo)
                await _drain(request)
                raise ApiError(400, f"More bytes than the {most} announced.", headers=headers)
            await asyncio.to_thread(upload.write, piece)
    except ClientDisconnect:
        # What has come is kept, as the protocol wants: the client asks with query and goes on from there.
        raise ApiError(499, headers=headers) from None


async def _pieces(request: Request) -> AsyncIterator[bytes]:
    """The body in pieces of about a megabyte, each worth a trip to a worker thread."""
    buffer = bytearray()
    try:
        async for data in request.stream():
            buffer += data
            if len(buffer) >= PIECE:
                yield bytes(buffer)
                buffer.clear()
    except ClientDisconnect:
        if buffer:
            yield bytes(buffer)
        raise
    if buffer:
        yield bytes(buffer)


async def _drain(request: Request) -> None:
    """Read on to the end, so that a client still sending gets to see the reply."""
    with suppress(RuntimeError):  # Starlette's word for a body that was read already.
        async for _ in request.stream():
            pass


async def raw(service: Service, request: Request, match: Match) -> Response:
    """The file in one request, without a name."""
    mime = request.headers.get("x-goog-upload-header-content-type") or request.headers.get("content-type", "")
    return await _whole(service, request, _named({}, mime), None)


async def multipart(service: Service, request: Request, match: Match) -> Response:
    """Metadata and bytes in one request (multipart/related). It waits on disk until the parts are told apart."""
    boundary = re.search(r'boundary="?([^";]+)', request.headers.get("content-type", ""))
    if not boundary:
        raise ApiError(400, "Multipart body without a boundary.")
    path = service.directory / f"multipart-{new_id(24)}"
    try:
        with path.open("wb") as out:
            async for piece in _pieces(request):
                await asyncio.to_thread(out.write, piece)
        announced, mime, first, last = await asyncio.to_thread(_split, path, boundary[1].encode())
        return await _whole(service, None, _named(announced, mime), (path, first, last))
    finally:
        path.unlink(missing_ok=True)


def _split(path: Path, boundary: bytes) -> tuple[dict[str, Any], str, int, int]:
    """Metadata, MIME type, and where the file's bytes begin and end."""
    if path.stat().st_size == 0:
        raise ApiError(400, "Multipart body is empty.")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as body:
        marks = [body.find(b"--" + boundary)]
        for _ in range(2):
            marks.append(body.find(b"\r\n--" + boundary, marks[-1] + 2))
        heads = [body.find(b"\r\n\r\n", mark) for mark in marks[:2]]
        if -1 in marks or -1 in heads or not marks[0] < heads[0] < marks[1] < heads[1] < marks[2]:
            raise ApiError(400, "Multipart body must have two parts: metadata and the file.")
        head = body[marks[1] : heads[1]].decode("latin-1")
        mime = re.search(r"(?im)^content-type:\s*(\S.*?)\s*$", head)
        return _file_message(body[heads[0] + 4 : marks[1]]), mime[1] if mime else "", heads[1] + 4, marks[2]


async def _whole(
    service: Service, request: Request | None, named: dict[str, str], part: tuple[Path, int, int] | None
) -> Response:
    upload_id = service.files.start(**named, total=None)
    upload = service.files.uploads[upload_id]
    try:
        if request is not None:
            async for piece in _pieces(request):
                await asyncio.to_thread(upload.write, piece)
        elif part is not None:
            await asyncio.to_thread(_copy_part, upload, *part)
    except BaseException:
        service.files.uploads.pop(upload_id).discard()
        raise
    return reply({"file": service.shown(service.files.finish(upload_id))}, {STATUS: "final"})


def _copy_part(upload: Upload, path: Path, first: int, last: int) -> None:
    with path.open("rb") as file:
        file.seek(first)
        while first < last and (data := file.read(min(PIECE, last - first))):
            upload.write(data)
            first += len(data)


def _find(service: Service, file_id: str) -> StoredFile:
    if hits(service.faults.hide_files, file_id):
        raise no_such_file(file_id)
    return service.files.get(file_id)


async def get(service: Service, request: Request, match: Match) -> Response:
    return reply(service.shown(_find(service, match.id)))


async def list_(service: Service, request: Request, match: Match) -> Response:
    options, hidden = service.options, service.faults.hide_files
    known = [
        file
        for file in service.files
        if (options.list_shows_result_files or not file.generated) and not hits(hidden, file.id)
    ]
    shown, token = page(
        known,
        request.query_params,
        order=lambda file: file.number,
        default=options.default_page_size,
        most=options.max_page_size,
    )
    body: dict[str, Any] = {"files": [service.shown(file) for file in shown]} if shown else {}
    return reply({**body, "nextPageToken": token} if token else body)


async def delete(service: Service, request: Request, match: Match) -> Response:
    _find(service, match.id)
    service.files.delete(match.id)
    return reply({})


async def download(service: Service, request: Request, match: Match) -> Response:
    """The bytes of a result file; uploaded ones stay here."""
    file = _find(service, match.id)
    if not file.generated:
        raise ApiError(
            400, f"File {file.id} cannot be downloaded: only generated files can be.", status="FAILED_PRECONDITION"
        )
    if request.query_params.get("alt") not in (None, "media"):
        raise ApiError(400, "Only alt=media is supported for downloads.")
    first, size, status, headers = 0, file.size, 200, {"Content-Type": file.mime_type}
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
    if wanted and service.options.range_requests and int(wanted[1]) < file.size:
        first, end = int(wanted[1]), min(int(wanted[2] or file.size - 1), file.size - 1)
        size, status = end - first + 1, 206
        headers["Content-Range"] = f"bytes {first}-{end}/{file.size}"
    cut = service.faults.truncate_download
    stop = None
    if isinstance(cut, Truncation) and service.counters.strikes("truncate", times=cut.times):
        stop = min(int(size * cut.at if cut.at < 1 else cut.at), size)
        if cut.how == "short":
            size, stop = stop, None
    if stop is None or not isinstance(cut, Truncation) or cut.how != "chunked":
        headers["Content-Length"] = str(size)
    return StreamingResponse(_read(service, file.path, first, size, stop), status, headers)


async def _read(service: Service, path: Path, first: int, size: int, stop: int | None) -> AsyncIterator[bytes]:
    """
    The file's bytes, slowly if that is asked for.

    :param stop: break the connection after this many bytes.
    :raises BrokenBodyError: at ``stop``.
    """
    rate = service.faults.slow_body
    left = size if stop is None else stop
    step = PIECE if rate is None else max(1, rate // 20)
    with path.open("rb") as file:
        file.seek(first)
        while left > 0 and (data := await asyncio.to_thread(file.read, min(step, left))):
            yield data
            left -= len(data)
            if rate is not None:
                await service.sleep(len(data) / rate)
    if stop is not None:
        raise BrokenBodyError
