"""From what a compile found to what a bundle is made of. Plain rearranging: nothing is run but one prompt, where no
split was scored that could show how prompts are sent.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bt_compiler.artifact.contents import BundleContents, ModelFacts, Prefix, sent_prompts
from bt_compiler.compiler.check import CheckedSpec
from bt_compiler.compiler.identity import data_facts, package_versions
from bt_compiler.engine.executor import Engine
from bt_compiler.engine.formats import load_format
from bt_compiler.engine.metrics import build_metric, judge_of
from bt_compiler.engine.request import Backend, PromptText, in_fixed_parts
from bt_compiler.engine.retrieval import Indexed
from bt_compiler.engine.scoring import Confusion, confusion
from bt_compiler.engine.trace import Agreement
from bt_compiler.optimize.budget import LimitedBudget, Unlimited
from bt_compiler.optimize.strategy import StrategyResult
from bt_compiler.spec import yaml_text
from bt_compiler.spec.sections import IN_PROCESS, ModelSection

_CHOSEN_BY: Mapping[str, str] = {
    "dev": "best mean on dev, ties to the earliest prefix",
    "last": "no dev split to choose by: the whole strategy ships",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A finished strategy and what it ran on; the engine is still open."""

    spec: CheckedSpec
    engine: Engine
    models: Sequence[ModelSection]
    result: StrategyResult
    seed: int
    seconds: float
    created: str
    """ISO time."""
    with_index: bool = False
    """Whether the bundle is to carry the indexes of its retrievers."""
    code: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """`brought_code` before anything ran."""
    budget: LimitedBudget | Unlimited = field(default_factory=Unlimited)


def bundle_contents(finding: Finding) -> BundleContents:
    """All that `write_bundle` needs."""
    spec, result = finding.spec, finding.result
    models = {section.name: _model_facts(section, finding.engine.backends[section.name]) for section in finding.models}
    judges = {judge.module.name: judge.module.format for judge in spec.judges.values()}
    formats = sorted({*(module.format for module in spec.program.modules), *judges.values()})
    return BundleContents(
        spec_yaml=yaml_text(spec.spec.resolved()),
        spec_identity=spec.spec.identity(),
        program=spec.program,
        candidate=result.candidate,
        formats={name: load_format(name).source for name in formats},
        judges=judges,
        sent=_sent(finding),
        reports=result.reports,
        differences=result.differences,
        lineage=result.lineage,
        data=data_facts(spec.splits),
        retrievers={name: retriever.digest for name, retriever in finding.engine.retrievers.items()},
        indexes=_indexes(finding) if finding.with_index else {},
        tools={name: tool.digest for name, tool in finding.engine.tools.items()},
        code=finding.code,
        seed=finding.seed,
        models=models,
        versions=package_versions(spec.sections, spec.program, spec.judges),
        strategy=spec.sections.optimize.strategy,
        prefixes=_prefixes(result),
        steps=result.steps,
        confusion=_confusion(finding),
        agreement=_agreement(finding),
        environment=_environment(result, finding.budget),
        # steps that an earlier session finished took their time too
        seconds=max(finding.seconds, sum(step.seconds for step in result.steps)),
        created=finding.created,
        fixed_parts=any(in_fixed_parts(backend) for backend in finding.engine.backends.values()),
    )


def _indexes(finding: Finding) -> dict[str, Path]:
    """Digest -> folder. A server's index stays where it is."""
    found = finding.engine.retrievers.values()
    return {retriever.digest: retriever.folder for retriever in found if isinstance(retriever, Indexed)}


def _model_facts(section: ModelSection, backend: Backend) -> ModelFacts:
    identity = backend.identity()
    return ModelFacts(
        id=section.id,
        engine=section.engine,
        digest=identity.get("model") if section.engine in IN_PROCESS else None,
        dtype=identity.get("dtype", section.dtype),
        revision=section.revision,
        facts=backend.facts(),
    )


def _sent(finding: Finding) -> dict[str, PromptText]:
    shipped = finding.result.reports["shipped"]
    if shipped:
        return sent_prompts(trace for split in sorted(shipped) for trace in shipped[split].traces)
    shown = finding.spec.splits.train[:1]
    return sent_prompts(
        finding.engine.run(finding.spec.program, finding.result.candidate, shown, seed=finding.seed) if shown else ()
    )


def _prefixes(result: StrategyResult) -> tuple[Prefix, ...]:
    return tuple(
        Prefix(steps=prefix.steps, candidate=prefix.candidate.id, report=prefix.dev, chosen=index == result.shipped)
        for index, prefix in enumerate(result.prefixes)
        if prefix.dev is not None
    )


def _confusion(finding: Finding) -> Confusion | None:
    """Of the shipped program on dev, where the metric judges an enum by one label."""
    report = finding.result.reports["shipped"].get("dev")
    metric = finding.spec.sections.metric
    types = {binding.name: binding.type for binding in finding.spec.program.out}
    output = types.get(metric.output)
    if report is None or output is None or output.kind != "enum" or not metric.label:
        return None
    return confusion(report, finding.spec.splits.dev, metric.output, metric.label, output.values)


def _agreement(finding: Finding) -> Agreement | None:
    """Of the metric's judge with the labels of dev and test, which no step has learnt from."""
    spec = finding.spec
    judge = judge_of(build_metric(spec.sections.metric, spec.judges))
    return None if judge is None else judge.agreement((*spec.splits.dev, *spec.splits.test), finding.engine)


def _environment(result: StrategyResult, budget: LimitedBudget | Unlimited) -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "shipped prefix": _CHOSEN_BY[result.chosen_by],
        **({"spent": budget.spending} if budget.limited else {}),
        **({"steps left out for want of budget": " → ".join(result.left_out)} if result.left_out else {}),
    }
