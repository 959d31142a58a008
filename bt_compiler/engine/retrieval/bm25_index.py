"""An index for bm25s, made in parts: the numbers that bm25s computes passage by passage, a million tokens at a time.

Scores are those of `method="lucene"` (Kamphuis et al. 2020), in bm25s's order of operations, so that its arrays and
these are equal bit for bit. Knows tokens and scores, nothing of corpora or folders.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from math import log
from typing import Any, NamedTuple

WORDS = r"(?u)\b\w\w+\b"
"""bm25s's own pattern: words of two characters or more, between blanks and signs."""
_ALONE = (
    "\u0e01-\u0e3a\u0e40-\u0e4e\u3005-\u3007\u3041-\u3096\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\uff66-\uff9d\U00020000-\U0003ffff"
)
"""Characters of Thai, Japanese, Chinese and Korean, which stand together without a blank."""
WORDS_AND_CHARACTERS = rf"(?u)[{_ALONE}]|[^\W{_ALONE}]{{2,}}"
"""Each of these characters is a word; without any in it a text has the words of `WORDS`."""
_STOP = -1
_PART = 1 << 20
"""Tokens whose postings are sorted together."""


def stand_together(texts: Iterable[str]) -> bool:
    """Whether texts are in scripts without blanks: one character in twenty at least. A name in such a script here and
    there leaves what is a word as it is.
    """
    alone = re.compile(f"[{_ALONE}]").findall
    counts = [(0 if text.isascii() else len(alone(text)), len(text)) for text in texts]
    found = sum(count for count, _ in counts)
    return found > 0 and found * 20 >= sum(count for _, count in counts)


class Words:
    """Numbers the stems of words in the order in which they first come; tokens are those of `bm25s.tokenize`."""

    def __init__(self, pattern: str, stopwords: Sequence[str], stem: Callable[[str], str] | None) -> None:
        self.stems: dict[str, int] = {}
        """Stem -> number."""
        self._known: dict[str, int] = dict.fromkeys(stopwords, _STOP)
        self._stem = stem
        self._words_of = re.compile(pattern).findall

    def numbers(self, text: str) -> list[int]:
        """One number a word that is no stop word."""
        words = self._words_of(text.lower())
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
