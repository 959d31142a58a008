"""Calls of modules whose right answers the data holds: what gold and hinted rows start from.

Knows programs and examples; nothing of prompts or rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any, NamedTuple

from bt_compiler.data.example import Example
from bt_compiler.engine.parsing import is_given
from bt_compiler.engine.trace import Trace
from bt_compiler.graph.program import Binding, Call, Constant, Module, Program, Ref, Value
from bt_compiler.optimize.rows import trainable
from bt_compiler.spec import Type, convert


class Task(NamedTuple):
    """One call of a module whose signature's outputs are all labelled in the example."""

    example: Example
    module: Module
    inputs: Mapping[str, Any]
    labels: Mapping[str, Any]
    """By output field of the signature."""


def labelled_tasks(
    program: Program,
    examples: Sequence[Example],
    own_traces: Callable[[], Sequence[Trace]],
    say: Callable[[str], None],
    *,
    of: Sequence[Module] | None = None,
    labels: Mapping[str, str] = MappingProxyType({}),
) -> list[Task]:
    """What the data's labels say of modules: calls outside loops whose outputs are the program's own.

    They say nothing of a `react` module: not which tools to call, and to finish at once is no lesson.

    `of`: the modules asked for; None: those whose weights are trained. `labels`: program output -> label that holds
    its answer (`answer_labels`); others have the label of their own name.

    Inputs that are no program inputs are taken from the program's own run of the example: `own_traces` gives those
    runs and is asked only where they are needed.

    A label that `among` does not leave to the output for these very inputs is not taught; `say` is told how many.
    """
    calls = _labelled_calls(program, trainable(program) if of is None else of, labels)
    names = {item.name for item in program.inputs}
    traces: dict[str, Trace] = {}
    if _read_steps(program, calls):
        traces = {trace.example: trace for trace in own_traces()}
    tasks: list[Task] = []
    held, missed = Counter[str](), Counter[tuple[str, str, str | None]]()
    for example in examples:
        for node, module, sources in calls:
            inputs = _inputs(node, names, example, traces.get(example.id))
            if inputs is None or any(label not in example.labels for label in sources.values()):
                continue
            answers = [
                (item, fitting_answers(example.labels[sources[item.name]], item.type))
                for item in module.signature.outputs
            ]
            if not all(fitting for _, fitting in answers):
                continue
            held[module.name] += 1
            left = {item: [one for one in fitting if is_given(item, inputs, one)] for item, fitting in answers}
            lacking = next((item for item, fitting in left.items() if not fitting), None)
            if lacking is None:
                tasks.append(Task(example, module, inputs, {item.name: fitting[0] for item, fitting in left.items()}))
            else:
                missed[module.name, lacking.name, lacking.type.among] += 1
    for (name, output, among), count in missed.items():
        say(f"labels of `{name}`: {count} of {held[name]} left out, for `{output}` is not among `{among}` there")
    return tasks


def needs_runs(program: Program, of: Sequence[Module], labels: Mapping[str, str]) -> bool:
    """Whether `labelled_tasks` would ask for the program's own runs."""
    return _read_steps(program, _labelled_calls(program, of, labels))


def label_names(
    program: Program, labels: Mapping[str, str], *, of: Sequence[Module] | None = None
) -> list[tuple[Module, frozenset[str]]]:
    """The modules that labels can teach, each with those it takes, once a call. `of`, `labels`: as of
    `labelled_tasks`.
    """
    calls = _labelled_calls(program, trainable(program) if of is None else of, labels)
    return [(module, frozenset(sources.values())) for _, module, sources in calls]


def _labelled_calls(
    program: Program, of: Sequence[Module], labels: Mapping[str, str]
) -> list[tuple[Call, Module, dict[str, str]]]:
    modules = {module.name: module for module in of if module.kind != "react"}
    return [
        (node, modules[node.module], sources)
        for node in program.nodes
        if isinstance(node, Call) and node.module in modules
        if (sources := _label_sources(program, modules[node.module], node, labels)) is not None
    ]


def _read_steps(program: Program, calls: Sequence[tuple[Call, Module, dict[str, str]]]) -> bool:
    names = {item.name for item in program.inputs}
    return any(not _given(binding.value, names) for node, _, _ in calls for binding in node.inputs)


def fitting_answers(label: Any, type: Type) -> list[Any]:
    """The label, or of several accepted answers those that the output can be; null is one where its type takes it."""
    found = []
    for accepted in [label, *(label if isinstance(label, list) else ())]:
        with suppress(ValueError):
            found.append(convert(accepted, type))
    return found


def _label_sources(program: Program, module: Module, call: Call, labels: Mapping[str, str]) -> dict[str, str] | None:
    """Output field of the signature -> label; None where an output is not the program's."""
    sources = {
        binding.value.field: labels.get(binding.name, binding.name)
        for binding in program.out
        if isinstance(binding.value, Ref) and binding.value.step == call.name
    }
    wanted = [item.name for item in module.signature.outputs]
    return {name: sources[name] for name in wanted} if all(name in sources for name in wanted) else None


def _inputs(call: Call, names: set[str], example: Example, trace: Trace | None) -> Mapping[str, Any] | None:
    """What the call gets; None where the run of the example did not come so far."""
    if all(_given(binding.value, names) for binding in call.inputs):
        return {binding.name: _value(binding, example) for binding in call.inputs}
    steps = trace.steps if trace is not None else ()
    return next((step.inputs for step in steps if step.node == call.name), None)


def _given(value: Value, names: set[str]) -> bool:
    return isinstance(value, Constant) or (value.step is None and value.field in names)


def _value(binding: Binding, example: Example) -> Any:
    return binding.value.value if isinstance(binding.value, Constant) else example.inputs[binding.value.field]
