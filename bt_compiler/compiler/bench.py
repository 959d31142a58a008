"""`btc bench`: how fast this machine generates and trains for a spec, how near its bound that is, and what would help.

Runs the zero-shot program on a few train examples, without any cache, and trains for one epoch on what it answered.
The bound is that of one large matrix product in the same dtype; attention and everything else counts as loss. Where a
model answers from elsewhere there is no bound. Knows nothing of candidates or scores.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bt_compiler.compiler.check import CheckedSpec, checked
from bt_compiler.compiler.identity import used_models, used_tools
from bt_compiler.compiler.opening import (
    OpenBackend,
    backend_opener,
    measured,
    open_models,
    running_tools,
)
from bt_compiler.compiler.workbench import opened_retrievers, refuse_what_never_fits
from bt_compiler.data.example import Example
from bt_compiler.engine.cache import cache_root
from bt_compiler.engine.executor import Engine
from bt_compiler.engine.progress import Progress, Silent
from bt_compiler.engine.request import Backend, Completion, WeightHost, turn_of, weight_host
from bt_compiler.engine.trace import Trace
from bt_compiler.errors import CompileError
from bt_compiler.graph import spec_candidate
from bt_compiler.optimize.rows import row_writer, rows_of, trainable
from bt_compiler.spec.sections import ModelSection

SCHEMA = 1
_LOW = 0.25
"""A fraction of the bound below which a larger batch may help."""
_SHARED = 0.5
"""A share of prompt tokens below which prompts have little in common."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generating:
    """One model at generating."""

    calls: int
    seconds: float
    prompt_tokens: int
    shared_tokens: int | None
    """Of these, whose computation was shared with other requests; None where servers name none."""
    completion_tokens: int
    of_bound: float | None
    """Needed FLOPs over those that the matrix product rate allows; None for a model elsewhere."""

    @property
    def tokens_a_second(self) -> float:
        """Prompt and completion tokens."""
        return (self.prompt_tokens + self.completion_tokens) / self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """One model at training."""

    rows: int
    tokens: int
    seconds: float
    of_bound: float

    @property
    def tokens_a_second(self) -> float:
        """Tokens of rows, prompts counted in."""
        return self.tokens / self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelBench:
    """All that was measured of one model."""

    model: str
    """Name in the spec."""
    id: str
    engine: str
    facts: Mapping[str, Any]
    generating: Generating | None
    """None: the program did not reach it."""
    training: Trained | None
    rates: Mapping[str, float]
    """dtype -> FLOP/s of a large matrix product; empty for a model elsewhere."""
    advice: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What `btc bench` shows."""

    name: str
    examples: int
    failed: int
    models: tuple[ModelBench, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON values with the schema version."""
        return {"schema": SCHEMA, **asdict(self)}

    def to_text(self) -> str:
        """For people; ends without a line break."""
        lines = [f"{self.name}: {self.examples} examples" + (f", {self.failed} failed" if self.failed else "")]
        for model in self.models:
            lines += ["", f"model {model.model}: {model.id}, {_facts(model)}"]
            if model.generating is not None:
                lines.append(_generating_line(model.generating))
            if model.training is not None:
                one = model.training
                lines.append(
                    f"  training    {one.tokens_a_second:>9,.0f} tokens/s   {one.rows} rows, {one.tokens} tokens in "
                    f"{one.seconds:.1f} s, {one.of_bound:.0%} of the bound"
                )
            for dtype, rate in model.rates.items():
                lines.append(f"  {dtype:<11} {rate / 1e9:>9,.0f} GFLOP/s of a large matrix product")
            lines += [f"  advice: {line}" for line in model.advice]
        return "\n".join(lines)


def bench_spec(
    path: Path,
    *,
    overrides: Sequence[str] = (),
    examples: int = 32,
    progress: Progress | None = None,
    tools: Path | None = None,
    cache: Path | None = None,
    opener: OpenBackend | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Bench:
    """Measures the spec at `path` on its first `examples` train examples.

    Raises SpecError, DataError, BackendError, and CompileError (BTC451) where there are no train examples.
    """
    spec = checked(path, overrides)
    told = Silent() if progress is None else progress
    chosen = spec.splits.train[:examples]
    if not chosen:
        raise CompileError.of("BTC451", "there are no train examples to run", help="give `data` a train split")
    root = cache_root(os.environ) if cache is None else cache
    models = used_models(spec.sections, spec.program, judges={})  # nothing is judged
    retrievers = opened_retrievers(spec, cache_root=root, progress=told)
    with (
        open_models(models, choices=measured, opener=opener or backend_opener(root, told)) as backends,
        running_tools(used_tools(spec.sections, spec.program), file=tools) as running,
    ):
        refuse_what_never_fits(spec, backends)
        engine = Engine(backends=backends, retrievers=retrievers, tools=running, turn=turn_of(backends.values()))
        _run(spec, engine, chosen[:1], told, clock)  # grammars, index pages and kernels are warm after it
        bought: list[tuple[str, Completion]] = []
        told.begin("generating", len(chosen))
        counted = replace(engine, answered=lambda model, completion: bought.append((model, completion)))
        traces, seconds = _run(spec, counted, chosen, told, clock)
        found = tuple(
            _model(spec, model, backends[model.name], bought, seconds, traces, told, clock) for model in models
        )
    failed = sum(trace.error is not None for trace in traces)
    return Bench(name=spec.program.name, examples=len(chosen), failed=failed, models=found)


def _run(
    spec: CheckedSpec, engine: Engine, examples: Sequence[Example], progress: Progress, clock: Callable[[], float]
) -> tuple[list[Trace], float]:
    start = clock()
    traces = engine.run(spec.program, spec_candidate(spec.program), examples, progress=progress)
    return traces, clock() - start


def _model(
    spec: CheckedSpec,
    model: ModelSection,
    backend: Backend,
    bought: Sequence[tuple[str, Completion]],
    seconds: float,
    traces: Sequence[Trace],
    progress: Progress,
    clock: Callable[[], float],
) -> ModelBench:
    """Seconds are those of the whole run: where a program asks several models, each of them looks slower than it is."""
    facts = backend.facts()
    answers = [completion for name, completion in bought if name == model.name]
    rates: dict[str, float] = {}
    work = (0.0, 0.0)
    host = weight_host(backend)
    if host is not None:
        from bt_compiler.engine.backends.measuring import device_name, product_rate, token_work

        rates = {dtype: product_rate(dtype, device_name()) for dtype in ("float32", "bfloat16")}
        if "products" in facts:
            rates["float32"] = product_rate("float32", device_name(), facts["products"])
        with host.borrow() as borrowed:
            work = token_work(borrowed)
    bound = rates.get(str(facts.get("dtype"))) if isinstance(backend, WeightHost) else None
    generating = _generating(answers, seconds, work, bound) if answers else None
    if generating is not None and not generating.shared_tokens and model.endpoints:
        generating = replace(generating, shared_tokens=None)  # many servers never say
    training = None if host is None else _training(spec, model, host, traces, work, rates, progress, clock)
    return ModelBench(
        model=model.name,
        id=model.id,
        engine=model.engine,
        facts=facts,
        generating=generating,
        training=training,
        rates=rates,
        advice=tuple(_advice(model, facts, generating, rates)),
    )


def _generating(
    answers: Sequence[Completion], seconds: float, work: tuple[float, float], bound: float | None
) -> Generating:
    prompt, shared = sum(one.prompt_tokens for one in answers), sum(one.shared_tokens for one in answers)
    completion = sum(one.completion_tokens for one in answers)
    # a shared prefix is computed once; of how many different ones there were, the longest is all that is known here
    computed = prompt - shared + max(one.shared_tokens for one in answers) + completion
    needed = work[0] * computed + work[1] * completion
    return Generating(
        calls=len(answers),
        seconds=seconds,
        prompt_tokens=prompt,
        shared_tokens=shared,
        completion_tokens=completion,
        of_bound=None if bound is None else needed / bound / seconds,
    )


def _training(
    spec: CheckedSpec,
    model: ModelSection,
    host: WeightHost,
    traces: Sequence[Trace],
    work: tuple[float, float],
    rates: Mapping[str, float],
    progress: Progress,
    clock: Callable[[], float],
) -> Trained | None:
    """One epoch on what the program answered, right or wrong; None where nothing of this model is to be trained."""
    modules = {module.name for module in trainable(spec.program) if module.model == model.name}
    if not modules or "weights" not in spec.sections.optimize.strategy:
        return None
    from bt_compiler.optimize.trainer import fast_precision, train_adapter

    zero_shot = spec_candidate(spec.program)
    writer = row_writer(spec.program, zero_shot, spec.sections.optimize.weights, zero_shot)
    rows = [row for one in traces for row in rows_of(one, writer=writer, source="self") if row.module in modules]
    if not rows:
        return None
    settings = replace(spec.sections.optimize.weights, epochs=1, validation=0.0, patience=None)
    precision = fast_precision()
    tokens = sum(len(host.encode_row(row.prompt, row.completion)[0]) for row in rows)
    with tempfile.TemporaryDirectory(prefix="btc-bench-") as folder:
        start = clock()
        train_adapter(
            host=host,
            rows=rows,
            validation=(),
            settings=settings,
            seed=0,
            folder=Path(folder),
            name="bench",
            progress=progress,
            precision=precision,
            checkpoint_seconds=float("inf"),
        )
        seconds = clock() - start
    # forward and the gradient of activations; that of the base's own parameters where they are trained
    needed = (3 if settings.method == "full" else 2) * work[0] * tokens
    return Trained(rows=len(rows), tokens=tokens, seconds=seconds, of_bound=needed / rates[precision] / seconds)


def _advice(
    model: ModelSection, facts: Mapping[str, Any], generating: Generating | None, rates: Mapping[str, float]
) -> list[str]:
    lines = []
    dtype = str(facts.get("dtype"))
    if rates and dtype in rates and model.dtype != "auto":
        best = max(rates, key=lambda name: rates[name])
        if rates[best] > 1.5 * rates[dtype]:
            lines.append(f"`dtype: {best}` multiplies {rates[best] / rates[dtype]:.1f} times as fast here; try `auto`")
    if generating is not None:
        shared = generating.shared_tokens
        if shared is not None and shared < _SHARED * generating.prompt_tokens:
            lines.append("prompts share little: put what is the same for all examples into the instructions")
        if generating.of_bound is not None and generating.of_bound < _LOW and generating.calls < facts.get("batch", 0):
            lines.append(f"{generating.calls} calls do not fill a batch of {facts['batch']}: more examples run faster")
        if generating.of_bound is not None and facts.get("tier") == "plain generate":
            lines.append("this architecture runs on plain `generate`; `engine: vllm` may be faster")
    if not rates and not model.endpoints:
        lines.append("nothing is known of this engine's machine")
    if len(model.endpoints) == 1 and generating is not None:
        lines.append("a second endpoint shares the load")
    return lines


def _facts(model: ModelBench) -> str:
    shown = [model.engine, *(str(model.facts[key]) for key in ("tier", "dtype", "device") if key in model.facts)]
    if "batch" in model.facts:
        shown.append(f"batch {model.facts['batch']}")
    return ", ".join(shown)


def _generating_line(one: Generating) -> str:
    share = None if one.shared_tokens is None else one.shared_tokens / max(one.prompt_tokens, 1)
    reuse = "" if share is None else f", {share:.0%} of prompts reused"
    bound = "" if one.of_bound is None else f", {one.of_bound:.0%} of the bound"
    return (
        f"  generating  {one.tokens_a_second:>9,.0f} tokens/s   {one.calls} calls, {one.prompt_tokens} prompt and "
        f"{one.completion_tokens} completion tokens in {one.seconds:.1f} s{reuse}{bound}"
    )
