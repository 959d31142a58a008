"""How one value stands in a prompt, and why it can forge nothing there.

- A text keeps its lines; those after the first are indented by two blanks, so that none can pass for a `Label:` line.
- Numbers are as short as Python writes them, small ones without an exponent, which no output grammar has; true, false
  and null as in JSON.
- A list of passages is numbered lines, `[1] title | text`, an empty one is `none`; other lists and objects are JSON in
  one line.
- What models use as control tokens (`<|im_end|>`, `</s>`, `[INST]`, `<end_of_turn>`) is taken apart by a blank, in
  prompts and in training rows alike. Backends add what only their tokenizer knows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

from bt_compiler.engine.grammar import fold, json_text
from bt_compiler.spec.types import PASSAGE, SCORE, Type, is_passage

_CONTROL = re.compile(
    r"<(?=\|[^<>|\n]{1,64}\|>)"
    r"|<(?=/?(?:s|bos|eos|pad|unk|mask|think|start_of_turn|end_of_turn|begin_of_text|end_of_text|start_of_image)>)"
    r"|<(?=[｜▁][^<>\n]{1,64}>)"
    r"|\[(?=/?(?:INST|SYS|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\])"
    r"|<(?=</?SYS>>)",
    re.IGNORECASE,
)

_SMALL = re.compile(r'"(?:[^"\\]|\\.)*"|-?[0-9.]+e-[0-9]+')
"""In JSON: a text, to be passed over, or a number below 1e-4."""

_UNSEEN = re.compile(r"[\x00-\x09\x0e-\x1b\x1f\x7f-\x84\x86-\x9f]")
"""Control characters that end no line."""


def neutral(text: str) -> str:
    """The text without control tokens: a blank after the bracket that opens one. Twice is the same as once."""
    return _CONTROL.sub(lambda match: match.group() + " ", text)


def neutral_value(value: Any) -> Any:
    """A JSON value with every text in it made neutral."""
    if isinstance(value, str):
        return neutral(value)
    if isinstance(value, Mapping):
        return {key: neutral_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [neutral_value(item) for item in value]
    return value


def shown(value: Any, t: Type) -> str:
    """The value after `Label: ` in a prompt."""
    if isinstance(value, str):
        return neutral("\n  ".join(line.rstrip() for line in value.strip().splitlines()))
    if t.kind == "list" and t.item is not None and t.item.name == PASSAGE.name and isinstance(value, list | tuple):
        return "".join(f"\n[{place + 1}] {_passage(item)}" for place, item in enumerate(value)) or "none"
    if t.name == PASSAGE.name and isinstance(value, Mapping):
        return _passage(value)
    return as_json(value)


def as_json(value: Any) -> str:
    """The value as JSON in one line, passages without their scores, zeros without a sign."""
    text = json_text(neutral_value(_unscored(value)))
    return _SMALL.sub(_without_exponent, text) if "e-" in text else text


def _without_exponent(found: re.Match[str]) -> str:
    return found.group() if found.group().startswith('"') else format(Decimal(found.group()), "f")


def written(value: Any, t: Type) -> str:
    """The value as a completion writes it after its label: always one line, read back by `Format.parse`. A tab or
    another control character in a text is a blank: grammars have none there.
    """
    if not isinstance(value, str):
        return as_json(value)
    chosen = t.kind == "enum" or t.among is not None
    return one_line(value if chosen else _UNSEEN.sub(" ", value))


def one_line(text: str) -> str:
    """The text as a completion has it outside of JSON, and everywhere where it is one of those given (`among`)."""
    return neutral(fold(text))


def written_type(t: Type) -> Type:
    """The type as completions have it: passages without their scores, as `as_json` writes them."""
    fields = tuple(
        replace(field, type=written_type(field.type))
        for field in t.fields
        if not (field.name == SCORE and is_passage(t))
    )
    item = None if t.item is None else written_type(t.item)
    return replace(t, item=item, fields=fields, options=tuple(written_type(option) for option in t.options))


def _passage(passage: Mapping[str, Any]) -> str:
    title, text = fold(str(passage["title"])), fold(str(passage["text"]))
    return neutral(text if not title or text.startswith(title) else f"{title} | {text}")


def _unscored(value: Any) -> Any:
    if isinstance(value, Mapping):
        bare = value.keys() == {field.name for field in PASSAGE.fields}
        return {key: _unscored(item) for key, item in value.items() if not (bare and key == SCORE)}
    if isinstance(value, list | tuple):
        return [_unscored(item) for item in value]
    return value + 0.0 if isinstance(value, float) else value  # a range has no -0.0
