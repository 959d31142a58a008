"""`btc sweep`: the table of all strategies of one spec, over seeds and models.

    variants ─> check each ─> journals ─> for each: models, retrievers ─> trie of strategies ─> table ─> files

A journal a model, so that another model, seed or strategy can be added later and what is there is taken over. Knows the
order of things; what they are is said elsewhere.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from bt_compiler.artifact.sweep_files import left_out, refuse_other_folder, write_sweep
from bt_compiler.canonical import digest
from bt_compiler.compiler.check import CheckedSpec, check_launch, checked, unlearnt
from bt_compiler.compiler.compile import ARTIFACTS, disk_errors, tell_findings, tell_opening
from bt_compiler.compiler.identity import compile_identity, data_facts, require_packages, used_models
from bt_compiler.compiler.opening import OpenBackend
from bt_compiler.compiler.workbench import open_workbench
from bt_compiler.diagnostics import Diagnostic, did_you_mean
from bt_compiler.engine.cache import cache_root
from bt_compiler.engine.metrics import build_metric
from bt_compiler.engine.progress import Progress, Silent
from bt_compiler.errors import SpecError, UsageError
from bt_compiler.optimize.branch import Branch
from bt_compiler.optimize.journal import Journal
from bt_compiler.optimize.step import OptimizerStep
from bt_compiler.optimize.strategy import STEPS, StrategyTask
from bt_compiler.optimize.sweep import PAPER, Strategy, in_order, run_sweep
from bt_compiler.optimize.sweep_table import label, sweep_table
from bt_compiler.spec import build_sections, load_spec
from bt_compiler.spec.sections import StepKind

SWEEP_SCHEMA = 1
_STEP_NAMES: Mapping[str, StepKind] = {"prompts": "prompts", "weights": "weights", "Π": "prompts", "Θ": "weights"}
_MODEL_SETTING = re.compile(r"(model|models\.[^.=]+)(\.id)?=")
"""Overrides in which a comma stands between several values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepSettings:
    """How to sweep, beside the spec."""

    strategies: tuple[Strategy, ...] = PAPER
    seeds: tuple[int, ...] = (0, 1, 2)
    out: Path | None = None
    """Folder of table and page; None: `artifacts/NAME-sweep`. The journals lie beside it."""
    overrides: Sequence[str] = ()
    """`--set` arguments; that of a model may hold several, by commas."""
    fresh: bool = False
    cache: Path | None = None
    """Root of all caches; None: as the environment says."""
    progress: Progress = field(default_factory=Silent)
    clock: Callable[[], float] = time.monotonic
    opener: OpenBackend | None = None
    tools: Path | None = None
    """Python file of the spec's tools of kind `function`."""
    steps: Mapping[str, OptimizerStep] = field(default_factory=lambda: STEPS)


class Swept(NamedTuple):
    """What a sweep gives: its folder, and the document of `sweep.json`."""

    folder: Path
    document: dict[str, Any]


class Variant(NamedTuple):
    """The spec with one choice of models."""

    label: str
    """Ids of the program's models and of its judges'."""
    models: str
    """As `label`, with that of the teacher of a weights step: no two journals have the same.

    Titles of tables too, where the same label stands for several.
    """
    spec: CheckedSpec
    identity: dict[str, Any]
    refused: tuple[Diagnostic, ...]
    """What a compile would refuse of the strategies' steps: warnings here, where these fail and others go on."""


def sweep_spec(path: Path, settings: SweepSettings) -> Swept:
    """Runs every strategy at every seed on every model, and writes `sweep.json`, `sweep.md` and `report.html`.

    The same command resumes. All specs are checked, all models found and all journals taken before anything runs.
    Raises SpecError, DataError, BackendError, UsageError, BundleError BTC560 where `out` holds something else, and
    CompileError BTC460 to BTC464 of the journals.
    """
    root = cache_root(os.environ) if settings.cache is None else settings.cache
    variants: dict[str, Variant] = {}
    for overrides in spread(settings.overrides):
        variant = _variant(path, overrides, root, settings)
        variants.setdefault(variant.models, variant)  # a model that nothing calls makes no other table
    first = next(iter(variants.values())).spec
    out = (settings.out or ARTIFACTS / f"{first.program.name}-sweep").absolute()
    with disk_errors(out):
        refuse_other_folder(out)
    document: dict[str, Any] = {
        "schema_version": SWEEP_SCHEMA,
        "name": first.program.name,
        "strategies": [label(one) for one in in_order(settings.strategies)],
        "seeds": sorted(set(settings.seeds)),
        "metric": first.sections.metric.kind,
        "tables": [],
    }
    # the data is the same for all models
    tell_findings((*first.warnings, *unlearnt(first)), settings.progress)
    tell_findings({item.line: item for one in variants.values() for item in one.refused}.values(), settings.progress)
    labels = [variant.label for variant in variants.values()]
    titles = [one.label if labels.count(one.label) == 1 else one.models for one in variants.values()]
    if missing := left_out(out, document, titles):
        back = "" if settings.fresh else "; named beside the others they come back from the journals"
        settings.progress.say(f"`{out}` held {missing}, which this sweep does not name and drops from its table{back}")
    with disk_errors(out), ExitStack() as held:
        refused: list[SpecError] = []
        # before anything is paid for: a journal that another process holds would end this after hours
        opened = [
            (variant, held.enter_context(_journal(variant, out, fresh=settings.fresh))) for variant in variants.values()
        ]
        for (variant, journal), title in zip(opened, titles, strict=True):
            try:
                document["tables"].append(_table(variant, title, journal, root, settings))
            except SpecError as error:
                refused.append(error)  # this model's window cannot hold a prompt; the others have their tables
            else:
                write_sweep(out, document)
        if refused:
            raise SpecError([item for error in refused for item in error.diagnostics])
    return Swept(out, document)


def parse_strategies(text: str) -> tuple[Strategy, ...]:
    """`all`, or strategies between commas: `Π→Θ`, `prompts+weights`, `prompts->weights`, `vanilla`.

    Raises UsageError BTC585.
    """
    if text.strip() == "all":
        return PAPER
    return in_order(_strategy(part.strip()) for part in text.split(","))


def _strategy(text: str) -> Strategy:
    if text in ("vanilla", "zero-shot"):
        return ()
    names = [name.strip() for name in re.split(r"→|->|\+", text)]
    for name in names:
        if name not in _STEP_NAMES:
            raise UsageError.of(
                "BTC585",
                f"unknown step `{name}` in strategy `{text}`" if name else f"strategy `{text}` lacks a step",
                help=f"{did_you_mean(name, (*_STEP_NAMES, 'vanilla', 'all'), what='steps')}; write "
                "`--strategies prompts,weights,prompts+weights`, `--strategies all`, or `vanilla` for no step",
            )
    return tuple(_STEP_NAMES[name] for name in names)


def parse_seeds(text: str) -> tuple[int, ...]:
    """Whole numbers from 0 between commas, each once, ascending. Raises UsageError BTC585."""
    parts = [part.strip() for part in text.split(",")]
    wrong = next((part for part in parts if not (part.isascii() and part.isdigit() and len(part) < 19)), None)
    if wrong is not None:
        raise UsageError.of(
            "BTC585", f"`{wrong}` is no seed", help="seeds are whole numbers from 0, as in `--seeds 0,1,2`"
        )
    return tuple(sorted({int(part) for part in parts}))


def spread(overrides: Sequence[str]) -> list[tuple[str, ...]]:
    """The overrides of each table: where that of a model holds several values, every choice of one of them."""
    choices: list[list[str]] = []
    for override in overrides:
        found = _MODEL_SETTING.match(override)
        value = override[found.end() :].strip() if found else ""
        if found is None or "," not in value or value[0] in "{\"'":
            choices.append([override])
            continue
        values = [one.strip() for one in value.removeprefix("[").removesuffix("]").split(",")]
        if not all(values):
            raise UsageError.of("BTC585", f"an empty model id in `{override}`", help="write `--set model.id=A,B`")
        choices.append([found.group(0) + one for one in dict.fromkeys(values)])
    return list(product(*choices))


def _variant(path: Path, overrides: Sequence[str], root: Path, settings: SweepSettings) -> Variant:
    """The spec checked without a strategy of its own, for what cannot run is to be a line in the table.

    What training needs beside data is looked at before anything runs, as by a compile.
    """
    spec = checked(path, (*overrides, "optimize.strategy=[]"))
    kinds = tuple(dict.fromkeys(kind for strategy in settings.strategies for kind in strategy))
    asked, every = (_with_steps(spec, steps) for steps in (kinds, ("prompts", "weights")))
    if found := check_launch(spec.spec, every.sections):
        raise SpecError(found)
    require_packages(asked.sections)
    # of all steps: a journal is not to start over because other strategies are named than the last time
    identity = compile_identity(every, seed=0, cache_root=root, progress=settings.progress, tools=settings.tools)
    identity |= {"seed": "any", "sweep": SWEEP_SCHEMA}
    shown, models = (
        ", ".join(model.id for model in used_models(one.sections, spec.program, spec.judges)) for one in (spec, every)
    )
    return Variant(shown, models, asked, identity, _refused(path, overrides, kinds))


def _refused(path: Path, overrides: Sequence[str], kinds: Strategy) -> tuple[Diagnostic, ...]:
    """What is wrong with the steps in a spec that is right without any."""
    try:
        build_sections(load_spec(path, overrides=(*overrides, f"optimize.strategy=[{', '.join(kinds)}]")))
    except SpecError as error:
        return tuple(replace(item, severity="warning") for item in error.diagnostics)
    return ()


def _with_steps(spec: CheckedSpec, steps: Strategy) -> CheckedSpec:
    optimize = replace(spec.sections.optimize, strategy=steps)
    return replace(spec, sections=replace(spec.sections, optimize=optimize))


def _journal(variant: Variant, out: Path, *, fresh: bool) -> Journal:
    """The journal of one model in the sweep into `out`, locked. Raises CompileError BTC460, BTC462 and BTC464."""
    slug = re.sub(r"[^A-Za-z0-9.-]+", "-", variant.label.rstrip("/").rpartition("/")[2])[:40]
    folder = out.parent / f".{out.name}.journals" / f"{slug}-{digest(variant.models)[:8]}"
    return Journal.open(folder, variant.identity, fresh=fresh)


def _table(variant: Variant, title: str, journal: Journal, root: Path, settings: SweepSettings) -> dict[str, Any]:
    """The table of one model under `title`, from the journal where it was finished before."""
    strategies, seeds = in_order(settings.strategies), sorted(set(settings.seeds))
    wanted = f"table of {', '.join(map(label, strategies))}; seeds {', '.join(map(str, seeds))}"
    tell_opening(journal, settings.progress)
    settings.progress.say(f"model {title}: {len(strategies)} strategies, seeds {', '.join(map(str, seeds))}")
    table: dict[str, Any] = journal.memo(
        wanted,
        lambda: _swept(variant, journal, root, settings),
        keep=lambda table: not table["failures"],  # what failed may have done so for want of memory or a server
    )
    return table | {"model": title}


def _swept(variant: Variant, journal: Journal, root: Path, settings: SweepSettings) -> dict[str, Any]:
    """Opens everything, runs the strategies, and closes it all."""
    spec = variant.spec
    with open_workbench(
        spec,
        journal,
        cache_root=root,
        progress=settings.progress,
        opener=settings.opener,
        tools=settings.tools,
        clock=settings.clock,
    ) as bench:

        def task_of(seed: int, steps: Strategy) -> StrategyTask:
            branch = Branch(journal, seed=seed, steps=steps, apart=bench.fixed_parts)
            return bench.task(branch, seed=seed, strategy=steps)

        cells = run_sweep(settings.strategies, settings.seeds, task_of, steps=settings.steps)
        return {
            "model": variant.label,
            **sweep_table(
                cells,
                binary=build_metric(spec.sections.metric, spec.judges).binary,
                data={name: facts.examples for name, facts in data_facts(spec.splits).items()},
            ),
            "fixed_parts": bench.fixed_parts,
        }
