"""Formats of one's own that fail on the data: rendered once for a call whose inputs are all known, before anything is
computed. What earlier steps give is not made up: a format may count on how it looks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bt_compiler.data import Example
from bt_compiler.diagnostics import Diagnostic
from bt_compiler.errors import ExampleError, SpecError
from bt_compiler.graph import Call, Constant, Program, Prompt
from bt_compiler.graph.program import TRAJECTORY
from bt_compiler.spec import Spec


def unrendered_formats(spec: Spec, program: Program, example: Example) -> list[Diagnostic]:
    """BTC521 for each format of one's own that cannot be rendered for `example`, with module and row in a note."""
    found: dict[str, Diagnostic] = {}
    for node in program.nodes:
        if not isinstance(node, Call) or (inputs := _inputs(node, example)) is None:
            continue
        module = program.module(node.module)
        if not module.format.endswith(".jinja") or module.format in found:
            continue
        from bt_compiler.engine.formats import load_format

        prompt = Prompt(instructions=module.signature.instructions, demos=module.demos)
        turns: Mapping[str, Any] = {TRAJECTORY: []} if module.kind == "react" else {}
        try:
            load_format(module.format).render(module, prompt, {**inputs, **turns})
        except SpecError as error:
            own = ("modules", module.declared, "format")
            span = spec.span(own if spec.get(own) is not None else ("format",))
            note = f"rendered for module `{module.name}` with {example.place or 'the first row of train'}"
            found[module.format] = replace(error.diagnostics[0], span=span, notes=(note,))
        except ExampleError:
            continue  # about this row's values, not about the format
    return list(found.values())


def _inputs(node: Call, example: Example) -> Mapping[str, Any] | None:
    """What a call outside of loops is given; None where some of it comes from another step."""
    given = {}
    for item in node.inputs:
        if isinstance(item.value, Constant):
            given[item.name] = item.value.value
        elif item.value.step is None and item.value.field in example.inputs:
            given[item.name] = example.inputs[item.value.field]
        else:
            return None
    return given
