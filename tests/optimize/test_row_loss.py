"""The loss under a real (tiny) model: completion tokens alone, no leak between rows, no logits without a label."""

import pytest
import torch
from tiny_host import TinyHost, rows, tiny_model
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel

from bt_compiler.optimize.batches import TokenRow
from bt_compiler.optimize.row_loss import RowLoss


def token_rows(count: int) -> list[TokenRow]:
    host = TinyHost()
    encoded = [host.encode_row(row.prompt, row.completion) for row in rows(count)]
    return [TokenRow(tuple(ids), start) for ids, start in encoded]


def alone(model: torch.nn.Module, row: TokenRow) -> float:
    """Loss of one row, token by token, from the plain logits of the whole row."""
    logits = model(input_ids=torch.tensor([row.ids])).logits[0]
    losses = [
        functional.cross_entropy(logits[index - 1], torch.tensor(row.ids[index])).item()
        for index in range(row.start, len(row.ids))
    ]
    return sum(losses)


@pytest.fixture
def model() -> torch.nn.Module:
    return tiny_model().requires_grad_(False)


def test_the_loss_is_the_sum_over_completion_tokens_of_each_row_alone(model: torch.nn.Module) -> None:
    batch = token_rows(4)
    expected = sum(alone(model, row) for row in batch)
    loss = RowLoss(model, precision="float32", probe=batch)
    assert loss.packs
    assert loss.sum(batch).item() == pytest.approx(expected, rel=1e-4)
    unpacked = functional.cross_entropy(*loss._padded(batch), reduction="sum").item()
    assert unpacked == pytest.approx(expected, rel=1e-4)


def test_validation_sums_losses_and_probabilities_of_the_same_tokens(model: torch.nn.Module) -> None:
    batch = token_rows(3)
    chances = []
    for row in batch:
        logits = model(input_ids=torch.tensor([row.ids])).logits[0].softmax(dim=-1)
        chances += [logits[index - 1, row.ids[index]].item() for index in range(row.start, len(row.ids))]
    found = RowLoss(model, precision="float32", probe=batch).validate(batch)
    assert found.probability == pytest.approx(sum(chances), rel=1e-3)
    assert found.loss == pytest.approx(sum(alone(model, row) for row in batch), rel=1e-4)


def test_a_row_does_not_see_its_neighbours(model: torch.nn.Module) -> None:
    batch = token_rows(3)
    other = TokenRow(tuple((token + 1) % 200 for token in batch[1].ids), batch[1].start)
    loss = RowLoss(model, precision="float32", probe=batch)
    changed = loss.sum([batch[0], other, batch[2]]).item() - loss.sum(batch).item()
    assert changed == pytest.approx(alone(model, other) - alone(model, batch[1]), abs=1e-3)


def test_logits_are_computed_where_there_are_labels_and_nowhere_else(model: torch.nn.Module) -> None:
    batch = token_rows(4)
    loss = RowLoss(model, precision="float32", probe=batch)
    seen = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    loss.sum(batch)
    assert seen == [sum(len(row.ids) - row.start for row in batch)]


class MasklessModel(torch.nn.Module):
    """Takes no mask of its own, as state-space models do."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *, attention_mask: torch.Tensor, **inputs: object) -> object:
        return self.inner(attention_mask=attention_mask if attention_mask.dim() == 2 else None, **inputs)


def test_a_model_that_ignores_the_mask_gets_padded_rows(model: torch.nn.Module) -> None:
    batch = token_rows(4)
    loss = RowLoss(MasklessModel(model), precision="float32", probe=batch)
    assert not loss.packs
    assert loss.sum(batch).item() == pytest.approx(sum(alone(model, row) for row in batch), rel=1e-4)


def test_other_architectures_agree_with_themselves() -> None:
    torch.manual_seed(1)
    config = GPT2Config(vocab_size=264, n_embd=32, n_layer=2, n_head=4, bos_token_id=None, eos_token_id=256)
    gpt2 = GPT2LMHeadModel(config).eval().requires_grad_(False)
    batch = token_rows(4)
    expected = sum(alone(gpt2, row) for row in batch)
    assert RowLoss(gpt2, precision="float32", probe=batch).sum(batch).item() == pytest.approx(expected, rel=1e-4)


class LeakingModel(torch.nn.Module):
    """Lets a little of every token through to all later ones, whatever the mask says."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *, input_ids: torch.Tensor, **inputs: object) -> object:
        embedded = self.inner.get_input_embeddings()(input_ids)
        return self.inner(inputs_embeds=embedded + 1e-6 * embedded.cumsum(dim=1), **inputs)


def test_a_leak_too_small_for_the_loss_to_show_is_found(model: torch.nn.Module) -> None:
    batch = token_rows(4)
    loss = RowLoss(LeakingModel(model), precision="float32", probe=batch)
    assert not loss.packs


def test_bfloat16_products_on_float32_weights_give_nearly_the_same(model: torch.nn.Module) -> None:
    batch = token_rows(4)
    narrow = RowLoss(model, precision="bfloat16", probe=batch)
    assert narrow.packs
    expected = sum(alone(model, row) for row in batch)
    assert narrow.sum(batch).item() == pytest.approx(expected, rel=0.05)
