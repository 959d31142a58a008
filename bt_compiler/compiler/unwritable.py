"""Right answers that the format of the module that gives them cannot write: said before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping

from bt_compiler.data import Splits
from bt_compiler.diagnostics import Diagnostic
from bt_compiler.graph import Call, Module, Program, Ref
from bt_compiler.spec import Type
from bt_compiler.spec.sections import DataSection


def empty_answers(program: Program, splits: Splits, data: DataSection, labels: Mapping[str, str]) -> list[Diagnostic]:
    """Warnings about texts in lines of their own, which hold a character at least, whose right answer is empty.

    `labels`: output -> label that holds its answer; others have the label of their own name.
    """
    examples = [example for part in splits for example in part]
    found = []
    for binding in program.out:
        writer = _writer(program, binding.value) if isinstance(binding.value, Ref) else None
        if writer is None:
            continue
        module, type = writer
        name = labels.get(binding.name, binding.name)
        answers = [example.labels[name] for example in examples if name in example.labels]
        empty = sum(_is_empty(answer, type) for answer in answers)
        if empty and _has_lines(module):
            found.append(
                Diagnostic(
                    code="BTC335",
                    message=f"label `{name}` is empty in {empty} of {len(answers)} rows, which module `{module.name}` "
                    f"cannot answer in format `{module.format}`",
                    span=data.span,
                    severity="warning",
                    help="write `format: json`, or a word for it in the data, such as `none`",
                )
            )
    return found


def _writer(program: Program, source: Ref) -> tuple[Module, Type] | None:
    """The module that writes a text of its own for `source`, and its type; None where it is something else."""
    node = next((node for node in program.nodes if isinstance(node, Call) and node.name == source.step), None)
    if node is None:
        return None
    module = program.module(node.module)
    type = next((item.type for item in module.outputs if item.name == source.field), None)
    if module.kind == "react" or type is None or type.among is not None:
        return None
    return (module, type) if "str" in (type.kind, *(option.kind for option in type.options)) else None


def _is_empty(answer: object, type: Type) -> bool:
    """Whether nothing is left of a right answer, or of each of several accepted ones, when it is written."""
    from bt_compiler.engine.values import written

    accepted = answer if isinstance(answer, list) else [answer]
    return bool(accepted) and all(isinstance(text, str) and not written(text, type) for text in accepted)


def _has_lines(module: Module) -> bool:
    from bt_compiler.engine.formats import load_format

    return load_format(module.format).style == "lines"
