"""What each kind of node does with one example, as a generator that yields what it needs and receives the answer.

One function a node kind in `INTERPRETERS`. Knows neither backends nor batches nor caches: `executor` moves many of
these generators along together.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from bt_compiler.engine.formats import Format
from bt_compiler.engine.parsing import check_among
from bt_compiler.engine.request import Completion, OutputGrammar, PromptText
from bt_compiler.engine.trace import Failure, Step
from bt_compiler.errors import ExampleError
from bt_compiler.graph.candidate import Prompt
from bt_compiler.graph.program import Call, Carry, Constant, Module, Node, Program, Repeat, Retrieve, Value
from bt_compiler.spec.types import PASSAGE

_ATTEMPTS = 2


class Ask(NamedTuple):
    """A completion is needed; the answer is a `Completion`, or an `ExampleError` thrown in."""

    module: Module
    prompt: PromptText
    grammar: OutputGrammar
    attempt: int
    """0, or 1 for the one repetition that an answer outside the grammar gets."""


class Search(NamedTuple):
    """Passages are needed; the answer is a list of passages."""

    retriever: str
    query: str
    k: int


Need = Ask | Search
Running = Generator[Need, Any, dict[str, Any]]


class NodeFailed(Exception):
    """An `ExampleError` together with the node it happened in; ends the example."""

    def __init__(self, failure: Failure) -> None:
        self.failure = failure
        super().__init__(f"{failure.code}: {failure.message}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all nodes of one run share."""

    program: Program
    prompts: Mapping[str, Prompt]
    """By module."""
    formats: Mapping[str, Format]
    """By `Module.format`."""
    unconstrained: frozenset[str]
    """Modules whose backend may answer outside the grammar: such an answer is asked for once more."""
    steps: list[Step] = field(default_factory=list)
    """Grows as nodes end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Names visible to a body: its own first, then those of what encloses it."""

    values: Mapping[str, Any]
    """Program inputs, or the carried names of a loop."""
    parent: Scope | None = None
    results: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """Outputs of the steps of this body that have run."""

    def resolve(self, value: Value) -> Any:
        """The value a reference or constant stands for. Raises KeyError where a verified program cannot."""
        if isinstance(value, Constant):
            return value.value
        scope: Scope | None = self
        while scope is not None:
            table = scope.values if value.step is None else scope.results.get(value.step)
            if table is not None and value.field in table:
                return table[value.field]
            scope = scope.parent
        raise KeyError(str(value))


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a node stands: the path of names and the visit of every enclosing loop."""

    path: tuple[str, ...] = ()
    visit: tuple[int, ...] = ()

    def node(self, name: str) -> str:
        """Path of a node of this body."""
        return "/".join((*self.path, name))


def interpret_program(setting: Setting, inputs: Mapping[str, Any]) -> Running:
    """Runs the whole program on one example; returns its outputs. Raises NodeFailed."""
    scope = Scope(values=inputs)
    yield from _body(setting.program.nodes, setting, scope, Place())
    return {binding.name: scope.resolve(binding.value) for binding in setting.program.out}


def _body(nodes: tuple[Node, ...], setting: Setting, scope: Scope, place: Place) -> Generator[Need, Any, None]:
    for node in nodes:
        scope.results[node.name] = yield from INTERPRETERS[type(node)](node, setting, scope, place)


def _call(node: Call, setting: Setting, scope: Scope, place: Place) -> Running:
    module = setting.program.module(node.module)
    form = setting.formats[module.format]
    inputs = {binding.name: scope.resolve(binding.value) for binding in node.inputs}
    step = Step(node=place.node(node.name), visit=place.visit, module=module.name, inputs=inputs)
    prompt: PromptText | None = None
    completion: Completion | None = None
    attempts = _ATTEMPTS if module.name in setting.unconstrained else 1
    try:
        prompt = form.render(module, setting.prompts[module.name], inputs)
        grammar = form.grammar(module, inputs)
        for attempt in range(attempts):
            completion = yield Ask(module, prompt, grammar, attempt)
            try:
                outputs = form.parse(module, completion.text)
                check_among(module, inputs, outputs)
                break
            except ExampleError:
                if attempt + 1 == attempts:
                    raise
    except ExampleError as error:
        setting.steps.append(_finished(step, prompt, completion, None))
        raise NodeFailed(Failure(code=error.code, message=error.message, node=step.node)) from error
    setting.steps.append(_finished(step, prompt, completion, outputs))
    return outputs


def _finished(
    step: Step, prompt: PromptText | None, completion: Completion | None, outputs: Mapping[str, Any] | None
) -> Step:
    return Step(
        node=step.node,
        visit=step.visit,
        module=step.module,
        inputs=step.inputs,
        prompt=prompt,
        completion=completion,
        outputs=outputs,
    )


def _retrieve(node: Retrieve, setting: Setting, scope: Scope, place: Place) -> Running:
    query = scope.resolve(node.query)
    step = Step(node=place.node(node.name), visit=place.visit, inputs={"query": query})
    try:
        passages = yield Search(node.retriever, query, node.k)
    except ExampleError as error:
        setting.steps.append(step)
        raise NodeFailed(Failure(code=error.code, message=error.message, node=step.node)) from error
    outputs = {"passages": passages}
    setting.steps.append(_finished(step, None, None, outputs))
    return outputs


def _repeat(node: Repeat, setting: Setting, scope: Scope, place: Place) -> Running:
    carried = {
        carry.name: [] if carry.mode == "add" or carry.start is None else scope.resolve(carry.start)
        for carry in node.carry
    }
    body = Scope(values=carried, parent=scope)
    for visit in range(node.times):
        body = Scope(values=carried, parent=scope)
        inside = Place(path=(*place.path, node.name), visit=(*place.visit, visit))
        yield from _body(node.body, setting, body, inside)
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


INTERPRETERS: Mapping[type, Callable[[Any, Setting, Scope, Place], Running]] = MappingProxyType(
    {Call: _call, Retrieve: _retrieve, Repeat: _repeat}
)
"""A node kind is added by a function here."""
