"""Preference pairs: what an accepted run of an example said, beside what a failed run said to the very same prompt.

Which step of a failed run was at fault is not known; as in bootstrap fine-tuning, every step counts, as long as the
same words were never part of an accepted run. A later step of a run that went another way has another prompt and gives
no pair. Knows rows and traces; nothing of losses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from bt_compiler.engine.request import PromptText
from bt_compiler.engine.trace import Trace
from bt_compiler.errors import CompileError
from bt_compiler.optimize.cold_start import Start, judged, written_rows
from bt_compiler.optimize.rows import Row


class Preferred(NamedTuple):
    """Rows of a weights step, made into pairs where they have one."""

    rows: Mapping[str, tuple[Row, ...]]
    """Example id -> rows; those without a pair are there as they were."""
    facts: Mapping[str, int]
    """For the evidence: `pairs`, `examples` with one, `failed` runs that were looked at."""


class _Asked(NamedTuple):
    """What a completion answers."""

    module: str
    prompt: PromptText


def prefer(start: Start, rows: Mapping[str, tuple[Row, ...]]) -> Preferred:
    """Pairs the rows with what failed runs of their example said: the program's own run, and its samples where
    `sampled` is among the sources and they fit the budget. Raises CompileError BTC408 where there is no pair at all.
    """
    train, weights = start.context.train, start.context.settings.weights
    traces = start.runs.judged(train)
    if "sampled" in weights.sources and start.runs.fit("samples for pairs", train, sampled=True):
        traces += start.runs.judged(train, sampled=True)
    found = judged(start, traces)
    paired = {
        example: _paired(start, own, found.accepted.get(example, ()), found.failed.get(example, ()))
        for example, own in rows.items()
    }
    with_pairs = [example for example, own in paired.items() if any(row.rejected is not None for row in own)]
    facts = {
        "pairs": sum(row.rejected is not None for own in paired.values() for row in own),
        "examples": len(with_pairs),
        "failed": sum(len(one) for one in found.failed.values()),
    }
    if not with_pairs:
        raise _no_pairs(start, rows, found.failed)
    return Preferred(paired, facts)


def _paired(
    start: Start, rows: tuple[Row, ...], accepted: tuple[Trace, ...], failed: tuple[Trace, ...]
) -> tuple[Row, ...]:
    """The rows of one example. With several completions on either side each is in some pair, none in all of them."""
    wanted: dict[_Asked, list[Row]] = {}
    for row in rows:
        wanted.setdefault(_Asked(row.module, row.prompt), []).append(row)
    good = {(row.module, row.prompt, row.completion) for row in (*rows, *written_rows(start, accepted, "self"))}
    others: dict[_Asked, list[str]] = {}
    for row in written_rows(start, failed, "self"):
        if (row.module, row.prompt, row.completion) not in good:
            others.setdefault(_Asked(row.module, row.prompt), []).append(row.completion)
    found: list[Row] = []
    for asked, chosen in wanted.items():
        rejected = others.get(asked, [])
        if not rejected:
            found += chosen
            continue
        for place in range(max(len(chosen), len(rejected))):
            found.append(chosen[place % len(chosen)].beside(rejected[place % len(rejected)]))
    return tuple(found)


def _no_pairs(
    start: Start, rows: Mapping[str, tuple[Row, ...]], failed: Mapping[str, tuple[Trace, ...]]
) -> CompileError:
    context, weights = start.context, start.context.settings.weights
    both = sum(example in failed for example in rows)
    remedies = [
        "" if "sampled" in weights.sources else "add `sampled` to `optimize.weights.sources`",
        f"raise `optimize.weights.samples` ({weights.samples}) or `temperature` ({weights.temperature:g})",
        "take `preference` out of `optimize.weights`",
    ]
    return CompileError.of(
        "BTC408",
        f"the weights step {context.index} found no preference pair among {len(context.train)} train examples",
        notes=[
            f"{len(rows)} examples have an accepted completion, {len(failed)} a failed run, {both} both",
            "a pair is two completions of one prompt: in those with both, the failed run said nothing else to it",
        ],
        help="; ".join(remedy for remedy in remedies if remedy),
    )
