"""How much longer the prompts of an example become where a step shows as many demos as it may.

A step with a budget asks before it begins, so that scoring what ships is kept back at its price. Demos are stood in for
by labels, and where these do not say all of one by what the program wrote. Knows nothing of prices or limits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import mean

from bt_compiler.data.example import Example
from bt_compiler.engine.executor import Engine
from bt_compiler.engine.formats import load_format
from bt_compiler.engine.trace import Trace
from bt_compiler.graph.candidate import Candidate, Demo
from bt_compiler.graph.program import Module, Program
from bt_compiler.optimize.bootstrap import demos_of
from bt_compiler.optimize.labelled import labelled_tasks

_LOOKED_AT = 20
"""Traces whose demos are measured."""


def demo_tokens(
    program: Program,
    zero_shot: Candidate,
    engine: Engine,
    *,
    traces: Sequence[Trace],
    examples: Sequence[Example],
    labels: Mapping[str, str],
) -> dict[str, float]:
    """Model -> prompt tokens that one demo more in each prompt adds to a run of the program, the mean of some runs.

    `traces`: of the spec's own prompts on `examples`. `labels`: as of `answer_labels`.
    """
    looked_at = traces[:_LOOKED_AT]
    searched = [module for module in program.modules if "prompt" in module.train]
    demos = _demos(program, searched, looked_at, examples, labels)
    found: dict[str, float] = {}
    for module in searched:
        steps = [step for trace in looked_at for step in trace.steps if step.module == module.name]
        calls = sum(len(step.completions) for step in steps)
        if calls and demos[module.name]:
            added = mean(_added(module, zero_shot, engine, demo) for demo in demos[module.name])
            found[module.model] = found.get(module.model, 0.0) + added * calls / len(looked_at)
    return found


def _demos(
    program: Program,
    searched: Sequence[Module],
    traces: Sequence[Trace],
    examples: Sequence[Example],
    labels: Mapping[str, str],
) -> dict[str, list[Demo]]:
    """Module -> demos as a step would show them."""
    run = {trace.example for trace in traces}
    known = [example for example in examples if example.id in run]
    found: dict[str, list[Demo]] = {module.name: [] for module in searched}
    for task in labelled_tasks(program, known, lambda: traces, lambda _: None, of=searched, labels=labels):
        if len(task.labels) == len(task.module.written):
            found[task.module.name].append(Demo(inputs=task.inputs, outputs=task.labels, origin="labelled"))
    own = [demos_of(program, trace, seed=0) for trace in traces]
    return {
        name: labelled or [demos[name] for demos in own if name in demos]  # labels say nothing of reasoning
        for name, labelled in found.items()
    }


def _added(module: Module, zero_shot: Candidate, engine: Engine, demo: Demo) -> int:
    """Tokens of the demo within a prompt."""
    form, backend, prompt = load_format(module.format), engine.backends[module.model], zero_shot.prompts[module.name]
    longer = form.render(module, replace(prompt, demos=(*prompt.demos, demo)), demo.inputs)
    return backend.count_tokens(longer) - backend.count_tokens(form.render(module, prompt, demo.inputs))
