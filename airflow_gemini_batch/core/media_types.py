"""What a URI in a media column is, told from its text alone, and what a file of a type is called. Opens nothing."""

from __future__ import annotations

import mimetypes
import re
from pathlib import PurePosixPath

SERVICE_TYPES = {
    # https://ai.google.dev/gemini-api/docs/image-understanding
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".heic": "image/heic",
    ".heif": "image/heif",
    # https://ai.google.dev/gemini-api/docs/audio
    ".wav": "audio/wav",
    ".mp3": "audio/mp3",
    ".aif": "audio/aiff",
    ".aiff": "audio/aiff",
    ".aac": "audio/aac",
    ".ogg": "audio/ogg",
    ".oga": "audio/ogg",
    ".opus": "audio/ogg",  # Opus files are Ogg files
    ".flac": "audio/flac",
    ".m4a": "audio/mp4",
    # https://ai.google.dev/gemini-api/docs/video-understanding
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".mpeg": "video/mpeg",
    ".mpg": "video/mpg",
    ".mov": "video/mov",
    ".avi": "video/avi",
    ".flv": "video/x-flv",
    ".webm": "video/webm",
    ".wmv": "video/wmv",
    ".3gp": "video/3gpp",
    ".3gpp": "video/3gpp",
    ".mkv": "video/x-matroska",
    # https://ai.google.dev/gemini-api/docs/document-processing
    ".pdf": "application/pdf",
    ".txt": "text/plain",
    ".md": "text/markdown",
    ".html": "text/html",
    ".htm": "text/html",
    ".css": "text/css",
    ".csv": "text/csv",
    ".xml": "text/xml",
    ".rtf": "text/rtf",
    ".js": "text/javascript",
    ".ts": "text/x-typescript",
    ".py": "text/x-python",
}
"""Suffix → MIME type in the service's words, which are not always those of the standard library."""

SUFFIXES = {
    **{kind: suffix for suffix, kind in reversed(SERVICE_TYPES.items())},
    "image/jpg": ".jpg", "audio/wave": ".wav", "audio/webm": ".webm",
}  # fmt: skip
"""MIME type → the first suffix that stands for it, and those of other names for the same."""

# Without the host's own files: the same name must mean the same on every worker.
_OTHERS = mimetypes.MimeTypes(filenames=())

_REMOTE = re.compile(
    r"https://generativelanguage\.googleapis\.com/(?:[^/]+/)?files/[^/]+"
    r"|https?://(?:(?:www|m)\.)?youtube\.com/(?:watch\?|shorts/|live/|embed/).+"
    r"|https?://youtu\.be/.+",
    re.IGNORECASE,
)


def media_type(uri: str) -> str | None:
    """Return the MIME type that a URI's suffix stands for, None if it has none that is known."""
    path = re.split(r"[?#]", uri, maxsplit=1)[0] if "://" in uri else uri
    suffix = PurePosixPath(path).suffix.lower()
    if suffix in SERVICE_TYPES:
        return SERVICE_TYPES[suffix]
    kind, encoding = _OTHERS.guess_type(f"file{suffix}", strict=False)
    return None if encoding else kind


def suffix_of(mime_type: str) -> str | None:
    """Return the suffix of files of a MIME type, None if it is not known."""
    return SUFFIXES.get(mime_type) or _OTHERS.guess_extension(mime_type, strict=False)


def is_remote(uri: str) -> bool:
    """True for what the service opens by itself: a file at the Files API, a video on YouTube. It is sent as it is."""
    return _REMOTE.fullmatch(uri.strip()) is not None
