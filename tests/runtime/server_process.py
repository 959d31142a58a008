"""A server process of `btc`, with predictors as a piece of code makes them."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

SERVER = """
import sys
sys.path.insert(0, {here!r})
from conftest import ScriptedBackend, answer
from bt_compiler.runtime import load
from bt_compiler.runtime.serve import by_name, serve_predictors
predictors = [load(path, opener=lambda section: ScriptedBackend(function=answer)) for path in {bundles!r}]
serve_predictors(by_name(predictors), host="127.0.0.1", port=0)
"""


@contextmanager
def server(
    *bundles: Path, code: str | None = None, said: list[str] | None = None
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Its address and the process. `said` is given what it wrote to stderr once it listens, when it has ended."""
    text = code or SERVER.format(here=str(Path(__file__).parent), bundles=[str(one) for one in bundles])
    process = subprocess.Popen([sys.executable, "-c", text], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    address = None
    for line in process.stderr:
        if found := re.search(r"http://127\.0\.0\.1:\d+", line):
            address = found.group()
            break
    read, written = process.stderr.read, [] if said is None else said
    drain = threading.Thread(target=lambda: written.append(read()))
    drain.start()
    try:
        assert address is not None, process.wait()
        with httpx.Client(base_url=address, trust_env=False) as client:
            while client.get("/readyz").status_code != 200:
                time.sleep(0.02)
        yield address, process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        drain.join()
        process.stderr.close()
