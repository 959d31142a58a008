"""`metric` as typed settings, with its parts. Part of the one reader of settings (`build`); it builds no metric."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bt_compiler.diagnostics import did_you_mean
from bt_compiler.spec.document import Spec
from bt_compiler.spec.optimizing import Findings
from bt_compiler.spec.schema import dotted
from bt_compiler.spec.sections import MetricSection
from bt_compiler.spec.tree import Place

OF_NO_OUTPUT = frozenset({"answer_in_passages", "cost", "retrieval_full_hit", "retrieval_recall", "weighted"})
"""Kinds that judge something else than an output."""
OF_NO_LABEL = frozenset({"cost", "length", "weighted"})
"""Kinds that compare with no label."""
_OF_GOLD = frozenset({"answer_in_passages", "retrieval_full_hit", "retrieval_recall"})
"""Kinds whose label no output gives its name."""
_KEYS = ("kind", "output", "label", "parts", "weight")


def build_metric_section(
    spec: Spec, place: Place, outputs: list[str] | None, findings: Findings, *, above: Mapping[str, Any] | None = None
) -> MetricSection:
    """The metric at `place`. `above`: settings of the metric it is a part of, whose output and label are its own too.

    Findings BTC124 (no output named) and BTC140 (no label named, parts missing or misplaced) are added to `findings`.
    """
    written = spec.get(place)
    settings: dict[str, Any] = {"kind": written} if isinstance(written, str) else dict(written)
    inherited = {key: above[key] for key in ("output", "label") if above is not None and key in above}
    settings = {**inherited, **settings}
    kind: str = settings["kind"]
    output = None if kind in OF_NO_OUTPUT and kind != "weighted" else settings.get("output")
    if output is None and kind not in OF_NO_OUTPUT:
        output = _only_output(kind, place, outputs, findings)
    label = _label(kind, settings, output, place, outputs, findings)
    return MetricSection(
        kind=kind,
        output=output or "",
        label=label,
        options={key: value for key, value in settings.items() if key not in _KEYS},
        parts=_parts(spec, place, settings, outputs, findings),
        weight=float(settings.get("weight", 1.0)),
        span=spec.span(place),
    )


def _only_output(kind: str, place: Place, outputs: list[str] | None, findings: Findings) -> str | None:
    if outputs is None:
        return None
    if len(outputs) == 1:
        return outputs[0]
    shown = kind if len(kind) <= 40 else "KIND"
    findings.add(
        "BTC124",
        f"`{dotted(place)}` does not say which of {len(outputs)} outputs it judges",
        place,
        help=f"write `{{kind: {shown}, output: {outputs[0]}}}`; "
        + did_you_mean("", outputs, what="the program's outputs"),
    )
    return None


def _label(
    kind: str,
    settings: Mapping[str, Any],
    output: str | None,
    place: Place,
    outputs: list[str] | None,
    findings: Findings,
) -> str:
    if kind in OF_NO_LABEL:
        return str(settings.get("label", "")) if kind == "weighted" else ""
    if "label" in settings:
        return str(settings["label"])
    if kind not in _OF_GOLD:
        return output or ""
    if kind == "answer_in_passages" and outputs is not None and len(outputs) == 1:
        return outputs[0]
    example = "answer" if kind == "answer_in_passages" else "gold_titles"
    help = f"write `{{kind: {kind}, label: {example}}}`"
    if kind != "answer_in_passages":
        help += f" and `data: {{labels: {{{example}: [str]}}}}`"
    findings.add("BTC140", f"`{dotted(place)}` does not say which label it compares with", place, help=help)
    return ""


def _parts(
    spec: Spec, place: Place, settings: Mapping[str, Any], outputs: list[str] | None, findings: Findings
) -> tuple[MetricSection, ...]:
    if settings["kind"] != "weighted":
        if "parts" in settings:
            help = "parts are those of `kind: weighted`"
            message = f"metric `{settings['kind']}` is not made of parts"
            findings.add("BTC140", message, (*place, "parts"), key=True, help=help)
        return ()
    if "parts" not in settings:
        help = "write `{kind: weighted, parts: [{kind: f1, weight: 0.9}, {kind: length, at_most: 20, weight: 0.1}]}`"
        findings.add("BTC140", f"`{dotted(place)}` is weighted and has no parts", place, help=help)
        return ()
    return tuple(
        build_metric_section(spec, (*place, "parts", number), outputs, findings, above=settings)
        for number in range(len(settings["parts"]))
    )
