"""`btc eval`: scores a bundle on a split of its own spec, or on a data file given. Nothing is optimised here."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Literal

from bt_compiler.artifact.changed_code import ChangedCode, changed_code
from bt_compiler.artifact.changed_model import ChangedModel
from bt_compiler.artifact.format_files import with_formats
from bt_compiler.compiler.changed_data import ChangedSplit, changed_split
from bt_compiler.compiler.check import label_fields, optional_label_fields
from bt_compiler.data import load_splits
from bt_compiler.data.example import Example
from bt_compiler.data.splits import load_examples
from bt_compiler.diagnostics import Diagnostic
from bt_compiler.engine.cache import CompletionCache, cache_path, cache_root
from bt_compiler.engine.metrics import build_metric, judge_of
from bt_compiler.engine.progress import Progress, Silent
from bt_compiler.engine.scoring import evaluate
from bt_compiler.engine.trace import Report
from bt_compiler.errors import CompileError, DataError
from bt_compiler.graph import Judges, lower_with_warnings
from bt_compiler.optimize.accounts import Account, AccountedStore
from bt_compiler.runtime.predictor import OpenBackend, Predictor, load
from bt_compiler.spec import file_in, load_spec
from bt_compiler.spec.sections import DataSection, SourceSection

SplitName = Literal["train", "dev", "test"]
SPLITS = ("train", "dev", "test")


def evaluate_bundle(
    folder: Path,
    *,
    split: SplitName = "test",
    data: str | None = None,
    overrides: Sequence[str] = (),
    cache: Path | None = None,
    progress: Progress | None = None,
    opener: OpenBackend | None = None,
    tools: Path | None = None,
    on_change: Callable[[ChangedSplit | ChangedCode | ChangedModel], None] | None = None,
) -> Report:
    """The shipped program's report on `split` of the bundle's own data, or on all rows of `data`: a file, or a name as
    in a spec (`sklearn:NAME`, `hf://owner/name:split`), from the working folder.

    `overrides` are applied to the bundle's spec, for paths and endpoints of this machine. `on_change` is told,
    before anything runs, where `split` does not hold the examples that it held at the compile, where a metric or tool
    of an installed package has other code than it had, and where a server is asked for another model; it may raise.
    Without it `progress` is told. Raises
    BundleError, SpecError, DataError, BackendError, and CompileError (BTC452) where the split has no examples.
    """
    told = Silent() if progress is None else progress
    tell = on_change or (lambda change: told.say(change.finding(gate=False).line))
    root = cache_root(os.environ) if cache is None else cache
    with (
        load(
            folder, overrides=overrides, progress=told, cache_root=root, opener=opener, tools=tools, on_change=tell
        ) as predictor,
        closing(CompletionCache(cache_path(root))) as store,
        ExitStack() as opened,
    ):
        bundle, name = predictor.bundle, split if data is None else data
        for change in changed_code(bundle.manifest, metrics=[leaf.kind for leaf in predictor.sections.metric.leaves()]):
            tell(change)
        judges = with_formats(_judges(predictor, overrides), bundle.judge_formats)
        examples = _examples(predictor, split, data, judges, tell)
        counted = AccountedStore((store,))
        engine = replace(predictor.engine(), stores=(counted,))
        for model in sorted({judge.module.model for judge in judges.values()} - set(engine.backends)):
            backend = predictor.backend(model)
            opened.callback(backend.close)
            engine = replace(engine, backends={**engine.backends, model: backend})
        told.begin(f"scoring {bundle.manifest.name} on {name}", len(examples))
        metric = build_metric(predictor.sections.metric, judges)
        report = evaluate(
            engine,
            bundle.program,
            bundle.candidate,
            examples,
            metric,
            split=name,
            seed=bundle.manifest.seed,
            progress=told,
        )
        report, judge = replace(report, examples=examples), judge_of(metric)
        if judge is not None:
            report = replace(report, agreement=judge.agreement(examples, engine))
        return _with_judges(report, counted.account()) if judges else report


def _with_judges(report: Report, account: Account) -> Report:
    """The report with the work of judges in its counts, which else say what the program alone costs."""
    return replace(
        report,
        calls=account.calls,
        cached_calls=account.cached_calls,
        prompt_tokens=account.prompt_tokens,
        completion_tokens=account.completion_tokens,
    )


def _judges(predictor: Predictor, overrides: Sequence[str]) -> Judges:
    """Those of the metrics. Without any, modules that only a judge of the compile called are nobody's concern."""
    sections = predictor.sections
    accept = sections.optimize.accept.metric
    metrics = (sections.metric, *(() if accept is None else (accept,)))
    if not any(leaf.kind == "judge" for metric in metrics for leaf in metric.leaves()):
        return {}
    return lower_with_warnings(load_spec(predictor.bundle.spec, overrides=overrides), sections).judges


def _examples(
    predictor: Predictor,
    split: SplitName,
    data: str | None,
    judges: Judges,
    tell: Callable[[ChangedSplit], None],
) -> tuple[Example, ...]:
    program, section = predictor.bundle.program, predictor.sections.data
    labels = label_fields(program, predictor.sections, judges)
    optional = optional_label_fields(program, predictor.sections, judges)
    examples: tuple[Example, ...]
    if data is not None:
        source = SourceSection(path=file_in(Path.cwd(), data))
        examples = load_examples(
            source,
            columns=section.columns,
            extract=section.extract,
            inputs=program.inputs,
            labels=labels,
            optional=optional,
        )
    else:
        try:
            splits = load_splits(section, inputs=program.inputs, labels=labels, optional=optional)
        except DataError as error:
            raise DataError([_where_else(item, section) for item in error.diagnostics]) from error
        examples = getattr(splits, split)
        if examples and (change := changed_split(predictor.bundle.manifest, splits, split)) is not None:
            tell(change)
    if not examples:
        what = (
            f"bundle `{predictor.bundle.folder}` has no {split} examples" if data is None else f"`{data}` has no rows"
        )
        raise CompileError.of("BTC452", f"{what} to score", help="name another split, or give a data file")
    return examples


def _where_else(item: Diagnostic, data: DataSection) -> Diagnostic:
    """A file that is not where the compile had it may lie elsewhere on this machine."""
    if item.code != "BTC301" or (item.span is not None and item.span.source.name.startswith("--set")):
        return item
    keys = ["path"] if data.path is not None else [f"{name}.path" for name in SPLITS if getattr(data, name) is not None]
    given = " ".join(f"--set data.{key}=FILE" for key in keys)
    return replace(
        item, help=f"say where the data is on this machine: `{given}`, or score the rows of a file: `--data FILE`"
    )
