"""Random search over demos of the two-hop HotPotQA program: btc against DSPy, same LM, data and sizes, one machine.

    python -m venv /tmp/dspyenv && /tmp/dspyenv/bin/pip install dspy bm25s PyStemmer
    python tests/bench/against_dspy.py --data ../shared/data/hotpotqa --dspy /tmp/dspyenv/bin/python \
        --vllm .venv-vllm/bin/python --model FOLDER

Starts a vLLM server for DSPy (its best local set-up) and runs btc on the embedded engine and on the same server. All
sides take 24 train, 24 dev and 24 test questions, 3 random candidates beside the 3 fixed ones, 3 demos, 96 new tokens a
call and 2 passages a hop. In btc the 24 dev questions are among the 48 of which a seed takes inner train and inner val;
it scores 24 more to choose a prefix by, which is in its seconds. `dev` is the score that the search chose by. Prints a
Markdown table.
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
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SIDE = Path(__file__).with_name("dspy_side.py")
ROOT = Path(__file__).resolve().parents[2]


def write_splits(data: Path, folder: Path, count: int, seed: int) -> None:
    """`count` train and dev questions and as many more of the train file, `count` test questions of the dev file."""
    rng = random.Random(seed)
    train = rng.sample((data / "train.jsonl").read_text(encoding="utf-8").splitlines(), 3 * count)
    test = rng.sample((data / "dev.jsonl").read_text(encoding="utf-8").splitlines(), count)
    parts = {"train": train[:count], "dev": train[count : 2 * count], "both": train[: 2 * count]}
    parts |= {"more": train[2 * count :], "test": test}
    for name, lines in parts.items():
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


@contextmanager
def served(python: Path, model: Path, port: int, threads: int, *more: str) -> Iterator[str]:
    """A vLLM server on this machine with these further options; its URL."""
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--port", str(port)]
    command += ["--served-model-name", "smollm2", "--dtype", "auto", "--enable-prefix-caching", *more]
    env = {
        **os.environ,
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(threads),
    }
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
        try:
            for _ in range(180):
                time.sleep(1)
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                except OSError:
                    if process.poll() is not None:
                        log.seek(0)
                        raise SystemExit(log.read().decode()[-3000:]) from None
                else:
                    break
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            process.wait(60)


def dspy_run(args: argparse.Namespace, folder: Path, url: str) -> dict[str, Any]:
    """One search by DSPy."""
    command = [str(args.dspy), str(SIDE), "--url", url, "--model", "smollm2"]
    for name in ("train", "dev", "test"):
        command += [f"--{name}", str(folder / f"{name}.jsonl")]
    command += ["--corpus", str(args.data / "corpus.jsonl"), "--candidates", str(args.candidates)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def btc_run(args: argparse.Namespace, folder: Path, name: str, *more: str) -> dict[str, Any]:
    """One compile of the prompts step, with a cache of its own."""
    count = args.count
    settings = [
        f"data={{train: {folder}/both.jsonl, dev: {folder}/more.jsonl, test: {folder}/test.jsonl}}",
        f"retrievers.wiki.corpus.path={args.data.absolute()}/corpus.jsonl",
        "retrievers.wiki.k=2",
        "optimize.strategy=[prompts]",
        f"optimize.prompts={{candidates: {args.candidates}, max_bootstrapped_demos: 3, max_labeled_demos: 3, "
        f"train: {count}, val: {count}}}",
        *more,
    ]
    command = [sys.executable, "-m", "bt_compiler", "compile", str(ROOT / "specs" / "hotpotqa.yaml"), "--json"]
    command += ["-o", str(folder / name), *(part for value in settings for part in ("--set", value))]
    env = {**os.environ, "BTC_CACHE": str(folder / f"cache-{name}")}
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
    report = json.loads((folder / name / "report.json").read_text(encoding="utf-8"))
    (step,) = report["steps"]
    evidence = step["evidence"]
    scores = report["scores"]["shipped"]
    return {
        "seconds": seconds,
        "search_seconds": step["seconds"],
        "search_calls": step["calls"],
        "prompt_tokens": step["prompt_tokens"],
        "completion_tokens": step["completion_tokens"],
        "dev": next(one["score"] for one in evidence["candidates"] if one["label"] == evidence["chosen"]),
        "test": scores["test"]["mean"],
        "bootstrap": evidence["bootstrap"],
        "racing": evidence["racing"],
    }


def main() -> None:
    """Parse arguments, run the sides one after another, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--dspy", type=Path, required=True)
    parser.add_argument("--vllm", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True, help="folder of the LM, for the server and for btc")
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--candidates", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of the server: two on two cores wait for each other")
    parser.add_argument("--sides", default="embedded,server,dspy", help="which of them to run")
    parser.add_argument("--port", type=int, default=8811)
    args = parser.parse_args()
    sides = args.sides.split(",")
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="against-dspy-") as name:
        folder = Path(name)
        write_splits(args.data, folder, args.count, seed=0)
        small = "model.generation.max_tokens=96"
        if "embedded" in sides:
            results["btc, embedded"] = btc_run(args, folder, "embedded", f"model.id={args.model}", small)
            print("btc, embedded", results["btc, embedded"], file=sys.stderr)
        if {"server", "dspy"} & set(sides):
            with served(args.vllm, args.model, args.port, args.threads) as url:
                remote = f"model={{id: smollm2, engine: openai, endpoints: ['{url}'], generation: {{max_tokens: 96}}}}"
                if "dspy" in sides:
                    results["DSPy, vLLM server"] = dspy_run(args, folder, url)
                    print("DSPy, vLLM server", results["DSPy, vLLM server"], file=sys.stderr)
                if "server" in sides:
                    results["btc, vLLM server"] = btc_run(args, folder, "server", remote)
                    print("btc, vLLM server", results["btc, vLLM server"], file=sys.stderr)
    slowest = results["DSPy, vLLM server"]["seconds"] if "dspy" in sides else float("nan")
    print(
        "| | seconds | search alone | LM calls of the search | tokens in / out | dev | test | DSPy's seconds / these |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for side, one in results.items():
        print(
            f"| {side} | {one['seconds']:.0f} | {one['search_seconds']:.0f} | {one['search_calls']} "
            f"| {one['prompt_tokens']} / {one['completion_tokens']} | {one['dev']:.2f} | {one['test']:.2f} "
            f"| {slowest / one['seconds']:.1f} |"
        )


if __name__ == "__main__":
    main()
