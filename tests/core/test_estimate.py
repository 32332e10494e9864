from __future__ import annotations

import base64
import io
import json
import struct
import wave
import zlib
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_gemini_batch.core.client import Client
from airflow_gemini_batch.core.estimate import (
    DEFAULT_OUTPUT_TOKENS,
    Estimate,
    Estimator,
    Scale,
    sample_count_tokens,
    text_tokens,
)
from airflow_gemini_batch.core.media_tokens import tiles
from airflow_gemini_batch.core.prices import Prices, PriceTable
from airflow_gemini_batch.core.requests import RequestBuilder, Spec
from airflow_gemini_batch.core.rows import Row
from airflow_gemini_batch.emulator import Emulator
from airflow_gemini_batch.exceptions import InvalidConfig, RequestRefused

AT = datetime(2026, 11, 20, tzinfo=UTC)
FLASH = Prices("gemini-2.5-flash", AT)
FOX = "The quick brown fox jumps over the lazy dog."


def line(*parts: dict[str, Any], key: str = "k", **request: Any) -> bytes:
    return orjson.dumps({"key": key, "request": {"contents": [{"parts": list(parts)}], **request}}) + b"\n"


def built(*texts: str, template: dict[str, Any] | None = None) -> list[bytes]:
    builder = RequestBuilder(Spec("gemini-2.5-flash", template=template or {}), max_bytes=10**7)
    return [request.line for i, text in enumerate(texts) for request in builder.build(Row(i, {"text": text}))]


def inputs(*lines: bytes, prices: Prices = FLASH) -> int:
    return Estimator(prices).estimate(lines).input_tokens


# Text


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        (FOX, 11),  # https://ai.google.dev/api/tokens: 10 when counted, 11 when sent
        (
            "x" * 80 * 50_000,
            1_000_000,
        ),  # https://ai.google.dev/gemini-api/docs/long-context: lines of code in a million
        ("", 0),
        ("a", 1),
        ("2027", 4),
        ("year 2027", 2 + 4),
        ("日本語", 3),
        ("Привет", 3),
        ("naïve", 1 + 1),
        ("👍", 2),
    ],
)
def test_text_has_as_many_tokens_as_is_documented_or_a_few_more(text, tokens):
    assert text_tokens(text) == tokens
    assert inputs(line({"text": text})) == tokens


@given(st.text(min_size=1).filter(str.strip))
def test_the_quick_way_through_our_own_lines_counts_like_the_slow_one(text):
    (quick,) = built(text)
    slow = json.dumps(orjson.loads(quick)).encode()  # blanks behind the colons, everything escaped
    assert inputs(quick) == inputs(slow) == text_tokens(text)


def test_what_looks_like_json_in_a_text_is_text():
    text = '"request":{"contents":[{"parts":[{"text":"x"}],"role":"user"}],"generationConfig":{"maxOutputTokens":1}}'
    estimate = Estimator(FLASH).estimate(built(text, template={"generationConfig": {"maxOutputTokens": 9}}))
    assert (estimate.input_tokens, estimate.output_tokens) == (text_tokens(text), 9)


def test_several_parts_of_one_content_all_count():
    raw = b'{"key":"1","request":{"contents":[{"parts":[{"text":"abcd"},{"text":"efgh"}],"role":"user"}]}}\n'
    assert inputs(raw) == 2


def test_what_is_sent_with_every_row_counts_for_every_row():
    template = {
        "systemInstruction": {"parts": [{"text": "x" * 400}]},
        "generationConfig": {"responseSchema": {"type": "STRING", "description": "y" * 400}},
        "tools": [{"functionDeclarations": [{"name": "z" * 400}]}],
    }
    once = inputs(*built("abcd", template=template))
    assert 1 + 300 <= once <= 1 + 300 + 40  # the names and brackets of schema and tools count too
    assert inputs(*built(*["abcd"] * 5, template=template)) == 5 * once


def test_both_spellings_of_the_api_count():
    snake = line(
        {"text": "abcd"}, system_instruction={"parts": [{"text": "abcd"}]}, generation_config={"max_output_tokens": 7}
    )
    estimate = Estimator(FLASH).estimate([snake])
    assert (estimate.input_tokens, estimate.output_tokens) == (2, 7)


# Output


def test_output_is_at_most_what_the_request_allows():
    lines = built("a", "b", template={"generationConfig": {"maxOutputTokens": 100, "candidateCount": 2}})
    estimate = Estimator(FLASH).estimate(lines)
    assert estimate.output_tokens == 400
    assert "output at most maxOutputTokens (2)" in estimate.how


def test_the_users_assumption_counts_unless_the_request_allows_less():
    template = {"generationConfig": {"maxOutputTokens": 100}}
    assert Estimator(FLASH, assumed_output_tokens=30).estimate(built("a", template=template)).output_tokens == 30
    assert Estimator(FLASH, assumed_output_tokens=300).estimate(built("a", template=template)).output_tokens == 100
    assert Estimator(FLASH, assumed_output_tokens=0).estimate(built("a")).output_tokens == 0


def test_an_unknown_output_is_assumed_and_the_estimate_says_so():
    estimate = Estimator(FLASH).estimate(
        [*built("a", "b"), *built("c", template={"generationConfig": {"maxOutputTokens": 5}})]
    )
    assert estimate.output_tokens == 2 * DEFAULT_OUTPUT_TOKENS + 5
    assert (
        f"output assumed: {DEFAULT_OUTPUT_TOKENS} tokens a request, as there is no maxOutputTokens (2)" in estimate.how
    )
    assert "output at most maxOutputTokens (1)" in estimate.how


def test_embeddings_have_no_output():
    estimate = Estimator(Prices("gemini-embedding-001", AT)).estimate(
        [orjson.dumps({"key": "1", "request": {"content": {"parts": [{"text": "x" * 4000}]}}})]
    )
    assert (estimate.input_tokens, estimate.output_tokens, estimate.usd) == (1000, 0, Decimal("0.000075"))


@pytest.mark.parametrize("given_", [-1, 1.5, True, "10"])
def test_an_assumption_is_a_number(given_):
    with pytest.raises(InvalidConfig, match="assumed_output_tokens is"):
        Estimator(FLASH, assumed_output_tokens=given_)


# Media


def inline(mime_type: str, data: bytes) -> dict[str, Any]:
    return {"inlineData": {"mimeType": mime_type, "data": base64.b64encode(data).decode()}}


def png(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", width, height) + zlib.compress(b"") * 5


def jpeg(width: int, height: int, before: int = 70_000) -> bytes:
    """With a large block of a camera's data before the size."""
    parts, left = b"", before
    while left > 0:
        parts += struct.pack(">HH", 0xFFE1, 60_002) + b"\0" * 60_000
        left -= 60_000
    return b"\xff\xd8" + parts + struct.pack(">HHBHH", 0xFFC2, 17, 8, height, width) + b"\0" * 20


def webp(width: int, height: int) -> bytes:
    return b"RIFF\0\0\0\0WEBPVP8X" + b"\0" * 8 + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")


def gif(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\0" * 20


@pytest.mark.parametrize(
    ("width", "height", "count"),
    [(384, 384, 1), (1, 1, 1), (385, 200, 2), (960, 540, 6), (768, 768, 4), (4032, 3024, 24), (384, 10_000, 80)],
)
def test_an_image_is_cut_into_tiles_as_is_documented(width, height, count):
    """960 x 540 pixels are the documentation's example: six tiles."""
    assert tiles(width, height) == count


@pytest.mark.parametrize(("kind", "make"), [("png", png), ("jpeg", jpeg), ("webp", webp), ("gif", gif)])
def test_the_size_of_an_image_is_read_from_its_head(kind, make: Callable[[int, int], bytes]):
    assert inputs(line(inline(f"image/{kind}", make(300, 200)))) == 258
    assert inputs(line({"text": "abcd"}, inline(f"image/{kind}", make(960, 540)))) == 1 + 6 * 258


def test_newer_models_count_images_and_pages_by_their_own_rates():
    newer = Prices("gemini-3.8-flash", AT)
    assert inputs(line(inline("image/png", png(960, 540))), prices=newer) == 1120
    pdf = b"%PDF-1.7 1 0 obj<</Type /Pages /Count 2>> 2 0 obj<</Type/Page>> 3 0 obj <</Type /Page /Parent 1 0 R>>"
    assert inputs(line(inline("application/pdf", pdf))) == 2 * 258
    assert inputs(line(inline("application/pdf", pdf)), prices=newer) == 2 * 560


def test_a_minute_of_audio_has_1920_tokens_and_costs_what_audio_costs():
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(8000)
        out.writeframes(b"\0\0" * 8000 * 60)
    estimate = Estimator(FLASH, assumed_output_tokens=0).estimate([line(inline("audio/wav", file.getvalue()))])
    assert abs(estimate.input_tokens - 1920) <= 1
    assert estimate.usd == estimate.input_tokens * Decimal("0.5") / 1_000_000


@pytest.mark.parametrize("version", [0, 1])
def test_the_length_of_a_video_is_read_from_its_header(version):
    times = struct.pack(">IIII", 0, 0, 600, 6000) if version == 0 else struct.pack(">QQIQ", 0, 0, 600, 6000)
    mp4 = (
        struct.pack(">I8s", 12, b"ftypisom")
        + b"....mdat"
        + b"\0" * 100
        + b"....mvhd"
        + bytes([version, 0, 0, 0])
        + times
        + b"\0" * 80
    )
    assert inputs(line(inline("video/mp4", mp4))) == 2630


@pytest.mark.parametrize(
    ("part", "tokens", "said"),
    [
        ({"fileData": {"mimeType": "video/mp4", "fileUri": "u"}}, 60 * 263, "video of unknown length taken for 60 s (1)"),
        ({"file_data": {"mime_type": "audio/mp3", "file_uri": "u"}}, 1920, "audio of unknown length taken for 60 s (1)"),
        ({"fileData": {"mimeType": "image/png", "fileUri": "u"}}, 258, "image of unknown size taken for one tile (1)"),
        ({"fileData": {"mimeType": "application/pdf", "fileUri": "u"}}, 258, "document of unknown length taken for one page"),
        (inline("image/png", b"\x89PNG"), 258, "image of unknown size taken for one tile (1)"),
        (inline("audio/wav", b"RIFF____WAVE"), 1920, "audio of unknown length taken for 60 s (1)"),
        (inline("video/mp4", b"\0\0\0\x0cftypisommvhd"), 60 * 263, "video of unknown length taken for 60 s (1)"),
        ({"inlineData": {"mimeType": "image/jpeg", "data": "?"}}, 258, "image of unknown size taken for one tile (1)"),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_assumed_and_named(part, tokens, said):
    estimate = Estimator(FLASH).estimate([line(part)])
    assert estimate.input_tokens == tokens
    assert said in estimate.how


HEADS = [b"", b"\xff\xd8", b"\x89PNG\r\n", b"RIFF0000WEBP", b"RIFF0000WAVE", b"0000ftypmvhd", b"GIF8"]


@given(
    st.binary(max_size=300),
    st.sampled_from(["image/png", "image/jpeg", "image/webp", "audio/wav", "video/mp4", "x"]),
    st.sampled_from(HEADS),
)
def test_no_broken_file_stops_an_estimate(data, mime_type, head):
    assert inputs(line(inline(mime_type, head + data))) >= 0  # a sound may have no length


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
PLACES = ["contents", "content", "systemInstruction", "tools", "generationConfig", "cachedContent", "parts", "text", "data",
          "inlineData", "fileData", "mimeType", "maxOutputTokens", "candidateCount", "responseModalities"]  # fmt: skip


@given(JSON, st.lists(st.sampled_from(PLACES), max_size=4), st.integers(0, 4))
def test_a_request_the_api_will_refuse_does_not_stop_an_estimate(value, way, lists):
    for depth, place in enumerate(way):
        value = {place: [value] if depth < lists else value}
    request = value if isinstance(value, dict) else {"contents": value}
    for name, inner in (("generationConfig", value), ("contents", [{"parts": [value]}])):
        guess = Estimator(FLASH).request(orjson.dumps({"key": "k", "request": {**request, name: inner}}))
        assert guess.input_tokens >= 0
        assert guess.output_tokens >= 0
        assert guess.pico_usd is not None


def test_cached_content_is_not_in_the_lines_and_that_is_said():
    assert (
        "cached content of unknown size not counted (1)"
        in Estimator(FLASH).estimate([line({"text": "a"}, cachedContent="c")]).how
    )


# Money


def test_the_cost_is_that_of_every_request_by_itself():
    pro = Prices("gemini-2.5-pro", AT)
    estimate = Estimator(pro, assumed_output_tokens=1000).estimate(
        [line({"text": "x" * 4 * size}) for size in (100_000, 300_000)]
    )
    assert estimate.usd == Decimal("0.0625") + Decimal("0.375") + Decimal("0.005") + Decimal("0.0075")
    assert "about 400,000 input and 2,000 output tokens" in str(estimate)
    assert f"{estimate.usd:.6f} USD" in str(estimate)


def test_images_that_are_asked_for_are_priced_as_images():
    prices = Prices("gemini-x", AT, PriceTable.parse({"gemini-x": {"input": 1, "output": 2, "image_output": 30}}))
    asked = line({"text": "abcd"}, generationConfig={"responseModalities": ["TEXT", "IMAGE"], "maxOutputTokens": 1000})
    assert Estimator(prices).estimate([asked]).usd == Decimal("0.030001")


def test_an_unknown_price_leaves_the_tokens_known():
    estimate = Estimator(Prices("gemini-99", AT)).estimate(built(FOX))
    assert (estimate.input_tokens, estimate.usd) == (11, None)
    assert "unknown cost" in str(estimate)


def test_nothing_to_send_costs_nothing():
    assert Estimator(FLASH).estimate([]) == Estimate(model="gemini-2.5-flash")
    assert Estimator(Prices("gemini-99", AT)).estimate([b"\n"]).usd == 0


@given(st.lists(st.text(min_size=1).filter(str.strip), max_size=20), st.integers(0, 20))
def test_estimates_add_up(texts, cut):
    lines = built(*texts)
    estimator = Estimator(FLASH)
    whole = estimator.estimate(lines)
    assert estimator.estimate(lines[:cut]) + estimator.estimate(lines[cut:]) == whole
    guesses = [estimator.request(one) for one in lines]
    assert sum(guess.input_tokens for guess in guesses) == whole.input_tokens
    assert sum(guess.pico_usd or 0 for guess in guesses) == whole.pico_usd
    assert whole.requests == len(lines)


# Asking the API


def test_a_sample_counted_by_the_api_scales_all_lines(client: Client, emulator: Emulator):
    lines = built(*[f"{i:04d} {FOX}" for i in range(100)])
    estimator = Estimator(FLASH)
    scale = sample_count_tokens(client, "gemini-2.5-flash", lines, estimator, most=7)
    assert emulator.calls["count_tokens"] == scale.requests == 7
    assert (scale.counted, scale.guessed) == (7 * 13, 7 * 16)  # the emulator counts a quarter token a digit
    estimate = Estimator(FLASH, scale=scale).estimate(lines)
    assert estimate.input_tokens == 100 * 13
    assert "input scaled by the API's count of 7 requests (100)" in estimate.how


def test_the_api_counts_the_system_instruction_too(client: Client):
    (plain,) = built(FOX)
    (instructed,) = built(FOX, template={"systemInstruction": {"parts": [{"text": "x" * 400}]}})
    bare = client.count_tokens("gemini-2.5-flash", orjson.loads(plain)["request"])
    assert client.count_tokens("models/gemini-2.5-flash", orjson.loads(instructed)["request"]) == bare + 100


@pytest.mark.parametrize(("number", "most"), [(1, 5), (5, 5), (9, 5), (10, 5), (11, 5), (1000, 5), (1000, 1), (0, 3)])
def test_a_sample_is_bounded_and_spread_over_all_lines(number, most):
    asked: list[int] = []

    class Counting:
        def count_tokens(self, model, request):
            asked.append(int(request["contents"][0]["parts"][0]["text"]))
            return 3

    scale = sample_count_tokens(Counting(), "m", built(*map(str, range(number))), Estimator(FLASH), most=most)
    assert scale.requests == len(asked) == min(number, most)
    assert asked == sorted(set(asked))
    if number >= 4 * most > 4:
        assert max(asked) >= number / 2 > min(asked)


def test_a_request_the_api_cannot_count_is_told(client: Client):
    with pytest.raises(RequestRefused, match="is not found"):
        sample_count_tokens(client, "gemini-nobody-knows", built("a"), Estimator(FLASH))


@pytest.mark.parametrize("most", [0, -1, True, 2.5])
def test_a_sample_has_a_size(most):
    with pytest.raises(InvalidConfig, match="it takes a number of requests"):
        sample_count_tokens(None, "m", [], Estimator(FLASH), most=most)  # type: ignore[arg-type]


def test_a_scale_rounds_up_and_an_empty_one_changes_nothing():
    assert Scale(1, 10, 3).apply(1) == 4
    assert Scale(0, 0, 0).apply(7) == 7
