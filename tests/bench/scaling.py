"""How a compile grows with examples and candidates, and whether a long batch takes flat memory.

    python tests/bench/scaling.py [--rows 100000]

A tiny random LM, so that seconds are those of everything around the model. Each line is a compile (Π→Θ→Π, gold rows, no
racing, cache of its own) in a process of its own: seconds, peak memory, and both over those of the first line. Then the
bundle answers `--rows` rows through `btc run --batch`: rows a second, and resident memory after a tenth, a half and all
of them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tiny_lm import make_tiny_lm

WORDS = ("invoice", "card", "charged", "twice", "crash", "button", "screen", "login", "error", "how", "where", "refund")
SPEC = """\
version: 1
name: scaling
model: {model}
data: {{train: train-{examples}.jsonl, dev: dev-{examples}.jsonl}}
modules:
  classify:
    kind: predict
    signature: {{inputs: {{text: str}}, outputs: {{label: {{enum: [billing, bug, question]}}}}}}
metric: accuracy
optimize:
  strategy: [prompts, weights, prompts]
  prompts: {{candidates: {candidates}, max_bootstrapped_demos: 2, racing: 0, train: {train}, val: {val}}}
  weights: {{sources: [gold], r: 4, alpha: 8, epochs: 1, batch: 8}}
"""


class Used(NamedTuple):
    """What a process took."""

    seconds: float
    peak: float
    """GB."""


def write_rows(path: Path, count: int, rng: random.Random) -> None:
    with path.open("w", encoding="utf-8") as file:
        for index in range(count):
            label = rng.choice(("billing", "bug", "question"))
            text = f"{index} " + " ".join(rng.choice(WORDS) for _ in range(8))
            file.write(json.dumps({"text": text, "label": label}) + "\n")


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "BTC_CACHE": f"{folder}-cache", "OMP_NUM_THREADS": "1"}


def compiled(folder: Path, name: str, *, examples: int, candidates: int) -> Used:
    """Compiles one size into `folder/name`."""
    spec = folder / f"{name}.yaml"
    spec.write_text(
        SPEC.format(
            model=folder / "lm", examples=examples, candidates=candidates, train=examples // 4, val=examples // 2
        )
    )
    command = [sys.executable, "-m", "bt_compiler", "compile", str(spec), "-o", str(folder / name)]
    started = time.monotonic()
    with (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen(command, env=environment(folder / name), stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit((folder / f"{name}.log").read_text())
    return Used(time.monotonic() - started, usage.ru_maxrss / 1e6)


def resident(pid: int) -> float:
    """GB in memory now."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e9


def batch(folder: Path, bundle: Path, rows: int) -> None:
    """Runs the bundle over `rows` rows and prints how memory went."""
    asked, answered = folder / "asked.jsonl", folder / "answered.jsonl"
    with asked.open("w", encoding="utf-8") as file:
        rng = random.Random(1)
        for index in range(rows):
            file.write(json.dumps({"text": f"{index} " + " ".join(rng.choice(WORDS) for _ in range(8))}) + "\n")
    command = [sys.executable, "-m", "bt_compiler", "run", str(bundle), "--batch", str(asked)]
    marks = [rows // 10, rows // 2, rows]
    started = time.monotonic()
    done, seen = 0, []
    with answered.open("wb") as out, subprocess.Popen(command, env=environment(bundle), stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        for line in run.stdout:
            out.write(line)
            done += 1
            if done in marks:
                seen.append(f"{resident(run.pid):.3f} GB after {done}")
    seconds = time.monotonic() - started
    print(f"\n`btc run --batch`: {done} answers, {done / seconds:.0f} a second; {', '.join(seen)}")
    if run.returncode or done != rows:
        sys.exit(f"exit status {run.returncode}, {done} of {rows} answers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="btc-scaling-") as place:
        folder = Path(place)
        make_tiny_lm(folder / "lm", WORDS)
        rng = random.Random(0)
        for examples in (80, 800):
            write_rows(folder / f"train-{examples}.jsonl", examples, rng)
            write_rows(folder / f"dev-{examples}.jsonl", examples, rng)
        print("| train, dev | candidates | seconds | peak memory | of the first |\n| --- | --- | --- | --- | --- |")
        first: Used | None = None
        for name, examples, candidates in (("small", 80, 4), ("examples", 800, 4), ("candidates", 80, 40)):
            used = compiled(folder, name, examples=examples, candidates=candidates)
            first = first or used
            ratio = f"{used.seconds / first.seconds:.1f} x seconds, {used.peak / first.peak:.2f} x memory"
            print(
                f"| {examples}, {examples} | {candidates} | {used.seconds:.1f} | {used.peak:.2f} GB | {ratio} |",
                flush=True,
            )
        batch(folder, folder / "small", settings.rows)


if __name__ == "__main__":
    main()
