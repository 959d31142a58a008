"""Callers that share a predictor, on an LM server that answers some of them late or never."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_process import server

from bt_compiler.engine.backends.openai import OpenAIBackend, Patience
from bt_compiler.errors import BackendError, UsageError
from bt_compiler.runtime import Predictor, load
from bt_compiler.runtime.serve import create_app

MEETING = 4
STOPPING = """
import bt_compiler.runtime.serve as serving
from bt_compiler.engine.backends.openai import OpenAIBackend
from bt_compiler.runtime import load
serving.STOP_WITHIN = {within}
predictor = load({bundle!r}, opener=lambda _: OpenAIBackend(model="lm", endpoints=[{url!r}]))
try:
    serving.serve_predictors({{"adder": predictor}}, host="127.0.0.1", port=0)
except KeyboardInterrupt:
    pass
"""


class SlowServer:
    """Answers `slow` when `go` is set, `meet` when MEETING calls have come, the others at once."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.held = threading.Semaphore(0)
        """Released once for each call that is held back."""
        self._meeting = threading.Barrier(MEETING)
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._say({"data": [{"id": "lm"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self._say(owner.answer(body["messages"][-1]["content"]))

            def _say(self, value: Any) -> None:
                data = json.dumps(value).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def answer(self, text: str) -> dict[str, Any]:
        if "slow" in text:
            self.held.release()
            self.go.wait(60)
        if "meet" in text:
            self._meeting.wait(10)
        found = re.search(r"Number: (\d+)", text)
        assert found
        said = f"Kind: {'odd' if int(found[1]) % 2 else 'even'}\nTwice: {2 * int(found[1])}"
        message = {"role": "assistant", "content": said}
        return {"model": "lm", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}


@pytest.fixture
def slow() -> Iterator[SlowServer]:
    server = SlowServer()
    thread = threading.Thread(target=server.http.serve_forever)
    thread.start()
    yield server
    server.go.set()
    server.http.shutdown()
    thread.join()
    server.http.server_close()


@pytest.fixture
def shared(bundle: Path, slow: SlowServer) -> Iterator[Predictor]:
    patience = Patience(attempts=1, timeout=60)
    with load(bundle, opener=lambda _: OpenAIBackend(model="lm", endpoints=[slow.url], patience=patience)) as found:
        yield found


def asked(pool: ThreadPoolExecutor, predictor: Predictor, number: int, note: str | None) -> Future[Any]:
    return pool.submit(predictor.predict, {"number": number, "note": note})


def test_a_thread_does_not_wait_for_the_answer_of_another(shared: Predictor, slow: SlowServer) -> None:
    with ThreadPoolExecutor(2) as pool:
        late = asked(pool, shared, 2, "slow")
        assert slow.held.acquire(timeout=10)
        try:
            assert asked(pool, shared, 3, None).result(timeout=10).kind == "odd"
            assert not late.done()
        finally:
            slow.go.set()
        assert late.result(timeout=10).twice == 4


def test_the_calls_of_threads_are_under_way_together(shared: Predictor) -> None:
    with ThreadPoolExecutor(MEETING) as pool:
        found = [asked(pool, shared, number, "meet") for number in range(MEETING)]
        assert [one.result().twice for one in found] == [0, 2, 4, 6]


def test_a_request_over_http_does_not_wait_for_the_answer_of_another(shared: Predictor, slow: SlowServer) -> None:
    app = create_app({"adder": shared})

    async def main() -> list[Any]:
        transport = httpx.ASGITransport(app=app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://app") as client,
        ):
            while (await client.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.01)

            async def ask(number: int, note: str | None) -> Any:
                return (await client.post("/v1/predict", json={"number": number, "note": note})).json()

            late = asyncio.create_task(ask(2, "slow"))
            try:
                assert await asyncio.to_thread(slow.held.acquire, timeout=10)
                quick = await asyncio.wait_for(ask(3, None), 10)
                assert not late.done()
            finally:
                slow.go.set()
            return [quick, await late]

    assert asyncio.run(main()) == [{"kind": "odd", "twice": 6}, {"kind": "even", "twice": 4}]


def test_closing_does_not_wait_for_those_who_wait(shared: Predictor, slow: SlowServer) -> None:
    with ThreadPoolExecutor(3) as pool:
        waiting = [asked(pool, shared, number, "slow") for number in (1, 2)]
        assert slow.held.acquire(timeout=10) and slow.held.acquire(timeout=10)
        try:
            pool.submit(shared.close).result(timeout=10)
            for one in waiting:
                with pytest.raises(BackendError, match=r"BTC572(.|\n)*its predictor was closed"):
                    one.result(timeout=10)
        finally:
            slow.go.set()
    assert shared(number=5, note=None).twice == 10


def test_a_forked_process_is_told_to_load_its_own(shared: Predictor) -> None:
    assert shared(number=1, note=None).kind == "odd"
    here, there = multiprocessing.Pipe()

    def child() -> None:
        try:
            shared(number=2, note=None)
        except UsageError as error:
            there.send(error.diagnostics[0].code)
        shared.close()
        there.send(shared(number=3, note=None).twice)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    try:
        assert here.poll(20) and here.recv() == "BTC571"
        assert here.poll(20) and here.recv() == 6
    finally:
        process.kill()
        process.join()
    assert shared(number=4, note=None).twice == 8


def post(address: str, timeout: float = 30) -> httpx.Response:
    body = {"number": 2, "note": "slow"}
    return httpx.post(f"{address}/v1/predict", json=body, trust_env=False, timeout=timeout)


@pytest.mark.parametrize("gone", [False, True], ids=["waits", "gone"])
def test_stopping_ends_what_the_model_does_not_answer(bundle: Path, slow: SlowServer, gone: bool) -> None:
    code = STOPPING.format(within=1, bundle=str(bundle), url=slow.url)
    with server(code=code) as (address, process), ThreadPoolExecutor(1) as pool:
        late = pool.submit(post, address, timeout=1 if gone else 30)
        assert slow.held.acquire(timeout=10)
        if gone:
            assert isinstance(late.exception(), httpx.ReadTimeout)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
        if not gone:
            assert (late.result().status_code, late.result().json()["error"]["code"]) == (503, "BTC564")


def test_stopping_does_not_wait_for_a_body_that_does_not_come(bundle: Path, slow: SlowServer) -> None:
    code = STOPPING.format(within=1, bundle=str(bundle), url=slow.url)
    with server(code=code) as (address, process):
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            time.sleep(0.3)
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=20) == 0
            assert client.recv(100).startswith(b"HTTP/1.1 503")


def test_a_second_interrupt_ends_the_server_at_once_and_quietly(bundle: Path, slow: SlowServer) -> None:
    code = STOPPING.format(within=60, bundle=str(bundle), url=slow.url)
    said: list[str] = []
    with server(code=code, said=said) as (address, process), ThreadPoolExecutor(1) as pool:
        late = pool.submit(post, address)
        assert slow.held.acquire(timeout=10)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0
        assert late.result().status_code == 503
    assert "Shutting down" in said[0] and "Traceback" not in said[0]
