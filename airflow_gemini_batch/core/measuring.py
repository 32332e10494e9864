"""What requests will use and cost, reckoned while they are written: of every request, or of a sample of many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from airflow_gemini_batch.core.columns import Column
from airflow_gemini_batch.core.estimate import Estimate, Estimator

WHOLE = 2000
"""Requests of a shard that are all counted; of those after them every :data:`EACH`-th."""

EACH = 64

HELD_BYTES = 1 << 20
"""Of requests, held until they are counted: together, as many of them have the same settings."""


class Measure:
    """
    :param exact: count every request: for a budget that must hold.
    """

    def __init__(self, estimator: Estimator, *, exact: bool) -> None:
        self._estimator, self._exact = estimator, exact
        self._begin()

    def _begin(self) -> None:
        self._bytes = self._sampled_bytes = self._requests = self._held = 0
        self._sampled: list[bytes] = []
        self._sum = Estimate()

    def input_tokens(self, line: bytes) -> int:
        """Of one request."""
        return self._estimator.request(line).input_tokens if line else 0

    def add(self, line: bytes) -> None:
        number = self._requests
        self._requests += 1
        self._bytes += len(line)
        if self._exact or number < WHOLE or not number % EACH:
            self._hold([line])

    def add_many(self, lines: Column, size: int) -> None:
        """:param size: bytes of all of them."""
        first, more = self._requests, len(lines)
        wanted = range(more) if self._exact or first + more <= WHOLE else range(-first % EACH, more, EACH)
        sampled = [text.encode() for text in lines.take(list(wanted)).to_pylist()] if wanted else []
        self._requests += more
        self._bytes += size
        self._hold(sampled)

    def _hold(self, lines: list[bytes]) -> None:
        size = sum(map(len, lines))
        self._sampled_bytes += size
        self._held += size
        self._sampled += lines
        if self._held >= HELD_BYTES:
            self._reckon()

    def shard(self) -> Estimate:
        """The estimate of what was added since the last call."""
        self._reckon()
        found, requests = self._sum, self._requests
        if found.requests < requests:
            scaled = {name: _scaled(getattr(found, name), self._bytes, self._sampled_bytes) for name in SUMS}
            notes = {f"{note}, of a sample": times for note, times in found.notes.items()}
            found = replace(found, requests=requests, notes=notes, **scaled)  # type: ignore[arg-type]
        self._begin()
        return found

    def _reckon(self) -> None:
        if self._sampled:
            self._sum += self._estimator.estimate(self._sampled)
            self._sampled.clear()
            self._held = 0


SUMS = ("input_tokens", "output_tokens", "pico_usd")


def _scaled(amount: int | None, whole: int, part: int) -> int | None:
    return None if amount is None or not part else amount * whole // part


def estimate_of(body: Mapping[str, object] | None) -> Estimate:
    """Read one back from a document; those that an older release wrote have none."""
    return Estimate(**body) if body else Estimate(pico_usd=None)  # type: ignore[arg-type]
