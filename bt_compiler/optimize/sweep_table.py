"""The table of a sweep, as JSON values: a row a strategy, mean and spread over seeds, paired with the best single step.

Every number is taken from the cells' reports. Seeds are a spread and never counted as examples: the paired interval is
over examples, each with its mean score over the seeds. Knows nothing of text, pages or files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from bt_compiler.artifact.report import SUPERVISED, strategy_label, summary
from bt_compiler.engine.statistics import paired_interval
from bt_compiler.engine.trace import Interval, Report
from bt_compiler.optimize.sweep import Cell, Strategy

VANILLA = "vanilla"
"""The paper's name of the program without any step."""


def label(strategy: Strategy) -> str:
    """`Π→Θ`, or `vanilla`."""
    return strategy_label(strategy) if strategy else VANILLA


def sweep_table(cells: Sequence[Cell], *, binary: bool, data: Mapping[str, int]) -> dict[str, Any]:
    """Table of one model: `split`, `n`, `seeds`, `best_single`, `rows`, `failures`, `steps`, `steps_named`, `data`.

    `data` has the number of examples by split. Scores are those of the test split, of dev where it is empty. `binary`:
    scores are 0 or 1.
    """
    split = "test" if data["test"] else "dev"
    by_strategy: dict[Strategy, list[Cell]] = {}
    for cell in cells:
        by_strategy.setdefault(cell.strategy, []).append(cell)
    best = _best_single(by_strategy, split)
    rivals = None if best is None else by_strategy[tuple(best["steps"])]
    return {
        "split": split,
        "n": data[split],
        "seeds": sorted({cell.seed for cell in cells}),
        "best_single": best,
        "rows": [_row(found, split, rivals, binary) for found in by_strategy.values()],
        "failures": _failures(cells),
        "steps": _steps(cells),
        "steps_named": sum(len(cell.strategy) for cell in cells if cell.failure is None),
        "data": dict(data),
    }


def _best_single(by_strategy: Mapping[Strategy, Sequence[Cell]], split: str) -> dict[str, Any] | None:
    """The one-step strategy with the best mean on dev, ties to the first; by the shown split where there is no dev.

    Test does not choose where dev can: what was chosen by it would look better on it than it is.
    """
    by = "dev" if any("dev" in cell.reports for found in by_strategy.values() for cell in found) else split
    means = {
        strategy: fmean(cell.reports[by].mean for cell in found if by in cell.reports)
        for strategy, found in by_strategy.items()
        if len(strategy) == 1 and any(by in cell.reports for cell in found)
    }
    if not means:
        return None
    best = max(means, key=lambda strategy: means[strategy])
    return {"strategy": label(best), "steps": list(best), "by": by}


def _row(found: Sequence[Cell], split: str, best: Sequence[Cell] | None, binary: bool) -> dict[str, Any]:
    ran = [cell for cell in found if split in cell.reports]
    means = [cell.reports[split].mean for cell in ran]
    strategy = found[0].strategy
    return {
        "strategy": label(strategy),
        "steps": list(strategy),
        "mean": fmean(means) if means else None,
        "sd": stdev(means) if len(means) > 1 else None,
        "by_seed": [_of_seed(cell, split) for cell in found],
        "difference": None if best is None or best[0].strategy == strategy else _difference(ran, best, split, binary),
        "shipped": fmean(cell.shipped_reports[split].mean for cell in ran) if ran else None,
        "supervised": sum(_supervised(cell) for cell in ran),
    }


def _of_seed(cell: Cell, split: str) -> dict[str, Any]:
    if split not in cell.reports:
        return {"seed": cell.seed, "mean": None}
    dev = cell.reports.get("dev")
    return {
        "seed": cell.seed,
        **summary(cell.reports[split]),
        "dev": None if dev is None else dev.mean,
        "candidate": cell.prefixes[-1].candidate.id,
        "shipped": label(cell.prefixes[cell.shipped].steps),
        "shipped_mean": cell.shipped_reports[split].mean,
    }


def _difference(ran: Sequence[Cell], best: Sequence[Cell], split: str, binary: bool) -> dict[str, Any] | None:
    """The strategy less the best single step, on the seeds at which both ran."""
    others = {cell.seed: cell.reports[split] for cell in best if split in cell.reports}
    pairs = [(cell.seed, cell.reports[split], others[cell.seed]) for cell in ran if cell.seed in others]
    if not pairs:
        return None
    by_seed = [
        {"seed": seed, "mean": one.mean - other.mean, **_interval(_paired([one], [other], binary))}
        for seed, one, other in pairs
    ]
    whole = _paired([one for _, one, _ in pairs], [other for _, _, other in pairs], binary)
    return {"mean": fmean(found["mean"] for found in by_seed), **_interval(whole), "by_seed": by_seed}


def _paired(ones: Sequence[Report], others: Sequence[Report], binary: bool) -> Interval:
    """Interval of the difference over examples, each with its mean over the given reports (one a seed)."""
    first, second = _by_example(ones), _by_example(others)
    if first.keys() != second.keys():
        raise ValueError("the reports are of different examples")
    a, b = [first[name] for name in first], [second[name] for name in first]
    return paired_interval(a, b, binary and len(ones) == 1)


def _by_example(reports: Sequence[Report]) -> dict[str, float]:
    scores: dict[str, list[float]] = {}
    for report in reports:
        for name, score in report.scores:
            scores.setdefault(name, []).append(score)
    return {name: fmean(found) for name, found in scores.items()}


def _interval(interval: Interval) -> dict[str, Any]:
    return {"low": interval.low, "high": interval.high, "method": interval.method}


def _supervised(cell: Cell) -> int:
    """Training rows whose answer is the label or was written with it in sight."""
    return sum(
        count for step in cell.steps for source, count in step.evidence.get("rows", {}).items() if source in SUPERVISED
    )


def _failures(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Steps that could not run, each once with the strategies and seeds that lack for it."""
    found: dict[tuple[Strategy, str, str], dict[str, Any]] = {}
    for cell in cells:
        why = cell.failure
        if why is None:
            continue
        start = {"at": label(cell.failed_at), "code": why.code, "message": why.message, "notes": list(why.notes)}
        one = found.setdefault(
            (cell.failed_at, why.code, why.message), {**start, "help": why.help, "strategies": [], "seeds": []}
        )
        for key, value in (("strategies", label(cell.strategy)), ("seeds", cell.seed)):
            if value not in one[key]:
                one[key].append(value)
    return list(found.values())


def _steps(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Every step that was computed, once, with what it cost."""
    found: dict[tuple[int, Strategy], dict[str, Any]] = {}
    for cell in cells:
        for length, step in enumerate(cell.steps, start=1):
            steps = cell.prefixes[length].steps
            found[cell.seed, steps] = {
                "seed": cell.seed,
                "strategy": label(steps),
                "calls": step.calls,
                "cached_calls": step.cached_calls,
                "prompt_tokens": step.prompt_tokens,
                "completion_tokens": step.completion_tokens,
                "seconds": step.seconds,
            }
    return [found[key] for key in sorted(found)]
