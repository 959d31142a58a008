"""Experiment 3: the tiers give the tokens of plain `generate`, on random models in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer
from peft import PeftModel
from tiny_models import (
    ARCHITECTURES,
    GRAMMAR,
    OTHER,
    SYSTEM,
    WINDOW,
    finish_all,
    open_model,
    request,
    save_adapter,
    save_model,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessorList

from bt_compiler.engine.backends import transformers as embedded
from bt_compiler.engine.backends.quiet import quiet
from bt_compiler.engine.cache import request_key
from bt_compiler.engine.request import OutputGrammar, Request

QUESTIONS = (
    "sepal length 5.1",
    "what is the capital of France, and of the lazy dog? " * 3,
    "1 2 3 4 5 6 7 8 9 10 11 12",
    "x",
    "petal width in centimetres: 0.2, the fox jumps",
)


class Mask:
    """Grammar of one completion as a logits processor, token by token, nothing forced."""

    def __init__(self, tokenizer: Any, grammar: OutputGrammar, prompt: int, vocab: int) -> None:
        inner = from_tokenizer(tokenizer, n_vocab=vocab, eos_token=tokenizer.eos_token_id)
        self.matcher = LLMatcher(inner, LLMatcher.grammar_from_lark(grammar.lark))
        self.seen = prompt

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        for token in ids[0, self.seen :].tolist():
            assert self.matcher.consume_token(token)
        self.seen = ids.shape[1]
        allowed = torch.frombuffer(bytearray(self.matcher.compute_logit_bias()), dtype=torch.uint8).bool()
        return scores.masked_fill(~allowed[: scores.shape[1]], -torch.inf)


def generated(model: Any, tokenizer: Any, ids: list[int], item: Request, stops: list[int]) -> list[int]:
    """Tokens of plain `generate` for one prompt, the stop token left out."""
    processors = LogitsProcessorList()
    if item.grammar is not None:
        processors.append(Mask(tokenizer, item.grammar, len(ids), len(tokenizer)))
    with torch.inference_mode():
        output = model.generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False,
            max_new_tokens=item.max_tokens,
            eos_token_id=stops,
            pad_token_id=0,
            logits_processor=processors,
        )[0, len(ids) :].tolist()
    return [token for token in output if token not in stops]


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_shared_prefix_attention_gives_the_tokens_of_generate(architecture: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", architecture)
    backend = open_model(folder, tmp_path / "cache", dtype="float64", batch=4)
    assert backend.facts()["tier"] == "shared-prefix attention", backend.facts()
    compare(backend, folder, tmp_path)


@pytest.mark.parametrize("tier", ["expanded prefix KV", "generate"])
def test_the_other_tiers_give_the_tokens_of_generate(tier: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", "mistral")
    backend = open_model(folder, tmp_path / "cache", dtype="float64", batch=4, tier=tier)
    assert backend.facts()["tier"] == tier
    compare(backend, folder, tmp_path)


@pytest.mark.parametrize("tier", ["shared-prefix attention", "expanded prefix KV", "generate"])
@pytest.mark.parametrize("form", ["use_rslora", "use_dora"])
def test_other_forms_of_lora_give_the_tokens_of_peft(form: str, tier: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", "llama")
    backend = open_model(folder, tmp_path / "cache", dtype="float64", batch=4, tier=tier)
    compare(backend, folder, tmp_path, **{form: True})


def compare(backend: Any, folder: Path, tmp_path: Path, **form: bool) -> None:
    adapter = save_adapter(tmp_path / "adapter", folder, backend.base_model()[1], **form)
    asked = [
        request(
            f"{index}-{shared}-{constrained}-{tuned}",
            question,
            system=SYSTEM if index % 2 else OTHER,
            shared=shared,
            grammar=GRAMMAR if constrained else None,
            adapter=adapter if tuned else None,
        )
        for index, question in enumerate(QUESTIONS)
        for shared in (False, True)
        for constrained in (False, True)
        for tuned in (False, True)
    ]
    backend.submit(asked)
    results = finish_all(backend)
    assert len(results) == len(asked)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with quiet():
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    stops = sorted({tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|endoftext|>")})
    wanted: dict[str, str] = {}
    for tuned in (False, True):
        model = base
        if tuned:
            with quiet():
                model = PeftModel.from_pretrained(base, adapter.path).to(torch.float64).eval()
        for item in asked:
            if (item.adapter is not None) == tuned:
                ids = list(backend.prompt_key(item.prompt)[1:])
                assert len(ids) > WINDOW
                tokens = generated(model, tokenizer, ids, item, stops)
                wanted[item.id] = tokenizer.decode(tokens, skip_special_tokens=True)
    assert {name: result.text for name, result in results.items()} == wanted
    assert len(set(wanted.values())) > len(QUESTIONS)  # the models do not say the same to everything
    shared = {item.id for item in asked if item.prompt.shared}
    assert all((results[name].shared_tokens > 0) == (name in shared) for name in results)


def test_the_cache_key_of_a_request_opens_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages' versions were once read anew for every request, which took longer than the rest of a small one."""
    backend = open_model(save_model(tmp_path / "lm"), tmp_path / "cache")
    expected = request_key(backend, request("r", QUESTIONS[0]))

    def refuse(name: str) -> str:
        raise AssertionError(f"looked up {name}")

    monkeypatch.setattr(embedded, "version", refuse)
    assert request_key(backend, request("r", QUESTIONS[0])) == expected
