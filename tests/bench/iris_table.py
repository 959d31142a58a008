"""Figure 1: Iris, held-out accuracy of zero-shot, Π, Θ and Π→Θ→Π as compiles of their own, over seeds.

Rows of the weights step from the program alone (`self`, `demos`, `sampled`: what it got right itself) and with gold
rows, side by side. Prints a Markdown table: mean, score of every seed, minutes of a compile, n of the test split.

    python tests/bench/iris_table.py --spec specs/iris.yaml --seeds 0,1,2 --jobs 2 --out /tmp/iris

The spec's split is by content and the same for every seed: 50 flowers are all that is held out. With `--resplit` each
seed has a stratified split of its own, so that three seeds score up to 150.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

STRATEGIES = {"Π": "[prompts]", "Θ": "[weights]", "Π→Θ→Π": "[prompts, weights, prompts]"}
SOURCES = {"self": "[self, demos, sampled]", "gold": "[self, demos, sampled, gold, hinted]"}


def resplit(folder: Path, seed: int) -> str:
    """Writes a stratified 50/50/50 split that follows from `seed`; the `data` section that names it.

    One flower of the set has an exact copy: the two come first and stay together.
    """
    from sklearn.datasets import load_iris

    iris = load_iris()
    names = [name.removesuffix(" (cm)").replace(" ", "_") for name in iris.feature_names]
    rows = [[*values, str(iris.target_names[kind])] for values, kind in zip(iris.data, iris.target, strict=True)]
    rng = random.Random(seed)
    parts: list[list[list[Any]]] = [[], [], []]
    order = [row for kind in iris.target_names for row in rng.sample([row for row in rows if row[-1] == kind], 50)]
    copies = [row for row in order if order.count(row) > 1]
    parts[rng.randrange(3)] += copies
    for row in order:
        if row not in copies:
            min(parts, key=len).append(row)
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in zip(("train", "dev", "test"), parts, strict=True):
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([[*names, "species"], *part])
    return ", ".join(f"{name}: {folder.absolute()}/{name}.csv" for name in ("train", "dev", "test"))


def compile_once(
    spec: str, strategy: str, sources: str, seed: int, out: Path, threads: int, data: str | None
) -> dict[str, Any]:
    """One compile in a process of its own; resumes what an earlier run of this script has begun."""
    folder = out / f"{Path(spec).stem}-{strategy}-{sources}-{seed}"
    command = [sys.executable, "-m", "bt_compiler", "compile", spec, "-o", str(folder), "--seed", str(seed), "--json"]
    command += ["--set", f"optimize.strategy={STRATEGIES[strategy]}"]
    command += ["--set", f"optimize.weights.sources={SOURCES[sources]}"]
    command += [] if data is None else ["--set", f"data={{path: null, split: null, stratify: null, {data}}}"]
    started = time.monotonic()
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    minutes = (time.monotonic() - started) / 60
    try:
        document = json.loads(done.stdout)
    except json.JSONDecodeError:
        return {"failed": done.stderr[-2000:]}
    if not document["ok"]:
        return {"failed": document["diagnostics"][0]["code"] + ": " + document["diagnostics"][0]["message"]}
    return {"scores": document["scores"], "minutes": minutes, "digest": document["digest"]}


def row(label: str, results: list[dict[str, Any]], who: str) -> str:
    """One line of the table."""
    scores = [one["scores"][who]["test"]["mean"] for one in results if "scores" in one]
    failed = [one["failed"] for one in results if "failed" in one]
    if not scores:
        return f"| {label} | — | | {failed[0].splitlines()[0] if failed else ''} |"
    minutes = [one["minutes"] for one in results if "minutes" in one]
    shown = ", ".join(f"{score:.2f}" for score in scores)
    note = f"; {len(failed)} failed: {failed[0]}" if failed else ""
    return f"| {label} | {mean(scores):.3f} | {shown} | {mean(minutes):.1f} min{note} |"


def main() -> None:
    """Parse arguments, run every compile, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", default="specs/iris.yaml")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--jobs", type=int, default=1, help="compiles at once")
    parser.add_argument("--threads", type=int, default=2, help="threads of one compile")
    parser.add_argument("--resplit", action="store_true", help="a split of its own for each seed")
    parser.add_argument("--columns", default="gold,self", help="sources of rows: gold, self or both")
    parser.add_argument("--out", type=Path, default=Path("artifacts/iris-table"))
    arguments = parser.parse_args()
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    # the prompts step has no training rows: one compile stands for both columns
    columns = arguments.columns.split(",")
    cells = [("Π", "self")] + [(strategy, sources) for sources in columns for strategy in ("Π→Θ→Π", "Θ")]
    data = {seed: resplit(arguments.out / f"split-{seed}", seed) if arguments.resplit else None for seed in seeds}
    jobs = [(*cell, seed) for cell in cells for seed in seeds]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        running = {
            job: pool.submit(compile_once, arguments.spec, *job, arguments.out, arguments.threads, data[job[-1]])
            for job in jobs
        }
        results = {}
        for job, future in running.items():
            results[job] = future.result()
            print(job, {key: value for key, value in results[job].items() if key != "scores"}, file=sys.stderr)
    found = [one for one in results.values() if "scores" in one]
    size = found[0]["scores"]["shipped"]["test"]["n"] if found else 0
    print(f"\n{arguments.spec}, held-out accuracy, n={size}, seeds {arguments.seeds}\n")
    print("| strategy, rows | mean | by seed | compile |\n| --- | --- | --- | --- |")
    print(row("zero-shot", [results["Π", "self", seed] for seed in seeds], "zero_shot"))
    for strategy, sources in cells:
        label = strategy if strategy == "Π" else f"{strategy}, {sources}"
        print(row(label, [results[strategy, sources, seed] for seed in seeds], "shipped"))


if __name__ == "__main__":
    main()
