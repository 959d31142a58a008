"""Search servers over real HTTP: a local server that replays their conversations, and misbehaves."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from engine_parts import call, candidate_of, examples, fields, module

from bt_compiler.engine.backends.scripted import ScriptedBackend
from bt_compiler.engine.executor import Engine
from bt_compiler.engine.progress import Silent
from bt_compiler.engine.retrieval import Retriever, check_retriever, open_retriever
from bt_compiler.engine.retrieval.combined import HybridRetriever, Reranked
from bt_compiler.engine.retrieval.remote import ask_qdrant
from bt_compiler.engine.retrieval.wire import Wire
from bt_compiler.errors import BackendError, ExampleError, SpecError
from bt_compiler.graph.program import Binding, Program, Ref, Retrieve, RetrieverRef
from bt_compiler.spec.sections import RetrieverSection
from bt_compiler.spec.types import PASSAGES, STR

STORED: list[dict[str, Any]] = [
    {"title": "Louvre", "text": "A museum in Paris.", "year": 1793},
    {"title": "Big Ben", "text": "A bell in London.", "year": None},
]


class Server(ThreadingHTTPServer):
    """Answers by the path; `mode` makes it misbehave."""

    mode = "well"
    asked: list[tuple[str, Any]]
    hit: dict[str, Any]
    daemon_threads = True


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        self.server.asked.append((self.path, dict(self.headers)))
        if self.server.mode == "picky" and "clauses" in query["query"][0]:
            self.send_error(414, "too long")
            return
        if self.server.mode == "hit":
            self.answer({"topk": [self.server.hit]})
            return
        hits = [{"text": f"{row['title']} | {row['text']}", "score": 9.5 - n, "pid": n} for n, row in enumerate(STORED)]
        self.answer({"topk": hits, "query": query["query"]})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.asked.append((self.path, body))
        if self.path == "/_msearch":
            lines = [json.loads(line) for line in body.splitlines()]
            hits = [{"_id": f"d{n}", "_score": 2.0 - n, "_source": row} for n, row in enumerate(STORED)]
            if self.server.mode == "empty" or (self.server.mode == "rare" and "multi_match" in body):
                hits = []
            found = [{"hits": {"hits": hits[: line["size"]]}, "status": 200} for line in lines[1::2]]
            given = [self.refused(line) or one for line, one in zip(lines[1::2], found, strict=True)]
            self.answer({"took": 1, "responses": given})
        else:
            searches = json.loads(body)["searches"]
            points = [{"id": n, "version": 1, "score": 0.5 - n, "payload": row} for n, row in enumerate(STORED)]
            self.answer({"result": [{"points": points[: one["limit"]]} for one in searches], "status": "ok"})

    def refused(self, search: Any) -> Any:
        """What stands in the place of one search of several; the whole answer has status 200."""
        mode, seen = self.server.mode, len(self.server.asked)
        if mode == "picky" and "clauses" in json.dumps(search):
            return {"error": {"type": "too_many_clauses"}, "status": 400}
        if mode == "full" or (mode == "fills" and seen < 3 and "bells" in json.dumps(search)):
            return {"error": {"type": "es_rejected_execution_exception"}, "status": 429}
        if mode == "timed" or (mode == "times" and seen < 2):
            return {"timed_out": True, "_shards": {"total": 2, "failed": 0}, "hits": {"hits": []}, "status": 200}
        if mode == "sharded":
            shards = {"total": 2, "successful": 1, "failed": 1, "failures": [{"reason": "lost"}]}
            return {"timed_out": False, "_shards": shards, "hits": {"hits": []}, "status": 200}
        return None

    def answer(self, value: Any) -> None:
        mode = self.server.mode
        if mode == "slow":
            time.sleep(0.6)
        if mode == "busy" and len(self.server.asked) < 3:
            self.send_error(503)
            return
        if mode == "refuses":
            self.send_error(404, "index_not_found_exception")
            return
        if mode == "moved":
            self.send_response(301)
            self.send_header("Location", "https://there/_msearch?key=secret")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        bad_score = '{"responses": [{"hits": {"hits": [{"_id": "a", "_score": NaN, "_source": {"text": "b"}}]}}]}'
        bodies = {
            "nan": bad_score,
            "hits": '{"responses": [{"hits": {"hits": 3}}]}',
            "no hits": '{"responses": [{"hits": null}]}',
            "hits list": '{"responses": [{"hits": []}]}',
            "huge": bad_score.replace("NaN", "1" + "0" * 400),
            "html": "<html>",
            "other": '{"hello": 1}',
            "list": "[1]",
            "error": '{"responses": [{"error": "no"}]}',
        }
        data = bodies.get(mode, json.dumps(value)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        return


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(("127.0.0.1", 0), Handler)
    made.asked = []
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def section(server: Server, kind: str = "elasticsearch", **options: Any) -> RetrieverSection:
    own = {"elasticsearch": {"index": "wiki"}, "colbert": {}, "qdrant": {}}[kind]
    endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    return RetrieverSection(name="wiki", kind=kind, options={"endpoint": endpoint, **own, **options})


def opened(section: RetrieverSection) -> Retriever:
    return open_retriever(section, cache_root=Path("/nowhere"), progress=Silent())


def test_elasticsearch_gets_all_queries_in_one_request(server: Server) -> None:
    options = {"text": "{title} | {text}", "id": "title", "filter": [{"term": {"year": 1793}}], "search": ["text^2"]}
    retriever = opened(section(server, **options))
    server.asked.clear()
    one, two, three = retriever.search(["museums", "bells", "museums"], 2)
    assert one == three
    assert [passage["id"] for passage in two] == ["Louvre", "Big Ben"]
    assert one[0] == {"id": "Louvre", "title": "Louvre", "text": "Louvre | A museum in Paris.", "score": 2.0}
    ((path, body),) = server.asked
    lines = [json.loads(line) for line in body.splitlines()]
    assert path == "/_msearch"
    assert body.endswith("\n")
    assert lines[::2] == [{"index": "wiki"}] * 2
    assert lines[3] == {
        "query": {
            "bool": {
                "must": [{"multi_match": {"query": "bells", "fields": ["text^2"]}}],
                "filter": [{"term": {"year": 1793}}],
            }
        },
        "size": 2,
    }
    assert retriever.search([], 2) == []


def test_colbert(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WIKI_KEY", "secret")
    (found,) = opened(section(server, "colbert", api_key={"env": "WIKI_KEY"})).search(["bells & more"], 1)
    assert found == [{"id": "0", "title": "Louvre", "text": "Louvre | A museum in Paris.", "score": 9.5}]
    path, headers = server.asked[-1]
    assert path == "/?query=bells+%26+more&k=1"
    assert headers["Authorization"] == "ApiKey secret"


class FixedEncoder:
    """Stands in for the text encoder: the conversation is what is tested."""

    def queries(self, texts: Sequence[str]) -> list[list[float]]:
        return [[float(len(text)), 0.5] for text in texts]


def test_qdrant_gets_all_vectors_in_one_request(server: Server) -> None:
    options = {"collection": "wiki", "text": "{title}: {text}", "vector": "dense", "filter": {"must": []}}
    one = section(server, "qdrant", **options)
    wire = Wire(one)
    found = ask_qdrant(one, wire, FixedEncoder(), ["ab", "abc"], 1)
    assert found == [[{"id": "0", "title": "Louvre", "text": "Louvre: A museum in Paris.", "score": 0.5}]] * 2
    ((path, body),) = server.asked
    assert path == "/collections/wiki/points/query/batch"
    rest = {"limit": 1, "with_payload": True, "filter": {"must": []}, "using": "dense"}
    assert json.loads(body)["searches"] == [{"query": [2.0, 0.5], **rest}, {"query": [3.0, 0.5], **rest}]
    server.mode = "other"
    with pytest.raises(BackendError, match="without the 1 results in `result`"):
        ask_qdrant(one, wire, FixedEncoder(), ["ab"], 1)


def test_a_server_that_is_busy_is_asked_again(server: Server) -> None:
    server.mode = "busy"
    assert len(opened(section(server)).search(["x"], 1)[0]) == 1


@pytest.mark.parametrize(
    ("mode", "options", "code", "words"),
    [
        ("refuses", {}, "BTC382", "answers status 404"),
        ("moved", {}, "BTC382", "status 301: a redirect to https://there/_msearch, and `endpoint` has to"),
        ("html", {}, "BTC382", "not JSON: '<html>'"),
        ("other", {}, "BTC382", "without the 1 results in `responses`"),
        ("list", {}, "BTC382", "without the 1 results"),
        ("error", {}, "BTC382", "refuses the search"),
        ("well", {"title": "name"}, "BTC382", "without the field `name`; its fields: `text`, `title`, `year`"),
        ("nan", {}, "BTC382", "gives `nan` as a passage's score"),
        ("hits", {}, "BTC382", "without a list of passages"),
        ("no hits", {}, "BTC382", "without a list of passages"),
        ("hits list", {}, "BTC382", "without a list of passages"),
        ("huge", {}, "BTC382", "00` as a passage's score"),
        ("empty", {"filter": [{"term": {"yaer": 1793}}]}, "BTC389", "has no passage to give"),
        ("slow", {"timeout": 0.05}, "BTC381", "does not answer within 0.05 s"),
        ("well", {"api_key": {"env": "BTC_TEST_NO_SUCH"}}, "BTC383", "is not set"),
    ],
)
def test_what_a_server_does_wrong_is_said_when_it_is_opened(
    server: Server, mode: str, options: dict[str, Any], code: str, words: str
) -> None:
    server.mode = mode
    with pytest.raises(BackendError) as caught:
        opened(section(server, **options))
    (item,) = caught.value.diagnostics
    assert item.code == code
    assert words in item.message


def test_a_server_that_fails_later_stops_the_work_and_may_come_back(server: Server) -> None:
    retriever = opened(section(server, timeout=0.05))
    for mode, code in (("slow", "BTC381"), ("html", "BTC382"), ("busy", None), ("well", None)):
        server.mode = mode
        server.asked.clear()
        if code is None:
            assert len(retriever.search(["x"], 2)[0]) == 2
            continue
        with pytest.raises(BackendError) as caught:
            retriever.search(["x"], 2)
        assert caught.value.diagnostics[0].code == code


def test_a_key_that_no_header_can_carry_is_never_shown(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BTC_TEST_KEY", "private\nlines")
    with pytest.raises(BackendError, match="BTC383") as caught:
        opened(section(server, api_key={"env": "BTC_TEST_KEY"}))
    assert "private" not in str(caught.value)


@pytest.mark.parametrize(("kind", "why"), [("elasticsearch", "too_many_clauses"), ("colbert", "status 414")])
def test_a_query_that_is_refused_fails_alone(server: Server, kind: str, why: str) -> None:
    retriever = opened(section(server, kind))
    server.mode = "picky"
    for queries in (["bells", "many clauses", "museums"], ["many clauses"]):
        for query, found in zip(queries, retriever.search(queries, 2), strict=True):
            if query == "many clauses":
                assert isinstance(found, ExampleError)
                assert found.code == "BTC545"
                assert why in found.message
            else:
                assert len(found) == 2
    server.mode = "error" if kind == "elasticsearch" else "refuses"
    with pytest.raises(BackendError, match="BTC382"):
        retriever.search(["bells", "many clauses"], 2)


def test_only_searches_that_a_busy_server_put_off_are_asked_again(server: Server) -> None:
    retriever = opened(section(server))
    server.mode = "fills"
    server.asked.clear()
    assert [len(found) for found in retriever.search(["museums", "bells"], 2)] == [2, 2]
    assert [len(body.splitlines()) // 2 for _, body in server.asked] == [2, 1, 1]
    server.mode = "full"
    with pytest.raises(BackendError, match=r"BTC382.*es_rejected_execution_exception"):
        retriever.search(["museums", "bells"], 2)


def test_an_answer_from_a_part_of_the_index_is_none(server: Server) -> None:
    retriever = opened(section(server))
    server.mode = "times"
    server.asked.clear()
    assert [len(found) for found in retriever.search(["museums", "bells"], 2)] == [2, 2]
    assert len(server.asked) == 2
    for mode, why in (("timed", "ran out of time"), ("sharded", "1 of 2 shards failed: .*lost")):
        server.mode = mode
        with pytest.raises(BackendError, match=f"BTC382.*{why}"):
            retriever.search(["museums", "bells"], 2)


def test_a_refused_query_fails_its_example_alone(server: Server) -> None:
    program, retriever = single_search(), opened(section(server))
    rows = [{"question": text} for text in ("museums", "many clauses", "bells")]
    server.mode = "picky"
    backend = ScriptedBackend(function=lambda request: "Answer: yes")
    engine = Engine(backends={"default": backend}, retrievers={"wiki": retriever})
    one, two, three = engine.run(program, candidate_of(program), examples(rows))
    assert one.outputs == three.outputs == {"answer": "yes"}
    assert two.error is not None
    assert (two.error.code, two.error.node) == ("BTC545", "found")
    assert [step.node for step in two.steps] == ["found"]


def single_search() -> Program:
    """Retrieves once, then answers."""
    answer = module({"context": PASSAGES, "question": STR}, {"answer": STR}, name="answer")
    passages = fields(passages=PASSAGES)
    found = Retrieve(name="found", retriever="wiki", query=(Ref(step=None, field="question"),), k=2, outputs=passages)
    return Program(
        name="search",
        inputs=fields(question=STR),
        nodes=(found, call("final", answer, context="found.passages", question="question")),
        out=(Binding(name="answer", value=Ref(step="final", field="answer"), type=STR),),
        modules=(answer,),
        retrievers=(RetrieverRef(name="wiki", kind="elasticsearch", k=2),),
    )


class LengthScorer:
    """Stands in for a cross-encoder."""

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        return [float(len(text)) for text in texts]


def test_what_is_made_of_a_server_passes_its_refusals_on(server: Server) -> None:
    part = opened(section(server))
    server.mode = "picky"
    scorer: Any = LengthScorer()
    for retriever in (HybridRetriever([part, part]), Reranked(part, scorer, depth=5, identity=None)):
        found, refused = retriever.search(["bells", "many clauses"], 2)
        assert len(found) == 2
        assert isinstance(refused, ExampleError)


def test_lists_of_sentences_are_joined_as_in_a_corpus(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STORED[0], "text", ["One.", "Two."])
    assert opened(section(server)).search(["x"], 1)[0][0]["text"] == "One. Two."


@pytest.mark.parametrize(
    ("value", "kind"), [({"en": "A museum."}, "an object"), (["A museum.", None], "a list"), ([{"en": "x"}], "a list")]
)
@pytest.mark.parametrize("field", ["text", "title"])
def test_a_field_that_is_no_text_is_refused_as_in_a_corpus(
    server: Server, monkeypatch: pytest.MonkeyPatch, field: str, value: Any, kind: str
) -> None:
    monkeypatch.setitem(STORED[0], "year", value)
    assert len(opened(section(server)).search(["x"], 2)[0]) == 2  # nobody looks at it
    monkeypatch.setitem(STORED[0], field, value)
    with pytest.raises(BackendError, match=f"BTC382.*field `{field}` holds {kind}"):
        opened(section(server))


@pytest.mark.parametrize(
    ("hit", "id", "title"),
    [
        ({"pid": None}, "A", "A"),
        ({"pid": 0}, "0", "A"),
        ({"pid": 3, "title": 7}, "3", "7"),
        ({"pid": None, "title": ["B", "C"]}, "B C", "B C"),
    ],
)
def test_what_a_colbert_server_says_of_a_passage_is_text(server: Server, hit: Any, id: str, title: str) -> None:
    server.mode = "hit"
    server.hit = {"text": "A | b", "score": 1, **hit}
    assert opened(section(server, "colbert")).search(["x"], 1) == [
        [{"id": id, "title": title, "text": "A | b", "score": 1.0}]
    ]


@pytest.mark.parametrize("hit", [{"title": {"en": "A"}}, {"pid": [1]}, {"text": "", "pid": None}])
def test_a_passage_of_a_colbert_server_that_is_none(server: Server, hit: Any) -> None:
    server.mode = "hit"
    server.hit = {"text": "A | b", "score": 1, **hit}
    with pytest.raises(BackendError, match="BTC382"):
        opened(section(server, "colbert"))


def test_an_id_that_is_null_is_none(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STORED[0], "key", None)
    with pytest.raises(BackendError, match=r"BTC382.*without an id"):
        opened(section(server, id="key"))


def test_a_word_that_no_passage_has_is_no_empty_index(server: Server) -> None:
    server.mode = "rare"
    assert opened(section(server)).search(["x"], 2) == [[]]
    assert '"match_all"' in server.asked[1][1]


def test_a_server_that_is_down(server: Server) -> None:
    gone = section(server)
    gone.options["endpoint"] = "http://127.0.0.1:1"  # type: ignore[index]
    with pytest.raises(BackendError) as caught:
        opened(gone)
    assert caught.value.diagnostics[0].code == "BTC380"


def test_a_declared_revision_stands_for_the_url(server: Server) -> None:
    plain, declared = opened(section(server)), opened(section(server, revision="2017"))
    assert plain.digest != declared.digest
    moved = section(server, revision="2017")
    moved.options["endpoint"] = moved.options["endpoint"].replace("127.0.0.1", "localhost")  # type: ignore[index]
    assert opened(moved).digest == declared.digest


def test_settings_are_checked_without_asking(server: Server) -> None:
    wrong = section(server, timeout=0, filter="year:1793", search=[], api_key="secret", k1=1)
    wrong.options["endpoint"] = "localhost:9200"  # type: ignore[index]
    with pytest.raises(SpecError) as caught:
        check_retriever(wrong)
    assert sorted(item.code for item in caught.value.diagnostics) == ["BTC371"] + ["BTC372"] * 5
    assert server.asked == []
    with pytest.raises(SpecError, match="needs the option `collection`"):
        check_retriever(RetrieverSection(name="q", kind="qdrant", options={"endpoint": "http://x", "model": "m"}))


@pytest.mark.parametrize("url", ["http://me:secret@host:9200", "https://host/wiki?key=secret"])
def test_no_endpoint_holds_a_key_and_no_message_repeats_it(url: str) -> None:
    with pytest.raises(SpecError) as caught:
        check_retriever(RetrieverSection(name="c", kind="colbert", options={"endpoint": url}))
    (item,) = caught.value.diagnostics
    assert item.code == "BTC372"
    assert "api_key: {env: NAME}" in item.message
    assert "secret" not in item.message


@pytest.mark.parametrize("template", ["{body.en}", "{title", "no field", "", 3])
def test_templates_are_checked_as_those_of_a_corpus(server: Server, template: Any) -> None:
    with pytest.raises(SpecError) as caught:
        check_retriever(section(server, text=template))
    (item,) = caught.value.diagnostics
    assert item.code == "BTC372"
    assert item.message.startswith("option `text` of retriever `wiki` ")
    assert server.asked == []
