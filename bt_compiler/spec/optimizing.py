"""`optimize` as typed settings, with the rules between its keys. Part of the one reader of settings (`build`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bt_compiler.diagnostics import Diagnostic, did_you_mean
from bt_compiler.spec.document import Spec
from bt_compiler.spec.sections import (
    AcceptSection,
    MetricSection,
    ModelSection,
    OptimizeSection,
    PreferenceSection,
    PromptsSection,
    StepKind,
    WeightsSection,
)
from bt_compiler.spec.tree import Place, position

REMOTE_ENGINES = ("openai",)
"""Engines that answer from elsewhere: there are no weights to train unless the spec says where else they are."""
OF_ADAPTERS = ("r", "alpha", "dropout", "target_modules")
"""Settings of `optimize.weights` that say nothing where all parameters are trained."""


@dataclass(slots=True)
class Findings:
    """Diagnostics in the order they were found."""

    spec: Spec
    items: list[Diagnostic] = field(default_factory=list)

    def add(self, code: str, message: str, place: Place, *, key: bool = False, help: str | None = None) -> None:
        """Adds one at the value of `place`, or at its key."""
        span = self.spec.span(place, key=key)
        self.items.append(Diagnostic(code=code, message=message, span=span, help=help))

    def sorted(self) -> list[Diagnostic]:
        """By source, line and column."""
        return sorted(self.items, key=position)


def build_optimize(
    spec: Spec,
    models: tuple[ModelSection, ...],
    accept: MetricSection | None,
    findings: Findings,
    *,
    judges: frozenset[str] = frozenset(),
) -> OptimizeSection:
    """The section with its defaults; `judges` are modules that nothing trains.

    Findings BTC124 to BTC129 and BTC407 are added to `findings`.
    """
    written: Mapping[str, Any] = spec.get(("optimize",), {})
    remote = _first_remote(spec, models, judges)
    strategy = _strategy(written, remote, findings)
    weights = _weights(written.get("weights", {}))
    _check_method(weights, written.get("weights", {}), findings)
    _check_teacher(weights, models, findings)
    return OptimizeSection(
        strategy=strategy,
        prompts=PromptsSection(**written.get("prompts", {})),
        weights=weights,
        accept=AcceptSection(metric=accept, at_least=float(written.get("accept", {}).get("at_least", 1.0))),
    )


def _weights(written: Mapping[str, Any]) -> WeightsSection:
    settings: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in written.items()
    }
    if "preference" in settings:
        settings["preference"] = PreferenceSection(**settings["preference"])
    return WeightsSection(**settings)


def _check_method(weights: WeightsSection, written: Mapping[str, Any], findings: Findings) -> None:
    for key in OF_ADAPTERS:
        if weights.method == "full" and key in written:
            findings.add(
                "BTC407",
                f"`{key}` is a setting of adapters, and `method: full` trains all parameters",
                ("optimize", "weights", key),
                key=True,
                help=f"leave `{key}` out (`{key}: null` takes back what `extends` brings), or choose another method",
            )


def _first_remote(spec: Spec, models: tuple[ModelSection, ...], judges: frozenset[str]) -> ModelSection | None:
    """The first model without weights at hand that a module with trainable weights runs on."""
    by_name = {model.name: model for model in models}
    for name, module in spec.get(("modules",)).items():
        if name in judges:
            continue
        model = by_name.get(module.get("model", models[0].name))
        distant = model is not None and model.engine in REMOTE_ENGINES and model.weights is None
        if distant and "weights" in module.get("train", ("weights",)):
            return model
    return None


def _strategy(written: Mapping[str, Any], remote: ModelSection | None, findings: Findings) -> tuple[StepKind, ...]:
    """As written; by default without `weights` where there are none at hand."""
    if "strategy" not in written:
        return ("prompts",) if remote is not None else OptimizeSection().strategy
    strategy: tuple[StepKind, ...] = tuple(written["strategy"])
    if remote is not None and "weights" in strategy:
        findings.add(
            "BTC125",
            f"`weights` of model `{remote.name}`, whose weights are not at hand",
            ("optimize", "strategy", strategy.index("weights")),
            help="search prompts alone, or say where the servers' weights are at hand: `weights: FOLDER` in the model",
        )
    return strategy


def _check_teacher(weights: WeightsSection, models: tuple[ModelSection, ...], findings: Findings) -> None:
    names = [model.name for model in models]
    if weights.teacher is not None and weights.teacher not in names:
        help = did_you_mean(weights.teacher, names, what="models")
        findings.add("BTC128", f"unknown model `{weights.teacher}`", ("optimize", "weights", "teacher"), help=help)
    if "teacher" in weights.sources and weights.teacher is None:
        place: Place = ("optimize", "weights", "sources", weights.sources.index("teacher"))
        findings.add("BTC128", "rows of a teacher need one", place, help="write `teacher: NAME`, a name in `models`")
