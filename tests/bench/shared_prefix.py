"""The shared-prefix workload of the engine notes: the embedded engine against transformers' padded `generate`.

One few-shot prefix of 600 tokens, 64 examples with a suffix of 60, 48 new tokens each, greedy, no grammar; both in one
run, same tokens counted.

    python tests/bench/shared_prefix.py --rows 64 --new 48 --prefix 600 --suffix 60 --batch 16
"""

from __future__ import annotations

import argparse
import random
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bt_compiler.engine.backends.measuring import product_rate, token_work
from bt_compiler.engine.backends.products import TORCH, use_products
from bt_compiler.engine.backends.transformers import TransformersBackend
from bt_compiler.engine.progress import Silent
from bt_compiler.engine.request import Completion, PromptText, Request

_WORDS = ("petal", "sepal", "width", "red", "river", "stone", "answer", "question", "because", "seven", "over", "fox")


class Timed(NamedTuple):
    """Texts in order and the seconds they took."""

    texts: list[str]
    seconds: float


def open_engine(model: str, dtype: str, cache: Path, batch: int | None) -> TransformersBackend:
    return TransformersBackend(
        model_id=model,
        revision=None,
        dtype=dtype,
        batch=batch,
        cache_root=cache,
        choices=lambda name, measure: measure(),
        progress=Silent(),
    )


def prompts(backend: TransformersBackend, *, rows: int, prefix: int, suffix: int) -> list[PromptText]:
    """Texts of about that many tokens: words, each a token or two, cut by the tokenizer's count."""
    rng = random.Random(0)

    def words(tokens: int) -> str:
        text = ""
        while backend.count_tokens(PromptText(text=text)) < tokens:
            text += " " + rng.choice(_WORDS)
        return text

    lead = "Read the examples, then go on." + words(prefix - 7) + "\n"
    return [PromptText(text=f"{lead}Example {index}:{words(suffix - 5)}.", shared=len(lead)) for index in range(rows)]


def ours(backend: TransformersBackend, asked: Sequence[PromptText], new: int) -> Timed:
    requests = [Request(id=str(i), prompt=item, grammar=None, max_tokens=new) for i, item in enumerate(asked)]
    start = time.perf_counter()
    backend.submit(requests)
    results: dict[str, str] = {}
    while finished := backend.poll():
        for item in finished:
            if not isinstance(item.result, Completion):
                raise item.result
            results[item.id] = item.result.text
    return Timed([results[str(i)] for i in range(len(asked))], time.perf_counter() - start)


@torch.inference_mode()
def padded(backend: TransformersBackend, asked: Sequence[PromptText], new: int, batch: int) -> Timed:
    """`generate` over batches padded on the left, with the attention that transformers takes by itself."""
    loaded: Any = backend._loaded
    use_products(loaded.model, TORCH)  # as transformers has them
    ids = [list(backend.prompt_key(item)[1:]) for item in asked]
    loaded.model.set_attn_implementation("sdpa")
    texts = []
    start = time.perf_counter()
    for first in range(0, len(ids), batch):
        part = ids[first : first + batch]
        longest = max(map(len, part))
        tokens = torch.tensor([[0] * (longest - len(item)) + item for item in part])
        mask = torch.tensor([[0] * (longest - len(item)) + [1] * len(item) for item in part])
        output = loaded.model.generate(
            input_ids=tokens,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=new,
            eos_token_id=sorted(loaded.stop_ids),
            pad_token_id=0,
        )
        texts.extend(loaded.tokenizer.batch_decode(output[:, longest:], skip_special_tokens=True))
    return Timed(texts, time.perf_counter() - start)


def needed(backend: TransformersBackend, lengths: Sequence[int], shared: int, new: int) -> float:
    """FLOPs of matrices, logits and attention, the shared tokens once and no token that is only padding."""
    model: Any = backend._loaded.model
    inner, head = token_work(model)
    ranges = [range(shared), *(range(shared, length + new - 1) for length in lengths)]
    keys = sum(place + 1 for places in ranges for place in places)
    config = model.config
    width = config.num_attention_heads * getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    attention = 4.0 * config.num_hidden_layers * width * keys
    return inner * sum(map(len, ranges)) + head * len(lengths) * new + attention


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--prefix", type=int, default=600)
    parser.add_argument("--suffix", type=int, default=60)
    parser.add_argument("--new", type=int, default=48)
    parser.add_argument("--batch", type=int, default=16, help="rows of a padded batch")
    parser.add_argument(
        "--repeats", type=int, default=1, help="runs of our engine, the fastest counts and all are shown"
    )
    parser.add_argument("--only-ours", action="store_true")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "btc")
    args = parser.parse_args()
    start = time.perf_counter()
    backend = open_engine(args.model, args.dtype, args.cache, None)
    print(f"opened in {time.perf_counter() - start:.1f} s: {backend.facts()}")
    asked = prompts(backend, rows=args.rows, prefix=args.prefix, suffix=args.suffix)
    lengths = [backend.count_tokens(item) for item in asked]
    shared = -backend.prompt_key(asked[0])[0]
    print(f"{args.rows} rows, {shared} shared tokens, prompts of {min(lengths)} to {max(lengths)}, {args.new} new")
    runs = []
    for _ in range(args.repeats):
        backend.close()  # no prefix is kept from the run before
        runs.append(ours(backend, asked, args.new))
    mine = min(runs, key=lambda item: item.seconds)
    print(f"ours: {mine.seconds:.1f} s of {[round(item.seconds, 1) for item in runs]}")
    work, facts = needed(backend, lengths, shared, args.new), backend.facts()
    for products in dict.fromkeys((TORCH, facts["products"])):
        rate = product_rate(facts["dtype"], facts["device"], products)
        share = ", ".join(f"{work / rate / item.seconds:.2f}" for item in runs)
        print(f"{work / 1e12:.2f} TFLOP, {share} of the bound at {rate / 1e9:.0f} GFLOP/s by {products}")
    if not args.only_ours:
        theirs = padded(backend, asked, args.new, args.batch)
        same = sum(one == two for one, two in zip(mine.texts, theirs.texts, strict=True))
        print(f"padded generate, batch {args.batch}: {theirs.seconds:.1f} s")
        print(f"ratio {theirs.seconds / mine.seconds:.2f}, same texts {same}/{args.rows}")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
