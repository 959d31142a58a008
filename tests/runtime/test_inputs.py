"""What a caller gives, against types alone: no bundle, no engine."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy
import pytest

from bt_compiler.runtime.inputs import InputCheck, InputError
from bt_compiler.spec.types import BOOL, FLOAT, INT, NULL, PASSAGES, STR, Field, Type

STARS = Type(kind="enum", values=("1", "2", "3"))
MAYBE = Type(kind="union", options=(STARS, NULL))
AGE = Type(kind="union", options=(Type(kind="int", minimum=0, maximum=150), NULL))
BOTH = Field(name="both", type=Type(kind="union", options=(INT, STR, NULL)))
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


@pytest.mark.parametrize(
    ("type", "given", "taken"),
    [
        (FLOAT, numpy.float32(3.1), 3.1),
        (FLOAT, numpy.int64(3), 3.0),
        (INT, numpy.int64(3), 3),
        (BOOL, numpy.bool_(True), True),
        (STARS, numpy.int8(2), "2"),
        (Type(kind="list", item=INT), [numpy.uint16(3), 4], [3, 4]),
        (HELD, {"stars": 3, "count": numpy.int32(3)}, {"stars": "3", "count": 3}),
    ],
)
def test_scalars_of_numpy_are_taken_as_rows_of_data_frames_have_them(type: Type, given: Any, taken: Any) -> None:
    found = InputCheck([Field(name="x", type=type)])({"x": given})["x"]
    assert repr(found) == repr(taken)


@pytest.mark.parametrize("given", [numpy.datetime64("2020-01-01T00:00:00", "ns"), numpy.timedelta64(5, "ns")])
def test_times_of_numpy_are_no_numbers(given: Any) -> None:
    for type in (FLOAT, INT):
        with pytest.raises(InputError):
            InputCheck([Field(name="x", type=type)])({"x": given})


@pytest.mark.parametrize("depth", [400, 5000])
def test_an_input_of_any_depth_is_refused_with_words(depth: int) -> None:
    nested: Any = []
    for _ in range(depth):
        nested = [nested]
    with pytest.raises(InputError):
        InputCheck([Field(name="x", type=STR)])({"x": nested})


def test_a_number_of_another_type_is_called_by_it() -> None:
    with pytest.raises(InputError, match=r"input `x`: a Decimal, `3\.1`, is not `float`"):
        InputCheck([Field(name="x", type=FLOAT)])({"x": Decimal("3.1")})


WHO = Type(kind="object", name="Who", fields=(Field(name="name", type=STR), Field(name="age", type=AGE), BOTH))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"nam": "x"}, "input `x.nam` is not known, and `name` is missing"),
        ({"name": "x", "age": 200}, "input `x.age` does not fit `Who | null`: 200 is greater than the maximum of 150"),
        ({"name": "x", "both": []}, "input `x.both` does not fit `Who | null`: [] is not valid under any of the given"),
        ([], "input `x` expects `Who | null`, got a list, `[]`"),
    ],
)
def test_what_may_be_null_is_named_to_the_field_that_is_wrong(given: Any, said: str) -> None:
    with pytest.raises(InputError) as caught:
        InputCheck([Field(name="x", type=Type(kind="union", options=(WHO, NULL)))])({"x": given})
    assert [problem.message[: len(said)] for problem in caught.value.problems] == [said]


def test_objects_are_called_so() -> None:
    with pytest.raises(InputError, match="input `x` expects `int`, got an object"):
        InputCheck([Field(name="x", type=INT)])({"x": {}})


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
