"""Texts that their budget ends inside an escape, and texts that only look so."""

from __future__ import annotations

import json

import pytest
from engine_parts import TOKENIZER, module
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher

from bt_compiler.engine.budget_ends import without_half_escapes
from bt_compiler.engine.formats import load_format
from bt_compiler.spec.types import STR, Type

ODD = ('a"', "ab\\", '"\\"', "x\n", "\u2028\u0001", 'say "no", "yes"], {"a": "b"} \\', '", "b": "', "\\\\\\", 'a"}')


def written_within(lark: str, pieces: list[str]) -> str:
    """A completion whose open texts are these, each closed at once."""
    matcher, taken = LLMatcher(TOKENIZER, LLMatcher.grammar_from_lark(lark)), b""
    for piece in pieces:
        forced = matcher.compute_ff_bytes()
        assert matcher.consume_tokens(list(forced + piece.encode())), matcher.get_error()
        taken += forced + piece.encode()
        if not matcher.compute_ff_bytes():
            assert matcher.consume_tokens(list(b'"'))
            taken += b'"'
    forced = matcher.compute_ff_bytes()
    assert matcher.consume_tokens(list(forced)) and matcher.is_accepting()
    return (taken + forced).decode(errors="replace")


@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize("budget", range(1, 14))
def test_what_a_budget_ends_inside_an_escape_still_parses(value, budget):
    made = module({"x": STR}, {"first": STR, "last": Type(kind="str", max_tokens=budget + 1)}, max_tokens=budget)
    form = load_format("json")
    piece = json.dumps(value)[1:-1]  # bytes are tokens
    text = written_within(form.grammar(made, {}).lark, [piece[:budget], piece[: budget + 1]])
    found = form.parse(made, text)
    for name, tokens in (("first", budget), ("last", budget + 1)):
        cut = piece[:tokens]
        while True:  # what of the piece is whole
            try:
                assert found[name] == json.loads(f'"{cut}"'), text
                break
            except json.JSONDecodeError:
                cut = cut[:-1]


@settings(max_examples=200)
@given(st.recursive(st.text('ab"\\\n, :[]{}u2'), lambda inner: st.lists(inner) | st.dictionaries(st.text("ab"), inner)))
def test_whole_json_is_left_alone(value):
    text = json.dumps(value)
    assert without_half_escapes(text) == text


@pytest.mark.parametrize("text", ['{"a": "x', '{"a": "x\\"', "{'a': 1}", "", '{"a": "\\"}, "\\"} x', "[" * 100_000])
def test_what_is_no_json_without_them_either_is_left_alone(text):
    assert without_half_escapes(text) == text
