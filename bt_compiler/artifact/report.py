"""The data of the report: `report.json`, and what the page is drawn from. Knows neither HTML nor plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from bt_compiler.artifact.contents import BundleContents, Difference, StepFacts
from bt_compiler.engine.trace import Interval, Report

REPORT_SCHEMA = 1
SYMBOLS = {"prompts": "Π", "weights": "Θ"}
"""The paper's letters for what a step changes."""
SUPERVISED = ("gold", "hinted")
"""Row sources in which labels, not the program's own answers, were what was learnt."""
OWN = ("self", "demos", "sampled", "hinted")
"""Row sources that ran on the weights of the steps before."""


def strategy_label(steps: Sequence[str]) -> str:
    """`Π→Θ`, or `zero-shot` for no steps."""
    return "→".join(SYMBOLS.get(step, step) for step in steps) or "zero-shot"


def scores_of(contents: BundleContents) -> dict[str, dict[str, Any]]:
    """`{"zero_shot": {split: summary}, "shipped": …, "difference": …}` as in the manifest."""
    scores: dict[str, dict[str, Any]] = {
        who: {split: summary(report) for split, report in by_split.items()}
        for who, by_split in contents.reports.items()
    }
    scores["difference"] = {split: _difference(one) for split, one in contents.differences.items()}
    return scores


def summary(report: Report) -> dict[str, Any]:
    """Mean, interval, n and failures of a report; `tool_errors` where tools of `react` modules failed."""
    return {
        "mean": report.mean,
        **_interval(report.interval),
        "n": len(report.scores),
        "failures": len(report.failures),
        **({"tool_errors": report.tool_errors} if report.tool_errors else {}),
    }


def report_json(contents: BundleContents, *, digest: str) -> dict[str, Any]:
    """Everything that the page shows, as JSON values."""
    return {
        "schema_version": REPORT_SCHEMA,
        "name": contents.program.name,
        "digest": digest,
        "created": contents.created,
        "seconds": contents.seconds,
        "seed": contents.seed,
        "strategy": list(contents.strategy),
        "scores": scores_of(contents),
        "failures": _failures(contents),
        "tool_failures": _tool_failures(contents),
        "prefixes": [
            {
                "label": strategy_label(prefix.steps),
                "steps": list(prefix.steps),
                "candidate": prefix.candidate,
                "chosen": prefix.chosen,
                **({} if prefix.report is None else summary(prefix.report)),
            }
            for prefix in contents.prefixes
        ],
        "steps": [_step(step) for step in contents.steps],
        "rows": rows_by_source(contents),
        **({} if contents.agreement is None else {"judge": asdict(contents.agreement)}),
        "confusion": None if contents.confusion is None else asdict(contents.confusion),
        "prompts": _prompts(contents),
        "lineage": [asdict(one) for one in contents.lineage],
        "adapters": {
            key: {"name": one.name, "rank": one.rank, "base_model": one.base_model, "sha256": one.sha256}
            for key, one in contents.candidate.adapters.items()
        },
        "models": {name: asdict(model) for name, model in contents.models.items()},
        "data": {name: asdict(facts) for name, facts in contents.data.items()},
        "retrievers": dict(contents.retrievers),
        "versions": dict(contents.versions),
        "environment": dict(contents.environment),
        "fixed_parts": contents.fixed_parts,
    }


def rows_by_source(contents: BundleContents) -> list[dict[str, Any]]:
    """`{"step", "source", "rows", "supervised", "shipped"}` for every source of every weights step; `shipped`: the step
    is behind the shipped weights.
    """
    behind = _behind_shipped(contents)
    return [
        {
            "step": step.index,
            "source": source,
            "rows": count,
            "supervised": source in SUPERVISED,
            "shipped": step.index in behind,
        }
        for step in contents.steps
        for source, count in dict(step.evidence.get("rows", {})).items()
    ]


def _behind_shipped(contents: BundleContents) -> set[int]:
    """Indices of the weights steps whose adapters ship, of those that one of them went on from, and of those on whose
    weights rows of one of them, or answers that it learnt to avoid, were written.
    """
    chosen = next((len(prefix.steps) for prefix in contents.prefixes if prefix.chosen), len(contents.steps))
    shipped = {adapter.sha256 for adapter in contents.candidate.adapters.values()}
    behind: set[int] = set()
    leans = False
    for step in reversed(contents.steps):
        adapters = {one["sha256"] for one in step.evidence.get("adapters", ())}
        if step.index <= chosen and adapters and (leans or adapters & shipped):
            behind.add(step.index)
            shipped -= adapters
            own = any(step.evidence["rows"].get(source) for source in OWN)
            leans = leans or own or "start" in step.evidence or "preference" in step.evidence
    return behind


def shipped_rows(contents: BundleContents) -> dict[str, int]:
    """Training rows behind the shipped weights, by source: those of each step that is behind them, so that a row which
    two of these steps learnt counts in both.
    """
    found: dict[str, int] = {}
    for row in rows_by_source(contents):
        if row["shipped"] and row["rows"]:
            found[row["source"]] = found.get(row["source"], 0) + row["rows"]
    return found


def bounds(value: Any) -> tuple[float, float] | None:
    """(low, high) of an interval in evidence: an object with `low` and `high`, or a pair."""
    if isinstance(value, Mapping) and "low" in value and "high" in value:
        return float(value["low"]), float(value["high"])
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2:
        return float(value[0]), float(value[1])
    return None


def _interval(interval: Interval) -> dict[str, Any]:
    return {"low": interval.low, "high": interval.high, "level": interval.level, "method": interval.method}


def _difference(one: Difference) -> dict[str, Any]:
    return {"mean": one.mean, **_interval(one.interval)}


def _failures(contents: BundleContents) -> list[dict[str, Any]]:
    """The shipped program's failed examples, by split."""
    return [
        {"split": split, "example": example, "code": failure.code, "message": failure.message, "node": failure.node}
        for split, report in contents.reports.get("shipped", {}).items()
        for example, failure in report.failures
    ]


def _tool_failures(contents: BundleContents) -> list[dict[str, Any]]:
    """Why tools of the shipped program's `react` modules failed, by split, the most frequent first."""
    return [
        {"split": split, **asdict(one)}
        for split, report in contents.reports.get("shipped", {}).items()
        for one in report.tool_failures
    ]


def _step(step: StepFacts) -> dict[str, Any]:
    return {
        **asdict(step),
        "evidence": dict(step.evidence),
        "label": f"{step.index} {SYMBOLS.get(step.kind, step.kind)}",
    }


def _prompts(contents: BundleContents) -> list[dict[str, Any]]:
    return [
        {
            "module": name,
            "instructions": prompt.instructions,
            "demos": len(prompt.demos),
            "origins": [demo.origin for demo in prompt.demos],
            "sent": asdict(contents.sent[name]) if name in contents.sent else None,
        }
        for name, prompt in contents.candidate.prompts.items()
    ]
