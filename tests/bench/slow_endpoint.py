"""An endpoint with an LM's latencies and none of its work: a server process that answers after a while.

It answers `SLOTS` requests at once, the others wait; a prefix that is new to it takes a while longer. What it says
depends on the prompt alone. `python tests/bench/slow_endpoint.py PORT SLOTS SECONDS`
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from typing import Any

import uvicorn
from fastapi import FastAPI, Request

KINDS = ("apple", "pear", "plum")
NEW_PREFIX = 0.5
"""How much longer the first answer to a prefix takes, as a share of the others' time."""

app = FastAPI()
slots = asyncio.Semaphore(int(sys.argv[2]) if len(sys.argv) > 2 else 16)
seconds = float(sys.argv[3]) if len(sys.argv) > 3 else 0.3
prefixes: set[str] = set()


@app.get("/v1/models")
def models() -> dict[str, Any]:
    return {"data": [{"id": "slow", "max_model_len": 4096}]}


@app.post("/v1/chat/completions")
async def complete(request: Request) -> dict[str, Any]:
    body = await request.json()
    turns = [turn["content"] for turn in body["messages"]]
    prefix = "\n".join(turns[:-1])
    anew = prefix not in prefixes
    prefixes.add(prefix)
    async with slots:
        await asyncio.sleep(seconds * (1 + NEW_PREFIX * anew))
    said = {"role": "assistant", "content": f"Kind: {answer(turns)}"}
    return {
        "model": body["model"],
        "choices": [{"index": 0, "message": said, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 4},
    }


def answer(turns: list[str]) -> str:
    """The kind that `fleet.py` gave the row, the likelier the more demos there are."""
    number = int(turns[-1].split("Size: ")[1].split()[0])
    luck = int(hashlib.sha256("\n".join(turns).encode()).hexdigest()[:8], 16) / 0xFFFFFFFF
    right = luck < 0.4 + 0.1 * len(turns)
    return KINDS[(number + (not right)) % 3]


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", timeout_graceful_shutdown=1)
