"""Bundles that carry their indexes run and are scored without a corpus; all others say what they lack."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bt_compiler.artifact.bundle import read_bundle, verify_bundle
from bt_compiler.canonical import digest
from bt_compiler.compiler.compile import CompileSettings, compile_with
from bt_compiler.compiler.evaluate import evaluate_bundle
from bt_compiler.engine.backends.scripted import ScriptedBackend
from bt_compiler.engine.request import Request
from bt_compiler.errors import BundleError
from bt_compiler.runtime import load

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine"))
CAPITALS = ("Rome is in Italy", "Oslo is in Norway", "Lima is in Peru")
SPEC = """\
version: 1
name: ask
model: {{id: no/model, engine: scripted}}
data: {{train: rows.jsonl, dev: dev.jsonl}}
retrievers:
{retrievers}
modules:
  reply: {{signature: "context: [Passage], question -> answer"}}
program:
  inputs: {{question: str}}
  steps:
    found: {{retrieve: wiki, in: {{query: $question}}}}
    final: {{call: reply, in: {{context: $found.passages, question: $question}}}}
  out: {{answer: $final.answer}}
metric: exact_match
optimize: {{strategy: []}}
"""
WORDS = "  wiki: {kind: bm25, corpus: {path: corpus.jsonl, id: name}, k: 1}"


def reply(request: Request) -> str:
    """The first word of the first passage."""
    text = request.prompt.messages[-1].content
    return f"Answer: {next((city for city in ('Rome', 'Oslo', 'Lima') if city in text), '?')}"


def opener(*_: Any) -> ScriptedBackend:
    return ScriptedBackend(function=reply)


Made = Callable[..., Path]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """Compiles a spec of these retrievers; gives the bundle."""

    def compiled(retrievers: str = WORDS, *, with_index: bool = True) -> Path:
        rows = [{"name": f"p{n}", "text": text} for n, text in enumerate(CAPITALS)]
        write(tmp_path / "corpus.jsonl", rows)
        write(tmp_path / "rows.jsonl", [{"question": f"Which city is in {land}?", "answer": "Rome"} for land in "ab"])
        write(tmp_path / "dev.jsonl", [{"question": "Which city is in Norway?", "answer": "Oslo"}])
        (tmp_path / "spec.yaml").write_text(SPEC.format(retrievers=retrievers))
        settings = CompileSettings(
            out=tmp_path / "bundle",
            cache=tmp_path / "cache",
            opener=opener,
            with_index=with_index,
        )
        return compile_with(tmp_path / "spec.yaml", settings)

    return compiled


def write(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def ask(bundle: Path, cache: Path, **settings: Any) -> str:
    with load(bundle, cache_root=cache, opener=opener, **settings) as predictor:
        return str(predictor(question="Which city is in Norway?").answer)


def code_of(bundle: Path, cache: Path, **settings: Any) -> tuple[str, str]:
    with pytest.raises(BundleError) as caught:
        ask(bundle, cache, **settings)
    (item,) = caught.value.diagnostics
    return item.code, f"{item.message} / {item.help}"


def elsewhere(bundle: Path, tmp_path: Path) -> Path:
    """The bundle alone, as on another machine: no corpus, no cache."""
    moved = tmp_path / "moved"
    shutil.copytree(bundle, moved)
    (tmp_path / "corpus.jsonl").unlink()
    shutil.rmtree(tmp_path / "cache")
    return moved


def test_a_carried_index_takes_the_place_of_the_corpus(made: Made, tmp_path: Path) -> None:
    moved = elsewhere(made(), tmp_path)
    bundle = read_bundle(moved)
    named = bundle.manifest.identity["retrievers"]["wiki"]
    assert bundle.indexes == {"wiki": moved / "indexes" / named}
    assert ask(moved, tmp_path / "new") == "Oslo"
    report = evaluate_bundle(moved, split="dev", cache=tmp_path / "new", opener=opener)
    assert report.mean == 1.0
    assert not (tmp_path / "new" / "indexes").exists()


def test_without_the_flag_the_corpus_has_to_be_there_as_it_was(made: Made, tmp_path: Path) -> None:
    bundle = made(with_index=False)
    assert read_bundle(bundle).indexes == {}
    assert ask(bundle, tmp_path / "new") == "Oslo"
    write(tmp_path / "corpus.jsonl", [{"name": "p0", "text": "Oslo is in Sweden"}])
    code, words = code_of(bundle, tmp_path / "new")
    assert code == "BTC563"
    assert "retriever `wiki` has digest" in words and "--with-index" in words
    assert len(list((tmp_path / "new" / "indexes").glob("*.lock"))) == 1  # of the right one: nothing else was built
    moved = elsewhere(bundle, tmp_path)
    code, words = code_of(moved, tmp_path / "new")
    assert code == "BTC563"
    assert "is gone, and the bundle carries no index" in words
    place = tmp_path / "put" / "back.jsonl"
    place.parent.mkdir()
    write(place, [{"name": f"p{n}", "text": text} for n, text in enumerate(CAPITALS)])
    assert ask(moved, tmp_path / "new", overrides=[f"retrievers.wiki.corpus.path={place}"]) == "Oslo"


def test_the_same_command_with_another_flag_writes_the_bundle_again(made: Made, tmp_path: Path) -> None:
    without = verify_bundle(made(with_index=False))
    carrying = verify_bundle(made(with_index=True))
    assert carrying.indexes and not without.indexes
    assert carrying.digest == without.digest  # it answers the same
    assert verify_bundle(made(with_index=True)).created == carrying.created  # up to date
    assert not verify_bundle(made(with_index=False)).indexes


@pytest.mark.parametrize("name", ["passages.jsonl", "data.csc.index.npy", "index.json"])
def test_a_changed_index_file_is_noticed(made: Made, tmp_path: Path, name: str) -> None:
    bundle = made()
    (path,) = bundle.glob(f"indexes/*/{name}")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    code, words = code_of(bundle, tmp_path / "cache")
    assert code == "BTC553"
    assert name in words
    path.unlink()
    assert code_of(bundle, tmp_path / "cache")[0] == "BTC554"
    path.symlink_to(tmp_path / "corpus.jsonl")
    assert code_of(bundle, tmp_path / "cache")[0] == "BTC556"


def test_an_index_of_another_layout_is_refused(made: Made, tmp_path: Path) -> None:
    bundle = made()
    (path,) = bundle.glob("indexes/*/index.json")
    marker = {**json.loads(path.read_bytes()), "schema": 1}
    path.write_text(json.dumps(marker))
    document = json.loads((bundle / "manifest.json").read_bytes())
    entry = document["integrity"]["files"][path.relative_to(bundle).as_posix()]
    from bt_compiler.canonical import digest_file

    entry.update(sha256=digest_file(path), size=path.stat().st_size)
    del document["manifest_sha256"]
    (bundle / "manifest.json").write_text(json.dumps({**document, "manifest_sha256": digest(document)}))
    assert code_of(bundle, tmp_path / "cache")[0] == "BTC568"


def test_other_settings_than_the_carried_index_has_are_refused(made: Made, tmp_path: Path) -> None:
    moved = elsewhere(made(), tmp_path)
    assert code_of(moved, tmp_path / "new", overrides=["retrievers.wiki.b=0.1"])[0] == "BTC563"


@pytest.mark.filterwarnings("ignore")  # the libraries' own
def test_what_others_are_made_of_is_named_and_carried(made: Made, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers", reason="needs the extra `dense`")
    from tiny_encoders import write_encoders

    write_encoders(tmp_path)
    corpus = "corpus: {path: corpus.jsonl, id: name}"
    bundle = made(
        f"  words: {{kind: bm25, {corpus}}}\n  meaning: {{kind: dense, model: ./encoder, {corpus}}}\n"
        "  both: {kind: hybrid, of: [words, meaning]}\n  wiki: {kind: rerank, of: [both], model: ./pairs, k: 1}"
    )
    before = ask(bundle, tmp_path / "cache")
    moved = elsewhere(bundle, tmp_path)
    found = read_bundle(moved)
    assert sorted(found.manifest.identity["retrievers"]) == ["both", "meaning", "wiki", "words"]
    assert sorted(found.indexes) == ["meaning", "words"]
    assert (found.indexes["meaning"] / "vectors.f32").is_file()
    assert ask(moved, tmp_path / "new") == before
    code, words = code_of(moved, tmp_path / "new", overrides=["retrievers.both.rank_constant=1"])
    assert code == "BTC563"
    assert "retriever `both`" in words


def test_an_option_that_is_null_is_none_in_the_bundle_too(made: Made, tmp_path: Path) -> None:
    bundle = made(WORDS.replace("k: 1", "k: 1, stemmer: null, stopwords: null"), with_index=False)
    assert ask(bundle, tmp_path / "new") == "Oslo"


def test_nothing_to_carry_is_said_before_anything_is_done(made: Made, tmp_path: Path) -> None:
    with pytest.raises(BundleError) as caught:
        made("  wiki: {kind: elasticsearch, endpoint: http://127.0.0.1:1, index: wiki}")
    assert caught.value.diagnostics[0].code == "BTC569"
    assert not (tmp_path / "bundle").exists()
