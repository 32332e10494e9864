"""
Says what is wrong with a line of an input file, and at which column, in the service's words.

This reader is strict and slow; it runs only on lines that are known to be bad.
"""

from __future__ import annotations

import json
import re
from typing import Any

from airflow_gemini_batch.emulator.protojson import scalar
from airflow_gemini_batch.emulator.schema import MESSAGES, ONEOFS

_SPACE = re.compile(r"[ \t\r\n]*")
_NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?")
_LITERALS: dict[str, Any] = {"true": True, "false": False, "null": None}


class LineError(ValueError):
    """The first thing wrong with a line. ``column`` counts from 1."""

    def __init__(self, column: int, text: str) -> None:
        self.column, self.text = column, text
        super().__init__(f"invalid JSON, near column {column}: {text}")


def explain(line: str, message: str) -> str:
    """What is wrong with the line if it is to be this message; empty if nothing is."""
    reader = _Reader(line)
    try:
        reader.message(message)
        reader.space()
        if reader.at < len(line):
            raise reader.unexpected("end of input")
    except LineError as e:
        return str(e)
    except RecursionError:
        return str(LineError(reader.at + 1, "nesting is too deep"))
    return ""


class _Reader:
    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def space(self) -> None:
        found = _SPACE.match(self.text, self.at)
        self.at = found.end() if found else self.at

    def peek(self) -> str:
        self.space()
        return self.text[self.at : self.at + 1]

    def unexpected(self, expected: str) -> LineError:
        char = self.peek()
        if not char:
            return LineError(self.at + 1, f"unexpected end of input; expected {expected}")
        return LineError(self.at + 1, f"unexpected character: '{char}'; expected {expected}")

    def take(self, char: str) -> None:
        if self.peek() != char:
            raise self.unexpected(f"'{char}'")
        self.at += 1

    def string(self) -> str:
        if self.peek() != '"':
            raise self.unexpected("'\"'")
        try:
            value, self.at = json.decoder.scanstring(self.text, self.at + 1, True)  # type: ignore[attr-defined]
        except json.JSONDecodeError as e:
            raise LineError(e.pos + 1, "invalid string") from e
        return str(value)

    def members(self, close: str) -> Any:
        """Yield once per member of an object or array, after its opening character was taken."""
        if self.peek() == close:
            self.at += 1
            return
        while True:
            yield
            if self.peek() == ",":
                self.at += 1
            elif self.peek() == close:
                self.at += 1
                return
            else:
                raise self.unexpected(f"',' or '{close}'")

    def message(self, name: str) -> None:
        table = MESSAGES[name]
        either, chosen = ONEOFS.get(name, frozenset()), False
        self.take("{")
        for _ in self.members("}"):
            field = self.string()
            if field not in table:
                raise LineError(self.at + 1, f"no such field: '{field}'")
            self.take(":")
            if table[field][0] in either and self.peek() != "n":
                if chosen:
                    raise LineError(
                        self.at + 1, f"'{field}' has already been set (either directly or as part of a oneof)"
                    )
                chosen = True
            self.field(table[field][1])

    def field(self, kind: str) -> None:
        if self.text.startswith("null", self.at) or (self.peek() == "n" and self.text.startswith("null", self.at)):
            self.at += 4
        elif kind.startswith("[]"):
            self.take("[")
            for _ in self.members("]"):
                self.field(kind[2:])
        elif kind == "map" or kind.startswith("map:"):
            self.take("{")
            for _ in self.members("}"):
                self.string()
                self.take(":")
                self.field(kind[4:] or "string")
        elif kind in MESSAGES:
            self.message(kind)
        else:
            self.scalar(kind)

    def scalar(self, kind: str) -> None:
        char = self.peek()
        start = self.at
        if kind in ("string", "bytes") and char != '"':
            raise self.unexpected("'\"'")
        if kind == "struct" and char != "{":
            raise self.unexpected("'{'")
        value = self.any()
        if not scalar(value, kind)[0]:
            raise LineError(start + 1, f"invalid value for {kind}: {json.dumps(value, ensure_ascii=False)[:100]}")

    def any(self) -> Any:
        char = self.peek()
        if char == '"':
            return self.string()
        if char == "{":
            self.at += 1
            object_: dict[str, Any] = {}
            for _ in self.members("}"):
                name = self.string()
                self.take(":")
                object_[name] = self.any()
            return object_
        if char == "[":
            self.at += 1
            return [self.any() for _ in self.members("]")]
        for word, value in _LITERALS.items():
            if self.text.startswith(word, self.at):
                self.at += len(word)
                return value
        if found := _NUMBER.match(self.text, self.at):
            self.at = found.end()
            return float(found[0]) if found[1] or found[2] else int(found[0])
        raise self.unexpected("a value")
