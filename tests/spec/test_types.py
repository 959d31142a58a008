from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bt_compiler.spec import (
    Field,
    Type,
    TypeSyntaxError,
    assignable,
    convert,
    convert_text,
    json_schema,
    json_schema_of_fields,
    parse_fields,
    parse_signature_text,
    parse_type,
    show_type,
)
from bt_compiler.spec.types import BOOL, FLOAT, INT, NULL, PASSAGE, PASSAGES, STR

SCALAR_TYPES = st.sampled_from([STR, INT, FLOAT, BOOL])
VALUES = st.text(min_size=1, max_size=8).filter(
    lambda text: text == text.strip() and text.splitlines() == [text] and "\0" not in text
)
ENUMS = st.lists(VALUES, min_size=1, max_size=4, unique=True).map(
    lambda values: Type(kind="enum", values=tuple(values))
)
NULLABLE = (SCALAR_TYPES | ENUMS).map(lambda t: Type(kind="union", options=(t, NULL)))
WRITTEN = st.recursive(
    SCALAR_TYPES | ENUMS | NULLABLE | st.just(PASSAGE), lambda inner: inner.map(lambda t: Type(kind="list", item=t))
)
NAMES = st.sampled_from(["a", "b", "größe", "名前", "c_1"])
TYPES = st.recursive(
    WRITTEN,
    lambda inner: st.dictionaries(NAMES, inner, min_size=1).map(
        lambda fields: Type(kind="object", fields=tuple(Field(name=name, type=t) for name, t in fields.items()))
    ),
    max_leaves=8,
)


def values_of(t: Type) -> st.SearchStrategy[Any]:
    if t.kind == "str":
        return st.text()
    if t.kind == "int":
        return st.integers(-(10**15), 10**15)
    if t.kind == "float":
        return st.floats(allow_nan=False, allow_infinity=False)
    if t.kind == "bool":
        return st.booleans()
    if t.kind == "null":
        return st.none()
    if t.kind == "enum":
        return st.sampled_from(t.values)
    if t.kind == "union":
        return st.one_of([values_of(option) for option in t.options])
    if t.kind == "list":
        assert t.item is not None
        return st.lists(values_of(t.item), max_size=3)
    return st.fixed_dictionaries({field.name: values_of(field.type) for field in t.fields})


@given(WRITTEN)
def test_what_a_message_shows_can_be_written(t: Type) -> None:
    assert parse_type(show_type(t)) == t


@given(TYPES, st.data())
def test_a_value_of_a_type_converts_to_itself_and_fits_its_schema(t: Type, data: st.DataObject) -> None:
    value = data.draw(values_of(t))
    assert convert(value, t) == value
    jsonschema.Draft202012Validator(json_schema(t)).validate(value)


@given(TYPES, st.data())
def test_a_value_survives_csv(t: Type, data: st.DataObject) -> None:
    value = data.draw(values_of(t))
    if t.kind in ("union", "null"):
        return  # an empty cell and an empty text are the same in CSV
    cell = value if isinstance(value, str) else json.dumps(value)
    assert convert(cell, t) == value


@given(TYPES, st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=5))
def test_whatever_is_converted_fits_the_schema_or_is_refused_in_words(t: Type, value: Any) -> None:
    try:
        converted = convert(value, t)
    except ValueError as error:
        assert str(error)
    else:
        jsonschema.Draft202012Validator(json_schema(t)).validate(converted)


@given(TYPES, TYPES, st.data())
def test_assignable_types_take_each_others_values(source: Type, target: Type, data: st.DataObject) -> None:
    assert assignable(source, source)
    if assignable(source, target):
        jsonschema.Draft202012Validator(json_schema(target)).validate(data.draw(values_of(source)))


@pytest.mark.parametrize(
    ("source", "target", "fits"),
    [
        ("int", "float", True),
        ("float", "int", False),
        ("str", "str | null", True),
        ("str | null", "str", False),
        ("int | null", "float | null", True),
        ("enum(a, b)", "str", True),
        ("str", "enum(a, b)", False),
        ("enum(a)", "enum(b, a)", True),
        ("enum(a, c)", "enum(b, a)", False),
        ("[int]", "[float]", True),
        ("[str]", "str", False),
        ("[Passage]", "[Passage]", True),
        ("bool", "int", False),
        ("null", "str | null", True),
    ],
)
def test_assignable(source: str, target: str, fits: bool) -> None:
    assert assignable(parse_type(source), parse_type(target)) is fits


@pytest.mark.parametrize(
    ("node", "shown"),
    [
        ("str", "str"),
        (" [ [ int ] ] ", "[[int]]"),
        (["str"], "[str]"),
        ([["Passage"]], "[[Passage]]"),
        ("str|null", "str | null"),
        ({"enum": ["setosa", "versicolor"]}, "enum(setosa, versicolor)"),
        ({"enum": [1, 2, "two words"]}, 'enum("1", "2", "two words")'),
        ({"type": ["str"], "max": 3, "description": "few"}, "[str]"),
        ({"fields": {"a": "int", "b": ["str"]}}, "{a: int, b: [str]}"),
        ("Mood", "Mood"),
        ({"type": "Mood", "description": "how"}, "Mood"),
        (None, "null"),
    ],
)
def test_parse_and_show(node: Any, shown: str) -> None:
    mood = Type(kind="enum", name="Mood", values=("good", "bad"))
    assert show_type(parse_type(node, {"Mood": mood})) == shown


@pytest.mark.parametrize(
    ("node", "help"),
    [
        ("list[str]", "write `[str]`"),
        ("List[List[int]]", "write `[[int]]`"),
        ("str[]", "write `[str]`"),
        ("Optional[str]", "write `str | null`"),
        ("str?", "write `str | null`"),
        ("str | None", "write `str | null`"),
        ("string", "write `str`"),
        ("integer", "write `int`"),
        ("Literal[a, b]", "write `{enum: [a, b]}`"),
        ("dict[str, int]", "declare its fields under `types` and write the name of that type"),
        ("Pasage", "did you mean `Passage`?"),
        (["str", "int"], "write `[str]` for a list of texts"),
    ],
)
def test_types_of_other_languages_get_help(node: Any, help: str) -> None:
    with pytest.raises(TypeSyntaxError) as caught:
        parse_type(node)
    assert caught.value.help == help


@pytest.mark.parametrize(
    ("node", "path"),
    [
        ({"type": "str", "among": 3}, ("among",)),
        ({"fields": {"a": {"type": "strr"}}}, ("fields", "a", "type")),
        ({"fields": {"a": ["x"]}}, ("fields", "a", 0)),
        ({"enum": ["a", True]}, ("enum", 1)),
        ({"type": "str", "mni": 3}, ("mni",)),
        ({"type": "int", "max_tokens": 3}, ("max_tokens",)),
        ({"type": "int", "min": 3, "max": 1}, ("min",)),
        ({"type": {"type": "int", "min": 3}, "max": 1}, ("max",)),
        ({"type": "int", "min": 0.5}, ("min",)),
        ({"type": ["int"], "min": 1.5, "max": 2}, ("min",)),
        ({"type": ["str"], "min": -1, "max": -1}, ("min",)),
        ({"type": "int", "min": 10**19}, ("min",)),
        ({"type": "float", "max": -1e19}, ("max",)),
        ({"type": "float", "min": 1e-12, "max": 2e-12}, ("min",)),
        ({"enum": ["a", "c\u2028d"]}, ("enum", 1)),
        ({"enum": ["c\rd"]}, ("enum", 0)),
    ],
)
def test_errors_say_where_in_the_type_they_stand(node: Any, path: tuple[str | int, ...]) -> None:
    with pytest.raises(TypeSyntaxError) as caught:
        parse_type(node)
    assert caught.value.path == path


@pytest.mark.parametrize("bounds", [{"min": 1.0, "max": 3}, {"min": -(10**18)}, {"max": 1e30}, {"min": 0, "max": 0}])
@pytest.mark.parametrize("kind", ["int", "float"])
def test_bounds_that_an_answer_can_meet_stay(kind: str, bounds: dict[str, float]) -> None:
    t = parse_type({"type": kind, **bounds})
    assert (t.minimum, t.maximum) == (bounds.get("min"), bounds.get("max"))


@pytest.mark.parametrize("node", ["float | null", "null | int", "[str] | null"])
def test_bounds_of_an_optional_type_are_those_of_what_it_takes_beside_null(node: str) -> None:
    bounded = parse_type({"type": node, "min": 1, "max": 5, "description": "how good"})
    plain = parse_type({"type": node, "description": "how good"})
    (inner,) = (option for option in bounded.options if option.kind != "null")
    assert inner == parse_type({"type": show_type(inner), "min": 1, "max": 5})
    assert show_type(bounded) == show_type(plain) and (bounded.minimum, bounded.description) == (None, "how good")
    assert convert(None, bounded) is None
    with pytest.raises(ValueError, match="longer than 5" if inner.kind == "list" else "is more than 5"):
        convert(["a"] * 6 if inner.kind == "list" else 6, bounded)
    shape = next(one for one in json_schema(bounded)["anyOf"] if one["type"] != "null")
    assert {1, 5} <= {value for value in shape.values() if isinstance(value, int | float)}


def test_bounds_of_a_union_of_several_say_what_to_write() -> None:
    with pytest.raises(TypeSyntaxError, match="does not say which") as caught:
        parse_type({"type": "int | str", "max": 3})
    assert caught.value.path == ("max",) and "declare it in `types`" in str(caught.value.help)


@given(
    st.text()
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_any_node_is_a_type_or_refused(node: Any) -> None:
    try:
        assert isinstance(parse_type(node), Type)
    except TypeSyntaxError as error:
        assert error.message


def test_deep_types_are_refused() -> None:
    with pytest.raises(TypeSyntaxError):
        parse_type("[" * 100_000)


def test_fields_carry_descriptions_and_bounds() -> None:
    named = {"Invoice": Type(kind="object", name="Invoice", description="a bill", fields=(Field(name="n", type=INT),))}
    stars, bill = parse_fields(
        {"stars": {"type": "int", "min": 1, "max": 5, "description": "how good"}, "bill": "Invoice"}, named
    )
    assert stars == Field(name="stars", type=Type(kind="int", minimum=1, maximum=5), description="how good")
    assert bill == Field(name="bill", type=named["Invoice"])


def test_json_schema() -> None:
    t = parse_type({"type": ["str"], "min": 1, "max": 3, "description": "tags"})
    assert json_schema(t) == {
        "type": "array",
        "items": {"type": "string"},
        "minItems": 1,
        "maxItems": 3,
        "description": "tags",
    }
    assert json_schema(parse_type("int | null")) == {"anyOf": [{"type": "integer"}, {"type": "null"}]}
    schema = json_schema_of_fields([Field(name="passages", type=PASSAGES, description="found")])
    assert schema["required"] == ["passages"]
    optional = [Field(name="note", type=parse_type("str | null")), Field(name="n", type=INT)]
    assert json_schema_of_fields(optional)["required"] == ["note", "n"]
    assert json_schema_of_fields(optional, given=True)["required"] == ["n"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["passages"]["description"] == "found"
    assert schema["properties"]["passages"]["items"]["title"] == "Passage"
    jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize(
    ("value", "t", "converted"),
    [
        ("7", INT, 7),
        (" 7.0 ", INT, 7),
        (7.0, INT, 7),
        ("1e3", FLOAT, 1000.0),
        (3, FLOAT, 3.0),
        ("Yes", BOOL, True),
        ("0", BOOL, False),
        (42, STR, "42"),
        ('["a", "b"]', parse_type("[str]"), ["a", "b"]),
        ('{"a": "1"}', parse_type({"fields": {"a": "int", "b": "str | null"}}), {"a": 1, "b": None}),
        (" versicolor", parse_type({"enum": ["setosa", "versicolor"]}), "versicolor"),
        (2, parse_type({"enum": [1, 2]}), "2"),
        ("", parse_type("int | null"), None),
        ("5", parse_type("int | null"), 5),
        ("5", parse_type("str | int"), "5"),
    ],
)
def test_convert(value: Any, t: Type, converted: Any) -> None:
    found = convert(value, t)
    assert found == converted
    assert type(found) is type(converted)


@pytest.mark.parametrize(
    ("value", "t", "message"),
    [
        ("x", INT, "`x` is not `int`"),
        (True, INT, "`true` is not `int`"),
        (7.5, INT, "`7.5` is not `int`"),
        ("١", INT, "`١` is not `int`"),
        ("nan", FLOAT, "`nan` is not `float`"),
        (float("inf"), FLOAT, "not a finite number"),
        (10**400, FLOAT, "too large"),
        ("maybe", BOOL, "`maybe` is not `bool`"),
        (None, STR, "null is not `str`"),
        (["a"], STR, "a list is not `str`"),
        ("a, b", parse_type("[str]"), "it has to be JSON"),
        ("[NaN]", parse_type("[float]"), "element 1: `NaN` is not `float`"),
        ([1, "x"], parse_type("[int]"), "element 2: `x` is not `int`"),
        ({"a": 1, "z": 1}, parse_type({"fields": {"a": "int"}}), "has no field `z`"),
        ({}, parse_type({"fields": {"a": "int"}}), "lacks its field `a`"),
        ("setsa", parse_type({"enum": ["setosa"]}), "did you mean `setosa`"),
        (7, parse_type({"type": "int", "max": 5}), "`7` is more than 5"),
        ([], parse_type({"type": ["str"], "min": 1}), "a list of 0 is shorter than 1"),
        ("x", parse_type("int | null"), "`x` is not `int`"),
        ("[" * 100_000, parse_type("[str]"), "it has to be JSON"),
    ],
)
def test_convert_refuses_in_words(value: Any, t: Type, message: str) -> None:
    with pytest.raises(ValueError, match=r"\S") as caught:
        convert(value, t)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("text", "t", "expected"),
    [
        ("5", "int | str", 5),
        ("5", "str | int", 5),
        ("5", "float | str", 5.0),
        ("2.5", "int | float | str", 2.5),
        ("true", "bool | str", True),
        ("yes", "bool | str", "yes"),
        ("1", "bool | int", 1),
        ("007", "int | str", "007"),
        ("5 apples", "int | str", "5 apples"),
        ('"5"', "int | str", '"5"'),
        ("1e5", "str | null", "1e5"),
        ("null", "int | str", "null"),
        ("NaN", "float | str", "NaN"),
        ('["a"]', "[str] | str", ["a"]),
        ("true", 'enum("true", no) | null', "true"),
        ("[" * 100_000, "[str] | str", "[" * 100_000),
        ("5", "str", "5"),
        ("+5", "int | null", 5),
    ],
)
def test_a_text_without_quotes_is_what_it_says(text: str, t: str, expected: Any) -> None:
    found = convert_text(text, parse_type(t))
    assert (found, type(found)) == (expected, type(expected))


def test_signature_text() -> None:
    found = parse_signature_text("question: str, context: [Passage] -> mood: enum(good, bad), score: float | null")
    assert [(field.name, show_type(field.type)) for field in found.inputs] == [
        ("question", "str"),
        ("context", "[Passage]"),
    ]
    assert [(field.name, show_type(field.type)) for field in found.outputs] == [
        ("mood", "enum(good, bad)"),
        ("score", "float | null"),
    ]
    assert parse_signature_text("a,b->c").inputs == (Field(name="a", type=STR), Field(name="b", type=STR))


@pytest.mark.parametrize(
    "text",
    ["", "question", "a -> b -> c", "-> b", "a ->", "a, -> b", "a, a -> b", "1a -> b", "a: strng -> b", "a: -> b"]
    + [f'a -> b: enum("{quoted}", c)' for quoted in (r"a\d", r"\ud800", r"\u12")],
)
def test_signature_text_that_cannot_be_read(text: str) -> None:
    with pytest.raises(TypeSyntaxError):
        parse_signature_text(text)


@given(
    st.text()
    | st.lists(st.sampled_from(["->", ",", ":", "[", "]", "a", "str", "|", " ", "enum(", ")", '"', "\\"])).map("".join)
)
def test_any_signature_text_is_read_or_refused(text: str) -> None:
    try:
        parse_signature_text(text)
    except TypeSyntaxError as error:
        assert error.message
