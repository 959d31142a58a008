"""Several strategies over several seeds, every prefix that they share computed once.

The strategies form a trie: Π→Θ and Π→Θ→Π are one path, and its first two steps are run, and scored, once. A step is
a function of its place in the strategy, the seed and the candidate it is given, so that a shared prefix is exactly the
step that each strategy would have run by itself, and Π→Π is no repetition of Π. The trie is walked in an order of its
own: which strategies were named, and in what order, changes no number. Knows nothing of specs, models or tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from bt_compiler.artifact.contents import StepFacts
from bt_compiler.artifact.report import strategy_label
from bt_compiler.diagnostics import Diagnostic
from bt_compiler.engine.trace import Report
from bt_compiler.errors import BackendError, CompileError
from bt_compiler.optimize.step import OptimizerStep
from bt_compiler.optimize.strategy import (
    STEPS,
    Choice,
    Prefix,
    Scores,
    StrategyTask,
    choose,
    extend,
    zero_shot,
)
from bt_compiler.spec.sections import StepKind

Strategy = tuple[StepKind, ...]
TaskOf = Callable[[int, Strategy], StrategyTask]
"""Gives the task of one prefix at one seed; its `settings.strategy` is that prefix."""

_NOT_SERVED = ("BTC409", "BTC591")
"""What an engine says of weights that were trained and that it cannot run: another strategy may do."""
P: StepKind = "prompts"
T: StepKind = "weights"
PAPER: tuple[Strategy, ...] = ((), (P,), (T,), (P, P), (T, T), (P, T), (T, P), (P, T, P), (T, P, T))
"""Table 1 of arXiv 2407.10930 in its order, and Θ→Π→Θ, which it lacks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One strategy at one seed."""

    strategy: Strategy
    seed: int
    prefixes: tuple[Prefix, ...] = ()
    """From the empty one to the whole strategy; as far as it came where it failed."""
    steps: tuple[StepFacts, ...] = ()
    """One for each prefix but the empty one."""
    reports: Mapping[str, Report] = field(default_factory=dict)
    """By split, of the whole strategy: what the paper's table shows."""
    shipped: int = 0
    """Index into `prefixes`: what a compile of this strategy ships."""
    chosen_by: Choice = "dev"
    shipped_reports: Mapping[str, Report] = field(default_factory=dict)
    failure: Diagnostic | None = None
    """Why the strategy could not be run to its end; it has no reports then."""
    failed_at: Strategy = ()
    """The prefix that could not be made."""


def in_order(strategies: Iterable[Strategy]) -> tuple[Strategy, ...]:
    """Each once, in the order of the paper's table, others after it by length."""
    known = {strategy: place for place, strategy in enumerate(PAPER)}
    return tuple(sorted(set(strategies), key=lambda one: (known.get(one, len(PAPER)), len(one), one)))


def run_sweep(
    strategies: Iterable[Strategy],
    seeds: Iterable[int],
    task_of: TaskOf,
    *,
    steps: Mapping[str, OptimizerStep] = STEPS,
) -> tuple[Cell, ...]:
    """A cell for every strategy and seed: strategies as `in_order`, seeds ascending within each.

    A step that has nothing to learn from fails the strategies that go through it, and the others go on. Raises
    CompileError BTC46x where the journal cannot be used.
    """
    ordered = in_order(strategies)
    trie = _trie(ordered)
    found: dict[tuple[Strategy, int], Cell] = {}
    for seed in sorted(set(seeds)):
        walk = _Walk(seed, task_of, steps)
        for cell in walk.cells(trie, (walk.root(),)):
            found[cell.strategy, seed] = cell
    return tuple(found[strategy, seed] for strategy in ordered for seed in sorted(set(seeds)))


@dataclass(slots=True)
class _Trie:
    """Strategies by their steps; `named` where one ends."""

    named: bool = False
    longer: dict[StepKind, _Trie] = field(default_factory=dict)

    def strategies(self, before: Strategy) -> Iterator[Strategy]:
        """All that end here or further on."""
        if self.named:
            yield before
        for kind in sorted(self.longer):
            yield from self.longer[kind].strategies((*before, kind))


def _trie(strategies: Iterable[Strategy]) -> _Trie:
    root = _Trie()
    for strategy in strategies:
        place = root
        for kind in strategy:
            place = place.longer.setdefault(kind, _Trie())
        place.named = True
    return root


class _Node(NamedTuple):
    """A prefix that was made, with the scores known by then; `facts` is None for the empty one."""

    prefix: Prefix
    scores: Scores
    facts: StepFacts | None


class _Walk(NamedTuple):
    """One walk through the trie at one seed."""

    seed: int
    task_of: TaskOf
    steps: Mapping[str, OptimizerStep]

    def root(self) -> _Node:
        task = self.task_of(self.seed, ())
        task.progress.say(f"seed {self.seed}: vanilla")
        scores = Scores(task, keep_traces=False)
        return _Node(zero_shot(task, scores), scores, None)

    def cells(self, trie: _Trie, chain: tuple[_Node, ...]) -> Iterator[Cell]:
        """Cells of all strategies that begin with the last prefix of `chain`."""
        if trie.named:
            yield self._cell(chain)
        done = chain[-1].prefix.steps
        for kind in sorted(trie.longer):
            try:
                node = self._extended(chain[-1], kind)
            except (CompileError, BackendError) as error:
                if not _of_the_step(error):
                    raise
                yield from self._failed(trie.longer[kind], chain, (*done, kind), error.diagnostics[0])
                continue
            yield from self.cells(trie.longer[kind], (*chain, node))

    def _extended(self, before: _Node, kind: StepKind) -> _Node:
        steps = (*before.prefix.steps, kind)
        task = self.task_of(self.seed, steps)
        task.progress.say(f"seed {self.seed}: {strategy_label(steps)}")
        scores = Scores(task, before=before.scores, keep_traces=False)
        prefix, facts = extend(task, scores, before.prefix, kind, self.steps)
        return _Node(prefix, scores, facts)

    def _cell(self, chain: Sequence[_Node]) -> Cell:
        prefixes = [node.prefix for node in chain]
        shipped, chosen_by = choose(prefixes)
        return Cell(
            strategy=prefixes[-1].steps,
            seed=self.seed,
            prefixes=tuple(prefixes),
            steps=tuple(node.facts for node in chain if node.facts is not None),
            reports=_reports(chain[-1]),
            shipped=shipped,
            chosen_by=chosen_by,
            shipped_reports=_reports(chain[shipped]),
        )

    def _failed(self, trie: _Trie, chain: Sequence[_Node], at: Strategy, why: Diagnostic) -> Iterator[Cell]:
        self.task_of(self.seed, at).progress.say(f"seed {self.seed}: {strategy_label(at)} cannot run: {why.message}")
        for strategy in trie.strategies(at):
            yield Cell(
                strategy=strategy,
                seed=self.seed,
                prefixes=tuple(node.prefix for node in chain),
                steps=tuple(node.facts for node in chain if node.facts is not None),
                failure=why,
                failed_at=at,
            )


def _reports(node: _Node) -> dict[str, Report]:
    """Dev, known already, and test, scored now where this candidate was not before."""
    name = strategy_label(node.prefix.steps)
    found = {"dev": node.prefix.dev, "test": node.scores.test(node.prefix.candidate, name)}
    return {split: report for split, report in found.items() if report is not None}


def _of_the_step(error: CompileError | BackendError) -> bool:
    """Whether it says that this strategy cannot run, and nothing of the journal or of engines that are gone."""
    code = error.diagnostics[0].code
    return code in _NOT_SERVED if isinstance(error, BackendError) else not code.startswith("BTC46")
