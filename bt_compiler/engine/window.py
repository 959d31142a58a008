"""Whether a prompt fits the context window of its model: that of one example, and what a module says to everything.

Knows modules, formats and backends; which examples there are is not looked at.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from bt_compiler.engine.formats import load_format
from bt_compiler.engine.request import Backend
from bt_compiler.errors import ExampleError, SpecError
from bt_compiler.graph.candidate import Prompt
from bt_compiler.graph.program import TRAJECTORY, Module
from bt_compiler.spec.types import Type


class Length(NamedTuple):
    """What a call of a module takes at least, in tokens."""

    prompt: int
    """With inputs that are next to nothing."""
    completion: int
    """The most that may be written."""


def certain(tokens: int) -> int:
    """Of an estimate what is certain: it is on the high side, and four characters a token is certain enough."""
    return tokens * 3 // 4


def least_length(module: Module, backend: Backend) -> Length | None:
    """What every call with the spec's instructions and demos takes; None where the format cannot tell without inputs.

    Raises BackendError BTC512 where the model has no chat template.
    """
    form = load_format(module.format)
    inputs = {item.name: _least(item.type) for item in module.signature.inputs}
    if module.kind == "react":
        inputs[TRAJECTORY] = []
    try:
        prompt = form.render(module, Prompt(instructions=module.signature.instructions, demos=module.demos), inputs)
    except (ExampleError, SpecError):
        return None  # a format of the user's own that needs more to go by: each example will tell
    try:
        completion = form.grammar(module, inputs).max_tokens
    except ExampleError:
        completion = 0  # what may be written depends on the inputs
    tokens = backend.count_tokens(prompt)
    return Length(certain(tokens) if backend.facts().get("tokens") == "estimated" else tokens, completion)


def _least(t: Type) -> Any:
    """A value of the type with next to nothing in it."""
    if t.kind == "object":
        return {item.name: _least(item.type) for item in t.fields}
    if t.kind == "union":
        return None if any(option.kind == "null" for option in t.options) else _least(t.options[0])
    if t.kind == "enum":
        return min(t.values, key=len)
    return {"str": "", "int": 0, "float": 0.0, "bool": True, "list": []}.get(t.kind)
