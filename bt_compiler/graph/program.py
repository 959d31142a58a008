"""The program graph: structure that never changes once lowered. All that is trainable lives in `candidate`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bt_compiler.diagnostics import Span
from bt_compiler.graph.candidate import Demo
from bt_compiler.spec.sections import Generation
from bt_compiler.spec.types import Field, Type

ModuleKind = Literal["predict", "chain_of_thought", "react"]
FINISH = "finish"
"""What a `react` module calls to answer: its arguments are the outputs of the signature."""
TRAJECTORY = "trajectory"
"""What a `react` module reads beside its inputs: its turns so far, each with what came of it."""
THOUGHT, TOOL, ARGUMENTS = "thought", "tool", "arguments"
"""What one turn of a `react` module holds, in order."""
OBSERVATION = "observation"
"""What came of a turn, as text; in the trajectory."""
RANKED_QUERY = "query"
RANKED_PASSAGE = "passage"
"""Names inside a `Rerank`."""
RANKS = ("bool", "int", "float", "enum")
"""Kinds of types that passages can be ranked by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What a module is asked: instructions, ordered inputs, ordered outputs. Field order is prompt order."""

    instructions: str
    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]
    """What the model writes."""
    confidences: tuple[Field, ...] = ()
    """Floats that are given beside it: how likely the model found its value of the output `type.probability_of`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """One prompt and one adapter slot. Calling it twice ties the two calls."""

    name: str
    kind: ModuleKind
    signature: Signature
    """As the spec declares it, without the reasoning field of `chain_of_thought`."""
    model: str
    """Name in the spec's models."""
    generation: Generation
    format: str = "fields"
    """Prompt format: a name in `templates/prompts/`, or the absolute path of the user's own `.jinja` file."""
    train: tuple[Literal["prompt", "weights"], ...] = ("prompt", "weights")
    demos: tuple[Demo, ...] = ()
    """Written in the spec: every prompt starts with them, as it does with the instructions."""
    tools: tuple[ToolRef, ...] = ()
    """react: the tools and retrievers it may call, in the order of the spec."""
    at_most: int = 0
    """react: how many calls it may make; the turn after the last of them can only finish."""

    @property
    def declared(self) -> str:
        """Key in the spec's `modules`: of the slot `ask#2` that is `ask`."""
        return self.name.partition("#")[0]

    @property
    def outputs(self) -> tuple[Field, ...]:
        """What a call gives, in order: for `chain_of_thought` the text field `reasoning` comes first."""
        if self.kind == "chain_of_thought":
            reasoning = Field(name="reasoning", type=Type(kind="str"), description="think step by step")
            return (reasoning, *self.signature.outputs)
        return self.signature.outputs

    @property
    def written(self) -> tuple[Field, ...]:
        """What one completion holds, in order: the outputs, or one turn of a `react` module.

        What the `arguments` of a turn hold depends on its tool: see `arguments`.
        """
        if self.kind != "react":
            return self.outputs
        names = (*(tool.name for tool in self.tools), FINISH)
        return (
            Field(name=THOUGHT, type=Type(kind="str"), description="what is known and what to do next"),
            Field(name=TOOL, type=Type(kind="enum", values=names)),
            Field(name=ARGUMENTS, type=Type(kind="object"), description="what the tool takes"),
        )

    def arguments(self, tool: str) -> tuple[Field, ...]:
        """What a tool of a `react` module takes; what finishing takes are the outputs. Raises KeyError."""
        if tool == FINISH:
            return self.signature.outputs
        return {item.name: item.inputs for item in self.tools}[tool]

    def answer(self, written: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The outputs that a completion gives; None for a turn that calls a tool."""
        if self.kind != "react":
            return written
        found: Mapping[str, Any] = written[ARGUMENTS]
        return found if written[TOOL] == FINISH else None

    @property
    def gives(self) -> tuple[Field, ...]:
        """What a call of it gives: the outputs, and how likely some of them are."""
        return (*self.outputs, *self.signature.confidences)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ref:
    """A reference to a whole value, resolved when lowered.

    `step` None: a program input or a carried name of an enclosing loop called `field`. Else output `field` of
    the step of that name, visible from where the reference stands (own body first, then enclosing ones).
    """

    step: str | None
    field: str

    def __str__(self) -> str:
        return f"${self.field}" if self.step is None else f"${self.step}.{self.field}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """A constant written in the spec where a reference could stand (`$$` gives a literal dollar)."""

    value: Any


Value = Ref | Constant


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """`name` takes `value`."""

    name: str
    value: Value
    type: Type
    """Type of what `name` expects (inputs) or gives (outputs)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Runs a module."""

    name: str
    module: str
    inputs: tuple[Binding, ...]
    outputs: tuple[Field, ...]
    """`module.gives`: the reasoning of a `chain_of_thought` can be referred to."""
    slots: tuple[str, ...] = ()
    """With `per_visit` the module of each visit of the nearest loop, `ask#1`, `ask#2`, …; `module` is the first."""
    hash: str = ""
    """Content hash of the node and all it depends on, filled in by `graph.hashing`."""
    span: Span | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieve:
    """Asks a retriever; the one output is `passages: [Passage]`."""

    name: str
    retriever: str
    query: tuple[Value, ...]
    """Texts, joined by one space."""
    k: int
    outputs: tuple[Field, ...]
    known: Value | None = None
    """Passages that are there already: they are not given again, `k` others are."""
    hash: str = ""
    span: Span | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class UseTool:
    """Calls a tool."""

    name: str
    tool: str
    inputs: tuple[Binding, ...]
    outputs: tuple[Field, ...]
    hash: str = ""
    span: Span | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Carry:
    """A value that lives from visit to visit of a loop.

    `add`: starts empty and appends `value` after each visit (passages without duplicates by id).
    `replace`: starts as `start`, becomes `value` after each visit.
    """

    name: str
    type: Type
    mode: Literal["add", "replace"]
    value: Value
    """Resolved inside the body."""
    start: Value | None = None
    """Resolved outside the loop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeat:
    """Runs its body up to `times` times. Outside, one sees what it carries and what `out` binds (last visit)."""

    name: str
    times: int
    carry: tuple[Carry, ...]
    body: tuple[Node, ...]
    """In an order that respects references."""
    out: tuple[Binding, ...]
    """Resolved inside the body, after the last visit."""
    outputs: tuple[Field, ...]
    """Carried names, then those of `out`."""
    until: Ref | None = None
    """A bool of the body: the loop ends after the visit in which it is true."""
    hash: str = ""
    span: Span | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One branch of a `Switch`: its body and what it gives."""

    value: str | bool | None
    """The value it is for; None: every value without a case of its own (`else`)."""
    body: tuple[Node, ...]
    """May be empty where `out` passes on what is there already."""
    out: tuple[Binding, ...]
    """Resolved inside the body, in the order of the switch's outputs."""

    @property
    def label(self) -> str:
        """The branch in paths of nodes and dumps: the value's text, or `else`."""
        if self.value is None:
            return "else"
        text = str(self.value).lower() if isinstance(self.value, bool) else self.value
        return "=else" if text == "else" else text


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """Runs the one branch that the value names; exhaustive over an enum or bool."""

    name: str
    value: Ref
    """An enum or bool."""
    cases: tuple[Case, ...]
    """In the order of the spec, `else` last."""
    outputs: tuple[Field, ...]
    """What every branch gives."""
    hash: str = ""
    span: Span | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Map:
    """Runs its body once for every element of a list, all at the same time; gives lists in the order of the list."""

    name: str
    over: Ref
    item: str
    """Name of the element inside the body."""
    item_type: Type
    at_most: int
    """Elements; a longer list is an error of the example."""
    body: tuple[Node, ...]
    out: tuple[Binding, ...]
    """Resolved inside the body, for each element."""
    outputs: tuple[Field, ...]
    """Lists of what `out` binds."""
    hash: str = ""
    span: Span | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Runs its body several times at a temperature, all at the same time, and gives what one of the runs gave."""

    name: str
    times: int
    temperature: float
    """Of every call inside."""
    best: Ref | None
    """A number or bool of the body whose greatest value is picked; None: the most frequent `out`, not counting
    what is a probability in it. Ties go to the earliest."""
    body: tuple[Node, ...]
    out: tuple[Binding, ...]
    outputs: tuple[Field, ...]
    hash: str = ""
    span: Span | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rerank:
    """Asks a retriever for `depth` passages and gives the `k` that a module scores highest.

    The body, one call, runs for every passage, all at the same time. Equal scores stay in the retriever's order.
    """

    name: str
    retriever: str
    query: tuple[Value, ...]
    """As that of `Retrieve`."""
    k: int
    depth: int
    body: tuple[Node, ...]
    """Refers to the query and to its passage as `$query` and `$passage`."""
    score: Binding
    """An output of the call: a bool, a number, or an enum from worst to best, as that of a judge."""
    outputs: tuple[Field, ...]
    known: Value | None = None
    """As that of `Retrieve`: neither ranked nor given."""
    hash: str = ""
    span: Span | None = field(default=None, compare=False)

    @property
    def out(self) -> tuple[Binding, ...]:
        """What each run of the body gives."""
        return (self.score,)


Block = Repeat | Switch | Map | Sample | Rerank
"""Nodes with bodies."""
Node = Call | Retrieve | UseTool | Block


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrieverRef:
    """What the graph knows of a retriever."""

    name: str
    kind: str
    k: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolRef:
    """What the graph knows of a tool, and of a retriever that a `react` module may ask."""

    name: str
    kind: str
    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]
    description: str | None = None
    """What it is for, as a `react` module is told; not kept for the tools of steps."""
    k: int | None = None
    """Passages that a retriever gives; None: a tool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A typed LM program."""

    name: str
    inputs: tuple[Field, ...]
    nodes: tuple[Node, ...]
    """In an order that respects references."""
    out: tuple[Binding, ...]
    """The program's outputs; `Binding.type` is their type."""
    modules: tuple[Module, ...]
    retrievers: tuple[RetrieverRef, ...]
    tools: tuple[ToolRef, ...] = ()

    def module(self, name: str) -> Module:
        """The module of that name. Raises KeyError."""
        for module in self.modules:
            if module.name == name:
                return module
        raise KeyError(name)
