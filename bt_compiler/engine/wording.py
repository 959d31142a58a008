"""How fields and types are called in prompts. Knows nothing of values or templates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bt_compiler.graph.program import FINISH, OBSERVATION, Module
from bt_compiler.spec.types import PASSAGE, Field, Type

_WORDS = {"str": "text", "int": "a whole number", "float": "a number", "bool": "true or false", "null": "null"}


def labels(module: Module) -> dict[str, str]:
    """Field name -> label: `petal_length` is `Petal length`. Fields that would share a label keep their names."""
    made = {item.name: _label(item.name) for item in (*module.signature.inputs, *module.written)}
    shared = [label.lower() for label in made.values()]
    return {name: label if shared.count(label.lower()) == 1 else name for name, label in made.items()}


def described(module: Module, fields: Sequence[Field]) -> list[dict[str, Any]]:
    """Fields of `module` as a template sees them: `name`, `label`, `description` or None, `type` in words."""
    names = labels(module)
    return [{**words, "label": names[words["name"]]} for words in _named(fields)]


def offered(module: Module) -> list[dict[str, Any]]:
    """What a `react` module may call, finishing last, as a template sees it: `name`, `description` or None, and the
    fields that it takes as `arguments`.
    """
    tools = [(tool.name, tool.description, tool.inputs) for tool in module.tools]
    return [
        {"name": name, "description": description, "arguments": _named(fields)}
        for name, description, fields in (*tools, (FINISH, "gives the answer", module.signature.outputs))
    ]


def observed() -> dict[str, Any]:
    """The observation as a template sees a field; it stands in a turn of its own."""
    return {"name": OBSERVATION, "label": _label(OBSERVATION), "description": None, "type": _WORDS["str"]}


def type_in_words(t: Type) -> str:
    """The type as a prompt names it: `one of setosa, versicolor, virginica`, `a whole number`."""
    if t.kind == "enum":
        return f"one of {', '.join(t.values)}"
    if t.kind == "union":
        return " or ".join(type_in_words(option) for option in t.options)
    if t.name == PASSAGE.name:
        return "a passage"
    if t.kind == "list":
        passages = t.item is not None and t.item.name == PASSAGE.name
        return "numbered passages" if passages else f"a JSON list of {_plural(t.item)}"
    if t.kind == "object":
        held = ", ".join(_within(item) for item in t.fields)
        return f"a JSON object with {held}" if held else "a JSON object"
    low = [] if t.minimum is None else [f"from {_bound(t.minimum)}"]
    high = [] if t.maximum is None else [f"to {_bound(t.maximum)}"]
    return " ".join([_WORDS[t.kind], *low, *high])


def _bound(number: float) -> str:
    """In full: a rounded bound would be another one."""
    return str(int(number) if number == int(number) else number)


def _named(fields: Sequence[Field]) -> list[dict[str, Any]]:
    return [
        {
            "name": item.name,
            "description": item.description or item.type.description,
            "type": type_in_words(item.type),
        }
        for item in fields
    ]


def _within(item: Field) -> str:
    """A field of an object, as templates write a field of the module."""
    description = item.description or item.type.description
    return f"{item.name} ({type_in_words(item.type)}{f', {description}' if description else ''})"


def _label(name: str) -> str:
    words = name.replace("_", " ").strip() or name
    return words[0].upper() + words[1:]


def _plural(t: Type | None) -> str:
    if t is None or t.kind == "str":
        return "texts"
    if t.kind == "object":
        return f"objects ({type_in_words(t)})"
    return {"int": "whole numbers", "float": "numbers"}.get(t.kind, type_in_words(t))
