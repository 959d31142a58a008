"""Grammars on the way through decoding: forced tokens, budgets, ends."""

from __future__ import annotations

from pathlib import Path

from tiny_models import GRAMMAR, finish_all, open_model, request, save_model, trained_tokenizer

from bt_compiler.engine.backends.constraints import Grammars
from bt_compiler.engine.request import OutputGrammar
from bt_compiler.errors import ExampleError


def test_every_answer_is_well_formed_and_labels_cost_no_choice(tmp_path: Path) -> None:
    backend = open_model(save_model(tmp_path / "model"), tmp_path / "cache")
    backend.submit([request(str(index), f"question {index}", grammar=GRAMMAR, max_tokens=60) for index in range(8)])
    for result in finish_all(backend).values():
        reasoning, _, species = result.text.partition("\nSpecies: ")
        assert reasoning.startswith("Reasoning: ")
        assert species in ("setosa", "versicolor", "virginica")
        assert result.finish == "stop"


def test_a_text_field_ends_at_its_budget() -> None:
    tokenizer = trained_tokenizer()
    grammars = Grammars(tokenizer, vocab=len(tokenizer), stop_ids=frozenset({tokenizer.eos_token_id}))
    matcher = grammars.start(GRAMMAR)
    text = matcher.forced()
    within = len(text)
    while "\n" not in tokenizer.decode(text):
        allowed = grammars.allowed([matcher])[0].nonzero()[:, 0].tolist()
        # always a long word where one may be, never the end
        token = max(allowed, key=lambda item: (len(tokenizer.decode([item]).strip()), item))
        matcher.take(token)
        text += [token, *matcher.forced()]
        assert len(text) < 30
    closed = tokenizer.decode(text).index("\n")
    words = tokenizer(tokenizer.decode(text)[:closed], add_special_tokens=False).input_ids
    assert within < len(words)
    assert tokenizer.decode(text)[closed:] == "\nSpecies: "[: len(tokenizer.decode(text)) - closed]
    assert len([item for item in text if "\n" not in tokenizer.decode([item])]) - within <= 6 + len(
        tokenizer("Species:", add_special_tokens=False).input_ids
    )


def test_max_tokens_cuts_forced_tokens_too(tmp_path: Path) -> None:
    backend = open_model(save_model(tmp_path / "model"), tmp_path / "cache")
    backend.submit([request(str(count), "x", grammar=GRAMMAR, max_tokens=count) for count in (1, 2, 9)])
    results = finish_all(backend)
    assert {name: item.completion_tokens for name, item in results.items()} == {"1": 1, "2": 2, "9": 9}
    assert {item.finish for item in results.values()} == {"length"}


def test_a_grammar_without_a_choice_is_answered_without_the_model(tmp_path: Path) -> None:
    backend = open_model(save_model(tmp_path / "model"), tmp_path / "cache")
    backend.submit([request("a", "x", grammar=OutputGrammar(lark='start: "Species: setosa"'))])
    result = finish_all(backend)["a"]
    assert (result.text, result.finish) == ("Species: setosa", "stop")


def test_a_grammar_that_does_not_compile_fails_its_own_request(tmp_path: Path) -> None:
    backend = open_model(save_model(tmp_path / "model"), tmp_path / "cache")
    backend.submit([request("bad", "x", grammar=OutputGrammar(lark="start: nowhere")), request("good", "x")])
    results = finish_all(backend)
    assert isinstance(results["bad"], ExampleError)
    assert results["bad"].code == "BTC511"
    assert not isinstance(results["good"], ExampleError)
