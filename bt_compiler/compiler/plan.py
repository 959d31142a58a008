"""`btc plan`: the graph, and what a compile will have to do: LM calls, tokens, training steps; and what is there.

Counts are upper bounds: equal prompts are asked once, and a source of rows is asked only for what earlier ones could
not solve; a switch is taken to run its dearest case. Training rows are the exception: one a call and example, where
`sampled` may accept several, and rows of rare answers are copied. No model is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bt_compiler.compiler.check import CheckedSpec
from bt_compiler.compiler.estimate import CallEstimate, estimate_calls, estimate_judges
from bt_compiler.engine.cache import CompletionCache, cache_path, cache_root
from bt_compiler.graph import Program, dearest, program_text
from bt_compiler.optimize.cold_start import runs_of
from bt_compiler.optimize.inner import inner_split
from bt_compiler.optimize.journal import journal_folder
from bt_compiler.optimize.rows import MAX_COPIES
from bt_compiler.spec.sections import WeightsSection

SCHEMA = 1
_BOUNDS = (
    "counts are upper bounds (a switch runs its dearest case), tokens are estimates; training rows may be more: "
    f"several samples of an example, and rows of rare answers up to {MAX_COPIES} times"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stretch of a compile."""

    name: str
    runs: int
    """Runs of the program on one example, at most."""
    calls: int
    """LM calls, at most."""
    prompt_tokens: int
    """Estimated, of all calls; what prompts share is computed once and counted each time."""
    completion_tokens: int
    training_rows: int = 0
    training_steps: int = 0
    """Optimiser steps, at most."""
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """The calls of one run of the program."""

    program: Program
    by_node: Mapping[str, tuple[CallEstimate, ...]]
    judging: tuple[CallEstimate, ...]

    @property
    def calls(self) -> tuple[CallEstimate, ...]:
        """All that may happen, of a switch those of every case."""
        return (*(call for calls in self.by_node.values() for call in calls), *self.judging)

    def most(self, cost: Callable[[CallEstimate], float]) -> float:
        """The sum of `cost` over the calls that happen, at most."""
        own = {path: sum(map(cost, calls)) for path, calls in self.by_node.items()}
        return dearest(self.program, own) + sum(map(cost, self.judging))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What a file of completions holds."""

    path: str
    entries: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What `btc plan` shows."""

    name: str
    graph: str
    """`program_text` of the program and its judges."""
    splits: dict[str, int]
    models: dict[str, str]
    """Name in the spec -> id."""
    calls: tuple[CallEstimate, ...]
    stages: tuple[Stage, ...]
    cache: Stored | None
    """The machine's completion cache; None: there is none yet."""
    journal: Stored | None
    """The journal of an unfinished compile into the same folder."""

    def to_json(self) -> dict[str, Any]:
        """JSON values with schema version and totals."""
        return {"schema": SCHEMA, **asdict(self), "total": asdict(_total(self.stages))}

    def to_text(self) -> str:
        """For people; ends without a line break."""
        lines = [self.graph, self._data_line(), ""]
        lines.append(f"{'call':<20} {'visits':>6} {'prompt':>7} {'+ demo':>7} {'completion':>11}   tokens, estimated")
        lines += [
            f"{call.node:<20} {call.visits:>6} {call.prompt_tokens:>7} "
            f"{call.demo_tokens:>7} {call.completion_tokens:>11}"
            for call in self.calls
        ]
        lines += ["", f"{'stage':<24} {'LM calls':>9} {'prompt tok.':>12} {'completion':>11} {'train steps':>12}"]
        lines += [_stage_line(stage) for stage in (*self.stages, _total(self.stages))]
        lines += ["", _BOUNDS]
        lines += [_stored_line("completion cache", self.cache, "empty")]
        if self.journal is not None:
            lines.append(_stored_line("unfinished compile", self.journal, ""))
        return "\n".join(lines)

    def _data_line(self) -> str:
        splits = " / ".join(f"{count} {name}" for name, count in self.splits.items())
        models = ", ".join(f"{name} = {id}" for name, id in self.models.items())
        return f"data {splits}\nmodel {models}"


def _total(stages: Sequence[Stage]) -> Stage:
    return Stage(
        name="total",
        runs=sum(stage.runs for stage in stages),
        calls=sum(stage.calls for stage in stages),
        prompt_tokens=sum(stage.prompt_tokens for stage in stages),
        completion_tokens=sum(stage.completion_tokens for stage in stages),
        training_rows=sum(stage.training_rows for stage in stages),
        training_steps=sum(stage.training_steps for stage in stages),
    )


def _stage_line(stage: Stage) -> str:
    steps = f"{stage.training_steps:,}" if stage.training_steps else "-"
    line = f"{stage.name:<24} {stage.calls:>9,} {stage.prompt_tokens:>12,} {stage.completion_tokens:>11,} {steps:>12}"
    return f"{line}   {stage.detail}" if stage.detail else line


def _stored_line(what: str, stored: Stored | None, otherwise: str) -> str:
    if stored is None:
        return f"{what}: {otherwise}"
    return f"{what}: {stored.entries:,} completions, {stored.bytes / 1e6:.1f} MB ({stored.path})"


def plan(checked: CheckedSpec, *, out: Path | None = None) -> Plan:
    """What compiling `checked` into `out` (None: `artifacts/NAME`) needs. Raises BackendError BTC36x where the
    completion cache cannot be read.
    """
    program, sections = checked.program, checked.sections
    judges = list({judge.module.name: judge.module for judge in checked.judges.values()}.values())
    names = {module.model for module in (*program.modules, *judges)}
    folder = (out or Path("artifacts") / program.name).absolute()
    judging = estimate_judges(checked.judges, program, checked.splits.train)
    by_node = estimate_calls(program, sections, checked.splits.train)
    run = _Run(program=program, by_node=by_node, judging=judging)
    return Plan(
        name=program.name,
        graph=program_text(program, judges),
        splits={name: len(part) for name, part in checked.splits._asdict().items()},
        models={model.name: model.id for model in sections.models if model.name in names},
        calls=run.calls,
        stages=(*_stages(checked, run), *_ratings(checked, run)),
        cache=_stored(cache_path(cache_root(os.environ))),
        journal=_unfinished(journal_folder(folder)),
    )


def _stored(path: Path) -> Stored | None:
    if not _is_there(path):
        return None
    cache = CompletionCache(path, None)
    try:
        found = cache.statistics()
    finally:
        cache.close()
    return Stored(path=found["path"], entries=found["entries"], bytes=found["bytes"])


def _unfinished(journal: Path) -> Stored | None:
    return None if _is_there(journal / "finished.json") else _stored(journal / "completions.sqlite")


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # in a folder that may not be entered, or of a name too long: nothing of ours is there
        return False


def _stages(checked: CheckedSpec, run: _Run) -> list[Stage]:
    strategy, splits = checked.sections.optimize.strategy, checked.splits
    stages = []
    if splits.dev:
        stages.append(_runs("zero-shot on dev", len(splits.dev), run))
    most_demos = 0
    for index, kind in enumerate(strategy, 1):
        if kind == "prompts":
            settings = checked.sections.optimize.prompts
            most_demos = max(settings.max_bootstrapped_demos, settings.max_labeled_demos)
            stages.append(_prompts_stage(checked, run, index, most_demos))
        else:
            stages.append(_weights_stage(checked, run, index, most_demos))
        if splits.dev:
            stages.append(_runs(f"prefix {index} on dev", len(splits.dev), run, demos=most_demos))
    if splits.test:
        detail = "zero-shot and shipped"
        stages.append(_runs("test", 2 * len(splits.test), run, demos=most_demos / 2, detail=detail))
    return stages


def _ratings(checked: CheckedSpec, run: _Run) -> list[Stage]:
    """A judge is asked about the outputs that people have rated too."""
    asked = zip(run.judging, checked.judges.values(), strict=True)
    return [
        _runs("judge on ratings", rated, replace(run, by_node={}, judging=(call,)))
        for call, judge in asked
        if (rated := checked.rated(judge))
    ]


def _runs(name: str, runs: int, run: _Run, *, demos: float = 0, detail: str = "", more: int = 0) -> Stage:
    """`runs` runs of the program with `demos` demos a module, and `more` calls of its mean size."""
    each = round(run.most(lambda call: call.visits))
    prompt = run.most(lambda call: call.visits * (call.prompt_tokens + demos * call.demo_tokens))
    completion = run.most(lambda call: call.visits * call.completion_tokens)
    scale = runs + more / max(1, each)
    return Stage(
        name=name,
        runs=runs,
        calls=runs * each + more,
        prompt_tokens=round(prompt * scale),
        completion_tokens=round(completion * scale),
        detail=detail,
    )


def _prompts_stage(checked: CheckedSpec, run: _Run, index: int, demos: int) -> Stage:
    settings = checked.sections.optimize.prompts
    inner = inner_split(checked.splits.train, settings, seed=0)
    candidates = 3 + settings.candidates
    inside = settings.max_labeled_demos and len(checked.program.nodes) > 1  # inputs of labelled demos
    teacher = len(inner.train) if settings.max_bootstrapped_demos or inside else 0
    detail = f"bootstrap {teacher} + {candidates} candidates x {len(inner.val)}"
    runs = teacher + candidates * len(inner.val)
    return _runs(f"step {index} prompts", runs, run, demos=demos * (candidates - 1) / candidates, detail=detail)


def _weights_stage(checked: CheckedSpec, run: _Run, index: int, demos: int) -> Stage:
    optimize, train = checked.sections.optimize, len(checked.splits.train)
    weights = optimize.weights
    inner = inner_split(checked.splits.train, optimize.prompts, seed=0)
    tracing = train * sum(runs_of(source, weights) for source in weights.sources if source not in ("gold", "hinted"))
    labels = {"gold", "hinted"} & set(weights.sources) and len(checked.program.nodes) > 1  # inputs from inside
    if "self" not in weights.sources and (labels or weights.preference is not None):
        tracing += train
    reasoning = [module for module in checked.program.modules if module.kind == "chain_of_thought"]
    hints = train * runs_of("hinted", weights) * len(reasoning) if "hinted" in weights.sources else 0
    written = any(module.demos for module in checked.program.modules)
    scoring = (2 if index > 1 or written else 1) * len(inner.val)
    rows, steps = _training(checked, run, weights)
    stage = _runs(
        f"step {index} weights",
        tracing + scoring,
        run,
        demos=demos,
        more=hints,
        detail=f"traces {tracing}, scoring {scoring}, {rows} rows x {weights.epochs} epochs"
        + ("" if weights.method == "lora" else f", {weights.method}")
        + ("" if weights.preference is None else ", preference pairs")
        + ("" if weights.quantize is None else ", base in 4 bits")
        + ("" if weights.launch is None else ", under accelerate"),
    )
    return Stage(**{**asdict(stage), "training_rows": rows, "training_steps": steps})


def _training(checked: CheckedSpec, run: _Run, weights: WeightsSection) -> tuple[int, int]:
    """(rows, optimiser steps) if every train example gives all its rows; copies for balance are not counted."""
    learnt = len(checked.splits.train) - round(len(checked.splits.train) * weights.validation)
    trainable = {module.name for module in checked.program.modules if "weights" in module.train}

    def rows_of(modules: Collection[str]) -> int:
        return learnt * round(run.most(lambda call: call.visits * (call.learnt and call.module in modules)))

    rows = rows_of(trainable)
    lessons = [rows_of({module}) for module in trainable] if weights.adapters == "per_module" else [rows]
    lessons = [one for one in lessons if one]
    # adapters of different cases cannot all have all the rows: each has one batch that is not full, at most
    batches = min(
        sum(-(-one // weights.batch) for one in lessons), (rows + len(lessons) * (weights.batch - 1)) // weights.batch
    )
    return rows, batches * weights.epochs
