"""Bundles over HTTP: typed `POST /v1/predict`, its OpenAPI description and a page to try it, health and readiness.

Loads no trainer, and no torch where the models are remote. Requests that come together are run together (`worker`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from copy import deepcopy
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from bt_compiler.canonical import unrepeated
from bt_compiler.engine.progress import Progress
from bt_compiler.engine.trace import Failure
from bt_compiler.errors import BackendError, BtcError
from bt_compiler.runtime.inputs import InputError, refuse_constant
from bt_compiler.runtime.openapi import PAGES, NamedTypes, page_docs, prediction_docs
from bt_compiler.runtime.outputs import finished
from bt_compiler.runtime.predictor import Predictor, load
from bt_compiler.runtime.routes import describe, failure_status, index_page, problem_detail
from bt_compiler.runtime.worker import Busy, Worker

if TYPE_CHECKING:
    from fastapi import FastAPI, Request, Response

MAX_BODY = 1 << 20
"""Bytes of a request body."""
MAX_UNDER_WAY = 256
"""Requests of one bundle that wait or run."""
STOP_WITHIN = 30
"""Seconds that requests under way have to end in once the server is told to stop."""
RETRY_AFTER = "1"
"""Seconds a client is asked to wait after a 503."""


class _BodyError(Exception):
    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


def serve(
    bundles: Sequence[Path],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    overrides: Sequence[str] = (),
    tools: Path | None = None,
    progress: Progress | None = None,
) -> None:
    """Serves until SIGTERM or Ctrl-C, then finishes what is under way; a second Ctrl-C or STOP_WITHIN seconds end that.

    Raises BundleError, SpecError, BackendError.

    One bundle is at `/v1/predict`; with several, each is at `/v1/<name>/predict`.
    """
    if missing := [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]:
        raise BackendError.of(
            "BTC566", f"serving needs the package `{missing[0]}`", help='`pip install "bt-compiler[serve]"`'
        )
    predictors = [load(path, overrides=overrides, progress=progress, tools=tools) for path in bundles]
    serve_predictors(by_name(predictors), host=host, port=port)


def serve_predictors(predictors: Mapping[str, Predictor], *, host: str, port: int) -> None:
    """As `serve`, with predictors that are loaded already. Raises what kept a model from opening."""
    import uvicorn

    _refuse_taken(host, port)
    failures: list[Exception] = []

    def stop(error: Exception) -> None:
        failures.append(error)
        server.should_exit = True

    app = create_app(predictors, on_failure=stop, on_ready=_log_ready)
    log: dict[str, Any] = deepcopy(uvicorn.config.LOGGING_CONFIG)
    log["handlers"]["access"]["stream"] = "ext://sys.stderr"  # stdout is for results
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="info",
        log_config=log,
        server_header=False,
        timeout_graceful_shutdown=STOP_WITHIN,
    )
    server = uvicorn.Server(config)
    # uvicorn raises the signal again when it has finished; a served SIGTERM is a success, not a death
    before = signal.signal(signal.SIGTERM, _quietly)
    try:
        server.run()
    finally:
        signal.signal(signal.SIGTERM, before)
    if failures:
        raise failures[0]


def _log_ready(name: str) -> None:
    """A line among those of uvicorn, which tells only that the server listens."""
    logging.getLogger("uvicorn.error").info("%s is ready: POST /v1/%s/predict", name, name)


def _refuse_taken(host: str, port: int) -> None:
    """Raises BackendError (BTC570) where nothing can listen there, before a model is opened."""
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, number) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or "that is no name of a machine"
        raise BackendError.of(
            "BTC570",
            f"cannot serve on {host}:{port}: {why}",
            help="`--host` is an address of this machine, `--port` one that is free (0 takes any)",
        ) from error


def by_name(predictors: Sequence[Predictor]) -> dict[str, Predictor]:
    """Predictors by bundle name; a name that comes again gets a number."""
    named: dict[str, Predictor] = {}
    for predictor in predictors:
        name = base = predictor.bundle.manifest.name
        number = 2
        while name in named:
            name, number = f"{base}-{number}", number + 1
        named[name] = predictor
    return named


def create_app(
    predictors: Mapping[str, Predictor],
    *,
    max_body: int = MAX_BODY,
    max_under_way: int = MAX_UNDER_WAY,
    on_failure: Callable[[Exception], None] | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> FastAPI:
    """The application. Models are loaded when it starts; until then `/readyz` and predictions answer 503.

    `on_failure` is told why a model could not be opened, `on_ready` the name of each bundle that takes requests now.
    """
    from fastapi import FastAPI
    from starlette.exceptions import HTTPException

    told = on_ready or (lambda name: None)
    workers = {
        name: Worker(one, limit=max_under_way, on_failure=on_failure, on_ready=partial(told, name))
        for name, one in predictors.items()
    }

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        for worker in workers.values():
            worker.start()
        with suppress(asyncio.CancelledError):  # a second Ctrl-C
            yield
        for worker in workers.values():
            worker.close()

    app = FastAPI(
        title=", ".join(predictors),
        version=", ".join(one.bundle.manifest.digest[:12] for one in predictors.values()),
        docs_url=None,
        redoc_url=None,
        lifespan=running,
        openapi_url="/openapi.json",
    )
    app.state.workers = workers
    app.add_exception_handler(HTTPException, _no_such_route)
    types = NamedTypes(predictors)
    for name, worker in workers.items():
        paths = [f"/v1/{name}/predict", *(["/v1/predict"] if len(workers) == 1 else [])]
        for path in paths:
            app.add_api_route(
                path,
                _predict_endpoint(worker, max_body),
                methods=["POST"],
                name=f"predict {name}",
                operation_id=path.strip("/").replace("/", "_"),
                **prediction_docs(name, predictors[name], types),
            )
    _add_pages(app, workers)
    app.openapi()["components"] = {"schemas": types.schemas}  # all else is FastAPI's own
    return app


def _predict_endpoint(worker: Worker, max_body: int) -> Callable[[Request], Any]:
    from fastapi import Request
    from fastapi.responses import JSONResponse

    async def predict(request: Request) -> Response:
        try:
            example = worker.predictor.example(_parsed(await _body(request, max_body)))
            trace = await worker.predict(example)
        except _BodyError as error:
            return _error(error.status, "BTC565", str(error))
        except InputError as error:
            return JSONResponse({"detail": problem_detail(error)}, status_code=422)
        except Busy as error:
            return _error(503, "BTC564", str(error), headers={"Retry-After": RETRY_AFTER})
        except asyncio.CancelledError:
            return _error(503, "BTC564", "the server is shutting down", headers={"Retry-After": RETRY_AFTER})
        except BtcError as error:
            return _error(502, error.diagnostics[0].code, error.diagnostics[0].message)
        found = finished(trace)
        if isinstance(found, Failure):
            return _error(failure_status(worker.predictor, found.code), found.code, found.message, node=found.node)
        return JSONResponse(found)

    predict.__annotations__["request"] = Request
    predict.__annotations__["return"] = JSONResponse
    return predict


async def _body(request: Request, limit: int) -> bytes:
    """The body, read no further than the limit. Raises _BodyError."""
    from starlette.requests import ClientDisconnect

    if (coding := request.headers.get("content-encoding", "identity")).lower() not in ("", "identity"):
        raise _BodyError(415, f"a body in `{coding[:40]}` is not read: send it without `Content-Encoding`")
    found = bytearray()
    try:
        async for block in request.stream():
            found += block
            if len(found) > limit:
                raise _BodyError(413, f"the body is larger than {limit} bytes")
    except ClientDisconnect as error:
        raise _BodyError(400, "the client went away before its body had come") from error
    return bytes(found)


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body.decode("utf-8"), parse_constant=refuse_constant, object_pairs_hook=unrepeated)
    except (ValueError, RecursionError) as error:
        raise _BodyError(400, f"the body is not JSON: {error}") from error


def _error(
    status: int, code: str, message: str, *, node: str | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    from fastapi.responses import JSONResponse

    body = {"error": {"code": code, "message": message, "node": node}}
    return JSONResponse(body, status_code=status, headers=headers and dict(headers))


def _no_such_route(request: Request, error: Exception) -> Response:
    """404 and 405 in the form of the other errors."""
    status = getattr(error, "status_code", 404)
    what = "no such path" if status == 404 else f"{request.method} is not answered there"
    return _error(
        status,
        "BTC565",
        f"{what}: `{request.url.path}`; `GET /` lists the bundles",
        headers=getattr(error, "headers", None),
    )


def _add_pages(app: FastAPI, workers: Mapping[str, Worker]) -> None:
    from fastapi.responses import HTMLResponse, JSONResponse

    async def root() -> JSONResponse:
        return JSONResponse({"bundles": [describe(name, worker.predictor) for name, worker in workers.items()]})

    async def health() -> JSONResponse:
        return JSONResponse({"status": "ok"})

    async def ready() -> JSONResponse:
        states = {name: "ready" if worker.ready else "loading" for name, worker in workers.items()}
        waiting = any(state != "ready" for state in states.values())
        return JSONResponse({"bundles": states}, status_code=503 if waiting else 200)

    page = index_page({name: worker.predictor for name, worker in workers.items()})

    async def docs() -> HTMLResponse:
        return HTMLResponse(page)

    for path, endpoint in zip(PAGES, (root, health, ready), strict=True):
        app.add_api_route(path, endpoint, methods=["GET"], response_class=JSONResponse, **page_docs(path))
        app.add_api_route(path, endpoint, methods=["HEAD"], include_in_schema=False, response_model=None)
    app.add_api_route("/docs", docs, methods=["GET"], include_in_schema=False, response_class=HTMLResponse)


def _quietly(number: int, frame: FrameType | None) -> None:
    """For a signal that has already been dealt with."""
