from __future__ import annotations

import gc
import json
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from engine_parts import SPECIES, candidate_of, examples, module, single

from bt_compiler.canonical import digest
from bt_compiler.engine.backends import engine_names, open_backend
from bt_compiler.engine.backends.openai import OpenAIBackend, Patience
from bt_compiler.engine.backends.served_adapters import changes_nothing
from bt_compiler.engine.executor import Engine
from bt_compiler.engine.progress import Silent
from bt_compiler.engine.request import Message, PromptText, Request
from bt_compiler.errors import BackendError, BtcError, SpecError
from bt_compiler.graph.candidate import SHARED, Adapter
from bt_compiler.spec.sections import ModelSection
from bt_compiler.spec.types import STR, Type

QUICK = Patience(attempts=4, backoff=0.01, timeout=0.5)
LABEL = module({"text": STR}, {"species": SPECIES}, name="label")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with served() as url:
        yield url


@contextmanager
def served(*more: str) -> Iterator[str]:
    port = free_port()
    process = subprocess.Popen([sys.executable, str(Path(__file__).parent / "openai_server.py"), str(port), *more])
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(200):
            try:
                httpx.get(f"{url}/log")
                break
            except httpx.TransportError:
                assert process.poll() is None
                time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait()


def log(server: str) -> dict[str, Any]:
    return dict(httpx.get(f"{server}/log").json())


def run(backend: OpenAIBackend, *texts: str, of=LABEL, adapter: Adapter | None = None):
    program = single(of)
    candidate = replace(candidate_of(program), adapters={SHARED: adapter} if adapter else {})
    try:
        return Engine(backends={"default": backend}).run(
            program, candidate, examples([{"text": text} for text in texts])
        )
    finally:
        backend.close()


def opened(*urls: str, **settings: Any) -> OpenAIBackend:
    return OpenAIBackend(model="lm", endpoints=urls, **({"patience": QUICK} | settings))


def adapter(name: str) -> Adapter:
    return Adapter(name=name, path=Path("/tmp/x"), base_model="lm", base_digest="", rank=8, sha256=digest(name))


def test_a_program_runs_on_a_server(server):
    backend = opened(f"{server}/v1")
    assert backend.context_window == 4096
    (trace,) = run(backend, "hello one")
    assert trace.outputs == {"species": "setosa"}
    completion = trace.steps[0].completion
    assert (completion.prompt_tokens, completion.completion_tokens, completion.shared_tokens) == (20, 4, 16)
    body = log(server)["requests"][-1]["body"]
    assert body["structured_outputs"] == {"regex": "Species: (setosa|versicolor|virginica)"}
    assert [turn["role"] for turn in body["messages"]] == ["system", "user"]
    assert (body["temperature"], body["model"]) == (0.0, "lm")


def test_json_goes_as_a_response_format_and_lists_as_a_grammar(server):
    (trace,) = run(opened(f"{server}/v1"), "as json", of=replace(LABEL, format="json"))
    assert trace.outputs == {"species": "setosa"}
    schema = log(server)["requests"][-1]["body"]["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["species"]["enum"] == list(SPECIES.values)
    tagged = module({"text": STR}, {"tags": Type(kind="list", item=STR)})
    run(opened(f"{server}/v1"), "as grammar", of=tagged)
    assert log(server)["requests"][-1]["body"]["structured_outputs"]["grammar"].startswith('start: "Tags: "')


def test_plain_text_goes_to_completions(server):
    (trace,) = run(opened(f"{server}/v1"), "as text", of=replace(LABEL, format="completion"))
    assert trace.outputs == {"species": "setosa"}
    last = log(server)["requests"][-1]
    assert last["path"] == "v1"
    assert last["body"]["prompt"].endswith("Text: as text\n")


def test_a_server_without_structured_outputs_is_asked_without(server):
    backend = opened(f"{server}/plain/v1")
    traces = run(backend, "plain one", "plain two")
    assert backend.context_window is None
    assert [trace.outputs for trace in traces] == [{"species": "setosa"}] * 2
    assert backend.facts()["constraints_refused"] == ["regex"]


def test_a_server_that_wants_the_limit_under_its_other_name_gets_it(server):
    backend = opened(f"{server}/newer/v1", patience=Patience(attempts=1))
    traces = run(backend, "newer one", "newer two")
    assert [trace.outputs for trace in traces] == [{"species": "setosa"}] * 2
    body = log(server)["requests"][-1]["body"]
    assert ("max_tokens" in body, body["max_completion_tokens"] > 0) == (False, True)
    assert backend.facts()["constraints_refused"] == ["regex"]


def test_a_server_that_names_no_window_bounds_prompts_itself(server):
    traces = run(opened(f"{server}/plain/v1"), "word " * 9000, "long " * 9000)
    assert traces[0].outputs == {"species": "setosa"}
    assert traces[1].error.code == "BTC534"


def test_a_window_that_is_no_number_is_none(server):
    backend = opened(f"{server}/odd/v1")
    assert backend.context_window is None
    assert run(backend, "odd one")[0].outputs == {"species": "setosa"}


def test_what_is_refused_though_it_was_left_out_ends_the_example(server):
    backend = opened(f"{server}/plain/v1", patience=Patience(attempts=1))
    traces = run(backend, "stubborn", "plain three")
    assert (traces[0].error.code, traces[1].outputs) == ("BTC534", {"species": "setosa"})
    assert sum("stubborn" in str(one["body"]) for one in log(server)["requests"]) == 2


@pytest.mark.parametrize("word", ["flaky", "limited"])
def test_passing_troubles_are_tried_again(server, word):
    (trace,) = run(opened(f"{server}/v1", patience=Patience(attempts=3, backoff=0.01)), f"{word} once")
    assert trace.outputs == {"species": "setosa"}
    assert sum(word in str(one["body"]) for one in log(server)["requests"]) == 2


@pytest.mark.parametrize(
    ("word", "code", "said", "tries"),
    [
        ("broken", "BTC532", "status 500: out of order", 4),
        ("hidden", "BTC532", "an error with status 200: engine died", 4),
        ("nonsense", "BTC532", "not JSON: '<html>hello'", 4),
        ("empty", "BTC532", "no completion", 4),
        ("garbled", "BTC532", "cannot be read", 4),
        ("hang", "BTC532", "no answer within 0.5 s", 2),
        ("halfway", "BTC532", "no answer within 0.5 s", 2),
        ("long", "BTC534", "maximum context length is 4096", 1),
        ("filtered", "BTC534", "content_filter", 1),
        ("flagged", "BTC534", "status 403: Your input was flagged by moderation", 1),
        ("unrouted", "BTC534", "status 404: No endpoints found matching your data policy", 1),
    ],
)
def test_lasting_troubles_end_the_example_alone(server, word, code, said, tries):
    traces = run(opened(f"{server}/v1"), f"{word} forever", f"well beside {word[::-1]}")
    assert (traces[0].error.code, traces[0].outputs) == (code, None)
    assert said in traces[0].error.message
    assert traces[1].outputs == {"species": "setosa"}
    assert sum(f"{word} forever" in str(one["body"]) for one in log(server)["requests"]) == tries


@pytest.mark.parametrize(
    ("path", "said"),
    [("down", "502: bad gateway"), ("strict", "top_p is not supported"), ("moved", "/v1, and `endpoints` has to name")],
)
def test_a_server_that_answers_nothing_ends_the_run_instead_of_the_examples(server, path, said):
    for of in (LABEL, replace(LABEL, format="completion")):
        with pytest.raises(BackendError, match=r"BTC597(.|\n)*answers no request") as caught:
            run(opened(f"{server}/{path}/v1"), "one", "two", of=of)
        assert said in str(caught.value)


def test_a_server_that_refuses_access_says_why_and_the_key_is_not_in_it(server):
    with pytest.raises(BackendError, match=r"BTC529(.|\n)*status 403: No access with Bearer …") as caught:
        run(opened(f"{server}/walled/v1", api_key="open-sesame"), "one", "two")
    assert "sesame" not in str(caught.value)


def test_a_server_without_a_list_of_models_says_that_it_has_not_this_one(server):
    with pytest.raises(BackendError, match=r"BTC530(.|\n)*no model `elephant`: The model `elephant` does not exist"):
        run(OpenAIBackend(model="elephant", endpoints=[f"{server}/plain/v1"], patience=QUICK), "x")


def test_what_was_answered_before_the_run_ends_is_handed_out(server):
    backend = opened(f"{server}/v1")
    try:
        for number, word in enumerate(("well", "locked", "well again"), 1):
            prompt = PromptText(messages=(Message(role="user", content=word),))
            backend.submit([Request(id=word, prompt=prompt, grammar=None)])
            while vars(backend)["_ended"].qsize() < number:
                time.sleep(0.01)
        assert [one.id for one in backend.poll() or []] == ["well"]
        with pytest.raises(BackendError, match="BTC529"):
            backend.poll()
        assert [one.id for one in backend.poll() or []] == ["well again"]
    finally:
        backend.close()


def test_a_quota_is_waited_for_though_the_server_asks_for_no_wait(server):
    traces = run(opened(f"{server}/quota/v1", patience=Patience(backoff=0.02)), *[f"quota {n}" for n in range(6)])
    assert [trace.outputs for trace in traces] == [{"species": "setosa"}] * 6
    assert sum("quota" in one["path"] for one in log(server)["requests"]) < 60


def test_a_quota_that_is_spent_ends_the_run_instead_of_the_examples(server):
    with pytest.raises(BackendError, match=r"BTC597(.|\n)*status 429: quota exceeded"):
        run(opened(f"{server}/spent/v1", patience=Patience(waits=6, backoff=0.01)), *[f"spent {n}" for n in range(9)])
    assert sum("spent" in one["path"] for one in log(server)["requests"]) < 40


def test_a_broken_endpoint_beside_a_sound_one_ends_nothing(server):
    traces = run(opened(f"{server}/down/v1", f"{server}/v1", batch=4), *[f"beside {n}" for n in range(6)])
    assert [trace.outputs for trace in traces] == [{"species": "setosa"}] * 6


@pytest.mark.parametrize("path", ["v1", "pressed/v1"])
def test_an_example_alone_that_no_server_answers_is_the_only_one_to_fail(server, path):
    (trace,) = run(opened(f"{server}/{path}"), "broken alone")
    assert trace.error is not None and trace.error.code == "BTC532"


def test_an_answer_outside_the_grammar_is_asked_for_once_more(server):
    (trace,) = run(opened(f"{server}/v1"), "ignores constraints")
    assert trace.outputs == {"species": "setosa"}
    asked = [one["body"] for one in log(server)["requests"] if "ignores constraints" in str(one["body"])]
    assert [body["temperature"] for body in asked] == [0.0, 0.7]
    assert asked[0]["seed"] != asked[1]["seed"]


def test_several_endpoints_share_the_work_and_the_window_holds(server):
    backend = opened(f"{server}/v1", f"{server}/plain/v1", batch=4)
    traces = run(backend, *[f"share {n}" for n in range(24)])
    assert all(trace.error is None for trace in traces)
    came = [one["path"].split("/")[0] for one in log(server)["requests"] if "share" in str(one["body"])]
    assert min(came.count("v1"), came.count("plain")) >= 8
    assert log(server)["most"] <= 4


def test_a_dead_endpoint_leaves_the_work_to_the_others(server):
    backend = opened(f"http://127.0.0.1:{free_port()}/v1", f"{server}/v1", patience=Patience(attempts=6, backoff=0.01))
    traces = run(backend, *[f"survivor {n}" for n in range(6)])
    assert [trace.outputs for trace in traces] == [{"species": "setosa"}] * 6


def test_no_server_at_all_is_a_broken_configuration():
    with pytest.raises(BackendError) as caught:
        opened(f"http://127.0.0.1:{free_port()}/v1")
    assert caught.value.diagnostics[0].code == "BTC528"


def test_a_wrong_model_is_a_broken_configuration(server):
    with pytest.raises(BackendError, match=r"BTC530(.|\n)*no model `elephant`"):
        run(OpenAIBackend(model="elephant", endpoints=[f"{server}/v1"], patience=QUICK), "x")


def test_adapters_are_loaded_once_and_answer_under_their_name(server):
    tuned = adapter("tuned")
    traces = run(opened(f"{server}/v1"), *[f"tuned {n}" for n in range(6)], adapter=tuned)
    assert [trace.outputs for trace in traces] == [{"species": "virginica"}] * 6
    assert traces[0].steps[0].completion.adapter == tuned.sha256
    name = f"tuned-{tuned.sha256[:12]}"
    assert log(server)["adapters"][name] == "/tmp/x"
    again = run(opened(f"{server}/v1"), "tuned again", adapter=tuned)  # the server has it already
    assert again[0].outputs == {"species": "virginica"}


def test_adapters_to_hold_are_at_every_server_that_is_up_before_a_request(server):
    held, backend = adapter("held"), opened(f"{server}/v1", f"{server}/down/v1", f"http://127.0.0.1:{free_port()}/v1")
    backend.hold([held])
    assert f"held-{held.sha256[:12]}" in log(server)["adapters"]
    with pytest.raises(BackendError, match="max_lora_rank"):
        backend.hold([held, adapter("too-large")])
    assert run(backend, "held", adapter=held)[0].outputs == {"species": "virginica"}


@pytest.mark.parametrize(
    ("path", "name", "code", "said"),
    [
        ("v1", "too-large", "BTC531", "max_lora_rank"),
        ("plain/v1", "any", "BTC531", "status 404"),
        ("v1", "unfit", "BTC531", "status 500"),
        ("down/v1", "any", "BTC597", "status 502: bad gateway"),
        ("v1", "impostor", "BTC595", "answered as `lm`"),
        ("v1", "sleeper", "BTC595", "answers as the base model"),
    ],
)
def test_an_adapter_that_does_not_answer_is_never_taken_for_one_that_does(server, path, name, code, said):
    with pytest.raises(BackendError) as caught:
        run(opened(f"{server}/{path}"), "which", adapter=adapter(name))
    assert caught.value.diagnostics[0].code == code
    assert said in caught.value.diagnostics[0].message


@pytest.mark.parametrize("name", ["late", "busy", "stumbling"])
def test_an_adapter_is_loaded_and_proven_once_the_server_takes_it(server, name):
    traces = run(opened(f"{server}/v1"), *[f"{name} {n}" for n in range(4)], adapter=adapter(name))
    assert [trace.outputs for trace in traces] == [{"species": "virginica"}] * 4


def test_an_adapter_that_one_endpoint_does_not_load_now_answers_elsewhere(server):
    backend = opened(f"{server}/down/v1", f"{server}/v1", patience=Patience(attempts=6, backoff=0.01))
    traces = run(backend, *[f"elsewhere {n}" for n in range(6)], adapter=adapter("elsewhere"))
    assert [trace.outputs for trace in traces] == [{"species": "virginica"}] * 6


@pytest.mark.parametrize(("values", "allowed"), [([0.0, 0.0], True), ([0.0, 1e-9], False)])
def test_an_adapter_that_changes_nothing_answers_as_the_base_by_right(tmp_path, values, allowed):
    data = struct.pack("<2f", *values)
    header = json.dumps({"x.lora_B.weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, len(data)]}}).encode()
    (tmp_path / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
    assert changes_nothing(replace(adapter("sleeper"), path=tmp_path)) == allowed


def test_a_server_that_was_restarted_gets_its_adapters_again(server):
    tuned, backend = adapter("restarted"), opened(f"{server}/v1")
    program = single(LABEL)
    candidate = replace(candidate_of(program), adapters={SHARED: tuned})
    engine = Engine(backends={"default": backend})
    try:
        for number in range(3):
            rows = examples([{"text": f"restarted {number} {row}"} for row in range(4)])
            assert [trace.outputs for trace in engine.run(program, candidate, rows)] == [{"species": "virginica"}] * 4
            httpx.post(f"{server}/forget")
    finally:
        backend.close()


def test_endpoints_that_do_not_answer_alike_are_an_error(server, tmp_path):
    rows = [f"alike {number}" for number in range(16)]
    with served("other base") as other, pytest.raises(BackendError, match=r"BTC596(.|\n)*different models"):
        run(opened(f"{server}/v1", f"{other}/v1"), *rows, adapter=adapter("alike"))
    with served() as same:
        body = {"lora_name": f"stale-{adapter('stale').sha256[:12]}", "lora_path": "/old"}
        httpx.post(f"{same}/v1/load_lora_adapter", json=body)
        with pytest.raises(BackendError, match=r"BTC596(.|\n)*answer differently"):
            run(opened(f"{server}/v1", f"{same}/v1"), *rows, adapter=adapter("stale"))
        traces = run(opened(f"{server}/v1", f"{same}/v1"), *rows, adapter=adapter("alike"))
        assert [trace.outputs for trace in traces] == [{"species": "virginica"}] * 16


def test_a_full_set_of_weights_is_not_a_servers_to_load(server):
    with pytest.raises(BackendError) as caught:
        run(opened(f"{server}/v1"), "which", adapter=replace(adapter("whole"), rank=0))
    assert caught.value.diagnostics[0].code == "BTC409"


def section(**settings: Any) -> ModelSection:
    return ModelSection(name="default", id="lm", **({"engine": "openai"} | settings))


def open_section(one: ModelSection) -> Any:
    return open_backend(one, cache_root=Path("/nonexistent"), choices=lambda _, measure: measure(), progress=Silent())


def test_the_key_comes_from_the_environment_and_is_never_in_an_error(server, monkeypatch):
    secret = section(endpoints=(f"{server}/secret/v1",), api_key_env="BTC_TEST_KEY")
    monkeypatch.delenv("BTC_TEST_KEY", raising=False)
    with pytest.raises(BackendError, match="BTC533"):
        open_section(secret)
    monkeypatch.setenv("BTC_TEST_KEY", "wrong-and-private")
    with pytest.raises(BackendError, match="BTC529") as caught:
        open_section(secret)
    assert "wrong-and-private" not in str(caught.value)
    for unfit in ("open-sesame\nsecond line", "open–sesame", "  \n"):
        monkeypatch.setenv("BTC_TEST_KEY", unfit)
        with pytest.raises(BackendError, match="BTC533") as caught:
            open_section(secret)
        assert "sesame" not in str(caught.value)
    monkeypatch.setenv("BTC_TEST_KEY", "open-sesame\n")  # as files of secrets end
    backend = open_section(secret)
    assert run(backend, "with key")[0].outputs == {"species": "setosa"}
    shown = repr([backend.identity(), backend.facts(), vars(backend), vars(vars(backend)["_connections"])])
    assert "open-sesame" not in shown


@pytest.mark.parametrize(
    ("settings", "kind", "code", "help"),
    [
        ({"engine": "openal"}, SpecError, "BTC527", "did you mean `openai`?"),
        ({"engine": "gguf"}, SpecError, "BTC527", "engines: `openai`, `scripted`, `transformers`, `vllm`"),
        ({}, BackendError, "BTC527", "endpoints"),
        ({"engine": "scripted", "id": "/nowhere.json"}, BackendError, "BTC525", "schema_version"),
    ],
)
def test_what_cannot_be_opened_says_why(settings, kind, code, help):
    with pytest.raises(kind) as caught:
        open_section(replace(section(), **settings))
    assert isinstance(caught.value, BtcError)
    assert caught.value.diagnostics[0].code == code
    assert help in caught.value.diagnostics[0].help


def test_closing_does_not_wait_for_an_answer(server):
    backend = opened(f"{server}/v1", patience=Patience(timeout=60.0))
    prompt = PromptText(messages=(Message(role="user", content="hang for long"),))
    backend.submit([Request(id="1", prompt=prompt, grammar=None)])
    closer = threading.Thread(target=backend.close, daemon=True)
    closer.start()
    closer.join(10)
    assert not closer.is_alive()
    assert backend.poll() == []


@pytest.mark.parametrize(("name", "seconds"), [("endless", 0.0), ("slow-unfit", 0.6)])
def test_closing_while_an_adapter_is_loaded_says_nothing(server, caplog, name, seconds):
    backend = opened(f"{server}/v1", patience=Patience(timeout=60.0))
    prompt = PromptText(messages=(Message(role="user", content="which"),))
    backend.submit([Request(id="1", prompt=prompt, grammar=None, adapter=adapter(name))])
    while name not in str(log(server)["loads"]):
        time.sleep(0.01)
    backend.cancel(["1"])  # as where another endpoint's error ends the run
    time.sleep(seconds)
    backend.close()
    del backend
    gc.collect()  # asyncio tells of exceptions that nobody asked for when their task goes
    assert [record.message for record in caplog.records if record.name == "asyncio"] == []


def test_engines():
    assert engine_names() == ("openai", "scripted", "transformers", "vllm")
