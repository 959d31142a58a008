from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bt_compiler.data import Example, check_data, load_examples, load_splits, make_example
from bt_compiler.errors import DataError
from bt_compiler.spec import Field
from bt_compiler.spec.sections import DataSection, Extraction, SourceSection
from bt_compiler.spec.types import FLOAT, INT, NULL, STR, Type

INPUTS = (Field(name="text", type=STR),)
OR_NULL = Type(kind="union", options=(STR, NULL))
LABELS = (Field(name="label", type=Type(kind="enum", values=("a", "b"))),)


def write(path: Path, texts: Sequence[str]) -> SourceSection:
    path.write_text("".join(json.dumps({"text": text, "label": "a", "more": 1}) + "\n" for text in texts))
    return SourceSection(path=str(path))


def texts(examples: Sequence[Example]) -> list[str]:
    return [example.inputs["text"] for example in examples]


def test_one_path_is_split_the_same_whatever_its_order(tmp_path: Path) -> None:
    names = [f"text {number}" for number in range(40)]
    shuffled = random.Random(1).sample(names, len(names))
    split = {"train": 20, "dev": 10, "test": 10}
    first = load_splits(DataSection(path=write(tmp_path / "a.jsonl", names), split=split), inputs=INPUTS, labels=LABELS)
    second = load_splits(
        DataSection(path=write(tmp_path / "b.jsonl", shuffled), split=split), inputs=INPUTS, labels=LABELS
    )
    assert first == second
    assert [len(part) for part in first] == [20, 10, 10]
    assert texts(first.train) != sorted(texts(first.train))


@settings(max_examples=60)
@given(
    numbers=st.lists(st.integers(0, 12), min_size=12, max_size=40),
    shares=st.sampled_from([{"train": 0.5, "dev": 0.25, "test": 0.25}, {"train": 0.4, "dev": 0.4}, {"train": 0.9}]),
)
def test_parts_are_disjoint_complete_and_unique(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[int], shares: dict[str, float]
) -> None:
    source = write(tmp_path_factory.getbasetemp() / "any.jsonl", [str(number) for number in numbers])
    try:
        splits = load_splits(DataSection(path=source, split=shares), inputs=INPUTS, labels=LABELS)
    except DataError as error:
        assert [item.code for item in error.diagnostics] == ["BTC324"]
        return
    contents = [{example.content for example in part} for part in splits]
    assert sum(len(part) for part in contents) == len(set.union(*contents))
    ids = [example.id for part in splits for example in part]
    assert len(ids) == len(set(ids))
    assert Counter(text for part in splits for text in texts(part)) <= Counter(map(str, numbers))
    assert all(part for part, name in zip(splits, ("train", "dev", "test"), strict=True) if name in shares)


def test_counts_are_exact_with_copies_kept_together(tmp_path: Path) -> None:
    names = ["twin", "twin", *(f"text {number}" for number in range(10))]
    source = write(tmp_path / "a.jsonl", names)
    splits = load_splits(
        DataSection(path=source, split={"train": 5, "dev": 4, "test": 3}), inputs=INPUTS, labels=LABELS
    )
    assert [len(part) for part in splits] == [5, 4, 3]
    assert [texts(part).count("twin") for part in splits if "twin" in texts(part)] == [2]


def test_one_row_a_split_is_a_count(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [f"text {number}" for number in range(4)])
    data = DataSection(path=source, split={"train": 1, "dev": 1, "test": 1})
    loaded = check_data(data, inputs=INPUTS, labels=LABELS)
    assert [len(part) for part in loaded.splits] == [1, 1, 1]
    assert [note.message for note in loaded.notes] == [
        "4 rows split by content hash: 1 train, 1 dev, 1 test; 1 row stays unused"
    ]
    whole = load_splits(DataSection(path=source, split={"train": 1}), inputs=INPUTS, labels=LABELS)
    assert [len(part) for part in whole] == [3, 1, 0]


def test_copies_have_ids_of_their_own_and_one_content(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", ["twin", "twin", "twin", "other"])
    found = load_examples(source, columns={}, inputs=INPUTS, labels=LABELS)
    first = make_example({"text": "twin"}, {"label": "a"}).id
    assert [example.id for example in found[:3]] == [first, f"{first}.2", f"{first}.3"]
    assert {example.content for example in found[:3]} == {first}


def test_three_files_are_taken_as_they_are(tmp_path: Path) -> None:
    data = DataSection(
        train=write(tmp_path / "a.jsonl", ["z", "a", "m"]),
        dev=write(tmp_path / "b.jsonl", ["d"]),
        test=SourceSection(path=write(tmp_path / "c.jsonl", ["t", "s"]).path, limit=1),
    )
    loaded = check_data(data, inputs=INPUTS, labels=LABELS)
    assert [texts(part) for part in loaded.splits] == [["z", "a", "m"], ["d"], ["t"]]
    assert loaded.notes == ()


def test_a_dev_that_is_split_off_keeps_the_order_of_the_file(tmp_path: Path) -> None:
    names = [f"text {number:02}" for number in range(20)]
    splits = load_splits(DataSection(train=write(tmp_path / "a.jsonl", names)), inputs=INPUTS, labels=LABELS)
    assert [len(part) for part in splits] == [15, 5, 0]
    assert texts(splits.train) == sorted(texts(splits.train))
    assert texts(splits.dev) == sorted(texts(splits.dev))
    assert sorted(texts(splits.train) + texts(splits.dev)) == names


def test_a_dev_that_is_split_off_has_the_labels_in_proportion(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"text": f"text {number}", "label": "a" if number % 4 else "b"} for number in range(160)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = DataSection(path=SourceSection(path=str(path)), split={"train": 0.5, "test": 0.5}, stratify="label")
    splits = load_splits(data, inputs=INPUTS, labels=LABELS)
    counts = [Counter(example.labels["label"] for example in part) for part in splits]
    assert counts == [{"a": 45, "b": 15}, {"a": 15, "b": 5}, {"a": 60, "b": 20}]


def test_an_empty_cell_of_a_csv_is_null_where_that_is_allowed(tmp_path: Path) -> None:
    maybe = Type(kind="union", options=(STR, NULL))
    number = Type(kind="union", options=(INT, NULL))
    inputs = (Field(name="text", type=STR), Field(name="count", type=number))
    path = tmp_path / "a.csv"
    path.write_text('text,count,due\n,1,\nb,,""\nc,3, \n', encoding="utf-8")
    source = SourceSection(path=str(path))
    found = load_examples(source, columns={}, inputs=inputs, labels=(Field(name="due", type=maybe),))
    assert [example.inputs["text"] for example in found] == ["", "b", "c"]
    assert [example.inputs["count"] for example in found] == [1, None, 3]
    assert [example.labels["due"] for example in found] == [None, None, " "]
    extract = {"due": Extraction(match="due (.*)")}
    path.write_text("text,count,due\na,1,\nb,1,due today\n", encoding="utf-8")
    found = load_examples(source, columns={}, inputs=inputs, labels=(Field(name="due", type=maybe),), extract=extract)
    assert [example.labels["due"] for example in found] == [None, "today"]
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "", "count": null, "due": ""}\n', encoding="utf-8")
    source = SourceSection(path=str(path))
    (example,) = load_examples(source, columns={}, inputs=inputs, labels=(Field(name="due", type=maybe),))
    assert example.labels["due"] == "", "JSON has null for what is not there"


def test_not_a_number_is_null_where_that_is_allowed(tmp_path: Path) -> None:
    def maybe(type: Type) -> Type:
        return Type(kind="union", options=(type, NULL))

    labels = (Field(name="size", type=maybe(FLOAT)), Field(name="name", type=maybe(STR)))
    jsonl = '{"text": "a", "size": NaN, "name": NaN}\n{"text": "b", "size": 2.5, "name": "NaN"}\n'
    csv = "text,size,name\na,nan,\nb,2.5,NaN\n"
    for name, rows in (("a.jsonl", jsonl), ("a.csv", csv)):
        (tmp_path / name).write_text(rows, encoding="utf-8")
        found = load_examples(SourceSection(path=str(tmp_path / name)), columns={}, inputs=INPUTS[:1], labels=labels)
        assert [example.labels for example in found] == [{"size": None, "name": None}, {"size": 2.5, "name": "NaN"}]
        with pytest.raises(DataError, match="BTC311"):
            must = (Field(name="size", type=FLOAT),)
            load_examples(SourceSection(path=str(tmp_path / name)), columns={}, inputs=INPUTS[:1], labels=must)


def test_a_cell_is_a_number_where_it_may_be_one(tmp_path: Path) -> None:
    labels = (Field(name="due", type=Type(kind="union", options=(INT, STR))),)
    for name, rows in (("a.csv", "text,due\na,5\nb,soon\n"), ("a.jsonl", '{"text": "a", "due": "5"}\n')):
        (tmp_path / name).write_text(rows, encoding="utf-8")
    sources = [SourceSection(path=str(tmp_path / name)) for name in ("a.csv", "a.jsonl")]
    cells, quoted = (load_examples(source, columns={}, inputs=INPUTS, labels=labels) for source in sources)
    assert [example.labels["due"] for example in (*cells, *quoted)] == [5, "soon", "5"]


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("body,label,length,extra\nhello,a,long,x\n")
    source = SourceSection(path=str(path))
    (example,) = load_examples(source, columns={"text": "body"}, inputs=INPUTS, labels=LABELS)
    assert (example.inputs, example.labels) == ({"text": "hello"}, {"label": "a"})
    extra, missing = Field(name="extra", type=STR), Field(name="missing", type=FLOAT)
    (example,) = load_examples(
        source, columns={"text": "body"}, inputs=INPUTS, labels=LABELS, optional=(extra, missing)
    )
    assert example.labels == {"label": "a", "extra": "x"}


def test_an_optional_label_that_is_mapped_is_in_some_split(tmp_path: Path) -> None:
    train, test = write(tmp_path / "train.jsonl", ["x", "y"]), tmp_path / "test.jsonl"
    test.write_text('{"text": "z", "label": "a", "kind": "b"}\n')
    more = (Field(name="more", type=STR),)
    data = DataSection(train=train, dev=None, test=SourceSection(path=str(test)), columns={"more": "kind"})
    assert check_data(data, inputs=INPUTS, labels=LABELS, optional=more).splits.test[0].labels["more"] == "b"
    mistyped = replace(data, columns={"more": "kin"})
    with pytest.raises(DataError, match="did you mean `kind`"):
        check_data(mistyped, inputs=INPUTS, labels=LABELS, optional=more)
    assert load_splits(mistyped, inputs=INPUTS, labels=LABELS, optional=more).test  # a bundle is scored without it


def test_an_optional_label_that_is_mapped_may_be_in_rows_that_the_limit_leaves_unread(tmp_path: Path) -> None:
    rows = [{"text": str(number), "label": "a", **({"kind": "b"} if number == 9 else {})} for number in range(10)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"{number},a\n" for number in range(10)))

    def checked(name: str, limit: int, column: str = "kind") -> list[str]:
        data = DataSection(path=SourceSection(path=str(tmp_path / name), limit=limit), columns={"more": column})
        found = check_data(data, inputs=INPUTS, labels=LABELS, optional=(Field(name="more", type=OR_NULL),)).notes
        return [f"{item.severity} {item.code}" for item in found]

    assert checked("a.jsonl", 9) == ["warning BTC310", "note BTC330"]
    assert checked("a.jsonl", 10) == ["note BTC330"]
    for name, limit in (("a.jsonl", 10), ("a.csv", 9)):
        with pytest.raises(DataError, match="BTC310"):
            checked(name, limit, "kid")


def test_a_null_is_what_a_row_does_not_have(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x", "label": "a"}\n{"text": "y", "label": "b", "size": 2}\n')
    size = Field(name="size", type=Type(kind="union", options=(FLOAT, Type(kind="null"))))
    found = load_examples(SourceSection(path=str(path)), columns={}, inputs=(*INPUTS, size), labels=LABELS)
    assert [example.inputs["size"] for example in found] == [None, 2.0]


def test_stratified_splits_have_every_value_in_proportion() -> None:
    labels = [Field(name="species", type=Type(kind="enum", values=("setosa", "versicolor", "virginica")))]
    columns = ("sepal_length", "sepal_width", "petal_length", "petal_width")
    inputs = [Field(name=name, type=FLOAT) for name in columns]
    source = SourceSection(path="sklearn:iris")
    data = DataSection(path=source, split={"train": 50, "dev": 50, "test": 50}, stratify="species")
    splits = load_splits(data, inputs=inputs, labels=labels)
    for part in splits:
        counts = Counter(example.labels["species"] for example in part)
        assert len(part) == 50
        assert set(counts.values()) <= {16, 17}
    contents = [{example.content for example in part} for part in splits]
    assert contents[0].isdisjoint(contents[1]) and contents[1].isdisjoint(contents[2])
    with pytest.raises(DataError, match="BTC313"):
        load_splits(replace(data, stratify="specie"), inputs=inputs, labels=labels)
