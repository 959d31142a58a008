"""Two hops of three passages on HotPotQA with a second query that is learnt: how often both gold passages are found.

    python tests/bench/second_query.py hotpotqa --out /tmp/second [--set optimize.weights.epochs=2]

The first hop asks the question, the second question and query together, for three passages that are not there yet. The
row to learn from is the title of a gold passage that the first hop did not bring: a label made of the train file, so
these are gold rows. Beside it stand six passages for the question alone, second queries that nobody had to learn, and
the missing title, each for three passages that are not there yet.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from retrieval import direct_bm25, rows

SPEC = """\
version: 1
name: second_query
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
program:
  inputs: {{question: str}}
  steps:
    first: {{retrieve: wiki, in: {{query: $question}}}}
    next: {{call: next_query, in: {{context: $first.passages, question: $question}}}}
    second: {{retrieve: wiki, in: {{query: [$question, $next.query], known: $first.passages}}}}
  out: {{query: $next.query, passages: $second.passages}}
metric: {{kind: retrieval_full_hit, label: gold_titles}}
optimize:
  strategy: [weights]
  weights:
    {{sources: [gold], r: 32, alpha: 64, learning_rate: 5.0e-4, warmup: 10, batch: 8, epochs: 2, validation: 0.05}}
"""


def full_hit(name: str, found: list[list[str]], questions: list[dict[str, Any]]) -> None:
    hits = sum(set(one["gold_titles"]) <= set(titles) for one, titles in zip(questions, found, strict=True))
    print(f"| {name} | {hits / len(questions):.3f} | {len(questions)} |", flush=True)


def unseen(found: list[str], known: list[str]) -> list[str]:
    return [title for title in found if title not in known][:3]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", default="0")
    parser.add_argument("--set", action="append", default=[], help="as of `btc compile`")
    settings = parser.parse_args()
    settings.out.mkdir(parents=True, exist_ok=True)
    passages = rows(settings.data / "corpus.jsonl")
    print("| second hop, dev | full hit | n |\n| --- | --- | --- |")
    for split in ("train", "dev"):
        questions = rows(settings.data / f"{split}.jsonl")
        asked = [one["question"] for one in questions]
        first = [titles[:6] for titles in direct_bm25(passages, asked)]
        missing = [
            next((title for title in one["gold_titles"] if title not in titles[:3]), one["gold_titles"][-1])
            for one, titles in zip(questions, first, strict=True)
        ]
        with (settings.out / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for one, query in zip(questions, missing, strict=True):
                row = {"question": one["question"], "gold_titles": one["gold_titles"], "query": query}
                file.write(json.dumps(row) + "\n")
    top = [titles[0] for titles in first]
    tried = {
        "the best title": top,
        "question and best title": [f"{q} {title}" for q, title in zip(asked, top, strict=True)],
        "the missing title itself": missing,
        "question and missing title": [f"{q} {title}" for q, title in zip(asked, missing, strict=True)],
    }
    full_hit("none: six for the question", first, questions)
    for name, queries in tried.items():
        second = direct_bm25(passages, queries)
        full_hit(name, [one[:3] + unseen(two, one[:3]) for one, two in zip(first, second, strict=True)], questions)
    spec = settings.out / "second_query.yaml"
    spec.write_text(SPEC.format(corpus=(settings.data / "corpus.jsonl").absolute()), encoding="utf-8")
    command = [sys.executable, "-m", "bt_compiler", "compile", str(spec), "--seed", settings.seed, "--json"]
    command += ["-o", str(settings.out / f"bundle-{settings.seed}")]
    started = time.monotonic()
    done = subprocess.run(
        [*command, *(part for value in settings.set for part in ("--set", value))], stdout=subprocess.PIPE, check=True
    )
    scores = json.loads(done.stdout)["scores"]
    for name in ("zero_shot", "shipped"):
        score = scores[name]["dev"]
        print(f"| {name} | {score['mean']:.3f} [{score['low']:.3f}, {score['high']:.3f}] | {score['n']} |")
    print(f"{(time.monotonic() - started) / 60:.1f} min for the compile")


if __name__ == "__main__":
    main()
