"""What interpreting one example is made of: needs, scopes, places, and how a node's failure ends its example.

An interpreter is a generator that yields what it needs and receives the answer; `interpret` has one a node kind, the
executor moves many of them along. Nothing here runs anything.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bt_compiler.engine.formats import Format
from bt_compiler.engine.request import Choices, OutputGrammar, PromptText
from bt_compiler.engine.trace import Failure, Step
from bt_compiler.graph.candidate import Prompt
from bt_compiler.graph.program import Constant, Module, Program, Value


class Draw(NamedTuple):
    """What sets the completions of one run of a `sample` apart from those of its other runs."""

    temperature: float
    """Of the innermost sample."""
    path: tuple[int, ...]
    """Which run, of every sample around, the outermost first."""


class Ask(NamedTuple):
    """A completion is needed; the answer is a `Completion`, or an `ExampleError` thrown in."""

    module: Module
    prompt: PromptText
    grammar: OutputGrammar
    attempt: int
    """0, or 1 for the one repetition that an answer outside the grammar gets."""
    draw: Draw | None
    """None outside samples."""
    choices: Choices | None = None
    """Asks how likely these are, instead."""
    loops: tuple[int, ...] = ()
    """As that of `Setting`."""
    node: str = ""
    """What asks for a completion: path of names, as in `Step.node`."""


class Search(NamedTuple):
    """Passages are needed; the answer is a list of passages."""

    retriever: str
    query: str
    k: int


class Use(NamedTuple):
    """A tool is to be called; the answer is its outputs, or an `ExampleError` thrown in."""

    tool: str
    inputs: Mapping[str, Any]


class Fork(NamedTuple):
    """Several interpreters are to run side by side; the answer is a list with what each returned, or the `NodeFailed`
    it ended with, in their order.
    """

    branches: tuple[Running, ...]


Need = Ask | Search | Use | Fork
Running = Generator[Need, Any, dict[str, Any]]


class NodeFailed(Exception):
    """An `ExampleError` together with the node it happened in; ends the example."""

    def __init__(self, failure: Failure) -> None:
        self.failure = failure
        super().__init__(f"{failure.code}: {failure.message}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all nodes of one run share; a branch of a fork has its own `steps`."""

    program: Program
    prompts: Mapping[str, Prompt]
    """By module."""
    formats: Mapping[str, Format]
    """By `Module.format`."""
    unconstrained: frozenset[str]
    """Modules whose backend may answer outside the grammar: such an answer is asked for once more."""
    draw: Draw | None = None
    """None outside samples."""
    loops: tuple[int, ...] = ()
    """Which visit of every loop around, the outermost first: what sets apart completions of a prompt that repeats."""
    steps: list[Step] = field(default_factory=list)
    """Grows as nodes end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Names visible to a body: its own first, then those of what encloses it."""

    values: Mapping[str, Any]
    """Program inputs, the carried names of a loop, or the element of a map."""
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
    """Where a node stands: the path of names and the visit of every enclosing loop, map and sample."""

    path: tuple[str, ...] = ()
    visit: tuple[int, ...] = ()
    loop: int = 0
    """Visit of the nearest loop."""

    def node(self, name: str) -> str:
        """Path of a node of this body."""
        return "/".join((*self.path, name))
