"""Completion text back to typed outputs, strictly: what does not fit is an error of the example, never a guess."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from bt_compiler.engine.budget_ends import without_half_escapes
from bt_compiler.engine.values import one_line
from bt_compiler.engine.wording import labels
from bt_compiler.errors import ExampleError
from bt_compiler.graph.program import ARGUMENTS, TOOL, Module
from bt_compiler.spec.convert import convert, convert_text
from bt_compiler.spec.types import Field, Type, takes_null

_SHOWN = 200
_HALF = "\ufffd"
"""What bytes that are no character are read as."""


def line_outputs(module: Module, text: str) -> dict[str, Any]:
    """Outputs from `Label: value` lines: every label once, in order, one line each. Raises ExampleError."""
    names = labels(module)
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) != len(module.written):
        raise _unfit(module, text, f"it has {len(lines)} lines, not {len(module.written)}")
    outputs: dict[str, Any] = {}
    for output, line in zip(module.written, lines, strict=True):
        label, colon, value = line.partition(f"{names[output.name]}:")
        if not colon or label.strip():
            raise _unfit(module, text, f"a line does not start with `{names[output.name]}:`")
        try:
            type = _type_of(module, output, outputs)
            outputs[output.name] = _whole(_from_line(value.strip().rstrip(_HALF).strip(), type), type)
        except ValueError as error:
            raise _unfit(module, text, f"`{output.name}`: {error}") from error
    return outputs


def json_outputs(module: Module, text: str) -> dict[str, Any]:
    """Outputs from one JSON object with exactly the module's outputs as keys. Raises ExampleError."""
    try:
        found = json.loads(without_half_escapes(text.strip()))
    except (ValueError, RecursionError) as error:
        raise _unfit(module, text, "it is not JSON") from error
    wanted = {output.name for output in module.written}
    if not isinstance(found, dict) or found.keys() != wanted:
        raise _unfit(module, text, f"it is not an object with the keys {', '.join(sorted(wanted))}")
    outputs: dict[str, Any] = {}
    for output in module.written:
        try:
            type = _type_of(module, output, outputs)
            outputs[output.name] = _whole(convert(found[output.name], type), type)
        except ValueError as error:
            raise _unfit(module, text, f"`{output.name}`: {error}") from error
    return outputs


def allowed_values(output: Field, inputs: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The values that `among` leaves to an output as completions write them, in the order given; None without `among`.

    Raises ExampleError where a text, or an element that a list has to have, would be one of none.
    """
    given = _given(output, inputs)
    return None if given is None else tuple(given)


def as_written(module: Module, outputs: Mapping[str, Any]) -> dict[str, Any]:
    """`outputs`, some of which may be missing, with the values of `among` as completions write them; also in the
    arguments of a turn.
    """
    return {
        item.name: _as_written(outputs[item.name], _type_of(module, item, outputs))
        for item in module.written
        if item.name in outputs
    }


def _as_written(value: Any, t: Type) -> Any:
    if t.among is not None:
        return [one_line(text) for text in value] if t.kind == "list" else one_line(value)
    if t.kind == "object" and isinstance(value, Mapping):
        types = {field.name: field.type for field in t.fields}
        return {name: _as_written(item, types[name]) if name in types else item for name, item in value.items()}
    return value


def as_given(module: Module, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> dict[str, Any]:
    """`outputs`, as written, with the values of `among` as they were given, line ends and blanks at their ends
    included. Raises ExampleError where one was not given.
    """
    answer = module.answer(outputs)
    if answer is None:
        return dict(outputs)
    found = dict(answer)
    for output in module.outputs:
        given = _given(output, inputs)
        if given is None:
            continue
        several = isinstance(answer[output.name], list)
        items: Sequence[str] = answer[output.name] if several else [answer[output.name]]
        for item in items:
            if one_line(item) not in given:
                raise ExampleError("BTC524", f"`{output.name}` is `{item}`, which is not among `{output.type.among}`")
        texts = [given[one_line(item)] for item in items]
        found[output.name] = texts if several else texts[0]
    return found if module.kind != "react" else {**outputs, ARGUMENTS: found}


def is_given(output: Field, inputs: Mapping[str, Any], value: Any) -> bool:
    """Whether `among`, if there is one, leaves `value` to the output, or each text of a list."""
    try:
        given = _given(output, inputs)
    except ExampleError:
        return False
    return given is None or all(one_line(text) in given for text in (value if isinstance(value, list) else [value]))


def _given(output: Field, inputs: Mapping[str, Any]) -> dict[str, str] | None:
    """What `among` leaves to an output: as completions write it, and as it was given; of several the first."""
    path = output.type.among
    if path is None:
        return None
    name, _, key = path.partition(".")
    given = inputs[name]
    items: Sequence[Any] = given if isinstance(given, list | tuple) else [given]
    texts = [str(item[key] if key else item) for item in items]
    if not texts and (output.type.kind != "list" or (output.type.minimum or 0) > 0):
        raise ExampleError("BTC524", f"`{output.name}` has to be among `{path}`, which is empty here")
    found: dict[str, str] = {}
    for text in texts:
        found.setdefault(one_line(text), text)
    return found


def _type_of(module: Module, output: Field, before: Mapping[str, Any]) -> Type:
    """The type of an output; that of a turn's arguments depends on the tool before them."""
    if module.kind != "react" or output.name != ARGUMENTS:
        return output.type
    return Type(kind="object", fields=module.arguments(before[TOOL]))


def _whole(value: Any, t: Type) -> Any:
    """A value without the half of a character that a text in it may end in where its token budget ended it."""
    if isinstance(value, str):
        return value.rstrip(_HALF) if t.among is None and _may_be_text(t) else value
    options = (t, *t.options)
    if isinstance(value, list):
        item = next((one.item for one in options if one.item is not None), None)
        return value if item is None or t.among is not None else [_whole(element, item) for element in value]
    if isinstance(value, dict):
        types = {field.name: field.type for one in options for field in one.fields}
        return {name: _whole(element, types[name]) for name, element in value.items()}
    return value


def _from_line(text: str, t: Type) -> Any:
    """A value as `values.written` writes it. Raises ValueError."""
    if text == "null" and takes_null(t):
        return None
    return convert_text(text if _may_be_text(t) else without_half_escapes(text), t)


def _may_be_text(t: Type) -> bool:
    return "str" in (t.kind, *(option.kind for option in t.options))


def _unfit(module: Module, text: str, why: str) -> ExampleError:
    shown = text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
    return ExampleError("BTC522", f"the completion of module `{module.name}` does not fit: {why}; it is {shown!r}")
