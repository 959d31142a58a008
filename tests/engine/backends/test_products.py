"""float32 products by oneDNN: the same rows' bytes, the same texts, and plain layers for whoever borrows the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from row_invariance import Composer, differing
from tiny_models import finish_all, open_model, request, save_adapter, save_model

from bt_compiler.engine.backends import products
from bt_compiler.engine.backends.products import ONEDNN, TORCH, fast_products, measured_products, product_of

pytestmark = pytest.mark.skipif(not products._available(), reason="this torch has no oneDNN product")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with layers on both sides of the size from which oneDNN takes them."""
    return save_model(tmp_path_factory.mktemp("wide") / "model", hidden_size=256, intermediate_size=320)


def test_bytes_of_a_row_depend_neither_on_the_others_nor_on_threads() -> None:
    product, usual = product_of(ONEDNN), product_of(TORCH)
    inputs, weight = torch.randn(400, 576), torch.randn(1000, 576)
    alone = product(inputs[:16], weight)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            for rows in range(24, 400, 56):
                turned = torch.cat([inputs[16:rows], inputs[:16]])
                assert torch.equal(product(turned, weight)[-16:], alone)
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(alone, usual(inputs[:16], weight), rtol=1e-4, atol=1e-3)


def test_texts_and_row_invariance_are_those_of_torch(wide: Path, tmp_path: Path) -> None:
    asked = [request(str(index), f"petal {index} " * (index % 5 + 1), max_tokens=8) for index in range(20)]
    texts = {}
    for chosen in (TORCH, ONEDNN):
        backend = open_model(wide, tmp_path / "cache", products=chosen)
        backend.submit(asked)
        texts[chosen] = finish_all(backend)
        assert backend.facts()["products"] == chosen
        assert backend.identity().get("products") == (None if chosen == TORCH else ONEDNN)
    assert texts[ONEDNN] == texts[TORCH]
    adapter = save_adapter(tmp_path / "adapter", wide, backend.base_model()[1])
    assert backend.facts()["row_invariant"]
    composer = Composer(backend, adapters=(None, adapter), prefix=40, suffix=90, steps=4)
    assert differing(composer, batches=30, seed=3, most=12) == []


def test_a_trainer_gets_plain_layers(wide: Path, tmp_path: Path) -> None:
    backend = open_model(wide, tmp_path / "cache", products=ONEDNN)

    def changed(model: Any) -> int:
        return sum("forward" in vars(layer) for layer in model.modules())

    before = changed(backend._loaded.model)
    assert before
    with backend.borrow() as model:
        assert changed(model) == 0
        model.lm_head.weight.requires_grad_(True)
        model(input_ids=torch.tensor([[1, 2, 3]])).logits.sum().backward()
        assert model.lm_head.weight.grad is not None
    assert changed(backend._loaded.model) == before


def test_only_float32_on_a_cpu_has_a_choice_and_the_faster_is_taken(
    wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fast_products("bfloat16", "cpu", tmp_path) == fast_products("float32", "cuda", tmp_path) == TORCH
    assert open_model(wide, tmp_path / "cache", products=ONEDNN, dtype="bfloat16").facts()["products"] == TORCH
    for onednn, chosen in ((1.0, ONEDNN), (1.9, TORCH)):
        monkeypatch.setattr(products, "_seconds", lambda it, at=onednn: at if it is products._onednn else 2.0)
        assert measured_products() == chosen
        assert fast_products("float32", "cpu", tmp_path / chosen) == chosen
    assert fast_products("float32", "cpu", tmp_path / ONEDNN) == ONEDNN  # as remembered
