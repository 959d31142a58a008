"""Kills a compile with `kill -9` at random moments and resumes it: every digest has to be that of an undisturbed run.

    python tests/bench/kill_resume.py --kills 30

One undisturbed compile of a tiny random LM with gold rows (so that every step has work) gives the digest and the time
that kills are spread over. Then, for each kill: a new bundle folder, a cache copied from a compile of another spec (so
that it is partly warm), another PYTHONHASHSEED for each process, `kill -9` at a uniformly random moment, and the same
command again until it ends. Prints one line a kill and, at the end, the digests with their counts.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from tiny_lm import make_tiny_lm

SPEC = """\
version: 1
name: tiny
model: {{id: {model}, dtype: float32, generation: {{max_tokens: 8}}}}
data: {{train: train.jsonl, dev: dev.jsonl, test: test.jsonl}}
modules:
  classify:
    signature:
      instructions: Say which kind it is.
      inputs: {{size: float, weight: float}}
      outputs: {{kind: {{enum: [apple, pear, plum]}}}}
metric: {{kind: accuracy, output: kind}}
optimize:
  strategy: [prompts, weights, prompts]
  prompts: {{candidates: {candidates}, max_bootstrapped_demos: 2, max_labeled_demos: 2}}
  weights: {{r: 4, alpha: 8, epochs: {epochs}, learning_rate: 1.0e-2, batch: 2, samples: 2}}
"""
KINDS = ("apple", "pear", "plum")
_RUN = "import sys; from bt_compiler.cli import main; sys.argv[0] = 'btc'; main()"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where everything of one series lies."""

    folder: Path
    spec: Path
    warm: Path
    """A cache that a compile of another spec has filled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One compile that was killed, or none (`after` None)."""

    digest: str
    after: float | None
    """Seconds until the kill; None: it had ended by then."""
    seconds: float
    """Of the run that ended."""
    stage: str
    """The last that was said before the kill."""


def prepare(folder: Path, *, rows: int = 18, epochs: int = 6) -> Place:
    """Data, model, the spec, and a cache filled by a compile of another spec over the same model and data."""
    rng = random.Random(5)
    for split, count in (("train", rows), ("dev", 8), ("test", 6)):
        lines = [
            {
                "size": round(3.0 + index % 3 * 2 + rng.random(), 1),
                "weight": round(50 + index % 3 * 40 + 10 * rng.random(), 1),
                "kind": KINDS[index % 3],
            }
            for index in range(count)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    texts = [
        "Say which kind it is. Size: 3.5 Weight: 71.2 Kind: apple",
        "You are given: Answer with exactly this line:",
    ]
    model = make_tiny_lm(folder / "model", [*texts * 20, *KINDS * 20])
    (folder / "other.yaml").write_text(SPEC.format(model=model, candidates=1, epochs=2))
    spec = folder / "tiny.yaml"
    spec.write_text(SPEC.format(model=model, candidates=3, epochs=epochs))
    place = Place(folder=folder, spec=spec, warm=folder / "warm")
    command = _start(folder / "other.yaml", folder / "artifacts" / "other", place.warm, hash_seed=1)
    command.communicate()
    if command.returncode != 0:
        raise SystemExit("the compile that warms the cache failed")
    return place


def undisturbed(place: Place) -> Outcome:
    """A compile from start to end with a cold cache."""
    return _finish(place, place.folder / "artifacts" / "undisturbed", place.folder / "cold", after=None, stage="")


def killed(place: Place, name: str, *, within: float, rng: random.Random) -> Outcome:
    """A compile that is killed once, after at most `within` seconds, and then run again."""
    out, cache = place.folder / "artifacts" / name, place.folder / f"cache-{name}"
    shutil.copytree(place.warm, cache)
    after = rng.uniform(0.5, within)
    process = _start(place.spec, out, cache, hash_seed=rng.randrange(1, 2**31))
    try:
        _, said = process.communicate(timeout=after)
        if process.returncode != 0:
            raise SystemExit(f"the compile failed by itself:\n{said}")
        return _finish(place, out, cache, after=None, stage="ended before the kill")
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        _, said = process.communicate()
    lines = [line for line in said.splitlines() if line.strip()]
    return _finish(place, out, cache, after=after, stage=lines[-1].strip() if lines else "starting", rng=rng)


def _finish(
    place: Place, out: Path, cache: Path, *, after: float | None, stage: str, rng: random.Random | None = None
) -> Outcome:
    started = time.monotonic()
    process = _start(place.spec, out, cache, hash_seed=2 if rng is None else rng.randrange(1, 2**31))
    _, said = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"the compile failed:\n{said}")
    digest = json.loads((out / "manifest.json").read_text())["digest"]
    return Outcome(digest=digest, after=after, seconds=time.monotonic() - started, stage=stage)


def _start(spec: Path, out: Path, cache: Path, *, hash_seed: int) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "PYTHONHASHSEED": str(hash_seed),
        "BTC_CACHE": str(cache),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",  # matrices of width 32 gain nothing from more
    }
    return subprocess.Popen(
        [sys.executable, "-c", _RUN, "compile", str(spec), "-o", str(out)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def series(place: Place, kills: int, *, seed: int, within: float) -> Iterator[Outcome]:
    """Compiles until `kills` of them were killed in time; caches are removed as they are done."""
    rng = random.Random(seed)
    number = in_time = 0
    while in_time < kills:
        name = f"killed-{number}"
        outcome = killed(place, name, within=within, rng=rng)
        shutil.rmtree(place.folder / f"cache-{name}")
        number, in_time = number + 1, in_time + (outcome.after is not None)
        yield outcome


def main() -> None:
    """Prints the digests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = prepare(Path(folder))
        whole = undisturbed(place)
        print(f"undisturbed: {whole.digest[:16]} in {whole.seconds:.1f} s", flush=True)
        digests = Counter([whole.digest])
        in_time = 0
        for outcome in series(place, arguments.kills, seed=arguments.seed, within=whole.seconds):
            digests[outcome.digest] += 1
            in_time += outcome.after is not None
            when = "not killed in time" if outcome.after is None else f"killed after {outcome.after:5.1f} s"
            print(f"{when}, resumed in {outcome.seconds:5.1f} s: {outcome.digest[:16]}  ({outcome.stage})", flush=True)
    print(f"{in_time} kills in time, {len(digests)} digest{'' if len(digests) == 1 else 's'}:")
    for digest, count in digests.most_common():
        print(f"  {digest[:16]}  {count} x")
    sys.exit(0 if len(digests) == 1 else 1)


if __name__ == "__main__":
    main()
