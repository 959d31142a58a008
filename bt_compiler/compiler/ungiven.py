"""Right answers of the data, and demos of the spec, that `among` does not leave to the output that gives them: said
before anything is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bt_compiler.data import Splits
from bt_compiler.diagnostics import Diagnostic
from bt_compiler.graph import Call, Demo, Module, Program, Ref
from bt_compiler.graph.program import ARGUMENTS, TOOL
from bt_compiler.spec import Field, Spec
from bt_compiler.spec.sections import DataSection


def ungiven_answers(program: Program, splits: Splits, data: DataSection, labels: Mapping[str, str]) -> list[Diagnostic]:
    """Warnings about outputs that have to be among what an input of the program holds, where right answers are not.

    `labels`: output -> label that holds its answer; others have the label of their own name.
    """
    found = []
    for binding in program.out:
        writer = _writer(program, binding.value) if isinstance(binding.value, Ref) else None
        if writer is None:
            continue
        module, output, name, source = writer
        label = labels.get(binding.name, binding.name)
        held = [example for part in splits for example in part if label in example.labels]
        wrong = [
            example for example in held if _is_ungiven(output, name, example.inputs[source], example.labels[label])
        ]
        if wrong:
            place = min((example.place or "" for example in wrong), key=lambda place: (len(place), place))
            first = f", first in {place}" if place else ""
            found.append(
                Diagnostic(
                    code="BTC337",
                    message=f"label `{label}` is not among `{output.type.among}` in {len(wrong)} of {len(held)} rows"
                    f"{first}: module `{module}` cannot answer it there, nor learn from it",
                    span=data.span,
                    severity="warning",
                    help="write the label as the input has it: upper and lower case differ",
                )
            )
    return found


def ungiven_demos(spec: Spec, modules: Sequence[Module]) -> list[Diagnostic]:
    """Demos written in the spec that show a value which their own inputs do not hold: BTC234, each once."""
    shown = [module for module in modules if module.demos]
    if not shown:
        return []
    from bt_compiler.engine.parsing import is_given

    found: dict[tuple[str | int, ...], Diagnostic] = {}
    for module in shown:
        for number, demo in enumerate(module.demos):
            for output, value, place in _chosen(module, demo):
                if is_given(output, demo.inputs, value):
                    continue
                path = ("modules", module.declared, "demos", number, place)
                found[*path, output.name] = Diagnostic(
                    code="BTC234",
                    message=f"`{output.name}` of the demo is not among its `{output.type.among}`",
                    span=spec.span(path),
                    help="show what the module can write: a value as the demo's own inputs have it",
                )
    return list(found.values())


def _chosen(module: Module, demo: Demo) -> Iterator[tuple[Field, Any, str]]:
    """What a demo shows of outputs with `among`, or of the arguments of its turn, and the key it stands under."""
    turn = module.kind == "react"
    values = demo.outputs[ARGUMENTS] if turn else demo.outputs
    for item in module.arguments(demo.outputs[TOOL]) if turn else module.signature.outputs:
        if item.type.among is not None:
            yield item, values[item.name], ARGUMENTS if turn else item.name


def _writer(program: Program, source: Ref) -> tuple[str, Field, str, str] | None:
    """The module that writes `source`, its output, and the input that `among` names: its name in the module, and in the
    program. None where the data does not hold what `among` leaves.
    """
    node = next((node for node in program.nodes if isinstance(node, Call) and node.name == source.step), None)
    if node is None:
        return None
    output = next((item for item in program.module(node.module).outputs if item.name == source.field), None)
    if output is None or output.type.among is None:
        return None
    name = output.type.among.partition(".")[0]
    value = next((binding.value for binding in node.inputs if binding.name == name), None)
    if not isinstance(value, Ref) or value.step is not None:
        return None
    return node.module, output, name, value.field


def _is_ungiven(output: Field, name: str, given: Any, label: Any) -> bool:
    """Whether answers that the label accepts fit the output, and none of them was given."""
    from bt_compiler.engine.parsing import is_given
    from bt_compiler.optimize.labelled import fitting_answers

    fitting = fitting_answers(label, output.type)
    return bool(fitting) and not any(is_given(output, {name: given}, one) for one in fitting)
