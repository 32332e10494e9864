"""Method and path to the name of a call. The only place that knows paths; anything may stand before the version."""

from __future__ import annotations

import re
from typing import NamedTuple

ID = r"(?P<id>[^/:]+)"


class Match(NamedTuple):
    """A call and what its path says: ``prefix`` before the version segment, ``id`` of a file, job or model."""

    call: str
    prefix: str
    version: str
    id: str


def _route(method: str, path: str, call: str, kind: str = "") -> tuple[str, re.Pattern[str], str]:
    before = r"(?P<prefix>(?:/[^/]+)*?)" + (f"/{kind}" if kind else "") + r"/(?P<version>v1beta|v1alpha|v1)"
    return method, re.compile(before + path), call


MODEL = r"/(?:models/(?P<id>[^/:]+)|(?P<tuned>tunedModels/[^/:]+))"
ROUTES = (
    _route("POST", "/files", "upload", "upload"),
    _route("PUT", "/files", "upload", "upload"),
    _route("GET", f"/files/{ID}:download", "download", "download"),
    _route("GET", f"/files/{ID}:download", "download"),
    _route("GET", "/files", "file_list"),
    _route("GET", f"/files/{ID}", "file_get"),
    _route("DELETE", f"/files/{ID}", "file_delete"),
    _route("POST", f"{MODEL}:batchGenerateContent", "create"),
    _route("POST", f"{MODEL}:asyncBatchEmbedContent", "create_embeddings"),
    _route("POST", f"{MODEL}:countTokens", "count_tokens"),
    _route("GET", "/batches", "list"),
    _route("GET", f"/batches/{ID}", "get"),
    _route("POST", f"/batches/{ID}:cancel", "cancel"),
    _route("DELETE", f"/batches/{ID}", "delete"),
    _route("PATCH", f"/batches/{ID}:(?:updateGenerateContentBatch|updateEmbedContentBatch)", "update"),
    _route("POST", "/cachedContents", "cache_create"),
    _route("GET", "/cachedContents", "cache_list"),
    _route("GET", f"/cachedContents/{ID}", "cache_get"),
    _route("PATCH", f"/cachedContents/{ID}", "cache_update"),
    _route("DELETE", f"/cachedContents/{ID}", "cache_delete"),
    _route("POST", "/webhooks", "webhook_create"),
    _route("GET", "/webhooks", "webhook_list"),
    _route("GET", f"/webhooks/{ID}", "webhook_get"),
    _route("PATCH", f"/webhooks/{ID}", "webhook_update"),
    _route("DELETE", f"/webhooks/{ID}", "webhook_delete"),
    _route("POST", f"/webhooks/{ID}:ping", "webhook_ping"),
    _route("POST", f"/webhooks/{ID}:rotateSigningSecret", "webhook_rotate"),
    _route("GET", "/models", "model_list"),
    _route("GET", MODEL, "models"),
)


def find(method: str, path: str) -> Match | None:
    """The call, or None if there is no such thing here."""
    for wanted, pattern, call in ROUTES:
        if method == wanted and (found := pattern.fullmatch(path)):
            groups = found.groupdict()
            return Match(call, groups["prefix"], groups["version"], groups.get("id") or groups.get("tuned") or "")
    return None
