"""Real vLLM in tests: server processes, and a task whose random model is small enough to compile in seconds."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
from tiny_lm import make_tiny_lm

START_SECONDS = 900.0
"""On a machine that others use as well."""
KINDS = ("apple", "pear", "plum")
SPEC = """\
version: 1
name: fruit
model: {{{model}, generation: {{max_tokens: 8}}}}
data: {{train: train.jsonl, dev: dev.jsonl, test: test.jsonl}}
modules:
  classify:
    signature:
      instructions: Say which kind it is.
      inputs: {{size: float, weight: float}}
      outputs: {{kind: {{enum: [apple, pear, plum]}}}}
metric: {{kind: accuracy, output: kind}}
optimize:
  strategy: [prompts, weights, prompts]
  prompts: {{candidates: 2, max_bootstrapped_demos: 2, max_labeled_demos: 2}}
  weights: {{r: 4, alpha: 8, epochs: 6, learning_rate: 1.0e-2, batch: 2, samples: 2}}
"""


class Server(NamedTuple):
    """A vLLM server process."""

    url: str
    """Ends in `/v1`."""
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        """With its workers, as a machine that loses power."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def environment(**more: str) -> dict[str, str]:
    """One thread and a gigabyte for each process: tests share the machine."""
    settings = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "0",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
    }
    return {**os.environ, **settings, **more}


def write_task(folder: Path, *, rows: int = 12) -> Path:
    """Data for `SPEC` and a random model whose attention vLLM's CPU build has; the model's folder."""
    rng = random.Random(5)
    for split, count in (("train", rows), ("dev", 8), ("test", 6)):
        lines = [
            {
                "size": round(3.0 + index % 3 * 2 + rng.random(), 1),
                "weight": round(50 + index % 3 * 40 + 10 * rng.random(), 1),
                "kind": KINDS[index % 3],
            }
            for index in range(count)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    texts = [
        "Say which kind it is. Size: 3.5 Weight: 71.2 Kind: apple",
        "You are given: Answer with exactly this line:",
    ]
    return make_tiny_lm(folder / "model", [*texts * 20, *KINDS * 20], head_dim=32)


def write_spec(folder: Path, model: str) -> Path:
    """The spec beside its data; `model`: what stands between the braces."""
    path = folder / "fruit.yaml"
    path.write_text(SPEC.format(model=model))
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_server(model: Path, name: str, *more: str, port: int | None = None, lora: bool = True) -> Server:
    """Starts one and does not wait; see `wait_until_up`."""
    where = port or free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--port", str(where)]
    command += ["--served-model-name", name, "--dtype", "float32", "--enable-prefix-caching", "--enforce-eager", *more]
    command += ["--host", "127.0.0.1", *(["--enable-lora", "--max-lora-rank", "8"] if lora else [])]
    process = subprocess.Popen(command, env=environment(), start_new_session=True, stdout=subprocess.DEVNULL)
    return Server(f"http://127.0.0.1:{where}/v1", process)


def wait_until_up(*servers: Server) -> None:
    """Until each lists its model. Raises RuntimeError where one ends before."""
    deadline = time.monotonic() + START_SECONDS
    for server in servers:
        while True:
            try:
                if httpx.get(f"{server.url}/models", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            if server.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the vLLM server at {server.url} did not start")
            time.sleep(0.5)


@contextmanager
def servers(model: Path, name: str, count: int) -> Iterator[list[Server]]:
    """That many, up; killed afterwards."""
    started = [start_server(model, name) for _ in range(count)]
    try:
        wait_until_up(*started)
        yield started
    finally:
        for server in started:
            if server.process.poll() is None:
                server.kill()


class Ran(NamedTuple):
    """A `btc` command that has ended."""

    code: int
    out: str
    said: str


def btc(*arguments: str, cache: Path) -> Ran:
    """`btc` as a process."""
    command = [sys.executable, "-m", "bt_compiler", *arguments]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as said:
        code = subprocess.call(command, env=environment(BTC_CACHE=str(cache)), stdout=out, stderr=said)
        out.seek(0)
        said.seek(0)
        return Ran(code, out.read().decode(), said.read().decode())
