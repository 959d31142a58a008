"""Dense retrieval: passages as vectors of a sentence-transformers model, compared exactly with the query's (cosine).

The vectors lie in one file that is mapped into memory; a query is one pass over it, so that results are exact and do
not depend on what else is asked. Corpora beyond a few million passages belong into a vector database (`qdrant`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bt_compiler.engine.progress import Progress
from bt_compiler.engine.retrieval.corpus import read_corpus
from bt_compiler.engine.retrieval.corpus_rows import count_rows
from bt_compiler.engine.retrieval.encoder import Encoder, find_encoder, library_version
from bt_compiler.engine.retrieval.index_folder import (
    Index,
    corpus_settings,
    find_index,
    in_chunks,
    top,
)
from bt_compiler.engine.retrieval.opening import Opening
from bt_compiler.engine.retrieval.passages import Passages, write_passages
from bt_compiler.spec.sections import CorpusSection

_VECTORS = "vectors.f32"


def open_dense(opening: Opening) -> DenseRetriever:
    """The retriever over its index; see `find_index`. The model is needed where the index is carried, too.

    Raises DataError for the corpus, BackendError where the model or a package is missing (BTC384, BTC500 to BTC503)
    or the model cannot be loaded (BTC365), BundleError.
    """
    section, corpus = opening.section, opening.section.corpus
    if corpus is None:
        raise ValueError("a dense retriever without a corpus: `check_retriever` comes first")
    library = library_version("dense")
    model = find_encoder(section, cache_root=opening.cache_root, progress=opening.progress)
    settings = {
        "kind": "dense",
        **corpus_settings(corpus),
        "model": model.digest,
        "versions": {"sentence-transformers": library},
    }
    encoder = Encoder(section, model.path)
    index = find_index(opening, corpus, [settings], lambda folder, _: _build(folder, corpus, encoder, opening.progress))
    return DenseRetriever(index, encoder)


def _build(folder: Path, corpus: CorpusSection, encoder: Encoder, progress: Progress) -> None:
    progress.begin(f"embed {Path(corpus.path).name}", count_rows(corpus))
    count = long = 0
    with (folder / _VECTORS).open("wb") as file:
        for chunk in in_chunks(write_passages(folder, read_corpus(corpus))):
            texts = [text.text for text in chunk]
            file.write(encoder.passages(texts).astype("<f4").tobytes())
            count, long = count + len(chunk), long + encoder.too_long(texts)
            progress.advance(len(chunk))
    if long:
        progress.say(
            f"{long} of {count} passages in {Path(corpus.path).name} have more than the {encoder.window} tokens that "
            f"`{encoder.name}` reads: the rest is not searched"
        )


class DenseRetriever:
    """A `Retriever` over one index folder."""

    def __init__(self, index: Index, encoder: Encoder) -> None:
        import numpy as np

        self.digest = index.digest
        self.folder = index.folder
        self._encoder = encoder
        self._passages = Passages(index.folder)
        self._vectors = np.memmap(index.folder / _VECTORS, dtype="<f4", mode="r").reshape(len(self._passages), -1)

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
