"""Retrievers made of others: reciprocal rank fusion of several, and one reranked by a cross-encoder.

Fusion: Cormack, Clarke & Büttcher 2009: a passage's score is the sum over the lists it stands in of 1 / (60 + rank).
A place in a list counts only where the list scores it: what matches nothing fills lists up, and this one as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

from bt_compiler.canonical import digest
from bt_compiler.engine.retrieval.encoder import PairScorer, find_encoder, library_version
from bt_compiler.engine.retrieval.opening import Opening
from bt_compiler.engine.retrieval.retriever import Retriever
from bt_compiler.errors import ExampleError

RANK_CONSTANT = 60
DEPTH = 50
"""Passages taken of each list that is combined, or at least k."""


class HybridRetriever:
    """Several retrievers as one."""

    def __init__(self, parts: Sequence[Retriever], *, depth: int = DEPTH, rank_constant: int = RANK_CONSTANT) -> None:
        self._parts = tuple(parts)
        self._depth = depth
        self._constant = rank_constant
        self.digest = digest(["hybrid", depth, rank_constant, [part.digest for part in parts]])

    def search(self, queries: Sequence[str], k: int) -> list[list[dict[str, Any]] | ExampleError]:
        """See `Retriever`. Equal scores stand in the order in which the parts give them, the first part's first. What
        no part scores comes last, with score 0. What one part is refused, fails.
        """
        lists = [part.search(queries, max(k, self._depth)) for part in self._parts]
        return [self._fused([found[place] for found in lists], k) for place in range(len(queries))]

    def _fused(
        self, found: Sequence[list[dict[str, Any]] | ExampleError], k: int
    ) -> list[dict[str, Any]] | ExampleError:
        lists: list[list[dict[str, Any]]] = []
        for part in found:
            if isinstance(part, ExampleError):
                return part
            lists.append(part)
        passages: dict[str, dict[str, Any]] = {}
        for passage in chain.from_iterable(lists):
            passages.setdefault(passage["id"], passage)
        scores = self._scores([[passage for passage in found if passage["score"] != 0] for found in lists])
        filling = self._scores(lists)
        best = sorted(scores, key=lambda id: -scores[id])  # stable: first seen first
        best += sorted((id for id in filling if id not in scores), key=lambda id: -filling[id])
        return [{**passages[id], "score": scores.get(id, 0.0)} for id in best[:k]]

    def _scores(self, lists: Sequence[Sequence[dict[str, Any]]]) -> dict[str, float]:
        """By id, in the order of the lists."""
        scores: dict[str, float] = {}
        for found in lists:
            for rank, passage in enumerate(found, 1):
                scores[passage["id"]] = scores.get(passage["id"], 0.0) + 1.0 / (self._constant + rank)
        return scores


class Reranked:
    """One retriever whose passages a cross-encoder puts into a new order."""

    def __init__(self, part: Retriever, scorer: PairScorer, *, depth: int, identity: Any) -> None:
        self._part = part
        self._scorer = scorer
        self._depth = depth
        self.digest = digest(["rerank", depth, identity, part.digest])

    def search(self, queries: Sequence[str], k: int) -> list[list[dict[str, Any]] | ExampleError]:
        """See `Retriever`. Equal scores stay in the order of the retriever. Equal queries are scored once."""
        distinct = list(dict.fromkeys(queries))
        lists = self._part.search(distinct, max(k, self._depth))
        best = {query: self._ordered(query, found, k) for query, found in zip(distinct, lists, strict=True)}
        return [_copied(best[query]) for query in queries]

    def _ordered(
        self, query: str, found: list[dict[str, Any]] | ExampleError, k: int
    ) -> list[dict[str, Any]] | ExampleError:
        if isinstance(found, ExampleError):
            return found
        scores = self._scorer.scores(query, [passage["text"] for passage in found])
        places = sorted(range(len(found)), key=lambda place: -scores[place])[:k]
        return [{**found[place], "score": scores[place]} for place in places]


def _copied(found: list[dict[str, Any]] | ExampleError) -> list[dict[str, Any]] | ExampleError:
    return found if isinstance(found, ExampleError) else [dict(passage) for passage in found]


def open_reranked(opening: Opening) -> Reranked:
    """Raises BackendError BTC365, BTC384, BTC385, BTC500 to BTC503."""
    section = opening.section
    library = library_version("rerank")
    model = find_encoder(section, cache_root=opening.cache_root, progress=opening.progress)
    depth = int(section.options.get("depth", DEPTH))
    identity = [model.digest, library]
    return Reranked(opening.parts[0], PairScorer(section, model.path), depth=depth, identity=identity)


def open_hybrid(opening: Opening) -> HybridRetriever:
    """The fusion as the section says."""
    options = opening.section.options
    return HybridRetriever(
        opening.parts,
        depth=int(options.get("depth", DEPTH)),
        rank_constant=int(options.get("rank_constant", RANK_CONSTANT)),
    )
