"""Small but valid media: PNG images and raw PCM audio, from the standard library alone."""

from __future__ import annotations

import math
import random
import struct
import zlib

AUDIO_TYPE = "audio/L16;codec=pcm;rate=24000"
RATE = 24_000


def png(rng: random.Random, *, side: int, aspect_ratio: str = "1:1") -> bytes:
    """A two-colour gradient whose longer side has this many pixels."""
    try:
        wide, high = (int(part) for part in aspect_ratio.split(":"))
    except ValueError:
        wide = high = 1
    longest = max(wide, high, 1)
    width, height = max(1, side * wide // longest), max(1, side * high // longest)
    start, end = ([rng.randrange(256) for _ in range(3)] for _ in range(2))
    rows = bytearray()
    for y in range(height):
        share = y / max(height - 1, 1)
        pixel = bytes(round(a + (b - a) * share) for a, b in zip(start, end, strict=True))
        rows += b"\0" + pixel * width  # every row of a PNG starts with its filter; 0 is none
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(bytes(rows))), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def pcm(rng: random.Random, *, words: int) -> bytes:
    """A quiet tone, 16 bit mono at 24 kHz, a twentieth of a second per word and at most two seconds."""
    pitch, count = rng.uniform(120, 320), RATE * min(max(words, 2), 40) // 20
    return b"".join(struct.pack("<h", round(4000 * math.sin(2 * math.pi * pitch * i / RATE))) for i in range(count))
