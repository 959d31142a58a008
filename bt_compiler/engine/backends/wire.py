"""What goes over the wire to an OpenAI-compatible server and what its answers mean. Knows no threads and no retries."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal

from bt_compiler.canonical import whole
from bt_compiler.engine.request import Completion, OutputGrammar, PromptText, Request
from bt_compiler.errors import BackendError, ExampleError

if TYPE_CHECKING:
    import httpx

LONGEST_WAIT = 60.0
"""Seconds: a longer `Retry-After` is cut to this."""
MAX_TOKENS = "max_tokens"
"""The limit of a completion under the name that most servers know; OpenAI's newer models know the other one alone."""
_MAX_TOKENS_TOO = "max_completion_tokens"
_RETRIED = frozenset({408, 409, 425, 429})
_SHOWN = 300
_STOPPED = frozenset({"stop", "eos", "eos_token", "stop_sequence", "end_turn", "complete"})
_CUT = frozenset({"length", "max_tokens", "model_length"})
"""Servers have words of their own for OpenAI's `stop` and `length`, in small letters or capitals."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """An answer that is worth another try."""

    why: str
    after: float | None = None
    """Seconds that the server asked for."""
    without: str | None = None
    """What the server does not take, a kind of constraint or `MAX_TOKENS`: the next try does without."""
    overloaded: bool = False
    """Whether the server was asked too much."""
    refused: bool = False
    """Whether this server will not answer the request however often it is asked."""
    closed: BackendError | None = None
    """What is wrong if a short request is answered so too: it is no matter of this request then."""


def path_of(request: Request) -> str:
    """Where the request goes, relative to the endpoint."""
    return "completions" if request.prompt.text is not None else "chat/completions"


def body_of(request: Request, model: str, refused: frozenset[str]) -> dict[str, Any]:
    """The JSON body; constraints of a kind in `refused` are left out, and `MAX_TOKENS` goes by its other name."""
    limit = _MAX_TOKENS_TOO if MAX_TOKENS in refused else MAX_TOKENS
    body: dict[str, Any] = {"model": model, limit: request.max_tokens}
    if request.prompt.text is not None:
        body["prompt"] = request.prompt.text
    else:
        body["messages"] = [{"role": turn.role, "content": turn.content} for turn in request.prompt.messages]
    body["temperature"] = request.sampling.temperature
    body["top_p"] = request.sampling.top_p
    body["seed"] = request.sampling.seed & 0x7FFFFFFF  # what every server takes
    kind = constraint_kind(request.grammar)
    if request.grammar is None or kind is None or kind in refused:
        return body
    if kind == "json_schema":
        schema = {"name": "output", "strict": True, "schema": request.grammar.json_schema}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    else:
        said = request.grammar.regex if kind == "regex" else request.grammar.lark
        body["structured_outputs"] = {kind: said}
    return body


def constraint_kind(grammar: OutputGrammar | None) -> Literal["json_schema", "regex", "grammar"] | None:
    """Which of a server's structured outputs says what the grammar says: vLLM's names (0.11 on)."""
    if grammar is None:
        return None
    if grammar.json_schema is not None:
        return "json_schema"
    return "regex" if grammar.regex is not None else "grammar"


def read(response: httpx.Response, request: Request, served: str) -> Completion | Again | ExampleError:
    """What an HTTP answer means for the request. Raises BackendError where no request can succeed."""
    if response.status_code != 200:
        return _refusal(response, request, served)
    try:
        data = response.json()
    except (ValueError, RecursionError):
        return Again(why=f"the answer is not JSON: {response.text[:_SHOWN]!r}")
    if not isinstance(data, dict):
        return Again(why="the answer is not a JSON object")
    if data.get("error"):
        return Again(why=f"the answer is an error with status 200: {said(response)}")
    if request.adapter is not None and data.get("model") not in (None, served):
        raise BackendError.of(
            "BTC531",
            f"the server answered as {json.dumps(data['model'])[:_SHOWN]}, not with adapter `{served}`",
            help="use a server that serves LoRA adapters under their names, such as vLLM with `--enable-lora`",
        )
    return _completion(data, request)


def _completion(data: Mapping[str, Any], request: Request) -> Completion | Again | ExampleError:
    try:
        choice = data["choices"][0]
        message = {"content": choice["text"]} if request.prompt.text is not None else choice["message"]
        text, refusal = message.get("content"), message.get("refusal")
        reason = choice.get("finish_reason") or "stop"
    except (KeyError, IndexError, TypeError, AttributeError):
        return Again(why=f"the answer is no completion: {json.dumps(data)[:_SHOWN]}")
    ended = str(reason).lower()
    if ended not in _STOPPED | _CUT:
        return ExampleError("BTC534", f"the server ended a completion for the reason {json.dumps(reason)[:_SHOWN]}")
    if not text and isinstance(refusal, str) and refusal:
        return ExampleError("BTC534", f"the model refused to answer: {whole(refusal)[:_SHOWN]}")
    if text is None and ended in _CUT:
        text = ""  # all tokens went into reasoning, which is no part of the answer
    if not isinstance(text, str):
        return Again(why="the answer has no text")
    return Completion(
        text=whole(text),
        finish="stop" if ended in _STOPPED else "length",
        prompt_tokens=_count(data, "prompt_tokens") or estimated_tokens(request.prompt),
        completion_tokens=_count(data, "completion_tokens") or _estimated(text),
        shared_tokens=_count(data, "prompt_tokens_details", "cached_tokens"),
        adapter=request.adapter.sha256 if request.adapter else None,
    )


def _count(data: Mapping[str, Any], *path: str) -> int:
    """A number of tokens in `usage`; 0 where the server names none, or what cannot be one."""
    found: Any = data.get("usage")
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return int(found) if isinstance(found, int | float) and isfinite(found) and found > 0 else 0


def estimated_tokens(prompt: PromptText) -> int:
    """Characters / 3, rounded up: budgets and prices go by it where the server does not count."""
    return _estimated(prompt.text if prompt.text is not None else "".join(turn.content for turn in prompt.messages))


def _estimated(text: str) -> int:
    return -(-len(text) // 3)


def _refusal(response: httpx.Response, request: Request, served: str) -> Again:
    status, why = response.status_code, _moved(response, request) or said(response)
    if status == 401:
        raise key_refused(response)
    if status in _RETRIED or status >= 500:
        return passing(response)
    unsupported = "unsupported" in why.lower() or "not supported" in why.lower()
    if status in (400, 422) and unsupported and MAX_TOKENS in why and _MAX_TOKENS_TOO in why:
        return Again(why=f"status {status}: {why}", after=0.0, without=MAX_TOKENS)
    kind = constraint_kind(request.grammar)
    words = ("structured_outputs", "response_format", "regex", "grammar", "schema", "unrecognized", "extra_forbidden")
    if status in (400, 422) and kind is not None and any(word in why.lower() for word in words):
        return Again(why=f"status {status}: {why}", after=0.0, without=kind)
    closed = {403: key_refused(response), 404: _unknown(response, served)}.get(status)
    return Again(why=f"the server refused a request with status {status}: {why}", refused=True, closed=closed)


def passing(response: httpx.Response) -> Again:
    """What a status means that is worth another try, with the time that the server asks for."""
    status, after = response.status_code, _retry_after(response)
    overloaded = status == 429 or (status == 503 and after is not None)
    why = f"status {status}: {said(response)}"
    return Again(why=why, after=after if overloaded else None, overloaded=overloaded)


def _unknown(response: httpx.Response, served: str) -> BackendError:
    return BackendError.of(
        "BTC530",
        f"the server at {response.request.url} knows no model `{served}`: {said(response)}",
        help="`model.id` has to be a name that its `/models` lists, and the endpoint usually ends in `/v1`",
    )


def key_refused(response: httpx.Response) -> BackendError:
    """The error for 401 and 403; the key itself is never in it."""
    return BackendError.of(
        "BTC529",
        f"the server at {response.request.url} refused access with status {response.status_code}: {said(response)}",
        help="write `api_key: {env: NAME}` in the spec's model and set that environment variable",
    )


def _moved(response: httpx.Response, request: Request) -> str | None:
    """Where a redirect leads, as `endpoints` would name it; None where the answer is none."""
    if not response.has_redirect_location:
        return None
    there = str(response.request.url.join(response.headers["location"])).removesuffix(f"/{path_of(request)}")
    return f"it redirects to {there}, and `endpoints` has to name the place itself"


def said(response: httpx.Response) -> str:
    """What the server says is wrong, cut to what can be shown; the key that it was asked with is never in it."""
    try:
        data = response.json()
    except (ValueError, RecursionError):
        text = response.text.strip() or "no text"
    else:
        text = _error_text(data if isinstance(data, dict) else {"error": data})
    key = response.request.headers.get("authorization", "").removeprefix("Bearer ")
    return (text.replace(key, "…") if key else text)[:_SHOWN]


def _error_text(data: Mapping[str, Any]) -> str:
    error = data.get("error", data.get("detail", data))
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        error = error["message"]
    return whole(error) if isinstance(error, str) else json.dumps(error)


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds to wait by the `Retry-After` header, given in seconds or as a date; None where there is none."""
    header = response.headers.get("retry-after")
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return min(max(seconds, 0.0), LONGEST_WAIT)
