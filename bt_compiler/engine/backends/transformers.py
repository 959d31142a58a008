"""The embedded engine: a causal language model that transformers loads, on the CPU or a GPU.

Puts the parts together: resolve, load, choose dtype and tier by trying, then take requests and poll. How rows are
computed is in the tiers (`schedule`, `expanded`, `plain`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from threading import Event
from typing import Any

import torch

from bt_compiler.canonical import canonical_json
from bt_compiler.engine.backends.adapters import Adapters
from bt_compiler.engine.backends.constraints import Grammars
from bt_compiler.engine.backends.decoding import Row, choose
from bt_compiler.engine.backends.encoding import Encoder
from bt_compiler.engine.backends.hub import ResolvedModel, resolve_model
from bt_compiler.engine.backends.loading import Loaded, load
from bt_compiler.engine.backends.measuring import chosen_dtype, device_name
from bt_compiler.engine.backends.memory import OutOfMemory, out_of_memory_named
from bt_compiler.engine.backends.pace import turn
from bt_compiler.engine.backends.products import TORCH, fast_products, use_products
from bt_compiler.engine.backends.remembered import remembered
from bt_compiler.engine.backends.selfcheck import examine
from bt_compiler.engine.backends.tiers import Tier, open_tier
from bt_compiler.engine.backends.verdict import Verdict
from bt_compiler.engine.backends.weighing import Weighings
from bt_compiler.engine.progress import Progress
from bt_compiler.engine.request import BaseFolder, Completion, Finished, PromptText, Request
from bt_compiler.errors import BackendError, ExampleError
from bt_compiler.graph.candidate import Adapter

ENGINE_VERSION = "1"
"""Raised when the engine's arithmetic changes: part of cache keys."""
_BATCH = {"cpu": 64, "cuda": 256}


class TransformersBackend:
    """Implements `Backend` and `WeightHost`. See `engine.request` for what the methods promise."""

    name = "transformers"

    def __init__(
        self,
        *,
        model_id: str,
        revision: str | None,
        dtype: str,
        batch: int | None,
        cache_root: Path,
        choices: Callable[[str, Callable[[], Any]], Any],
        progress: Progress,
    ) -> None:
        """Loads the model. Raises BackendError (BTC500 to BTC507, BTC593)."""
        self._resolved: ResolvedModel = resolve_model(
            model_id, revision=revision, cache_root=cache_root, progress=progress
        )
        self._cache_root = cache_root
        self._device = device_name()
        self._threads = int(choices("threads", torch.get_num_threads))
        if self._threads != torch.get_num_threads():
            torch.set_num_threads(self._threads)
        self._batch = batch or _BATCH[self._device]
        self._progress = progress
        try:
            with out_of_memory_named():
                self._dtype, self._products, self._loaded, self._verdict = self._open(dtype, choices)
        except OutOfMemory as error:
            raise BackendError.of(
                "BTC593",
                f"there is no room to load and try `{self._resolved.id}`",
                help="name a smaller model, write `dtype: bfloat16`, or take a device with more memory",
            ) from error
        self.context_window = self._loaded.context_window
        self._encoder = Encoder(self._loaded.tokenizer, self._loaded.stop_ids)
        self._weighings = Weighings(encoder=self._encoder, stop_ids=self._loaded.stop_ids)
        self._adapters = Adapters(self._loaded.model, base_digest=self._resolved.digest)
        # once: a look at a package's metadata takes longer than all else about a cache key
        self._versions = {name: version(name) for name in ("torch", "transformers", "llguidance")}
        self._grammars: Grammars | None = None
        self._tier: Tier | None = None
        self._rejected: list[Finished] = []
        self._interrupted = Event()
        self._borrowed = False

    def _open(self, dtype: str, choices: Callable[[str, Callable[[], Any]], Any]) -> tuple[str, str, Loaded, Verdict]:
        """Dtype, products, the model in them, and what the self-check found: `auto` keeps bfloat16 only where it is
        fast and row-invariant. All are remembered by machine and model.
        """
        path, device, root = self._resolved.path, self._device, self._cache_root
        held: dict[tuple[str, str], Loaded] = {}

        def loaded(name: str, products: str) -> Loaded:
            if (name, products) not in held:
                held.clear()
                held[name, products] = load(path, dtype=name, device=device)
                use_products(held[name, products].model, products)
            return held[name, products]

        def verdict(name: str, products: str) -> Mapping[str, Any]:
            key = [ENGINE_VERSION, self._resolved.digest, name, device, *([] if products == TORCH else [products])]
            found = remembered(root, "engine", key, lambda: examine(loaded(name, products)).to_json())
            return dict(found)

        def auto() -> str:
            fast = str(remembered(root, "dtype", self._resolved.digest, lambda: chosen_dtype(path, device, root)))
            if fast != "float32" and device == "cpu" and not verdict(fast, TORCH)["row_invariant"]:
                return "float32"
            return fast

        name = str(choices("dtype", auto)) if dtype == "auto" else dtype
        products = TORCH
        if name == "float32" and device == "cpu":
            products = str(choices("products", lambda: fast_products(name, device, root)))
        found = Verdict.from_json(choices("engine", lambda: verdict(name, products)))
        return name, products, loaded(name, products), found

    def identity(self) -> Mapping[str, str]:
        """See `Backend.identity`."""
        return {
            "model": self._resolved.digest,
            "engine": self.name,
            "engine_version": ENGINE_VERSION,
            **self._versions,
            "dtype": self._dtype,
            "device": self._device,
            "tier": self._verdict.tier,
            **({} if self._products == TORCH else {"products": self._products}),
        }

    def facts(self) -> Mapping[str, Any]:
        """See `Backend.facts`."""
        return {
            "tier": self._verdict.tier,
            "tier_reason": self._verdict.reason,
            "dtype": self._dtype,
            "products": self._products,
            "row_invariant": self._verdict.row_invariant,
            "batching": "refilled rows" if self._verdict.row_invariant else "fixed parts",
            "batch": self._batch,
            "threads": self._threads,
            "device": self._device,
            "model": self._resolved.id,
            "model_digest": self._resolved.digest,
            "resolved_by": self._resolved.how,
            "scores": True,
        }

    def prompt_key(self, prompt: PromptText) -> Sequence[int]:
        """Token ids, and in front, negated, how many of them are shared: where a text is split is part of how its
        numbers are rounded.
        """
        encoded = self._encoder.prompt(prompt)
        return (-encoded.shared, *encoded.ids)

    def count_tokens(self, prompt: PromptText) -> int:
        """See `Backend.count_tokens`."""
        return len(self._encoder.prompt(prompt).ids)

    def hold(self, adapters: Sequence[Adapter]) -> None:
        """See `Backend.hold`. Raises BackendError (BTC508, BTC509)."""
        self._adapters.hold(adapters)

    def submit(self, requests: Sequence[Request]) -> None:
        """See `Backend.submit`. Raises BackendError (BTC508, BTC509, BTC512)."""
        rows = []
        for request in requests:
            if request.adapter is not None:
                self._adapters.know(request.adapter)
            try:
                rows += self._rows(request)
            except ExampleError as error:
                self._rejected.append(Finished(request.id, error))
        self._running().add(rows)

    def _rows(self, request: Request) -> list[Row]:
        encoded = self._encoder.prompt(request.prompt)
        if len(encoded.ids) + request.max_tokens > self.context_window:
            raise ExampleError(
                "BTC510",
                f"the prompt has {len(encoded.ids)} tokens and the answer may take {request.max_tokens}, together more "
                f"than the {self.context_window} that the model reads",
            )
        if request.choices is not None:
            return self._weighings.rows(request, request.choices, encoded)
        matcher = None
        if request.grammar is not None:
            if self._grammars is None:
                vocab = self._loaded.model.get_output_embeddings().weight.shape[0]
                self._grammars = Grammars(self._loaded.tokenizer, vocab=vocab, stop_ids=self._loaded.stop_ids)
            matcher = self._grammars.start(request.grammar)
        return [Row(request=request, prompt=encoded, matcher=matcher, stop_ids=self._loaded.stop_ids)]

    def _running(self) -> Tier:
        if self._borrowed:
            raise RuntimeError("the model is lent to a trainer")
        if self._tier is None:
            self._tier = open_tier(
                self._verdict.tier,
                self._loaded,
                choose=lambda rows, logits: choose(rows, logits, self._grammars),
                use_adapter=self._adapters.use,
                batch=self._batch,
                refill=self._verdict.row_invariant,
                halved=self._halved,
            )
        return self._tier

    def _halved(self, rows: int) -> None:
        """Stays so for as long as the backend is open."""
        self._batch = rows
        self._progress.say(f"generating ran out of memory; it goes on with {rows} rows at once at most")

    def poll(self, seconds: float | None = None) -> list[Finished] | None:
        """See `Backend.poll`; one pass at least. Raises BackendError where memory runs out (BTC513, BTC514)."""
        finished, self._rejected = self._rejected, []
        tier, over = self._running(), turn(seconds)
        while not (finished or tier.idle() or self._interrupted.is_set()):
            finished = [done for row, error in tier.step() if (done := self._ended(row, error)) is not None]
            if over():
                break
        self._interrupted.clear()
        return finished if finished or tier.idle() else None

    def interrupt(self) -> None:
        """See `Backend.interrupt`: `poll` returns between two passes."""
        self._interrupted.set()

    def _ended(self, row: Row, error: ExampleError | None) -> Finished | None:
        if row.script:
            return self._weighings.ended(row, error)
        return Finished(row.request.id, error if error is not None else self._completion(row))

    def _completion(self, row: Row) -> Completion:
        assert row.finish is not None
        return Completion(
            text=self._encoder.text(row.written),
            finish=row.finish,
            prompt_tokens=len(row.prompt.ids),
            completion_tokens=len(row.written),
            shared_tokens=row.prompt.shared,
            adapter=row.adapter,
        )

    def cancel(self, ids: Sequence[str]) -> None:
        """See `Backend.cancel`."""
        gone = frozenset(ids) | self._weighings.forget(ids)
        self._rejected = [item for item in self._rejected if item.id not in gone]
        self._running().remove(gone)

    def close(self) -> None:
        """See `Backend.close`."""
        if self._tier is not None:
            self._tier.release()
            self._tier = None
        self._adapters.detach()

    @contextmanager
    def borrow(self) -> Iterator[Any]:
        """See `WeightHost.borrow`. Raises RuntimeError (a bug) where work is in flight or weights were changed."""
        self._let_go()
        model = self._loaded.model
        before = {name: tensor._version for name, tensor in (*model.named_parameters(), *model.named_buffers())}
        attention = model.config._attn_implementation
        self._borrowed = True
        model.set_attn_implementation("eager")
        use_products(model, TORCH)
        try:
            yield model
        finally:
            self._borrowed = False
            self._adapters.detach()
            model.set_attn_implementation(attention)
            use_products(model, self._products)
            model.requires_grad_(False)
            model.zero_grad(set_to_none=True)
            model.eval()
        after = {name: tensor._version for name, tensor in (*model.named_parameters(), *model.named_buffers())}
        if after != before:
            changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
            raise RuntimeError(f"the base model was changed while it was lent: {canonical_json(changed[:5])}")

    @contextmanager
    def set_aside(self) -> Iterator[BaseFolder]:
        """See `WeightHost.set_aside`; the model waits in the CPU's memory. Raises RuntimeError as `borrow`."""
        self._let_go()
        self._borrowed = True
        self._loaded.model.to("cpu")
        if self._device == "cuda":
            torch.cuda.empty_cache()
        try:
            yield BaseFolder(self._resolved.path, self._dtype)
        finally:
            self._loaded.model.to(self._device)
            self._borrowed = False

    def _let_go(self) -> None:
        """Gives back what generating holds beside the model."""
        if self._tier is not None:
            if not self._tier.idle():
                raise RuntimeError("requests are in flight while the model is to be lent")
            self._tier.release()
            self._tier = None
        self._adapters.detach()

    def encode_row(self, prompt: PromptText, completion: str) -> tuple[list[int], int]:
        """See `WeightHost.encode_row`."""
        return self._encoder.row(prompt, completion)

    def base_model(self) -> tuple[str, str]:
        """See `WeightHost.base_model`."""
        return self._resolved.id, self._resolved.digest
