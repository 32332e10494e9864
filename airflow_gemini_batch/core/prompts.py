"""Prompts as users write them: a text with places for columns."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from airflow_gemini_batch.exceptions import InvalidConfig

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,39}")
"""Names of prompts: they become part of request keys and of file names."""

LITERAL_BRACES = "Literal braces are {{ and }}, in a DAG file between {% raw %} and {% endraw %}, as Jinja comes first."


@dataclass(frozen=True)
class Prompt:
    """
    A text with ``{column}`` places. ``{{`` and ``}}`` are literal braces.

    :param pieces: literal texts and column names in turn, beginning and ending with a text.
    """

    pieces: tuple[str, ...]

    @classmethod
    def parse(cls, text: str, name: str = "", *, setting: str = "prompt") -> Prompt:
        """
        :param name: of one prompt among several.
        :param setting: what the user calls it.
        :raises InvalidConfig: a brace is left over, nothing is asked, or the name cannot be used.
        """
        said = f"{setting} {name!r}" if name else setting
        if name and not NAME.fullmatch(name):
            raise InvalidConfig(
                f"The {setting} name {name!r} has other signs than letters, digits, '_', '-' and '.', or over 40."
            )
        if not isinstance(text, str):
            raise InvalidConfig(f"{said} is {text!r}; it takes text with {{column}} places.")
        pieces, literal, end = [], "", 0
        for m in re.finditer(r"\{\{|\}\}|\{([^{}]*)\}|[{}]", text):
            literal += text[end : m.start()]
            end = m.end()
            if m[0] in ("{{", "}}"):
                literal += m[0][0]
            elif m[1] is not None and m[1].strip():
                pieces += [literal, m[1].strip()]
                literal = ""
            else:
                raise InvalidConfig(
                    f"{said} has a lone {m[0]!r} at character {m.start() + 1}. A place is {{column}}. {LITERAL_BRACES}"
                )
        literal += text[end:]
        if not pieces and not literal.strip():
            raise InvalidConfig(f"{said} is blank, so there is nothing to ask; give text, or leave it out.")
        return cls((*pieces, literal))

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.pieces[1::2]))

    def fill(self, values: Mapping[str, Any]) -> str:
        """
        Return the text for one row, ``""`` when every place is blank (a null counts as blank).

        :raises TypeError: a column holds bytes that are no text.
        """
        if len(self.pieces) == 1:
            return self.pieces[0]
        filled = [*self.pieces]
        blank = True
        for i in range(1, len(filled), 2):
            value = values[filled[i]]
            if not isinstance(value, str):
                try:
                    value = place_text(value)
                except TypeError as e:
                    raise TypeError(f"column {filled[i]!r}: {e}") from e
            filled[i] = value
            blank = blank and not filled[i].strip()
        return "" if blank else "".join(filled)


def is_null(value: object) -> bool:
    """True for a null, which pandas writes as NaN."""
    try:
        return value is None or bool(value != value)
    except TypeError:  # pandas' NA, which is neither equal nor unequal
        return True
    except ValueError:  # an array
        return False


def place_text(value: object) -> str:
    """What a place says for a value that is not text: nothing for a null."""
    if is_null(value):
        return ""
    if isinstance(value, bytes):
        return bytes_text(value)
    if isinstance(value, dict | list):
        import orjson  # a DAG file's prompt is read without it

        from airflow_gemini_batch.core import exact

        return exact.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    return str(value)


def bytes_text(value: bytes) -> str:
    """
    Text that a column holds as bytes: some writers of Parquet do not mark theirs as text.

    :raises TypeError: it is something else.
    """
    try:
        return value.decode()
    except UnicodeDecodeError as e:
        raise TypeError("it holds bytes that are no text") from e


def unsendable(e: TypeError) -> str:
    """What orjson refused, in words."""
    return "is not valid Unicode (a lone surrogate)" if "UTF-8" in str(e) else f"cannot be sent: {e}"
