"""YAML text to a tree with positions, built from the parser's events with a bounded depth.

Of YAML it takes what a declarative spec needs: maps with text keys, lists and scalars of the core schema. Anchors,
aliases, merge keys, tags, duplicate keys and several documents are refused. It knows nothing of specs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from bt_compiler.diagnostics import Diagnostic, Source, Span
from bt_compiler.errors import SpecError
from bt_compiler.spec.scalars import ScalarError, plain_scalar
from bt_compiler.spec.source import refuse_control_characters
from bt_compiler.spec.syntax import explain_syntax
from bt_compiler.spec.tree import Node

MAX_DEPTH = 32
"""Deepest nesting of maps and lists. A repeat in a repeat takes two levels each; nothing real comes near."""
MAX_VALUES = 20_000
"""Most scalars, maps and lists: room for an enum of thousands, none for data."""
MAX_FINDINGS = 20
"""Most findings of one text; more say nothing new."""

_Loader: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
_SURROGATE = re.compile("[\\ud800-\\udfff\\x00]")


def parse_yaml(source: Source) -> Node:
    """The one document of `source`. Raises SpecError (BTC01x, BTC02x) with all findings."""
    refuse_control_characters(source)
    builder = _Builder(source)
    try:
        for event in _events(source.text):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        raise SpecError([*builder.findings, explain_syntax(error, source)]) from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the parser in Python lets `chr` refuse an escape
        raise SpecError.of("BTC010", f"not valid YAML: {error}") from error
    except _Abandoned:
        pass
    if builder.findings or builder.root is None:
        raise SpecError(builder.findings or [_empty(source)])
    return builder.root


def _events(text: str) -> Iterator[Any]:
    loader = _Loader(text)
    try:
        while loader.check_event():
            yield loader.get_event()
    finally:
        loader.dispose()


def _empty(source: Source) -> Diagnostic:
    return Diagnostic(
        code="BTC007", message=f"`{source.name}` is empty", help="`btc init NAME` writes a spec to start from"
    )


class _Abandoned(Exception):
    """What follows cannot be made sense of; the findings say why."""


@dataclass(slots=True)
class _Open:
    """A map or list whose end has not come yet."""

    value: dict[str, Node] | list[Node]
    start: Any
    keys: dict[str, Span] = field(default_factory=dict)
    key: str | None = None
    key_span: Span | None = None


class _Builder:
    """Takes events in order; `root` is the document once they have ended, `findings` what is refused."""

    def __init__(self, source: Source) -> None:
        self.findings: list[Diagnostic] = []
        self.root: Node | None = None
        self._source = source
        self._stack: list[_Open] = []
        self._documents = 0
        self._count = 0

    def take(self, event: Any) -> None:
        if isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                message = "a spec is one YAML document, here a second one begins"
                self._refuse("BTC014", message, event, "remove the `---`")
                raise _Abandoned
        elif isinstance(event, yaml.AliasEvent):
            help = "write the value out, or share signatures, types and models by their names"
            self._refuse("BTC015", f"the alias `*{str(event.anchor)[:60]}` is not allowed", event, help)
            raise _Abandoned
        elif isinstance(event, yaml.NodeEvent):
            self._count += 1
            if self._count > MAX_VALUES:
                message = f"a spec has at most {MAX_VALUES} keys and values"
                self._refuse(
                    "BTC022", message, event, "a spec names data files by their paths; it does not hold the data"
                )
                raise _Abandoned
            self._check(event)
            self._node(event)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._close(event)

    def _span(self, start: Any, end: Any) -> Span:
        return Span(
            source=self._source,
            line=start.line + 1,
            column=start.column + 1,
            end_line=end.line + 1,
            end_column=end.column + 1,
        )

    def _refuse(self, code: str, message: str, event: Any, help: str | None = None, note: str | None = None) -> None:
        span = self._span(event.start_mark, event.end_mark)
        notes = (note,) if note else ()
        self.findings.append(Diagnostic(code=code, message=message, span=span, help=help, notes=notes))
        if len(self.findings) >= MAX_FINDINGS:
            raise _Abandoned

    def _check(self, event: Any) -> None:
        if event.anchor is not None:
            help = "write the value out where it is needed"
            self._refuse("BTC015", f"the anchor `&{event.anchor[:60]}` is not allowed", event, help)
            raise _Abandoned
        if event.tag is not None:
            help = "write plain values; put a value in quotes to make it a text"
            self._refuse("BTC017", f"the tag `{event.tag[:60]}` is not allowed", event, help)

    def _node(self, event: Any) -> None:
        parent = self._stack[-1] if self._stack else None
        if isinstance(event, yaml.ScalarEvent):
            if parent is not None and isinstance(parent.value, dict) and parent.key is None:
                self._key(event, parent)
            else:
                self._put(self._scalar(event))
            return
        if parent is not None and isinstance(parent.value, dict) and parent.key is None:
            self._refuse("BTC019", "a key has to be a text", event, "keys are names; maps and lists can only be values")
            raise _Abandoned
        if len(self._stack) >= MAX_DEPTH:
            self._refuse("BTC013", f"maps and lists are nested more than {MAX_DEPTH} deep", event)
            raise _Abandoned
        is_map = isinstance(event, yaml.MappingStartEvent)
        self._stack.append(_Open(value={} if is_map else [], start=event.start_mark))

    def _key(self, event: Any, parent: _Open) -> None:
        parent.key, parent.key_span = event.value, self._span(event.start_mark, event.end_mark)
        plain = event.style in (None, "")
        if plain and event.value == "<<":
            self._refuse("BTC016", "the merge key `<<` is not allowed", event, "write the values out, or use `extends`")
        elif plain and event.value == "":
            self._refuse("BTC019", "a key is missing before the colon", event)
        elif _SURROGATE.search(event.value):
            self._refuse("BTC006", "a key holds a character that is no text", event)
        elif event.value in parent.keys:
            first = parent.keys[event.value]
            note = f"the first one stands on line {first.line}"
            self._refuse("BTC018", f"the key `{event.value[:60]}` is there twice", event, "remove one of them", note)

    def _scalar(self, event: Any) -> Node:
        span = self._span(event.start_mark, event.end_mark)
        value: Any = event.value
        if event.style in (None, ""):
            try:
                value = plain_scalar(event.value)
            except ScalarError as error:
                help = "put it in quotes where a text is meant"
                self._refuse("BTC020", str(error), event, help)
        elif _SURROGATE.search(value):
            help = "remove `\\0` and lone surrogates"
            self._refuse("BTC006", "a text holds a character that is no text", event, help)
        if value is None and event.value == "" and self._stack and self._stack[-1].key_span is not None:
            span = self._stack[-1].key_span  # nothing is written: the key is what there is to show
        return Node(value=value, span=span)

    def _put(self, node: Node) -> None:
        if not self._stack:
            self.root = node
            return
        parent = self._stack[-1]
        if isinstance(parent.value, list):
            parent.value.append(node)
            return
        assert parent.key is not None and parent.key_span is not None
        parent.value[parent.key] = node
        parent.keys[parent.key] = parent.key_span
        parent.key = parent.key_span = None

    def _close(self, event: Any) -> None:
        done = self._stack.pop()
        children = list(done.value.values()) if isinstance(done.value, dict) else done.value
        span = self._span(done.start, event.end_mark)
        if event.start_mark.index == event.end_mark.index and children:
            # The end of a block collection is marked where the next thing begins: end it where its last child ends.
            last = max(
                [child.span for child in children] + list(done.keys.values()),
                key=lambda one: (one.end_line, one.end_column),
            )
            span = Span(
                source=self._source,
                line=span.line,
                column=span.column,
                end_line=last.end_line,
                end_column=last.end_column,
            )
        self._put(Node(value=done.value, span=span, keys=done.keys))
