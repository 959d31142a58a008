"""How types and signatures are written: `[str]`, `Passage | null`, `{enum: [a, b]}`, `"question -> answer: str"`.

Knows nothing of YAML positions: a `TypeSyntaxError` says where in the written value it stands, and callers turn
that into a diagnostic with a span.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from bt_compiler.diagnostics import did_you_mean
from bt_compiler.spec.foreign import FOREIGN, foreign_help
from bt_compiler.spec.numbers import check_writable
from bt_compiler.spec.types import BOOL, FLOAT, INT, NULL, PASSAGE, STR, Field, Type, show_type

BUILT_IN: Mapping[str, Type] = {
    "str": STR,
    "int": INT,
    "float": FLOAT,
    "bool": BOOL,
    "null": NULL,
    "Passage": PASSAGE,
}
"""Types that every spec knows."""

_TOKEN = re.compile(r'\s*(?:(?P<name>[^\W\d]\w*)|(?P<quoted>"(?:[^"\\]|\\.)*")|(?P<word>[\w.+-]+)|(?P<sign>\S))')
_OBJECT_KEYS = ("type", "enum", "fields", "description", "min", "max", "among", "max_tokens", "probability_of")
_MAX_DEPTH = 16
_LONGEST = 20_000
"""Characters of a type or signature in one text."""
_SHOWN = 120
"""Characters of a written type or signature that a message repeats."""


class TypeSyntaxError(Exception):
    """A type that cannot be read; `message` and `help` are ready for a diagnostic."""

    def __init__(
        self,
        message: str,
        help: str | None = None,
        path: tuple[str | int, ...] = (),
        unknown: str | None = None,
        code: str | None = None,
    ) -> None:
        self.message = message
        self.help = help
        self.path = path
        """Where in the written type it stands: `("fields", "amount")`."""
        self.unknown = unknown
        """The name in question where the type is well-formed and only names what nobody declares."""
        self.code = code
        """Code of the diagnostic where it is more than a type that cannot be read."""
        super().__init__(message)


class SignatureFields(NamedTuple):
    """Both sides of a signature written as text."""

    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]


def parse_type(node: Any, named: Mapping[str, Type] | None = None) -> Type:
    """The type that a plain YAML value writes; `named` are the spec's own types. Raises TypeSyntaxError."""
    return _parse(node, named or {}, 0)


def parse_signature_text(text: str, named: Mapping[str, Type] | None = None) -> SignatureFields:
    """Reads `"question -> answer"`, types optional: `"question: str, context: [str] -> answer: float"`.

    A field without a type is `str`. Raises TypeSyntaxError.
    """
    _check_length(text)
    shown = text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
    sides = text.split("->")
    if len(sides) != 2:
        count = "no" if len(sides) == 1 else "more than one"
        raise TypeSyntaxError(f"signature `{shown}` has {count} `->`", 'write `"inputs -> outputs"`')
    inputs, outputs = (_signature_side(side, named or {}, shown) for side in sides)
    return SignatureFields(inputs, outputs)


def _check_length(text: str) -> None:
    if len(text) > _LONGEST:
        raise TypeSyntaxError(f"a type in one text has {_LONGEST} characters at most", "declare parts of it in `types`")


def parse_fields(node: Mapping[str, Any], named: Mapping[str, Type] | None = None) -> tuple[Field, ...]:
    """`inputs`, `outputs`, `labels` or `fields`: a map of names to types; a description goes to the field.

    Raises TypeSyntaxError with the name of the field first in its path.
    """
    return _fields(node, named or {}, 0)


def _signature_side(side: str, named: Mapping[str, Type], shown: str) -> tuple[Field, ...]:
    fields: dict[str, Field] = {}
    for part in _split_outside_brackets(side):
        name, colon, type_text = part.partition(":")
        name = name.strip()
        if not name.isidentifier():
            what = f"`{name[:40]}` in it is no name of a field" if name else "a field in it has no name"
            raise TypeSyntaxError(
                f"signature `{shown}` cannot be read: {what}", 'write `"question, hint -> answer: int"`'
            )
        if name in fields:
            raise TypeSyntaxError(f"signature `{shown}` has the field `{name[:40]}` twice")
        fields[name] = Field(name=name, type=parse_type(type_text.strip(), named) if colon else STR)
    return tuple(fields.values())


def _split_outside_brackets(text: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for place, char in enumerate(text):
        depth += (char in "[(") - (char in "])")
        if char == "," and depth == 0:
            parts.append(text[start:place])
            start = place + 1
    return [*parts, text[start:]]


def _parse(node: Any, named: Mapping[str, Type], depth: int) -> Type:
    if depth > _MAX_DEPTH:
        raise TypeSyntaxError(f"a type is nested more than {_MAX_DEPTH} deep")
    if isinstance(node, str):
        _check_length(node)
        return _TextParser(node, named).parse()
    if node is None:
        return NULL
    if isinstance(node, Mapping):
        return _parse_map(node, named, depth)
    if isinstance(node, Sequence):
        if len(node) != 1:
            raise TypeSyntaxError(
                f"a list type has one element, this one has {len(node)}", "write `[str]` for a list of texts"
            )
        return _list_of(_within(0, node[0], named, depth))
    raise TypeSyntaxError(f"`{json.dumps(node)}` is not a type", "write `str`, `int`, `float`, `bool` or `[str]`")


def _list_of(item: Type) -> Type:
    """The list of these; what its elements have to be among is said of the list."""
    return Type(kind="list", item=replace(item, among=None) if item.among else item, among=item.among)


def _within(key: str | int, node: Any, named: Mapping[str, Type], depth: int) -> Type:
    try:
        return _parse(node, named, depth + 1)
    except TypeSyntaxError as error:
        raise TypeSyntaxError(error.message, error.help, (key, *error.path), error.unknown) from error


def _parse_map(node: Mapping[str, Any], named: Mapping[str, Type], depth: int) -> Type:
    for key in node:
        if key not in _OBJECT_KEYS:
            raise TypeSyntaxError(
                f"unknown key `{key}` in a type", did_you_mean(str(key), _OBJECT_KEYS, what="its keys"), (key,)
            )
    shapes = [key for key in ("type", "enum", "fields") if key in node]
    if len(shapes) != 1:
        found = "none of them" if not shapes else " and ".join(f"`{key}`" for key in shapes)
        raise TypeSyntaxError(f"a type has one of `type`, `enum`, `fields`; this one has {found}")
    if "type" in node:
        base = _within("type", node["type"], named, depth)
    elif "enum" in node:
        base = Type(kind="enum", values=_enum_values(node["enum"]))
    else:
        base = Type(kind="object", fields=_object_fields(node["fields"], named, depth))
    return _constrained(base, node)


def _object_fields(node: Any, named: Mapping[str, Type], depth: int) -> tuple[Field, ...]:
    if not isinstance(node, Mapping) or not node:
        raise TypeSyntaxError("`fields` of a type is a map of names to types", "write `fields: {amount: float}`")
    try:
        return _fields(node, named, depth)
    except TypeSyntaxError as error:
        raise TypeSyntaxError(error.message, error.help, ("fields", *error.path), error.unknown) from error


def _fields(node: Mapping[str, Any], named: Mapping[str, Type], depth: int) -> tuple[Field, ...]:
    fields = []
    for name, written in node.items():
        parsed = _within(name, written, named, depth)
        described = parsed.description if parsed.name is None else None
        if described is not None:
            parsed = replace(parsed, description=None)
        fields.append(Field(name=str(name), type=parsed, description=described))
    return tuple(fields)


def _enum_values(node: Any) -> tuple[str, ...]:
    if not isinstance(node, Sequence) or isinstance(node, str) or not node:
        raise TypeSyntaxError("`enum` is a list of values", "write `{enum: [low, high]}`", ("enum",))
    values: dict[str, None] = {}
    for place, value in enumerate(node):
        if isinstance(value, bool) or value is None or not isinstance(value, str | int):
            raise TypeSyntaxError(
                f"`{json.dumps(value)}` cannot be a value of an enum",
                "values are texts: put it in quotes, or use the type `bool` for true and false",
                ("enum", place),
            )
        text = str(value)
        if text != text.strip() or text.splitlines() != [text]:
            raise TypeSyntaxError(
                f"{json.dumps(text, ensure_ascii=False)} cannot be a value of an enum",
                "values are one line of text without blanks at either end",
                ("enum", place),
            )
        if text in values:
            raise TypeSyntaxError(f"the enum has `{text}` twice", None, ("enum", place))
        values[text] = None
    return tuple(values)


def _constrained(base: Type, written: Mapping[str, Any]) -> Type:
    node = dict(written)
    shown = show_type(base)
    if base.kind == "union" and ("min" in node or "max" in node):
        base = _bounded_option(base, {key: node.pop(key) for key in ("min", "max") if key in node})
    bounds = _bounds(base, node)
    inner = base.item if base.kind == "list" and base.item is not None else base
    if "max_tokens" in node:
        if inner.kind != "str" and not any(option.kind == "str" for option in inner.options):
            raise TypeSyntaxError(f"`max_tokens` bounds texts, not `{shown}`", None, ("max_tokens",))
        if isinstance(node["max_tokens"], bool) or not isinstance(node["max_tokens"], int) or node["max_tokens"] < 1:
            raise TypeSyntaxError("`max_tokens` is a whole number from 1", None, ("max_tokens",))
    if "among" in node:
        if inner.kind != "str":
            raise TypeSyntaxError(f"`among` restricts texts, not `{shown}`", None, ("among",))
        if not isinstance(node["among"], str) or not node["among"].replace(".", "_", 1).isidentifier():
            raise TypeSyntaxError("`among` names an input and its field", "write `among: passages.id`", ("among",))
    if "probability_of" in node:
        if base.kind != "float" or "min" in node or "max" in node:
            reason = f"not `{shown}`" if base.kind != "float" else "from 0 to 1 already"
            raise TypeSyntaxError(f"a probability is a `float`, {reason}", None, ("probability_of",))
        if not isinstance(node["probability_of"], str) or not node["probability_of"].isidentifier():
            message = "`probability_of` names an output of the signature"
            raise TypeSyntaxError(message, "write `{type: float, probability_of: category}`", ("probability_of",))
        base = replace(base, minimum=0, maximum=1, probability_of=node["probability_of"])
    if not isinstance(node.get("description", ""), str):
        raise TypeSyntaxError("`description` is a text", None, ("description",))
    return replace(
        base,
        name=base.name if node.keys() <= {"type", "enum", "fields", "description"} else None,
        description=node.get("description", base.description),
        minimum=bounds.get("min", base.minimum),
        maximum=bounds.get("max", base.maximum),
        max_tokens=node.get("max_tokens", base.max_tokens),
        among=node.get("among", base.among),
    )


def _bounded_option(union: Type, bounds: Mapping[str, Any]) -> Type:
    """The union with the bounds on what it takes beside null."""
    others = [option for option in union.options if option.kind != "null"]
    if len(others) != 1:
        key = next(iter(bounds))
        help = "bound one of them: declare it in `types` and write its name in the union"
        raise TypeSyntaxError(f"`{key}` does not say which of `{show_type(union)}` it bounds", help, (key,))
    found = _constrained(others[0], bounds)
    return replace(union, options=tuple(found if option == others[0] else option for option in union.options))


def _bounds(base: Type, node: Mapping[str, Any]) -> Mapping[str, float]:
    """`min` and `max` of the node: such as some answer can meet, together with the bounds that the type has."""
    bounds = {key: node[key] for key in ("min", "max") if key in node}
    for key, bound in bounds.items():
        if base.kind not in ("int", "float", "list"):
            raise TypeSyntaxError(f"`{key}` bounds numbers and lengths of lists, not `{show_type(base)}`", None, (key,))
        if isinstance(bound, bool) or not isinstance(bound, int | float):
            raise TypeSyntaxError(f"`{key}` is a number", None, (key,))
        if base.kind != "float" and bound != int(bound):
            raise TypeSyntaxError(f"`{key}` of `{show_type(base)}` is a whole number, not {bound}", None, (key,))
        if base.kind == "list" and bound < 0:
            raise TypeSyntaxError(f"`{key}` {bound} is no length of a list", None, (key,))
    if not bounds:
        return bounds
    low, high = bounds.get("min", base.minimum), bounds.get("max", base.maximum)
    place = (next(iter(bounds)),)
    if low is not None and high is not None and low > high:
        raise TypeSyntaxError(f"`min` {low} is more than `max` {high}", None, place)
    if base.kind != "list":
        try:
            check_writable(replace(base, minimum=low, maximum=high))
        except ValueError as error:
            raise TypeSyntaxError(f"no answer can keep to these bounds: {error}", None, place) from error
    return bounds


class _TextParser:
    """Recursive descent over `option ('|' option)*`, option = NAME | `[` type `]` | `enum(` values `)`."""

    def __init__(self, text: str, named: Mapping[str, Type]) -> None:
        self._text = text
        self._named = named
        self._tokens = [match.group().strip() for match in _TOKEN.finditer(text)]
        self._place = 0

    def parse(self) -> Type:
        if not self._tokens:
            raise TypeSyntaxError("a type is missing", "write `str`, `int`, `float`, `bool` or `[str]`")
        found = self._union(0)
        if self._peek():
            raise self._wrong()
        return found

    def _peek(self) -> str:
        return self._tokens[self._place] if self._place < len(self._tokens) else ""

    def _take(self, expected: str | None = None) -> str:
        token = self._peek()
        if expected is not None and token != expected:
            raise self._wrong()
        self._place += 1
        return token

    def _wrong(self) -> TypeSyntaxError:
        return TypeSyntaxError(f"`{self._text[:_SHOWN]}` is not a type", foreign_help(self._text))

    def _union(self, depth: int) -> Type:
        options = [self._option(depth)]
        while self._peek() == "|":
            self._take()
            options.append(self._option(depth))
        flat: list[Type] = []
        for option in options:
            flat += [one for one in (option.options or (option,)) if one not in flat]
        return flat[0] if len(flat) == 1 else Type(kind="union", options=tuple(flat))

    def _option(self, depth: int) -> Type:
        if depth > _MAX_DEPTH:
            raise TypeSyntaxError(f"a type is nested more than {_MAX_DEPTH} deep")
        token = self._take()
        if token == "[":
            item = self._union(depth + 1)
            self._take("]")
            return _list_of(item)
        if token == "enum" and self._peek() == "(":
            return self._enum()
        if not token.isidentifier() or self._peek() in ("[", "("):
            raise self._wrong()
        known = self._named.get(token) or BUILT_IN.get(token)
        if known is None:
            raise self._unknown(token)
        return known

    def _unknown(self, name: str) -> TypeSyntaxError:
        if name in FOREIGN or (len(self._tokens) > 1 and foreign_help(self._text, exact=True)):
            return self._wrong()
        names = [*BUILT_IN, *self._named]
        help = did_you_mean(name, names, what="types")
        return TypeSyntaxError(f"unknown type `{name[:_SHOWN]}`", help, unknown=name)

    def _enum(self) -> Type:
        self._take("(")
        values = []
        while True:
            token = self._take()
            values.append(_unquoted(token) if token.startswith('"') else token)
            if self._peek() != ",":
                break
            self._take()
        self._take(")")
        return Type(kind="enum", values=_enum_values(values))


def _unquoted(token: str) -> str:
    try:
        text = str(json.loads(token))
        text.encode("utf-8")  # half a surrogate pair is no character
    except ValueError as error:
        message = f"`{token[:_SHOWN]}` in quotes cannot be read: a backslash in it starts no known character"
        raise TypeSyntaxError(message, "a backslash itself is written twice") from error
    return text
