"""Demos that a prompts step may choose among: bootstrapped ones from accepted traces, labelled ones from train.

The teacher is the current candidate on its current adapters, without the demo that an example itself gave. It runs
once over the inner train, in one batch; every candidate of the step picks from what came of it. Semantics of
BootstrapFewShot (arXiv 2407.10930 and DSPy's `teleprompt/bootstrap.py`). Knows nothing of search or of val.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bt_compiler.canonical import seed_of
from bt_compiler.data.example import Example
from bt_compiler.engine.progress import Progress
from bt_compiler.engine.scoring import score_traces
from bt_compiler.engine.trace import Trace
from bt_compiler.graph.candidate import Candidate, Demo
from bt_compiler.graph.program import Binding, Call, Constant, Module, Node, Program, Ref, Value
from bt_compiler.optimize.step import StepContext


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootstrapped:
    """What the teacher gave."""

    demos: Mapping[str, Mapping[str, Demo]]
    """Example id -> module -> the one demo of that trace; accepted examples only, in the order of train."""
    tried: int
    failed: int
    """Traces that ended in an error."""


def bootstrap(context: StepContext, teacher: Candidate, train: Sequence[Example], progress: Progress) -> Bootstrapped:
    """Runs `teacher` on `train` and keeps the traces that `context.accept` scores `at_least` high enough."""
    traces = context.engine.run(
        context.program, teacher, train, seed=context.seed, leave_own_demo_out=True, progress=progress
    )
    scored = score_traces(traces, train, context.accept)
    threshold = context.settings.accept.at_least
    accepted = [trace for trace in scored if trace.error is None and (trace.score or 0.0) >= threshold]
    return Bootstrapped(
        demos={trace.example: _demos(trace, context.seed) for trace in accepted},
        tried=len(scored),
        failed=sum(trace.error is not None for trace in scored),
    )


def _demos(trace: Trace, seed: int) -> dict[str, Demo]:
    """One demo a module. Of several visits the last or one of those before it is taken, at even odds, as in DSPy."""
    visits: dict[str, list[Demo]] = {}
    for step in trace.steps:
        if step.module is not None and step.outputs is not None:
            demo = Demo(inputs=step.inputs, outputs=step.outputs, example=trace.example, origin="bootstrapped")
            visits.setdefault(step.module, []).append(demo)
    return {module: _pick(demos, seed_of(seed, "visit", trace.example, module)) for module, demos in visits.items()}


def _pick(demos: Sequence[Demo], seed: int) -> Demo:
    if len(demos) == 1:
        return demos[0]
    rng = random.Random(seed)
    return rng.choice(demos[:-1]) if rng.random() < 0.5 else demos[-1]


def labelled(program: Program, train: Sequence[Example]) -> dict[str, dict[str, Demo]]:
    """Module -> example id -> the demo that data alone gives, in the order of train.

    A module has labelled demos where some call of it takes nothing but program inputs and constants and each output of
    its signature is a program output that the example has a label for. `reasoning` is not in them.
    """
    found: dict[str, dict[str, Demo]] = {}
    for module in program.modules:
        for call in _calls(program.nodes, module.name):
            sources = _label_sources(program, module, call)
            if sources is None:
                continue
            demos = (_labelled_demo(call, sources, example) for example in train)
            found[module.name] = {demo.example: demo for demo in demos if demo is not None and demo.example is not None}
            break
    return found


def _calls(nodes: Sequence[Node], module: str) -> list[Call]:
    """Calls of `module` outside loops: what a loop's body reads, the data does not hold."""
    return [node for node in nodes if isinstance(node, Call) and node.module == module]


def _label_sources(program: Program, module: Module, call: Call) -> dict[str, str] | None:
    """Output field of the signature -> label name, None where the call reads or gives what has no label."""
    names = {field.name for field in program.inputs}
    if not all(_given(binding.value, names) for binding in call.inputs):
        return None
    sources = {
        binding.value.field: binding.name
        for binding in program.out
        if isinstance(binding.value, Ref) and binding.value.step == call.name
    }
    wanted = [field.name for field in module.signature.outputs]
    return {name: sources[name] for name in wanted} if all(name in sources for name in wanted) else None


def _given(value: Value, inputs: set[str]) -> bool:
    return isinstance(value, Constant) or (value.step is None and value.field in inputs)


def _labelled_demo(call: Call, sources: Mapping[str, str], example: Example) -> Demo | None:
    if any(example.labels.get(label) is None for label in sources.values()):
        return None
    return Demo(
        inputs={binding.name: _value(binding, example) for binding in call.inputs},
        outputs={field: example.labels[label] for field, label in sources.items()},
        example=example.id,
        origin="labelled",
    )


def _value(binding: Binding, example: Example) -> object:
    return binding.value.value if isinstance(binding.value, Constant) else example.inputs[binding.value.field]
