"""Whether the ids of a corpus are those of another one, where passages of both meet: one would pass for the other.

Looked at only where corpora of several files with ids of their own meet; the ids of one are held in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import combinations

from bt_compiler.engine.retrieval.corpus_rows import shown_corpus
from bt_compiler.engine.retrieval.passages import Passages
from bt_compiler.engine.retrieval.registry import reachable
from bt_compiler.engine.retrieval.retriever import Indexed, Retriever
from bt_compiler.errors import DataError
from bt_compiler.graph.meetings import Meeting
from bt_compiler.spec.sections import CorpusSection, RetrieverSection


def refuse_shared_ids(
    meetings: Iterable[Meeting],
    sections: Sequence[RetrieverSection],
    ids_of: Callable[[RetrieverSection], Iterable[str]],
) -> None:
    """`ids_of`: the ids of a retriever's corpus. Retrievers over one file share ids rightly.

    Raises DataError BTC390.
    """
    apart: set[tuple[str, str]] = set()
    for names, where in meetings:
        for (one, first), (other, second) in combinations(_with_ids(names, sections), 2):
            if first.path == second.path or (one.name, other.name) in apart:
                continue
            apart.add((one.name, other.name))
            known = set(ids_of(one))
            shared = next((id for id in ids_of(other) if id in known), None)
            if shared is not None:
                raise DataError.of(
                    "BTC390",
                    f"passage id `{shared}` is in `{shown_corpus(first)}` and in `{shown_corpus(second)}`, and {where} "
                    "takes passages of one id for one",
                    span=second.spans.get(("id",), second.span),
                    help="make the ids differ, or leave `id` out of one: its rows are then numbered under the name of "
                    "the retriever",
                )


def ids_within(retriever: Retriever) -> Iterator[str]:
    """The ids in the index of an open retriever; of one without an index none."""
    return Passages(retriever.folder).ids() if isinstance(retriever, Indexed) else iter(())


def _with_ids(
    names: Iterable[str], sections: Sequence[RetrieverSection]
) -> list[tuple[RetrieverSection, CorpusSection]]:
    """Retrievers over a corpus with ids of its own, one for each set of passages."""
    found: dict[tuple[object, ...], tuple[RetrieverSection, CorpusSection]] = {}
    for section in reachable(list(names), sections):
        corpus = section.corpus
        if corpus is not None and corpus.id is not None:
            found.setdefault((corpus.path, corpus.id, corpus.where), (section, corpus))
    return list(found.values())
