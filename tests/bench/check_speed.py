"""How fast the commands are that people wait for: `btc check specs/iris.yaml` and `btc --help`, as whole processes.

    python tests/bench/check_speed.py [-n 20]

Prints median, least and most wall seconds of n runs after one that warms the file cache, the CPU seconds of the median
run, and which heavy libraries the process imported (by a run apart, with Python's own import log).
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "peft", "vllm")
COMMANDS = {
    "btc check specs/iris.yaml": (["check", "specs/iris.yaml"], 0.3),
    "btc --help": (["--help"], 0.2),
}
"""Command -> (arguments, seconds it may take)."""


class Run(NamedTuple):
    """One process."""

    wall: float
    cpu: float


def measure(arguments: list[str]) -> Run:
    """Runs the installed `btc` once, output thrown away. Raises CalledProcessError."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    command = [str(Path(sys.executable).with_name("btc")), *arguments]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Run(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def heavy_imports(arguments: list[str]) -> list[str]:
    """Which of the heavy libraries the command imports."""
    command = [sys.executable, "-X", "importtime", str(Path(sys.executable).with_name("btc")), *arguments]
    log = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in log.stderr.splitlines()}
    if "click" not in imported:
        raise RuntimeError("the import log is empty: nothing was measured")
    return sorted(imported.intersection(HEAVY))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=20, help="runs of each command")
    count = parser.parse_args().n
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}, n = {count}")
    for name, (arguments, limit) in COMMANDS.items():
        measure(arguments)
        runs = sorted(measure(arguments) for _ in range(count))
        walls = [run.wall for run in runs]
        median = statistics.median(walls)
        print(
            f"{name:26}  median {median:.3f} s  min {walls[0]:.3f}  max {walls[-1]:.3f}  "
            f"cpu {runs[len(runs) // 2].cpu:.3f}  limit {limit} {'met' if median <= limit else 'MISSED'}  "
            f"heavy imports: {', '.join(heavy_imports(arguments)) or 'none'}"
        )


if __name__ == "__main__":
    main()
