"""Which tier a model runs in, found by trying: its logits against the model's own eager forward, and whether a row's
bytes depend on its neighbours.

Costs a few short forward passes at load.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bt_compiler.engine.backends.decoding import Row
from bt_compiler.engine.backends.encoding import Encoded
from bt_compiler.engine.backends.loading import Loaded
from bt_compiler.engine.backends.tiers import EXPANDED, GENERATE, SHARED_PREFIX, open_tier
from bt_compiler.engine.backends.verdict import Verdict
from bt_compiler.engine.request import PromptText, Request

_STEPS = 2
_TOLERANCE = {torch.float64: 1e-4, torch.float32: 5e-3, torch.bfloat16: 0.25, torch.float16: 0.1}
"""Largest difference of logits allowed, in standard deviations of the logits: an attention that is wrong is off by
more than one, rounding by far less than this (models compute norms in float32 even where they are float64)."""


@dataclass(slots=True, kw_only=True)
class Recorder:
    """Chooses given tokens and keeps the logits that it saw by request."""

    tokens: dict[str, Sequence[int]]
    seen: dict[str, list[Tensor]] = field(default_factory=dict)

    def __call__(self, rows: Sequence[Row], logits: Tensor) -> list[int]:
        """See `decoding.Choose`."""
        chosen = []
        for index, row in enumerate(rows):
            mine = self.seen.setdefault(row.request.id, [])
            del mine[len(row.written) :]  # a row that had no room starts again
            chosen.append(self.tokens[row.request.id][len(mine)])
            mine.append(logits[index].clone())
        return chosen


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A made-up row: prompt ids, how many are shared, and the tokens it goes on with."""

    ids: tuple[int, ...]
    shared: int
    answer: tuple[int, ...]
    adapter: str | None = None

    def row(self, name: str) -> Row:
        """As a row that runs for all of `answer`."""
        request = Request(id=name, prompt=PromptText(text=""), grammar=None, max_tokens=len(self.answer))
        return Row(request=request, prompt=Encoded(self.ids, self.shared), matcher=None, stop_ids=frozenset())


def examine(loaded: Loaded) -> Verdict:
    """Tries the tiers from the best on."""
    probes = _probes(loaded)
    wanted = [eager_logits(loaded, probe) for probe in probes]
    reason = ""
    for tier in (SHARED_PREFIX, EXPANDED):
        try:
            seen = run_probes(loaded, tier, probes, batch=4)
        except (ValueError, TypeError, RuntimeError, AttributeError, IndexError, KeyError) as error:
            # any of these is how a model's code may fail on inputs it was not written for: the next tier
            reason = reason or f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
            continue
        worst = max(_distance(have, want) for have, want in zip(seen, wanted, strict=True))
        if worst > _TOLERANCE[loaded.model.dtype]:
            reason = reason or f"logits differ from the model's own by {worst:.3g} standard deviations"
            continue
        invariant = tier == SHARED_PREFIX and _row_invariant(loaded, probes, seen)
        return Verdict(tier=tier, row_invariant=invariant, reason=reason)
    return Verdict(tier=GENERATE, row_invariant=True, reason=reason)


def run_probes(loaded: Loaded, tier: str, probes: Sequence[Probe], *, batch: int, refill: bool = True) -> list[Tensor]:
    """Logits (steps, vocab) of every probe, all run together in a tier."""
    names = [str(index) for index in range(len(probes))]
    recorder = Recorder(tokens={name: probe.answer for name, probe in zip(names, probes, strict=True)})
    running = open_tier(tier, loaded, choose=recorder, use_adapter=lambda name: None, batch=batch, refill=refill)
    running.add([probe.row(name) for name, probe in zip(names, probes, strict=True)])
    while not running.idle():
        running.step()
    running.release()
    return [torch.stack(recorder.seen[name]) for name in names]


@torch.inference_mode()
def eager_logits(loaded: Loaded, probe: Probe) -> Tensor:
    """Logits (steps, vocab) by the model's own forward over the whole text."""
    model = loaded.model
    model.set_attn_implementation("eager")
    ids = torch.tensor([[*probe.ids, *probe.answer[:-1]]], device=model.device)
    logits: Tensor = model(input_ids=ids, use_cache=False).logits[0, len(probe.ids) - 1 :]
    return logits


def _probes(loaded: Loaded) -> list[Probe]:
    """Two prefixes and none, suffixes of one token and more than a block; beyond a sliding window where it is short."""
    window = getattr(loaded.model.config.get_text_config(), "sliding_window", None)
    room = loaded.context_window - 80 - _STEPS
    shared = max(1, min(48 if not window or window > 400 else int(window) + 24, room))
    generator = torch.Generator().manual_seed(20240710)
    vocab = min(len(loaded.tokenizer), loaded.model.get_input_embeddings().weight.shape[0])

    def text(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, vocab, (count,), generator=generator).tolist())

    one, two = text(shared), text(shared // 2 + 1)
    shapes = [(one, 21), (one, 1), (two, 70), ((), 9)]
    return [Probe(ids=(*prefix, *text(count)), shared=len(prefix), answer=text(_STEPS)) for prefix, count in shapes]


def _row_invariant(loaded: Loaded, probes: Sequence[Probe], seen: Sequence[Tensor]) -> bool:
    """Whether the bytes of the probes stay the same alone, and turned round among copies with refills."""
    if not torch.equal(run_probes(loaded, SHARED_PREFIX, probes[:1], batch=1)[0], seen[0]):
        return False
    together = [*probes[::-1], *probes, *probes[2:]]
    again = run_probes(loaded, SHARED_PREFIX, together, batch=5)
    return all(torch.equal(have, seen[probes.index(probe)]) for have, probe in zip(again, together, strict=True))


def _distance(have: Tensor, want: Tensor) -> float:
    spread = want.double().std().clamp_min(1e-12)
    return float(((have.double() - want.double()).abs().max() / spread).nan_to_num(nan=torch.inf))
