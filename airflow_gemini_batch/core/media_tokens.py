"""
How many tokens images, documents, audio and video have, by Google's documented rates.

- Images: 258 tokens up to 384 pixels on both sides, else 258 for each tile; a tile is the shorter side divided by 1.5, but
  256 to 768 pixels (https://ai.google.dev/gemini-api/docs/image-understanding#token-calculation, and for the bounds
  https://docs.cloud.google.com/vertex-ai/generative-ai/docs/multimodal/image-understanding).
- PDF: 258 for each page (https://ai.google.dev/gemini-api/docs/document-processing).
- Audio: 32 a second; video: 263 a second (https://ai.google.dev/gemini-api/docs/tokens).
- Gemini 3 and later: 1,120 for an image, 560 for a page, and for a second of video one frame of 70 and the sound
  (https://ai.google.dev/gemini-api/docs/media-resolution).

All at the default media resolution. What cannot be told from the request, as the length of a file that is named by its URI,
is assumed, and the assumption is named.
"""

from __future__ import annotations

import base64
import math
import re
import struct
from dataclasses import dataclass

PER_TILE = 258
SMALL_IMAGE = 384
SMALLEST_TILE, LARGEST_TILE = 256, 768
AUDIO_SECOND = 32
UNKNOWN_SECONDS = 60
URL_SAFE = bytes.maketrans(b"-_", b"+/")
NOT_BASE64 = bytes(byte for byte in range(256) if not (chr(byte).isalnum() and byte < 128) and byte not in b"+/-_")
HEADER = 1 << 18
"""Characters of base64 that are decoded to find an image's size; cameras put their data before it."""


@dataclass(frozen=True)
class MediaRates:
    """Tokens of one generation of models."""

    image: int | None
    page: int
    video_second: int

    @classmethod
    def of(cls, model: str) -> MediaRates:
        found = re.search(r"gemini-(\d+)", model)
        old = found is not None and int(found[1]) < 3
        return cls(None, 258, 263) if old else cls(1120, 560, 70 + AUDIO_SECOND)


@dataclass(frozen=True)
class Media:
    """
    :param modality: as in ``Usage.modalities``: ``audio``, ``image``, ``video`` or ``document``.
    :param assumed: what had to be assumed; empty if nothing.
    """

    modality: str
    tokens: int
    assumed: str = ""


def count_media(mime_type: str, data: str | None, rates: MediaRates) -> Media:
    """
    :param data: base64; None for a file named by its URI.
    """
    kind = mime_type.partition("/")[0].lower()
    if kind == "image":
        return _image(data, rates)
    if kind in ("audio", "video"):
        seconds = _seconds(data) if data else None
        per_second = AUDIO_SECOND if kind == "audio" else rates.video_second
        assumed = "" if seconds is not None else f"{kind} of unknown length taken for {UNKNOWN_SECONDS} s"
        return Media(kind, math.ceil((UNKNOWN_SECONDS if seconds is None else seconds) * per_second), assumed)
    pages = len(re.findall(rb"/Type\s*/Page\b", _decode(data))) if data else 0
    assumed = "" if pages else "document of unknown length taken for one page"
    return Media("document", max(pages, 1) * rates.page, assumed)


def _image(data: str | None, rates: MediaRates) -> Media:
    if rates.image is not None:
        return Media("image", rates.image)
    size = _image_size(_decode(data[:HEADER])) if data else None
    if size is None:
        return Media("image", PER_TILE, "image of unknown size taken for one tile")
    return Media("image", PER_TILE * tiles(*size))


def tiles(width: int, height: int) -> int:
    """The documentation's own rule: 960 x 540 pixels are cut into 3 x 2 tiles of 360 pixels."""
    if max(width, height) <= SMALL_IMAGE:
        return 1
    unit = min(max(int(min(width, height) / 1.5), SMALLEST_TILE), LARGEST_TILE)
    return math.ceil(width / unit) * math.ceil(height / unit)


def _decode(data: str | None) -> bytes:
    raw = (data or "").encode("ascii", "ignore").translate(URL_SAFE, NOT_BASE64)
    return base64.b64decode(raw[: len(raw) // 4 * 4])  # two bytes may miss at the end; what is looked for is no trailer


def _image_size(head: bytes) -> tuple[int, int] | None:
    try:
        if head.startswith(b"\x89PNG"):
            return struct.unpack_from(">II", head, 16)
        if head.startswith(b"GIF8"):
            return struct.unpack_from("<HH", head, 6)
        if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
            return _webp_size(head)
        if head.startswith(b"\xff\xd8"):
            return _jpeg_size(head)
    except struct.error:  # cut off before its size
        pass
    return None


def _webp_size(head: bytes) -> tuple[int, int] | None:
    """https://developers.google.com/speed/webp/docs/riff_container"""
    if head[12:16] == b"VP8X":
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    if head[12:16] == b"VP8L":
        (bits,) = struct.unpack_from("<I", head, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", head, 26)
    return width & 0x3FFF, height & 0x3FFF


def _jpeg_size(head: bytes) -> tuple[int, int] | None:
    at = 2
    while True:
        marker, length = struct.unpack_from(">HH", head, at)
        if 0xFFC0 <= marker <= 0xFFCF and marker not in (0xFFC4, 0xFFC8, 0xFFCC):  # a frame; those three are tables
            height, width = struct.unpack_from(">HH", head, at + 5)
            return width, height
        if marker < 0xFF00 or length < 2:
            return None
        at += 2 + length


def _seconds(data: str) -> float | None:
    """Length of a WAV or of an MP4, MOV or M4A by its header; None for anything else."""
    head = _decode(data[:64])
    try:
        if head.startswith(b"RIFF") and head[8:12] == b"WAVE":
            (rate,) = struct.unpack_from("<I", head, 28)
            return max(len(data) * 3 // 4 - 44, 0) / rate if rate else None
        if head[4:8] == b"ftyp":
            whole = _decode(data)
            if (at := whole.find(b"mvhd")) < 0:
                return None
            # Version 1 has its times, and its length, in 64 bits.
            scale, length = struct.unpack_from(">IQ", whole, at + 24) if whole[at + 4] else struct.unpack_from(
                ">II", whole, at + 16
            )  # fmt: skip
            return float(length / scale) if scale else None
    except (struct.error, IndexError):
        pass
    return None
