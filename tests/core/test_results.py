from __future__ import annotations

import io
import random
import tracemalloc
from typing import Any

import orjson
import pytest
from google.genai import types
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_gemini_batch.core.answers import Answers, Oddities, join, load
from airflow_gemini_batch.core.reading import BLOCKING_REASONS, FINE_REASONS, Reader
from airflow_gemini_batch.core.results import PASSING_CODES, Result, Status
from airflow_gemini_batch.core.usage import Usage

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
AWKWARD_KEYS = [
    "a\u2028b",
    "a\u0085b",
    'q"uote',
    "back\\slash",
    "new\nline",
    "\r\n",
    "😀",
    "\x01\x1f",
    "{}",
    " lead",
    "é",
    "e\u0301",
]


def answer(text: str = "hello", finish: str = "STOP", **more: Any) -> dict[str, Any]:
    return {"response": {"candidates": [{"content": {"parts": [{"text": text}]}, "finishReason": finish}], **more}}


def judged(line: dict[str, Any], **options: Any) -> Result:
    return Reader(**options).read({"key": "k"}, line)


# One line


@pytest.mark.parametrize("reason", sorted({r.value for r in types.FinishReason} | {"JAILBREAK"}))
def test_every_finish_reason_of_the_sdk_gives_the_right_status(reason):
    expected = {
        "STOP": Status.OK, "FINISH_REASON_UNSPECIFIED": Status.OK, "MAX_TOKENS": Status.TRUNCATED,
        **dict.fromkeys(["SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY", "MODEL_ARMOR",
                         "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION", "JAILBREAK"], Status.BLOCKED),
    }.get(reason, Status.ERROR)  # fmt: skip
    result = judged(answer(finish=reason))
    assert (result.status, result.finish_reason) == (expected, reason)
    if expected is Status.ERROR:
        assert reason in (result.error_message or "")


def test_no_finish_reason_is_both_fine_and_blocking():
    assert not BLOCKING_REASONS & FINE_REASONS


def test_a_finish_reason_that_is_new_is_an_error_that_names_it():
    result = judged(answer(finish="TOO_LATE_AT_NIGHT"))
    assert (result.status, result.error_message) == (Status.ERROR, "the model stopped with TOO_LATE_AT_NIGHT")
    assert result.text == "hello"


@pytest.mark.parametrize(
    ("response", "status", "text"),
    [
        (answer("hi")["response"], "ok", "hi"),
        ({"candidates": [{"content": {"parts": [{"text": "a"}, {"text": "b"}]}, "finishReason": "STOP"}]}, "ok", "ab"),
        ({"candidates": [{"content": {"parts": [{"text": "hm", "thought": True}, {"text": "b"}]}}]}, "ok", "b"),
        (
            {"candidates": [{"content": {"parts": [{"text": "hm", "thought": True}]}, "finishReason": "STOP"}]},
            "empty",
            None,
        ),
        ({"candidates": [{"content": {"parts": [{"thoughtSignature": "x"}]}, "finishReason": "STOP"}]}, "empty", None),
        (
            {"candidates": [{"content": {"parts": [{"functionCall": {"name": "f"}}]}, "finishReason": "STOP"}]},
            "ok",
            None,
        ),
        ({"candidates": [{"content": {"parts": [{"inlineData": {"data": "x"}}]}, "finishReason": "STOP"}]}, "ok", None),
        ({"candidates": [{"content": {"parts": [{"thought": False, "thoughtSignature": "x"}]}}]}, "empty", None),
        ({"candidates": [{"content": {"parts": [{"inlineData": {"data": ""}}]}}]}, "empty", None),
        ({"candidates": [{"content": {"parts": [{"inlineData": {"mimeType": "image/png"}}]}}]}, "empty", None),
        ({"candidates": [{"content": {"parts": [{"inlineData": {}}, {"text": "x"}]}}]}, "ok", "x"),
        ({"candidates": [{"content": {"role": "model"}, "finishReason": "STOP"}]}, "empty", None),
        ({"candidates": [{"content": {"role": "model"}, "finishReason": "MAX_TOKENS"}]}, "truncated", None),
        ({"candidates": [{"finishReason": "SAFETY"}]}, "blocked", None),
        ({"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}}, "blocked", None),
        ({"promptFeedback": {}, **answer("hi")["response"]}, "ok", "hi"),
        ({"promptFeedback": {"blockReason": "OTHER"}, **answer("hi")["response"]}, "ok", "hi"),
        ({"candidates": []}, "empty", None),
        ({}, "empty", None),
        (answer("")["response"], "empty", None),
        (answer(" ")["response"], "empty", " "),
    ],
)
def test_what_a_response_means(response, status, text):
    result = judged({"key": "k", "response": response})
    assert (result.status.value, result.text) == (status, text)


def test_a_block_says_why():
    assert judged({"response": {"promptFeedback": {"blockReason": "SAFETY"}}}).block_reason == "SAFETY"
    blocked = {"candidates": [{"finishReason": "SAFETY", "finishMessage": "about knives"}]}
    assert judged({"response": blocked}).error_message == "about knives"


def test_all_that_is_worth_keeping_is_kept():
    result = judged(answer(modelVersion="m-1", responseId="r-1", usageMetadata={"promptTokenCount": 3}), raw=True)
    assert (result.model_version, result.response_id, result.usage) == ("m-1", "r-1", Usage(3))
    assert orjson.loads(result.raw or "")["responseId"] == "r-1"
    assert judged(answer()).raw is None


@pytest.mark.parametrize("code", range(1, 17))
def test_a_row_error_keeps_code_and_message_and_may_pass_or_not(code):
    result = judged({"error": {"code": code, "message": "broken"}})
    assert (result.status, result.error_code, result.error_message) == (Status.ERROR, code, "broken")
    assert result.passing is (code in {1, 2, 4, 8, 10, 13, 14})
    assert result.passing is (code in PASSING_CODES)


@pytest.mark.parametrize(
    "line", [{}, {"key": "k"}, {"response": None}, {"response": "x"}, {"error": ""}, {"error": 5}, {"response": []}]
)
def test_a_line_without_answer_or_error_is_an_error_that_says_so(line):
    result = judged(line)
    assert (result.status, result.error_message) == (
        Status.ERROR,
        "the result line has neither a response nor an error",
    )


def test_an_error_that_is_only_words_keeps_them():
    result = judged({"error": "quota gone"})
    assert (result.status, result.error_message, result.error_code) == (Status.ERROR, "quota gone", None)


def test_an_error_beside_an_empty_response_counts_and_beside_an_answer_does_not():
    error = {"error": {"code": 13, "message": "broken"}}
    result = judged({"response": {}} | error)
    assert (result.status, result.error_code, result.error_message) == (Status.ERROR, 13, "broken")
    assert result.passing
    assert judged(answer("x") | error).status is Status.OK


ODD_VALUES = [None, True, 5, 1.5, "x", "²", [], [5], {}, {"a": 1}, 2**64 - 1, -1]
PLACES = ["candidates", "candidates.0", "candidates.0.content", "candidates.0.content.parts", "candidates.0.content.parts.0",
          "candidates.0.content.parts.0.text", "candidates.0.finishReason", "candidates.0.finishMessage", "promptFeedback",
          "promptFeedback.blockReason", "usageMetadata", "usageMetadata.promptTokenCount", "modelVersion",
          "responseId"]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_no_oddity_in_an_answer_makes_it_unreadable(place):
    """One odd row must not keep all the others of its job from landing."""
    for value in ODD_VALUES:
        check_odd_answer(place, value)


def check_odd_answer(place: str, value: Any) -> None:
    line = answer("x", promptFeedback={}, usageMetadata={"promptTokenCount": 1}, modelVersion="m", responseId="r")
    at: Any = line["response"]
    *way, last = place.split(".")
    for name in way:
        at = at[int(name)] if name.isdigit() else at[name]
    at[int(last) if last.isdigit() else last] = value
    result = judged(line)
    for name in ("text", "finish_reason", "block_reason", "error_message", "model_version", "response_id"):
        assert isinstance(getattr(result, name), str | None), name
    usage = orjson.loads(orjson.dumps(result.to_dict())).get("usage", {"modalities": {}})
    for count in (*usage.pop("modalities").values(), *usage.values()):
        assert 0 <= count < 2**63


@pytest.mark.parametrize("value", ODD_VALUES, ids=repr)
@pytest.mark.parametrize("name", ["code", "message"])
def test_no_oddity_in_a_row_error_makes_it_unreadable(name, value):
    result = judged({"error": {"code": 13, "message": "x"} | {name: value}})
    assert result.status is Status.ERROR
    assert isinstance(result.error_message, str)
    code = result.error_code
    assert code is None or (type(code) is int and abs(code) < 2**63)


@given(
    st.builds(
        Result, TEXT, st.sampled_from(Status), st.none() | TEXT, st.none() | TEXT, st.none() | TEXT,
        st.none() | st.integers(0, 99), st.none() | TEXT, st.none() | TEXT, st.none() | TEXT,
        st.none() | st.builds(Usage, *[st.integers(0, 10**9)] * 5), st.none() | TEXT,
    )
)  # fmt: skip
def test_a_result_reads_back_from_json(result):
    assert Result.from_dict(orjson.loads(orjson.dumps(result.to_dict()))) == result


# A whole file


def settle(
    rows: list[dict[str, Any]], data: bytes
) -> tuple[list[tuple[str, Result]], Oddities, list[tuple[int, str, bytes]]]:
    rejected: list[tuple[int, str, bytes]] = []
    keys = (row["key"] for row in rows if "unsent" not in row)
    answers = Answers(io.BytesIO(data), keys, lambda *one: rejected.append(one))
    results = [(row["key"], result) for row, result in join(rows, answers, Reader())]
    return results, answers.finish(), rejected


def line(key: str, text: str) -> bytes:
    return orjson.dumps({"key": key, **answer(text)})


KEYS = st.lists(TEXT.filter(str.strip) | st.sampled_from(AWKWARD_KEYS), unique=True, max_size=12)
FATES = ["fine", "fine", "fine", "dropped", "doubled", "renamed", "corrupt", "keyless", "not an object", "failed"]


@settings(max_examples=300)
@given(st.data())
def test_every_row_comes_back_once_under_its_own_key_whatever_the_file_does(data):
    keys = data.draw(KEYS)
    unsent = set(data.draw(st.lists(st.sampled_from(keys), unique=True))) if keys else set()
    rows = [{"key": key, "unsent": "blank"} if key in unsent else {"key": key} for key in keys]
    fates = {key: data.draw(st.sampled_from(FATES)) for key in keys if key not in unsent}
    lines: list[bytes] = []
    odd = Oddities()
    for key, fate in fates.items():
        whole = line(key, f"answer to {key}")
        if fate in ("fine", "doubled"):
            lines.append(whole)
        if fate == "doubled":
            lines.append(whole)
            odd.duplicate += 1
        elif fate == "renamed":
            lines.append(line(f"{key} that nobody sent \x00", "x"))
            odd.unknown_key += 1
        elif fate == "failed":
            lines.append(orjson.dumps({"error": {"code": 13, "message": "broken"}, "key": key}))
        elif fate in ("corrupt", "keyless", "not an object"):
            spoiled = {
                "corrupt": whole[: len(whole) // 2],
                "keyless": orjson.dumps(answer("x")),
                "not an object": b"[5]",
            }
            lines.append(spoiled[fate])
            odd.corrupt += 1
    lines = data.draw(st.permutations(lines))
    end = data.draw(st.sampled_from([b"\n", b"\r\n"]))
    blanks = data.draw(st.sampled_from([b"", b"\n", b"  \n\n"]))
    file = b"".join(one + end + blanks for one in lines)
    if data.draw(st.booleans()):
        file = file.rstrip()

    results, oddities, rejected = settle(rows, file)

    assert [key for key, _ in results] == keys
    for key, result in results:
        assert result.key == key
        fate = fates.get(key, "unsent")
        assert result.status is {
            "fine": Status.OK,
            "doubled": Status.OK,
            "failed": Status.ERROR,
            "unsent": Status.EMPTY,
        }.get(fate, Status.MISSING)
        if result.status is Status.OK:
            assert result.text == f"answer to {key}"
    assert oddities == odd
    assert len(rejected) == odd.corrupt + odd.unknown_key + odd.duplicate
    taken = sum(result.status in (Status.OK, Status.ERROR) for _, result in results)
    assert taken + len(rejected) == len(lines)


@given(st.binary(max_size=300))
def test_a_file_of_garbage_leaves_every_row_missing(garbage):
    results, _, _ = settle([{"key": "a"}, {"key": "b"}], garbage)
    assert [(key, result.status) for key, result in results] == [("a", Status.MISSING), ("b", Status.MISSING)]


def test_without_a_result_file_every_row_is_missing():
    assert [r.status for _, r in join([{"key": "a"}, {"key": "b", "unsent": "x"}], None, Reader())] == [
        Status.MISSING,
        Status.EMPTY,
    ]


def test_the_first_of_two_lines_under_one_key_counts():
    for order in (["a", "a", "b"], ["b", "a", "a"], ["a", "b", "a"]):
        data = b"\n".join(line(key, f"{key}{n}") for n, key in enumerate(order))
        results, oddities, rejected = settle([{"key": "a"}, {"key": "b"}], data)
        assert [r.text for _, r in results] == [f"a{order.index('a')}", f"b{order.index('b')}"]
        assert oddities == Oddities(duplicate=1)
        assert rejected[0][0] == len(order) - order[::-1].index("a")


@pytest.mark.parametrize("key", AWKWARD_KEYS)
def test_awkward_keys_find_their_rows(key):
    results, oddities, _ = settle([{"key": "x"}, {"key": key}], line(key, "mine") + b"\n" + line("x", "x") + b"\n")
    assert results[1][1].text == "mine"
    assert not oddities


def test_two_spellings_of_one_character_are_two_keys():
    results, _, _ = settle([{"key": "é"}, {"key": "e\u0301"}], line("e\u0301", "two") + b"\n" + line("é", "one"))
    assert [result.text for _, result in results] == ["one", "two"]


@pytest.mark.parametrize(
    "place", [{"key": 7}, {"key": "7"}, {"metadata": {"key": "7"}}, {"key": None, "metadata": {"key": 7}}]
)
def test_a_key_is_found_in_either_place_and_as_a_number_too(place):
    results, oddities, _ = settle([{"key": "7"}], orjson.dumps({**answer("mine"), **place}))
    assert results[0][1].text == "mine"
    assert not oddities


def test_a_line_under_the_key_of_a_row_that_was_not_sent_is_nobodys():
    results, oddities, _ = settle([{"key": "a", "unsent": "blank"}], line("a", "x"))
    assert results[0][1].status is Status.EMPTY
    assert oddities == Oddities(unknown_key=1)


def test_rejected_lines_are_told_with_number_reason_and_bytes():
    data = b'{"key":"a"\n\n' + line("z", "x") + b"\n" + line("a", "1") + b"\n" + line("a", "2") + b"\n"
    _, _, rejected = settle([{"key": "a"}], data)
    assert [(number, said.split(":")[0], raw[:11]) for number, said, raw in rejected] == [
        (1, "cannot be read", b'{"key":"a"\n'),
        (3, "a key that was not sent", b'{"key":"z",'),
        (5, "another line under a key that has one already; the first counts", b'{"key":"a",'),
    ]


def test_a_row_that_is_not_the_last_ones_fault_is_read_in_any_order():
    """Many rows, wholly shuffled: every early line is remembered by its place."""
    keys = [f"row-{n}" for n in range(3000)]
    lines = [line(key, key.upper()) for key in keys]
    random.Random(5).shuffle(lines)
    results, oddities, _ = settle([{"key": key} for key in keys], b"\n".join(lines))
    assert [result.text for _, result in results] == [key.upper() for key in keys]
    assert not oddities


@pytest.mark.parametrize("shuffled", [False, True])
def test_large_answers_are_not_held(tmp_path, shuffled):
    numbers = list(range(300))
    if shuffled:
        random.Random(5).shuffle(numbers)
    path = tmp_path / "results.jsonl"
    with path.open("wb") as f:
        for n in numbers:
            f.write(line(str(n), "x" * 50_000) + b"\n")
    tracemalloc.start()
    with path.open("rb") as f:
        answers = Answers(f, (str(n) for n in range(300)), lambda *one: None)
        read = sum(
            len(result.text or "") for _, result in join(({"key": str(n)} for n in range(300)), answers, Reader())
        )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert read == 300 * 50_000
    assert peak < 2_000_000


def test_a_byte_order_mark_or_half_a_surrogate_pair_costs_no_row():
    lines = (
        b'\xef\xbb\xbf{"key":"a","response":{"candidates":[{"content":{"parts":[{"text":"x"}]}}]}}\n'
        b'{"key":"b","response":{"candidates":[{"content":{"parts":[{"text":"\\ud800y"}]}}]}}\n'
    )
    for order in (["a", "b"], ["b", "a"]):
        rejected: list[Any] = []
        answers = Answers(io.BytesIO(lines), ["a", "b"], lambda *line, to=rejected: to.append(line))
        found = {row["key"]: result.text for row, result in join([{"key": key} for key in order], answers, Reader())}
        assert found == {"a": "x", "b": "?y"}
        assert rejected == []


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 400, "9" * 5000])
def test_a_number_that_json_does_not_have_costs_no_row(number):
    answered = b'{"key":"a","response":{"candidates":[{"content":{"parts":[{"text":"x"}]},"avgLogprobs":%s}]}}\n'
    answers = Answers(io.BytesIO(answered % number.encode()), ["a"], lambda *line: pytest.fail(str(line)))
    ((_, result),) = join([{"key": "a"}], answers, Reader())
    assert result.text == "x"


def test_a_byte_that_is_no_text_costs_no_row():
    line = b'{"key":"a","response":{"candidates":[{"content":{"parts":[{"text":"x\xffy"}]}}]}}\n'
    answers = Answers(io.BytesIO(line), ["a"], lambda *line: pytest.fail(str(line)))
    ((_, result),) = join([{"key": "a"}], answers, Reader())
    assert (result.status, result.text) == (Status.OK, "x\ufffdy")


@pytest.mark.parametrize("levels", [300, 1100, 100_000])
@pytest.mark.parametrize("place", ["function_calls", "grounding"])
def test_an_answer_however_deeply_nested_costs_no_other_row_and_not_its_own(levels, place):
    deep = "[" * levels + '"]{"' + "]" * levels
    part = '{"text":"x"},{"functionCall":{"args":DEEP}}' if place == "function_calls" else '{"text":"x"}'
    beside = ',"groundingMetadata":DEEP' if place == "grounding" else ""
    first = f'{{"key":"a","response":{{"candidates":[{{"content":{{"parts":[{part}]}}{beside}}}]}}}}\n'
    lines = first.replace("DEEP", deep).encode() + line("b", "y")
    answers = Answers(io.BytesIO(lines), ["a", "b"], lambda *line: pytest.fail(str(line)))
    reader = Reader(include=("function_calls", "grounding"), raw=True)
    results = [result for _, result in join([{"key": "a"}, {"key": "b"}], answers, reader)]
    assert [(result.status, result.text) for result in results] == [(Status.OK, "x"), (Status.OK, "y")]
    orjson.dumps([result.to_dict() for result in results])  # as the steps after it do


def test_brackets_that_do_not_match_are_still_no_answer():
    for line in (b'{"key":"a","x":' + b"[" * 300 + b"]" * 299 + b"}", b"[" * 5000, b'{"key":"a}'):
        with pytest.raises(ValueError, match="line 1"):
            load(line)


def test_an_answer_of_a_shape_that_nobody_foresaw_is_an_error_of_its_row():
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    result = judged(answer("x", modelVersion=deep))
    assert result.status is Status.ERROR
    assert "cannot be read: RecursionError" in (result.error_message or "")


class Disk:
    """Keeps the media of answers, unless it is broken."""

    def __init__(self, *, broken: bool = False) -> None:
        self.broken, self.files = broken, list[tuple[str, bytes]]()

    def save(self, row: Any, number: int, mime_type: str, data: bytes) -> str:
        if self.broken:
            raise ValueError("read-only")
        self.files.append((mime_type, data))
        return f"{row['key']}-{number}"


def pictures(*data: Any, finish: str = "STOP") -> dict[str, Any]:
    parts = [{"inlineData": {"mimeType": "image/png", "data": one}} for one in data]
    return {"response": {"candidates": [{"content": {"parts": parts}, "finishReason": finish}]}}


@pytest.mark.parametrize("broken", ["é" * 8, "!!!", "abcde"])
def test_a_picture_that_is_not_base64_is_invalid_and_the_others_of_its_row_are_kept(broken):
    disk = Disk()
    result = judged(pictures("aGk=", broken, "aG8"[:2] + "=="), media=disk)
    assert (result.status, result.media) == (Status.INVALID_OUTPUT, ["k-0", "k-1"])
    assert "not base64" in (result.error_message or "")
    assert [data for _, data in disk.files] == [b"hi", b"h"]


def test_a_picture_that_was_cut_off_is_truncated_first():
    result = judged(pictures("!!!", finish="MAX_TOKENS"), media=Disk())
    assert (result.status, result.media) == (Status.TRUNCATED, None)
    assert "not base64" in (result.error_message or "")


def test_a_picture_without_content_is_no_file():
    disk = Disk()
    assert judged(pictures("", "aGk=", None), media=disk).media == ["k-0"]
    assert disk.files == [("image/png", b"hi")]


def test_storage_that_fails_is_no_error_of_the_row():
    with pytest.raises(ValueError, match="read-only"):
        judged(pictures("aGk="), media=Disk(broken=True))


def vector(values: list[Any]) -> Result:
    return judged({"response": {"embedding": {"values": values}}}, embeddings=True)


@pytest.mark.parametrize(
    ("values", "landed"),
    [([0.5, -2], [0.5, -2.0]), ([0.1], [0.10000000149011612]), ([16777217], [16777216.0]), ([1e-50], [0.0])],
)
def test_an_embedding_is_of_the_numbers_that_float32_has(values, landed):
    result = vector(values)
    assert (result.status, result.embedding) == (Status.OK, landed)
    assert {type(value) for value in result.embedding or ()} == {float}


@pytest.mark.parametrize("values", [[1, 1e300], [-1e39], [10**300], [None, 1], [True], ["1.5"], [[1]]])
def test_an_embedding_that_float32_cannot_hold_is_invalid(values):
    result = vector(values)
    assert (result.status, result.embedding) == (Status.INVALID_OUTPUT, None)
    assert "float32" in (result.error_message or "")


@pytest.mark.parametrize("code", [13, 13.0, "13"])
def test_a_code_is_read_however_its_number_is_written(code):
    result = judged({"error": {"code": code, "message": "x"}})
    assert result.error_code == 13
    assert result.passing


@pytest.mark.parametrize("code", ["", "x", "13.5", 13.5, 1e300, float("nan"), True, 2**31, "9" * 30, "²"])
def test_a_code_that_is_none_is_not_made_up(code):
    assert judged({"error": {"code": code, "message": "x"}}).error_code is None


def test_counts_of_tokens_may_be_written_as_floats_or_texts():
    usage = judged(answer(usageMetadata={"promptTokenCount": 12.0, "candidatesTokenCount": "7"})).usage
    assert usage == Usage(prompt_tokens=12, output_tokens=7)


SOME_KEYS = st.sets(st.sampled_from("abcdef"))


@given(SOME_KEYS, SOME_KEYS, st.booleans())
def test_a_row_that_was_left_out_is_an_error_unless_it_has_an_answer(answered, left_out, with_file):
    rows = [{"key": key} for key in "abcdef"]
    data = b"\n".join(line(key, key) for key in sorted(answered))
    answers = Answers(io.BytesIO(data), "abcdef", lambda *_: None) if with_file else None
    joined = list(join(rows, answers, Reader(), unsendable=dict.fromkeys(left_out, "it is gone")))
    assert [row for row, _ in joined] == rows
    for row, result in joined:
        if with_file and row["key"] in answered:
            assert (result.status, result.text) == (Status.OK, row["key"])
        elif row["key"] in left_out:
            assert (result.status, result.error_message, result.passing) == (Status.ERROR, "it is gone", False)
        else:
            assert result.status is Status.MISSING
