"""What vLLM is asked for, without vLLM: a driver that writes down what it is told stands in its place."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_models import finish_all, request, save_model

import bt_compiler.engine.backends.vllm as backend_file
from bt_compiler.engine.backends import open_backend
from bt_compiler.engine.backends.vllm import CPU_CACHE_BYTES, VllmBackend
from bt_compiler.engine.backends.vllm_engine import Ended, worker_failed
from bt_compiler.engine.backends.vllm_log import VllmLog
from bt_compiler.engine.progress import Silent
from bt_compiler.errors import BackendError
from bt_compiler.spec.sections import ModelSection, VllmSection


class Written:
    """Implements `Driver`: says nothing but the first stop token, unless it is to die."""

    def __init__(self, *, dies: Exception | None = None) -> None:
        self.told: list[str] = []
        self._ids: list[str] = []
        self._dies = dies

    def add(self, id: str, ids: Sequence[int], params: Any, lora: Any) -> None:
        self._ids.append(id)

    def wait(self, seconds: float | None) -> list[Ended]:
        if self._dies is not None:
            raise self._dies
        ended, self._ids = self._ids, []
        said = SimpleNamespace(outputs=[SimpleNamespace(token_ids=[5, 2], finish_reason="stop")], num_cached_tokens=0)
        return [Ended(id, said) for id in ended]

    def abort(self, ids: Sequence[str]) -> None:
        self.told.append(f"abort {' '.join(ids)}")

    def load(self, lora: Any) -> None:
        self.told.append("load")

    def sleep(self) -> None:
        self.told.append("sleep")

    def wake(self) -> None:
        self.told.append("wake")

    def close(self) -> None:
        self.told.append("close")


@pytest.fixture
def opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[VllmBackend, Mapping[str, Any]]]]:
    folder = save_model(tmp_path / "model")
    backends: list[VllmBackend] = []

    def open_it(driver: Any = None, **settings: Any) -> tuple[VllmBackend, Mapping[str, Any]]:
        seen: dict[str, Any] = {}

        def started(arguments: Mapping[str, Any], log: VllmLog, *, copies: bool) -> Any:
            seen.update(arguments, copies=copies)
            return driver or Written()

        monkeypatch.setattr(backend_file, "start", started)
        monkeypatch.setattr(VllmBackend, "_params", lambda self, request: None)
        backend = VllmBackend(
            model_id=str(folder),
            revision=None,
            dtype="float32",
            batch=settings.pop("batch", None),
            settings=VllmSection(**settings),
            cache_root=tmp_path / "cache",
            choices=lambda name, measure: measure(),
            progress=Silent(),
        )
        backends.append(backend)
        return backend, seen

    yield open_it
    for backend in backends:
        backend.close()


def test_settings_of_the_spec_are_passed_through(opened: Any) -> None:
    said = {
        "tensor_parallel_size": 2,
        "pipeline_parallel_size": 3,
        "data_parallel_size": 4,
        "distributed_executor_backend": "ray",
        "gpu_memory_utilization": 0.5,
        "max_model_len": 256,
        "max_lora_rank": 64,
    }
    backend, seen = opened(batch=7, **said)
    assert {name: seen[name] for name in said} == said
    assert (seen["max_num_seqs"], seen["copies"], seen["enable_prefix_caching"]) == (7, True, True)
    assert (seen["trust_remote_code"], backend.context_window) == (False, 256)
    assert backend.facts()["tensor_parallel_size"] == 2


def test_what_is_not_said_is_left_to_vllm(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    backend, seen = opened()
    assert not {"gpu_memory_utilization", "distributed_executor_backend", "max_num_seqs"} & set(seen)
    assert (seen["max_model_len"], backend.context_window, seen["copies"]) == (512, 512, False)
    assert seen["kv_cache_memory_bytes"] == CPU_CACHE_BYTES  # on a CPU vLLM would take most of the memory
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    assert "kv_cache_memory_bytes" not in opened()[1]


def test_a_gpu_is_the_trainers_while_the_model_is_lent(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Written()
    backend, _ = opened(driver)
    with backend.borrow():
        assert driver.told == []  # a CPU's workers keep their memory
    backend._base.device = "cuda"
    assert backend._arguments()["enable_sleep_mode"]
    monkeypatch.setattr(backend_file.BaseWeights, "lend", lambda self, dtype: _lent(driver))
    with pytest.raises(ValueError, match="broke"), backend.borrow():
        assert driver.told == ["sleep", "loaded"]
        raise ValueError("training broke down")
    assert driver.told == ["sleep", "loaded", "freed", "wake"]


def test_a_gpu_is_empty_while_others_train(opened: Any) -> None:
    driver = Written()
    backend, _ = opened(driver)
    backend._base.device = "cuda"
    with backend.set_aside() as base:
        assert driver.told == ["sleep"]
        assert (base.path / "config.json").is_file()
    assert driver.told == ["sleep", "wake"]


class _lent:
    def __init__(self, driver: Written) -> None:
        self._told = driver.told

    def __enter__(self) -> None:
        self._told.append("loaded")

    def __exit__(self, *_: object) -> None:
        self._told.append("freed")


def test_a_promise_of_vllm_is_passed_on(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, _ = opened()
    assert backend.facts()["batching"] == "fixed parts"
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")
    assert not backend.facts()["row_invariant"]  # of GPUs alone
    backend._base.device = "cuda"
    assert backend.facts()["row_invariant"]
    assert backend.facts()["batching"] != "fixed parts"


def test_requests_are_forgotten_and_the_engine_ends_once(opened: Any) -> None:
    driver = Written()
    backend, _ = opened(driver)
    backend.submit([request("a", "x"), request("b", "x")])
    backend.cancel(["b", "never there"])
    assert set(finish_all(backend)) == {"a"}
    backend.submit([request("c", "x")])
    backend.close()
    backend.close()
    assert driver.told == ["abort b", "abort c", "close"]


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("Executor failed.", "BTC594"),
        ("CUDA out of memory. Tried to allocate 2.00 GiB", "BTC593"),
    ],
)
def test_an_engine_that_dies_is_an_error_with_its_last_words(opened: Any, said: str, code: str) -> None:
    backend, _ = opened(Written(dies=RuntimeError(said)))
    backend.submit([request("a", "x")])
    with pytest.raises(BackendError) as caught:
        backend.poll()
    assert caught.value.diagnostics[0].code == code


def test_the_cause_is_looked_up_in_what_the_workers_printed(capfd: pytest.CaptureFixture[str]) -> None:
    log = VllmLog()
    with log.taking():
        os.write(1, b"(Worker pid=7) ERROR ValueError: the true cause.\n")
        os.write(2, b"RuntimeError: Engine core initialization failed. See root cause above.\n")
    os.write(1, b"and here it goes on\n")
    assert capfd.readouterr().out == "and here it goes on\n"
    assert log.last_error() == "the true cause"
    assert "the true cause" in worker_failed(RuntimeError("Executor failed."), log).diagnostics[0].message
    log.close()


def test_without_vllm_the_way_to_install_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bt_compiler.engine.backends.find_spec", lambda name: None if name == "vllm" else object())
    section = ModelSection(name="default", id="m", engine="vllm", vllm=VllmSection())
    with pytest.raises(BackendError) as caught:
        open_backend(section, cache_root=tmp_path, choices=lambda name, measure: measure(), progress=Silent())
    found = caught.value.diagnostics[0]
    assert (found.code, "bt-compiler[vllm]" in found.help) == ("BTC535", True)


def test_a_model_without_weights_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bt_compiler.engine.backends.find_spec", lambda name: object())
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    section = ModelSection(name="default", id=str(tmp_path / "model"), engine="vllm", vllm=VllmSection())
    with pytest.raises(BackendError, match="BTC50"):
        open_backend(section, cache_root=tmp_path, choices=lambda name, measure: measure(), progress=Silent())
