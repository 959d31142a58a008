"""The types of specs: what they hold, how messages show them, which goes where, and their one image in JSON Schema.

Knows nothing of how a type is written (`type_syntax`) nor of values (`convert`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["str", "int", "float", "bool", "null", "enum", "list", "object", "union"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Type:
    """One type. Which attributes mean something depends on `kind`."""

    kind: Kind
    name: str | None = None
    """Name of a declared type (`Invoice`, `Passage`, a named enum); None for anonymous ones."""
    description: str | None = None
    values: tuple[str, ...] = ()
    """enum: the allowed values, in the order of the spec."""
    item: Type | None = None
    """list: type of the elements."""
    fields: tuple[Field, ...] = ()
    """object: the fields, in order."""
    options: tuple[Type, ...] = ()
    """union: the alternatives; `X | null` is what the language writes."""
    minimum: float | None = None
    """int, float: least value; list: least number of elements."""
    maximum: float | None = None
    """int, float: greatest value; list: greatest number of elements."""
    max_tokens: int | None = None
    """str: token budget of a generated text; None: the module's `generation.max_tokens`."""
    among: str | None = None
    """`input.field`: the value has to be one of those given in that input (`passages.id`)."""
    probability_of: str | None = None
    """float: an output that the model does not write; how likely it found its value of this enum or bool output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """A named value of a signature, an object type or a program."""

    name: str
    type: Type
    description: str | None = None


STR = Type(kind="str")
INT = Type(kind="int")
FLOAT = Type(kind="float")
BOOL = Type(kind="bool")
NULL = Type(kind="null")
SCORE = "score"
"""Of a passage: what its retriever made of it. Prompts do not show it and no model writes it; where none is given, it
is 0.
"""
PASSAGE = Type(
    kind="object",
    name="Passage",
    fields=(
        Field(name="id", type=STR),
        Field(name="title", type=STR),
        Field(name="text", type=STR),
        Field(name=SCORE, type=FLOAT),
    ),
)
PASSAGES = Type(kind="list", item=PASSAGE)

_SHOWN = 20
"""Values or fields that a message names of one type."""
_PLAIN_VALUE = re.compile(r"[^\W\d]\w*")


def _show_value(value: str) -> str:
    return value if _PLAIN_VALUE.fullmatch(value) else json.dumps(value, ensure_ascii=False)


def _some(shown: Sequence[str], count: int) -> str:
    return ", ".join(shown) + (f", … {count} in all" if count > len(shown) else "")


def show_type(t: Type) -> str:
    """The type as messages name it: `[Passage]`, `str | null`, `enum(setosa, versicolor)`. Bounds are left out, and
    all but the first 20 values or fields.
    """
    if t.name is not None:
        return t.name
    if t.kind == "list":
        return f"[{show_type(t.item)}]" if t.item is not None else "[]"
    if t.kind == "enum":
        return f"enum({_some([_show_value(value) for value in t.values[:_SHOWN]], len(t.values))})"
    if t.kind == "union":
        return " | ".join(show_type(option) for option in t.options)
    if t.kind == "object":
        shown = [f"{field.name}: {show_type(field.type)}" for field in t.fields[:_SHOWN]]
        return "{" + _some(shown, len(t.fields)) + "}"
    return t.kind


_SCHEMA_TYPES = {"str": "string", "int": "integer", "float": "number", "bool": "boolean", "null": "null"}


def takes_null(t: Type) -> bool:
    """Whether null is a value of `t`: then a row, a request or an object may leave it out."""
    return t.kind == "null" or any(takes_null(option) for option in t.options)


def is_passage(t: Type) -> bool:
    """Whether `t` is `Passage`, by whatever name."""
    return t.kind == "object" and t.fields == PASSAGE.fields


Refer = Callable[[Type], str]
"""The address of a named type's schema."""


def json_schema(t: Type, *, given: bool = False, refer: Refer | None = None) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of the values of `t`. `among` and `max_tokens` have no image in it.
    `given`: of values that come from outside, whose objects may leave out what takes null, and passages their score.
    `refer`: where named types have their schemas; without it each is written out where it is used.
    """
    if refer is not None and t.name is not None:
        schema: dict[str, Any] = {"$ref": refer(t)}
        return schema if t.description is None else schema | {"description": t.description}
    if t.kind == "list":
        items = json_schema(t.item, given=given, refer=refer) if t.item is not None else {}
        schema = {"type": "array", "items": items}
        bounds = ("minItems", "maxItems")
    elif t.kind == "object":
        schema = json_schema_of_fields(t.fields, given=given, refer=refer)
        if given and is_passage(t):
            schema["required"].remove(SCORE)
        bounds = None
    elif t.kind == "enum":
        schema = {"type": "string", "enum": list(t.values)}
        bounds = None
    elif t.kind == "union":
        schema = {"anyOf": [json_schema(option, given=given, refer=refer) for option in t.options]}
        bounds = None
    else:
        schema = {"type": _SCHEMA_TYPES[t.kind]}
        bounds = ("minimum", "maximum") if t.kind in ("int", "float") else None
    if bounds is not None:
        for key, bound in zip(bounds, (t.minimum, t.maximum), strict=True):
            if bound is not None:
                schema[key] = int(bound) if t.kind != "float" and float(bound).is_integer() else bound
    if t.name is not None:
        schema["title"] = t.name
    if t.description is not None:
        schema["description"] = t.description
    return schema


def json_schema_of_fields(
    fields: Sequence[Field], *, given: bool = False, refer: Refer | None = None
) -> dict[str, Any]:
    """Schema of an object with exactly these fields, in order, all required; `given`: but those that take null."""
    properties = {}
    for field in fields:
        properties[field.name] = json_schema(field.type, given=given, refer=refer)
        if field.description is not None:
            properties[field.name]["description"] = field.description
    return {
        "type": "object",
        "properties": properties,
        "required": [field.name for field in fields if not (given and takes_null(field.type))],
        "additionalProperties": False,
    }


def assignable(source: Type, target: Type) -> bool:
    """Whether every value of `source` may stand where `target` is expected.

    int goes to float, X to X | null, an enum to str and to an enum that has all its values; lists and objects go by
    their elements and fields, whatever their names. Bounds, descriptions and `among` restrict what is generated, not
    what may be passed on, and are not looked at.
    """
    if source.kind == "union":
        return all(assignable(option, target) for option in source.options)
    if target.kind == "union":
        return any(assignable(source, option) for option in target.options)
    if source.kind == "enum":
        return target.kind == "str" or (target.kind == "enum" and set(source.values) <= set(target.values))
    if source.kind == "list" and target.kind == "list":
        return source.item is not None and target.item is not None and assignable(source.item, target.item)
    if source.kind == "object" and target.kind == "object":
        given = {field.name: field.type for field in source.fields}
        return given.keys() == {field.name for field in target.fields} and all(
            assignable(given[field.name], field.type) for field in target.fields
        )
    return source.kind == target.kind or (source.kind, target.kind) == ("int", "float")
