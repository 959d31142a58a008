"""The type language of specs, and its one image in JSON Schema.

Knows nothing of YAML positions: callers turn a `TypeSyntaxError` into a diagnostic with a span.
"""

from __future__ import annotations

from collections.abc import Mapping
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """A named value of a signature, an object type or a program."""

    name: str
    type: Type
    description: str | None = None


class TypeSyntaxError(Exception):
    """A type that cannot be read; `message` and `help` are ready for a diagnostic."""

    def __init__(self, message: str, help: str | None = None) -> None:
        self.message = message
        self.help = help
        super().__init__(message)


STR = Type(kind="str")
INT = Type(kind="int")
FLOAT = Type(kind="float")
BOOL = Type(kind="bool")
NULL = Type(kind="null")
PASSAGE = Type(
    kind="object",
    name="Passage",
    fields=(
        Field(name="id", type=STR),
        Field(name="title", type=STR),
        Field(name="text", type=STR),
        Field(name="score", type=FLOAT),
    ),
)
PASSAGES = Type(kind="list", item=PASSAGE)
