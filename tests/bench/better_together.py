"""BetterTogether whole (Π→Θ→Π) on Iris: btc against DSPy's, same LM, data, split, sizes and training settings.

    python -m venv /tmp/dspyenv && /tmp/dspyenv/bin/pip install dspy
    python tests/bench/better_together.py --dspy /tmp/dspyenv/bin/python --vllm .venv-vllm/bin/python --model FOLDER

DSPy runs against a vLLM server on this machine and trains in a process of the server's environment; what had to be
patched is said in `dspy_together.py`. btc runs on the embedded engine, from rows of the program's own answers, which is
all that DSPy learns from, and from all sources, gold included. Both search 6 random candidates beside the 3 fixed ones
with 3 demos, DSPy over its 50 dev flowers, btc over 35 of train. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from against_dspy import ROOT, served

from bt_compiler.compiler.check import checked

SPEC = ROOT / "specs" / "iris.yaml"
SIDE = Path(__file__).with_name("dspy_together.py")
SOURCES = {"own answers": "[self, demos, sampled]", "all sources": "[self, demos, sampled, gold, hinted]"}


def write_splits(folder: Path) -> None:
    """The splits of the spec as CSV files."""
    for name, split in checked(SPEC).splits._asdict().items():
        rows = [{**example.inputs, **example.labels} for example in split]
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def dspy_run(args: argparse.Namespace, folder: Path, url: str) -> dict[str, Any]:
    """One BetterTogether by DSPy."""
    training = {"r": 32, "alpha": 64, "learning_rate": 1e-3, "warmup": 5, "batch": 4, "epochs": 20, "bf16": args.bf16}
    training["model"] = str(args.model)
    command = [str(args.dspy), str(SIDE), "--url", url, "--model", "smollm2", "--trainer", str(args.vllm)]
    command += ["--training", json.dumps(training), "--folder", str(folder)]
    for name in ("train", "dev", "test"):
        command += [f"--{name}", str(folder / f"{name}.csv")]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def btc_run(args: argparse.Namespace, folder: Path, sources: str) -> dict[str, Any]:
    """One compile on the embedded engine, with a cache of its own."""
    out = folder / f"bundle-{len(sources)}"
    command = [sys.executable, "-m", "bt_compiler", "compile", str(SPEC), "--json", "-o", str(out)]
    command += ["--set", f"model.id={args.model}", "--set", f"optimize.weights.sources={sources}"]
    started = time.perf_counter()
    subprocess.run(command, stdout=subprocess.PIPE, env={**os.environ, "BTC_CACHE": f"{out}-cache"}, check=True)
    seconds = time.perf_counter() - started
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return {
        "seconds": seconds,
        "zero_shot": report["scores"]["zero_shot"]["test"]["mean"],
        "test": report["scores"]["shipped"]["test"]["mean"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("dspy", "vllm", "model"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--bf16", action="store_true", help="DSPy's training in bfloat16 too, where that is faster")
    parser.add_argument("--threads", type=int, default=1, help="of the server")
    parser.add_argument("--sides", default="dspy,own answers,all sources", help="which of them to run")
    parser.add_argument("--port", type=int, default=8812)
    args = parser.parse_args()
    sides = args.sides.split(",")
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="better-together-") as name:
        folder = Path(name)
        write_splits(folder)
        for side, sources in SOURCES.items():
            if side in sides:
                results[f"btc, {side}"] = btc_run(args, folder, sources)
                print(side, results[f"btc, {side}"], file=sys.stderr)
        if "dspy" in sides:
            adapters = ["--enable-lora", "--max-lora-rank", "32"]
            with served(args.vllm, args.model, args.port, args.threads, *adapters) as url:
                results["DSPy, own answers"] = dspy_run(args, folder, url)
                print("dspy", results["DSPy, own answers"], file=sys.stderr)
    print("| Π→Θ→Π on Iris | seconds | zero-shot, test | shipped, test |\n| --- | --- | --- | --- |")
    for side, one in results.items():
        print(f"| {side} | {one['seconds']:.0f} | {one['zero_shot']:.2f} | {one['test']:.2f} |")


if __name__ == "__main__":
    main()
