"""`btc compile`: from a spec file to a bundle folder, the whole story on one page.

    check ─> journal ─> models, retrievers ─> strategy ─> bundle ─> journal says finished

Everything expensive goes through the journal beside the bundle, so that the same command resumes where it was stopped.
Knows the order of things; what they are is said elsewhere.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from bt_compiler.artifact.bundle import refuse_foreign, verify_bundle, write_bundle
from bt_compiler.artifact.contents import BundleContents
from bt_compiler.compiler.check import CheckedSpec, checked
from bt_compiler.compiler.handover import Finding, bundle_contents
from bt_compiler.compiler.identity import brought_code, compile_identity, require_packages, searched, used_models
from bt_compiler.compiler.opening import OpenBackend
from bt_compiler.compiler.workbench import open_workbench
from bt_compiler.diagnostics import Diagnostic
from bt_compiler.engine.cache import cache_root
from bt_compiler.engine.progress import Progress, Silent
from bt_compiler.errors import BundleError, CompileError, UsageError
from bt_compiler.optimize.budget import Limit
from bt_compiler.optimize.journal import Journal, journal_folder
from bt_compiler.optimize.step import OptimizerStep
from bt_compiler.optimize.strategy import STEPS, run_strategy
from bt_compiler.spec import yaml_text
from bt_compiler.spec.optimizing import REMOTE_ENGINES

ARTIFACTS = Path("artifacts")
"""Where bundles go by default, relative to the working folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileSettings:
    """How to compile, beside the spec."""

    out: Path | None = None
    """The bundle folder; None: `artifacts/NAME`."""
    overrides: Sequence[str] = ()
    """`--set` arguments."""
    seed: int = 0
    fresh: bool = False
    """Start over, whatever the journal holds."""
    cache: Path | None = None
    """Root of all caches; None: as the environment says."""
    progress: Progress = field(default_factory=Silent)
    clock: Callable[[], float] = time.monotonic
    opener: OpenBackend | None = None
    """Opens the models; None: as the spec names them."""
    tools: Path | None = None
    """Python file of the spec's tools of kind `function`."""
    with_index: bool = False
    """The bundle carries the indexes of its retrievers, and so needs no corpus."""
    budget: Limit | None = None
    """The most that it may spend."""
    steps: Mapping[str, OptimizerStep] = field(default_factory=lambda: STEPS)


def compile_spec(
    path: Path,
    *,
    out: Path | None = None,
    overrides: Sequence[str] = (),
    seed: int = 0,
    fresh: bool = False,
    progress: Progress | None = None,
    tools: Path | None = None,
    budget: Limit | None = None,
    with_index: bool = False,
) -> Path:
    """Compiles the spec at `path` into the bundle folder `out` and returns it.

    `tools` is the Python file of the spec's tools of kind `function`; `budget` the most that may be spent. With
    `with_index` the bundle carries the indexes of its retrievers and runs without their corpora.

    An unfinished compile of the same spec, data, seed, packages and model into the same folder is resumed; a finished
    one whose bundle is intact is left as it is, and `progress.say` tells so. Raises SpecError, DataError, BackendError,
    BundleError (BTC560 `out` is something else, BTC569 there is no index to carry), UsageError (BTC467 a budget in
    money, but no prices) and CompileError (BTC460 another compile runs into this folder, BTC461 it cannot be written,
    BTC462 the disk is full, BTC466 the budget is too small). A KeyboardInterrupt passes through: whatever was finished
    is in the journal by then.
    """
    told = Silent() if progress is None else progress
    settings = CompileSettings(
        out=out,
        overrides=overrides,
        seed=seed,
        fresh=fresh,
        progress=told,
        tools=tools,
        budget=budget,
        with_index=with_index,
    )
    return compile_with(path, settings)


def compile_with(path: Path, settings: CompileSettings) -> Path:
    """As `compile_spec`, with every part that can be replaced."""
    spec = checked(path, settings.overrides)
    tell_findings(spec.warnings, settings.progress)
    if settings.with_index:
        _refuse_nothing_to_carry(spec)
    out = (settings.out or ARTIFACTS / spec.program.name).absolute()
    with disk_errors(out):
        refuse_foreign(out)  # before anything is paid for
    _check_prices(spec, settings.budget)
    root = cache_root(os.environ) if settings.cache is None else settings.cache
    require_packages(spec.sections)
    identity = compile_identity(
        spec, seed=settings.seed, cache_root=root, progress=settings.progress, tools=settings.tools
    )
    with disk_errors(out), Journal.open(journal_folder(out), identity, fresh=settings.fresh) as journal:
        tell_opening(journal, settings.progress)
        if _up_to_date(journal, out, spec, settings):
            settings.progress.say(f"{out} is up to date; `--fresh` compiles again")
            return out
        contents, cut_short = _optimised(spec, journal, root, settings)
        manifest = write_bundle(out, contents)
        # what a budget cut short goes on under another one
        ended = {"budget": settings.budget.text} if cut_short and settings.budget is not None else {}
        journal.finish({"digest": manifest.digest, **ended})
    return out


def _optimised(
    spec: CheckedSpec, journal: Journal, root: Path, settings: CompileSettings
) -> tuple[BundleContents, bool]:
    """Opens everything, runs the strategy, and closes it all before the bundle is written.

    True beside the contents: something was left out for want of budget.
    """
    started, code = settings.clock(), brought_code(spec.sections, spec.program)
    with open_workbench(
        spec,
        journal,
        cache_root=root,
        progress=settings.progress,
        opener=settings.opener,
        tools=settings.tools,
        clock=settings.clock,
    ) as bench:
        task = bench.task(journal, seed=settings.seed, limit=settings.budget)
        try:
            result = run_strategy(task, steps=settings.steps)
        finally:
            if settings.fresh and task.store.replayed:
                answers = "1 answer" if task.store.replayed == 1 else f"{task.store.replayed} answers"
                settings.progress.say(f"{answers} from the cache of earlier runs; `btc cache --clear` forgets them")
        contents = bundle_contents(
            Finding(
                spec=spec,
                engine=task.engine,
                models=bench.models,
                result=result,
                seed=settings.seed,
                seconds=settings.clock() - started,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                with_index=settings.with_index,
                code=code,
                budget=task.budget,
            )
        )
        if task.budget.exceeded:
            settings.progress.say(f"more was spent than the budget allows: {task.budget.spending}")
        return contents, task.budget.cut_short


def _check_prices(spec: CheckedSpec, budget: Limit | None) -> None:
    """A model elsewhere has a price, be it 0; one on this machine needs none, unless there is no price at all."""
    if budget is None or budget.unit != "money":
        return
    models = used_models(spec.sections, spec.program, spec.judges)
    unpriced = [model for model in models if model.price is None]
    lacking = [model for model in unpriced if model.engine in REMOTE_ENGINES or len(unpriced) == len(models)]
    if lacking:
        raise UsageError.of(
            "BTC467",
            f"a budget of {budget.text} is money, but model `{lacking[0].name}` has no price",
            help=f"write `price: {{prompt: 0.15, completion: 0.6}}` (a million tokens) into model `{lacking[0].name}`",
        )


def tell_findings(found: Iterable[Diagnostic], progress: Progress) -> None:
    """Says the warnings and notes of a check, a line each; where they stand is said by `btc check`."""
    for item in found:
        progress.say(item.line)


def tell_opening(journal: Journal, progress: Progress) -> None:
    """Says that work goes on, or why it starts over."""
    if journal.opened == "resumed" and journal.finished() is None:
        progress.say(f"resuming from {journal.folder}")
    elif journal.opened == "changed":
        progress.say(f"starting over, for this has changed since the last compile: {', '.join(journal.changed)}")


def _up_to_date(journal: Journal, out: Path, spec: CheckedSpec, settings: CompileSettings) -> bool:
    budget = settings.budget
    record = journal.finished()
    if record is None or ("budget" in record and record["budget"] != (budget.text if budget else None)):
        return False
    try:
        manifest = verify_bundle(out)
    except BundleError:
        return False  # gone or damaged: it is written again from the journal
    # endpoints, paths and names of keys are outside the digest, and in the spec that the bundle runs by
    told = (out / "spec.yaml").read_text(encoding="utf-8") == yaml_text(spec.spec.resolved())
    # a bundle of an earlier version does not say what plug-in code it was made with
    known = manifest.identity.get("code", {}) == brought_code(spec.sections, spec.program)
    same = manifest.digest == record["digest"] and bool(manifest.indexes) == settings.with_index
    return told and known and same


def _refuse_nothing_to_carry(spec: CheckedSpec) -> None:
    if any(section.corpus is not None for section in searched(spec.sections, spec.program)):
        return
    raise BundleError.of(
        "BTC569",
        f"`{spec.program.name}` searches no corpus: there is no index that its bundle could carry",
        help="leave `--with-index` out; a server keeps its own index",
    )


_NO_PLACE = frozenset(
    getattr(errno, name) for name in ("EROFS", "EACCES", "EPERM", "ENOTDIR", "EEXIST", "ENAMETOOLONG", "ELOOP")
)


@contextmanager
def disk_errors(out: Path) -> Iterator[None]:
    """The boundary at which a full or read-only disk becomes a message."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CompileError.of(
                "BTC462",
                f"no space is left to compile into `{out}`",
                help="make room and run the same command again: it goes on where it stopped",
                notes=(str(error),),
            ) from error
        if error.errno in _NO_PLACE:
            raise CompileError.of(
                "BTC461",
                f"`{out.parent}` cannot be written: {error.strerror}",
                help="name a bundle folder with `-o` in a place where you may create files",
                notes=(str(error),),
            ) from error
        raise
