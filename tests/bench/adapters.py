"""One adapter for all modules of a program against one for each, on two hops of HotPotQA.

    python tests/bench/adapters.py hotpotqa --out /tmp/adapters [--train 150 --dev 80] [--set optimize.weights.epochs=2]

The program asks for the page that three passages lack and answers from the six; both modules learn from gold rows, the
title of the missing page and the answer. The two compiles differ in `adapters` alone: same rows, steps of as many rows,
rates and seed. Prints how often both gold passages are found and exact match and F1 of the answers, on dev.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from retrieval import direct_bm25, rows

from bt_compiler import load
from bt_compiler.engine.metrics.texts import exact_match, f1

SPEC = """\
version: 1
name: adapters
model: HuggingFaceTB/SmolLM2-135M-Instruct
data: {{train: train.jsonl, dev: dev.jsonl}}
retrievers:
  wiki: {{kind: bm25, corpus: {{path: {corpus}, id: title, text: "{{title}} | {{text}}"}}, k: 3}}
modules:
  next_query:
    kind: predict
    signature:
      instructions: Name the page to look up next, so that the question can be answered.
      inputs: {{context: [Passage], question: str}}
      outputs: {{query: {{type: str, max_tokens: 24}}}}
  answer_question:
    kind: predict
    signature:
      instructions: Answer the question with a short factoid.
      inputs: {{context: [Passage], more: [Passage], question: str}}
      outputs: {{answer: {{type: str, max_tokens: 24}}}}
program:
  inputs: {{question: str}}
  steps:
    first: {{retrieve: wiki, in: {{query: $question}}}}
    next: {{call: next_query, in: {{context: $first.passages, question: $question}}}}
    second: {{retrieve: wiki, in: {{query: [$question, $next.query], known: $first.passages}}}}
    final: {{call: answer_question, in: {{context: $first.passages, more: $second.passages, question: $question}}}}
  out: {{query: $next.query, first: $first.passages, second: $second.passages, answer: $final.answer}}
metric: {{kind: f1, output: answer}}
optimize:
  strategy: [weights]
  weights:
    {{sources: [gold], r: 32, alpha: 64, learning_rate: 5.0e-4, warmup: 10, batch: 8, epochs: 1, validation: 0.05}}
"""


def write_rows(data: Path, out: Path, counts: dict[str, int]) -> None:
    """The questions that are drawn, each with the title to ask for."""
    passages = rows(data / "corpus.jsonl")
    for split, count in counts.items():
        questions = random.Random(0).sample(rows(data / f"{split}.jsonl"), count)
        first = direct_bm25(passages, [one["question"] for one in questions])
        with (out / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for one, titles in zip(questions, first, strict=True):
                gold = one["gold_titles"]
                missing = next((title for title in gold if title not in titles[:3]), gold[-1])
                row = {name: one[name] for name in ("question", "answer", "gold_titles")}
                file.write(json.dumps({**row, "query": missing}) + "\n")


def scores(bundle: Path, questions: list[dict[str, Any]]) -> str:
    """Full hits, exact match and F1 of a bundle's program, as cells of a table."""
    same, words = exact_match({}), f1({})
    hits = right = shared = 0.0
    with load(bundle) as program:
        for one, line in zip(questions, program.batch({"question": one["question"]} for one in questions), strict=True):
            found = line["outputs"]
            titles = {passage["title"] for passage in (*found["first"], *found["second"])}
            hits += set(one["gold_titles"]) <= titles
            right += same(found["answer"], one["answer"])
            shared += words(found["answer"], one["answer"])
    return " | ".join(f"{value / len(questions):.3f}" for value in (hits, right, shared))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--train", type=int, default=150)
    parser.add_argument("--dev", type=int, default=80)
    parser.add_argument("--seed", default="0")
    parser.add_argument("--set", action="append", default=[], help="as of `btc compile`")
    settings = parser.parse_args()
    settings.out.mkdir(parents=True, exist_ok=True)
    write_rows(settings.data, settings.out, {"train": settings.train, "dev": settings.dev})
    spec = settings.out / "adapters.yaml"
    spec.write_text(SPEC.format(corpus=(settings.data / "corpus.jsonl").absolute()), encoding="utf-8")
    questions = rows(settings.out / "dev.jsonl")
    print(f"| {len(questions)} dev questions | full hit | EM | F1 | minutes |\n| --- | --- | --- | --- | --- |")
    for adapters, strategy in (("zero-shot", "[]"), ("shared", "[weights]"), ("per_module", "[weights]")):
        bundle = settings.out / f"{adapters}-{settings.seed}"
        changes = [*settings.set, f"optimize.strategy={strategy}"]
        changes += [] if adapters == "zero-shot" else [f"optimize.weights.adapters={adapters}"]
        command = [sys.executable, "-m", "bt_compiler", "compile", str(spec), "--seed", settings.seed, "--json"]
        command += ["-o", str(bundle), *(part for value in changes for part in ("--set", value))]
        started = time.monotonic()
        subprocess.run(command, stdout=subprocess.PIPE, check=True)
        minutes = (time.monotonic() - started) / 60
        print(f"| {adapters} | {scores(bundle, questions)} | {minutes:.1f} |", flush=True)


if __name__ == "__main__":
    main()
