"""Corpora as parquet and as data sets of the library `datasets`: the same passages as of a JSONL file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bt_compiler.engine.progress import Silent
from bt_compiler.engine.retrieval import Retriever, check_retriever, open_retriever
from bt_compiler.engine.retrieval.corpus_rows import count_rows
from bt_compiler.errors import DataError
from bt_compiler.spec.sections import Condition, CorpusSection, RetrieverSection

ROWS = [
    {"name": f"p{n}", "title": f"t{n}", "body": ["red fox" if n % 3 else "blue whale", f"number {n}"], "year": 1900 + n}
    for n in range(40)
]
LATE = (Condition(column="year", least=1930),)


def section(path: Path | str, **changes: Any) -> RetrieverSection:
    settings = {"path": str(path), "id": "name", "text": "{title}: {body}", **changes}
    return RetrieverSection(name="wiki", kind="bm25", corpus=CorpusSection(**settings))


def opened(path: Path | str, cache: Path, **changes: Any) -> Retriever:
    return open_retriever(section(path, **changes), cache_root=cache, progress=Silent())


def code_of(path: Path | str, cache: Path, **changes: Any) -> tuple[str, str]:
    with pytest.raises(DataError) as caught:
        opened(path, cache, **changes)
    item = caught.value.diagnostics[0]
    return item.code, f"{item.message} / {item.help}"


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pyarrow = pytest.importorskip("pyarrow", reason="needs the extra `data`")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=7)
    return path


@pytest.mark.parametrize("wanted", ["false", False])
def test_a_filter_in_quotes_on_a_column_of_bools_is_told_how_to_write_it(wanted: str | bool, tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    path.write_text("".join(json.dumps({**row, "archived": number == 0}) + "\n" for number, row in enumerate(ROWS)))
    where = (Condition(column="archived", among=(wanted,)),)
    if wanted is False:
        assert opened(path, tmp_path, where=where)
        return
    code, words = code_of(path, tmp_path, where=where)
    assert code == "BTC377" and "`archived` holds true and false: write false without quotes" in words


def test_parquet(lines: Path, tmp_path: Path) -> None:
    # a column of bytes that nobody asks for is never looked at
    path = write_parquet(tmp_path / "corpus.parquet", [{**row, "picture": b"\xff\xd8"} for row in ROWS])
    found = opened(path, tmp_path).search(["fox 7", "whale"], 5)
    assert found == opened(lines, tmp_path).search(["fox 7", "whale"], 5)
    assert count_rows(CorpusSection(path=str(path))) == 40
    (late,) = opened(path, tmp_path, where=LATE).search(["fox"], 40)
    assert {passage["id"] for passage in late} == {f"p{n}" for n in range(30, 40)}


def test_what_is_wrong_with_parquet(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "corpus.parquet", ROWS)
    assert code_of(path, tmp_path, text="{titel}") == (
        "BTC375",
        f"corpus `{path}` has no column `titel` / did you mean `title`?".replace(str(path), _shown(path)),
    )
    code, words = code_of(path, tmp_path, where=(Condition(column="yaer", least=1),))
    assert (code, "did you mean `year`?" in words) == ("BTC375", True)
    assert code_of(path, tmp_path, where=(Condition(column="year", least=3000),))[0] == "BTC377"
    twice = write_parquet(tmp_path / "twice.parquet", [ROWS[0], ROWS[1], ROWS[0]])
    assert code_of(twice, tmp_path)[0] == "BTC376"
    path.write_bytes(path.read_bytes()[:-20])
    assert code_of(path, tmp_path)[0] == "BTC304"
    path.unlink()
    assert code_of(path, tmp_path)[0] == "BTC373"


def _shown(path: Path) -> str:
    from bt_compiler.data.table import shown_name

    return shown_name(path)


@pytest.fixture
def hub(lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The corpus as a data set of a folder."""
    datasets = pytest.importorskip("datasets", reason="needs the extra `data`")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(lines.read_bytes())
    return f"hf://{folder}:train"


@pytest.mark.filterwarnings("ignore")  # the library's own
def test_a_text_in_csv_may_be_long(tmp_path: Path) -> None:
    path = tmp_path / "corpus.csv"
    path.write_text(f"name,title,body\np0,t0,{'whale ' * 40_000}\np1,t1,a fox\n")
    ((passage,),) = opened(path, tmp_path).search(["whale"], 1)
    assert passage["id"] == "p0" and len(passage["text"]) > 200_000


def test_a_data_set(hub: str, lines: Path, tmp_path: Path) -> None:
    check_retriever(section(hub))
    retriever = opened(hub, tmp_path)
    assert retriever.search(["fox 7", "whale"], 5) == opened(lines, tmp_path).search(["fox 7", "whale"], 5)
    assert opened(hub, tmp_path).digest == retriever.digest
    first = opened(f"{hub}:10", tmp_path)
    assert first.digest != retriever.digest
    assert len(first.search(["fox"], 40)[0]) == 10
    code, words = code_of(hub, tmp_path, text="{titel}")
    assert (code, f"corpus `{hub}` has no column `titel`" in words) == ("BTC375", True)
    assert code_of(hub.replace(":train", ":nosuch"), tmp_path)[0] == "BTC327"
    assert code_of("hf://a/b", tmp_path)[0] == "BTC319"
