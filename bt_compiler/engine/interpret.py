"""What each kind of node does with one example, as a generator that yields what it needs and receives the answer.

One function a node kind in `INTERPRETERS`. Knows neither backends nor batches nor caches: `executor` moves many of
these generators along together. What runs side by side has steps of its own, put together in the order of the spec,
so that nothing depends on what ends first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

from bt_compiler.canonical import canonical_json
from bt_compiler.engine.asking import asked
from bt_compiler.engine.react import react
from bt_compiler.engine.running import Draw, Fork, Need, NodeFailed, Place, Running, Scope, Search, Setting, Use
from bt_compiler.engine.trace import Failure, Step
from bt_compiler.errors import ExampleError
from bt_compiler.graph.program import (
    RANKED_PASSAGE,
    RANKED_QUERY,
    Call,
    Carry,
    Map,
    Node,
    Repeat,
    Rerank,
    Retrieve,
    Sample,
    Switch,
    UseTool,
)
from bt_compiler.spec.types import PASSAGE, Type


def interpret_program(setting: Setting, inputs: Mapping[str, Any]) -> Running:
    """Runs the whole program on one example; returns its outputs. Raises NodeFailed."""
    scope = Scope(values=inputs)
    yield from _body(setting.program.nodes, setting, scope, Place())
    return {binding.name: scope.resolve(binding.value) for binding in setting.program.out}


def _body(nodes: tuple[Node, ...], setting: Setting, scope: Scope, place: Place) -> Generator[Need, Any, None]:
    for node in nodes:
        scope.results[node.name] = yield from INTERPRETERS[type(node)](node, setting, scope, place)


def _call(node: Call, setting: Setting, scope: Scope, place: Place) -> Running:
    module = setting.program.module(node.slots[place.loop] if node.slots else node.module)
    inputs = {binding.name: scope.resolve(binding.value) for binding in node.inputs}
    step = Step(node=place.node(node.name), visit=place.visit, module=module.name, inputs=inputs)
    if module.kind == "react":
        return (yield from react(module, step, setting))
    return (yield from asked(module, step, setting))


def _retrieve(node: Retrieve, setting: Setting, scope: Scope, place: Place) -> Running:
    step, passages = yield from _search(node, node.k, setting, scope, place)
    outputs = {"passages": passages}
    setting.steps.append(replace(step, outputs=outputs))
    return outputs


def _search(
    node: Retrieve | Rerank, count: int, setting: Setting, scope: Scope, place: Place
) -> Generator[Need, Any, tuple[Step, list[dict[str, Any]]]]:
    """The step so far, and the first `count` passages that are not known. As many more are asked for as are known by
    id: all of them may come first.
    """
    inputs: dict[str, Any] = {"query": " ".join(scope.resolve(text) for text in node.query)}
    if node.known is not None:
        inputs["known"] = scope.resolve(node.known)
    known = {passage["id"] for passage in inputs.get("known", ())}
    step = Step(node=place.node(node.name), visit=place.visit, inputs=inputs)
    try:
        found = yield Search(node.retriever, inputs["query"], count + len(known))
    except ExampleError as error:
        setting.steps.append(step)
        raise NodeFailed(Failure(code=error.code, message=error.message, node=step.node)) from error
    return step, [passage for passage in found if passage["id"] not in known][:count]


def _tool(node: UseTool, setting: Setting, scope: Scope, place: Place) -> Running:
    inputs = {binding.name: scope.resolve(binding.value) for binding in node.inputs}
    step = Step(node=place.node(node.name), visit=place.visit, inputs=inputs)
    try:
        outputs: dict[str, Any] = yield Use(node.tool, inputs)
    except ExampleError as error:
        setting.steps.append(step)
        raise NodeFailed(Failure(code=error.code, message=error.message, node=step.node)) from error
    setting.steps.append(replace(step, outputs=outputs))
    return outputs


def _repeat(node: Repeat, setting: Setting, scope: Scope, place: Place) -> Running:
    carried = {
        carry.name: [] if carry.mode == "add" or carry.start is None else scope.resolve(carry.start)
        for carry in node.carry
    }
    body = Scope(values=carried, parent=scope)
    for visit in range(node.times):
        body = Scope(values=carried, parent=scope)
        inside = Place(path=(*place.path, node.name), visit=(*place.visit, visit), loop=visit)
        yield from _body(node.body, replace(setting, loops=(*setting.loops, visit)), body, inside)
        carried = {carry.name: _carry(carry, carried[carry.name], body.resolve(carry.value)) for carry in node.carry}
        if node.until is not None and body.resolve(node.until):
            break
    return carried | {binding.name: body.resolve(binding.value) for binding in node.out}


def _carry(carry: Carry, before: Any, value: Any) -> Any:
    """The carried value after a visit: replaced, or appended to (passages without duplicates by id)."""
    if carry.mode == "replace":
        return value
    added = [*before, *value] if isinstance(value, list) else [*before, value]
    if carry.type.item is None or carry.type.item.name != PASSAGE.name:
        return added
    by_id: dict[Any, Any] = {}
    for passage in added:
        by_id.setdefault(passage["id"], passage)
    return list(by_id.values())


def _switch(node: Switch, setting: Setting, scope: Scope, place: Place) -> Running:
    value = scope.resolve(node.value)
    case = next(case for case in node.cases if case.value is None or case.value == value)
    body = Scope(values={}, parent=scope)
    yield from _body(case.body, setting, body, replace(place, path=(*place.path, node.name, case.label)))
    return {binding.name: body.resolve(binding.value) for binding in case.out}


class _Branch(NamedTuple):
    """One of several runs of a block's body."""

    setting: Setting
    scope: Scope
    running: Running


def _branch(node: Map | Sample | Rerank, setting: Setting, scope: Scope, place: Place, index: int) -> _Branch:
    own = replace(setting, steps=[])
    inside = replace(place, path=(*place.path, node.name), visit=(*place.visit, index))
    return _Branch(own, scope, _inside(node, own, scope, inside))


def _inside(node: Map | Sample | Rerank, setting: Setting, scope: Scope, place: Place) -> Running:
    yield from _body(node.body, setting, scope, place)
    return {binding.name: scope.resolve(binding.value) for binding in node.out}


def _together(branches: Sequence[_Branch]) -> Generator[Need, Any, list[dict[str, Any] | NodeFailed]]:
    """What every branch returned or failed with."""
    if not branches:
        return []
    ended: list[dict[str, Any] | NodeFailed] = yield Fork(tuple(branch.running for branch in branches))
    return ended


def _map(node: Map, setting: Setting, scope: Scope, place: Place) -> Running:
    items = scope.resolve(node.over)
    if len(items) > node.at_most:
        raise NodeFailed(
            Failure(
                code="BTC536",
                message=f"the list of map `{node.name}` has {len(items)} elements, `at_most` is {node.at_most}",
                node=place.node(node.name),
            )
        )
    branches = [
        _branch(node, setting, Scope(values={node.item: item}, parent=scope), place, index)
        for index, item in enumerate(items)
    ]
    ended = yield from _together(branches)
    for branch in branches:
        setting.steps.extend(branch.setting.steps)
    given = [_succeeded(outcome) for outcome in ended]
    return {binding.name: [each[binding.name] for each in given] for binding in node.out}


def _succeeded(outcome: dict[str, Any] | NodeFailed) -> dict[str, Any]:
    if isinstance(outcome, NodeFailed):
        raise outcome
    return outcome


def _rerank(node: Rerank, setting: Setting, scope: Scope, place: Place) -> Running:
    """The step shows the passages that are given; those that were looked at are inputs of the calls before it."""
    step, passages = yield from _search(node, node.depth, setting, scope, place)
    query = step.inputs["query"]
    branches = [
        _branch(
            node,
            setting,
            Scope(values={RANKED_QUERY: query, RANKED_PASSAGE: passage}, parent=scope),
            place,
            index,
        )
        for index, passage in enumerate(passages)
    ]
    ended = yield from _together(branches)
    for branch in branches:
        setting.steps.extend(branch.setting.steps)
    scores = [_as_number(_succeeded(outcome)["score"], node.score.type) for outcome in ended]
    best = sorted(range(len(passages)), key=lambda index: -scores[index])[: node.k]  # stable: the retriever's order
    outputs = {"passages": [{**passages[index], "score": scores[index]} for index in best]}
    setting.steps.append(replace(step, outputs=outputs))
    return outputs


def _as_number(score: Any, type: Type) -> float:
    return float(type.values.index(score)) if type.kind == "enum" else float(score)


def _sample(node: Sample, setting: Setting, scope: Scope, place: Place) -> Running:
    """Runs that fail are not picked; where all do, the example fails as the first of them did."""
    around = () if setting.draw is None else setting.draw.path
    branches = [
        _branch(
            node,
            replace(setting, draw=Draw(node.temperature, (*around, index))),
            Scope(values={}, parent=scope),
            place,
            index,
        )
        for index in range(node.times)
    ]
    ended = yield from _together(branches)
    picked = _picked(node, branches, ended)
    for index, branch in enumerate(branches):
        steps = branch.setting.steps
        setting.steps.extend(steps if index in picked else [replace(step, picked=False) for step in steps])
    return _succeeded(ended[picked[0] if picked else 0])


def _picked(node: Sample, branches: Sequence[_Branch], ended: Sequence[dict[str, Any] | NodeFailed]) -> list[int]:
    """The runs that gave what is picked, in order; empty where all failed."""
    alive = [index for index, outcome in enumerate(ended) if not isinstance(outcome, NodeFailed)]
    if not alive:
        return []
    if node.best is not None:
        best = node.best
        return [max(alive, key=lambda index: branches[index].scope.resolve(best))]
    voted = [binding.name for binding in node.out if not _holds_probability(binding.type)]
    keys = {index: canonical_json([_succeeded(ended[index])[name] for name in voted]) for index in alive}
    winner = Counter(keys.values()).most_common(1)[0][0]  # counted in order: ties go to the earliest
    return [index for index in alive if keys[index] == winner]


def _holds_probability(type: Type) -> bool:
    """Whether it is how likely a model found its answer: that differs from run to run and is no part of the answer."""
    return type.probability_of is not None or (type.item is not None and _holds_probability(type.item))


INTERPRETERS: Mapping[type, Callable[[Any, Setting, Scope, Place], Running]] = MappingProxyType(
    {
        Call: _call,
        Retrieve: _retrieve,
        UseTool: _tool,
        Repeat: _repeat,
        Switch: _switch,
        Map: _map,
        Sample: _sample,
        Rerank: _rerank,
    }
)
"""A node kind is added by a function here."""
