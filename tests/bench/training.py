"""Training tokens a second: our trainer against transformers' `Trainer` with a PEFT model, on the same rows.

    python tests/bench/training.py [--epochs 2] [--long 600]

Rows are the gold rows of specs/iris.yaml, which share their instructions; with `--long` 48 rows of that many random
tokens of which the last ten are learnt and nothing is shared. Same base, dtype, LoRA shape, batch, learning rate and
completion-only labels; `Trainer` pads each batch, as its users do. Each side runs in a process of its own, one after
the other; loading is not timed. Tokens are those of the rows, so what is shared or padded counts for nobody.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
LEARNT = 10


class Rows(NamedTuple):
    """What both sides learn from."""

    host: Any
    settings: Any
    encoded: list[tuple[list[int], int]]
    """Ids and the index of the first token with loss."""


def prepared(epochs: int, long: int) -> Rows:
    from iris_gold import gold_rows

    from bt_compiler.compiler.check import checked
    from bt_compiler.engine.backends import open_backend
    from bt_compiler.engine.cache import cache_root
    from bt_compiler.engine.progress import Silent

    spec = checked(ROOT / "specs" / "iris.yaml")
    backend: Any = open_backend(
        spec.sections.models[0],
        cache_root=cache_root(os.environ),
        choices=lambda name, measure: measure(),
        progress=Silent(),
    )
    settings = replace(spec.sections.optimize.weights, epochs=epochs, validation=0.0)
    rows = gold_rows(spec, list(spec.splits.train))
    encoded = [backend.encode_row(row.prompt, row.completion) for row in rows]
    if long:
        rng = random.Random(0)
        encoded = [([rng.randrange(1000, 40000) for _ in range(long)], long - LEARNT) for _ in range(48)]
    return Rows(backend, settings, encoded)


def ours(rows: Rows) -> float:
    """Seconds of our trainer's loop."""
    from bt_compiler.engine.request import PromptText
    from bt_compiler.optimize.rows import Row
    from bt_compiler.optimize.trainer import fast_precision, train_adapter

    class Host:
        """Lends the model; a row's text is its number."""

        borrow, base_model = rows.host.borrow, rows.host.base_model

        def encode_row(self, prompt: PromptText, completion: str) -> tuple[list[int], int]:
            return rows.encoded[int(completion)]

    listed = [
        Row(
            id=str(i),
            example=str(i),
            module="m",
            prompt=PromptText(text=""),
            completion=str(i),
            source="gold",
        )
        for i in range(len(rows.encoded))
    ]
    precision = fast_precision()
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        train_adapter(
            host=Host(),
            rows=listed,
            validation=[],
            settings=rows.settings,
            seed=0,
            folder=Path(folder),
            name="bench",
            precision=precision,
            checkpoint_seconds=1e9,
        )
        return time.monotonic() - started


def theirs(rows: Rows) -> float:
    """Seconds of `Trainer.train`."""
    from chat_sft import collate
    from peft import LoraConfig, get_peft_model
    from transformers import Trainer, TrainingArguments

    from bt_compiler.optimize.trainer import fast_precision

    settings = rows.settings

    with rows.host.borrow() as model, tempfile.TemporaryDirectory() as folder:
        model.set_attn_implementation("sdpa")
        config = LoraConfig(r=settings.r, lora_alpha=settings.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
        tuned = get_peft_model(model, config)
        trainer = Trainer(
            model=tuned,
            args=TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=settings.batch,
                num_train_epochs=settings.epochs,
                learning_rate=settings.learning_rate,
                lr_scheduler_type="cosine",
                warmup_steps=settings.warmup,
                max_grad_norm=settings.clip,
                bf16=fast_precision() == "bfloat16",
                use_cpu=rows.host.facts()["device"] == "cpu",
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                remove_unused_columns=False,
                dataloader_pin_memory=False,
            ),
            data_collator=collate,
            train_dataset=[{"ids": list(ids), "start": start} for ids, start in rows.encoded],
        )
        started = time.monotonic()
        trainer.train()
        seconds = time.monotonic() - started
        tuned.unload()
    return seconds


def measure(side: str, epochs: int, long: int) -> dict[str, float]:
    """One side in this process."""
    from bt_compiler.engine.backends.measuring import product_rate, token_work
    from bt_compiler.optimize.trainer import fast_precision

    rows = prepared(epochs, long)
    rate = product_rate(fast_precision(), rows.host.facts()["device"])
    with rows.host.borrow() as model:
        work = token_work(model)
    tokens = epochs * sum(len(ids) for ids, _ in rows.encoded)
    learnt = epochs * sum(len(ids) - start for ids, start in rows.encoded)
    seconds = (ours if side == "ours" else theirs)(rows)
    # forward, and the gradient of activations; no gradient of the base
    bound = 2 * (work[0] * tokens + work[1] * learnt) / rate
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"tokens": tokens, "seconds": seconds, "of_bound": bound / seconds, "peak": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--long", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=["ours", "theirs"], help="this side alone, as JSON")
    settings = parser.parse_args()
    if settings.only:
        print(json.dumps(measure(settings.only, settings.epochs, settings.long)))
        return
    print("| run | trainer | tokens/s | of the bound | peak memory |\n| --- | --- | --- | --- | --- |")
    ratios = []
    for run in range(1, settings.repeats + 1):
        speeds = {}
        for side in ("ours", "theirs"):
            command = [sys.executable, __file__, "--only", side, "--epochs", str(settings.epochs)]
            done = subprocess.run(
                [*command, "--long", str(settings.long)], stdout=subprocess.PIPE, check=True, text=True
            )
            found = json.loads(done.stdout.splitlines()[-1])
            speeds[side] = found["tokens"] / found["seconds"]
            name = "ours" if side == "ours" else "transformers.Trainer"
            print(
                f"| {run} | {name} | {speeds[side]:.0f} | {found['of_bound']:.0%} | {found['peak']:.2f} GB |",
                flush=True,
            )
        ratios.append(speeds["ours"] / speeds["theirs"])
    print(f"ratios {', '.join(f'{ratio:.2f}' for ratio in ratios)}")


if __name__ == "__main__":
    main()
