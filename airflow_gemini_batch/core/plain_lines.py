"""
Plain lines of a result file, many at a time: Arrow reads them in threads, apart from the interpreter's lock.

A plain line is nearly every line of a job that went well: one candidate that stopped by itself, one part, which is text, and
no other word that has a meaning for the row's status. Every line that is not plain stays bytes: ``Reader.read`` judges it,
and what a status means is said only there. A block of lines with anything unusual in its bytes is not given to Arrow at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from airflow_gemini_batch.core.answers import key_of, load
from airflow_gemini_batch.core.blocks import not_blank
from airflow_gemini_batch.core.columns import Column, kernels

if TYPE_CHECKING:
    import pyarrow as pa

OPEN, CLOSE = b"{}"

COUNTS = {
    "prompt_tokens": "promptTokenCount",
    "output_tokens": "candidatesTokenCount",
    "thoughts_tokens": "thoughtsTokenCount",
    "cached_tokens": "cachedContentTokenCount",
    "tool_tokens": "toolUsePromptTokenCount",
}
DETAILS = ("promptTokensDetails", "candidatesTokensDetails", "cacheTokensDetails")
"""Where tokens that are not of text are counted apart."""

MOST_TOKENS = 10**15
"""A count that is higher is none; see ``usage``."""

OF_LINE = ("text", "model_version", "response_id", *COUNTS)


@dataclass(frozen=True)
class Parsed:
    """
    The lines of one block, in order; blank ones are none.

    :param columns: ``key`` (null where a line cannot be read), ``plain``, ``line`` (its number in the block, from 0) and
        those of :data:`OF_LINE`, null where it is not plain.
    :param at: where in the file the block is, ``size``: its bytes, ``all_lines``: its lines, with blank ones.
    :param odd: the lines that are not plain, by number.
    """

    columns: pa.RecordBatch
    at: int
    size: int
    all_lines: int
    odd: Mapping[int, bytes]


def parse(block: tuple[int, bytes]) -> Parsed:
    import pyarrow as pa

    pc = kernels()

    at, data = block
    try:
        columns = _columns(data)
    except (ValueError, pa.ArrowException):
        columns = _one_by_one(_split(data))
    plain: Column = columns["plain"]
    numbers: Column = columns["line"]
    odd: dict[int, bytes] = {}
    if plain.true_count < len(plain):
        lines = _split(data)
        odd = {number: lines[number] for number in numbers.filter(pc.invert(plain)).to_pylist()}
    return Parsed(columns, at, len(data), _count(data), odd)


def _split(data: bytes) -> list[bytes]:
    return data.removesuffix(b"\n").split(b"\n")


def _count(data: bytes) -> int:
    """Lines, as :func:`_split` gives them."""
    return data.count(b"\n") + (not data.endswith(b"\n"))


def _count_objects(data: bytes) -> int:
    """Lines, 0 if one of them does not begin with "{" or end with "}"."""
    if not (data.startswith(b"{") and data.endswith((b"}", b"}\n"))):
        return 0
    lines, last = 1, len(data) - 1
    end = data.find(b"\n")
    while 0 <= end < last:
        if data[end - 1] != CLOSE or data[end + 1] != OPEN:
            return 0
        lines += 1
        end = data.find(b"\n", end + 1)
    return lines


def _columns(data: bytes) -> pa.RecordBatch:
    """:raises ValueError: Arrow might see other lines, or other values, than ``load`` does."""
    import pyarrow as pa
    import pyarrow.json as pj

    pc = kernels()

    # An object cannot go on with "{" after "}", so that lines which all begin and end so hold whole objects; and if there
    # are as many objects as lines, each holds one. Arrow does not read on after a zero byte, and does not check UTF-8.
    lines = _count_objects(data)
    if not lines or b"\0" in data:
        raise ValueError("these lines need a closer look")
    whole: Any = pa.py_buffer(data)
    if not data.isascii():
        offsets: Any = pa.array([0, len(data)], pa.int32()).buffers()[1]
        pa.StringArray.from_buffers(1, offsets, whole).validate(full=True)
    read = pj.read_json(
        cast("Any", pa.BufferReader(whole)),
        read_options=pj.ReadOptions(use_threads=False, block_size=len(data) + 1),
        parse_options=pj.ParseOptions(explicit_schema=_line_schema(), unexpected_field_behavior="ignore"),
    ).combine_chunks()
    if len(read) != lines:
        raise ValueError("these lines need a closer look")
    (batch,) = read.to_batches()
    response = batch["response"]
    usage = _field(response, "usageMetadata")
    plain, columns = _text(response)
    for name in ("modelVersion", "responseId"):
        columns.append(_field(response, name))
    for name in COUNTS.values():
        count = _field(usage, name)
        bounds = pc.min_max(count).as_py()
        if bounds["min"] is not None and not 0 <= bounds["min"] <= bounds["max"] < MOST_TOKENS:
            raise ValueError("these lines need a closer look")
        if count.null_count:
            count = pc.fill_null(count, 0)
            if usage.null_count:
                count = pc.if_else(pc.is_valid(usage), count, None)
        columns.append(count)
    for name in DETAILS:
        details = _field(usage, name)
        if details.null_count < lines and not pc.all(pc.equal(_field(details.flatten(), "modality"), "TEXT")).as_py():
            raise ValueError("these lines need a closer look")
    key = batch["key"]
    if key.null_count:
        raise ValueError("these lines need a closer look")  # the metadata may have it
    number = pa.array(range(lines), pa.int32())
    return pa.record_batch([key, plain, number, *columns], schema=line_columns())


def _text(response: Column) -> tuple[Column, list[Column]]:
    """Return which responses are plain, and the text of those."""
    import pyarrow as pa

    pc = kernels()

    candidates = _field(response, "candidates")
    single = pc.fill_null(pc.equal(pc.list_value_length(candidates), 1), False)
    if not pc.all(single).as_py():
        # Where there are several or none, the first of what is there would shift the others.
        candidates = pc.if_else(single, candidates, pa.scalar([None], candidates.type))
    first = pc.list_flatten(candidates)
    parts = _field(_field(first, "content"), "parts")
    one = pc.fill_null(pc.equal(pc.list_value_length(parts), 1), False)
    if not pc.all(one).as_py():
        parts = pc.if_else(one, parts, pa.scalar([None], parts.type))
    part = pc.list_flatten(parts)
    text = _field(part, "text")
    conditions = [
        single,
        one,
        pc.fill_null(pc.equal(_field(first, "finishReason"), "STOP"), False),
        pc.is_null(_field(_field(response, "promptFeedback"), "blockReason")),
        pc.is_null(_field(part, "thought")),
        not_blank(text),
    ]
    plain = conditions[0]
    for condition in conditions[1:]:
        plain = pc.and_(plain, condition)
    return plain, [text]


def _field(struct: Column, name: str) -> Any:
    """A field of structs, null where the struct is."""
    pc = kernels()
    return pc.struct_field(struct, name)


def _one_by_one(lines: list[bytes]) -> pa.RecordBatch:
    """The keys of lines that Arrow should not read."""
    import pyarrow as pa

    keys: list[str | None] = []
    numbers = []
    for number, line in enumerate(lines):
        if line.strip():
            numbers.append(number)
            try:
                keys.append(key_of(load(line)))
            except ValueError:
                keys.append(None)
    nothing = [pa.nulls(len(keys), field.type) for field in list(line_columns())[3:]]
    plain = pa.array([False] * len(keys), pa.bool_())
    return pa.record_batch(
        [pa.array(keys, pa.string()), plain, pa.array(numbers, pa.int32()), *nothing], schema=line_columns()
    )


def why_unreadable(data: bytes) -> str:
    try:
        key_of(load(data))
    except ValueError as e:
        return f"cannot be read: {e}"
    raise AssertionError("it can be read")


@lru_cache
def line_columns() -> pa.Schema:
    import pyarrow as pa

    texts = {name: pa.string() for name in ("text", "model_version", "response_id")}
    counts = dict.fromkeys(COUNTS, pa.int64())
    columns: dict[str, pa.DataType] = {"key": pa.string(), "plain": pa.bool_(), "line": pa.int32(), **texts, **counts}
    return pa.schema(columns)


@lru_cache
def _line_schema() -> pa.Schema:
    """The fields of a line that have a meaning for a plain one; ``reading`` knows them all."""
    import pyarrow as pa

    text = pa.string()
    part = pa.struct([("text", text), ("thought", pa.bool_())])
    candidate = pa.struct([("content", pa.struct([("parts", pa.list_(part))])), ("finishReason", text)])
    details = pa.list_(pa.struct([("modality", text)]))
    usage = pa.struct([*((name, pa.int64()) for name in COUNTS.values()), *((name, details) for name in DETAILS)])
    response = pa.struct([
        ("candidates", pa.list_(candidate)), ("usageMetadata", usage), ("modelVersion", text), ("responseId", text),
        ("promptFeedback", pa.struct([("blockReason", text)])),
    ])  # fmt: skip
    return pa.schema([("key", text), ("response", response)])
