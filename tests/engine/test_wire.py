"""What a server's answers mean, whatever is in them."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from bt_compiler.engine.backends.wire import Again, read
from bt_compiler.engine.request import Completion, Message, PromptText, Request
from bt_compiler.errors import ExampleError

ASKED = Request(id="1", prompt=PromptText(messages=(Message(role="user", content="Which one?"),)), grammar=None)
URL = "http://there/v1/chat/completions"


def answered(content: str, status: int = 200, **headers: str) -> Completion | Again | ExampleError:
    response = httpx.Response(status, content=content, headers=headers, request=httpx.Request("POST", URL))
    return read(response, ASKED, "lm")


def completion(text: str | None = "setosa", reason: Any = "stop", refusal: str | None = None, **more: Any) -> str:
    """JSON in ASCII: what is no character is an escape."""
    message = {"content": text, "refusal": refusal}
    return json.dumps({"choices": [{"message": message, "finish_reason": reason}], **more})


def test_half_a_character_is_read_as_bytes_that_are_none_are() -> None:
    found = answered(completion("a \ud83d b \U0001f600"))
    assert isinstance(found, Completion)
    assert found.text == "a \ufffd b \U0001f600"


def test_half_a_character_in_what_a_server_says_is_wrong_can_be_written() -> None:
    for found in (
        answered(json.dumps({"error": "no \ud83d"}), 400),
        answered(json.dumps("no \ud83d"), 400),
        answered(json.dumps({"error": {"message": "no \ud83d"}})),
        answered(completion(reason="\ud83d")),
    ):
        why = found.why if isinstance(found, Again) else str(found)
        assert why.encode("utf-8")


def test_endless_brackets_are_asked_again() -> None:
    assert isinstance(answered("[" * 200_000), Again)
    assert isinstance(answered("[" * 200_000, 500), Again)


@pytest.mark.parametrize(
    "usage", [None, [], {"prompt_tokens": None}, {"prompt_tokens": float("inf")}, {"prompt_tokens": 0}]
)
def test_what_a_server_does_not_count_is_estimated(usage: Any) -> None:
    """Else a budget of tokens or money would never end."""
    found = answered(completion("setosa!", usage=usage))
    assert isinstance(found, Completion)
    assert (found.prompt_tokens, found.completion_tokens, found.shared_tokens) == (4, 3, 0)
    counted = answered(completion(usage={"prompt_tokens": 20, "prompt_tokens_details": {"cached_tokens": 16}}))
    assert isinstance(counted, Completion)
    assert (counted.prompt_tokens, counted.completion_tokens, counted.shared_tokens) == (20, 2, 16)


@pytest.mark.parametrize("there", ["https://there/v1/chat/completions", "https://there/v1"])
def test_a_redirect_says_where_it_leads(there: str) -> None:
    found = answered("", 307, location=there)
    assert isinstance(found, Again) and found.refused
    assert "to https://there/v1, and" in found.why


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        (None, "stop"),
        ("STOP", "stop"),
        ("eos_token", "stop"),
        ("stop_sequence", "stop"),
        ("end_turn", "stop"),
        ("MAX_TOKENS", "length"),
        ("model_length", "length"),
    ],
)
def test_servers_words_for_how_a_completion_ended(reason: str | None, finish: str) -> None:
    found = answered(completion(reason=reason))
    assert isinstance(found, Completion)
    assert found.finish == finish


@pytest.mark.parametrize("reason", ["content_filter", "tool_calls", "abort", {"type": "stop"}])
def test_a_completion_that_ended_otherwise_is_none(reason: Any) -> None:
    found = answered(completion(reason=reason))
    assert isinstance(found, ExampleError) and found.code == "BTC534"


@pytest.mark.parametrize(
    ("reason", "refusal", "said"),
    [
        ("content_filter", None, "content_filter"),
        ("stop", "I cannot \ud83d help", "I cannot \ufffd help"),
        ("length", "I cannot", "I cannot"),
    ],
)
def test_no_text_for_a_reason_fails_the_example_with_it(reason: str, refusal: str | None, said: str) -> None:
    found = answered(completion(None, reason, refusal))
    assert isinstance(found, ExampleError) and found.code == "BTC534"
    assert said in str(found)


def test_no_text_where_the_tokens_ran_out_is_a_completion_cut_short() -> None:
    found = answered(completion(None, "length", usage={"completion_tokens": 40}))
    assert isinstance(found, Completion)
    assert (found.text, found.finish, found.completion_tokens) == ("", "length", 40)


def test_no_text_for_no_reason_is_asked_for_again() -> None:
    assert answered(completion(None)) == Again(why="the answer has no text")
    assert answered('{"choices": [{"message": {}}]}') == Again(why="the answer has no text")
