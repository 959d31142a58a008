"""Whether a metric can judge values of the types that an output and a label have. Knows types and kinds, no values."""

from __future__ import annotations

from bt_compiler.diagnostics import Diagnostic
from bt_compiler.spec import Type, show_type
from bt_compiler.spec.sections import MetricSection

_ACCEPTS_LIST = ("answer_in_passages", "contains", "exact_match", "f1")
_OF_TEXTS = ("contains", "f1", "length")
_OF_LISTS = ("list_overlap", "set_overlap")
_OF_PASSAGES = ("answer_in_passages", "retrieval_full_hit", "retrieval_recall")
_SCALARS_ONLY = ("accuracy", "numeric", "exact_match", "contains", "f1")


def misfit(section: MetricSection, output: Type | None, label: Type | None, *, retrieves: bool) -> Diagnostic | None:
    """What is wrong with this metric over these types (None: it has no output, or no label), or None. BTC314.

    `retrieves`: whether the program asks a retriever at all.
    """
    if section.kind in _OF_PASSAGES and not retrieves:
        message = f"metric `{section.kind}` judges passages, the program retrieves none"
        return _finding(section, message, "add a `retrieve` step, or take a metric that judges an output")
    if section.kind in ("retrieval_full_hit", "retrieval_recall") and label is not None and not _names(label):
        message = f"metric `{section.kind}` takes names of passages, label `{section.label}` is `{show_type(label)}`"
        return _finding(section, message, f"declare it: `data: {{labels: {{{section.label}: [str]}}}}`")
    if output is None:
        return None
    if section.kind in _OF_LISTS and "list" not in (_kinds(output) & (_kinds(label) if label else {"list"})):
        return _finding(section, _comparison(section, output, label), "it compares two lists; take `accuracy`, or `f1`")
    if section.kind in _OF_TEXTS and _kinds(output) & {"list", "object"}:
        message = f"metric `{section.kind}` judges texts, `{section.output}` is `{show_type(output)}`"
        return _finding(section, message, "take `set_overlap` for lists, `json` for objects")
    if section.kind == "numeric" and output.kind in ("bool", "enum", "object"):
        message = f"metric `numeric` judges numbers, `{section.output}` is `{show_type(output)}`"
        return _finding(section, message, "take `accuracy`")
    return _list_against_scalar(section, output, label)


def _list_against_scalar(section: MetricSection, output: Type, label: Type | None) -> Diagnostic | None:
    if section.kind not in _SCALARS_ONLY or label is None:
        return None
    accepted = section.kind in _ACCEPTS_LIST and label.kind == "list"
    if (output.kind == "list") != (label.kind == "list") and not accepted:
        help = "`exact_match` takes a list of accepted answers; else output and label are both lists or neither"
        return _finding(section, _comparison(section, output, label), help)
    if section.kind == "numeric" and output.kind == "list":
        message = f"metric `numeric` judges numbers, `{section.output}` is `{show_type(output)}`"
        return _finding(section, message, "take `accuracy`")
    return None


def _comparison(section: MetricSection, output: Type, label: Type | None) -> str:
    compared = f"metric `{section.kind}` compares `{section.output}: {show_type(output)}`"
    return compared if label is None else f"{compared} with label `{section.label}: {show_type(label)}`"


def _kinds(type: Type) -> set[str]:
    """The kind of a type, of each option where it is a union."""
    return {option.kind for option in type.options} or {type.kind}


def _names(type: Type) -> bool:
    item = type.item if type.kind == "list" and type.item is not None else type
    return item.kind in ("str", "enum")


def _finding(section: MetricSection, message: str, help: str) -> Diagnostic:
    return Diagnostic(code="BTC314", message=message, span=section.span, help=help)
