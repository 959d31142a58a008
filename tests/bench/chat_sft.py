"""Fine-tunes a LoRA adapter on chats as DSPy's local trainer means to, by today's transformers and PEFT.

    python tests/bench/chat_sft.py ROWS.jsonl FOLDER '{"model": …, "learning_rate": …}'

The last message of each chat is learnt. `dspy_together.py` calls it, in an environment of its own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments


def encoded(tokenizer: Any, messages: list[dict[str, str]]) -> dict[str, Any]:
    """Ids of the chat, and from where on they are learnt."""
    asked = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    if not whole.startswith(asked):
        raise SystemExit("the chat template does not put the answer behind what was asked")
    ids = tokenizer(asked, add_special_tokens=False)["input_ids"]
    answer = tokenizer(whole[len(asked) :], add_special_tokens=False)["input_ids"]
    return {"ids": ids + answer, "start": len(ids)}


def collate(batch: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Rows of `ids` and `start` as one padded batch, in which nothing before `start` is learnt."""
    longest = max(len(one["ids"]) for one in batch)
    gaps = [longest - len(one["ids"]) for one in batch]
    labels = [[-100] * one["start"] + one["ids"][one["start"] :] for one in batch]
    return {
        "input_ids": torch.tensor([one["ids"] + [0] * gap for one, gap in zip(batch, gaps, strict=True)]),
        "attention_mask": torch.tensor([[1] * (longest - gap) + [0] * gap for gap in gaps]),
        "labels": torch.tensor([one + [-100] * gap for one, gap in zip(labels, gaps, strict=True)]),
    }


def main() -> None:
    rows, folder, settings = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    config = LoraConfig(
        r=settings["r"], lora_alpha=settings["alpha"], target_modules="all-linear", task_type="CAUSAL_LM"
    )
    tuned = get_peft_model(model, config)
    chats = [json.loads(line)["messages"] for line in rows.read_text(encoding="utf-8").splitlines()]
    Trainer(
        model=tuned,
        args=TrainingArguments(
            output_dir=f"{folder}-work",
            per_device_train_batch_size=settings["batch"],
            num_train_epochs=settings["epochs"],
            learning_rate=settings["learning_rate"],
            lr_scheduler_type="cosine",
            warmup_steps=settings["warmup"],
            bf16=settings["bf16"],
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        ),
        data_collator=collate,
        train_dataset=[encoded(tokenizer, chat) for chat in chats],
    ).train()
    tuned.save_pretrained(folder)


if __name__ == "__main__":
    main()
