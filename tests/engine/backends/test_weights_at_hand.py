"""Adapters beside one base model, and lending the base to a trainer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from tiny_models import finish_all, open_model, request, save_adapter, save_model

from bt_compiler.engine.backends.quiet import quiet
from bt_compiler.engine.request import WeightHost
from bt_compiler.errors import BackendError
from bt_compiler.graph.candidate import Adapter


def answers(backend: object, adapter: Adapter | None = None) -> list[str]:
    backend.submit([request(str(i), f"question {i}", adapter=adapter, max_tokens=8) for i in range(4)])  # type: ignore[attr-defined]
    results = finish_all(backend)  # type: ignore[arg-type]
    assert all(item.adapter == (adapter.sha256 if adapter else None) for item in results.values())
    return [results[str(i)].text for i in range(4)]


def test_training_on_the_lent_model_leaves_the_base_bit_identical(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    backend = open_model(folder, tmp_path / "cache")
    assert isinstance(backend, WeightHost)
    tuned = save_adapter(tmp_path / "adapter", folder, backend.base_model()[1])
    weights = {name: tensor.clone() for name, tensor in backend._loaded.model.state_dict().items()}
    before, with_adapter = answers(backend), answers(backend, tuned)
    with backend.borrow() as model:
        assert not any("lora" in name for name, _ in model.named_modules())
        assert list(model.state_dict()) == list(weights)
        with quiet():
            trained = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")).train()
        optimizer = torch.optim.SGD([item for item in trained.parameters() if item.requires_grad], lr=1.0)
        trained(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss.backward()
        optimizer.step()
    after = backend._loaded.model.state_dict()
    assert list(after) == list(weights)
    assert all(torch.equal(after[name], weights[name]) for name in weights)
    assert not any(item.requires_grad or item.grad is not None for item in backend._loaded.model.parameters())
    assert not backend._loaded.model.training
    assert answers(backend) == before
    assert answers(backend, tuned) == with_adapter
    assert before != with_adapter


def test_a_borrower_that_changes_the_base_is_a_bug(tmp_path: Path) -> None:
    backend = open_model(save_model(tmp_path / "model"), tmp_path / "cache")
    with pytest.raises(RuntimeError, match="was changed"), backend.borrow() as model, torch.no_grad():
        next(iter(model.parameters())).add_(1.0)


def test_nothing_is_lent_while_requests_are_in_flight(tmp_path: Path) -> None:
    backend = open_model(save_model(tmp_path / "model"), tmp_path / "cache")
    backend.submit([request("a", "x")])
    with pytest.raises(RuntimeError, match="in flight"), backend.borrow():
        pass


def test_naming_an_adapter_leaves_rows_of_the_base_alone(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    backend = open_model(folder, tmp_path / "cache")
    before = answers(backend)
    tuned = save_adapter(tmp_path / "adapter", folder, backend.base_model()[1])
    backend.submit([request("named", "x", adapter=tuned)])
    backend.cancel(["named"])
    assert answers(backend) == before


def test_more_adapters_than_are_held_take_turns(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    backend = open_model(folder, tmp_path / "cache")
    digest = backend.base_model()[1]
    several = [save_adapter(tmp_path / f"a{seed}", folder, digest, seed=seed) for seed in range(1, 11)]
    first = [answers(backend, item) for item in several]
    assert [answers(backend, item) for item in several] == first
    assert len({tuple(item) for item in first}) == len(several)


def refused(backend: object, adapter: Adapter) -> str:
    with pytest.raises(BackendError) as caught:
        answers(backend, adapter)
    return caught.value.diagnostics[0].code


def test_adapters_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    backend = open_model(folder, tmp_path / "cache")
    good = save_adapter(tmp_path / "good", folder, backend.base_model()[1])
    assert refused(backend, replace(good, base_digest="0" * 64, sha256="1")) == "BTC509"
    assert refused(backend, replace(good, rank=8, sha256="2")) == "BTC508"
    assert refused(backend, replace(good, path=tmp_path / "nothing", sha256="3")) == "BTC508"
    wide = save_model(tmp_path / "wide", hidden_size=64)
    misfit = save_adapter(tmp_path / "misfit", wide, backend.base_model()[1])
    assert refused(backend, replace(misfit, sha256="4")) == "BTC508"
    foreign = save_adapter(tmp_path / "foreign", folder, backend.base_model()[1])
    save_file(
        {"base_model.model.nowhere.lora_A.weight": torch.zeros(4, 32)}, foreign.path / "adapter_model.safetensors"
    )
    assert refused(backend, replace(foreign, sha256="5")) == "BTC508"
    cut = save_adapter(tmp_path / "cut", folder, backend.base_model()[1])
    (cut.path / "adapter_model.safetensors").write_bytes(b"\x00" * 20)
    assert refused(backend, replace(cut, sha256="6")) == "BTC508"
    odd = save_adapter(tmp_path / "odd", folder, backend.base_model()[1])
    config = json.loads((odd.path / "adapter_config.json").read_text())
    (odd.path / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "IA3", "r": None}))
    assert refused(backend, replace(odd, sha256="7")) == "BTC508"
    assert answers(backend, good)
