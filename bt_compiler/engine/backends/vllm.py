"""The `vllm` engine: vLLM in this process, on one device or several.

Puts the parts together: prompts as the embedded engine encodes them, grammars through vLLM's llguidance, one LoRA
request a version of an adapter, and the base weights lent to a trainer while vLLM sleeps. How vLLM is run is in
`vllm_engine`. Rows of a batch may change each other's last bits in vLLM, so work runs in fixed parts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from bt_compiler.engine.backends.adapters import check_base_weights, check_folder
from bt_compiler.engine.backends.base_weights import BaseWeights
from bt_compiler.engine.backends.served_adapters import check_lora
from bt_compiler.engine.backends.vllm_engine import Driver, Ended, start, worker_failed
from bt_compiler.engine.backends.vllm_log import VllmLog
from bt_compiler.engine.progress import Progress
from bt_compiler.engine.request import BaseFolder, Completion, Finished, PromptText, Request
from bt_compiler.errors import BackendError, ExampleError
from bt_compiler.graph.candidate import Adapter
from bt_compiler.spec.sections import VllmSection

ENGINE_VERSION = "1"
"""Raised when what is asked of vLLM changes: part of cache keys."""
CPU_CACHE_BYTES = 2 << 30
"""Keys and values on a CPU where neither the spec nor `VLLM_CPU_KVCACHE_SPACE` says: vLLM would take most of it."""
_AT_ONCE = 2
"""Adapters in one batch."""
_KEPT = 8
"""Adapters held in the host's memory."""


class VllmBackend:
    """Implements `Backend` and `WeightHost`. See `engine.request` for what the methods promise."""

    name = "vllm"

    def __init__(
        self,
        *,
        model_id: str,
        revision: str | None,
        dtype: str,
        batch: int | None,
        settings: VllmSection,
        cache_root: Path,
        choices: Callable[[str, Callable[[], Any]], Any],
        progress: Progress,
    ) -> None:
        """Starts vLLM on the model. Raises BackendError (BTC500 to BTC506, BTC592, BTC593)."""
        self._base = BaseWeights(model_id=model_id, revision=revision, cache_root=cache_root, progress=progress)
        self._dtype = str(choices("dtype", self._base.fast_dtype)) if dtype == "auto" else dtype
        self._settings = settings
        self._batch = batch
        self.context_window = min(self._base.context_window, settings.max_model_len or self._base.context_window)
        self._log = VllmLog()
        self._adapters: dict[str, Any] = {}
        self._numbers = 0
        self._asked: dict[str, tuple[Request, int]] = {}
        self._held: list[tuple[Request, Any]] = []
        self._rejected: list[Finished] = []
        self._lent = False
        progress.say(f"starting vLLM on {model_id}")
        try:
            self._driver: Driver | None = start(self._arguments(), self._log, copies=settings.data_parallel_size > 1)
        except BackendError:
            self._log.close()
            raise

    def _arguments(self) -> dict[str, Any]:
        """What vLLM is started with."""
        settings, on_gpu = self._settings, self._base.device == "cuda"
        arguments: dict[str, Any] = {
            "model": str(self._base.resolved.path),
            "dtype": self._dtype,
            "seed": 0,
            "trust_remote_code": False,
            "generation_config": "vllm",  # sampling is as the request says, not as the model's folder does
            "max_model_len": self.context_window,
            "max_num_seqs": self._batch,
            "enable_prefix_caching": True,
            "enable_lora": True,
            "max_lora_rank": settings.max_lora_rank,
            "max_loras": _AT_ONCE,
            "max_cpu_loras": _KEPT,
            "structured_outputs_config": {"backend": "guidance"},
            "async_scheduling": False,  # it follows the clock
            "enable_sleep_mode": on_gpu,
            "tensor_parallel_size": settings.tensor_parallel_size,
            "pipeline_parallel_size": settings.pipeline_parallel_size,
            "data_parallel_size": settings.data_parallel_size,
            "distributed_executor_backend": settings.distributed_executor_backend,
            "gpu_memory_utilization": settings.gpu_memory_utilization,
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
        }
        if not on_gpu:
            arguments["enforce_eager"] = True  # compiling costs more than it saves there
            if settings.gpu_memory_utilization is None and "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
                arguments["kv_cache_memory_bytes"] = CPU_CACHE_BYTES
        return {name: value for name, value in arguments.items() if value is not None}

    def identity(self) -> Mapping[str, str]:
        """See `Backend.identity`."""
        from vllm import __version__

        return {
            "model": self._base.resolved.digest,
            "engine": self.name,
            "engine_version": ENGINE_VERSION,
            "vllm": str(__version__),
            "dtype": self._dtype,
            "device": self._base.device,
        }

    def facts(self) -> Mapping[str, Any]:
        """See `Backend.facts`."""
        settings = self._settings
        invariant = self._base.device == "cuda" and os.environ.get("VLLM_BATCH_INVARIANT") == "1"
        return {
            "engine": self.name,
            "dtype": self._dtype,
            "device": self._base.device,
            "row_invariant": invariant,
            "batching": "as vLLM promises" if invariant else "fixed parts",
            "enforces_grammar": False,  # it does, but what comes back is looked at all the same
            "constraints": "guidance",
            "prefix_caching": True,
            "tensor_parallel_size": settings.tensor_parallel_size,
            "pipeline_parallel_size": settings.pipeline_parallel_size,
            "data_parallel_size": settings.data_parallel_size,
            "max_lora_rank": settings.max_lora_rank,
            "model": self._base.resolved.id,
            "model_digest": self._base.resolved.digest,
            "resolved_by": self._base.resolved.how,
        }

    def prompt_key(self, prompt: PromptText) -> Sequence[int]:
        """Token ids."""
        return self._base.encoder.prompt(prompt).ids

    def count_tokens(self, prompt: PromptText) -> int:
        """See `Backend.count_tokens`."""
        return len(self._base.encoder.prompt(prompt).ids)

    def hold(self, adapters: Sequence[Adapter]) -> None:
        """See `Backend.hold`; of more than `_KEPT` vLLM reads some again. Raises BackendError as `submit`."""
        for adapter in adapters:
            self._lora(adapter)

    def submit(self, requests: Sequence[Request]) -> None:
        """See `Backend.submit`. Raises BackendError (BTC508, BTC509, BTC512, BTC591)."""
        for request in requests:
            lora = None if request.adapter is None else self._lora(request.adapter)
            self._running()
            if self._mixes(lora):
                self._held.append((request, lora))
            else:
                self._add(request, lora)

    def _mixes(self, lora: Any) -> bool:
        """Whether a request has to wait for others. On CPUs vLLM 0.32 computes rows of the base model with the weights
        of an adapter in the same batch (its kernels take the index -1 for the last adapter), so they never share one.
        """
        if self._base.device != "cpu":
            return False
        return bool(self._held) or any((one.adapter is None) != (lora is None) for one, _ in self._asked.values())

    def _add(self, request: Request, lora: Any) -> None:
        try:
            ids = self._prompt(request)
            self._running().add(request.id, ids, self._params(request), lora)
        except ExampleError as error:
            self._rejected.append(Finished(request.id, error))
        except ValueError as error:
            self._rejected.append(Finished(request.id, _refused(error)))
        else:
            self._asked[request.id] = (request, len(ids))

    def _release(self) -> None:
        """Once nothing is under way, the kind that has waited longest goes on."""
        held, self._held = self._held, []
        for request, lora in held:
            if (lora is None) == (held[0][1] is None):
                self._add(request, lora)
            else:
                self._held.append((request, lora))

    def _running(self) -> Driver:
        if self._lent or self._driver is None:
            raise RuntimeError("the model is lent to a trainer, or closed")
        return self._driver

    def _prompt(self, request: Request) -> Sequence[int]:
        ids = self._base.encoder.prompt(request.prompt).ids
        if len(ids) + request.max_tokens > self.context_window:
            raise ExampleError(
                "BTC510",
                f"the prompt has {len(ids)} tokens and the answer may take {request.max_tokens}, together more than "
                f"the {self.context_window} that the model reads",
            )
        return ids

    def _params(self, request: Request) -> Any:
        """VLLM's form of sampling and grammar. Lark with its token budgets goes to llguidance as it is."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        sampling, grammar = request.sampling, request.grammar
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed if sampling.temperature > 0 else None,
            max_tokens=request.max_tokens,
            stop_token_ids=sorted(self._base.stop_ids),
            structured_outputs=None if grammar is None else StructuredOutputsParams(grammar=grammar.lark),
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _lora(self, adapter: Adapter) -> Any:
        """The request of this version: its name and number are its own. Raises BackendError."""
        from vllm.lora.request import LoRARequest

        known = self._adapters.get(adapter.sha256)
        if known is not None:
            return known
        check_base_weights(adapter, self._base.resolved.digest)
        check_lora(adapter)
        check_folder(adapter)
        if adapter.rank > self._settings.max_lora_rank:
            raise BackendError.of(
                "BTC591",
                f"adapter `{adapter.name}` has rank {adapter.rank}, vLLM was started for "
                f"{self._settings.max_lora_rank} at most",
                help="raise `max_lora_rank` in the model's `vllm`",
            )
        self._numbers += 1  # one that failed to load may be half known to vLLM under its number
        path = str(Path(adapter.path).resolve())
        lora = LoRARequest(f"{adapter.name}-{adapter.sha256[:12]}", self._numbers, path)
        try:
            self._running().load(lora)
        except (ValueError, RuntimeError, OSError, KeyError) as error:
            raise BackendError.of(
                "BTC508",
                f"vLLM does not load adapter `{adapter.name}`: {self._log.last_error() or error}",
                help="a PEFT folder holds adapter_config.json and adapter_model.safetensors, made for the same base "
                "model and for layers that vLLM adapts",
            ) from error
        self._adapters[adapter.sha256] = lora
        return lora

    def poll(self, seconds: float | None = None) -> list[Finished] | None:
        """See `Backend.poll`. Raises BackendError (BTC593, BTC594)."""
        finished, self._rejected = self._rejected, []
        while not finished and (self._asked or self._held):
            if not self._asked:
                self._release()
                finished, self._rejected = self._rejected, []
                continue
            try:
                ended = self._running().wait(seconds)
            except RuntimeError as error:  # vLLM's own for workers and cores that died
                raise worker_failed(error, self._log) from error
            if not ended:
                return None
            finished = [self._finished(one) for one in ended if one.id in self._asked]
        return finished

    def interrupt(self) -> None:
        """See `Backend.interrupt`."""
        driver = self._driver  # read once: another thread may close
        if driver is not None:
            driver.interrupt()

    def _finished(self, ended: Ended) -> Finished:
        request, prompt_tokens = self._asked.pop(ended.id)
        outcome = ended.outcome
        if isinstance(outcome, ValueError):
            return Finished(ended.id, _refused(outcome))
        if isinstance(outcome, Exception):
            raise worker_failed(outcome, self._log) from outcome
        written, reason = list(outcome.outputs[0].token_ids), outcome.outputs[0].finish_reason
        if reason not in ("stop", "length"):
            return Finished(ended.id, ExampleError("BTC511", f"vLLM ended a completion for the reason `{reason}`"))
        if written and written[-1] in self._base.stop_ids:
            written.pop()
        finish: Literal["stop", "length"] = "stop" if reason == "stop" else "length"
        completion = Completion(
            text=self._base.encoder.text(written),
            finish=finish,
            prompt_tokens=prompt_tokens,
            completion_tokens=len(written),
            shared_tokens=int(outcome.num_cached_tokens or 0),
            adapter=request.adapter.sha256 if request.adapter else None,
        )
        return Finished(ended.id, completion)

    def cancel(self, ids: Sequence[str]) -> None:
        """See `Backend.cancel`."""
        gone = frozenset(ids)
        self._rejected = [item for item in self._rejected if item.id not in gone]
        self._held = [item for item in self._held if item[0].id not in gone]
        under_way = [id for id in ids if self._asked.pop(id, None) is not None]
        if under_way and self._driver is not None:
            self._driver.abort(under_way)

    def close(self) -> None:
        """See `Backend.close`."""
        if self._driver is not None:
            self.cancel(list(self._asked))
            with self._log.taking():
                self._driver.close()
            self._driver = None
            self._log.close()

    @contextmanager
    def borrow(self) -> Iterator[Any]:
        """See `WeightHost.borrow`. A GPU's memory is the trainer's meanwhile; a CPU's workers keep theirs."""
        with self.set_aside() as base, self._base.lend(base.dtype) as model:
            yield model

    @contextmanager
    def set_aside(self) -> Iterator[BaseFolder]:
        """See `WeightHost.set_aside`; memory as with `borrow`."""
        if self._asked or self._held:
            raise RuntimeError("requests are in flight while the model is to be lent")
        driver, on_gpu = self._running(), self._base.device == "cuda"
        if on_gpu:
            driver.sleep()
        self._lent = True
        try:
            yield BaseFolder(self._base.resolved.path, self._dtype)
        finally:
            self._lent = False
            if on_gpu:
                driver.wake()

    def encode_row(self, prompt: PromptText, completion: str) -> tuple[list[int], int]:
        """See `WeightHost.encode_row`."""
        return self._base.encode_row(prompt, completion)

    def base_model(self) -> tuple[str, str]:
        """See `WeightHost.base_model`."""
        return self._base.base_model()


def _refused(error: ValueError) -> ExampleError:
    line = (str(error).strip().splitlines() or ["no reason given"])[0].rstrip(".")[:300]
    return ExampleError("BTC511", f"vLLM refused the request: {line}")
