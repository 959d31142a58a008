"""`report.html`: one self-contained page, from the data of `report.json`. Everything in it is untrusted and escaped.

Knows which plot belongs to which fact; how they look is `plots` and `templates/report/report.html.jinja`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bt_compiler.artifact import plots
from bt_compiler.artifact.contents import BundleContents
from bt_compiler.artifact.report import SUPERVISED, SYMBOLS, report_json, strategy_label
from bt_compiler.engine.templates import template_folder

_CLASSES = 12
"""Most classes of a confusion matrix that can be read; of more the most frequent mistakes are listed."""

_MISTAKES = 20
"""Most mistakes that are listed."""


def report_html(contents: BundleContents, *, digest: str) -> str:
    """The page. Without matplotlib it has its tables and says that the plots are missing."""
    data = report_json(contents, digest=digest)
    return render_report(data, drawings(data) if plots.can_plot() else None)


def drawings(data: Mapping[str, Any]) -> dict[str, str]:
    """Plot name -> `<svg>` for what `data` (`report_json`) holds.

    Names: `prefixes`, `confusion`, `seconds`, `tokens`, and with the number of a step `candidates-1`, `loss-2-shared`
    (one an adapter: each counts its own optimiser steps).
    """
    found: dict[str, str] = {}
    scored = [
        {"label": one["label"], "mean": one["mean"], "interval": (one["low"], one["high"]), "chosen": one["chosen"]}
        for one in data["prefixes"]
        if "mean" in one
    ]
    if scored:
        found["prefixes"] = plots.interval_plot("prefixes", scored)
    if data["confusion"] is not None and len(data["confusion"]["classes"]) <= _CLASSES:
        found["confusion"] = plots.confusion_plot("confusion", data["confusion"])
    for step in data["steps"]:
        found |= _of_step(step)
    if data["steps"]:
        labels = [step["label"] for step in data["steps"]]
        found["seconds"] = plots.bars_plot(
            "seconds",
            [(label, [("seconds", step["seconds"])]) for label, step in zip(labels, data["steps"], strict=True)],
            "seconds",
        )
        found["tokens"] = plots.bars_plot(
            "tokens", [(step["label"], _tokens(step)) for step in data["steps"]], "tokens"
        )
    return found


def _of_step(step: Mapping[str, Any]) -> dict[str, str]:
    index, evidence = step["index"], step["evidence"]
    found = {}
    if rows := plots.candidate_rows(evidence):
        found[f"candidates-{index}"] = plots.interval_plot(f"candidates-{index}", rows)
    curves: dict[str, list[Mapping[str, Any]]] = {}
    for point in evidence.get("loss", ()):
        curves.setdefault(f"loss-{index}-{point['adapter']}", []).append(point)
    return found | {name: plots.loss_plot(name, points) for name, points in curves.items()}


def _tokens(step: Mapping[str, Any]) -> list[tuple[str, float]]:
    return [("prompt", step["prompt_tokens"]), ("completion", step["completion_tokens"])]


def render_report(data: Mapping[str, Any], svgs: Mapping[str, str] | None) -> str:
    """The page from data and plots; `svgs` None: none could be drawn."""
    page = template("report.html.jinja").render(
        data=data,
        svgs=svgs or {},
        plots_missing=svgs is None,
        symbols=SYMBOLS,
        supervised=any(row["supervised"] and row["rows"] for row in data["rows"]),
        shipped_supervised=any(row["supervised"] and row["rows"] and row["shipped"] for row in data["rows"]),
        supervised_sources=SUPERVISED,
        mistakes=_mistakes(data["confusion"]),
        chosen=next((one["label"] for one in data["prefixes"] if one["chosen"]), strategy_label(data["strategy"])),
    )
    return str(page)


def _mistakes(confusion: Mapping[str, Any] | None) -> list[tuple[str, str, int]]:
    """(true, answered, examples) of the most frequent mistakes, where there are too many classes for a matrix."""
    if confusion is None or len(confusion["classes"]) <= _CLASSES:
        return []
    answers = [*confusion["classes"], "failed"]
    found = [
        (true, answers[column], count)
        for row, (true, counts, failed) in enumerate(
            zip(confusion["classes"], confusion["counts"], confusion["failed"], strict=True)
        )
        for column, count in enumerate([*counts, failed])
        if count and column != row
    ]
    return sorted(found, key=lambda one: -one[2])[:_MISTAKES]


def template(name: str) -> Any:
    """A page template with the filters that pages use; what it is given is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(template_folder() / "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = Markup  # our own drawings, whose text matplotlib has escaped
    environment.filters["score"] = lambda value: f"{value:.3f}".removeprefix("0") if 0 < value < 1 else f"{value:.3f}"
    environment.filters["signed"] = lambda value: f"{value:+z.3f}"
    environment.filters["duration"] = duration
    return environment.get_template(name)


def duration(seconds: float) -> str:
    """`41 s`, `6 min 5 s`, `2 h 3 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
