"""Judges: modules that a metric calls on finished runs. They are no part of the program, and nothing trains them.

A judge is a program of one call whose inputs are bound to the names of the judged program's inputs and outputs, to
labels or to constants. Knows structure; how a judge is run, and what becomes of its score, is the engine's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bt_compiler.canonical import canonical_json
from bt_compiler.diagnostics import did_you_mean
from bt_compiler.graph.bindings import bind_inputs
from bt_compiler.graph.findings import Findings, SpecPath
from bt_compiler.graph.hashing import hashed
from bt_compiler.graph.program import Binding, Call, Module, Program, Ref
from bt_compiler.graph.scope import Scope, Typed, typed
from bt_compiler.spec import Field, Sections, show_type
from bt_compiler.spec.sections import MetricSection
from bt_compiler.spec.types import takes_null

LABELS = "labels"
"""`$labels.F` is label F of the example; the only place where a reference may name it is a judge's `in`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """A module that scores runs."""

    module: Module
    inputs: tuple[Binding, ...]
    """What the module takes. A reference without a step is an input or output of the judged program, one to the step
    `labels` a label."""
    score: Field
    """The output that is the score: a bool, an enum from worst to best, or a number between two bounds."""
    rated: tuple[Field, ...] = ()
    """Labels that hold outputs which people have rated, one for each of `judged` that the program gives; the rating is
    the label of the score's name."""
    outputs: tuple[str, ...] = ()
    """The outputs of the program that stand for `rated`, in its order."""
    named: bool = False
    """Whether the spec says where rated outputs are. Without that the right answer is no such output: it has the
    output's own name in most data."""

    def is_rated(self, labels: Mapping[str, Any]) -> bool:
        """Whether an example with these labels holds outputs that people have rated: where the spec does not name
        them, the rating has to be there. A null is none of either, but for an output that may be null.
        """
        held = all(
            labels.get(field.name) is not None or (field.name in labels and takes_null(field.type))
            for field in self.rated
        )
        return bool(self.rated) and held and (self.named or labels.get(self.score.name) is not None)

    @property
    def program(self) -> Program:
        """The judge as a program of its own."""
        fields = self.module.signature.inputs
        given = tuple(Binding(name=one.name, value=Ref(step=None, field=one.name), type=one.type) for one in fields)
        name = self.module.name
        call = Call(name=name, module=name, inputs=given, outputs=self.module.gives)
        out = (Binding(name=self.score.name, value=Ref(step=name, field=self.score.name), type=self.score.type),)
        program = Program(name=name, inputs=fields, nodes=(call,), out=out, modules=(self.module,), retrievers=())
        return hashed(program)

    @property
    def labels(self) -> tuple[Field, ...]:
        """The labels it looks at, with the types that its inputs take."""
        return tuple(
            Field(name=item.value.field, type=item.type)
            for item in self.inputs
            if isinstance(item.value, Ref) and item.value.step == LABELS
        )

    @property
    def judged(self) -> tuple[str, ...]:
        """The names of the judged program's inputs and outputs that it looks at."""
        return tuple(
            item.value.field for item in self.inputs if isinstance(item.value, Ref) and item.value.step is None
        )


Judges = Mapping[str, Judge]
"""By `judge_key`."""


def judge_key(section: MetricSection) -> str:
    """Under which the judge of a metric is found: equal for equal settings."""
    return canonical_json([section.options.get(key) for key in ("call", "in", "score", "rated")])


def lower_judges(
    sections: Sections,
    modules: Mapping[str, Module | None],
    called: set[str],
    *,
    inputs: Sequence[Field],
    out: Sequence[Binding],
    findings: Findings,
) -> Judges:
    """The judges of all metrics, with a finding for each that cannot be one (BTC250 to BTC253, BTC255 and those of
    bindings). `called`: modules that the program calls.
    """
    found: dict[str, Judge] = {}
    for section, place in _judging(sections):
        scope = _scope(sections, inputs, out, place, findings)
        judge = _lower(section.options, place, modules, called, scope, findings)
        if judge is not None:
            outputs = [item for item in out if item.name in judge.judged]
            found[judge_key(section)] = _with_rated(judge, section.options, outputs, place, findings)
    return found


def modules_known(sections: Sections, modules: Collection[str], findings: Findings) -> bool:
    """Whether every judge names a module that there is; findings BTC202 for those that do not."""
    known = True
    for section, place in _judging(sections):
        name = str(section.options["call"])
        if name not in modules:
            help = did_you_mean(name, modules, what="modules")
            findings.add("BTC202", f"unknown module `{name}`", (*place, "call"), help=help)
            known = False
    return known


def _judging(sections: Sections) -> Iterator[tuple[MetricSection, SpecPath]]:
    """The judges among the metrics, each with its place."""
    metrics: list[tuple[MetricSection, SpecPath]] = [(sections.metric, ("metric",))]
    if sections.optimize.accept.metric is not None:
        metrics.append((sections.optimize.accept.metric, ("optimize", "accept", "metric")))
    while metrics:
        section, place = metrics.pop(0)
        metrics += [(part, (*place, "parts", number)) for number, part in enumerate(section.parts)]
        if section.kind == "judge":
            yield section, place


def _scope(
    sections: Sections, inputs: Sequence[Field], out: Sequence[Binding], place: SpecPath, findings: Findings
) -> Scope:
    outputs = [Field(name=item.name, type=item.type) for item in out]
    both = {item.name for item in inputs} & {item.name for item in outputs}
    for name in sorted(both):
        findings.add(
            "BTC252",
            f"`${name}` is an input and an output of the program: a judge cannot tell which is meant",
            place,
            help=f"give the output another name in `program.out`: `{{answer: …}}` instead of `{{{name}: …}}`",
        )
    labels = {item.name: item for item in (*outputs, *sections.data.labels)}
    scope = Scope()
    for item in (*inputs, *outputs):
        scope.values[item.name] = Typed(type=item.type)
    scope.steps[LABELS] = typed(labels.values())
    return scope


def _lower(
    options: Mapping[str, Any],
    place: SpecPath,
    modules: Mapping[str, Module | None],
    called: set[str],
    scope: Scope,
    findings: Findings,
) -> Judge | None:
    name = str(options["call"])
    module = modules.get(name)
    if name in called:
        findings.add(
            "BTC250",
            f"the judge `{name}` is called by the program it judges",
            (*place, "call"),
            help="a judge is a module of its own, which no step trains: write another one, over the same signature",
        )
    elif module is not None and module.kind == "react":
        findings.add(
            "BTC255",
            f"the judge `{name}` calls tools",
            (*place, "call"),
            help="a judge answers at once: make it `predict` or `chain_of_thought`, and give it what it has to know",
        )
    expected = None if module is None else module.signature.inputs
    what = f"module `{name}`"
    bound = bind_inputs(options["in"], expected, what=what, step="metric", path=place, scope=scope, findings=findings)
    score = None if module is None else _score(module, str(options["score"]), (*place, "score"), findings)
    return None if module is None or bound is None or score is None else Judge(module=module, inputs=bound, score=score)


def _with_rated(
    judge: Judge, options: Mapping[str, Any], outputs: Sequence[Binding], place: SpecPath, findings: Findings
) -> Judge:
    """The judge with where its rated outputs are found; those that `in` looks at and nothing else can be named."""
    rated: Mapping[str, str] = options.get("rated", {})
    names = [item.name for item in outputs]
    for name in rated:
        if name not in names:
            help = did_you_mean(name, names, what="outputs that the judge looks at")
            message = f"the judge looks at no output `{name}` of the program"
            findings.add("BTC253", message, (*place, "rated", name), key=True, help=help)
    fields = tuple(Field(name=rated.get(item.name, item.name), type=item.type) for item in outputs)
    return replace(judge, rated=fields, outputs=tuple(names), named=bool(rated))


def _score(module: Module, name: str, place: SpecPath, findings: Findings) -> Field | None:
    outputs = {item.name: item for item in module.signature.outputs}
    if name not in outputs:
        help = did_you_mean(name, outputs, what=f"outputs of `{module.name}`")
        findings.add("BTC251", f"the judge `{module.name}` gives no `{name}`", place, help=help)
        return None
    type = outputs[name].type
    bounded = type.minimum is not None and type.maximum is not None and type.minimum < type.maximum
    if type.kind == "bool" or (type.kind == "enum" and len(type.values) > 1):
        return outputs[name]
    if type.kind in ("int", "float") and bounded:
        return outputs[name]
    findings.add(
        "BTC251",
        f"the score `{name}` of the judge is `{show_type(type)}`, which says nothing of its scale",
        place,
        help="make it a bool, an enum from worst to best, or a number with bounds: `{type: int, min: 1, max: 5}`",
    )
    return None
