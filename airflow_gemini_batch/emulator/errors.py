"""Error bodies shaped like the service's: an envelope with the HTTP code, a message, a gRPC status name and details."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.responses import Response

STATUS_NAME = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    409: "ALREADY_EXISTS",
    413: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
MESSAGE = {
    400: "Request contains an invalid argument.",
    401: "Request had invalid authentication credentials.",
    403: "The caller does not have permission",
    404: "Requested entity was not found.",
    408: "The request timed out.",
    409: "The operation was aborted.",
    429: "Resource has been exhausted (e.g. check quota).",
    499: "The operation was cancelled.",
    500: (
        "An internal error has occurred. "
        "Please retry or report in https://developers.generativeai.google/guide/troubleshooting"
    ),
    502: "Bad Gateway",
    503: "The service is currently unavailable.",
    504: "Deadline expired before operation could complete.",
}
HTML = (
    "<!DOCTYPE html>\n<html lang=en>\n  <meta charset=utf-8>\n  <title>Error {code}</title>\n"
    "  <p><b>{code}.</b> <ins>That&rsquo;s an error.</ins>\n  <p>{message}  <ins>That&rsquo;s all we know.</ins>\n"
)
JSON = "application/json; charset=UTF-8"


class ApiError(Exception):
    """
    A refusal, as the client will see it.

    :param code: the HTTP status.
    :param status: the gRPC status name; by default the usual one for ``code``.
    :param body: sent as it is instead of the envelope.
    """

    def __init__(
        self,
        code: int,
        message: str | None = None,
        *,
        status: str | None = None,
        details: list[dict[str, Any]] | None = None,
        headers: dict[str, str] | None = None,
        body: str | None = None,
        media_type: str = JSON,
    ) -> None:
        self.code = code
        self.message = message or MESSAGE.get(code, "Unknown error.")
        self.status = status or STATUS_NAME.get(code, "UNKNOWN")
        self.details = details
        self.headers = headers or {}
        self.body = body
        self.media_type = media_type
        super().__init__(f"{code} {self.status}: {self.message}")

    def response(self) -> Response:
        """The reply that carries this error."""
        if self.body is not None:
            return Response(self.body, self.code, self.headers, self.media_type)
        error: dict[str, Any] = {"code": self.code, "message": self.message, "status": self.status}
        if self.details:
            error["details"] = self.details
        return Response(orjson.dumps({"error": error}, option=orjson.OPT_INDENT_2), self.code, self.headers, JSON)


def html_error(code: int, message: str | None = None, headers: dict[str, str] | None = None) -> ApiError:
    """The page a Google front end shows when the service behind it did not answer."""
    text = HTML.format(code=code, message=message or MESSAGE.get(code, "Error."))
    return ApiError(code, message, headers=headers, body=text, media_type="text/html; charset=UTF-8")


def error_info(reason: str, **metadata: str) -> dict[str, Any]:
    """A google.rpc.ErrorInfo detail."""
    return {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": reason,
        "domain": "googleapis.com",
        "metadata": {"service": "generativelanguage.googleapis.com", **metadata},
    }


def field_violations(violations: list[tuple[str, str]]) -> dict[str, Any]:
    """A google.rpc.BadRequest detail, from pairs of field path and description."""
    return {
        "@type": "type.googleapis.com/google.rpc.BadRequest",
        "fieldViolations": [
            {"field": field, "description": text} if field else {"description": text} for field, text in violations
        ],
    }


def retry_info(seconds: float) -> dict[str, Any]:
    """A google.rpc.RetryInfo detail."""
    return {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{seconds:g}s"}


def quota_failure(metric: str, *, model: str | None = None, limit: int | None = None) -> dict[str, Any]:
    """A google.rpc.QuotaFailure detail that names one quota."""
    violation: dict[str, Any] = {
        "quotaMetric": f"generativelanguage.googleapis.com/{metric}",
        "quotaId": f"{metric.title().replace('_', '')}PerProject{'PerModel' if model else ''}",
    }
    if model:
        violation["quotaDimensions"] = {"location": "global", "model": model}
    if limit is not None:
        violation["quotaValue"] = str(limit)
    return {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [violation]}


def help_links() -> dict[str, Any]:
    """The google.rpc.Help detail that quota errors carry."""
    link = {
        "description": "Learn more about Gemini API quotas",
        "url": "https://ai.google.dev/gemini-api/docs/rate-limits",
    }
    return {"@type": "type.googleapis.com/google.rpc.Help", "links": [link]}


def missing_key() -> ApiError:
    return ApiError(
        403,
        "Method doesn't allow unregistered callers (callers without established identity). "
        "Please use API Key or other form of API consumer identity to call this API.",
    )


def bad_key() -> ApiError:
    text = "API key not valid. Please pass a valid API key."
    localized = {"@type": "type.googleapis.com/google.rpc.LocalizedMessage", "locale": "en-US", "message": text}
    return ApiError(400, text, details=[error_info("API_KEY_INVALID"), localized])


def no_such_file(file_id: str) -> ApiError:
    """Missing, expired and foreign files look the same, and none of them is a 404."""
    return ApiError(403, f"You do not have permission to access the File {file_id} or it may not exist.")
