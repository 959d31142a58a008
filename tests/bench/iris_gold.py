"""Iris from gold rows, with the minutes of every step: what the weights section of a spec reaches, and what it costs.

    python tests/bench/iris_gold.py [--spec specs/iris.yaml] [--seeds 0,1,2] [--set optimize.weights.epochs=8]

For every seed the 150 flowers are shuffled into 50 train, 50 dev and 50 test; each train flower is one gold row, one in
five is held out for validation; the tuned program answers dev and test (100 flowers) on the real engine. Prints one
line a seed and a summary. CPU seconds are of this process: on an idle machine of N cores, wall seconds are about CPU/N.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bt_compiler.compiler.check import CheckedSpec, checked
from bt_compiler.data.example import Example
from bt_compiler.engine.backends import open_backend
from bt_compiler.engine.cache import cache_root
from bt_compiler.engine.executor import Engine
from bt_compiler.engine.metrics import build_metric
from bt_compiler.engine.progress import Silent
from bt_compiler.engine.scoring import evaluate
from bt_compiler.graph import candidate_id, spec_candidate
from bt_compiler.graph.candidate import SHARED, Candidate
from bt_compiler.optimize.labelled import labelled_tasks
from bt_compiler.optimize.lessons import validation_examples
from bt_compiler.optimize.rows import Row, balance, row_writer
from bt_compiler.optimize.trainer import fast_precision, train_adapter


class Minutes:
    """Wall and CPU seconds of named steps."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.cpu: dict[str, float] = {}

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        wall, cpu = time.monotonic(), time.process_time()
        yield
        self.wall[name] = self.wall.get(name, 0.0) + time.monotonic() - wall
        self.cpu[name] = self.cpu.get(name, 0.0) + time.process_time() - cpu


def gold_rows(spec: CheckedSpec, examples: list[Example]) -> list[Row]:
    """One row an example, from its label alone."""
    zero_shot = spec_candidate(spec.program)
    writer = row_writer(spec.program, zero_shot, spec.sections.optimize.weights, zero_shot)
    return [
        writer.row(
            example=task.example.id,
            module=task.module,
            inputs=task.inputs,
            outputs=task.labels,
            source="gold",
        )
        for task in labelled_tasks(spec.program, examples, lambda: (), print)
    ]


def one_seed(spec: CheckedSpec, engine: Engine, seed: int, folder: Path, minutes: Minutes) -> dict[str, object]:
    """Trains and scores; the record that is printed."""
    pool = sorted((*spec.splits.train, *spec.splits.dev, *spec.splits.test), key=lambda item: item.id)
    random.Random(seed).shuffle(pool)
    train, held_out = pool[:50], pool[50:]
    metric = build_metric(spec.sections.metric)
    settings = spec.sections.optimize.weights
    zero_shot = spec_candidate(spec.program)
    with minutes.of("zero-shot"):
        base = evaluate(engine, spec.program, zero_shot, held_out, metric, split="held out")
    rows = gold_rows(spec, train)
    validating = validation_examples([row.example for row in rows], settings.validation, seed)
    with minutes.of("training"):
        training = train_adapter(
            host=engine.backends["default"],  # type: ignore[arg-type]
            rows=balance([row for row in rows if row.example not in validating], seed),
            validation=[row for row in rows if row.example in validating],
            settings=settings,
            seed=seed,
            folder=folder,
            name="iris",
            precision=fast_precision(),
        )
    adapters = {SHARED: training.adapter}
    tuned = Candidate(id=candidate_id(zero_shot.prompts, adapters), prompts=zero_shot.prompts, adapters=adapters)
    with minutes.of("tuned"):
        report = evaluate(engine, spec.program, tuned, held_out, metric, split="held out")
    points = [point for point in training.history if point.probability is not None]
    return {
        "seed": seed,
        "n": len(held_out),
        "zero_shot": base.mean,
        "tuned": report.mean,
        "steps": len(training.history),
        "validation": [[point.validation, point.probability] for point in points],
        "best_epoch": max(points, key=lambda point: point.probability or 0.0).epoch if points else None,
    }


def main() -> None:
    """Prints one JSON line a seed, then means, spread and the seconds of every step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spec", type=Path, default=Path(__file__).parents[2] / "specs" / "iris.yaml")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    arguments = parser.parse_args()
    spec = checked(arguments.spec, arguments.overrides)
    minutes, found = Minutes(), []
    with minutes.of("opening the model"):
        backend = open_backend(
            spec.sections.models[0],
            cache_root=cache_root(os.environ),
            choices=lambda name, measure: measure(),
            progress=Silent(),
        )
    engine = Engine(backends={"default": backend})
    with tempfile.TemporaryDirectory() as folder:
        for seed in map(int, arguments.seeds.split(",")):
            place = Path(folder) / str(seed)
            place.mkdir()
            found.append(one_seed(spec, engine, seed, place, minutes))
            print(json.dumps(found[-1]), flush=True)
    zero_shot, tuned = [[float(str(record[key])) for record in found] for key in ("zero_shot", "tuned")]
    spread = statistics.stdev(tuned) if len(tuned) > 1 else 0.0
    print(f"zero-shot {statistics.mean(zero_shot):.3f}, tuned {statistics.mean(tuned):.3f}")
    print(f"over {len(tuned)} seeds, standard deviation {spread:.3f}, {found[0]['n']} held-out flowers each")
    for name, seconds in minutes.wall.items():
        print(f"{name}: {seconds:.0f} s wall, {minutes.cpu[name]:.0f} s CPU in all")
    print(json.dumps({"engine": dict(backend.facts()), "precision": fast_precision()}))


if __name__ == "__main__":
    main()
