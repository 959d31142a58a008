"""Dense retrieval: passages as vectors of a sentence-transformers model, compared exactly with the query's (cosine).

The vectors lie in one file that is mapped into memory; a query is one pass over it, so that results are exact and do
not depend on what else is asked. Corpora beyond a few million passages belong into a vector database (`qdrant`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bt_compiler.canonical import digest
from bt_compiler.engine.progress import Progress
from bt_compiler.engine.retrieval.corpus import read_corpus
from bt_compiler.engine.retrieval.encoder import Encoder, find_encoder, library_version
from bt_compiler.engine.retrieval.index_folder import (
    corpus_digest,
    corpus_settings,
    count_lines,
    in_chunks,
    prepare,
    top,
)
from bt_compiler.engine.retrieval.passages import Passages, write_passages
from bt_compiler.spec.sections import CorpusSection, RetrieverSection

_VECTORS = "vectors.f32"


def open_dense(section: RetrieverSection, *, cache_root: Path, progress: Progress) -> DenseRetriever:
    """The retriever, from its index under `cache_root/indexes`, built first where there is none.

    Raises DataError for the corpus and BackendError where the model or a package is missing (BTC384, BTC500 to BTC503).
    """
    corpus = section.corpus
    if corpus is None:
        raise ValueError("a dense retriever without a corpus: `check_retriever` comes first")
    library = library_version("dense")
    model = find_encoder(section, cache_root=cache_root, progress=progress)
    identity = digest(
        {
            "kind": "dense",
            "corpus": corpus_digest(corpus),
            **corpus_settings(corpus),
            "model": model.digest,
            "versions": {"sentence-transformers": library},
        }
    )
    folder = cache_root / "indexes" / identity
    encoder = Encoder(model.path)
    prepare(folder, corpus, lambda building: _build(building, corpus, encoder, progress))
    return DenseRetriever(folder, identity, encoder)


def _build(folder: Path, corpus: CorpusSection, encoder: Encoder, progress: Progress) -> None:
    progress.begin(f"embed {Path(corpus.path).name}", count_lines(Path(corpus.path)))
    with (folder / _VECTORS).open("wb") as file:
        for chunk in in_chunks(write_passages(folder, read_corpus(corpus))):
            file.write(encoder.passages([text.text for text in chunk]).astype("<f4").tobytes())
            progress.advance(len(chunk))


class DenseRetriever:
    """A `Retriever` over one index folder."""

    def __init__(self, folder: Path, digest: str, encoder: Encoder) -> None:
        import numpy as np

        self.digest = digest
        self._encoder = encoder
        self._passages = Passages(folder)
        self._vectors = np.memmap(folder / _VECTORS, dtype="<f4", mode="r").reshape(len(self._passages), -1)

    def search(self, queries: Sequence[str], k: int) -> list[list[dict[str, Any]]]:
        """See `Retriever`. Equal queries are searched once."""
        distinct = list(dict.fromkeys(queries))
        if not distinct:
            return []
        vectors = self._encoder.queries(distinct)
        found = {query: self._best(vector, k) for query, vector in zip(distinct, vectors, strict=True)}
        return [[dict(passage) for passage in found[query]] for query in queries]

    def _best(self, vector: Any, k: int) -> list[dict[str, Any]]:
        scores = self._vectors @ vector
        return [self._passage(number, float(scores[number])) for number in top(scores, k)]

    def _passage(self, number: int, score: float) -> dict[str, Any]:
        text = self._passages[number]
        return {"id": text.id, "title": text.title, "text": text.text, "score": score}
