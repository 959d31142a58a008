"""Adapters on servers: loaded over vLLM's API under one name a version, and proven to be what answers.

A server may take an adapter's name and answer with the base model. So the log probabilities of a fixed text are asked
of the base and of the adapter: the two have to differ by more than two answers of the base do, and all endpoints have
to agree on both. Knows the wire; nothing of requests, retries or which endpoint is chosen.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bt_compiler.engine.backends.wire import Again, key_refused, passing, said
from bt_compiler.errors import BackendError
from bt_compiler.graph.candidate import Adapter

if TYPE_CHECKING:
    from bt_compiler.engine.backends.connections import Connections

PROBE = (
    "Question: which of the three rivers is the longest, and why? Answer: the second, for it rises in the mountains of "
    'the north, 1,240 km from the sea. Label: positive. {"name": "Ada", "age": 36}\nReasoning: 17 + 25 = 42.'
)
"""What the log probabilities are of; part of no program."""
_LEAST = 1e-6
"""Mean difference of log probabilities that rounding alone does not make."""
_ANOTHER_MODEL = 0.5
"""Mean difference, in nats a token, beyond which two base models are not the same one in another precision."""
_PRECISION = 0.02
"""Mean difference that another precision or another batch makes."""
_PASSING = frozenset({408, 425, 429, 502, 503, 504})
"""Statuses of a server under load and of a proxy before it. Not 500: so vLLM says that it cannot load an adapter."""

Print = tuple[float, ...]
"""Log probability of each token of the probe but the first."""


_PUSH_SECONDS = 60.0
"""How long `push` waits for endpoints that do not answer."""


class NotNow(Exception):
    """The server may load the adapter another time, and another may now."""

    def __init__(self, again: Again) -> None:
        super().__init__(again.why)
        self.again = again


class _Proven(NamedTuple):
    """What one endpoint answered."""

    endpoint: str
    base: Print
    own: Print


class ServedAdapters:
    """The adapters that servers of one base model have been given. All methods run on one event loop."""

    def __init__(self, connections: Connections, model: str) -> None:
        self._connections = connections
        self._model = model
        self._loading: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._proven: dict[str, list[_Proven]] = {}
        self._bases: dict[str, tuple[Print, float]] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def served(self, adapter: Adapter, endpoint: str) -> str:
        """The name that `endpoint` answers with this adapter under, loaded and proven there by the first who asks.

        Raises NotNow, BackendError (BTC529, BTC531, BTC595, BTC596) and httpx.RequestError.
        """
        name = f"{adapter.name}-{adapter.sha256[:12]}"
        loading = self._loading.get((endpoint, name))
        if loading is None or (loading.done() and (loading.cancelled() or loading.exception() is not None)):
            loading = asyncio.ensure_future(self._load(adapter, name, endpoint))
            loading.add_done_callback(_seen)
            self._loading[(endpoint, name)] = loading
        await asyncio.shield(loading)
        return name

    async def push(self, adapters: Sequence[Adapter], endpoints: Sequence[str]) -> None:
        """Gives every endpoint every adapter. One that is down, hangs or is loaded gets them with the first request
        that goes there. Raises BackendError as `served`.
        """
        import httpx

        asked = [asyncio.ensure_future(self.served(adapter, one)) for one in endpoints for adapter in adapters]
        done, waiting = await asyncio.wait(asked, timeout=_PUSH_SECONDS)
        for late in waiting:
            late.cancel()
        failed = [error for one in done if (error := one.exception()) is not None]
        for error in failed:
            if not isinstance(error, NotNow | httpx.RequestError):
                raise error

    async def close(self) -> None:
        """Ends what is being loaded."""
        for loading in self._loading.values():
            loading.cancel()
        await asyncio.gather(*self._loading.values(), return_exceptions=True)

    def forget(self, endpoint: str) -> None:
        """The server does not know an adapter that it had: it was restarted, and has to be given all of them again."""
        for key in [key for key in self._loading if key[0] == endpoint]:
            del self._loading[key]
        self._bases.pop(endpoint, None)

    async def _load(self, adapter: Adapter, name: str, endpoint: str) -> None:
        """The name holds the content's hash, so one that is there already is the right one."""
        check_lora(adapter)
        body = {"lora_name": name, "lora_path": str(adapter.path.resolve())}
        with self._connections.lent() as client:
            response = await client.post(f"{endpoint}/load_lora_adapter", json=body)
        if response.status_code in (401, 403):
            raise key_refused(response)
        if response.status_code in _PASSING:
            raise NotNow(passing(response))
        if response.status_code != 200 and "already" not in response.text:
            raise BackendError.of(
                "BTC531",
                f"the server at {endpoint} does not load adapter `{name}` (status {response.status_code}): "
                f"{said(response)}",
                help="start vLLM with `--enable-lora --max-lora-rank` at least the adapter's rank and "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, with the adapter's folder readable there",
            )
        async with self._locks.setdefault(endpoint, asyncio.Lock()):
            await self._prove(adapter, name, endpoint)

    async def _prove(self, adapter: Adapter, name: str, endpoint: str) -> None:
        base, noise = await self._base(endpoint)
        own = await self._print(name, endpoint)
        if changes_nothing(adapter):
            return
        if _apart(base, own) <= max(_LEAST, 3 * noise):
            raise BackendError.of(
                "BTC595",
                f"the server at {endpoint} answers as the base model where adapter `{name}` is asked for",
                help="start vLLM with `--enable-lora`; a proxy between has to pass the model's name on",
            )
        mine = _Proven(endpoint, base, own)
        others = [one for one in self._proven.get(name, []) if one.endpoint != endpoint]
        for other in others:
            _compare(name, mine, other)
        self._proven[name] = [*others, mine]

    async def _base(self, endpoint: str) -> tuple[Print, float]:
        """What the base model answers, and how far a second answer is from it. Asked before any adapter works there."""
        if endpoint not in self._bases:
            first = await self._print(self._model, endpoint)
            self._bases[endpoint] = first, _apart(first, await self._print(self._model, endpoint))
        return self._bases[endpoint]

    async def _print(self, model: str, endpoint: str) -> Print:
        """Raises NotNow, and BackendError (BTC595) where the server gives no log probabilities."""
        body = {"model": model, "prompt": PROBE, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
        with self._connections.lent() as client:
            response = await client.post(f"{endpoint}/completions", json=body)
        if response.status_code in _PASSING or response.status_code == 500:
            raise NotNow(passing(response))
        found: Sequence[Any] = ()
        answered: Any = None
        try:
            data = response.json()
            answered = data.get("model")
            found = data["choices"][0]["logprobs"]["token_logprobs"][1:-1]  # not what it generated
            values = tuple(float(value) for value in found)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, RecursionError):
            values = ()
        if len(values) < 8 or answered not in (None, model):
            why = f"it answered as `{answered}`" if values else f"status {response.status_code}: {said(response)}"
            raise BackendError.of(
                "BTC595",
                f"the server at {endpoint} does not show that `{model}` is what answers: {why}",
                help="adapters need a server whose `/completions` gives log probabilities of the prompt (`echo` with "
                "`logprobs`), as vLLM's does",
            )
        return values


def _seen(loading: asyncio.Task[None]) -> None:
    """Its error is that of those who wait for it; where nobody does any more, asyncio would print it."""
    if not loading.cancelled():
        loading.exception()


def changes_nothing(adapter: Adapter) -> bool:
    """Whether all of the adapter's B matrices are zero: then it answers as the base model by right."""
    try:
        with (Path(adapter.path) / "adapter_model.safetensors").open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
            for name, tensor in header.items():
                if ".lora_B." in name:
                    start, end = tensor["data_offsets"]
                    file.seek(8 + length + start)
                    if any(file.read(end - start)):
                        return False
    except (OSError, ValueError, KeyError, TypeError, struct.error, MemoryError):
        return False  # the server will say what is wrong with it
    return True


def _compare(name: str, mine: _Proven, other: _Proven) -> None:
    """Raises BackendError (BTC596) where two endpoints do not answer alike."""
    if _apart(mine.base, other.base) > _ANOTHER_MODEL:
        raise BackendError.of(
            "BTC596",
            f"the servers at {other.endpoint} and {mine.endpoint} run different models under one name",
            help="start all endpoints with the same weights and revision",
        )
    effect = min(_apart(one.base, one.own) for one in (mine, other))
    noise = _PRECISION + 2 * _apart(mine.base, other.base)
    if _apart(mine.own, other.own) > noise + effect / 2:
        raise BackendError.of(
            "BTC596",
            f"the servers at {other.endpoint} and {mine.endpoint} answer differently as adapter `{name}`",
            help="the adapter's folder has to hold the same files on every machine: share it, or copy it anew",
        )


def _apart(one: Print, two: Print) -> float:
    """Mean absolute difference; infinite where even the tokens differ."""
    if len(one) != len(two):
        return float("inf")
    return sum(abs(a - b) for a, b in zip(one, two, strict=True)) / len(one)


def check_lora(adapter: Adapter) -> None:
    """Raises BackendError (BTC409) for a full set of weights, which servers and vLLM do not take beside their own."""
    if not adapter.rank:
        raise BackendError.of(
            "BTC409",
            f"`{adapter.name}` is a full set of weights, and only LoRA adapters are loaded at run time",
            help="use `engine: transformers`, or train with `optimize.weights.method: lora`",
        )
