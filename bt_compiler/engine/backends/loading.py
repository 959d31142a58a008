"""Weights and tokenizer from a resolved folder into memory, every way this can fail as a diagnostic.

Never runs code that comes with a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig

from bt_compiler.engine.backends.memory import out_of_memory_named
from bt_compiler.engine.backends.quiet import quiet
from bt_compiler.errors import BackendError

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A model ready to generate, attention `eager`, without gradients."""

    model: Any
    tokenizer: Any
    context_window: int
    stop_ids: frozenset[int]
    """Tokens that end a turn or text by the model's own settings."""


def load_base(path: Path, *, dtype: str, device: str, in_4bit: bool = False) -> Any:
    """The model alone. `in_4bit`: its linear layers' weights as NF4 with their constants in 8 bits, computed in `dtype`
    (arXiv 2305.14314, section 3); needs bitsandbytes. Raises BackendError (BTC504, BTC505), and OutOfMemory.
    """
    return _model(path, read_config(path), dtype, device, in_4bit=in_4bit)


def read_config(path: Path) -> Any:
    """The model's configuration. Raises BackendError (BTC505)."""
    with quiet():
        try:
            return AutoConfig.from_pretrained(path, trust_remote_code=False)
        except (ValueError, KeyError, OSError, TypeError, AttributeError) as error:
            raise BackendError.of(
                "BTC505",
                f"`{path}` holds no causal language model that transformers knows: {_line(error)}",
                help="name a decoder-only text model whose architecture this version of transformers has",
            ) from error


def load(path: Path, *, dtype: str, device: str) -> Loaded:
    """Loads the folder. Raises BackendError (BTC503, BTC504, BTC505, BTC507), and OutOfMemory."""
    if dtype not in DTYPES:
        raise BackendError.of(
            "BTC507",
            f"unknown dtype `{dtype}`",
            help="`auto`, `float32`, `bfloat16` or `float16`",
        )
    config = read_config(path)
    tokenizer = load_tokenizer(path)
    model = _model(path, config, dtype, device)
    return Loaded(
        model=model,
        tokenizer=tokenizer,
        context_window=context_window(config),
        stop_ids=stop_ids((getattr(model, "generation_config", None), model.config), tokenizer),
    )


def load_tokenizer(path: Path) -> Any:
    """The folder's tokenizer in its fast form. Raises BackendError (BTC503)."""
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        except (ValueError, KeyError, OSError, TypeError, AttributeError, ImportError) as error:
            raise BackendError.of(
                "BTC503",
                f"the tokenizer in `{path}` cannot be loaded: {_line(error)}",
                help="save it again: `tokenizer.save_pretrained(folder)`",
            ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise BackendError.of(
            "BTC503",
            f"the tokenizer in `{path}` has no fast form, which constrained decoding needs",
            help="convert it once: `AutoTokenizer.from_pretrained(...).save_pretrained(folder)` writes tokenizer.json",
        )
    return tokenizer


def _model(path: Path, config: Any, dtype: str, device: str, *, in_4bit: bool = False) -> Any:
    smaller: dict[str, Any] = {}
    if in_4bit:
        settings = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=DTYPES[dtype],
        )
        smaller = {"quantization_config": settings, "device_map": {"": device}}
    with quiet():
        try:
            with out_of_memory_named():
                model, report = AutoModelForCausalLM.from_pretrained(
                    path,
                    config=config,
                    dtype=DTYPES[dtype],
                    attn_implementation="eager",
                    output_loading_info=True,
                    trust_remote_code=False,
                    **smaller,
                )
        except (SafetensorError, OSError, RuntimeError) as error:
            raise BackendError.of(
                "BTC504",
                f"the weights in `{path}` cannot be read: {_line(error)}",
                help="the download or copy may be incomplete: fetch the files again",
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BackendError.of(
                "BTC505",
                f"`{path}` cannot be loaded as a causal language model: {_line(error)}",
                help="name a decoder-only text model whose architecture this version of transformers has",
            ) from error
    missing = sorted(report.get("missing_keys", ()))
    wrong = sorted(str(item) for item in report.get("mismatched_keys", ()))
    if missing or wrong:
        shown = ", ".join(f"`{name}`" for name in (missing or wrong)[:3])
        raise BackendError.of(
            "BTC504",
            f"the weights in `{path}` do not fill the model: {len(missing)} tensors missing, {len(wrong)} of another "
            f"shape ({shown})",
            help="config.json and the weights have to come from the same model",
        )
    model.requires_grad_(False)
    if in_4bit:
        return model.eval()
    with out_of_memory_named():
        return model.eval().to(device)


def generation_config(path: Path) -> Any:
    """What the folder says of generating; None where it says nothing."""
    if not (path / "generation_config.json").is_file():
        return None
    with quiet():
        try:
            return GenerationConfig.from_pretrained(path)
        except (ValueError, OSError, TypeError) as error:
            raise BackendError.of(
                "BTC505",
                f"`generation_config.json` in `{path}` cannot be read: {_line(error)}",
                help="remove it, or save it again with `GenerationConfig.save_pretrained`",
            ) from error


def context_window(config: Any) -> int:
    """Tokens that the model was made for. Scaled rotary embeddings that change with length are held to the length
    before they change, for else a row's numbers would depend on its neighbours.
    """
    text = config.get_text_config()
    window = next(
        (
            int(value)
            for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
            if isinstance(value := getattr(text, name, None), int)
        ),
        2048,
    )
    rope = getattr(text, "rope_parameters", None) or {}
    if isinstance(rope, Mapping) and rope.get("rope_type") in ("dynamic", "longrope"):
        original = rope.get("original_max_position_embeddings") or window
        return min(window, int(getattr(text, "original_max_position_embeddings", None) or original))
    return window


def stop_ids(configs: Sequence[Any], tokenizer: Any) -> frozenset[int]:
    """End tokens of the configs (generation's and the model's), of the tokenizer, and the usual ends of a turn."""
    found: set[int] = set()
    for holder in configs:
        ids = getattr(holder, "eos_token_id", None)
        if isinstance(ids, int):
            found.add(ids)
        elif ids is not None:
            found.update(int(item) for item in ids)
    if tokenizer.eos_token_id is not None:
        found.add(int(tokenizer.eos_token_id))
    names = ("<|im_end|>", "<|eot_id|>", "<|end_of_turn|>", "<end_of_turn>", "<|end|>", "<|endoftext|>", "</s>")
    for index, token in tokenizer.added_tokens_decoder.items():
        if token.special and token.content in names:
            found.add(int(index))
    return frozenset(found)


def _line(error: BaseException) -> str:
    """First line of an error, lower case start, without the full stop."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return text[:200]
