"""How likely a label is: the model's probability of the value that it wrote, among all values that the output may have.

For each value the completion up to the end of that output is weighed under the model, given what was written before it:
p(value) = exp(log p of its tokens) / sum over the values. The end of the output is part of it, so that `bug` is not
taken for the beginning of `bug report`. Knows modules and formats; the numbers are a backend's.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from typing import Any, NamedTuple

from bt_compiler.engine.formats import Format
from bt_compiler.engine.request import Choices, Completion, OutputGrammar, PromptText
from bt_compiler.engine.running import Ask, Need
from bt_compiler.errors import BackendError
from bt_compiler.graph.program import Module, Program
from bt_compiler.spec.types import Type


def check_scoring(program: Program, facts: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises BackendError BTC366 where a module is to say how likely its labels are on an engine that cannot tell.

    `facts`: of the backends, by model.
    """
    for module in program.modules:
        if module.signature.confidences and not facts[module.model].get("scores", False):
            raise BackendError.of(
                "BTC366",
                f"`{module.signature.confidences[0].name}` of module `{module.name}` is a probability, which the "
                f"engine of model `{module.model}` cannot tell",
                help="run the module on a model at hand (`engine: transformers`), or leave the output out",
            )


class Weighed(NamedTuple):
    """The confidences of a call, by name, and the completions that it took to tell them."""

    found: Mapping[str, float]
    completions: tuple[Completion, ...]


def confidences(
    module: Module, form: Format, prompt: PromptText, grammar: OutputGrammar, outputs: Mapping[str, Any]
) -> Generator[Need, Any, Weighed]:
    """The confidences of a call that gave `outputs`. Raises what a backend's answer raises."""
    found: dict[str, float] = {}
    completions: list[Completion] = []
    for item in module.signature.confidences:
        about = item.type.probability_of or ""
        types = {output.name: output.type for output in module.outputs}
        values = label_values(types[about])
        choices = _choices(module, form, outputs, about, values)
        completion: Completion = yield Ask(module, prompt, grammar, 0, None, choices)
        found[item.name] = normalised(completion.chances)[values.index(outputs[about])]
        completions.append(completion)
    return Weighed(found, tuple(completions))


def label_values(type: Type) -> tuple[Any, ...]:
    """The values that an enum or bool may have."""
    return type.values if type.kind == "enum" else (False, True)


def normalised(chances: tuple[float, ...]) -> list[float]:
    """Probabilities that add up to 1 from log-probabilities."""
    top = max(chances)
    weights = [math.exp(chance - top) for chance in chances]
    return [weight / sum(weights) for weight in weights]


def _choices(module: Module, form: Format, outputs: Mapping[str, Any], about: str, values: tuple[Any, ...]) -> Choices:
    """The completion with each value, up to the end of that output."""
    names = [output.name for output in module.outputs]
    before = {name: outputs[name] for name in names[: names.index(about)]}
    texts = [form.completion(module, {**before, about: value}) for value in values]
    if form.style == "json":
        return Choices(tuple(text.removesuffix("}") for text in texts), ends=False)
    last = names[-1] == about
    return Choices(tuple(texts if last else (f"{text}\n" for text in texts)), ends=last)
