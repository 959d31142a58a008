"""Whatever is written where, the text at a span is the key or the value."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bt_compiler.diagnostics import Source, Span
from bt_compiler.errors import SpecError
from bt_compiler.spec.tree import Node, find, plain
from bt_compiler.spec.yaml import parse_yaml

WORDS = st.text(
    st.characters(codec="utf-8", categories=("L", "N", "So", "Mn", "Zs"), include_characters="_-"), min_size=1
)
SCALARS = st.none() | st.booleans() | st.integers(-(10**9), 10**9) | WORDS
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=20,
)
DOCUMENTS = st.dictionaries(WORDS, VALUES, min_size=1, max_size=4)


def text_at(span: Span) -> str:
    lines = span.source.text.split("\n")
    if span.line == span.end_line:
        return lines[span.line - 1][span.column - 1 : span.end_column - 1]
    first, *rest = lines[span.line - 1 : span.end_line]
    return "\n".join([first[span.column - 1 :], *rest[:-1], rest[-1][: span.end_column - 1]])


def flow(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{flow(key)}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(flow, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def block(value: dict[str, object], indent: int = 0) -> str:
    pad = "  " * indent
    lines = ""
    for key, item in value.items():
        if isinstance(item, dict) and item:
            lines += f"{pad}{flow(key)}:   # a comment: with a colon\n{block(item, indent + 1)}"
        elif isinstance(item, list) and item:
            lines += f"{pad}{flow(key)}:\n" + "".join(f"{pad}  - {flow(each)}\n\n" for each in item)
        else:
            lines += f"{pad}{flow(key)}:  {flow(item)}   # {key}\n"
    return lines


def assert_places(node: Node) -> None:
    if isinstance(node.value, dict):
        assert list(node.keys) == list(node.value)
        for key, child in node.value.items():
            assert json.loads(text_at(node.keys[key])) == key
            assert_places(child)
    elif isinstance(node.value, list):
        for child in node.value:
            assert_places(child)
    else:
        written = text_at(node.span)
        assert json.loads(written) == node.value
    if node.value and isinstance(node.value, dict | list):
        assert plain(parse_yaml(Source(name="part", text=_dedented(text_at(node.span), node.span)))) == plain(node)


def _dedented(text: str, span: Span) -> str:
    """A block cut out of a line has lost the blanks before its first line only."""
    return " " * (span.column - 1) + text


@given(DOCUMENTS)
def test_flow_documents(value: dict[str, object]) -> None:
    root = parse_yaml(Source(name="flow.yaml", text=flow(value)))
    assert plain(root) == value
    assert_places(root)


@given(DOCUMENTS)
def test_block_documents(value: dict[str, object]) -> None:
    root = parse_yaml(Source(name="block.yaml", text=block(value)))
    assert plain(root) == value
    assert_places(root)


def test_unquoted_scalars_and_block_texts() -> None:
    text = 'a: plain words  # note\nb:\n  - 3\n  - é☃x\nc: |\n  two\n  lines\nd:\ne: "q"\n'
    root = parse_yaml(Source(name="x.yaml", text=text))
    assert text_at(root.value["a"].span) == "plain words"
    assert text_at(root.value["b"].value[1].span) == "é☃x"
    assert root.value["c"].value == "two\nlines\n"
    assert text_at(root.value["d"].span) == "d"  # nothing is written: the key stands for it
    assert text_at(root.value["e"].span) == '"q"'


def test_the_nearest_place_where_a_path_leads_nowhere() -> None:
    root = parse_yaml(Source(name="x.yaml", text="a: {b: [1, 2]}\n"))
    assert text_at(find(root, ("a", "b", 1))) == "2"
    assert text_at(find(root, ("a", "b", 7))) == "[1, 2]"
    assert text_at(find(root, ("a", "x", "y"))) == "{b: [1, 2]}"
    assert text_at(find(root, ("a", "b"), key=True)) == "b"
    assert find(root, ("z",)) == root.span


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_with_diagnostics(text: str) -> None:
    try:
        parse_yaml(Source(name="x.yaml", text=text.encode("utf-8", "replace").decode()))
    except SpecError as error:
        assert error.diagnostics


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? ", "{", "[{"])
def test_depth_is_bounded_before_anything_is_built(opening: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_yaml(Source(name="deep.yaml", text=opening * 100_000))
    assert caught.value.diagnostics[0].code in ("BTC010", "BTC013", "BTC019")


def test_an_unclosed_quote_is_shown_where_it_opens() -> None:
    with pytest.raises(SpecError) as caught:
        parse_yaml(Source(name="x.yaml", text="a: 1\nb: 'two\nc: 3\n"))
    (item,) = caught.value.diagnostics
    assert item.code == "BTC010"
    assert item.span is not None
    assert (item.span.line, item.span.column) == (2, 4)


def test_many_findings_are_capped() -> None:
    text = "".join(f"k{number}: !tag 1\n" for number in range(1000))
    with pytest.raises(SpecError) as caught:
        parse_yaml(Source(name="x.yaml", text=text))
    assert len(caught.value.diagnostics) == 20
