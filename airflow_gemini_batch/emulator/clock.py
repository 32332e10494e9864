"""Time as the emulator sees it: the wall clock plus an offset that tests move."""

from __future__ import annotations

import time
from datetime import UTC, datetime

SECOND = 1_000_000_000  # nanoseconds, the unit of every time kept in the emulator


class Clock:
    """The wall clock, shifted by :meth:`advance`. Never goes back."""

    def __init__(self) -> None:
        self._offset = 0

    def now(self) -> int:
        """Nanoseconds since the epoch."""
        return time.time_ns() + self._offset

    def advance(self, seconds: float) -> None:
        """Let this many seconds pass at once."""
        if seconds < 0:
            raise ValueError(f"The clock cannot go back ({seconds} s)")
        self._offset += round(seconds * SECOND)


def timestamp(at: int) -> str:
    """RFC 3339 in UTC with nanoseconds, as the service writes it."""
    seconds, fraction = divmod(at, SECOND)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{fraction:09d}Z"
