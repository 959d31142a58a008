from __future__ import annotations

import json
from pathlib import Path

import pytest

from bt_compiler.compiler.check import checked
from bt_compiler.compiler.plan import Plan, plan
from bt_compiler.engine.cache import CompletionCache, cache_path
from bt_compiler.engine.request import Completion

SPEC = """
version: 1
name: two
data: {path: qa.jsonl, split: {train: 20, dev: 10, test: 5}}
retrievers: {wiki: {kind: bm25, corpus: corpus.jsonl, k: 2}}
modules:
  query: {kind: chain_of_thought, signature: "context: [Passage], question -> query"}
  answer: {signature: "context: [Passage], question -> answer"}
program:
  inputs: {question: str}
  steps:
    hops:
      repeat: 3
      carry: {context: {add: $found.passages}}
      steps:
        hop: {call: query, in: [context, question]}
        found: {retrieve: wiki, in: {query: $hop.query}}
    final: {call: answer, in: {context: $hops.context, question: $question}}
  out: {answer: $final.answer}
metric: exact_match
optimize:
  strategy: [prompts, weights]
  prompts: {train: 5, val: 15, candidates: 2}
  weights: {batch: 4, epochs: 3, validation: 0.2, sources: [self, sampled, hinted], samples: 2}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BTC_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    rows = [{"question": f"What is {n}?", "answer": str(n)} for n in range(35)]
    (tmp_path / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "corpus.jsonl").write_text('{"title": "T", "text": "' + "word " * 70 + '"}\n')
    (tmp_path / "two.yaml").write_text(SPEC)
    return tmp_path


def planned(folder: Path, *overrides: str) -> Plan:
    return plan(checked(folder / "two.yaml", overrides))


def test_calls_of_every_stage(folder: Path) -> None:
    stages = {stage.name: stage for stage in planned(folder).stages}
    assert {name: (stage.runs, stage.calls) for name, stage in stages.items()} == {
        "zero-shot on dev": (10, 40),
        # 5 bootstrapped and 3 + 2 candidates on 15, four calls each
        "step 1 prompts": (80, 320),
        "prefix 1 on dev": (10, 40),
        # 20 of the program itself, 40 sampled, 2 prompts on 15; two hints with a trial each, for 20 examples
        "step 2 weights": (90, 440),
        "prefix 2 on dev": (10, 40),
        "test": (10, 40),
    }


@pytest.mark.parametrize(("demos", "runs"), [(3, 5 + 5 * 15), (0, 5 * 15)])
def test_labelled_demos_of_a_module_inside_take_the_teachers_runs(folder: Path, demos: int, runs: int) -> None:
    prompts = ("optimize.prompts.max_bootstrapped_demos=0", f"optimize.prompts.max_labeled_demos={demos}")
    assert next(stage for stage in planned(folder, *prompts).stages if stage.name == "step 1 prompts").runs == runs


def test_training_steps_follow_from_rows_and_batches(folder: Path) -> None:
    (weights,) = [stage for stage in planned(folder).stages if stage.training_steps]
    assert (weights.training_rows, weights.training_steps) == (16 * 4, 16 * 3)
    (apart,) = [
        stage for stage in planned(folder, "optimize.weights.adapters=per_module").stages if stage.training_steps
    ]
    assert (apart.training_rows, apart.training_steps) == (16 * 4, (12 + 4) * 3)
    (frozen,) = [stage for stage in planned(folder, "modules.query.train=[prompt]").stages if stage.training_steps]
    assert (frozen.training_rows, frozen.training_steps) == (16, 4 * 3)


def test_prompts_that_read_more_are_longer(folder: Path) -> None:
    hop, final = planned(folder).calls
    assert (hop.node, hop.module, hop.visits) == ("hops/hop", "query", 3)
    assert final.visits == 1
    assert final.prompt_tokens > hop.prompt_tokens + 200  # six passages of 100 tokens, three within the loop
    assert hop.completion_tokens > final.completion_tokens  # it reasons first


def test_it_says_what_is_there_already(folder: Path) -> None:
    before = planned(folder)
    assert (before.cache, before.journal) == (None, None)
    assert not (folder / "cache").exists()
    done = Completion(text="x", finish="stop", prompt_tokens=1, completion_tokens=1)
    for path in (cache_path(folder / "cache"), folder / "artifacts" / ".two.compile" / "completions.sqlite"):
        store = CompletionCache(path)
        store.put_many([("a", done), ("b", done)])
        store.close()
    found = planned(folder)
    assert found.cache is not None and found.journal is not None
    assert (found.cache.entries, found.journal.entries) == (2, 2)
    assert "unfinished compile: 2 completions" in found.to_text()
    (folder / "artifacts" / ".two.compile" / "finished.json").write_text("{}")
    assert planned(folder).journal is None


def test_text_and_json_say_the_same(folder: Path) -> None:
    found = planned(folder)
    data = json.loads(json.dumps(found.to_json()))
    assert data["schema"] == 1
    assert data["total"]["calls"] == sum(stage["calls"] for stage in data["stages"]) == 920
    assert data["splits"] == {"train": 20, "dev": 10, "test": 5}
    text = found.to_text()
    assert text.startswith("program two(question: str)\n  hops = repeat 3 -> context: [Passage]")
    (total,) = [line for line in text.splitlines() if line.startswith("total")]
    assert total.split()[1:] == [
        "920",
        f"{data['total']['prompt_tokens']:,}",
        f"{data['total']['completion_tokens']:,}",
        "48",
    ]


def test_without_dev_test_and_strategy_there_is_little_to_do(folder: Path) -> None:
    (folder / "qa.jsonl").write_text('{"question": "a?", "answer": "b"}\n{"question": "c?", "answer": "d"}\n')
    found = planned(folder, "data.split={train: 0.5, dev: 0.5, test: null}", "optimize.strategy=[]")
    assert [(stage.name, stage.calls) for stage in found.stages] == [("zero-shot on dev", 4)]


def test_weighing_labels_is_a_call_that_nothing_is_learnt_from(folder: Path) -> None:
    outputs = "{answer: str, sure: bool, likely: {type: float, probability_of: sure}}"
    signature = f"{{inputs: {{context: [Passage], question: str}}, outputs: {outputs}}}"
    found = planned(folder, f"modules.answer.signature={signature}")
    assert [call.node for call in found.calls] == ["hops/hop", "final", "final: likely"]
    (weights,) = [stage for stage in found.stages if stage.training_steps]
    assert (weights.calls, weights.training_rows) == (90 * 5 + 80, 16 * 4)


ROUTED = """
version: 1
data: {path: qa.jsonl, split: {train: 20, dev: 10, test: 5}}
modules:
  route: {signature: "question -> way: bool"}
  short: {signature: "question -> answer"}
  long: {kind: chain_of_thought, signature: "question -> answer"}
program:
  inputs: {question: str}
  steps:
    way: {call: route, in: [question]}
    tries:
      sample: 3
      temperature: 1
      pick: majority
      steps:
        one:
          switch: $way.way
          cases:
            "true":
              steps: {a: {call: short, in: [question]}, b: {call: short, in: {question: $a.answer}}}
              out: {answer: $b.answer}
          else:
            steps: {a: {call: long, in: [question]}}
            out: {answer: $a.answer}
      out: {answer: $one.answer}
  out: {answer: $tries.answer}
metric: exact_match
optimize: {strategy: [weights], weights: {batch: 4, epochs: 1, validation: 0.2, sources: [self], ADAPTERS}}
"""


@pytest.mark.parametrize(("adapters", "steps"), [("", 28), ("adapters: per_module", 30)])
def test_of_a_switch_the_dearest_case_counts(folder: Path, adapters: str, steps: int) -> None:
    (folder / "routed.yaml").write_text(ROUTED.replace(", ADAPTERS", f", {adapters}" if adapters else ""))
    found = plan(checked(folder / "routed.yaml"))
    way, first, second, long = found.calls
    assert [call.visits for call in found.calls] == [1, 3, 3, 3]
    stages = {stage.name: stage for stage in found.stages}
    assert stages["zero-shot on dev"].calls == 10 * (1 + 6)
    short, thought = (6 * first.completion_tokens, 3 * long.completion_tokens)
    assert stages["zero-shot on dev"].completion_tokens == 10 * (way.completion_tokens + max(short, thought))
    assert thought < short + thought and second.completion_tokens == first.completion_tokens
    weights = stages["step 1 weights"]
    assert (weights.training_rows, weights.training_steps) == (16 * 7, steps)
    assert "a switch runs its dearest case" in found.to_text()


def test_a_judge_of_a_program_that_calls_no_module(folder: Path) -> None:
    (folder / "search.yaml").write_text("""
version: 1
data: {path: qa.jsonl, split: {train: 20, dev: 10, test: 5}}
retrievers: {wiki: {kind: bm25, corpus: corpus.jsonl, k: 2}}
modules:
  grade: {signature: "question, found: [Passage] -> good: bool"}
program:
  inputs: {question: str}
  steps: {one: {retrieve: wiki, in: {query: $question}}}
  out: {found: $one.passages}
metric: {kind: judge, call: grade, in: [question, found], score: good}
optimize: {strategy: []}
""")
    found = plan(checked(folder / "search.yaml"))
    assert [(call.node, call.module) for call in found.calls] == [("metric", "grade")]
    assert "\njudge grade: predict on default, format fields\n  question: str, found: [Passage]" in found.to_text()
    assert [(stage.name, stage.calls) for stage in found.stages] == [("zero-shot on dev", 10), ("test", 10)]


def test_a_judge_is_asked_about_what_people_have_rated(folder: Path) -> None:
    rows = [{"question": f"What is {n}?", "theirs": f"{n}", "good": True, "answer": f"{n}"} for n in range(35)]
    (folder / "rated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rated.yaml").write_text("""
version: 1
data: {path: rated.jsonl, split: {train: 20, dev: 10, test: 5}}
modules:
  answer: {signature: "question -> answer"}
  grade: {signature: "question, answer -> good: bool"}
program:
  inputs: {question: str}
  steps: {one: {call: answer, in: [question]}}
  out: {answer: $one.answer}
metric: {kind: judge, call: grade, in: [question, answer], score: good, rated: {answer: theirs}}
optimize: {strategy: []}
""")
    stages = {stage.name: stage.calls for stage in plan(checked(folder / "rated.yaml")).stages}
    assert stages == {"zero-shot on dev": 20, "test": 20, "judge on ratings": 15}
    written = (folder / "rated.yaml").read_text()
    (folder / "rated.yaml").write_text(written.replace(", rated: {answer: theirs}", ""))
    stages = {stage.name: stage.calls for stage in plan(checked(folder / "rated.yaml")).stages}
    assert stages["judge on ratings"] == 15, "the rating is there: the output of its own name is what people rated"
    unrated = [{name: value for name, value in row.items() if name != "good"} for row in rows]
    (folder / "rated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in unrated))
    stages = {stage.name: stage.calls for stage in plan(checked(folder / "rated.yaml")).stages}
    assert stages == {"zero-shot on dev": 20, "test": 20}, "nobody rated the right answers"


def test_labels_of_inner_modules_and_written_demos_need_runs_of_their_own(folder: Path) -> None:
    def traces(*overrides: str) -> str:
        found = planned(folder, "optimize.strategy=[weights]", *overrides)
        (stage,) = [one for one in found.stages if one.training_steps]
        return stage.detail.rpartition(",")[0]

    assert traces("optimize.weights.sources=[gold]") == "traces 20, scoring 15"
    demo = "modules.answer.demos=[{context: [], question: a, answer: b}]"
    assert traces("optimize.weights.sources=[gold]", demo) == "traces 20, scoring 30"


def test_what_cannot_be_looked_into_holds_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is too long is refused by the system, as a folder is that may not be entered."""
    closed = folder / ("n" * 300)
    monkeypatch.setenv("BTC_CACHE", str(closed))
    found = plan(checked(folder / "two.yaml"), out=closed / "bundle")
    assert (found.cache, found.journal) == (None, None)
