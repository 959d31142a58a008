from dataclasses import replace

import pytest
from answering import examples

from bt_compiler.data.example import Example, make_example
from bt_compiler.errors import CompileError
from bt_compiler.optimize.inner import inner_split
from bt_compiler.spec.sections import PromptsSection


def loaded(count: int) -> list[Example]:
    return [make_example({"text": str(number)}, {}) for number in range(count)]


def test_thirty_percent_give_demos_and_the_rest_choose() -> None:
    train, val = inner_split(examples("x", 50), PromptsSection(), 0)
    assert (len(train), len(val)) == (15, 35)


def test_parts_are_disjoint_and_keep_the_order_of_train() -> None:
    given = examples("x", 40)
    train, val = inner_split(given, PromptsSection(), 3)
    assert not {one.id for one in train} & {one.id for one in val}
    assert list(train) == [one for one in given if one in train]
    assert list(val) == [one for one in given if one in val]


def test_membership_follows_content_and_seed_not_order() -> None:
    given = examples("x", 30)
    forward = inner_split(given, PromptsSection(), 1)
    backward = inner_split(given[::-1], PromptsSection(), 1)
    assert {one.id for one in forward.train} == {one.id for one in backward.train}
    other = inner_split(given, PromptsSection(), 2)
    assert {one.id for one in forward.train} != {one.id for one in other.train}


def test_exact_copies_of_what_gives_demos_do_not_choose() -> None:
    given = [replace(one, id=f"{one.id}{copy}") for one in loaded(12) for copy in ("", ".2")]
    train, val = inner_split(given, PromptsSection(train=7, val=17), 0)
    assert len(train) == 7
    assert not {one.content for one in train} & {one.content for one in val}
    assert len(train) + len(val) == 23  # the copy of the seventh does neither
    with pytest.raises(CompileError, match="BTC450"):
        inner_split(given[:2], PromptsSection(), 0)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (PromptsSection(train=4, val=5), (4, 5)),
        (PromptsSection(train=4), (4, 6)),
        (PromptsSection(val=8), (2, 8)),
        (PromptsSection(val=2), (3, 2)),
    ],
)
def test_counts(settings: PromptsSection, expected: tuple[int, int]) -> None:
    train, val = inner_split(examples("x", 10), settings, 0)
    assert (len(train), len(val)) == expected


@pytest.mark.parametrize(
    ("count", "settings"),
    [
        (1, PromptsSection()),
        (0, PromptsSection()),
        (10, PromptsSection(train=8, val=8)),
        (10, PromptsSection(train=10)),
        (10, PromptsSection(val=10)),
        (10, PromptsSection(train=0, val=3)),
    ],
)
def test_too_few_examples_are_an_error_with_numbers(count: int, settings: PromptsSection) -> None:
    with pytest.raises(CompileError, match=rf"BTC450.*train has {count} example"):
        inner_split(examples("x", count), settings, 0)
