"""Filters and seeded samples: what is taken, whatever the order of the file, and that splits stay apart."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bt_compiler.data.extraction import extracted
from bt_compiler.data.selecting import Selection, fits
from bt_compiler.data.splits import check_data
from bt_compiler.data.table import Row
from bt_compiler.spec.sections import Condition, DataSection, Extraction, SourceSection
from bt_compiler.spec.types import STR, Field

QUESTION = (Field(name="question", type=STR),)
ANSWER = (Field(name="answer", type=STR),)


@pytest.mark.parametrize(
    ("values", "condition", "expected"),
    [
        ({"level": "hard"}, {"among": ("hard",)}, True),
        ({"level": " hard "}, {"among": ("easy", "hard")}, True),
        ({"level": "Hard"}, {"among": ("hard",)}, False),
        ({}, {"among": ("hard",)}, False),
        ({}, {"excluded": ("hard",)}, True),
        ({"level": ""}, {"among": (None,)}, True),
        ({"level": 3}, {"among": (3.0,)}, True),
        ({"level": "3"}, {"among": (3,)}, True),
        ({"level": "3"}, {"among": ("3",)}, True),
        ({"level": "true"}, {"among": (True,)}, True),
        ({"level": " Yes"}, {"among": (True,)}, True),
        ({"level": "no"}, {"excluded": (False,)}, False),
        ({"level": "0"}, {"excluded": (True,)}, True),
        ({"level": "maybe"}, {"among": (True, False)}, False),
        ({"level": 1}, {"among": (True,)}, False),
        ({"level": True}, {"among": ("True",)}, False),
        ({"level": ["a", "b"]}, {"among": ("b",)}, True),
        ({"level": ["a", "b"]}, {"excluded": ("b",)}, False),
        ({"level": "2.5"}, {"least": 2, "most": 3}, True),
        ({"level": "many"}, {"least": 2}, False),
        ({"level": 4}, {"least": 2, "excluded": (4,)}, False),
    ],
)
def test_filters(values: dict[str, Any], condition: dict[str, Any], expected: bool) -> None:
    assert fits(Condition(column="level", **condition), values) is expected


def drawn(rows: list[dict[str, Any]], sizes: list[int], seed: int = 0) -> list[list[Any]]:
    selection = Selection(sample=sum(sizes), seed=seed, columns=("q",))
    for line, values in enumerate(rows, 1):
        selection.offer(Row(line=line, text="", values=values))
    return [[row.values["q"] for row in part] for part in selection.shares(sizes)]


def test_a_sample_does_not_depend_on_the_order_of_the_file() -> None:
    rows = [{"q": number, "other": Random(number).random()} for number in range(5000)]
    (first,) = drawn(rows, [30])
    shuffled = [dict(row, other=0) for row in Random(1).sample(rows, len(rows))]
    assert len(first) == 30 and first == sorted(first)
    assert sorted(drawn(shuffled, [30])[0]) == first
    assert drawn(rows, [30], seed=1) != [first]
    assert drawn(rows, [20, 10])[0] == [number for number in first if number in drawn(rows, [20])[0]]


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(0, 12), max_size=40), st.lists(st.integers(1, 8), min_size=1, max_size=3))
def test_parts_of_a_sample_never_share_a_row(values: list[int], sizes: list[int]) -> None:
    parts = drawn([{"q": value} for value in values], sizes)
    assert all(len(part) <= size for part, size in zip(parts, sizes, strict=True))
    for place, part in enumerate(parts):
        assert not set(part) & {value for other in parts[place + 1 :] for value in other}
    if len(set(values)) >= sum(sizes):
        assert [len(part) for part in parts] == sizes


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_splits_that_sample_one_source_are_disjoint(tmp_path: Path) -> None:
    rows = [{"question": f"q{number % 90}", "answer": "a", "level": number % 2} for number in range(100)]
    path = write(tmp_path / "all.jsonl", rows)
    odd = (Condition(column="level", among=(1,)),)
    data = DataSection(
        train=SourceSection(path=path, sample=20, where=odd),
        dev=SourceSection(path=path, sample=10, where=odd),
        test=SourceSection(path=path, where=(Condition(column="level", among=(0,)),), limit=7),
    )
    splits, notes = check_data(data, inputs=QUESTION, labels=ANSWER)
    assert [len(split) for split in splits] == [20, 10, 7]
    assert {note.code for note in notes} <= {"BTC333"}  # copies within a split
    ids = [example.content for split in splits for example in split]
    assert len(set(ids[:20]) & set(ids[20:30])) == 0
    assert all(int(example.inputs["question"][1:]) % 2 for example in (*splits.train, *splits.dev))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It is 3.\n#### 42", "42"),
        ("#### 1 then #### $1,234.50 in all", "1234.50"),
        ("####-7", "-7"),
        ("#### \u22120.5", "-0.5"),
        ("#### .5", "0.5"),
        ("#### 1,234.50.", "1234.50"),
        ("#### 5.", "5"),
        ("#### -$5, so", "-5"),
        ("#### 1,000,000 apples", "1000000"),
        ("#### 3.5%", "3.5"),
        ("#### 42 - 3 lines", "42"),
        ("#### 42\n100 is another", "42"),
    ],
)
def test_the_number_after_a_mark(text: str, expected: str) -> None:
    assert extracted(text, Extraction(number_after="####")) == expected


@pytest.mark.parametrize("text", ["#### x", "42", "#### 3rd", "####"])
def test_no_number_after_a_mark(text: str) -> None:
    with pytest.raises(ValueError, match="####"):
        extracted(text, Extraction(number_after="####"))


@pytest.mark.parametrize(
    "figure",
    [
        *("15kg", "1.5kg", "$1.5M", ".5l", "1.5e3", "1,234.5M", "1.234.567", "2,5", "1,23", "1,2345", "1/2", "7:30"),
        *("10-12", "1'000", "1 000", "1\u202f000", "1 1/2"),
    ],
)
def test_a_number_is_not_cut_out_of_a_longer_figure(figure: str) -> None:
    with pytest.raises(ValueError, match="no plain number follows `####`"):
        extracted(f"#### {figure}", Extraction(number_after="####"))


def test_extraction_by_regular_expression() -> None:
    assert extracted("cost: 12 EUR", Extraction(match=r"\d+ (\w+)")) == "EUR"
    assert extracted(12, Extraction(match=r"\d")) == "1"
    with pytest.raises(ValueError, match="holds no text"):
        extracted(["a"], Extraction(match="a"))


def test_labels_are_extracted_as_they_are_typed(tmp_path: Path) -> None:
    rows = [{"question": f"q{number}", "solution": f"so {number} #### {number},000"} for number in range(1, 5)]
    data = DataSection(
        train=SourceSection(path=write(tmp_path / "a.jsonl", rows)),
        columns={"answer": "solution"},
        extract={"answer": Extraction(number_after="####")},
    )
    splits, _ = check_data(data, inputs=QUESTION, labels=ANSWER)
    assert {example.labels["answer"] for example in (*splits.train, *splits.dev)} == {"1000", "2000", "3000", "4000"}
