"""The current candidate's own runs of train examples: each is made and judged once a step, whoever looks at them.

Sources of rows, labels of modules inside the program and preference pairs start from the same runs. Asking anew would
be answered by the journal, but tools and retrievers would run again, and reports and budgets would count it again.
Knows nothing of rows.
"""

from __future__ import annotations

from collections.abc import Sequence

from bt_compiler.data.example import Example
from bt_compiler.engine.scoring import score_traces
from bt_compiler.engine.trace import Trace
from bt_compiler.graph.candidate import Candidate
from bt_compiler.optimize.step import StepContext


class OwnRuns:
    """Runs of `candidate`: one of each example as the program answers it, or `sampled`, `weights.samples` of them at
    `weights.temperature`.
    """

    def __init__(self, context: StepContext, candidate: Candidate) -> None:
        self._context = context
        self._candidate = candidate
        self._made: dict[bool, dict[str, list[Trace]]] = {False: {}, True: {}}

    def fit(self, name: str, examples: Sequence[Example], *, sampled: bool = False) -> bool:
        """Whether those that are not made yet fit the budget, which knows the question by `name`."""
        runs = len(self._missing(examples, sampled)) * self._repeats(sampled)
        return runs == 0 or self._context.budget.allows(f"step {self._context.index} {name}", runs)

    def traces(self, examples: Sequence[Example], *, sampled: bool = False) -> list[Trace]:
        """Traces in the order of `examples`, those of one in the order they were drawn; a few may have been judged."""
        context, made = self._context, self._made[sampled]
        if missing := self._missing(examples, sampled):
            runs = len(missing) * self._repeats(sampled)
            context.progress.begin("bootstrapping rows", runs)
            with context.budget.measured(runs):
                found = context.engine.run(
                    context.program,
                    self._candidate,
                    missing,
                    seed=context.seed,
                    repeats=self._repeats(sampled),
                    temperature=context.settings.weights.temperature if sampled else None,
                    leave_own_demo_out=True,
                    progress=context.progress,
                )
            for trace in found:
                made.setdefault(trace.example, []).append(trace)
        return [trace for example in examples for trace in made[example.id]]

    def judged(self, examples: Sequence[Example], *, sampled: bool = False) -> list[Trace]:
        """As `traces`, each with its score by the accept metric."""
        context, made = self._context, self._made[sampled]
        unscored = [trace for trace in self.traces(examples, sampled=sampled) if trace.score is None]
        scored: dict[str, list[Trace]] = {}
        for trace in score_traces(unscored, examples, context.accept, context.engine):
            scored.setdefault(trace.example, []).append(trace)
        made.update(scored)
        return self.traces(examples, sampled=sampled)

    def _missing(self, examples: Sequence[Example], sampled: bool) -> list[Example]:
        return [example for example in examples if example.id not in self._made[sampled]]

    def _repeats(self, sampled: bool) -> int:
        return self._context.settings.weights.samples if sampled else 1
