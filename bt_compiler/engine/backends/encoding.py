"""Prompts and training rows as token ids: chat template, users' control tokens neutralised, end of the shared part.

Knows tokenizers and templates; nothing of models. All results are functions of the prompt alone.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jinja2 import TemplateError

from bt_compiler.engine.request import Message, PromptText
from bt_compiler.errors import BackendError

PINNED_DATE = "26 Jul 2024"
"""What chat templates that insert today's date get, so that a prompt is the same tomorrow (the date that Llama 3's
template falls back to)."""
LEAST_SHARED = 32
"""Tokens below which a shared part is not worth its own cache."""
_MEMORY = 4096


class Encoded(NamedTuple):
    """A prompt as the model sees it."""

    ids: tuple[int, ...]
    shared: int
    """Leading tokens that do not depend on what follows `PromptText.shared`; 0: nothing is shared."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """A stretch of a rendered prompt: a control token of the template, or text in which there is none."""

    text: str
    control: bool


class Encoder:
    """Encodes for one tokenizer. Remembers what it has encoded."""

    def __init__(self, tokenizer: Any, stop_ids: frozenset[int]) -> None:
        self.tokenizer = tokenizer
        self.stop_ids = stop_ids
        self._known: OrderedDict[PromptText, Encoded] = OrderedDict()
        self._shared: OrderedDict[PromptText, tuple[int, ...]] = OrderedDict()
        specials = {t.content: int(i) for i, t in tokenizer.added_tokens_decoder.items() if t.special and t.content}
        self._controls = specials
        longest_first = sorted(specials, key=lambda text: (-len(text), text))
        self._control = re.compile("|".join(re.escape(text) for text in longest_first)) if specials else None

    def prompt(self, prompt: PromptText) -> Encoded:
        """Token ids and the split. Raises BackendError (BTC512) where the model has no usable chat template."""
        known = self._known.get(prompt)
        if known is None:
            ids = self._ids(prompt)
            known = Encoded(ids, self._split(prompt, ids))
            _remember(self._known, prompt, known)
        return known

    def row(self, prompt: PromptText, completion: str) -> tuple[list[int], int]:
        """Ids of prompt, completion and end of turn, and the index of the completion's first token."""
        ids = self.prompt(prompt).ids
        return [*ids, *self.completion(completion), self.end_of_turn(prompt)], len(ids)

    def completion(self, text: str) -> list[int]:
        """Ids of a completion's text as it stands behind a prompt: no control tokens, no blank put before it."""
        ids = self._plain(text)
        if self.tokenizer.decode(ids) != text and text:  # tokenizers that put a blank before a text
            lead = self._plain("\n")
            joined = self._plain("\n" + text)
            if joined[: len(lead)] == lead:
                return joined[len(lead) :]
        return ids

    def text(self, ids: Sequence[int]) -> str:
        """The text of generated ids, special tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def end_of_turn(self, prompt: PromptText) -> int:
        """The stop token that the chat template puts after an assistant's turn, else the tokenizer's own."""
        if prompt.text is None:
            turn = (Message(role="user", content="a"), Message(role="assistant", content="b"))
            rendered = self._render(turn, generation=False)
            tail = rendered[rendered.rfind("b") + 1 :]
            found = self._control.search(tail) if self._control is not None else None
            if found is not None and self._controls[found.group()] in self.stop_ids:
                return self._controls[found.group()]
        eos = self.tokenizer.eos_token_id
        if eos is not None:
            return int(eos)
        if self.stop_ids:
            return min(self.stop_ids)
        raise BackendError.of(
            "BTC512",
            "the model has no token that ends a text",
            help="set `eos_token` in tokenizer_config.json or `eos_token_id` in generation_config.json",
        )

    def _plain(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)

    def _ids(self, prompt: PromptText) -> tuple[int, ...]:
        if prompt.text is not None:
            return tuple(self.tokenizer(prompt.text, add_special_tokens=True, split_special_tokens=True).input_ids)
        if self._control is None or not any(self._control.search(item.content) for item in prompt.messages):
            rendered = self._render(prompt.messages, generation=True)
            return tuple(self.tokenizer(rendered, add_special_tokens=False).input_ids)
        return tuple(self._neutralised(prompt.messages))

    def _neutralised(self, messages: Sequence[Message]) -> list[int]:
        """Control tokens within contents travel through the template under a mark that no content holds, and come
        back as plain text; those of the template itself stay what they are.
        """
        assert self._control is not None
        contents = "".join(item.content for item in messages)
        mark = next(chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in contents)
        names = sorted(self._controls)
        index = {name: number for number, name in enumerate(names)}
        hidden = [
            Message(
                role=item.role,
                content=self._control.sub(lambda m: f"{mark}{index[m.group()]}{mark}", item.content),
            )
            for item in messages
        ]
        rendered = self._render(hidden, generation=True)
        ids: list[int] = []
        for piece in self._pieces(rendered):
            if piece.control:
                ids.append(self._controls[piece.text])
            else:
                ids.extend(self._plain(re.sub(f"{mark}(\\d+){mark}", lambda m: names[int(m.group(1))], piece.text)))
        return ids

    def _pieces(self, rendered: str) -> list[_Piece]:
        assert self._control is not None
        pieces, done = [], 0
        for found in self._control.finditer(rendered):
            if found.start() > done:
                pieces.append(_Piece(rendered[done : found.start()], False))
            pieces.append(_Piece(found.group(), True))
            done = found.end()
        if done < len(rendered):
            pieces.append(_Piece(rendered[done:], False))
        return pieces

    def _render(self, messages: Sequence[Message], *, generation: bool) -> str:
        if not self.tokenizer.chat_template:
            raise BackendError.of(
                "BTC512",
                "the model has no chat template",
                help="use the prompt format `completion`, or a model tuned for chat",
            )
        try:
            return self._template(messages, generation)
        except TemplateError as error:
            merged = _system_merged(messages)
            if merged is None:
                raise BackendError.of(
                    "BTC512",
                    f"the model's chat template refuses the turns: {error}",
                    help="use the format `completion`",
                ) from error
        try:
            return self._template(merged, generation)
        except TemplateError as error:
            raise BackendError.of(
                "BTC512", f"the model's chat template refuses the turns: {error}", help="use the format `completion`"
            ) from error

    def _template(self, messages: Sequence[Message], generation: bool) -> str:
        template = self.tokenizer.get_chat_template()
        if "strftime_now" in template:  # transformers lets no function through, so the template gets its own
            template = f"{{%- macro strftime_now(format) -%}}{PINNED_DATE}{{%- endmacro -%}}{template}"
        return str(
            self.tokenizer.apply_chat_template(
                [{"role": item.role, "content": item.content} for item in messages],
                tokenize=False,
                add_generation_prompt=generation,
                chat_template=template,
                date_string=PINNED_DATE,
            )
        )

    def _split(self, prompt: PromptText, ids: tuple[int, ...]) -> int:
        """Leading ids that two other continuations of the shared part have as well."""
        if prompt.shared <= 0:
            return 0
        kept: PromptText
        if prompt.text is not None:
            kept = PromptText(text=prompt.text[: prompt.shared], shared=prompt.shared)
        else:
            blank = tuple(Message(role=item.role, content="") for item in prompt.messages[prompt.shared :])
            kept = PromptText(messages=(*prompt.messages[: prompt.shared], *blank), shared=prompt.shared)
        lead = self._shared.get(kept)
        if lead is None:
            lead = _common(self._ids(_continued(kept, "x")), self._ids(_continued(kept, "7 y")))
            _remember(self._shared, kept, lead)
        split = min(len(_common(ids, lead)), len(ids) - 1)
        return split if split >= LEAST_SHARED else 0


def _continued(kept: PromptText, text: str) -> PromptText:
    if kept.text is not None:
        return PromptText(text=kept.text + text)
    rest = tuple(Message(role=item.role, content=text) for item in kept.messages[kept.shared :])
    return PromptText(messages=(*kept.messages[: kept.shared], *rest))


def _common(one: Sequence[int], two: Sequence[int]) -> tuple[int, ...]:
    length = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
    return tuple(one[:length])


def _system_merged(messages: Sequence[Message]) -> list[Message] | None:
    """The turns with the system turn put before the first user's, for templates without one; None: nothing to merge."""
    if len(messages) < 2 or messages[0].role != "system" or messages[1].role != "user":
        return None
    first = Message(role="user", content=f"{messages[0].content}\n\n{messages[1].content}")
    return [first, *messages[2:]]


def _remember(memory: OrderedDict[PromptText, Any], key: PromptText, value: Any) -> None:
    memory[key] = value
    if len(memory) > _MEMORY:
        memory.popitem(last=False)
