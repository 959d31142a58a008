"""`switch`, `map` and `sample` from the spec's text to traces, whatever order completions come in."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engine_parts import candidate_of, examples

from bt_compiler.canonical import seed_of
from bt_compiler.data.example import Example
from bt_compiler.engine.backends.scripted import ScriptedBackend
from bt_compiler.engine.executor import Engine
from bt_compiler.engine.metrics import build_metric
from bt_compiler.engine.request import Finished, Request
from bt_compiler.engine.scoring import report_of
from bt_compiler.engine.trace import Trace
from bt_compiler.errors import ExampleError
from bt_compiler.graph import (
    InvalidProgram,
    Program,
    lower,
    program_from_json,
    program_to_json,
    spec_candidate,
    verify,
)
from bt_compiler.spec import build_sections, load_spec
from bt_compiler.spec.sections import MetricSection

Answer = Callable[[Request], str | ExampleError]
HEAD = "version: 1\ndata: d.jsonl\nmetric: {kind: accuracy, output: answer}\n"


def program_of(text: str, folder: Path) -> Program:
    path = folder / "spec.yaml"
    path.write_text(HEAD + text, encoding="utf-8")
    spec = load_spec(path)
    return lower(spec, build_sections(spec))


def value(request: Request, label: str) -> str:
    found = re.search(rf"^{label}: (.*)$", request.prompt.messages[-1].content, re.M)
    assert found is not None
    return found.group(1)


def run(program: Program, answer: Answer, rows: list[dict[str, Any]], **scripted: Any) -> tuple[list[Trace], Any]:
    backend = ScriptedBackend(function=answer, **scripted)
    return Engine(backends={"default": backend}).run(program, candidate_of(program), examples(rows)), backend


def shown(trace: Trace) -> list[tuple[str, tuple[int, ...]]]:
    return [(step.node, step.visit) for step in trace.steps]


ROUTE = """
modules:
  triage: {signature: {instructions: Triage., inputs: {text: str}, outputs: {topic: {enum: [bill, fault, other]}}}}
  bill: {signature: {instructions: Bill., inputs: {text: str}, outputs: {reply: str}}}
  fault: {signature: {instructions: Fault., inputs: {text: str}, outputs: {reply: str}}}
program:
  inputs: {text: str}
  steps:
    kind: {call: triage, in: [text]}
    route:
      switch: $kind.topic
      cases:
        bill: {steps: {one: {call: bill, in: [text]}}, out: {reply: $one.reply}}
        fault: {steps: {one: {call: fault, in: [text]}}, out: {reply: $one.reply}}
      else: {out: {reply: $text}}
  out: {answer: $route.reply}
"""


def test_a_switch_runs_the_one_case_and_traces_it_by_its_value(tmp_path: Path) -> None:
    def answer(request: Request) -> str:
        if request.prompt.messages[0].content.startswith("Triage."):
            return f"Topic: {value(request, 'Text')}"
        return f"Reply: {request.prompt.messages[0].content[:5]}"

    program = program_of(ROUTE, tmp_path)
    traces, backend = run(program, answer, [{"text": text} for text in ("bill", "fault", "other")])
    assert [trace.outputs for trace in traces] == [{"answer": "Bill."}, {"answer": "Fault"}, {"answer": "other"}]
    assert [shown(trace)[1:] for trace in traces] == [[("route/bill/one", ())], [("route/fault/one", ())], []]
    assert len(backend.requests) == 5


EACH = """
modules:
  read: {signature: "section -> note"}
  weigh: {signature: "note -> weight: int"}
  join: {signature: "notes: [str], weights: [int] -> answer"}
program:
  inputs: {sections: [str]}
  steps:
    each:
      map: $sections
      as: section
      at_most: 3
      steps: {read: {call: read, in: [section]}, weigh: {call: weigh, in: {note: $read.note}}}
      out: {notes: $read.note, weights: $weigh.weight}
    whole: {call: join, in: {notes: $each.notes, weights: $each.weights}}
  out: {answer: $whole.answer, notes: $each.notes, weights: $each.weights}
"""


def reader(request: Request) -> str | ExampleError:
    last = request.prompt.messages[-1].content
    if "Section" in last:
        text = value(request, "Section")
        return ExampleError("BTC534", f"no {text}") if text.startswith("bad") else f"Note: n{text}"
    return f"Weight: {len(value(request, 'Note'))}" if "Note:" in last else "Answer: done"


def test_all_elements_of_a_map_go_out_together_and_come_back_in_order(tmp_path: Path) -> None:
    program = program_of(EACH, tmp_path)
    rows = [{"sections": ["a", "bb", "ccc"]}, {"sections": []}, {"sections": ["dd"]}]
    traces, backend = run(program, reader, rows)
    assert [trace.outputs for trace in traces] == [
        {"answer": "done", "notes": ["na", "nbb", "nccc"], "weights": [2, 3, 4]},
        {"answer": "done", "notes": [], "weights": []},
        {"answer": "done", "notes": ["ndd"], "weights": [3]},
    ]
    together = sorted(request.prompt.messages[-1].content[:7] for request in backend.requests[:5])
    assert together == ["Notes: ", *["Section"] * 4]
    assert shown(traces[0]) == [
        ("each/read", (0,)), ("each/weigh", (0,)), ("each/read", (1,)), ("each/weigh", (1,)),
        ("each/read", (2,)), ("each/weigh", (2,)), ("whole", ()),
    ]  # fmt: skip
    for seed in range(5):
        assert run(program, reader, rows, scramble=seed)[0] == traces


def test_a_map_fails_with_its_first_failure_and_on_a_list_that_is_too_long(tmp_path: Path) -> None:
    program = program_of(EACH, tmp_path)
    rows = [{"sections": ["a", "bad 1", "bad 2"]}, {"sections": ["a", "b", "c", "d"]}]
    for seed in range(4):
        (first, long), backend = run(program, reader, rows, scramble=seed)
        assert first.error is not None and first.error.message == "no bad 1" and first.error.node == "each/read"
        assert shown(first) == [("each/read", (0,)), ("each/weigh", (0,)), ("each/read", (1,)), ("each/read", (2,))]
        assert long.error is not None and (long.error.code, long.error.node) == ("BTC536", "each")
        assert "4 elements, `at_most` is 3" in long.error.message and not long.steps
        assert len(backend.requests) == 4


VOTE = """
modules:
  solve: {signature: "question -> thought, result: int"}
program:
  inputs: {question: str}
  steps:
    vote:
      sample: 5
      temperature: 0.7
      pick: PICK
      steps: {one: {call: solve, in: [question]}}
      out: {answer: $one.OUT}
  out: {answer: $vote.answer}
"""


def test_a_majority_is_of_the_runs_that_did_not_fail_and_ties_go_to_the_earliest(tmp_path: Path) -> None:
    program = program_of(VOTE.replace("PICK", "majority").replace("OUT", "result"), tmp_path)
    for results, picked, kept in (
        ([3, 4, 4, 3, 5], 3, [0, 3]),
        ([None, 7, 8, 8, None], 8, [2, 3]),
        ([1, 2, 3, 4, 5], 1, [0]),
    ):
        seeds: list[int] = []

        def answer(request: Request, results: list[int | None] = results, seeds: list[int] = seeds) -> Any:
            seeds.append(request.sampling.seed)
            assert request.sampling.temperature == 0.7
            result = results[len(seeds) - 1]
            return ExampleError("BTC534", "no") if result is None else f"Thought: {len(seeds)}\nResult: {result}"

        (trace,), _ = run(program, answer, [{"question": "q"}])
        assert trace.outputs == {"answer": picked}
        assert len(set(seeds)) == 5
        assert [step.visit for step in trace.steps] == [(0,), (1,), (2,), (3,), (4,)]
        assert [step.visit[0] for step in trace.steps if step.picked] == kept


class Weighing(ScriptedBackend):
    """Says of each text how likely it is, never twice the same."""

    def facts(self) -> Mapping[str, Any]:
        return {**super().facts(), "scores": True}

    def poll(self) -> list[Finished]:
        given = super().poll()
        return [
            Finished(id, replace(result, chances=(-1.0 / index, -1.0)))
            for index, (id, result) in enumerate(given, len(self.requests))
        ]


def test_how_likely_an_answer_is_has_no_vote(tmp_path: Path) -> None:
    outputs = "{result: bool, sure: {type: float, probability_of: result}}"
    declared = f"{{kind: chain_of_thought, signature: {{inputs: {{question: str}}, outputs: {outputs}}}}}"
    text = VOTE.replace("PICK", "majority").replace('{signature: "question -> thought, result: int"}', declared)
    text = text.replace("OUT}", "result, sure: $one.sure}").replace("vote.answer}", "vote.answer, sure: $vote.sure}")
    program = program_of(text, tmp_path)
    said = iter(enumerate(["no", "yes", "yes", "no", "yes"]))
    backend = Weighing(
        function=lambda request: "" if request.choices else "Reasoning: {}\nResult: {}".format(*next(said))
    )
    (trace,) = Engine(backends={"default": backend}).run(program, candidate_of(program), examples([{"question": "q"}]))
    assert len({step.outputs["sure"] for step in trace.steps if step.outputs}) > 2
    assert [step.visit[0] for step in trace.steps if step.picked] == [1, 2, 4]
    assert trace.steps[1].outputs is not None
    assert trace.outputs == {"answer": True, "sure": trace.steps[1].outputs["sure"]}
    assert len(backend.requests) == 10
    assert report_of([replace(trace, score=1.0)], candidate="c", split="dev", binary=True).calls == 10
    cost = MetricSection(kind="cost", output="", label="", options={"count": "calls", "at_most": 5})
    assert build_metric(cost).score(Example(id="e", inputs={}, labels={}), trace) == 0.5


def test_where_all_runs_fail_the_example_fails_as_the_first_did(tmp_path: Path) -> None:
    program = program_of(VOTE.replace("PICK", "majority").replace("OUT", "result"), tmp_path)
    (trace,), _ = run(program, lambda request: ExampleError("BTC534", str(request.sampling.seed)), [{"question": "q"}])
    again = run(program, lambda request: ExampleError("BTC534", str(request.sampling.seed)), [{"question": "q"}],
                scramble=3)[0][0]  # fmt: skip
    assert trace.error is not None and trace.error == again.error and trace.error.node == "vote/one"


def test_the_best_of_a_sample_and_its_repeats(tmp_path: Path) -> None:
    program = program_of(VOTE.replace("PICK", "{best: $one.result}").replace("OUT", "thought"), tmp_path)

    def answer(request: Request) -> str:
        return f"Thought: t{request.sampling.seed}\nResult: {request.sampling.seed % 1000}"

    backend = ScriptedBackend(function=answer)
    engine = Engine(backends={"default": backend})
    traces = engine.run(program, candidate_of(program), examples([{"question": "q"}]), repeats=2, seed=4)
    for trace in traces:
        best = max(trace.steps, key=lambda step: step.outputs["result"] if step.outputs else -1)
        assert trace.outputs == {"answer": best.outputs["thought"] if best.outputs else None}
        assert [step for step in trace.steps if step.picked] == [best]
    assert len({request.sampling.seed for request in backend.requests}) == 10
    scrambled = Engine(backends={"default": ScriptedBackend(function=answer, scramble=8)}).run(
        program, candidate_of(program), examples([{"question": "q"}]), repeats=2, seed=4
    )
    assert scrambled == traces


NESTED = """
retrievers: {}
modules:
  ask: {signature: "text, seen: [str] -> query"}
program:
  inputs: {texts: [str]}
  steps:
    loop:
      repeat: 2
      carry: {seen: {add: $all.queries}}
      steps:
        all:
          map: $texts
          as: text
          at_most: 4
          steps:
            best:
              sample: 2
              temperature: 1
              pick: majority
              steps: {ask: {call: ask, in: [text, seen]}}
              out: {query: $ask.query}
          out: {queries: $best.query}
  out: {answer: $loop.seen}
"""


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_blocks_within_blocks(tmp_path: Path, seed: int | None) -> None:
    program = program_of(NESTED.replace("retrievers: {}\n", ""), tmp_path)

    def answer(request: Request) -> str:
        return f"Query: {value(request, 'Text')}{len(value(request, 'Seen'))}"

    (trace,), backend = run(program, answer, [{"texts": ["a", "b"]}], scramble=seed)
    assert trace.outputs == {"answer": ["a2", "b2", "a12", "b12"]}
    assert [step.visit for step in trace.steps] == [(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)]
    assert len(backend.requests) == 8


UNTIED = """
modules:
  ask: {signature: "text, seen -> query"}
program:
  inputs: {text: str}
  steps:
    loop:
      repeat: 3
      carry: {seen: {start: "", next: $tied.query}}
      steps:
        own:
          map: $given.list
          as: one
          at_most: 2
          steps: {ask: {call: ask, in: {text: $one, seen: $seen}, per_visit: true}}
          out: {queries: $ask.query}
        given: {call: split, in: [text]}
        tied: {call: ask, in: [text, seen]}
      out: {queries: $own.queries}
  out: {answer: $loop.seen, last: $loop.queries}
"""


def test_visits_have_modules_of_their_own_where_a_call_says_so(tmp_path: Path) -> None:
    text = UNTIED.replace("modules:\n", 'modules:\n  split: {signature: "text -> list: [str]"}\n')
    program = program_of(text, tmp_path)
    assert [module.name for module in program.modules] == ["split", "ask#1", "ask#2", "ask#3", "ask"]
    assert program_from_json(program_to_json(program)) == program

    def answer(request: Request) -> str:
        return 'List: ["a", "b"]' if "Seen" not in request.prompt.messages[-1].content else "Query: q"

    (trace,), _ = run(program, answer, [{"text": "t"}])
    asked = [(step.module, step.visit) for step in trace.steps if step.node == "loop/own/ask"]
    assert asked == [(f"ask#{loop + 1}", (loop, item)) for loop in range(3) for item in range(2)]
    assert {step.module for step in trace.steps if step.node == "loop/tied"} == {"ask"}


def test_a_program_whose_visits_lack_a_module_is_refused(tmp_path: Path) -> None:
    text = UNTIED.replace("modules:\n", 'modules:\n  split: {signature: "text -> list: [str]"}\n')
    program = program_of(text, tmp_path)
    data = program_to_json(program)
    data["nodes"][0]["repeat"] = 2
    with pytest.raises(InvalidProgram, match="not one a visit"):
        verify(program_from_json(data))


def test_demos_of_the_spec_start_every_prompt(tmp_path: Path) -> None:
    program = program_of(
        'modules: {m: {signature: "text -> answer", demos: [{text: costs $5, answer: five}]}}', tmp_path
    )
    backend = ScriptedBackend(function=lambda _: "Answer: a")
    Engine(backends={"default": backend}).run(program, spec_candidate(program), examples([{"text": "t"}]))
    turns = [message.content for message in backend.requests[0].prompt.messages[1:]]
    assert turns == ["Text: costs $5", "Answer: five", "Text: t"]


AGAIN = """
modules:
  draft: {generation: {temperature: 1.0}, signature: "text -> draft"}
  check: {signature: "draft -> good: bool"}
program:
  inputs: {text: str}
  steps:
    round:
      repeat: 2
      steps:
        tries:
          repeat: 3
          until: $checked.good
          steps:
            written: {call: draft, in: [text]}
            checked: {call: check, in: {draft: $written.draft}}
          out: {draft: $written.draft}
      out: {draft: $tries.draft}
  out: {answer: $round.draft}
"""


def test_a_loop_that_asks_again_at_a_temperature_gets_another_answer(tmp_path: Path) -> None:
    program = program_of(AGAIN, tmp_path)

    def answer(request: Request) -> str:
        return f"Draft: {request.sampling.seed}" if request.sampling.temperature else "Good: no"

    (trace,), backend = run(program, answer, [{"text": "t"}])
    drafts = [step.outputs["draft"] for step in trace.steps if step.module == "draft" and step.outputs]
    assert len(drafts) == len(set(drafts)) == 6
    assert drafts[0] == str(seed_of(0, backend.prompt_key(trace.steps[0].prompt), 0, 0)), "as outside loops"


TWICE = """
modules: {draft: {generation: {temperature: 1.0}, signature: "text -> draft"}, mix: {signature: "one, two -> answer"}}
program:
  inputs: {text: str}
  steps:
    one: {call: draft, in: [text]}
    two: {call: draft, in: [text]}
    last: {call: mix, in: {one: $one.draft, two: $two.draft}}
  out: {answer: $last.answer}
"""


def test_two_calls_for_the_same_inputs_are_two_draws(tmp_path: Path) -> None:
    def answer(request: Request) -> str:
        return f"Draft: {request.sampling.seed}" if request.sampling.temperature else "Answer: a"

    (trace,), backend = run(program_of(TWICE, tmp_path), answer, [{"text": "t"}])
    drafts = {step.node: step.outputs["draft"] for step in trace.steps if step.module == "draft" and step.outputs}
    assert drafts["one"] != drafts["two"]
    assert drafts["one"] == str(seed_of(0, backend.prompt_key(trace.steps[0].prompt), 0, 0)), "as a lone call"


TWICE_A_VISIT = """
modules: {draft: {generation: {temperature: 1.0}, signature: "text -> draft"}}
program:
  inputs: {text: str}
  steps:
    round:
      repeat: 2
      steps:
        one: {call: draft, in: [text], per_visit: true}
        two: {call: draft, in: [text], per_visit: true}
      out: {one: $one.draft, two: $two.draft}
  out: {answer: $round.one, other: $round.two}
"""


def test_two_calls_a_visit_are_draws_of_their_own(tmp_path: Path) -> None:
    (trace,), _ = run(program_of(TWICE_A_VISIT, tmp_path), lambda one: f"Draft: {one.sampling.seed}", [{"text": "t"}])
    drafts = [step.outputs["draft"] for step in trace.steps if step.outputs]
    assert len(drafts) == len(set(drafts)) == 4
