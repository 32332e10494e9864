"""
What an HTTP 429 says: which quota is exhausted, and when to come back. Knows the error's JSON, not how to wait.

Batch calls are often refused with a sentence and nothing else; interactive ones may name the quota (``QuotaFailure``) and
a time (``RetryInfo``). See https://ai.google.dev/gemini-api/docs/troubleshooting.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from airflow_gemini_batch.exceptions import QuotaExceeded

NOT_NAMED = "not named by the service"
DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)s")
"""``google.protobuf.Duration`` in JSON."""
NAMES = ("quotaMetric", "quotaId", "subject", "description")
"""Where a violation names its quota, the most telling first."""
DIMENSIONS = ("model", "location")
"""What narrows a quota down for people; the project and the consumer are the key's own."""


def quota_exceeded(error: object, said: str, *, phase: str, retry_after: str = "") -> QuotaExceeded:
    """
    Make the error of a 429.

    :param error: the ``error`` object of its JSON body, whatever that holds.
    :param said: the answer in a line.
    :param phase: what was being done, e.g. ``"create"``.
    :param retry_after: the header of this name, empty when there is none.
    """
    details = error.get("details") if isinstance(error, Mapping) else None
    found = [one for one in details if isinstance(one, Mapping)] if isinstance(details, list) else []
    quotas = dict.fromkeys(quota for detail in found for quota in _quotas(detail))
    waits = [seconds for detail in found if (seconds := _duration(detail.get("retryDelay"))) is not None]
    # A date is passed over: it would be measured with this host's clock.
    if (header := _duration(f"{retry_after.strip()}s")) is not None:
        waits.append(header)
    return QuotaExceeded(said, phase=phase, quota="; ".join(quotas) or NOT_NAMED, retry_after=max(waits, default=None))


def _quotas(detail: Mapping[str, Any]) -> Iterator[str]:
    """The violations of a ``google.rpc.QuotaFailure``, each in a few words."""
    violations = detail.get("violations")
    for violation in violations if isinstance(violations, list) else ():
        if not isinstance(violation, Mapping):
            continue
        name = next((violation[field] for field in NAMES if violation.get(field)), None)
        if name is None:
            continue
        dimensions = violation.get("quotaDimensions")
        known = dimensions if isinstance(dimensions, Mapping) else {}
        more = [f"{dimension} {known[dimension]}" for dimension in DIMENSIONS if known.get(dimension)]
        if violation.get("quotaId") and violation["quotaId"] != name:
            more.insert(0, str(violation["quotaId"]))
        if violation.get("quotaValue"):
            more.append(f"limit {violation['quotaValue']}")
        yield f"{name} ({', '.join(more)})" if more else str(name)


def _duration(value: object) -> float | None:
    matched = DURATION.fullmatch(value) if isinstance(value, str) else None
    seconds = float(matched[1]) if matched else math.nan
    return seconds if seconds > 0 else None
