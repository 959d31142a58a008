"""A person's own function, in a process of its own: a call that runs over its time limit is killed with it and with
what it started, and the next call gets a new process. One JSON line a call, one an answer.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from bt_compiler.canonical import whole
from bt_compiler.errors import BackendError, ExampleError
from bt_compiler.spec import convert, show_type
from bt_compiler.spec.sections import ToolSection

_START = 60.0
"""Seconds that a process may take until its function is loaded."""


class ProcessTool:
    """Calls one after another; not for several threads."""

    def __init__(self, section: ToolSection, source: Sequence[str], digest: str) -> None:
        """`source`: arguments of `worker`. Raises BackendError BTC544 where the function cannot be loaded."""
        self._section = section
        self._source = list(source)
        self.digest = digest
        self._process: subprocess.Popen[bytes] | None = None
        self._read = b""
        self._running()

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Outputs in their declared types. Raises ExampleError BTC540 to BTC542."""
        name = self._section.name
        process = self._running()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(dict(inputs)).encode() + b"\n")
            process.stdin.flush()
            answer = self._answer(process, self._section.time_limit)
        except TimeoutError as error:
            self.close()
            limit = self._section.time_limit
            raise ExampleError("BTC542", f"tool `{name}` did not answer within {limit:g} s") from error
        except (EOFError, OSError) as error:
            self.close()
            raise ExampleError("BTC540", f"the process of tool `{name}` ended") from error
        if "error" in answer:
            raise ExampleError("BTC540", f"tool `{name}` failed: {answer['error']}")
        return self._typed(answer["result"])

    def close(self) -> None:
        """Kills the process and what it started; a later call starts another."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):  # it may have ended by itself, with all that it started
            os.killpg(self._process.pid, signal.SIGKILL)  # its session is a group of its own
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process, self._read = None, b""

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None:
            return self._process
        command = [sys.executable, "-m", "bt_compiler.engine.tools.worker", *self._source]
        # a session of its own: Ctrl-C on a terminal is for btc, which then ends the process
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True
        )
        try:
            ready = self._answer(self._process, _START)
        except (TimeoutError, EOFError) as error:
            self.close()
            raise self._unloadable("its process ended, or took too long to start") from error
        if "error" in ready:
            self.close()
            raise self._unloadable(str(ready["error"]))
        return self._process

    def _unloadable(self, why: str) -> BackendError:
        return BackendError.of(
            "BTC544", f"tool `{self._section.name}` cannot be loaded: {why}", span=self._section.span
        )

    def _answer(self, process: subprocess.Popen[bytes], seconds: float) -> dict[str, Any]:
        assert process.stdout is not None
        until = time.monotonic() + seconds
        while b"\n" not in self._read:
            left = until - time.monotonic()
            if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
                raise TimeoutError
            more = os.read(process.stdout.fileno(), 65536)
            if not more:
                raise EOFError
            self._read += more
        line, _, self._read = self._read.partition(b"\n")
        answer: dict[str, Any] = whole(json.loads(line))
        return answer

    def _typed(self, result: Any) -> dict[str, Any]:
        outputs = self._section.outputs
        names = {item.name for item in outputs}
        if not isinstance(result, dict) or result.keys() != names:
            if len(outputs) != 1:
                shown = ", ".join(f"`{name}`" for name in sorted(names))
                raise ExampleError("BTC541", f"tool `{self._section.name}` did not return a dict with {shown}")
            result = {outputs[0].name: result}
        found: dict[str, Any] = {}
        for item in outputs:
            try:
                found[item.name] = convert(result[item.name], item.type)
            except ValueError as error:
                raise ExampleError(
                    "BTC541",
                    f"`{item.name}` of tool `{self._section.name}` is not `{show_type(item.type)}`: {error}",
                ) from error
        return found
