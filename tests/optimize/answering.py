"""Parts for the tests of optimisers: a backend that answers by a rule and keeps count, programs small enough to see
through, and adapters that are nothing but a name.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bt_compiler.canonical import digest
from bt_compiler.data.example import Example, Splits
from bt_compiler.engine.executor import Engine
from bt_compiler.engine.metrics import build_metric
from bt_compiler.engine.progress import Silent
from bt_compiler.engine.request import Completion, Finished, PromptText, Request, WeightHost
from bt_compiler.graph import candidate_id, spec_candidate
from bt_compiler.graph.candidate import SHARED, Adapter, Candidate
from bt_compiler.graph.program import (
    Binding,
    Call,
    Carry,
    Module,
    Program,
    Ref,
    Repeat,
    Retrieve,
    RetrieverRef,
    Signature,
)
from bt_compiler.optimize.accounts import AccountedStore
from bt_compiler.optimize.journal import Journal
from bt_compiler.optimize.step import StepContext, StepResult
from bt_compiler.optimize.strategy import StrategyTask
from bt_compiler.spec.sections import Generation, MetricSection, OptimizeSection
from bt_compiler.spec.types import PASSAGES, STR, Field, Type

MOOD = Type(kind="enum", values=("good", "bad"))
METRIC = MetricSection(kind="accuracy", output="mood", label="mood")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a rule sees of a request."""

    text: str
    """The last turn."""
    demos: int
    demo_texts: tuple[str, ...]
    adapter: str | None
    """sha256."""

    def value(self, label: str) -> str:
        """The value of `Label: value` in the last turn."""
        found = re.search(rf"^{label}: (.*)$", self.text, re.M)
        assert found is not None, self.text
        return found.group(1)


class Killed(BaseException):
    """Stands for `kill -9`: passes through everything."""


@dataclass(slots=True, kw_only=True)
class RuleBackend:
    """A `Backend` whose completions are a function of the request, ended in a shuffled order."""

    rule: Callable[[Asked], str]
    die_after: int | None = None
    """Completions handed out before it is killed."""
    name: str = "rule"
    context_window: int = 100_000
    asked: list[Asked] = field(default_factory=list)
    """Every request that reached the backend, in order of answering."""
    waiting: list[Request] = field(default_factory=list)
    shuffler: random.Random = field(default_factory=lambda: random.Random(7))
    closed: bool = False
    weights: WeightHost | None = None
    """Where the weights are at hand, if they are."""

    def identity(self) -> Mapping[str, str]:
        return {"engine": "rule", "model": "rule", "dtype": "none"}

    def facts(self) -> Mapping[str, Any]:
        return {"row_invariant": True}

    def prompt_key(self, prompt: PromptText) -> Sequence[int] | str:
        return "\x00".join(f"{turn.role}\x01{turn.content}" for turn in prompt.messages)

    def count_tokens(self, prompt: PromptText) -> int:
        return sum(len(turn.content.split()) for turn in prompt.messages)

    def hold(self, adapters: Sequence[Adapter]) -> None:
        pass

    def submit(self, requests: Sequence[Request]) -> None:
        self.waiting.extend(requests)

    def poll(self, seconds: float | None = None) -> list[Finished]:
        if not self.waiting:
            return []
        if self.die_after is not None and len(self.asked) >= self.die_after:
            raise Killed
        request = self.waiting.pop(self.shuffler.randrange(len(self.waiting)))
        turns = request.prompt.messages
        shown = tuple(turn.content for turn in turns[1:-1] if turn.role == "user")
        asked = Asked(
            text=turns[-1].content,
            demos=len(shown),
            demo_texts=shown,
            adapter=None if request.adapter is None else request.adapter.sha256,
        )
        self.asked.append(asked)
        text = self.rule(asked)
        completion = Completion(
            text=text,
            finish="stop",
            prompt_tokens=self.count_tokens(request.prompt),
            completion_tokens=len(text.split()),
            adapter=asked.adapter,
        )
        return [Finished(request.id, completion)]

    def interrupt(self) -> None:
        pass  # `poll` does not wait

    def cancel(self, ids: Sequence[str]) -> None:
        self.waiting = [request for request in self.waiting if request.id not in ids]

    def close(self) -> None:
        self.closed = True


def classifier() -> Program:
    """One module `classify`: text -> mood."""
    module = Module(
        name="classify",
        kind="predict",
        signature=Signature(
            instructions="Say the mood.",
            inputs=(Field(name="text", type=STR),),
            outputs=(Field(name="mood", type=MOOD),),
        ),
        model="default",
        generation=Generation(),
    )
    call = Call(
        name="first",
        module="classify",
        inputs=(Binding(name="text", value=Ref(step=None, field="text"), type=STR),),
        outputs=module.outputs,
    )
    return Program(
        name="moods",
        inputs=(Field(name="text", type=STR),),
        nodes=(call,),
        out=(Binding(name="mood", value=Ref(step="first", field="mood"), type=MOOD),),
        modules=(module,),
        retrievers=(),
    )


def two_hops() -> Program:
    """`ask` twice in a loop with retrieval, then `classify` on what was found."""
    ask = Module(
        name="ask",
        kind="predict",
        signature=Signature(
            instructions="Ask.",
            inputs=(Field(name="context", type=PASSAGES), Field(name="text", type=STR)),
            outputs=(Field(name="query", type=STR),),
        ),
        model="default",
        generation=Generation(),
    )
    classify = replace(
        classifier().modules[0],
        signature=Signature(
            instructions="Say the mood.",
            inputs=(Field(name="context", type=PASSAGES), Field(name="text", type=STR)),
            outputs=(Field(name="mood", type=MOOD),),
        ),
    )
    text = Binding(name="text", value=Ref(step=None, field="text"), type=STR)
    hop = Call(
        name="hop",
        module="ask",
        inputs=(Binding(name="context", value=Ref(step=None, field="context"), type=PASSAGES), text),
        outputs=ask.outputs,
    )
    found = Retrieve(
        name="found",
        retriever="wiki",
        query=(Ref(step="hop", field="query"),),
        k=1,
        outputs=(Field(name="passages", type=PASSAGES),),
    )
    hops = Repeat(
        name="hops",
        times=2,
        carry=(Carry(name="context", type=PASSAGES, mode="add", value=Ref(step="found", field="passages")),),
        body=(hop, found),
        out=(),
        outputs=(Field(name="context", type=PASSAGES),),
    )
    final = Call(
        name="final",
        module="classify",
        inputs=(Binding(name="context", value=Ref(step="hops", field="context"), type=PASSAGES), text),
        outputs=classify.outputs,
    )
    return Program(
        name="hops",
        inputs=(Field(name="text", type=STR),),
        nodes=(hops, final),
        out=(Binding(name="mood", value=Ref(step="final", field="mood"), type=MOOD),),
        modules=(ask, classify),
        retrievers=(RetrieverRef(name="wiki", kind="echo", k=1),),
    )


class EchoRetriever:
    """Finds one passage a query, made of the query."""

    digest = "echo"

    def search(self, queries: Sequence[str], k: int) -> list[list[dict[str, Any]]]:
        return [[{"id": query, "title": query, "text": f"about {query}", "score": 1.0}][:k] for query in queries]


def example(text: str, mood: str | None = None) -> Example:
    """An example of either program; the truth is in its first letter."""
    labels = {"mood": mood or truth(text)}
    return Example(id=digest([text, labels])[:16], inputs={"text": text}, labels=labels)


def truth(text: str) -> str:
    return "good" if text.startswith("g") else "bad"


def wrong(text: str) -> str:
    return "bad" if truth(text) == "good" else "good"


def examples(prefix: str, count: int) -> tuple[Example, ...]:
    """Good and bad ones in turn."""
    return tuple(example(f"{'gb'[index % 2]} {prefix} {index}") for index in range(count))


def coin(*parts: Any) -> float:
    """A number in [0, 1) that follows from its parts."""
    return int(digest(list(parts))[:8], 16) / 16**8


def splits(train: int = 14, dev: int = 8, test: int = 6) -> Splits:
    return Splits(train=examples("train", train), dev=examples("dev", dev), test=examples("test", test))


def adapter(name: str) -> Adapter:
    return Adapter(name=name, path=Path("nowhere"), base_model="rule", base_digest="rule", rank=1, sha256=name)


def with_adapter(candidate: Candidate, name: str) -> Candidate:
    adapters = {SHARED: adapter(name)}
    return replace(candidate, id=candidate_id(candidate.prompts, adapters), adapters=adapters, parent=candidate.id)


def train_by_name(context: StepContext, candidate: Candidate) -> StepResult:
    """Stands for the weights step: asks the program once a train example, then gives it the adapter `tuned-INDEX`."""
    context.engine.run(context.program, candidate, context.train, seed=context.seed)
    tuned = replace(with_adapter(candidate, f"tuned-{context.index}"), prompts=context.zero_shot.prompts)
    return StepResult(candidate=tuned, kind="weights")


def engine_of(backend: RuleBackend, *stores: Any) -> Engine:
    return Engine(backends={"default": backend}, retrievers={"wiki": EchoRetriever()}, stores=stores)


def context_of(
    backend: RuleBackend,
    journal: Journal,
    *,
    program: Program | None = None,
    settings: OptimizeSection | None = None,
    train: tuple[Example, ...] | None = None,
    seed: int = 5,
) -> StepContext:
    program = program or classifier()
    metric = build_metric(METRIC)
    return StepContext(
        index=1,
        seed=seed,
        program=program,
        zero_shot=spec_candidate(program),
        engine=engine_of(backend),
        train=splits().train if train is None else train,
        metric=metric,
        accept=metric,
        settings=settings or OptimizeSection(),
        journal=journal,
        progress=Silent(),
    )


def task_of(
    backend: RuleBackend,
    journal: Journal,
    *,
    strategy: tuple[str, ...],
    data: Splits | None = None,
    cache: Any = None,
    settings: OptimizeSection | None = None,
    seed: int = 0,
) -> StrategyTask:
    program = classifier()
    metric = build_metric(METRIC)
    store = AccountedStore((journal.completions, *([] if cache is None else [cache])))
    return StrategyTask(
        program=program,
        zero_shot=spec_candidate(program),
        engine=engine_of(backend, store),
        store=store,
        splits=splits() if data is None else data,
        metric=metric,
        accept=metric,
        settings=replace(settings or OptimizeSection(), strategy=strategy),
        journal=journal,
        seed=seed,
        progress=Silent(),
    )
