"""`optimize` as typed settings, with the rules between its keys. Part of the one reader of settings (`build`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bt_compiler.diagnostics import Diagnostic, did_you_mean
from bt_compiler.spec.document import Spec
from bt_compiler.spec.sections import (
    AcceptSection,
    LaunchSection,
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
SERVED_ENGINES = (*REMOTE_ENGINES, "vllm")
"""Engines that run LoRA adapters alone and give no probability of a text which they did not write."""
OF_TRANSFORMERS = ("full", "dora")
"""Methods of training whose result only `engine: transformers` runs."""
OF_ADAPTERS = ("r", "alpha", "dropout", "target_modules", "quantize")
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

    Findings BTC124 to BTC128, BTC406, BTC407, BTC409, BTC420 and BTC454 are added to `findings`.
    """
    written: Mapping[str, Any] = spec.get(("optimize",), {})
    trained = _trained_on(spec, models, judges)
    strategy = _strategy(written, trained, _changed(spec, judges), findings)
    weights = _weights(spec, written.get("weights", {}))
    _check_method(weights, written.get("weights", {}), findings)
    _check_launch(weights, findings)
    if "weights" in strategy:
        _check_served(weights, trained, findings)
    _check_teacher(weights, models, findings)
    return OptimizeSection(
        strategy=strategy,
        prompts=PromptsSection(**written.get("prompts", {})),
        weights=weights,
        accept=AcceptSection(metric=accept, at_least=float(written.get("accept", {}).get("at_least", 1.0))),
    )


def _weights(spec: Spec, written: Mapping[str, Any]) -> WeightsSection:
    settings: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in written.items()
    }
    if "preference" in settings:
        settings["preference"] = PreferenceSection(**settings["preference"])
    if "launch" in settings:
        launch = dict(settings["launch"])
        if "config" in launch:
            launch["config"] = spec.file(("optimize", "weights", "launch", "config"))
        settings["launch"] = LaunchSection(**launch)
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


def _check_launch(weights: WeightsSection, findings: Findings) -> None:
    launch = weights.launch
    if launch is not None and launch.processes is not None and launch.config is not None:
        findings.add(
            "BTC420",
            "`processes` and `config` both say how many processes train",
            ("optimize", "weights", "launch", "processes"),
            key=True,
            help="keep `config` and write `num_processes` in that file, or keep `processes` alone",
        )


def _check_served(weights: WeightsSection, trained: list[ModelSection], findings: Findings) -> None:
    served = next((model for model in trained if model.engine in SERVED_ENGINES), None)
    if served is not None and weights.method in OF_TRANSFORMERS:
        findings.add(
            "BTC409",
            f"what `method: {weights.method}` trains cannot be run by the engine `{served.engine}` of model "
            f"`{served.name}`",
            ("optimize", "weights", "method"),
            help="write `method: lora` or `rslora`, or run the model by `engine: transformers`",
        )


def _trained_on(spec: Spec, models: tuple[ModelSection, ...], judges: frozenset[str]) -> list[ModelSection]:
    """The models that modules with trainable weights run on, in the order of the modules."""
    by_name = {model.name: model for model in models}
    modules = [module for name, module in spec.get(("modules",)).items() if name not in judges]
    names = [
        module.get("model", models[0].name) for module in modules if "weights" in module.get("train", ("weights",))
    ]
    return [by_name[name] for name in names if name in by_name]


def _changed(spec: Spec, judges: frozenset[str]) -> frozenset[StepKind]:
    """The kinds of steps that some module lets change it."""
    named: Mapping[StepKind, str] = {"prompts": "prompt", "weights": "weights"}
    allowed = [
        module.get("train", tuple(named.values()))
        for name, module in spec.get(("modules",)).items()
        if name not in judges
    ]
    return frozenset(kind for kind, word in named.items() if any(word in one for one in allowed))


def _strategy(
    written: Mapping[str, Any], trained: list[ModelSection], changed: frozenset[StepKind], findings: Findings
) -> tuple[StepKind, ...]:
    """As written; by default without what modules do not let change, and without weights that are not at hand."""
    remote = next((model for model in trained if model.engine in REMOTE_ENGINES and model.weights is None), None)
    if "strategy" not in written:
        kinds: tuple[StepKind, ...] = ("prompts",) if remote is not None else OptimizeSection().strategy
        kinds = tuple(kind for kind in kinds if kind in changed)
        return kinds if "weights" in kinds else kinds[:1]  # no second search of the same weights
    strategy: tuple[StepKind, ...] = tuple(written["strategy"])
    if remote is not None and "weights" in strategy:
        findings.add(
            "BTC125",
            f"`weights` of model `{remote.name}`, whose weights are not at hand",
            ("optimize", "strategy", strategy.index("weights")),
            help="search prompts alone, or say where the servers' weights are at hand: `weights: FOLDER` in the model",
        )
    for kind in dict.fromkeys(strategy):
        if kind not in changed:
            code, word = ("BTC406", "weights") if kind == "weights" else ("BTC454", "prompt")
            findings.add(
                code,
                f"`{kind}`, but no module may change its {word}",
                ("optimize", "strategy", strategy.index(kind)),
                help=f"put `{word}` into the `train` of a module, or take `{kind}` out of the strategy",
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
