"""`btc check`: everything that can be said of a spec and its data without loading a model.

    load ─> sections ─> graph ─> settings that name the program ─> data

Each phase reports all its findings at once; the next one needs the phase before. What is odd without being wrong
comes back as warnings and notes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from bt_compiler.compiler.ungiven import ungiven_answers, ungiven_demos
from bt_compiler.compiler.unlabelled import unlabelled_outputs
from bt_compiler.compiler.unrendered import unrendered_formats
from bt_compiler.compiler.unwritable import empty_answers
from bt_compiler.data import Loaded, Splits, check_data
from bt_compiler.diagnostics import Diagnostic
from bt_compiler.errors import BackendError, BtcError, DataError, SpecError
from bt_compiler.graph import Judge, Judges, Module, Program, lower_with_warnings, meetings
from bt_compiler.optimize.inner import inner_split
from bt_compiler.spec import Field, Sections, Spec, Type, build_sections, load_spec
from bt_compiler.spec.sections import (
    IN_PROCESS,
    CorpusSection,
    MetricSection,
    ModelSection,
    RetrieverSection,
    ToolSection,
)
from bt_compiler.spec.types import STR

_READ_WHOLE = 64 * 1024 * 1024
"""Bytes of a corpus up to which every row is looked at (about a second)."""

_NAME_PASSAGES = ("retrieval_full_hit", "retrieval_recall")
"""Metrics whose label is a list of titles or ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedSpec:
    """A spec without errors."""

    spec: Spec
    sections: Sections
    program: Program
    judges: Judges
    """Of the metrics, for `build_metric`."""
    splits: Splits
    warnings: tuple[Diagnostic, ...]
    """Warnings and notes, in the order of the phases."""

    def rated(self, judge: Judge) -> int:
        """Outputs in dev and test that `judge` is asked about beside those of the program."""
        return sum(judge.is_rated(example.labels) for example in (*self.splits.dev, *self.splits.test))


def checked(path: Path, overrides: Sequence[str] = ()) -> CheckedSpec:
    """Checks the spec at `path` with `--set` arguments.

    Raises SpecError or DataError with every finding of the first phase that has one, and CompileError BTC450 where
    train is too small for the optimisers.
    """
    spec = load_spec(path, overrides=overrides)
    sections = build_sections(spec)
    lowered = lower_with_warnings(spec, sections)
    program = lowered.program
    _check_settings(spec, sections, program, lowered.judges)
    loaded = _check_files(sections, program, lowered.judges)
    if failing := unrendered_formats(spec, program, loaded.splits.train[0]):
        raise SpecError(failing)
    if sections.optimize.strategy:
        inner_split(loaded.splits.train, sections.optimize.prompts, seed=0)  # the seed decides who, not how many
    labels = _answer_labels(sections, lowered.judges)
    empty = empty_answers(program, loaded.splits, sections.data, labels)
    ungiven = ungiven_answers(program, loaded.splits, sections.data, labels)
    found = CheckedSpec(
        spec=spec,
        sections=sections,
        program=program,
        judges=lowered.judges,
        splits=loaded.splits,
        warnings=(*lowered.warnings, *loaded.notes, *empty, *ungiven),
    )
    return replace(found, warnings=(*found.warnings, *unlearnt(found)))


def unlearnt(spec: CheckedSpec) -> list[Diagnostic]:
    """Notes on modules whose labels teach the steps of the strategy nothing, for the data has but some of them."""
    labels = _answer_labels(spec.sections, spec.judges)
    return unlabelled_outputs(spec.program, spec.splits.train, spec.sections, labels)


def label_fields(program: Program, sections: Sections, judges: Judges = MappingProxyType({})) -> tuple[Field, ...]:
    """The labels that the data has to have: those of `data.labels`, and what metrics compare with or judges look at.

    A metric's label without a type of its own has the type of the output it is compared with; one that names gold
    passages is a list of texts.
    """
    fields = {field.name: field for field in sections.data.labels}
    outputs = {item.name: item.type for item in program.out}
    for judge in judges.values():
        for field in judge.labels:
            fields.setdefault(field.name, Field(name=field.name, type=outputs.get(field.name, field.type)))
    for metric in _metrics(sections):
        if not metric.label or metric.label in fields:
            continue
        same = metric.label if metric.label in outputs else metric.output
        if same in outputs:
            fields[metric.label] = Field(name=metric.label, type=outputs[same])
        elif metric.kind in _NAME_PASSAGES:
            fields[metric.label] = Field(name=metric.label, type=Type(kind="list", item=STR))
        else:
            fields[metric.label] = Field(name=metric.label, type=STR)
    return tuple(fields.values())


def optional_label_fields(
    program: Program, sections: Sections, judges: Judges = MappingProxyType({})
) -> tuple[Field, ...]:
    """What is read as a label where the data happens to have its column: outputs of the program, and ratings by people
    on the scale of a judge. A column that `data.columns` names for one has to be there.
    """
    taken = {field.name for field in label_fields(program, sections, judges)}
    taken |= {field.name for field in program.inputs}
    outputs = [Field(name=item.name, type=item.type) for item in program.out]
    rated = [field for judge in judges.values() for field in (*judge.rated, judge.score)]
    found = {field.name: field for field in (*rated, *outputs)}
    return tuple(field for name, field in found.items() if name not in taken)


def _metrics(sections: Sections) -> list[MetricSection]:
    """All that judge, the parts of weighted ones in their place."""
    accept = sections.optimize.accept.metric
    return [*sections.metric.leaves(), *(() if accept is None else accept.leaves())]


def _answer_labels(sections: Sections, judges: Judges) -> dict[str, str]:
    from bt_compiler.engine.metrics import answer_labels, build_metric

    return answer_labels(*(build_metric(metric, judges) for metric in _metrics(sections)))


def _check_settings(spec: Spec, sections: Sections, program: Program, judges: Judges) -> None:
    """Metrics, retrievers' kinds and options, tools of packages, formats, models that are folders, and how training is
    launched.
    """
    found: list[Diagnostic] = []
    for metric in _metrics(sections):
        found += _check_metric(metric, sections, program, judges)
    for retriever in _searched(sections, program):
        found += _findings_of(retriever, SpecError)
    called = {tool.name for tool in program.tools}
    for tool in sections.tools:
        if tool.kind == "entry_point" and tool.name in called:
            found += _check_registered(spec, tool)
    modules = (*program.modules, *(judge.module for judge in judges.values()))
    found += _check_formats(spec, modules)
    found += ungiven_demos(spec, modules)
    models = {module.model for module in modules}
    for model in sections.models:
        if model.name in models:
            found += _check_model_folder(model)
    found += check_launch(spec, sections)
    if found:
        raise SpecError(found)


def check_launch(spec: Spec, sections: Sections) -> list[Diagnostic]:
    """What is wrong with the config file that training is launched by."""
    from bt_compiler.optimize.accelerate_config import launch_findings

    found = launch_findings(sections.optimize)
    return [replace(item, span=spec.span(("optimize", "weights", "launch", "config"))) for item in found]


def _check_metric(metric: MetricSection, sections: Sections, program: Program, judges: Judges) -> list[Diagnostic]:
    from bt_compiler.engine.metrics import build_metric, misfit

    try:
        build_metric(metric, judges)
    except SpecError as error:
        return list(error.diagnostics)
    output = next((item.type for item in program.out if item.name == metric.output), None)
    label = next((field.type for field in label_fields(program, sections, judges) if field.name == metric.label), None)
    found = misfit(metric, output, label, retrieves=bool(program.retrievers))
    return [] if found is None else [found]


def _searched(sections: Sections, program: Program) -> tuple[RetrieverSection, ...]:
    """The retrievers that the program asks and all that they are made of."""
    if not program.retrievers:
        return ()
    from bt_compiler.engine.retrieval.registry import reachable

    return reachable([retriever.name for retriever in program.retrievers], sections.retrievers)


def _findings_of(retriever: RetrieverSection, kind: type[BtcError]) -> list[Diagnostic]:
    """What the retriever's own check finds, of one kind of error: settings or data."""
    from bt_compiler.engine.retrieval.registry import check_retriever

    try:
        check_retriever(retriever)
    except kind as error:
        return list(error.diagnostics)
    except BtcError:
        return []
    return []


def _check_registered(spec: Spec, tool: ToolSection) -> list[Diagnostic]:
    """Whether a package registers the tool, as of metrics. A function of `--tools FILE` is named with the command."""
    from bt_compiler.engine.tools.registry import registered

    try:
        registered(tool)
    except BackendError as error:
        own = ("tools", tool.name, "entry")
        place = spec.span(own) if spec.get(own) is not None else tool.span
        return [replace(item, span=place) for item in error.diagnostics]
    return []


def _check_formats(spec: Spec, modules: Sequence[Module]) -> list[Diagnostic]:
    """Shipped formats by name alone, the user's own by loading them."""
    from bt_compiler.engine.templates import template_folder

    shipped = {entry.stem for entry in (template_folder() / "prompts").glob("*.jinja")}
    found: list[Diagnostic] = []
    for module in modules:
        if module.format in shipped:
            continue
        from bt_compiler.engine.formats import load_format

        own = ("modules", module.declared, "format")
        place = own if spec.get(own) is not None else ("format",)
        try:
            load_format(module.format).check(module)
        except SpecError as error:
            items = [replace(item, span=item.span or spec.span(place)) for item in error.diagnostics]
            found += [item for item in items if item not in found]
    return found


def _check_model_folder(model: ModelSection) -> list[Diagnostic]:
    at_hand = model.id if model.engine in IN_PROCESS else model.weights
    if at_hand is None or not (path := Path(at_hand)).is_absolute():
        return []
    try:
        if path.is_dir():
            return []
        what = "is a file, not a model's folder" if path.exists() else "does not exist"
    except OSError as error:
        what = f"cannot be read: {str(error.strerror).lower()}"
    return [
        Diagnostic(
            code="BTC316",
            message=f"model folder `{at_hand}` {what}",
            span=model.span,
            help="name a folder with `config.json` and safetensors, or a hub id such as "
            "`HuggingFaceTB/SmolLM2-135M-Instruct`",
        )
    ]


def _check_files(sections: Sections, program: Program, judges: Judges) -> Loaded:
    """Examples and corpora, the findings of both at once."""
    found: list[Diagnostic] = []
    loaded: Loaded | None = None
    try:
        loaded = check_data(
            sections.data,
            inputs=program.inputs,
            labels=label_fields(program, sections, judges),
            optional=optional_label_fields(program, sections, judges),
        )
    except DataError as error:
        found += error.diagnostics
    for retriever in _searched(sections, program):
        found += [item for item in _check_corpus(retriever) if item not in found]  # several may share a file
    if found or loaded is None:
        raise DataError(found)
    _check_ids(sections, program)
    return loaded


def _check_ids(sections: Sections, program: Program) -> None:
    """Whether corpora that are read whole share ids where their passages meet; opening looks at large ones."""
    if not program.retrievers:
        return
    from bt_compiler.engine.retrieval import refuse_shared_ids
    from bt_compiler.engine.retrieval.corpus import read_corpus

    def ids_of(retriever: RetrieverSection) -> Iterator[str]:
        corpus = retriever.corpus
        if corpus is not None and not _is_large(corpus):
            yield from (text.id for text in read_corpus(corpus))

    refuse_shared_ids(meetings(program), sections.retrievers, ids_of)


def _is_large(corpus: CorpusSection) -> bool:
    """Whether its head alone is looked at: the rest is read to be indexed. Raises DataError BTC373."""
    from bt_compiler.engine.retrieval.corpus_rows import in_hub, unreadable

    path = Path(corpus.path)
    try:
        return in_hub(corpus) or (path.is_file() and path.stat().st_size > _READ_WHOLE)
    except OSError as error:  # its folder may not be entered
        raise unreadable(corpus, error) from error


def _check_corpus(retriever: RetrieverSection) -> list[Diagnostic]:
    """Every row of a corpus of usual size, of a large one or the hub's the head."""
    from bt_compiler.engine.retrieval.corpus import check_corpus, read_corpus

    if retriever.corpus is None:
        return []
    try:
        if _is_large(retriever.corpus):
            check_corpus(retriever.corpus)
            return []
        for _ in read_corpus(retriever.corpus):
            pass
    except DataError as error:
        return list(error.diagnostics)
    return []
