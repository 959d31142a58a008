"""Retrievers of a bundle are opened from the resolved spec's paths and have to be the compile's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bt_compiler.engine.backends.scripted import ScriptedBackend
from bt_compiler.engine.progress import Silent
from bt_compiler.engine.request import Request
from bt_compiler.engine.retrieval import open_retriever
from bt_compiler.errors import BundleError, DataError
from bt_compiler.runtime import load
from bt_compiler.spec import build_sections, load_spec

SPEC = """\
version: 1
name: ask
model: {id: no/model, engine: scripted}
data: {train: rows.jsonl, labels: {answer: str}}
retrievers:
  wiki: {kind: bm25, corpus: {path: corpus.jsonl}, k: 1}
modules:
  reply:
    signature:
      inputs: {context: [Passage], question: str}
      outputs: {answer: str}
program:
  inputs: {question: str}
  steps:
    found: {retrieve: wiki, in: {query: $question}}
    final: {call: reply, in: {context: $found.passages, question: $question}}
  out: {answer: $final.answer}
metric: {kind: exact_match, output: answer}
"""


def answer(request: Request) -> str:
    return "Answer: Rome" if "Rome" in request.prompt.messages[-1].content else "Answer: ?"


@pytest.fixture
def made(make_bundle: Callable[..., Path], tmp_path: Path) -> tuple[Path, Path, Path]:
    folder = tmp_path / "other"
    folder.mkdir()
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("Rome is in Italy", "Oslo is in Norway")))
    (folder / "spec.yaml").write_text(SPEC)
    section = build_sections(load_spec(folder / "spec.yaml")).retrievers[0]
    digest = open_retriever(section, cache_root=tmp_path / "cache", progress=Silent()).digest
    return make_bundle(spec=SPEC, retrievers={"wiki": digest}), corpus, tmp_path / "cache"


def test_a_bundle_retrieves_from_its_corpus(made: tuple[Path, Path, Path]) -> None:
    bundle, _, cache = made
    with load(bundle, cache_root=cache, opener=lambda section: ScriptedBackend(function=answer)) as predictor:
        assert predictor(question="Which city is in Italy?").answer == "Rome"


def test_a_corpus_that_is_gone_or_changed_is_refused(made: tuple[Path, Path, Path]) -> None:
    bundle, corpus, cache = made
    opened = load(bundle, cache_root=cache, opener=lambda section: ScriptedBackend(function=answer))
    corpus.write_text(json.dumps({"text": "Rome is in Spain"}) + "\n")
    with pytest.raises(BundleError, match="retriever `wiki` has digest") as caught:
        opened(question="?")
    assert caught.value.diagnostics[0].code == "BTC563"
    assert "compile again with documents that were added" in str(caught.value.diagnostics[0].help)
    corpus.unlink()
    with pytest.raises(BundleError, match="is gone"):
        opened(question="?")


def test_a_corpus_that_cannot_be_looked_at_is_refused_by_who_reads_it(made: tuple[Path, Path, Path]) -> None:
    bundle, corpus, cache = made
    path = f"retrievers.wiki.corpus.path={corpus.parent / ('n' * 300)}.jsonl"
    opened = load(bundle, overrides=[path], cache_root=cache, opener=lambda section: ScriptedBackend(function=answer))
    with pytest.raises(DataError, match=r"BTC373.*file name too long"):
        opened(question="?")
