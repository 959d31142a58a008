"""Experiment 1 as a script: one request in many random batches on a real LM; also the parts that the tests use.

python tests/bench/row_invariance.py --model HuggingFaceTB/SmolLM2-135M-Instruct --batches 200 --bundle artifacts/iris
"""

from __future__ import annotations

import argparse
import hashlib
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from bt_compiler.artifact import read_bundle
from bt_compiler.engine.backends.attention import Pack
from bt_compiler.engine.backends.kv import PrefixStore
from bt_compiler.engine.backends.schedule import PackedRows
from bt_compiler.engine.backends.selfcheck import Probe, Recorder
from bt_compiler.engine.backends.tiers import packed_forward
from bt_compiler.engine.backends.transformers import TransformersBackend
from bt_compiler.engine.progress import Silent
from bt_compiler.engine.request import Request
from bt_compiler.graph.candidate import Adapter


class Composer:
    """Makes random batches around a few fixed rows and gives the digests of the rows' logits.

    `noise` is added to logits by their place in the batch, to show that the comparison can fail.
    """

    def __init__(
        self,
        backend: TransformersBackend,
        *,
        adapters: Sequence[Adapter | None],
        prefix: int,
        suffix: int,
        steps: int,
        noise: float = 0.0,
    ) -> None:
        self.backend, self.steps, self.suffix, self.noise = backend, steps, suffix, noise
        self.adapters = adapters
        for adapter in adapters:
            if adapter is not None:
                backend._adapters.know(adapter)
        self.model = backend._loaded.model
        self.vocab = len(backend._loaded.tokenizer)
        rng = random.Random(11)
        self.prefixes = [(), *(self.text(rng, prefix + 7 * index) for index in range(3))]
        self.fixed = [self.probe(rng) for _ in range(6)]

    def text(self, rng: random.Random, count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(self.vocab) for _ in range(count))

    def probe(self, rng: random.Random) -> tuple[Probe, Adapter | None]:
        prefix = rng.choice(self.prefixes)
        ids = (*prefix, *self.text(rng, rng.randint(1, self.suffix)))
        answer = self.text(rng, rng.randint(1, self.steps))
        return Probe(ids=ids, shared=len(prefix), answer=answer), rng.choice(self.adapters)

    def digests(self, probes: Sequence[tuple[Probe, Adapter | None]], slots: int) -> list[str]:
        names = [str(index) for index in range(len(probes))]
        recorder = Recorder(tokens={name: probe.answer for name, (probe, _) in zip(names, probes, strict=True)})
        forward: Callable[..., Any] = packed_forward(self.model, self.backend._adapters.use)

        def noisy(tokens: torch.Tensor, pack: Pack, keep: torch.Tensor, adapter: str | None) -> torch.Tensor:
            logits: torch.Tensor = forward(tokens, pack, keep, adapter)
            return logits + self.noise * len(logits) * pack.size if self.noise else logits

        rows = PackedRows(forward=noisy, choose=recorder, slots=slots, prefixes=PrefixStore(1 << 28))
        waiting = []
        for name, (probe, adapter) in zip(names, probes, strict=True):
            row = probe.row(name)
            row.request = Request(
                id=name, prompt=row.request.prompt, grammar=None, max_tokens=len(probe.answer), adapter=adapter
            )
            waiting.append(row)
        rows.add(waiting)
        while not rows.idle():
            rows.step()
        return [_digest(torch.stack(recorder.seen[name])) for name in names]


def _digest(logits: torch.Tensor) -> str:
    return hashlib.sha256(logits.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def differing(composer: Composer, *, batches: int, seed: int, most: int = 24) -> list[tuple[int, int]]:
    """(batch, fixed row) wherever a fixed row's logits had other bytes than alone."""
    alone = [composer.digests([probe], 1)[0] for probe in composer.fixed]
    rng = random.Random(seed)
    wrong = []
    for batch in range(batches):
        chosen = rng.randrange(len(composer.fixed))
        others = [composer.probe(rng) for _ in range(rng.randrange(most))]
        others.extend(rng.sample(composer.fixed, rng.randrange(3)))
        place = rng.randint(0, len(others))
        together = [*others[:place], composer.fixed[chosen], *others[place:]]
        if composer.digests(together, rng.randint(1, len(together)))[place] != alone[chosen]:
            wrong.append((batch, chosen))
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--most", type=int, default=24, help="neighbours at most")
    parser.add_argument("--bundle", type=Path, help="a compiled bundle: rows then run with and without its adapters")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "btc")
    args = parser.parse_args()
    backend = TransformersBackend(
        model_id=args.model,
        revision=None,
        dtype=args.dtype,
        batch=None,
        cache_root=args.cache,
        choices=lambda name, measure: measure(),
        progress=Silent(),
    )
    start = time.perf_counter()
    adapters = tuple(read_bundle(args.bundle).candidate.adapters.values()) if args.bundle else ()
    composer = Composer(backend, adapters=(None, *adapters), prefix=120, suffix=80, steps=3)
    wrong = differing(composer, batches=args.batches, seed=0, most=args.most)
    print(f"{args.model} {args.dtype}, {len(adapters)} adapters: {len(wrong)} of {args.batches} batches changed a row")
    print(f"{time.perf_counter() - start:.0f} s; {backend.facts()}")


if __name__ == "__main__":
    main()
