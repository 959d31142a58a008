"""Search servers: Elasticsearch or OpenSearch, Qdrant, and a ColBERT server as DSPy's examples use one.

All queries that wait go out in one request; a ColBERT server takes one query a request. `filter` is in the server's own
language and goes out as it is. Answers are checked before they become passages.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from types import MappingProxyType
from typing import Any, Protocol

from bt_compiler.canonical import digest
from bt_compiler.engine.retrieval.encoder import Encoder, find_encoder, library_version
from bt_compiler.engine.retrieval.opening import Opening
from bt_compiler.engine.retrieval.template import filled
from bt_compiler.engine.retrieval.wire import Wire
from bt_compiler.errors import BackendError
from bt_compiler.spec.sections import RetrieverSection

Found = list[list[dict[str, Any]]]
_PROBE = "test"
_ANYTHING: Mapping[str, Any] = MappingProxyType({"match_all": {}})


class QueryEncoder(Protocol):
    """Makes vectors of queries."""

    def queries(self, texts: Sequence[str]) -> Any:
        """(texts, dimension)."""
        ...


class RemoteRetriever:
    """A `Retriever` whose passages are elsewhere."""

    def __init__(self, digest: str, ask: Callable[[Sequence[str], int], Found]) -> None:
        self.digest = digest
        self._ask = ask

    def search(self, queries: Sequence[str], k: int) -> Found:
        """See `Retriever`. Equal queries are asked once. Raises BackendError BTC380 to BTC382."""
        distinct = list(dict.fromkeys(queries))
        if not distinct or k <= 0:
            return [[] for _ in queries]
        found = dict(zip(distinct, self._ask(distinct, k), strict=True))
        return [[dict(passage) for passage in found[query]] for query in queries]


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
            digest(identity), lambda queries, k: _elasticsearch(section, wire, [_match(section, q) for q in queries], k)
        )
    elif section.kind == "colbert":
        retriever = RemoteRetriever(digest(identity), lambda queries, k: _colbert(section, wire, queries, k))
    else:
        library = library_version(section.kind)
        model = find_encoder(section, cache_root=opening.cache_root, progress=opening.progress)
        encoder = Encoder(section, model.path)
        key = digest([*identity, model.digest, library])
        retriever = RemoteRetriever(key, lambda queries, k: ask_qdrant(section, wire, encoder, queries, k))
    found = retriever.search([_PROBE], 1)[0]
    if not found and section.kind == "elasticsearch":  # the word may be in no passage
        found = _elasticsearch(section, wire, [_ANYTHING], 1)[0]
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


def _elasticsearch(section: RetrieverSection, wire: Wire, matches: Sequence[Mapping[str, Any]], k: int) -> Found:
    """`_msearch`: one line of header and one of body for each clause in the server's language."""
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
    found: Found = []
    for one in _lists(answer, "responses", wire, len(matches)):
        if isinstance(one, Mapping) and "error" in one:
            raise wire.nonsense(f"refuses the search: {json.dumps(one['error'])[:300]}")
        hits = one.get("hits", {}).get("hits") if isinstance(one, Mapping) else None
        found.append(
            [
                _passage(section, wire, hit.get("_source"), hit.get("_id"), hit.get("_score"))
                for hit in _maps(hits, wire)
            ]
        )
    return found


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
            _passage(section, wire, point.get("payload"), point.get("id"), point.get("score"))
            for point in _maps(one.get("points") if isinstance(one, Mapping) else None, wire)
        ]
        for one in _lists(answer, "result", wire, len(queries))
    ]


def _colbert(section: RetrieverSection, wire: Wire, queries: Sequence[str], k: int) -> Found:
    """GET with `query` and `k`; passages are texts `title | body`, best first."""
    found: Found = []
    for query in queries:
        answer = wire.ask("GET", "", params={"query": query, "k": k})
        hits = answer.get("topk") if isinstance(answer, Mapping) else None
        passages = []
        for hit in _maps(hits, wire)[:k]:
            text = hit.get("text")
            if not isinstance(text, str):
                raise wire.nonsense("gives a passage without `text`")
            title = hit.get("title") or (text.partition(" | ")[0] if " | " in text else "")
            id = str(hit.get("pid", title or text))
            passages.append({"id": id, "title": title, "text": text, "score": _score(hit.get("score"), wire)})
        found.append(passages)
    return found


def _lists(answer: Any, key: str, wire: Wire, count: int) -> list[Any]:
    found = answer.get(key) if isinstance(answer, Mapping) else None
    if not isinstance(found, list) or len(found) != count:
        raise wire.nonsense(f"answers without the {count} results in `{key}` that were asked for")
    return found


def _maps(found: Any, wire: Wire) -> list[Mapping[str, Any]]:
    if not isinstance(found, list) or not all(isinstance(item, Mapping) for item in found):
        raise wire.nonsense("answers without a list of passages")
    return found


def _passage(section: RetrieverSection, wire: Wire, stored: Any, id: Any, score: Any) -> dict[str, Any]:
    """A passage of what the server stores of it, by the section's `id`, `title` and `text`."""
    options = section.options
    if not isinstance(stored, Mapping):
        raise wire.nonsense("gives a passage without its stored fields")
    values = {key: _as_text(value) for key, value in stored.items()}
    try:
        text = filled(str(options.get("text", "{text}")), values)
        named = values[options["id"]] if "id" in options else str(id)
        title = values[options["title"]] if "title" in options else values.get("title", "")
    except KeyError as error:
        known = ", ".join(f"`{key}`" for key in sorted(values)[:10]) or "none"
        raise wire.nonsense(f"gives a passage without the field `{error.args[0]}`; its fields: {known}") from error
    return {"id": named, "title": title, "text": text, "score": _score(score, wire)}


def _as_text(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return " ".join(value)  # as in a corpus file
    return "" if value is None else str(value)


def _score(score: Any, wire: Wire) -> float:
    if isinstance(score, bool) or not isinstance(score, int | float) or not isfinite(score):
        raise wire.nonsense(f"gives `{score!r:.40}` as a passage's score")
    return float(score)
