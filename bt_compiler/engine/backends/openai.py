"""The `openai` engine: any OpenAI-compatible server over HTTP, or several that serve the same model.

An event loop in a thread of its own keeps requests in flight and tries again, elsewhere where it can. Which endpoint
a request goes to is up to `fleet`, adapters are up to `served_adapters`, what an answer means is read by `wire`;
whether it fits the grammar is seen by `Format.parse`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, NamedTuple

from bt_compiler.canonical import canonical_json, digest
from bt_compiler.diagnostics import did_you_mean
from bt_compiler.engine.backends.fleet import Fleet
from bt_compiler.engine.backends.pace import waited
from bt_compiler.engine.backends.served_adapters import NotNow, ServedAdapters
from bt_compiler.engine.backends.wire import (
    LONGEST_WAIT,
    MAX_TOKENS,
    Again,
    body_of,
    estimated_tokens,
    key_refused,
    path_of,
    read,
)
from bt_compiler.engine.request import Completion, Finished, Message, PromptText, Request, WeightHost
from bt_compiler.errors import BackendError, ExampleError
from bt_compiler.graph.candidate import Adapter

if TYPE_CHECKING:
    import httpx

Result = Completion | ExampleError


class Patience(NamedTuple):
    """When to try again and when to give up."""

    attempts: int = 6
    """Tries of one request; half as many where the server hangs."""
    waits: int = 60
    """Times that a request may be refused for the server's load, which are no tries; and times in a row that a server
    may refuse all of them."""
    backoff: float = 0.5
    """Seconds before the second try, doubled for each further one, unless the server says how long it is at least."""
    timeout: float = 300.0
    """Seconds without a byte of the answer."""


@dataclass(slots=True)
class _Tries:
    """What has been tried for one request."""

    patience: Patience
    failed: int = 0
    unreachable: int = 0
    """Of those that failed: no connection."""
    hung: int = 0
    """Of those that failed: no answer in time."""
    limited: int = 0
    """Refused for load or for a reason that the next try leaves out."""

    def over(self) -> bool:
        """Whether to give up."""
        patience = self.patience
        return self.failed >= patience.attempts or 2 * self.hung >= patience.attempts or self.limited >= patience.waits

    def only_unreachable(self) -> bool:
        """Whether no server was there at all."""
        return self.unreachable == self.failed > 0


class OpenAIBackend:
    """Implements `Backend` over HTTP."""

    name = "openai"

    def __init__(
        self,
        *,
        model: str,
        endpoints: Sequence[str],
        revision: str | None = None,
        api_key: str | None = None,
        batch: int | None = None,
        weights: WeightHost | None = None,
        patience: Patience | None = None,
    ) -> None:
        """`endpoints`: base URLs such as `http://host:8000/v1`. `batch`: requests in flight over all of them; None: as
        many as they take. `weights`: where the servers' weights are at hand.

        Asks each endpoint for its models once. Raises BackendError where none answers or the key is refused.
        """
        import httpx

        from bt_compiler.engine.backends.connections import Connections

        self._model = model
        self._endpoints = tuple(url.rstrip("/") for url in endpoints)
        self._revision = revision
        self._patience = patience or Patience()
        self._batch = batch
        self._base = weights
        self._headers = httpx.Headers({"Authorization": f"Bearer {api_key}"} if api_key else {})  # hides it when shown
        self.context_window = self._ask_windows()
        self._refused: frozenset[str] = frozenset()
        self._answered = 0
        self._tasks: dict[str, Future[Result]] = {}
        self._ended: SimpleQueue[tuple[str, Future[Result]] | None] = SimpleQueue()  # None: an interruption
        self._failed: tuple[str, Future[Result]] | None = None
        self._connections = Connections(headers=self._headers, timeout=self._patience.timeout)
        self._adapters = ServedAdapters(self._connections, model)
        self._loop = asyncio.new_event_loop()
        self._fleet = Fleet(self._endpoints, most=batch, loop=self._loop)
        self._thread = Thread(target=self._loop.run_forever, name="openai", daemon=True)
        self._thread.start()

    def identity(self) -> Mapping[str, str]:
        """The model's name with its declared revision, else the URLs: another server may hold another model."""
        where = self._revision or " ".join(sorted(self._endpoints))
        return {"engine": self.name, "model": self._model, "revision": where}

    def facts(self) -> Mapping[str, Any]:
        """What the manifest says; URLs are no part of it."""
        return {
            "engine": self.name,
            "endpoints": len(self._endpoints),
            "in_flight": self._batch or self._fleet.limits,
            "row_invariant": False,
            "enforces_grammar": False,
            "tokens": "estimated",
            "constraints_refused": sorted(self._refused - {MAX_TOKENS}),
        }

    @property
    def weights(self) -> WeightHost | None:
        """The servers' weights, where the spec says that they are at hand."""
        return self._base

    def prompt_key(self, prompt: PromptText) -> str:
        """Canonical JSON of the text or of the messages."""
        if prompt.text is not None:
            return canonical_json(prompt.text)
        return canonical_json([{"role": turn.role, "content": turn.content} for turn in prompt.messages])

    def count_tokens(self, prompt: PromptText) -> int:
        """An estimate."""
        return estimated_tokens(prompt)

    def hold(self, adapters: Sequence[Adapter]) -> None:
        """See `Backend.hold`. Raises BackendError (BTC529, BTC531, BTC595, BTC596)."""
        asyncio.run_coroutine_threadsafe(self._adapters.push(adapters, self._endpoints), self._loop).result()

    def submit(self, requests: Sequence[Request]) -> None:
        """Hands them to the loop."""
        for request in requests:
            task = asyncio.run_coroutine_threadsafe(self._complete(request), self._loop)
            self._tasks[request.id] = task
            task.add_done_callback(lambda done, id=request.id: self._ended.put((id, done)))  # type: ignore[misc]

    def poll(self, seconds: float | None = None) -> list[Finished] | None:
        """Waits for one end or `interrupt` and takes all that came meanwhile. Raises BackendError."""
        found: list[Finished] = []
        over = False
        while self._tasks and not ((found or over) and self._ended.empty()):
            ended, self._failed = self._failed or waited(self._ended, seconds), None
            if ended is None:
                over = True
                continue
            id, task = ended
            if self._tasks.get(id) is task:
                if found and task.exception() is not None:
                    self._failed = ended  # the next call raises: what was answered before is stored first
                    break
                del self._tasks[id]
                found.append(Finished(id, task.result()))
        return None if over and not found else found

    def interrupt(self) -> None:
        """See `Backend.interrupt`."""
        self._ended.put(None)

    def cancel(self, ids: Sequence[str]) -> None:
        """Forgets them and closes their connections."""
        for id in ids:
            task = self._tasks.pop(id, None)
            if task is not None:
                task.cancel()

    def close(self) -> None:
        """Ends all that is under way, without waiting for answers."""
        if self._loop.is_closed():
            return
        self.cancel(list(self._tasks))
        for part in (self._adapters, self._connections):
            asyncio.run_coroutine_threadsafe(part.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _complete(self, request: Request) -> Result:
        """One request with its retries. Raises BackendError, also where no request is answered any more: what servers
        that are broken do not answer is no fault of the example.

        Where another endpoint is up it is asked at once; waiting is for those that were asked before. What a server
        refuses for its load does not count as a try, for the fleet waits as long as the server says.
        """
        prefix = _prefix(request)
        answered, endpoint = self._answered, ""
        seen, avoid, answer = _Tries(self._patience), set[str](), Again(why="")
        while not (seen.over() or answer.refused):
            endpoint = await self._fleet.take(prefix, avoid, adapted=request.adapter is not None)
            found = await self._once(request, endpoint, seen)
            if not isinstance(found, Again):
                self._answered += 1
                return found
            answer = found
            if answer.overloaded and self._fleet.refusals >= self._patience.waits:
                raise _broken(endpoint, answer.why)
            avoid.add(endpoint)
            if answer.refused or self._fleet.others(avoid):
                continue
            avoid.clear()
            if answer.after is None and not seen.over():
                await asyncio.sleep(min(self._patience.backoff * 2 ** (seen.failed - 1), LONGEST_WAIT))
        if seen.only_unreachable():
            raise _unreachable(self._endpoints, answer.why)
        if self._answered == answered and not await self._answers(request):
            raise _broken(endpoint, answer.why)
        if answer.refused:
            return ExampleError("BTC534", answer.why)
        return ExampleError("BTC532", f"the server gave no completion: {answer.why}")

    async def _answers(self, request: Request) -> bool:
        """Whether a short prompt is answered that is otherwise asked for as the request is, in a place of its own."""
        asked, tries = _short(request), _Tries(self._patience)
        while True:
            endpoint = await self._fleet.take(_prefix(asked), adapted=asked.adapter is not None)
            found = await self._once(asked, endpoint, tries)
            if not isinstance(found, Again):
                return True
            if not found.overloaded or self._fleet.refusals >= self._patience.waits:
                return False

    async def _once(self, request: Request, endpoint: str, seen: _Tries) -> Result | Again:
        """One try at one endpoint, whose place is given back. Raises BackendError."""
        import httpx

        release = self._fleet.failed
        try:
            answer = await self._answer(request, endpoint)
            if not isinstance(answer, Again):
                release = self._fleet.done
            elif answer.overloaded:
                seen.limited += 1
                release = partial(self._fleet.overloaded, wait=answer.after or 0.0, backoff=self._patience.backoff)
                return replace(answer, after=0.0)
            elif answer.after is None:
                seen.failed += 1
            else:
                seen.limited += 1
            return answer
        except httpx.ConnectError as error:
            release = self._fleet.unreachable
            seen.failed += 1
            seen.unreachable += 1
            return Again(why=str(error))
        except httpx.TimeoutException as error:
            release = self._fleet.hung
            seen.failed += 1
            seen.hung += 1
            return Again(why=f"no answer within {self._patience.timeout:g} s ({type(error).__name__})")
        except httpx.TransportError as error:
            seen.failed += 1
            return Again(why=f"the connection broke: {error or type(error).__name__}")
        except httpx.RequestError as error:
            seen.failed += 1
            return Again(why=f"the answer cannot be read: {error or type(error).__name__}")
        finally:
            release(endpoint)

    async def _answer(self, request: Request, endpoint: str) -> Result | Again:
        """One answer. A 403 or 404 may be about what is in the request (moderation, routing) or about all of them,
        which a short one at the same place tells; where that one is to be tried again, so is the request.
        """
        answer = await self._asked(request, endpoint)
        if not isinstance(answer, Again) or answer.closed is None:
            return answer
        short = await self._asked(_short(request), endpoint)
        if not isinstance(short, Again):
            self._answered += 1
            return answer
        if short.closed is not None:
            raise short.closed
        return answer if short.refused else short

    async def _asked(self, request: Request, endpoint: str) -> Result | Again:
        adapter = request.adapter
        try:
            served = self._model if adapter is None else await self._adapters.served(adapter, endpoint)
        except NotNow as error:
            return error.again
        refused = self._refused
        body = body_of(request, served, refused)
        with self._connections.lent() as client:
            response = await client.post(f"{endpoint}/{path_of(request)}", json=body)
        if adapter is not None and response.status_code == 404:
            self._adapters.forget(endpoint)
            return Again(why=f"the server does not know adapter `{served}` any more")
        answer = read(response, request, served)
        if isinstance(answer, Again) and answer.without is not None:
            if answer.without in refused:
                return replace(answer, after=None, without=None, refused=True)
            self._refused |= {answer.without}
        return answer

    def _ask_windows(self) -> int | None:
        """The least `max_model_len` that the endpoints name for the model; None where none does."""
        import httpx

        windows: list[int] = []
        errors: list[str] = []
        for endpoint in self._endpoints:
            try:
                response = httpx.get(f"{endpoint}/models", headers=self._headers, timeout=30.0)
            except httpx.RequestError as error:
                errors.append(f"{endpoint}: {error or type(error).__name__}")
                continue
            if response.status_code in (401, 403):
                raise key_refused(response)
            windows += _windows(response, self._model, endpoint)
        if len(errors) == len(self._endpoints):
            raise _unreachable(self._endpoints, "; ".join(errors))
        return min(windows, default=None)


def _prefix(request: Request) -> str:
    """What tells apart prompts whose start can be computed once: the adapter, and the text that all examples share."""
    prompt = request.prompt
    shared = (
        prompt.text[: prompt.shared]
        if prompt.text is not None
        else canonical_json([[turn.role, turn.content] for turn in prompt.messages[: prompt.shared]])
    )
    return digest([request.adapter.sha256 if request.adapter else None, shared])


def _short(request: Request) -> Request:
    """One of a single word that is otherwise asked for as `request` is."""
    if request.prompt.text is not None:
        return replace(request, prompt=PromptText(text="Hello."))
    return replace(request, prompt=PromptText(messages=(Message(role="user", content="Hello."),)))


def _windows(response: httpx.Response, model: str, endpoint: str) -> list[int]:
    """The window that the server names for the model. Raises BackendError (BTC530) where it lists others alone."""
    try:
        listed = {str(one["id"]): one.get("max_model_len") for one in response.json()["data"]}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []  # a server without a list of models, or with another idea of one
    if listed and model not in listed:
        raise BackendError.of(
            "BTC530",
            f"the server at {endpoint} has no model `{model}`",
            help=did_you_mean(model, listed, what="models there"),
        )
    window = listed.get(model)
    return [window] if type(window) is int and window > 0 else []


def _broken(endpoint: str, why: str) -> BackendError:
    return BackendError.of(
        "BTC597",
        f"the server at {endpoint} answers no request: {why}",
        help="look at its log, and at that of a proxy before it; the same command goes on from here",
    )


def _unreachable(endpoints: Sequence[str], why: str) -> BackendError:
    return BackendError.of(
        "BTC528",
        f"no server answers at {', '.join(endpoints)}: {why}",
        help="start the server, or mend `endpoints` of the spec's model",
    )
