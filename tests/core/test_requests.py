from __future__ import annotations

from datetime import date
from decimal import Decimal

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_gemini_batch.core.requests import NOTHING_TO_SEND, Prompt, RequestBuilder, Spec
from airflow_gemini_batch.core.rows import Row
from airflow_gemini_batch.exceptions import BadRow, InvalidConfig, UnknownColumn

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def builder(max_bytes: int = 1_000_000, **spec) -> RequestBuilder:
    return RequestBuilder(Spec("gemini-2.5-flash", **spec), max_bytes=max_bytes)


def build(values, max_bytes: int = 1_000_000, number: int = 0, **spec):
    return builder(max_bytes, **spec).build(Row(number, values))


def sent(values, **spec) -> dict:
    return orjson.loads(build(values, **spec).line)


def text_of(values, **spec) -> str:
    return sent(values, **spec)["request"]["contents"][0]["parts"][0]["text"]


# Prompts


@pytest.mark.parametrize(
    ("prompt", "filled"),
    [
        ("Sum up: {a}", "Sum up: x"),
        ("{a}", "x"),
        ("{ a }{b}{a}", "xyx"),
        ("{a b}: {ünï-1.5}", "spaced: odd"),
        ("{{a}}: {a}", "{a}: x"),
        ("{{{a}}}", "{x}"),
        ('{{"k": "{a}"}}', '{"k": "x"}'),
        ("{a}{{}}", "x{}"),
        ("no place", "no place"),
        ("{json}", '{"p":[1,null,"é"]}'),
        ("{list}", "[1,2]"),
        ("{n} {f} {t}", "7 1.5 True"),
        ("{day} {price}", "2026-01-02 1.20"),
        ("{a}[{null}]", "x[]"),
        ("{braces}", "{a} {{b}} {"),
    ],
)
def test_places_are_filled_and_everything_else_stays_as_written(prompt, filled):
    row = {
        "a": "x", "b": "y", "a b": "spaced", "ünï-1.5": "odd", "json": {"p": [1, None, "é"]}, "list": [1, 2],
        "n": 7, "f": 1.5,
        "t": True, "day": date(2026, 1, 2), "price": Decimal("1.20"), "null": None, "braces": "{a} {{b}} {",
    }  # fmt: skip
    assert text_of(row, prompt=prompt) == filled


@pytest.mark.parametrize(
    ("prompt", "brace", "at"), [("a {", "{", 3), ("}", "}", 1), ("{a", "{", 1), ("{}", "{}", 1), ("{{ }", "}", 4),
                                ("{a}}", "}", 4), ("x{ }", "{ }", 2)]
)  # fmt: skip
def test_a_lone_brace_is_an_error_that_says_where_and_how_to_write_it(prompt, brace, at):
    with pytest.raises(InvalidConfig) as caught:
        builder(prompt=prompt)
    assert f"a lone '{brace}' at character {at}" in str(caught.value)
    assert "{{ and }}" in str(caught.value)


@given(st.lists(TEXT, min_size=1), TEXT)
def test_any_text_can_be_written_literally_around_any_value(pieces, value):
    prompt = "{col}".join(piece.replace("{", "{{").replace("}", "}}") for piece in pieces)
    filled = Prompt.parse(prompt).fill({"col": value})
    blank = not value.strip() if len(pieces) > 1 else not pieces[0].strip()
    assert filled == ("" if blank else value.join(pieces))


@pytest.mark.parametrize(("setting", "spec"), [
    ("prompt", {"prompt": "{revew}"}),
    ("key", {"prompt": "{review}", "key": "revew"}),
    ("keep", {"prompt": "{review}", "keep": ("revew",)}),
])  # fmt: skip
def test_an_unknown_column_tells_the_setting_the_columns_and_a_likely_one(setting, spec):
    with pytest.raises(UnknownColumn) as caught:
        build({"review": "x", "id": 1}, **spec)
    assert f"{setting} names the column 'revew', which row 0 does not have" in str(caught.value)
    assert "'review', 'id'" in str(caught.value)
    assert "Did you mean 'review'?" in str(caught.value)


def test_only_the_columns_that_settings_name_need_be_read():
    made = builder(prompt="{a} {b}", key="id", keep=("stars", "a"))
    assert made.needed == {"a": "prompt", "b": "prompt", "id": "key", "stars": "keep"}


def test_a_prompt_without_places_is_told_apart():
    assert builder(prompt="hello").same_for_all
    assert not builder(prompt="hello {a}").same_for_all
    assert not builder().same_for_all


@pytest.mark.parametrize("values", [{"a": "", "b": None}, {"a": " \n", "b": ""}, {"a": None, "b": None}])
def test_a_row_with_nothing_in_its_places_is_not_sent_and_not_paid(values):
    request = build(values | {"c": 1}, prompt="Sum up {a} and {b}", keep=("c",))
    assert (request.line, request.unsent, request.keep) == (b"", NOTHING_TO_SEND, {"c": 1})


def test_a_row_with_one_place_filled_is_sent():
    assert text_of({"a": None, "b": "x"}, prompt="{a}{b}") == "x"


# Requests


@given(text=TEXT.filter(str.strip), key=TEXT.filter(str.strip))
def test_a_request_is_one_line_that_reads_back_as_it_was_meant(text, key):
    line = build({"t": text, "k": key}, prompt="{t}", key="k").line
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    body = orjson.loads(line)
    assert body["key"] == key
    assert body["request"]["contents"] == [{"parts": [{"text": text}], "role": "user"}]


def test_the_template_is_part_of_every_request():
    template = {"systemInstruction": {"parts": [{"text": "Be brief"}]}, "generationConfig": {"temperature": 0}}
    request = sent({"a": "x"}, prompt="{a}", template=template)["request"]
    assert {name: request[name] for name in template} == template
    assert request["contents"][0]["parts"] == [{"text": "x"}]


@pytest.mark.parametrize(
    ("value", "key"), [("abc", "abc"), (7, "7"), (" a ", " a "), (1.5, "1.5"), ("é\u2028😀", "é\u2028😀")]
)
def test_keys_are_text_as_it_stands(value, key):
    assert build({"id": value, "a": "x"}, prompt="{a}", key="id").key == key


@pytest.mark.parametrize("value", [None, "", "  \t"])
def test_a_row_without_a_key_is_refused(value):
    with pytest.raises(BadRow, match="row 4: the key column 'id' is empty"):
        build({"id": value, "a": "x"}, number=4, prompt="{a}", key="id")


def test_without_a_key_column_rows_are_numbered():
    assert [build({"text": "x"}, number=n).key for n in (0, 12)] == ["0", "12"]


@pytest.mark.parametrize(("values", "said"), [
    ({"id": "a", "t": "\ud800"}, "its text is not valid Unicode"),
    ({"id": "\udfff", "t": "x"}, "its key is not valid Unicode"),
    ({"id": "a", "t": {"deep": ["\ud800"]}}, "not valid Unicode"),
])  # fmt: skip
def test_text_that_is_not_unicode_is_refused_with_its_row(values, said):
    with pytest.raises(BadRow, match="row 3") as caught:
        build(values, number=3, prompt="{t}", key="id")
    assert said in str(caught.value)


def test_a_number_too_large_for_json_in_a_nested_value_names_its_row():
    with pytest.raises(BadRow, match="row 3"):
        build({"t": {"n": 2**70}}, number=3, prompt="{t}")


def test_a_request_over_the_limit_names_row_key_and_sizes():
    with pytest.raises(BadRow) as caught:
        build({"id": "k1", "a": "x" * 2000}, max_bytes=1500, prompt="{a}", key="id")
    assert "'k1'" in str(caught.value)
    assert "1,500" in str(caught.value)


def test_a_request_of_exactly_the_limit_is_fine():
    size = len(build({"a": "x"}, prompt="{a}").line)
    assert build({"a": "x"}, max_bytes=size, prompt="{a}").line
    with pytest.raises(BadRow):
        build({"a": "x"}, max_bytes=size - 1, prompt="{a}")


# Strings and ready-made requests


def test_bare_strings_are_prompts():
    assert text_of({"text": "hello"}) == "hello"
    assert build({"text": "  "}).unsent == NOTHING_TO_SEND


def test_columns_without_a_prompt_are_an_error_that_says_what_to_give():
    with pytest.raises(InvalidConfig, match=r"'review'.*Give a prompt"):
        build({"review": "x"})


def test_a_ready_made_request_is_sent_as_it_is_under_its_key():
    request = {"contents": [{"role": "user", "parts": [{"text": "hi"}]}], "generationConfig": {"topK": 3}}
    line = sent({"key": "a", "request": request}, template={"safetySettings": [1], "generationConfig": {"topK": 1}})
    assert line == {"key": "a", "request": request | {"safetySettings": [1]}}


def test_a_ready_made_request_without_a_key_gets_its_number():
    assert build({"request": {"contents": []}}, number=9).key == "9"


@pytest.mark.parametrize(("values", "said"), [
    ({"key": "a", "request": {}}, "must be a JSON object with contents"),
    ({"key": "a", "request": "hi"}, "must be a JSON object with contents"),
    ({"key": "a", "request": {"contents": []}, "model": "x"}, "has only key and request, not model"),
    ({"key": "", "request": {"contents": []}}, "key column 'key' is empty"),
    ({"key": "a", "request": {"contents": [{"parts": [{"text": "\ud800"}]}]}}, "not valid Unicode"),
    ({"key": "a", "request": {"contents": [{"parts": [{"text": Decimal(1)}]}]}}, "Decimal"),
    ({"key": "a", "request": {"contents": [{"parts": [{"inlineData": {"data": b"x"}}]}]}}, "bytes"),
])  # fmt: skip
def test_a_ready_made_request_that_cannot_be_sent_names_its_row(values, said):
    with pytest.raises(BadRow, match="row 5") as caught:
        build(values, number=5)
    assert said in str(caught.value)


def test_kept_columns_travel_beside_a_ready_made_request():
    request = build({"key": "a", "request": {"contents": [1]}, "stars": 5}, keep=("stars",))
    assert request.keep == {"stars": 5}
    assert b"stars" not in request.line
