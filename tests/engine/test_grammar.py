from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace

import jsonschema
import pytest
from engine_parts import INVOICE, MAYBE, SPECIES, TOKENIZER, module, walk
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher

from bt_compiler.engine.formats import load_format
from bt_compiler.engine.parsing import as_given, line_outputs
from bt_compiler.errors import ExampleError
from bt_compiler.spec import parse_type
from bt_compiler.spec.numbers import decimals
from bt_compiler.spec.types import BOOL, FLOAT, INT, NULL, PASSAGE, PASSAGES, STR, Field, Type

OUTPUTS: dict[str, dict[str, Type]] = {
    "text": {"answer": STR},
    "reasoned enum": {"reasoning": STR, "species": SPECIES},
    "numbers": {"a": INT, "b": FLOAT, "c": Type(kind="int", minimum=-3, maximum=250)},
    "optional range": {"a": parse_type({"type": "float | null", "min": 0, "max": 1}), "b": INT},
    "ranges": {"a": Type(kind="float", minimum=0.5, maximum=20), "b": Type(kind="int", minimum=1)},
    "scalars": {"a": BOOL, "b": NULL, "c": MAYBE, "d": Type(kind="union", options=(STR, NULL))},
    "list": {"tags": Type(kind="list", item=STR, minimum=1, maximum=4), "n": Type(kind="list", item=INT)},
    "object": {"invoice": INVOICE, "note": STR},
    "optional object": {
        "invoice": Type(kind="union", options=(INVOICE, NULL)),
        "kinds": Type(kind="list", item=SPECIES),
    },
    "odd enum": {"pick": Type(kind="enum", values=('a "b"', "C:\\x", "é?", "a.b", "a"))},
}


@pytest.mark.parametrize("style", ["fields", "json"])
@pytest.mark.parametrize("outputs", OUTPUTS.values(), ids=OUTPUTS.keys())
def test_random_completions_parse_and_keep_the_token_bound(outputs, style):
    made = module({"x": STR}, outputs)
    form = load_format(style)
    grammar = form.grammar(made, {})
    for seed in range(40):
        text, tokens = walk(grammar.lark, seed, stop=0.2 if seed % 2 else 0.0)
        parsed = form.parse(made, text)
        assert parsed.keys() == outputs.keys()
        assert form.parse(made, form.completion(made, parsed)) == parsed
        assert tokens <= grammar.max_tokens


@pytest.mark.parametrize("style", ["fields", "json"])
def test_a_budget_that_ends_inside_a_field_closes_it_and_forces_the_next_label(style):
    made = module({"x": STR}, {"reasoning": STR, "species": SPECIES, "last": STR}, max_tokens=5)
    form = load_format(style)
    grammar = form.grammar(made, {})
    for seed in range(30):
        text, _ = walk(grammar.lark, seed, stop=0.0)
        outputs = form.parse(made, text)
        for name in ("reasoning", "last"):
            assert len(TOKENIZER.tokenize_str(outputs[name])) <= 5 * 6  # six bytes: the longest token
        assert outputs["species"] in SPECIES.values


def test_a_text_has_its_own_budget():
    made = module({"x": STR}, {"short": Type(kind="str", max_tokens=3), "long": STR}, max_tokens=40)
    form = load_format("fields")
    lengths = [form.parse(made, walk(form.grammar(made, {}).lark, seed, stop=0.0)[0]) for seed in range(20)]
    assert max(len(one["short"].encode()) for one in lengths) <= 3 * 6
    assert max(len(one["long"].encode()) for one in lengths) > 3 * 6


@pytest.mark.parametrize("style", ["fields", "json"])
def test_a_list_that_has_to_be_long_fits_its_token_bound(style):
    made = module({"x": STR}, {"a": Type(kind="list", item=BOOL, minimum=60), "b": Type(kind="list", item=SPECIES)})
    form = load_format(style)
    grammar = form.grammar(made, {})
    text, tokens = walk(grammar.lark, 0)
    assert len(form.parse(made, text)["a"]) == 60
    assert tokens <= grammar.max_tokens


NUMBERS = {
    "far": {"type": "int", "min": 10**16},
    "far below": {"type": "float", "max": -(10**17)},
    "beyond 64 bits": {"type": "float", "min": -1e30, "max": 1e30},
    "narrow": {"type": "float", "min": 0.00001, "max": 0.00002},
    "narrow below": {"type": "float", "min": -2e-8, "max": -1e-8},
    "one": {"type": "float", "min": 0.123456789, "max": 0.123456789},
    "plain": "float",
}


@pytest.mark.parametrize("written", NUMBERS.values(), ids=NUMBERS.keys())
@pytest.mark.parametrize("style", ["fields", "json"])
def test_numbers_end_within_their_bounds_at_every_depth(style, written):
    t = parse_type(written)
    nested = {"list": parse_type({"type": [written], "max": 3}), "object": parse_type({"fields": {"a": written}})}
    form = load_format(style)
    seen = set()
    for name, outer in {"alone": t, "maybe": Type(kind="union", options=(t, NULL)), **nested}.items():
        made = module({"x": STR}, {name: outer})
        grammar = form.grammar(made, {})
        for seed in range(20):
            text, tokens = walk(grammar.lark, seed, stop=0.0)  # ends where it has to
            assert tokens <= grammar.max_tokens
            found = form.parse(made, text)[name]
            seen |= {found} if name == "alone" else set()
            if name == "alone" and style == "fields":
                assert re.fullmatch(grammar.regex, text.removesuffix("\n")), text
        assert "multipleOf" not in json.dumps(grammar.json_schema)  # not every server takes it
    assert len(seen) > 1 or t.minimum == t.maximum is not None


@pytest.mark.parametrize("written", [["float"], [["float"]], {"fields": {"a": "float | null"}}])
@pytest.mark.parametrize("style", ["fields", "json"])
def test_digits_inside_a_structure_end(style, written):
    made = module({"x": STR}, {"a": parse_type(written)})
    form = load_format(style)
    value = {"a": 0.1234} if isinstance(written, dict) else [[0.1234]] if written == [["float"]] else [0.1234]
    text = form.completion(made, {"a": value})
    for digits, fits in (("1234", True), ("12345", False)):
        matcher = LLMatcher(TOKENIZER, LLMatcher.grammar_from_lark(form.grammar(made, {}).lark))
        head = text.partition("1234")[0] + digits
        assert matcher.consume_tokens(TOKENIZER.tokenize_str(head)) is fits


@pytest.mark.parametrize(
    ("low", "high", "count"), [(0, 1, 4), (0, 0.005, 4), (0.5, 0.5, 4), (0, 1e-5, 6), (1e-5, 2e-5, 6), (0, 3e-10, 10)]
)
def test_narrow_ranges_have_more_decimals(low, high, count):
    assert decimals(Type(kind="float", minimum=low, maximum=high)) == count


def test_every_value_of_an_enum_can_be_written_and_nothing_else():
    made = module({"x": STR}, {"species": SPECIES})
    form = load_format("fields")
    lark = form.grammar(made, {}).lark
    seen = Counter(walk(lark, seed)[0] for seed in range(60))
    assert set(seen) == {f"Species: {value}" for value in SPECIES.values}
    matcher = LLMatcher(TOKENIZER, LLMatcher.grammar_from_lark(lark))
    assert not matcher.consume_tokens(TOKENIZER.tokenize_str("Species: rose"))


def test_labels_are_forced():
    made = module({"x": STR}, {"reasoning": STR, "species": SPECIES})
    matcher = LLMatcher(TOKENIZER, LLMatcher.grammar_from_lark(load_format("fields").grammar(made, {}).lark))
    assert matcher.compute_ff_bytes() == b"Reasoning: "
    assert matcher.consume_tokens(TOKENIZER.tokenize_str("Reasoning: it is so\n"))
    assert matcher.compute_ff_bytes() == b"Species: "


@pytest.mark.parametrize("style", ["fields", "json"])
def test_among_leaves_only_what_was_given(style):
    cite = Type(kind="list", item=STR, among="passages.id", minimum=1, maximum=2)
    made = module({"passages": PASSAGES}, {"best": Type(kind="str", among="passages.id"), "cited": cite})
    form = load_format(style)
    inputs = {"passages": [{"id": f"p{n}", "title": "", "text": "x", "score": 1.0} for n in range(3)]}
    lark = form.grammar(made, inputs).lark
    for seed in range(20):
        outputs = form.parse(made, walk(lark, seed)[0])
        as_given(made, inputs, outputs)
        assert {outputs["best"], *outputs["cited"]} <= {"p0", "p1", "p2"}
    with pytest.raises(ExampleError, match="BTC524"):
        as_given(made, inputs, {"best": "p9", "cited": []})
    with pytest.raises(ExampleError, match=r"BTC524: `best` has to be among `passages\.id`, which is empty here"):
        form.grammar(made, {"passages": []})


@pytest.mark.parametrize("style", ["fields", "json"])
def test_among_of_elements_restricts_the_list(style):
    named = {"Tag": parse_type({"type": "str", "among": "tags"})}
    written = ({"type": [{"type": "str", "among": "tags"}], "min": 1, "max": 3}, {"type": "[Tag]", "min": 1, "max": 3})
    for node in written:
        made = module({"tags": Type(kind="list", item=STR)}, {"cited": parse_type(node, named)})
        form, inputs = load_format(style), {"tags": ["red", "blue"]}
        for seed in range(10):
            outputs = form.parse(made, walk(form.grammar(made, inputs).lark, seed)[0])
            assert set(outputs["cited"]) <= {"red", "blue"}
        with pytest.raises(ExampleError, match="BTC524: `cited` is `green`"):
            as_given(made, inputs, {"cited": ["red", "green"]})
        with pytest.raises(ExampleError, match="BTC524: `cited` has to be among `tags`, which is empty here"):
            form.grammar(made, {"tags": []})


@pytest.mark.parametrize("style", ["fields", "json"])
def test_what_is_taught_of_values_of_among_is_what_the_grammar_takes(style):
    texts = Type(kind="list", item=STR)
    outputs = {"best": Type(kind="str", among="names"), "tags": Type(kind="list", item=STR, among="names")}
    form, made = load_format(style), module({"names": texts}, outputs, max_tokens=64)
    inputs = {"names": ["xx\ny0", " pad ", "<|im_end|>"]}
    matcher = LLMatcher(TOKENIZER, LLMatcher.grammar_from_lark(form.grammar(made, inputs).lark))
    for gold in ({"best": "xx\ny0", "tags": [" pad "]}, {"best": "<|im_end|>", "tags": inputs["names"]}):
        matcher.reset()
        completion = form.completion(made, gold)
        assert matcher.consume_tokens(TOKENIZER.tokenize_str(completion)) and matcher.is_accepting(), completion
        assert as_given(made, inputs, form.parse(made, completion)) == gold
    assert as_given(made, inputs, {"best": " pad ", "tags": ["xx\ny0"]}) == {"best": " pad ", "tags": ["xx\ny0"]}


@pytest.mark.parametrize("style", ["fields", "json"])
def test_passages_are_written_and_taught_without_scores(style):
    maybe = Type(kind="union", options=(PASSAGE, NULL))
    held = Type(kind="object", fields=(Field(name="hit", type=PASSAGE),))
    made = module({"x": STR}, {"all": replace(PASSAGES, maximum=2), "best": maybe, "held": held}, max_tokens=64)
    form, passage = load_format(style), {"id": "1", "title": "T", "text": "x", "score": 0.0}
    gold = {"all": [passage], "best": passage, "held": {"hit": passage}}
    grammar = form.grammar(made, {})
    matcher = LLMatcher(TOKENIZER, LLMatcher.grammar_from_lark(grammar.lark))
    completion = form.completion(made, gold)
    assert matcher.consume_tokens(TOKENIZER.tokenize_str(completion)) and matcher.is_accepting(), completion
    assert "score" not in completion + grammar.lark + json.dumps(grammar.json_schema)
    assert form.parse(made, completion) == gold
    scored = json.dumps({**passage, "score": 2})
    read = line_outputs(module({"x": STR}, {"best": PASSAGE}), f"Best: {scored}")
    assert read == {"best": {**passage, "score": 2.0}}, "an engine without grammars may write it all the same"


def test_a_list_among_nothing_is_empty():
    made = module({"passages": PASSAGES}, {"cited": Type(kind="list", item=STR, among="passages.id")})
    form = load_format("fields")
    assert walk(form.grammar(made, {"passages": []}).lark, 1)[0] == "Cited: []"


@pytest.mark.parametrize("name", ["text", "reasoned enum", "numbers", "scalars", "odd enum"])
def test_the_regex_says_what_the_grammar_says(name):
    made = module({"x": STR}, OUTPUTS[name])
    grammar = load_format("fields").grammar(made, {})
    assert grammar.regex is not None
    for seed in range(30):
        text = walk(grammar.lark, seed, stop=0.2)[0].removesuffix("\n")
        assert re.fullmatch(grammar.regex, text), text
    assert not re.fullmatch(grammar.regex, "Something: else")


@pytest.mark.parametrize("name", list(OUTPUTS))
def test_the_json_schema_says_what_the_grammar_says(name):
    made = module({"x": STR}, OUTPUTS[name])
    grammar = load_format("json").grammar(made, {})
    assert grammar.json_schema is not None
    jsonschema.Draft202012Validator.check_schema(grammar.json_schema)
    for seed in range(20):
        jsonschema.validate(json.loads(walk(grammar.lark, seed, stop=0.2)[0]), grammar.json_schema)


@settings(max_examples=100)
@given(st.text(min_size=1), st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(SPECIES.values))
def test_what_is_written_is_read_back(text, number, species):
    made = module({"x": STR}, {"note": STR, "number": FLOAT, "species": SPECIES, "notes": Type(kind="list", item=STR)})
    for style in ("fields", "json"):
        form = load_format(style)
        outputs = {"note": text, "number": number, "species": species, "notes": [text]}
        once = form.parse(made, form.completion(made, outputs))
        assert (once["number"], once["species"]) == (number, species)
        assert form.parse(made, form.completion(made, once)) == once
