"""BM25 over a corpus with bm25s (Lù 2024, arXiv 2407.03618): scores are computed when indexing, searching adds them up.

An index is a folder named by the digest of everything it depends on; it is built once, under a lock, in a side folder
that is renamed into place, and read through memory maps.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any

from bt_compiler.canonical import digest, digest_file
from bt_compiler.data.packed import PACKED, data_lines
from bt_compiler.data.table import shown_name
from bt_compiler.engine.cache import file_lock
from bt_compiler.engine.progress import Progress
from bt_compiler.engine.retrieval.corpus import Text, read_corpus
from bt_compiler.engine.retrieval.passages import Passages, write_passages
from bt_compiler.errors import BackendError, DataError
from bt_compiler.spec.sections import CorpusSection, RetrieverSection

SCHEMA = 1
"""Version of the index folder."""
_MARKER = "index.json"
"""Written last: schema version and the size of every other file."""
_CHUNK = 1000
"""Passages tokenised together, and the step of progress."""

Tokenize = Callable[[Sequence[str]], list[list[str]]]


def open_bm25(section: RetrieverSection, *, cache_root: Path, progress: Progress) -> Bm25Retriever:
    """The retriever, from its index under `cache_root/indexes`, built first where there is none.

    Raises DataError (BTC373 to BTC377) for the corpus and BackendError BTC379 where packages are missing.
    """
    corpus = section.corpus
    if corpus is None:
        raise ValueError("a bm25 retriever without a corpus: `check_retriever` comes first")
    settings = _settings(section, corpus)
    try:
        corpus_digest = digest_file(Path(corpus.path))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DataError.of(
            "BTC373", f"corpus `{shown_name(Path(corpus.path))}` cannot be read: {reason}", span=corpus.span
        ) from error
    identity = digest({"corpus": corpus_digest, **settings})
    folder = cache_root / "indexes" / identity
    tokenize = _tokenizer(settings["stemmer"], settings["stopwords"])
    if not _complete(folder):
        _prepare(folder, corpus, settings, tokenize, progress)
    return Bm25Retriever(folder, identity, tokenize)


class Bm25Retriever:
    """A `Retriever` over one index folder."""

    def __init__(self, folder: Path, digest: str, tokenize: Tokenize) -> None:
        import bm25s

        self.digest = digest
        self._tokenize = tokenize
        self._index = bm25s.BM25.load(folder, mmap=True, show_progress=False)
        self._passages = Passages(folder)

    def search(self, queries: Sequence[str], k: int) -> list[list[dict[str, Any]]]:
        """See `Retriever`. Equal queries are searched once."""
        distinct = list(dict.fromkeys(queries))
        found = {query: self._best(tokens, k) for query, tokens in zip(distinct, self._tokenize(distinct), strict=True)}
        return [[dict(passage) for passage in found[query]] for query in queries]

    def _best(self, tokens: list[str], k: int) -> list[dict[str, Any]]:
        import numpy as np

        ids = self._index.get_tokens_ids(tokens)
        scores = self._index.get_scores_from_ids(ids) if ids else np.zeros(len(self._passages), dtype=np.float32)
        return [self._passage(number, float(scores[number])) for number in top(scores, k)]

    def _passage(self, number: int, score: float) -> dict[str, Any]:
        text = self._passages[number]
        return {"id": text.id, "title": text.title, "text": text.text, "score": score}


def top(scores: Any, k: int) -> list[int]:
    """Numbers of the k highest scores, best first, equal ones by number (`argpartition` would pick any of them)."""
    import numpy as np

    k = min(k, len(scores))
    if k <= 0:
        return []
    least = np.partition(scores, len(scores) - k)[len(scores) - k]
    above = np.flatnonzero(scores > least)
    ties = np.flatnonzero(scores == least)[: k - len(above)]
    chosen = np.concatenate([above, ties])
    return [int(number) for number in chosen[np.lexsort((chosen, -scores[chosen]))]]


def _settings(section: RetrieverSection, corpus: CorpusSection) -> dict[str, Any]:
    options = section.options
    stopwords = options.get("stopwords", "english")
    return {
        "schema": SCHEMA,
        "kind": "bm25",
        "id": corpus.id,
        "title": corpus.title,
        "text": corpus.text,
        **({"where": [asdict(condition) for condition in corpus.where]} if corpus.where else {}),
        "stemmer": options.get("stemmer", "english"),
        "stopwords": sorted(stopwords) if isinstance(stopwords, list | tuple) else stopwords,
        "k1": float(options.get("k1", 1.5)),
        "b": float(options.get("b", 0.75)),
        "versions": {name: _version(name) for name in ("bm25s", "PyStemmer")},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError as error:
        raise BackendError.of(
            "BTC379",
            f"retriever kind `bm25` needs the package `{package}`, which is not installed",
            help='pip install "bt-compiler[retrieve]"',
        ) from error


def _tokenizer(language: str | None, stopwords: str | list[str] | None) -> Tokenize:
    """Lower case, words of two letters or more, without stop words, stemmed."""
    import bm25s
    import Stemmer

    stemmer = Stemmer.Stemmer(language) if language else None

    def tokenize(texts: Sequence[str]) -> list[list[str]]:
        tokens: list[list[str]] = bm25s.tokenize(
            list(texts), stopwords=stopwords, stemmer=stemmer, return_ids=False, show_progress=False
        )
        return tokens

    return tokenize


def _complete(folder: Path) -> bool:
    """Whether the marker is there and every file has the size it names: a damaged index is built anew."""
    try:
        marker = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
        sizes = marker["files"] if marker["schema"] == SCHEMA else None
        return sizes is not None and all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _prepare(
    folder: Path, corpus: CorpusSection, settings: dict[str, Any], tokenize: Tokenize, progress: Progress
) -> None:
    """Builds the index in a side folder and renames it; a second process waits and finds it ready."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(folder.with_suffix(".lock")):
            if _complete(folder):
                return
            building = folder.with_suffix(".building")
            for old in (building, folder):  # left by a process that was killed, or damaged since
                if old.exists():
                    shutil.rmtree(old)
            building.mkdir()
            try:
                _build(building, corpus, settings, tokenize, progress)
                _finish(building)
            except BaseException:
                shutil.rmtree(building, ignore_errors=True)
                raise
            building.rename(folder)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise BackendError.of(
            "BTC362",
            f"the index of corpus `{corpus.path}` cannot be written under `{folder.parent}`: {reason}",
            help="name a folder that can be written, on a disk with room, in `BTC_CACHE`",
        ) from error


def _build(
    folder: Path, corpus: CorpusSection, settings: dict[str, Any], tokenize: Tokenize, progress: Progress
) -> None:
    import bm25s

    progress.begin(f"index {Path(corpus.path).name}", _count_lines(Path(corpus.path)))
    vocabulary: dict[str, int] = {}
    documents: list[list[int]] = []
    for chunk in _chunks(write_passages(folder, read_corpus(corpus))):
        for tokens in tokenize([text.text for text in chunk]):
            documents.append([vocabulary.setdefault(token, len(vocabulary)) for token in tokens])
        progress.advance(len(chunk))
    if not vocabulary:
        raise DataError.of(
            "BTC377",
            f"no passage of corpus `{shown_name(Path(corpus.path))}` holds a word to search for",
            span=corpus.span,
            help="words of two letters or more count, stop words do not; see `text`, `stopwords`",
        )
    index = bm25s.BM25(k1=settings["k1"], b=settings["b"], method="lucene", backend="numpy", csc_backend="numpy")
    index.index((documents, vocabulary), create_empty_token=False, show_progress=False)
    index.save(folder, show_progress=False)


def _finish(folder: Path) -> None:
    """Everything on the disk, then the marker, so that a folder with a marker is whole."""
    sizes = {}
    for path in sorted(folder.iterdir()):
        sizes[path.name] = path.stat().st_size
        _sync(path)
    marker = folder / _MARKER
    marker.write_text(json.dumps({"schema": SCHEMA, "files": sizes}, sort_keys=True), encoding="utf-8")
    _sync(marker)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _chunks(texts: Iterator[Text]) -> Iterator[list[Text]]:
    while chunk := list(islice(texts, _CHUNK)):
        yield chunk


def _count_lines(path: Path) -> int:
    if path.suffix.lower() in PACKED:
        return sum(1 for _ in data_lines(path))
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
