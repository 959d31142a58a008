"""The weights step whole, on a tiny model: rows to adapter to the choice of prompts."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from answering import (
    Asked,
    EchoRetriever,
    RuleBackend,
    classifier,
    context_of,
    example,
    examples,
    truth,
    two_hops,
    with_adapter,
    wrong,
)
from tiny_host import LendingBackend, TinyHost

from bt_compiler.canonical import canonical_json
from bt_compiler.engine.executor import Engine
from bt_compiler.engine.progress import Silent
from bt_compiler.errors import CompileError
from bt_compiler.graph.candidate import SHARED, Candidate, Demo, Prompt
from bt_compiler.graph.program import ModuleKind, Ref
from bt_compiler.optimize.inner import inner_split
from bt_compiler.optimize.journal import Journal
from bt_compiler.optimize.step import StepContext
from bt_compiler.optimize.weights import weights_step
from bt_compiler.spec.sections import OptimizeSection, WeightsSection

TRAIN = examples("train", 12)
WEIGHTS = WeightsSection(r=2, alpha=4, epochs=1, learning_rate=1e-3, sources=("self", "gold"))


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.open(tmp_path / "journal", {"test": 1}) as opened:
        yield opened


def learnt(asked: Asked) -> str:
    """The base says `good` to all; an adapter, whichever, knows the truth."""
    text = asked.value("Text")
    return f"Mood: {truth(text) if asked.adapter else 'good'}"


def context(journal: Journal, backend: RuleBackend, **weights: object) -> StepContext:
    settings = OptimizeSection(weights=replace(WEIGHTS, **weights))
    return context_of(backend, journal, train=TRAIN, settings=settings)


def with_demo(candidate: Candidate) -> Candidate:
    item = example("g shown")
    demo = Demo(inputs=item.inputs, outputs=item.labels, example=item.id)
    prompts = {"classify": Prompt(instructions="Say the mood.", demos=(demo,))}
    return replace(candidate, id="with-demo", prompts=prompts)


def test_the_step_gives_a_candidate_on_its_new_adapter(journal: Journal) -> None:
    backend = LendingBackend(rule=learnt)
    step = context(journal, backend)
    result = weights_step(step, step.zero_shot)
    adapter = result.candidate.adapters[SHARED]
    assert result.kind == "weights"
    assert result.candidate.parent == "zero-shot" and result.candidate.origin == "step 1 weights"
    assert (adapter.base_model, adapter.rank) == ("tiny", 2)
    assert adapter.name == f"step1-shared-{adapter.sha256[:12]}"
    assert (adapter.path / "adapter_model.safetensors").is_file()
    assert adapter.path.is_relative_to(journal.step_folder(1))


def test_evidence_says_where_rows_came_from_and_how_training_went(journal: Journal) -> None:
    step = context(journal, LendingBackend(rule=learnt))
    evidence = weights_step(step, step.zero_shot).evidence
    assert evidence["rows"] == {"gold": 6, "self": 6}
    assert evidence["rows_by_module"] == {"classify": {"gold": 6, "self": 6}}
    assert evidence["examples"] == {"train": 12, "with_rows": 12, "validation": 2}
    assert [point["step"] for point in evidence["loss"]] == [1, 2, 3]
    assert evidence["loss"][-1]["validation"] is not None
    (choice,) = evidence["choice"]
    assert choice["score"] == 1.0 and choice["chosen"] and not choice["demos"]
    val = inner_split(TRAIN, step.settings.prompts, step.seed).val
    assert set(choice["scores"]) == {item.id for item in val}
    canonical_json(evidence)


def test_rows_are_made_on_the_current_adapter_and_scores_on_the_new_one(journal: Journal) -> None:
    backend = LendingBackend(rule=learnt)
    step = context(journal, backend, sources=("self",))
    result = weights_step(step, with_adapter(step.zero_shot, "before"))
    val = len(inner_split(TRAIN, step.settings.prompts, step.seed).val)
    after = result.candidate.adapters[SHARED].sha256
    adapters = [asked.adapter for asked in backend.asked]
    assert adapters == ["before"] * 12 + [after] * val


def better_with_demos(asked: Asked) -> str:
    text = asked.value("Text")
    return f"Mood: {truth(text) if asked.demos else wrong(text)}"


@pytest.mark.parametrize(("rule", "demos"), [(better_with_demos, 1), (learnt, 0)])
def test_the_better_prompt_goes_on_and_ties_go_to_the_shorter(journal: Journal, rule: object, demos: int) -> None:
    step = context(journal, LendingBackend(rule=rule))
    result = weights_step(step, with_demo(step.zero_shot))
    assert len(result.evidence["choice"]) == 2
    assert len(result.candidate.prompts["classify"].demos) == demos


def test_no_example_that_chooses_sees_its_own_answer_as_a_demo(journal: Journal) -> None:
    """Demos of an earlier step are of another inner split: here one of what chooses, and the candidate repeats it."""

    def repeats(asked: Asked) -> str:
        text = asked.value("Text")
        return f"Mood: {truth(text) if any(text in shown for shown in asked.demo_texts) else wrong(text)}"

    backend = LendingBackend(rule=repeats)
    step = context(journal, backend)
    shown = inner_split(TRAIN, step.settings.prompts, step.seed).val[0]
    demo = Demo(inputs=shown.inputs, outputs=shown.labels, example=shown.id, origin="bootstrapped")
    prompts = {"classify": replace(step.zero_shot.prompts["classify"], demos=(demo,))}
    result = weights_step(step, replace(step.zero_shot, id="repeating", prompts=prompts))
    assert [(choice["demos"], choice["score"]) for choice in result.evidence["choice"]] == [(False, 0.0), (True, 0.0)]
    assert any(asked.demos for asked in backend.asked if asked.adapter)


def test_the_written_demo_of_a_frozen_prompt_does_not_pass_for_a_found_one(journal: Journal) -> None:
    ask, classify = two_hops().modules
    program = replace(two_hops(), modules=(replace(ask, model="remote", train=()), classify))
    own, remote = LendingBackend(rule=learnt), RuleBackend(rule=lambda asked: "Query: clouds")
    step = context_of(own, journal, program=program, train=TRAIN, settings=OptimizeSection(weights=WEIGHTS))
    engine = Engine(backends={"default": own, "remote": remote}, retrievers={"wiki": EchoRetriever()})
    passages = ({"title": "Clouds", "text": "They are grey."},)
    asks = Demo(inputs={"context": passages, "text": "g written"}, outputs={"query": "clouds"}, origin="written")
    says = Demo(inputs={"context": passages, "text": "g found"}, outputs={"mood": "good"}, example="found")
    spec = {name: replace(prompt, demos=(asks,) * (name == "ask")) for name, prompt in step.zero_shot.prompts.items()}
    zero_shot = replace(step.zero_shot, prompts=spec)
    current = replace(zero_shot, id="found", prompts=spec | {"classify": replace(spec["classify"], demos=(says,))})
    result = weights_step(replace(step, engine=engine, zero_shot=zero_shot), current)
    assert [choice["demos"] for choice in result.evidence["choice"]] == [False, True]


def test_nothing_to_learn_from_is_an_error_with_counts_and_remedies(journal: Journal) -> None:
    backend = LendingBackend(rule=lambda asked: f"Mood: {wrong(asked.value('Text'))}")
    step = context(journal, backend, sources=("self", "sampled"), samples=2)
    with pytest.raises(CompileError) as caught:
        weights_step(step, step.zero_shot)
    diagnostic = caught.value.diagnostics[0]
    assert diagnostic.code == "BTC401"
    assert diagnostic.notes == ("`self`: 0 of 12 examples", "`sampled`: 0 of 12 examples")
    assert "add `gold`, `teacher` to `optimize.weights.sources`" in (diagnostic.help or "")  # it has no rationales
    assert "put a `prompts` step first" in (diagnostic.help or "")
    assert backend.host.lent == 0


def test_nothing_to_learn_from_names_the_label_that_lacks(journal: Journal) -> None:
    backend = LendingBackend(rule=lambda asked: f"Mood: {wrong(asked.value('Text'))}")
    step = context(journal, backend, sources=("gold",))
    (module,), (node,), (mood,) = step.program.modules, step.program.nodes, step.program.out
    why = replace(module.signature.outputs[0], name="why")
    signature = replace(module.signature, outputs=(*module.signature.outputs, why))
    out = (mood, replace(mood, name="why", value=Ref(step=node.name, field="why")))
    step = replace(step, program=replace(step.program, modules=(replace(module, signature=signature),), out=out))
    with pytest.raises(CompileError, match="BTC401") as caught:
        weights_step(step, step.zero_shot)
    assert caught.value.diagnostics[0].notes == (
        "`gold`: 0 of 12 examples",
        "`gold` rows of module `classify` need a label `why`, which the data does not have",
    )


@pytest.mark.parametrize(("kind", "more"), [("chain_of_thought", "`hinted`, "), ("react", "")])
def test_remedies_are_those_that_can_help(journal: Journal, kind: ModuleKind, more: str) -> None:
    step = context(journal, LendingBackend(rule=lambda asked: f"Mood: {wrong(asked.value('Text'))}"), sources=("self",))
    (module,) = step.program.modules
    odd = replace(step.program, modules=(replace(module, kind=kind),))
    step = replace(step, program=odd, index=2, settings=replace(step.settings, strategy=("prompts", "weights")))
    with pytest.raises(CompileError) as caught:
        weights_step(step, step.zero_shot)
    help = caught.value.diagnostics[0].help or ""
    assert help.startswith(f"add `sampled`, {more}`teacher` to `optimize.weights.sources`; ")
    assert "samples` (" not in help and "`prompts` step" not in help


def test_rows_longer_than_the_window_are_left_out_and_counted(journal: Journal) -> None:
    backend = LendingBackend(rule=learnt)
    step = replace(context(journal, backend, sources=("gold",)), train=(*TRAIN[1:], example("g " + "long " * 60)))
    backend.context_window = 250  # of the host's tokens, which are bytes
    evidence = weights_step(step, step.zero_shot).evidence
    assert evidence["rows"] == {"gold": 11} and evidence["too_long"] == 1
    backend.context_window = 50
    with pytest.raises(CompileError) as caught:
        weights_step(step, step.zero_shot)
    assert caught.value.diagnostics[0].code == "BTC401"
    assert "12 rows are longer than the context window" in caught.value.diagnostics[0].notes


def test_a_module_whose_weights_are_elsewhere_is_an_error(journal: Journal) -> None:
    step = context(journal, RuleBackend(rule=learnt))
    with pytest.raises(CompileError, match="BTC406") as caught:
        weights_step(step, step.zero_shot)
    assert "`classify` (model `default`, engine `rule`)" in caught.value.diagnostics[0].message


def test_a_program_with_nothing_to_train_is_an_error(journal: Journal) -> None:
    program = classifier()
    frozen = replace(program, modules=(replace(program.modules[0], train=("prompt",)),))
    step = replace(context(journal, LendingBackend(rule=learnt)), program=frozen)
    with pytest.raises(CompileError, match="BTC406"):
        weights_step(step, step.zero_shot)


def test_a_module_that_no_row_is_of_is_told(journal: Journal) -> None:
    class Telling(Silent):
        def __init__(self) -> None:
            self.said: list[str] = []

        def say(self, line: str) -> None:
            self.said.append(line)

    told = Telling()
    settings = OptimizeSection(weights=replace(WEIGHTS, sources=("gold",)))
    step = context_of(LendingBackend(rule=lambda asked: "Query: x"), journal, program=two_hops(), settings=settings)
    ask, classify = step.program.modules
    final = replace(step.program.nodes[-1], inputs=step.program.nodes[-1].inputs[1:])
    classify = replace(classify, signature=replace(classify.signature, inputs=classify.signature.inputs[1:]))
    program = replace(step.program, modules=(ask, classify), nodes=(step.program.nodes[0], final))
    weights_step(replace(step, program=program, progress=told), step.zero_shot)
    assert [line for line in told.said if "no row" in line] == [
        "no row is of module `ask`: what it should say is not learnt"
    ]


def test_one_adapter_a_module_on_request(journal: Journal) -> None:
    class TellingApart(LendingBackend):
        def poll(self) -> list[object]:
            (request, *rest) = self.waiting
            asks = request.prompt.messages[0].content.startswith("Ask.")
            self.waiting = [request]
            self.rule = lambda asked: "Query: clouds" if asks else f"Mood: {truth(asked.value('Text'))}"
            finished = LendingBackend.poll(self)
            self.waiting = rest
            return finished

    backend = TellingApart(rule=learnt)
    settings = OptimizeSection(weights=replace(WEIGHTS, adapters="per_module"))
    step = context_of(backend, journal, program=two_hops(), train=TRAIN, settings=settings)
    result = weights_step(step, step.zero_shot)
    assert sorted(result.candidate.adapters) == ["ask", "classify"]
    assert result.candidate.adapters["ask"].sha256 != result.candidate.adapters["classify"].sha256
    assert result.evidence["rows_by_module"]["ask"] == {"self": 24}
    assert [entry["modules"] for entry in result.evidence["adapters"]] == [["ask"], ["classify"]]


def test_a_frozen_module_stays_on_the_base_model(journal: Journal) -> None:
    program = two_hops()
    ask, classify = program.modules
    own = LendingBackend(rule=lambda asked: f"Mood: {truth(asked.value('Text'))}")
    remote = RuleBackend(rule=lambda asked: "Query: clouds")
    half = replace(program, modules=(replace(ask, model="remote", train=("prompt",)), classify))
    step = context_of(own, journal, program=half, train=TRAIN, settings=OptimizeSection(weights=WEIGHTS))
    engine = Engine(backends={"default": own, "remote": remote}, retrievers={"wiki": EchoRetriever()})
    result = weights_step(replace(step, engine=engine), step.zero_shot)
    assert list(result.candidate.adapters) == ["classify"]
    assert {asked.adapter for asked in remote.asked} == {None}


def test_a_second_run_in_the_same_journal_gives_the_same_and_trains_no_more(journal: Journal) -> None:
    host = TinyHost()
    first = context(journal, LendingBackend(rule=learnt, host=host))
    result = weights_step(first, first.zero_shot)
    again = context(journal, LendingBackend(rule=learnt, host=host))
    assert weights_step(again, again.zero_shot) == result
    assert host.lent == 1
