"""Recall@2/5/10 and full hit of the retrievers on HotPotQA, each beside the libraries used directly.

    python tests/bench/retrieval.py hotpotqa [--model FOLDER_OR_ID] [--reranker FOLDER_OR_ID] [--judge N]

Queries are the questions. Full hit: all gold passages among the k. Under each row stands the same by the library
itself, and for how many questions its ten best passages are the same ten (equal scores may be cut off elsewhere).
`dense` and `hybrid` need the extra `dense` and a model; what is missing is left out, with a line that says so.
`--reranker` names a cross-encoder, `--judge` has a module on the embedded LM rank the ten best by words for the first N
questions.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bt_compiler.engine.cache import cache_root
from bt_compiler.engine.progress import Silent
from bt_compiler.engine.retrieval import open_retrievers
from bt_compiler.engine.retrieval.encoder import find_encoder
from bt_compiler.errors import BackendError
from bt_compiler.spec.sections import CorpusSection, RetrieverSection

DEPTHS = (2, 5, 10)
DEPTH = 50
"""Passages of each list that are fused or reranked: our default."""
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
Rows = list[dict[str, Any]]
Ranking = list[list[str]]
"""Titles by question, best first."""
JUDGED = """\
version: 1
name: judged
model: HuggingFaceTB/SmolLM2-135M-Instruct
data: questions.jsonl
retrievers:
  words: {{kind: bm25, corpus: {{path: {corpus}, id: title, text: "{{title}} | {{text}}"}}}}
  best: {{kind: rerank, of: [words], module: judge, depth: 10, k: 10}}
modules:
  judge:
    signature:
      instructions: Does the passage help to answer the question?
      inputs: {{passage: Passage, question: str}}
      outputs: {{helps: bool}}
program:
  inputs: {{question: str}}
  steps:
    found: {{retrieve: best, in: {{query: $question}}}}
  out: {{passages: $found.passages}}
metric: json_equal
"""


def rows(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def report(name: str, found: Ranking, questions: Rows, started: float, against: Ranking | None = None) -> None:
    cells = []
    for depth in DEPTHS:
        hits = [
            len(set(titles[:depth]) & set(one["gold_titles"])) / len(set(one["gold_titles"]))
            for titles, one in zip(found, questions, strict=True)
        ]
        cells.append(f"{sum(hits) / len(hits):.3f} / {sum(hit == 1 for hit in hits) / len(hits):.3f}")
    same = ""
    if against is not None:
        pairs = zip(found, against, strict=True)
        same = f"{sum(set(one[:10]) == set(other[:10]) for one, other in pairs)} of {len(found)}"
    seconds = time.monotonic() - started
    print(f"| {name} | {' | '.join(cells)} | {len(found)} | {same} | {seconds:.1f} |", flush=True)


def text_of(passage: dict[str, Any]) -> str:
    return f"{passage['title']} | {passage['text']}"


def direct_bm25(passages: Rows, queries: Sequence[str]) -> Ranking:
    import bm25s
    import Stemmer

    how: dict[str, Any] = {"stopwords": "english", "stemmer": Stemmer.Stemmer("english"), "show_progress": False}
    index = bm25s.BM25()
    index.index(bm25s.tokenize([text_of(one) for one in passages], **how), show_progress=False)
    numbers, _ = index.retrieve(bm25s.tokenize(list(queries), **how), k=DEPTH, show_progress=False)
    return [[passages[number]["title"] for number in line] for line in numbers]


def direct_dense(model: str, passages: Rows, queries: Sequence[str]) -> Ranking:
    from sentence_transformers import SentenceTransformer, util

    encoder = SentenceTransformer(model)
    vectors = encoder.encode([text_of(one) for one in passages])
    hits = util.semantic_search(encoder.encode(list(queries)), vectors, top_k=DEPTH)
    return [[passages[hit["corpus_id"]]["title"] for hit in line] for line in hits]


def direct_fusion(lists: Sequence[Ranking]) -> Ranking:
    """Reciprocal ranks added up."""
    fused = []
    for found in zip(*lists, strict=True):
        scores: dict[str, float] = {}
        for titles in found:
            for rank, title in enumerate(titles, 1):
                scores[title] = scores.get(title, 0.0) + 1 / (60 + rank)
        fused.append(sorted(scores, key=lambda title: -scores[title]))
    return fused


def direct_reranking(model: str, found: Ranking, passages: Rows, queries: Sequence[str]) -> Ranking:
    from sentence_transformers import CrossEncoder

    encoder, texts = CrossEncoder(model), {one["title"]: text_of(one) for one in passages}
    return [
        [titles[hit["corpus_id"]] for hit in encoder.rank(query, [texts[title] for title in titles])]
        for query, titles in zip(queries, found, strict=True)
    ]


def judged(data: Path, questions: Rows, cache: Path) -> Ranking:
    """The ten best by words in the order of a module, zero-shot."""
    from bt_compiler.compiler.opening import backend_opener, measured, open_models
    from bt_compiler.data import make_example
    from bt_compiler.engine.executor import Engine
    from bt_compiler.graph import lower, spec_candidate
    from bt_compiler.spec import build_sections, load_spec

    with TemporaryDirectory() as folder:
        path = Path(folder) / "judged.yaml"
        path.write_text(JUDGED.format(corpus=(data / "corpus.jsonl").absolute()), encoding="utf-8")
        spec = load_spec(path)
        sections = build_sections(spec)
    program = lower(spec, sections)
    retrievers = open_retrievers(["best"], sections.retrievers, cache_root=cache, progress=Silent())
    examples = [make_example({"question": one["question"]}, {}) for one in questions]
    opener = backend_opener(cache, Silent())
    with open_models(sections.models, choices=measured, opener=opener) as backends:
        engine = Engine(backends=backends, retrievers=retrievers)
        traces = engine.run(program, spec_candidate(program), examples)
    steps = [next(step for step in trace.steps if step.node == "found") for trace in traces]
    return [[passage["title"] for passage in (step.outputs or {})["passages"]] for step in steps]


def folder_of(section: RetrieverSection, cache: Path) -> str:
    """Where our retriever finds its model."""
    return str(find_encoder(section, cache_root=cache, progress=Silent()).path)


def sections_of(settings: argparse.Namespace) -> list[RetrieverSection]:
    corpus = CorpusSection(path=str(settings.data / "corpus.jsonl"), id="title", text="{title} | {text}")
    found = [
        RetrieverSection(name="bm25", kind="bm25", corpus=corpus),
        RetrieverSection(name="dense", kind="dense", corpus=corpus, options={"model": settings.model}),
        RetrieverSection(name="hybrid", kind="hybrid", of=("bm25", "dense")),
    ]
    if settings.reranker:
        found.append(RetrieverSection(name="rerank", kind="rerank", of=("bm25",), options={"model": settings.reranker}))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--reranker")
    parser.add_argument("--judge", type=int, default=0)
    settings = parser.parse_args()
    questions = [one for split in ("train", "dev") for one in rows(settings.data / f"{split}.jsonl")]
    passages = rows(settings.data / "corpus.jsonl")
    queries = [one["question"] for one in questions]
    sections, cache = sections_of(settings), cache_root(os.environ)
    direct: dict[str, Callable[[], Ranking]] = {
        "bm25": lambda: direct_bm25(passages, queries),
        "dense": lambda: direct_dense(folder_of(sections[1], cache), passages, queries),
        "hybrid": lambda: direct_fusion([themselves["bm25"], themselves["dense"]]),
        "rerank": lambda: direct_reranking(folder_of(sections[3], cache), themselves["bm25"], passages, queries),
    }
    themselves: dict[str, Ranking] = {}
    print(f"{len(queries)} questions, {len(passages)} passages; recall / full hit")
    print("| retriever | @2 | @5 | @10 | n | same ten | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for section in sections:
        started = time.monotonic()
        try:
            opened = open_retrievers([section.name], sections, cache_root=cache, progress=Silent())[section.name]
        except BackendError as error:
            print(f"{section.name}: left out: {error.diagnostics[0].message}")
            continue
        found = [[passage["id"] for passage in line] for line in opened.search(queries, max(DEPTHS))]
        report(section.name, found, questions, started)
        started = time.monotonic()
        themselves[section.name] = direct[section.name]()
        report(f"{section.name}, the library itself", themselves[section.name], questions, started, found)
    if settings.judge:
        started, asked = time.monotonic(), questions[: settings.judge]
        report("a module on the embedded LM over bm25", judged(settings.data, asked, cache), asked, started)
        report("bm25 on the same questions", [line[:10] for line in themselves["bm25"][: len(asked)]], asked, started)


if __name__ == "__main__":
    main()
