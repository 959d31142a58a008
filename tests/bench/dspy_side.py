"""DSPy's half of `against_dspy.py`: run by the interpreter of an environment with dspy, bm25s and PyStemmer.

Random search over bootstrapped few-shot demos on the two-hop program, against an OpenAI-compatible server. Prints one
JSON document: seconds, LM calls, tokens, scores. Imports nothing of btc.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import bm25s
import dspy
import Stemmer
from dspy.evaluate import Evaluate, answer_exact_match
from dspy.teleprompt import BootstrapFewShotWithRandomSearch


def rows(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


class TwoHops(dspy.Module):
    """Query, retrieve, query, retrieve, answer; all three calls reason first."""

    def __init__(self, search: Any) -> None:
        super().__init__()
        self.search = search
        self.query = dspy.ChainOfThought(
            dspy.Signature(
                "context, question -> query", "Write a search query for what is still missing to answer the question."
            )
        )
        self.answer = dspy.ChainOfThought(
            dspy.Signature("context, question -> answer", "Answer the question with a short factoid.")
        )

    def forward(self, question: str) -> Any:
        context: list[str] = []
        for _ in range(2):
            query = self.query(context=context, question=question).query
            context += [passage for passage in self.search(query) if passage not in context]
        return self.answer(context=context, question=question)


def searcher(corpus: list[dict[str, Any]], k: int) -> Any:
    texts = [f"{one['title']} | {one['text']}" for one in corpus]
    stemmer = Stemmer.Stemmer("english")
    index = bm25s.BM25()
    index.index(bm25s.tokenize(texts, stopwords="en", stemmer=stemmer, show_progress=False), show_progress=False)

    def search(query: str) -> list[str]:
        tokens = bm25s.tokenize([query or ""], stopwords="en", stemmer=stemmer, show_progress=False)
        found, _ = index.retrieve(tokens, k=k, show_progress=False)
        return [texts[int(place)] for place in found[0]]

    return search


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", required=True)
    for name in ("train", "dev", "test", "corpus"):
        parser.add_argument(f"--{name}", required=True)
    for name, value in (("candidates", 3), ("demos", 3), ("k", 2), ("tokens", 96), ("threads", 8)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    lm = dspy.LM(
        f"openai/{args.model}",
        api_base=args.url,
        api_key="none",
        max_tokens=args.tokens,
        temperature=0.0,
        cache=False,
        num_retries=0,
    )
    dspy.configure(lm=lm)
    lm.history_limit = 10**9
    splits = {
        name: [
            dspy.Example(question=row["question"], answer=row["answer"]).with_inputs("question")
            for row in rows(getattr(args, name))
        ]
        for name in ("train", "dev", "test")
    }
    program = TwoHops(searcher(rows(args.corpus), args.k))
    calls: list[tuple[int, int]] = []
    forward = lm.forward

    def counted(*positional: Any, **named: Any) -> Any:
        answer = forward(*positional, **named)
        usage = answer.usage
        read = usage.get if isinstance(usage, dict) else lambda name, default=0: getattr(usage, name, default)
        calls.append((read("prompt_tokens", 0) or 0, read("completion_tokens", 0) or 0))
        return answer

    lm.forward = counted
    started = time.perf_counter()
    search = BootstrapFewShotWithRandomSearch(
        metric=answer_exact_match,
        max_bootstrapped_demos=args.demos,
        max_labeled_demos=args.demos,
        num_candidate_programs=args.candidates,
        num_threads=args.threads,
        max_errors=10**6,
    )
    best = search.compile(program, trainset=splits["train"], valset=splits["dev"])
    seconds = time.perf_counter() - started
    searched = len(calls)
    score = {
        name: Evaluate(devset=splits[name], metric=answer_exact_match, num_threads=args.threads, max_errors=10**6)(
            best
        ).score
        for name in ("dev", "test")
    }
    whole = time.perf_counter() - started
    demos = {name: len(one.demos) for name, one in best.named_predictors()}
    print(
        json.dumps(
            {
                "search_seconds": seconds,
                "seconds": whole,
                "search_calls": searched,
                "calls": len(calls),
                "prompt_tokens": sum(one for one, _ in calls),
                "completion_tokens": sum(one for _, one in calls),
                "dev": score["dev"] / 100,
                "test": score["test"] / 100,
                "demos": demos,
            }
        )
    )


if __name__ == "__main__":
    main()
