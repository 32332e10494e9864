"""Where everything of a run lies, as paths under its output directory. Knows names only, no content."""

from __future__ import annotations

from dataclasses import dataclass

from airflow_gemini_batch.core.names import Slot
from airflow_gemini_batch.core.storage import StoragePath


@dataclass(frozen=True)
class OutputDirectory:
    """
    The directory the user named. Its parts are the table; ``_gemini_batch`` is ours (readers skip a leading ``_``).

    Plans are numbered and never overwritten: the highest is in force. What a plan refers to lies in a work directory of
    its own, so two attempts that plan at the same time, or a plan that replaces another, cannot touch each other's files.
    """

    path: StoragePath

    @property
    def state(self) -> StoragePath:
        return self.path / "_gemini_batch"  # type: ignore[no-any-return]

    @property
    def manifest(self) -> StoragePath:
        return self.state / "manifest.json"  # type: ignore[no-any-return]

    @property
    def quota(self) -> StoragePath:
        """A note on refusals for want of a quota, while there are nothing but."""
        return self.state / "quota.json"  # type: ignore[no-any-return]

    def plan(self, number: int) -> StoragePath:
        return self.state / f"plan-{number}.json"  # type: ignore[no-any-return]

    def part(self, slot: Slot, suffix: str) -> StoragePath:
        return self.path / f"part-{slot}.{suffix}"  # type: ignore[no-any-return]

    def unsettled_part(self, suffix: str) -> StoragePath:
        return self.path / f"part-unsettled.{suffix}"  # type: ignore[no-any-return]

    @property
    def failures(self) -> StoragePath:
        """The rows that are not ok, as ready-made requests."""
        return self.state / "failures.jsonl"  # type: ignore[no-any-return]

    @property
    def media(self) -> StoragePath:
        """Images and sounds of the answers."""
        return self.path / "media"  # type: ignore[no-any-return]

    def work(self, name: str) -> WorkDirectory:
        return WorkDirectory(self.state / name)


@dataclass(frozen=True)
class WorkDirectory:
    """One plan's files: what is sent, what came back, and the ledger."""

    path: StoragePath

    def _in(self, *parts: str) -> StoragePath:
        path = self.path
        for part in parts:
            path = path / part
        return path

    def round(self, number: int) -> StoragePath:
        return self._in(f"round-{number}.json")

    def requests(self, slot: Slot, home: str = "") -> StoragePath:
        """:param home: a directory of its own, for shards of a later round: two attempts may gather it at once."""
        return self._in(*filter(None, (home, "requests", f"{slot}.jsonl")))

    def rows(self, slot: Slot, home: str = "") -> StoragePath:
        return self._in(*filter(None, (home, "rows", f"{slot}.jsonl")))

    def results(self, slot: Slot) -> StoragePath:
        return self._in("results", f"{slot}.jsonl")

    def unsettled(self, slot: Slot) -> StoragePath:
        return self._in("unsettled", f"{slot}.jsonl")

    def failed(self, slot: Slot) -> StoragePath:
        """Rows that were settled in this slot and are not ok."""
        return self._in("failed", f"{slot}.jsonl")

    def rejected(self, slot: Slot) -> StoragePath:
        return self._in("rejected", f"{slot}.jsonl")

    def step(self, slot: Slot, name: str) -> StoragePath:
        return self._in("slots", str(slot), f"{name}.json")

    def prepared(self, slot: Slot, name: str, file: str) -> StoragePath:
        """
        :param name: of one preparation of a slot with media; each has a directory of its own, so two attempts may do it.
        :param file: ``sent``, ``unsendable`` or ``uploads``.
        """
        return self._in("prepared", f"{slot}-{name}", f"{file}.jsonl")

    @property
    def retired(self) -> StoragePath:
        """A note that this plan was replaced and cleaned up."""
        return self._in("retired.json")

    @property
    def told(self) -> StoragePath:
        """What metrics were told of this plan."""
        return self._in("told.json")

    @property
    def cleared(self) -> StoragePath:
        """A note that the task was cleared while an attempt of this plan ran."""
        return self._in("cleared.json")
