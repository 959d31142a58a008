"""Adapters beside one base model, and lending the base to a trainer."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import finish_all, open_model, request, save_adapter, save_full, save_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from bt_compiler.engine.backends.loading import load_base
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


def test_a_model_that_is_set_aside_can_be_loaded_by_others(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    backend = open_model(folder, tmp_path / "cache")
    before = answers(backend)
    with backend.set_aside() as base:
        other = load_base(base.path, dtype=base.dtype, device="cpu")
        assert {item.device.type for item in backend._loaded.model.parameters()} == {"cpu"}
        with pytest.raises(RuntimeError, match="lent"):
            backend.submit([request("a", "x")])
    mine = backend._loaded.model.state_dict()
    assert all(
        torch.equal(mine[name], value) and mine[name].dtype == value.dtype for name, value in other.state_dict().items()
    )
    assert answers(backend) == before
    backend.submit([request("a", "x")])
    with pytest.raises(RuntimeError, match="in flight"), backend.set_aside():
        pass


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


def test_adapters_to_hold_are_read_once_however_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_model(tmp_path / "model")
    digest = open_model(folder, tmp_path / "cache").base_model()[1]
    several = [save_adapter(tmp_path / "tuned" / str(seed), folder, digest, seed=seed) for seed in (1, 2, 3)]
    several.append(save_full(tmp_path / "tuned" / "full", folder, digest))
    alone = [answers(open_model(folder, tmp_path / "cache"), item) for item in several]
    monkeypatch.setattr("bt_compiler.engine.backends.adapters._KEPT", 1)
    backend = open_model(folder, tmp_path / "cache")
    base = answers(backend)
    backend.hold(several)
    shutil.rmtree(tmp_path / "tuned")
    assert [answers(backend, item) for item in (*several, *several)] == alone * 2
    assert answers(backend) == base


def test_full_sets_of_weights_answer_as_a_model_of_their_own(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", tie_word_embeddings=True)
    backend = open_model(folder, tmp_path / "cache", dtype="float64")
    weights = {name: (tensor, tensor.clone()) for name, tensor in backend._loaded.model.named_parameters()}
    digest = backend.base_model()[1]
    sets = [save_full(tmp_path / f"full{seed}", folder, digest, seed=seed) for seed in (1, 2)]
    lora = save_adapter(tmp_path / "lora", folder, digest)
    alone: list[list[str]] = []
    for one in sets:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
        tensors = load_file(one.path / "adapter_model.safetensors")
        assert "lm_head.weight" not in tensors  # tied to the embeddings, and stays so
        with torch.no_grad():
            for name, value in model.named_parameters():
                value.copy_(tensors[name])
        own = tmp_path / f"own-{one.name}"
        model.save_pretrained(own)
        AutoTokenizer.from_pretrained(folder).save_pretrained(own)
        alone.append(answers(open_model(own, tmp_path / "cache", dtype="float64")))
    base, tuned = answers(backend), answers(backend, lora)
    assert len({tuple(found) for found in (*alone, base, tuned)}) == 4
    kinds = [None, *sets, lora]
    backend.submit(
        [
            request(f"{i}-{j}", f"question {i}", adapter=kind, max_tokens=8)
            for i in range(4)
            for j, kind in enumerate(kinds)
        ]
    )
    together = finish_all(backend)
    for j, wanted in enumerate((base, *alone, tuned)):
        assert [together[f"{i}-{j}"].text for i in range(4)] == wanted
    backend.close()
    for name, value in backend._loaded.model.named_parameters():
        assert value is weights[name][0] and torch.equal(value, weights[name][1])
    assert backend._loaded.model.lm_head.weight is backend._loaded.model.model.embed_tokens.weight


def test_no_more_full_sets_are_held_than_there_is_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_model(tmp_path / "model")
    backend = open_model(folder, tmp_path / "cache")
    digest = backend.base_model()[1]
    several = [save_full(tmp_path / f"full{seed}", folder, digest, seed=seed) for seed in (1, 2, 3)]
    first = [answers(backend, item) for item in several]
    assert len(backend._adapters._full._held) == 3
    backend.close()
    monkeypatch.setattr("bt_compiler.engine.backends.full_weights._MEMORY", 1)
    assert [answers(backend, item) for item in (*several, *several)] == first * 2
    assert len(backend._adapters._full._held) == 1
    with backend.borrow() as model:
        assert model.lm_head.weight.data_ptr() == backend._adapters._full._base["lm_head.weight"].data_ptr()


def test_a_full_set_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    backend = open_model(folder, tmp_path / "cache")
    wide = save_full(tmp_path / "wide", save_model(tmp_path / "other", hidden_size=64), backend.base_model()[1])
    assert refused(backend, wide) == "BTC508"
    less = save_full(tmp_path / "less", folder, backend.base_model()[1], seed=2)
    save_file({"lm_head.weight": torch.zeros(2, 2)}, less.path / "adapter_model.safetensors")
    assert refused(backend, less) == "BTC508"
    assert answers(backend) == answers(backend)


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
