"""What one turn of a `react` module has to look like: a thought, one of its tools, and the arguments of that tool.

The tool is one of those there are, its arguments are an object with exactly what it takes: no other call can be
sampled. Built of the same rules as any completion (`grammar`); knows nothing of prompts or of what tools do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bt_compiler.engine.grammar import (
    OutputPart,
    Rule,
    bounded_schema,
    escaped,
    json_rule,
    line_rule,
    literal,
    restricted,
    rules_once,
)
from bt_compiler.engine.request import OutputGrammar


class CallPart(NamedTuple):
    """One tool that a turn may call."""

    tool: str
    arguments: tuple[OutputPart, ...]


class _Call(NamedTuple):
    """How one call is written, from the tool's name on."""

    body: str
    rules: str
    regex: str | None
    tokens: int


def lines_turn(
    thought: OutputPart, tool: OutputPart, arguments: OutputPart, calls: Sequence[CallPart]
) -> OutputGrammar:
    """The grammar of three `Label: value` lines; the arguments are JSON in one line."""
    rule = line_rule("v0", thought.type, thought.budget, thought.allowed)
    head, second = f"{thought.label}: ", f"\n{tool.label}: "
    made = [_call(f"c{place}", call, call.tool, f"\n{arguments.label}: ") for place, call in enumerate(calls)]
    regexes = [call.regex for call in made]
    known = rule.regex is not None and None not in regexes
    choice = "|".join(str(regex) for regex in regexes)
    return OutputGrammar(
        lark=_lark(f"{literal(head)} v0 {literal(second)} call", rule, made),
        regex=f"{escaped(head)}({rule.regex}){escaped(second)}({choice})" if known else None,
        max_tokens=len((head + second).encode()) + rule.tokens + max(call.tokens for call in made) + 2,
    )


def json_turn(thought: OutputPart, tool: OutputPart, arguments: OutputPart, calls: Sequence[CallPart]) -> OutputGrammar:
    """The grammar of one JSON object with these three keys, separated as `json.dumps` does."""
    rule = json_rule("v0", thought.type, thought.budget, thought.allowed)
    head, second = f"{{{literal(thought.name)}: ", f", {literal(tool.name)}: "
    between = f", {literal(arguments.name)}: "
    made = [_call(f"c{place}", call, literal(call.tool), between) for place, call in enumerate(calls)]
    said = bounded_schema(thought.type, thought.budget)
    turns = [
        _closed({thought.name: said, tool.name: {"const": call.tool}, arguments.name: _schema(call)}) for call in calls
    ]
    return OutputGrammar(
        lark=_lark(f'{literal(head)} v0 {literal(second)} call "}}"', rule, made),
        json_schema=turns[0] if len(turns) == 1 else {"anyOf": turns},
        max_tokens=len((head + second).encode()) + rule.tokens + max(call.tokens for call in made) + 3,
    )


def _lark(start: str, thought: Rule, calls: Sequence[_Call]) -> str:
    lines = [f"start: {start}", f"{thought.prelude}v0{thought.options}: {thought.body}"]
    lines.append("call: " + " | ".join(call.body for call in calls))
    return rules_once("\n".join(lines) + "\n" + "".join(call.rules for call in calls))


def _call(name: str, call: CallPart, tool: str, between: str) -> _Call:
    """`tool` and `between` as they are written before the arguments."""
    body, rules, regex, tokens = literal(f"{tool}{between}{{"), "", escaped(f"{tool}{between}{{"), 2
    known = True
    for place, part in enumerate(call.arguments):
        own = f"{name}_{place}"
        rule = json_rule(own, part.type, part.budget, part.allowed)
        key = f"{'' if place == 0 else ', '}{literal(part.name)}: "
        body += f" {literal(key)} {own}"
        rules += f"{rule.prelude}{own}{rule.options}: {rule.body}\n"
        regex += f"{escaped(key)}({rule.regex})"
        known = known and rule.regex is not None
        tokens += len(key.encode()) + rule.tokens
    tokens += len(f"{tool}{between}".encode())
    return _Call(f'{body} "}}"', rules, regex + escaped("}") if known else None, tokens)


def _schema(call: CallPart) -> dict[str, Any]:
    return _closed(
        {part.name: bounded_schema(restricted(part.type, part.allowed), part.budget) for part in call.arguments}
    )


def _closed(properties: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of an object with exactly these keys."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }
