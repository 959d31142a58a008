"""A call of a `react` module: turns of thought, tool and arguments, until one finishes.

Yao et al., "ReAct" (arXiv 2210.03629), as DSPy's `ReAct` has it, but that finishing is a turn like the others, with the
outputs as its arguments: so that one prompt and one adapter do all, and no second module has to extract the answer.
Every turn is a step of the trace, and every tool call one of its own. Knows neither tools nor retrievers: they are
needs that the executor answers.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import replace
from typing import Any

from bt_compiler.engine.asking import asked
from bt_compiler.engine.running import Need, Running, Search, Setting, Use
from bt_compiler.engine.trace import Step
from bt_compiler.engine.values import as_json, shown
from bt_compiler.errors import ExampleError
from bt_compiler.graph.program import ARGUMENTS, OBSERVATION, TOOL, TRAJECTORY, Module, ToolRef


def react(module: Module, call: Step, setting: Setting) -> Running:
    """The outputs that the module finishes with; `call` is where it stands and what it was given.

    A tool that fails is an observation. After `at_most` calls the module can only finish, whatever it knows. Raises
    NodeFailed where a turn fails.
    """
    tools = {tool.name: tool for tool in module.tools}
    finishing = replace(module, tools=())
    trajectory: list[dict[str, Any]] = []
    while True:
        turn, forced = len(trajectory), len(trajectory) == module.at_most
        step = replace(
            call, visit=(*call.visit, turn), inputs={**call.inputs, TRAJECTORY: list(trajectory)}, forced=forced
        )
        written = yield from asked(module, step, setting, limits=finishing if forced else None)
        answer = module.answer(written)
        if answer is not None:
            return dict(answer)
        use = Step(node=f"{call.node}/{written[TOOL]}", visit=step.visit, inputs=written[ARGUMENTS])
        observation = yield from _observed(tools[written[TOOL]], use, setting)
        trajectory.append({**written, OBSERVATION: observation})


def _observed(tool: ToolRef, use: Step, setting: Setting) -> Generator[Need, Any, str]:
    """What came of a call, as the module reads it; traced."""
    try:
        if tool.k is None:
            outputs: Mapping[str, Any] = yield Use(tool.name, use.inputs)
        else:
            outputs = {"passages": (yield Search(tool.name, use.inputs["query"], tool.k))}
    except ExampleError as error:
        setting.steps.append(replace(use, error=f"{error.code}: {error.message}"))
        return f"error: {error.message}"
    setting.steps.append(replace(use, outputs=outputs))
    if len(tool.outputs) > 1:
        return as_json(outputs)
    (field,) = tool.outputs
    return shown(outputs[field.name], field.type).strip()
