"""The `scripted` engine: replays recorded completions, or asks a Python function; for tests and for replaying a run.

An unseen prompt raises with the prompt shown. Knows no model, no tokenizer and no grammar.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bt_compiler.canonical import canonical_json, digest
from bt_compiler.engine.request import Completion, Finished, PromptText, Request
from bt_compiler.errors import BackendError, ExampleError
from bt_compiler.graph.candidate import Adapter

SCHEMA_VERSION = 1
Answer = Callable[[Request], str | ExampleError]


class ScriptedBackend:
    """Completions by prompt, and by the adapter's sha256 where a recording names one."""

    name = "scripted"

    def __init__(
        self,
        recorded: Mapping[tuple[str, str | None], str] | None = None,
        *,
        function: Answer | None = None,
        scramble: int | None = None,
        window: int | None = None,
        context_window: int = 8192,
        identity: str = "scripted",
    ) -> None:
        """`recorded`: (prompt key, sha256 of the adapter or None) -> completion text; None answers every adapter.

        `function` answers what is not recorded. With `scramble`, completions come one at a time in a random order of
        that seed; else all at once, or `window` at a time, in order of submission.
        """
        self.context_window = context_window
        self.calls: Counter[str | None] = Counter()
        """Requests by the sha256 of their adapter (None: base model)."""
        self.requests: list[Request] = []
        """All that was submitted, in order."""
        self._recorded = dict(recorded or {})
        self._function = function
        self._order = None if scramble is None else random.Random(scramble)
        self._window = window
        self._identity = identity
        self._waiting: list[Request] = []

    @classmethod
    def from_file(cls, path: Path) -> ScriptedBackend:
        """Reads a recording: `{"schema_version": 1, "completions": [{"prompt", "adapter", "completion"}, …]}`, where
        `prompt` is a text or a list of `{"role", "content"}`. Raises BackendError.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["schema_version"] != SCHEMA_VERSION:
                raise ValueError(f"schema version {data['schema_version']} is not {SCHEMA_VERSION}")
            recorded = {
                (canonical_json(item["prompt"]), item.get("adapter")): str(item["completion"])
                for item in data["completions"]
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BackendError.of(
                "BTC525",
                f"`{path}` is no recording for the `scripted` engine: {error}",
                help="`model.id` names a JSON file with `schema_version` and `completions`",
            ) from error
        return cls(
            recorded, identity=digest(sorted([key, adapter or "", text] for (key, adapter), text in recorded.items()))
        )

    def identity(self) -> Mapping[str, str]:
        """Digest of the recording."""
        return {"engine": self.name, "model": self._identity}

    def facts(self) -> Mapping[str, Any]:
        """The engine's name; what it replays fits the grammar or fails."""
        return {"engine": self.name, "row_invariant": True}

    def prompt_key(self, prompt: PromptText) -> str:
        """Canonical JSON of the text or of the messages."""
        if prompt.text is not None:
            return canonical_json(prompt.text)
        return canonical_json([{"role": message.role, "content": message.content} for message in prompt.messages])

    def count_tokens(self, prompt: PromptText) -> int:
        """Characters / 3, rounded up."""
        text = prompt.text if prompt.text is not None else "".join(message.content for message in prompt.messages)
        return -(-len(text) // 3)

    def hold(self, adapters: Sequence[Adapter]) -> None:
        """Nothing to do: they are only names here."""

    def submit(self, requests: Sequence[Request]) -> None:
        """Counts and keeps them."""
        for request in requests:
            self.calls[request.adapter.sha256 if request.adapter else None] += 1
            self.requests.append(request)
            self._waiting.append(request)

    def poll(self, seconds: float | None = None) -> list[Finished]:
        """Answers what waits. Raises BackendError on an unseen prompt."""
        if self._order is not None and self._waiting:
            chosen = [self._waiting.pop(self._order.randrange(len(self._waiting)))]
        else:
            count = len(self._waiting) if self._window is None else self._window
            chosen, self._waiting = self._waiting[:count], self._waiting[count:]
        return [Finished(request.id, self._answer(request)) for request in chosen]

    def interrupt(self) -> None:
        """Nothing to do: `poll` does not wait."""

    def cancel(self, ids: Sequence[str]) -> None:
        """Forgets waiting requests."""
        gone = set(ids)
        self._waiting = [request for request in self._waiting if request.id not in gone]

    def close(self) -> None:
        """Nothing to give back."""

    def _answer(self, request: Request) -> Completion | ExampleError:
        key = self.prompt_key(request.prompt)
        adapter = request.adapter.sha256 if request.adapter else None
        text: str | ExampleError | None = self._recorded.get((key, adapter), self._recorded.get((key, None)))
        if text is None and self._function is not None:
            text = self._function(request)
        if text is None:
            shown = request.prompt.text or "\n".join(f"[{m.role}]\n{m.content}" for m in request.prompt.messages)
            raise BackendError.of(
                "BTC526",
                "the recording has no completion for a prompt" + (f" on adapter {adapter}" if adapter else ""),
                notes=["the prompt:\n" + shown],
                help="record it, or run the program that was recorded",
            )
        if isinstance(text, ExampleError):
            return text
        return Completion(
            text=text,
            finish="stop",
            prompt_tokens=self.count_tokens(request.prompt),
            completion_tokens=-(-len(text) // 3),
            adapter=adapter,
        )
