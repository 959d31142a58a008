"""Searches that leave out what is known, and queries of several texts, from the spec's text to traces."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engine_parts import candidate_of, examples

from bt_compiler.engine.backends.scripted import ScriptedBackend
from bt_compiler.engine.executor import Engine
from bt_compiler.engine.metrics.runs import retrieved
from bt_compiler.engine.progress import Silent
from bt_compiler.engine.request import Request
from bt_compiler.engine.retrieval import Retriever, open_retriever
from bt_compiler.engine.trace import Trace
from bt_compiler.graph import (
    Constant,
    InvalidProgram,
    Program,
    Ref,
    Rerank,
    Retrieve,
    lower,
    nodes,
    program_from_json,
    program_mermaid,
    program_text,
    program_to_json,
    verify,
)
from bt_compiler.spec import build_sections, load_spec
from bt_compiler.spec.sections import CorpusSection, RetrieverSection

HEAD = """\
version: 1
data: {path: d.jsonl, labels: {query: str}}
metric: {kind: exact_match, output: query}
retrievers:
  wiki: {kind: bm25, corpus: c.jsonl, k: 2}
  best: {kind: rerank, of: [wiki], module: judge, k: 2, depth: 3}
modules:
  ask: {signature: "context: [Passage], question -> query"}
  judge: {signature: "passage: Passage, query -> score: int"}
program:
"""
HOPS = """\
  inputs: {question: str}
  steps:
    first: {retrieve: wiki, in: {query: $question}}
    next: {call: ask, in: {context: $first.passages, question: $question}}
    second: {retrieve: RETRIEVER, in: SEARCH}
  out: {query: $next.query, passages: $second.passages}
"""
BOTH = "{query: [$question, $next.query], known: $first.passages}"
LOOP = """\
  inputs: {question: str}
  steps:
    hops:
      repeat: 4
      carry: {context: {add: $found.passages}}
      steps:
        next: {call: ask, in: [context, question]}
        found: {retrieve: wiki, in: {query: $next.query, known: $context}}
      out: {query: $next.query}
  out: {query: $hops.query, context: $hops.context}
"""
CORPUS = [
    {"title": "Louvre", "text": "The Louvre is a museum in Paris."},
    {"title": "Eiffel Tower", "text": "The Eiffel Tower is a tower in Paris."},
    {"title": "Seine", "text": "The Seine flows through Paris."},
    {"title": "Big Ben", "text": "Big Ben is a bell in a tower in London."},
    {"title": "Sagrada", "text": "A basilica in Barcelona."},
]


class Kept:
    """A retriever of the real kind that keeps what it was asked."""

    def __init__(self, inner: Retriever) -> None:
        self.inner = inner
        self.digest = inner.digest
        self.asked: list[tuple[list[str], int]] = []

    def search(self, queries: Sequence[str], k: int) -> list[list[dict[str, Any]]]:
        self.asked.append((list(queries), k))
        return self.inner.search(queries, k)


@pytest.fixture
def wiki(tmp_path: Path) -> Kept:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in CORPUS), encoding="utf-8")
    corpus = CorpusSection(path=str(path), id="title", text="{title} | {text}")
    section = RetrieverSection(name="wiki", kind="bm25", corpus=corpus)
    return Kept(open_retriever(section, cache_root=tmp_path / "cache", progress=Silent()))


def program_of(text: str, folder: Path) -> Program:
    path = folder / "spec.yaml"
    path.write_text(HEAD + text, encoding="utf-8")
    spec = load_spec(path)
    return lower(spec, build_sections(spec))


def hops(folder: Path, search: str = BOTH, retriever: str = "wiki") -> Program:
    return program_of(HOPS.replace("RETRIEVER", retriever).replace("SEARCH", search), folder)


def answer(request: Request) -> str:
    text = request.prompt.messages[-1].content
    ranked = re.search(r"^Passage: ([\w ]+) \|", text, re.M)
    return "Query: tower" if ranked is None else f"Score: {len(ranked[1])}"


def run(program: Program, wiki: Kept, questions: Sequence[str]) -> list[Trace]:
    engine = Engine(backends={"default": ScriptedBackend(function=answer)}, retrievers={"wiki": wiki, "best": wiki})
    return engine.run(program, candidate_of(program), examples([{"question": one} for one in questions]))


def ids(passages: Sequence[dict[str, Any]]) -> list[str]:
    return [passage["id"] for passage in passages]


def test_known_passages_are_not_repeated_and_as_many_others_come(tmp_path: Path, wiki: Kept) -> None:
    (trace,) = run(hops(tmp_path), wiki, ["museum in Paris"])
    first, _, second = trace.steps
    assert first.outputs is not None and second.outputs is not None
    assert ids(first.outputs["passages"]) == ["Louvre", "Seine"]
    (whole,) = wiki.inner.search(["museum in Paris tower"], 5)
    assert ids(whole)[:3] == ["Louvre", "Eiffel Tower", "Big Ben"]  # the first would have come again
    assert second.outputs["passages"] == whole[1:3]
    assert second.inputs == {"query": "museum in Paris tower", "known": first.outputs["passages"]}
    assert ids(list(retrieved(trace))) == ["Louvre", "Seine", "Eiffel Tower", "Big Ben"]


def test_texts_of_a_query_are_joined_in_their_order(tmp_path: Path, wiki: Kept) -> None:
    (trace,) = run(hops(tmp_path, "{query: [$next.query, in, $question, $$5]}"), wiki, ["Paris"])
    assert trace.steps[-1].inputs == {"query": "tower in Paris $5"}
    assert wiki.asked[-1] == (["tower in Paris $5"], 2)


def test_all_examples_are_one_search_a_retriever_and_number(tmp_path: Path, wiki: Kept) -> None:
    run(hops(tmp_path), wiki, ["Paris", "London", "bell"])
    assert wiki.asked == [(["Paris", "London", "bell"], 2), (["Paris tower", "London tower", "bell tower"], 4)]


def test_a_loop_goes_on_to_what_it_has_not_seen_until_there_is_no_more(tmp_path: Path, wiki: Kept) -> None:
    (trace,) = run(program_of(LOOP, tmp_path), wiki, ["Paris"])
    found = [ids(step.outputs["passages"]) for step in trace.steps if step.outputs and step.node == "hops/found"]
    assert [len(passages) for passages in found] == [2, 2, 1, 0]
    (whole,) = wiki.inner.search(["tower"], 5)
    assert [id for passages in found for id in passages] == ids(whole)
    assert [k for _, k in wiki.asked] == [2, 4, 6, 7]


def test_a_module_ranks_what_is_not_known(tmp_path: Path, wiki: Kept) -> None:
    program = hops(tmp_path, retriever="best")
    (trace,) = run(program, wiki, ["museum in Paris"])
    assert wiki.asked[-1] == (["museum in Paris tower"], 5)
    judged = [step.inputs for step in trace.steps if step.node == "second/judge"]
    assert [one["passage"]["id"] for one in judged] == ["Eiffel Tower", "Big Ben", "Sagrada"]
    assert {one["query"] for one in judged} == {"museum in Paris tower"}
    assert trace.outputs is not None and ids(trace.outputs["passages"]) == ["Eiffel Tower", "Big Ben"]
    assert trace.steps[-1].inputs["known"] == trace.steps[0].outputs["passages"]  # type: ignore[index]


@pytest.mark.parametrize("retriever", ["wiki", "best"])
def test_the_program_is_stored_hashed_and_verified_with_them(tmp_path: Path, retriever: str) -> None:
    searches = ["{query: $next.query}", "{query: [$question, $next.query]}", "{query: [$next.query, $question]}"]
    searches += ["{query: $next.query, known: $first.passages}", BOTH]
    programs = [hops(tmp_path, search, retriever) for search in searches]
    for program in programs:
        assert program_from_json(json.loads(json.dumps(program_to_json(program)))) == program
    assert len({dict(nodes(program))["second"].hash for program in programs}) == len(programs)
    assert hops(tmp_path, "{query: [$next.query]}", retriever) == programs[0]
    step = dict(nodes(programs[-1]))["second"]
    assert isinstance(step, Retrieve | Rerank)
    wrong = Ref(step="next", field="query")
    backwards = Ref(step="second", field="passages")
    for broken in (
        replace(step, query=()),
        replace(step, query=(*step.query, Constant(value=[]))),
        replace(step, known=wrong),
        replace(step, known=backwards),
    ):
        with pytest.raises(InvalidProgram):
            verify(replace(programs[-1], nodes=(*programs[-1].nodes[:-1], broken)))


def test_known_passages_are_a_use_and_come_before(tmp_path: Path) -> None:
    text = """\
  inputs: {question: str}
  steps:
    second: {retrieve: wiki, in: {query: $question, known: $first.passages}}
    first: {retrieve: wiki, in: {query: [big, $question]}}
    next: {call: ask, in: {context: $second.passages, question: $question}}
  out: {query: $next.query}
"""
    assert [node.name for node in program_of(text, tmp_path).nodes] == ["first", "second", "next"]


def test_dumps_show_them(tmp_path: Path) -> None:
    program = hops(tmp_path)
    asked = "(query=[$question, $next.query], known=$first.passages, k=2)"
    assert f"  second = retrieve wiki{asked} -> passages: [Passage]" in program_text(program)
    arrows = program_mermaid(program).splitlines()
    assert [line.strip() for line in arrows if line.endswith(" n_second")] == [
        "in_question --> n_second",
        "n_next -->|query| n_second",
        "n_first -->|passages| n_second",
    ]
    ranked = hops(tmp_path, retriever="best")
    assert f"  second = retrieve best{asked} of 3 by $judge.score" in program_text(ranked)
    assert "query=&#91;$question, $next.query&#93;, known=$first.passages" in program_mermaid(ranked)


def test_same_named_values_are_bound_by_a_list(tmp_path: Path) -> None:
    text = """\
  inputs: {query: str, known: "[Passage]"}
  steps:
    first: {retrieve: wiki, in: [query, known]}
    next: {call: ask, in: {context: $first.passages, question: $query}}
  out: {query: $next.query}
"""
    (first, _) = program_of(text, tmp_path).nodes
    assert isinstance(first, Retrieve)
    assert (first.query, first.known) == ((Ref(step=None, field="query"),), Ref(step=None, field="known"))
