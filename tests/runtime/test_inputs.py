"""What a caller gives, against types alone: no bundle, no engine."""

from __future__ import annotations

from typing import Any

import pytest

from bt_compiler.runtime.inputs import InputCheck, InputError
from bt_compiler.spec.types import INT, NULL, PASSAGES, Field, Type

STARS = Type(kind="enum", values=("1", "2", "3"))
MAYBE = Type(kind="union", options=(STARS, NULL))
HELD = Type(kind="object", fields=(Field(name="stars", type=STARS), Field(name="count", type=INT)))


@pytest.mark.parametrize(
    ("type", "given", "taken"),
    [
        (STARS, 2, "2"),
        (STARS, "2", "2"),
        (MAYBE, 2, "2"),
        (MAYBE, None, None),
        (Type(kind="list", item=STARS), [1, "2"], ["1", "2"]),
        (HELD, {"stars": 3, "count": 3}, {"stars": "3", "count": 3}),
    ],
)
def test_a_whole_number_is_a_value_of_an_enum_that_is_written_so(type: Type, given: Any, taken: Any) -> None:
    assert InputCheck([Field(name="x", type=type)])({"x": given}) == {"x": taken}


def test_what_takes_null_may_be_left_out_of_objects_too_and_what_does_not_is_named() -> None:
    inner = Type(kind="object", fields=(Field(name="stars", type=MAYBE), Field(name="count", type=INT)))
    maybe = Type(kind="union", options=(inner, NULL))
    check = InputCheck([Field(name="x", type=inner), Field(name="l", type=Type(kind="list", item=maybe))])
    left_out = {"stars": None, "count": 3}
    assert check({"x": {"count": 3}, "l": [{"count": 3}, None]}) == {"x": left_out, "l": [left_out, None]}
    with pytest.raises(InputError) as caught:
        check({"x": {}, "l": []})
    assert [problem.message for problem in caught.value.problems] == ["input `x.count` is missing"]


def test_passages_may_leave_out_their_scores() -> None:
    passage = {"id": "1", "title": "T", "text": "x"}
    check = InputCheck([Field(name="context", type=PASSAGES)])
    taken = {"context": [{**passage, "score": 0.0}, {**passage, "score": 2.0}]}
    assert check({"context": [passage, {**passage, "score": 2}]}) == taken
    with pytest.raises(InputError) as caught:
        check({"context": [{"id": "1", "title": "T"}]})
    assert [problem.message for problem in caught.value.problems] == ["input `context[0].text` is missing"]


@pytest.mark.parametrize("given", [4, 2.0, True, None])
def test_what_is_no_value_of_an_enum_is_one_problem(given: Any) -> None:
    with pytest.raises(InputError) as caught:
        InputCheck([Field(name="stars", type=STARS)])({"stars": given})
    (problem,) = caught.value.problems
    assert problem.path == ("stars",)
    assert problem.message.startswith('input `stars` expects `enum("1", "2", "3")`, got')
