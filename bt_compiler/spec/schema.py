"""The shipped JSON Schema, and its findings as diagnostics: one cause one message, at the smallest span.

The schema is the one truth for the shape of a spec. This file knows JSON Schema's keywords and how to say them to
people; it does not know what any key of a spec means.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from importlib.resources import files
from typing import Any, NamedTuple

from bt_compiler.diagnostics import Diagnostic, Source, did_you_mean, is_meant
from bt_compiler.spec.tree import Node, Place, find, position

MAX_FINDINGS = 50
"""Most findings of one spec; more say nothing new."""

PLAIN_URL = "leave out what stands before `@` and after `?`; a key is named: `api_key: {env: NAME}`"
"""What to do about a URL with a name, a password or a query: specs go into bundles, caches and messages."""

_KINDS = {
    "string": "a text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "a map",
    "null": "null",
}


def schema_text() -> str:
    """The JSON Schema (draft 2020-12) of specs, as shipped."""
    return files(__package__).joinpath("schema.json").read_text(encoding="utf-8")


def check_shape(tree: Node, document: Mapping[str, Any]) -> list[Diagnostic]:
    """Every finding about the shape of `document`, by place; empty for none. BTC10x and BTC11x."""
    from jsonschema import Draft202012Validator  # a tenth of a second, and `btc --help` needs none of it
    from jsonschema.validators import extend

    types = Draft202012Validator.TYPE_CHECKER.redefine("integer", _is_whole)
    linear = extend(Draft202012Validator, {"uniqueItems": _unique_items}, type_checker=types)
    validator = linear(json.loads(schema_text()))
    errors = sorted(validator.iter_errors(document), key=lambda error: len(error.absolute_schema_path))
    found: list[Diagnostic] = []
    seen: set[tuple[Place, str]] = set()
    for error in errors:
        place: Place = tuple(error.absolute_path)
        several = error.validator == "required" or "propertyNames" in error.absolute_schema_path
        cause = (place, f"{error.validator} {error.message}" if several else error.validator)
        if cause in seen:
            continue
        seen.add(cause)
        found.extend(_SAY.get(error.validator, _say_other)(_Finding(error, place, tree)))
        if len(found) >= MAX_FINDINGS:
            break
    return sorted(found, key=position)


def _is_whole(checker: Any, value: Any) -> bool:
    """JSON Schema takes `2.0` for an integer; what counts with it does not."""
    del checker
    return isinstance(value, int) and not isinstance(value, bool)


def _unique_items(validator: Any, wanted: Any, instance: Any, schema: Any) -> Iterator[Any]:
    """`uniqueItems` in linear time: the library compares every pair where elements are of several kinds."""
    from jsonschema import ValidationError

    if wanted and isinstance(instance, list) and _repeated(instance) is not None:
        yield ValidationError("has non-unique elements")


def _repeated(items: list[Any]) -> str | None:
    """JSON of the first element that is there a second time."""
    seen: set[str] = set()
    for item in items:
        written = json.dumps(item, ensure_ascii=False, sort_keys=True)
        if written in seen:
            return written
        seen.add(written)
    return None


class _Finding(NamedTuple):
    error: Any
    """A `jsonschema.ValidationError`."""
    place: Place
    tree: Node

    @property
    def limit(self) -> Any:
        """What the keyword says."""
        return self.error.validator_value

    @property
    def name(self) -> str:
        """The place as people write it."""
        return f"`{dotted(self.place)}`" if self.place else "the spec"

    def of(self, code: str, message: str, help: str | None = None, *, key: str | None = None) -> Diagnostic:
        """A diagnostic at the value, or at the key `key` in it."""
        path = self.place if key is None else (*self.place, key)
        return Diagnostic(code=code, message=message, help=help, span=find(self.tree, path, key=key is not None))


def dotted(place: Place) -> str:
    """`modules.answer.signature`, `strategy[0]`."""
    text = ""
    for step in place:
        name = short(str(step))
        text += f"[{step}]" if isinstance(step, int) else f".{name}" if text else name
    return text


def short(text: str) -> str:
    """As much of a text of the user's as a message repeats."""
    return text if len(text) <= 60 else text[:59] + "…"


def shown(value: Any) -> str:
    """A value as a message names it: kind and, where short, content."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"`{json.dumps(value)}`"
    if isinstance(value, str):
        return f"the text `{short(value)}`" if value.strip() else "an empty text"
    if isinstance(value, int | float):
        return f"the number `{value}`"
    return "a map" if isinstance(value, Mapping) else "a list"


def _say_unknown(finding: _Finding) -> Iterator[Diagnostic]:
    allowed = list(finding.error.schema.get("properties", {}))
    where = f" in `{dotted(finding.place)}`" if finding.place else ""
    unknown = [key for key in finding.error.instance if key not in allowed]
    if (members := _members_help(finding, unknown)) is not None:
        yield finding.of("BTC102", f"unknown key `{short(unknown[0])}`{where}", members, key=unknown[0])
        return
    ((key_of_form, others),) = finding.error.schema.get("x-apart", {None: ()}).items()
    for key in unknown[:MAX_FINDINGS]:
        if key in others:
            yield _say_apart(finding, key, key_of_form)
            continue
        help = did_you_mean(key, allowed, what="keys here")
        yield finding.of("BTC102", f"unknown key `{short(key)}`{where}", help, key=key)


def _say_apart(finding: _Finding, key: str, other: str) -> Diagnostic:
    """Two keys of which a map has one; of layers it may have got both."""
    sources = {name: find(finding.tree, (*finding.place, name), key=True).source for name in (key, other)}
    first, last = sorted(sources, key=lambda name: _layer(sources[name]))
    help = "leave one of them out"
    if sources[first] != sources[last]:
        by_option = _layer(sources[last])[0]
        null = f"`--set {dotted((*finding.place, first))}=null`" if by_option else f"`{first}: null`"
        help = f"`{first}` stands in `{sources[first].name}`: delete it by {null}"
    message = f"`{key}` and `{other}` exclude each other in {finding.name}"
    return finding.of("BTC102", message, help, key=key)


def _layer(source: Source) -> tuple[bool, int]:
    """What is written over the rest is largest: `--set`, then the spec, then what it extends."""
    depth, above = 0, source.parent
    while above is not None:
        depth, above = depth + 1, above.parent
    return source.name.startswith("--set"), -depth


def _members_help(finding: _Finding, unknown: list[str]) -> str | None:
    """Where names of one's own belong that are written one level too high; None where they are other mistakes."""
    under = finding.error.schema.get("x-members")
    instance, known = finding.error.instance, finding.error.schema.get("properties", {})
    if under is None or {"type", "enum", under} & set(instance) or any(is_meant(key, unknown, known) for key in known):
        return None
    return f"write the fields of an object under `{under}`: `{{{under}: {{{short(unknown[0])}: str}}}}`"


def _say_missing(finding: _Finding) -> Iterator[Diagnostic]:
    schema, instance = finding.error.schema, finding.error.instance
    span = find(finding.tree, finding.place, key=True)
    if "x-verbs" in schema:
        verbs = schema["x-verbs"]
        guesses = [guess for key in instance if (guess := did_you_mean(key, verbs)).startswith("did")]
        choice = guesses[0] if guesses else "a step has one of " + ", ".join(f"`{verb}`" for verb in verbs)
        yield Diagnostic(code="BTC108", message=f"step {finding.name} has no verb", span=span, help=choice)
        return
    if "x-forms" in schema:
        unknown = [key for key in instance if key not in schema["properties"]]
        likely = did_you_mean(unknown[0], schema["properties"], what="keys here") if unknown else None
        forms = " nor ".join(f"`{form}`" for form in schema["x-forms"])
        message = f"{finding.name} has neither {forms}"
        example = f"write it as `{schema['x-example']}`"
        yield Diagnostic(code="BTC103", message=message, span=span, help=likely or example)
        return
    key = next((key for key in finding.limit if key not in instance and f"'{key}'" in finding.error.message), None)
    known = schema.get("properties", {})
    if key and schema.get("additionalProperties") is False and is_meant(key, instance, known):
        return  # the unknown key says so
    help = schema.get("properties", {}).get(key, {}).get("description")
    hint = f"{key}: {help[0].lower()}{help[1:].rstrip('.')}" if help and key else None
    yield Diagnostic(code="BTC103", message=f"{finding.name} lacks the key `{key}`", span=span, help=hint)


def _say_type(finding: _Finding) -> Iterator[Diagnostic]:
    kinds = [finding.limit] if isinstance(finding.limit, str) else list(finding.limit)
    *first, last = [_KINDS[kind] for kind in kinds]
    expected = f"{', '.join(first)} or {last}" if first else last
    yield finding.of(
        "BTC104",
        f"{finding.name} is {shown(finding.error.instance)}, {expected} is expected",
        _type_help(finding, kinds),
    )


def _type_help(finding: _Finding, kinds: list[str]) -> str | None:
    value, example = finding.error.instance, finding.error.schema.get("x-example")
    if example:
        return f"write it as `{example}`"
    if isinstance(value, str) and {"integer", "number", "boolean"} & set(kinds):
        return "write it without quotes" if _reads_as_number(value) else None
    if isinstance(value, int | float) and "string" in kinds:
        return "put it in quotes"
    if isinstance(value, str) and "array" in kinds:
        return f"write `[{value}]`" if len(value) <= 40 else "put it in brackets"
    return None


def _reads_as_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text in ("true", "false")
    return True


def _say_enum(finding: _Finding) -> Iterator[Diagnostic]:
    allowed = [str(value) for value in finding.limit]
    help = did_you_mean(str(finding.error.instance), allowed, what="allowed")
    yield finding.of("BTC105", f"{shown(finding.error.instance)} is no value of {finding.name}", help)


def _say_const(finding: _Finding) -> Iterator[Diagnostic]:
    help = f"write `{finding.name.strip('`')}: {finding.limit}`"
    yield finding.of(
        "BTC101", f"{finding.name} is {shown(finding.error.instance)}, this btc reads {finding.limit}", help
    )


_BOUNDS = {
    "minimum": "at least",
    "maximum": "at most",
    "exclusiveMinimum": "more than",
    "exclusiveMaximum": "less than",
}


def _say_bound(finding: _Finding) -> Iterator[Diagnostic]:
    bound = f"{_BOUNDS[finding.error.validator]} {finding.limit}"
    yield finding.of("BTC106", f"{finding.name} is `{finding.error.instance}`, it has to be {bound}")


def is_plain_url(text: str) -> bool:
    """Whether a text is the URL of a server as the schema takes it: http or https, with no place for a key."""
    return re.search(json.loads(schema_text())["$defs"]["url"]["pattern"], text) is not None


def may_hold_key(url: str) -> bool:
    """Whether a text that should be a URL has a place where keys stand, so that no message repeats it."""
    return any(sign in url for sign in "@?#")


def _say_pattern(finding: _Finding) -> Iterator[Diagnostic]:
    value = finding.error.instance
    text = short(value)
    schema_path = list(finding.error.absolute_schema_path)
    if "propertyNames" in schema_path:
        help = "names are letters, digits and `_`, and do not start with a digit"
        yield finding.of("BTC107", f"`{text}` cannot be a name", help, key=value)
    elif "endpoints" in schema_path and may_hold_key(value):
        yield finding.of("BTC110", f"{finding.name} is no plain URL of a server", PLAIN_URL)
    elif "endpoints" in schema_path:
        help = "write it as `http://localhost:8000/v1`"
        yield finding.of("BTC110", f"`{text}` is no URL of a server", help)
    elif "env" in schema_path:
        help = "write the variable's name alone: `{env: OPENAI_API_KEY}`"
        yield finding.of("BTC110", f"{finding.name} is no name of an environment variable", help)
    else:
        yield finding.of("BTC107", f"`{text}` cannot be a name", "names are letters, digits, `_` and `-`")


def _say_size(finding: _Finding) -> Iterator[Diagnostic]:
    keyword, value = finding.error.validator, finding.error.instance
    if "propertyNames" in finding.error.absolute_schema_path:
        yield finding.of("BTC107", "a name is longer than 100 characters", key=value)
    elif keyword == "maxLength":
        yield finding.of("BTC107", f"{finding.name} is longer than {finding.limit} characters")
    elif not value:
        help = "a case that calls nothing has no `steps`: leave the key out" if _of_a_case(finding.place) else None
        yield finding.of("BTC109", f"{finding.name} is empty", help or _element_help(finding))
    elif keyword == "uniqueItems":
        yield finding.of("BTC109", f"{finding.name} has `{short(_repeated(value) or '')}` twice")
    else:
        count = f"{len(value)} elements, {finding.limit} {'is' if finding.limit == 1 else 'are'} the"
        yield finding.of("BTC109", f"{finding.name} has {count} most", _element_help(finding))


def _of_a_case(place: Place) -> bool:
    """Whether these are the steps of a case of a `switch`, or those of its `else`."""
    match place[-3:]:
        case "cases", _, "steps":
            return True
        case above, "else", "steps":
            return above != "steps"  # there it is a step of that name
    return False


def _element_help(finding: _Finding) -> str | None:
    schema = finding.error.schema
    return "a list type has one element: write `[str]`" if schema.get("items") == {"$ref": "#/$defs/type"} else None


def _say_other(finding: _Finding) -> Iterator[Diagnostic]:
    yield finding.of("BTC104", f"{finding.name} is not as the schema says: {finding.error.message}")


_SAY: Mapping[str, Callable[[_Finding], Iterator[Diagnostic]]] = {
    "additionalProperties": _say_unknown,
    "required": _say_missing,
    "type": _say_type,
    "enum": _say_enum,
    "const": _say_const,
    **dict.fromkeys(_BOUNDS, _say_bound),
    "pattern": _say_pattern,
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems", "minProperties", "uniqueItems"), _say_size),
}
