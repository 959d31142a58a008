"""What a completion has to look like: one llguidance Lark grammar a (outputs, style), and what remotes take.

Two styles: `lines` (`Label: value`, a line a field) and `json` (one object). Labels and punctuation are literal text,
so that they are forced; enums, numbers, lists and objects can only be sampled well-formed; a text ends at its token
budget and what follows is forced. Knows nothing of prompts. Syntax: llguidance docs/syntax.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, floor
from typing import Any, NamedTuple

from bt_compiler.engine.request import OutputGrammar
from bt_compiler.spec.numbers import decimals as decimals_of
from bt_compiler.spec.numbers import digits, written_range
from bt_compiler.spec.types import STR, Type

TEXT_IN_STRUCTURE = 32
"""Token budget of a text inside a list or object that has none of its own."""
ITEMS = 16
"""Most elements of a generated list whose type gives no `max`: every completion has to end."""
CHARACTERS_A_TOKEN = 4
"""How budgets become lengths where a server counts characters: by JSON Schema, and in regular expressions."""

_JSON_TEXT = r'([^"\\\x00-\x1f\x7f]|\\["\\bfnrt]|\\u(00[01][0-9a-f]|007f|0085|202[89]))'
"""A character as `json_text` writes it."""
_UNWRITTEN = re.compile("[\x7f\x85\u2028\u2029]")
_LINE_START = r"[^\s\x00-\x1f\x7f-\x9f]"
_LINE_REST = r"[^\x00-\x1f\x7f-\x9f\x{2028}\x{2029}]"
_DECIMALS = 8
"""Of a float without bounds at the top level."""
_SEPARATORS = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputPart:
    """One output field as a grammar sees it."""

    name: str
    """Key of the JSON object."""
    label: str
    """What stands before the colon in a line."""
    type: Type
    budget: int
    """Tokens of a text."""
    allowed: tuple[str, ...] | None = None
    """Values that `among` leaves; None without `among`."""


class Rule(NamedTuple):
    """How one value is written."""

    body: str
    """Right-hand side of a Lark rule."""
    regex: str | None
    tokens: int
    """Upper bound, counting a token a byte where the text is fixed."""
    options: str = ""
    """`[max_tokens=…]` of the rule."""
    prelude: str = ""
    """Rules that the body names, a line each; the same one may stand in several."""
    open_ended: bool = False
    """Whether the value may go on where it could also end: then a newline may end the completion."""


def lines_grammar(parts: Sequence[OutputPart]) -> OutputGrammar:
    """The grammar of `Label: value` lines, in order. A text or number at the end may close with a newline."""
    rules = [line_rule(f"v{index}", part.type, part.budget, part.allowed) for index, part in enumerate(parts)]
    labels = [f"{'' if index == 0 else chr(10)}{part.label}: " for index, part in enumerate(parts)]
    start = " ".join(f"{literal(label)} v{index}" for index, label in enumerate(labels))
    ending = ' "\\n"?' if rules[-1].open_ended else ""
    regex: str | None = ""
    for label, rule in zip(labels, rules, strict=True):
        regex = None if regex is None or rule.regex is None else f"{regex}{escaped(label)}({rule.regex})"
    return OutputGrammar(
        lark=_lark(f"{start}{ending}", rules),
        regex=regex,
        max_tokens=sum(len(label.encode()) for label in labels) + sum(rule.tokens for rule in rules) + 2,
    )


def json_grammar(parts: Sequence[OutputPart]) -> OutputGrammar:
    """The grammar of one JSON object with these keys in order, separated as `json.dumps` does.

    A token budget ends a text anywhere, inside an escape too (`budget_ends`).
    """
    rules = [json_rule(f"v{index}", part.type, part.budget, part.allowed) for index, part in enumerate(parts)]
    pieces = [f"{'{' if index == 0 else ', '}{json.dumps(part.name)}: " for index, part in enumerate(parts)]
    start = " ".join(f"{literal(piece)} v{index}" for index, piece in enumerate(pieces))
    schema = {
        "type": "object",
        "properties": {part.name: bounded_schema(restricted(part.type, part.allowed), part.budget) for part in parts},
        "required": [part.name for part in parts],
        "additionalProperties": False,
    }
    return OutputGrammar(
        lark=_lark(f'{start} "}}"', rules),
        json_schema=schema,
        max_tokens=sum(len(piece.encode()) for piece in pieces) + sum(rule.tokens for rule in rules) + 3,
    )


def bounded_schema(t: Type, budget: int = TEXT_IN_STRUCTURE, *, decimals: bool = False) -> dict[str, Any]:
    """JSON Schema of `t` in which every text and list has an end, for decoding. `budget`: tokens of a text.
    `decimals`: whether it says how many a float has, or they may never end; not every server takes that.
    """
    if t.kind == "str":
        return {"type": "string", "maxLength": CHARACTERS_A_TOKEN * (t.max_tokens or budget)}
    if t.kind == "enum":
        return {"type": "string", "enum": list(t.values)}
    if t.kind in ("int", "float"):
        low, high = written_range(t)
        if t.kind == "int":
            return {"type": "integer", "minimum": ceil(low), "maximum": floor(high)}
        if decimals and low == high:
            return {"type": "number", "enum": [low]}
        step = {"multipleOf": float(f"1e-{decimals_of(t)}")} if decimals else {}
        return {"type": "number", "minimum": low, "maximum": high, **step}
    if t.kind == "list":
        item = _nested(t.item)
        bounds = {} if t.minimum is None else {"minItems": int(t.minimum)}
        bounds["maxItems"] = _most_items(t)
        return {"type": "array", "items": bounded_schema(item, _inner(t, budget), decimals=decimals), **bounds}
    if t.kind == "object":
        inner = _inner(t, budget)
        return {
            "type": "object",
            "properties": {field.name: bounded_schema(field.type, inner, decimals=decimals) for field in t.fields},
            "required": [field.name for field in t.fields],
            "additionalProperties": False,
        }
    if t.kind == "union":
        return {"anyOf": [bounded_schema(option, t.max_tokens or budget, decimals=decimals) for option in t.options]}
    return {"type": t.kind if t.kind == "null" else "boolean"}


def structure_tokens(t: Type, budget: int = TEXT_IN_STRUCTURE) -> int:
    """Tokens that a JSON value of `t` may take at most where the engine counts them; servers count characters."""
    if t.kind == "str":
        return (t.max_tokens or budget) + 2
    if t.kind == "enum":
        return max((len(literal(value).encode()) for value in t.values), default=2)
    if t.kind == "list":
        return 2 + _most_items(t) * (structure_tokens(_nested(t.item), _inner(t, budget)) + 2)
    if t.kind == "object":
        return 2 + sum(
            len(field.name.encode()) + 6 + structure_tokens(field.type, _inner(t, budget)) for field in t.fields
        )
    if t.kind == "union":
        return max(structure_tokens(option, t.max_tokens or budget) for option in t.options)
    return _number_tokens(t) if t.kind in ("int", "float") else 5


def fold(text: str) -> str:
    """One line: every stretch of white space that holds a line end becomes one blank, and the ends are cut."""
    return " ".join(part.strip() for part in text.splitlines() if part.strip())


def _lark(start: str, rules: Sequence[Rule]) -> str:
    lines = [f"start: {start}"]
    lines += [f"{rule.prelude}v{index}{rule.options}: {rule.body}" for index, rule in enumerate(rules)]
    return rules_once("\n".join(lines))


def rules_once(lark: str) -> str:
    """The grammar without repetitions of its rules, each of which is a line."""
    return "\n".join(dict.fromkeys(lark.splitlines())) + "\n"


def literal(text: str) -> str:
    """The text as a Lark literal, which is also its JSON."""
    return json_text(text)


def json_text(value: Any) -> str:
    """The value as JSON in one line: what JSON may leave as it is and yet ends lines or is no text is escaped."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return _UNWRITTEN.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def escaped(text: str) -> str:
    """The text as a regular expression in the syntax that Python, Rust and the servers' engines share."""
    return re.sub(r"([\\.^$*+?()\[\]{}|])", r"\\\1", text)


def _alternatives(values: Sequence[str]) -> Rule:
    shown = list(dict.fromkeys(values))
    return Rule(
        body=" | ".join(literal(value) for value in shown),
        regex="|".join(escaped(value) for value in shown),
        tokens=max(len(value.encode()) for value in shown),
    )


def line_rule(name: str, t: Type, budget: int, allowed: tuple[str, ...] | None) -> Rule:
    """How a value is written after its label; `name` is that of the rule."""
    if t.kind in ("str", "enum") and allowed is not None:
        return _alternatives([fold(value) for value in allowed])
    if t.kind == "str" or any(option.kind == "str" for option in t.options):
        tokens = t.max_tokens or budget
        return Rule(
            body=f"/{_LINE_START}{_LINE_REST}*/",
            regex=rf"\S[^\r\n]{{0,{CHARACTERS_A_TOKEN * tokens}}}",
            tokens=tokens,
            options=f"[max_tokens={tokens}]",
            open_ended=True,
        )
    if t.kind == "enum":
        return _alternatives([fold(value) for value in t.values])
    if t.kind == "union" and not _starts_alike(t):
        options = [line_rule(f"{name}_{index}", option, budget, allowed) for index, option in enumerate(t.options)]
        regexes = [rule.regex for rule in options]
        return Rule(
            body=" | ".join(rule.body for rule in options),
            regex=None if None in regexes else "|".join(f"({regex})" for regex in regexes),
            tokens=max(rule.tokens for rule in options),
            prelude="".join(rule.prelude for rule in options),
            open_ended=any(rule.open_ended for rule in options),
        )
    return _scalar_rule(t) or _structure_rule(name, t, budget, allowed)


def json_rule(name: str, t: Type, budget: int, allowed: tuple[str, ...] | None) -> Rule:
    """How a value is written inside a JSON object; `name` is that of the rule."""
    if t.kind in ("str", "enum") and allowed is not None:
        return _alternatives([literal(value) for value in allowed])
    if t.kind == "enum":
        return _alternatives([literal(value) for value in t.values])
    if t.kind == "str":
        tokens = t.max_tokens or budget
        return Rule(
            body=rf'"\"" text_{tokens}? "\""',
            regex=rf'"{_JSON_TEXT}{{0,{CHARACTERS_A_TOKEN * tokens}}}"',
            tokens=tokens + 2,
            prelude=f"text_{tokens}[max_tokens={tokens}]: /{_JSON_TEXT}+/\n",
        )
    if t.kind == "union" and not _starts_alike(t):
        options = [
            json_rule(f"{name}_{index}", option, t.max_tokens or budget, allowed)
            for index, option in enumerate(t.options)
        ]
        return Rule(
            body=" | ".join(rule.body for rule in options),
            regex=None,
            tokens=max(rule.tokens for rule in options),
            prelude="".join(rule.prelude for rule in options),
        )
    return _scalar_rule(t) or _structure_rule(name, t, budget, allowed)


def _scalar_rule(t: Type) -> Rule | None:
    """int, float, bool, null; None for the others and for numbers with a range, which JSON Schema says."""
    if t.kind == "bool":
        return _alternatives(["true", "false"])
    if t.kind == "null":
        return _alternatives(["null"])
    if t.kind not in ("int", "float") or t.minimum is not None or t.maximum is not None:
        return None
    number = _number_regex(t)
    return Rule(body=f"/{number}/", regex=number, tokens=_number_tokens(t), open_ended=True)


def _structure_rule(name: str, t: Type, budget: int, allowed: tuple[str, ...] | None) -> Rule:
    """A list or object. With texts in it, it is spelt out: a schema can bound characters, but only tokens are certain
    to end before the completion has to. Whatever else there is, JSON Schema says.
    """
    if allowed is not None or t.kind == "union" or not _has_texts(t):
        return _schema_rule(t, budget, allowed)
    inner = _inner(t, budget)
    if t.kind == "list":
        named = f"{name}_item"
        item = json_rule(named, _nested(t.item), inner, None)
        least, most = int(t.minimum or 0), _most_items(t)
        more = f' (", " {named}){{{max(least - 1, 0)},{most - 1}}}' if most > 1 else ""
        filled = f"{named}{more}" if least else f"({named}{more})?"
        body = f'"[" {filled} "]"' if most else '"[]"'
        prelude = f"{item.prelude}{named}: {item.body}\n" if most else ""
    else:
        body, prelude = "", ""
        for index, field in enumerate(t.fields):
            named = f"{name}_{index}"
            rule = json_rule(named, field.type, inner, None)
            key = f"{'{' if index == 0 else ', '}{literal(field.name)}: "
            body += f"{literal(key)} {named} "
            prelude += f"{rule.prelude}{named}: {rule.body}\n"
        body += '"}"'
    return Rule(body=body, regex=None, tokens=structure_tokens(t, budget), prelude=prelude)


def _starts_alike(union: Type) -> bool:
    """Whether several options may begin with the same text: the first to bound its tokens would shut out the others."""
    kinds = [option.kind for option in union.options if option.kind in ("list", "object") and _has_texts(option)]
    return len(kinds) > len(set(kinds))


def _has_texts(t: Type) -> bool:
    """Whether a text of the model's own choice is in a value of `t`."""
    parts = (*t.options, *(field.type for field in t.fields), *(() if t.item is None else (t.item,)))
    return t.kind == "str" or (t.kind == "list" and t.item is None) or any(_has_texts(part) for part in parts)


def _schema_rule(t: Type, budget: int, allowed: tuple[str, ...] | None) -> Rule:
    schema = bounded_schema(restricted(t, allowed), budget, decimals=True)
    regex = _number_regex(t) if t.kind in ("int", "float") else None
    return Rule(
        body="%json " + json.dumps(schema | {"x-guidance": _SEPARATORS}),
        regex=regex,
        tokens=structure_tokens(t, budget),
        open_ended=regex is not None,
    )


def _number_regex(t: Type) -> str:
    """An int or float without its bounds."""
    whole = rf"-?(0|[1-9][0-9]{{0,{digits(t) - 1}}})"
    return whole if t.kind == "int" else rf"{whole}(\.[0-9]{{1,{max(_DECIMALS, decimals_of(t))}}})?"


def _number_tokens(t: Type) -> int:
    """A token a character, and one more."""
    return digits(t) + (2 if t.kind == "int" else max(_DECIMALS, decimals_of(t)) + 3)


def restricted(t: Type, allowed: tuple[str, ...] | None) -> Type:
    """The type with its texts restricted to `allowed`; without one allowed value a list has to be empty."""
    if allowed is None:
        return t
    if t.kind == "list":
        return replace(t, item=Type(kind="enum", values=allowed)) if allowed else replace(t, item=STR, maximum=0)
    return Type(kind="enum", values=allowed)


def _inner(t: Type, budget: int) -> int:
    """Budget of a text inside a list or object."""
    return t.max_tokens or min(budget, TEXT_IN_STRUCTURE)


def _most_items(t: Type) -> int:
    return max(ITEMS, int(t.minimum or 0)) if t.maximum is None else int(t.maximum)


def _nested(item: Type | None) -> Type:
    return item if item is not None else STR
