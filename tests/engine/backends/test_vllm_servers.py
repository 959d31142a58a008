"""The `openai` engine on real vLLM servers: a compile that trains, adapters that are proven, a server that dies."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from tiny_models import GRAMMAR, request, save_adapter
from vllm_processes import Server, btc, servers, start_server, wait_until_up, write_spec, write_task

from bt_compiler.engine.backends.openai import OpenAIBackend, Patience
from bt_compiler.engine.request import Completion, Message, PromptText
from bt_compiler.errors import BackendError
from bt_compiler.graph.candidate import Adapter

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("servers")
    write_task(folder)
    return folder


@pytest.fixture(scope="module")
def two(place: Path) -> Iterator[list[Server]]:
    with servers(place / "model", "fruit-lm", 2) as started:
        yield started


def opened(*servers: Server, **settings: Any) -> OpenAIBackend:
    patience = Patience(attempts=6, backoff=0.2, timeout=120)
    return OpenAIBackend(
        model="fruit-lm", endpoints=[one.url for one in servers], **({"patience": patience} | settings)
    )


def tuned(place: Path, seed: int) -> Adapter:
    found = save_adapter(place / f"tuned-{seed}", place / "model", "base", seed=seed)
    return replace(found, sha256=f"{seed:064d}"[::-1])


def answers(backend: OpenAIBackend, asked: list[Any]) -> dict[str, Any]:
    results: dict[str, Any] = {}
    backend.submit(asked)
    while finished := backend.poll():
        assert not {one.id for one in finished} & set(results)
        results |= {one.id: one.result for one in finished}
    return results


def test_a_compile_trains_on_weights_at_hand_and_runs_on_both_servers(place: Path, two: list[Server]) -> None:
    endpoints = ", ".join(one.url for one in two)
    write_spec(place, f"id: fruit-lm, engine: openai, endpoints: [{endpoints}], weights: {place / 'model'}")
    ran = btc("compile", str(place / "fruit.yaml"), "-o", str(place / "bundle"), cache=place / "cache")
    assert ran.code == 0, ran.said
    manifest = json.loads((place / "bundle" / "manifest.json").read_text())
    assert manifest["strategy"] == ["prompts", "weights", "prompts"]
    for server in two:
        listed = httpx.get(f"{server.url}/models").json()["data"]
        assert any(one["id"].startswith("step2-shared") for one in listed)  # pushed to every endpoint
    asked = btc("run", str(place / "bundle"), "--input", '{"size": 3.2, "weight": 55.0}', cache=place / "cache")
    assert asked.code == 0, asked.said


def test_adapters_answer_under_their_own_names_and_the_base_is_left_alone(place: Path, two: list[Server]) -> None:
    backend = opened(*two)
    try:
        kinds = (None, tuned(place, 1), tuned(place, 2))
        asked = [
            replace(request(f"{kind} {row}", f"question {row}", max_tokens=12), adapter=kinds[kind])
            for row in range(8)
            for kind in range(3)
        ]
        together = answers(backend, asked)
        assert all(isinstance(one, Completion) for one in together.values()), together
        apart = {}
        for kind in range(3):
            apart |= answers(backend, [one for one in asked if one.id.startswith(f"{kind} ")])
        assert {id: one.text for id, one in together.items()} == {id: one.text for id, one in apart.items()}
        assert len({apart[f"{kind} 0"].text for kind in range(3)}) == 3
    finally:
        backend.close()


def test_a_server_without_lora_is_not_used_for_adapters(place: Path) -> None:
    server = start_server(place / "model", "fruit-lm", lora=False)
    try:
        wait_until_up(server)
        backend = opened(server)
        with pytest.raises(BackendError, match="BTC531"):
            answers(backend, [replace(request("x", "x"), adapter=tuned(place, 1))])
        backend.close()
    finally:
        server.kill()


def test_one_server_killed_half_way_and_started_again(place: Path, two: list[Server]) -> None:
    backend, adapter = opened(*two), tuned(place, 3)
    asked = [
        replace(request(str(row), f"number {row}", max_tokens=64), adapter=adapter, grammar=None) for row in range(160)
    ]
    counts: Counter[str] = Counter()
    results: dict[str, Any] = {}
    killer = threading.Timer(0.0, two[1].kill)
    try:
        backend.submit(asked)
        while finished := backend.poll():
            counts.update(one.id for one in finished)
            results |= {one.id: one.result for one in finished}
            if len(results) >= 20 and not killer.ident:
                killer.start()
        killer.join()
        assert set(counts.values()) == {1}
        assert len(counts) == 160
        assert all(isinstance(one, Completion) and one.adapter == adapter.sha256 for one in results.values())
        port = int(two[1].url.split(":")[2].split("/")[0])
        two[1] = start_server(place / "model", "fruit-lm", port=port)
        wait_until_up(two[1])
        alone = opened(two[1])
        first = answers(alone, asked[:4])
        assert [first[str(row)].text for row in range(4)] == [results[str(row)].text for row in range(4)]
        alone.close()
    finally:
        backend.close()


def test_a_restart_between_two_calls_is_not_noticed(place: Path, two: list[Server]) -> None:
    backend, adapter = opened(two[0]), tuned(place, 4)
    asked = [replace(request(str(row), f"again {row}", max_tokens=8), adapter=adapter) for row in range(4)]
    try:
        before = answers(backend, asked)
        port = int(two[0].url.split(":")[2].split("/")[0])
        two[0].kill()
        two[0] = start_server(place / "model", "fruit-lm", port=port)
        wait_until_up(two[0])
        after = answers(backend, asked)
        assert {id: one.text for id, one in before.items()} == {id: one.text for id, one in after.items()}
    finally:
        backend.close()


def test_constraints_hold_on_the_server(place: Path, two: list[Server]) -> None:
    backend = opened(two[0])
    prompt = PromptText(messages=(Message(role="user", content="which?"),))
    try:
        held = replace(request("x", "x", grammar=replace(GRAMMAR, regex="Species: (setosa|versicolor)")), prompt=prompt)
        assert answers(backend, [held])["x"].text in ("Species: setosa", "Species: versicolor")
        lark = answers(backend, [replace(held, grammar=GRAMMAR, max_tokens=96)])["x"].text
        assert lark.startswith("Reasoning: ")
        assert lark.endswith(("setosa", "versicolor", "virginica"))
    finally:
        backend.close()
