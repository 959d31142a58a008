"""The report's plots as SVG text, by matplotlib, which is imported when the first is drawn.

Colours are drawn as markers and then become the page's CSS variables, so that one SVG reads in light and dark. Equal
data gives equal bytes: no date, no random ids, the same font rules everywhere.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from bt_compiler.artifact.report import bounds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _MUTED, _FIRST, _SECOND, _PAPER = "#010203", "#040506", "#070809", "#0a0b0c", "#0d0e0f"
_CSS = {
    _INK: "var(--ink)",
    _MUTED: "var(--line)",
    _FIRST: "var(--first)",
    _SECOND: "var(--second)",
    _PAPER: "var(--paper)",
}
_WIDTH = 5.2
"""Inches: the width of a phone, so that text keeps its size there; wider pages scale it up a little."""

_LABEL = 26
"""Characters of a label."""


def can_plot() -> bool:
    """Whether matplotlib is installed (extra `train`)."""
    return find_spec("matplotlib") is not None


def interval_plot(
    name: str, rows: Sequence[Mapping[str, Any]], *, axis: Literal["score", "difference"] = "score"
) -> str:
    """Means with intervals, a line each from the top: `{"label", "mean", "interval": (low, high) | None, "chosen"}`.

    `difference`: on an axis as wide as the intervals, with a line at 0.
    """
    figure, axes = _figure(0.5 + 0.32 * len(rows))
    for place, row in enumerate(rows):
        color = _SECOND if row["chosen"] else _FIRST
        if row["interval"] is not None:
            axes.plot(row["interval"], [place, place], color=color, linewidth=2, solid_capstyle="butt")
        axes.plot([row["mean"]], [place], "o", color=color, markersize=6)
    axes.set_yticks(range(len(rows)), [_short(row["label"]) for row in rows], parse_math=False)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    if axis == "score":
        axes.set_xlim(-0.02, 1.02)
    else:
        axes.axvline(0, color=_INK, linewidth=1)
    axes.set_xlabel(axis)
    return _svg(name, figure, axes)


def loss_plot(name: str, points: Sequence[Mapping[str, Any]]) -> str:
    """The losses of one adapter by optimiser step: `{"step", "train", "validation"}`, either may be None. With
    preference pairs (`preferred`) the lines are two quantities, and say so.
    """
    figure, axes = _figure(2.8)
    paired = any(point.get("preferred") is not None for point in points)
    lines = (("train", ": with pairs", _FIRST, "-"), ("validation", ": a token", _SECOND, "o-"))
    for key, what, color, style in lines:
        known = [(point["step"], point[key]) for point in points if point.get(key) is not None]
        if known:
            label = key + what if paired else key
            axes.plot(*zip(*known, strict=True), style, color=color, label=label, linewidth=1.6, markersize=4)
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("loss" if paired else "loss a token")
    axes.set_ylim(bottom=0)
    legend = axes.legend(frameon=False)
    for text in legend.get_texts():
        text.set_color(_INK)
    return _svg(name, figure, axes)


def confusion_plot(name: str, confusion: Mapping[str, Any]) -> str:
    """Counts by true class (rows) and answer (columns), failed runs in a column of their own where there are any."""
    classes, failed = [_short(one) for one in confusion["classes"]], list(confusion["failed"])
    columns = [*classes, "failed"] if any(failed) else classes
    table = [
        [*counts, lost] if any(failed) else list(counts)
        for counts, lost in zip(confusion["counts"], failed, strict=True)
    ]
    from matplotlib.patches import Rectangle

    upright = sum(map(len, columns)) <= _LABEL
    figure, axes = _figure(0.9 + 0.42 * len(classes) + (0 if upright else 0.06 * max(map(len, columns))))
    for row, counts in enumerate(table):
        total = sum(counts) or 1
        for column, count in enumerate(counts):
            color = _FIRST if row == column else _SECOND
            axes.add_patch(
                Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=color, alpha=0.75 * count / total, linewidth=0)
            )
            axes.text(column, row, str(count), ha="center", va="center", color=_INK)
    slant: dict[str, Any] = {} if upright else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(columns)), columns, parse_math=False, **slant)
    axes.set_yticks(range(len(classes)), classes, parse_math=False)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(classes) - 0.5, -0.5)
    axes.set_xlabel("answered")
    axes.set_ylabel("true")
    return _svg(name, figure, axes, grid=False)


def bars_plot(name: str, rows: Sequence[tuple[str, Sequence[tuple[str, float]]]], unit: str) -> str:
    """Horizontal bars of one or two stacked parts, each row a label and (part, amount) pairs; `unit` names the axis."""
    figure, axes = _figure(0.9 + 0.36 * len(rows))
    parts = list(dict.fromkeys(part for _, amounts in rows for part, _ in amounts))
    left = [0.0] * len(rows)
    for index, part in enumerate(parts):
        widths = [dict(amounts).get(part, 0.0) for _, amounts in rows]
        color = (_FIRST, _SECOND)[index % 2]
        axes.barh(range(len(rows)), widths, left=left, height=0.6, color=color, label=part)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(rows)), [_short(label) for label, _ in rows], parse_math=False)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(unit)
    if len(parts) > 1:
        legend = figure.legend(frameon=False, loc="outside upper right", ncols=len(parts))
        for text in legend.get_texts():
            text.set_color(_INK)
    return _svg(name, figure, axes)


def candidate_rows(evidence: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows for `interval_plot` from the evidence of a prompts step; candidates equal to an earlier one are left out."""
    return [
        {
            "label": one["label"],
            "mean": float(one["score"]),
            "interval": bounds(one.get("interval")),
            "chosen": one["label"] == evidence.get("chosen"),
        }
        for one in evidence.get("candidates", ())
        if "score" in one
    ]


def _short(label: str) -> str:
    """A label that leaves room for its plot; tables have the whole of it."""
    return label if len(label) <= _LABEL else f"{label[: _LABEL - 1]}…"


def _figure(height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def _svg(name: str, figure: Figure, axes: Axes, *, grid: bool = True) -> str:
    """The figure as an `<svg>` element for a page; `name` keeps its ids apart from other plots'."""
    import matplotlib as mpl

    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(side in ("left", "bottom") and grid)
        axes.spines[side].set_color(_MUTED)
    axes.tick_params(colors=_INK, length=0)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    if grid:
        axes.grid(axis="x", color=_MUTED, linewidth=0.6)
        axes.set_axisbelow(True)
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    out = io.StringIO()
    with warnings.catch_warnings(), mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        # The browser's fonts draw the text; that matplotlib's own lacks a glyph says nothing.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r'\1 role="img"', text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"font: ([0-9.]+)px [^;\"]*", r"font-size: \1px", text)
    for marker, variable in _CSS.items():
        text = text.replace(marker, variable)
    return text
