from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import bm25s
import numpy as np
import pytest
import Stemmer

from bt_compiler.engine.progress import Silent
from bt_compiler.engine.retrieval import Retriever, check_retriever, open_retriever, retriever_kinds
from bt_compiler.engine.retrieval.bm25 import top
from bt_compiler.errors import BackendError, BtcError, DataError, SpecError
from bt_compiler.spec.sections import CorpusSection, RetrieverSection

ROWS: list[dict[str, Any]] = [
    {"title": "Eiffel Tower", "text": "The Eiffel Tower is a tower in Paris.", "year": 1889},
    {"title": "Louvre", "text": "The Louvre is a museum in Paris.", "year": 1793},
    {"title": "Big Ben", "text": "Big Ben is a bell in London, in a tower.", "year": 1859},
    {"title": "Sagrada", "text": "A basilica in Barcelona.", "year": None},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def section(path: Path, **changes: Any) -> RetrieverSection:
    options = changes.pop("options", {})
    corpus = CorpusSection(path=str(path), **{"id": "title", "text": "{title} | {text}", **changes})
    return RetrieverSection(name="wiki", kind="bm25", corpus=corpus, options=options)


def opened(path: Path, cache: Path, **changes: Any) -> Retriever:
    return open_retriever(section(path, **changes), cache_root=cache, progress=Silent())


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write(tmp_path / "corpus.jsonl", ROWS)


def ids(found: list[dict[str, Any]]) -> list[str]:
    return [passage["id"] for passage in found]


def test_passages_come_rendered_and_ranked(corpus: Path, tmp_path: Path) -> None:
    (found,) = opened(corpus, tmp_path).search(["which museums are in Paris?"], 2)
    assert ids(found) == ["Louvre", "Eiffel Tower"]
    best = found[0]
    assert best["title"] == "Louvre"
    assert best["text"] == "Louvre | The Louvre is a museum in Paris."
    assert list(best) == ["id", "title", "text", "score"]
    assert best["score"] > found[1]["score"] > 0


def test_a_query_without_known_word_gets_the_head_of_the_corpus(corpus: Path, tmp_path: Path) -> None:
    found = opened(corpus, tmp_path).search(["", "the of", "zebra", "  \n"], 2)
    assert [ids(item) for item in found] == [["Eiffel Tower", "Louvre"]] * 4
    assert all(passage["score"] == 0 for item in found for passage in item)


def test_k_beyond_the_corpus_gives_all_of_it(corpus: Path, tmp_path: Path) -> None:
    (found,) = opened(corpus, tmp_path).search(["bell"], 50)
    assert ids(found) == ["Big Ben", "Eiffel Tower", "Louvre", "Sagrada"]
    assert opened(corpus, tmp_path).search(["bell"], 0) == [[]]
    assert opened(corpus, tmp_path).search([], 3) == []


def test_equal_passages_stand_in_the_order_of_the_corpus(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", [{"text": "red fox" if n % 3 else "blue whale"} for n in range(60)])
    (found,) = opened(path, tmp_path, id=None, text="{text}").search(["fox"], 5)
    assert ids(found) == ["2", "3", "5", "6", "8"]
    assert len({passage["score"] for passage in found}) == 1


def test_results_are_changed_by_nobody_else(corpus: Path, tmp_path: Path) -> None:
    one, two = opened(corpus, tmp_path).search(["paris", "paris"], 1)
    one[0]["text"] = "changed"
    assert two[0]["text"] != "changed"


def random_corpus(path: Path, n: int = 400) -> Path:
    random = Random(3)
    words = [f"word{number}ing" for number in range(150)] + ["running", "Runs", "tower's", "naïve", "the", "of"]
    return write(path, [{"text": " ".join(random.choices(words, k=random.randint(1, 30)))} for _ in range(n)])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"k1": 0.9, "b": 0.4},
        {"stemmer": None, "stopwords": None},
        {"stopwords": ["running"]},
        {"stopwords": ["Running"]},
    ],
)
def test_scores_are_those_of_bm25s_itself(tmp_path: Path, options: dict[str, Any]) -> None:
    path = random_corpus(tmp_path / "c.jsonl")
    texts = [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
    settings = {"stemmer": "english", "stopwords": "en", **options}
    how: dict[str, Any] = {
        "stopwords": "en" if settings["stopwords"] == "en" else settings["stopwords"] and ["running"],
        "stemmer": Stemmer.Stemmer(settings["stemmer"]) if settings["stemmer"] else None,
        "show_progress": False,
    }
    direct = bm25s.BM25(k1=options.get("k1", 1.5), b=options.get("b", 0.75))
    direct.index(bm25s.tokenize(texts, **how), show_progress=False)
    queries = [" ".join(text.split()[:4]) for text in texts[:40]]
    numbers, scores = direct.retrieve(bm25s.tokenize(queries, **how), k=5, show_progress=False)
    ours = opened(path, tmp_path, id=None, text="{text}", options=options).search(queries, 5)
    for row, found in enumerate(ours):
        np.testing.assert_allclose([passage["score"] for passage in found], scores[row], rtol=1e-5)
        clear = [i for i in range(4) if scores[row][i] - scores[row][i + 1] > 1e-4]  # bm25s breaks ties as they fall
        for i in clear:
            assert {passage["id"] for passage in found[: i + 1]} == {
                str(number + 1) for number in numbers[row][: i + 1]
            }


@pytest.mark.parametrize("part", [1, 50, 1 << 20])
@pytest.mark.parametrize("options", [{}, {"k1": 0.9, "b": 0.4, "stemmer": None, "stopwords": "german"}])
def test_an_index_made_in_parts_is_that_of_bm25s_bit_for_bit(
    tmp_path: Path, options: dict[str, Any], part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bt_compiler.engine.retrieval.bm25_index._PART", part)
    path = random_corpus(tmp_path / "c.jsonl")
    with path.open("a", encoding="utf-8") as file:
        file.write('{"text": "the"}\n{"text": ""}\n{"text": "Ärger, STRASSE naïve x 42"}\n')
    texts = [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
    opened(path, tmp_path, id=None, text="{text}", options=options)
    (folder,) = (folder for folder in (tmp_path / "indexes").iterdir() if folder.is_dir())
    vocabulary: dict[str, int] = json.loads((folder / "vocab.index.json").read_text(encoding="utf-8"))
    settings = {"stemmer": "english", "stopwords": "english", "k1": 1.5, "b": 0.75, **options}
    stemmer = Stemmer.Stemmer(settings["stemmer"]) if settings["stemmer"] else None
    tokens = bm25s.tokenize(
        texts, stopwords=settings["stopwords"], stemmer=stemmer, return_ids=False, show_progress=False
    )
    assert list(vocabulary) == list(dict.fromkeys(token for passage in tokens for token in passage))
    index = bm25s.BM25(k1=settings["k1"], b=settings["b"])
    ids = [[vocabulary[token] for token in passage] for passage in tokens]
    index.index((ids, vocabulary), create_empty_token=False, show_progress=False)
    for name, file_name in (("data", "data"), ("indices", "indices"), ("indptr", "indptr")):
        ours = np.load(folder / f"{file_name}.csc.index.npy")
        assert ours.dtype == index.scores[name].dtype
        np.testing.assert_array_equal(ours, index.scores[name])


def test_top_agrees_with_a_full_stable_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    random = Random(1)
    for block in (1, 3, 4, 1024):
        monkeypatch.setattr("bt_compiler.engine.retrieval.index_folder._BLOCK", block)
        for _ in range(100):
            values = [random.choice([0.0, 0.5, 1.0, 1.5]) for _ in range(random.randint(1, 40))]
            scores = np.array(values, dtype=np.float32)
            k = random.randint(0, 45)
            assert top(scores, k) == sorted(range(len(scores)), key=lambda number: -scores[number])[:k]


class Recorder(Silent):
    def __init__(self) -> None:
        self.begun: list[tuple[str, int | None]] = []
        self.done = 0

    def begin(self, label: str, total: int | None) -> None:
        self.begun.append((label, total))

    def advance(self, units: int = 1, note: str = "") -> None:
        self.done += units


def test_an_index_is_built_once_and_follows_the_content(corpus: Path, tmp_path: Path) -> None:
    first, second, third = Recorder(), Recorder(), Recorder()
    one = open_retriever(section(corpus), cache_root=tmp_path, progress=first)
    assert first.begun == [("index corpus.jsonl", 4)] and first.done == 4
    moved = tmp_path / "elsewhere.jsonl"
    corpus.rename(moved)
    two = open_retriever(section(moved), cache_root=tmp_path, progress=second)
    assert second.begun == [] and two.digest == one.digest
    write(moved, [*ROWS, {"title": "New", "text": "A museum."}])
    three = open_retriever(section(moved), cache_root=tmp_path, progress=third)
    assert third.begun and three.digest != one.digest
    assert ids(three.search(["museum"], 1)[0]) == ["New"]
    assert ids(one.search(["museum"], 1)[0]) == ["Louvre"]


def test_settings_are_part_of_the_digest(corpus: Path, tmp_path: Path) -> None:
    variants: list[dict[str, Any]] = [
        {},
        {"text": "{text}"},
        {"id": None},
        {"title": "text"},
        {"options": {"k1": 1.2}},
        {"options": {"b": 0.5}},
        {"options": {"stemmer": None}},
        {"options": {"stopwords": None}},
    ]
    digests = {opened(corpus, tmp_path, **variant).digest for variant in variants}
    assert len(digests) == len(variants)
    assert opened(corpus, tmp_path, options={"k1": 1.5, "stemmer": "english"}).digest in digests


def test_a_damaged_or_half_built_index_is_built_anew(corpus: Path, tmp_path: Path) -> None:
    retriever = opened(corpus, tmp_path)
    folder = tmp_path / "indexes" / retriever.digest
    expected = retriever.search(["paris"], 4)
    del retriever
    for damage in ("data.csc.index.npy", "index.json", "passages.jsonl"):
        (folder / damage).write_bytes(b"x")
        folder.with_suffix(".building").mkdir()
        assert opened(corpus, tmp_path).search(["paris"], 4) == expected
    assert sorted(item.suffix for item in folder.parent.iterdir()) == ["", ".lock"]


OPENER = """
import sys
from pathlib import Path
from bt_compiler.engine.progress import Silent
from bt_compiler.engine.retrieval import open_retriever
from bt_compiler.spec.sections import CorpusSection, RetrieverSection
corpus = CorpusSection(path=sys.argv[1], text="{text}")
section = RetrieverSection(name="r", kind="bm25", corpus=corpus)
class Loud(Silent):
    def begin(self, label, total): print("built", flush=True)
found = open_retriever(section, cache_root=Path(sys.argv[2]), progress=Loud()).search(["word1ing running"], 5)
print([(passage["id"], passage["score"]) for passage in found[0]])
"""


def test_two_processes_at_once_build_it_once_and_agree(tmp_path: Path) -> None:
    path = random_corpus(tmp_path / "c.jsonl", 3000)
    command = [sys.executable, "-c", OPENER, str(path), str(tmp_path / "cache")]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONHASHSEED": str(seed)})
        for seed in (1, 2, 3)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert sum("built" in output for output in outputs) == 1
    assert len({output.splitlines()[-1] for output in outputs}) == 1


def test_csv_with_a_title_column_and_quoted_lines(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_bytes(b'\xef\xbb\xbfkey,title,body\n1,One,"first\nline"\n2,Two,second\n')
    retriever = opened(path, tmp_path, id="key", text="{body} {{x}}")
    (found,) = retriever.search(["second line"], 2)
    assert [(item["id"], item["title"], item["text"]) for item in found] == [
        ("2", "Two", "second {x}"),
        ("1", "One", "first\nline {x}"),
    ]


def test_lists_of_sentences_are_joined_and_nulls_are_empty(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", [{"t": ["One sentence.", "Two sentences."], "n": None}, {"t": "x", "n": 3}])
    (found,) = opened(path, tmp_path, id=None, text="{t}/{n}").search(["sentence"], 2)
    assert [item["text"] for item in found] == ["One sentence. Two sentences./", "x/3"]
    assert found[0]["title"] == ""


def test_a_column_may_be_named_by_a_number(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_text("0,1\na,alpha text\n", encoding="utf-8")
    (found,) = opened(path, tmp_path, id="0", text="{{{0}}} {1}").search(["alpha"], 1)
    assert found[0]["text"] == "{a} alpha text"


def findings(path: Path, cache: Path, error: type[BtcError] = DataError, **changes: Any) -> list[Any]:
    with pytest.raises(error) as caught:
        opened(path, cache, **changes)
    assert not list(cache.glob("indexes/*.building")), "a failed build leaves nothing behind"
    return list(caught.value.diagnostics)


def test_broken_rows_are_reported_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    good = b'{"title": "%d", "text": "some words"}\n'
    path.write_bytes(
        good % 1 + good % 2 + b'{"title": "3", "text": \n' + good % 4 + b"[1]\n" + b"\xff\xfe\n\n" + good % 8
    )
    found = findings(path, tmp_path)
    assert [(item.code, Path(item.span.source.name).name, item.span.line) for item in found] == [
        ("BTC374", "c.jsonl", 3),
        ("BTC374", "c.jsonl", 5),
        ("BTC374", "c.jsonl", 6),
    ]
    assert found[0].message.startswith("broken JSON")


@pytest.mark.parametrize(
    "line", ["[" * 100_000, '{"text": ' + "9" * 5000 + "}", "nul", '"text"', '{"text": "cut \\uD83D"}']
)
def test_lines_made_to_hurt_are_only_broken(tmp_path: Path, line: str) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(line + "\n")
    assert {item.code for item in findings(path, tmp_path, id=None, text="{text}")} == {"BTC374"}


def test_reports_stop_after_ten(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text("broken\n" * 5000)
    assert len(findings(path, tmp_path)) == 10


def test_duplicate_ids_name_both_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", [ROWS[0], ROWS[1], {"title": "Eiffel Tower", "text": "again"}])
    (finding,) = findings(path, tmp_path)
    assert (finding.code, finding.span.line, finding.notes) == ("BTC376", 3, ("first in line 1",))
    assert "`Eiffel Tower`" in finding.message
    write(path, [{"title": "", "text": "x"}])
    (finding,) = findings(path, tmp_path)
    assert finding.code == "BTC376"


def test_an_unknown_column_is_the_specs_mistake_in_the_first_row_and_the_rows_later(
    corpus: Path, tmp_path: Path
) -> None:
    (finding,) = findings(corpus, tmp_path, text="{titel} | {text}")
    assert (finding.code, finding.help) == ("BTC375", "did you mean `title`?")
    assert "has no column `titel`" in finding.message
    path = write(tmp_path / "c.jsonl", [ROWS[0], {"title": "No text"}, ROWS[1]])
    (finding,) = findings(path, tmp_path)
    assert (finding.code, finding.span.line, finding.message) == ("BTC375", 2, "the row has no column `text`")


@pytest.mark.parametrize(
    "template", ["no column", "{}", "{title", "{title.upper}", "{title[0]}", "{title!r}", "{year:05d}", "}"]
)
def test_templates_that_are_more_than_columns_are_refused(corpus: Path, tmp_path: Path, template: str) -> None:
    (finding,) = findings(corpus, tmp_path, SpecError, text=template)
    assert finding.code == "BTC378"


def test_files_that_are_not_there_or_nothing(tmp_path: Path) -> None:
    (finding,) = findings(tmp_path / "none.jsonl", tmp_path)
    assert finding.code == "BTC373" and "no such file" in finding.message
    (finding,) = findings(tmp_path / "corpus.parquet", tmp_path)
    assert finding.code == "BTC373"
    (tmp_path / "folder.jsonl").mkdir()
    assert findings(tmp_path / "folder.jsonl", tmp_path)[0].code == "BTC373"
    (tmp_path / "empty.jsonl").write_text("\n\n")
    assert findings(tmp_path / "empty.jsonl", tmp_path)[0].code == "BTC377"
    write(tmp_path / "stop.jsonl", [{"title": "a", "text": "of the"}])
    assert findings(tmp_path / "stop.jsonl", tmp_path)[0].code == "BTC377"
    (tmp_path / "c.csv").write_text("title,text\nonly one\n")
    (finding,) = findings(tmp_path / "c.csv", tmp_path)
    assert (finding.code, finding.span.line) == ("BTC374", 2)
    (tmp_path / "c.csv").write_text("title,text,text\na,b,c\n")
    (finding,) = findings(tmp_path / "c.csv", tmp_path)
    assert (finding.code, finding.message) == ("BTC374", "the header names column `text` twice")
    (tmp_path / "c.csv").write_text("name,text,,\na,b,,\n")
    (finding,) = findings(tmp_path / "c.csv", tmp_path, text="{txet}")
    assert (finding.code, finding.help) == ("BTC375", "did you mean `text`?")


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ({"stemer": "english"}, "BTC371", "did you mean `stemmer`?"),
        ({"top_k": 4}, "BTC371", "its keys: `b`, `corpus`, `description`, `k`, `k1`, `stemmer`, `stopwords`"),
        ({"stemmer": "klingon"}, "BTC372", "languages"),
        ({"stopwords": "englisch"}, "BTC372", "did you mean `english`?"),
        ({"stopwords": [1]}, "BTC372", "does not know"),
        ({"k1": "high"}, "BTC372", "a number from 0 to 10"),
        ({"b": 1.5}, "BTC372", "a number from 0 to 1"),
        ({"b": True}, "BTC372", "a number from 0 to 1"),
    ],
)
def test_options_are_checked(corpus: Path, options: dict[str, Any], code: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        check_retriever(section(corpus, options=options))
    (finding,) = caught.value.diagnostics
    assert finding.code == code
    assert words in f"{finding.message} {finding.help}"


def test_every_stemmer_and_stop_word_list_that_is_named_exists(corpus: Path, tmp_path: Path) -> None:
    for language in Stemmer.algorithms():
        check_retriever(section(corpus, options={"stemmer": language}))
    for language in ("german", "korean", "english_plus", "danish"):
        assert opened(corpus, tmp_path, options={"stopwords": language}).search(["paris"], 1)


def test_kinds(corpus: Path, tmp_path: Path) -> None:
    kinds = ("bm25", "colbert", "dense", "elasticsearch", "hybrid", "qdrant", "rerank")
    assert retriever_kinds() == kinds
    with pytest.raises(SpecError) as caught:
        check_retriever(RetrieverSection(name="r", kind="bm52"))
    assert caught.value.diagnostics[0].help == "did you mean `bm25`?"
    with pytest.raises(SpecError) as caught:
        check_retriever(RetrieverSection(name="r", kind="bm25"))
    assert caught.value.diagnostics[0].code == "BTC373"


def test_checking_reads_the_head_of_the_corpus_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", ROWS)
    with path.open("a") as file:
        file.write("broken\n")
    check_retriever(section(path))
    assert findings(path, tmp_path)[0].code == "BTC374"


def test_a_cache_that_cannot_be_written_is_explained(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    (finding,) = findings(corpus, tmp_path / "file", BackendError)
    assert finding.code == "BTC362"
