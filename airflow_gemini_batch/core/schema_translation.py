"""
A JSON Schema becomes the API's ``responseSchema``, an older and smaller language, and the shape of a column.

What the API cannot be told falls in three kinds. Keywords that only constrain are left out and named, for they are
checked on landing. Keywords that tell the reader something (defaults, examples) are left out. Keywords that change the
shape of an answer are an error: asking for another shape would pay for answers that are all invalid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from airflow_gemini_batch.core.schema_types import INTEGER, JSON, NUMBER, Leaf, ListOf, Shape, Struct, common, step
from airflow_gemini_batch.exceptions import InvalidConfig

SENT: dict[str, tuple[str, ...]] = {
    "string": ("minLength", "maxLength", "pattern"),
    "integer": ("minimum", "maximum"),
    "number": ("minimum", "maximum"),
    "boolean": (),
    "array": ("minItems", "maxItems"),
    "object": ("minProperties", "maxProperties"),
}
"""JSON Schema's type → constraints that the API knows by the same name. On another type they mean nothing."""

CHECKED: dict[str, tuple[str, ...]] = {
    "string": (),
    "integer": ("exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "number": ("exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "boolean": (),
    "array": ("uniqueItems", "contains", "minContains", "maxContains"),
    "object": ("propertyNames", "dependentRequired"),
}
"""JSON Schema's type → constraints that the API does not know."""

FORMATS: dict[str, tuple[str, ...]] = {
    # "only 'enum' and 'date-time' are supported for STRING type": others fail the whole job with 400.
    "string": ("date-time",),
    "integer": ("int32", "int64"),
    "number": ("float", "double"),
}
"""Formats that the API takes (https://ai.google.dev/api/caching#Schema)."""

PATTERNS: dict[str, str] = {
    "date": "^[0-9]{4}-[0-9]{2}-[0-9]{2}$",
    "time": "^[0-9]{2}:[0-9]{2}:[0-9]{2}(Z|[+-][0-9]{2}:[0-9]{2})?$",
    "duration": "^-?P[0-9YMWDTHS.]+$",
    "uuid": "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$",
    "email": "^[^@ ]+@[^@ ]+[.][^@ ]+$",
    "uri": "^[A-Za-z][A-Za-z0-9+.-]*:[^ ]+$",
    "ipv4": "^([0-9]{1,3}[.]){3}[0-9]{1,3}$",
}
"""What the API is told instead of formats that it does not take. The check goes by the format."""

UNSUPPORTED: dict[str, str] = {
    "prefixItems": "use an object with a named field for each place",
    "additionalItems": "use an object with a named field for each place",
    "unevaluatedItems": "say what the items are with items",
    "patternProperties": "name the properties, or use an array of objects with a name and a value",
    "unevaluatedProperties": "name the properties, and use additionalProperties: false",
    "dependentSchemas": "make the dependent properties optional",
    "dependencies": "make the dependent properties optional",
    "not": "say what the value is, not what it is not",
    "if": "use anyOf",
    "then": "use anyOf",
    "else": "use anyOf",
    "nullable": 'it is not JSON Schema: use type: [..., "null"]',
    "$dynamicRef": "use $ref",
    "$recursiveRef": "use $ref",
}
"""Keywords that change what an answer looks like and that the API cannot be told, and what to do instead."""

ANNOTATIONS = frozenset(
    {"title", "description", "default", "example", "examples", "deprecated", "readOnly", "writeOnly", "discriminator",
     "$comment", "$id", "id", "$schema", "$anchor", "$defs", "definitions", "contentMediaType", "contentEncoding",
     "contentSchema"}
)  # fmt: skip
"""Keywords that say nothing about which answers are right."""

TOLD = ("title", "description")
"""Annotations that are sent: the model reads them."""

Schema = Mapping[str, Any]


@dataclass
class Translation:
    """
    :param root: the whole schema; its references stay inside of it.
    :param format_checked: whether a format is checked on landing.
    """

    root: Schema
    format_checked: Callable[[str], bool]
    checked_only: dict[str, None] = field(default_factory=dict)
    _wrong: dict[str, None] = field(default_factory=dict)

    def result(self) -> tuple[dict[str, Any], Shape]:
        """
        :return: the ``responseSchema``, and the shape of a column of answers.
        :raises InvalidConfig: names everything that cannot be asked for, with its path and what to do.
        """
        self._look_at_references(self.root, "$")
        if not self._wrong:
            asked, shape = self._node(self.root, "$", ())
        if self._wrong:
            raise InvalidConfig("output_schema cannot be sent to the API: " + "; ".join(self._wrong) + ".")
        return asked, shape

    def _refuse(self, what: str, path: str, advice: str) -> tuple[dict[str, Any], Shape]:
        """Note it and go on, so that one message names all."""
        self._wrong[f"{what} at {path} ({advice})"] = None
        return {}, JSON

    def _check_only(self, keyword: str, path: str) -> None:
        self.checked_only[f"{keyword} at {path}"] = None

    # One node ------------------------------------------------------------------------------------------------

    def _node(self, schema: object, path: str, inside: tuple[str, ...]) -> tuple[dict[str, Any], Shape]:
        """:param inside: the references that led here, to see one that leads back."""
        if schema is False:
            return self._refuse("a schema that is false", path, "leave it out")
        flat, inside = self._flattened(schema, path, inside)
        if flat is None:
            return {}, JSON
        for keyword, advice in UNSUPPORTED.items():
            if keyword in flat:
                self._refuse(keyword, path, advice)
        told = {name: flat[name] for name in TOLD if name in flat}
        if "anyOf" in flat or "oneOf" in flat:
            return self._union(flat, told, path, inside)
        kinds = _kinds(flat)
        if not kinds:
            return self._refuse("a schema that allows anything", path, "say its type")
        nullable = "null" in kinds and None in flat.get("enum", [None]) and flat.get("const") is None
        kinds = [kind for kind in kinds if kind != "null"]
        if not kinds:
            return self._refuse("a value that is always null", path, "leave it out")
        if len(kinds) == 1:
            asked, shape = self._typed(kinds[0], flat, path, inside)
        else:
            made = [self._typed(kind, flat, path, inside) for kind in kinds]
            asked, shape = {"anyOf": [one for one, _ in made]}, common(shape for _, shape in made)
        return told | asked | ({"nullable": True} if nullable else {}), shape

    def _union(
        self, flat: Schema, told: dict[str, Any], path: str, inside: tuple[str, ...]
    ) -> tuple[dict[str, Any], Shape]:
        """What stands beside ``anyOf`` holds for each member, so it is moved into them."""
        if "anyOf" in flat and "oneOf" in flat:
            return self._refuse("anyOf beside oneOf", path, "write one union")
        word = "anyOf" if "anyOf" in flat else "oneOf"
        if word == "oneOf" and "discriminator" not in flat:
            self._check_only("oneOf (sent as anyOf)", path)
        passed = ANNOTATIONS | UNSUPPORTED.keys() | {word}
        beside = {name: value for name, value in flat.items() if name not in passed}
        nullable, asked, shapes = False, [], []
        for n, member in enumerate(flat[word]):
            place = f"{path}.{word}[{n}]"
            one, refs = self._flattened(member, place, inside)
            if one is None:
                continue
            one = self._merged([beside, one], place)
            if _kinds(one) == ["null"] and "anyOf" not in one and "oneOf" not in one:
                nullable = True
                continue
            made, shape = self._node(one, place, refs)
            nullable = made.pop("nullable", False) or nullable
            asked.append(made)
            shapes.append(shape)
        if not asked:
            return ({}, JSON) if self._wrong else self._refuse("a value that is always null", path, "leave it out")
        body = asked[0] | told if len(asked) == 1 else told | {"anyOf": asked}
        return body | ({"nullable": True} if nullable else {}), common(shapes)

    def _typed(self, kind: str, flat: Schema, path: str, inside: tuple[str, ...]) -> tuple[dict[str, Any], Shape]:
        asked: dict[str, Any] = {"type": kind.upper()}
        for keyword in CHECKED[kind]:
            if flat.get(keyword, False) is not False:
                self._check_only(keyword, path)
        self._values(kind, flat, path, asked)
        if "format" in flat and kind in FORMATS:
            if flat["format"] in FORMATS[kind]:
                asked["format"] = flat["format"]
            elif self.format_checked(flat["format"]):
                self._check_only(f"format {flat['format']}", path)
        if kind == "string" and (pattern := PATTERNS.get(flat.get("format", ""))):
            asked["pattern"] = pattern
        asked |= {keyword: flat[keyword] for keyword in SENT[kind] if keyword in flat}
        if kind in ("integer", "number"):
            asked |= _bounds(flat, whole=kind == "integer")
        if kind == "array":
            return self._array(asked, flat, path, inside)
        if kind == "object":
            return self._object(asked, flat, path, inside)
        leaves = {"string": Leaf("string"), "integer": INTEGER, "number": NUMBER, "boolean": Leaf("bool")}
        return asked, leaves[kind]

    def _values(self, kind: str, flat: Schema, path: str, asked: dict[str, Any]) -> None:
        """``enum`` and ``const``: the API knows lists of texts, and fails the whole job with 400 if one of them is empty."""
        for keyword in ("enum", "const"):
            if keyword not in flat:
                continue
            values = flat[keyword] if keyword == "enum" else [flat[keyword]]
            values = [value for value in values if _kind(value) == kind]
            if kind == "string" and values and all(values):
                asked["enum"] = values
            else:
                self._check_only(keyword, path)

    def _array(
        self, asked: dict[str, Any], flat: Schema, path: str, inside: tuple[str, ...]
    ) -> tuple[dict[str, Any], Shape]:
        items = flat.get("items")
        if isinstance(items, list):
            return self._refuse("items as a list", path, UNSUPPORTED["prefixItems"])
        if items is None:
            return self._refuse("an array without items", path, "say what they are")
        asked["items"], shape = self._node(items, f"{path}[]", inside)
        return asked, ListOf(shape)

    def _object(
        self, asked: dict[str, Any], flat: Schema, path: str, inside: tuple[str, ...]
    ) -> tuple[dict[str, Any], Shape]:
        properties, more = flat.get("properties", {}), flat.get("additionalProperties", True)
        if more is False:
            self._check_only("additionalProperties", path)
        elif more not in (True, {}):
            advice = "name the properties, or use an array of objects with a name and a value"
            self._refuse("additionalProperties with a schema", path, advice)
        if not properties:
            # "properties: should be non-empty for OBJECT type": the API fails the whole job with 400.
            return self._refuse("an object without properties", path, "name them")
        made = {name: self._node(one, step(path, name), inside) for name, one in properties.items()}
        asked["properties"] = {name: one for name, (one, _) in made.items()}
        order = flat.get("propertyOrdering", list(properties))
        for keyword, names in (("required", flat.get("required", [])), ("propertyOrdering", order)):
            unknown = [name for name in names if name not in properties]
            if unknown:
                self._refuse(f"{keyword} of {', '.join(map(repr, unknown))}", path, "no property has that name")
        if flat.get("required"):
            asked["required"] = list(flat["required"])
        if len(properties) > 1:
            asked["propertyOrdering"] = list(order)
        return asked, Struct(tuple((name, shape) for name, (_, shape) in made.items()))

    # References and allOf ------------------------------------------------------------------------------------

    def _flattened(
        self, schema: object, path: str, inside: tuple[str, ...]
    ) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
        """
        The node with its reference and its ``allOf`` merged in, and the references that now led here. None: a reference
        leads back to itself.
        """
        if not isinstance(schema, Mapping):
            return {}, inside
        ref = schema.get("$ref")
        if ref in inside:
            self._refuse(f"$ref {ref}, which leads back to itself,", path, "write out the levels you need")
            return None, inside
        parts: list[dict[str, Any]] = []
        led_here = inside
        steps = [(self._target(ref), (*inside, ref))] if ref is not None else []
        for one, refs in [*steps, *((one, inside) for one in schema.get("allOf", ()))]:
            part, refs = self._flattened(one, path, refs)
            if part is None:
                return None, inside
            parts.append(part)
            led_here += refs
        parts.append({name: value for name, value in schema.items() if name not in ("$ref", "allOf")})
        return self._merged(parts, path), led_here

    def _merged(self, parts: list[dict[str, Any]], path: str) -> dict[str, Any]:
        """One schema that says what all of them say. Annotations of the last one win: it stands nearest to its use."""
        merged: dict[str, Any] = {}
        for part in parts:
            for name, value in part.items():
                if name not in merged or merged[name] == value or name in ANNOTATIONS:
                    merged[name] = value
                elif name == "required":
                    merged[name] = list(dict.fromkeys([*merged[name], *value]))
                elif name == "properties":
                    for twice in merged[name].keys() & value.keys():
                        if merged[name][twice] != value[twice]:
                            self._refuse("two descriptions", step(path, twice), "merge what allOf or $ref says twice")
                    merged[name] = merged[name] | value
                else:
                    self._refuse(f"two values of {name}", path, "merge what allOf, anyOf or $ref says twice")
        return merged

    def _target(self, ref: str) -> Any:
        """:raises LookupError: the reference leads nowhere, or out of the schema."""
        if not ref.startswith("#"):
            raise LookupError(ref)
        target: Any = self.root
        for word in unquote(ref[1:]).split("/")[1:]:
            word = word.replace("~1", "/").replace("~0", "~")
            target = target[int(word)] if isinstance(target, list) and word.isdecimal() else target[word]
        if not isinstance(target, Mapping | bool) or not (ref == "#" or ref.startswith("#/")):
            raise LookupError(ref)
        return target

    def _look_at_references(self, part: object, path: str) -> None:
        """Everywhere, also where only the check on landing would follow them: it must not meet a dead end there."""
        if isinstance(part, Mapping):
            if isinstance(part.get("$id"), str) and path != "$":
                self._refuse("$id", path, "keep it at the top, so that references mean one thing")
            ref = part.get("$ref")
            if isinstance(ref, str):
                try:
                    self._target(ref)
                except (LookupError, TypeError):
                    self._refuse(f"$ref {ref}", path, "it must name a part of this schema, like #/$defs/Name")
            for name, one in part.items():
                self._look_at_references(one, step(path, name))
        elif isinstance(part, list):
            for n, one in enumerate(part):
                self._look_at_references(one, f"{path}[{n}]")


def _kinds(flat: Schema) -> list[str]:
    """The types a value may have, as far as the schema says so."""
    if "type" in flat:
        return list(dict.fromkeys(flat["type"])) if isinstance(flat["type"], list) else [flat["type"]]
    if "const" in flat:
        return [_kind(flat["const"])]
    if "enum" in flat:
        return list(dict.fromkeys(map(_kind, flat["enum"])))
    return [kind for kind, sign in (("object", "properties"), ("array", "items")) if sign in flat]


def _bounds(flat: Schema, *, whole: bool) -> dict[str, Any]:
    """The smallest and the largest number that are allowed, which the API can be told of a list or an open range, too."""

    def numbers(*values: Any) -> list[Any]:
        return [value for value in values if _kind(value) in ("integer", "number")]

    listed = numbers(*flat.get("enum", [flat.get("const")]))
    above, below = numbers(flat.get("exclusiveMinimum")), numbers(flat.get("exclusiveMaximum"))
    if whole:  # 1 is the first above 0, and above 0.5
        above, below = [math.floor(one) + 1 for one in above], [math.ceil(one) - 1 for one in below]
    low = [*numbers(flat.get("minimum")), *above, *(listed and [min(listed)])]
    high = [*numbers(flat.get("maximum")), *below, *(listed and [max(listed)])]
    return ({"minimum": max(low)} if low else {}) | ({"maximum": min(high)} if high else {})


def _kind(value: object) -> str:
    kinds = ((bool, "boolean"), (int, "integer"), (float, "number"), (str, "string"), (list, "array"), (dict, "object"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "null")
