"""A sweep's files, and its tables as text and Markdown: all from the document of `sweep.json`.

What is shown of a number is decided here and is the same everywhere; how the page looks is in `templates/report/`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bt_compiler.artifact import plots
from bt_compiler.artifact.page import template
from bt_compiler.artifact.swap import put
from bt_compiler.diagnostics import Diagnostic
from bt_compiler.errors import BundleError

DASH = "—"
"""In place of a score: the strategy could not run."""
_LAST = "sweep.json"
_FILES = ("report.html", "sweep.md", _LAST)
_HEAD = ("strategy", "mean", "sd", "by seed", "against", "shipped")


def refuse_other_folder(folder: Path) -> None:
    """The files of a sweep are never put among those of something else. Raises BundleError (BTC560)."""
    own = {*_FILES, *(_temporary(folder / name).name for name in _FILES)}
    if not folder.exists() and not folder.is_symlink():
        return
    if folder.is_dir() and ((folder / _LAST).is_file() or {entry.name for entry in folder.iterdir()} <= own):
        return
    raise BundleError.of(
        "BTC560",
        f"`{folder}` exists and is not the folder of a sweep",
        help="empty it or move it away, or choose an empty or new folder with `-o`",
    )


def left_out(folder: Path, document: Mapping[str, Any], models: Sequence[str]) -> str:
    """The models, strategies and seeds of the sweep that the folder holds, without those of `document` and `models`;
    empty where none is left, or none can be read.
    """
    try:
        before = json.loads((folder / _LAST).read_text(encoding="utf-8"))
        found = {
            "model": [table["model"] for table in before["tables"] if table["model"] not in models],
            "strategy": [one for one in before["strategies"] if one not in document["strategies"]],
            "seed": [str(one) for one in before["seeds"] if one not in document["seeds"]],
        }
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return "; ".join(f"{what} {', '.join(names)}" for what, names in found.items() if names)


def unscored(document: Mapping[str, Any]) -> list[Diagnostic]:
    """BTC456 for each table in which nothing was scored, with what kept the first of its strategies from running."""
    found = []
    for table in document["tables"]:
        if table["failures"] and all(row["mean"] is None for row in table["rows"]):
            why = table["failures"][0]
            message = f"no strategy could run on `{table['model']}`: {why['code']} at {why['at']}: {why['message']}"
            found.append(Diagnostic(code="BTC456", message=message, notes=tuple(why["notes"]), help=why["help"]))
    return found


def write_sweep(folder: Path, document: Mapping[str, Any]) -> None:
    """`report.html`, `sweep.md` and, last, `sweep.json`, each by temp file and rename. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    for name, text in zip(_FILES, (sweep_page(document), sweep_markdown(document), whole), strict=True):
        write_text(folder / name, text)


def write_text(path: Path, text: str) -> None:
    """Replaces a file, or leaves it as it was. Raises OSError."""
    temporary = _temporary(path)
    temporary.unlink(missing_ok=True)
    put(temporary, text.encode("utf-8"))
    temporary.replace(path)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def sweep_text(document: Mapping[str, Any]) -> str:
    """The tables for a terminal."""
    return "\n\n".join(_text(table, document) for table in document["tables"])


def _text(table: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    lines = [_head(table), *(cells_of(row, table) for row in table["rows"])]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD))]
    drawn = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([title_of(table, document), "", *drawn, "", *notes_of(table)])


def sweep_markdown(document: Mapping[str, Any]) -> str:
    """The tables for a README."""
    parts = []
    for table in document["tables"]:
        lines = [_head(table), tuple("---" for _ in _HEAD), *(cells_of(row, table) for row in table["rows"])]
        drawn = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
        notes = [f"- {note}" for note in notes_of(table)]
        parts.append("\n".join([title_of(table, document), "", *drawn, "", *notes]))
    return "\n\n".join(parts) + "\n"


def title_of(table: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    """`iris on org/lm: accuracy, test, n=50, seeds 0, 1, 2`."""
    seeds = ", ".join(map(str, table["seeds"]))
    return (
        f"{document['name']} on {table['model']}: {document['metric']}, {table['split']}, n={table['n']}, "
        f"seed{'s' if len(table['seeds']) > 1 else ''} {seeds}"
    )


def _head(table: Mapping[str, Any]) -> tuple[str, ...]:
    best = table["best_single"]
    return tuple(f"against {best['strategy']}" if best and name == "against" else name for name in _HEAD)


def cells_of(row: Mapping[str, Any], table: Mapping[str, Any]) -> tuple[str, ...]:
    """The texts of one row, in the order of the columns."""
    name = row["strategy"] + (" †" if row["supervised"] else "")
    if row["mean"] is None:
        return (name, DASH, "", "", "", "")
    by_seed = " ".join(DASH if one["mean"] is None else score(one["mean"]) for one in row["by_seed"])
    best = table["best_single"]
    against = "best single step" if best and best["steps"] == row["steps"] else ""
    if row["difference"] is not None:
        one = row["difference"]
        against = f"{one['mean']:+z.3f} [{one['low']:+z.3f}, {one['high']:+z.3f}]"
    sd = "" if row["sd"] is None else score(row["sd"])
    return (name, score(row["mean"]), sd, by_seed, against, score(row["shipped"]))


def score(value: float) -> str:
    """Three decimals, without the zero before the point."""
    return f"{value:.3f}".removeprefix("0") if 0 < value < 0.9995 else f"{value:.3f}"


def notes_of(table: Mapping[str, Any]) -> list[str]:
    """What has to be said under a table."""
    best, several = table["best_single"], len(table["seeds"]) > 1
    notes = []
    if best is not None:
        chosen = f"the best single step by {best['by']}"
        if best["by"] != "dev":
            chosen += ", for there is no dev split: that favours it"
        mean = ", each with its mean over the seeds" if several else ""
        notes.append(
            f"against {best['strategy']}, {chosen}: paired difference and its 95 % interval over examples{mean}"
        )
    elif any(len(row["steps"]) == 1 for row in table["rows"]):
        notes.append("no single step was scored to compare with")
    else:
        notes.append("no single step was scored to compare with: put Π and Θ among the strategies")
    if several:
        notes.append("sd: standard deviation over seeds; seeds are a spread and never counted as examples")
    notes.append("mean: after the last step, as in the paper; shipped: the prefix that a compile chooses on dev")
    if table["split"] == "dev":
        notes.append("there is no test split: these are dev scores, and dev also chose")
    if any(row["supervised"] for row in table["rows"]):
        notes.append("† partly supervised: some training rows were labels or written with the label in sight")
    for one in table["failures"]:
        seeds = ", ".join(map(str, one["seeds"]))
        tried = f" ({'; '.join(one['notes'])})" if one["notes"] else ""
        notes.append(
            f"{DASH} {', '.join(one['strategies'])}: {one['code']} at {one['at']}, seed {seeds}: "
            f"{one['message']}{tried}"
        )
    calls, cached = (sum(step[key] for step in table["steps"]) for key in ("calls", "cached_calls"))
    notes.append(
        f"{len(table['steps'])} steps were computed where the strategies name {table['steps_named']} in all: "
        f"{calls} LM calls, {cached} of them answered before"
    )
    return notes


def sweep_page(document: Mapping[str, Any]) -> str:
    """The page; everything in it is untrusted and escaped. Without matplotlib it has its tables alone."""
    shown = [
        {
            "title": title_of(table, document),
            "head": _head(table),
            "rows": [
                {"cells": cells_of(row, table), "best": bool(row["mean"] is not None and row["mean"] == _top(table))}
                for row in table["rows"]
            ],
            "notes": notes_of(table),
            "failures": table["failures"],
            "steps": table["steps"],
            "svgs": _drawings(table, number) if plots.can_plot() else {},
        }
        for number, table in enumerate(document["tables"], start=1)
    ]
    page = template("sweep.html.jinja").render(document=document, tables=shown, plots_missing=not plots.can_plot())
    return str(page)


def _top(table: Mapping[str, Any]) -> float | None:
    return max((row["mean"] for row in table["rows"] if row["mean"] is not None), default=None)


def _drawings(table: Mapping[str, Any], number: int) -> dict[str, str]:
    """Plots by name: scores over seeds, differences from the best single step, seconds of every step."""
    rows = [row for row in table["rows"] if row["mean"] is not None]
    found = {}
    if rows:
        scored = [
            {
                "label": row["strategy"],
                "mean": row["mean"],
                "interval": _range(row),
                "chosen": row["mean"] == _top(table),
            }
            for row in rows
        ]
        found["scores"] = plots.interval_plot(f"scores-{number}", scored)
    compared = [
        {
            "label": row["strategy"],
            "mean": row["difference"]["mean"],
            "interval": (row["difference"]["low"], row["difference"]["high"]),
            "chosen": row["difference"]["low"] > 0,
        }
        for row in rows
        if row["difference"] is not None
    ]
    if compared:
        found["differences"] = plots.interval_plot(f"differences-{number}", compared, axis="difference")
    if table["steps"]:
        found["seconds"] = plots.bars_plot(f"seconds-{number}", _seconds(table["steps"]), "seconds, mean over seeds")
    return found


def _range(row: Mapping[str, Any]) -> tuple[float, float]:
    """Lowest and highest over seeds; with one seed its confidence interval."""
    means = [one["mean"] for one in row["by_seed"] if one["mean"] is not None]
    if len(means) > 1:
        return min(means), max(means)
    only = next(one for one in row["by_seed"] if one["mean"] is not None)
    return only["low"], only["high"]


def _seconds(steps: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[tuple[str, float]]]]:
    by_strategy: dict[str, list[float]] = {}
    for step in steps:
        by_strategy.setdefault(step["strategy"], []).append(step["seconds"])
    return [(name, [("seconds", sum(found) / len(found))]) for name, found in by_strategy.items()]
