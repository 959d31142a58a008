"""The prompts step Π: random search over bootstrapped few-shot demos.

Candidates, in order: zero-shot, labelled demos only, bootstrapped on unshuffled train, then N seeded shuffles with one
to the most demos allowed. All start from the spec's prompts, all run on the current candidate's adapters, and the inner
val chooses by a race (`racing`); ties go to the earliest. Source: BootstrapFewshotRS in arXiv 2407.10930, semantics of
DSPy's `BootstrapFewShotWithRandomSearch`, but that traces are generated once and shared between candidates.

Evidence of the step (JSON): `split` counts; `bootstrap` {tried, accepted, failed, by_module}; `candidates`
[{label, id, demos {module: n}, score, interval [low, high], scores {example: score}, failures}], with `dropped_after`
examples where it lost the race by then, or {label, id, demos, same_as} for prompts that an earlier candidate has too;
`chosen` label; `racing` {error, runs, without_racing}: runs of the program on an example, and how many there were had
nobody been dropped as far as the race went; `cut_short` [texts] where a budget left out candidates or examples.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from bt_compiler.canonical import seed_of
from bt_compiler.data.example import Example, content_of
from bt_compiler.engine.causes import most_frequent
from bt_compiler.engine.metrics import answer_labels
from bt_compiler.engine.progress import Progress
from bt_compiler.engine.scoring import evaluate_together, report_of
from bt_compiler.engine.trace import Failure, Report
from bt_compiler.errors import CompileError
from bt_compiler.graph import candidate_id
from bt_compiler.graph.candidate import Candidate, Demo, Prompt
from bt_compiler.graph.program import Program
from bt_compiler.optimize.bootstrap import Bootstrapped, bootstrap, labelled, labels_need_runs
from bt_compiler.optimize.inner import inner_split
from bt_compiler.optimize.racing import FIRST, FIRST_ROUND, race
from bt_compiler.optimize.step import StepContext, StepResult
from bt_compiler.spec.sections import PromptsSection

AT_ONCE = 2048
"""Runs of the program that go out together: enough for a fleet, and few enough to hold."""


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


class LeastRuns(NamedTuple):
    """Runs of an example that a step cannot do without."""

    runs: int
    """As the step finds the program."""
    with_demos: int = 0
    """With as many demos as it may show."""


def least_runs(
    settings: PromptsSection, train: Sequence[Example], program: Program, labels: Mapping[str, str]
) -> LeastRuns:
    """The teacher's, and of the first candidates, of which the first is zero-shot, the first round. Raises CompileError
    BTC450.
    """
    split = inner_split(train, settings, seed=0)  # the seed decides who
    first = min(FIRST_ROUND, len(split.val))
    return LeastRuns(_runs_teacher(settings, program, labels) * len(split.train) + first, (FIRST - 1) * first)


def most_demos(settings: PromptsSection, train: Sequence[Example]) -> int:
    """How many demos a prompts step may add to a prompt. Raises CompileError BTC450."""
    split = inner_split(train, settings, seed=0)
    return min(len(split.train), max(settings.max_bootstrapped_demos, settings.max_labeled_demos))


def _runs_teacher(settings: PromptsSection, program: Program, labels: Mapping[str, str]) -> bool:
    """Bootstrapped demos are its traces, and labelled ones may have inputs that only these hold."""
    return settings.max_bootstrapped_demos > 0 or (settings.max_labeled_demos > 0 and labels_need_runs(program, labels))


def prompts_step(context: StepContext, candidate: Candidate) -> StepResult:
    """Searches prompts for `candidate`'s adapters. Raises `CompileError`: BTC450 where train is too small, BTC454 where
    every prompt is frozen.
    """
    if not any("prompt" in module.train for module in context.program.modules):
        raise CompileError.of(
            "BTC454",
            "no module of the program may change its prompt",
            help="put `prompt` into the `train` of a module, or take `prompts` out of `optimize.strategy`",
        )
    settings = context.settings.prompts
    split = inner_split(context.train, settings, context.seed)
    draws = _draws(context, split.train)
    bootstraps = settings.max_bootstrapped_demos > 0
    runs_teacher = _runs_teacher(settings, context.program, answer_labels(context.metric, context.accept))
    context.progress.begin(
        f"step {context.index} prompts", (len(split.train) if runs_teacher else 0) + len(draws) * len(split.val)
    )
    progress = _WithinStretch(context.progress)
    found = Bootstrapped(demos={})
    if runs_teacher:
        found = bootstrap(context, candidate, split.train, progress)
        found = found if bootstraps else replace(found, demos={})
        done = f"bootstrapped {len(found.demos)} of" if bootstraps else "inputs of labelled demos from"
        context.progress.say(
            f"step {context.index} prompts: {done} {len(found.traces)} traces"
            + (f", {found.failed} failed" if found.failed else "")
        )
        _say_cause(context, [trace.error for trace in found.traces if trace.error is not None])
    shows_labels = settings.max_labeled_demos > 0
    pool = _Pool(bootstrapped=found, labelled=labelled(context, split.train, found.traces) if shows_labels else {})
    scored = _score_all(context, candidate, pool, draws, split.val, progress)
    most = max(len(item.report.scores) for item in scored)
    finished = [item for item in scored if len(item.report.scores) == most]
    best = max(finished, key=lambda item: item.report.mean)  # the first of equals
    context.progress.say(f"step {context.index} prompts: chose {best.label}, {best.report.mean:.3f} on inner val")
    evidence = {
        "split": {"train": len(split.train), "val": len(split.val)},
        "bootstrap": _bootstrap_evidence(found),
        "candidates": [_evidence(item, most) for item in scored],
        "chosen": best.label,
        "racing": _racing_evidence(context, scored, most),
    }
    cut = [f"{len(draws) - len(scored)} of {len(draws)} candidates"] if len(scored) < len(draws) else []
    cut += [f"the race after {most} of {len(split.val)} examples"] if most < len(split.val) else []
    if cut:
        evidence["cut_short"] = cut
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
    draws: Sequence[_Draw],
    val: Sequence[Example],
    progress: Progress,
) -> list[_Scored]:
    """The candidates of all draws in order, raced over `val`; prompts that occur twice run once. Without those that did
    not fit the budget.
    """
    drawn = [_drawn(context, current, pool, draw) for draw in draws]
    labels: dict[str, str] = {}
    for draw, candidate in zip(draws, drawn, strict=True):
        labels.setdefault(candidate.id, draw.label)
    unique = list({candidate.id: candidate for candidate in reversed(drawn)}.values())[::-1]
    if repeated := len(drawn) - len(unique):
        progress.spare(repeated * len(val), f"{repeated} of {len(drawn)} candidates are as others")
    reports = _raced(context, unique, val, progress)
    if left_out := sum(candidate.id not in reports for candidate in drawn):
        context.progress.say(f"step {context.index} prompts: {left_out} candidates do not fit the budget")
    most = max(len(report.scores) for report in reports.values())
    for candidate in unique[: len(reports)]:
        report = reports[candidate.id]
        dropped = f", dropped after {len(report.scores)} of {len(val)}" if len(report.scores) < most else ""
        context.progress.say(
            f"step {context.index} prompts: {labels[candidate.id]} {report.mean:.3f} on inner val{dropped}"
            + (f", {len(report.failures)} failed" if report.failures else "")
        )
    _say_cause(context, [failure for report in reports.values() for _, failure in report.failures])
    if most < len(val):
        context.progress.say(
            f"step {context.index} prompts: the race ends after {most} of {len(val)} examples, for more do not fit the "
            "budget"
        )
    return [
        _Scored(
            label=draw.label,
            candidate=candidate,
            report=reports[candidate.id],
            same_as=None if labels[candidate.id] == draw.label else labels[candidate.id],
        )
        for draw, candidate in zip(draws, drawn, strict=True)
        if candidate.id in reports
    ]


def _say_cause(context: StepContext, failures: Sequence[Failure]) -> None:
    if failures:
        context.progress.say(f"  {most_frequent(failures)}")


def _drawn(context: StepContext, current: Candidate, pool: _Pool, draw: _Draw) -> Candidate:
    prompts = _prompts(context, current, pool, draw)
    return replace(
        current,
        id=candidate_id(prompts, current.adapters),
        prompts=prompts,
        parent=current.id,
        origin=f"step {context.index} prompts: {draw.label}",
    )


def _raced(
    context: StepContext, candidates: Sequence[Candidate], val: Sequence[Example], progress: Progress
) -> dict[str, Report]:
    """A report of each candidate that fitted the budget by id, over the examples of `val` that it met."""
    order = sorted(val, key=lambda example: (seed_of(context.seed, "race", example.id), example.id))
    parts: dict[str, list[Report]] = {candidate.id: [] for candidate in candidates}

    def score(running: Sequence[int], start: int, end: int) -> list[list[float]]:
        met = order[start:end]
        size = max(1, AT_ONCE // len(met))
        with context.budget.measured(len(running) * len(met)):
            reports = [
                report
                for first in range(0, len(running), size)
                for report in evaluate_together(
                    context.engine,
                    context.program,
                    [candidates[index] for index in running[first : first + size]],
                    met,
                    context.metric,
                    split="inner val",
                    seed=context.seed,
                    progress=progress,
                )
            ]
        tokens = [report.prompt_tokens + report.completion_tokens for report in reports]
        context.budget.dearer(max(tokens) * len(tokens) / max(1, sum(tokens)))
        for index, report in zip(running, reports, strict=True):
            parts[candidates[index].id].append(report)
        return [[value for _, value in report.scores] for report in reports]

    def goes_on(end: int, runs: int) -> bool:
        return context.budget.allows(f"step {context.index} up to example {end}, {runs} runs", runs)

    settings = context.settings.prompts
    asked = goes_on if context.budget.limited else None
    met = race(len(candidates), len(order), settings.racing, score, asked, settings.indifference)
    if spared := len(candidates) * len(order) - sum(map(len, met)):
        progress.spare(spared, "runs left out")
    places = {example.id: place for place, example in enumerate(val)}
    return {name: _joined(found, places, binary=context.metric.binary) for name, found in parts.items() if found}


def _joined(parts: Sequence[Report], places: Mapping[str, int], *, binary: bool) -> Report:
    """One report of the rounds of a candidate, in the order of val."""
    traces = sorted((trace for part in parts for trace in part.traces), key=lambda trace: places[trace.example])
    seconds = sum(part.seconds for part in parts)
    return report_of(traces, candidate=parts[0].candidate, split=parts[0].split, binary=binary, seconds=seconds)


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
    """Bootstrapped demos of the first accepted examples in the draw's order, then a seeded sample of labelled ones; of
    exact copies one.
    """
    solved = _distinct(example.id for example in draw.order if example.id in pool.bootstrapped.demos)
    accepted = dict(list(solved.items())[: draw.bootstrapped])
    demos = [
        pool.bootstrapped.demos[name][module] for name in accepted.values() if module in pool.bootstrapped.demos[name]
    ]
    known = pool.labelled.get(module, {})
    rest = [known[name] for content, name in _distinct(known).items() if content not in accepted]
    wanted = min(max(0, draw.labelled - len(demos)), len(rest))
    return (*demos, *random.Random(seed).sample(rest, wanted))


def _distinct(ids: Iterable[str]) -> dict[str, str]:
    """Content -> the first id of it."""
    found: dict[str, str] = {}
    for id in ids:
        found.setdefault(content_of(id), id)
    return found


def _evidence(item: _Scored, most: int) -> dict[str, Any]:
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
        **({} if len(item.report.scores) == most else {"dropped_after": len(item.report.scores)}),
    }


def _racing_evidence(context: StepContext, scored: Sequence[_Scored], most: int) -> dict[str, Any]:
    unique = [item for item in scored if item.same_as is None]
    met = sum(len(item.report.scores) for item in unique)
    return {"error": context.settings.prompts.racing, "runs": met, "without_racing": len(unique) * most}


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

    def spare(self, units: int, note: str) -> None:
        """Passed on."""
        self._outer.spare(units, note)

    def say(self, line: str) -> None:
        """Passed on."""
        self._outer.say(line)
