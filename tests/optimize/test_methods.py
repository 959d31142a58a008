"""What the trainer can train: each form of LoRA beside PEFT itself, and all parameters beside a plain loop."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny_host import TinyHost, rows, tiny_model

from bt_compiler.errors import CompileError
from bt_compiler.optimize.batches import TokenRow, epoch_batches
from bt_compiler.optimize.full import full_attached
from bt_compiler.optimize.lora import lora_attached
from bt_compiler.optimize.row_loss import RowLoss
from bt_compiler.optimize.stepping import BETAS
from bt_compiler.optimize.trainer import Training, train_adapter
from bt_compiler.optimize.training_run import learning_rate
from bt_compiler.spec.sections import WeightsSection

SETTINGS = WeightsSection(r=4, alpha=8, epochs=3, learning_rate=5e-3, batch=4, warmup=2)
FULL = replace(SETTINGS, method="full", learning_rate=1e-3)


def train(folder: Path, settings: WeightsSection, **more: Any) -> Training:
    arguments = {"host": TinyHost(), "rows": rows(16), "validation": rows(4, 16), "seed": 1} | more
    return train_adapter(settings=settings, folder=folder, name="test", **arguments)


def tokens(count: int) -> list[TokenRow]:
    host = TinyHost()
    encoded = [host.encode_row(row.prompt, row.completion) for row in rows(count)]
    return [TokenRow(tuple(ids), start) for ids, start in encoded]


def nll(model: Any, row: TokenRow) -> torch.Tensor:
    """Of the completion of one row alone, from plain logits."""
    logits = model(input_ids=torch.tensor([row.ids])).logits[0]
    return torch.nn.functional.cross_entropy(
        logits[row.start - 1 : -1], torch.tensor(row.ids[row.start :]), reduction="sum"
    )


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("method", ["lora", "rslora", "dora"])
def test_loss_and_gradients_are_those_of_peft_on_each_row_alone(method: str, tmp_path: Path) -> None:
    settings = replace(SETTINGS, method=method)
    trained = train(tmp_path, settings).adapter
    config = json.loads((trained.path / "adapter_config.json").read_text())
    assert (config["use_rslora"], config["use_dora"]) == (method == "rslora", method == "dora")
    peft = PeftModel.from_pretrained(tiny_model(), str(trained.path), is_trainable=True).eval().double()
    batch = tokens(5)
    expected = sum(nll(peft, row) for row in batch)
    expected.backward()
    model = tiny_model().double()
    with lora_attached(model, settings, seed=1, start=trained) as lora:
        for value in lora.parameters.values():
            value.data = value.data.double()
        loss = RowLoss(model, precision="float32", probe=batch)
        assert loss.packs
        found = loss.sum(batch)
        found.backward()
        assert found.item() == pytest.approx(expected.item(), rel=1e-7)
        gradients = {name.replace(".default", ""): value.grad for name, value in peft.named_parameters()}
        for name, value in lora.parameters.items():
            wanted = gradients[name if name in gradients else f"{name}.weight"]
            assert torch.allclose(value.grad, wanted, rtol=1e-4, atol=1e-5), name  # norms are float32 in any model
        assert len(lora.parameters) == (3 if method == "dora" else 2) * 14
    assert RowLoss(model, precision="float32", probe=batch).sum(batch).item() != pytest.approx(found.item(), rel=1e-3)


def test_a_fresh_adapter_with_magnitudes_changes_nothing_yet() -> None:
    batch, model = tokens(3), tiny_model().double()
    before = RowLoss(model, precision="float32", probe=batch).sum(batch).item()
    with lora_attached(model, replace(SETTINGS, method="dora"), seed=1, start=None):
        assert RowLoss(model, precision="float32", probe=batch).sum(batch).item() == pytest.approx(before, rel=1e-6)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_dropout_is_on_in_every_form(method: str, tmp_path: Path) -> None:
    settings = replace(SETTINGS, method=method, epochs=1)
    losses = []
    for dropout in (0.0, 0.5):
        history = train(tmp_path / str(dropout), replace(settings, dropout=dropout)).history
        losses.append([point.train for point in history])
    assert losses[0][1:] != losses[1][1:]


def test_methods_do_not_go_on_from_each_other(tmp_path: Path) -> None:
    lora = train(tmp_path / "lora", replace(SETTINGS, epochs=1)).adapter
    for method in ("dora", "full"):
        with pytest.raises(CompileError, match="BTC404"):
            train(tmp_path / method, replace(SETTINGS, method=method), start=lora)


def test_all_parameters_are_trained_as_a_plain_loop_would(tmp_path: Path) -> None:
    host = TinyHost(model=tiny_model(tie_word_embeddings=True))
    base = {name: value.clone() for name, value in host.model.named_parameters()}
    settings = replace(FULL, epochs=2, validation=0.0)
    result = train(tmp_path, settings, host=host, validation=())
    found = load_file(result.adapter.path / "adapter_model.safetensors")
    model = tiny_model(tie_word_embeddings=True).requires_grad_(True)
    assert found.keys() == dict(model.named_parameters()).keys()
    batch = tokens(16)
    optimizer = torch.optim.AdamW(model.parameters(), betas=BETAS, weight_decay=0.0)
    step = 0
    for epoch in range(2):
        for indices in epoch_batches(batch, batch=4, seed=1, epoch=epoch):
            chosen = [batch[index] for index in indices]
            loss = sum(nll(model, row) for row in chosen) / sum(row.learnt for row in chosen)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, 8, settings)
            optimizer.step()
            assert result.history[step].train == pytest.approx(loss.item(), rel=1e-3)
            step += 1
    for name, value in model.named_parameters():
        moved, expected = found[name] - base[name], value.detach() - base[name]
        assert torch.nn.functional.cosine_similarity(moved.flatten(), expected.flatten(), dim=0) > 0.99, name
        assert moved.norm() > 0, name
    assert all(torch.equal(value, base[name]) for name, value in host.model.named_parameters())
    assert result.adapter.rank == 0 and result.adapter.extent == "all parameters"
    assert json.loads((result.adapter.path / "adapter_config.json").read_text())["peft_type"] == "FULL"


def test_all_parameters_can_be_trained_further_and_are_saved_as_they_are_served(tmp_path: Path) -> None:
    host = TinyHost(model=tiny_model().to(torch.bfloat16))
    first = train(tmp_path / "a", FULL, host=host)
    saved = load_file(first.adapter.path / "adapter_model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.bfloat16}
    again = train(tmp_path / "b", FULL, host=host, start=first.adapter)
    assert again.history[0].train < 0.8 * first.history[0].train
    with full_attached(host.model, start=again.adapter) as weights:
        assert {value.dtype for value in weights.parameters.values()} == {torch.float32}
    assert {value.dtype for value in host.model.parameters()} == {torch.bfloat16}
