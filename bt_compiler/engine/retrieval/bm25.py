"""BM25 over a corpus with bm25s (Lù 2024, arXiv 2407.03618): scores are computed when indexing, searching adds them up.

An index is a folder named by the digest of everything it depends on; it is built once, under a lock, in a side folder
that is renamed into place, and read through memory maps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any

from bt_compiler.engine.progress import Progress
from bt_compiler.engine.retrieval.bm25_index import WORDS, WORDS_AND_CHARACTERS, Postings, Words, stand_together
from bt_compiler.engine.retrieval.corpus import read_corpus
from bt_compiler.engine.retrieval.corpus_rows import count_rows, shown_corpus
from bt_compiler.engine.retrieval.index_folder import (
    Index,
    corpus_settings,
    find_index,
    in_chunks,
    top,
)
from bt_compiler.engine.retrieval.opening import Opening
from bt_compiler.engine.retrieval.passages import Passages, write_passages
from bt_compiler.errors import BackendError, DataError
from bt_compiler.spec.sections import CorpusSection, RetrieverSection

_HEAD = 10_000
"""Passages that are looked at for the script they are in."""
Tokenize = Callable[[Sequence[str]], list[list[str]]]


def open_bm25(opening: Opening) -> Bm25Retriever:
    """The retriever over its index; see `find_index`.

    Raises DataError (BTC373 to BTC377) for the corpus, BackendError BTC379 where packages are missing, BundleError.
    """
    section, corpus = opening.section, opening.section.corpus
    if corpus is None:
        raise ValueError("a bm25 retriever without a corpus: `check_retriever` comes first")
    settings = _settings(section, corpus)
    with_characters = {**settings, "words": WORDS_AND_CHARACTERS}

    def choose() -> Mapping[str, Any]:
        texts = (text.text for text in islice(read_corpus(corpus), _HEAD))
        return with_characters if stand_together(texts) else settings

    def build(folder: Path, settings: Mapping[str, Any]) -> None:
        _build(folder, corpus, settings, opening.progress)

    index = find_index(opening, corpus, [settings, with_characters], build, choose=choose)
    return Bm25Retriever(index, _tokenizer(index.settings))


class Bm25Retriever:
    """A `Retriever` over one index folder."""

    def __init__(self, index: Index, tokenize: Tokenize) -> None:
        import bm25s

        self.digest = index.digest
        self.folder = index.folder
        self._tokenize = tokenize
        self._index = bm25s.BM25.load(index.folder, mmap=True, show_progress=False)
        self._passages = Passages(index.folder)

    def search(self, queries: Sequence[str], k: int) -> list[list[dict[str, Any]]]:
        """See `Retriever`. Equal queries are searched once."""
        distinct = list(dict.fromkeys(queries))
        found = {query: self._best(tokens, k) for query, tokens in zip(distinct, self._tokenize(distinct), strict=True)}
        return [[dict(passage) for passage in found[query]] for query in queries]

    def _best(self, tokens: list[str], k: int) -> list[dict[str, Any]]:
        ids = self._index.get_tokens_ids(tokens)
        if not ids:
            return [self._passage(number, 0.0) for number in range(min(k, len(self._passages)))]
        scores = self._index.get_scores_from_ids(ids)
        return [self._passage(number, float(scores[number])) for number in top(scores, k)]

    def _passage(self, number: int, score: float) -> dict[str, Any]:
        text = self._passages[number]
        return {"id": text.id, "title": text.title, "text": text.text, "score": score}


def _settings(section: RetrieverSection, corpus: CorpusSection) -> dict[str, Any]:
    options = section.options
    stopwords = options.get("stopwords", "english")
    return {
        "kind": "bm25",
        **corpus_settings(corpus),
        "stemmer": options.get("stemmer", "english"),
        "stopwords": sorted({word.lower() for word in stopwords}) if isinstance(stopwords, list | tuple) else stopwords,
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


def _tokenizer(settings: Mapping[str, Any]) -> Tokenize:
    """Lower case, words as `_pattern` has them, without stop words, stemmed."""
    import bm25s
    import Stemmer

    language, stopwords, pattern = settings["stemmer"], settings["stopwords"], _pattern(settings)
    stemmer = Stemmer.Stemmer(language) if language else None

    def tokenize(texts: Sequence[str]) -> list[list[str]]:
        tokens: list[list[str]] = bm25s.tokenize(
            list(texts),
            token_pattern=pattern,
            stopwords=stopwords,
            stemmer=stemmer,
            return_ids=False,
            show_progress=False,
        )
        return tokens

    return tokenize


def _pattern(settings: Mapping[str, Any]) -> str:
    """What counts as a word."""
    return str(settings.get("words", WORDS))


def _build(folder: Path, corpus: CorpusSection, settings: Mapping[str, Any], progress: Progress) -> None:
    import bm25s

    progress.begin(f"index {Path(corpus.path).name}", count_rows(corpus))
    words, postings = _words(settings), Postings()
    for chunk in in_chunks(write_passages(folder, read_corpus(corpus))):
        postings.add([words.numbers(text.text) for text in chunk])
        progress.advance(len(chunk))
    if not words.stems:
        raise DataError.of(
            "BTC377",
            f"no passage of corpus `{shown_corpus(corpus)}` holds a word to search for",
            span=corpus.span,
            help="words of two letters or more count, stop words do not; see `text`, `stopwords`",
        )
    k1, b = settings["k1"], settings["b"]
    index = bm25s.BM25(k1=k1, b=b, method="lucene", backend="numpy", csc_backend="numpy")
    index.scores = postings.scored(len(words.stems), k1=k1, b=b)
    index.vocab_dict, index.nonoccurrence_array = words.stems, None
    index.save(folder, show_progress=False)


def _words(settings: Mapping[str, Any]) -> Words:
    from bm25s.tokenization import Tokenizer
    from Stemmer import Stemmer

    stopwords, language = Tokenizer(stopwords=settings["stopwords"]).stopwords, settings["stemmer"]
    return Words(_pattern(settings), stopwords, Stemmer(language).stemWord if language else None)
