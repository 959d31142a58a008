"""`load("artifacts/iris")(petal_length=4.7, …)`: a verified bundle as a function.

The model is opened at the first use, or by `open`. Knows nothing of optimising, training or HTTP.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, Self

from bt_compiler.artifact.bundle import Bundle, check_adapter, of_another_version, read_bundle
from bt_compiler.artifact.manifest import check_base
from bt_compiler.data import make_example
from bt_compiler.data.example import Example
from bt_compiler.diagnostics import Diagnostic
from bt_compiler.engine.progress import Progress, Silent
from bt_compiler.engine.request import Backend, turn_of
from bt_compiler.engine.trace import Failure, Trace
from bt_compiler.errors import BtcError, BundleError, SpecError, UsageError
from bt_compiler.graph.candidate import Adapter
from bt_compiler.runtime.batch import predict_batch
from bt_compiler.runtime.inputs import InputCheck
from bt_compiler.runtime.outputs import Outputs, finished
from bt_compiler.runtime.session import Session
from bt_compiler.spec import Sections, Spec, build_sections, json_schema_of_fields, load_spec, show_type
from bt_compiler.spec.sections import ModelSection
from bt_compiler.spec.types import Field

if TYPE_CHECKING:
    from bt_compiler.artifact.changed_code import ChangedCode
    from bt_compiler.artifact.changed_model import ChangedModel
    from bt_compiler.engine.executor import Engine
    from bt_compiler.engine.retrieval import Retriever
    from bt_compiler.engine.tools import Tool

OpenBackend = Callable[[ModelSection], Backend]


class PredictionError(BtcError):
    """The program failed on this one input; code and message are those of the step that failed."""


def load(
    path: str | Path,
    *,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
    cache_root: str | Path | None = None,
    opener: OpenBackend | None = None,
    tools: str | Path | None = None,
    on_change: Callable[[ChangedCode | ChangedModel], None] | None = None,
) -> Predictor:
    """A predictor for the bundle at `path`; every hash is verified now, the model is opened at the first use.

    `overrides` (`model.endpoints=[…]`) change the bundle's resolved spec, for endpoints and paths of this machine.
    `tools` is the Python file of tools of kind `function`, which a bundle does not hold.
    `opener` opens backends in another way than the spec's engine. `on_change` is told, before anything runs, where an
    installed package has other code for a tool than at the compile, and where a server is asked for another model;
    without it `progress` is, or a UserWarning is given.
    Raises BundleError, SpecError, UsageError (BTC586)
    where an override would change the program.
    """
    from bt_compiler.engine.cache import cache_root as default_root

    bundle = read_bundle(Path(path))
    spec, sections = _read_spec(bundle, overrides)
    if overrides:
        _refuse_another_program(bundle, spec)
    root = default_root(os.environ) if cache_root is None else Path(cache_root).absolute()
    file = None if tools is None else Path(tools).absolute()
    told = Silent() if progress is None else progress
    tell = on_change or (_warned if progress is None else partial(_said, told))
    return Predictor(bundle, sections, progress=told, cache_root=root, opener=opener, tools=file, on_change=tell)


def _said(progress: Progress, change: ChangedCode | ChangedModel) -> None:
    progress.say(change.finding(gate=False).line)


def _warned(change: ChangedCode | ChangedModel) -> None:
    warnings.warn(change.finding(gate=False).message, stacklevel=2)


_DONE = "optimize.strategy=[]"
"""What was to be optimised is done: whether a step could follow its strategy is no matter of a bundle."""


def _read_spec(bundle: Bundle, overrides: Sequence[str]) -> tuple[Spec, Sections]:
    """The bundle's spec with overrides applied. Raises SpecError, and BundleError (BTC552) where even without them this
    version cannot read what another one wrote.
    """
    try:
        spec = load_spec(bundle.spec, overrides=(*overrides, _DONE))
        return spec, build_sections(spec)
    except SpecError as error:
        if overrides:
            _read_spec(bundle, ())
        elif foreign := of_another_version(bundle.folder, bundle.manifest, f"its spec: {error.diagnostics[0].message}"):
            raise foreign from error
        raise


def _refuse_another_program(bundle: Bundle, changed: Spec) -> None:
    """Raises UsageError. Judges are no part of the program: they may be changed, and the models of their own."""
    before, after = load_spec(bundle.spec, overrides=[_DONE]).identity(), changed.identity()
    parts = [name for name in ("types", "signatures", "program") if before.get(name) != after.get(name)]
    for module in bundle.program.modules:
        name, model = module.declared, module.model
        if before["modules"][name] != after["modules"].get(name):
            parts.append(f"modules.{name}")
        elif _generation(before, model) != _generation(after, model):
            parts.append("model.generation" if model == "default" else f"models.{model}.generation")
    if parts:
        raise UsageError.of(
            "BTC586",
            f"`--set` cannot change `{parts[0]}` of a bundle: its program is compiled and stays as it is",
            help="compile the spec again with that value; endpoints, paths, data, metric and batch can be set here",
        )


def _generation(document: Mapping[str, Any], model: str) -> Any:
    """How a model generates: each module of a bundle has its own copy of it."""
    models = {"default": document.get("model"), **document.get("models", {})}
    return (models.get(model) or {}).get("generation")


class Predictor:
    """A bundle as a function of its program's inputs; also a context manager. Threads may share one."""

    def __init__(
        self,
        bundle: Bundle,
        sections: Sections,
        *,
        progress: Progress,
        cache_root: Path,
        opener: OpenBackend | None,
        on_change: Callable[[ChangedCode | ChangedModel], None],
        tools: Path | None = None,
    ) -> None:
        self.bundle = bundle
        """The verified bundle."""
        self.inputs: tuple[Field, ...] = bundle.program.inputs
        self.outputs: tuple[Field, ...] = tuple(Field(name=one.name, type=one.type) for one in bundle.program.out)
        self.check = InputCheck(self.inputs)
        """Validates and converts an input object; `check.schema` is its JSON Schema."""
        self.output_schema: Mapping[str, Any] = json_schema_of_fields(self.outputs)
        self._sections = sections
        self._progress = progress
        self._cache_root = cache_root
        self._opener = opener or _opener(cache_root, progress)
        self._reads_ahead = opener is None
        self._on_change = on_change
        self._tools_file = tools
        self._opening = RLock()  # a signal's handler may close while its own thread opens
        self._engine: Engine | None = None
        self._session: Session | None = None
        self._process = 0

    def __repr__(self) -> str:
        inputs, outputs = (
            ", ".join(f"{one.name}: {show_type(one.type)}" for one in fields) for fields in (self.inputs, self.outputs)
        )
        return f"<Predictor {self.bundle.manifest.name}({inputs}) -> {outputs}>"

    def open(self) -> Session:
        """Opens models, with their adapters, and retrievers once and checks that they are the bundle's. Raises
        BackendError, BundleError, UsageError (BTC571) in a process that was forked since.
        """
        if self._elsewhere():
            raise UsageError.of(
                "BTC571",
                f"this predictor was opened in process {self._process} and does not work in another",
                help="load the bundle in the process that uses it, or start processes with `spawn`",
            )
        with self._opening:
            if self._session is not None and self._session.over:  # an exception left a step of it halfway
                self._let_go()
            if self._session is None:
                from bt_compiler.engine.backends import read_weights_ahead
                from bt_compiler.engine.executor import Engine, Execution

                if self._reads_ahead:
                    read_weights_ahead(self._models(), cache_root=self._cache_root, progress=self._progress)
                retrievers = self._retrievers()
                tools = self._tools()
                backends = self._backends()
                engine = Engine(backends=backends, retrievers=retrievers, tools=tools, turn=turn_of(backends.values()))
                bundle, seed = self.bundle, self.bundle.manifest.seed
                try:
                    running = Execution(engine=engine, program=bundle.program, candidate=bundle.candidate, seed=seed)
                    session = Session(running)
                except BaseException:
                    engine.close()
                    raise
                self._engine, self._session, self._process = engine, session, os.getpid()
            return self._session

    def engine(self) -> Engine:
        """The engine with models and retrievers open, for whoever scores a whole split. Raises as `open`."""
        self.open()
        if self._engine is None:
            raise RuntimeError("the predictor was closed while it was opened")
        return self._engine

    @property
    def sections(self) -> Sections:
        """The settings of the bundle's spec, overrides applied."""
        return self._sections

    def __call__(self, /, *unnamed: Any, **inputs: Any) -> Outputs:
        """Outputs for one input, whose values are given by name.

        Raises TypeError for values without one, InputError (a ValueError), PredictionError, BackendError.
        """
        if unnamed:
            names = ", ".join(f"{field.name}=…" for field in self.inputs)
            raise TypeError(f"inputs are given by name: `({names})`, or in one mapping to `predict`")
        return self.predict(inputs)

    def predict(self, inputs: Mapping[str, Any]) -> Outputs:
        """As calling, with the inputs in one mapping."""
        example = self.example(inputs)
        session = self.open()
        return outputs_of(session.wait(session.submit(example)))

    def batch(self, rows: Iterable[Any], *, window: int = 256) -> Iterator[dict[str, Any]]:
        """One result a row, in order: `{"outputs": {…}}` or `{"error": {"code", "message", "node"}}`.

        At most `window` rows are held at a time, so that a stream of any length takes the same memory. What is wrong
        with one row is in its result; BackendError is raised where the backend fails as a whole, or where the predictor
        was closed meanwhile (BTC572). Raises TypeError for one input in place of many.
        """
        if isinstance(rows, str | bytes | Mapping):
            raise TypeError("`batch` takes many inputs, each as for `predict`; write `[…]` around a single one")
        return predict_batch(self.open(), self.example, rows, window=window)

    def example(self, inputs: Any) -> Example:
        """The checked inputs as an example. Raises InputError."""
        return make_example(self.check(inputs), {})

    def close(self) -> None:
        """Gives models back; the next use opens them again. In a forked process they stay the first one's."""
        if self._elsewhere():
            self._session = self._engine = None
            return
        session = self._session
        if session is not None:
            session.close()  # before the lock, whose holder may wait for the step that this thread was called from
        with self._opening:
            self._let_go()

    def _let_go(self) -> None:
        """Closes what is open; the engine is used no more, whatever becomes of closing it."""
        if self._session is not None:
            self._session.close()
        engine, self._engine, self._session = self._engine, None, None
        if engine is not None:
            engine.close()

    def _elsewhere(self) -> bool:
        """Whether what is open belongs to the process that this one was forked from: its threads are not here."""
        return self._session is not None and self._process != os.getpid()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _backends(self) -> dict[str, Backend]:
        """By model name; on a failure those that were opened are closed."""
        opened: dict[str, Backend] = {}
        try:
            for section in self._models():
                opened[section.name] = self.backend(section.name)
                if adapters := self._adapters(section.name):
                    opened[section.name].hold(adapters)
        except BaseException:
            for backend in opened.values():
                backend.close()
            raise
        return opened

    def _models(self) -> list[ModelSection]:
        """Those that the program's modules ask, in the order of the spec."""
        names = {module.model for module in self.bundle.program.modules}
        return [section for section in self._sections.models if section.name in names]

    def _adapters(self, model: str) -> list[Adapter]:
        """Those that calls of the model name, verified again: the folder may be another than at `load` by now."""
        candidate, modules = self.bundle.candidate, self.bundle.program.modules
        named = [candidate.adapter_for(module.name) for module in modules if module.model == model]
        adapters = {adapter.sha256: adapter for adapter in named if adapter is not None}
        for adapter in adapters.values():
            check_adapter(self.bundle.folder, adapter)
        return list(adapters.values())

    def backend(self, model: str) -> Backend:
        """Opens one model of the spec, of the judge of its metric for one; whoever asks closes it.

        Raises BackendError, and BundleError where it is not the one that the bundle was compiled on.
        """
        from bt_compiler.artifact.changed_model import changed_model

        section = next(one for one in self._sections.models if one.name == model)
        if (change := changed_model(self.bundle.manifest, section)) is not None:
            self._on_change(change)
        found = self._opener(self._as_compiled(section))
        try:
            check_base(self.bundle.manifest, found, model=model)
        except BaseException:
            found.close()
            raise
        return found

    def _as_compiled(self, section: ModelSection) -> ModelSection:
        """The section with the dtype that the compile measured, where the engine is still the same."""
        facts = self.bundle.manifest.models.get(section.name)
        if facts is None or section.dtype != "auto" or facts.engine != section.engine:
            return section
        return replace(section, dtype=facts.dtype)

    def _retrievers(self) -> dict[str, Retriever]:
        """Carried indexes from the bundle, the others from their corpora; all have to be the compile's."""
        if not self.bundle.program.retrievers:
            return {}
        from bt_compiler.engine.retrieval import mend, open_retrievers, reachable
        from bt_compiler.engine.retrieval.corpus_rows import in_hub

        names = [retriever.name for retriever in self.bundle.program.retrievers]
        for section in reachable(names, self._sections.retrievers):
            corpus = section.corpus
            if corpus is None or section.name in self.bundle.indexes or in_hub(corpus) or not _gone(Path(corpus.path)):
                continue
            message = f"corpus `{corpus.path}` of retriever `{section.name}` is gone, and the bundle carries no index"
            raise BundleError.of("BTC563", message, help=mend(section))
        return open_retrievers(
            names,
            self._sections.retrievers,
            cache_root=self._cache_root,
            progress=self._progress,
            carried=self.bundle.indexes,
            expected=self.bundle.manifest.identity["retrievers"],
        )

    def _tools(self) -> dict[str, Tool]:
        """Checked before one is run."""
        from bt_compiler.artifact.changed_code import changed_code
        from bt_compiler.engine.tools import open_tools
        from bt_compiler.engine.tools.registry import tool_digest

        names = {tool.name for tool in self.bundle.program.tools}
        sections = [section for section in self._sections.tools if section.name in names]
        expected = self.bundle.manifest.identity.get("tools", {})
        for section in sections:
            if tool_digest(section, self._tools_file) != expected.get(section.name):
                raise BundleError.of(
                    "BTC579",
                    f"tool `{section.name}` is not the one that the bundle was compiled with",
                    help="give the same file or package version, or compile again with this one",
                )
        for change in changed_code(self.bundle.manifest, tools=sections):
            self._on_change(change)
        return open_tools(sections, file=self._tools_file)


def _gone(path: Path) -> bool:
    try:
        return not path.exists()
    except OSError:  # its folder may not be entered: whoever reads it says so
        return False


def outputs_of(trace: Trace) -> Outputs:
    """The outputs of a finished run. Raises PredictionError where it failed."""
    found = finished(trace)
    if isinstance(found, Failure):
        notes = (f"in step `{found.node}`",) if found.node is not None else ()
        raise PredictionError([Diagnostic(code=found.code, message=found.message, notes=notes)])
    return Outputs(found)


def _opener(cache_root: Path, progress: Progress) -> OpenBackend:
    def opened(section: ModelSection) -> Backend:
        from bt_compiler.engine.backends import open_backend

        return open_backend(section, cache_root=cache_root, choices=lambda _, measure: measure(), progress=progress)

    return opened
