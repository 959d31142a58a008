"""Checks what a caller gives against the program's inputs, and converts it to the declared types.

The JSON Schema of the fields is the one truth; messages are put in words here. Knows nothing of models.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, cast

from bt_compiler.diagnostics import Diagnostic, did_you_mean, is_meant
from bt_compiler.errors import BtcError
from bt_compiler.spec import Field, Type, convert, json_schema_of_fields, show_type

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

_SHOWN = 60
"""Characters of a value that a message repeats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong with an input."""

    path: tuple[str | int, ...]
    """Field, then positions and names within it; empty: the object itself."""
    message: str
    kind: str
    """`missing`, `extra`, or the JSON Schema keyword that failed (`type`, `enum`, …)."""
    help: str | None = None


class InputError(BtcError, ValueError):
    """An input that does not fit the program (BTC562); `problems` has the places."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__([Diagnostic(code="BTC562", message=one.message, help=one.help) for one in problems])

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.problems,)


class InputCheck:
    """Validates and converts inputs of one program; the schema is compiled once."""

    def __init__(self, fields: Sequence[Field]) -> None:
        from jsonschema import Draft202012Validator

        self.schema: Mapping[str, Any] = json_schema_of_fields(fields, given=True)
        """JSON Schema of the whole input object, which may leave out what takes null, as rows of data may."""
        self._fields = {field.name: field for field in fields}
        self._type = Type(kind="object", fields=tuple(fields))
        self._validator = Draft202012Validator(self.schema)

    def __call__(self, values: Any) -> dict[str, Any]:
        """The inputs as the program takes them, in its order. Raises InputError with everything that is wrong."""
        try:
            return self._checked(values)
        except RecursionError as error:
            raise InputError([Problem(path=(), message="the input is nested too deep", kind="type")]) from error

    def _checked(self, values: Any) -> dict[str, Any]:
        if "numpy" in sys.modules:  # where it is not imported, nothing is of it
            values = _plain(values)
        if broken := list(_surrogates(values, ())):
            raise InputError(broken)
        values = _enums_as_text(values, self._type)
        found = [problem for error in self._validator.iter_errors(values) for problem in self._problems(error)]
        if found:
            # jsonschema gives one error for every missing field, each of which names all of them, and two for a value
            # of another type than an enum's
            first = {one.path: one for one in reversed(found)}
            raise InputError(sorted(first.values(), key=lambda one: [str(part) for part in one.path]))
        return {name: self._converted(field, values.get(name)) for name, field in self._fields.items()}

    def _converted(self, field: Field, value: Any) -> Any:
        try:
            return convert(value, field.type)
        except ValueError as error:
            raise InputError(
                [Problem(path=(field.name,), message=f"input `{field.name}`: {error}", kind="type")]
            ) from error

    def _problems(self, error: ValidationError) -> list[Problem]:
        path = tuple(error.absolute_path)
        given: Any = error.instance
        if error.validator == "anyOf" and given is not None and (inner := _of_the_one_option(error)):
            return [problem for one in inner for problem in self._problems(one)]
        if error.validator == "required":
            return [self._missing(path, name) for name in _lacking(error) if not _meant(name, given, error)]
        if error.validator == "additionalProperties":
            schema: Any = error.schema
            known = schema.get("properties", {})
            found = []
            for name in (name for name in given if name not in known):
                meant = next((one for one in _lacking(error) if _meant(one, [name], error)), None)
                found.append(self._extra(path, name, known, meant))
            return found
        if not path:
            return [Problem(path=(), message=f"the input is {_kind(given)}, not an object", kind="type")]
        expected = self._fields[str(path[0])].type
        where = _where(path)
        message = f"{where} expects `{show_type(expected)}`, got {_shown(given)}"
        if len(path) > 1 or error.validator not in ("type", "enum", "anyOf"):
            message = f"{where} does not fit `{show_type(expected)}`: {_clipped(error.message)}"
        return [Problem(path=path, message=message, kind=str(error.validator))]

    def _missing(self, path: tuple[str | int, ...], name: str) -> Problem:
        where = _where((*path, name))
        wanted = f" of type `{show_type(self._fields[name].type)}`" if not path and name in self._fields else ""
        return Problem(path=(*path, name), message=f"{where}{wanted} is missing", kind="missing")

    def _extra(self, path: tuple[str | int, ...], name: str, known: Mapping[str, Any], meant: str | None) -> Problem:
        """`meant`: what is missing, where that is what the name should be: one cause, one problem."""
        missing = "" if meant is None else f", and `{meant}` is missing"
        return Problem(
            path=(*path, name),
            message=f"{_where((*path, name))} is not known{missing}",
            kind="extra",
            help=did_you_mean(name, known, what="inputs" if not path else "fields"),
        )


def _of_the_one_option(error: ValidationError) -> list[ValidationError]:
    """What is wrong by the one option that a value may have beside null; nothing where the value is of another kind, or
    where there are more options.
    """
    options = [number for number, option in enumerate(cast(Any, error.validator_value)) if option != {"type": "null"}]
    inner = [one for one in error.context or () if [one.relative_schema_path[0]] == options]
    return [] if any(one.validator == "type" and not one.relative_path for one in inner) else inner


def _lacking(error: ValidationError) -> list[str]:
    """The fields that the object at fault should have and has not."""
    schema, given = cast(Any, error.schema), cast(Any, error.instance)
    return [name for name in schema["required"] if name not in given]


def _meant(name: str, given: Iterable[str], error: ValidationError) -> bool:
    """Whether one of the names `given` that are not known is taken for this field."""
    return is_meant(name, given, cast(Any, error.schema)["properties"])


def _plain(value: Any) -> Any:
    """What is of numpy, as in rows of data frames, as Python has it; a float32 with the digits that it is shown with,
    not those of its value as a float64.
    """
    if isinstance(value, Mapping | list):
        inner = enumerate(value) if isinstance(value, list) else value.items()
        plain: Any = [None] * len(value) if isinstance(value, list) else {}
        for place, item in inner:  # no comprehension: it would take a second frame a level
            plain[place] = _plain(item)
        return plain
    numpy: Any = sys.modules["numpy"]
    if not isinstance(value, numpy.number | numpy.bool_ | numpy.str_) or isinstance(value, numpy.timedelta64):
        return value
    return float(str(value)) if isinstance(value, numpy.floating) else value.item()


def _enums_as_text(value: Any, t: Type) -> Any:
    """The value with whole numbers as text where an enum has values that are written so, as rows of data may."""
    if t.kind == "enum" and isinstance(value, int) and not isinstance(value, bool) and str(value) in t.values:
        return str(value)
    if t.kind == "union":
        others = [option for option in t.options if option.kind != "null"]
        return _enums_as_text(value, others[0]) if len(others) == 1 else value
    if t.kind == "list" and t.item is not None and isinstance(value, list):
        return [_enums_as_text(item, t.item) for item in value]
    if t.kind == "object" and isinstance(value, Mapping):
        types = {field.name: field.type for field in t.fields}
        return {name: _enums_as_text(item, types[name]) if name in types else item for name, item in value.items()}
    return value


def _surrogates(value: Any, path: tuple[str | int, ...]) -> Iterator[Problem]:
    """Texts that are no Unicode: JSON can write half of a character as an escape, which nothing can write again."""
    if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
        shown = value.encode("ascii", "backslashreplace").decode()
        message = f"{_where(path)} holds half of a character: {_clipped(shown)}"
        yield Problem(path=path, message=message, kind="unicode")
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            broken = list(_surrogates(name, (*path, "name")))
            yield from broken or _surrogates(inner, (*path, name))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _surrogates(inner, (*path, index))


def refuse_constant(name: str) -> NoReturn:
    """For `json.loads(parse_constant=…)`: NaN and Infinity are not JSON. Raises ValueError."""
    raise ValueError(f"`{name}` is not JSON")


def _where(path: Sequence[str | int]) -> str:
    if not path:
        return "the input"
    first, *rest = path
    inner = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in rest)
    return f"input `{_clipped(str(first))}{inner}`"


def _kind(value: Any) -> str:
    names = {type(None): "null", bool: "a bool", int: "a number", float: "a number", str: "a string"}
    names |= {list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")


def _shown(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)  # as JSON writes it
    return f"{_kind(value)}, `{_clipped(text)}`" if value is not None else "null"


def _clipped(text: str) -> str:
    return text if len(text) <= _SHOWN * 2 else f"{text[: _SHOWN * 2]}…"
