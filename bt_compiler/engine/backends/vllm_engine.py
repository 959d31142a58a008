"""vLLM's engine behind one small protocol: in this process, or as processes of its own where there are copies.

The engine core runs in this process (its workers may not): so the same requests are scheduled in the same order every
time. Data parallel copies need vLLM's asynchronous engine, whose order follows the clock. Knows vLLM's interfaces;
nothing of grammars, prompts or adapters' contents. Written for vLLM 0.32.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any, NamedTuple, Protocol

from bt_compiler.engine.backends.pace import turn, waited
from bt_compiler.engine.backends.vllm_log import VllmLog
from bt_compiler.errors import BackendError

_MEMORY_WORDS = ("memory", "kv cache", "gib")


class Ended(NamedTuple):
    """One request that ended: vLLM's `RequestOutput`, or what it was refused for."""

    id: str
    outcome: Any


class Driver(Protocol):
    """A running engine. What is wrong with one request is a ValueError, what is with the engine a RuntimeError; either
    may also be a request's outcome.
    """

    def add(self, id: str, ids: Sequence[int], params: Any, lora: Any) -> None:
        """Takes a request of token ids. Raises ValueError where vLLM refuses it."""
        ...

    def wait(self, seconds: float | None) -> list[Ended]:
        """Works until at least one request ends; empty only where none is under way, or `interrupt` was called or the
        seconds were over first. Raises RuntimeError.
        """
        ...

    def interrupt(self) -> None:
        """Makes the `wait` under way, or else the next, return soon. From any thread."""
        ...

    def abort(self, ids: Sequence[str]) -> None:
        """Forgets requests."""
        ...

    def load(self, lora: Any) -> None:
        """Loads an adapter into all workers. Raises ValueError or RuntimeError where it does not fit."""
        ...

    def sleep(self) -> None:
        """Gives the devices' memory back, the weights kept aside; no request may be under way."""
        ...

    def wake(self) -> None:
        """Takes the memory again."""
        ...

    def close(self) -> None:
        """Ends the engine and its processes."""
        ...


def start(arguments: Mapping[str, Any], log: VllmLog, *, copies: bool) -> Driver:
    """Starts vLLM. `copies`: data parallel. Raises BackendError (BTC592, BTC593)."""
    with log.taking():
        from vllm.engine.arg_utils import EngineArgs
        from vllm.usage.usage_lib import UsageContext

        try:
            config = EngineArgs(**arguments).create_engine_config(UsageContext.LLM_CLASS)
            return _Copies(config) if copies else _InProcess(config)
        except Exception as error:  # a worker that cannot start is a bare Exception in vLLM
            raise _not_started(error, log) from error


def worker_failed(error: BaseException, log: VllmLog) -> BackendError:
    """The error for an engine that died while it worked."""
    cause = log.last_error() or _line(error)
    if _is_memory(cause):
        return _no_room(cause)
    return BackendError.of(
        "BTC594",
        f"vLLM stopped working: {cause}",
        help="the same command goes on from the journal; where it happens again, look up the message in vLLM's issues",
    )


class _InProcess:
    """`LLMEngine` with its core in this process."""

    def __init__(self, config: Any) -> None:
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.llm_engine import LLMEngine
        from vllm.v1.executor import Executor

        self._engine = LLMEngine(
            config,
            Executor.get_class(config),
            log_stats=False,
            usage_context=UsageContext.LLM_CLASS,
            multiprocess_mode=False,
        )
        self._interrupted = Event()

    def add(self, id: str, ids: Sequence[int], params: Any, lora: Any) -> None:
        from vllm.inputs import tokens_input

        with _plain_errors():
            self._engine.add_request(id, tokens_input(list(ids)), params, lora_request=lora)

    def wait(self, seconds: float | None) -> list[Ended]:
        over = turn(seconds)
        while self._engine.has_unfinished_requests() and not self._interrupted.is_set():
            with _plain_errors():
                ended = [Ended(output.request_id, output) for output in self._engine.step() if output.finished]
            if ended or over():
                return ended
        self._interrupted.clear()
        return []

    def interrupt(self) -> None:
        self._interrupted.set()

    def abort(self, ids: Sequence[str]) -> None:
        self._engine.abort_request(list(ids))

    def load(self, lora: Any) -> None:
        with _plain_errors():
            self._engine.add_lora(lora)

    def sleep(self) -> None:
        self._engine.sleep(1)

    def wake(self) -> None:
        self._engine.wake_up()

    def close(self) -> None:
        self._engine.engine_core.shutdown()


class _Copies:
    """`AsyncLLM` on an event loop in a thread of its own, which balances over its copies."""

    def __init__(self, config: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._thread.start()
        self._ended: SimpleQueue[Ended | None] = SimpleQueue()  # None: an interruption
        self._tasks: dict[str, Future[None]] = {}
        try:
            self._engine = self._run(self._open(config))
        except BaseException:
            self._stop()
            raise

    async def _open(self, config: Any) -> Any:
        from vllm.v1.engine.async_llm import AsyncLLM

        return AsyncLLM.from_vllm_config(config, disable_log_stats=True)

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def add(self, id: str, ids: Sequence[int], params: Any, lora: Any) -> None:
        self._tasks[id] = asyncio.run_coroutine_threadsafe(self._one(id, list(ids), params, lora), self._loop)

    async def _one(self, id: str, ids: list[int], params: Any, lora: Any) -> None:
        from vllm.inputs import tokens_input

        outcome: Any = None
        try:
            with _plain_errors():
                async for output in self._engine.generate(tokens_input(ids), params, id, lora_request=lora):
                    outcome = output
        except (ValueError, RuntimeError) as error:
            outcome = error
        self._ended.put(Ended(id, outcome))

    def wait(self, seconds: float | None) -> list[Ended]:
        found: list[Ended] = []
        over = False
        while self._tasks and not ((found or over) and self._ended.empty()):
            ended = waited(self._ended, seconds)
            if ended is None:
                over = True
            elif self._tasks.pop(ended.id, None) is not None:
                found.append(ended)
        return found

    def interrupt(self) -> None:
        self._ended.put(None)

    def abort(self, ids: Sequence[str]) -> None:
        for id in ids:
            task = self._tasks.pop(id, None)
            if task is not None:
                task.cancel()

    def load(self, lora: Any) -> None:
        with _plain_errors():
            self._run(self._engine.add_lora(lora))

    def sleep(self) -> None:
        self._run(self._engine.sleep(1))

    def wake(self) -> None:
        self._run(self._engine.wake_up())

    def close(self) -> None:
        self.abort(list(self._tasks))
        self._run(self._end())
        self._stop()

    async def _end(self) -> None:
        self._engine.shutdown()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@contextmanager
def _plain_errors() -> Iterator[None]:
    """VLLM's own exceptions (0.32 on) as those that say the same in Python."""
    from vllm.exceptions import VLLMClientError, VLLMError

    try:
        yield
    except VLLMClientError as error:
        raise ValueError(str(error)) from error
    except VLLMError as error:
        raise RuntimeError(str(error)) from error


def _not_started(error: BaseException, log: VllmLog) -> BackendError:
    cause = log.last_error() or _line(error)
    if _is_memory(cause):
        return _no_room(cause)
    return BackendError.of(
        "BTC592",
        f"vLLM does not start: {cause}",
        help="`btc explain BTC592` names the usual reasons; `VLLM_LOGGING_LEVEL=INFO` in the environment tells more",
    )


def _no_room(cause: str) -> BackendError:
    return BackendError.of(
        "BTC593",
        f"vLLM has too little memory: {cause}",
        help="in the model's `vllm`, write a lower `max_model_len` or another `gpu_memory_utilization`, or spread the "
        "model with `tensor_parallel_size`; see what else uses the device",
    )


def _is_memory(text: str) -> bool:
    lower = text.lower()
    return any(word in lower for word in _MEMORY_WORDS)


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = re.sub(r"^\d+ validation error.*", "", lines[0]) if lines else type(error).__name__
    return (text or " ".join(lines[1:3])).rstrip(".")[:300]
