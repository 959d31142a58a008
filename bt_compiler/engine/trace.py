"""What executing a program leaves behind: steps, traces and the report over a split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bt_compiler.data.example import Example
from bt_compiler.engine.request import Completion, PromptText


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One visit of one node."""

    node: str
    """Path of names from the top: `hops/hop`; a tool that a `react` call asks has its name after the call's."""
    visit: tuple[int, ...] = ()
    """Zero-based visit of every enclosing loop, element of every map, run of every sample and turn of a `react` call;
    empty outside them.
    """
    module: str | None = None
    """Module called; None for retrievers and tools."""
    inputs: Mapping[str, Any]
    prompt: PromptText | None = None
    completion: Completion | None = None
    besides: tuple[Completion, ...] = ()
    """What it took besides: answers outside the grammar, and how likely the model found its answer."""
    outputs: Mapping[str, Any] | None = None
    """None where the step failed."""
    picked: bool = True
    """False in runs of a `sample` that gave something else than what was picked: nothing is learnt from those."""
    forced: bool = False
    """True for the turn of a `react` module that could only finish, for it had no tool call left."""
    error: str | None = None
    """Why a tool failed that a `react` module called: the module was told, and went on."""

    @property
    def completions(self) -> tuple[Completion, ...]:
        """All that the step cost."""
        return self.besides if self.completion is None else (*self.besides, self.completion)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why an example failed."""

    code: str
    message: str
    node: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """One run of the program on one example."""

    example: str
    """Id of the example."""
    repeat: int = 0
    """Which of several samples of the same example."""
    steps: tuple[Step, ...]
    outputs: Mapping[str, Any] | None
    error: Failure | None = None
    score: float | None = None
    """None until a metric has judged it; 0 for a failed run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A confidence interval."""

    low: float
    high: float
    level: float = 0.95
    method: str = "wilson"


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """What a judge says of the data's own labels, and how far it is from people's ratings of them."""

    examples: int
    """Labelled outputs that were judged."""
    failed: int
    """Of these, without a verdict."""
    mean: float | None
    """Mean score of the labelled outputs."""
    rated: int
    """Of these, with a person's rating."""
    off_scale: int
    """Ratings that lie outside the judge's scale, and are compared with nothing."""
    equal: float | None
    """Share of the rated on which judge and person say the same."""
    difference: float | None
    """Mean distance of the two, on the scale from 0 to 1."""
    kappa: float | None
    """Cohen's kappa; None where it is not defined."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFailure:
    """Why calls of a tool by `react` modules failed."""

    tool: str
    message: str
    """Code and message, as `Step.error`."""
    calls: int
    """How many failed so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One candidate on one split. Calls, tokens and seconds are accounting, outside any digest."""

    candidate: str
    split: str
    scores: tuple[tuple[str, float], ...]
    """(example id, score) in the order of the split."""
    mean: float
    interval: Interval
    failures: tuple[tuple[str, Failure], ...] = ()
    tool_errors: int = 0
    """Calls of tools by `react` modules that failed; the modules were told and went on."""
    tool_failures: tuple[ToolFailure, ...] = ()
    """The same by tool and message, the most frequent first."""
    calls: int = 0
    cached_calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    agreement: Agreement | None = None
    """Of the judge among the metrics; None where there is none, or nothing to compare."""
    traces: tuple[Trace, ...] = field(default=(), compare=False, repr=False)
    examples: tuple[Example, ...] = field(default=(), compare=False, repr=False)
    """Of `btc eval`: what was scored, in the order of `scores` and `traces`."""
