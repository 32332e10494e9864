"""Files and the uploads that become files. Their bytes are on disk; memory holds one record each."""

from __future__ import annotations

import hashlib
import re
import threading
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_gemini_batch.emulator.clock import SECOND, Clock, timestamp
from airflow_gemini_batch.emulator.errors import ApiError, error_info, no_such_file
from airflow_gemini_batch.emulator.options import Options
from airflow_gemini_batch.emulator.wire import new_id

FILE_ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
SERVICE = "https://generativelanguage.googleapis.com/v1beta/files/"


@dataclass(frozen=True)
class StoredFile:
    """A file as the service knows it. Times in nanoseconds, ``sha256`` in hex, ``number`` in order of creation."""

    id: str
    number: int
    path: Path
    size: int
    sha256: str
    mime_type: str
    display_name: str
    created: int
    ready: int
    expires: int
    generated: bool = False

    @property
    def name(self) -> str:
        return f"files/{self.id}"

    def resource(self, now: int, state: str) -> dict[str, Any]:
        """The File message."""
        body: dict[str, Any] = {"name": self.name}
        if self.display_name:
            body["displayName"] = self.display_name
        body["mimeType"] = self.mime_type
        if self.size:
            body["sizeBytes"] = str(self.size)
        body["createTime"] = timestamp(self.created)
        body["updateTime"] = timestamp(max(self.created, min(now, self.ready)))
        body["expirationTime"] = timestamp(self.expires)
        # Base64 of the hex text, not of the raw digest: odd, but so is the service.
        body["sha256Hash"] = b64encode(self.sha256.encode()).decode()
        body["uri"] = SERVICE + self.id
        if self.generated:
            body["downloadUri"] = f"{SERVICE}{self.id}:download?alt=media"
        body["state"] = state
        if state == "FAILED":
            body["error"] = {"code": 3, "message": "The file could not be processed."}
        body["source"] = "GENERATED" if self.generated else "UPLOADED"
        return body


class Upload:
    """
    Bytes on their way in, hashed as they come.

    :param total: the announced size in bytes, None if none was announced.
    """

    def __init__(self, path: Path, *, file_id: str, display_name: str, mime_type: str, total: int | None) -> None:
        self.path, self.file_id, self.display_name, self.mime_type = path, file_id, display_name, mime_type
        self.total = total
        self.received = 0
        self.busy = False
        self._hash = hashlib.sha256()
        self._mark = (0, self._hash.copy())
        self._sink = path.open("wb")

    def begin(self) -> None:
        """A chunk starts; :meth:`undo` comes back to here."""
        self._mark = (self.received, self._hash.copy())

    def undo(self) -> None:
        """Forget the chunk that was begun last."""
        self.received, self._hash = self._mark[0], self._mark[1].copy()
        self._sink.seek(self.received)
        self._sink.truncate()

    def write(self, data: bytes) -> None:
        self._sink.write(data)
        self._hash.update(data)
        self.received += len(data)

    def close(self) -> str:
        """End the upload and return its digest in hex."""
        self._sink.close()
        return self._hash.hexdigest()

    def discard(self) -> None:
        self._sink.close()
        self.path.unlink(missing_ok=True)


class FileStore:
    """All files of one project. Expired ones go as soon as somebody looks."""

    def __init__(self, directory: Path, clock: Clock, options: Options, processing_seconds: float) -> None:
        self.directory, self.clock, self.options = directory, clock, options
        self.processing_seconds = processing_seconds
        self.uploads: dict[str, Upload] = {}
        self._files: dict[str, StoredFile] = {}
        self._number = 0
        self._lock = threading.RLock()

    def start(self, *, file_id: str, display_name: str, mime_type: str, total: int | None) -> str:
        """
        Begin an upload and return its id.

        :raises ApiError: a bad name, a file that is too large, or a project that is full.
        """
        if file_id and not FILE_ID.fullmatch(file_id):
            raise ApiError(
                400,
                "* CreateFileRequest.file.name: File name may only contain lowercase alphanumeric characters or dashes "
                f"(-), must be at most 40 characters and cannot begin or end with a dash: 'files/{file_id}'",
            )
        if len(display_name) > 512:
            raise ApiError(400, "* CreateFileRequest.file.display_name: must be at most 512 characters.")
        self.check_room(total or 0)
        upload_id = new_id(96)
        path = self.directory / f"upload-{upload_id[:24]}"
        with self._lock:
            self.uploads[upload_id] = Upload(
                path, file_id=file_id, display_name=display_name, mime_type=mime_type, total=total
            )
        return upload_id

    def check_room(self, size: int) -> None:
        """:raises ApiError: when a file of this size is too large by itself or for what the project has left."""
        if size > self.options.max_file_bytes:
            raise ApiError(400, f"File size {size} exceeds the maximum of {self.options.max_file_bytes} bytes.")
        if sum(file.size for file in self if not file.generated) + size > self.options.storage_bytes:
            limit = str(self.options.storage_bytes)
            metric = "generativelanguage.googleapis.com/file_storage_bytes"
            raise ApiError(
                429,
                f"You exceeded your current quota. Quota exceeded for metric: {metric}, limit: {limit}",
                details=[error_info("RATE_LIMIT_EXCEEDED", quota_metric=metric, quota_limit_value=limit)],
            )

    def finish(self, upload_id: str) -> StoredFile:
        """
        Turn a complete upload into a file. The upload is over either way.

        :raises ApiError: 409 if the chosen name is taken, 400 for a refused MIME type.
        """
        upload = self.uploads.pop(upload_id)
        digest = upload.close()
        try:
            self.check_room(upload.received)
            if upload.mime_type in self.options.refused_mime_types:
                raise ApiError(400, f"Unsupported MIME type: {upload.mime_type}")
            with self._lock:
                if upload.file_id and self.find(upload.file_id):
                    raise ApiError(409, f"{upload.file_id} already exists.")
                return self._add(
                    upload.file_id or new_id(12),
                    upload.path,
                    upload.received,
                    digest,
                    upload.mime_type,
                    upload.display_name,
                )
        except ApiError:
            upload.discard()
            raise

    def add_result(self, file_id: str, path: Path, size: int, digest: str, display_name: str) -> StoredFile:
        """Take in the result file of a batch."""
        with self._lock:
            return self._add(file_id, path, size, digest, "application/jsonl", display_name, generated=True)

    def _add(
        self,
        file_id: str,
        path: Path,
        size: int,
        digest: str,
        mime_type: str,
        display_name: str,
        generated: bool = False,
    ) -> StoredFile:
        now = self.clock.now()
        lifetime = self.options.result_seconds if generated else self.options.file_seconds
        self._number += 1
        file = self._files[file_id] = StoredFile(
            id=file_id, number=self._number, path=path, size=size, sha256=digest, mime_type=mime_type,
            display_name=display_name, created=now, generated=generated, expires=now + round(lifetime * SECOND),
            ready=now + (0 if generated else self._processing(mime_type)),
        )  # fmt: skip
        return file

    def _processing(self, mime_type: str) -> int:
        slow = mime_type.startswith(tuple(self.options.processed_mime_types))
        return round(self.processing_seconds * SECOND) if slow else 0

    def find(self, file_id: str) -> StoredFile | None:
        """The file, or None if it never was, was deleted or has expired."""
        with self._lock:
            file = self._files.get(file_id)
            if file is not None and file.expires <= self.clock.now():
                self._remove(file)
                return None
            return file

    def get(self, file_id: str) -> StoredFile:
        """:raises ApiError: 403, the service's word for every file it cannot show."""
        file = self.find(file_id)
        if file is None:
            raise no_such_file(file_id)
        return file

    def delete(self, file_id: str) -> None:
        with self._lock:
            self._remove(self.get(file_id))

    def _remove(self, file: StoredFile) -> None:
        del self._files[file.id]
        file.path.unlink(missing_ok=True)

    def __iter__(self) -> Iterator[StoredFile]:
        """Newest first, without the expired."""
        with self._lock:
            found = [file for file_id in list(self._files) if (file := self.find(file_id))]
        return iter(sorted(found, key=lambda file: -file.number))

    def close(self) -> None:
        """Let go of uploads that were never finished."""
        for upload in self.uploads.values():
            upload.discard()
        self.uploads.clear()
