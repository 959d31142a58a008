"""Training rows: what one visit of one node should have said, as prompt and completion.

A row belongs to exactly one module; which adapter learns from it is decided by that name alone. Knows programs, traces
and prompt formats; nothing of tokens, tensors or where a trace comes from.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bt_compiler.canonical import canonical_json, digest, seed_of
from bt_compiler.data.example import copies
from bt_compiler.engine.formats import Format, load_format
from bt_compiler.engine.request import PromptText
from bt_compiler.engine.trace import Trace
from bt_compiler.graph.candidate import Candidate, Prompt
from bt_compiler.graph.program import Module, Program
from bt_compiler.spec.sections import RowSource, WeightsSection

MAX_COPIES = 4
"""Times a row of a rare class is seen in one epoch at most: more would teach the row, not the class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One thing to learn."""

    id: str
    """First 16 hex digits of SHA-256 over module, prompt and completions; copies made by `balance` share it."""
    example: str
    """Id of the example it comes from."""
    module: str
    prompt: PromptText
    completion: str
    """The format's canonical completion text."""
    source: RowSource
    label: str | None = None
    """The class it teaches: canonical JSON of the module's enum and bool outputs; None where it has none, and for the
    turns of a `react` module.
    """
    rejected: str | None = None
    """A completion that a failed run gave to the same prompt: with it the row is a preference pair."""

    def beside(self, rejected: str) -> Row:
        """The preference pair of this row and a completion to be rejected."""
        return replace(self, rejected=rejected, id=digest([self.id, rejected])[:16])


@dataclass(frozen=True, slots=True, kw_only=True)
class RowWriter:
    """Turns inputs and outputs of a module into rows."""

    program: Program
    prompts: Mapping[str, Prompt]
    """What rows are prompted with, by module."""
    formats: Mapping[str, Format]
    """By `Module.format`."""

    def row(
        self,
        *,
        example: str,
        module: Module,
        inputs: Mapping[str, Any],
        outputs: Mapping[str, Any],
        source: RowSource,
    ) -> Row:
        """One row. A demo that comes from the example itself is left out: it would show the answer.

        Raises ExampleError where the inputs cannot be rendered.
        """
        prompt = self.prompts[module.name]
        others = replace(prompt, demos=tuple(demo for demo in prompt.demos if not copies(demo.example, example)))
        form = self.formats[module.format]
        rendered = form.render(module, others, inputs)
        completion = form.completion(module, outputs)
        return Row(
            id=_row_id(module.name, rendered, completion),
            example=example,
            module=module.name,
            prompt=rendered,
            completion=completion,
            source=source,
            label=_label(module, outputs),
        )


def row_writer(program: Program, candidate: Candidate, settings: WeightsSection, zero_shot: Candidate) -> RowWriter:
    """The writer that `weights.demos` asks for: the spec's prompts without demos, or the candidate's with them."""
    prompts = dict(candidate.prompts) if settings.demos == "keep" else without_demos(program, zero_shot)
    formats = {module.format: load_format(module.format) for module in program.modules}
    return RowWriter(program=program, prompts=prompts, formats=formats)


def without_demos(program: Program, zero_shot: Candidate) -> dict[str, Prompt]:
    """The spec's prompts without demos; one that is frozen stays as it is."""
    frozen = {module.name for module in program.modules if "prompt" not in module.train}
    return {name: prompt if name in frozen else replace(prompt, demos=()) for name, prompt in zero_shot.prompts.items()}


def trainable(program: Program) -> tuple[Module, ...]:
    """The modules whose weights the spec lets change."""
    return tuple(module for module in program.modules if "weights" in module.train)


def rows_of(trace: Trace, *, writer: RowWriter, source: RowSource) -> tuple[Row, ...]:
    """One row for every (node, visit) of a trace that called a trainable module, in the order of the trace."""
    modules = {module.name: module for module in trainable(writer.program)}
    return tuple(
        writer.row(
            example=trace.example,
            module=modules[step.module],
            inputs=step.inputs,
            outputs=step.outputs,
            source=source,
        )
        for step in trace.steps
        if step.module in modules and step.outputs is not None and step.picked
    )


def deduplicate(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Rows without repetitions of one (module, prompt, completion, rejected completion); the first stays."""
    kept: dict[str, Row] = {}
    for row in rows:
        kept.setdefault(row.id, row)
    return tuple(kept.values())


def balance(rows: Sequence[Row], seed: int) -> tuple[Row, ...]:
    """Rows with copies of those of rare classes, module by module; nothing is dropped.

    What the program solves by itself is often one class only, and a model trained on it answers nothing else. Each
    class is raised to the size of the largest, with at most `MAX_COPIES` of a row; which rows get the odd copy is a
    seeded draw. Rows without a class are left as they are.
    """
    groups: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        if row.label is not None:
            groups.setdefault(row.module, {}).setdefault(row.label, []).append(row)
    copies: list[Row] = []
    for module, classes in sorted(groups.items()):
        largest = max(len(members) for members in classes.values())
        for label, members in sorted(classes.items()):
            missing = min(largest, MAX_COPIES * len(members)) - len(members)
            rng = random.Random(seed_of(seed, "balance", module, label))
            whole, odd = divmod(missing, len(members))
            copies.extend(members * whole)
            copies.extend(rng.sample(members, odd))
    return (*rows, *copies)


def _row_id(module: str, prompt: PromptText, completion: str) -> str:
    messages = [[message.role, message.content] for message in prompt.messages]
    return digest([module, messages, prompt.text, completion])[:16]


def _label(module: Module, outputs: Mapping[str, Any]) -> str | None:
    if module.kind == "react":
        return None
    classes = {
        field.name: outputs[field.name] for field in module.signature.outputs if field.type.kind in ("enum", "bool")
    }
    return canonical_json(classes) if classes else None
