"""Prompt formats: a module, its prompt and its inputs become a `PromptText`; a completion becomes outputs.

The words of a prompt are a Jinja2 file in `templates/prompts/` or the user's own, rendered in a sandbox: a template is
text, not code. How a completion is written (`lines` or `json`) is fixed here, so that grammar, demos, training rows
and parser always agree. Knows no tokenizer and no backend.

A demo may lack an output (a labelled demo of a `chain_of_thought` has no `reasoning`): its line or key is left out. The
grammar forces every label of a completion all the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from bt_compiler.diagnostics import did_you_mean
from bt_compiler.engine.grammar import OutputPart, json_grammar, lines_grammar
from bt_compiler.engine.parsing import allowed_values, as_written, json_outputs, line_outputs
from bt_compiler.engine.request import Message, OutputGrammar, PromptText
from bt_compiler.engine.templates import template_folder
from bt_compiler.engine.turn_grammar import CallPart, json_turn, lines_turn
from bt_compiler.engine.values import as_json, shown, written, written_type
from bt_compiler.engine.wording import described, labels, observed, offered
from bt_compiler.errors import SpecError
from bt_compiler.graph.candidate import Prompt
from bt_compiler.graph.program import FINISH, OBSERVATION, TRAJECTORY, Module
from bt_compiler.spec.types import STR, Field

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.environment import TemplateModule

Style = Literal["lines", "json"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One prompt format."""

    name: str
    source: str
    """Text of the template, for whoever packs it into a bundle."""
    chat: bool
    """Turns of a chat template, or plain text."""
    style: Style
    """How completions are written."""
    separator: str
    """Plain text: what stands between preamble, demos and the example."""
    macros: TemplateModule = field(compare=False, repr=False)

    def render(self, module: Module, prompt: Prompt, inputs: Mapping[str, Any]) -> PromptText:
        """The prompt for one example: instructions, demos, then the example. Raises ExampleError, SpecError."""
        instructions = prompt.instructions
        if module.kind == "react":
            self.check(module)
            instructions = f"{instructions}\n\n{self._words('tools', offered(module))}"
        system = self._words(
            "system", instructions, described(module, module.signature.inputs), described(module, module.written)
        )
        demos = [[*self._asked(module, demo.inputs), self.completion(module, demo.outputs)] for demo in prompt.demos]
        example = self._asked(module, inputs)
        if self.chat:
            shared = [Message(role="system", content=system), *(turn for demo in demos for turn in _turns(demo))]
            return PromptText(messages=(*shared, *_turns(example)), shared=len(shared))
        leading = "".join(f"{part}{self.separator}" for part in (system, *("\n".join(demo) for demo in demos)))
        text = "\n".join((*example, ""))
        return PromptText(text=f"{leading}{text}", shared=len(leading))

    def check(self, module: Module) -> None:
        """Raises SpecError where the format lacks what the module's kind needs."""
        if module.kind == "react" and not hasattr(self.macros, "tools"):
            raise _broken(self.name, f"it has no macro `tools`, which `react` module `{module.name}` needs")

    def completion(self, module: Module, outputs: Mapping[str, Any]) -> str:
        """The canonical completion: what demos show and training rows teach. Outputs that are missing are left out."""
        given = as_written(module, outputs)
        if self.style == "json":
            return as_json(given)
        names, types = labels(module), {output.name: output.type for output in module.written}
        return "\n".join(f"{names[name]}: {written(value, types[name])}" for name, value in given.items())

    def grammar(self, module: Module, inputs: Mapping[str, Any]) -> OutputGrammar:
        """What a completion has to look like; depends on the inputs through `among` alone. Raises ExampleError."""
        parts = _parts(module, module.written, inputs)
        if module.kind != "react":
            return json_grammar(parts) if self.style == "json" else lines_grammar(parts)
        names = (*(tool.name for tool in module.tools), FINISH)
        calls = [CallPart(name, tuple(_parts(module, module.arguments(name), inputs))) for name in names]
        thought, tool, arguments = parts
        make = json_turn if self.style == "json" else lines_turn
        return make(thought, tool, arguments, calls)

    def parse(self, module: Module, text: str) -> dict[str, Any]:
        """The outputs that a completion holds, in their types. Raises ExampleError where it does not fit."""
        return json_outputs(module, text) if self.style == "json" else line_outputs(module, text)

    def _asked(self, module: Module, inputs: Mapping[str, Any]) -> list[str]:
        """What is said before a completion, user and assistant in turn: of a `react` module also its turns so far."""
        said = [self._user(module, inputs)]
        for turn in inputs[TRAJECTORY] if module.kind == "react" else ():
            words = {"text": shown(turn[OBSERVATION], STR), "json": as_json(turn[OBSERVATION])}
            observation = self._words("user", [observed() | words], described(module, module.written))
            said += [self.completion(module, turn), observation]
        return said

    def _user(self, module: Module, inputs: Mapping[str, Any]) -> str:
        fields = module.signature.inputs
        values = [
            words | {"text": shown(inputs[item.name], item.type), "json": as_json(inputs[item.name])}
            for words, item in zip(described(module, fields), fields, strict=True)
        ]
        return self._words("user", values, described(module, module.written))

    def _words(self, macro: str, *arguments: Any) -> str:
        try:
            return "\n".join(line.rstrip() for line in str(getattr(self.macros, macro)(*arguments)).strip().split("\n"))
        except Exception as error:  # the boundary to a person's template: whatever it raises is its own mistake
            raise _broken(self.name, f"in `{macro}`: {error}") from error


def load_format(name_or_path: str) -> Format:
    """The format of that name in `templates/prompts/`, or the file at that path. Raises SpecError."""
    if name_or_path.endswith(".jinja"):
        path = Path(name_or_path)
    else:
        folder = template_folder() / "prompts"
        known = sorted(entry.stem for entry in folder.glob("*.jinja"))
        if name_or_path not in known:
            raise SpecError.of(
                "BTC520",
                f"there is no prompt format `{name_or_path}`",
                help=did_you_mean(name_or_path, known, what="formats"),
            )
        path = folder / f"{name_or_path}.jinja"
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError.of("BTC520", f"the prompt format `{path}` cannot be read: {error}") from error
    return format_of(name_or_path, source)


def format_of(name: str, source: str) -> Format:
    """A format from the text of its template. Raises SpecError where it is no format."""
    try:
        macros = _template(source).module
    except Exception as error:  # as above
        line = getattr(error, "lineno", None)
        raise _broken(name, f"{error} (line {line})" if line else str(error)) from error
    missing = [macro for macro in ("system", "user") if not callable(getattr(macros, macro, None))]
    if missing:
        raise _broken(name, f"it has no macro `{missing[0]}`")
    style = getattr(macros, "completion", "lines")
    if style not in ("lines", "json"):
        raise _broken(name, f'`completion` is "{style}", not "lines" or "json"')
    return Format(
        name=name,
        source=source,
        chat=bool(getattr(macros, "chat", True)),
        style=cast(Style, style),
        separator=str(getattr(macros, "separator", "\n\n")),
        macros=macros,
    )


def _turns(said: Sequence[str]) -> list[Message]:
    return [Message(role="assistant" if place % 2 else "user", content=content) for place, content in enumerate(said)]


def _parts(module: Module, fields: Sequence[Field], inputs: Mapping[str, Any]) -> list[OutputPart]:
    """The fields as a grammar sees them; arguments of tools have no label, they go by their names."""
    names = labels(module)
    return [
        OutputPart(
            name=item.name,
            label=names.get(item.name, item.name),
            type=written_type(item.type),
            budget=module.generation.max_tokens,
            allowed=allowed_values(item, inputs),
        )
        for item in fields
    ]


def _template(source: str) -> Template:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, autoescape=False
    )
    return environment.from_string(source)


def _broken(name: str, why: str) -> SpecError:
    return SpecError.of(
        "BTC521",
        f"the prompt format `{name}` does not work: {why}",
        help="start from a copy of `fields.jinja`; `btc explain BTC521` says what a format holds",
    )
