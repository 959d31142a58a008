"""Whether a split that is scored again is still the one of the compile, and what of it the compile may have seen.

Known of a compile are the digests of its splits and the ids of what it scored, dev and test; of train the digest alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from bt_compiler.artifact.manifest import Manifest
from bt_compiler.compiler.identity import data_facts
from bt_compiler.data.example import Splits, content_of
from bt_compiler.diagnostics import Diagnostic


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedSplit:
    """A split that holds other examples than at the compile."""

    split: str
    examples: int
    before: int
    """Examples that it had."""
    new: int
    """Examples that it did not have; of train, whose ids nobody kept, 0."""
    seen: int
    """Those of `new` that the compile may have learnt from: trained on, or chosen by."""

    def finding(self, *, gate: bool) -> Diagnostic:
        """BTC455: a warning, or under a gate the error that no score can lift."""
        message = f"`{self.split}` is not what it was at the compile: {self.examples} examples, {self.before} before"
        message += f"; {self.new} are new" if self.new else ""
        message += f", and the compile may have learnt from {self.seen} of these" if self.seen else ""
        held_out = "score rows that nothing was trained on with `--data FILE`"
        again = "compile again on the data as it is now"
        return Diagnostic(
            code="BTC455",
            message=message,
            severity="error" if gate else "warning",
            help=f"{again}, or {held_out}" if self.seen else f"{again} to compare it with the bundle's own score",
        )


def changed_split(manifest: Manifest, splits: Splits, split: str) -> ChangedSplit | None:
    """What `split` of these splits has against that of the compile; None where it holds the same examples."""
    facts, before = data_facts(splits), manifest.identity["data"]
    if facts[split].digest == before[split]["digest"]:
        return None
    scored = manifest.identity["scores"].get("shipped", {})
    kept = {name: {str(id) for id, _ in scored.get(name, ())} for name in ("dev", "test")}
    ids = {example.id for example in getattr(splits, split)}
    if ids == kept.get(split):
        return None  # in another order
    new: set[str] = set()
    seen: set[str] = set()
    if split != "train":
        had = {content_of(id) for id in kept[split]}
        new = {id for id in ids if content_of(id) not in had}
        chosen_by = {content_of(id) for id in kept["dev"]} if split == "test" else set()
        same_train = facts["train"].digest == before["train"]["digest"]  # and no split holds examples of another
        seen = {id for id in new if content_of(id) in chosen_by} if same_train else new
        seen = seen if manifest.strategy else set()  # no step: nothing was trained on or chosen by
    return ChangedSplit(
        split=split, examples=len(ids), before=int(before[split]["examples"]), new=len(new), seen=len(seen)
    )
