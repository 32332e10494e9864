"""What a column of answers looks like: its Arrow type, and answers brought into that form. Knows no schema language."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from airflow_gemini_batch.core.columns import INT64
from airflow_gemini_batch.exceptions import InvalidAnswer

if TYPE_CHECKING:
    import pyarrow as pa

Kind = Literal["string", "int64", "double", "bool", "json"]


@dataclass(frozen=True)
class Leaf:
    """A value without parts. ``json`` is any value, held as JSON text."""

    kind: Kind

    def arrow_type(self) -> pa.DataType:
        import pyarrow as pa

        types: dict[Kind, pa.DataType] = {
            "string": pa.string(),
            "int64": pa.int64(),
            "double": pa.float64(),
            "bool": pa.bool_(),
            "json": pa.string(),
        }
        return types[self.kind]

    def fitted(self, value: Any, path: str) -> Any:
        if value is None or (self.kind == "bool" and isinstance(value, bool)):
            return value
        if self.kind == "json" or (self.kind == "string" and not isinstance(value, str)):
            return _as_json(value, path)
        if self.kind == "string":
            return value
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            if self.kind == "double":
                return float(value)
            # 2.0 is a whole number to JSON Schema. Compared, not `in`: a range looks for a float one number at a time.
            if self.kind == "int64" and INT64.start <= value < INT64.stop and value == int(value):
                return int(value)
        raise InvalidAnswer(f"{path}: {value!r:.60} does not fit the column's type, {self.kind}")


@dataclass(frozen=True)
class ListOf:
    item: Shape

    def arrow_type(self) -> pa.DataType:
        import pyarrow as pa

        return pa.list_(self.item.arrow_type())

    def fitted(self, value: Any, path: str) -> Any:
        if value is None:
            return None
        if not isinstance(value, list):
            raise InvalidAnswer(f"{path}: {value!r:.60} does not fit the column's type, a list")
        return [self.item.fitted(one, f"{path}[{n}]") for n, one in enumerate(value)]


@dataclass(frozen=True)
class Struct:
    """Parts by name; never without any, which Parquet could not hold."""

    fields: tuple[tuple[str, Shape], ...]

    def arrow_type(self) -> pa.DataType:
        import pyarrow as pa

        return pa.struct([pa.field(name, shape.arrow_type()) for name, shape in self.fields])

    def fitted(self, value: Any, path: str) -> Any:
        """What is absent is None; what has no field of its own is left out."""
        if value is None:
            return None
        if not isinstance(value, dict):
            raise InvalidAnswer(f"{path}: {value!r:.60} does not fit the column's type, an object")
        return {name: shape.fitted(value.get(name), step(path, name)) for name, shape in self.fields}


Shape = Leaf | ListOf | Struct

INTEGER, NUMBER, JSON = Leaf("int64"), Leaf("double"), Leaf("json")


def common(shapes: Iterable[Shape]) -> Shape:
    """The shape that holds values of all of these: JSON text where they differ."""
    distinct = set(shapes)
    if distinct == {INTEGER, NUMBER}:
        return NUMBER
    return distinct.pop() if len(distinct) == 1 else JSON


def step(path: str, name: str) -> str:
    """The path of a property: ``$.price``, or ``$["unit price"]`` where a dot would mislead."""
    return f"{path}.{name}" if name.isidentifier() else f"{path}[{json.dumps(name, ensure_ascii=False)}]"


def _as_json(value: Any, path: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as e:
        raise InvalidAnswer(f"{path}: cannot be written as JSON: {e}") from e
