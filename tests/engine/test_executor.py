from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from engine_parts import SPECIES, call, candidate_of, examples, module, single, two_hops
from hypothesis import given, settings
from hypothesis import strategies as st

from bt_compiler.canonical import digest
from bt_compiler.engine.backends.scripted import ScriptedBackend
from bt_compiler.engine.cache import CompletionCache
from bt_compiler.engine.executor import Engine, Execution
from bt_compiler.engine.request import Completion, Finished, Request, turn_of
from bt_compiler.errors import BackendError, ExampleError
from bt_compiler.graph.candidate import SHARED, Adapter, Demo, Prompt
from bt_compiler.graph.program import Binding, Carry, Constant, Program, Ref, Repeat
from bt_compiler.spec.types import INT, PASSAGES, STR, Type


def last(request: Request) -> str:
    """The last turn of a request."""
    return request.prompt.messages[-1].content


def hop(request: Request) -> str | ExampleError:
    """Answers `two_hops`: the query names the question and how many passages there are."""
    question = re.search(r"^Question: (.*)$", last(request), re.M).group(1)  # type: ignore[union-attr]
    seen = len(re.findall(r"^\[\d+\]", last(request), re.M))
    if "Query" in request.prompt.messages[0].content:
        return f"Query: {question} {seen}\nDone: {'true' if seen >= 3 else 'false'}"
    return f"Answer: {question} with {seen}"


class Wiki:
    """Passages made of the query; counts how often it is asked."""

    digest = "wiki"

    def __init__(self) -> None:
        self.asked: list[tuple[tuple[str, ...], int]] = []

    def search(self, queries: Sequence[str], k: int) -> list[list[dict[str, Any]]]:
        self.asked.append((tuple(queries), k))
        return [
            [
                {"id": f"{query}-{n}" if n else "same", "title": "", "text": f"{query} {n}", "score": 1.0}
                for n in range(k)
            ]
            for query in queries
        ]


class Memory:
    """A store that keeps count."""

    def __init__(self) -> None:
        self.kept: dict[str, Completion] = {}
        self.hits = 0

    def get(self, key: str) -> Completion | None:
        found = self.kept.get(key)
        self.hits += found is not None
        return None if found is None else replace(found, cached=True)

    def put(self, key: str, completion: Completion) -> None:
        self.kept[key] = completion

    def put_many(self, items: Sequence[tuple[str, Completion]]) -> None:
        self.kept.update(items)


def adapter(name: str) -> Adapter:
    return Adapter(name=name, path=Path("x"), base_model="b", base_digest="d", rank=1, sha256=digest(name))


QUESTIONS = [{"question": f"q{n}"} for n in range(7)]
LABEL = module({"text": STR}, {"species": SPECIES}, name="label")
ROWS = [{"text": f"t{n}"} for n in range(5)]


def test_two_hops_with_carry_are_traced_by_node_and_visit():
    program, wiki = two_hops(), Wiki()
    backend = ScriptedBackend(function=hop)
    traces = Engine(backends={"default": backend}, retrievers={"wiki": wiki}).run(
        program, candidate_of(program), examples(QUESTIONS)
    )
    trace = traces[3]
    assert trace.error is None
    assert trace.outputs == {"answer": "q3 with 3", "last": "q3 2"}  # passage `same` comes once
    assert [(step.node, step.visit) for step in trace.steps] == [
        ("hops/hop", (0,)), ("hops/found", (0,)), ("hops/hop", (1,)), ("hops/found", (1,)), ("final", ()),
    ]  # fmt: skip
    assert [step.module for step in trace.steps] == ["next_query", None, "next_query", None, "answer"]
    assert trace.steps[0].outputs == {"query": "q3 0", "done": False}
    assert trace.steps[2].inputs["context"] == trace.steps[1].outputs["passages"]
    assert [passage["id"] for passage in trace.steps[4].inputs["context"]] == ["same", "q3 0-1", "q3 2-1"]
    assert trace.steps[4].prompt == backend.requests[-4].prompt
    assert [len(queries) for queries, _ in wiki.asked] == [7, 7]  # one search a round


def test_until_ends_a_loop_after_the_visit_in_which_it_is_true():
    program = two_hops(times=6, until="done")
    traces = Engine(backends={"default": ScriptedBackend(function=hop)}, retrievers={"wiki": Wiki()}).run(
        program, candidate_of(program), examples(QUESTIONS[:1])
    )
    assert [step.visit for step in traces[0].steps if step.node == "hops/hop"] == [(0,), (1,), (2,)]
    assert traces[0].outputs == {"answer": "q0 with 4", "last": "q0 3"}


def test_replace_carries_start_and_next_and_constants_are_bound():
    of = module({"n": INT, "by": INT}, {"sum": INT}, name="add")
    loop = Repeat(
        name="loop",
        times=3,
        carry=(
            Carry(
                name="total", type=INT, mode="replace", value=Ref(step="plus", field="sum"), start=Constant(value=10)
            ),
        ),
        body=(call("plus", of, n="total", by=Constant(value=2)),),
        out=(),
        outputs=(),
    )
    program = Program(
        name="sums", inputs=(), nodes=(loop,), modules=(of,), retrievers=(),
        out=(Binding(name="total", value=Ref(step="loop", field="total"), type=INT),),
    )  # fmt: skip

    def add(request: Request) -> str:
        numbers = re.findall(r"-?\d+", last(request))
        return f"Sum: {sum(int(number) for number in numbers)}"

    (trace,) = Engine(backends={"default": ScriptedBackend(function=add)}).run(
        program, candidate_of(program), examples([{}])
    )
    assert trace.outputs == {"total": 16}


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 9))
def test_results_do_not_depend_on_the_order_of_completion(seed, window):
    program = two_hops()
    candidate = candidate_of(program)

    def run(backend: ScriptedBackend):
        engine = Engine(backends={"default": backend}, retrievers={"wiki": Wiki()})
        return engine.run(program, candidate, examples(QUESTIONS), repeats=2, temperature=0.5, seed=3)

    plain = ScriptedBackend(function=hop)
    expected = run(plain)
    for other in (ScriptedBackend(function=hop, scramble=seed), ScriptedBackend(function=hop, window=window)):
        assert run(other) == expected
        assert sorted(r.sampling.seed for r in other.requests) == sorted(r.sampling.seed for r in plain.requests)


def test_a_failed_example_ends_alone_and_says_where():
    def answer(request: Request) -> str | ExampleError:
        if "t1" in last(request):
            return ExampleError("BTC999", "the model choked")
        return "Species: rose" if "t3" in last(request) else "Species: setosa"

    program = single(LABEL)
    traces = Engine(backends={"default": ScriptedBackend(function=answer)}).run(
        program, candidate_of(program), examples(ROWS)
    )
    assert [trace.error.code if trace.error else None for trace in traces] == [None, "BTC999", None, "BTC522", None]
    assert (traces[1].error.node, traces[1].error.message, traces[1].outputs) == ("only", "the model choked", None)
    assert traces[3].steps[0].outputs is None
    assert traces[3].steps[0].completion.text == "Species: rose"
    assert traces[1].steps[0].prompt is not None


def test_a_prompt_beyond_the_window_is_an_error_with_the_numbers():
    program = single(LABEL)
    backend = ScriptedBackend(function=lambda _: "Species: setosa", context_window=120)
    rows = examples([{"text": "short"}, {"text": "long " * 100}])
    traces = Engine(backends={"default": backend}).run(program, candidate_of(program), rows)
    assert traces[0].outputs == {"species": "setosa"}
    assert traces[1].error.code == "BTC523"
    assert re.search(r"has \d+ tokens and its completion may take \d+, more than the context window of 120",
                     traces[1].error.message)  # fmt: skip
    assert len(backend.requests) == 1


def test_identical_requests_in_flight_are_one_and_repeats_at_temperature_zero_too():
    program = single(LABEL)
    backend = ScriptedBackend(function=lambda _: "Species: setosa")
    rows = examples([{"text": "same"}] * 4)
    traces = Engine(backends={"default": backend}).run(program, candidate_of(program), rows, repeats=3)
    assert len(traces) == 12
    assert [trace.repeat for trace in traces[:3]] == [0, 1, 2]
    assert len(backend.requests) == 1
    assert sum(not trace.steps[0].completion.cached for trace in traces) == 1


def test_samples_have_seeds_of_their_own_that_the_run_alone_decides():
    program = single(LABEL)

    def seeds(seed: int, rows: list[dict[str, Any]], repeats: int = 2) -> list[int]:
        backend = ScriptedBackend(function=lambda _: "Species: setosa")
        Engine(backends={"default": backend}).run(
            program, candidate_of(program), examples(rows), seed=seed, repeats=repeats, temperature=0.7
        )
        return [request.sampling.seed for request in backend.requests]

    assert len(set(seeds(0, ROWS))) == 10
    assert seeds(0, ROWS) == seeds(0, ROWS)
    assert seeds(0, ROWS[2:3]) == seeds(0, ROWS)[4:6]
    assert not set(seeds(1, ROWS)) & set(seeds(0, ROWS))


def test_temperature_is_the_modules_unless_the_run_says_another():
    program = single(replace(LABEL, generation=replace(LABEL.generation, temperature=0.3, top_p=0.9)))
    backend = ScriptedBackend(function=lambda _: "Species: setosa")
    engine = Engine(backends={"default": backend})
    engine.run(program, candidate_of(program), examples(ROWS[:1]))
    engine.run(program, candidate_of(program), examples(ROWS[:1]), temperature=0.8)
    engine.run(program, candidate_of(program), examples(ROWS[:1]), temperature=0.0)
    assert [(r.sampling.temperature, r.sampling.top_p) for r in backend.requests] == [
        (0.3, 0.9),
        (0.8, 0.9),
        (0.0, 1.0),
    ]
    assert backend.requests[2].sampling.seed == 0


def test_stores_are_asked_first_and_filled_backwards():
    program, candidate, rows = single(LABEL), candidate_of(single(LABEL)), examples(ROWS)
    journal, cache = Memory(), Memory()

    def run() -> tuple[list[Any], ScriptedBackend]:
        backend = ScriptedBackend(function=lambda _: "Species: setosa")
        engine = Engine(backends={"default": backend}, stores=(journal, cache))
        return engine.run(program, candidate, rows), backend

    first, backend = run()
    assert len(backend.requests) == len(journal.kept) == len(cache.kept) == 5
    second, backend = run()
    assert (second, len(backend.requests), journal.hits, cache.hits) == (first, 0, 5, 0)
    assert all(trace.steps[0].completion.cached for trace in second)
    journal.kept.clear()
    third, backend = run()
    assert (third, len(backend.requests), cache.hits, len(journal.kept)) == (first, 0, 5, 5)


def test_the_real_cache_answers_a_second_run(tmp_path):
    program, rows = single(LABEL), examples(ROWS)
    backend = ScriptedBackend(function=lambda _: "Species: setosa")
    store = CompletionCache(tmp_path / "completions.sqlite", max_bytes=10**7)
    engine = Engine(backends={"default": backend}, stores=(store,))
    first = engine.run(program, candidate_of(program), rows)
    assert engine.run(program, candidate_of(program), rows) == first
    assert len(backend.requests) == 5
    store.close()


def test_failures_are_not_stored():
    program, store = single(LABEL), Memory()
    engine = Engine(
        backends={"default": ScriptedBackend(function=lambda _: ExampleError("BTC999", "no"))}, stores=(store,)
    )
    engine.run(program, candidate_of(program), examples(ROWS))
    assert store.kept == {}


def test_calls_run_on_the_adapter_of_their_module():
    program = two_hops()
    backend = ScriptedBackend(function=hop)
    engine = Engine(backends={"default": backend}, retrievers={"wiki": Wiki()})
    one, shared = adapter("one"), adapter("shared")
    engine.run(program, replace(candidate_of(program), adapters={"answer": one}), examples(QUESTIONS))
    assert backend.calls == {None: 14, one.sha256: 7}
    backend.calls.clear()
    engine.run(program, replace(candidate_of(program), adapters={SHARED: shared}), examples(QUESTIONS))
    assert backend.calls == {shared.sha256: 21}


def test_an_examples_own_demo_is_left_out_of_its_prompt_alone():
    program, rows = single(LABEL), examples(ROWS[:3])
    demos = tuple(Demo(inputs=row.inputs, outputs={"species": "setosa"}, example=row.id) for row in rows[:2])
    candidate = candidate_of(program, label=Prompt(instructions="x", demos=demos))
    backend = ScriptedBackend(function=lambda _: "Species: setosa")
    Engine(backends={"default": backend}).run(program, candidate, rows, leave_own_demo_out=True)
    shown = [re.findall(r"t\d", " ".join(turn.content for turn in r.prompt.messages)) for r in backend.requests]
    assert shown == [["t1", "t0"], ["t0", "t1"], ["t0", "t1", "t2"]]
    backend.requests.clear()
    copy = replace(rows[0], id=f"{rows[0].id}.2")
    Engine(backends={"default": backend}).run(program, candidate, [copy], leave_own_demo_out=True)
    assert "t1" in (asked := str(backend.requests[0].prompt)) and asked.count("t0") == 1, "an exact copy is no other"


class Loose(ScriptedBackend):
    """A backend that does not enforce grammars."""

    def facts(self):
        return {"enforces_grammar": False}


def test_an_answer_outside_the_grammar_is_asked_for_once_more_where_the_backend_may_ignore_it():
    program = single(LABEL)

    def answer(request: Request) -> str:
        good = "t0" in last(request) and request.sampling.temperature > 0
        return "Species: setosa" if good else "I think it is a rose."

    backend = Loose(function=answer)
    traces = Engine(backends={"default": backend}).run(program, candidate_of(program), examples(ROWS[:2]))
    assert traces[0].outputs == {"species": "setosa"}
    assert traces[1].error.code == "BTC522"
    assert len(backend.requests) == 4
    assert [len(step.completions) for trace in traces for step in trace.steps] == [2, 2]
    assert len({request.sampling.seed for request in backend.requests}) == 3


def test_a_broken_configuration_raises_and_leaves_nothing_in_flight():
    program = single(LABEL)
    backend = ScriptedBackend({})
    engine = Engine(backends={"default": backend})
    with pytest.raises(BackendError, match=r"BTC526(.|\n)*Text: t0"):
        engine.run(program, candidate_of(program), examples(ROWS))
    assert backend.poll() == []


def test_examples_may_be_submitted_while_others_are_under_way():
    program = two_hops()
    backend = ScriptedBackend(function=hop, window=2)
    execution = Execution(
        engine=Engine(backends={"default": backend}, retrievers={"wiki": Wiki()}),
        program=program,
        candidate=candidate_of(program),
    )
    waiting = examples(QUESTIONS)
    done = {}
    assert execution.idle
    execution.submit(waiting.pop())
    while not execution.idle:
        done.update(execution.step())
        if waiting:
            execution.submit(waiting.pop())
    assert {ticket: trace.outputs["answer"] for ticket, trace in done.items()} == {
        n: f"q{6 - n} with 3" for n in range(7)
    }


def test_modules_may_run_on_different_models():
    program = two_hops()
    small, large = ScriptedBackend(function=hop), ScriptedBackend(function=hop, scramble=1)
    modules = tuple(replace(one, model="large") if one.name == "answer" else one for one in program.modules)
    program = replace(program, modules=modules)
    engine = Engine(backends={"default": small, "large": large}, retrievers={"wiki": Wiki()})
    traces = engine.run(program, candidate_of(program), examples(QUESTIONS))
    assert [trace.outputs["answer"] for trace in traces] == [f"q{n} with 3" for n in range(7)]
    assert (len(small.requests), len(large.requests)) == (14, 7)


class Held(ScriptedBackend):
    """Answers what names `q1` once `until` is set, as a server would that works on it meanwhile."""

    def __init__(self, until: Event) -> None:
        super().__init__(function=hop)
        self.until = until

    def poll(self, seconds: float | None = None) -> list[Finished] | None:
        held = [request for request in self._waiting if "q1" in last(request)]
        self._waiting = [request for request in self._waiting if request not in held]
        ended = super().poll()
        if held and not ended:
            assert self.until.wait(10 if seconds is None else seconds) or seconds is not None, "the other model waited"
        self._waiting += held
        return ended or (super().poll() if self.until.is_set() else None)


def test_a_slow_model_does_not_hold_back_another():
    program, answered = two_hops(), Event()

    def answer(request: Request) -> Any:
        answered.set()
        return hop(request)

    modules = tuple(replace(one, model="large") if one.name == "answer" else one for one in program.modules)
    program = replace(program, modules=modules)
    backends = {"default": Held(answered), "large": ScriptedBackend(function=answer)}
    engine = Engine(backends=backends, retrievers={"wiki": Wiki()}, turn=turn_of(backends.values()))
    traces = engine.run(program, candidate_of(program), examples(QUESTIONS[:2]))
    assert [trace.outputs["answer"] for trace in traces] == ["q0 with 3", "q1 with 3"]


def test_two_models_may_share_one_backend():
    program = two_hops()
    modules = tuple(replace(one, model="large") if one.name == "answer" else one for one in program.modules)
    program = replace(program, modules=modules)
    backend = ScriptedBackend(function=hop)
    engine = Engine(backends={"default": backend, "large": backend}, retrievers={"wiki": Wiki()})
    assert all(trace.error is None for trace in engine.run(program, candidate_of(program), examples(QUESTIONS)))


def test_a_recording_is_replayed_from_its_file(tmp_path):
    program = single(LABEL)
    seen = ScriptedBackend(function=lambda _: "Species: setosa")
    expected = Engine(backends={"default": seen}).run(program, candidate_of(program), examples(ROWS))
    prompts = [[{"role": turn.role, "content": turn.content} for turn in r.prompt.messages] for r in seen.requests]
    path = tmp_path / "recorded.json"
    recording = [{"prompt": prompt, "adapter": None, "completion": "Species: setosa"} for prompt in prompts]
    path.write_text(json.dumps({"schema_version": 1, "completions": recording}))
    backend = ScriptedBackend.from_file(path)
    assert Engine(backends={"default": backend}).run(program, candidate_of(program), examples(ROWS)) == expected
    path.write_text(json.dumps({"schema_version": 2, "completions": []}))
    with pytest.raises(BackendError, match="BTC525"):
        ScriptedBackend.from_file(path)


def test_the_passages_of_a_context_reach_the_prompt_in_order():
    made = module({"context": PASSAGES}, {"answer": STR})
    program = single(made)
    backend = ScriptedBackend(function=lambda _: "Answer: x")
    passages = [{"id": str(n), "title": f"T{n}", "text": f"x{n}", "score": 1.0} for n in range(3)]
    Engine(backends={"default": backend}).run(program, candidate_of(program), examples([{"context": passages}]))
    assert last(backend.requests[0]) == "Context:\n[1] T0 | x0\n[2] T1 | x1\n[3] T2 | x2"


def test_candidates_that_run_together_give_what_each_gives_alone():
    program = two_hops()
    plain = candidate_of(program)
    prompts = {
        name: replace(prompt, instructions=prompt.instructions + " Be short.") for name, prompt in plain.prompts.items()
    }
    other = replace(plain, id="other", prompts=prompts)

    def answer(request: Request) -> str:
        told = request.prompt.messages[0].content
        return str(hop(request)).replace("with", "without" if "Be short." in told else "with")

    def engine(backend: ScriptedBackend) -> Engine:
        return Engine(backends={"default": backend}, retrievers={"wiki": Wiki()})

    alone = [
        trace
        for candidate in (plain, other)
        for trace in engine(ScriptedBackend(function=answer, window=2)).run(program, candidate, examples(QUESTIONS))
    ]
    backend = ScriptedBackend(function=answer, window=2)
    together = engine(backend).run(program, plain, examples(QUESTIONS), beside=[other])
    assert [trace.outputs for trace in together] == [trace.outputs for trace in alone]
    assert together[0].outputs != together[len(QUESTIONS)].outputs


def test_values_of_among_come_back_as_they_were_given() -> None:
    """In the prompt and in the completion they are one line each."""
    tags, tag = Type(kind="list", item=STR), Type(kind="str", among="tags")
    program = single(module({"tags": tags}, {"tag": tag, "all": replace(tags, among="tags")}))
    backend = ScriptedBackend(function=lambda _: 'Tag: x y\nAll: ["pad", "x y", "z"]')
    (row,) = examples([{"tags": [" pad ", "x\r\ny", "x y", "z"]}])
    (trace,) = Engine(backends={"default": backend}).run(program, candidate_of(program), [row])
    assert trace.outputs == {"tag": "x\r\ny", "all": [" pad ", "x\r\ny", "z"]}
    assert trace.steps[0].outputs == {"tag": "x y", "all": ["pad", "x y", "z"]}, "what a demo or a training row says"
