"""
What answers should look like: asked for as ``responseSchema``, checked when they land, given as typed columns.

Knows Pydantic and JSON Schema, and the text of an answer; knows nothing of requests, results or files. The plan keeps
``json_schema``, from which the same columns can be made again when the settings of the task have changed since.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any

import orjson

from airflow_gemini_batch.core.columns import INT64
from airflow_gemini_batch.core.schema_translation import Translation
from airflow_gemini_batch.core.schema_types import step
from airflow_gemini_batch.exceptions import InvalidAnswer, InvalidConfig

if TYPE_CHECKING:
    import pyarrow as pa
    from pydantic import TypeAdapter
    from pydantic.json_schema import GenerateJsonSchema

DEEPEST = 100
"""Levels that an answer may have. Writers of JSON stop at some depth, and one row must not stop all others from landing."""

PROBLEMS_TOLD = 3
"""Problems of one answer that its row names."""

WITHOUT_CHECK = frozenset({"binary", "base64url", "byte", "password"})
"""Formats that Pydantic writes and that any text has."""

DECIMAL = r"^-?\d+(\.\d+)?$"

Check = Callable[[str, Any], Any]
"""Takes an answer as text and as JSON values; returns the values to land. :raises InvalidAnswer:"""


class OutputSchema:
    """
    :ivar json_schema: plain JSON; :meth:`of` takes it too.
    :ivar response_schema: the REST field ``responseSchema``. It needs ``responseMimeType: application/json`` beside it.
    :ivar checked_only: constraints that the API does not know and :meth:`check` does, as ``multipleOf at $.price``.
    """

    def __init__(self, json_schema: dict[str, Any], check: Check, format_checked: Callable[[str], bool]) -> None:
        """Made by :meth:`of`."""
        translation = Translation(json_schema, format_checked)
        self.json_schema = json_schema
        self.response_schema, self._shape = translation.result()
        self.checked_only = tuple(translation.checked_only)
        self._check = check

    @classmethod
    def of(cls, given: object) -> OutputSchema:
        """
        :param given: a Pydantic model, a ``TypeAdapter``, a type that one takes (``list[Model]``, an enum, a ``TypedDict``,
            ``Model | None``, ...), or a JSON schema.
        :raises InvalidConfig: it is none of these, or asks for something that the API cannot be told.
        """
        if isinstance(given, Mapping):
            json_schema = _plain(given)
            return cls(json_schema, *_by_json_schema(json_schema))
        json_schema, adapter = _of_type(given)
        _by_json_schema(json_schema)  # a later release, or another try, may have only this
        return cls(json_schema, _by_type(adapter), lambda name: name not in WITHOUT_CHECK)

    def check(self, text: str) -> Any:
        """
        Return the answer as plain JSON values. From a Pydantic type they are as it dumps them: defaults are filled in, and
        ``"5"`` is 5 where it reads an integer.

        :param text: the text of the answer; half of a surrogate pair becomes ``?``, as everywhere.
        :raises InvalidAnswer: it is not JSON, not what the schema asks for, or fits no column; names the path.
        """
        try:
            value = _read(text)
            if "\\ud" in text.lower():
                # JSON can spell half a surrogate pair, which no file format holds. Whole pairs come through.
                text = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace").decode()
                value = _read(text)
            value = self._check(text, value)
            self._shape.fitted(value, "$")
        except InvalidAnswer:
            raise
        except RecursionError as e:
            raise InvalidAnswer("$: nested too deeply") from e
        except Exception as e:  # validators and serialisers of a model are its author's code: one row, not the landing
            raise InvalidAnswer(f"$: the check itself failed: {type(e).__name__}: {e!s:.200}") from e
        return value

    def arrow_type(self) -> pa.DataType:
        """The type of a column of answers: structs, lists, int64, double, bool and text, which is JSON for mixed types."""
        return self._shape.arrow_type()

    def fitted(self, value: Any) -> Any:
        """
        A value that :meth:`check` returned as :meth:`arrow_type` takes it: absent properties are None, those that the
        schema does not name are left out.
        """
        return self._shape.fitted(value, "$")


# Reading what was given -------------------------------------------------------------------------------------


def _plain(given: Mapping[str, Any]) -> dict[str, Any]:
    def mapping(value: object) -> dict[str, Any]:
        if isinstance(value, Mapping):
            return dict(value)
        raise TypeError(f"it holds a value of type {type(value).__name__}")

    try:
        schema: dict[str, Any] = orjson.loads(orjson.dumps(dict(given), default=mapping))
    except TypeError as e:
        raise InvalidConfig(f"output_schema is not plain JSON: {e.__cause__ or e}.") from e
    return schema


def _of_type(given: Any) -> tuple[dict[str, Any], TypeAdapter[Any]]:
    from pydantic import PydanticUndefinedAnnotation, PydanticUserError, TypeAdapter

    try:
        if isinstance(given, str):  # Pydantic would look for a type of that name, here
            raise PydanticUserError("it is text", code=None)
        adapter: TypeAdapter[Any] = given if isinstance(given, TypeAdapter) else TypeAdapter(given)
        # What is read, not what is written: a field with a default may be left out of an answer.
        read = adapter.json_schema(mode="validation", schema_generator=_generator())
        written = adapter.json_schema(mode="serialization", schema_generator=_generator())
    except (PydanticUserError, PydanticUndefinedAnnotation) as e:
        told = str(e).partition("\n")[0]
        raise InvalidConfig(
            f"output_schema is {given!r:.80}, of which no JSON schema can be made: {told.rstrip('.')}. "
            "Give a Pydantic v2 model, a type that pydantic.TypeAdapter takes, or a JSON schema as a dict."
        ) from e
    json_schema = _plain(read)
    _refuse_renaming(json_schema, written)
    return json_schema, adapter


@cache
def _generator() -> type[GenerateJsonSchema]:
    from pydantic.json_schema import GenerateJsonSchema

    class Generator(GenerateJsonSchema):
        def default_schema(self, schema: Any) -> dict[str, Any]:
            # The API does not read defaults, and one like `date.today()` would make other settings of them every day.
            return self.generate_inner(schema["schema"])

        def decimal_schema(self, schema: Any) -> dict[str, Any]:
            # Pydantic's own asks for a number or a text. A text keeps all digits, and a column has one type.
            return {"type": "string", "pattern": DECIMAL}

    return Generator


def _refuse_renaming(read: dict[str, Any], written: dict[str, Any]) -> None:
    """:raises InvalidConfig: a model writes a field under another name or as another type than it reads it."""
    pairs = [("$", read, written)]
    pairs += [(name, one, written.get("$defs", {}).get(name, one)) for name, one in read.get("$defs", {}).items()]
    for model, one, other in pairs:
        theirs = other.get("properties", {})
        for name, field in one.get("properties", {}).items():
            as_read, as_written = field.get("type"), theirs.get(name, {}).get("type", field.get("type"))
            if name not in theirs:
                wrong = "is not written under that name: give it one alias for both ways, and no exclude"
            elif as_read and as_written != as_read:
                wrong = f"is read as {as_read} and written as {as_written}: take away its serializer"
            else:
                continue
            raise InvalidConfig(f"output_schema: the field {name!r} of {one.get('title', model)} {wrong}.")


# Checking an answer -----------------------------------------------------------------------------------------


def _by_type(adapter: TypeAdapter[Any]) -> Check:
    from pydantic import ValidationError

    def check(text: str, value: Any) -> Any:
        try:
            made = adapter.validate_json(text)
        except ValidationError as e:
            problems = e.errors(include_url=False, include_context=False, include_input=False)
            raise _invalid((_path(one["loc"]), one["msg"]) for one in problems) from e
        # Round trip: without computed fields, which the answer did not hold and its column does not.
        return adapter.dump_python(made, mode="json", by_alias=True, round_trip=True, warnings=False)

    return check


def _by_json_schema(schema: dict[str, Any]) -> tuple[Check, Callable[[str], bool]]:
    from jsonschema import Draft202012Validator, SchemaError  # type: ignore[import-untyped]  # its stubs are apart
    from jsonschema.validators import validator_for  # type: ignore[import-untyped]

    kind = validator_for(schema, default=None) if "$schema" in schema else Draft202012Validator
    if kind is None:
        raise InvalidConfig(f"output_schema: $schema is {schema['$schema']!r}, which is no draft of JSON Schema.")
    try:
        kind.check_schema(schema)
    except SchemaError as e:
        raise InvalidConfig(f"output_schema is not a JSON schema: {e.json_path}: {_short(e.message)}.") from e
    validator = kind(schema, format_checker=kind.FORMAT_CHECKER)

    def check(text: str, value: Any) -> Any:
        problems = list(islice(validator.iter_errors(value), PROBLEMS_TOLD + 1))
        if problems:
            raise _invalid((_path(e.absolute_path), _short(e.message)) for e in problems)
        return value

    return check, lambda name: name in kind.FORMAT_CHECKER.checkers


def _invalid(problems: Iterable[tuple[str, str]]) -> InvalidAnswer:
    told = [f"{path}: {problem}" for path, problem in problems]
    more = ["and more"] if len(told) > PROBLEMS_TOLD else []
    return InvalidAnswer("; ".join(told[:PROBLEMS_TOLD] + more))


def _path(location: Iterable[str | int]) -> str:
    path = "$"
    for one in location:
        path = f"{path}[{one}]" if isinstance(one, int) else step(path, one)
    return path


def _short(message: str) -> str:
    """The library's messages begin with the value, whatever its size, and end with what is wrong with it."""
    return message if len(message) <= 200 else f"{message[:60]} ... {message[-120:]}"


# Reading an answer ------------------------------------------------------------------------------------------


class _Twice:
    """Stands where an object names a key twice: whoever reads it could mean either value."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        names = [name for name, _ in pairs]
        self.name = next(name for n, name in enumerate(names) if name in names[:n])


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | _Twice:
    made = dict(pairs)
    return made if len(made) == len(pairs) else _Twice(pairs)


def _integer(digits: str) -> int:
    # Beyond 64 bits the value does not matter any more, and Python refuses to read thousands of digits.
    return int(digits[:21])


def _read(text: str) -> Any:
    """
    :raises InvalidAnswer: it is not JSON, or reads as JSON that other readers would take otherwise or not at all.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_int=_integer)
    except ValueError as e:
        raise InvalidAnswer(f"$: not JSON: {e}") from e
    _refuse_odd(value, "$")
    return value


def _refuse_odd(value: Any, path: str, depth: int = 0) -> None:
    if depth > DEEPEST:
        raise InvalidAnswer("$: nested too deeply")
    if isinstance(value, dict):
        for name, one in value.items():
            _refuse_odd(one, step(path, name), depth + 1)
    elif isinstance(value, list):
        for n, one in enumerate(value):
            _refuse_odd(one, f"{path}[{n}]", depth + 1)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidAnswer(f"{path}: {value} is not a number that JSON or a column has")
    elif isinstance(value, int):
        if value not in INT64:
            raise InvalidAnswer(f"{path}: a whole number of more than 64 bits")
    elif isinstance(value, _Twice):
        raise InvalidAnswer(f"{path}: the key {value.name!r} is there twice")
