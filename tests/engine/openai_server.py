"""A server process that speaks OpenAI's API over a canned function, good and bad manners included.

What it does is chosen by a word in the last turn: `hang`, `flaky` (500, then well), `limited` (429 with Retry-After,
then well), `stubborn` (400 about structured outputs, there or not), `hidden` (an error inside a 200), `nonsense`,
`broken` (always 500), `long` (400), `filtered`, `empty`, `halfway` (half an answer, then silence), `garbled` (no gzip,
though it says so), `flagged` (403), `unrouted` (404), `locked` (401). Adapters by a word in their names: `late` is
loaded the second time (503), `busy` and `stumbling` answer from their second time on (429, 500), `unfit` is never
loaded (500), `slow` and `endless` after long, `sleeper` answers as the base model does. Paths: `/v1` (vLLM's ways),
`/secret/v1` (wants a key), `/plain/v1` (knows no structured outputs, no adapters, no list of models), `/newer/v1` (the
same, and no `max_tokens` either, as OpenAI's newer models), `/down/v1` (always 502), `/strict/v1` (always 400),
`/moved/v1` (redirects to `/v1`), `/walled/v1` (always 403, with the key that it was asked with), `/quota/v1` (two
answers a second, else 429 and `Retry-After: 0`), `/spent/v1` (three answers, then 429), `/pressed/v1` (429 to the first
`Hello.`), `/odd/v1` (a window of `abc`). `GET /log` tells what came in, `POST /forget` does to adapters what a restart
does. With a second argument the server's base model is another one.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

app = FastAPI()
log: list[dict[str, Any]] = []
seen: Counter[str] = Counter()
answered_at: defaultdict[str, list[float]] = defaultdict(list)
adapters: dict[str, str] = {}
loads: list[str] = []
active = {"now": 0, "most": 0}  # requests answered at once


def error(status: int, message: str, **headers: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message}}, status_code=status, headers=headers)


@app.get("/log")
def read_log() -> dict[str, Any]:
    return {"requests": log, "loads": loads, "adapters": adapters, "most": active["most"]}


@app.post("/forget")
def forget() -> dict[str, Any]:
    adapters.clear()
    return {}


@app.get("/v1/models")
@app.get("/secret/v1/models")
def models(request: Request) -> Any:
    if "secret" in request.url.path and request.headers.get("authorization") != "Bearer open-sesame":
        return error(401, "invalid key")
    return {"data": [{"id": "lm", "max_model_len": 4096}, {"id": "other", "max_model_len": 16}]}


@app.get("/odd/v1/models")
def odd_models() -> Any:
    return {"data": [{"id": "lm", "max_model_len": "abc"}]}


@app.post("/v1/load_lora_adapter")
async def load(request: Request) -> Response:
    body = await request.json()
    if body["lora_name"] in adapters:
        return error(400, f"The lora adapter '{body['lora_name']}' has already been loaded.")
    seen[body["lora_name"]] += 1
    loads.append(body["lora_name"])
    if "late" in body["lora_name"] and seen[body["lora_name"]] == 1:
        return error(503, "starting", **{"Retry-After": "0.1"})
    if "slow" in body["lora_name"]:
        await asyncio.sleep(0.3)
    if "unfit" in body["lora_name"]:
        return error(500, "LoRA is not enabled")
    if "endless" in body["lora_name"]:
        await asyncio.sleep(30)
    if "too-large" in body["lora_name"]:
        return error(400, "LoRA rank 512 is greater than max_lora_rank 32")
    await asyncio.sleep(0.05)
    adapters[body["lora_name"]] = body["lora_path"]
    return Response("Success")


@app.post("/down/v1/load_lora_adapter")
def load_nowhere() -> Response:
    return Response("bad gateway", status_code=502, media_type="text/plain")


@app.post("/{rest:path}/completions")
async def complete(rest: str, request: Request) -> Any:
    return await answer(rest, await request.json(), request.headers.get("authorization"))


async def answer(path: str, body: dict[str, Any], key: str | None) -> Any:
    if body.get("echo"):
        seen[f"echo {body['model']}"] += 1
        for word, status in (("busy", 429), ("stumbling", 500)):
            if word in body["model"] and seen[f"echo {body['model']}"] == 1:
                return error(status, "not now")
        return log_probabilities(body)
    chat = path.endswith("/chat")
    text = body["messages"][-1]["content"] if chat else body["prompt"]
    log.append({"path": path, "body": body})
    seen[text] += 1
    if path.startswith("secret") and key != "Bearer open-sesame":
        return error(401, "invalid key")
    if path.startswith("down"):
        return Response("bad gateway", status_code=502, media_type="text/plain")
    if path.startswith("walled"):
        return error(403, f"No access with {key}")
    if path.startswith(("quota", "spent")):
        recent = [at for at in answered_at[path] if path.startswith("spent") or at > time.monotonic() - 1]
        if len(recent) >= (3 if path.startswith("spent") else 2):
            return error(429, "quota exceeded", **{"Retry-After": "0"})
        answered_at[path].append(time.monotonic())
    if path.startswith("pressed") and text == "Hello." and not answered_at[path]:
        answered_at[path].append(time.monotonic())
        return error(429, "slow down")
    if path.startswith("moved"):
        return Response(status_code=307, headers={"Location": f"/{path.removeprefix('moved/')}/completions"})
    if path.startswith("strict"):
        return error(400, "top_p is not supported here")
    if path.startswith("newer") and "max_tokens" in body:
        why = "Unsupported parameter: 'max_tokens' is not supported with this model."
        return error(400, f"{why} Use 'max_completion_tokens' instead.")
    if path.startswith(("plain", "newer")) and ("structured_outputs" in body or "response_format" in body):
        return error(400, "Unrecognized request argument supplied: structured_outputs")
    if body["model"] != "lm" and body["model"] not in adapters:
        return error(404, f"The model `{body['model']}` does not exist.")
    return await manners(text, body, chat=chat)


def log_probabilities(body: dict[str, Any]) -> Any:
    """Of the prompt's words, one generated behind them; an adapter's are its own."""
    model, base = body["model"], f"base{''.join(sys.argv[2:])}"
    if model != "lm" and model not in adapters:
        return error(404, f"The model `{model}` does not exist.")
    count = len(body["prompt"].split())
    values = [random.Random(f"{base} {word}").uniform(-8, 0) for word in range(count)]
    if model != "lm" and "sleeper" not in model:
        own = random.Random(adapters[model] if "stale" in model else model)
        values = [value + own.uniform(-1, 1) for value in values]
    said = {"text": body["prompt"], "index": 0, "finish_reason": "length"}
    said["logprobs"] = {"token_logprobs": [None, *values[1:], -0.5]}
    return {"model": "lm" if "impostor" in model else model, "choices": [said]}


async def half_an_answer() -> AsyncIterator[bytes]:
    yield b'{"choices": [{"mess'
    await asyncio.sleep(30)


async def manners(text: str, body: dict[str, Any], *, chat: bool) -> Any:
    if "hang" in text:
        await asyncio.sleep(30)
    if "halfway" in text:
        return StreamingResponse(half_an_answer(), media_type="application/json")
    if "broken" in text or ("flaky" in text and seen[text] == 1):
        return error(500, "out of order")
    if "limited" in text and seen[text] == 1:
        return error(429, "slow down", **{"Retry-After": "0.2"})
    if "hidden" in text:
        return {"error": {"message": "engine died", "code": 500}}
    if "nonsense" in text:
        return Response("<html>hello", media_type="text/html")
    if "garbled" in text:
        return Response("no gzip", headers={"Content-Encoding": "gzip"})
    if "empty" in text:
        return {"choices": []}
    if "stubborn" in text:
        return error(400, "the schema is still not to my liking")
    for word, status, why in (
        ("flagged", 403, "Your input was flagged by moderation"),
        ("unrouted", 404, "No endpoints found matching your data policy"),
        ("locked", 401, "The key was revoked"),
    ):
        if word in text:
            return error(status, why)
    if "long" in text:
        return error(400, "This model's maximum context length is 4096 tokens")
    active["now"] += 1
    active["most"] = max(active["most"], active["now"])
    await asyncio.sleep(0.02)
    active["now"] -= 1
    stated = "Species: rose" if "ignores" in text and body["temperature"] == 0 else "Species: setosa"
    if body.get("response_format"):
        stated = '{"species": "setosa"}'
    if body["model"] != "lm":
        stated = "Species: virginica"
    return done(stated, body, "content_filter" if "filtered" in text else "stop", chat=chat)


def done(text: str, body: dict[str, Any], reason: str, *, chat: bool) -> dict[str, Any]:
    said = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    return {
        "model": "lm" if "impostor" in body["model"] else body["model"],
        "choices": [said | {"index": 0, "finish_reason": reason}],
        "usage": {"prompt_tokens": 20, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 16}},
    }


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", timeout_graceful_shutdown=1)
