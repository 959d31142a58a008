"""Experiment 1: the bytes of a row's logits do not depend on what else is in the batch."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from row_invariance import Composer, differing
from tiny_models import OTHER, SYSTEM, finish_all, open_model, request, save_adapter, save_model

from bt_compiler.engine.request import Completion, Sampling
from bt_compiler.errors import ExampleError


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_200_random_batches_leave_the_bytes_of_a_row_alone(dtype: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", hidden_size=64, intermediate_size=96)
    backend = open_model(folder, tmp_path / "cache", dtype=dtype)
    adapter = save_adapter(tmp_path / "adapter", folder, backend.base_model()[1])
    composer = Composer(backend, adapters=(None, adapter), prefix=40, suffix=90, steps=4)
    assert differing(composer, batches=200, seed=3, most=12) == []
    assert backend.facts()["row_invariant"]


def test_the_comparison_sees_a_row_that_depends_on_its_batch(tmp_path: Path) -> None:
    backend = open_model(save_model(tmp_path / "model"), tmp_path / "cache")
    composer = Composer(backend, adapters=(None,), prefix=40, suffix=30, steps=2, noise=1e-6)
    assert differing(composer, batches=3, seed=0)


def test_refills_and_order_of_submission_leave_the_texts_alone(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    small, large = (open_model(folder, tmp_path / "cache", batch=batch) for batch in (3, 32))
    asked = [
        request(str(index), f"petal {index} " * (index % 5 + 1), system=OTHER if index % 3 else SYSTEM, max_tokens=8)
        for index in range(20)
    ]
    large.submit(asked)
    texts = finish_all(large)
    shuffled = random.Random(0).sample(asked, len(asked))
    small.submit(shuffled[:7])
    first = {item.id: item.result for item in small.poll()}
    small.submit(shuffled[7:])
    assert first | finish_all(small) == texts


def test_sampling_noise_follows_from_the_request_alone(tmp_path: Path) -> None:
    backend = open_model(save_model(tmp_path / "model"), tmp_path / "cache")

    def texts(seeds: list[int]) -> dict[str, str]:
        backend.submit(
            [request(str(seed), "x", sampling=Sampling(temperature=1.0, top_p=0.9, seed=seed)) for seed in seeds]
        )
        return {name: result.text for name, result in finish_all(backend).items()}

    together = texts([1, 2, 3, 4])
    assert texts([3]) == {"3": together["3"]}
    assert len(set(together.values())) == 4


def test_top_p_keeps_the_nucleus() -> None:
    from bt_compiler.engine.backends.decoding import sample

    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    drawn = Counter(sample(logits, Sampling(temperature=1.0, top_p=0.7, seed=1), place) for place in range(400))
    assert set(drawn) == {0, 1}
    assert 0.5 < drawn[0] / 400 < 0.75
    free = Counter(sample(logits, Sampling(temperature=1.0, seed=1), place) for place in range(400))
    assert set(free) == {0, 1, 2, 3}


def test_a_prompt_beyond_the_window_fails_alone_with_its_numbers(tmp_path: Path) -> None:
    backend = open_model(save_model(tmp_path / "model"), tmp_path / "cache")
    backend.submit([request("long", "word " * 300), request("short", "x", max_tokens=4)])
    results = finish_all(backend)
    assert isinstance(results["long"], ExampleError)
    assert results["long"].code == "BTC510"
    assert "512" in results["long"].message
    assert isinstance(results["short"], Completion)


def test_rows_wait_rather_than_pass_the_bound_on_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bt_compiler.engine.backends import tiers

    folder = save_model(tmp_path / "model")
    asked = [request(str(index), "petal " * index, max_tokens=5) for index in range(1, 9)]
    free, tight = open_model(folder, tmp_path / "cache"), open_model(folder, tmp_path / "cache")
    free.submit(asked)
    texts = finish_all(free)
    monkeypatch.setattr(tiers, "ROW_BYTES", 300 * 2 * 2 * 2 * 8 * 4)  # 300 tokens of this model
    tight.submit(asked)
    most = 0
    results: dict[str, object] = {}
    while finished := tight.poll():
        most = max(most, len(tight._running()._live))  # type: ignore[attr-defined]
        results.update({item.id: item.result for item in finished})
    assert results == texts
    assert most < 4


def test_cancelled_requests_never_come_back(tmp_path: Path) -> None:
    backend = open_model(save_model(tmp_path / "model"), tmp_path / "cache", batch=2)
    backend.submit([request(str(index), f"question {index}", max_tokens=6) for index in range(6)])
    seen = {item.id for item in backend.poll()}
    gone = [name for name in "012345" if name not in seen][:2]
    backend.cancel([*gone, "unknown"])
    assert set(finish_all(backend)) | seen == set("012345") - set(gone)
    assert backend.poll() == []


def test_rows_that_come_in_an_interruption_join_those_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bt_compiler.engine.backends.schedule import PackedRows

    backend = open_model(save_model(tmp_path / "model"), tmp_path / "cache")
    early, late = request("early", "petal", max_tokens=30), request("late", "sepal", max_tokens=2)
    backend.submit([early, late])
    texts = finish_all(backend)
    passes: list[int] = []
    step = PackedRows.step

    def interrupted(tier: PackedRows) -> Any:
        passes.append(len(passes))
        if len(passes) == 3:
            backend.interrupt()
        return step(tier)

    monkeypatch.setattr(PackedRows, "step", interrupted)
    backend.submit([early])
    assert backend.poll() is None
    assert len(passes) == 3
    backend.submit([late])
    (first,) = backend.poll() or []
    assert first.id == "late"
    assert {first.id: first.result} | finish_all(backend) == texts
    backend.interrupt()
    assert backend.poll() == []


def test_rows_that_depend_on_their_batch_run_in_fixed_parts(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    backend = open_model(folder, tmp_path / "cache", batch=2, tier="shared-prefix attention")
    assert backend.facts()["batching"] == "fixed parts"
    backend.submit([request(str(index), "x" * index, max_tokens=3 * index + 1) for index in range(1, 6)])
    order: list[str] = []
    while finished := backend.poll():
        order.extend(item.id for item in finished)
    parts = [set(order[:2]), set(order[2:4]), set(order[4:])]
    assert parts == [{"1", "2"}, {"3", "4"}, {"5"}]
