"""Outputs that the data has no column for, where a step would learn from labels: said before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping

from bt_compiler.data import Example
from bt_compiler.diagnostics import Diagnostic
from bt_compiler.graph import Module, Program
from bt_compiler.spec import Sections


def unlabelled_outputs(
    program: Program, train: tuple[Example, ...], sections: Sections, labels: Mapping[str, str]
) -> list[Diagnostic]:
    """Notes on modules that have labels for some outputs and not for others, so that labels teach them nothing.

    `labels`: output -> label that holds its answer; others have the label of their own name.
    """
    held = {name for example in train for name in example.labels}
    if all(labels.get(item.name, item.name) in held for item in program.out):
        return []
    from bt_compiler.optimize.labelled import label_names

    found = []
    calls = label_names(program, labels, of=program.modules)
    for module, names in {module.name: (module, names) for module, names in calls}.values():
        lost, missing = _lost(module, sections), sorted(names - held)
        if not lost or not missing or len(missing) == len(names):
            continue
        shown = ", ".join(f"`{name}`" for name in missing)
        found.append(
            Diagnostic(
                code="BTC336",
                message=f"no train row has a label for output {shown}, so that the data gives module "
                f"`{module.name}` {' and '.join(lost)}",
                span=sections.data.span,
                severity="note",
                help=None
                if missing[0] in sections.data.columns
                else f"a column of another name is mapped by `data: {{columns: {{{missing[0]}: COLUMN}}}}`",
            )
        )
    return found


def _lost(module: Module, sections: Sections) -> list[str]:
    """What steps of the strategy would make of this module's labels."""
    optimize, lost = sections.optimize, []
    if "prompts" in optimize.strategy and "prompt" in module.train and optimize.prompts.max_labeled_demos > 0:
        lost.append("no labelled demos")
    rows = {"predict": "gold", "chain_of_thought": "hinted"}.get(module.kind)
    if "weights" in optimize.strategy and "weights" in module.train and rows in optimize.weights.sources:
        lost.append(f"no {rows} rows")
    return lost
