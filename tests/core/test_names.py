from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_gemini_batch.core.names import (
    DISPLAY_NAME_CHARS,
    DisplayName,
    RunId,
    Slot,
    file_id,
    media_display_name,
    media_id,
)

SLOTS = st.builds(Slot, st.integers(0, 10**6), st.integers(0, 10**9))
HEX = "0123456789abcdef"
NAMES = st.builds(
    DisplayName,
    st.text(HEX, min_size=16, max_size=16),
    SLOTS,
    st.text(HEX, min_size=12, max_size=12),
    st.text(st.characters(exclude_categories=["Cs"])).map(str.strip),
)


@given(SLOTS)
def test_a_slot_reads_back_from_its_name(slot):
    assert Slot.parse(str(slot)) == slot


def test_a_slot_prints_as_the_documentation_says():
    assert [str(Slot(0, 7)), str(Slot(12, 123456))] == ["r0-00007", "r12-123456"]


@given(st.lists(st.builds(Slot, st.integers(0, 9), st.integers(0, 99_999))))
def test_slots_sort_as_their_names_do(slots):
    assert [str(s) for s in sorted(slots)] == sorted(map(str, slots))


@pytest.mark.parametrize(
    "text", ["", "r0", "r0-7", "r0-0007", "0-00007", "r-00007", "r0-00007 ", "R0-00007", "r0-00007.jsonl"]
)
def test_what_is_no_slot_is_an_error(text):
    with pytest.raises(ValueError, match="not a slot name"):
        Slot.parse(text)


@given(NAMES)
def test_a_display_name_reads_back_but_for_a_label_that_was_too_long(name):
    text = str(name)
    assert len(text) <= DISPLAY_NAME_CHARS
    parsed = DisplayName.parse(text)
    assert parsed is not None
    assert (parsed.run_hash, parsed.slot, parsed.fingerprint) == (name.run_hash, name.slot, name.fingerprint)
    assert name.label.startswith(parsed.label)
    if len(f"agb1.{name.run_hash}.{name.slot}.{name.fingerprint} {name.label}") <= DISPLAY_NAME_CHARS:
        assert parsed == name


@given(NAMES)
def test_printing_what_was_parsed_changes_nothing(name):
    assert str(DisplayName.parse(str(name))) == str(name)


@pytest.mark.parametrize("text", ["", "my batch", "agb1", "agb2.0123456789abcdef.r0-00000.0123456789ab x",
                                  "agb1.0123456789abcde.r0-00000.0123456789ab x", "agb1.0123456789abcdef.r0-0.0123456789ab x",
                                  " agb1.0123456789abcdef.r0-00000.0123456789ab x",
                                  "agb1.0123456789abcdef.r0-00000.0123456789abx"])  # fmt: skip
def test_other_peoples_display_names_are_not_ours(text):
    assert DisplayName.parse(text) is None


def test_runs_that_differ_in_anything_have_different_hashes():
    base = RunId("d", "t", "r")
    others = [
        RunId("d2", "t", "r"),
        RunId("d", "t2", "r"),
        RunId("d", "t", "r2"),
        RunId("d", "t", "r", 0),
        RunId("dt", "", "r"),
    ]
    hashes = {run.hash("work") for run in (base, *others)} | {base.hash("other work")}
    assert len(hashes) == 7
    assert all(re.fullmatch("[0-9a-f]{16}", one) for one in hashes)
    assert base.hash("work") == RunId("d", "t", "r").hash("work")


def test_a_run_is_told_to_people_in_words():
    assert str(RunId("d", "t", "r", 3)) == "d.t[3] of run r"
    assert str(RunId("d", "t", "r")) == "d.t of run r"


@given(st.text(HEX), SLOTS, st.text(HEX))
def test_file_ids_are_what_the_files_api_takes(run_hash, slot, sha256):
    assert re.fullmatch("[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?", file_id(run_hash, slot, sha256))


def test_the_same_content_of_two_runs_or_slots_gets_two_files():
    ids = {file_id("run1", Slot(0, 0), "x"), file_id("run2", Slot(0, 0), "x"), file_id("run1", Slot(0, 1), "x")}
    assert len(ids | {file_id("run1", Slot(0, 0), "y")}) == 4


@given(st.text(HEX), st.text(HEX), st.text(), st.integers(0, 99))
def test_media_ids_are_what_the_files_api_takes(run_hash, sha256, mime_type, generation):
    assert re.fullmatch("[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?", media_id(run_hash, sha256, mime_type, generation))


def test_media_have_one_id_per_run_content_type_and_generation():
    others = [("2", "x", "a/b", 0), ("1", "y", "a/b", 0), ("1", "x", "a/c", 0), ("1", "x", "a/b", 1)]
    assert len({media_id("1", "x", "a/b", 0), *(media_id(*other) for other in others)}) == 5
    assert media_id("1", "x", "a/b", 0) == media_id("1", "x", "a/b", 0)


@given(st.text(HEX), st.text())
def test_media_are_named_after_their_run_within_the_limit(run_hash, name):
    shown = media_display_name(run_hash, name)
    assert len(shown) <= DISPLAY_NAME_CHARS
    assert DisplayName.parse(shown) is None, "it is no shard's"
