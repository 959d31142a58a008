"""A real server process, and the application itself where a test has to hold the backend back."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_process import SERVER, server

from bt_compiler.engine.backends.scripted import ScriptedBackend
from bt_compiler.engine.request import Request
from bt_compiler.errors import BackendError
from bt_compiler.runtime import Predictor, load
from bt_compiler.runtime.routes import failure_status
from bt_compiler.runtime.serve import by_name, create_app, serve_predictors


@pytest.fixture(scope="module")
def address(adder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with server(adder(tmp_path_factory.mktemp("served"))) as (found, _):
        yield found


@pytest.fixture
def client(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, trust_env=False, timeout=30) as found:
        yield found


def test_a_prediction(client: httpx.Client) -> None:
    answer = client.post("/v1/predict", json={"number": 7, "note": None})
    assert (answer.status_code, answer.json()) == (200, {"kind": "odd", "twice": 14})
    assert client.post("/v1/adder/predict", json={"number": 7, "note": None}).json() == answer.json()


def test_many_clients_at_once_each_get_their_own_answer(address: str) -> None:
    def ask(number: int) -> tuple[int, Any]:
        body = {"number": number, "note": None}
        return number, httpx.post(f"{address}/v1/predict", json=body, trust_env=False, timeout=30).json()

    with ThreadPoolExecutor(16) as pool:
        for number, found in pool.map(ask, range(100, 180)):
            assert found["twice"] == 2 * number


def test_wrong_input_is_a_422_with_place_and_message(client: httpx.Client) -> None:
    answer = client.post("/v1/predict", json={"note": 7, "more": 1})
    assert answer.status_code == 422
    assert answer.json()["detail"] == [
        {"loc": ["body", "more"], "msg": "input `more` is not known", "type": "extra", "code": "BTC562"},
        {"loc": ["body", "note"], "msg": "input `note` expects `str | null`, got a number, `7`", "type": "anyOf",
         "code": "BTC562"},
        {"loc": ["body", "number"], "msg": "input `number` of type `int` is missing", "type": "missing",
         "code": "BTC562"},
    ]  # fmt: skip
    assert client.post("/v1/predict", json=[1]).json()["detail"][0]["loc"] == ["body"]


def test_half_a_character_is_a_422_that_disturbs_nobody(client: httpx.Client) -> None:
    for body, place in (('{"number": 1, "note": "a \\ud800 b"}', ["body", "note"]), ('"\\udfff"', ["body"])):
        answer = client.post("/v1/predict", content=body)
        assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, place)
        assert "half of a character" in answer.json()["detail"][0]["msg"]
    named = client.post("/v1/predict", content='{"number": 1, "note": null, "\\ud800": 2}')
    assert named.status_code == 422


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"number": NaN, "note": null}',
        b"[" * 100_000,
        b'{"number": 1e999, "note": null}',
        b'{"number": 1, "note": null, "number": 2}',
    ],
)
def test_a_body_that_is_no_json_is_a_400(client: httpx.Client, body: bytes) -> None:
    answer = client.post("/v1/predict", content=body)
    if body.startswith(b'{"number": 1e999'):  # JSON, and Python reads it as infinity: no int
        assert answer.status_code == 422
        return
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "BTC565")


def test_a_body_too_large_is_a_413(client: httpx.Client) -> None:
    answer = client.post("/v1/predict", json={"number": 1, "note": "x" * (1 << 20)})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "BTC565")


def test_a_compressed_body_is_a_415(client: httpx.Client) -> None:
    body = gzip.compress(b'{"number": 7, "note": null}')
    answer = client.post("/v1/predict", content=body, headers={"Content-Encoding": "gzip"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "BTC565")
    assert answer.json()["error"]["message"] == "a body in `gzip` is not read: send it without `Content-Encoding`"
    plain = {"Content-Encoding": "identity"}
    assert client.post("/v1/predict", json={"number": 7, "note": None}, headers=plain).status_code == 200


def test_an_input_too_long_for_the_context_window_is_a_413(client: httpx.Client) -> None:
    answer = client.post("/v1/predict", json={"number": 1, "note": "a note " * 20_000})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "BTC523")


def test_a_failed_example_is_a_500_with_its_code(client: httpx.Client) -> None:
    answer = client.post("/v1/predict", json={"number": 13, "note": None})
    assert answer.status_code == 500
    assert answer.json() == {"error": {"code": "BTC521", "message": "the model gave no answer", "node": "add"}}


def test_a_search_that_its_server_refuses_is_a_502(predictor: Predictor) -> None:
    assert failure_status(predictor, "BTC521") == 500
    assert failure_status(predictor, "BTC545") == 502


def test_root_health_and_unknown_paths(client: httpx.Client) -> None:
    (one,) = client.get("/").json()["bundles"]
    assert (one["name"], one["inputs"]["note"], one["outputs"]["kind"]) == ("adder", "str | null", "enum(odd, even)")
    assert len(one["digest"]) == 64
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"bundles": {"adder": "ready"}}
    assert [client.head(path).status_code for path in ("/", "/healthz", "/readyz")] == [200, 200, 200]
    wrong = client.get("/v1/predict")
    assert (wrong.status_code, wrong.headers["allow"], wrong.json()["error"]["code"]) == (405, "POST", "BTC565")
    nowhere = client.post("/v1/other/predict", json={})
    assert (nowhere.status_code, nowhere.json()["error"]["code"]) == (404, "BTC565")
    assert nowhere.json()["error"]["message"] == "no such path: `/v1/other/predict`; `GET /` lists the bundles"


def test_openapi_documents_the_programs_own_schema(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    operation = document["paths"]["/v1/predict"]["post"]
    body = operation["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"]["number"] == {"type": "integer"} and body["required"] == ["number"]
    result = operation["responses"]["200"]["content"]["application/json"]["schema"]
    assert result["properties"]["kind"] == {"type": "string", "enum": ["odd", "even"]}
    assert {"400", "413", "415", "422", "500", "502", "503"} <= set(operation["responses"])
    assert "HTTPValidationError" not in json.dumps(document)


def test_the_page_needs_nothing_from_elsewhere(client: httpx.Client) -> None:
    answer = client.get("/docs")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    assert "enum(odd, even)" in answer.text and "&#34;number&#34;: 0" in answer.text
    found = re.findall(r"""(?:src|href)="([^"]*)""", answer.text)
    assert sorted(found) == ["/openapi.json", "data:,"]


def test_sigterm_finishes_what_is_under_way(bundle: Path) -> None:
    with server(bundle) as (address, process), ThreadPoolExecutor(4) as pool:
        body = {"number": 8, "note": "slow"}
        asked = [
            pool.submit(httpx.post, f"{address}/v1/predict", json=body, trust_env=False, timeout=30) for _ in range(4)
        ]
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        assert [one.result().json() for one in asked] == [{"kind": "even", "twice": 16}] * 4
        assert process.wait(timeout=20) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{address}/healthz", trust_env=False)


def test_a_client_that_leaves_disturbs_nobody(bundle: Path) -> None:
    with server(bundle) as (address, _):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{address}/v1/predict", json={"number": 2, "note": "slow"}, trust_env=False, timeout=0.2)
        answer = httpx.post(f"{address}/v1/predict", json={"number": 5, "note": None}, trust_env=False, timeout=30)
        assert answer.json() == {"kind": "odd", "twice": 10}


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_error_of_the_server(bundle: Path) -> None:
    from starlette.requests import ClientDisconnect

    told: list[dict[str, Any]] = []
    messages = [{"type": "http.request", "body": b'{"num', "more_body": True}, {"type": "http.disconnect"}]

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: Any) -> None:
        told.append(message)

    app = create_app(by_name([load(bundle, opener=lambda section: ScriptedBackend())]))
    scope = {"type": "http", "method": "POST", "path": "/v1/predict", "headers": [], "query_string": b""}
    try:
        asyncio.run(app({**scope, "http_version": "1.1", "scheme": "http", "root_path": ""}, receive, send))
    except ClientDisconnect:
        pytest.fail("the server would write a traceback")
    assert told[0]["status"] == 400


def test_a_port_that_is_taken_is_said_before_a_model_is_opened(bundle: Path) -> None:
    predictor = load(bundle, opener=lambda section: pytest.fail("a model was opened"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(BackendError, match="BTC570"):
            serve_predictors(by_name([predictor]), host="127.0.0.1", port=taken.getsockname()[1])
    with pytest.raises(BackendError, match="BTC570"):
        serve_predictors(by_name([predictor]), host="no.such.host.invalid", port=0)
    with pytest.raises(BackendError, match="BTC570"):
        serve_predictors(by_name([predictor]), host="a..b", port=0)


def test_several_bundles_each_have_their_path(bundle: Path, make_bundle: Callable[..., Path]) -> None:
    with server(bundle, make_bundle()) as (address, _):
        body = {"number": 5, "note": None}
        for name in ("adder", "adder-2"):
            found = httpx.post(f"{address}/v1/{name}/predict", json=body, trust_env=False, timeout=30)
            assert found.json() == {"kind": "odd", "twice": 10}
        assert httpx.post(f"{address}/v1/predict", json=body, trust_env=False).status_code == 404


def test_a_model_that_cannot_be_opened_ends_the_server_with_its_error(bundle: Path) -> None:
    code = (
        f"from pathlib import Path\nfrom bt_compiler.runtime.serve import serve\nserve([Path({str(bundle)!r})], port=0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "BackendError" in done.stderr and "BTC525" in done.stderr


def run_app(app: Any, use: Callable[[httpx.AsyncClient], Any]) -> Any:
    """Runs `use` with a client of the application in this process, lifespan included."""

    async def main() -> Any:
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://app", timeout=30) as client:
                return await use(client)

    return asyncio.run(main())


async def ready(client: httpx.AsyncClient) -> None:
    while (await client.get("/readyz")).status_code != 200:
        await asyncio.sleep(0.01)


def test_the_log_says_when_a_bundle_takes_requests(bundle: Path) -> None:
    slow = "(time.sleep(1), ScriptedBackend(function=answer))[1]"
    said: list[str] = []
    code = SERVER.format(here=str(Path(__file__).parent), bundles=[str(bundle)])
    with server(code="import time" + code.replace("ScriptedBackend(function=answer)", slow), said=said):
        pass
    assert "adder is ready: POST /v1/adder/predict" in said[0]


def test_until_the_model_is_loaded_it_is_a_503(bundle: Path, backend: ScriptedBackend) -> None:
    loaded = threading.Event()
    told: list[str] = []

    def opener(section: Any) -> ScriptedBackend:
        loaded.wait()
        return backend

    async def use(client: httpx.AsyncClient) -> None:
        try:
            assert (await client.get("/healthz")).status_code == 200 and told == []
            waiting = await client.get("/readyz")
            assert (waiting.status_code, waiting.json()) == (503, {"bundles": {"adder": "loading"}})
            refused = await client.post("/v1/predict", json={"number": 1, "note": None})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "BTC564")
            assert refused.headers["retry-after"] == "1"
        finally:
            loaded.set()
        await ready(client)
        assert (await client.post("/v1/predict", json={"number": 1, "note": None})).status_code == 200

    run_app(create_app({"adder": load(bundle, opener=opener)}, on_ready=told.append), use)
    assert told == ["adder"]


def test_requests_that_come_together_are_run_together_and_more_than_the_bound_is_a_503(bundle: Path) -> None:
    gate = threading.Event()
    batches: list[int] = []

    class Gated(ScriptedBackend):
        def submit(self, requests: Any) -> None:
            batches.append(len(requests))
            super().submit(requests)

        def poll(self) -> Any:
            gate.wait()
            return super().poll()

    def answer(request: Request) -> str:
        return "Kind: odd\nTwice: 2"

    async def use(client: httpx.AsyncClient) -> None:
        await ready(client)

        def ask(number: int) -> Any:
            return asyncio.create_task(client.post("/v1/predict", json={"number": number, "note": None}))

        asked = [ask(0)]
        while not batches:
            await asyncio.sleep(0.01)
        asked += [ask(number) for number in range(1, 10)]
        while app.state.workers["adder"].under_way < 10:
            await asyncio.sleep(0.01)
        refused = await client.post("/v1/predict", json={"number": 11, "note": None})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "BTC564")
        gate.set()
        assert {(await one).status_code for one in asked} == {200}

    predictor = load(bundle, opener=lambda section: Gated(function=answer))
    app = create_app({"adder": predictor}, max_under_way=10)

    run_app(app, use)
    assert batches == [1, 9]


def test_a_backend_that_fails_as_a_whole_is_a_502_and_the_server_goes_on(bundle: Path) -> None:
    broken = [True]

    def answer(request: Request) -> str:
        if broken.pop() if broken else False:
            raise BackendError.of("BTC530", "the server has gone")
        return "Kind: odd\nTwice: 2"

    async def use(client: httpx.AsyncClient) -> None:
        await ready(client)
        body = {"number": 1, "note": None}
        failed = await client.post("/v1/predict", json=body)
        assert (failed.status_code, failed.json()["error"]["message"]) == (502, "the server has gone")
        assert (await client.post("/v1/predict", json=body)).status_code == 200

    run_app(create_app({"adder": load(bundle, opener=lambda section: ScriptedBackend(function=answer))}), use)


def test_after_a_bug_the_server_opens_its_model_anew(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened: list[ScriptedBackend] = []

    def answer(request: Request) -> str:
        if len(opened) == 1:
            raise LookupError("a bug")
        return "Kind: odd\nTwice: 2"

    def opener(_: Any) -> ScriptedBackend:
        opened.append(ScriptedBackend(function=answer))
        return opened[-1]

    async def use(client: httpx.AsyncClient) -> None:
        await ready(client)
        body = {"number": 1, "note": None}
        with pytest.raises(LookupError, match="a bug"):
            await client.post("/v1/predict", json=body)
        await ready(client)
        assert (await client.post("/v1/predict", json=body)).json() == {"kind": "odd", "twice": 2}

    run_app(create_app({"adder": load(bundle, opener=opener)}), use)
    assert len(opened) == 2
    assert "LookupError: a bug" in capsys.readouterr().err


def test_a_model_that_cannot_be_opened_anew_ends_the_server(bundle: Path) -> None:
    opened: list[ScriptedBackend] = []
    told: list[Exception] = []

    def answer(request: Request) -> str:
        raise LookupError("a bug")

    def opener(_: Any) -> ScriptedBackend:
        if opened:
            raise BackendError.of("BTC530", "the model has gone")
        opened.append(ScriptedBackend(function=answer))
        return opened[-1]

    async def use(client: httpx.AsyncClient) -> None:
        await ready(client)
        with pytest.raises(LookupError, match="a bug"):
            await client.post("/v1/predict", json={"number": 1})
        while not told:
            await asyncio.sleep(0.01)
        assert (await client.post("/v1/predict", json={"number": 1})).status_code == 503

    run_app(create_app({"adder": load(bundle, opener=opener)}, on_failure=told.append), use)
    assert "the model has gone" in str(told[0])


def test_serving_without_its_packages_says_what_to_install(bundle: Path) -> None:
    code = (
        "import sys\nsys.modules['fastapi'] = None\n"
        "import importlib.util as u\nreal = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'fastapi' else real(name, *a)\n"
        f"from bt_compiler.runtime.serve import serve\nfrom pathlib import Path\nserve([Path({str(bundle)!r})])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 1
    assert "BTC566" in done.stderr and 'pip install "bt-compiler[serve]"' in done.stderr
