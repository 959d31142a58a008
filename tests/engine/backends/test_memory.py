"""Out of memory on generating: fewer rows at once and the same bytes, or an error that says what would help."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from said import Said
from tiny_models import GRAMMAR, OTHER, SYSTEM, finish_all, open_model, request, save_adapter, save_model

from bt_compiler.engine.backends import transformers
from bt_compiler.engine.backends.transformers import TransformersBackend
from bt_compiler.engine.request import Choices, Request, Sampling
from bt_compiler.errors import BackendError
from bt_compiler.graph.candidate import Adapter


def on_cpu() -> None:
    torch.empty(1 << 60)


def on_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def of_cuda() -> None:
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


def of_python() -> None:
    bytearray(1 << 60)


FAILURES = [on_cpu, on_gpu, of_cuda, of_python]


def fails_at(backend: TransformersBackend, passes: Sequence[int], fail: Callable[[], None]) -> list[int]:
    """Memory runs out in these passes, at the last layer norm, when the caches are written; gives tokens by pass."""
    seen: list[int] = []

    def hook(_module: Any, inputs: Any, _output: Any) -> None:
        seen.append(inputs[0].shape[1])
        if len(seen) in passes:
            fail()

    backend._loaded.model.model.norm.register_forward_hook(hook)
    return seen


def cramped(backend: TransformersBackend, most: int) -> None:
    """No pass of more than `most` tokens has room."""

    def hook(_module: Any, inputs: Any, _output: Any) -> None:
        if inputs[0].numel() > most:
            on_cpu()

    backend._loaded.model.get_input_embeddings().register_forward_hook(hook)


def listening(backend: TransformersBackend) -> list[str]:
    said = Said()
    backend._progress = said
    return said.lines


def mixed(adapter: Adapter | None) -> list[Request]:
    """Greedy, sampled, constrained and weighed rows over two prefixes and none, with and without an adapter."""
    asked = []
    for index in range(15):
        system, grammar = OTHER if index % 3 else SYSTEM, GRAMMAR if index % 2 else None
        noise = Sampling(temperature=1.0, top_p=0.9, seed=index) if index % 4 < 2 else Sampling()
        lora = adapter if index % 5 == 0 else None
        question = f"petal {index} " * (index % 4 + 1)
        more: dict[str, Any] = {"shared": index != 7, "max_tokens": 12 + index % 3}
        asked.append(
            request(f"r{index}", question, system=system, grammar=grammar, sampling=noise, adapter=lora, **more)
        )
    weighed = request("weighed", "which?")
    choices = Choices(texts=("Species: setosa", "Species: virginica"), ends=True)
    return [*asked, Request(id="weighed", prompt=weighed.prompt, grammar=None, choices=choices)]


def results(backend: TransformersBackend, asked: Sequence[Request]) -> dict[str, Any]:
    backend.submit(asked)
    return finish_all(backend)


@pytest.mark.parametrize("fail", FAILURES)
def test_rows_that_had_no_room_write_what_they_would_have(fail: Callable[[], None], tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    calm, shaken = (open_model(folder, tmp_path / "cache", batch=16) for _ in range(2))
    adapter = save_adapter(tmp_path / "adapter", folder, calm.base_model()[1])
    expected = results(calm, mixed(adapter))
    said, passes = listening(shaken), fails_at(shaken, (4, 11, 13), fail)
    assert results(shaken, mixed(adapter)) == expected
    assert len(passes) > 13
    assert said == [f"generating ran out of memory; it goes on with {n} rows at once at most" for n in (8, 4, 2)]
    assert shaken.facts()["batch"] == 2
    assert len(set(map(repr, expected.values()))) == len(expected)


def test_memory_that_runs_out_while_tokens_are_chosen_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some rows of a pass have then been weighed already, or have their noise."""
    folder = save_model(tmp_path / "model")
    calm, shaken = (open_model(folder, tmp_path / "cache", batch=16) for _ in range(2))
    expected = results(calm, mixed(None))
    chosen, calls = transformers.choose, []

    def choose(rows: Any, logits: Any, grammars: Any) -> list[int]:
        tokens = chosen(rows, logits, grammars)
        calls.append(len(rows))
        if len(calls) in (2, 9):
            on_cpu()
        return tokens

    monkeypatch.setattr(transformers, "choose", choose)
    said = listening(shaken)
    assert results(shaken, mixed(None)) == expected
    assert len(said) == 2 and len(calls) > 9


def test_the_batch_is_halved_until_a_pass_has_room(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    asked = [request(str(n), f"petal {n} " * (n % 4 + 1), shared=False, max_tokens=8) for n in range(16)]
    expected = results(open_model(folder, tmp_path / "cache", batch=16), asked)
    backend = open_model(folder, tmp_path / "cache", batch=16)
    said = listening(backend)
    cramped(backend, 300)
    assert results(backend, asked) == expected
    assert 1 <= len(said) <= 3
    again = len(said)
    backend.close()  # as between two steps of a compile
    assert results(backend, asked) == expected
    assert len(said) == again, "the batch that has room stays"


def test_one_row_without_room_is_an_error_with_what_was_tried(tmp_path: Path) -> None:
    backend = open_model(save_model(tmp_path / "model"), tmp_path / "cache", batch=4)
    asked = [request(str(n), f"petal {n}", max_tokens=7) for n in range(6)]
    length = backend.count_tokens(asked[0].prompt)
    said = listening(backend)
    cramped(backend, 15)
    backend.submit(asked)
    with pytest.raises(BackendError) as caught:
        finish_all(backend)
    (found,) = caught.value.diagnostics
    assert found.code == "BTC513"
    assert "one row" in found.message and f"has {length} tokens" in found.message and "may have 7" in found.message
    for way in ("`max_tokens`", "passages", "`dtype: bfloat16`", "smaller one"):
        assert found.help is not None and way in found.help
    assert len(said) == 2
    backend.cancel([one.id for one in asked])
    backend._loaded.model.get_input_embeddings()._forward_hooks.clear()
    again = {name: one.text for name, one in results(backend, asked).items()}
    fresh = open_model(tmp_path / "model", tmp_path / "cache")
    assert again == {name: one.text for name, one in results(fresh, asked).items()}


@pytest.mark.parametrize(("tier", "parts"), [("shared-prefix attention", 16), ("expanded prefix KV", 6)])
def test_parts_of_a_fixed_size_are_never_made_smaller_unasked(tier: str, parts: int, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    asked = [request(str(n), f"petal {n}", max_tokens=7) for n in range(6)]
    backend = open_model(folder, tmp_path / "cache", batch=16, tier=tier)
    said = listening(backend)
    cramped(backend, 50)
    backend.submit(asked)
    with pytest.raises(BackendError) as caught:
        finish_all(backend)
    (found,) = caught.value.diagnostics
    assert found.code == "BTC514" and f"with {parts} rows at once" in found.message
    assert found.help == f"write `batch: {parts // 2}` in the model"
    assert not said
    assert len(results(open_model(folder, tmp_path / "cache", batch=2, tier=tier), asked)) == 6


@pytest.mark.parametrize("tier", ["expanded prefix KV", "generate"])
def test_one_row_without_room_is_the_same_error_in_other_tiers(tier: str, tmp_path: Path) -> None:
    backend = open_model(save_model(tmp_path / "model"), tmp_path / "cache", tier=tier)
    cramped(backend, 20)
    backend.submit([request("0", "petal")])
    with pytest.raises(BackendError, match="BTC513"):
        finish_all(backend)


def test_other_errors_of_the_model_pass(tmp_path: Path) -> None:
    def bug() -> None:
        raise RuntimeError("a bug")

    backend = open_model(save_model(tmp_path / "model"), tmp_path / "cache")
    fails_at(backend, (2,), bug)
    backend.submit([request("0", "petal")])
    with pytest.raises(RuntimeError, match="a bug"):
        finish_all(backend)


def test_a_model_without_room_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: Any, **__: Any) -> None:
        on_gpu()

    monkeypatch.setattr(transformers, "examine", no_room)
    with pytest.raises(BackendError, match="BTC593") as caught:
        open_model(save_model(tmp_path / "model"), tmp_path / "cache")
    assert "no room to load" in caught.value.diagnostics[0].message


LIMITED = """
import json, resource, sys
from pathlib import Path
sys.path[:0] = json.loads(sys.argv[1])
from test_memory import listening, many, results
from tiny_models import GRAMMAR, open_model, request

backend = open_model(Path(sys.argv[2]), Path(sys.argv[3]), batch=64, products="torch")
said = listening(backend)
results(backend, [request("warm", "petal", grammar=GRAMMAR)])
backend.close()
held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + int(sys.argv[4]) * 2**20,) * 2)
texts = {name: [one.text, one.finish] for name, one in results(backend, many()).items()}
print(json.dumps([said, texts]))
"""


def many() -> list[Request]:
    """64 rows of different lengths, constrained and not, greedy and sampled."""
    return [
        request(
            str(n),
            f"petal {n} " * (n % 9 + 1),
            grammar=GRAMMAR if n % 2 else None,
            max_tokens=20,
            sampling=Sampling(temperature=1.0, seed=n) if n % 3 else Sampling(),
        )
        for n in range(64)
    ]


def test_a_real_limit_on_memory_halves_the_batch_and_leaves_the_texts_alone(tmp_path: Path) -> None:
    """64 rows of this model hold 64 MiB in each block of 64 tokens. By torch's products: see `products` on oneDNN's."""
    size = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 8}
    folder, cache = save_model(tmp_path / "model", intermediate_size=64, head_dim=64, **size), tmp_path / "cache"
    calm = results(open_model(folder, cache, batch=64, products="torch"), many())
    paths = json.dumps([entry for entry in sys.path if "tests" in entry])
    command = [sys.executable, "-c", LIMITED, paths, str(folder), str(cache), "40"]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads()), "RAYON_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | threads, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    said, texts = json.loads(done.stdout.splitlines()[-1])
    assert said and all("ran out of memory" in line for line in said)
    assert texts == {name: [one.text, one.finish] for name, one in calm.items()}
    assert len(set(map(str, texts.values()))) > 10
