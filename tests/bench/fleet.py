"""A fleet of endpoints with real latencies (`slow_endpoint.py`): two against one, and one killed half-way.

    python tests/bench/fleet.py --rows 600 --repeats 3

First the same program over the same rows on one endpoint and on two, in turn: seconds and the ratio. Then a compile
(prompts alone) on one endpoint, on two, and on two of which one is killed with `kill -9` half-way: one digest.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx

from bt_compiler.engine.backends.openai import OpenAIBackend
from bt_compiler.engine.request import Completion, Message, PromptText, Request

KINDS = ("apple", "pear", "plum")
SPEC = """\
version: 1
name: fleet
model: {{id: slow, engine: openai, endpoints: [{endpoints}], revision: one}}
data: {{train: train.jsonl, dev: dev.jsonl, test: test.jsonl}}
modules:
  classify:
    signature:
      instructions: Say which kind it is.
      inputs: {{size: int}}
      outputs: {{kind: {{enum: [apple, pear, plum]}}}}
metric: {{kind: accuracy, output: kind}}
optimize:
  strategy: [prompts]
  prompts: {{candidates: 3, max_bootstrapped_demos: 2, max_labeled_demos: 2}}
"""


class Endpoint(NamedTuple):
    """A server process."""

    url: str
    process: subprocess.Popen[bytes]


@contextmanager
def endpoints(count: int, *, slots: int, seconds: float) -> Iterator[list[Endpoint]]:
    """That many, up; ended afterwards."""
    started = []
    try:
        for _ in range(count):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = int(probe.getsockname()[1])
            command = [sys.executable, str(Path(__file__).with_name("slow_endpoint.py")), str(port)]
            process = subprocess.Popen([*command, str(slots), str(seconds)])
            started.append(Endpoint(f"http://127.0.0.1:{port}/v1", process))
        for one in started:
            while True:
                try:
                    httpx.get(f"{one.url}/models", timeout=5)
                    break
                except httpx.TransportError:
                    if one.process.poll() is not None:
                        raise SystemExit("an endpoint did not start") from None
                    time.sleep(0.05)
        yield started
    finally:
        for one in started:
            one.process.kill()
            one.process.wait()


def seconds_for(urls: list[str], rows: int) -> tuple[float, list[str]]:
    """Of answering so many rows with three different prefixes; and what was answered."""
    system = [Message(role="system", content=f"Say which kind it is, in way {way}.") for way in range(3)]
    asked = [
        Request(
            id=str(row),
            prompt=PromptText(messages=(system[row % 3], Message(role="user", content=f"Size: {row}")), shared=1),
            grammar=None,
        )
        for row in range(rows)
    ]
    found: dict[str, str] = {}
    with closing(OpenAIBackend(model="slow", endpoints=urls)) as backend:
        begin = time.perf_counter()
        backend.submit(asked)
        while finished := backend.poll():
            for id, result in finished:
                assert isinstance(result, Completion), result
                assert id not in found, "answered twice"
                found[id] = result.text
        return time.perf_counter() - begin, [found[str(row)] for row in range(rows)]


def compiled(folder: Path, name: str, running: list[Endpoint], *, kill_after: float | None) -> tuple[str, float]:
    """Digest and seconds of a compile; `kill_after`: seconds until the last endpoint dies."""
    spec = folder / "fleet.yaml"
    spec.write_text(SPEC.format(endpoints=", ".join(one.url for one in running)))
    timer = threading.Timer(kill_after or 0, os.kill, (running[-1].process.pid, signal.SIGKILL))
    if kill_after is not None:
        timer.start()
    begin = time.perf_counter()
    command = [sys.executable, "-m", "bt_compiler", "compile", str(spec), "-o", str(folder / name)]
    ran = subprocess.run(command, env={**os.environ, "BTC_CACHE": str(folder / f"cache-{name}")}, capture_output=True)
    seconds = time.perf_counter() - begin
    timer.cancel()
    if ran.returncode != 0:
        raise SystemExit(ran.stderr.decode())
    if kill_after is not None and running[-1].process.poll() is None:
        raise SystemExit("the compile ended before the kill")
    return str(json.loads((folder / name / "manifest.json").read_text())["digest"]), seconds


def write_rows(folder: Path, rows: int) -> None:
    """Train, dev and test; no row twice."""
    first = 0
    for split, count in (("train", rows), ("dev", rows // 3), ("test", rows // 3)):
        lines = [{"size": number, "kind": KINDS[number % 3]} for number in range(first, first + count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        first += count


def compiles(rows: int, *, slots: int, seconds: float) -> list[tuple[str, str, float]]:
    """(what, digest, seconds) of the three compiles."""
    found = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_rows(folder, rows)
        for name, count in (("one", 1), ("two", 2), ("one of two killed", 2)):
            kill_after = found[-1][2] / 2 if "killed" in name else None
            with endpoints(count, slots=slots, seconds=seconds) as running:
                digest, took = compiled(folder, name.replace(" ", "-"), running, kill_after=kill_after)
            found.append((name, digest, took))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--slots", type=int, default=16, help="requests that an endpoint answers at once")
    parser.add_argument("--seconds", type=float, default=0.4, help="of one answer")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compile-rows", type=int, default=120)
    args = parser.parse_args()
    ratios = []
    for _ in range(args.repeats):
        took, said = [], []
        for count in (1, 2):
            with endpoints(count, slots=args.slots, seconds=args.seconds) as running:
                seconds, texts = seconds_for([one.url for one in running], args.rows)
            took.append(seconds)
            said.append(texts)
        assert said[0] == said[1]
        ratios.append(took[0] / took[1])
        print(
            f"{args.rows} rows: one endpoint {took[0]:.2f} s, two {took[1]:.2f} s, ratio {ratios[-1]:.2f}", flush=True
        )
    print(f"median ratio {statistics.median(ratios):.2f}, n={len(ratios)}")
    outcomes = compiles(args.compile_rows, slots=args.slots, seconds=args.seconds)
    for name, digest, seconds in outcomes:
        print(f"compile on {name}: {seconds:.1f} s, digest {digest[:16]}")
    print(f"{len({digest for _, digest, _ in outcomes})} digest(s)")


if __name__ == "__main__":
    main()
