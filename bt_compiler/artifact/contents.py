"""What a compile hands over to be written as a bundle, and what of it only the report shows.

Plain values: knows nothing of files, digests or pages.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bt_compiler.engine.request import PromptText
from bt_compiler.engine.scoring import Confusion
from bt_compiler.engine.trace import Agreement, Interval, Report, Trace
from bt_compiler.graph.candidate import Candidate
from bt_compiler.graph.program import Program

Who = Literal["zero_shot", "shipped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """One model of the spec as the compile found it."""

    id: str
    """As the spec names it."""
    engine: str
    digest: str | None
    """Of the base weights; None for a remote, whose weights are not at hand."""
    dtype: str
    revision: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    """`Backend.facts()`: tier, threads, device, row invariance. Shown, outside the digest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitFacts:
    """What the data of one split were."""

    examples: int
    digest: str
    """Over the ids of its examples, in order: `digest([example.id, …])`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ancestor:
    """One candidate on the way to the shipped one."""

    id: str
    parent: str | None
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """A prefix of the strategy and how its candidate did on dev."""

    steps: tuple[str, ...]
    """Empty: zero-shot."""
    candidate: str
    report: Report | None
    """None where there is no dev split."""
    chosen: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFacts:
    """One step of the strategy: `StepResult.evidence` and what it cost."""

    index: int
    """From 1."""
    kind: str
    candidate: str
    """Id of the candidate it gave."""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    """Of the session that finished it."""
    calls: int = 0
    cached_calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Shipped less zero-shot on the same examples of a split."""

    mean: float
    interval: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleContents:
    """A finished compile."""

    spec_yaml: str
    """The resolved spec as YAML (`Spec.resolved()`)."""
    spec_identity: Mapping[str, Any]
    """`Spec.identity()`."""
    program: Program
    candidate: Candidate
    """The shipped one; its adapters lie anywhere on this machine."""
    formats: Mapping[str, str]
    """`Module.format` -> text of the format file, for every format that a module or judge uses."""
    judges: Mapping[str, str] = field(default_factory=dict)
    """Module that a metric calls -> its `Module.format`."""
    sent: Mapping[str, PromptText]
    """Module -> a prompt exactly as sent (`sent_prompts`)."""
    reports: Mapping[Who, Mapping[str, Report]]
    """`zero_shot` and `shipped`, each by split: `dev`, `test`."""
    differences: Mapping[str, Difference] = field(default_factory=dict)
    """By split."""
    lineage: tuple[Ancestor, ...] = ()
    """From the spec's candidate to the shipped one."""
    data: Mapping[str, SplitFacts]
    """By split."""
    retrievers: Mapping[str, str] = field(default_factory=dict)
    """Retriever -> digest of its corpus and settings; parts of others are there too."""
    indexes: Mapping[str, Path] = field(default_factory=dict)
    """Digest -> folder of an index that the bundle is to carry."""
    tools: Mapping[str, str] = field(default_factory=dict)
    """Tool -> digest of its kind, file or package."""
    code: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """`metric` and `tool` -> name -> digest of the code that installed packages bring (`installed_code`)."""
    seed: int
    models: Mapping[str, ModelFacts]
    """By name in the spec."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Package -> version, for all that a result depends on."""
    strategy: tuple[str, ...] = ()
    prefixes: tuple[Prefix, ...] = ()
    steps: tuple[StepFacts, ...] = ()
    confusion: Confusion | None = None
    """Of the shipped program on dev; None where the output is no enum."""
    agreement: Agreement | None = None
    """Of the metric's judge with the data's own labels; None without a judge, or nothing to compare."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    """Python, platform, processors: for the report, outside the digest."""
    seconds: float = 0.0
    """Of the whole compile."""
    created: str | None = None
    """ISO time, for the report and the manifest, outside the digest."""
    fixed_parts: bool = False
    """Whether work ran in fixed parts because rows depend on their batch on this machine (design §4)."""


def sent_prompts(traces: Iterable[Trace]) -> dict[str, PromptText]:
    """Module -> the prompt of its first call in the first trace that reached it."""
    found: dict[str, PromptText] = {}
    for trace in traces:
        for step in trace.steps:
            if step.module is not None and step.prompt is not None:
                found.setdefault(step.module, step.prompt)
    return found
