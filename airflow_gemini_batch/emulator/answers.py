"""
The pretend model: the same model, prompt and settings give the same answer, and different ones hardly ever do.

Requests come checked and in camelCase; what comes out is a GenerateContentResponse or an EmbedContentResponse.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
import struct
from base64 import b64encode, urlsafe_b64encode
from typing import Any

import orjson

from airflow_gemini_batch.emulator.media import AUDIO_TYPE, pcm, png
from airflow_gemini_batch.emulator.options import Options
from airflow_gemini_batch.emulator.shapes import WORDS, Shaper
from airflow_gemini_batch.emulator.tokens import prompt_tokens, text_tokens

NOT_HASHED = ("model", "outputDimensionality")  # a shorter embedding is the start of the longer one, rescaled
DIMENSIONS = {"gemini-embedding-001": 3072, "gemini-embedding-2": 3072}
LEVELS = {"MINIMAL": 16, "LOW": 64, "MEDIUM": 256, "HIGH": 512}
SENTENCES = (
    "In short, this is about {about}; the main point is {a} and {b}.",
    "Here is a {a} answer on {about}: it reads as {b} overall.",
    "{about}: a {a} case, on balance {b}.",
    "The text says {about}, and what matters most is that it stays {a} and {b}.",
)
HARM = "HARM_CATEGORY_DANGEROUS_CONTENT"


class RefusedError(Exception):
    """The model does not take the request: a row error with code 3."""


class Row:
    """
    One request on its way to its answer.

    :param twist: what is made to happen to the answer: ``blocked``, ``blocked_answer``, ``empty``, ``truncate``,
        ``thought_only``, ``bad_json``, ``degenerate`` or nothing.
    """

    def __init__(self, request: dict[str, Any], model: str, options: Options, twist: str = "") -> None:
        self.request, self.options, self.twist = request, options, twist
        self.model = model  # The job's model applies, whatever the request says.
        self.config: dict[str, Any] = request.get("generationConfig", {})
        asked = {name: value for name, value in request.items() if name not in NOT_HASHED}
        asked["contents"] = [{"role": "user", **content} for content in request.get("contents", ())]
        if parts := request.get("content", {}).get("parts"):
            asked["content"] = parts
        digest = hashlib.sha256(model.encode() + orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)).digest()
        self.digest = digest
        self.rng = random.Random(digest)
        self.id = urlsafe_b64encode(digest[:16]).decode().rstrip("=")
        self.prompt = prompt_tokens(request)

    def generate(self) -> dict[str, Any]:
        """
        The GenerateContentResponse.

        :raises RefusedError: no contents, or settings that exclude each other.
        """
        self._check()
        if self.twist == "blocked":
            ratings = [{"category": HARM, "probability": "HIGH", "blocked": True}]
            feedback = {"blockReason": "PROHIBITED_CONTENT", "safetyRatings": ratings}
            return self._response({"promptFeedback": feedback}, answered={}, thoughts=0)
        thoughts = self._thoughts()
        answered: dict[str, int] = {}
        candidates = [
            self._candidate(index, thoughts, answered) for index in range(int(self.config.get("candidateCount") or 1))
        ]
        return self._response({"candidates": candidates}, answered=answered, thoughts=thoughts)

    def embed(self) -> dict[str, Any]:
        """
        The EmbedContentResponse: a unit vector, the same for the same content.

        :raises RefusedError: no content, or a size the models do not have.
        """
        parts = self.request.get("content", {}).get("parts", ())
        if not any(part.get("text") or part.get("inlineData") or part.get("fileData") for part in parts):
            raise RefusedError("* EmbedContentRequest.content: content is not set or empty")
        asked = self.request.get("outputDimensionality") or self.request.get("embedContentConfig", {}).get(
            "outputDimensionality"
        )
        size = int(asked or DIMENSIONS.get(self.model, 768))
        if not 1 <= size <= 3072:
            raise RefusedError("* EmbedContentRequest.output_dimensionality: must be between 1 and 3072")
        # Uniform integers straight from a hash: several times faster than asking Random for each.
        raw = struct.unpack(f"<{size}h", hashlib.shake_256(self.digest).digest(2 * size))
        length = math.sqrt(sum(x * x for x in raw)) or 1.0
        return {
            "embedding": {"values": [round(x / length, 9) for x in raw]},
            "tokenCount": str(sum(self.prompt.values())),
        }

    def _check(self) -> None:
        contents = self.request.get("contents") or ()
        if not contents:
            raise RefusedError("* GenerateContentRequest.contents: contents is not specified")
        for number, content in enumerate(contents):
            if not content.get("parts"):
                raise RefusedError(
                    f"* GenerateContentRequest.contents[{number}].parts: contents.parts must not be empty."
                )
            if content.get("role", "user") not in ("user", "model", "function", "tool"):
                raise RefusedError("Please use a valid role: user, model.")
        if self.request.get("cachedContent") and any(
            k in self.request for k in ("systemInstruction", "tools", "toolConfig")
        ):
            raise RefusedError(
                "CachedContent can not be used with GenerateContent request setting system_instruction, tools or "
                "tool_config."
            )
        low, high = 0.0, 2.0
        if not low <= float(self.config.get("temperature") or 0.0) <= high:
            raise RefusedError(
                f"Unable to submit request because it has a temperature outside the range {low} to {high}."
            )

    def _candidate(self, index: int, thoughts: int, answered: dict[str, int]) -> dict[str, Any]:
        if self.twist == "blocked_answer":
            rating = {"category": HARM, "probability": "HIGH", "blocked": True}
            return {"content": {"role": "model"}, "finishReason": "SAFETY", "safetyRatings": [rating], "index": index}
        if self.twist in ("empty", "thought_only"):
            reason = "STOP" if self.twist == "empty" else "MAX_TOKENS"
            return {"content": {"role": "model"}, "finishReason": reason, "index": index}
        parts, finish = self._parts(thoughts, answered)
        if thoughts and self.config.get("thinkingConfig", {}).get("includeThoughts"):
            parts.insert(0, {"text": f"**Reading the request**\n\nIt is about {self._about()}.", "thought": True})
        candidate: dict[str, Any] = {
            "content": {"role": "model", "parts": parts},
            "finishReason": finish,
            "index": index,
        }
        if self._tool("googleSearch") or self._tool("googleSearchRetrieval"):
            candidate["groundingMetadata"] = self._grounding(parts)
        if self.config.get("responseLogprobs"):
            candidate["avgLogprobs"] = -round(self.rng.uniform(0.01, 0.6), 6)
        return candidate

    def _parts(self, thoughts: int, answered: dict[str, int]) -> tuple[list[dict[str, Any]], str]:
        """The answer's parts and its finish reason; adds the tokens by modality to ``answered``."""
        modalities = {str(one).upper() for one in self.config.get("responseModalities", ())}
        if "AUDIO" in modalities or ("-tts" in self.model and not modalities):
            data = pcm(self.rng, words=len(self._about().split()))
            _add(answered, "AUDIO", max(1, len(data) // 1500))
            return [{"inlineData": {"mimeType": AUDIO_TYPE, "data": b64encode(data).decode()}}], "STOP"
        if call := self._function_call():
            _add(answered, "TEXT", text_tokens(orjson.dumps(call).decode()))
            return [{"functionCall": call}], "STOP"
        parts: list[dict[str, Any]] = []
        finish = "STOP"
        draws = "IMAGE" in modalities or (not modalities and ("image" in self.model or "banana" in self.model))
        if not draws or not modalities or "TEXT" in modalities:
            text, finish = self._shortened(self._text(), thoughts)
            _add(answered, "TEXT", text_tokens(text))
            parts.append({"text": text})
        if draws:
            image = png(
                self.rng,
                side=self.options.image_side,
                aspect_ratio=self.config.get("imageConfig", {}).get("aspectRatio", "1:1"),
            )
            _add(answered, "IMAGE", 1290)
            parts.append({"inlineData": {"mimeType": "image/png", "data": b64encode(image).decode()}})
        return parts, finish

    def _text(self) -> str:
        mime = str(self.config.get("responseMimeType", ""))
        by_json_schema = self.config.get("responseJsonSchema") or self.config.get("_responseJsonSchema")
        schema = self.config.get("responseSchema") or by_json_schema
        if mime == "text/x.enum" and isinstance(schema, dict) and schema.get("enum"):
            return str(self.rng.choice(list(schema["enum"])))
        if mime == "application/json" or schema:
            if self.twist == "degenerate" and by_json_schema:
                return '{"":"' + "\\n" * 40
            shape = (
                schema if isinstance(schema, dict) else {"type": "object", "properties": {"answer": {"type": "string"}}}
            )
            text = orjson.dumps(Shaper(shape, self.rng, self._about()).value()).decode()
            return text[: max(1, len(text) * 2 // 3)] if self.twist == "bad_json" else text
        a, b = self.rng.sample(WORDS, 2)
        text = self.rng.choice(SENTENCES).format(about=self._about(), a=a, b=b)
        if self.options.answer_bytes:
            filler = " " + " ".join(self.rng.choices(WORDS, k=200))
            text = (text + filler * (self.options.answer_bytes // len(filler) + 1))[: self.options.answer_bytes]
        return text

    def _shortened(self, text: str, thoughts: int) -> tuple[str, str]:
        """The text as far as the token limit lets it, and the finish reason. Thoughts use up part of the limit."""
        for stop in self.config.get("stopSequences", ()):
            text = text.split(stop)[0] if stop else text
        if self.twist == "truncate":
            return text[: max(1, len(text) // 2)], "MAX_TOKENS"
        limit = int(self.config.get("maxOutputTokens") or 0)
        if not limit or text_tokens(text) <= limit - thoughts:
            return text, "STOP"
        end = min(len(text), (limit - thoughts) * 4)
        while end > 1 and text_tokens(text[:end]) > limit - thoughts:
            end -= 1
        return text[:end], "MAX_TOKENS"

    def _about(self) -> str:
        """The first words of the last line the user wrote."""
        contents = [*self.request.get("contents", ()), self.request.get("content", {})]
        texts = [
            part["text"]
            for one in contents
            if one.get("role") != "model"
            for part in one.get("parts", ())
            if part.get("text")
        ]
        lines = [line.strip() for line in (texts[-1] if texts else "")[-4000:].splitlines() if line.strip()]
        words = re.sub(r"[\"{}]", "", lines[-1] if lines else "what was sent").split()
        return " ".join(words[:8])[:80].rstrip(".,;:!?") or "what was sent"

    def _thoughts(self) -> int:
        """Tokens spent thinking; at most half of what the limit allows, so that some answer is left."""
        thinks = re.search(r"2\.5-(pro|flash)|gemini-[34]", self.model) and not re.search(
            r"lite|image|tts|embedding", self.model
        )
        settings = self.config.get("thinkingConfig", {})
        budget, level = settings.get("thinkingBudget"), str(settings.get("thinkingLevel", "")).upper()
        if budget == 0 or not (thinks or (budget or 0) > 0 or level in LEVELS):
            return 0
        most = budget if budget and budget > 0 else LEVELS.get(level, 256)
        limit = int(self.config.get("maxOutputTokens") or 0)
        if self.twist == "thought_only":
            return limit or most
        return min(self.rng.randint(min(8, most), most), limit // 2 if limit else most)

    def _tool(self, name: str) -> bool:
        return any(name in tool for tool in self.request.get("tools", ()))

    def _function_call(self) -> dict[str, Any] | None:
        """A call of one of the declared functions when the mode is ANY."""
        settings = self.request.get("toolConfig", {}).get("functionCallingConfig", {})
        if str(settings.get("mode", "")).upper() != "ANY":
            return None
        allowed = settings.get("allowedFunctionNames") or ()
        declared = [one for tool in self.request.get("tools", ()) for one in tool.get("functionDeclarations", ())]
        usable = [one for one in declared if not allowed or one.get("name") in allowed]
        if not usable:
            return None
        picked = self.rng.choice(usable)
        schema = picked.get("parameters") or picked.get("parametersJsonSchema") or {"type": "object"}
        return {"name": picked.get("name", ""), "args": Shaper(schema, self.rng, self._about()).value()}

    def _grounding(self, parts: list[dict[str, Any]]) -> dict[str, Any]:
        query, text = self._about(), next((p["text"] for p in parts if "text" in p and not p.get("thought")), "")
        return {
            "webSearchQueries": [query],
            "searchEntryPoint": {"renderedContent": "<div>Search suggestions</div>"},
            "groundingChunks": [{"web": {"uri": "https://example.com/source", "title": "example.com"}}],
            "groundingSupports": [
                {"segment": {"endIndex": len(text.encode()), "text": text}, "groundingChunkIndices": [0]},
            ],
        }

    def _response(self, body: dict[str, Any], *, answered: dict[str, int], thoughts: int) -> dict[str, Any]:
        prompt, candidates = sum(self.prompt.values()), sum(answered.values())
        cached = 2048 + self.rng.randrange(2048) if self.request.get("cachedContent") else 0
        prompt_details = {**self.prompt, "TEXT": self.prompt["TEXT"] + cached}
        usage: dict[str, Any] = {
            "promptTokenCount": prompt + cached,
            "candidatesTokenCount": candidates,
            "totalTokenCount": prompt + cached + candidates + thoughts,
            "cachedContentTokenCount": cached,
            "promptTokensDetails": _details(prompt_details),
            "cacheTokensDetails": _details({"TEXT": cached}),
            "candidatesTokensDetails": _details(answered) if set(answered) - {"TEXT"} else [],
            "thoughtsTokenCount": thoughts,
        }
        body["usageMetadata"] = {name: value for name, value in usage.items() if value}
        body["modelVersion"] = self.model
        body["responseId"] = self.id
        return body


def _add(counts: dict[str, int], modality: str, tokens: int) -> None:
    counts[modality] = counts.get(modality, 0) + tokens


def _details(counts: dict[str, int]) -> list[dict[str, Any]]:
    return [{"modality": modality, "tokenCount": tokens} for modality, tokens in counts.items() if tokens]
