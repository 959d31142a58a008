"""The inner split of train: examples that give demos, and examples that choose among candidates.

Training rows come of both. Knows nothing of prompts, adapters or metrics. Dev never takes part: it only chooses among
strategy prefixes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bt_compiler.canonical import seed_of
from bt_compiler.data.example import Example
from bt_compiler.errors import CompileError
from bt_compiler.spec.sections import PromptsSection

TRAIN_SHARE = 0.3
"""15 of 50, as in the paper (arXiv 2407.10930, section 4); its 100 + 250 of 1000 is written out in the spec."""


class InnerSplit(NamedTuple):
    """Parts of train that share no content, each in the order of train."""

    train: tuple[Example, ...]
    """Give demos."""
    val: tuple[Example, ...]
    """Choose."""


def inner_split(examples: Sequence[Example], settings: PromptsSection, seed: int) -> InnerSplit:
    """Splits `examples` by `settings.train` and `settings.val`, else 30 % and the rest.

    Membership follows from the examples' content and `seed` alone, so it does not depend on the order of the file.
    Exact copies of what gives demos do not choose, so that there are fewer of these where train has copies. Raises
    `CompileError` (BTC450) where there are fewer examples than asked for, or fewer than two.
    """
    train, val = _counts(len(examples), settings)
    ranked = sorted(examples, key=lambda one: (seed_of(seed, "inner split", one.content), one.content, one.id))
    shown = {example.content for example in ranked[:train]}
    others = [example for example in ranked[train:] if example.content not in shown]
    if not others:
        raise _too_few(len(examples), settings)
    train_ids = {example.id for example in ranked[:train]}
    val_ids = {example.id for example in others[:val]}
    return InnerSplit(
        train=tuple(example for example in examples if example.id in train_ids),
        val=tuple(example for example in examples if example.id in val_ids),
    )


def _counts(total: int, settings: PromptsSection) -> tuple[int, int]:
    if settings.train is not None:
        train = settings.train
        val = settings.val if settings.val is not None else total - train
    elif settings.val is not None:
        val = settings.val
        train = min(_share(total), total - val)
    else:
        train = _share(total)
        val = total - train
    if train < 1 or val < 1 or train + val > total:
        raise _too_few(total, settings)
    return train, val


def _too_few(total: int, settings: PromptsSection) -> CompileError:
    train = settings.train if settings.train is not None else f"{TRAIN_SHARE:.0%}"
    val = settings.val if settings.val is not None else "the rest"
    return CompileError.of(
        "BTC450",
        f"train has {total} example{'' if total == 1 else 's'}, too few for an inner split of {train} for demos and "
        f"{val} for choosing",
        help="give more train examples, exact copies not counted, or set `optimize.prompts.train` and "
        "`optimize.prompts.val` to counts of at least 1 that fit",
    )


def _share(total: int) -> int:
    return max(1, int(total * TRAIN_SHARE + 0.5))
