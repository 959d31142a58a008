from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from bt_compiler.data.example import Example
from bt_compiler.engine.metrics import Metric, build_metric, last_number, metric_kinds, normalize_answer
from bt_compiler.engine.trace import Trace
from bt_compiler.errors import ExampleError, SpecError
from bt_compiler.spec.judging import OF_NO_LABEL, OF_NO_OUTPUT
from bt_compiler.spec.sections import MetricSection


def metric(kind: str, **options: Any) -> Metric:
    return build_metric(MetricSection(kind=kind, output="answer", label="gold", options=options))


def score(kind: str, output: Any, label: Any, **options: Any) -> float:
    example = Example(id="e", inputs={}, labels={"gold": label})
    return metric(kind, **options).score(example, Trace(example="e", steps=(), outputs={"answer": output}))


@pytest.mark.parametrize(
    ("output", "label", "expected"),
    [
        ("setosa", "setosa", 1),
        ("Setosa", "setosa", 0),  # an enum's value is exact
        (" a\n", "a", 1),
        ("caf\u00e9", "cafe\u0301", 1),
        (1, 1.0, 1),
        (True, 1, 0),
        (True, True, 1),
        (None, None, 1),
        (None, "a", 0),
        (["a", "b "], ["a", "b"], 1),
        (["a", "b"], ["b", "a"], 0),
        (["a"], ["a", "b"], 0),
        ({"x": 1, "y": " b"}, {"y": "b", "x": 1.0}, 1),
        ({"x": 1}, {"x": 1, "y": None}, 0),
        ("1", 1, 0),
    ],
)
def test_accuracy_compares_typed_values(output: Any, label: Any, expected: float) -> None:
    assert score("accuracy", output, label) == expected


@pytest.mark.parametrize(
    ("output", "label", "expected"),
    [
        ("The  Eiffel Tower.", "eiffel tower", 1),
        ("an apple", "apple", 1),
        ("theatre", "atre", 0),  # articles are words
        ("O'Brien", "OBrien", 1),
        ("Paris", ["London", "paris!"], 1),
        ("Rome", ["London", "paris!"], 0),
        (True, "true", 1),
        (42, "42", 1),
        (None, None, 1),
        (None, "x", 0),
    ],
)
def test_exact_match_normalises_as_squad_does(output: Any, label: Any, expected: float) -> None:
    assert score("exact_match", output, label) == expected


@pytest.mark.parametrize("kind", ["exact_match", "f1", "contains"])
@pytest.mark.parametrize(
    ("output", "label", "expected"),
    [
        (-5, 5, 0),
        (-5, -5, 1),
        (1.5, 15, 0),
        (1.0, 1, 1),
        (-0.0, 0, 1),
        (10**30 + 1, 10**30, 0),
        (5, [-5, 5.0], 1),
        (1.5, "15", 0),
        ("-5", 5, 0),
        ("$1,000.", 1000, 1),
        (1000, "the 1,000", 1),
        (1e-7, "0.0000001", 1),
        ("1.5", "15", 1),  # texts are compared as SQuAD does
    ],
)
def test_numbers_keep_sign_and_point(kind: str, output: Any, label: Any, expected: float) -> None:
    assert score(kind, output, label) == expected


def test_normalisation_equals_the_published_one() -> None:
    # "The White-House, (an) a" under SQuAD's own order: lower, punctuation, articles, blanks
    assert normalize_answer("The White-House, (an) a\tDog") == "whitehouse dog"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The answer is $1,234.50.", "1234.50"),
        ("so 5-3", "3"),
        ("= -3", "-3"),
        ("7 - 12", "12"),
        ("\u22127 degrees", "-7"),
        ("1,2,3", "3"),
        ("12,34", "34"),
        ("1,234,567 kg", "1234567"),
        ("50%", "50"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("about .5", "0.5"),
        ("1e-4", "0.0001"),
        ("(3) and (-4)", "-4"),
        ("it is 42.", "42"),
    ],
)
def test_last_number_of_a_text(text: str, expected: str) -> None:
    assert last_number(text) == Decimal(expected)


def test_a_text_without_number_has_none() -> None:
    assert last_number("forty-two") is None


@pytest.mark.parametrize("text", ["1e9999999", "1e-9999999", "1e99999999999999999999999", "9" * 500])
def test_what_no_float_reaches_is_no_number(text: str) -> None:
    assert last_number(text) is None
    assert score("numeric", text, 3) == 0


@pytest.mark.parametrize(
    ("output", "label", "options", "expected"),
    [
        ("First 3 * 14 = 42. So 42", "He has 3 * 14 = <<3*14=42>>42\n#### 42", {}, 1),
        ("The total is 1,042", "… #### 1042", {}, 1),
        ("41", "#### 42", {}, 0),
        ("no idea", "#### 42", {}, 0),  # a wrong answer, not an error
        (42, 42.0, {}, 1),
        (0.1, "0.1", {}, 1),
        (99, 100, {"tolerance": 1}, 1),
        (98.9, 100, {"tolerance": 1}, 0),
        (-99, -100, {"tolerance": "1%"}, 1),
        (98.9, 100, {"tolerance": "1%"}, 0),
        (12345678901234567890, "12345678901234567891", {}, 0),  # no rounding to floats
        (None, None, {}, 1),
        (None, 3, {}, 0),
    ],
)
def test_numeric(output: Any, label: Any, options: dict[str, Any], expected: float) -> None:
    assert score("numeric", output, label, **options) == expected


@pytest.mark.parametrize(
    ("kind", "output", "label", "words"),
    [
        ("numeric", "42", "unknown", "the label `unknown` holds no number"),
        ("numeric", True, 1, "`true` is no number"),
        ("numeric", ["1"], 1, "of type `list`"),
        ("exact_match", "x", [], "empty list"),
        ("exact_match", ["x"], "x", "the output is of type `list`"),
        ("accuracy", "x", ["x", "y"], "`exact_match` takes a list"),
    ],
)
def test_what_cannot_be_judged_is_an_error_and_no_zero(kind: str, output: Any, label: Any, words: str) -> None:
    with pytest.raises(ExampleError) as caught:
        score(kind, output, label)
    assert caught.value.code == "BTC354"
    assert words in caught.value.message


def test_missing_label_and_output_are_errors() -> None:
    example = Example(id="e", inputs={}, labels={"other": 1})
    with pytest.raises(ExampleError, match="no label `gold`"):
        metric("accuracy").score(example, Trace(example="e", steps=(), outputs={"answer": 1}))
    with pytest.raises(ExampleError, match="no output `answer`"):
        metric("accuracy").score(example, Trace(example="e", steps=(), outputs={"reply": 1}))


@pytest.mark.parametrize(
    ("kind", "options", "code", "help_text"),
    [
        ("accurracy", {}, "BTC350", "did you mean `accuracy`?"),
        ("numerical", {}, "BTC350", "did you mean `numeric`?"),
        (
            "my_package.metrics:score",
            {},
            "BTC350",
            "code is never named in a spec: an installed package registers it under `bt_compiler.metrics`",
        ),
        ("set_overlap", {"measure": "f2"}, "BTC352", None),
        ("retrieval_recall", {"by": "text"}, "BTC352", None),
        ("length", {}, "BTC352", None),
        ("length", {"at_most": True}, "BTC352", None),
        ("cost", {"at_most": 0}, "BTC352", None),
        ("cost", {"at_most": 9, "count": "euros"}, "BTC352", None),
        ("numeric", {"tolerence": 1}, "BTC351", "did you mean `tolerance`?"),
        ("accuracy", {"tolerance": 1}, "BTC351", "its keys: `label`, `output`, `weight`"),
        ("cost", {"weigth": 1}, "BTC351", "did you mean `weight`?"),
        ("accuracy", {"lable": "gold"}, "BTC351", "did you mean `label`?"),
        ("numeric", {"tolerance": -1}, "BTC352", None),
        ("numeric", {"tolerance": True}, "BTC352", None),
        ("numeric", {"tolerance": "a bit"}, "BTC352", None),
        ("numeric", {"tolerance": float("nan")}, "BTC352", None),
    ],
)
def test_wrong_settings_are_spec_errors(kind: str, options: dict[str, Any], code: str, help_text: str | None) -> None:
    with pytest.raises(SpecError) as caught:
        metric(kind, **options)
    (finding,) = caught.value.diagnostics
    assert (finding.code, finding.help) == (code, help_text)


def test_every_unknown_option_is_named_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        metric("accuracy", one=1, two=2)
    assert [item.message for item in caught.value.diagnostics] == [
        "metric `accuracy` has no option `one`",
        "metric `accuracy` has no option `two`",
    ]


MADE_OF_OTHERS = ("judge", "weighted")


def test_kinds_are_binary_and_know_their_name() -> None:
    needed = {"length": {"at_most": 9}, "cost": {"at_most": 9}}
    built = {kind: metric(kind, **needed.get(kind, {})) for kind in metric_kinds() if kind not in MADE_OF_OTHERS}
    assert [name for name, one in built.items() if one.kind != name] == []
    graded = {"f1", "set_overlap", "list_overlap", "retrieval_recall", "length", "cost"}
    assert {name for name, one in built.items() if not one.binary} == graded


def test_the_spec_knows_which_kinds_judge_no_output_and_no_label() -> None:
    assert set(metric_kinds()) >= OF_NO_OUTPUT | OF_NO_LABEL
