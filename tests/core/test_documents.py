from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_gemini_batch.core import documents
from airflow_gemini_batch.exceptions import StateTooNew, StateUnreadable

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda one: st.lists(one, max_size=3) | st.dictionaries(TEXT, one, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(TEXT.filter(lambda name: name not in ("kind", "version")), JSON))
def test_a_document_reads_back_as_it_was_written(body):
    parsed = documents.parse("plan", documents.dump("plan", body), where="x")
    assert {name: parsed[name] for name in body} == body
    assert (parsed["kind"], parsed["version"]) == ("plan", documents.VERSION)


def test_a_missing_document_is_none(tmp_path):
    assert documents.read("plan", tmp_path / "plan.json") is None
    assert documents.read("plan", tmp_path / "no" / "such" / "plan.json") is None


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"null", b"[]", b"5", b'"x"', b"{}", b'{"kind":"plan"}', b'{"kind":"plan","version":"1"}',
     b'{"kind":"round","version":1}', b'{"kind":"plan","version":null}', b"\xff\xfe", b'{"kind":"plan","version":1}garbage'],
)  # fmt: skip
def test_a_damaged_document_is_not_a_missing_one(tmp_path, data):
    path = tmp_path / "plan.json"
    path.write_bytes(data)
    with pytest.raises(StateUnreadable) as caught:
        documents.read("plan", path)
    assert str(path) in str(caught.value)
    assert caught.value.retryable


@given(st.data())
def test_no_part_of_a_document_passes_for_the_whole(data):
    whole = documents.dump("plan", {"number": 1, "rows": 3, "work": "w"})
    end = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(StateUnreadable):
        documents.parse("plan", whole[:end], where="x")


def test_a_document_of_a_later_release_asks_for_an_upgrade(tmp_path):
    path = tmp_path / "plan.json"
    path.write_bytes(orjson.dumps({"kind": "plan", "version": documents.VERSION + 1, "unheard": "of"}))
    with pytest.raises(StateTooNew, match="Upgrade") as caught:
        documents.read("plan", path)
    assert not caught.value.retryable


def test_what_is_there_but_cannot_be_opened_is_not_missing(tmp_path):
    (tmp_path / "plan.json").mkdir()
    with pytest.raises(StateUnreadable):
        documents.read("plan", tmp_path / "plan.json")
