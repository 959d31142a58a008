"""F1, containment, overlap, JSON, metrics over the run's steps, weighted ones, and those of installed packages."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from bt_compiler.data.example import Example
from bt_compiler.engine.metrics import Metric, Scored, answer_labels, build_metric, plugin_package, scores
from bt_compiler.engine.request import Completion
from bt_compiler.engine.scoring import score_traces
from bt_compiler.engine.statistics import interval_of
from bt_compiler.engine.trace import Step, Trace
from bt_compiler.errors import ExampleError, SpecError
from bt_compiler.spec.sections import MetricSection


def section(kind: str, *, weight: float = 1.0, **options: Any) -> MetricSection:
    return MetricSection(kind=kind, output="answer", label="gold", options=options, weight=weight)


def score(kind: str, output: Any, label: Any, **options: Any) -> float:
    example = Example(id="e", inputs={}, labels={"gold": label})
    trace = Trace(example="e", steps=(), outputs={"answer": output})
    return build_metric(section(kind, **options)).score(example, trace)


@pytest.mark.parametrize(
    ("output", "label", "expected"),
    [
        ("the cat sat", "The cat!", 2 * (1 / 2) * 1 / (1 / 2 + 1)),  # words: cat sat; cat
        ("cat cat", "cat", 2 / 3),
        ("dog", "cat", 0),
        ("", "the", 1),
        ("", "cat", 0),
        ("big dog", ["cat", "big cat"], 1 / 2),
        (None, None, 1),
        (None, "cat", 0),
    ],
)
def test_f1_over_words_as_in_squad(output: Any, label: Any, expected: float) -> None:
    assert score("f1", output, label) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("output", "label", "expected"),
    [
        ("It is the Eiffel Tower, in Paris.", "eiffel tower", 1),
        ("theatre", "atre", 0),
        ("Paris", ["Rome", "paris"], 1),
        ("yes", "yes and no", 0),
        (None, "x", 0),
    ],
)
def test_contains_looks_for_whole_words(output: Any, label: Any, expected: float) -> None:
    assert score("contains", output, label) == expected


@pytest.mark.parametrize(
    ("measure", "expected"), [("f1", 2 / 3), ("precision", 1 / 2), ("recall", 1), ("jaccard", 1 / 2)]
)
def test_set_overlap(measure: str, expected: float) -> None:
    assert score("set_overlap", ["b", "x ", "b", "a", "y"], ["a", "b", "a"], measure=measure) == pytest.approx(expected)


def test_overlap_of_empty_lists_and_in_order() -> None:
    assert score("set_overlap", [], []) == score("list_overlap", None, []) == 1
    assert score("set_overlap", [], ["a"]) == score("list_overlap", ["a"], [], measure="recall") == 0
    assert score("set_overlap", ["a", "b"], ["b", "a"]) == 1
    assert score("list_overlap", ["a", "b"], ["b", "a"]) == pytest.approx(1 / 2)
    assert score("list_overlap", [1, 2, 3, 4], [1, 3.0, 4], measure="precision") == pytest.approx(3 / 4)


@pytest.mark.parametrize(
    ("output", "label", "expected"),
    [
        ('{"a": 1, "b": [true]}', {"b": [True], "a": 1.0}, 1),
        ({"a": 1}, '{"a": 2}', 0),
        ("{broken", {"a": 1}, 0),
        ("NaN", {"a": 1}, 0),
        ("[" * 100_000, [], 0),
    ],
)
def test_json_equality(output: Any, label: Any, expected: float) -> None:
    assert score("json", output, label) == expected


@pytest.mark.parametrize(
    ("kind", "output", "label", "words"),
    [
        ("json", "{}", "{broken", "is not JSON"),
        ("contains", "x", "the", "no word"),
        ("contains", "none of these", None, "the label is null"),
        ("contains", "x", ["x", None], "the label is null"),
        ("answer_in_passages", "x", None, "the label is null"),
        ("f1", ["x"], "x", "F1 compares texts"),
        ("set_overlap", "x", ["x"], "the output is of type `str`"),
        ("list_overlap", ["x"], "x", "the label is of type `str`"),
        ("retrieval_recall", "x", [], "names no gold passages"),
        ("retrieval_full_hit", "x", [1], "names no gold passages"),
        ("answer_in_passages", "x", {"a": 1}, "of type `object`"),
        ("answer_in_passages", "x", "a", "no word"),
    ],
)
def test_what_cannot_be_judged_is_an_error(kind: str, output: Any, label: Any, words: str) -> None:
    with pytest.raises(ExampleError) as caught:
        score(kind, output, label)
    assert caught.value.code == "BTC354"
    assert words in caught.value.message


def passage(title: str, text: str, number: int = 0) -> dict[str, Any]:
    return {"id": f"p{number}", "title": title, "text": text, "score": 1.0}


def found(*passages: dict[str, Any], visit: int = 0) -> Step:
    return Step(node="hops/found", visit=(visit,), inputs={"query": "q"}, outputs={"passages": list(passages)})


def called(prompt: int, completion: int, **outputs: Any) -> Step:
    made = Completion(text="", prompt_tokens=prompt, completion_tokens=completion, finish="stop")
    return Step(node="hop", module="m", inputs={}, completion=made, outputs=outputs)


HOPS = (
    called(100, 10, query="who?", passages=[passage("Ann", "not retrieved: an LM wrote it", 9)]),
    found(passage("The Louvre", "A museum in Paris", 1), passage("Eiffel Tower", "A tower", 2)),
    found(passage("Seine", "A river through Rouen", 3), visit=1),
    called(50, 40, answer="Rouen"),
)


@pytest.mark.parametrize(
    ("kind", "label", "options", "expected"),
    [
        ("retrieval_recall", ["louvre", "Seine", "Rhine"], {}, 2 / 3),
        ("retrieval_full_hit", ["louvre", "Seine", "Rhine"], {}, 0),
        ("retrieval_full_hit", ["Seine", "Seine", "the louvre"], {}, 1),
        ("retrieval_full_hit", ["Ann"], {}, 0),
        ("retrieval_recall", ["p1", "p9"], {"by": "id"}, 1 / 2),
        ("retrieval_recall", [" p1 ", "P2", "p-3"], {"by": "id"}, 1 / 3),
        ("retrieval_full_hit", ["p-1"], {"by": "id"}, 0),
        ("retrieval_recall", "Seine", {}, 1),
        ("answer_in_passages", "rouen", {}, 1),
        ("answer_in_passages", ["Lyon", "an Eiffel tower"], {}, 1),
        ("answer_in_passages", "LM", {}, 0),
        ("answer_in_passages", "tow", {}, 0),
    ],
)
def test_metrics_over_what_the_steps_found(kind: str, label: Any, options: dict[str, Any], expected: float) -> None:
    example = Example(id="e", inputs={}, labels={"gold": label})
    trace = Trace(example="e", steps=HOPS, outputs={"answer": "x"})
    assert build_metric(section(kind, **options)).score(example, trace) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"at_most": 200}, 1),
        ({"at_most": 100}, 1 / 2),
        ({"at_most": 25, "count": "completion_tokens"}, 1 / 2),
        ({"at_most": 1, "count": "calls"}, 1 / 2),
        ({"at_most": 2, "count": "calls"}, 1),
    ],
)
def test_cost_counts_the_calls_of_the_run(options: dict[str, Any], expected: float) -> None:
    trace = Trace(example="e", steps=HOPS, outputs={})
    assert build_metric(section("cost", **options)).score(Example(id="e", inputs={}, labels={}), trace) == expected


def test_length_counts_words() -> None:
    assert [score("length", text, None, at_most=2) for text in ("", "one two", "one two three four", None)] == [
        1,
        1,
        0.5,
        1,
    ]


def test_weighted_is_the_weighted_mean_and_fails_with_its_parts() -> None:
    parts = (section("exact_match", weight=3), section("length", at_most=1))
    metric = build_metric(MetricSection(kind="weighted", output="", label="", parts=parts))
    assert not metric.binary

    def judged(output: Any, **labels: Any) -> float:
        example = Example(id="e", inputs={}, labels=labels)
        trace = Trace(example="e", steps=(), outputs={"answer": output})
        (found,) = scores(metric, [Scored(example, trace)], None)
        if isinstance(found, ExampleError):
            raise found
        return found

    assert judged("a cat", gold="cat") == pytest.approx((3 * 1 + 0.5) / 4)
    assert judged("dog", gold="cat") == pytest.approx(1 / 4)
    with pytest.raises(ExampleError, match="no label `gold`"):
        judged("dog")
    tenths = tuple(section("accuracy", weight=0.1) for _ in range(3))
    metric = build_metric(MetricSection(kind="weighted", output="", label="", parts=tenths))
    run = Scored(Example(id="e", inputs={}, labels={"gold": 1}), Trace(example="e", steps=(), outputs={"answer": 1}))
    assert scores(metric, [run], None) == [pytest.approx(1, abs=0)]


PLUGIN = """
import numpy
print("loading")
def polite(*, inputs, outputs, labels, steps, words=("please",), bonus=0):
    if outputs["answer"] == "boom":
        raise RuntimeError("too rude")
    if outputs["answer"] == "nothing":
        return None
    if outputs["answer"] == "exit":
        raise SystemExit("enough")
    print("judging", outputs["answer"])
    return bonus + 0.5 * any(word in outputs["answer"] for word in words)

polite.binary = False

def strict(*, inputs, outputs, labels, steps):
    return len(outputs["answer"]) / 2

strict.binary = True

def sorts(*, inputs, outputs, labels, steps, words):
    given = [inputs["words"], outputs["answer"], labels["gold"], steps[0].outputs["words"], words]
    return float(all(one == ["b", "a"] and one.sort() is None for one in given))

def counts(*, inputs, outputs, labels, steps):
    kinds = {"half": numpy.float32(0.5), "one": numpy.array([True]).sum(), "yes": numpy.bool_(True)}
    return {**kinds, "still": numpy.array(0.25), "many": numpy.array([0.5])}[outputs["answer"]]

async def later(*, inputs, outputs, labels, steps): return 1
def needy(*, inputs, outputs, labels, steps, model): return 1
def blind(*, outputs): return 1
def open_ended(**given): return len(given["steps"]) + len(given["extra"])
constant = 3
"""


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with metrics, installed as pip would."""
    (tmp_path / "btc_test_plugin.py").write_text(PLUGIN, encoding="utf-8")
    info = tmp_path / "btc_test_plugin-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: btc-test-plugin\nVersion: 1.2\n", encoding="utf-8")
    names = ("polite", "strict", "sorts", "needy", "blind", "open_ended", "constant", "absent", "counts", "later")
    lines = "".join(f"{name} = btc_test_plugin:{name}\n" for name in names)
    (info / "entry_points.txt").write_text(f"[bt_compiler.metrics]\n{lines}gone = no_such_module:f\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "btc_test_plugin", raising=False)


def polite(**options: Any) -> Metric:
    return build_metric(section("polite", **options))


@pytest.mark.usefixtures("plugins")
def test_a_package_brings_a_metric() -> None:
    assert score("polite", "yes please", None) == 0.5
    assert score("polite", "yes thanks", None, words=["thanks"], bonus=0.25) == 0.75
    assert score("open_ended", "x", None, extra="") == 0
    assert plugin_package("polite") == "btc-test-plugin"
    assert plugin_package("accuracy") is None
    assert polite().binary is False


@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize(
    ("answer", "options", "code", "words"),
    [
        ("boom", {}, "BTC356", "metric `polite` raised RuntimeError: too rude"),
        ("exit", {}, "BTC356", "metric `polite` raised SystemExit: enough"),
        ("nothing", {}, "BTC356", "gave None, a number is expected"),
        ("please", {"bonus": 1}, "BTC355", "gave 1.5"),
        ("please", {"bonus": math.nan}, "BTC355", "gave nan"),
    ],
)
def test_a_metric_that_raises_is_an_error_on_its_example(
    answer: str, options: dict[str, Any], code: str, words: str
) -> None:
    trace = Trace(example="e", steps=(), outputs={"answer": answer})
    (scored,) = score_traces([trace], [Example(id="e", inputs={}, labels={})], polite(**options))
    assert scored.score == 0
    assert scored.error is not None
    assert scored.error.code == code
    assert words in scored.error.message


@pytest.mark.usefixtures("plugins")
def test_a_metric_that_says_it_is_binary_gives_0_or_1() -> None:
    metric = build_metric(section("strict"))
    traces = [Trace(example=answer, steps=(), outputs={"answer": answer}) for answer in ("", "a", "ab")]
    scored = score_traces(traces, [Example(id=trace.example, inputs={}, labels={}) for trace in traces], metric)
    assert [one.score for one in scored] == [0, 0, 1]
    assert [one.error.code if one.error else None for one in scored] == [None, "BTC356", None]
    assert scored[1].error is not None and "gave 0.5, though it says `binary = True`" in scored[1].error.message
    assert interval_of([one.score for one in scored], metric.binary).method == "wilson"


@pytest.mark.usefixtures("plugins")
def test_what_a_metric_prints_is_no_result(capsys: pytest.CaptureFixture[str]) -> None:
    assert score("polite", "please", None) == 0.5
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "loading\njudging please\n")


@pytest.mark.usefixtures("plugins")
def test_numbers_of_numpy_are_numbers() -> None:
    found = [score("counts", answer, None) for answer in ("half", "one", "yes", "still")]
    assert json.dumps(found) == "[0.5, 1.0, 1.0, 0.25]"
    with pytest.raises(ExampleError, match=r"BTC356.*array\(\[0.5\]\), a number is expected"):
        score("counts", "many", None)


@pytest.mark.usefixtures("plugins")
def test_what_a_metric_changes_in_place_is_its_own() -> None:
    words = ["b", "a"]
    example = Example(id="e", inputs={"words": words}, labels={"gold": words})
    trace = Trace(example="e", steps=(called(1, 1, words=words),), outputs={"answer": words})
    metric = build_metric(section("sorts", words=words))
    assert [metric.score(example, trace) for _ in range(2)] == [1, 1]
    assert words == ["b", "a"]


@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize(
    ("kind", "options", "code", "words"),
    [
        ("polite", {"wrods": []}, "BTC351", "it takes `bonus`, `words`"),
        ("needy", {}, "BTC352", "option `model` of metric `needy` has to be given"),
        ("blind", {}, "BTC357", "takes no `inputs`"),
        ("constant", {}, "BTC357", "cannot be imported: TypeError"),
        ("later", {}, "BTC357", "is `async`"),
        ("absent", {}, "BTC357", "cannot be imported: AttributeError"),
        ("gone", {}, "BTC357", "cannot be imported: ModuleNotFoundError"),
        ("pollite", {}, "BTC350", "did you mean `polite`?"),
    ],
)
def test_a_metric_of_a_package_is_checked(kind: str, options: dict[str, Any], code: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        build_metric(section(kind, **options))
    assert caught.value.diagnostics[0].code == code
    assert words in str(caught.value)


def test_scores_are_json() -> None:
    assert json.dumps(score("f1", "a b", "b")) == "1.0"


def test_the_label_of_an_output_is_the_one_it_is_compared_with() -> None:
    def part(kind: str, label: str) -> MetricSection:
        return MetricSection(kind=kind, output="" if kind == "retrieval_recall" else "answer", label=label)

    def named(*parts: MetricSection) -> dict[str, str]:
        return answer_labels(build_metric(MetricSection(kind="weighted", output="", label="", parts=parts)))

    assert answer_labels(build_metric(part("exact_match", "gold"))) == {"answer": "gold"}
    assert named(part("retrieval_recall", "titles"), part("f1", "gold"), part("f1", "other")) == {"answer": "gold"}
    assert named(part("f1", "gold"), part("exact_match", "answer")) == {"answer": "answer"}
    assert answer_labels(build_metric(part("contains", "word")), build_metric(part("f1", "gold"))) == {"answer": "gold"}
