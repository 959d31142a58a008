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
from bt_compiler.engine.metrics import answer_labels
from bt_compiler.engine.progress import Progress
from bt_compiler.engine.scoring import score_traces
from bt_compiler.engine.trace import Trace
from bt_compiler.graph.candidate import Candidate, Demo
from bt_compiler.graph.program import Module, Program
from bt_compiler.optimize.labelled import labelled_tasks, needs_runs
from bt_compiler.optimize.step import StepContext


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootstrapped:
    """What the teacher gave."""

    demos: Mapping[str, Mapping[str, Demo]]
    """Example id -> module -> the one demo of that trace; accepted examples only, in the order of train."""
    traces: tuple[Trace, ...] = ()
    """Of every example tried, scored, accepted or not."""
    failed: int = 0
    """Traces that ended in an error."""


def bootstrap(context: StepContext, teacher: Candidate, train: Sequence[Example], progress: Progress) -> Bootstrapped:
    """Runs `teacher` on `train` and keeps the traces that `context.accept` scores `at_least` high enough."""
    with context.budget.measured(len(train)):
        traces = context.engine.run(
            context.program, teacher, train, seed=context.seed, leave_own_demo_out=True, progress=progress
        )
        scored = score_traces(traces, train, context.accept, context.engine)
    threshold = context.settings.accept.at_least
    accepted = [trace for trace in scored if trace.error is None and (trace.score or 0.0) >= threshold]
    return Bootstrapped(
        demos={trace.example: demos_of(context.program, trace, context.seed) for trace in accepted},
        traces=tuple(scored),
        failed=sum(trace.error is not None for trace in scored),
    )


def demos_of(program: Program, trace: Trace, seed: int) -> dict[str, Demo]:
    """By module, one demo each. Of several visits the last or one before it is taken, at even odds, as in DSPy."""
    visits: dict[str, list[Demo]] = {}
    for step in trace.steps:
        if step.module is not None and step.outputs is not None and step.picked:
            written = {item.name: step.outputs[item.name] for item in program.module(step.module).written}
            demo = Demo(inputs=step.inputs, outputs=written, example=trace.example, origin="bootstrapped")
            visits.setdefault(step.module, []).append(demo)
    return {module: _pick(demos, seed_of(seed, "visit", trace.example, module)) for module, demos in visits.items()}


def _pick(demos: Sequence[Demo], seed: int) -> Demo:
    if len(demos) == 1:
        return demos[0]
    rng = random.Random(seed)
    return rng.choice(demos[:-1]) if rng.random() < 0.5 else demos[-1]


def labels_need_runs(program: Program, labels: Mapping[str, str]) -> bool:
    """Whether labelled demos have inputs that only a run of the program gives. `labels`: as of `answer_labels`."""
    return needs_runs(program, _searched(program), labels)


def _searched(program: Program) -> list[Module]:
    return [module for module in program.modules if "prompt" in module.train]


def labelled(context: StepContext, train: Sequence[Example], traces: Sequence[Trace]) -> dict[str, dict[str, Demo]]:
    """Module -> example id -> the demo that the data's label gives, in the order of train.

    A module has them where each output of its signature is a program output with a label. Inputs that the data does
    not hold are those of the teacher's own trace, accepted or not. `reasoning` is not in them.
    """
    found: dict[str, dict[str, Demo]] = {}
    labels = answer_labels(context.metric, context.accept)
    modules, say = _searched(context.program), context.progress.say
    for task in labelled_tasks(context.program, train, lambda: traces, say, of=modules, labels=labels):
        demo = Demo(inputs=task.inputs, outputs=task.labels, example=task.example.id, origin="labelled")
        found.setdefault(task.module.name, {}).setdefault(task.example.id, demo)
    return found
