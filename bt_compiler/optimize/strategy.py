"""Runs a strategy, scores the candidate of every prefix on dev and ships the best.

Dev chooses among prefixes alone, the empty one included; ties go to the earliest. Where there is no dev split nothing
is left to choose by, and the whole strategy ships: the author asked for it. Test is scored once, for the zero-shot and
the shipped candidate. Source: BetterTogether (arXiv 2407.10930); but here every call of a step runs on the adapters of
the candidate it was given. A sweep of several strategies is made of the same parts (`Scores`, `extend`, `choose`).
Knows nothing of specs, backends or bundles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from bt_compiler.artifact.contents import Ancestor, Difference, StepFacts, Who
from bt_compiler.canonical import digest, seed_of
from bt_compiler.data.example import Example, Splits
from bt_compiler.engine.causes import most_frequent, tool_lines
from bt_compiler.engine.executor import Engine
from bt_compiler.engine.metrics import Metric, answer_labels
from bt_compiler.engine.progress import Progress
from bt_compiler.engine.scoring import evaluate
from bt_compiler.engine.statistics import paired_interval
from bt_compiler.engine.trace import Report
from bt_compiler.errors import CompileError
from bt_compiler.graph import candidate_id
from bt_compiler.graph.candidate import Candidate
from bt_compiler.graph.program import Program
from bt_compiler.optimize import cold_start, prompts
from bt_compiler.optimize.accounts import Account, AccountedStore
from bt_compiler.optimize.budget import LimitedBudget, Unlimited
from bt_compiler.optimize.demo_cost import demo_tokens
from bt_compiler.optimize.journal import StepJournal
from bt_compiler.optimize.step import OptimizerStep, StepContext, StepResult
from bt_compiler.spec.sections import OptimizeSection, StepKind

Choice = Literal["dev", "last"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategyTask:
    """All that a strategy is a function of."""

    program: Program
    zero_shot: Candidate
    engine: Engine
    store: AccountedStore
    """The engine's store: counts calls by step."""
    splits: Splits
    metric: Metric
    accept: Metric
    settings: OptimizeSection
    journal: StepJournal
    seed: int
    progress: Progress
    budget: LimitedBudget | Unlimited = field(default_factory=Unlimited)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """The candidate after the first steps of the strategy."""

    steps: tuple[StepKind, ...]
    """Empty: zero-shot."""
    candidate: Candidate
    dev: Report | None
    """None where there is no dev split."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategyResult:
    """Everything a strategy found."""

    prefixes: tuple[Prefix, ...]
    """From the empty one to the whole strategy."""
    shipped: int
    """Index into `prefixes`."""
    chosen_by: Choice
    """`dev`, or `last`: no dev split, the whole strategy ships."""
    steps: tuple[StepFacts, ...]
    reports: Mapping[Who, Mapping[str, Report]]
    differences: Mapping[str, Difference]
    left_out: tuple[StepKind, ...] = ()
    """Steps at the end of the strategy that no longer fitted the budget."""

    @property
    def candidate(self) -> Candidate:
        """The shipped one."""
        return self.prefixes[self.shipped].candidate

    @property
    def lineage(self) -> tuple[Ancestor, ...]:
        """From the spec's candidate to the shipped one, each with the one it was made from."""
        line = [prefix.candidate for prefix in self.prefixes[: self.shipped + 1]]
        return tuple(Ancestor(id=one.id, parent=one.parent, origin=one.origin) for one in line)


def weights_step(context: StepContext, candidate: Candidate) -> StepResult:
    """The weights step, imported late: a strategy without it loads no trainer."""
    from bt_compiler.optimize.weights import weights_step as step

    return step(context, candidate)


STEPS: Mapping[str, OptimizerStep] = {"prompts": prompts.prompts_step, "weights": weights_step}
"""Steps by the name that a spec's `strategy` knows them by."""


def run_strategy(task: StrategyTask, *, steps: Mapping[str, OptimizerStep] = STEPS) -> StrategyResult:
    """Runs `task.settings.strategy` in order. Raises CompileError where a step has nothing to learn from."""
    scores = Scores(task)
    prefixes = [zero_shot(task, scores)]
    first = prefixes[0].dev
    if not task.budget.informed:  # dev was in a cache: what has to be done anyway may tell what an example costs
        first = scores.test(task.zero_shot, "zero-shot") or first
        task.budget.release(len(task.splits.test))
    facts: list[StepFacts] = []
    strategy = task.settings.strategy
    for number, kind in enumerate(strategy):
        if not _fits(task, number, first):
            break
        longer = extend(task, scores, prefixes[-1], kind, steps)
        prefixes.append(longer.prefix)
        facts.append(longer.facts)
    shipped, chosen_by = choose(prefixes)
    name = " → ".join(prefixes[shipped].steps) or "zero-shot"
    task.progress.say(f"ships {name}" + ("" if chosen_by == "dev" else " (no dev split to choose a prefix by)"))
    reports = _reports(scores, prefixes[0], prefixes[shipped])
    return StrategyResult(
        prefixes=tuple(prefixes),
        shipped=shipped,
        chosen_by=chosen_by,
        steps=tuple(facts),
        reports=reports,
        differences=_differences(reports, binary=task.metric.binary),
        left_out=strategy[len(facts) :],
    )


def _fits(task: StrategyTask, number: int, first: Report | None) -> bool:
    """Whether step `number` (from 0) fits the budget; `first`: the zero-shot program's report. Raises CompileError
    (BTC466) where the first does not.
    """
    kind, left = task.settings.strategy[number], len(task.settings.strategy) - number
    name = f"step {number + 1} {kind}"
    if kind == "prompts" and first is not None:
        _expect_demos(task, first)
    least = _least_runs(task, kind)
    if task.budget.begin(name, steps_left=left, examples=least.runs, with_demos=least.with_demos):
        return True
    if number == 0 and isinstance(task.budget, LimitedBudget):
        raise task.budget.too_small(kind)
    task.progress.say(f"the budget ends before {name}")
    return False


def _least_runs(task: StrategyTask, kind: StepKind) -> prompts.LeastRuns:
    """Runs of an example below which step `kind` need not begin; of no use where nothing is limited."""
    train = task.splits.train
    if not train or not task.budget.limited:
        return prompts.LeastRuns(0)
    if kind == "weights":
        return prompts.LeastRuns(cold_start.least_runs(task.settings, train))
    return prompts.least_runs(task.settings.prompts, train, task.program, answer_labels(task.metric, task.accept))


def _expect_demos(task: StrategyTask, first: Report) -> None:
    """Tells the budget what an example may cost with demos; the zero-shot program has told what it costs without."""
    train, splits = task.splits.train, task.splits
    if not train or not task.budget.limited:
        return
    added = demo_tokens(
        task.program,
        task.zero_shot,
        task.engine,
        traces=first.traces,
        examples=(*splits.dev, *splits.test),
        labels=answer_labels(task.metric, task.accept),
    )
    most = prompts.most_demos(task.settings.prompts, train)
    task.budget.expects({model: most * tokens for model, tokens in added.items()})


class Extended(NamedTuple):
    """A prefix that is one step longer, and the step that made it so."""

    prefix: Prefix
    facts: StepFacts


def zero_shot(task: StrategyTask, scores: Scores) -> Prefix:
    """The empty prefix, scored on dev."""
    return Prefix(steps=(), candidate=task.zero_shot, dev=scores.dev(task.zero_shot, "zero-shot"))


def extend(
    task: StrategyTask, scores: Scores, before: Prefix, kind: StepKind, steps: Mapping[str, OptimizerStep] = STEPS
) -> Extended:
    """Runs step `kind` on the candidate of `before` and scores what comes of it on dev.

    The step's index is its place in the strategy, and its seed follows from that. Raises CompileError where it has
    nothing to learn from.
    """
    index = len(before.steps) + 1
    result, account = _run_step(task, steps[kind], index, before.candidate)
    done = (*before.steps, kind)
    report = scores.dev(result.candidate, " → ".join(done))
    return Extended(Prefix(steps=done, candidate=result.candidate, dev=report), _facts(index, result, account))


def _run_step(task: StrategyTask, step: OptimizerStep, index: int, candidate: Candidate) -> tuple[StepResult, Account]:
    context = StepContext(
        index=index,
        seed=seed_of(task.seed, index),
        program=task.program,
        zero_shot=task.zero_shot,
        engine=task.engine,
        train=task.splits.train,
        metric=task.metric,
        accept=task.accept,
        settings=task.settings,
        journal=task.journal,
        progress=task.progress,
        budget=task.budget,
    )
    if not task.splits.train:
        raise CompileError.of(
            "BTC451",
            f"step {index} of the strategy, `{task.settings.strategy[index - 1]}`, has no train examples",
            help="give `data` a train split, or set `optimize.strategy: []` to bundle the program as it is",
        )
    before = task.store.account()
    result = step(context, candidate)
    spent = task.store.account().minus(before)
    # What the step cost when it first came to this result: a replay from the journal costs nothing and would say so.
    # With another budget it may come to another, which other calls have given.
    name = f"account {digest(result.evidence)[:24]}"
    return result, Account.from_json(task.journal.step_memo(index, name, spent.to_json))


def _facts(index: int, result: StepResult, account: Account) -> StepFacts:
    return StepFacts(
        index=index,
        kind=result.kind,
        candidate=result.candidate.id,
        evidence=result.evidence,
        seconds=account.seconds,
        calls=account.calls,
        cached_calls=account.cached_calls,
        prompt_tokens=account.prompt_tokens,
        completion_tokens=account.completion_tokens,
    )


def choose(prefixes: Sequence[Prefix]) -> tuple[int, Choice]:
    """Index of the prefix that ships, and by what: best mean on dev, ties to the earliest."""
    best, best_score = 0, -1.0
    for index, prefix in enumerate(prefixes):
        if prefix.dev is None:
            return len(prefixes) - 1, "last"
        if prefix.dev.mean > best_score:
            best, best_score = index, prefix.dev.mean
    return best, "dev"


class Scores:
    """Scores candidates on dev and test, each content of a candidate once."""

    def __init__(self, task: StrategyTask, *, before: Scores | None = None, keep_traces: bool = True) -> None:
        """`before`: scores of a shorter prefix, which are known already."""
        self._task = task
        self._seen: dict[tuple[str, str], Report] = {} if before is None else dict(before._seen)
        self._keep_traces = keep_traces

    def dev(self, candidate: Candidate, name: str) -> Report | None:
        """None where there is no dev split."""
        return self._score("dev", self._task.splits.dev, candidate, name)

    def test(self, candidate: Candidate, name: str) -> Report | None:
        """None where there is no test split."""
        return self._score("test", self._task.splits.test, candidate, name)

    def _score(self, split: str, examples: Sequence[Example], candidate: Candidate, name: str) -> Report | None:
        if not examples:
            return None
        task = self._task
        key = (split, candidate_id(candidate.prompts, candidate.adapters))
        if key not in self._seen:
            task.progress.begin(f"scoring {name} on {split}", len(examples))
            with task.budget.measured(len(examples)):
                found = evaluate(
                    task.engine,
                    task.program,
                    candidate,
                    examples,
                    task.metric,
                    split=split,
                    seed=task.seed,
                    progress=task.progress,
                )
            self._seen[key] = found if self._keep_traces else replace(found, traces=())
        report = self._seen[key]
        interval = report.interval
        task.progress.say(
            f"{name}: {split} {report.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}], n={len(report.scores)}"
            + (f", {len(report.failures)} failed" if report.failures else "")
        )
        if report.failures:
            every = "warning: every example failed: " if len(report.failures) == len(report.scores) else ""
            task.progress.say(f"  {every}{most_frequent([failure for _, failure in report.failures])}")
        if report.tool_failures:
            task.progress.say(
                f"  {report.tool_errors} tool calls failed, most often {tool_lines(report.tool_failures)[0]}"
            )
        return report


def _reports(scores: Scores, first: Prefix, shipped: Prefix) -> dict[Who, dict[str, Report]]:
    reports: dict[Who, dict[str, Report]] = {"zero_shot": {}, "shipped": {}}
    named: tuple[tuple[Who, str, Prefix], ...] = (("zero_shot", "zero-shot", first), ("shipped", "shipped", shipped))
    for who, name, prefix in named:
        if prefix.dev is not None:
            reports[who]["dev"] = prefix.dev
        test = scores.test(prefix.candidate, name)
        if test is not None:
            reports[who]["test"] = test
    return reports


def _differences(reports: Mapping[Who, Mapping[str, Report]], *, binary: bool) -> dict[str, Difference]:
    found: dict[str, Difference] = {}
    for split, shipped in reports["shipped"].items():
        zero = reports["zero_shot"][split]
        interval = paired_interval([score for _, score in shipped.scores], [score for _, score in zero.scores], binary)
        found[split] = Difference(mean=shipped.mean - zero.mean, interval=interval)
    return found
