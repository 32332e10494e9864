"""What became of one row: its status, and what its answer says. Knows nothing of files, formats or jobs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from airflow_gemini_batch.core.usage import Usage


class Status(StrEnum):
    """What became of one row."""

    OK = "ok"
    ERROR = "error"
    BLOCKED = "blocked"
    TRUNCATED = "truncated"
    INVALID_OUTPUT = "invalid_output"
    EMPTY = "empty"
    MISSING = "missing"


CODES: dict[int, tuple[str, bool]] = {
    1: ("CANCELLED", True),
    2: ("UNKNOWN", True),
    3: ("INVALID_ARGUMENT", False),
    4: ("DEADLINE_EXCEEDED", True),
    5: ("NOT_FOUND", False),
    6: ("ALREADY_EXISTS", False),
    7: ("PERMISSION_DENIED", False),
    8: ("RESOURCE_EXHAUSTED", True),
    9: ("FAILED_PRECONDITION", False),
    10: ("ABORTED", True),
    11: ("OUT_OF_RANGE", False),
    12: ("UNIMPLEMENTED", False),
    13: ("INTERNAL", True),
    14: ("UNAVAILABLE", True),
    15: ("DATA_LOSS", False),
    16: ("UNAUTHENTICATED", False),
}
"""
Errors of rows and of FAILED jobs are gRPC codes (``google.rpc.Status``): number → name, and whether it may pass by itself.
The others, and numbers that are not in here, are final: the same request would fail again. A FAILED job without a code may
pass, and any with another model. Rows of media that are gone are an exception, see ``collecting.MEDIA_GONE_CODES``.
"""

PASSING_CODES = frozenset(code for code, (_, passing) in CODES.items() if passing)


@dataclass(slots=True)
class Result:
    """
    One row's outcome.

    :param usage: what this one answer cost in tokens; None when there was no answer.
    :param output: the answer under an output schema, as plain JSON values.
    :param embedding: the vector, for embeddings.
    :param media: URIs of the files that the answer's images and sounds were written to.
    :param extras: parts of the response that were asked for, by column: JSON as text, or text; see ``reading.EXTRAS``.
    """

    key: str
    status: Status
    text: str | None = None
    finish_reason: str | None = None
    block_reason: str | None = None
    error_code: int | None = None
    error_message: str | None = None
    model_version: str | None = None
    response_id: str | None = None
    usage: Usage | None = None
    raw: str | None = None
    prompt: str | None = None
    output: Any = None
    embedding: list[float] | None = None
    media: list[str] | None = None
    extras: Mapping[str, str] = field(default_factory=dict)

    @property
    def passing(self) -> bool:
        """It failed for a reason that may pass: asking again can help."""
        return self.status is Status.MISSING or (self.status is Status.ERROR and self.error_code in PASSING_CODES)

    @property
    def prompt_tokens(self) -> int | None:
        return self.usage.prompt_tokens if self.usage else None

    @property
    def output_tokens(self) -> int | None:
        return self.usage.output_tokens if self.usage else None

    @property
    def thoughts_tokens(self) -> int | None:
        return self.usage.thoughts_tokens if self.usage else None

    @property
    def cached_tokens(self) -> int | None:
        return self.usage.cached_tokens if self.usage else None

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None and value != {}}

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Result:
        fields = dict(body)
        fields["status"] = Status(fields["status"])
        if "usage" in fields:
            fields["usage"] = Usage(**fields["usage"])
        return cls(**fields)
