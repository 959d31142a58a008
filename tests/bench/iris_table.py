"""Figure 1: Iris, held-out accuracy of zero-shot, Π, Θ and Π→Θ→Π as compiles of their own, over seeds.

Rows of the weights step from the program alone (`self`, `sampled`: what it got right itself) and with gold rows,
side by side. Prints a Markdown table: mean, score of every seed, minutes of a compile, and n of the test split.

    python tests/bench/iris_table.py --spec specs/iris.yaml --seeds 0,1,2 --jobs 2 --out /tmp/iris
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

STRATEGIES = {"Π": "[prompts]", "Θ": "[weights]", "Π→Θ→Π": "[prompts, weights, prompts]"}
SOURCES = {"self": "[self, sampled]", "gold": "[self, sampled, gold, hinted]"}


def compile_once(spec: str, strategy: str, sources: str, seed: int, out: Path, threads: int) -> dict[str, Any]:
    """One compile in a process of its own; resumes what an earlier run of this script has begun."""
    folder = out / f"{Path(spec).stem}-{strategy}-{sources}-{seed}"
    command = [sys.executable, "-m", "bt_compiler", "compile", spec, "-o", str(folder), "--seed", str(seed), "--json"]
    command += ["--set", f"optimize.strategy={STRATEGIES[strategy]}"]
    command += ["--set", f"optimize.weights.sources={SOURCES[sources]}"]
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
    parser.add_argument("--out", type=Path, default=Path("artifacts/iris-table"))
    arguments = parser.parse_args()
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    # the prompts step has no training rows: one compile stands for both columns
    cells = [("Π", "self")] + [(strategy, sources) for sources in ("gold", "self") for strategy in ("Π→Θ→Π", "Θ")]
    jobs = [(*cell, seed) for cell in cells for seed in seeds]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        running = {
            job: pool.submit(compile_once, arguments.spec, *job, arguments.out, arguments.threads) for job in jobs
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
