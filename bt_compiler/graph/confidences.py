"""Outputs that say how likely another one is: taken out of what the model writes, and checked.

Knows fields and types; how a probability comes about is the engine's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from bt_compiler.diagnostics import did_you_mean
from bt_compiler.graph.findings import Findings, SpecPath
from bt_compiler.graph.program import Module
from bt_compiler.spec import Field, Sections, Type, show_type
from bt_compiler.spec.optimizing import SERVED_ENGINES
from bt_compiler.spec.sections import ModelSection


class Told(NamedTuple):
    """The outputs of a signature, apart."""

    written: tuple[Field, ...]
    confidences: tuple[Field, ...]


def tell_apart(inputs: Sequence[Field], outputs: Sequence[Field], path: SpecPath, findings: Findings) -> Told | None:
    """What the model writes, and what is said of it. None after findings (BTC254)."""
    before = len(findings.items)
    written = tuple(item for item in outputs if item.type.probability_of is None)
    named = {item.name: item for item in written}
    for item in inputs:
        if _inside(item.type):
            message = f"`{item.name}` is an input: a probability is given beside what the model writes"
            findings.add("BTC254", message, (*path, "inputs", item.name), help="declare it as a plain `float`")
    for item in outputs:
        about, place = item.type.probability_of, (*path, "outputs", item.name)
        if about is None:
            if _inside(item.type):
                message = f"`probability_of` inside the type of `{item.name}`, where no output is named"
                findings.add("BTC254", message, place, help="make it an output of its own, beside the one it is of")
            continue
        if about not in named:
            labels = [one.name for one in written if one.type.kind in ("enum", "bool")]
            help = did_you_mean(about, labels, what="enum and bool outputs") if labels else None
            findings.add(
                "BTC254", f"`{item.name}` is the probability of `{about}`, which is no output", place, help=help
            )
        elif named[about].type.kind not in ("enum", "bool"):
            type = show_type(named[about].type)
            message = (
                f"`{item.name}` is the probability of `{about}`, which is `{type}` and has no values to choose from"
            )
            findings.add("BTC254", message, place, help="a probability is that of an enum or bool output")
    if not written:
        findings.add("BTC254", "the signature has nothing that the model writes", (*path, "outputs"))
    confidences = tuple(item for item in outputs if item.type.probability_of is not None)
    return None if len(findings.items) > before else Told(written, confidences)


def check_confidences(
    module: str, kind: str, confidences: Sequence[Field], model: ModelSection, findings: Findings
) -> None:
    """Findings where the model's engine only answers (BTC366), or the outputs are arguments of a turn (BTC254)."""
    if confidences and kind == "react":
        findings.add(
            "BTC254",
            f"`{confidences[0].name}` of `{module}` is a probability, which the turns of a `react` module do not have",
            ("modules", module, "signature"),
            help="give the answer to a `predict` module that names the label and says how likely it is",
        )
    if confidences and model.engine in SERVED_ENGINES:
        findings.add(
            "BTC366",
            f"`{confidences[0].name}` of `{module}` is a probability, which the engine `{model.engine}` cannot tell",
            ("modules", module, "signature"),
            help="run the module on a model at hand (`engine: transformers`), or leave the output out",
        )


def check_teacher(modules: Iterable[Module | None], sections: Sections, findings: Findings) -> None:
    """A finding (BTC366) where the teacher runs modules that say how likely an output is, and cannot tell."""
    optimize = sections.optimize
    if "weights" not in optimize.strategy or "teacher" not in optimize.weights.sources:
        return
    teacher = next((model for model in sections.models if model.name == optimize.weights.teacher), None)
    module = next((one for one in modules if one is not None and one.signature.confidences), None)
    if module is not None and teacher is not None and teacher.engine in SERVED_ENGINES:
        findings.add(
            "BTC366",
            f"`{module.signature.confidences[0].name}` of `{module.name}` is a probability, which the teacher's engine "
            f"`{teacher.engine}` cannot tell",
            ("optimize", "weights", "teacher"),
            help="take a teacher at hand (`engine: transformers`), or `teacher` out of `sources`",
        )


def _inside(type: Type) -> bool:
    """Whether a probability stands anywhere within the type, itself left out for outputs."""
    inner = [item.type for item in type.fields] + list(type.options) + ([] if type.item is None else [type.item])
    return type.probability_of is not None or any(_inside(one) for one in inner)
