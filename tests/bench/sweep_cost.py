"""Sweep cost: LM calls and seconds of `--strategies all` against nine separate compiles of the same spec.

    python tests/bench/sweep_cost.py                                   # a tiny random LM: seconds
    python tests/bench/sweep_cost.py --spec specs/iris.yaml --threads 2    # the real thing: hours

Three ways, each with folders and cache of its own: the sweep; nine compiles that share nothing; nine compiles that
share the completion cache, as on a user's machine. LM calls are the requests that reach the model. Every sweep score of
a shipped program has to be that of its compile, and the script fails where one is not.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))


@dataclass(slots=True)
class Counted:
    """A backend that counts the requests it is given; everything else is the backend's own."""

    inner: Any
    asked: list[int]

    def submit(self, requests: Sequence[Any]) -> None:
        """Counts and passes on."""
        self.asked[0] += len(requests)
        self.inner.submit(requests)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one way took."""

    calls: int
    seconds: float
    scores: dict[str, float]
    """Strategy -> test score of what ships."""


def counted(cache: Path, asked: list[int]) -> Callable[[Any, Any], Any]:
    """Opens backends as the spec says, and counts."""
    from bt_compiler.compiler.opening import backend_opener
    from bt_compiler.engine.progress import Silent

    opener = backend_opener(cache, Silent())
    return lambda section, choices: Counted(opener(section, choices), asked)


def by_sweep(spec: Path, folder: Path, seed: int) -> Cost:
    """All strategies in one sweep."""
    from bt_compiler.compiler.sweep import SweepSettings, sweep_spec

    asked, started = [0], time.monotonic()
    settings = SweepSettings(
        seeds=(seed,), out=folder / "sweep", cache=folder / "cache", opener=counted(folder / "cache", asked)
    )
    (table,) = sweep_spec(spec, settings).document["tables"]
    scores = {row["strategy"]: row["shipped"] for row in table["rows"] if row["shipped"] is not None}
    return Cost(calls=asked[0], seconds=time.monotonic() - started, scores=scores)


def by_compiles(
    spec: Path, folder: Path, seed: int, *, shared: bool, strategies: Sequence[tuple[str, ...]] | None = None
) -> Cost:
    """A compile a strategy (None: the nine), one after another in this process.

    A strategy that cannot run counts as far as it came.
    """
    from bt_compiler.artifact.bundle import read_bundle
    from bt_compiler.compiler.compile import CompileSettings, compile_with
    from bt_compiler.errors import CompileError
    from bt_compiler.optimize.sweep import PAPER
    from bt_compiler.optimize.sweep_table import label

    asked, scores, started = [0], {}, time.monotonic()
    for number, strategy in enumerate(PAPER if strategies is None else strategies):
        cache = folder / ("cache" if shared else f"cache-{number}")
        settings = CompileSettings(
            out=folder / f"bundle-{number}",
            overrides=[f"optimize.strategy=[{', '.join(strategy)}]"],
            seed=seed,
            cache=cache,
            opener=counted(cache, asked),
        )
        try:
            manifest = read_bundle(compile_with(spec, settings)).manifest
        except CompileError as error:
            print(f"{label(strategy)}: {error.diagnostics[0].message}", file=sys.stderr)
            continue
        scores[label(strategy)] = manifest.scores["shipped"]["test"]["mean"]
    return Cost(calls=asked[0], seconds=time.monotonic() - started, scores=scores)


def tiny_spec(folder: Path) -> Path:
    """A classifier on a random LM of two layers, with gold rows, so that every step has work."""
    from kill_resume import prepare

    return prepare(folder).spec


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spec", type=Path, help="a spec; default: a tiny random LM on 18 rows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--without-sharing", action="store_true", help="leave out the compiles that share the cache")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spec = arguments.spec or tiny_spec(folder)
        by_compiles(spec, folder / "warm", arguments.seed, shared=True, strategies=((),))  # libraries are loaded by now
        ways = {
            "sweep, all strategies": by_sweep(spec, folder / "by-sweep", arguments.seed),
            "nine compiles, nothing shared": by_compiles(spec, folder / "apart", arguments.seed, shared=False),
        }
        if not arguments.without_sharing:
            ways["nine compiles, shared cache"] = by_compiles(spec, folder / "shared", arguments.seed, shared=True)
    sweep = next(iter(ways.values()))
    print(f"{arguments.spec or 'tiny random LM'}, seed {arguments.seed}, {arguments.threads} threads\n")
    print("| way | LM calls | seconds | calls against the sweep | seconds against the sweep |")
    print("| --- | --- | --- | --- | --- |")
    for label, cost in ways.items():
        ratios = f"{cost.calls / sweep.calls:.2f} | {cost.seconds / sweep.seconds:.2f}"
        print(f"| {label} | {cost.calls} | {cost.seconds:.1f} | {ratios} |")
    different = [label for label, cost in ways.items() if cost.scores != sweep.scores]
    print(
        f"\nscores of what ships: {'the same in every way' if not different else 'different: ' + ', '.join(different)}"
    )
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
