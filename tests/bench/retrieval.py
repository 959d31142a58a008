"""Recall@2/5/10 and full hit of the retrievers on HotPotQA, beside the libraries used directly.

    python tests/bench/retrieval.py hotpotqa [--model FOLDER_OR_ID]

Queries are the questions. Full hit: both gold passages among the k. `dense` and `hybrid` need the extra `dense` and a
model; they are left out, with a line that says so, where it is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bt_compiler.engine.cache import cache_root
from bt_compiler.engine.progress import Silent
from bt_compiler.engine.retrieval import open_retriever
from bt_compiler.errors import BackendError
from bt_compiler.spec.sections import CorpusSection, RetrieverSection

DEPTHS = (2, 5, 10)
MODEL = "sentence-transformers/all-MiniLM-L6-v2"


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def report(name: str, found: Sequence[Sequence[str]], questions: Sequence[dict[str, Any]], seconds: float) -> None:
    cells = []
    for depth in DEPTHS:
        hits = [
            len(set(titles[:depth]) & set(one["gold_titles"])) / len(set(one["gold_titles"]))
            for titles, one in zip(found, questions, strict=True)
        ]
        cells.append(f"{sum(hits) / len(hits):.3f} / {sum(hit == 1 for hit in hits) / len(hits):.3f}")
    print(f"| {name} | {' | '.join(cells)} | {seconds:.1f} |", flush=True)


def direct_bm25(passages: Sequence[dict[str, Any]], queries: Sequence[str]) -> list[list[str]]:
    import bm25s
    import Stemmer

    how: dict[str, Any] = {"stopwords": "english", "stemmer": Stemmer.Stemmer("english"), "show_progress": False}
    index = bm25s.BM25()
    index.index(bm25s.tokenize([f"{one['title']} | {one['text']}" for one in passages], **how), show_progress=False)
    numbers, _ = index.retrieve(bm25s.tokenize(list(queries), **how), k=max(DEPTHS), show_progress=False)
    return [[passages[number]["title"] for number in line] for line in numbers]


def direct_dense(model: str, passages: Sequence[dict[str, Any]], queries: Sequence[str]) -> list[list[str]]:
    from sentence_transformers import SentenceTransformer, util

    encoder = SentenceTransformer(model)
    texts = [f"{one['title']} | {one['text']}" for one in passages]
    hits = util.semantic_search(encoder.encode(list(queries)), encoder.encode(texts), top_k=max(DEPTHS))
    return [[passages[hit["corpus_id"]]["title"] for hit in line] for line in hits]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--direct-dense", action="store_true", help="embed the corpus a second time, by the library")
    settings = parser.parse_args()
    questions = [one for split in ("train", "dev") for one in rows(settings.data / f"{split}.jsonl")]
    passages = rows(settings.data / "corpus.jsonl")
    queries = [one["question"] for one in questions]
    corpus = CorpusSection(path=str(settings.data / "corpus.jsonl"), id="title", text="{title} | {text}")
    sections = [
        RetrieverSection(name="bm25", kind="bm25", corpus=corpus),
        RetrieverSection(name="dense", kind="dense", corpus=corpus, options={"model": settings.model}),
        RetrieverSection(name="hybrid", kind="hybrid", of=("bm25", "dense")),
    ]
    print(f"{len(queries)} questions, {len(passages)} passages; recall / full hit")
    print("| retriever | @2 | @5 | @10 | seconds |\n| --- | --- | --- | --- | --- |", flush=True)
    for section in sections:
        try:
            started = time.monotonic()
            retriever = open_retriever(section, cache_root=cache_root(os.environ), progress=Silent(), others=sections)
        except BackendError as error:
            print(f"{section.name}: left out: {error.diagnostics[0].message}")
            continue
        found = [[passage["id"] for passage in line] for line in retriever.search(queries, max(DEPTHS))]
        report(section.name, found, questions, time.monotonic() - started)
    started = time.monotonic()
    report("bm25s itself", direct_bm25(passages, queries), questions, time.monotonic() - started)
    if settings.direct_dense:
        started = time.monotonic()
        found = direct_dense(settings.model, passages, queries)
        report("sentence-transformers itself", found, questions, time.monotonic() - started)


if __name__ == "__main__":
    main()
