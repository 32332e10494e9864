from __future__ import annotations

import enum
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from types import MappingProxyType
from typing import Annotated, Any, Literal
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google import genai
from hypothesis import given
from hypothesis import strategies as st
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    RootModel,
    TypeAdapter,
    computed_field,
    field_validator,
)
from typing_extensions import TypedDict

from airflow_gemini_batch.core.schema import OutputSchema
from airflow_gemini_batch.core.schema_translation import ANNOTATIONS, CHECKED, SENT, UNSUPPORTED
from airflow_gemini_batch.exceptions import InvalidAnswer, InvalidConfig


class Mood(enum.Enum):
    GOOD = "good"
    BAD = "bad"


class Size(enum.IntEnum):
    S = 1
    L = 2


class Address(BaseModel):
    """Where somebody lives."""

    street: str
    zip: str | None = None


class Review(BaseModel):
    stars: int = Field(ge=1, le=5, description="As on the page")
    summary: str = Field(min_length=1, max_length=200, pattern="^[A-Z]")
    score: float
    sure: bool = True
    mood: Mood
    kind: Literal["book", "film"]
    only: Literal["yes"]
    tags: list[str] = Field(min_length=1, max_length=9)
    homes: list[Address]
    home: Address | None = None
    nick: str | None = None
    either: int | str | None = None


class Cat(BaseModel):
    type: Literal["cat"]
    lives: int


class Dog(BaseModel):
    type: Literal["dog"]
    tricks: list[str]


class Owner(BaseModel):
    pet: Cat | Dog
    other: Cat | Dog | None = None


class Pets(BaseModel):
    pet: Annotated[Cat | Dog, Field(discriminator="type")]
    either: Cat | Dog


class Stamp(BaseModel):
    day: date
    at: datetime
    took: timedelta
    price: Decimal = Field(gt=0)
    ident: UUID
    data: bytes
    size: Size
    one: Literal[1]
    half: float = Field(gt=0, multiple_of=0.5)
    names: set[str]


class Profile(TypedDict):
    name: str


@dataclass
class Point:
    x: int
    y: int = 0


def obj(required: list[str] | None = None, /, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties} | ({"required": required} if required else {})


def asked(schema: object) -> dict[str, Any]:
    return OutputSchema.of(schema).response_schema


# What is sent


@pytest.mark.parametrize("model", [Review, Address, Owner, Mood, list[Address], list[int]], ids=str)
def test_what_is_sent_for_a_model_is_what_the_sdk_sends(serve, model):
    """
    The SDK's own request, as it goes over the wire, is the oracle. It takes no discriminated unions, integer enums,
    dataclasses or typed dictionaries, so those have tests of their own.
    """
    server = serve(lambda path, n: (200, {"Content-Type": "application/json"}, b"{}"))
    with genai.Client(api_key="k", vertexai=False, http_options={"base_url": server.url}) as sdk:
        config = {"response_schema": model, "response_mime_type": "application/json"}
        sdk.models.generate_content(model="gemini-2.5-flash", contents="x", config=config)
    wire = json.loads(server.seen[-1][3])["generationConfig"]["responseSchema"]
    assert untitled(asked(model)) == untitled(camel(wire))


def camel(body: Any) -> Any:
    if isinstance(body, list):
        return [camel(one) for one in body]
    if isinstance(body, dict):
        # Not sent by us: defaults, which the API ignores.
        return {re.sub("_([a-z])", lambda m: m[1].upper(), k): camel(v) for k, v in body.items() if k != "default"}
    return body


def untitled(body: dict[str, Any]) -> dict[str, Any]:
    """Without the root's title: the SDK wraps what is no model, and its wrapper's field is called Placeholder."""
    return {name: value for name, value in body.items() if name != "title"}


def test_a_description_beside_a_reference_is_sent_although_the_sdk_loses_it():
    class Person(BaseModel):
        home: Address = Field(description="Where letters go")

    assert asked(Person)["properties"]["home"]["description"] == "Where letters go"


def test_a_nested_model_is_written_out_in_order_with_nothing_the_api_does_not_know():
    assert asked(Review) == {
        "title": "Review",
        "type": "OBJECT",
        "properties": {
            "stars": {"title": "Stars", "type": "INTEGER", "description": "As on the page", "minimum": 1, "maximum": 5},
            "summary": {"title": "Summary", "type": "STRING", "minLength": 1, "maxLength": 200, "pattern": "^[A-Z]"},
            "score": {"title": "Score", "type": "NUMBER"},
            "sure": {"title": "Sure", "type": "BOOLEAN"},
            "mood": {"title": "Mood", "type": "STRING", "enum": ["good", "bad"]},
            "kind": {"title": "Kind", "type": "STRING", "enum": ["book", "film"]},
            "only": {"title": "Only", "type": "STRING", "enum": ["yes"]},
            "tags": {"title": "Tags", "type": "ARRAY", "items": {"type": "STRING"}, "minItems": 1, "maxItems": 9},
            "homes": {"title": "Homes", "type": "ARRAY", "items": ADDRESS},
            "home": ADDRESS | {"nullable": True},
            "nick": {"title": "Nick", "type": "STRING", "nullable": True},
            "either": {"title": "Either", "anyOf": [{"type": "INTEGER"}, {"type": "STRING"}], "nullable": True},
        },
        "required": ["stars", "summary", "score", "mood", "kind", "only", "tags", "homes"],
        "propertyOrdering": list(Review.model_fields),
    }


ADDRESS = {
    "title": "Address",
    "description": "Where somebody lives.",
    "type": "OBJECT",
    "properties": {
        "street": {"title": "Street", "type": "STRING"},
        "zip": {"title": "Zip", "type": "STRING", "nullable": True},
    },
    "required": ["street"],
    "propertyOrdering": ["street", "zip"],
}
TEXT = {"type": "STRING"}
DEFS = {"$defs": {"T": {"type": "string", "title": "T"}}, "type": "object"}


@pytest.mark.parametrize(
    ("schema", "sent"),
    [
        ({"type": ["string", "null"]}, TEXT | {"nullable": True}),
        ({"type": ["string", "integer"], "minLength": 1}, {"anyOf": [TEXT | {"minLength": 1}, {"type": "INTEGER"}]}),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, TEXT | {"nullable": True}),
        ({"anyOf": [{"type": "string"}], "description": "d"}, TEXT | {"description": "d"}),
        ({"oneOf": [{"type": "string"}, {"type": "integer"}]}, {"anyOf": [TEXT, {"type": "INTEGER"}]}),
        (
            {"type": "string", "anyOf": [{"minLength": 3}, {"enum": ["a"]}]},
            {"anyOf": [TEXT | {"minLength": 3}, TEXT | {"enum": ["a"]}]},
        ),
        ({"enum": ["a", None]}, TEXT | {"enum": ["a"], "nullable": True}),
        ({"type": ["string", "null"], "enum": ["a"]}, TEXT | {"enum": ["a"]}),
        ({"const": "a"}, TEXT | {"enum": ["a"]}),
        ({"const": 1}, {"type": "INTEGER", "minimum": 1, "maximum": 1}),
        ({"type": "integer", "enum": [3, 1, 2], "minimum": 2}, {"type": "INTEGER", "minimum": 2, "maximum": 3}),
        ({"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 2.5},
         {"type": "INTEGER", "minimum": 1, "maximum": 2}),
        ({"type": "number", "exclusiveMinimum": 0, "minimum": -1}, {"type": "NUMBER", "minimum": 0}),
        ({"enum": ["a", 1]},
         {"anyOf": [TEXT | {"enum": ["a"]}, {"type": "INTEGER", "minimum": 1, "maximum": 1}]}),
        ({"type": "string", "enum": ["a", ""]}, TEXT),
        ({"type": "string", "format": "date-time"}, TEXT | {"format": "date-time"}),
        ({"type": "string", "format": "date"}, TEXT | {"pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}$"}),
        ({"type": "string", "format": "date", "pattern": "^2026"}, TEXT | {"pattern": "^2026"}),
        ({"type": "string", "format": "hostname"}, TEXT),
        ({"type": "integer", "format": "int32", "minimum": 0}, {"type": "INTEGER", "format": "int32", "minimum": 0}),
        ({"type": "number", "format": "float"}, {"type": "NUMBER", "format": "float"}),
        ({"type": "integer", "minLength": 3}, {"type": "INTEGER"}),
        ({"items": {"type": "string"}}, {"type": "ARRAY", "items": TEXT}),
        ({"properties": {"a": {"type": "string"}}}, {"type": "OBJECT", "properties": {"a": TEXT}}),
        (
            DEFS | {"properties": {"a": {"$ref": "#/$defs/T", "description": "mine"}}},
            {"type": "OBJECT", "properties": {"a": TEXT | {"title": "T", "description": "mine"}}},
        ),
        (
            DEFS | {"properties": {"a": {"allOf": [{"$ref": "#/$defs/T"}], "title": "mine"}}},
            {"type": "OBJECT", "properties": {"a": TEXT | {"title": "mine"}}},
        ),
        (
            {"definitions": {"a/b c": {"type": "string"}}, "items": {"$ref": "#/definitions/a~1b%20c"}, "type": "array"},
            {"type": "ARRAY", "items": TEXT},
        ),
        (
            {"allOf": [obj(["a"], a={"type": "string"}), obj(["b"], b={"type": "string"})]},
            {"type": "OBJECT", "properties": {"a": TEXT, "b": TEXT}, "required": ["a", "b"],
             "propertyOrdering": ["a", "b"]},
        ),
        (
            obj(a={"type": "string"}, b={"type": "string"}) | {"propertyOrdering": ["b", "a"]},
            {"type": "OBJECT", "properties": {"a": TEXT, "b": TEXT}, "propertyOrdering": ["b", "a"]},
        ),
        ({"type": "string", "default": "a", "examples": ["b"], "x-mine": 1, "$comment": "c"}, TEXT),
        (obj(a={"type": "string"}) | {"additionalProperties": True}, {"type": "OBJECT", "properties": {"a": TEXT}}),
        (obj(type={"type": "string"}), {"type": "OBJECT", "properties": {"type": TEXT}}),
    ],
    ids=json.dumps,
)  # fmt: skip
def test_each_form_of_json_schema_is_sent_as_the_api_spells_it(schema, sent):
    assert asked(schema) == sent


def test_a_discriminated_union_is_sent_as_a_union_and_told_apart_on_landing():
    schema = OutputSchema.of(Pets)
    sent = schema.response_schema["properties"]
    assert sent["pet"]["anyOf"] == sent["either"]["anyOf"]
    assert [one["properties"]["type"]["enum"] for one in sent["pet"]["anyOf"]] == [["cat"], ["dog"]]
    assert schema.checked_only == ()
    with pytest.raises(InvalidAnswer, match=r"^\$\.pet\.dog\.tricks: Field required"):
        schema.check('{"pet": {"type": "dog", "lives": 9}, "either": {"type": "cat", "lives": 9}}')


def test_one_definition_may_be_used_in_many_places():
    twice = {"$defs": {"T": {"type": "string"}}} | obj(
        a={"$ref": "#/$defs/T"}, b={"allOf": [{"$ref": "#/$defs/T"}] * 2}
    )
    assert asked(twice)["properties"] == {"a": TEXT, "b": TEXT}


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (Review, "OBJECT"), (list[Review], "ARRAY"), (Review | None, "OBJECT"), (Mood, "STRING"), (Literal["a"], "STRING"),
        (int, "INTEGER"), (float, "NUMBER"), (bool, "BOOLEAN"), (Profile, "OBJECT"), (Point, "OBJECT"),
        (RootModel[list[int]], "ARRAY"), (TypeAdapter(list[int]), "ARRAY"), (Review.model_json_schema(), "OBJECT"),
        (MappingProxyType({"type": "array", "items": MappingProxyType({"type": "string"})}), "ARRAY"),
    ],
    ids=repr,
)  # fmt: skip
def test_anything_that_describes_an_answer_may_be_given(model, kind):
    assert asked(model)["type"] == kind


# What is only checked


def test_constraints_that_the_api_does_not_know_are_named():
    assert OutputSchema.of(Stamp).checked_only == (
        "format date at $.day", "format duration at $.took", "format uuid at $.ident", "enum at $.size", "const at $.one",
        "exclusiveMinimum at $.half", "multipleOf at $.half", "uniqueItems at $.names",
    )  # fmt: skip


WORDS = obj(**{"a b": {"type": "array", "items": {"type": "string"}}})


@pytest.mark.parametrize(
    ("schema", "named", "wrong", "told"),
    [
        ({"type": "integer", "exclusiveMinimum": 0}, "exclusiveMinimum at $", "0", "$: 0 is less than or equal"),
        ({"type": "integer", "exclusiveMaximum": 0}, "exclusiveMaximum at $", "0", "$: 0 is greater than or equal"),
        ({"type": "number", "multipleOf": 0.5}, "multipleOf at $", "0.3", "$: 0.3 is not a multiple of 0.5"),
        ({"type": "integer", "enum": [1, 2]}, "enum at $", "3", "$: 3 is not one of [1, 2]"),
        ({"type": "boolean", "const": True}, "const at $", "false", "$: True was expected"),
        ({"type": "string", "enum": ["a", ""]}, "enum at $", '"b"', "$: 'b' is not one of"),
        ({"type": "string", "format": "date"}, "format date at $", '"soon"', "$: 'soon' is not a 'date'"),
        (obj(a={"type": "string"}) | {"additionalProperties": False}, "additionalProperties at $", '{"b": 1}', "'b' was un"),
        (obj(a={"type": "string"}) | {"propertyNames": {"maxLength": 1}}, "propertyNames at $", '{"bb": 1}', "is too long"),
        (
            obj(a={"type": "string"}) | {"dependentRequired": {"a": ["b"]}},
            "dependentRequired at $", '{"a": "x"}', "'b' is a dependency of 'a'",
        ),
        (
            {"oneOf": [{"type": "integer"}, {"type": "number"}]},
            "oneOf (sent as anyOf) at $", "1", "valid under each of",
        ),
        *(
            (WORDS | {"properties": {"a b": WORDS["properties"]["a b"] | {word: value}}}, f'{word} at $["a b"]',
             '{"a b": ["x", "x"]}', '$["a b"]: ')
            for word, value in [("uniqueItems", True), ("contains", {"const": "y"})]
        ),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)  # fmt: skip
def test_what_is_not_sent_is_checked_on_landing(schema, named, wrong, told):
    made = OutputSchema.of(schema)
    assert named in made.checked_only
    assert not set(json.dumps(made.response_schema).split('"')) & {named.split()[0]}
    with pytest.raises(InvalidAnswer) as caught:
        made.check(wrong)
    assert told in str(caught.value)


def test_a_constraint_that_constrains_nothing_is_not_named():
    schema = {"type": "array", "uniqueItems": False, "items": {"type": "string", "format": "password", "multipleOf": 3}}
    assert OutputSchema.of(schema).checked_only == ()


# What is refused

ANY = {"type": "string"}


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        *((obj(x={"type": "object", "properties": {"y": ANY}, word: {}}), f"{word} at $.x (") for word in
          ["patternProperties", "unevaluatedProperties", "dependentSchemas", "not", "if", "then", "else", "nullable"]),
        (obj(x={"type": "array", "prefixItems": [ANY], "items": False}), "prefixItems at $.x ("),
        (obj(x={"type": "array", "items": ANY, "unevaluatedItems": False}), "unevaluatedItems at $.x ("),
        (obj(x={"type": "array"}), "an array without items at $.x ("),
        (obj(x={"type": "array", "items": True}), "a schema that allows anything at $.x[] ("),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "type": "array", "items": [ANY]}, "items as a list at $ ("),
        (obj(x={"type": "object"}), "an object without properties at $.x ("),
        (obj(x={"type": "object", "properties": {}}), "an object without properties at $.x ("),
        (obj(x={"type": "object", "additionalProperties": ANY}), "additionalProperties with a schema at $.x ("),
        (obj(x={}), "a schema that allows anything at $.x ("),
        (obj(x=True), "a schema that allows anything at $.x ("),
        (obj(x=False), "a schema that is false at $.x ("),
        (obj(x={"type": "null"}), "a value that is always null at $.x ("),
        (obj(x={"anyOf": [{"type": "null"}]}), "a value that is always null at $.x ("),
        (obj(x={"anyOf": [ANY], "oneOf": [ANY]}), "anyOf beside oneOf at $.x ("),
        (obj(x={"anyOf": [ANY, {}]}), "a schema that allows anything at $.x.anyOf[1] ("),
        (obj(["y"], x=ANY), "required of 'y' at $ ("),
        (obj(x=ANY) | {"propertyOrdering": ["z"]}, "propertyOrdering of 'z' at $ ("),
        (obj(x={"allOf": [{"type": "string"}, {"type": "integer"}]}), "two values of type at $.x ("),
        ({"allOf": [obj(a=ANY), obj(a={"type": "integer"})]}, "two descriptions at $.a ("),
        (obj(x={"$ref": "#/$defs/Gone"}), "$ref #/$defs/Gone at $.properties.x ("),
        (obj(x={"$ref": "http://example.com/s"}), "$ref http://example.com/s at $.properties.x ("),
        (obj(x={"type": "array", "items": ANY, "contains": {"$ref": "other.json"}}), "$ref other.json at "),
        (obj(x={"$id": "http://x/y", "type": "string"}), "$id at $.properties.x ("),
        (obj(x={"$ref": "#"}), "$ref #, which leads back to itself, at $.x.x ("),
        ({"$defs": {"N": obj(c={"type": "array", "items": {"$ref": "#/$defs/N"}})}, "$ref": "#/$defs/N"},
         "$ref #/$defs/N, which leads back to itself, at $.c[] ("),
        ({"$defs": {"A": {"$ref": "#/$defs/A"}}, "anyOf": [{"$ref": "#/$defs/A"}]}, "leads back to itself, at $.anyOf[0]"),
    ],
)  # fmt: skip
def test_what_would_change_the_shape_of_answers_is_refused_by_name_and_path(schema, named):
    with pytest.raises(InvalidConfig) as caught:
        OutputSchema.of(schema)
    assert named in str(caught.value)


def test_all_that_is_wrong_is_named_at_once():
    with pytest.raises(InvalidConfig) as caught:
        OutputSchema.of(obj(a={"type": "array"}, b={"not": {}, "type": "string"}, c=obj(d={})))
    for named in ("an array without items at $.a", "not at $.b", "a schema that allows anything at $.c.d"):
        assert str(caught.value).count(named) == 1


class Node(BaseModel):
    children: list[Node]


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (Node, "$ref #/$defs/Node, which leads back to itself, at $.children[]"),
        (tuple[int, str], "prefixItems at $"),
        (dict[str, int], "additionalProperties with a schema at $"),
        (dict, "an object without properties at $"),
        (list[Any], "a schema that allows anything at $[]"),
        (None, "always null"),
        (5, "output_schema is 5, of which no JSON schema can be made"),
        ("Review", "no JSON schema can be made"),
        ("", "no JSON schema can be made: it is text"),
        ('{"type": "string"}', "no JSON schema can be made: it is text"),
        (Callable[[], int], "no JSON schema can be made"),
        (object(), "no JSON schema can be made"),
        ([Review], "no JSON schema can be made"),
        ({"type": "strin"}, "$.type: 'strin' is not valid"),
        ({"type": "array", "items": {"type": "string", "pattern": "("}}, "$.items.pattern: '(' is not a 'regex'"),
        (Annotated[str, Field(pattern=r"\p{L}")], r"$.pattern: '\\p{L}' is not a 'regex'"),
        ({"$schema": "http://example.com/mine"}, "no draft of JSON Schema"),
        ({"default": object()}, "not plain JSON: it holds a value of type object"),
        ({1: 2}, "not plain JSON: Dict key must be str"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_what_is_no_schema_or_none_for_this_api_says_so(model, named):
    with pytest.raises(InvalidConfig) as caught:
        OutputSchema.of(model)
    assert named in str(caught.value)


class Renamed(BaseModel):
    stars: int = Field(validation_alias="Stars")


class Hidden(BaseModel):
    notes: str = Field(exclude=True)


class Epoch(BaseModel):
    at: Annotated[datetime, PlainSerializer(lambda at: at.timestamp(), return_type=float)]


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (Renamed, "'Stars' of Renamed is not written under that name"),
        (list[Hidden], "'notes' of Hidden is not written under that name"),
        (Epoch, "'at' of Epoch is read as string and written as number"),
    ],
)
def test_a_model_that_writes_other_fields_than_it_reads_is_refused_before_anything_is_paid(model, named):
    with pytest.raises(InvalidConfig, match=named):
        OutputSchema.of(model)


def test_every_keyword_of_the_newest_draft_has_a_place():
    from jsonschema import Draft202012Validator

    known = {"type", "enum", "const", "format", "items", "properties", "required", "additionalProperties", "anyOf", "oneOf",
             "allOf", "$ref"}  # fmt: skip
    known |= {*ANNOTATIONS, *UNSUPPORTED, *(word for words in (*SENT.values(), *CHECKED.values()) for word in words)}
    assert set(Draft202012Validator.VALIDATORS) <= known


# What is kept in the plan


@pytest.mark.parametrize("model", [Review, Pets, Stamp, Point, list[Address], Mood, Review | None], ids=str)
def test_the_stored_schema_asks_for_the_same_and_has_the_same_columns(model):
    first = OutputSchema.of(model)
    again = OutputSchema.of(json.loads(json.dumps(first.json_schema)))
    assert again.json_schema == first.json_schema
    assert again.response_schema == first.response_schema
    assert again.arrow_type() == first.arrow_type()


def test_a_default_that_is_another_one_every_day_leaves_the_settings_as_they_are():
    def made(day: date) -> dict[str, Any]:
        class Visit(BaseModel):
            when: date = day

        return OutputSchema.of(Visit).json_schema

    assert made(date(2026, 1, 1)) == made(date(2026, 1, 2))


def test_the_schema_that_was_given_is_not_touched():
    schema = {"$defs": {"T": {"type": "string"}}, **obj(a={"$ref": "#/$defs/T"})}
    before = json.dumps(schema)
    OutputSchema.of(schema).response_schema["properties"].clear()
    assert json.dumps(schema) == before


# What is checked

GOOD = {
    "stars": 4, "summary": "Fine", "score": 2, "mood": "good", "kind": "book", "only": "yes", "tags": ["a"], "homes": [],
}  # fmt: skip


def test_a_pydantic_answer_is_landed_as_its_model_dumps_it():
    answer = json.dumps(GOOD | {"stars": "4"})
    assert OutputSchema.of(Review).check(answer) == GOOD | {
        "sure": True, "home": None, "nick": None, "either": None, "score": 2.0,
    }  # fmt: skip


def test_an_answer_to_a_json_schema_is_landed_as_it_is():
    schema = OutputSchema.of(Review).json_schema
    assert OutputSchema.of(schema).check(json.dumps(GOOD)) == GOOD
    with pytest.raises(InvalidAnswer, match=r"^\$\.stars: '4' is not of type 'integer'$"):
        OutputSchema.of(schema).check(json.dumps(GOOD | {"stars": "4"}))


@pytest.mark.parametrize("stored", [False, True], ids=["model", "stored"])
@pytest.mark.parametrize(
    ("text", "path"),
    [
        (json.dumps(GOOD | {"stars": 9}), "$.stars: "),
        (json.dumps(GOOD | {"homes": [{"street": "x"}, {"street": 1}]}), "$.homes[1].street: "),
        ("", "$: not JSON: "),
        ("Sure! Here it is.", "$: not JSON: "),
        ("{}{}", "$: not JSON: "),
        ('{"a": {"b": 1, "c": 2, "b": 3}}', "$.a: the key 'b' is there twice"),
        ('{"score": NaN}', "$.score: nan is not a number"),
        ('{"score": -Infinity}', "$.score: -inf is not a number"),
        ('{"tags": [1e999]}', "$.tags[0]: inf is not a number"),
        ('{"stars": 9223372036854775808}', "$.stars: a whole number of more than 64 bits"),
        ('{"stars": -9223372036854775809}', "$.stars: a whole number of more than 64 bits"),
        ('{"a b": ' + "1" * 5000 + "}", '$["a b"]: a whole number of more than 64 bits'),
        ("[" * 100_000, "$: nested too deeply"),
        ("5", "$: "),
        ("null", "$: "),
    ],
    ids=lambda one: one[:40] if isinstance(one, str) else "",
)
def test_a_wrong_answer_is_told_with_its_path(text, path, stored):
    schema = OutputSchema.of(Review)
    with pytest.raises(InvalidAnswer) as caught:
        (OutputSchema.of(schema.json_schema) if stored else schema).check(text)
    assert str(caught.value).startswith(path)


def test_of_many_problems_three_are_told():
    with pytest.raises(InvalidAnswer) as caught:
        OutputSchema.of(Review).check("{}")
    assert str(caught.value) == "$.stars: Field required; $.summary: Field required; $.score: Field required; and more"


def test_a_reason_stays_short_whatever_the_size_of_the_answer():
    with pytest.raises(InvalidAnswer) as caught:
        OutputSchema.of({"anyOf": [{"type": "string", "maxLength": 3}, {"type": "integer"}]}).check(
            json.dumps("x" * 10_000)
        )
    assert len(str(caught.value)) < 250
    assert str(caught.value).endswith("is not valid under any of the given schemas")


def test_half_a_surrogate_pair_costs_no_row_and_whole_ones_come_through():
    schema = OutputSchema.of(Address)
    assert schema.check(r'{"street": "a\ud83d\ude00b\uD800c"}')["street"] == "a😀b?c"
    pa.array([schema.fitted(schema.check(r'{"street": "\ud800"}'))], schema.arrow_type())


class Moody(BaseModel):
    name: str

    @field_validator("name")
    @classmethod
    def known(cls, name: str) -> str:
        return {"Ann": name, "Bob": name}[name]


class Secretive(BaseModel):
    """Nobody can tell from its schema that it writes what it does not read."""

    size: Annotated[int, PlainSerializer(lambda size: {1: "one", 3: object(), 4: 4.0}[size])]
    name: Annotated[str, PlainSerializer(lambda name: len(name))] = ""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def twice(self) -> int:
        return 2 * self.size


def test_a_model_whose_own_code_fails_costs_the_row_not_the_landing():
    with pytest.raises(InvalidAnswer, match=r"^\$: the check itself failed: KeyError: 'Eve'$"):
        OutputSchema.of(Moody).check('{"name": "Eve"}')


@pytest.mark.parametrize(
    ("size", "told"),
    [
        (1, r"\$\.size: 'one' does not fit the column's type, int64"),
        (3, r"the check itself failed: PydanticSerializationError"),
        (5, r"the check itself failed: PydanticSerializationError.*KeyError: 5"),
    ],
)
def test_what_a_serializer_writes_and_no_column_holds_costs_the_row_not_the_landing(size, told):
    with pytest.raises(InvalidAnswer, match=told):
        OutputSchema.of(Secretive).check(json.dumps({"size": size}))


def test_what_a_serializer_writes_is_landed_where_the_column_can_hold_it():
    schema = OutputSchema.of(Secretive)
    value = schema.check('{"size": 4, "name": "Ann"}')
    assert value == {"size": 4.0, "name": 3}  # and no computed field, which the schema does not name
    assert pa.array([schema.fitted(value)], schema.arrow_type()).to_pylist() == [{"size": 4, "name": "3"}]


def test_names_that_an_alias_gives_are_the_names_of_the_columns():
    class Aliased(BaseModel):
        model_config = ConfigDict(populate_by_name=True)
        stars: int = Field(alias="Stars")

    schema = OutputSchema.of(Aliased)
    assert schema.check('{"Stars": 5}') == {"Stars": 5}
    assert schema.arrow_type() == pa.struct([("Stars", pa.int64())])


# Columns


def test_every_kind_of_field_has_its_type():
    street = pa.struct([("street", pa.string()), ("zip", pa.string())])
    assert OutputSchema.of(Review).arrow_type() == pa.struct([
        ("stars", pa.int64()), ("summary", pa.string()), ("score", pa.float64()), ("sure", pa.bool_()),
        ("mood", pa.string()), ("kind", pa.string()), ("only", pa.string()), ("tags", pa.list_(pa.string())),
        ("homes", pa.list_(street)), ("home", street), ("nick", pa.string()), ("either", pa.string()),
    ])  # fmt: skip


def test_dates_decimals_and_bytes_are_text_as_in_json():
    schema = OutputSchema.of(Stamp)
    answer = {
        "day": "2026-01-02", "at": "2026-01-02T03:04:05Z", "took": "PT90S", "price": "1.10", "ident": str(UUID(int=7)),
        "data": "abc", "size": 2, "one": 1, "half": 1.5, "names": ["a"],
    }  # fmt: skip
    value = schema.fitted(schema.check(json.dumps(answer)))
    assert value == answer | {"took": "PT1M30S"}
    assert pa.array([value], schema.arrow_type()).to_pylist() == [value]
    with pytest.raises(InvalidAnswer, match=r"\$\.price: Input should be greater than 0"):
        schema.check(json.dumps(answer | {"price": "0"}))


@pytest.mark.parametrize(
    ("schema", "text", "column", "landed"),
    [
        (int | str, '"5"', pa.string(), '"5"'),
        (int | str, "5", pa.string(), "5"),
        (int | None, "null", pa.int64(), None),
        (int | float, "5", pa.float64(), 5.0),
        (Literal["a"] | str, '"b"', pa.string(), "b"),
        (list[int] | None, "[1]", pa.list_(pa.int64()), [1]),
        (Cat | Dog, '{"type":"cat","lives":9}', pa.string(), '{"type":"cat","lives":9}'),
        (Size, "2", pa.int64(), 2),
        ({"type": ["integer", "number"]}, "5", pa.float64(), 5.0),
        ({"type": "integer"}, "5.0", pa.int64(), 5),
        ({"type": "number"}, "9007199254740993", pa.float64(), 9007199254740992.0),
        ({"enum": ["a", 1]}, '"a"', pa.string(), '"a"'),
        (
            {"anyOf": [obj(a=ANY), obj(a=ANY) | {"required": ["a"]}]},
            '{"a":"x"}',
            pa.struct([("a", pa.string())]),
            {"a": "x"},
        ),
        (
            obj(a=ANY, b=ANY),
            '{"a":"x","c":[1]}',
            pa.struct([("a", pa.string()), ("b", pa.string())]),
            {"a": "x", "b": None},
        ),
    ],
    ids=str,
)
def test_mixed_values_are_landed_as_text_and_numbers_as_numbers(schema, text, column, landed):
    made = OutputSchema.of(schema)
    assert made.arrow_type() == column
    value = made.fitted(made.check(text))
    assert value == landed
    assert type(value) is type(landed)
    assert pa.array([value], column).to_pylist() == [landed]


def test_a_value_that_the_schema_lets_through_but_no_column_holds_is_invalid():
    untyped = {"properties": {"a": {"items": ANY}}}  # to JSON Schema, a text has no wrong properties
    schema = OutputSchema.of(untyped)
    for text, told in [('"x"', r"\$: 'x' does not fit .* an object"), ('{"a": 1}', r"\$\.a: 1 does not fit .* a list")]:
        with pytest.raises(InvalidAnswer, match=told):
            schema.check(text)
    with pytest.raises(InvalidAnswer, match="1e\\+300 does not fit the column's type, int64"):
        OutputSchema.of({"type": "integer"}).check("1e300")


def test_structs_and_lists_come_back_from_parquet_as_they_were():
    schema = OutputSchema.of(list[Review])
    full = GOOD | {"sure": False, "homes": [{"street": "a", "zip": None}], "home": {"street": "b", "zip": "1"},
                   "nick": "n", "either": 5}  # fmt: skip
    texts = [json.dumps([full, GOOD]), "[]"]
    values = [schema.fitted(schema.check(text)) for text in texts]
    table = pa.table({"output": pa.array([*values, None], schema.arrow_type())})
    file = io.BytesIO()
    pq.write_table(table, file)
    back = pq.read_table(file)
    assert back.schema.field("output").type.value_type == schema.arrow_type().value_type
    bare = GOOD | {"sure": True, "home": None, "nick": None, "either": None}
    assert back.column("output").to_pylist() == [[full | {"either": "5"}, bare], [], None]


# Any schema

NAMES = st.text("abc .\"'$é[]", min_size=1, max_size=4)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=5)


def leaf(kind: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.sampled_from([kind, [kind, "null"]]).map(
        lambda given: ({"type": given}, st.none() | values if isinstance(given, list) else values)
    )


LEAVES = st.one_of(
    leaf("string", TEXTS),
    leaf("integer", st.integers(-(2**63), 2**63 - 1)),
    leaf("number", st.floats(allow_nan=False, allow_infinity=False)),
    leaf("boolean", st.booleans()),
    st.lists(TEXTS, min_size=1, max_size=3, unique=True).map(lambda texts: ({"enum": texts}, st.sampled_from(texts))),
)


def lists_of(inner: Any) -> Any:
    return {"type": "array", "items": inner[0]}, st.lists(inner[1], max_size=3)


def objects_of(parts: dict[str, Any]) -> Any:
    names = sorted(parts)
    required = names[::2]
    schema = {
        "type": "object",
        "properties": {name: parts[name][0] for name in names},
        "required": required,
        "additionalProperties": False,
    }
    values = {name: parts[name][1] for name in names}
    return schema, st.fixed_dictionaries(
        {name: values[name] for name in required}, optional={name: values[name] for name in names[1::2]}
    )


SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: inner.map(lists_of) | st.dictionaries(NAMES, inner, min_size=1, max_size=3).map(objects_of),
    max_leaves=6,
)


def padded(schema: dict[str, Any], value: Any) -> Any:
    """With None for absent properties, as a struct has them."""
    if isinstance(value, dict):
        return {name: padded(one, value.get(name)) for name, one in schema["properties"].items()}
    if isinstance(value, list):
        return [padded(schema["items"], one) for one in value]
    return value


@given(data=st.data())
def test_every_right_answer_lands_and_comes_back_unchanged(data):
    schema, values = data.draw(SCHEMAS)
    answers = data.draw(st.lists(values, min_size=1, max_size=3))
    made = OutputSchema.of(schema)
    checked = [made.check(json.dumps(answer)) for answer in answers]
    assert checked == answers
    column = pa.array([made.fitted(value) for value in checked], made.arrow_type())
    assert column.to_pylist() == [padded(schema, answer) for answer in answers]


@given(text=st.text() | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(list(Review.model_fields)) | TEXTS, inner),
).map(json.dumps))  # fmt: skip
def test_no_text_at_all_stops_a_landing(text):
    for schema in (OutputSchema.of(list[Address | int]), OutputSchema.of({"type": ["string", "number", "null"]})):
        try:
            value = schema.check(text)
        except InvalidAnswer:
            continue
        pa.array([schema.fitted(value)], schema.arrow_type())


def test_one_answer_that_is_nested_too_deeply_for_a_file_is_invalid():
    schema = OutputSchema.of({"type": "object", "properties": {"a": {"type": "integer"}}})
    assert schema.check('{"a": 1, "more": [[[]]]}')
    with pytest.raises(InvalidAnswer, match=r"^\$: nested too deeply$"):
        schema.check('{"a": 1, "more": %s}' % ("[" * 200 + "]" * 200))
