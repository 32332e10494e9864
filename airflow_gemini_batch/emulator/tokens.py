"""Token counts that are about right: four Latin letters a token, two tokens for three Chinese, Japanese or Korean."""

from __future__ import annotations

import re
from typing import Any

WIDE = re.compile(r"[\u1100-\u11ff\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]")
PER_IMAGE = 258
MODALITY = {"image": "IMAGE", "audio": "AUDIO", "video": "VIDEO"}


def text_tokens(text: str) -> int:
    """Tokens in a text; an empty one has none."""
    if not text:
        return 0
    wide = 0 if text.isascii() else len(WIDE.findall(text))
    return max(1, -(-(len(text) - wide) // 4) + -(-wide * 2 // 3))


def prompt_tokens(request: dict[str, Any]) -> dict[str, int]:
    """Modality → tokens in everything a request (camelCase) sends, at least one text token."""
    counts: dict[str, int] = {"TEXT": 0}
    contents = [*request.get("contents", ()), request.get("systemInstruction", {}), request.get("content", {})]
    for part in (part for content in contents for part in content.get("parts", ())):
        counts["TEXT"] += text_tokens(part.get("text", ""))
        for kind in ("inlineData", "fileData"):
            if media := part.get(kind):
                modality = MODALITY.get(str(media.get("mimeType", "")).split("/")[0], "DOCUMENT")
                size = len(media.get("data", "")) // 1000 if modality in ("AUDIO", "VIDEO") else 0
                counts[modality] = counts.get(modality, 0) + PER_IMAGE + size
    counts["TEXT"] = max(counts["TEXT"], 1)
    return counts
