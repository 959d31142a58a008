"""What BM25 counts as a word: each character of scripts without blanks, and everywhere else what bm25s counts."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import bm25s
import pytest
from hypothesis import given
from hypothesis import strategies as st
from Stemmer import Stemmer

from bt_compiler.canonical import digest
from bt_compiler.engine.progress import Silent
from bt_compiler.engine.retrieval import Retriever, open_retrievers
from bt_compiler.engine.retrieval.bm25 import _settings
from bt_compiler.engine.retrieval.bm25_index import WORDS, WORDS_AND_CHARACTERS
from bt_compiler.engine.retrieval.index_folder import corpus_digest
from bt_compiler.errors import BundleError
from bt_compiler.spec.sections import CorpusSection, RetrieverSection

OTHER_SCRIPTS = "ab Zé_ß9 .-'\nжЩ άΩ אב عَر हिन् ªʰ٣₂🙂"
TEXTS = {
    "zh": ("北京是中国的首都,人口两千万。", "中国的首都"),
    "ja": ("日本の首都は東京です。", "東京はどこですか"),
    "th": ("กรุงเทพเป็นเมืองหลวงของประเทศไทย", "เมืองหลวง"),
    "ko": ("서울은 대한민국의 수도이다.", "서울의 위치"),
    "en": ("London is a city, 東京 is another.", "cities: London"),
}


@given(st.text(st.sampled_from(OTHER_SCRIPTS), max_size=40))
def test_texts_in_other_scripts_have_the_words_of_bm25s(text: str) -> None:
    assert re.findall(WORDS_AND_CHARACTERS, text) == re.findall(WORDS, text)


def test_characters_of_scripts_without_blanks_are_words() -> None:
    assert re.findall(WORDS_AND_CHARACTERS, "iphone手机x 3年 ab12のc") == ["iphone", "手", "机", "年", "ab12", "の"]
    assert re.findall(WORDS_AND_CHARACTERS, "เมือง・서울、カー々") == [*"เมือง", *"서울", *"カー々"]


def opened(folder: Path, *, expected: str | None = None) -> Retriever:
    return open_retrievers(
        ["all"],
        [section_of(folder)],
        cache_root=folder / "cache",
        progress=Silent(),
        expected={} if expected is None else {"all": expected},
    )["all"]


def section_of(folder: Path) -> RetrieverSection:
    return over(folder, {name: text for name, (text, _) in TEXTS.items()})


def over(folder: Path, texts: Mapping[str, str]) -> RetrieverSection:
    rows = [{"id": name, "text": text} for name, text in texts.items()]
    path = folder / "corpus.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return RetrieverSection(name="all", kind="bm25", corpus=CorpusSection(path=str(path), id="id"))


def digest_of(section: RetrieverSection) -> str:
    """As it was before characters could be words."""
    assert section.corpus is not None
    return digest({"corpus": corpus_digest(section.corpus), **_settings(section, section.corpus)})


@pytest.mark.parametrize("name", TEXTS)
def test_a_question_finds_its_passage_in_any_script(tmp_path: Path, name: str) -> None:
    ((best,),) = opened(tmp_path).search([TEXTS[name][1]], 1)
    assert best["id"] == name and best["score"] > 0


def test_an_index_of_an_older_bundle_has_the_words_of_then(tmp_path: Path) -> None:
    then = digest_of(section_of(tmp_path))
    older, newer = opened(tmp_path, expected=then), opened(tmp_path)
    assert older.digest == then != newer.digest
    assert opened(tmp_path, expected=newer.digest).digest == newer.digest
    query = [TEXTS["zh"][1]]
    assert [found["score"] for found in older.search(query, 5)[0]] == [0.0] * 5
    assert newer.search(query, 1)[0][0]["score"] > 0
    english = ["a city"]
    assert older.search(english, 1)[0][0]["id"] == newer.search(english, 1)[0][0]["id"] == "en"
    with pytest.raises(BundleError) as caught:
        opened(tmp_path, expected="0" * 64)
    assert caught.value.diagnostics[0].code == "BTC563"


def test_a_name_in_such_a_script_leaves_an_index_of_english_as_it_was(tmp_path: Path) -> None:
    """Its digest and its words: bundles and cached indexes stay good."""
    texts = {"a": "Tokyo (東京) is the capital of Japan. " + "It has many people. " * 8, "b": "Rome is one, too."}
    section = over(tmp_path, texts)
    found = open_retrievers(["all"], [section], cache_root=tmp_path / "cache", progress=Silent())["all"]
    assert found.digest == digest_of(section)
    words = bm25s.tokenize(list(texts.values()), stemmer=Stemmer("english"), return_ids=False, show_progress=False)
    (folder,) = (folder for folder in (tmp_path / "cache" / "indexes").iterdir() if folder.is_dir())
    vocabulary = json.loads((folder / "vocab.index.json").read_text(encoding="utf-8"))
    assert list(vocabulary) == list(dict.fromkeys(word for text in words for word in text))
    assert "東京" in vocabulary
