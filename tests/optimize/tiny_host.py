"""A weight host around a random model small enough for tests, and a rule backend that lends its weights too."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from answering import RuleBackend
from transformers import LlamaConfig, LlamaForCausalLM

from bt_compiler.engine.request import BaseFolder, Message, PromptText
from bt_compiler.optimize.rows import Row
from bt_compiler.spec.sections import RowSource

END = 256


def tiny_model(**changes: Any) -> LlamaForCausalLM:
    """Two layers of width 32 over bytes; always the same weights."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "vocab_size": 264,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": END,
        "initializer_range": 0.3,
    }
    return LlamaForCausalLM(LlamaConfig(**(settings | changes))).eval()


@dataclass(slots=True)
class TinyHost:
    """Bytes are tokens; `lent` counts how often the model was borrowed."""

    model: Any = field(default_factory=tiny_model)
    lent: int = 0

    @contextmanager
    def borrow(self) -> Iterator[Any]:
        self.lent += 1
        yield self.model

    @contextmanager
    def set_aside(self) -> Iterator[BaseFolder]:
        with tempfile.TemporaryDirectory() as folder:
            self.model.save_pretrained(folder)
            yield BaseFolder(Path(folder), "float32")

    def encode_row(self, prompt: PromptText, completion: str) -> tuple[list[int], int]:
        text = "".join(f"{turn.role}: {turn.content}\n" for turn in prompt.messages)
        ids = list(text.encode())
        return [*ids, *completion.encode(), END], len(ids)

    def base_model(self) -> tuple[str, str]:
        return "tiny", "d" * 64


@dataclass(slots=True, kw_only=True)
class LendingBackend(RuleBackend):
    """Answers by its rule and lends a tiny model's weights."""

    host: TinyHost = field(default_factory=TinyHost)

    def borrow(self) -> Any:
        return self.host.borrow()

    def set_aside(self) -> Any:
        return self.host.set_aside()

    def encode_row(self, prompt: PromptText, completion: str) -> tuple[list[int], int]:
        return self.host.encode_row(prompt, completion)

    def base_model(self) -> tuple[str, str]:
        return self.host.base_model()


def row(
    question: str,
    answer: str,
    *,
    module: str = "classify",
    label: str | None = None,
    source: RowSource = "gold",
    instructions: str = "Say the mood.",
) -> Row:
    """A row as the `fields` format would write it."""
    return Row(
        id=f"{module}/{question}/{answer}",
        example=question,
        module=module,
        prompt=PromptText(
            messages=(Message(role="system", content=instructions), Message(role="user", content=question))
        ),
        completion=answer,
        source=source,
        label=label,
    )


def pairs(count: int) -> tuple[Row, ...]:
    """Rows beside the other answer, which is not wanted."""
    other = {"Mood: good": "Mood: bad", "Mood: bad": "Mood: good"}
    return tuple(row.beside(other[row.completion]) for row in rows(count, 20))


def rows(count: int, start: int = 0) -> tuple[Row, ...]:
    """Rows whose answer follows from the question's first letter."""
    return tuple(
        row(f"{'gb'[index % 2]} number {index}", f"Mood: {('good', 'bad')[index % 2]}")
        for index in range(start, start + count)
    )
