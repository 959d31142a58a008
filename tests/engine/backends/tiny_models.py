"""Random models of seven architectures, small enough for tests, saved as folders with a trained tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from bt_compiler.engine.backends.quiet import quiet
from bt_compiler.engine.backends.transformers import TransformersBackend
from bt_compiler.engine.backends.verdict import Verdict
from bt_compiler.engine.progress import Silent
from bt_compiler.engine.request import Message, OutputGrammar, PromptText, Request, Sampling
from bt_compiler.graph.candidate import Adapter

TEXT = """The quick brown fox jumps over the lazy dog. Classify the iris flower by its four measurements: sepal length,
sepal width, petal length and petal width in centimetres. Species: setosa, versicolor or virginica. Question: what is
the capital of France? Answer: Paris. Reasoning: the answer follows from the context, 0 1 2 3 4 5 6 7 8 9 10 11 12."""
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WINDOW = 24
"""Shorter than the prompts of the tests."""
_SIZES: Mapping[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.25,
    "pad_token_id": None,
    "bos_token_id": None,
}
_GROUPED = {"num_key_value_heads": 2}
ARCHITECTURES: Mapping[str, tuple[type, Mapping[str, Any]]] = {
    "llama": (LlamaConfig, _GROUPED),
    "qwen3": (Qwen3Config, {**_GROUPED, "head_dim": 8}),
    "gemma2": (Gemma2Config, {**_GROUPED, "head_dim": 8, "sliding_window": WINDOW, "attn_logit_softcapping": 5.0}),
    "gemma3": (
        Gemma3TextConfig,
        {
            **_GROUPED,
            "head_dim": 8,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "mistral": (MistralConfig, {**_GROUPED, "sliding_window": WINDOW}),
    "phi3": (Phi3Config, _GROUPED),
    "gpt_neox": (GPTNeoXConfig, {}),
}


def trained_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with ChatML turns; no token is unknown to it."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>", chat_template=TEMPLATE)


def save_model(folder: Path, architecture: str = "llama", **changes: Any) -> Path:
    """A random model of that architecture, always the same."""
    tokenizer = trained_tokenizer()
    kind, more = ARCHITECTURES[architecture]
    torch.manual_seed(7)
    config = kind(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **{**_SIZES, **more, **changes})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # norms of ones would hide a norm that is left out
                parameter.add_(torch.randn_like(parameter) * 0.1)
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def save_adapter(folder: Path, model_folder: Path, base_digest: str, *, seed: int = 1, **form: bool) -> Adapter:
    """A LoRA adapter with random weights in both of its factors; `form`: `use_dora`, `use_rslora`."""
    settings = LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM", **form)
    with quiet():
        tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32), settings)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_magnitude" in name:
                parameter.mul_(1 + torch.rand_like(parameter))
            elif "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    tuned.save_pretrained(folder)
    return Adapter(
        name=f"tuned-{seed}", path=folder, base_model="tiny", base_digest=base_digest, rank=4, sha256=f"{seed:064d}"
    )


def open_model(
    folder: Path,
    cache: Path,
    *,
    dtype: str = "float32",
    batch: int | None = None,
    tier: str | None = None,
    products: str | None = None,
) -> TransformersBackend:
    """The embedded engine on a folder; `tier` and `products` stand for a journal that has chosen them before."""

    def choices(name: str, measure: Callable[[], Any]) -> Any:
        if name == "engine" and tier is not None:
            return Verdict(tier=tier, row_invariant=False, reason="the test says so").to_json()
        return products if name == "products" and products is not None else measure()

    return TransformersBackend(
        model_id=str(folder),
        revision=None,
        dtype=dtype,
        batch=batch,
        cache_root=cache,
        choices=choices,
        progress=Silent(),
    )


def save_full(folder: Path, model_folder: Path, base_digest: str, *, seed: int = 1) -> Adapter:
    """All weights of the model, each somewhat changed."""
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    torch.manual_seed(seed)
    tensors = {name: value + torch.randn_like(value) * 0.1 for name, value in model.named_parameters()}
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "FULL", "r": 0}))
    return Adapter(
        name=f"full-{seed}", path=folder, base_model="tiny", base_digest=base_digest, rank=0, sha256=f"f{seed:063d}"
    )


SYSTEM = "Classify the iris flower by its four measurements: sepal length, sepal width, petal length and petal width."
OTHER = "Question: what is the capital of France? Answer: Paris. The answer follows from the context, 0 1 2 3 4 5 6 7."
GRAMMAR = OutputGrammar(
    lark='start: "Reasoning: " text "\\nSpecies: " SPECIES\n'
    "text[max_tokens=6]: /[^\\n]*/\n"
    'SPECIES: "setosa" | "versicolor" | "virginica"\n'
)


def request(
    name: str,
    question: str,
    *,
    system: str = SYSTEM,
    shared: bool = True,
    grammar: OutputGrammar | None = None,
    adapter: Adapter | None = None,
    max_tokens: int = 24,
    sampling: Sampling | None = None,
) -> Request:
    """A request of two turns."""
    messages = (Message(role="system", content=system), Message(role="user", content=question))
    return Request(
        id=name,
        prompt=PromptText(messages=messages, shared=1 if shared else 0),
        grammar=grammar,
        adapter=adapter,
        max_tokens=max_tokens,
        sampling=sampling or Sampling(),
    )


def finish_all(backend: TransformersBackend) -> dict[str, Any]:
    """Polls until nothing is in flight: results by id."""
    results: dict[str, Any] = {}
    while finished := backend.poll():
        results.update({item.id: item.result for item in finished})
    return results
