"""Answer-hinted rationales: reasoning the model writes when told the label, kept only where it earns the label.

A rationale stays if it does not contain the label's text and the model, given the inputs and the rationale without
the label, decodes the label. The idea is that of STaR (arXiv 2203.14465, section 3.2, rationalization); the second
test is stricter than theirs. Both calls are programs of one module under the module's own name, so that they run on
its adapter. Knows nothing of rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from bt_compiler.data.example import Example
from bt_compiler.engine.metrics import same_value
from bt_compiler.engine.trace import Trace
from bt_compiler.graph.candidate import Candidate, Prompt
from bt_compiler.graph.program import Binding, Call, Module, Program, Ref, Signature
from bt_compiler.optimize.labelled import Task
from bt_compiler.optimize.step import StepContext
from bt_compiler.spec.types import Field

HINT = (
    "{instructions}\n\nThe right answer is given. Write the reasoning that leads to it from the other inputs, "
    "without naming the answer itself."
)
_WORD = 3
"""Labels shorter than this, and numbers, count as contained only as words of their own."""


def rationales(
    context: StepContext, candidate: Candidate, instructions: Mapping[str, str], tasks: Sequence[Task]
) -> Iterator[tuple[Task, str]]:
    """The first rationale of each task that passes both tests; tasks without one are left out.

    `instructions`: by module, those that rows are prompted with.
    """
    by_module: dict[str, list[Task]] = {}
    for task in tasks:
        by_module.setdefault(task.module.name, []).append(task)
    for module, members in by_module.items():
        yield from _of_module(context, candidate, instructions[module], members)


def _of_module(
    context: StepContext, candidate: Candidate, instructions: str, tasks: Sequence[Task]
) -> Iterator[tuple[Task, str]]:
    weights = context.settings.weights
    module = tasks[0].module
    reasoning = module.outputs[0]
    names = _hint_names(module)
    hints = tuple(replace(item, name=names[item.name]) for item in module.signature.outputs)
    told = replace(
        module,
        kind="predict",
        signature=Signature(
            instructions=HINT.format(instructions=instructions),
            inputs=(*module.signature.inputs, *hints),
            outputs=(reasoning,),
        ),
    )
    asked = [
        Example(
            id=str(index), inputs={**task.inputs, **{names[key]: task.labels[key] for key in task.labels}}, labels={}
        )
        for index, task in enumerate(tasks)
    ]
    written = _run(context, candidate, told, asked, repeats=weights.samples, temperature=weights.temperature)
    drafts: dict[str, tuple[int, str]] = {}
    for trace in written:
        text = "" if trace.outputs is None else str(trace.outputs[reasoning.name]).strip()
        index = int(trace.example)
        if text and not contains_label(text, tasks[index].labels):
            drafts[f"{index}-{trace.repeat}"] = (index, text)
    passed = _decoded(context, candidate, module, reasoning, instructions, tasks, drafts)
    first: dict[int, str] = {}
    for key, (index, text) in drafts.items():
        if key in passed:
            first.setdefault(index, text)
    yield from ((tasks[index], text) for index, text in sorted(first.items()))


def _decoded(
    context: StepContext,
    candidate: Candidate,
    module: Module,
    reasoning: Field,
    instructions: str,
    tasks: Sequence[Task],
    drafts: Mapping[str, tuple[int, str]],
) -> set[str]:
    """Drafts from which the model, not told the label, comes to it (greedily)."""
    untold = replace(
        module,
        kind="predict",
        signature=Signature(
            instructions=instructions,
            inputs=(*module.signature.inputs, reasoning),
            outputs=module.signature.outputs,
        ),
    )
    examples = [
        Example(id=key, inputs={**tasks[index].inputs, reasoning.name: text}, labels={})
        for key, (index, text) in drafts.items()
    ]
    traces = _run(context, candidate, untold, examples, repeats=1, temperature=0.0)
    return {
        trace.example
        for trace in traces
        if trace.outputs is not None
        and all(same_value(trace.outputs[key], value) for key, value in tasks[drafts[trace.example][0]].labels.items())
    }


def _run(
    context: StepContext,
    candidate: Candidate,
    module: Module,
    examples: Sequence[Example],
    *,
    repeats: int,
    temperature: float,
) -> list[Trace]:
    """Runs a program that is this one module, on the candidate's adapter for it."""
    call = Call(
        name=module.name,
        module=module.name,
        inputs=tuple(
            Binding(name=item.name, value=Ref(step=None, field=item.name), type=item.type)
            for item in module.signature.inputs
        ),
        outputs=module.outputs,
    )
    program = Program(
        name=f"{context.program.name}, hinted",
        inputs=module.signature.inputs,
        nodes=(call,),
        out=tuple(
            Binding(name=item.name, value=Ref(step=module.name, field=item.name), type=item.type)
            for item in module.outputs
        ),
        modules=(module,),
        retrievers=(),
    )
    prompts = {module.name: Prompt(instructions=module.signature.instructions)}
    context.progress.begin("hinted rationales", len(examples) * repeats)
    return context.engine.run(
        program,
        replace(candidate, prompts=prompts),
        examples,
        seed=context.seed,
        repeats=repeats,
        temperature=temperature,
        progress=context.progress,
    )


def _hint_names(module: Module) -> dict[str, str]:
    """Output field -> name of the input that tells it, different from every other name of the module."""
    taken = {item.name for item in (*module.signature.inputs, *module.outputs)}
    names: dict[str, str] = {}
    for item in module.signature.outputs:
        name = f"right_{item.name}"
        while name in taken:
            name += "_"
        taken.add(name)
        names[item.name] = name
    return names


def contains_label(text: str, labels: Mapping[str, Any]) -> bool:
    """Whether `text` says any label, in whatever case; numbers and very short texts count as whole words only."""
    folded = text.casefold()
    return any(_says(folded, leaf) for value in labels.values() for leaf in _leaves(value))


def _says(text: str, leaf: Any) -> bool:
    word = str(leaf).strip().casefold()
    if not word:
        return False
    if isinstance(leaf, str) and len(word) > _WORD:
        return word in text
    return re.search(rf"(?<![\w.]){re.escape(word)}(?!\w|\.\d)", text) is not None


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from _leaves(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner)
    elif value is not None:
        yield value
