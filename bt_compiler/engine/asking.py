"""One completion of a module for one example: rendered, asked for, read, and traced.

A generator as those of `interpret`, which use it for each kind of module.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Any

from bt_compiler.engine.confidence import confidences
from bt_compiler.engine.parsing import as_given
from bt_compiler.engine.request import Completion, PromptText
from bt_compiler.engine.running import Ask, Need, NodeFailed, Setting
from bt_compiler.engine.trace import Failure, Step
from bt_compiler.errors import ExampleError
from bt_compiler.graph.program import Module

_ATTEMPTS = 2


def asked(
    module: Module, step: Step, setting: Setting, *, limits: Module | None = None
) -> Generator[Need, Any, dict[str, Any]]:
    """What the module says for `step.inputs`, values of `among` as they were given; `step`, complete with what it
    writes, is added to the trace.

    `limits`: the same module where it may write less than its prompt says. Raises NodeFailed.
    """
    form, writer = setting.formats[module.format], limits or module
    prompt: PromptText | None = None
    completion: Completion | None = None
    besides: tuple[Completion, ...] = ()
    attempts = _ATTEMPTS if module.name in setting.unconstrained else 1
    try:
        prompt = form.render(module, setting.prompts[module.name], step.inputs)
        grammar = form.grammar(writer, step.inputs)
        for attempt in range(attempts):
            answer: Completion = yield Ask(
                module, prompt, grammar, attempt, setting.draw, loops=setting.loops, node=step.node
            )
            besides += () if completion is None else (completion,)
            completion = answer
            try:
                outputs = form.parse(writer, completion.text)
                given = as_given(writer, step.inputs, outputs)
                break
            except ExampleError:
                if attempt + 1 == attempts:
                    raise
        weighed = yield from confidences(module, form, prompt, grammar, outputs)
        outputs |= weighed.found
        given |= weighed.found
        besides += weighed.completions
    except ExampleError as error:
        setting.steps.append(replace(step, prompt=prompt, completion=completion, besides=besides))
        raise NodeFailed(Failure(code=error.code, message=error.message, node=step.node)) from error
    setting.steps.append(replace(step, prompt=prompt, completion=completion, besides=besides, outputs=outputs))
    return given
