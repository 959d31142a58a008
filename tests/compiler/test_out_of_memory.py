"""A whole compile on a tiny LM that runs out of memory as it generates: the same bundle, or an error to go on from."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from said import Said

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

from kill_resume import KINDS, SPEC
from tiny_lm import make_tiny_lm

from bt_compiler.artifact.bundle import read_bundle
from bt_compiler.compiler.compile import CompileSettings, compile_with
from bt_compiler.engine.backends import open_backend
from bt_compiler.engine.cache import CompletionCache
from bt_compiler.engine.request import Request
from bt_compiler.errors import BackendError

Fails = Callable[[int], bool]
"""Whether memory runs out in the pass of this number."""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    for place, (split, count) in enumerate((("train", 12), ("dev", 6), ("test", 6))):
        rows = [f'{{"size": {n}.{place + 1}, "weight": {n * 40}.25, "kind": "{KINDS[n % 3]}"}}\n' for n in range(count)]
        (tmp_path / f"{split}.jsonl").write_text("".join(rows))
    model = make_tiny_lm(tmp_path / "model", ["Say which kind it is. Size: 3.5 Weight: 71.2 Kind: apple", *KINDS] * 20)
    path = tmp_path / "tiny.yaml"
    text = SPEC.format(model=model, candidates=2, epochs=1)
    path.write_text(text.replace("[prompts, weights, prompts]", "[prompts]"))
    return path


def compiled(spec: Path, out: str, fails: Fails, asked: list[str] | None = None) -> tuple[str, int, list[str]]:
    """Digest, forward passes and what was said; `asked` gets the requests that reach the model."""
    said, passes = Said(), 0

    def hook(*_: Any) -> None:
        nonlocal passes
        passes += 1
        if fails(passes):
            torch.empty(1 << 60)

    def opened(section: Any, choices: Any) -> Any:
        backend: Any = open_backend(section, cache_root=spec.parent / f"cache-{out}", choices=choices, progress=said)
        backend._loaded.model.get_output_embeddings().register_forward_hook(hook)
        submit = backend.submit

        def counted(requests: Sequence[Request]) -> None:
            if asked is not None:
                asked.extend(one.id for one in requests)
            submit(requests)

        backend.submit = counted
        return backend

    settings = CompileSettings(
        out=spec.parent / "artifacts" / out, cache=spec.parent / f"cache-{out}", progress=said, opener=opened
    )
    folder = compile_with(spec, settings)
    return read_bundle(folder).manifest.digest, passes, said.lines


def test_it_ends_in_the_bundle_of_an_undisturbed_compile(spec: Path) -> None:
    digest, whole, _ = compiled(spec, "whole", lambda number: False)
    shaken, passes, said = compiled(spec, "shaken", lambda number: number in (3, whole // 2))
    assert shaken == digest
    assert passes > whole
    halvings = [line for line in said if "ran out of memory" in line]
    assert [line.split(" rows at once")[0].split()[-1] for line in halvings] == ["32", "16"]


def test_the_same_command_goes_on_where_one_row_had_no_room(spec: Path) -> None:
    asked: list[str] = []
    digest, whole, _ = compiled(spec, "whole", lambda number: False, asked)
    with pytest.raises(BackendError, match="BTC513"):
        compiled(spec, "stopped", lambda number: number > whole * 2 // 3)
    (spec.parent / "cache-stopped" / "completions.sqlite").unlink()
    kept = CompletionCache(spec.parent / "artifacts" / ".stopped.compile" / "completions.sqlite", None)
    answered = kept.statistics()["entries"]
    kept.close()
    again: list[str] = []
    assert compiled(spec, "stopped", lambda number: False, again)[0] == digest
    assert answered > 0
    assert len(again) == len(asked) - answered
