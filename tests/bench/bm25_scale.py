"""BM25 over a synthetic corpus as large as Wikipedia's abstracts: our retriever beside bm25s used directly.

    python tests/bench/bm25_scale.py [--passages 5200000] [--queries 200] [--folder DIR]

Words are drawn by Zipf-Mandelbrot (p of rank r ~ 1 / (r + 2.7)^1.05, 500,000 words), about 32 a passage. A query is
five words of a passage. Each side is built and served in processes of its own, on one thread; both give their ten best
passages for the same queries. Memory: VmHWM of the building process; while serving VmRSS after all queries, mapped
files included, and what is the process's own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

WORDS, SHIFT, EXPONENT, LENGTH, K = 500_000, 2.7, 1.05, 32, 10
CHUNK = 20_000
SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprtvz" for vowel in "aou"]  # nothing that a stemmer takes off


def word(rank: int) -> str:
    """A made-up word, frequent ones short."""
    text, left = "", rank + len(SYLLABLES)
    while left:
        left, place = divmod(left, len(SYLLABLES))
        text += SYLLABLES[place]
    return text + "k"


def make(folder: Path, passages: int, queries: int) -> None:
    """`corpus.jsonl` and `queries.json`."""
    random = np.random.default_rng(7)
    weights = 1 / (np.arange(WORDS) + SHIFT) ** EXPONENT
    edges = np.cumsum(weights / weights.sum())
    names = np.array([word(rank) for rank in range(WORDS)], dtype=object)
    asked: list[str] = []
    with (folder / "corpus.jsonl").open("w", encoding="utf-8") as file:
        for first in range(0, passages, CHUNK):
            lengths = random.poisson(LENGTH, min(CHUNK, passages - first)) + 1
            drawn = names[np.searchsorted(edges, random.random(lengths.sum())).clip(max=WORDS - 1)]
            texts = [" ".join(part) for part in np.split(drawn, np.cumsum(lengths)[:-1])]
            file.writelines(f'{{"text": "{text}"}}\n' for text in texts)
            wanted = queries * (first + len(texts)) // passages - len(asked)
            chosen = random.choice(len(texts), size=wanted)
            asked += [" ".join(random.permutation(texts[number].split())[:5]) for number in chosen]
    (folder / "queries.json").write_text(json.dumps(asked))


def memory(name: str) -> float:
    """GiB of this process: `VmHWM`, `VmRSS`, `RssAnon`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 2**20


def ours(folder: Path) -> Any:
    from bt_compiler.engine.progress import Silent
    from bt_compiler.engine.retrieval import open_retriever
    from bt_compiler.spec.sections import CorpusSection, RetrieverSection

    section = RetrieverSection(name="big", kind="bm25", corpus=CorpusSection(path=str(folder / "corpus.jsonl")))
    return open_retriever(section, cache_root=folder / "cache", progress=Silent())


def how() -> dict[str, Any]:
    import Stemmer

    return {"stopwords": "english", "stemmer": Stemmer.Stemmer("english"), "show_progress": False}


def build_ours(folder: Path) -> dict[str, float]:
    ours(folder)
    return {}


def build_bm25s(folder: Path) -> dict[str, float]:
    import bm25s

    with (folder / "corpus.jsonl").open(encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    index = bm25s.BM25()
    tokens = bm25s.tokenize(texts, **how())
    del texts
    index.index(tokens, show_progress=False)
    index.save(folder / "bm25s", show_progress=False)
    return {}


def timed(folder: Path, search: Any) -> dict[str, float]:
    queries = json.loads((folder / "queries.json").read_text())
    search(queries[:3])
    started, cpu = time.perf_counter(), time.process_time()
    found = search(queries)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    (folder / f"{sys.argv[1]}.json").write_text(json.dumps(found))
    rates = {"queries/s": len(queries) / seconds, "queries/CPU s": len(queries) / cpu}
    return {**rates, "RSS": memory("VmRSS"), "own": memory("RssAnon")}


def serve_ours(folder: Path) -> dict[str, float]:
    started = time.perf_counter()
    retriever = ours(folder)
    opened = time.perf_counter() - started

    def search(queries: list[str]) -> list[list[tuple[int, float]]]:
        return [[(int(one["id"]) - 1, one["score"]) for one in found] for found in retriever.search(queries, K)]

    return {"open s": opened, **timed(folder, search)}


def serve_bm25s(folder: Path) -> dict[str, float]:
    import bm25s

    started = time.perf_counter()
    index = bm25s.BM25.load(folder / "bm25s", mmap=True, show_progress=False)
    opened = time.perf_counter() - started
    settings = how()

    def search(queries: list[str]) -> list[list[tuple[int, float]]]:
        found = index.retrieve(bm25s.tokenize(queries, **settings), k=K, show_progress=False)
        return [
            list(zip(map(int, numbers), map(float, scores), strict=True))
            for numbers, scores in zip(found.documents, found.scores, strict=True)
        ]

    return {"open s": opened, **timed(folder, search)}


PARTS = {"build_ours": build_ours, "build_bm25s": build_bm25s, "serve_ours": serve_ours, "serve_bm25s": serve_bm25s}


def part(name: str, folder: Path) -> dict[str, float]:
    """What a process of its own says."""
    found = subprocess.run([sys.executable, __file__, name, str(folder)], stdout=subprocess.PIPE, check=True, text=True)
    facts: dict[str, float] = json.loads(found.stdout)
    print(f"{name:12}", "  ".join(f"{key} {value:.2f}" for key, value in facts.items()), flush=True)
    return facts


def alone(name: str, folder: Path) -> None:
    import bm25s  # noqa: F401  what both import is not timed
    import Stemmer  # noqa: F401

    started, cpu = time.perf_counter(), time.process_time()
    facts = PARTS[name](folder)
    took = {"s": time.perf_counter() - started, "CPU s": time.process_time() - cpu}
    print(json.dumps({**facts, **took, "peak": memory("VmHWM")}))


def agreeing(folder: Path) -> tuple[int, int]:
    """(queries, those with the same ten scores and, where scores differ from their neighbours, the same passages)."""
    sides = [json.loads((folder / f"serve_{side}.json").read_text()) for side in ("ours", "bm25s")]
    return len(sides[0]), sum(same(one, other) for one, other in zip(*sides, strict=True))


def same(one: list[list[float]], other: list[list[float]]) -> bool:
    if [score for _, score in one] != [score for _, score in other]:
        return False
    least = one[-1][1]  # of those that tie for the last place either side may pick another
    return {n for n, score in one if score > least} == {n for n, score in other if score > least}


def main() -> None:
    if sys.argv[1:2] and sys.argv[1] in PARTS:
        alone(sys.argv[1], Path(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passages", type=int, default=5_200_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--folder", type=Path, help="where corpus and indexes go, and stay; else a temporary one")
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bm25-scale-") as temporary:
        folder = settings.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        make(folder, settings.passages, settings.queries)
        size = (folder / "corpus.jsonl").stat().st_size / 2**30
        print(f"{settings.passages} passages, {size:.2f} GiB; GiB of memory")
        for name in PARTS:
            part(name, folder)
        print("{1} of {0} queries have the same answers".format(*agreeing(folder)))


if __name__ == "__main__":
    main()
