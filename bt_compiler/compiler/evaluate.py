"""`btc eval`: scores a bundle on a split of its own spec, or on a data file given. Nothing is optimised here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from bt_compiler.artifact.bundle import Bundle, read_bundle
from bt_compiler.artifact.manifest import check_base
from bt_compiler.compiler.check import label_fields
from bt_compiler.compiler.identity import used_models
from bt_compiler.compiler.opening import OpenBackend, backend_opener, measured, open_models, open_retrievers
from bt_compiler.data import load_splits
from bt_compiler.data.example import Example
from bt_compiler.engine.cache import CompletionCache, cache_path, cache_root
from bt_compiler.engine.executor import Engine
from bt_compiler.engine.metrics import build_metric
from bt_compiler.engine.progress import Progress, Silent
from bt_compiler.engine.scoring import evaluate
from bt_compiler.engine.trace import Report
from bt_compiler.errors import CompileError
from bt_compiler.spec import Sections, build_sections, load_spec
from bt_compiler.spec.sections import DataSection, SourceSection

SplitName = Literal["train", "dev", "test"]


def evaluate_bundle(
    folder: Path,
    *,
    split: SplitName = "test",
    data: Path | None = None,
    overrides: Sequence[str] = (),
    cache: Path | None = None,
    progress: Progress | None = None,
    opener: OpenBackend | None = None,
) -> Report:
    """The shipped program's report on `split` of the bundle's own data, or on all rows of `data`.

    `overrides` are applied to the bundle's spec, for paths and endpoints of this machine. Raises BundleError,
    SpecError, DataError, BackendError, and CompileError (BTC452) where the split has no examples.
    """
    told = Silent() if progress is None else progress
    root = cache_root(os.environ) if cache is None else cache
    bundle = read_bundle(folder)
    sections = build_sections(load_spec(bundle.spec, overrides=overrides))
    examples = _examples(bundle, sections, split, data)
    models = used_models(replace(sections, optimize=replace(sections.optimize, strategy=())), bundle.program)
    retrievers = open_retrievers(sections.retrievers, cache_root=root, progress=told)
    opened = open_models(models, choices=measured, opener=opener or backend_opener(root, told))
    store = CompletionCache(cache_path(root))
    try:
        with opened as backends:
            for name, backend in backends.items():
                check_base(bundle.manifest, backend, model=name)
            engine = Engine(backends=backends, retrievers=retrievers, stores=(store,))
            told.begin(f"scoring {bundle.manifest.name} on {split if data is None else data.name}", len(examples))
            return evaluate(
                engine,
                bundle.program,
                bundle.candidate,
                examples,
                build_metric(sections.metric),
                split=split if data is None else str(data),
                seed=bundle.manifest.seed,
                progress=told,
            )
    finally:
        store.close()


def _examples(bundle: Bundle, sections: Sections, split: SplitName, data: Path | None) -> tuple[Example, ...]:
    section = sections.data
    if data is not None:
        source = SourceSection(path=str(data.absolute()))
        section = DataSection(train=source, columns=section.columns, labels=section.labels)
        split = "train"
    splits = load_splits(section, inputs=bundle.program.inputs, labels=label_fields(bundle.program, sections))
    examples: tuple[Example, ...] = getattr(splits, split)
    if not examples:
        raise CompileError.of(
            "BTC452",
            f"bundle `{bundle.folder}` has no {split} examples to score" if data is None else f"`{data}` has no rows",
            help="name another split, or give a data file",
        )
    return examples
