"""vLLM in this process, on a tiny random model: beside the embedded engine, with adapters, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import GRAMMAR, SYSTEM, finish_all, open_model, request, save_adapter, save_model

from bt_compiler.engine.backends.vllm import VllmBackend
from bt_compiler.engine.progress import Silent
from bt_compiler.engine.request import Completion, OutputGrammar, Sampling, WeightHost
from bt_compiler.errors import BackendError, ExampleError
from bt_compiler.graph.candidate import Adapter
from bt_compiler.spec.sections import VllmSection

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


class Beside(NamedTuple):
    """A running vLLM and the folder that it runs."""

    vllm: VllmBackend
    folder: Path
    cache: Path
    tuned: tuple[Adapter, ...]


def open_vllm(folder: Path, cache: Path, **settings: Any) -> VllmBackend:
    return VllmBackend(
        model_id=str(folder),
        revision=None,
        dtype="float32",
        batch=16,
        settings=VllmSection(**settings),
        cache_root=cache,
        choices=lambda name, measure: measure(),
        progress=Silent(),
    )


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beside]:
    place = tmp_path_factory.mktemp("vllm")
    folder = save_model(place / "model", head_dim=32)  # what its attention on CPUs takes
    backend = open_vllm(folder, place / "cache", max_lora_rank=8)
    digest = backend.base_model()[1]
    tuned = tuple(save_adapter(place / f"a{seed}", folder, digest, seed=seed) for seed in (1, 2, 3))
    yield Beside(backend, folder, place / "cache", tuned)
    backend.close()


def asked(adapter: Adapter | None, *, count: int = 6) -> list[Any]:
    held = [request(f"held {i}", f"question {i}", grammar=GRAMMAR, adapter=adapter) for i in range(count)]
    return [*held, *(request(f"free {i}", f"question {i}", adapter=adapter) for i in range(count))]


def texts(backend: Any, requests: list[Any]) -> dict[str, str]:
    backend.submit(requests)
    results = finish_all(backend)
    assert all(isinstance(item, Completion) for item in results.values()), results
    return {name: item.text for name, item in results.items()}


def test_base_and_adapters_answer_as_on_the_embedded_engine(beside: Beside) -> None:
    embedded = open_model(beside.folder, beside.cache)
    seen = []
    for adapter in (None, *beside.tuned):
        mine = texts(beside.vllm, asked(adapter))
        assert mine == texts(embedded, asked(adapter))
        assert all(
            text.endswith(("setosa", "versicolor", "virginica")) for name, text in mine.items() if "held" in name
        )
        seen.append(mine["free 0"])
    assert len(set(seen)) == 4
    everyone = (None, *beside.tuned)
    mixed = [replace(one, id=f"{one.id} {a}") for a in range(4) for one in asked(everyone[a])]
    mixed = [mixed[number * 7 % len(mixed)] for number in range(len(mixed))]  # base and adapters in turn
    assert texts(beside.vllm, mixed) == texts(embedded, mixed)


def test_a_completion_says_what_it_took(beside: Beside) -> None:
    tuned = beside.tuned[0]
    beside.vllm.submit([request("one", "x", grammar=GRAMMAR, adapter=tuned)])
    (result,) = finish_all(beside.vllm).values()
    assert (result.adapter, result.finish, result.prompt_tokens) == (
        tuned.sha256,
        "stop",
        beside.vllm.count_tokens(request("one", "x").prompt),
    )
    assert result.completion_tokens == len(beside.vllm._base.encoder.completion(result.text))
    beside.vllm.submit([request("cut", "x", max_tokens=3)])
    (cut,) = finish_all(beside.vllm).values()
    assert (cut.finish, cut.completion_tokens) == ("length", 3)


def test_what_prompts_share_is_computed_once_for_each_adapter(beside: Beside) -> None:
    long = SYSTEM * 8
    first = [request("1", "a", system=long), request("2", "b", system=long)]
    beside.vllm.submit(first[:1])
    finish_all(beside.vllm)
    beside.vllm.submit(first[1:])
    assert finish_all(beside.vllm)["2"].shared_tokens >= 128
    beside.vllm.submit([request("3", "b", system=long, adapter=beside.tuned[0])])
    assert finish_all(beside.vllm)["3"].shared_tokens == 0


def test_noise_follows_from_the_seed_of_the_request_alone(beside: Beside) -> None:
    def sampled(names: str, seed: int) -> dict[str, str]:
        sampling = Sampling(temperature=1.0, seed=seed)
        return texts(beside.vllm, [request(name, "x", sampling=sampling) for name in names])

    alone, crowd = sampled("a", 2**62 + 5), sampled("abcdefgh", 2**62 + 5)
    assert set(crowd.values()) == set(alone.values())
    assert sampled("a", 6) != alone


def test_what_is_wrong_with_one_request_ends_that_one(beside: Beside) -> None:
    broken = OutputGrammar(lark="start: (")
    beside.vllm.submit(
        [
            request("broken", "x", grammar=broken),
            request("long", "x " * 600),
            request("good", "x"),
            request("gone", "x"),
        ]
    )
    beside.vllm.cancel(["gone", "never there"])
    results = finish_all(beside.vllm)
    assert set(results) == {"broken", "long", "good"}
    assert isinstance(results["broken"], ExampleError)
    assert isinstance(results["long"], ExampleError)
    assert (results["broken"].code, results["long"].code) == ("BTC511", "BTC510")
    assert isinstance(results["good"], Completion)
    assert beside.vllm.poll() == []


def test_requests_that_come_in_an_interruption_join_those_under_way(beside: Beside) -> None:
    early, late = request("early", "petal", max_tokens=30), request("late", "sepal", max_tokens=2)
    expected = texts(beside.vllm, [early, late])
    beside.vllm.submit([early])
    beside.vllm.interrupt()
    assert beside.vllm.poll() is None
    beside.vllm.submit([late])
    (first,) = beside.vllm.poll() or []
    assert first.id == "late"
    results = {first.id: first.result} | finish_all(beside.vllm)
    assert {name: result.text for name, result in results.items()} == expected


def refused(backend: VllmBackend, adapter: Adapter) -> str:
    with pytest.raises(BackendError) as caught:
        backend.submit([request("x", "x", adapter=adapter)])
    return caught.value.diagnostics[0].code


def test_adapters_that_do_not_fit_are_refused_and_the_engine_goes_on(beside: Beside, tmp_path: Path) -> None:
    good = beside.tuned[0]
    before = texts(beside.vllm, asked(good))
    wide = save_adapter(tmp_path / "wide", beside.folder, good.base_digest, seed=9)
    config = json.loads((wide.path / "adapter_config.json").read_text())
    (wide.path / "adapter_config.json").write_text(json.dumps(config | {"r": 16}))
    assert refused(beside.vllm, replace(wide, rank=16)) == "BTC591"
    assert refused(beside.vllm, replace(good, base_digest="0" * 64, sha256="1")) == "BTC509"
    assert refused(beside.vllm, replace(good, path=tmp_path / "nothing", sha256="3")) == "BTC508"
    other = save_model(tmp_path / "other", head_dim=32, hidden_size=64)
    misfit = save_adapter(tmp_path / "misfit", other, good.base_digest)
    assert refused(beside.vllm, replace(misfit, sha256="4")) == "BTC508"
    cut = save_adapter(tmp_path / "cut", beside.folder, good.base_digest)
    (cut.path / "adapter_model.safetensors").write_bytes(b"\x00" * 20)
    assert refused(beside.vllm, replace(cut, sha256="5")) == "BTC508"
    assert texts(beside.vllm, asked(good)) == before


def test_the_base_weights_are_lent_and_nothing_generates_meanwhile(beside: Beside) -> None:
    assert isinstance(beside.vllm, WeightHost)
    before = texts(beside.vllm, asked(None))
    with beside.vllm.borrow() as model:
        lent = model.state_dict()
        saved = load_file(beside.folder / "model.safetensors")
        assert all(torch.equal(lent[name], tensor) for name, tensor in saved.items())
        with pytest.raises(RuntimeError, match="lent"):
            beside.vllm.submit([request("x", "x")])
        with torch.no_grad():
            next(iter(model.parameters())).add_(1.0)  # a copy of its own
    assert texts(beside.vllm, asked(None)) == before
    beside.vllm.submit([request("x", "x")])
    with pytest.raises(RuntimeError, match="in flight"), beside.vllm.borrow():
        pass
    finish_all(beside.vllm)


def test_rows_are_not_promised_to_be_independent(beside: Beside) -> None:
    facts = beside.vllm.facts()
    assert (facts["row_invariant"], facts["batching"]) == (False, "fixed parts")
    assert beside.vllm.identity()["model"] == open_model(beside.folder, beside.cache).identity()["model"]


def test_too_little_memory_is_said_with_the_numbers(beside: Beside, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    with pytest.raises(BackendError) as caught:
        open_vllm(beside.folder, tmp_path, gpu_memory_utilization=1.0)
    found = caught.value.diagnostics[0]
    assert found.code == "BTC593"
    assert "GiB" in found.message
