from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bt_compiler.diagnostics import Source
from bt_compiler.spec.scalars import ScalarError, plain_scalar
from bt_compiler.spec.tree import plain
from bt_compiler.spec.yaml import parse_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("yes", "yes"),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("", None),
        ("Null", None),
        ("nUll", "nUll"),
        ("1e-4", 1e-4),
        ("1.0e-5", 1e-5),
        (".5", 0.5),
        ("1.", 1.0),
        ("+12", 12),
        ("-0", 0),
        ("007", 7),
        ("0o17", 15),
        ("0x1F", 31),
        ("0b1", "0b1"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("١٢", "١٢"),
        ("e5", "e5"),
        ("<<", "<<"),
    ],
)
def test_core_schema(text: str, value: object) -> None:
    found = plain_scalar(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", [".inf", "-.Inf", ".NaN", "1e999", "1" * 19, "0x" + "f" * 19, "9" * 100_000])
def test_numbers_that_no_tool_could_read_back(text: str) -> None:
    with pytest.raises(ScalarError):
        plain_scalar(text)


@given(st.integers(min_value=-(10**18) + 1, max_value=10**18 - 1))
def test_integers_are_read_back(number: int) -> None:
    assert plain_scalar(str(number)) == number


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_are_read_back(number: float) -> None:
    found = plain_scalar(repr(number))
    assert found == number
    assert type(found) is float


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0")))
def test_a_text_in_double_quotes_is_itself(text: str) -> None:
    # DEL and the C1 controls are no YAML characters as they are; JSON leaves them bare, so they are escaped here.
    quoted = "".join(f"\\x{ord(char):02x}" if 0x7F <= ord(char) < 0xA0 else char for char in json.dumps(text))
    node = parse_yaml(Source(name="text.yaml", text=f"text: {quoted_surrogates(quoted)}"))
    assert plain(node) == {"text": text}


def quoted_surrogates(quoted: str) -> str:
    """JSON's pairs of `\\ud83d\\ude00` as YAML's one escape."""
    import re

    def joined(match: re.Match[str]) -> str:
        return f"\\U{ord(json.loads(chr(34) + match.group() + chr(34))):08x}"

    return re.sub(r"\\ud[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2}", joined, quoted)
