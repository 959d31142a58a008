"""Where training rows come from: the program's own accepted traces, and what stands in where it solves too little.

Each source is a function of the same form, tried in the order of `weights.sources` on the examples that no earlier
source could solve; every row says which one it came from, so that a result from gold or hinted rows never passes for
self-taught. Labels teach one kind of module at a time: an example is solved when each kind that its labels can teach
has rows, and a later source gives it rows of those modules alone that have none. A source that does not fit the budget
is left out, but for the cheapest: a step begins only where that and the scoring of what was trained do fit
(`least_runs`). Every call of the program runs on the current candidate and its adapters. Knows nothing of training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple

from bt_compiler.data.example import Example
from bt_compiler.engine.metrics import answer_labels
from bt_compiler.engine.scoring import score_traces
from bt_compiler.engine.trace import Trace
from bt_compiler.errors import CompileError, ExampleError
from bt_compiler.graph.candidate import Candidate
from bt_compiler.graph.program import Call, Module, ModuleKind, Ref
from bt_compiler.optimize.hints import rationales
from bt_compiler.optimize.inner import inner_split
from bt_compiler.optimize.labelled import Task, label_names, labelled_tasks
from bt_compiler.optimize.own_runs import OwnRuns
from bt_compiler.optimize.rows import Row, RowWriter, deduplicate, row_writer, rows_of, trainable
from bt_compiler.optimize.step import StepContext
from bt_compiler.spec.sections import OptimizeSection, RowSource, WeightsSection


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a source looks at."""

    context: StepContext
    candidate: Candidate
    writer: RowWriter
    runs: OwnRuns
    """Of the candidate."""


def start_of(context: StepContext, candidate: Candidate) -> Start:
    """The start of a step, of which nothing has run yet."""
    writer = row_writer(context.program, candidate, context.settings.weights, context.zero_shot)
    return Start(context=context, candidate=candidate, writer=writer, runs=OwnRuns(context, candidate))


Found = Mapping[str, tuple[Row, ...]]
"""Example id -> its rows, solved examples only."""
Source = Callable[[Start, Sequence[Example]], Found]


class Tried(NamedTuple):
    """What one source achieved."""

    source: RowSource
    examples: int
    """Examples still unsolved when it was asked."""
    solved: int
    """Those it gave rows of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """Rows of a weights step, and how they were come by."""

    rows: Mapping[str, tuple[Row, ...]] = field(default_factory=dict)
    """Example id -> rows, in the order of train."""
    tried: tuple[Tried, ...] = ()
    left_out: tuple[RowSource, ...] = ()
    """Sources that did not fit the budget."""
    too_long: int = 0
    """Rows that were left out, for they are longer than the context window."""


def runs_of(source: RowSource, weights: WeightsSection) -> int:
    """Runs of an example that a source needs at most; the program's own runs that labels may lack are not among them,
    and a hint's draft and its test are counted as a run each.
    """
    runs: dict[RowSource, int] = {
        "self": 1,
        "demos": 0,
        "sampled": weights.samples,
        "teacher": 1,
        "gold": 0,
        "hinted": 2 * weights.samples,
    }
    return runs[source]


def _cheapest(weights: WeightsSection) -> RowSource:
    """The source that a step must be able to afford; not `demos`, of which there may be none."""
    return min(weights.sources, key=lambda source: (source == "demos", runs_of(source, weights)))


def least_runs(settings: OptimizeSection, train: Sequence[Example]) -> int:
    """Runs of an example that a weights step cannot do without: rows from its cheapest source, what they are compared
    with where pairs are asked for, and the scoring of what was trained. Raises CompileError BTC450.
    """
    weights = settings.weights
    rows = runs_of(_cheapest(weights), weights) + (weights.preference is not None)
    return rows * len(train) + len(inner_split(train, settings.prompts, seed=0).val)  # the seed decides who


def collect(start: Start) -> Collected:
    """Asks the sources in the order of the spec until every train example is solved. Raises CompileError BTC405."""
    context, weights = start.context, start.context.settings.weights
    cheapest = _cheapest(weights)
    wanted = _kinds_to_teach(context)
    found: dict[str, tuple[Row, ...]] = {}
    tried: list[Tried] = []
    left_out: list[RowSource] = []
    for name in weights.sources:
        unsolved = [one for one in context.train if not _solved(start, found.get(one.id, ()), wanted[one.id])]
        if not unsolved:
            break
        runs = runs_of(name, weights) * len(unsolved)
        if name != cheapest and not context.budget.allows(f"step {context.index} rows from {name}", runs):
            left_out.append(name)
            context.progress.say(f"rows from `{name}`: left out, for they do not fit the budget")
            continue
        more = {key: _of_others(rows, found.get(key, ())) for key, rows in SOURCES[name](start, unsolved).items()}
        solved = {key: rows for key, rows in more.items() if rows}
        found |= {key: (*found.get(key, ()), *rows) for key, rows in solved.items()}
        tried.append(Tried(name, len(unsolved), len(solved)))
        context.progress.say(f"rows from `{name}`: {len(solved)} of {len(unsolved)} examples")
    rows = {example.id: found[example.id] for example in context.train if example.id in found}
    return Collected(rows=rows, tried=tuple(tried), left_out=tuple(left_out))


def _kinds_to_teach(context: StepContext) -> dict[str, set[ModuleKind]]:
    """Example id -> the kinds of trainable modules that its labels can teach."""
    taught = label_names(context.program, answer_labels(context.metric, context.accept))
    return {
        example.id: {module.kind for module, names in taught if names <= example.labels.keys()}
        for example in context.train
    }


def _solved(start: Start, rows: Sequence[Row], wanted: Set[ModuleKind]) -> bool:
    """Whether these rows are enough for an example."""
    return bool(rows) and wanted <= {start.context.program.module(row.module).kind for row in rows}


def _of_others(rows: Sequence[Row], known: Sequence[Row]) -> tuple[Row, ...]:
    """The rows of modules that have none among the known ones."""
    having = {row.module for row in known}
    return tuple(row for row in rows if row.module not in having)


class Unseen(NamedTuple):
    """A value of an enum output that is the answer of train examples, none of which has rows of what answers it."""

    output: str
    value: str
    examples: int


def unseen_values(context: StepContext, rows: Mapping[str, Sequence[Row]]) -> list[Unseen]:
    """What training on these rows, by train example, will hardly ever teach the program to answer."""
    found: list[Unseen] = []
    labels = answer_labels(context.metric, context.accept)
    calls = {node.name: {node.module, *node.slots} for node in context.program.nodes if isinstance(node, Call)}
    learners = {module.name for module in trainable(context.program)}
    for output in context.program.out:
        label = labels.get(output.name, output.name)
        step = output.value.step if isinstance(output.value, Ref) else None
        teaching = learners & calls.get(step or "", learners) or learners
        shown = {example for example, own in rows.items() if any(row.module in teaching for row in own)}
        for value in output.type.values:
            having = [example.id for example in context.train if example.labels.get(label) == value]
            if having and shown.isdisjoint(having):
                found.append(Unseen(output.name, str(value), len(having)))
    return found


def _self(start: Start, unsolved: Sequence[Example]) -> Found:
    """What the program solves by itself."""
    return _rows(start, judged(start, start.runs.judged(unsolved)).accepted, "self")


def _demos(start: Start, unsolved: Sequence[Example]) -> Found:
    """The bootstrapped demos of the candidate: answers that an earlier step accepted, for no further call. Examples of
    which some module has none are left to other sources, or they would teach the others alone.
    """
    learners = trainable(start.context.program)
    answers: list[_Answer] = []
    for example in unsolved:
        shown = [
            _Answer(example, module, demo.inputs, demo.outputs)
            for module in learners
            for demo in start.candidate.prompts[module.name].demos
            if demo.origin == "bootstrapped" and demo.example == example.id
        ]
        answers += shown if len(shown) == len(learners) else []
    return _written(start, answers, "demos")


def _sampled(start: Start, unsolved: Sequence[Example]) -> Found:
    """Every accepted one of several samples at temperature."""
    return _rows(start, judged(start, start.runs.judged(unsolved, sampled=True)).accepted, "sampled")


def _teacher(start: Start, unsolved: Sequence[Example]) -> Found:
    """What another model of the spec solves with the same prompts."""
    context = start.context
    name = context.settings.weights.teacher
    if name is None or name not in context.engine.backends:
        raise CompileError.of(
            "BTC405",
            "`teacher` is among `optimize.weights.sources`, but "
            + ("no teacher is named" if name is None else f"there is no model `{name}`"),
            help="set `optimize.weights.teacher` to a name of `models`: "
            + ", ".join(f"`{known}`" for known in sorted(context.engine.backends)),
        )
    taught = replace(context.program, modules=tuple(replace(module, model=name) for module in context.program.modules))
    teacher = Candidate(id=f"teacher {name}", prompts=start.candidate.prompts)
    context.progress.begin(f"teacher {name}", len(unsolved))
    traces = context.engine.run(
        taught, teacher, unsolved, seed=context.seed, leave_own_demo_out=True, progress=context.progress
    )
    scored = score_traces(traces, unsolved, context.accept, context.engine)
    return _rows(start, judged(start, scored).accepted, "teacher")


def _gold(start: Start, unsolved: Sequence[Example]) -> Found:
    """Labels as outputs, for modules whose every output is labelled."""
    answers = [
        _Answer(*task)
        for task in _tasks(start, unsolved)
        if {item.name for item in task.module.outputs} <= set(task.labels)
    ]
    return _written(start, answers, "gold")


def _hinted(start: Start, unsolved: Sequence[Example]) -> Found:
    """Rationales that the model writes when it is told the label, and that lead it there when it is not."""
    tasks = [task for task in _tasks(start, unsolved) if task.module.kind == "chain_of_thought"]
    context = start.context
    found = rationales(
        context, start.candidate, {name: p.instructions for name, p in start.writer.prompts.items()}, tasks
    )
    answers = [
        _Answer(task.example, task.module, task.inputs, {task.module.outputs[0].name: rationale, **task.labels})
        for task, rationale in found
    ]
    return _written(start, answers, "hinted")


SOURCES: Mapping[RowSource, Source] = MappingProxyType(
    {
        "self": _self,
        "demos": _demos,
        "sampled": _sampled,
        "teacher": _teacher,
        "gold": _gold,
        "hinted": _hinted,
    }
)


class Judged(NamedTuple):
    """Traces by example, in the order they were drawn. One that failed, or that nothing can judge, is in neither."""

    accepted: Mapping[str, tuple[Trace, ...]]
    """Good enough to learn from."""
    failed: Mapping[str, tuple[Trace, ...]]
    """Ran to the end and scored less."""


def judged(start: Start, traces: Sequence[Trace]) -> Judged:
    """What the accept metric's scores say of the traces."""
    at_least = start.context.settings.accept.at_least
    accepted: dict[str, tuple[Trace, ...]] = {}
    failed: dict[str, tuple[Trace, ...]] = {}
    for trace in traces:
        if trace.error is None and trace.score is not None:
            side = accepted if trace.score >= at_least else failed
            side[trace.example] = (*side.get(trace.example, ()), trace)
    return Judged(accepted, failed)


def _rows(start: Start, traces: Mapping[str, Sequence[Trace]], source: RowSource) -> Found:
    return {example: written_rows(start, found, source) for example, found in traces.items()}


def written_rows(start: Start, traces: Sequence[Trace], source: RowSource) -> tuple[Row, ...]:
    """Rows of the traces, each once; a trace whose prompt cannot be written without its demos gives none."""
    rows: list[Row] = []
    for trace in traces:
        with suppress(ExampleError):
            rows += rows_of(trace, writer=start.writer, source=source)
    return deduplicate(rows)


def _tasks(start: Start, examples: Sequence[Example]) -> list[Task]:
    context = start.context

    def runs() -> list[Trace]:
        if start.runs.fit("own runs for labels", examples):
            return start.runs.traces(examples)
        context.progress.say("labels of modules inside the program: left out, for its runs do not fit the budget")
        return []

    labels = answer_labels(context.metric, context.accept)
    return labelled_tasks(context.program, examples, runs, context.progress.say, labels=labels)


class _Answer(NamedTuple):
    """What a call of a module should say."""

    example: Example
    module: Module
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]


def _written(start: Start, answers: Sequence[_Answer], source: RowSource) -> Found:
    """A row of each answer; one whose prompt cannot be written gives none."""
    found: dict[str, tuple[Row, ...]] = {}
    for answer in answers:
        with suppress(ExampleError):
            row = start.writer.row(
                example=answer.example.id,
                module=answer.module,
                inputs=answer.inputs,
                outputs=answer.outputs,
                source=source,
            )
            found[row.example] = (*found.get(row.example, ()), row)
    return found
