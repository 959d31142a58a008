"""Preference pairs: which there are, what is said where there are none, and a loss that is TRL's written out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from answering import RuleBackend, classifier, coin, context_of, examples, truth, two_hops, wrong
from tiny_host import LendingBackend, TinyHost, pairs, rows, tiny_model

from bt_compiler.errors import CompileError
from bt_compiler.optimize.batches import TokenRow
from bt_compiler.optimize.cold_start import collect, start_of
from bt_compiler.optimize.journal import Journal
from bt_compiler.optimize.lora import lora_attached
from bt_compiler.optimize.objective import Objective
from bt_compiler.optimize.preferences import Preferred, prefer
from bt_compiler.optimize.row_loss import RowLoss
from bt_compiler.optimize.rows import Row
from bt_compiler.optimize.step import StepContext
from bt_compiler.optimize.trainer import Training, train_adapter
from bt_compiler.optimize.weights import weights_step
from bt_compiler.spec.sections import OptimizeSection, PreferenceSection, WeightsSection
from bt_compiler.spec.types import STR, Field

TRAIN = examples("train", 12)
WEIGHTS = WeightsSection(
    r=2, alpha=4, epochs=2, learning_rate=1e-3, samples=4, sources=("self", "sampled"), preference=PreferenceSection()
)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.open(tmp_path / "journal", {"test": 1}) as opened:
        yield opened


class Drawing(RuleBackend):
    """Its rule sees the request too."""

    def poll(self) -> list[object]:
        (request, *rest) = self.waiting
        rule, self.waiting = self.rule, [request]
        self.rule = lambda asked: rule(request, asked)  # type: ignore[call-arg]
        finished = RuleBackend.poll(self)
        self.rule, self.waiting = rule, rest
        return finished


def greedy_right_samples_by_chance(request: Any, asked: Any) -> str:
    text = asked.value("Text")
    right = not request.sampling.temperature or coin(request.sampling.seed) < 0.5
    return f"Mood: {truth(text) if right else wrong(text)}"


def step(journal: Journal, backend: RuleBackend, *, program: Any = None, **weights: Any) -> StepContext:
    settings = OptimizeSection(weights=replace(WEIGHTS, **weights))
    return context_of(backend, journal, program=program, train=TRAIN, settings=settings)


def preferred(context: StepContext) -> Preferred:
    start = start_of(context, context.zero_shot)
    return prefer(start, collect(start).rows)


def test_a_pair_is_an_accepted_and_a_failed_answer_to_one_prompt(journal: Journal) -> None:
    backend = Drawing(rule=greedy_right_samples_by_chance)
    found = preferred(step(journal, backend))
    labels = {item.id: (truth(item.inputs["text"]), wrong(item.inputs["text"])) for item in TRAIN}
    with_pair = {key: own[0] for key, own in found.rows.items() if own[0].rejected is not None}
    assert 6 < len(with_pair) <= 12
    assert len(backend.asked) == 12 * (1 + 4), "pairs start from the runs that gave the rows"
    assert found.facts["pairs"] == found.facts["examples"] == len(with_pair)
    assert found.facts["failed"] > len(with_pair)  # several samples said the same wrong word: one pair
    for key, own in found.rows.items():
        (row,) = own
        assert row.completion == f"Mood: {labels[key][0]}"
        assert row.rejected in (None, f"Mood: {labels[key][1]}")


def test_what_was_ever_accepted_is_not_rejected_and_everything_is_used(journal: Journal) -> None:
    """Queries of two hops: the run fails or not by its last answer, so that the same query is in both kinds of run."""

    def answer(request: Any, asked: Any) -> str:
        if request.prompt.messages[0].content.startswith("Ask."):
            return "Query: clouds"
        return greedy_right_samples_by_chance(request, asked)

    found = preferred(step(journal, Drawing(rule=answer), program=two_hops()))
    kinds = {(row.module, row.rejected is not None) for own in found.rows.values() for row in own}
    assert kinds >= {("ask", False), ("classify", True)} and ("ask", True) not in kinds


def test_several_answers_on_each_side_are_paired_in_turn(journal: Journal) -> None:
    names = ("one", "two", "three", "four", "five")

    def answer(request: Any, asked: Any) -> str:
        said = names[int(coin("which", request.sampling.seed) * 5)]
        return f"Reasoning: {said}\n{greedy_right_samples_by_chance(request, asked)}"

    context = step(journal, Drawing(rule=answer), samples=12, sources=("sampled",))
    reasoning = replace(context.program.modules[0], kind="chain_of_thought")
    found = preferred(replace(context, program=replace(context.program, modules=(reasoning,))))
    several = 0
    for own in found.rows.values():
        chosen, rejected = {row.completion for row in own}, {row.rejected for row in own}
        assert len(own) == max(len(chosen), len(rejected)) == len({row.id for row in own})
        several += len(chosen) > 1 and len(rejected) > 1
    assert several > 3


@pytest.mark.parametrize("rule", [truth, lambda text: "good"])
def test_no_pair_is_an_error_with_counts_and_remedies(journal: Journal, rule: Any) -> None:
    backend = LendingBackend(rule=lambda asked: f"Mood: {rule(asked.value('Text'))}")
    context = step(journal, backend, sources=("self",))
    with pytest.raises(CompileError) as caught:
        weights_step(context, context.zero_shot)
    diagnostic = caught.value.diagnostics[0]
    solved = 12 if rule is truth else 6
    assert diagnostic.code == "BTC408"
    assert diagnostic.notes[0] == f"{solved} examples have an accepted completion, {12 - solved} a failed run, 0 both"
    assert (diagnostic.help or "").startswith("add `sampled` to `optimize.weights.sources`; raise")
    assert backend.host.lent == 0


def test_gold_answers_stand_beside_what_failed(journal: Journal) -> None:
    backend = LendingBackend(rule=lambda asked: f"Mood: {wrong(asked.value('Text'))}")
    context = step(journal, backend, sources=("self", "gold"), learning_rate=2e-2, epochs=4, warmup=0)
    result = weights_step(context, context.zero_shot)
    assert result.evidence["preference"] == {"pairs": 12, "examples": 12, "failed": 12}
    assert result.evidence["rows"] == {"gold": 12}
    (entry,) = result.evidence["adapters"]
    assert entry["pairs"] == entry["rows"] >= 10  # two are held out for validation, rare classes have copies
    losses = result.evidence["loss"]
    assert losses[-1]["train"] < losses[0]["train"] and all(point["preferred"] is not None for point in losses)


def test_an_answer_in_several_pairs_is_one_row_of_the_evidence(journal: Journal) -> None:
    """Each gold answer stands beside several texts that the samples of its example gave."""
    program = classifier()
    (module,), (call,), (out,) = program.modules, program.nodes, program.out
    text = (Field(name="mood", type=STR),)
    module = replace(module, signature=replace(module.signature, outputs=text))
    free = replace(program, modules=(module,), nodes=(replace(call, outputs=text),), out=(replace(out, type=STR),))
    backend = LendingBackend(rule=lambda asked: f"Mood: so so {len(backend.asked) % 5}")
    context = step(journal, backend, program=free, sources=("sampled", "gold"), epochs=1)
    evidence = weights_step(context, context.zero_shot).evidence
    assert evidence["preference"]["pairs"] > 2 * 12
    assert evidence["rows"] == {"gold": 12} and evidence["rows_by_module"] == {"classify": {"gold": 12}}
    assert evidence["copies"] == 0


SETTINGS = WeightsSection(
    r=4, alpha=8, epochs=4, learning_rate=5e-3, batch=4, warmup=2, preference=PreferenceSection(beta=0.2, nll=0.7)
)


def encoded(row: Row) -> TokenRow:
    ids, start = TinyHost().encode_row(row.prompt, row.completion)
    if row.rejected is None:
        return TokenRow(tuple(ids), start)
    others, begin = TinyHost().encode_row(row.prompt, row.rejected)
    return TokenRow(tuple(ids), start, TokenRow(tuple(others), begin))


def log_probability(model: Any, row: TokenRow) -> torch.Tensor:
    model.set_attn_implementation("eager")
    logits = model(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(dim=-1)
    return sum(logits[index - 1, row.ids[index]] for index in range(row.start, len(row.ids)))


def test_loss_and_gradients_are_those_of_trls_formula_row_by_row() -> None:
    batch = [encoded(row) for row in (*pairs(3), *rows(2), *pairs(5)[3:])]
    preference = SETTINGS.preference
    assert preference is not None
    policy, reference = tiny_model().double(), tiny_model().double()
    with lora_attached(policy, SETTINGS, seed=1, start=None) as lora:
        loss = RowLoss(policy, precision="float32", probe=batch)
        objective = Objective(loss, batch, replace(SETTINGS, batch=2))
        torch.manual_seed(3)
        with torch.no_grad():
            for value in lora.parameters.values():
                value.data = value.data.double() + 0.1 * torch.randn_like(value, dtype=torch.float64)
        chosen = [log_probability(policy, row) for row in batch]
        margins = []
        for row, mine in zip(batch, chosen, strict=True):
            if row.rejected is not None:
                ratio = mine - log_probability(policy, row.rejected)
                before = log_probability(reference, row) - log_probability(reference, row.rejected)
                margins.append(ratio - before.detach())
        nll = -sum(chosen) / sum(row.learnt for row in batch)
        dpo = sum(-torch.nn.functional.logsigmoid(preference.beta * margin) for margin in margins) / 5
        expected = dpo + preference.nll * nll
        wanted = torch.autograd.grad(expected, list(lora.parameters.values()))
        shares = list(objective.shares(range(7)))
        for share in shares:
            share.loss.backward()
        assert sum(share.loss.item() for share in shares) == pytest.approx(expected.item(), rel=1e-7)
        assert sum(share.preferred for share in shares) == sum(margin.item() > 0 for margin in margins)
        for value, gradient in zip(lora.parameters.values(), wanted, strict=True):
            assert torch.allclose(value.grad, gradient, rtol=1e-4, atol=1e-6)


def test_a_step_in_parts_is_the_same_step() -> None:
    batch = [encoded(row) for row in pairs(6)]
    model = tiny_model().double()
    loss = RowLoss(model, precision="float32", probe=batch)
    (whole,) = Objective(loss, batch, SETTINGS).shares(range(6))
    small = replace(SETTINGS, part_tokens=2 * batch[0].tokens + 1)
    in_parts = list(Objective(loss, batch, small).shares(range(6)))
    assert len(in_parts) == 3
    assert sum(share.loss.item() for share in in_parts) == pytest.approx(whole.loss.item(), rel=1e-9)
    assert whole.loss.item() > torch.log(torch.tensor(2.0)).item()  # no margin yet, and the likelihood beside it


def train(folder: Path, preference: PreferenceSection | None) -> Training:
    settings = replace(SETTINGS, preference=preference)
    return train_adapter(
        host=TinyHost(), rows=pairs(16), validation=(), settings=settings, seed=1, folder=folder, name="test"
    )


def test_pairs_drive_the_rejected_answer_down(tmp_path: Path) -> None:
    """Beside likelihood alone the accepted answer gains more on the other one."""

    def gain(training: Training) -> float:
        model, batch = tiny_model(), [encoded(row) for row in pairs(16)]
        with lora_attached(model, SETTINGS, seed=1, start=training.adapter), torch.no_grad():
            chances = RowLoss(model, precision="float32", probe=batch)
            rejected = [row.rejected for row in batch if row.rejected is not None]
            return (chances.each(batch) - chances.each(rejected)).mean().item()

    with_pairs = train(tmp_path / "pairs", SETTINGS.preference)
    assert with_pairs.history[-1].preferred == 1.0
    strong = train(tmp_path / "strong", PreferenceSection(beta=0.2, nll=0.01))
    assert gain(strong) > gain(train(tmp_path / "likelihood", None))
