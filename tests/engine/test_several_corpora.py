"""Passages of several corpora: without ids of their own they are told apart, over one corpus they are the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from engine_parts import candidate_of, examples

from bt_compiler.engine.backends.scripted import ScriptedBackend
from bt_compiler.engine.executor import Engine
from bt_compiler.engine.progress import Silent
from bt_compiler.engine.retrieval import Retriever, ids_within, open_retrievers, refuse_shared_ids
from bt_compiler.errors import DataError
from bt_compiler.graph import Program, lower, meetings
from bt_compiler.spec import build_sections, load_spec

SPEC = """\
version: 1
data: d.jsonl
metric: {kind: exact_match, output: answer}
retrievers:
  cities: {kind: bm25, corpus: CITIES, k: 2}
  places: {kind: bm25, corpus: {path: cities.jsonl, text: "{title}"}, k: 2}
  rivers: {kind: bm25, corpus: RIVERS, k: 2}
  all: {kind: hybrid, of: [cities, places, rivers], k: 4}
modules:
  ask: {signature: "context: [Passage], question -> answer"}
program:
  inputs: {question: str}
  steps:
    first: {retrieve: cities, in: {query: $question}}
    other: {retrieve: rivers, in: {query: $question, known: $first.passages}}
    fused: {retrieve: all, in: {query: $question}}
    loop:
      repeat: 2
      carry: {context: {add: $fused.passages}}
      steps:
        next: {call: ask, in: [context, question]}
      out: {answer: $next.answer}
  out: {answer: $loop.answer, context: $loop.context, other: $other.passages, fused: $fused.passages}
"""
CITIES = [{"title": "Rome", "text": "A city on a river."}, {"title": "Paris", "text": "A city of light."}]
RIVERS = [{"title": "Tiber", "text": "The river of Rome."}, {"title": "Seine", "text": "A river in Paris."}]


def opened(folder: Path, cities: str, rivers: str) -> tuple[Program, dict[str, Retriever]]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("cities.jsonl", CITIES), ("rivers.jsonl", RIVERS)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    path = folder / "spec.yaml"
    path.write_text(SPEC.replace("CITIES", cities).replace("RIVERS", rivers), encoding="utf-8")
    spec = load_spec(path)
    sections = build_sections(spec)
    names = ("cities", "rivers", "all")
    return lower(spec, sections), open_retrievers(
        names, sections.retrievers, cache_root=folder / "cache", progress=Silent()
    )


def ids(passages: Sequence[dict[str, Any]]) -> list[str]:
    return sorted(passage["id"] for passage in passages)


def test_passages_of_different_corpora_are_different_without_ids(tmp_path: Path) -> None:
    program, retrievers = opened(tmp_path / "a", "cities.jsonl", "rivers.jsonl")
    engine = Engine(backends={"default": ScriptedBackend(function=lambda _: "Answer: x")}, retrievers=retrievers)
    (trace,) = engine.run(program, candidate_of(program), examples([{"question": "the river of Rome"}]))
    assert trace.outputs is not None
    every = ["cities:1", "cities:2", "rivers:1", "rivers:2"]
    assert ids(trace.outputs["other"]) == every[2:]
    assert ids(trace.outputs["fused"]) == ids(trace.outputs["context"]) == every
    best = max(trace.outputs["fused"], key=lambda passage: passage["score"])
    assert best["title"] == "Rome", "found by two retrievers over one corpus"
    _, elsewhere = opened(tmp_path / "b", "cities.jsonl", "rivers.jsonl")
    assert {name: one.digest for name, one in retrievers.items()} == {
        name: one.digest for name, one in elsewhere.items()
    }


def test_ids_of_the_corpus_stay_and_one_corpus_is_numbered(tmp_path: Path) -> None:
    _, retrievers = opened(tmp_path / "a", "cities.jsonl", "{path: rivers.jsonl, id: title}")
    assert ids(retrievers["all"].search(["river"], 9)[0]) == ["Seine", "Tiber", "cities:1", "cities:2"]
    _, retrievers = opened(tmp_path / "b", "cities.jsonl", "cities.jsonl")
    assert ids(retrievers["all"].search(["river"], 9)[0]) == ["1", "2"]


APART = """\
version: 1
data: d.jsonl
metric: {kind: exact_match, output: answer}
retrievers:
  faq: {kind: bm25, corpus: {path: faq.jsonl, id: id}}
  short: {kind: bm25, corpus: {path: faq.jsonl, id: id, text: "{title}"}}
  law: {kind: bm25, corpus: {path: law.jsonl, id: id}}
  both: {kind: hybrid, of: [faq, law]}
modules:
  ask: {signature: "context: [Passage], question -> answer"}
  tell: {signature: "question -> yes: bool"}
program:
  inputs: {question: str}
  steps:
    a: {retrieve: faq, in: {query: $question}}
    t: {call: tell, in: [question]}
STEPS
  out: {answer: $c.answer, first: $a.passages, yes: $t.yes}
"""
CALL = "    c: {call: ask, in: {context: $CONTEXT, question: $question}}"
KNOWN = "    b: {retrieve: NAME, in: {query: $question, known: $a.passages}}\n" + CALL.replace("CONTEXT", "b.passages")
LOOP = """\
    l:
      repeat: 2
      carry: {context: {add: $again.found}}
      steps:
        again:
          switch: $t.yes
          cases:
            true: {steps: {x: {retrieve: NAME, in: {query: $question}}}, out: {found: $x.passages}}
            false: {out: {found: $a.passages}}
"""


def refused(folder: Path, steps: str, ids: Sequence[int] = (0, 1)) -> DataError | None:
    """What is said of two corpora, of which the second has these ids, as check has it and as opening has it."""
    for name, numbers in (("faq", (0, 1)), ("law", ids)):
        rows = [{"id": number, "title": f"{name} {number}", "text": "a tax"} for number in numbers]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    path = folder / "spec.yaml"
    path.write_text(APART.replace("STEPS", steps), encoding="utf-8")
    spec = load_spec(path)
    sections = build_sections(spec)
    program = lower(spec, sections)
    asked = [one.name for one in program.retrievers]
    opened = open_retrievers(asked, sections.retrievers, cache_root=folder / "cache", progress=Silent())
    try:
        refuse_shared_ids(meetings(program), sections.retrievers, lambda section: ids_within(opened[section.name]))
    except DataError as error:
        return error
    return None


HYBRID = "    b: {retrieve: both, in: {query: $question}}\n" + CALL.replace("CONTEXT", "b.passages")


@pytest.mark.parametrize(
    ("steps", "where"),
    [
        (HYBRID, "retriever `both`"),
        (KNOWN.replace("NAME", "law"), "`known` of step `b`"),
        (LOOP.replace("NAME", "law") + CALL.replace("CONTEXT", "l.context"), "`carry: context` of loop `l`"),
    ],
)
def test_one_id_in_two_corpora_that_meet_is_refused(tmp_path: Path, steps: str, where: str) -> None:
    error = refused(tmp_path, steps)
    assert error is not None
    (found,) = error.diagnostics
    assert found.code == "BTC390" and found.span is not None and found.span.line == 7
    assert "passage id `0`" in found.message and f"{where} takes" in found.message
    assert "faq.jsonl" in found.message and "law.jsonl" in found.message
    assert refused(tmp_path, steps, ids=(2, 3)) is None


@pytest.mark.parametrize(
    "steps",
    [
        KNOWN.replace("NAME", "short"),
        LOOP.replace("NAME", "short") + CALL.replace("CONTEXT", "l.context"),
        KNOWN.replace("NAME", "law").replace(", known: $a.passages", ""),
    ],
)
def test_ids_are_shared_over_one_file_and_where_passages_do_not_meet(tmp_path: Path, steps: str) -> None:
    assert refused(tmp_path, steps) is None
