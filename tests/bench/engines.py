"""Engines side by side on the shared-prefix workload: embedded, vLLM in process, vLLM server, padded `generate`.

One prefix of 600 tokens, 64 examples with a suffix of 60, 48 new tokens each, greedy, no grammar; the same prompts to
each, one after the other in processes of their own. Prints seconds (loading not counted), memory at its peak over all
processes of the engine, and how many texts are those of the first. Runs where vLLM is: `.venv-vllm/bin/python`.

    python tests/bench/engines.py --model HuggingFaceTB/SmolLM2-135M-Instruct --repeats 3
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from shared_prefix import open_engine, ours, padded, prompts

from bt_compiler.engine.backends.hub import resolve_model
from bt_compiler.engine.backends.openai import OpenAIBackend, Patience
from bt_compiler.engine.progress import Silent
from bt_compiler.engine.request import PromptText
from bt_compiler.spec.sections import VllmSection

sys.path.append(str(Path(__file__).resolve().parents[1] / "engine" / "backends"))
ENGINES = ("embedded", "vllm", "server", "generate")
Run = Callable[[Sequence[PromptText]], Any]


@contextmanager
def opened(name: str, args: argparse.Namespace, place: Path) -> Iterator[Run]:
    """What runs the workload once on that engine, loaded."""
    if name == "embedded":
        with closing(open_engine(args.model, args.dtype, args.cache, None)) as backend:
            yield lambda asked: ours(backend, asked, args.new)
    elif name == "generate":
        with closing(open_engine(args.model, args.dtype, args.cache, None)) as backend:
            yield lambda asked: padded(backend, asked, args.new, args.batch)
    elif name == "vllm":
        from bt_compiler.engine.backends.vllm import VllmBackend

        settings = {"model_id": args.model, "revision": None, "dtype": args.dtype, "batch": None}
        made = VllmBackend(
            **settings,
            settings=VllmSection(),
            cache_root=args.cache,
            choices=lambda name, measure: measure(),
            progress=Silent(),
        )
        with closing(made) as vllm:
            yield lambda asked: ours(vllm, asked, args.new)  # type: ignore[arg-type]
    else:
        from vllm_processes import servers  # beside the tests that use it

        folder = resolve_model(args.model, revision=None, cache_root=args.cache, progress=Silent()).path
        with servers(folder, "lm", 1) as (server,):
            remote = OpenAIBackend(model="lm", endpoints=[server.url], patience=Patience(timeout=1800))
            with closing(remote):
                yield lambda asked: ours(remote, asked, args.new)  # type: ignore[arg-type]


def child(name: str, args: argparse.Namespace) -> None:
    """Runs one engine; writes what it took to `--out`."""
    place = args.out.parent
    asked = [PromptText(text=text, shared=shared) for text, shared in json.loads((place / "prompts.json").read_text())]
    begin = time.perf_counter()
    runs = []
    with opened(name, args, place) as run:
        opening = time.perf_counter() - begin
        for _ in range(args.repeats):
            # another first word, so that no prefix is at hand from the run before; the last run has the real one
            runs.append(run([_other(item, len(runs)) for item in asked] if len(runs) + 1 < args.repeats else asked))
    args.out.write_text(
        json.dumps({"opening": opening, "seconds": [item.seconds for item in runs], "texts": runs[-1].texts})
    )


def _other(item: PromptText, number: int) -> PromptText:
    mark = f"Run {number}. "
    return PromptText(text=f"{mark}{item.text}", shared=item.shared + len(mark))


def measured(name: str, args: argparse.Namespace, place: Path) -> dict[str, Any]:
    """One engine in a process of its own, with the peak of memory over all its processes."""
    out = place / f"{name}.json"
    command = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--only", name, "--out", str(out)]
    process = subprocess.Popen(command)
    peak = 0
    while process.poll() is None:
        peak = max(peak, _memory(process.pid))
        time.sleep(0.2)
    if process.returncode != 0:
        raise SystemExit(f"{name} failed")
    return {**json.loads(out.read_text()), "peak": peak}


def _memory(pid: int) -> int:
    total = 0
    try:
        for one in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            total += one.memory_info().rss
    except psutil.NoSuchProcess:
        pass
    return total


def write_prompts(args: argparse.Namespace, place: Path) -> None:
    with closing(open_engine(args.model, args.dtype, args.cache, None)) as backend:
        asked = prompts(backend, rows=args.rows, prefix=args.prefix, suffix=args.suffix)
    (place / "prompts.json").write_text(json.dumps([[item.text, item.shared] for item in asked]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--prefix", type=int, default=600)
    parser.add_argument("--suffix", type=int, default=60)
    parser.add_argument("--new", type=int, default=48)
    parser.add_argument("--batch", type=int, default=16, help="rows of a padded batch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "btc")
    parser.add_argument("--only", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        child(args.only, args)
        return
    with tempfile.TemporaryDirectory() as folder:
        write_prompts(args, Path(folder))
        found = {name: measured(name, args, Path(folder)) for name in args.engines.split(",")}
    first = next(iter(found.values()))
    print(f"{args.rows} rows, {torch.get_num_threads()} threads, {args.dtype}, {args.repeats} runs each")
    print(f"{'engine':<10} {'seconds, each run':<28} {'x first':>8} {'opening':>8} {'peak GB':>8} {'same text':>10}")
    for name, one in found.items():
        same = sum(a == b for a, b in zip(one["texts"], first["texts"], strict=True))
        each = " ".join(f"{seconds:.1f}" for seconds in one["seconds"])
        ratio = min(one["seconds"]) / min(first["seconds"])
        peak = one["peak"] / 1e9
        print(f"{name:<10} {each:<28} {ratio:>8.2f} {one['opening']:>8.1f} {peak:>8.2f} {same:>6}/{args.rows}")


if __name__ == "__main__":
    main()
