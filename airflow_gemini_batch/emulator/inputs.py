"""What a create call brings: the body, and the file it names, checked line by line before there is a job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from airflow_gemini_batch.emulator.columns import explain
from airflow_gemini_batch.emulator.errors import ApiError
from airflow_gemini_batch.emulator.jobs import KEPT_KEYS
from airflow_gemini_batch.emulator.options import Options
from airflow_gemini_batch.emulator.protojson import Problem, read, refuse
from airflow_gemini_batch.emulator.schema import FLAT_GENERATION_FIELDS, MESSAGES
from airflow_gemini_batch.emulator.tokens import prompt_tokens

MOST_ERRORS = 100  # lines named in one message


@dataclass(frozen=True)
class Checked:
    """What is in a valid input: how many requests, the first of their keys, and the tokens of all if they are limited."""

    count: int
    keys: tuple[str, ...]
    tokens: int = 0


def parse_body(raw: bytes, message: str) -> dict[str, Any]:
    """
    The create body in camelCase.

    :param message: ``CreateGenerate`` or ``CreateEmbed``.
    :raises ApiError: 400 for bad JSON, for fields that do not exist, or if no input is given, or two.
    """
    try:
        body = orjson.loads(raw or b"{}")
    except orjson.JSONDecodeError as e:
        raise ApiError(400, f"Invalid JSON payload received. {e}") from e
    problems: list[Problem] = []
    batch: dict[str, Any] = read(body, message, "", problems).get("batch", {})
    refuse(problems)
    config = batch.get("inputConfig", {})
    if "requests" in config and "fileName" in config:
        refuse(
            [
                Problem(
                    "batch.input_config",
                    "Invalid value at 'batch.input_config' (oneof), oneof field 'source' is already set.",
                )
            ]
        )
    if not config.get("fileName") and not config.get("requests", {}).get("requests"):
        refuse(
            [
                Problem(
                    "batch.input_config",
                    "* CreateBatchRequest.batch.input_config: input_config is not set or has no requests",
                )
            ]
        )
    return batch


def write_inline(batch: dict[str, Any], path: Path, *, options: Options) -> Checked:
    """Put inline requests on disk as lines, so that all jobs are answered the same way."""
    items: Sequence[dict[str, Any]] = batch["inputConfig"]["requests"]["requests"]
    with path.open("wb") as out:
        for item in items:
            out.write(orjson.dumps(item, option=orjson.OPT_APPEND_NEWLINE))
    keys = (str(item.get("metadata", {}).get("key", "")) for item in items[:KEPT_KEYS])
    tokens = sum(map(_tokens, items)) if options.enqueued_tokens is not None else 0
    return Checked(len(items), tuple(keys), tokens)


def _tokens(line: dict[str, Any]) -> int:
    return sum(prompt_tokens(line.get("request", {})).values())


def check_file(path: Path, *, embeds: bool, options: Options) -> Checked:
    """
    Go through an input file once.

    :raises ApiError: 400 that names the bad lines.
    """
    message = "EmbedLine" if embeds else "GenerateLine"
    errors: list[str] = []
    keys: list[str] = []
    seen: set[str] = set()
    count = tokens = 0
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, 1):
            if raw.isspace():
                continue
            count += 1
            line, error = _check_line(raw, message, options)
            key = str(line.get("key", ""))
            if not error and options.unique_keys and "key" in line:
                error = f"duplicate key: '{key}'" if key in seen else ""
                seen.add(key)
            if error:
                errors.append(f"Error on line {number}: {error}")
                if len(errors) >= MOST_ERRORS:
                    break
            if len(keys) < KEPT_KEYS:
                keys.append(key)
            if options.enqueued_tokens is not None:
                tokens += _tokens(line)
    if errors:
        raise ApiError(400, "\n".join(errors))
    if not count:
        raise ApiError(400, "The input file has no requests.")
    return Checked(count, tuple(keys), tokens)


def _check_line(raw: bytes, message: str, options: Options) -> tuple[dict[str, Any], str]:
    """The line in camelCase, and what is wrong with it."""
    try:
        line = orjson.loads(raw)
    except orjson.JSONDecodeError as e:
        try:
            text = raw.decode().rstrip("\r\n")
        except UnicodeDecodeError as not_utf8:
            return {}, f"invalid UTF-8, near column {not_utf8.start + 1}"
        return {}, explain(text, message) or f"invalid JSON, near column {e.colno}: {e.msg}"
    problems: list[Problem] = []
    clean = read(line, message, "", problems)
    if not problems:
        return clean, ""
    if isinstance(line, dict) and (options.bare_requests or options.flat_generation_fields):
        tolerated: list[Problem] = []
        clean = read(_tidied(line, options), message, "", tolerated)
        if not tolerated:
            return clean, ""
    return clean, explain(raw.decode().rstrip("\r\n"), message) or problems[0].text


def _tidied(line: dict[str, Any], options: Options) -> dict[str, Any]:
    """The line without what the options forgive."""
    if options.bare_requests and "request" not in line:
        line = {"request": line}
    if options.flat_generation_fields and isinstance(line.get("request"), dict):
        line = {**line, "request": {k: v for k, v in line["request"].items() if k not in _FLAT}}
    return line


_FLAT = {spelling for spelling, (name, _) in MESSAGES["GenerationConfig"].items() if name in FLAT_GENERATION_FIELDS}
