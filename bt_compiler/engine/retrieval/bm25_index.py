"""An index for bm25s, made in parts: the numbers that bm25s computes passage by passage, a million tokens at a time.

Scores are those of `method="lucene"` (Kamphuis et al. 2020), in bm25s's order of operations, so that its arrays and
these are equal bit for bit. Knows tokens and scores, nothing of corpora or folders.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from math import log
from typing import Any, NamedTuple

_WORD = re.compile(r"(?u)\b\w\w+\b")
"""bm25s's own pattern."""
_STOP = -1
_PART = 1 << 20
"""Tokens whose postings are sorted together."""


class Words:
    """Numbers the stems of words in the order in which they first come; tokens are those of `bm25s.tokenize`."""

    def __init__(self, stopwords: Sequence[str], stem: Callable[[str], str] | None) -> None:
        self.stems: dict[str, int] = {}
        """Stem -> number."""
        self._known: dict[str, int] = dict.fromkeys(stopwords, _STOP)
        self._stem = stem

    def numbers(self, text: str) -> list[int]:
        """One number a word that is no stop word."""
        words = _WORD.findall(text.lower())
        if not self._known.keys() >= set(words):
            self._learn(words)
        found = list(map(self._known.__getitem__, words))
        return [number for number in found if number != _STOP] if _STOP in found else found

    def _learn(self, words: Sequence[str]) -> None:
        for word in words:
            if word not in self._known:
                stem = word if self._stem is None else self._stem(word)
                self._known[word] = self.stems.setdefault(stem, len(self.stems))


class _Part(NamedTuple):
    """Postings of some passages, sorted by token, then by passage."""

    tokens: Any
    passages: Any
    counts: Any
    """How often the token stands in the passage."""


class Postings:
    """Collects the tokens of passages and scores them."""

    def __init__(self) -> None:
        self._tokens = array("i")
        self._lengths = array("i")

    def add(self, passages: Sequence[list[int]]) -> None:
        """The tokens of the next passages."""
        self._lengths.extend(map(len, passages))
        self._tokens.extend(chain.from_iterable(passages))

    def scored(self, vocabulary: int, *, k1: float, b: float) -> dict[str, Any]:
        """`BM25.scores`: float32 scores and int32 passages by token, in the order of the corpus, and where each token's
        begin. `vocabulary` is the number of tokens there are.
        """
        import numpy as np

        lengths = np.frombuffer(self._lengths, dtype=np.int32)
        frequencies = np.zeros(vocabulary, dtype=np.int64)
        for part in self._parts():
            frequencies += np.bincount(part.tokens, minlength=vocabulary)
        begins = np.zeros(vocabulary + 1, dtype=np.int64)
        np.cumsum(frequencies, out=begins[1:])
        weights = _weights(frequencies, len(lengths))
        norms = k1 * ((1 - b) + b * lengths / lengths.mean())
        scores = np.empty(begins[-1], dtype=np.float32)
        passages = np.empty(begins[-1], dtype=np.int32)
        following = begins[:-1].copy()
        for part in self._parts():
            first = np.flatnonzero(np.diff(part.tokens, prepend=-1))
            runs = np.diff(first, append=len(part.tokens))
            places = np.arange(len(part.tokens)) + np.repeat(following[part.tokens[first]] - first, runs)
            following[part.tokens[first]] += runs
            scores[places] = weights[part.tokens] * (part.counts / (norms[part.passages] + part.counts))
            passages[places] = part.passages
        return {"data": scores, "indices": passages, "indptr": begins, "num_docs": len(lengths)}

    def _parts(self) -> Iterator[_Part]:
        import numpy as np

        lengths = np.frombuffer(self._lengths, dtype=np.int32)
        tokens = np.frombuffer(self._tokens, dtype=np.int32)
        ends = np.cumsum(lengths, dtype=np.int64)
        first = 0
        while first < len(lengths):
            begin = int(ends[first]) - int(lengths[first])
            last = max(int(np.searchsorted(ends, begin + _PART, side="right")), first + 1)
            own = np.repeat(np.arange(first, last, dtype=np.int64), lengths[first:last])
            pairs = tokens[begin : int(ends[last - 1])].astype(np.int64) << 32 | own
            pairs, counts = np.unique(pairs, return_counts=True)
            yield _Part(pairs >> 32, (pairs & 0xFFFFFFFF).astype(np.int32), counts)
            first = last


def _weights(frequencies: Any, passages: int) -> Any:
    """Inverse document frequency of each token, float32; by `math.log`, as numpy's may differ in the last bit."""
    import numpy as np

    known, which = np.unique(frequencies, return_inverse=True)
    values = [log(1 + (passages - int(count) + 0.5) / (int(count) + 0.5)) for count in known]
    return np.array(values, dtype=np.float32)[which]
