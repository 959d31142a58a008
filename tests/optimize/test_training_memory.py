"""What training does about memory: parts of a step, layers computed twice, smaller parts when it runs out, 4 bits."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from said import Said
from tiny_host import TinyHost, rows, tiny_model

from bt_compiler.engine.backends.loading import load_base
from bt_compiler.errors import CompileError
from bt_compiler.optimize.batches import TokenRow
from bt_compiler.optimize.lora import lora_attached
from bt_compiler.optimize.recomputing import recomputed
from bt_compiler.optimize.row_loss import RowLoss
from bt_compiler.optimize.trainer import Training, train_adapter
from bt_compiler.spec.sections import LaunchSection, WeightsSection

SETTINGS = WeightsSection(r=4, alpha=8, epochs=3, learning_rate=5e-3, batch=4, warmup=2)


def train(folder: Path, settings: WeightsSection, **more: Any) -> Training:
    arguments = {"host": TinyHost(), "rows": rows(16), "validation": rows(4, 16), "seed": 1} | more
    return train_adapter(settings=settings, folder=folder, name="test", **arguments)


def cramped(most: int) -> TinyHost:
    """A host whose model has no memory for more than `most` tokens at once; the error is the real allocator's."""
    host = TinyHost()

    def demanding(_module: Any, inputs: Any, _output: Any) -> None:
        if inputs[0].numel() > most:
            torch.empty(1 << 60)

    host.model.get_input_embeddings().register_forward_hook(demanding)
    return host


@pytest.mark.parametrize("method", ["lora", "dora", "full"])
def test_layers_computed_twice_give_the_same_adapter(tmp_path: Path, method: Any) -> None:
    settings = replace(SETTINGS, method=method, dropout=0.0 if method == "full" else 0.1, noise=2.0)
    once = train(tmp_path / "a", settings)
    twice = train(tmp_path / "b", replace(settings, gradient_checkpointing=True))
    assert twice.history == once.history and twice.adapter.sha256 == once.adapter.sha256


def test_layers_computed_twice_keep_less_for_the_gradient() -> None:
    """Bytes that autograd holds between the two passes, each storage counted once."""
    model = tiny_model(num_hidden_layers=8)
    ids = [TokenRow(tuple(range(index, index + 100)), 50) for index in range(8)]
    kept: list[int] = []
    with lora_attached(model, SETTINGS, seed=1, start=None):
        loss = RowLoss(model, precision="float32", probe=ids)
        for twice in (False, True):
            held: dict[int, int] = {}

            def count(tensor: torch.Tensor, held: dict[int, int] = held) -> torch.Tensor:
                held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
                if twice:
                    with recomputed(model):
                        loss.sum(ids)
                else:
                    loss.sum(ids)
            kept.append(sum(held.values()))
    assert kept[1] < 0.3 * kept[0]
    assert "forward" not in vars(model.model.layers[0])


def test_a_model_without_marked_layers_is_refused() -> None:
    with pytest.raises(CompileError, match="BTC423"), recomputed(torch.nn.Linear(2, 2)):
        pass


def test_smaller_parts_are_the_same_steps_but_for_rounding(tmp_path: Path) -> None:
    whole = train(tmp_path / "a", SETTINGS)
    parts = train(tmp_path / "b", replace(SETTINGS, part_tokens=60))
    for ours, theirs in zip(parts.history, whole.history, strict=True):
        assert ours.train == pytest.approx(theirs.train, rel=1e-3)


def test_out_of_memory_halves_the_parts_until_they_fit(tmp_path: Path) -> None:
    said = Said()
    found = train(tmp_path / "a", replace(SETTINGS, part_tokens=480), host=cramped(130), progress=said)
    assert said.lines == [
        f"training test ran out of memory; it starts over with parts of {size} tokens at most" for size in (240, 120)
    ]
    fitting = train(tmp_path / "b", replace(SETTINGS, part_tokens=120))
    assert found.adapter.sha256 == fitting.adapter.sha256 and found.history == fitting.history
    assert sorted(entry.name for entry in (tmp_path / "a").iterdir()) == ["adapter", "training.json"]


def test_the_size_that_fits_is_known_to_a_run_that_goes_on(tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    class Stopping(Said):
        def advance(self, units: int = 1, note: str = "") -> None:
            if "loss" in note and self.lines:
                raise Stopped

    settings = replace(SETTINGS, part_tokens=240)
    with pytest.raises(Stopped):
        train(tmp_path, settings, host=cramped(130), progress=Stopping())
    assert json.loads((tmp_path / "parts.json").read_text())["part_tokens"] == 120
    said = Said()
    train(tmp_path, settings, host=cramped(130), progress=said)
    assert not said.lines


def test_no_room_for_one_row_is_an_error_with_what_would_help(tmp_path: Path) -> None:
    with pytest.raises(CompileError) as caught:
        train(tmp_path, SETTINGS, host=cramped(20))
    diagnostic = caught.value.diagnostics[0]
    assert diagnostic.code == "BTC422" and "on one row at a time" in diagnostic.message
    assert diagnostic.help is not None and "`gradient_checkpointing: true`" in diagnostic.help
    assert not (tmp_path / "training.json").exists()


def test_other_errors_of_the_model_pass(tmp_path: Path) -> None:
    host = TinyHost()

    def broken(*_: Any) -> None:
        raise RuntimeError("a bug")

    host.model.get_input_embeddings().register_forward_hook(broken)
    with pytest.raises(RuntimeError, match="a bug"):
        train(tmp_path, SETTINGS, host=host)


def test_half_precision_learns_and_goes_on_with_its_scale(tmp_path: Path) -> None:
    expected = train(tmp_path / "a", SETTINGS)
    half = train(tmp_path / "b", SETTINGS, precision="float16")
    for ours, theirs in zip(half.history, expected.history, strict=True):
        assert ours.train == pytest.approx(theirs.train, rel=0.05)
    assert half.adapter.sha256 != expected.adapter.sha256
    scales = []

    class Stopped(Exception):
        pass

    class Stopping(Said):
        def advance(self, units: int = 1, note: str = "") -> None:
            state = tmp_path / "c" / "checkpoint" / "state.json"
            if state.exists():
                scales.append(json.loads(state.read_text())["position"]["scale"])
                raise Stopped

    loud = replace(SETTINGS, clip=1e9)
    host = TinyHost()
    host.model.lm_head.weight.data *= 3000.0  # gradients overflow until the scale has come down
    with pytest.raises(Stopped):
        train(tmp_path / "c", loud, host=host, precision="float16", progress=Stopping())
    assert 1.0 <= scales[0] < 4096.0
    again = train(tmp_path / "c", loud, host=host, precision="float16")
    whole = train(tmp_path / "d", loud, host=host, precision="float16")
    assert again.adapter.sha256 == whole.adapter.sha256


def wide_enough() -> TinyHost:
    """Rows of weights as long as bitsandbytes' blocks."""
    return TinyHost(tiny_model(hidden_size=64, intermediate_size=128, num_key_value_heads=4))


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_gradients_over_4_bits_are_those_of_the_rounded_weights(method: Any) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: `pip install 'bt-compiler[qlora]'`")
    ids = [TokenRow((*range(60), *range(index, index + 40)), 50) for index in range(4)]
    host, settings = wide_enough(), replace(SETTINGS, method=method)
    gradients = []
    with host.set_aside() as base:
        rounded = load_base(base.path, dtype="float32", device="cpu", in_4bit=True)
    plain = copy.deepcopy(host.model)
    count = 0
    for name, module in rounded.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            weight = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            plain.get_submodule(name).weight.data = weight
            count += 1
    assert count == 14
    for model in (rounded, plain):
        with lora_attached(model, settings, seed=1, start=None) as lora:
            with torch.no_grad():
                for name, value in lora.parameters.items():
                    if ".lora_B." in name:
                        value += 0.01
            loss = RowLoss(model, precision="float32", probe=ids)
            loss.validate(ids)
            loss.sum(ids).backward()
            gradients.append({name: value.grad for name, value in lora.parameters.items()})
    for name, expected in gradients[1].items():
        assert expected is not None and expected.norm() > 0
        assert torch.allclose(gradients[0][name], expected, rtol=1e-2, atol=1e-3 * expected.abs().max()), name


@pytest.mark.parametrize("launch", [None, LaunchSection(processes=2)])
def test_an_adapter_is_trained_on_weights_of_4_bits(tmp_path: Path, launch: LaunchSection | None) -> None:
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: `pip install 'bt-compiler[qlora]'`")
    host = wide_enough()
    settings = replace(SETTINGS, epochs=8, quantize="4bit", gradient_checkpointing=True)
    rounded = train(tmp_path / "a", replace(settings, launch=launch), host=host)
    assert rounded.history[-1].train < 0.3 * rounded.history[0].train
    assert host.lent == 0
    first = train(tmp_path / "b", replace(settings, quantize=None), host=host).history[0].train
    assert rounded.history[0].train != first
    assert rounded.history[0].train == pytest.approx(first, rel=0.1)
    again = train(tmp_path / "c", replace(settings, epochs=1, quantize=None), host=host, start=rounded.adapter)
    assert again.history[0].train < 0.6 * first  # it fits the weights as they are
