"""
How the emulated service is set up: its limits, and a choice wherever it is not known for sure how the real one behaves.

The default of each choice is the likelier behaviour.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from airflow_gemini_batch.emulator.faults import Value

GIB = 1024**3
HOUR = 3600.0
KNOWN_MODELS = (
    "gemini-2.5-pro", "gemini-2.5-flash", "gemini-2.5-flash-lite", "gemini-3-flash-preview", "gemini-3.1-pro-preview",
    "gemini-3.1-flash-lite", "gemini-3.5-flash", "gemini-3.5-flash-lite", "gemini-3.6-flash", "gemini-3.8-flash",
    "gemini-3-pro-image-preview", "gemini-3.1-flash-image-preview", "nano-banana-2.1", "gemini-2.5-flash-tts",
    "gemini-2.5-pro-tts", "gemini-3.1-flash-tts-preview", "gemini-4-argon", "gemini-embedding-001",
    "gemini-embedding-2",
)  # fmt: skip
# Model names change faster than this file, so any name of the usual form exists unless Options.models says otherwise.
USUAL_MODEL = re.compile(
    r"(gemini-(\d[\w.]*|flash|pro|embedding|robotics)[\w.-]*|gemma-\d[\w.-]*|nano-banana[\w.-]*|text-embedding-[\w.-]+)"
)


@dataclass(frozen=True)
class Options(Value):
    """
    Limits and choices. Sizes in bytes, times in seconds.

    :param models: the models that exist; None means every name of the usual form.
    :param answer_bytes: text answers are padded to this size; for tests with large results.
    :param image_side: pixels of the longer side of made-up images.
    :param results_wait: how long a look waits for a large result to be written before it says RUNNING.
    :param concurrent_jobs: jobs that may be under way in the project.
    :param enqueued_tokens: input tokens that may be under way per model, a number for all models or model → number;
        None: no limit. Tokens are counted as the answers count them.
    :param quota_details: whether a create refused by these two names the quota in a QuotaFailure [unsure].
    :param default_page_size: of lists without ``pageSize``; the service's own is not published.
    :param missing_input_status: what a create with an unknown file gets, 404 or 403 [unsure].
    :param inline_too_large_status: 400 or 413 [unsure].
    :param list_shows_result_files: whether ``GET /files`` shows ``files/batch-*`` [unsure].
    :param ended_errors: whether CANCELLED and EXPIRED operations have an ``error`` [unsure].
    :param cancelled_results: whether a cancelled job keeps the rows it had finished [unsure].
    :param cancelled_rows_as_errors: whether it lists the other rows too, with code 1 [unsure].
    :param unique_keys: whether a key used twice in a file is refused [unsure].
    :param bare_requests: whether a line may be a request without ``{"key", "request"}`` around it [unsure].
    :param flat_generation_fields: whether temperature and the like may stand beside ``contents`` [unsure].
    :param range_requests: whether downloads honour ``Range`` [unsure].
    :param cancel_ended_status: 200, or 400 if a cancel after the end is refused [unsure].
    :param webhook_tries: how often a message is sent that is not taken, with pauses that begin with ``webhook_pause`` and
        double; the service's own go on for a day.
    :param webhook_repeats: how often a message is sent again that was taken: "at least once" is all that is promised.
    :param refused_mime_types: MIME types refused when an upload is finalized.
    :param processed_mime_types: what the MIME types of uploads begin with that are PROCESSING at first; by default all.
    """

    models: Collection[str] | None = None
    answer_bytes: int = 0
    image_side: int = 32
    results_wait: float = 5.0
    max_file_bytes: int = 2 * GIB
    storage_bytes: int = 20 * GIB
    inline_bytes: int = 20 * 1024**2
    concurrent_jobs: int = 100
    enqueued_tokens: int | Mapping[str, int] | None = None
    quota_details: bool = False
    default_page_size: int = 50
    max_page_size: int = 1000
    file_seconds: float = 48 * HOUR
    job_expiry_seconds: float = 48 * HOUR
    result_seconds: float = 42 * 24 * HOUR
    missing_input_status: int = 404
    inline_too_large_status: int = 400
    list_shows_result_files: bool = False
    ended_errors: bool = True
    cancelled_results: bool = False
    cancelled_rows_as_errors: bool = True
    unique_keys: bool = False
    bare_requests: bool = False
    flat_generation_fields: bool = False
    range_requests: bool = False
    cancel_ended_status: int = 200
    webhook_tries: int = 6
    webhook_pause: float = 1.0
    webhook_repeats: int = 0
    refused_mime_types: Collection[str] = ()
    processed_mime_types: Collection[str] = ("",)

    def has_model(self, name: str) -> bool:
        """Whether the bare model name exists."""
        if self.models is not None:
            return name in self.models
        return name in KNOWN_MODELS or USUAL_MODEL.fullmatch(name) is not None

    def tokens_allowed(self, model: str) -> int | None:
        """Input tokens that may be under way for a model, None for any number."""
        return self.enqueued_tokens.get(model) if isinstance(self.enqueued_tokens, Mapping) else self.enqueued_tokens
