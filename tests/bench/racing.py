"""Replays recorded full evaluations of prompts steps: does racing find the winner, and with how many runs less?

    btc compile specs/iris.yaml -o /tmp/full --set optimize.prompts.racing=0 --set optimize.strategy='[prompts]'
    python tests/bench/racing.py /tmp/full [BUNDLE…]

Takes the scores of every candidate on every example from the bundles' reports (those compiled with `racing: 0` have
them all), and races them in 200 random orders of the examples. Prints one line a step: runs without racing over runs
with it, how often the same candidate won, and how often one that is at most a standard error of the winner's mean
below it.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from bt_compiler.optimize.racing import race


class Replayed(NamedTuple):
    """What came of all replays of one table."""

    saving: float
    """Runs without racing over runs with it."""
    same: float
    """Share of the replays in which the winner of the full evaluation won."""
    close: float
    """Share in which the one that won is at most one standard error worse."""


def tables(bundle: Path) -> list[tuple[str, list[list[float]]]]:
    """Scores by candidate and example of each prompts step whose candidates met every example."""
    report: dict[str, Any] = json.loads((bundle / "report.json").read_text(encoding="utf-8"))
    found = []
    for step in report["steps"]:
        scored = [one["scores"] for one in step["evidence"].get("candidates", ()) if "scores" in one]
        if len(scored) > 1 and len({len(scores) for scores in scored}) == 1:
            examples = sorted(scored[0])
            found.append((f"{bundle.name} step {step['index']}", [[one[name] for name in examples] for one in scored]))
    return found


def replay(table: list[list[float]], *, error: float, indifference: float, replays: int) -> Replayed:
    """Races `table` in `replays` seeded orders of its examples."""
    total = len(table[0])
    means = [fmean(scores) for scores in table]
    best = max(range(len(table)), key=lambda index: (means[index], -index))
    deviation = sqrt(fmean([(score - means[best]) ** 2 for score in table[best]]) / total)
    same = close = runs = 0
    for seed in range(replays):
        order = random.Random(seed).sample(range(total), total)
        mixed = [[scores[place] for place in order] for scores in table]

        def score(running: Sequence[int], start: int, end: int, mixed: list[list[float]] = mixed) -> list[list[float]]:
            return [mixed[index][start:end] for index in running]

        met = race(len(table), total, error, score, indifference=indifference)
        finished = [index for index, scores in enumerate(met) if len(scores) == total]
        winner = max(finished, key=lambda index: (means[index], -index))
        same += winner == best
        close += means[winner] >= means[best] - deviation
        runs += sum(map(len, met))
    return Replayed(saving=len(table) * total * replays / runs, same=same / replays, close=close / replays)


def main() -> None:
    """Parse arguments, replay every table, print a line each and the means."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--error", type=float, default=0.05)
    parser.add_argument("--indifference", type=float, default=0.0)
    parser.add_argument("--replays", type=int, default=200)
    args = parser.parse_args()
    results = []
    for bundle in args.bundles:
        for name, table in tables(bundle):
            found = replay(table, error=args.error, indifference=args.indifference, replays=args.replays)
            results.append(found)
            print(
                f"{name}: {len(table)} candidates x {len(table[0])} examples, {found.saving:.2f} times fewer runs, "
                f"same winner {found.same:.1%}, within a standard error {found.close:.1%}"
            )
    if results:
        saving, same, close = (fmean(values) for values in zip(*results, strict=True))
        print(
            f"mean of {len(results)} tables: {saving:.2f} times fewer runs, same winner {same:.1%}, "
            f"within a standard error {close:.1%}"
        )


if __name__ == "__main__":
    main()
