"""Passages ranked by a module of the spec, from the spec's text to traces."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engine_parts import candidate_of, examples

from bt_compiler.engine.backends.scripted import ScriptedBackend
from bt_compiler.engine.executor import Engine
from bt_compiler.engine.metrics.runs import retrieved
from bt_compiler.engine.request import Request
from bt_compiler.engine.retrieval import check_retriever
from bt_compiler.engine.trace import Trace
from bt_compiler.errors import ExampleError, SpecError
from bt_compiler.graph import InvalidProgram, Program, Rerank, lower, program_from_json, program_to_json, verify, visits
from bt_compiler.spec import build_sections, load_spec
from bt_compiler.spec.sections import RetrieverSection

SPEC = """\
version: 1
data: d.jsonl
metric: {{kind: exact_match, output: best}}
retrievers:
  words: {{kind: bm25, corpus: c.jsonl}}
  best: {{kind: rerank, of: [words], module: judge, k: 2{options}}}
modules:
  judge:
    kind: {kind}
    signature:
      inputs: {{passage: Passage, query: str}}
      outputs: {{score: {type}}}
  pick: {{signature: "passages: [Passage], query -> best"}}
program:
  inputs: {{query: str}}
  steps:
    found: {{retrieve: best, in: {{query: $query}}}}
    final: {{call: pick, in: {{passages: $found.passages, query: $query}}}}
  out: {{best: $final.best}}
"""
TITLES = ("red", "green", "blue", "black", "white")


class Colours:
    """Gives the first k colours and keeps what it was asked."""

    digest = "colours"

    def __init__(self, count: int = len(TITLES)) -> None:
        self.asked: list[tuple[list[str], int]] = []
        self.titles = TITLES[:count]

    def search(self, queries: Sequence[str], k: int) -> list[list[dict[str, Any]]]:
        self.asked.append((list(queries), k))
        found = [{"id": title, "title": title, "text": f"a {title} thing", "score": 9.0} for title in self.titles]
        return [found[:k] for _ in queries]


def program_of(folder: Path, *, type: str = "int", kind: str = "predict", options: str = "") -> Program:
    path = folder / "spec.yaml"
    path.write_text(SPEC.format(type=type, kind=kind, options=options), encoding="utf-8")
    spec = load_spec(path)
    return lower(spec, build_sections(spec))


Score = Callable[[str, str], str | ExampleError]


def run(
    program: Program, score: Score, queries: Sequence[str] = ("warm",), **parts: Any
) -> tuple[list[Trace], Any, Colours]:
    def answer(request: Request) -> str | ExampleError:
        text = request.prompt.messages[-1].content
        query = re.search(r"^Query: (.*)$", text, re.M)
        passage = re.search(r"^Passage: (\w+) \|", text, re.M)
        assert query is not None
        if passage is None:
            return "Best: done"
        given = score(query[1], passage[1])
        return given if isinstance(given, ExampleError) else f"{given}"

    backend = ScriptedBackend(function=answer, scramble=3)
    retriever = parts.get("retriever", Colours())
    engine = Engine(backends={"default": backend}, retrievers={"best": retriever})
    rows = [{"query": query} for query in queries]
    return engine.run(program, candidate_of(program), examples(rows)), backend, retriever


def given(trace: Trace) -> list[tuple[str, float]]:
    return [(passage["title"], passage["score"]) for passage in retrieved(trace)]


def test_the_highest_scores_are_given_and_equal_ones_stay_in_order(tmp_path: Path) -> None:
    scores = {"red": 1, "green": 7, "blue": 0, "black": 7, "white": 7}
    (trace,), _, retriever = run(program_of(tmp_path), lambda _, passage: f"Score: {scores[passage]}")
    assert trace.error is None
    assert given(trace) == [("green", 7.0), ("black", 7.0)]
    assert retriever.asked == [(["warm"], 10)]
    assert [(step.node, step.visit) for step in trace.steps] == [
        *(("found/judge", (index,)) for index in range(5)),
        ("found", ()),
        ("final", ()),
    ]
    assert trace.steps[2].inputs["passage"]["title"] == "blue"
    assert [passage["title"] for passage in trace.steps[-1].inputs["passages"]] == ["green", "black"]


@pytest.mark.parametrize(
    ("type", "answers", "expected"),
    [
        ("bool", {"blue": "true", "white": "true"}, [("blue", 1.0), ("white", 1.0)]),
        ("float", {"red": "0.25", "black": "0.5"}, [("black", 0.5), ("red", 0.25)]),
        ("{enum: [no, partly, yes]}", {"red": "partly", "white": "yes"}, [("white", 2.0), ("red", 1.0)]),
    ],
)
def test_what_passages_are_ranked_by(
    tmp_path: Path, type: str, answers: dict[str, str], expected: list[tuple[str, float]]
) -> None:
    least = {"bool": "false", "float": "0.0"}.get(type, "no")
    program = program_of(tmp_path, type=type)
    (trace,), _, _ = run(program, lambda _, passage: f"Score: {answers.get(passage, least)}")
    assert given(trace) == expected


def test_a_rationale_may_come_before_the_score(tmp_path: Path) -> None:
    program = program_of(tmp_path, kind="chain_of_thought")
    (trace,), _, _ = run(program, lambda _, passage: f"Reasoning: so\nScore: {int(passage == 'blue')}")
    assert given(trace)[0] == ("blue", 1.0)
    assert trace.steps[0].outputs == {"reasoning": "so", "score": 0}


def test_calls_of_all_passages_and_examples_go_out_together_and_the_same_are_one(tmp_path: Path) -> None:
    traces, backend, retriever = run(
        program_of(tmp_path), lambda query, passage: f"Score: {len(query)}", ("warm", "cold", "warm")
    )
    assert retriever.asked == [(["warm", "cold"], 10)]
    judged = ["Passage: " in request.prompt.messages[-1].content for request in backend.requests]
    assert judged == [True] * 10 + [False] * 2  # answers come one at a time: ten were asked before the first came
    assert len({tuple(given(trace)) for trace in traces}) == 1


def test_depth_is_what_is_looked_at_and_never_less_than_what_is_given(tmp_path: Path) -> None:
    program = program_of(tmp_path, options=", depth: 3")
    (trace,), _, retriever = run(program, lambda _, passage: f"Score: {int(passage == 'white')}")
    assert retriever.asked == [(["warm"], 3)]
    assert given(trace) == [("red", 0.0), ("green", 0.0)]
    assert visits(program)["found/judge"] == 3
    (node, _) = program_of(tmp_path, options=", depth: 1").nodes
    assert isinstance(node, Rerank) and (node.depth, node.k) == (2, 2)


def test_no_passages_and_a_call_that_fails(tmp_path: Path) -> None:
    program = program_of(tmp_path)
    (trace,), _, _ = run(program, lambda *_: "Score: 1", retriever=Colours(0))
    assert trace.error is None and given(trace) == []
    (trace,), _, _ = run(program, lambda _, passage: ExampleError("BTC521", "no") if passage == "blue" else "Score: 1")
    assert trace.error is not None
    assert (trace.error.code, trace.error.node) == ("BTC521", "found/judge")


def test_the_program_is_stored_verified_and_hashed_by_what_ranks(tmp_path: Path) -> None:
    program = program_of(tmp_path)
    assert program_from_json(program_to_json(program)) == program
    node = program.nodes[0]
    assert isinstance(node, Rerank)
    others = [program_of(tmp_path, options=", depth: 7"), program_of(tmp_path, type="float")]
    assert len({one.nodes[0].hash for one in (program, *others)}) == 3
    for broken in (replace(node, depth=1), replace(node, body=()), replace(node, retriever="other")):
        with pytest.raises(InvalidProgram):
            verify(replace(program, nodes=(broken, *program.nodes[1:])))


def test_a_reranker_is_a_model_or_a_module() -> None:
    for options in ({}, {"model": "m", "module": "judge"}):
        with pytest.raises(SpecError, match="`model` or `module`"):
            check_retriever(RetrieverSection(name="best", kind="rerank", of=("words",), options=options))
    check_retriever(RetrieverSection(name="best", kind="rerank", of=("words",), options={"module": "judge"}))
