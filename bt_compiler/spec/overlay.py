"""Layers of a spec: the files it extends, itself, and `--set` arguments, merged into one tree that keeps all places.

Maps merge, lists and scalars replace, null deletes what is inherited. It knows which short forms have a long one
(`data: FILE` is `data: {path: FILE}`), and nothing else of what keys mean.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from bt_compiler.diagnostics import Diagnostic, Source, Span
from bt_compiler.errors import SpecError
from bt_compiler.spec.scalars import ScalarError, plain_scalar
from bt_compiler.spec.source import read_source, refuse_control_characters
from bt_compiler.spec.tree import Node, Place
from bt_compiler.spec.yaml import parse_yaml

MAX_LEVELS = 16
"""Longest chain of `extends`."""

_LONG_FORMS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"model|models\.[^.]+"), "id"),
    (re.compile(r"data|data\.(?:train|dev|test)|retrievers\.[^.]+\.corpus"), "path"),
    (re.compile(r"metric|optimize\.accept\.metric"), "kind"),
)
"""Where a text may stand for a map, and the key of that map the text is the value of."""


class Layers(NamedTuple):
    """What a spec is merged from."""

    tree: Node
    sources: tuple[Source, ...]
    folders: Mapping[str, Path]


def merged(path: Path, overrides: Sequence[str]) -> Layers:
    """The spec file with everything it extends and the overrides on top. Raises SpecError."""
    sources: list[Source] = []
    folders: dict[str, Path] = {}
    tree = _file_with_parents(path.absolute(), path, sources, folders)
    findings: list[Diagnostic] = []
    for number, argument in enumerate(overrides, start=1):
        source = Source(name=f"--set #{number}", text=argument)
        sources.append(source)
        folders[source.name] = Path.cwd()
        try:
            tree = _with_override(tree, source)
        except SpecError as error:
            findings.extend(error.diagnostics)
    if findings:
        raise SpecError(findings)
    return Layers(tree, tuple(sources), folders)


def _file_with_parents(path: Path, shown: Path, sources: list[Source], folders: dict[str, Path]) -> Node:
    chain: list[Node] = []
    seen: list[Path] = []
    named_at: Span | None = None
    parent: Source | None = None
    while True:
        source = read_source(shown if not chain else path, parent=parent, named_at=named_at)
        sources.append(source)
        folders[source.name] = path.parent
        node = _top_map(parse_yaml(source))
        chain.append(node)
        if path.resolve() in seen:
            loop = [*(each.name for each in seen[seen.index(path.resolve()) :]), path.name]
            raise SpecError.of("BTC031", f"`extends` goes round in a circle: {' -> '.join(loop)}", span=named_at)
        seen.append(path.resolve())
        if "extends" not in node.value:
            break
        written = node.value["extends"]
        named_at, parent = written.span, source
        path = _parent_path(written, path.parent)
        if len(chain) >= MAX_LEVELS:
            raise SpecError.of("BTC031", f"`extends` is more than {MAX_LEVELS} levels deep", span=named_at)
    tree = chain[-1]
    for child in reversed(chain[:-1]):
        tree = _merge(_without(tree, "name"), child, ())
    return _without(tree, "extends")


def _top_map(node: Node) -> Node:
    if node.is_map:
        return node
    raise SpecError.of(
        "BTC021", "a spec is a map of keys and values", span=node.span, help="it starts with `version: 1`, then `name:`"
    )


def _parent_path(written: Node, folder: Path) -> Path:
    if not isinstance(written.value, str) or not written.value.strip():
        raise SpecError.of("BTC030", "`extends` names one file", span=written.span, help="write `extends: base.yaml`")
    path = folder / written.value
    plain, real = _normal(path), os.path.realpath(path)
    return plain if os.path.realpath(plain) == real else Path(real)  # `..` behind a link is where the link leads


def _normal(path: Path) -> Path:
    """Without `.` and `..`, so that messages and equal paths are plain."""
    parts: list[str] = []
    for part in path.parts:
        if part == ".." and len(parts) > 1:
            parts.pop()
        elif part != "..":
            parts.append(part)
    return Path(*parts)


def _without(node: Node, key: str) -> Node:
    if key not in node.value:
        return node
    return replace(
        node,
        value={name: child for name, child in node.value.items() if name != key},
        keys={name: span for name, span in node.keys.items() if name != key},
    )


def _merge(base: Node, over: Node, place: Place) -> Node:
    """`over` on `base`. The span of a merged map is that of `over`: it was written last."""
    base, over = _alike(base, over, place)
    if not (base.is_map and over.is_map):
        return over
    value, keys = dict(base.value), dict(base.keys)
    for key, child in over.value.items():
        if child.value is None and key in base.value:
            del value[key], keys[key]
            continue
        value[key] = _merge(value[key], child, (*place, key)) if key in value else child
        keys[key] = over.keys[key]
    return replace(over, value=value, keys=keys)


def _alike(base: Node, over: Node, place: Place) -> tuple[Node, Node]:
    """A map on a text that has a long form: the text in that form. A text on a map replaces it whole."""
    if base.is_map != over.is_map and isinstance((over if base.is_map else base).value, str):
        key = _long_form(place)
        if key is not None and over.is_map:
            return _lengthened(base, key), over
    return base, over


def _long_form(place: Place) -> str | None:
    dotted = ".".join(str(step) for step in place)
    return next((key for pattern, key in _LONG_FORMS if pattern.fullmatch(dotted)), None)


def _lengthened(node: Node, key: str) -> Node:
    return Node(value={key: node}, span=node.span, keys={key: node.span})


def _with_override(tree: Node, source: Source) -> Node:
    name, equals, written = source.text.partition("=")
    steps = name.strip().split(".")
    whole = Span(source=source, line=1, column=1, end_line=1, end_column=max(2, len(name) + 1))
    if not equals or not all(step.strip() for step in steps) or len(steps) > MAX_LEVELS:
        raise SpecError.of("BTC033", "`--set` takes NAME=VALUE", span=whole, help="write `--set data.limit=100`")
    if steps[0] == "extends":
        raise SpecError.of("BTC035", "`extends` cannot be set", span=whole, help="write it into the file")
    if not written.strip():
        help = f"write `--set {name}=null` to delete it, or `{name}='\"\"'` for an empty text"
        raise SpecError.of("BTC033", f"`--set {name}=` gives no value", span=whole, help=help)
    value = _override_value(source, len(name) + 1, written)
    return _put(tree, _step_spans(name, source), (), value)


def _step_spans(name: str, source: Source) -> tuple[_Step, ...]:
    steps, column = [], 1
    for part in name.split("."):
        start = column + len(part) - len(part.lstrip())
        end = start + len(part.strip())
        steps.append(_Step(part.strip(), Span(source=source, line=1, column=start, end_line=1, end_column=end)))
        column += len(part) + 1
    return tuple(steps)


def _override_value(source: Source, offset: int, written: str) -> Node:
    if written.lstrip()[:1] in ("[", "{", '"', "'"):
        # Blanks in place of the name keep the columns those of the argument.
        blanked = Source(name=source.name, text=" " * offset + written)
        try:
            return _at_source(parse_yaml(blanked), source)
        except SpecError as error:
            found = [
                item if item.span is None else replace(item, span=replace(item.span, source=source))
                for item in error.diagnostics
            ]
            raise SpecError(found) from error
    lines = written.count("\n") + 1
    width = len(written.rsplit("\n", 1)[-1]) + (offset if lines == 1 else 0)
    span = Span(source=source, line=1, column=offset + 1, end_line=lines, end_column=width + 1)
    try:
        refuse_control_characters(source)
        return Node(value=plain_scalar(written.strip()), span=span)
    except ScalarError as error:
        raise SpecError.of("BTC020", str(error), span=span, help="put it in quotes where a text is meant") from error


def _at_source(node: Node, source: Source) -> Node:
    keys = {key: replace(span, source=source) for key, span in node.keys.items()}
    value = node.value
    if isinstance(value, dict):
        value = {key: _at_source(child, source) for key, child in value.items()}
    elif isinstance(value, list):
        value = [_at_source(child, source) for child in value]
    return Node(value=value, span=replace(node.span, source=source), keys=keys)


class _Step(NamedTuple):
    """One part of a name given to `--set`."""

    key: str
    span: Span


def _put(node: Node, steps: tuple[_Step, ...], place: Place, value: Node) -> Node:
    """`node` with `value` at `steps` below it; `place` is where `node` stands."""
    if not steps:
        return _merge(node, value, place) if node.is_map and value.is_map else value
    (step, name), rest = steps[0], steps[1:]
    if isinstance(node.value, str) and (key := _long_form(place)) is not None:
        node = _lengthened(node, key)
    if isinstance(node.value, list):
        return _put_in_list(node, steps, place, value)
    if not node.is_map and node.value is not None:
        raise _no_way(place, step, name, "a map")
    children: dict[str, Node] = dict(node.value or {})
    keys = dict(node.keys)
    if not rest and value.value is None:
        children.pop(step, None)
        keys.pop(step, None)
        return replace(node, value=children, keys=keys)
    child = children.get(step, Node(value=None if rest else {}, span=name))
    children[step] = value if not rest and not child.is_map else _put(child, rest, (*place, step), value)
    keys[step] = name
    return replace(node, value=children, keys=keys)


def _put_in_list(node: Node, steps: tuple[_Step, ...], place: Place, value: Node) -> Node:
    step, name = steps[0]
    if not (step.isascii() and step.isdigit()) or len(step) > 6 or int(step) >= len(node.value):
        raise _no_way(place, step, name, f"a list of {len(node.value)}")
    items = list(node.value)
    index = int(step)
    items[index] = _put(items[index], steps[1:], (*place, index), value)
    return replace(node, value=items)


def _no_way(place: Place, step: str, name: Span, found: str) -> SpecError:
    dotted = ".".join(str(each)[:60] for each in place)
    if found == "a map":
        message, help = f"`{dotted}` is a single value and has no `{step[:60]}`", f"set `{dotted}` as a whole"
    else:
        message = f"`{dotted}` is {found} and has no `{step[:60]}`"
        help = f"elements are numbered from 0; or set `{dotted}` as a whole"
    return SpecError.of("BTC034", message, span=name, help=help)
