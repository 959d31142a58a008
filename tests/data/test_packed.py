"""Compressed files, parquet and data sets of the library `datasets`: read, cut short, and without their packages."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from bt_compiler.data.files import read_file
from bt_compiler.data.packed import data_lines
from bt_compiler.data.selecting import Selection
from bt_compiler.data.sources import read_sources
from bt_compiler.data.tabular import hub_set
from bt_compiler.engine.retrieval.corpus import read_corpus
from bt_compiler.errors import DataError
from bt_compiler.spec.sections import Condition, CorpusSection, SourceSection

ROWS = [{"title": f"t{number}", "text": f"größe {number}"} for number in range(3000)]
JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode("utf-8")


def packed(folder: Path, ending: str, data: bytes, frames: int = 1) -> Path:
    path = folder / f"rows{ending}"
    if ending.endswith(".gz"):
        path.write_bytes(gzip.compress(data))
    elif ending.endswith(".zst"):
        zstandard = pytest.importorskip("zstandard", reason="needs the extra `data`")
        size = -(-len(data) // frames)
        parts = [data[start : start + size] for start in range(0, len(data), size)]
        path.write_bytes(b"".join(zstandard.ZstdCompressor().compress(part) for part in parts))
    else:
        path.write_bytes(data)
    return path


def findings(path: Path) -> list[tuple[str, str]]:
    with pytest.raises(DataError) as caught:
        read_file(path, span=None)
    return [(item.code, item.message) for item in caught.value.diagnostics]


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".JSONL.ZST"])
def test_lines_are_the_same_however_they_are_packed(tmp_path: Path, ending: str) -> None:
    path = packed(tmp_path, ending.lower(), JSONL, frames=3)
    assert b"".join(data_lines(path)) == JSONL
    table = read_file(path, span=None)
    assert [row.values for row in table.rows] == ROWS
    assert table.rows[-1].line == len(ROWS)
    corpus = CorpusSection(path=str(path), id="title", text="{text}")
    assert [text.id for text in read_corpus(corpus)] == [row["title"] for row in ROWS]


def test_a_packed_csv(tmp_path: Path) -> None:
    path = packed(tmp_path, ".csv.gz", b"a,b\n1,x\n")
    assert [row.values for row in read_file(path, span=None).rows] == [{"a": "1", "b": "x"}]


@pytest.mark.parametrize("ending", [".jsonl.gz", ".jsonl.zst"])
def test_a_packed_file_that_ends_too_early_is_no_shorter_file(tmp_path: Path, ending: str) -> None:
    path = packed(tmp_path, ending, JSONL, frames=2)
    path.write_bytes(path.read_bytes()[:-40])
    ((code, message),) = findings(path)
    assert code == "BTC304"
    assert "archive is damaged" in message
    with pytest.raises(DataError, match="archive is damaged"):
        list(read_corpus(CorpusSection(path=str(path))))
    path.write_bytes(b"not packed at all")
    assert findings(path)[0][0] == "BTC304"


def test_a_broken_line_in_a_packed_file_has_its_number(tmp_path: Path) -> None:
    path = packed(tmp_path, ".jsonl.gz", b'{"a": 1}\n{"a": \n')
    assert findings(path) == [("BTC307", "line 2 is not JSON: expecting value")]


def test_a_key_that_stands_twice_in_an_object(tmp_path: Path) -> None:
    path = packed(tmp_path, ".jsonl", b'{"a": 1}\n{"a": [{"b": 1, "c": 2, "b": 3}]}\n')
    said = "the key `b` is there twice in one object"
    assert findings(path) == [("BTC307", f"line 2 is not JSON: {said}")]
    with pytest.raises(DataError, match=said):
        list(read_corpus(CorpusSection(path=str(path), text="{a}")))


def test_what_lies_beyond_the_limit_is_not_unpacked(tmp_path: Path) -> None:
    path = packed(tmp_path, ".jsonl.gz", JSONL)
    path.write_bytes(path.read_bytes()[:-40])
    assert len(read_file(path, span=None, limit=5).rows) == 5


@pytest.mark.parametrize(
    ("name", "package"), [("rows.jsonl.zst", "zstandard"), ("rows.parquet", "pyarrow"), ("hf://a/b:train", "datasets")]
)
def test_a_missing_package_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    path = tmp_path / name
    if "://" not in name:
        path.write_bytes(b"x")
    source = SourceSection(path=name if "://" in name else str(path))
    with pytest.raises(DataError) as caught:
        read_sources({"train": source}, ())
    (item,) = caught.value.diagnostics
    assert item.code == "BTC318"
    assert package in item.message
    assert item.help == "pip install 'bt-compiler[data]'"


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs the extra `data`")
    import datetime
    import decimal

    from pyarrow import parquet

    rows: list[dict[str, Any]] = [
        {"day": datetime.date(2026, 1, 2), "price": decimal.Decimal("1.50"), "tags": ["a"], "level": "hard"},
        {"day": None, "price": None, "tags": [], "level": "easy"},
        {"day": None, "price": None, "tags": ["b"], "level": "hard"},
    ]
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    chosen = Selection(where=(Condition(column="level", among=("hard",)),), limit=2)
    table = read_file(path, span=None, selection=chosen)
    assert [row.line for row in table.rows] == [1, 3]
    assert table.rows[0].values == {"day": "2026-01-02", "price": "1.50", "tags": ["a"], "level": "hard"}
    path.write_bytes(path.read_bytes()[:-20])
    assert findings(path)[0][0] == "BTC304"
    parquet.write_table(pyarrow.Table.from_pylist([{"a": b"\xff"}]), path)
    assert findings(path) == [("BTC311", "`a` of row 1 holds a value of type `bytes`, which no spec can name")]
    twice = pyarrow.table([[1], ["x"], ["y"]], names=["n", "a", "a"])
    parquet.write_table(twice, path)
    assert findings(path)[0][0] == "BTC308"
    assert len(read_sources({"train": SourceSection(path=str(path))}, ("n",))[0]["train"].rows) == 1
    path.unlink()
    assert findings(path)[0][0] == "BTC301"


def test_a_number_that_is_none(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs the extra `data`")
    from pyarrow import parquet

    path = tmp_path / "rows.parquet"
    rows = [{"n": float("nan"), "list": [1.0, float("nan")]}, {"n": 2.0, "list": []}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    drawn = Selection(sample=2, columns=("n", "list"))
    for selection in (None, drawn):
        table = read_file(path, span=None, selection=selection)
        assert [row.values for row in table.rows] == [{"n": None, "list": [1.0, None]}, {"n": 2.0, "list": []}]
    parquet.write_table(pyarrow.Table.from_pylist([{"n": 1.0}, {"n": float("-inf")}]), path)
    assert findings(path) == [("BTC311", "`n` of row 2 holds an infinite number, which no spec can name")]
    path = packed(tmp_path, ".jsonl", b'{"n": 1e99}\n{"n": 1e999}\n')
    assert findings(path) == [("BTC307", "line 2 is not JSON: `1e999` is too large a number")]


def test_times_with_nanoseconds_keep_their_digits(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs the extra `data`")
    from pyarrow import parquet

    nanoseconds = [1_700_000_000_123_456_789, 1_700_000_000_000_000_000, None, -1]
    kinds = {"at": pyarrow.timestamp("ns"), "there": pyarrow.timestamp("ns", tz="Asia/Tokyo")}
    columns = {name: pyarrow.array(nanoseconds, kind) for name, kind in kinds.items()}
    columns["time"] = pyarrow.array([0, 1, 7, 3_600_000_000_000], pyarrow.time64("ns"))
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table(columns), path)
    rows = read_file(path, span=None).rows
    assert [row.values["at"] for row in rows] == [
        "2023-11-14T22:13:20.123456789",
        "2023-11-14T22:13:20",
        None,
        "1969-12-31T23:59:59.999999999",
    ]
    assert rows[0].values["there"] == "2023-11-15T07:13:20.123456789+09:00"
    times = [row.values["time"] for row in rows]
    assert times == ["00:00:00", "00:00:00.000000001", "00:00:00.000000007", "01:00:00"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "value", "what"),
    [
        ("date", 3_000_000, "a time beyond the years 1 to 9999"),
        ("milliseconds", 10**15, "a time beyond the years 1 to 9999"),
        ("list", [10**15], "a time beyond the years 1 to 9999"),
        ("on Mars", 10**9, "a time in `Mars/Phobos`, a time zone that is not known here"),
    ],
)
def test_times_that_python_cannot_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, value: Any, what: str
) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs the extra `data`")
    datasets = pytest.importorskip("datasets", reason="needs the extra `data`")
    from pyarrow import parquet

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    kinds = {
        "date": pyarrow.date32(),
        "milliseconds": pyarrow.timestamp("ms"),
        "list": pyarrow.list_(pyarrow.timestamp("ms")),
        "on Mars": pyarrow.timestamp("s", tz="Mars/Phobos"),
    }
    path = tmp_path / "set" / "train-00000-of-00001.parquet"
    path.parent.mkdir()
    columns = {"n": pyarrow.array([1, 2]), "end": pyarrow.array([None, value], kinds[kind])}
    parquet.write_table(pyarrow.table(columns), path)
    for place in (str(path), f"hf://{path.parent}:train"):
        with pytest.raises(DataError) as caught:
            read_sources({"train": SourceSection(path=place)}, ())
        (item,) = caught.value.diagnostics
        assert (item.code, item.message) == ("BTC311", f"`end` of row 2 holds {what}")
        assert item.span is not None
        assert item.span.line == 2
        assert len(read_sources({"train": SourceSection(path=place)}, ("n",))[0]["train"].rows) == 2


@pytest.mark.filterwarnings("ignore")
def test_columns_that_are_not_read_may_hold_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs the extra `data`")
    datasets = pytest.importorskip("datasets", reason="needs the extra `data`")
    import datetime

    from pyarrow import parquet

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"n": n, "level": "hard", "raw": b"\xff", "took": datetime.timedelta(seconds=n)} for n in range(3)]
    path = tmp_path / "set" / "train-00000-of-00001.parquet"
    path.parent.mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    hard = (Condition(column="level", among=("hard",)),)
    for place in (str(path), f"hf://{path.parent}:train"):
        tables, _ = read_sources({"train": SourceSection(path=place, where=hard)}, ("n",))
        table = tables["train"]
        assert [row.values["n"] for row in table.rows] == [0, 1, 2]
        assert table.rows[0].text == '{"n": 0, "level": "hard"}'
        assert table.columns == ("n", "level", "raw", "took")
        with pytest.raises(DataError, match="`took` of row 1 holds a value of type `timedelta`"):
            read_sources({"train": SourceSection(path=place)}, ("n", "took"))


def narrow() -> tuple[Any, dict[str, Any]]:
    """Columns of float32 and float16, nested too, and what a person wrote into them."""
    pyarrow = pytest.importorskip("pyarrow", reason="needs the extra `data`")
    single, half = pyarrow.float32(), pyarrow.float16()
    held = pyarrow.struct([("x", single), ("all", pyarrow.list_(half))])
    written = {"n": 1.1, "half": 0.1, "all": [5.6, 1e-7], "held": {"x": 0.3, "all": [0.7, None]}, "wide": 1.1 / 3}
    types = {"n": single, "half": half, "all": pyarrow.list_(single, 2), "held": held, "wide": pyarrow.float64()}
    return pyarrow.table({name: pyarrow.array([written[name], None], kind) for name, kind in types.items()}), written


def test_numbers_of_few_bits_are_what_was_written(tmp_path: Path) -> None:
    table, written = narrow()
    from pyarrow import array, float32, map_, parquet, string

    path = tmp_path / "rows.parquet"
    mapped = array([[("a", 1.1)], None], map_(string(), float32()))
    more = table.append_column("map", mapped).append_column("named", table["n"].dictionary_encode())
    parquet.write_table(more, path)
    rows = [dict(row.values) for row in read_file(path, span=None).rows]
    assert rows[0] == {**written, "map": [["a", 1.1]], "named": 1.1}
    assert set(map(type, rows[1].values())) == {type(None)}
    parquet.write_table(table.select(["n"]).slice(0, 1), path)
    found = read_sources({"train": SourceSection(path=str(path), where=(Condition(column="n", among=(1.1,)),))}, ("n",))
    assert len(found[0]["train"].rows) == 1


@pytest.mark.filterwarnings("ignore")
def test_numbers_of_few_bits_in_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the extra `data`")
    table, written = narrow()
    from pyarrow import parquet

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    parquet.write_table(table.slice(0, 1), tmp_path / "set" / "train-00000-of-00001.parquet")
    tables, _ = read_sources({"train": SourceSection(path=f"hf://{tmp_path / 'set'}:train")}, ())
    assert [dict(row.values) for row in tables["train"].rows] == [written]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hf://openai/gsm8k[main]:train", ("openai/gsm8k", "main", "train", None)),
        ("hf://squad:validation:50", ("squad", None, "validation", 50)),
        ("hf:///data/folder:train", ("/data/folder", None, "train", None)),
    ],
)
def test_names_of_data_sets(name: str, expected: tuple[Any, ...]) -> None:
    assert hub_set(name, None) == expected


@pytest.mark.parametrize("name", ["hf://a/b", "hf://a/b[c]", "hf://a/b:train:0", "hf://:train", "hf://a/b[]:train"])
def test_what_is_no_name_of_a_data_set(name: str) -> None:
    with pytest.raises(DataError) as caught:
        hub_set(name, None)
    assert caught.value.diagnostics[0].code == "BTC319"


@pytest.mark.filterwarnings("ignore")  # the library's own
def test_a_data_set_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the extra `data`")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(JSONL)
    source = SourceSection(path=f"hf://{folder}:train:10", where=(Condition(column="title", excluded=("t1",)),))
    tables, notes = read_sources({"train": source}, ("title",))
    assert notes == []
    assert [row.values["title"] for row in tables["train"].rows] == ["t0", *(f"t{number}" for number in range(2, 10))]
    with pytest.raises(DataError) as caught:
        read_sources({"train": SourceSection(path=f"hf://{folder}:nosuch")}, ())
    assert caught.value.diagnostics[0].code == "BTC327"
    assert "nosuch" in caught.value.diagnostics[0].message


def test_a_folder_of_the_working_folder_is_not_taken_for_a_set_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datasets", reason="needs the extra `data`")
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_bytes(JSONL)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        read_sources({"train": SourceSection(path="hf://owner/name:train")}, ("title",))
    (item,) = caught.value.diagnostics
    assert item.code == "BTC327"
    assert "the working folder has a folder `owner/name`" in item.message


@pytest.mark.filterwarnings("ignore")
def test_classes_of_a_data_set_go_by_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the extra `data`")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    mood = datasets.ClassLabel(names=["neg", "pos"])
    features = {"n": datasets.Value("int64"), "mood": mood, "all": [mood], "held": {"mood": mood}}
    values = {"n": [0, 1, 1], "mood": [0, 1, -1], "all": [[0, 1], [], [-1]], "held": [{"mood": 1}] * 3}
    folder = tmp_path / "set"
    folder.mkdir()
    made = datasets.Dataset.from_dict(values, features=datasets.Features(features))
    made.to_parquet(str(folder / "train-00000-of-00001.parquet"))
    tables, _ = read_sources({"train": SourceSection(path=f"hf://{folder}:train")}, ())
    held = {"mood": "pos"}
    assert [dict(row.values) for row in tables["train"].rows] == [
        {"n": 0, "mood": "neg", "all": ["neg", "pos"], "held": held},
        {"n": 1, "mood": "pos", "all": [], "held": held},
        {"n": 1, "mood": None, "all": [None], "held": held},
    ]


@pytest.mark.filterwarnings("ignore")
def test_a_data_set_that_is_nowhere_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the extra `data`")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(DataError) as caught:
        read_sources({"train": SourceSection(path="hf://no-such-owner/no-such-set[main]:train")}, ())
    (item,) = caught.value.diagnostics
    assert item.code == "BTC327"
    assert "--set data.train.path=FILE" in (item.help or "")
