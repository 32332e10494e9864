from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from airflow_gemini_batch.core import documents, storage
from airflow_gemini_batch.core.answers import Oddities
from airflow_gemini_batch.core.jobs import JobError
from airflow_gemini_batch.core.layout import WorkDirectory
from airflow_gemini_batch.core.ledger import Entry, Landed, Ledger, Prepared, Submitted
from airflow_gemini_batch.core.names import Slot
from airflow_gemini_batch.core.remote_files import RemoteFile
from airflow_gemini_batch.core.usage import Usage
from airflow_gemini_batch.exceptions import StateTooNew, StateUnreadable

SLOT = Slot(0, 3)
JOB = Submitted("batches/x", "gemini-2.5-flash", "files/f", 1000.5, adopted=True)
LANDED = Landed(
    "part-r0-00003.parquet", "parquet", "FAILED", {"ok": 2}, 1, 1, Usage(1, 2, 3, 4, 5), Oddities(1, 2, 3),
    JobError(13, "broken"),
)  # fmt: skip


@pytest.fixture
def ledger(tmp_path, clock) -> Ledger:
    return Ledger(WorkDirectory(tmp_path), clock)


def test_a_slot_of_which_nothing_is_known_has_an_empty_entry(ledger):
    assert ledger.read(SLOT) == Entry(SLOT)


def test_an_upload_reads_back(ledger):
    for file in (RemoteFile("files/a", 10, 5.5), RemoteFile("files/b", 0, None)):
        ledger.uploaded(SLOT, file)
        assert ledger.read(SLOT).upload == file


def test_a_claim_says_who_when_and_under_which_name(ledger, clock):
    claim = ledger.claim(SLOT, 1, "agb1.x")
    assert claim is not None
    assert (claim.number, claim.display_name, claim.at, claim.open) == (1, "agb1.x", clock.now, True)
    assert str(os.getpid()) in claim.by
    assert ledger.read(SLOT).claims == (claim,)
    assert ledger.read(SLOT).doubtful == claim


def test_a_claim_can_be_made_once(ledger):
    assert ledger.claim(SLOT, 1, "a")
    assert ledger.claim(SLOT, 1, "b") is None
    assert [claim.display_name for claim in ledger.read(SLOT).claims] == ["a"]


def test_one_of_many_attempts_gets_a_claim(ledger):
    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(lambda _: ledger.claim(SLOT, 1, "a"), range(8)))
    assert sum(claim is not None for claim in claims) == 1


def test_a_refused_claim_is_no_doubt_and_the_next_one_is(ledger):
    first = ledger.claim(SLOT, 1, "a")
    ledger.refused(SLOT, first, "quota")
    entry = ledger.read(SLOT)
    assert [claim.refused for claim in entry.claims] == ["quota"]
    assert entry.doubtful is None
    second = ledger.claim(SLOT, 2, "a")
    assert ledger.read(SLOT).doubtful == second


def test_a_recorded_job_ends_all_doubt(ledger):
    ledger.claim(SLOT, 1, "a")
    ledger.submitted(SLOT, JOB)
    entry = ledger.read(SLOT)
    assert entry.submitted == JOB
    assert entry.doubtful is None


def test_the_time_of_a_cancel_is_kept(ledger, clock):
    ledger.submitted(SLOT, JOB)
    assert ledger.cancelled(SLOT) == clock.now
    assert ledger.read(SLOT).cancelled_at == clock.now


@pytest.mark.parametrize("landed", [LANDED, Landed(None, "csv", "SUCCEEDED", {}, 0, 0, Usage(), Oddities())])
def test_a_landing_reads_back(ledger, landed):
    ledger.landed(SLOT, landed)
    assert ledger.read(SLOT).landed == landed


def test_slots_do_not_mix(ledger):
    ledger.submitted(SLOT, JOB)
    assert ledger.read(Slot(1, 3)) == Entry(Slot(1, 3))


STEPS = ["upload", "claim-1", "refused-1", "job", "cancel", "landed"]


def fill(ledger: Ledger, step: str) -> None:
    """Write everything up to this step, so that it would be read."""
    claim = ledger.claim(SLOT, 1, "a")
    if step in ("upload", "claim-1", "refused-1"):
        ledger.uploaded(SLOT, RemoteFile("files/a", 1))
        ledger.refused(SLOT, claim, "x")
    else:
        ledger.submitted(SLOT, JOB)
        ledger.cancelled(SLOT)
        ledger.landed(SLOT, LANDED)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("damage", ["cut", "empty", "other kind", "directory"])
def test_a_step_that_cannot_be_read_is_never_taken_for_missing(ledger, step, damage):
    """Only "there is no claim" may lead to a paid request; "could not read the claim" must not."""
    fill(ledger, step)
    path = ledger.work.step(SLOT, step)
    data = path.read_bytes()
    path.unlink()
    if damage == "directory":
        path.mkdir()
    else:
        path.write_bytes({"cut": data[:-5], "empty": b"", "other kind": documents.dump("plan", {})}[damage])
    with pytest.raises(StateUnreadable) as caught:
        ledger.read(SLOT)
    assert caught.value.retryable


@pytest.mark.parametrize("step", STEPS)
def test_a_step_of_a_later_release_stops_this_one(ledger, step):
    fill(ledger, step)
    path = ledger.work.step(SLOT, step)
    path.write_bytes(path.read_bytes().replace(b'"version": 1', b'"version": 2'))
    with pytest.raises(StateTooNew):
        ledger.read(SLOT)


@pytest.mark.parametrize("step", STEPS)
def test_what_a_later_release_adds_to_a_step_is_passed_over(ledger, step):
    fill(ledger, step)
    before = ledger.read(SLOT)
    path = ledger.work.step(SLOT, step)
    storage.publish(path, path.read_bytes().replace(b'"kind"', b'"new_thing": 1, "kind"'))
    assert ledger.read(SLOT) == before


@pytest.mark.parametrize("step", ["upload", "claim-1", "job", "landed"])
def test_a_step_that_lacks_its_parts_is_unreadable(ledger, step):
    fill(ledger, step)
    storage.publish(ledger.work.step(SLOT, step), documents.dump(step.removesuffix("-1"), {}))
    with pytest.raises(StateUnreadable):
        ledger.read(SLOT)


PREPARED = Prepared("abc", 9, 1, 1234, "f" * 64, 1_900_000_000.5)


def test_a_preparation_reads_back(ledger):
    assert ledger.preparation(SLOT) is None
    for prepared in (PREPARED, replace(PREPARED, media_until=None)):
        ledger.prepared(SLOT, prepared)
        assert ledger.preparation(SLOT) == prepared
    assert ledger.preparation(Slot(1, 3)) is None


def test_a_preparation_that_cannot_be_read_is_never_taken_for_missing(ledger):
    path = ledger.work.step(SLOT, "prepared")
    storage.publish(path, b"{")
    with pytest.raises(StateUnreadable):
        ledger.preparation(SLOT)
    storage.publish(path, documents.dump("prepared", {"name": "x"}))
    with pytest.raises(StateUnreadable):
        ledger.preparation(SLOT)


def test_the_removal_of_media_is_kept(ledger):
    assert not ledger.are_media_removed(SLOT)
    ledger.media_removed(SLOT)
    assert ledger.are_media_removed(SLOT)
    assert ledger.read(SLOT) == Entry(SLOT)
