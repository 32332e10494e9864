"""
What a plan will cost, before anything is paid for: request lines become a number of tokens and dollars, without network.

How it counts, and how good that is. Gemini's tokenizer cannot be had without downloading it, so this was never compared with
it, only with what Google documents:

- Text: four characters a token (https://ai.google.dev/gemini-api/docs/tokens). "The quick brown fox jumps over the lazy dog."
  is documented as 10 tokens when counted and 11 when sent (https://ai.google.dev/api/tokens), and counted as 11 here. "100
  tokens are about 60 to 80 English words": the documentation itself leaves some 15% either way for English. Code counts like
  text: the documentation takes 50,000 lines of 80 characters for a million tokens
  (https://ai.google.dev/gemini-api/docs/long-context).
- Digits: one token each; Gemma's tokenizer, a subset of Gemini's, splits numbers (https://arxiv.org/abs/2403.08295).
- Other scripts have no documented figure. Two letters a token for alphabets of two bytes in UTF-8 (Greek, Cyrillic, Arabic),
  one token a character for the rest (Chinese, Japanese, Korean, Indic), two an emoji: on the high side, as a budget wants it.
- Images, documents, audio and video: see ``media_tokens``.
- Instructions, tools and schemas count for each row, as they are sent with each.
- Output is not known before: ``maxOutputTokens`` is its upper bound (thoughts included), or the number that the user
  assumes; without either, :data:`DEFAULT_OUTPUT_TOKENS`. The estimate says how many requests each holds for.

For a better number of input tokens, :func:`sample_count_tokens` asks the API about some lines and scales the rest; but not
media that must be uploaded first, which it could not open.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple, Protocol

import orjson

from airflow_gemini_batch.core.media_tokens import MediaRates, count_media
from airflow_gemini_batch.core.media_types import is_remote
from airflow_gemini_batch.core.prices import Prices
from airflow_gemini_batch.core.usage import Usage, plus, usd
from airflow_gemini_batch.core.wording import counted, dollars
from airflow_gemini_batch.exceptions import InvalidConfig

DEFAULT_OUTPUT_TOKENS = 1024
"""Output tokens of a request that nobody set a limit for. An assumption of ours; Google documents no typical length."""
DEFAULT_NOTE = f"output assumed: {DEFAULT_OUTPUT_TOKENS} tokens a request, as there is no maxOutputTokens"

DIGITS = b"0123456789"
BEYOND_ASCII = bytes(range(0x80, 0x100))
LEADS = tuple(bytes(range(*span)) for span in ((0xC2, 0xE0), (0xE0, 0xF0), (0xF0, 0xF5)))
"""First bytes of characters of two, three and four bytes."""

# The only way our own text requests are written (``requests.RequestBuilder``). Their quotes are not escaped, so no text can
# hold these bytes.
BEFORE_TEXT, AFTER_TEXT = b'"request":{"contents":[{"parts":[{"text":"', b'"}],"role":"user"}]'
ANOTHER_PART = b'"},{"'
REMEMBERED_TAILS = 1000


def text_tokens(text: str) -> int:
    """Tokens of a text, about; at least one for each that is not empty."""
    return _tokens(text.encode("utf-8", "replace"))


def _tokens(raw: bytes, escapes: int = 0) -> int:
    """
    :param raw: UTF-8.
    :param escapes: bytes in it that are no character of the text: the backslashes of JSON.
    """
    ascii_part = raw if raw.isascii() else raw.translate(None, BEYOND_ASCII)
    digits = len(ascii_part) - len(ascii_part.translate(None, DIGITS))
    tokens = (len(ascii_part) - escapes - digits + 3) // 4 + digits
    if ascii_part is not raw:
        two, three, four = (len(raw) - len(raw.translate(None, leads)) for leads in LEADS)
        tokens += (two + 1) // 2 + three + 2 * four
    return tokens


class Guess(NamedTuple):
    """One request. ``pico_usd`` is None if its price is unknown."""

    input_tokens: int
    output_tokens: int
    pico_usd: int | None


@dataclass(frozen=True)
class Estimate:
    """
    What requests will use and cost, about. Estimates add up.

    :param notes: how it was made, and what was assumed → for how many requests (or parts of them).
    """

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    pico_usd: int | None = 0
    model: str = ""
    notes: Mapping[str, int] = field(default_factory=dict, hash=False)

    @property
    def usd(self) -> Decimal | None:
        """None if the price is unknown."""
        return usd(self.pico_usd)

    @property
    def how(self) -> str:
        """What it rests on, in one line."""
        return "; ".join(f"{note} ({count:,})" for note, count in self.notes.items())

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "requests": self.requests,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "usd": float(self.usd) if self.usd is not None else None,
            "model": self.model,
            "how": self.how,
        }

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(
            self.requests + other.requests,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            plus(self.pico_usd, other.pico_usd),
            self.model or other.model,
            dict(Counter(self.notes) + Counter(other.notes)),
        )

    def __str__(self) -> str:
        cost = dollars(self.usd) if self.usd is not None else "an unknown cost"
        return (
            f"{counted(self.requests, 'request')}, about {self.input_tokens:,} input and "
            f"{self.output_tokens:,} output tokens, {cost}; {self.how or 'nothing to send'}"
        )


@dataclass(frozen=True)
class Scale:
    """
    What the API counted for some lines, beside what was counted here.

    :param requests: number of lines that were asked about.
    """

    requests: int
    counted: int
    guessed: int

    def apply(self, tokens: int) -> int:
        """Rounded up."""
        return -(-tokens * self.counted // self.guessed) if self.guessed else tokens


@dataclass
class _Seen:
    """
    What is in a request.

    :param tokens: by modality; text is ``""``.
    :param apart: those of media that are uploaded first, by modality: no sample that the API counts has such.
    :param times: how many requests were like it.
    """

    tokens: Counter[str] = field(default_factory=lambda: Counter({"": 0}))
    apart: Counter[str] = field(default_factory=Counter)
    outputs: int = 0
    answers: str = ""
    notes: list[str] = field(default_factory=list)
    times: int = 0


class Estimator:
    """
    Estimates requests to one model.

    :param assumed_output_tokens: for each request; no more than the request allows.
    :param scale: what a sample counted by the API said.
    :raises InvalidConfig: ``assumed_output_tokens`` is no number.
    """

    def __init__(self, prices: Prices, *, assumed_output_tokens: int | None = None, scale: Scale | None = None) -> None:
        assumed = assumed_output_tokens
        if assumed is not None and (isinstance(assumed, bool) or not isinstance(assumed, int) or assumed < 0):
            raise InvalidConfig(f"assumed_output_tokens is {assumed!r}; it takes a number of tokens per request.")
        self._prices, self._assumed, self._scale = prices, assumed, scale
        self._media = MediaRates.of(prices.model)
        self._tails: dict[bytes, _Seen] = {}
        self._notes: Counter[str] = Counter()

    def estimate(self, lines: Iterable[bytes]) -> Estimate:
        """
        :param lines: JSONL lines as they are sent, each with ``request``; blank ones are passed over.
        """
        self._notes.clear()
        self._tails.clear()
        requests = inputs = outputs = 0
        pico: int | None = 0
        request = self.request
        for line in lines:
            if line.isspace():
                continue
            guess = request(line)
            requests += 1
            inputs += guess[0]
            outputs += guess[1]
            pico = None if pico is None or guess[2] is None else pico + guess[2]
        notes: Counter[str] = Counter()
        if requests:
            sampled = self._scale and f"input scaled by the API's count of {counted(self._scale.requests, 'request')}"
            notes[sampled or "input counted locally"] = requests
        for note, times in self._notes.items():
            notes[note] += times
        for seen in self._tails.values():
            for note in seen.notes:
                notes[note] += seen.times
        return Estimate(requests, inputs, outputs, pico, self._prices.model, dict(notes))

    def request(self, line: bytes) -> Guess:
        """Estimate one line; it must be one that was built and checked before."""
        start = line.find(BEFORE_TEXT)
        text_at = start + len(BEFORE_TEXT)
        end = line.find(AFTER_TEXT, text_at) if start >= 0 else -1
        raw = line[text_at:end]
        if end < 0 or ANOTHER_PART in raw:
            seen = self._look(orjson.loads(line)["request"])
            self._notes.update(seen.notes)
            return self._guess(seen, 0)
        escapes = raw.count(b"\\")
        if escapes and (b"\\u" in raw or b"\\\\" in raw):  # those stand for more or less than the byte behind them
            raw, escapes = orjson.loads(b'"' + raw + b'"').encode(), 0
        tail = line[end + len(AFTER_TEXT) :]
        rest = self._tails.get(tail)
        if rest is None:
            rest = self._look(orjson.loads(b'{"request":{"contents":[]' + tail)["request"])
            if len(self._tails) < REMEMBERED_TAILS:
                self._tails[tail] = rest
            else:
                self._notes.update(rest.notes)
        rest.times += 1
        return self._guess(rest, _tokens(raw, escapes))

    def _guess(self, seen: _Seen, text: int) -> Guess:
        outputs = seen.outputs
        if len(seen.tokens) == 1 and not seen.answers:
            inputs = text + seen.tokens[""]
            if self._scale:
                inputs = self._scale.apply(inputs)
            return Guess(inputs, outputs, self._prices.price_tokens(inputs, outputs))
        apart = seen.apart.total()
        rest = text + seen.tokens.total() - apart
        scaled = self._scale.apply(rest) if self._scale else rest
        kinds = {
            f"prompt_{kind}": count if kind in seen.apart else count * scaled // rest
            for kind, count in seen.tokens.items()
            if kind and count
        }
        if seen.answers:
            kinds[f"output_{seen.answers}"] = outputs
        inputs = scaled + apart
        return Guess(inputs, outputs, self._prices.price(Usage(inputs, outputs, modalities=kinds)))

    def _look(self, request: Mapping[str, Any]) -> _Seen:
        seen = _Seen()
        contents = request.get("contents") or request.get("content") or ()
        for content in contents if isinstance(contents, list) else (contents,):
            self._content(content, seen)
        self._content(_either(request, "systemInstruction", "system_instruction"), seen)
        config = _either(request, "generationConfig", "generation_config")
        for told in (
            request.get("tools"),
            _either(config, "responseSchema", "response_schema"),
            _either(config, "responseJsonSchema", "response_json_schema"),
        ):
            if told:
                seen.tokens[""] += _tokens(orjson.dumps(told))
        if _either(request, "cachedContent", "cached_content"):
            seen.notes.append("cached content of unknown size not counted")
        if "content" not in request:  # that is a request for an embedding, and has no output
            self._outputs(config, seen)
        return seen

    def _outputs(self, config: object, seen: _Seen) -> None:
        bound = _positive(_either(config, "maxOutputTokens", "max_output_tokens"))
        if bound is not None:
            bound *= _positive(_either(config, "candidateCount", "candidate_count")) or 1
        if self._assumed is not None and (bound is None or self._assumed < bound):
            bound, note = self._assumed, f"output assumed by the user: {self._assumed} tokens a request"
        elif bound is not None:
            note = "output at most maxOutputTokens"
        else:
            bound, note = DEFAULT_OUTPUT_TOKENS, DEFAULT_NOTE
        seen.outputs = bound
        seen.notes.append(note)
        asked = _either(config, "responseModalities", "response_modalities")
        wanted = {str(one).lower() for one in asked} if isinstance(asked, list) else set()
        seen.answers = next((kind for kind in ("image", "audio") if kind in wanted), "")

    def _content(self, content: object, seen: _Seen) -> None:
        if isinstance(content, str):
            seen.tokens[""] += text_tokens(content)
        parts = content.get("parts") if isinstance(content, Mapping) else None
        for part in parts if isinstance(parts, list) else (parts,):
            if not isinstance(part, Mapping):
                continue
            inline, file = _either(part, "inlineData", "inline_data"), _either(part, "fileData", "file_data")
            if isinstance(part.get("text"), str):
                seen.tokens[""] += text_tokens(part["text"])
            elif isinstance(found := inline or file, Mapping):
                mime_type = str(_either(found, "mimeType", "mime_type") or "")
                media = count_media(mime_type, str(inline.get("data") or "") if found is inline else None, self._media)
                seen.tokens[media.modality] += media.tokens
                if found is file and not is_remote(str(_either(file, "fileUri", "file_uri"))):
                    seen.apart[media.modality] += media.tokens
                seen.notes += [media.assumed] if media.assumed else []
            else:
                seen.tokens[""] += _tokens(orjson.dumps(part))


def _either(fields: object, camel: str, snake: str) -> Any:
    """The API takes both spellings. What is no object has no fields; it is the API's to refuse that."""
    return fields.get(camel, fields.get(snake)) if isinstance(fields, Mapping) else None


def _positive(value: object) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


class Counts(Protocol):
    """What :func:`sample_count_tokens` needs of a client."""

    def count_tokens(self, model: str, request: Mapping[str, Any]) -> int: ...


def sample_count_tokens(
    client: Counts, model: str, lines: Iterable[bytes], estimator: Estimator, *, most: int = 20
) -> Scale:
    """
    Let the API count a sample of lines that is spread evenly over all of them. One free call for each.

    Holds at most twice ``most`` lines at a time.

    :param most: most lines that are sent.
    :param estimator: without a scale of its own.
    :raises ServiceError: a line could not be counted.
    :raises InvalidConfig: ``most`` is no number from 1 on.
    """
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise InvalidConfig(f"The sample to count tokens of is {most!r}; it takes a number of requests from 1 on.")
    sample: list[bytes] = []
    every = 1
    for number, line in enumerate(one for one in lines if not one.isspace()):
        if number % every == 0:
            sample.append(line)
            if len(sample) == 2 * most:
                sample, every = sample[::2], every * 2
    # Between most and twice as many are left: take an even share of them.
    sample = [sample[i * len(sample) // most] for i in range(most)] if len(sample) > most else sample
    counted = sum(client.count_tokens(model, orjson.loads(line)["request"]) for line in sample)
    guessed = sum(estimator.request(line).input_tokens for line in sample)
    return Scale(len(sample), counted, guessed)
