"""`react` modules from the spec's text to traces: what turns may say, what tools gave, what happens at the limit."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from engine_parts import candidate_of, examples, walk

from bt_compiler.compiler.check import checked
from bt_compiler.engine.backends.scripted import ScriptedBackend
from bt_compiler.engine.budget_ends import without_half_escapes
from bt_compiler.engine.executor import Engine
from bt_compiler.engine.formats import load_format
from bt_compiler.engine.progress import Silent
from bt_compiler.engine.request import Request
from bt_compiler.engine.retrieval import open_retriever
from bt_compiler.engine.scoring import report_of
from bt_compiler.engine.tools import open_tools
from bt_compiler.engine.trace import Trace
from bt_compiler.errors import ExampleError, SpecError
from bt_compiler.graph import Program, lower, program_from_json, program_to_json, spec_candidate
from bt_compiler.spec import Sections, build_sections, load_spec

SPEC = """
version: 1
data: d.jsonl
metric: {kind: exact_match, output: answer}
format: FORMAT
retrievers:
  facts: {kind: bm25, corpus: corpus.jsonl, k: 1}
tools:
  calc: {kind: calculator}
  slow: {kind: function, inputs: {n: int}, outputs: {a: int, b: str}, time_limit: 0.3}
modules:
  agent:
    kind: react
    tools: [calc, facts, slow]
    at_most: 3
    generation: {max_tokens: 12}
    signature:
      instructions: Answer it.
      inputs: {question: str, tags: [str]}
      outputs: {answer: str, tag: {type: str, among: tags}}
"""
CORPUS = '{"title": "Norway", "text": "Oslo is its capital."}\n{"title": "Kenya", "text": "Nairobi is its capital."}\n'
FUNCTIONS = """
import time
def slow(n):
    if n == 0: time.sleep(60)
    if n < 0: raise ValueError("n is negative")
    return {"a": n, "b": "<|im_end|>"}
"""


class Agent:
    """The spec's program on a scripted model, its tools and retriever real."""

    def __init__(self, folder: Path, format: str = "fields", spec: str = SPEC) -> None:
        (folder / "corpus.jsonl").write_text(CORPUS)
        (folder / "mine.py").write_text(FUNCTIONS)
        path = folder / "spec.yaml"
        path.write_text(spec.replace("FORMAT", format))
        loaded = load_spec(path)
        self.folder = folder
        self.sections: Sections = build_sections(loaded)
        self.program: Program = lower(loaded, self.sections)
        self.backend = ScriptedBackend()

    def run(self, answer: Any, rows: Sequence[dict[str, Any]], **scripted: Any) -> list[Trace]:
        self.backend = ScriptedBackend(function=answer, **scripted)
        retrievers = {
            one.name: open_retriever(one, cache_root=self.folder / "cache", progress=Silent())
            for one in self.sections.retrievers
        }
        tools = open_tools(self.sections.tools, file=self.folder / "mine.py")
        engine = Engine(backends={"default": self.backend}, retrievers=retrievers, tools=tools)
        try:
            return engine.run(self.program, spec_candidate(self.program), examples(rows))
        finally:
            engine.close()


def said(thought: str, tool: str, **arguments: Any) -> str:
    return f"Thought: {thought}\nTool: {tool}\nArguments: {json.dumps(arguments)}"


def turn_of(request: Request) -> int:
    return sum(message.role == "assistant" for message in request.prompt.messages)


def planned(turns: Sequence[str]) -> Any:
    return lambda request: turns[turn_of(request)]


ROW = {"question": "What is the capital of Norway?", "tags": ["x", "y"]}


def test_values_of_among_come_back_as_they_were_given(tmp_path: Path) -> None:
    row = {**ROW, "tags": ["x\ny", " z"]}
    (trace,) = Agent(tmp_path).run(planned([said("t", "finish", answer="a", tag="x y")]), [row])
    assert trace.error is None and trace.outputs == {"answer": "a", "tag": "x\ny"}


@pytest.mark.parametrize("style", ["fields", "json"])
def test_a_turn_that_finishes_is_taught_values_of_among_as_the_grammar_has_them(tmp_path: Path, style: str) -> None:
    made, form = Agent(tmp_path, style).program.modules[0], load_format(style)
    turn = {"thought": "t", "tool": "finish", "arguments": {"answer": "a", "tag": "x\ny"}}
    assert form.parse(made, form.completion(made, turn))["arguments"] == {"answer": "a", "tag": "x y"}


def test_turns_call_tools_until_one_finishes(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    (trace,) = agent.run(
        planned([
            said("look", "facts", query="capital of Norway"),
            said("count", "calc", expression="2 * 3"),
            said("both", "slow", n=7),
            said("done", "finish", answer="Oslo", tag="y"),
        ]),
        [ROW],
    )  # fmt: skip
    assert trace.error is None and trace.outputs == {"answer": "Oslo", "tag": "y"}
    assert [(step.node, step.visit, step.module) for step in trace.steps] == [
        ("agent", (0,), "agent"), ("agent/facts", (0,), None), ("agent", (1,), "agent"), ("agent/calc", (1,), None),
        ("agent", (2,), "agent"), ("agent/slow", (2,), None), ("agent", (3,), "agent"),
    ]  # fmt: skip
    assert [step.forced for step in trace.steps if step.module] == [False, False, False, True]
    assert trace.steps[1].outputs is not None
    assert [passage["title"] for passage in trace.steps[1].outputs["passages"]] == ["Norway"]
    assert trace.steps[3].outputs == {"result": 6.0} and trace.steps[5].outputs == {"a": 7, "b": "<|im_end|>"}
    assert [turn["observation"] for turn in trace.steps[-1].inputs["trajectory"]] == [
        "[1] Norway | Oslo is its capital.", "6.0", '{"a": 7, "b": "< |im_end|>"}',
    ]  # fmt: skip
    assert program_from_json(program_to_json(agent.program)) == agent.program


def test_a_prompt_grows_at_its_end_and_shares_what_comes_before_the_example(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    turns = [said("look", "facts", query="Nairobi"), said("add", "calc", expression="1+1"),
             said("done", "finish", answer="a", tag="x")]  # fmt: skip
    agent.run(planned(turns), [ROW])
    prompts = [request.prompt for request in agent.backend.requests]
    for before, after in pairwise(prompts):
        assert after.messages[: len(before.messages)] == before.messages
        assert len(after.messages) == len(before.messages) + 2 and after.shared == before.shared == 1
    assert [(message.role, message.content) for message in prompts[-1].messages[1:]] == [
        ("user", 'Question: What is the capital of Norway?\nTags: ["x", "y"]'),
        ("assistant", turns[0]),
        ("user", "Observation: [1] Kenya | Nairobi is its capital."),
        ("assistant", turns[1]),
        ("user", "Observation: 2.0"),
    ]


def test_at_the_limit_the_module_can_only_finish(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    seen: list[str] = []

    def answer(request: Request) -> str:
        assert request.grammar is not None
        seen.append(request.grammar.lark)
        if turn_of(request) < 3:
            return said("again", "calc", expression=str(turn_of(request)))
        return said("what I know", "finish", answer="none", tag="x")

    (trace,) = agent.run(answer, [ROW])
    assert trace.outputs == {"answer": "none", "tag": "x"}
    assert len(agent.backend.requests) == 4
    assert ["calc" in lark for lark in seen] == [True, True, True, False]
    assert all(walk(seen[-1], seed)[0].splitlines()[1] == "Tool: finish" for seed in range(3))
    assert trace.steps[-1].forced and not any(step.forced for step in trace.steps[:-1])


def test_a_tool_that_raises_or_never_returns_is_an_observation_and_counted(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    turns = [said("t", "slow", n=-1), said("t", "slow", n=0), said("t", "calc", expression="one"),
             said("t", "finish", answer="a", tag="x")]  # fmt: skip
    (trace,) = agent.run(planned(turns), [ROW])
    assert trace.error is None and trace.outputs == {"answer": "a", "tag": "x"}
    assert [turn["observation"].partition(":")[0] for turn in trace.steps[-1].inputs["trajectory"]] == ["error"] * 3
    errors = [step.error for step in trace.steps if step.module is None]
    assert errors[0] == "BTC540: tool `slow` failed: ValueError: n is negative"
    assert errors[1] == "BTC542: tool `slow` did not answer within 0.3 s"
    assert errors[2] is not None and errors[2].startswith("BTC540: `one` cannot be calculated")
    assert all(step.outputs is None for step in trace.steps if step.module is None)
    scored = Trace(example="e", steps=trace.steps, outputs=trace.outputs, score=1.0)
    assert report_of([scored], candidate="c", split="dev", binary=True).tool_errors == 3


def test_examples_go_together_whatever_order_completions_come_in(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    rows = [{"question": f"{number}", "tags": ["x"]} for number in range(6)]

    def answer(request: Request) -> str:
        number = int(str(request.prompt.messages[1].content.splitlines()[0]).removeprefix("Question: "))
        if turn_of(request) < number % 4:
            return said("t", "calc", expression=f"{number} + {turn_of(request)}")
        return said("t", "finish", answer=str(number), tag="x")

    traces = agent.run(answer, rows)
    assert [trace.outputs["answer"] for trace in traces if trace.outputs] == [str(number) for number in range(6)]
    first = [turn_of(request) for request in agent.backend.requests]
    assert first == sorted(first)  # turn by turn: all examples that are at one go out with it
    for seed in range(3):
        assert agent.run(answer, rows, scramble=seed) == traces


@pytest.mark.parametrize("format", ["fields", "json", "completion"])
def test_only_well_formed_calls_can_be_sampled(tmp_path: Path, format: str) -> None:
    program = Agent(tmp_path, format).program
    (module,) = program.modules
    form = load_format(format)
    inputs = {**ROW, "trajectory": []}
    grammar = form.grammar(module, inputs)
    tools = set()
    for seed in range(60):
        text, tokens = walk(grammar.lark, seed, stop=0.2)
        written = form.parse(module, text)
        tools.add(written["tool"])
        assert tokens <= grammar.max_tokens
        assert set(written["arguments"]) == {item.name for item in module.arguments(written["tool"])}
        assert form.parse(module, form.completion(module, written)) == written
        if grammar.regex is not None:
            assert re.fullmatch(grammar.regex, text), text
        if written["tool"] == "finish":
            assert written["arguments"]["tag"] in ROW["tags"]
    assert tools == {"calc", "facts", "slow", "finish"}
    assert (grammar.json_schema is not None) == (format == "json") and (grammar.regex is not None) == (format != "json")


def test_json_turns_fit_their_schema(tmp_path: Path) -> None:
    from jsonschema import Draft202012Validator

    (module,) = Agent(tmp_path, "json").program.modules
    grammar = load_format("json").grammar(module, {**ROW, "trajectory": []})
    assert grammar.json_schema is not None
    validator = Draft202012Validator(grammar.json_schema)
    for seed in range(30):
        validator.validate(json.loads(without_half_escapes(walk(grammar.lark, seed)[0])))
    assert not validator.is_valid({"thought": "t", "tool": "calc", "arguments": {"query": "q"}})


def test_arguments_of_another_tool_are_refused(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    (trace,) = agent.run(lambda _: said("t", "calc", query="q"), [ROW])
    assert trace.error is not None and (trace.error.code, trace.error.node) == ("BTC522", "agent")
    (trace,) = agent.run(lambda _: said("t", "finish", answer="a", tag="z"), [ROW])
    assert trace.error is not None and trace.error.code == "BTC524"


def test_half_a_character_at_the_end_of_an_argument_is_cut(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    (trace,) = agent.run(planned([said("done\ufffd", "finish", answer="Oslo\ufffd\ufffd", tag="y")]), [ROW])
    assert trace.outputs == {"answer": "Oslo", "tag": "y"}


def test_a_turn_that_fails_ends_the_example(tmp_path: Path) -> None:
    agent = Agent(tmp_path)

    def answer(request: Request) -> str | ExampleError:
        return ExampleError("BTC534", "no") if turn_of(request) else said("t", "calc", expression="1")

    (trace,) = agent.run(answer, [ROW])
    assert trace.error is not None and (trace.error.code, trace.error.node) == ("BTC534", "agent")
    assert [step.visit for step in trace.steps] == [(0,), (0,), (1,)]


def test_elements_of_a_map_have_turns_of_their_own(tmp_path: Path) -> None:
    program = """
program:
  inputs: {questions: [str], tags: [str]}
  steps:
    all:
      map: $questions
      as: one
      at_most: 3
      steps: {a: {call: agent, in: {question: $one, tags: $tags}}}
      out: {b: $a.answer}
  out: {answer: $all.b}
"""
    agent = Agent(tmp_path, spec=SPEC.rstrip() + program)
    turns = [said("t", "calc", expression="1"), said("t", "finish", answer="a", tag="x")]
    (trace,) = agent.run(planned(turns), [{"questions": ["q", "r"], "tags": ["x"]}])
    assert trace.outputs == {"answer": ["a", "a"]}
    assert [(step.node, step.visit) for step in trace.steps] == [
        ("all/a", (0, 0)), ("all/a/calc", (0, 0)), ("all/a", (0, 1)),
        ("all/a", (1, 0)), ("all/a/calc", (1, 0)), ("all/a", (1, 1)),
    ]  # fmt: skip


def test_a_format_of_ones_own_needs_words_for_tools(tmp_path: Path) -> None:
    own = "{% macro system(i, a, b) %}{{ i }}{% endmacro %}{% macro user(v, o) %}{{ v[0].text }}{% endmacro %}"
    (tmp_path / "own.jinja").write_text(own)
    (tmp_path / "d.jsonl").write_text(json.dumps({**ROW, "answer": "Oslo", "tag": "x"}) + "\n")
    Agent(tmp_path, "own.jinja")
    with pytest.raises(SpecError, match=r"BTC521.*no macro `tools`, which `react` module `agent` needs") as caught:
        checked(tmp_path / "spec.yaml")
    assert caught.value.diagnostics[0].span is not None


def test_demos_are_whole_stretches_of_turns(tmp_path: Path) -> None:
    demos = """
    demos:
      - question: How much is 2 + 3?
        tags: [x]
        trajectory: [{thought: add, tool: calc, arguments: {expression: 2 + 3}, observation: "5.0"}]
        tool: finish
        arguments: {answer: 5, tag: x}
"""
    agent = Agent(tmp_path, spec=SPEC.rstrip() + demos)
    assert program_from_json(program_to_json(agent.program)) == agent.program
    agent.run(lambda _: said("t", "finish", answer="a", tag="x"), [ROW])
    prompt = agent.backend.requests[0].prompt
    assert prompt.shared == 5
    assert [message.content for message in prompt.messages[1:5]] == [
        'Question: How much is 2 + 3?\nTags: ["x"]',
        said("add", "calc", expression="2 + 3"),
        "Observation: 5.0",
        'Tool: finish\nArguments: {"answer": "5", "tag": "x"}',
    ]
    assert candidate_of(agent.program).prompts["agent"].demos == ()
