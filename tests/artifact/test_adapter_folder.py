from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bt_compiler.artifact import adapter_digest, canonical_adapter
from bt_compiler.errors import BundleError

MakeAdapter = Callable[..., Path]


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "adapter_config.json").read_text())


def test_the_config_is_canonical(make_adapter: MakeAdapter) -> None:
    one = make_adapter("one", targets=("v_proj", "q_proj"))
    other = make_adapter("other", targets=("q_proj", "v_proj"))
    assert (one / "adapter_config.json").read_bytes() == (other / "adapter_config.json").read_bytes()
    assert config_of(one) == {
        "base_model_name_or_path": "org/smol",
        "inference_mode": True,
        "lora_alpha": 4,
        "peft_type": "LORA",
        "r": 2,
        "target_modules": ["q_proj", "v_proj"],
        "task_type": "CAUSAL_LM",
    }


def test_a_local_base_model_leaves_no_path(make_adapter: MakeAdapter) -> None:
    folder = make_adapter()
    canonical_adapter(folder, base_model="/home/someone/models/smol")
    assert config_of(folder)["base_model_name_or_path"] == "smol"


def test_the_digest_ignores_order_metadata_and_the_base_path(make_adapter: MakeAdapter) -> None:
    folder = make_adapter()
    before = adapter_digest(folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(dict(reversed(tensors.items())), folder / "adapter_model.safetensors", metadata={"other": "thing"})
    canonical_adapter(folder, base_model="another/name")
    assert adapter_digest(folder) == before


@pytest.mark.parametrize("change", ["value", "name", "shape", "dtype", "alpha"])
def test_the_digest_sees_what_the_adapter_computes(make_adapter: MakeAdapter, change: str) -> None:
    folder = make_adapter()
    before = adapter_digest(folder)
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(iter(tensors))
    if change == "value":
        tensors[name] = tensors[name].copy()
        tensors[name][0, 0] = np.nextafter(np.float32(0.5), np.float32(1))
    elif change == "name":
        tensors["renamed"] = tensors.pop(name)
    elif change == "shape":
        tensors[name] = tensors[name].reshape(4, 2)
    elif change == "dtype":
        tensors[name] = tensors[name].view(np.int32)
    else:
        config = config_of(folder) | {"lora_alpha": 8}
        (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, path)
    assert adapter_digest(folder) != before


def test_a_pickle_is_refused(make_adapter: MakeAdapter) -> None:
    folder = make_adapter()
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04.")
    for use in (adapter_digest, lambda one: canonical_adapter(one, base_model="b")):
        with pytest.raises(BundleError, match=r"`adapter_model\.bin` is a pickle") as caught:
            use(folder)
        assert caught.value.diagnostics[0].code == "BTC561"


def _header(entries: dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x08",
        struct.pack("<Q", 1 << 60) + b"{}",
        struct.pack("<Q", 5) + b"[[[[[",
        struct.pack("<Q", 200_000) + b"[" * 200_000,
        _header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"abc"),
        _header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, b"abcd"),
        _header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}, b"abcd"),
        _header({"a": {"dtype": "F32", "shape": [1]}}, b"abcd"),
        _header({"a": 3}, b"abcd"),
    ],
)
def test_a_damaged_weights_file_is_an_error(make_adapter: MakeAdapter, data: bytes) -> None:
    folder = make_adapter()
    (folder / "adapter_model.safetensors").write_bytes(data)
    with pytest.raises(BundleError) as caught:
        adapter_digest(folder)
    assert caught.value.diagnostics[0].code == "BTC561"


@pytest.mark.parametrize("text", ["", "[]", '{"r": 2}', "\x00"])
def test_a_damaged_config_is_an_error(make_adapter: MakeAdapter, text: str) -> None:
    folder = make_adapter()
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(BundleError) as caught:
        adapter_digest(folder)
    assert caught.value.diagnostics[0].code == "BTC561"


def test_a_folder_that_peft_wrote_is_the_same_for_every_hash_seed_and_loads_again(tmp_path: Path) -> None:
    code = """
import sys, torch
from peft import LoraConfig, PeftModel, get_peft_model
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
from bt_compiler.artifact import adapter_digest, canonical_adapter
def base():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, vocab_size=32,
                                        num_attention_heads=2, num_key_value_heads=2))
folder = Path(sys.argv[1])
model = base()
model.config._name_or_path = sys.argv[1]
torch.manual_seed(1)
targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
tuned = get_peft_model(model, LoraConfig(r=2, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM"))
ids = torch.tensor([[1, 2, 3]])
wanted = tuned.eval()(ids).logits
tuned.save_pretrained(folder)
canonical_adapter(folder, base_model="org/tiny")
assert torch.equal(PeftModel.from_pretrained(base(), folder).eval()(ids).logits, wanted)
print(adapter_digest(folder))
"""
    running = []
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", code, str(tmp_path / f"seed{seed}")]
        pipe = subprocess.PIPE
        running.append(subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True))
    said = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    digests = [out.split()[-1] for out, _ in said]
    configs = [(tmp_path / f"seed{seed}" / "adapter_config.json").read_text() for seed in ("1", "2")]
    assert digests[0] == digests[1]
    assert configs[0] == configs[1]
    assert str(tmp_path) not in configs[0]
