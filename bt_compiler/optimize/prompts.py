"""The prompts step Π: random search over bootstrapped few-shot demos.

Candidates, in order: zero-shot, labelled demos only, bootstrapped on unshuffled train, then N seeded shuffles with one
to the most demos allowed. All start from the spec's prompts, all run on the current candidate's adapters, and the inner
val chooses; ties go to the earliest. Source: BootstrapFewshotRS in arXiv 2407.10930, semantics of DSPy's
`BootstrapFewShotWithRandomSearch`, but that traces are generated once and shared between candidates.

Evidence of the step (JSON): `split` counts; `bootstrap` {tried, accepted, failed, by_module}; `candidates`
[{label, id, demos {module: n}, score, interval [low, high], scores {example: score}, failures}], or
{label, id, demos, same_as} for prompts that an earlier candidate has too; `chosen` label.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bt_compiler.canonical import seed_of
from bt_compiler.data.example import Example
from bt_compiler.engine.progress import Progress
from bt_compiler.engine.scoring import evaluate
from bt_compiler.engine.trace import Report
from bt_compiler.graph import candidate_id
from bt_compiler.graph.candidate import Candidate, Demo, Prompt
from bt_compiler.optimize.bootstrap import Bootstrapped, bootstrap, labelled
from bt_compiler.optimize.inner import inner_split
from bt_compiler.optimize.step import StepContext, StepResult


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draw:
    """How one candidate is to be drawn from the pool."""

    label: str
    order: tuple[Example, ...]
    bootstrapped: int
    """Most bootstrapped demos a module."""
    labelled: int
    """Demos a module is filled up to with labelled ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pool:
    """Everything demos can come from."""

    bootstrapped: Bootstrapped
    labelled: Mapping[str, Mapping[str, Demo]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scored:
    label: str
    candidate: Candidate
    report: Report
    same_as: str | None
    """Label of the earlier candidate whose prompts are the same."""


def prompts_step(context: StepContext, candidate: Candidate) -> StepResult:
    """Searches prompts for `candidate`'s adapters. Raises `CompileError` (BTC450) where train is too small."""
    settings = context.settings.prompts
    split = inner_split(context.train, settings, context.seed)
    draws = _draws(context, split.train)
    runs_teacher = any(draw.bootstrapped for draw in draws)
    context.progress.begin(
        f"step {context.index} prompts", (len(split.train) if runs_teacher else 0) + len(draws) * len(split.val)
    )
    progress = _WithinStretch(context.progress)
    found = Bootstrapped(demos={})
    if runs_teacher:
        found = bootstrap(context, candidate, split.train, progress)
        context.progress.say(
            f"step {context.index} prompts: bootstrapped {len(found.demos)} of {len(found.traces)} traces"
            + (f", {found.failed} failed" if found.failed else "")
        )
    pool = _Pool(bootstrapped=found, labelled=labelled(context.program, split.train, found.traces))
    scored = _score_all(context, candidate, pool, draws, split.val, progress)
    best = scored[0]
    for other in scored[1:]:
        if other.report.mean > best.report.mean:
            best = other
    context.progress.say(f"step {context.index} prompts: chose {best.label}, {best.report.mean:.3f} on inner val")
    evidence = {
        "split": {"train": len(split.train), "val": len(split.val)},
        "bootstrap": _bootstrap_evidence(found),
        "candidates": [_evidence(item) for item in scored],
        "chosen": best.label,
    }
    return StepResult(candidate=best.candidate, kind="prompts", evidence=evidence)


def _draws(context: StepContext, train: tuple[Example, ...]) -> list[_Draw]:
    settings = context.settings.prompts
    most, fill = settings.max_bootstrapped_demos, settings.max_labeled_demos
    draws = [
        _Draw(label="zero-shot", order=train, bootstrapped=0, labelled=0),
        _Draw(label="labelled", order=train, bootstrapped=0, labelled=fill),
        _Draw(label="bootstrapped", order=train, bootstrapped=most, labelled=fill),
    ]
    for number in range(1, settings.candidates + 1):
        rng = random.Random(seed_of(context.seed, "candidate", number))
        order = list(train)
        rng.shuffle(order)
        size = rng.randint(1, most) if most else 0
        draws.append(_Draw(label=f"shuffle {number}", order=tuple(order), bootstrapped=size, labelled=fill))
    return draws


def _score_all(
    context: StepContext,
    current: Candidate,
    pool: _Pool,
    draws: Iterable[_Draw],
    val: Sequence[Example],
    progress: Progress,
) -> list[_Scored]:
    scored: list[_Scored] = []
    first: dict[str, _Scored] = {}
    for draw in draws:
        prompts = _prompts(context, current, pool, draw)
        candidate = replace(
            current,
            id=candidate_id(prompts, current.adapters),
            prompts=prompts,
            parent=current.id,
            origin=f"step {context.index} prompts: {draw.label}",
        )
        earlier = first.get(candidate.id)
        if earlier is not None:
            progress.advance(len(val), note=f"{draw.label} = {earlier.label}")
            scored.append(_Scored(label=draw.label, candidate=candidate, report=earlier.report, same_as=earlier.label))
            continue
        report = evaluate(
            context.engine,
            context.program,
            candidate,
            val,
            context.metric,
            split="inner val",
            seed=context.seed,
            progress=progress,
        )
        item = _Scored(label=draw.label, candidate=candidate, report=report, same_as=None)
        first[candidate.id] = item
        scored.append(item)
        context.progress.say(f"step {context.index} prompts: {draw.label} {report.mean:.3f} on inner val")
    return scored


def _prompts(context: StepContext, current: Candidate, pool: _Pool, draw: _Draw) -> dict[str, Prompt]:
    """The spec's prompts with this draw's demos after the written ones; frozen modules keep what they have."""
    prompts: dict[str, Prompt] = {}
    for module in context.program.modules:
        if "prompt" not in module.train:
            prompts[module.name] = current.prompts[module.name]
            continue
        start = context.zero_shot.prompts[module.name]
        chosen = _choose(pool, draw, module.name, seed_of(context.seed, "labelled", draw.label, module.name))
        prompts[module.name] = replace(start, demos=(*start.demos, *chosen))
    return prompts


def _choose(pool: _Pool, draw: _Draw, module: str, seed: int) -> tuple[Demo, ...]:
    """Bootstrapped demos of the first accepted examples in the draw's order, then a seeded sample of labelled ones."""
    accepted = [example.id for example in draw.order if example.id in pool.bootstrapped.demos][: draw.bootstrapped]
    demos = [pool.bootstrapped.demos[name][module] for name in accepted if module in pool.bootstrapped.demos[name]]
    rest = [demo for name, demo in pool.labelled.get(module, {}).items() if name not in accepted]
    wanted = min(max(0, draw.labelled - len(demos)), len(rest))
    return (*demos, *random.Random(seed).sample(rest, wanted))


def _evidence(item: _Scored) -> dict[str, Any]:
    start: dict[str, Any] = {
        "label": item.label,
        "id": item.candidate.id,
        "demos": {name: len(prompt.demos) for name, prompt in item.candidate.prompts.items()},
    }
    if item.same_as is not None:
        return {**start, "same_as": item.same_as}
    return {
        **start,
        "score": item.report.mean,
        "interval": [item.report.interval.low, item.report.interval.high],
        "scores": dict(item.report.scores),
        "failures": len(item.report.failures),
    }


def _bootstrap_evidence(found: Bootstrapped) -> dict[str, Any]:
    by_module: dict[str, int] = {}
    for demos in found.demos.values():
        for module in demos:
            by_module[module] = by_module.get(module, 0) + 1
    return {"tried": len(found.traces), "accepted": len(found.demos), "failed": found.failed, "by_module": by_module}


class _WithinStretch:
    """Lets the runs of a step advance the step's one stretch instead of beginning their own."""

    def __init__(self, outer: Progress) -> None:
        self._outer = outer

    def begin(self, label: str, total: int | None) -> None:
        """Ignored: the step's stretch goes on."""

    def advance(self, units: int = 1, note: str = "") -> None:
        """Advances the step's stretch."""
        self._outer.advance(units, note)

    def say(self, line: str) -> None:
        """Passed on."""
        self._outer.say(line)
