"""
What should go wrong, as a value.

A :class:`Faults` says what; how often it has already gone wrong is counted in the server (:class:`Counters`), so the
same value can be used twice. Fields that hold keys take a set of keys; ``"*"`` in it means every key.
"""

from __future__ import annotations

import dataclasses
import random
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from airflow_gemini_batch.emulator.clock import SECOND, Clock
from airflow_gemini_batch.emulator.errors import MESSAGE, ApiError, help_links, html_error, quota_failure, retry_info

QUOTA = (
    "You exceeded your current quota, please check your plan and billing details. For more information on this error, "
    "head to: https://ai.google.dev/gemini-api/docs/rate-limits."
)
CALLS = (
    "create", "create_embeddings", "get", "list", "cancel", "delete", "update", "upload_start", "upload_chunk",
    "upload_query", "upload_cancel", "upload_raw", "upload_multipart", "file_get", "file_list", "file_delete",
    "download", "models", "model_list", "count_tokens",
)  # fmt: skip
END_STATES = ("SUCCEEDED", "FAILED", "CANCELLED", "EXPIRED", "PARTIALLY_SUCCEEDED")
V = TypeVar("V", bound="Value")


class FaultsError(ValueError):
    """A fault was asked for that does not exist, or with a value of the wrong kind."""


class Value:
    """Reading and writing for the dataclasses below; names it does not know are refused."""

    @classmethod
    def from_dict(cls: type[V], data: Mapping[str, Any]) -> V:
        """
        Read what JSON can hold.

        :raises FaultsError: an unknown name, which it lists with the known ones, or a value of the wrong kind.
        """
        if not isinstance(data, Mapping):
            raise FaultsError(f"{cls.__name__} needs an object, not {data!r}")
        known = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
        if unknown := sorted(set(data) - set(known)):
            raise FaultsError(
                f"Unknown field in {cls.__name__}: {', '.join(unknown)}. Known: {', '.join(sorted(known))}"
            )
        try:
            return cls(**data)
        except (TypeError, AttributeError, KeyError) as e:
            raise FaultsError(f"Bad value in {cls.__name__}: {e}") from e

    def to_dict(self) -> dict[str, Any]:
        """Only what differs from the default, as JSON can hold it."""
        return {
            f.name: _plain(value)
            for f in dataclasses.fields(self)  # type: ignore[arg-type]
            if (value := getattr(self, f.name)) != _default(f)
        }


@dataclass(frozen=True)
class HttpError(Value):
    """
    A call that is refused.

    :param times: how often; None means always.
    :param skip: how many calls are let through first.
    :param seconds: for how long, by the emulator's clock, from the moment when the faults were set; None: for ever.
    :param retry_seconds: adds a RetryInfo detail; ``retry_after`` adds the header. Neither is sent by default.
    :param quota: adds a QuotaFailure detail that names this metric, e.g. ``"batch_enqueued_tokens"``.
    :param html: a front end's HTML page instead of JSON. ``body`` is sent as it is.
    :param recorded: the call is carried out before it is refused, as when only the reply was lost.
    """

    status: int = 503
    times: int | None = None
    skip: int = 0
    seconds: float | None = None
    message: str | None = None
    rpc_status: str | None = None
    retry_seconds: float | None = None
    retry_after: float | None = None
    quota: str | None = None
    help: bool = False
    html: bool = False
    body: str | None = None
    recorded: bool = False

    def error(self) -> ApiError:
        headers = {} if self.retry_after is None else {"Retry-After": f"{self.retry_after:g}"}
        if self.html:
            return html_error(self.status, self.message, headers)
        details = [help_links()] if self.help else []
        details += [] if self.quota is None else [quota_failure(self.quota)]
        details += [] if self.retry_seconds is None else [retry_info(self.retry_seconds)]
        message = self.message or (QUOTA if self.status == 429 and details else None)
        return ApiError(
            self.status, message, status=self.rpc_status, details=details, headers=headers, body=self.body,
            media_type="text/plain" if self.body else "application/json; charset=UTF-8",
        )  # fmt: skip


@dataclass(frozen=True)
class RowError(Value):
    """An error instead of an answer. ``code`` is a gRPC number; a key fails ``times`` times, None for always."""

    code: int = 13
    message: str = MESSAGE[500]
    details: tuple[Any, ...] = ()
    times: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "details", tuple(self.details))


@dataclass(frozen=True)
class Truncation(Value):
    """
    A download that stops early.

    :param at: where; a fraction of the file below 1, otherwise bytes.
    :param how: ``"drop"``: Content-Length tells the truth and the connection breaks; ``"short"``: a clean reply whose
        Content-Length is that of the shorter body; ``"chunked"``: no Content-Length and the connection breaks.
    :param times: how many downloads; None means all.
    """

    at: float = 0.5
    how: str = "drop"
    times: int | None = None

    def __post_init__(self) -> None:
        if self.how not in ("drop", "short", "chunked"):
            raise FaultsError(f"Truncation.how is 'drop', 'short' or 'chunked', not {self.how!r}")


@dataclass(frozen=True)
class Faults(Value):
    """
    Everything that can be made to go wrong. The default is that nothing does.

    Calls; the name of a call is what ``Emulator.calls`` counts it under, ``"*"`` means any:

    :param http_errors: call → :class:`HttpError`, or a list of them, used up in order.
    :param drop_before: call → how many times the connection is closed before anything is done.
    :param drop_after: call → how many times it is closed after the work was done, instead of a reply.
    :param delay_seconds: call → seconds before the reply. A shorter ``X-Server-Timeout`` gives 504 first.
    :param upload_chunk_no_status: how many chunks are refused with a 503 without ``X-Goog-Upload-Status``.
    :param slow_body: bytes per second of a download.
    :param truncate_download: a :class:`Truncation`.

    Rows of a result:

    :param shuffle_rows: rows come in another order than they were asked.
    :param drop_keys: keys that get no line at all. ``keyless_keys`` lose their ``key`` (inline: their ``metadata``).
    :param duplicate_keys: keys that get two lines.
    :param rename_keys: old key → the key it comes back under.
    :param extra_keys: keys nobody asked for.
    :param corrupt_lines: numbers (from 1) of lines whose JSON is cut short. In result files only.
    :param fail_keys: key → :class:`RowError`.
    :param fail_ratio: share of rows that get ``fail_error``; which ones depends on the key and ``fail_seed``.
    :param fail_ratio_jobs: how many jobs, in order of creation, have such failures; None means all.
    :param error_details: row errors carry an object in ``details``, as real ones do; the SDK cannot read it inline.
    :param blocked_keys: the prompt is blocked: no candidates, a block reason.
    :param blocked_answer_keys: the answer is blocked: finish reason SAFETY, no parts.
    :param empty_keys: a candidate without parts. ``truncate_keys``: half an answer and MAX_TOKENS.
    :param thought_only_keys: MAX_TOKENS while still thinking, so no answer.
    :param bad_json_keys: JSON answers are cut short, though with STOP.
    :param no_usage_keys: answers that do not say what they used.
    :param degenerate_json_schema: requests with ``responseJsonSchema`` are answered with JSON that does not fit it.
    :param no_trailing_newline: of the result file. ``blank_lines``, ``crlf``: its lines.

    Jobs:

    :param stuck: ``"PENDING"`` or ``"RUNNING"``: where jobs stay until they expire; ``stuck_models``: by model.
    :param end_state: how jobs end instead of SUCCEEDED. ``end_state_jobs``: how many jobs; None means all.
    :param end_error: the operation's ``error``; None means a usual one. ``end_without_error`` leaves it out.
    :param end_results: share of rows a job that ends otherwise has answers for; None: 1 if PARTIALLY_SUCCEEDED, else 0.
    :param unknown_state: what jobs say instead of their state, for ``unknown_state_looks`` looks (None: for ever).
    :param output_only_in_response: leaves ``metadata.output`` out. ``output_only_in_metadata`` leaves ``response`` out.
    :param cancel_ignored: a cancel is accepted and does nothing. ``cancel_race``: the job succeeds at that moment.
    :param list_lag: seconds before a new job is in the list. ``list_hides_output``: the list shows no outputs at all.
    :param hide_files: ids of files that are said not to exist, ``"*"`` for all.
    :param fail_files: MIME types of uploads whose processing ends as FAILED, ``"*"`` for all.
    """

    http_errors: Mapping[str, Any] = field(default_factory=dict)
    drop_before: Mapping[str, int] = field(default_factory=dict)
    drop_after: Mapping[str, int] = field(default_factory=dict)
    delay_seconds: Mapping[str, float] = field(default_factory=dict)
    upload_chunk_no_status: int = 0
    slow_body: int | None = None
    truncate_download: Truncation | Mapping[str, Any] | None = None

    shuffle_rows: bool = False
    drop_keys: Iterable[str] = frozenset()
    keyless_keys: Iterable[str] = frozenset()
    duplicate_keys: Iterable[str] = frozenset()
    rename_keys: Mapping[str, str] = field(default_factory=dict)
    extra_keys: Iterable[str] = ()
    corrupt_lines: Iterable[int] = frozenset()
    fail_keys: Mapping[str, Any] = field(default_factory=dict)
    fail_ratio: float = 0.0
    fail_ratio_jobs: int | None = None
    fail_error: RowError | Mapping[str, Any] = field(default_factory=RowError)
    fail_seed: int = 0
    error_details: bool = False
    blocked_keys: Iterable[str] = frozenset()
    blocked_answer_keys: Iterable[str] = frozenset()
    empty_keys: Iterable[str] = frozenset()
    truncate_keys: Iterable[str] = frozenset()
    thought_only_keys: Iterable[str] = frozenset()
    bad_json_keys: Iterable[str] = frozenset()
    no_usage_keys: Iterable[str] = frozenset()
    degenerate_json_schema: bool = False
    no_trailing_newline: bool = False
    blank_lines: bool = False
    crlf: bool = False

    stuck: str | None = None
    stuck_models: Mapping[str, str] = field(default_factory=dict)
    end_state: str | None = None
    end_state_jobs: int | None = None
    end_error: Mapping[str, Any] | None = None
    end_without_error: bool = False
    end_results: float | None = None
    unknown_state: str | None = None
    unknown_state_looks: int | None = None
    output_only_in_response: bool = False
    output_only_in_metadata: bool = False
    cancel_ignored: bool = False
    cancel_race: bool = False
    list_lag: float = 0.0
    list_hides_output: bool = False
    hide_files: Iterable[str] = frozenset()
    fail_files: Iterable[str] = frozenset()

    def __post_init__(self) -> None:
        _set(self, "http_errors", {call: _http_errors(spec) for call, spec in self.http_errors.items()})
        _set(self, "fail_keys", {key: _value(RowError, spec) for key, spec in self.fail_keys.items()})
        _set(self, "fail_error", _value(RowError, self.fail_error))
        if self.truncate_download is not None:
            _set(self, "truncate_download", _value(Truncation, self.truncate_download))
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if f.type == "Iterable[str]" or f.type == "Iterable[int]":
                if isinstance(value, str):
                    raise FaultsError(f"Faults.{f.name} takes a collection, not the string {value!r}")
                _set(self, f.name, tuple(value) if f.name == "extra_keys" else frozenset(value))
            elif f.type == "bool" and not isinstance(value, bool):
                raise FaultsError(f"Faults.{f.name} is true or false, not {value!r}")
            elif f.type == "float" and not isinstance(value, (int, float)):
                raise FaultsError(f"Faults.{f.name} is a number, not {value!r}")
        for name in ("http_errors", "drop_before", "drop_after", "delay_seconds"):
            if unknown := sorted(set(getattr(self, name)) - {*CALLS, "*"}):
                raise FaultsError(f"Faults.{name} has no call {', '.join(unknown)}. Calls: {', '.join(CALLS)}, *")
        if self.end_state is not None and self.end_state.upper() not in END_STATES:
            raise FaultsError(f"Faults.end_state is one of {', '.join(END_STATES)}, not {self.end_state!r}")
        for state in (self.stuck, *self.stuck_models.values()):
            if state not in (None, "PENDING", "RUNNING"):
                raise FaultsError(f"A job can be stuck in PENDING or RUNNING, not in {state!r}")


class Counters:
    """How often each fault of the current :class:`Faults` has struck. Setting new faults starts a new count."""

    def __init__(self, faults: Faults, clock: Clock) -> None:
        self.faults, self._clock, self._since = faults, clock, clock.now()
        self._struck: dict[tuple[Any, ...], int] = {}
        self._claims: dict[str, set[str]] = {}
        self._lock = threading.Lock()

    def strikes(self, *name: Any, times: int | None, skip: int = 0) -> bool:
        """Whether the fault of this name strikes now; counts it if so."""
        with self._lock:
            count = self._struck.get(name, 0)
            if times is not None and count >= skip + times:
                return False
            self._struck[name] = count + 1
            return count >= skip

    def claims(self, fault: str, job: str, *, jobs: int | None) -> bool:
        """Whether the job is one of the first ``jobs`` that ask; the answer for a job does not change."""
        with self._lock:
            owners = self._claims.setdefault(fault, set())
            if job not in owners and (jobs is None or len(owners) < jobs):
                owners.add(job)
            return job in owners

    def http_error(self, call: str, *, recorded: bool) -> HttpError | None:
        age = (self._clock.now() - self._since) / SECOND
        for name in (call, "*"):
            for number, spec in enumerate(self.faults.http_errors.get(name, ())):
                if spec.recorded is not recorded or (spec.seconds is not None and spec.seconds <= age):
                    continue
                if self.strikes("http", name, number, times=spec.times, skip=spec.skip):
                    return spec  # type: ignore[no-any-return]
        return None

    def drops(self, when: str, call: str) -> bool:
        """Whether the connection is closed now; ``when`` is ``"before"`` or ``"after"`` the work."""
        wanted: Mapping[str, int] = getattr(self.faults, f"drop_{when}")
        return any(name in wanted and self.strikes(when, name, times=wanted[name]) for name in (call, "*"))

    def row_error(self, key: str, *, failing_job: bool) -> RowError | None:
        """The error a row gets instead of an answer, if any."""
        for name in (key, "*"):
            spec: RowError | None = self.faults.fail_keys.get(name)
            if spec is not None and self.strikes("row", key, times=spec.times):
                return spec
        ratio = self.faults.fail_ratio
        if failing_job and ratio and random.Random(f"{self.faults.fail_seed} {key}").random() < ratio:
            return self.faults.fail_error  # type: ignore[return-value]
        return None


def hits(keys: Iterable[str], key: str) -> bool:
    """Whether a set of keys means this key."""
    return bool(keys) and (key in keys or "*" in keys)


def _set(value: object, name: str, new: object) -> None:
    object.__setattr__(value, name, new)


def _value(kind: type[V], spec: Any) -> V:
    return spec if isinstance(spec, kind) else kind.from_dict(spec)


def _http_errors(spec: Any) -> tuple[HttpError, ...]:
    if isinstance(spec, (list, tuple)):
        return tuple(_value(HttpError, one) for one in spec)
    return (_value(HttpError, spec),)


def _default(f: dataclasses.Field[Any]) -> Any:
    return f.default if f.default_factory is dataclasses.MISSING else f.default_factory()


def _plain(value: Any) -> Any:
    if isinstance(value, Value):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return value
