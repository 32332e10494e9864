"""Numbers in sentences, for logs and errors."""

from __future__ import annotations

from decimal import Decimal


def counted(number: int, thing: str) -> str:
    """``1 job``, ``2,000 jobs``."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def dollars(amount: float | Decimal | None) -> str:
    """US dollars to the sixth decimal."""
    return f"{amount:.6f} USD" if amount is not None else "unknown"
