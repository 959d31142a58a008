"""Search servers: Elasticsearch or OpenSearch, Qdrant, and a ColBERT server as DSPy's examples use one.

All queries that wait go out in one request; a ColBERT server takes one query a request. `filter` is in the server's own
language and goes out as it is. Answers are checked before they become passages. What a server refuses fails that search
alone, as long as it answers others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

from bt_compiler.canonical import digest
from bt_compiler.engine.retrieval.encoder import Encoder, find_encoder, library_version
from bt_compiler.engine.retrieval.hits import headed_passage, maps, results, stored_passage
from bt_compiler.engine.retrieval.opening import Opening
from bt_compiler.engine.retrieval.wire import Refusal, Wire, passes
from bt_compiler.errors import BackendError, ExampleError
from bt_compiler.spec.sections import RetrieverSection

Passages = list[dict[str, Any]]
Found = list[Passages]
Answers = Sequence[Passages | Refusal]
_PROBE = "test"
_ANYTHING: Mapping[str, Any] = MappingProxyType({"match_all": {}})


class QueryEncoder(Protocol):
    """Makes vectors of queries."""

    def queries(self, texts: Sequence[str]) -> Any:
        """(texts, dimension)."""
        ...


class RemoteRetriever:
    """A `Retriever` whose passages are elsewhere."""

    def __init__(
        self, wire: Wire, digest: str, ask: Callable[[Sequence[str], int], Answers], *, one_by_one: bool = False
    ) -> None:
        self.digest = digest
        self._wire = wire
        self._ask = ask
        self._one_by_one = one_by_one

    def search(self, queries: Sequence[str], k: int) -> list[Passages | ExampleError]:
        """See `Retriever`. Equal queries are asked once. Raises BackendError BTC380 to BTC382."""
        distinct = list(dict.fromkeys(queries))
        if not distinct or k <= 0:
            return [[] for _ in queries]
        answers: dict[str, Passages | Refusal] = {}
        for asked in [[query] for query in distinct] if self._one_by_one else [distinct]:
            given = self._ask(asked, k)
            if all(isinstance(answer, Refusal) for answer in given):
                self.probe()  # a server that refuses this too is at fault, not the queries
            answers.update(zip(asked, given, strict=True))
        return [self._found(answers[query]) for query in queries]

    def probe(self) -> Passages:
        """What the server has for a word. Raises BackendError BTC380 to BTC382, the last also where it refuses."""
        (answer,) = self._ask([_PROBE], 1)
        return self._wire.agreed(answer)

    def _found(self, answer: Passages | Refusal) -> Passages | ExampleError:
        if isinstance(answer, Refusal):
            return ExampleError("BTC545", self._wire.said(answer.why))
        return [dict(passage) for passage in answer]


def open_remote(opening: Opening) -> RemoteRetriever:
    """The retriever, after a question that shows the server to be there, to answer as its kind does, to hold passages.

    Raises BackendError BTC365, BTC380 to BTC384, BTC389.
    """
    section = opening.section
    wire = Wire(section)
    identity: list[Any] = [section.kind, section.options.get("revision") or section.options["endpoint"]]
    identity += [{key: value for key, value in section.options.items() if key not in _PLACES}]
    if section.kind == "elasticsearch":
        retriever = RemoteRetriever(
            wire,
            digest(identity),
            lambda queries, k: _elasticsearch(section, wire, [_match(section, q) for q in queries], k),
        )
    elif section.kind == "colbert":
        retriever = RemoteRetriever(
            wire, digest(identity), lambda queries, k: [_colbert(wire, q, k) for q in queries], one_by_one=True
        )
    else:
        library = library_version(section.kind)
        model = find_encoder(section, cache_root=opening.cache_root, progress=opening.progress)
        encoder = Encoder(section, model.path)
        key = digest([*identity, model.digest, library])
        retriever = RemoteRetriever(wire, key, lambda queries, k: ask_qdrant(section, wire, encoder, queries, k))
    found = retriever.probe()
    if not found and section.kind == "elasticsearch":  # the word may be in no passage
        found = wire.agreed(_elasticsearch(section, wire, [_ANYTHING], 1)[0])
    if not found:
        raise BackendError.of(
            "BTC389",
            f"the server of retriever `{section.name}` has no passage to give",
            span=section.span,
            help="see that it holds some, and that `filter` names fields as they are stored: one that is not there "
            "lets nothing through",
        )
    return retriever


_PLACES = ("endpoint", "api_key", "timeout", "revision", "model")


def _match(section: RetrieverSection, query: str) -> dict[str, Any]:
    return {"multi_match": {"query": query, "fields": list(section.options.get("search", ["title", "text"]))}}


def _elasticsearch(section: RetrieverSection, wire: Wire, matches: Sequence[Mapping[str, Any]], k: int) -> Answers:
    """`_msearch`, again for those that may be answered the next time."""
    answers: dict[int, Passages | Refusal] = {}
    left = list(range(len(matches)))
    for _ in wire.tries():
        answers.update(zip(left, _msearch(section, wire, [matches[place] for place in left], k), strict=True))
        left = [place for place in left if isinstance(one := answers[place], Refusal) and one.passing]
        if not left:
            break
    return [answers[place] for place in range(len(matches))]


def _msearch(section: RetrieverSection, wire: Wire, matches: Sequence[Mapping[str, Any]], k: int) -> Answers:
    """One line of header and one of body for each clause in the server's language."""
    options = section.options
    lines = []
    for match in matches:
        wanted: dict[str, Any] = {"must": [dict(match)]}
        if "filter" in options:
            wanted["filter"] = options["filter"]
        lines += [json.dumps({"index": options["index"]}), json.dumps({"query": {"bool": wanted}, "size": k})]
    answer = wire.ask(
        "POST",
        "/_msearch",
        content="\n".join(lines) + "\n",
        headers={"Content-Type": "application/x-ndjson"},
    )
    return [_hits(section, wire, one) for one in results(answer, "responses", wire, len(matches))]


def _hits(section: RetrieverSection, wire: Wire, one: Any) -> Passages | Refusal:
    """What stands in the place of one search: the status of the whole answer says nothing of it."""
    if isinstance(one, Mapping) and "error" in one:
        return Refusal(f"refuses the search: {json.dumps(one['error'])[:300]}", passing=passes(one.get("status")))
    part = _part(one) if isinstance(one, Mapping) else None
    if part is not None:
        return Refusal(part, passing=True)
    hits = one.get("hits") if isinstance(one, Mapping) else None
    return [
        stored_passage(section, wire, hit.get("_source"), hit.get("_id"), hit.get("_score"))
        for hit in maps(hits.get("hits") if isinstance(hits, Mapping) else None, wire)
    ]


def _part(one: Mapping[str, Any]) -> str | None:
    """Why what was found is not all that there is; it comes with a status of success."""
    shards = one.get("_shards")
    failed = shards.get("failed") if isinstance(shards, Mapping) else None
    if isinstance(shards, Mapping) and isinstance(failed, int) and failed > 0:
        why = json.dumps(shards.get("failures"))[:300]
        return f"answers from a part of the index: {failed} of {shards.get('total')} shards failed: {why}"
    return "answers from a part of the index: it ran out of time" if one.get("timed_out") is True else None


def ask_qdrant(section: RetrieverSection, wire: Wire, encoder: QueryEncoder, queries: Sequence[str], k: int) -> Found:
    """`points/query/batch`: one search for each query's vector. Raises BackendError BTC380 to BTC382."""
    options = section.options
    base: dict[str, Any] = {"limit": k, "with_payload": True}
    base |= {key: options[name] for key, name in (("filter", "filter"), ("using", "vector")) if name in options}
    searches = [{**base, "query": [float(number) for number in vector]} for vector in encoder.queries(list(queries))]
    path = f"/collections/{options['collection']}/points/query/batch"
    answer = wire.ask("POST", path, json={"searches": searches})
    return [
        [
            stored_passage(section, wire, point.get("payload"), point.get("id"), point.get("score"))
            for point in maps(one.get("points") if isinstance(one, Mapping) else None, wire)
        ]
        for one in results(answer, "result", wire, len(queries))
    ]


def _colbert(wire: Wire, query: str, k: int) -> Passages | Refusal:
    """GET with `query` and `k`; passages are texts `title | body`, best first."""
    answer = wire.try_to_ask("GET", "", params={"query": query, "k": k})
    if isinstance(answer, Refusal):
        return answer
    hits = answer.get("topk") if isinstance(answer, Mapping) else None
    return [headed_passage(wire, hit) for hit in maps(hits, wire)[:k]]
