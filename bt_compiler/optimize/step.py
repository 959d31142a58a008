"""The seam between the strategy and its steps: what a step is given and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from bt_compiler.data.example import Example
from bt_compiler.engine.executor import Engine
from bt_compiler.engine.metrics import Metric
from bt_compiler.engine.progress import Progress
from bt_compiler.graph.candidate import Candidate
from bt_compiler.graph.program import Program
from bt_compiler.optimize.budget import Budget, Unlimited
from bt_compiler.optimize.journal import StepJournal
from bt_compiler.spec.sections import OptimizeSection


@dataclass(frozen=True, slots=True, kw_only=True)
class StepContext:
    """All that a step may look at. Executing is a function of these and the candidate alone."""

    index: int
    """Position in the strategy, from 1."""
    seed: int
    """`seed_of(compile seed, index)`: each step's own, so that Π→Π does not repeat Π."""
    program: Program
    zero_shot: Candidate
    """The spec's prompts on the base model."""
    engine: Engine
    train: tuple[Example, ...]
    metric: Metric
    """The spec's metric: chooses among candidates."""
    accept: Metric
    """The metric that judges traces to learn from, with `settings.accept.at_least`."""
    settings: OptimizeSection
    journal: StepJournal
    progress: Progress
    budget: Budget = field(default_factory=Unlimited)
    """Asked before work that can be left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """The candidate that goes on, and what the report shows of how it was found."""

    candidate: Candidate
    kind: str
    """`prompts` or `weights`."""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    """JSON values: candidates with scores, loss curves, rows by source. See the step's own module."""


class OptimizerStep(Protocol):
    """A step is a function of context and candidate."""

    def __call__(self, context: StepContext, candidate: Candidate) -> StepResult:
        """Runs the step; raises `CompileError` where there is nothing to learn from."""
        ...
