"""Everything open that strategies run on: models, retrievers, metrics, the completion cache and a journal.

A compile runs one strategy on it, a sweep many. Knows sections and parts, nothing of strategies.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bt_compiler.compiler.check import CheckedSpec
from bt_compiler.compiler.identity import used_models, used_tools
from bt_compiler.compiler.opening import (
    OpenBackend,
    backend_opener,
    open_models,
    running_tools,
)
from bt_compiler.diagnostics import Diagnostic
from bt_compiler.engine.backends import read_weights_ahead
from bt_compiler.engine.cache import CompletionCache, CompletionStore, cache_path
from bt_compiler.engine.executor import Engine
from bt_compiler.engine.metrics import Metric, build_metric
from bt_compiler.engine.progress import Progress
from bt_compiler.engine.request import Backend, Completion, in_fixed_parts, turn_of
from bt_compiler.engine.retrieval import Retriever, ids_within, open_retrievers, refuse_shared_ids
from bt_compiler.engine.tools import Tool
from bt_compiler.engine.window import least_length
from bt_compiler.errors import SpecError
from bt_compiler.graph import meetings, spec_candidate
from bt_compiler.optimize.accounts import AccountedStore
from bt_compiler.optimize.budget import Limit, LimitedBudget, Unlimited
from bt_compiler.optimize.journal import Journal, StepJournal
from bt_compiler.optimize.strategy import StrategyTask
from bt_compiler.optimize.whole_runs import WholeRuns
from bt_compiler.spec.sections import ModelSection, Price, StepKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Workbench:
    """What is open; see `open_workbench`."""

    spec: CheckedSpec
    models: tuple[ModelSection, ...]
    backends: Mapping[str, Backend]
    retrievers: Mapping[str, Retriever]
    """Those that the program asks, and all that they are made of."""
    tools: Mapping[str, Tool]
    metric: Metric
    accept: Metric
    cache: CompletionStore
    progress: Progress
    clock: Callable[[], float]

    @property
    def fixed_parts(self) -> bool:
        """Whether rows of a model depend on their batch, so that runs are kept whole."""
        return any(in_fixed_parts(backend) for backend in self.backends.values())

    def task(
        self,
        journal: StepJournal,
        *,
        seed: int,
        strategy: tuple[StepKind, ...] | None = None,
        limit: Limit | None = None,
    ) -> StrategyTask:
        """A task whose steps keep to `journal`; `strategy`: another than the spec's; `limit`: what it may spend."""
        settings = self.spec.sections.optimize
        engine, store = self._engine(journal)
        splits = self.spec.splits
        return StrategyTask(
            program=self.spec.program,
            zero_shot=spec_candidate(self.spec.program),
            engine=engine,
            store=store,
            splits=splits,
            metric=self.metric,
            accept=self.accept,
            settings=settings if strategy is None else replace(settings, strategy=strategy),
            journal=journal,
            seed=seed,
            progress=self.progress,
            budget=Unlimited()
            if limit is None
            else LimitedBudget(
                limit,
                account=store.account,
                journal=journal,
                reserve=self._reserve(),
                zero_shot=len(splits.test) + self._rated(),
                prices=self._prices(),
            ),
        )

    def _prices(self) -> dict[str, Price]:
        return {model.name: model.price for model in self.models if model.price is not None}

    def _reserve(self) -> int:
        """Examples that are scored after the last step, those included that a judge compares with people's ratings."""
        return len(self.spec.splits.dev) + 2 * len(self.spec.splits.test) + self._rated()

    def _rated(self) -> int:
        return sum(self.spec.rated(judge) for judge in self.spec.judges.values())

    def _engine(self, journal: StepJournal) -> tuple[Engine, AccountedStore]:
        """The engine with its one store: journal, then cache. Without the cache where runs are kept whole."""
        turn = turn_of(self.backends.values())
        engine = Engine(backends=self.backends, retrievers=self.retrievers, tools=self.tools, turn=turn)
        prices = self._prices()

        def answered(model: str, completion: Completion) -> None:
            if model in prices:
                price = prices[model].of(completion.prompt_tokens, completion.completion_tokens)
                store.pay(price, cached=completion.cached)

        if not self.fixed_parts:
            store = AccountedStore((journal.completions, self.cache), clock=self.clock)
            return replace(engine, stores=(store,), answered=answered), store
        runs = WholeRuns(journal.completions)
        store = AccountedStore((runs,), clock=self.clock)
        return replace(engine, stores=(store,), ended=runs.commit, answered=answered), store


def opened_retrievers(spec: CheckedSpec, *, cache_root: Path, progress: Progress) -> dict[str, Retriever]:
    """Those that the program asks and all that they are made of. Raises as `open_retrievers`, and DataError BTC390."""
    sections, program = spec.sections.retrievers, spec.program
    opened = open_retrievers(
        [one.name for one in program.retrievers], sections, cache_root=cache_root, progress=progress
    )
    refuse_shared_ids(meetings(program), sections, lambda section: ids_within(opened[section.name]))
    return opened


@contextmanager
def open_workbench(
    spec: CheckedSpec,
    journal: Journal,
    *,
    cache_root: Path,
    progress: Progress,
    opener: OpenBackend | None = None,
    tools: Path | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Workbench]:
    """Opens all that the spec names and closes it at the end. Raises BackendError, DataError and SpecError (BTC523).

    What is chosen by measuring is chosen once and kept in `journal`. `opener`: None opens models as the spec says.
    `tools`: Python file of the spec's tools of kind `function`.
    """
    sections = spec.sections
    metric, accept = build_metric(sections.metric, spec.judges), sections.optimize.accept.metric
    models = used_models(sections, spec.program, spec.judges)
    if opener is None:
        read_weights_ahead(models, cache_root=cache_root, progress=progress)
    retrievers = opened_retrievers(spec, cache_root=cache_root, progress=progress)
    with (
        closing(CompletionCache(cache_path(cache_root))) as cache,
        open_models(models, choices=journal.memo, opener=opener or backend_opener(cache_root, progress)) as backends,
        running_tools(used_tools(sections, spec.program), file=tools) as running,
    ):
        refuse_what_never_fits(spec, backends)
        yield Workbench(
            spec=spec,
            models=models,
            backends=backends,
            retrievers=retrievers,
            tools=running,
            metric=metric,
            accept=metric if accept is None else build_metric(accept, spec.judges),
            cache=cache,
            progress=progress,
            clock=clock,
        )


def refuse_what_never_fits(spec: CheckedSpec, backends: Mapping[str, Backend]) -> None:
    """Raises SpecError BTC523 with the modules on `backends` that no example could be asked with, before any is."""
    found: list[Diagnostic] = []
    modules = (*spec.program.modules, *(judge.module for judge in spec.judges.values()))
    for module in {module.declared: module for module in modules}.values():
        backend = backends.get(module.model)
        if backend is None:
            continue
        window, least = backend.context_window, least_length(module, backend)
        if window is not None and least is not None and sum(least) > window:
            found.append(
                Diagnostic(
                    code="BTC523",
                    message=f"the prompt of module `{module.declared}` has {least.prompt} tokens before any input and "
                    f"its completion may take {least.completion}, more than the context window of "
                    f"{window}",
                    span=spec.spec.span(("modules", module.declared), key=True),
                    help="shorten its instructions, descriptions and `demos`, lower `max_tokens`, or use a model with "
                    "a longer window",
                )
            )
    if found:
        raise SpecError(found)
