from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal

import orjson
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from airflow_gemini_batch.core.prompts import Prompt
from airflow_gemini_batch.core.requests import RequestBuilder, Spec, overridden
from airflow_gemini_batch.core.rows import Row
from airflow_gemini_batch.exceptions import BadRow, InvalidConfig, UnknownColumn

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


CONTENTS = {"contents": [{"parts": [{"text": "x"}]}]}


def builder(max_bytes: int = 1_000_000, **spec) -> RequestBuilder:
    return RequestBuilder(Spec("gemini-2.5-flash", **spec), max_bytes=max_bytes)


def build(values, max_bytes: int = 1_000_000, number: int = 0, **spec):
    (request,) = builder(max_bytes, **spec).build(Row(number, values))
    return request


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


def test_bytes_are_the_text_that_they_spell_or_an_error_that_names_the_row():
    """Some databases and older Parquet files hand out text as bytes; Python's own word for them would be paid for."""
    assert text_of({"a": "né, 製品".encode()}, prompt="{a}") == "né, 製品"
    with pytest.raises(BadRow, match="row 0: its text cannot be sent: column 'a': it holds bytes that are no text"):
        build({"a": b"\xff\xfe"}, prompt="{a}")


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
    assume(len(pieces) > 1 or pieces[0].strip())  # a blank prompt is refused
    prompt = "{col}".join(piece.replace("{", "{{").replace("}", "}}") for piece in pieces)
    if not prompt.strip():
        with pytest.raises(InvalidConfig, match="prompt is blank"):
            Prompt.parse(prompt)
        return
    filled = Prompt.parse(prompt).fill({"col": value})
    blank = len(pieces) > 1 and not value.strip()
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


def test_json_in_a_prompt_that_is_taken_for_a_place_says_how_to_write_its_braces():
    with pytest.raises(UnknownColumn, match=r"names the column '\"mood\": 1', .* Literal braces are \{\{ and \}\}"):
        build({"review": "x"}, prompt='Answer as {"mood": 1}: {review}')


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
    assert (request.line, request.unsent, request.keep) == (b"", "the prompt is empty, so nothing was sent", {"c": 1})


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


def test_a_number_of_any_size_in_a_nested_value_stands_in_the_prompt_as_it_is():
    at = datetime(2026, 1, 2, 3)
    assert text_of({"t": {"n": [2**70, -(2**63) - 1], "at": at}}, prompt="{t}") == (
        '{"n":[1180591620717411303424,-9223372036854775809],"at":"2026-01-02T03:00:00"}'
    )


def test_a_number_of_any_size_in_a_ready_made_request_is_sent_as_it_is_with_settings_and_again():
    part = {"functionCall": {"name": "f", "args": {"n": 10**23}}}
    record = {"key": "a", "request": {"contents": [{"parts": [part]}]}}
    template = {"generationConfig": {"temperature": 0}}
    line = build(record, template=template).line
    assert b'"n":100000000000000000000000}' in line
    assert b'"n":100000000000000000000000}' in overridden(line, {"generationConfig": {"temperature": 1}})


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
    assert build({"text": "  "}).unsent == "the prompt is empty, so nothing was sent"


def test_columns_without_a_prompt_are_an_error_that_says_what_to_give():
    with pytest.raises(InvalidConfig, match=r"'review'.*Give a prompt"):
        build({"review": "x"})


def test_a_ready_made_request_is_sent_as_it_is_under_its_key():
    request = {"contents": [{"role": "user", "parts": [{"text": "hi"}]}], "generationConfig": {"topK": 3}}
    line = sent({"key": "a", "request": request}, template={"safetySettings": [1], "generationConfig": {"topK": 1}})
    assert line == {"key": "a", "request": request | {"safetySettings": [1]}}


def test_a_ready_made_request_without_a_key_gets_its_number():
    assert build({"request": CONTENTS}, number=9).key == "9"


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


@pytest.mark.parametrize("prompt", ["Say hello", "About {key}", {"one": "{key}"}])
def test_a_prompt_never_replaces_a_ready_made_request(prompt):
    with pytest.raises(InvalidConfig, match="row 0 is a ready-made request, which the prompt would replace"):
        build({"key": "a", "request": CONTENTS}, prompt=prompt)


@pytest.mark.parametrize("values", [
    {"key": "a", "request": "please help"}, {"key": "a", "request": CONTENTS, "failure": {}},
    {"key": "a", "request": CONTENTS, "response": {}},
])  # fmt: skip
def test_a_column_called_request_may_stand_beside_what_is_asked_about(values):
    assert build(values, prompt="About {key}").line


def test_kept_columns_travel_beside_a_ready_made_request():
    request = build({"key": "a", "request": CONTENTS, "stars": 5}, keep=("stars",))
    assert request.keep == {"stars": 5}
    assert b"stars" not in request.line


def test_texts_that_a_file_holds_as_bytes_are_texts():
    (request,) = RequestBuilder(Spec("m", prompt="{a}", key="k"), max_bytes=1000).build(
        Row(0, {"a": "é".encode(), "k": b"x"})
    )
    assert request.key == "x"
    assert orjson.loads(request.line)["request"]["contents"][0]["parts"] == [{"text": "é"}]


@pytest.mark.parametrize("values", [{"a": b"\xff", "k": "x"}, {"a": "x", "k": b"\xff"}])
def test_bytes_that_are_no_text_are_refused(values):
    with pytest.raises(
        BadRow, match=r"^row 3: its (text|key) cannot be sent: (column '.+': )?it holds bytes that are no text"
    ):
        list(RequestBuilder(Spec("m", prompt="{a}", key="k"), max_bytes=1000).build(Row(3, values)))


# Nulls, as pandas writes them

NAN = float("nan")


class NA:
    """As pandas' own behaves."""

    def __ne__(self, other):
        return self

    def __bool__(self):
        raise TypeError("boolean value of NA is ambiguous")


@pytest.mark.parametrize("value", [NAN, Decimal("NaN"), NA(), None])
def test_a_null_is_no_key(value):
    with pytest.raises(BadRow, match="key column 'id' is empty"):
        build({"id": value, "text": "x"}, prompt="{text}", key="id")


@pytest.mark.parametrize("value", [NAN, None, "", " "])
def test_a_null_leaves_a_setting_to_the_model(value):
    request = sent({"t": value, "text": "x"}, prompt="{text}", per_row={"temperature": "t"})["request"]
    assert "generationConfig" not in request
    vector = build({"d": value, "text": "x"}, prompt="{text}", per_row={"outputDimensionality": "d"}, embeddings=True)
    assert vector.dimensions is None
    assert "outputDimensionality" not in orjson.loads(vector.line)["request"]


@pytest.mark.parametrize("value", [NAN, NA(), None, "", [], [None], [NAN, ""]])
def test_a_null_is_no_media(value):
    (part,) = sent({"image": value, "text": "x"}, prompt="{text}", media=("image",))["request"]["contents"][0]["parts"]
    assert part == {"text": "x"}


# Settings of each row's own


@pytest.mark.parametrize(
    ("field", "value", "made"),
    [
        ("stop_sequences", ["a", "b"], {"generationConfig": {"stopSequences": ["a", "b"]}}),
        ("tools", [{"google_search": {}}], {"tools": [{"googleSearch": {}}]}),
        ("response_schema", {"type": "string"}, {"generationConfig": {"responseSchema": {"type": "STRING"}}}),
    ],
)
def test_a_row_may_bring_lists_and_objects_as_settings(field, value, made):
    settings = builder(prompt="{text}", per_row={field: "own"})
    for own, expected in ((value, made), (None, {})):
        (request,) = settings.build(Row(0, {"own": own, "text": "x"}))
        body = orjson.loads(request.line)["request"]
        assert {name: body[name] for name in body if name != "contents"} == expected


@pytest.mark.parametrize(
    ("template", "place", "value"),
    [
        ({"systemInstruction": {"parts": [{"text": "a"}]}}, "cached_content", "cachedContents/a"),
        ({"cachedContent": "cachedContents/a"}, "system_instruction", "be brief"),
        ({"cachedContent": "cachedContents/a"}, "tools", [{"google_search": {}}]),
    ],
)
def test_a_rows_setting_beside_a_cache_that_forbids_it_is_refused(template, place, value):
    with pytest.raises(BadRow, match=r"row 7.*config\.cachedContent cannot go together with"):
        build({"own": value, "text": "x"}, number=7, prompt="{text}", template=template, per_row={place: "own"})
