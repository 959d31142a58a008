"""From a `retrieve` step whose retriever is ranked by a module to a block: search, one call a passage, sort.

Knows what a module has to be like to rank, nothing of how steps are lowered.
"""

from __future__ import annotations

from bt_compiler.graph.findings import Findings, SpecPath
from bt_compiler.graph.program import RANKED_PASSAGE, RANKED_QUERY, RANKS, Binding, Call, Module, Ref, Rerank, Retrieve
from bt_compiler.spec import Type, show_type
from bt_compiler.spec.sections import RetrieverSection
from bt_compiler.spec.types import PASSAGE

DEPTH = 10
"""Passages that a module ranks unless the retriever says otherwise: each one is a call."""


def ranking_module(section: RetrieverSection) -> str | None:
    """Name of the module that ranks the retriever's passages."""
    module = section.options.get("module")
    return module if section.kind == "rerank" and isinstance(module, str) else None


def ranked(step: Retrieve, section: RetrieverSection, module: Module, findings: Findings) -> Rerank | None:
    """The block that takes the place of `step`; None after a finding BTC387."""
    place: SpecPath = ("retrievers", section.name, "module")
    inputs = {_role(item.type): item.name for item in module.signature.inputs}
    outputs = [item for item in module.signature.outputs if item.type.kind in RANKS]
    if set(inputs) != {RANKED_QUERY, RANKED_PASSAGE} or len(module.signature.inputs) != 2 or len(outputs) != 1:
        given = ", ".join(f"{item.name}: {show_type(item.type)}" for item in module.signature.inputs)
        gives = ", ".join(f"{item.name}: {show_type(item.type)}" for item in module.signature.outputs)
        findings.add(
            "BTC387",
            f"module `{module.name}` cannot rank passages: it is `{given} -> {gives}`",
            place,
            help="it takes a `str` (the query) and a `Passage`, and gives a `bool`, a number or an enum (worst to "
            "best)",
        )
        return None
    bindings = tuple(
        Binding(name=item.name, value=Ref(step=None, field=_role(item.type) or ""), type=item.type)
        for item in module.signature.inputs
    )
    call = Call(name=module.name, module=module.name, inputs=bindings, outputs=module.gives, span=step.span)
    depth = section.options.get("depth")
    if not isinstance(depth, int):
        depth = DEPTH  # what is no whole number is a finding of the retriever's own check
    return Rerank(
        name=step.name,
        retriever=step.retriever,
        query=step.query,
        known=step.known,
        k=step.k,
        depth=max(step.k, depth),
        body=(call,),
        score=Binding(name="score", value=Ref(step=call.name, field=outputs[0].name), type=outputs[0].type),
        outputs=step.outputs,
        span=step.span,
    )


def _role(type: Type) -> str | None:
    """What of a search an input of this type takes."""
    if type.kind == "str":
        return RANKED_QUERY
    return RANKED_PASSAGE if type.name == PASSAGE.name and type.kind == "object" else None
