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

OF_NO_OUTPUT = frozenset({"answer_in_passages", "cost", "judge", "retrieval_full_hit", "retrieval_recall", "weighted"})
"""Kinds that judge something else than an output."""
OF_NO_LABEL = frozenset({"cost", "judge", "length", "weighted"})
"""Kinds that compare with no label."""
_OF_GOLD = frozenset({"answer_in_passages", "retrieval_full_hit", "retrieval_recall"})
"""Kinds whose label no output gives its name."""
_OF_JUDGES = ("call", "in", "score")
"""What a judge needs: a module, what it is given, and which of its outputs is the score."""
_KEYS = ("kind", "output", "label", "parts", "weight")


def build_metric_section(
    spec: Spec, place: Place, outputs: list[str] | None, findings: Findings, *, above: Mapping[str, Any] | None = None
) -> MetricSection:
    """The metric at `place`. `above`: settings of the metric it is a part of, whose output and label are its own too.

    Findings BTC124 (no output named), BTC140 (no label named, parts missing or misplaced), BTC143 (an
    `output` or `label` that is not read) and BTC358 (a judge without its parts) are added to `findings`.
    """
    written = spec.get(place)
    settings: dict[str, Any] = {"kind": written} if isinstance(written, str) else dict(written)
    inherited = {key: above[key] for key in ("output", "label") if above is not None and key in above}
    settings = {**inherited, **settings}
    kind: str = settings["kind"]
    output = None if kind in OF_NO_OUTPUT and kind != "weighted" else settings.get("output")
    if output is None and kind not in OF_NO_OUTPUT:
        output = _only_output(kind, place, outputs, findings)
    if kind == "judge":
        _check_judge(settings, place, findings)
    if isinstance(written, Mapping) and kind != "weighted":
        _refuse_silent(kind, written, place, findings)
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


def judging_modules(spec: Spec) -> frozenset[str]:
    """Names of the modules that the spec's metrics call, as far as they are written: no part of the program."""
    found: set[str] = set()
    waiting = [spec.get(("metric",)), spec.get(("optimize", "accept", "metric"))]
    while waiting:
        metric = waiting.pop()
        if isinstance(metric, Mapping):
            waiting += metric.get("parts", ())
            if metric.get("kind") == "judge" and isinstance(metric.get("call"), str):
                found.add(metric["call"])
    return frozenset(found)


def _check_judge(settings: Mapping[str, Any], place: Place, findings: Findings) -> None:
    missing = [key for key in _OF_JUDGES if key not in settings]
    wrong = [key for key in ("call", "score") if key in settings and not isinstance(settings[key], str)]
    if "in" in settings and not isinstance(settings["in"], Mapping | list):
        wrong.append("in")
    if not _texts(settings.get("rated", {})):
        wrong.append("rated")
    if missing or wrong:
        what = f"lacks {', '.join(f'`{key}`' for key in missing)}" if missing else f"has a wrong `{wrong[0]}`"
        findings.add(
            "BTC358",
            f"the judge of `{dotted(place)}` {what}",
            place if missing else (*place, wrong[0]),
            help="write `{kind: judge, call: MODULE, in: {question: $question, answer: $answer}, score: FIELD}`",
        )


def _refuse_silent(kind: str, written: Mapping[str, Any], place: Place, findings: Findings) -> None:
    """What is written here and not read by this kind; what a weighted metric hands down is no mistake."""
    unread = {"output": OF_NO_OUTPUT, "label": OF_NO_LABEL}
    for key in (name for name, kinds in unread.items() if name in written and kind in kinds):
        findings.add(
            "BTC143",
            f"`{key}` says nothing to a metric of kind `{kind}`",
            (*place, key),
            key=True,
            help=f"leave `{key}` out" + ("; `in` says what the judge is given" if kind == "judge" else ""),
        )


def _texts(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(item, str) for item in value.values())


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
