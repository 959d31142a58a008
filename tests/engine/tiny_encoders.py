"""Text encoders and cross-encoders of random weights over sixteen words, for the library sentence-transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WORDS = [
    "tower",
    "paris",
    "museum",
    "bell",
    "london",
    "river",
    "church",
    "spain",
    "red",
    "blue",
    "big",
    "old",
    "the",
    "in",
    "a",
    "of",
]


def write_encoders(folder: Path) -> None:
    """`encoder`, `pairs` (a cross-encoder of one label) and `classes` (of three)."""
    import sentence_transformers as library
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (folder / "vocab.txt").write_text("\n".join([*special, *WORDS]), encoding="utf-8")
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    sizes: dict[str, Any] = dict(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    torch.manual_seed(0)
    BertModel(BertConfig(**sizes)).save_pretrained(folder / "bare")
    tokenizer.save_pretrained(folder / "bare")
    modules = library.models if hasattr(library, "models") else library.sentence_transformer.modules
    word = modules.Transformer(str(folder / "bare"))
    library.SentenceTransformer(modules=[word, modules.Pooling(32)]).save(str(folder / "encoder"))
    for name, labels in (("pairs", 1), ("classes", 3)):
        config = BertConfig(**sizes, num_labels=labels)
        BertForSequenceClassification(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
