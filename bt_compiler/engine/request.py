"""The seam between executing a program and what generates text: requests, completions, the `Backend` protocol."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from bt_compiler.errors import ExampleError
from bt_compiler.graph.candidate import Adapter


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One chat turn."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptText:
    """A rendered prompt: chat turns, or plain text for formats without a chat template."""

    messages: tuple[Message, ...] = ()
    text: str | None = None
    """Set where the format uses no chat template; then `messages` is empty."""
    shared: int = 0
    """Leading messages (or, with `text`, leading characters) that are the same for every example of the module and
    candidate: system turn and demos. What may be computed once and shared; a property of the prompt alone, so
    that a result does not depend on which other requests happen to be near."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputGrammar:
    """What a completion has to look like, in the forms that engines understand. Both say the same."""

    lark: str
    """llguidance Lark grammar over the completion text, token budgets included."""
    json_schema: Mapping[str, Any] | None = None
    """JSON Schema where the completion is one JSON object (format `json`), else None."""
    regex: str | None = None
    """Regular expression for servers that take no Lark, else None where none can say it."""
    max_tokens: int = 256
    """Upper bound on completion tokens that follows from the budgets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Greedy at temperature 0. Noise comes from a generator seeded by `seed` alone, never a shared one."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    """hash(step seed, request content, repeat) as an unsigned 63-bit number; 0 where temperature is 0."""


class Choices(NamedTuple):
    """Completions whose probability is asked, instead of one being written."""

    texts: tuple[str, ...]
    """Each up to the end of the same field, all different there and nowhere before."""
    ends: bool
    """Whether a turn ends behind each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One completion asked of a backend."""

    id: str
    """Unique among requests in flight."""
    prompt: PromptText
    grammar: OutputGrammar | None
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int = 256
    adapter: Adapter | None = None
    """None: the base model."""
    choices: Choices | None = None
    """Set where nothing is to be written: the completion has `chances`. For backends whose facts say `scores`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What came back. `cached` and `seconds` are accounting and no part of the result."""

    text: str
    finish: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int
    shared_tokens: int = 0
    """Prompt tokens whose computation was shared with other requests."""
    adapter: str | None = None
    """sha256 of the adapter that answered."""
    chances: tuple[float, ...] = ()
    """Of `Request.choices`: log-probability in nats of what they do not have in common."""
    cached: bool = field(default=False, compare=False)


class Finished(NamedTuple):
    """One request that ended."""

    id: str
    result: Completion | ExampleError


class Backend(Protocol):
    """An engine that completes prompts.

    Requests may be submitted at any time; `poll` works until at least one ends. Adapters are loaded by `hold`, or when
    first named. A configuration that cannot work raises `BackendError`; what is wrong with one request ends as its
    result.
    """

    name: str
    """Engine name: `transformers`, `openai`, `vllm`, `scripted`."""

    @property
    def context_window(self) -> int | None:
        """Tokens of prompt and completion together; None where only the engine knows, and refuses what is longer."""
        ...

    def identity(self) -> Mapping[str, str]:
        """What a completion depends on beside the request: model digest, engine, version, dtype. Part of cache keys."""
        ...

    def facts(self) -> Mapping[str, Any]:
        """What the manifest and the report say of the engine: tier, dtype, row invariance, threads, device; and what
        it can do: `enforces_grammar` (true where it does not say), `scores` (false where it does not say).
        """
        ...

    def prompt_key(self, prompt: PromptText) -> Sequence[int] | str:
        """The prompt as the model sees it: token ids, or for a remote the canonical JSON of the messages."""
        ...

    def count_tokens(self, prompt: PromptText) -> int:
        """Prompt tokens, template included; an estimate (characters / 3, rounded up) where no tokenizer is at hand."""
        ...

    def hold(self, adapters: Sequence[Adapter]) -> None:
        """Loads adapters that requests will name, before one does, so that their folders are not read again later."""
        ...

    def submit(self, requests: Sequence[Request]) -> None:
        """Takes work; returns at once."""
        ...

    def poll(self, seconds: float | None = None) -> list[Finished] | None:
        """Works until at least one request ends, or for about `seconds`; empty only where nothing is in flight, None
        where `interrupt` was called or the time was up first.
        """
        ...

    def interrupt(self) -> None:
        """Makes the `poll` under way, or else the next, return soon: more can be submitted then. What is in flight
        stays so. The one method that any thread may call at any time.
        """
        ...

    def cancel(self, ids: Sequence[str]) -> None:
        """Forgets requests; unknown ids are ignored."""
        ...

    def close(self) -> None:
        """Gives memory, connections and processes back."""
        ...


_TURN = 0.005
"""Seconds of a backend's turn where several are at work: little beside a pass of an embedded engine."""


def in_fixed_parts(backend: Backend) -> bool:
    """Whether rows of this backend depend on their batch on this machine, so that it runs fixed parts (design §4)."""
    return backend.facts().get("batching") == "fixed parts"


def turn_of(backends: Iterable[Backend]) -> float | None:
    """Seconds of a turn of each of these where several are at work; None where one of them runs fixed parts, for what
    is in a part must not depend on the clock.
    """
    return None if any(in_fixed_parts(backend) for backend in backends) else _TURN


class BaseFolder(NamedTuple):
    """Where a base model can be loaded from by others."""

    path: Path
    dtype: str
    """What it is to be loaded in, as the lender computes it."""


@runtime_checkable
class WeightHost(Protocol):
    """A backend whose weights are at hand, so that a trainer can borrow them (no second copy in memory)."""

    def borrow(self) -> Any:
        """Context manager: the bare `torch.nn.Module` of the base model, no adapter attached, dtype and device as
        loaded; nothing generates meanwhile. On leaving, the module is exactly what it was.
        """
        ...

    def set_aside(self) -> AbstractContextManager[BaseFolder]:
        """Context manager: the folder that whoever trains loads the base model from itself, in a process of its own or
        in fewer bits; nothing generates meanwhile, and no accelerator holds the model.
        """
        ...

    def encode_row(self, prompt: PromptText, completion: str) -> tuple[list[int], int]:
        """Token ids of prompt, completion and end of turn, and the index of the first completion token: the ids
        before it are exactly those that generation sees, and the loss is on the rest.
        """
        ...

    def base_model(self) -> tuple[str, str]:
        """(model id, digest of the base weights)."""
        ...


def weight_host(backend: Backend) -> WeightHost | None:
    """What lends the weights that a backend runs: itself, or what its `weights` names; None: they are not at hand."""
    if isinstance(backend, WeightHost):
        return backend
    named = getattr(backend, "weights", None)
    return named if isinstance(named, WeightHost) else None
