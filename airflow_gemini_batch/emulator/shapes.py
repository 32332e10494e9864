"""Made-up JSON that fits a schema: the OpenAPI subset of ``responseSchema`` or a JSON schema with references."""

from __future__ import annotations

import random
import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

WORDS = (
    "clear", "steady", "bright", "simple", "careful", "early", "modest", "useful", "quick", "calm", "fresh", "local",
    "narrow", "open", "plain", "quiet", "solid", "warm", "broad", "exact",
)  # fmt: skip
DEEP = 6  # Levels of a recursive schema before optional parts are left out.


class Shaper:
    """
    Makes values for one schema.

    :param about: words to use in texts, usually from the prompt.
    """

    def __init__(self, schema: dict[str, Any], rng: random.Random, about: str) -> None:
        self.root, self.rng, self.about = schema, rng, about

    def value(self) -> Any:
        """A value that fits the schema."""
        return self._make(self.root, "", 0)

    def _make(self, schema: Any, name: str, depth: int) -> Any:
        if not isinstance(schema, dict):
            return self._text({}, name)
        if "$ref" in schema:
            return self._make(
                {**self._resolve(schema["$ref"]), **{k: v for k, v in schema.items() if k != "$ref"}}, name, depth + 1
            )
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return self._typed_choice(schema)
        for several in ("anyOf", "oneOf"):
            if all_choices := list(schema.get(several) or ()):
                choices = [one for one in all_choices if _type(one) != "null"] or all_choices
                rest = {k: v for k, v in schema.items() if k != several}
                pick = (
                    choices[0] if depth < DEEP else min(choices, key=lambda one: "$ref" in one or "properties" in one)
                )
                return self._make({**rest, **pick}, name, depth + 1)
        if schema.get("allOf"):
            return self._make(self._merged(schema), name, depth + 1)
        kind = _type(schema)
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            return self._array(schema, name, depth)
        if kind == "integer":
            return self._integer(schema)
        if kind == "number":
            return self._number(schema)
        if kind == "boolean":
            return self.rng.random() < 0.5
        if kind == "null":
            return None
        return self._text(schema, name)

    def _resolve(self, reference: str) -> dict[str, Any]:
        """``#/$defs/Name`` → its schema; an empty one if it is not there."""
        here: Any = self.root
        for step in reference.removeprefix("#").strip("/").split("/"):
            if step:
                here = here.get(step.replace("~1", "/").replace("~0", "~"), {}) if isinstance(here, dict) else {}
        return here if isinstance(here, dict) else {}

    def _merged(self, schema: dict[str, Any]) -> dict[str, Any]:
        merged: dict[str, Any] = {k: v for k, v in schema.items() if k != "allOf"}
        for part in schema["allOf"]:
            part = {**self._resolve(part["$ref"]), **part} if "$ref" in part else part
            for key, one in part.items():
                if key == "properties":
                    merged[key] = {**merged.get(key, {}), **one}
                elif key == "required":
                    merged[key] = [*merged.get(key, []), *one]
                elif key != "$ref":
                    merged.setdefault(key, one)
        return merged

    def _typed_choice(self, schema: dict[str, Any]) -> Any:
        pick = self.rng.choice(list(schema["enum"]))
        convert = {"integer": int, "number": float}.get(_type(schema))
        try:
            return convert(pick) if convert and isinstance(pick, str) else pick
        except ValueError:
            return pick

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        properties: dict[str, Any] = schema.get("properties") or {}
        required = schema.get("required") or ()
        order = [name for name in schema.get("propertyOrdering") or () if name in properties]
        made: dict[str, Any] = {}
        for name in [*order, *(name for name in properties if name not in order)]:
            inner = properties[name]
            if name not in required and (depth >= DEEP or (_nullable(inner) and self.rng.random() < 0.3)):
                continue
            made[name] = self._make(inner, name, depth + 1)
        for name in required:
            made.setdefault(name, self._text({}, name))
        extra = schema.get("additionalProperties")
        wanted = max(int(schema.get("minProperties") or 0), 2 if isinstance(extra, dict) and not properties else 0)
        for word in WORDS:
            if len(made) >= wanted:
                break
            made.setdefault(word, self._make(extra if isinstance(extra, dict) else {"type": "string"}, word, depth + 1))
        return made

    def _array(self, schema: dict[str, Any], name: str, depth: int) -> list[Any]:
        prefix = [self._make(one, name, depth + 1) for one in schema.get("prefixItems") or ()]
        least = int(schema.get("minItems") or 0)
        most = int(schema["maxItems"]) if schema.get("maxItems") is not None else max(least, 3)
        wanted = least if depth >= DEEP else self.rng.randint(max(least, min(1, most)), max(most, least))
        items = schema.get("items")
        if items is False or (prefix and items is None):
            return prefix
        made = list(prefix)
        tries = 0
        while len(made) < wanted and tries < 20 * (wanted + 1):
            tries += 1
            one = self._make(items if isinstance(items, dict) else {"type": "string"}, name, depth + 1)
            if not (schema.get("uniqueItems") and one in made):
                made.append(one)
        return made

    def _bounds(self, schema: dict[str, Any], low: float, high: float) -> tuple[float, float]:
        least, most = schema.get("minimum"), schema.get("maximum")
        if (above := schema.get("exclusiveMinimum")) is not None and not isinstance(above, bool):
            least = above + (1 if _type(schema) == "integer" else 1e-6)
        if (below := schema.get("exclusiveMaximum")) is not None and not isinstance(below, bool):
            most = below - (1 if _type(schema) == "integer" else 1e-6)
        if least is None:
            least = low if most is None else min(low, most)
        if most is None:
            most = max(high, least)
        return float(least), float(most)

    def _integer(self, schema: dict[str, Any]) -> int:
        low, high = self._bounds(schema, 0, 100)
        step = int(schema.get("multipleOf") or 1) or 1
        first = -(-int(-(-low // 1)) // step)
        return self.rng.randint(first, max(first, int(high // 1) // step)) * step

    def _number(self, schema: dict[str, Any]) -> float:
        low, high = self._bounds(schema, 0.0, 1.0)
        return min(max(round(self.rng.uniform(low, high), 3), low), high)

    def _text(self, schema: dict[str, Any], name: str) -> str:
        moment = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.rng.randrange(365 * 86_400))
        word = self.rng.choice(WORDS)
        made = {
            "date-time": f"{moment:%Y-%m-%dT%H:%M:%SZ}",
            "date": f"{moment:%Y-%m-%d}",
            "time": f"{moment:%H:%M:%S}Z",
            "duration": f"PT{self.rng.randrange(1, 60)}M",
            "email": f"{word}@example.com",
            "uri": f"https://example.com/{word}",
            "url": f"https://example.com/{word}",
            "uuid": str(UUID(int=self.rng.getrandbits(128), version=4)),
            "ipv4": f"192.0.2.{self.rng.randrange(1, 255)}",
            "byte": "ZW11bGF0ZWQ=",
        }.get(str(schema.get("format", "")))
        if made is not None:
            return made
        if (pattern := schema.get("pattern")) is not None and (fit := self._fitting(str(pattern), moment, word)):
            return fit
        text = f"{word} {name.replace('_', ' ')}".strip()
        if self.about and self.rng.random() < 0.7:
            text = f"{text}: {self.about}"
        least, most = int(schema.get("minLength") or 0), schema.get("maxLength")
        while len(text) < least:
            text += f" {self.rng.choice(WORDS)}"
        return text[: int(most)] if most is not None else text

    def _fitting(self, pattern: str, moment: datetime, word: str) -> str | None:
        """The first of some usual texts that the pattern takes."""
        number = self.rng.randrange(1, 100)
        digits = [f"{self.rng.randrange(10**n):0{n}}" for n in range(1, 11)]
        letters = ["EURUSD"[: n + 1] for n in range(6)]
        texts = [
            word, f"{word} {number}", word.capitalize(), f"{moment:%Y-%m-%d}", f"{moment:%H:%M:%SZ}", f"PT{number}M",
            str(UUID(int=self.rng.getrandbits(128), version=4)), f"{word}@example.com", f"https://example.com/{word}",
            f"192.0.2.{number}", str(number), f"{number}.5", *digits, *letters, *map(str.lower, letters),
        ]  # fmt: skip
        with suppress(re.error):
            return next((text for text in texts if re.search(pattern, text)), None)
        return None


def _type(schema: Any) -> str:
    """The one type to make, in lower case."""
    if not isinstance(schema, dict):
        return "string"
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((one for one in kind if str(one).lower() != "null"), "null")
    if kind:
        return str(kind).lower()
    if "properties" in schema or "additionalProperties" in schema:
        return "object"
    return "array" if "items" in schema or "prefixItems" in schema else "string"


def _nullable(schema: Any) -> bool:
    return isinstance(schema, dict) and (
        bool(schema.get("nullable"))
        or (isinstance(schema.get("type"), list) and "null" in schema["type"])
        or any(_type(one) == "null" for one in schema.get("anyOf") or ())
    )
