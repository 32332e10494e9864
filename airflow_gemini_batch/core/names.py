"""Names that carry meaning, each built and parsed here and nowhere else."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

DISPLAY_NAME_CHARS = 128
"""Most characters in a display name that we send; the file API allows 512, the batch API documents no number."""


@dataclass(frozen=True, order=True)
class Slot:
    """A shard's place in a round: the unit of "submitted or not". Prints as ``r0-00007``."""

    round: int
    index: int

    def __str__(self) -> str:
        return f"r{self.round}-{self.index:05d}"

    @classmethod
    def parse(cls, text: str) -> Slot:
        """:raises ValueError: the text is not a slot's name."""
        if not (m := re.fullmatch(r"r(\d+)-(\d{5,})", text)):
            raise ValueError(f"not a slot name: {text!r}")
        return cls(int(m[1]), int(m[2]))


@dataclass(frozen=True)
class RunId:
    """One task instance's work. Never the try number: all tries of one task instance are the same work."""

    dag_id: str
    task_id: str
    run_id: str
    map_index: int = -1

    def __str__(self) -> str:
        mapped = f"[{self.map_index}]" if self.map_index >= 0 else ""
        return f"{self.dag_id}.{self.task_id}{mapped} of run {self.run_id}"

    def hash(self, work: str) -> str:
        """16 hex characters for this run and one plan's work directory."""
        parts = [self.dag_id, self.task_id, self.run_id, self.map_index, work]
        return hashlib.sha256(orjson.dumps(parts)).hexdigest()[:16]


@dataclass(frozen=True)
class DisplayName:
    """
    How a job of ours is found again: ``agb1.<run hash>.<slot>.<fingerprint> <dag_id>.<task_id>``.

    :param label: for people; cut so that the whole keeps to :data:`DISPLAY_NAME_CHARS`.
    """

    run_hash: str
    slot: Slot
    fingerprint: str
    label: str = ""

    def __str__(self) -> str:
        return f"agb1.{self.run_hash}.{self.slot}.{self.fingerprint} {self.label}"[:DISPLAY_NAME_CHARS].strip()

    @classmethod
    def parse(cls, text: str) -> DisplayName | None:
        """Return the name's parts, or None for a display name that is not ours."""
        m = re.fullmatch(r"agb1\.([0-9a-f]{16})\.(r\d+-\d{5,})\.([0-9a-f]{12})(?: (.*))?", text, re.DOTALL)
        return cls(m[1], Slot.parse(m[2]), m[3], m[4] or "") if m else None


def common_ai_name(identity: str, fingerprint: str) -> str:
    """
    ``agb1-common-ai.<identity>.<fingerprint>``: how a job of common.ai's ``LLMBatchOperator`` is found again.

    :param identity: of the task instance, the same for all its tries.
    :param fingerprint: of all that was asked for.
    """
    return f"agb1-common-ai.{identity}.{fingerprint}"[:DISPLAY_NAME_CHARS]


def common_ai_identity(display_name: str) -> str | None:
    """The identity in a name that :func:`common_ai_name` has built; None if it is another name."""
    found = re.fullmatch(r"agb1-common-ai\.([^.]+)\.[^.]*", display_name)
    return found[1] if found else None


def file_id(run_hash: str, slot: Slot, sha256: str) -> str:
    """
    The id we choose for a shard's upload: at most 40 characters of ``[a-z0-9-]``, from the run, slot and content.

    Two runs with the same content get two files, so that one run's clean-up never takes another's input away.
    """
    return "agb1-" + hashlib.sha256(f"{run_hash} {slot} {sha256}".encode()).hexdigest()[:32]


def media_id(run_hash: str, sha256: str, mime_type: str, generation: int) -> str:
    """
    The id of an upload of media: one per run, content and type, whichever slots and rounds it is for.

    :param generation: counts the uploads of one content; there is another when the one before will not live long enough.
    """
    text = f"{run_hash} media {sha256} {mime_type} {generation}"
    return "agb1-" + hashlib.sha256(text.encode()).hexdigest()[:32]


def media_display_name(run_hash: str, name: str) -> str:
    """``agb1.<run hash>.media <file name>``: whose it is can be told at the service."""
    return f"agb1.{run_hash}.media {name}"[:DISPLAY_NAME_CHARS].strip()


def wire_key(row: Mapping[str, Any]) -> str:
    """
    The key of a row's request as the service sees it: the row's own, after ``<prompt>/`` where a row has several prompts.

    A prompt's name has no slash, so two rows never get the same one.

    :param row: a line of a rows file: ``key``, and ``prompt`` if there are several.
    """
    prompt = row.get("prompt")
    return f"{prompt}/{row['key']}" if prompt is not None else row["key"]
