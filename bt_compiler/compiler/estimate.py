"""How long prompts and completions of a program will be, before any model is loaded.

Prompts are rendered for real from a few train examples; what earlier steps would have written and retrieved is stood
in for. Tokens are characters / 3.5, English prose with a byte-pair tokenizer; digits and other scripts need more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from statistics import mean
from typing import Any

from bt_compiler.data import Example
from bt_compiler.engine.confidence import label_values
from bt_compiler.engine.formats import load_format
from bt_compiler.engine.request import PromptText
from bt_compiler.engine.retrieval.corpus import read_corpus
from bt_compiler.engine.values import as_json
from bt_compiler.graph import (
    Call,
    Constant,
    Judges,
    Module,
    Program,
    Prompt,
    Ref,
    Repeat,
    Rerank,
    Retrieve,
    nodes,
    spec_candidate,
    visits,
)
from bt_compiler.graph.program import ARGUMENTS, FINISH, OBSERVATION, THOUGHT, TOOL, TRAJECTORY
from bt_compiler.spec import Type
from bt_compiler.spec.sections import CorpusSection, Generation, Sections
from bt_compiler.spec.types import STR

CHARACTERS_PER_TOKEN = 3.5
_EXAMPLES = 20
_PASSAGES = 50
_TURN = 5
"""Tokens a chat template spends on a turn."""
_WRITTEN = 0.5
"""Share of its budget that a generated text is taken to use."""
_PASSAGE = {"id": "0", "title": "A title", "text": "x" * 400, "score": 0.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class CallEstimate:
    """One call node."""

    node: str
    """Path of names."""
    module: str
    visits: int
    """Times it runs for one example at most; of a `react` module all its turns."""
    prompt_tokens: int
    """A zero-shot prompt."""
    demo_tokens: int
    """What one demo adds."""
    completion_tokens: int
    learnt: bool = True
    """False where labels are weighed: nothing is written that training could learn."""


def estimate_calls(
    program: Program, sections: Sections, examples: Sequence[Example]
) -> dict[str, tuple[CallEstimate, ...]]:
    """The estimates of each call node by its path, in the order of the program: the call itself, and one for each
    output whose labels are weighed. Raises what loading a format raises.
    """
    times = visits(program)
    passages = _Passages(program, sections)
    prompts = spec_candidate(program).prompts
    found = {}
    for path, node in nodes(program):
        if not isinstance(node, Call):
            continue
        module = program.module(node.module)
        earlier = {TRAJECTORY: _trajectory(module, passages)} if module.kind == "react" else {}
        rows = [_inputs(node, module, example, passages.seen_by(path)) for example in examples[:_EXAMPLES]]
        rows = [{**row, **earlier} for row in rows or [_inputs(node, module, None, [])]]
        prompt, demo = _rendered(module, prompts[module.name], rows)
        call = CallEstimate(
            node=path,
            module=module.name,
            visits=times[path] * (module.at_most + 1),
            prompt_tokens=prompt,
            demo_tokens=demo,
            completion_tokens=_tokens(_completion_text(module)),
        )
        found[path] = (call, *_weighed(call, module, times[path]))
    return found


def _weighed(call: CallEstimate, module: Module, visits: int) -> list[CallEstimate]:
    """The calls that weigh labels of what `call` wrote."""
    types = {output.name: output.type for output in module.outputs}
    abouts = [(item.name, types[str(item.type.probability_of)]) for item in module.signature.confidences]
    return [
        replace(
            call,
            node=f"{call.node}: {name}",
            visits=visits,
            completion_tokens=sum(_tokens(str(value)) for value in label_values(about)),
            learnt=False,
        )
        for name, about in abouts
    ]


def estimate_judges(judges: Judges, program: Program, examples: Sequence[Example]) -> tuple[CallEstimate, ...]:
    """One estimate a judge, which is called once a run. What the run would have given is stood in for."""
    budget = max((module.generation.max_tokens for module in program.modules), default=Generation().max_tokens)
    given = {item.name: _stand_in(item.type, budget) for item in program.out}
    found = []
    for judge in judges.values():
        rows = []
        for example in examples[:_EXAMPLES]:
            values = {**given, **example.inputs}
            rows.append(
                {
                    item.name: item.value.value
                    if isinstance(item.value, Constant)
                    else (values if item.value.step is None else example.labels).get(item.value.field, "")
                    for item in judge.inputs
                }
            )
        if not rows:
            rows = [{item.name: _stand_in(item.type, budget) for item in judge.inputs}]
        prompts = spec_candidate(judge.program).prompts
        prompt, _ = _rendered(judge.module, prompts[judge.module.name], rows)
        written = _tokens(_completion_text(judge.module))
        found.append(
            CallEstimate(
                node="metric",
                module=judge.module.name,
                visits=1,
                prompt_tokens=prompt,
                demo_tokens=0,
                completion_tokens=written,
            )
        )
    return tuple(found)


def _tokens(text: str) -> int:
    return math.ceil(len(text) / CHARACTERS_PER_TOKEN)


def _prompt_tokens(prompt: PromptText) -> int:
    if prompt.text is not None:
        return _tokens(prompt.text)
    return sum(_tokens(message.content) + _TURN for message in prompt.messages) + _TURN


def _rendered(module: Module, prompt: Prompt, rows: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """(tokens of a zero-shot prompt, tokens that one demo adds), means over `rows`."""
    form = load_format(module.format)
    prompts = [form.render(module, prompt, row) for row in rows]
    asked = [
        _tokens(text.messages[-1].content if text.messages else (text.text or "")[text.shared :]) for text in prompts
    ]
    whole = mean(_prompt_tokens(text) for text in prompts)
    return math.ceil(whole), math.ceil(mean(asked)) + _tokens(_completion_text(module)) + 2 * _TURN


def _completion_text(module: Module) -> str:
    outputs = {item.name: _stand_in(item.type, module.generation.max_tokens) for item in module.outputs}
    written = _turn(module, FINISH, outputs) if module.kind == "react" else outputs
    return load_format(module.format).completion(module, written)


def _turn(module: Module, tool: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {THOUGHT: _stand_in(STR, module.generation.max_tokens), TOOL: tool, ARGUMENTS: arguments}


def _trajectory(module: Module, passages: _Passages) -> list[dict[str, Any]]:
    """The turns that a `react` module has behind it at half its way."""
    budget = module.generation.max_tokens
    turns = []
    for place in range(module.at_most // 2):
        tool = module.tools[place % len(module.tools)]
        arguments = {item.name: _stand_in(item.type, budget) for item in tool.inputs}
        given = passages.some(tool.k) if tool.k else [_stand_in(item.type, budget) for item in tool.outputs]
        turns.append({**_turn(module, tool.name, arguments), OBSERVATION: as_json(given)})
    return turns


def _inputs(
    call: Call, module: Module, example: Example | None, passages: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for binding in call.inputs:
        value = binding.value
        if not isinstance(value, Ref):
            values[binding.name] = value.value
        elif value.step is None and example is not None and value.field in example.inputs:
            values[binding.name] = example.inputs[value.field]
        elif binding.type.item is not None and binding.type.item.name == "Passage":
            values[binding.name] = list(passages)
        elif binding.type.name == "Passage":
            values[binding.name] = passages[0] if passages else _PASSAGE
        else:
            values[binding.name] = _stand_in(binding.type, module.generation.max_tokens)
    return values


def _stand_in(type: Type, budget: int) -> Any:
    """A value of `type` as long as one may expect."""
    match type.kind:
        case "str":
            return "x" * int((type.max_tokens or budget) * _WRITTEN * CHARACTERS_PER_TOKEN)
        case "int":
            return 100
        case "float":
            return 100.5
        case "bool":
            return False
        case "enum":
            return max(type.values, key=len)
        case "list":
            assert type.item is not None
            return [_stand_in(type.item, budget // 3)] * int(max(type.minimum or 0, min(3, type.maximum or 3)))
        case "object":
            return {item.name: _stand_in(item.type, budget // max(1, len(type.fields))) for item in type.fields}
        case "union":
            return _stand_in(type.options[0], budget)
        case _:
            return None


class _Passages:
    """Passages as the program's retrievers will give them, taken from the heads of their corpora."""

    def __init__(self, program: Program, sections: Sections) -> None:
        times = visits(program)
        self._loops = {path for path, node in nodes(program) if isinstance(node, Repeat)}
        self._asked = {
            path: node.k * times[path] for path, node in nodes(program) if isinstance(node, Retrieve | Rerank)
        }
        corpora = [section.corpus for section in sections.retrievers if section.corpus is not None]
        self._sample = [passage for corpus in corpora for passage in _head(corpus)] or [_PASSAGE]

    def seen_by(self, path: str) -> list[Mapping[str, Any]]:
        """What a call at `path` reads at most; within a loop half of what the loop finds, the mean over its visits."""
        count = sum(self._asked.values())
        if any(path.startswith(f"{loop}/") for loop in self._loops):
            count = math.ceil(count / 2)
        return self.some(count)

    def some(self, count: int) -> list[Mapping[str, Any]]:
        """As many passages of the corpora."""
        return [self._sample[place % len(self._sample)] for place in range(count)]


def _head(corpus: CorpusSection) -> list[dict[str, Any]]:
    return [
        {"id": text.id, "title": text.title, "text": text.text, "score": 0.0}
        for text in islice(read_corpus(corpus), _PASSAGES)
    ]
