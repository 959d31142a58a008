"""The `openai` engine: any OpenAI-compatible server over HTTP, or several that serve the same model.

An event loop in a thread of its own keeps a window of requests in flight, each to the least loaded endpoint, and
retries with back-off. What an answer means is read by `wire`; whether it fits the grammar is seen by `Format.parse`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, NamedTuple

from bt_compiler.canonical import canonical_json
from bt_compiler.engine.backends.wire import LONGEST_WAIT, Again, body_of, key_refused, path_of, read
from bt_compiler.engine.request import Completion, Finished, PromptText, Request
from bt_compiler.errors import BackendError, ExampleError
from bt_compiler.graph.candidate import Adapter

if TYPE_CHECKING:
    import httpx

Result = Completion | ExampleError

DEFAULT_WINDOW = 8192
"""Context window of a server that does not say."""
DOWN_FOR = 10.0
"""Seconds that an endpoint which cannot be connected to gets no work while another can be."""


class Patience(NamedTuple):
    """When to try again and when to give up."""

    attempts: int = 6
    """Tries of one request; half as many where the server hangs."""
    backoff: float = 0.5
    """Seconds before the second try, doubled for each further one, unless the server says how long."""
    timeout: float = 300.0
    """Seconds without a byte of the answer."""


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
        patience: Patience | None = None,
    ) -> None:
        """`endpoints`: base URLs such as `http://host:8000/v1`. `batch`: requests in flight over all of them.

        Asks each endpoint for its models once. Raises BackendError where none answers or the key is refused.
        """
        import httpx

        self._model = model
        self._endpoints = tuple(url.rstrip("/") for url in endpoints)
        self._revision = revision
        self._patience = patience or Patience()
        self._window = batch or 32
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.context_window = self._ask_windows()
        self._loads = dict.fromkeys(self._endpoints, 0)
        self._down_until = dict.fromkeys(self._endpoints, 0.0)
        self._refused: frozenset[str] = frozenset()
        self._adapters: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._tasks: dict[str, Future[Result]] = {}
        self._ended: SimpleQueue[tuple[str, Future[Result]]] = SimpleQueue()
        self._free = asyncio.Semaphore(self._window)
        self._client = httpx.AsyncClient(
            headers=self._headers,
            timeout=httpx.Timeout(self._patience.timeout, connect=10.0, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=self._window),
        )
        self._loop = asyncio.new_event_loop()
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
            "in_flight": self._window,
            "row_invariant": False,
            "enforces_grammar": False,
            "tokens": "estimated",
            "constraints_refused": sorted(self._refused),
        }

    def prompt_key(self, prompt: PromptText) -> str:
        """Canonical JSON of the text or of the messages."""
        if prompt.text is not None:
            return canonical_json(prompt.text)
        return canonical_json([{"role": turn.role, "content": turn.content} for turn in prompt.messages])

    def count_tokens(self, prompt: PromptText) -> int:
        """An estimate: characters / 3, rounded up."""
        text = prompt.text if prompt.text is not None else "".join(turn.content for turn in prompt.messages)
        return -(-len(text) // 3)

    def submit(self, requests: Sequence[Request]) -> None:
        """Hands them to the loop."""
        for request in requests:
            task = asyncio.run_coroutine_threadsafe(self._complete(request), self._loop)
            self._tasks[request.id] = task
            task.add_done_callback(lambda done, id=request.id: self._ended.put((id, done)))  # type: ignore[misc]

    def poll(self) -> list[Finished]:
        """Waits for one end and takes all that came meanwhile. Raises BackendError."""
        found: list[Finished] = []
        while self._tasks and not (found and self._ended.empty()):
            id, task = self._ended.get()
            if self._tasks.get(id) is task:
                del self._tasks[id]
                found.append(Finished(id, task.result()))
        return found

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
        asyncio.run_coroutine_threadsafe(self._client.aclose(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _complete(self, request: Request) -> Result:
        async with self._free:
            return await self._tried(request)

    async def _tried(self, request: Request) -> Result:
        """One request with its retries. Raises BackendError."""
        import httpx

        why, unreachable, hung = "", 0, 0
        for attempt in range(self._patience.attempts):
            wait = self._patience.backoff * 2**attempt
            try:
                answer = await self._once(request)
                if not isinstance(answer, Again):
                    return answer
                why, wait = answer.why, wait if answer.after is None else answer.after
            except httpx.ConnectError as error:
                unreachable += 1
                why = str(error)
            except httpx.TimeoutException as error:
                hung += 1
                why = f"no answer within {self._patience.timeout:g} s ({type(error).__name__})"
            except httpx.TransportError as error:
                why = f"the connection broke: {error or type(error).__name__}"
            if 2 * hung >= self._patience.attempts:
                break
            if attempt + 1 < self._patience.attempts:
                await asyncio.sleep(min(wait, LONGEST_WAIT))
        if unreachable == self._patience.attempts:
            raise _unreachable(self._endpoints, why)
        return ExampleError("BTC532", f"the server gave no completion: {why}")

    async def _once(self, request: Request) -> Result | Again:
        import httpx

        now = self._loop.time()
        endpoint = min(self._endpoints, key=lambda url: (self._down_until[url] > now, self._loads[url]))
        self._loads[endpoint] += 1
        try:
            served = self._model if request.adapter is None else await self._served(request.adapter, endpoint)
            body = body_of(request, served, self._refused)
            answer = read(await self._client.post(f"{endpoint}/{path_of(request)}", json=body), request, served)
        except httpx.ConnectError:
            self._down_until[endpoint] = self._loop.time() + DOWN_FOR
            raise
        finally:
            self._loads[endpoint] -= 1
        if isinstance(answer, Again) and answer.without is not None:
            self._refused |= {answer.without}
        return answer

    async def _served(self, adapter: Adapter, endpoint: str) -> str:
        """The name that `endpoint` answers with this adapter under, loaded there by the first who asks."""
        name = f"{adapter.name}-{adapter.sha256[:12]}"
        loading = self._adapters.get((endpoint, name))
        if loading is None or (loading.done() and (loading.cancelled() or loading.exception() is not None)):
            loading = asyncio.ensure_future(self._load(adapter, name, endpoint))
            self._adapters[(endpoint, name)] = loading
        await asyncio.shield(loading)
        return name

    async def _load(self, adapter: Adapter, name: str, endpoint: str) -> None:
        """Loads over vLLM's API. The name holds the content's hash, so one that is there already is the right one."""
        if not adapter.rank:
            raise BackendError.of(
                "BTC409",
                f"`{adapter.name}` is a full set of weights, and servers load LoRA adapters alone",
                help="use `engine: transformers`, or train with `optimize.weights.method: lora`",
            )
        body = {"lora_name": name, "lora_path": str(adapter.path.resolve())}
        response = await self._client.post(f"{endpoint}/load_lora_adapter", json=body)
        if response.status_code == 200 or "already" in response.text:
            return
        if response.status_code in (401, 403):
            raise key_refused(endpoint, response.status_code)
        raise BackendError.of(
            "BTC531",
            f"the server at {endpoint} does not load adapter `{name}` (status {response.status_code}): "
            f"{response.text[:300]}",
            help="start vLLM with `--enable-lora --max-lora-rank` at least the adapter's rank and "
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, with the adapter's folder readable there",
        )

    def _ask_windows(self) -> int:
        """The least `max_model_len` that the endpoints name for the model."""
        import httpx

        windows: list[int] = []
        errors: list[str] = []
        for endpoint in self._endpoints:
            try:
                response = httpx.get(f"{endpoint}/models", headers=self._headers, timeout=30.0)
            except httpx.TransportError as error:
                errors.append(f"{endpoint}: {error or type(error).__name__}")
                continue
            if response.status_code in (401, 403):
                raise key_refused(endpoint, response.status_code)
            windows += _windows(response, self._model)
        if len(errors) == len(self._endpoints):
            raise _unreachable(self._endpoints, "; ".join(errors))
        return min(windows, default=DEFAULT_WINDOW)


def _windows(response: httpx.Response, model: str) -> list[int]:
    try:
        listed = response.json()["data"]
        return [int(one["max_model_len"]) for one in listed if one.get("id") == model and one.get("max_model_len")]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []  # a server without a list of models, or with another idea of one


def _unreachable(endpoints: Sequence[str], why: str) -> BackendError:
    return BackendError.of(
        "BTC528",
        f"no server answers at {', '.join(endpoints)}: {why}",
        help="start the server, or mend `endpoints` of the spec's model",
    )
