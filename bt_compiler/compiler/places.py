"""Where the examples of a bundle stand in its data, for a reader who wants to look at one. Needs no model."""

from __future__ import annotations

from bt_compiler.artifact.bundle import Bundle
from bt_compiler.compiler.check import label_fields, optional_label_fields
from bt_compiler.data import load_splits
from bt_compiler.errors import BtcError
from bt_compiler.graph import lower_with_warnings
from bt_compiler.spec import build_sections, load_spec


def example_places(bundle: Bundle) -> dict[str, str]:
    """Example id -> `file:line`, of the dev and test examples that the data holds today. Empty where the data is not at
    hand or cannot be read any more, which is no mistake of a reader of bundles.
    """
    try:
        spec = load_spec(bundle.spec)
        sections = build_sections(spec)
        lowered = lower_with_warnings(spec, sections)
        splits = load_splits(
            sections.data,
            inputs=lowered.program.inputs,
            labels=label_fields(lowered.program, sections, lowered.judges),
            optional=optional_label_fields(lowered.program, sections, lowered.judges),
        )
    except BtcError:
        return {}
    return {one.id: one.place for one in (*splits.dev, *splits.test) if one.place is not None}
