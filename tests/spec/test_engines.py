"""Settings of engines: what a spec says, what it is taken for, and what of it is the same on every machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from bt_compiler.spec import Spec, build_sections, load_spec, yaml_text
from bt_compiler.spec.sections import VllmSection

SPEC = """\
version: 1
data: tickets.csv
modules:
  classify:
    signature: "text -> category"
metric: accuracy
"""


def written(folder: Path, more: str) -> Spec:
    path = folder / "spec.yaml"
    path.write_text(SPEC + more)
    return load_spec(path)


@pytest.mark.parametrize(
    ("optimize", "rank"),
    [
        ("", 32),
        ("optimize: {weights: {r: 4}}", 8),
        ("optimize: {weights: {r: 65}}", 128),
        ("optimize: {strategy: [prompts], weights: {r: 65}}", 128),  # a sweep may train nevertheless
        ("optimize: {strategy: [weights], weights: {r: 512}}", 512),
    ],
)
def test_vllm_is_started_for_the_rank_that_is_trained(tmp_path: Path, optimize: str, rank: int) -> None:
    (model,) = build_sections(written(tmp_path, f"model: {{id: m, engine: vllm}}\n{optimize}")).models
    assert model.vllm == VllmSection(max_lora_rank=rank)


def test_settings_of_vllm_are_resolved_and_its_devices_are_no_part_of_the_identity(tmp_path: Path) -> None:
    several = "{tensor_parallel_size: 2, distributed_executor_backend: ray, gpu_memory_utilization: 0.5}"
    one = written(tmp_path, "model: {id: m, engine: vllm}\n")
    two = written(tmp_path, f"model: {{id: m, engine: vllm, vllm: {several}}}\n")
    assert one.identity() == two.identity()
    model = build_sections(two).models[0]
    assert model.vllm == VllmSection(
        tensor_parallel_size=2, distributed_executor_backend="ray", gpu_memory_utilization=0.5, max_lora_rank=32
    )
    again = tmp_path / "again.yaml"
    again.write_text(yaml_text(two.resolved()))
    assert build_sections(load_spec(again)).models == (model,)
    short = written(tmp_path, "model: {id: m, engine: vllm, vllm: {max_model_len: 512}}\n")
    assert short.identity() != one.identity()  # other prompts fail


def test_requests_in_flight_are_no_part_of_the_identity_and_rows_computed_together_are(tmp_path: Path) -> None:
    for model, same in (("engine: openai, endpoints: [http://one/v1]", True), ("engine: transformers", False)):
        plain = written(tmp_path, f"model: {{id: lm, {model}}}\n").identity()
        found = written(tmp_path, f"model: {{id: lm, batch: 2, {model}}}\n").identity()
        assert (found == plain) == same
        named = written(tmp_path, f"models: {{default: {{id: lm, batch: 2, {model}}}}}\n").identity()
        assert ("batch" in named["models"]["default"]) != same


def test_weights_of_a_served_model_make_it_trainable(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    served = "id: lm, engine: openai, endpoints: [http://one/v1]"
    alone = build_sections(written(tmp_path, f"model: {{{served}}}\n"))
    beside = build_sections(written(tmp_path, f"model: {{{served}, weights: folder}}\n"))
    assert (alone.models[0].weights, alone.optimize.strategy) == (None, ("prompts",))
    assert beside.models[0].weights == str(tmp_path / "folder")
    assert beside.optimize.strategy == ("prompts", "weights", "prompts")
    elsewhere = written(tmp_path, f"model: {{{served}, weights: /other/place}}\n")
    assert elsewhere.identity() == written(tmp_path, f"model: {{{served}, weights: /a/place}}\n").identity()
