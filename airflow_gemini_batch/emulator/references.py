"""What a request names by address: files that were uploaded, videos and pages elsewhere."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from airflow_gemini_batch.emulator.faults import RowError

FILE_URI = re.compile(r"https?://[^/]+(?:/[^?#]*)?/files/([a-z0-9-]+)/?")

StateOf = Callable[[str], str | None]


def refusal(request: dict[str, Any], state_of: StateOf) -> RowError | None:
    """
    The error of a row that names what cannot be read, with a gRPC code; None if nothing stands in the way.

    :param request: in camelCase.
    :param state_of: file id → its state, None if there is no such file.
    """
    for uri in _uris(request):
        if found := FILE_URI.fullmatch(uri):
            state = state_of(found[1])
            if state is None:  # missing, expired and foreign ones look the same
                return RowError(
                    code=7, message=f"You do not have permission to access the File {found[1]} or it may not exist."
                )
            if state != "ACTIVE":
                return RowError(
                    code=9, message=f"The File {found[1]} is not in an ACTIVE state and usage is not allowed."
                )
        elif not uri.startswith(("https://", "http://")):
            return RowError(code=3, message=f"Invalid or unsupported file uri: {uri}")
    return None


def _uris(request: dict[str, Any]) -> Iterator[str]:
    for content in (*request.get("contents", ()), request.get("content", {})):
        for part in content.get("parts", ()):
            if "fileData" in part:
                yield str(part["fileData"].get("fileUri", ""))
