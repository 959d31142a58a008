"""`btc bench` on a real tiny LM and on an engine without weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

from answering import RuleBackend
from kill_resume import Place, prepare

from bt_compiler.compiler.bench import bench_spec
from bt_compiler.compiler.opening import Choices
from bt_compiler.engine.backends import open_backend
from bt_compiler.engine.progress import Silent
from bt_compiler.engine.request import Backend
from bt_compiler.spec.sections import ModelSection


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return prepare(tmp_path_factory.mktemp("place"), rows=12, epochs=2)


def test_the_command_measures_generating_and_training(place: Place) -> None:
    command = [sys.executable, "-m", "bt_compiler", "bench", str(place.spec), "--examples", "5", "--json"]
    env = {**os.environ, "BTC_CACHE": str(place.folder / "cache-bench")}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    (model,) = json.loads(done.stdout)["bench"]["models"]
    assert model["generating"]["calls"] == 5
    assert model["generating"]["shared_tokens"] < model["generating"]["prompt_tokens"]
    assert 0 < model["generating"]["of_bound"] < 1
    assert model["training"]["rows"] == 5
    assert 0 < model["training"]["of_bound"] < 1
    assert set(model["rates"]) == {"float32", "bfloat16"}
    assert not list((place.folder / "cache-bench").glob("completions*")), "nothing is cached"


def test_an_engine_without_weights_has_no_bound_and_no_training(place: Place) -> None:
    backend = RuleBackend(rule=lambda asked: "Kind: apple")
    found = bench_spec(place.spec, examples=4, cache=place.folder / "c", opener=lambda _section, _choices: backend)
    (model,) = found.models
    assert model.generating is not None
    assert (model.generating.calls, model.generating.of_bound) == (4, None)
    assert (model.training, dict(model.rates)) == (None, {})
    assert "tokens/s" in found.to_text()


def test_what_a_server_does_not_say_of_sharing_is_no_advice(place: Place) -> None:
    backend = RuleBackend(rule=lambda asked: "Kind: apple")
    served = ["model.engine=openai", "model.endpoints=[http://localhost:1/v1]", "optimize.strategy=[prompts]"]
    found = bench_spec(
        place.spec, overrides=served, examples=4, cache=place.folder / "c", opener=lambda _section, _choices: backend
    )
    (model,) = found.models
    assert model.generating is not None and model.generating.shared_tokens is None
    assert "reused" not in found.to_text() and "share little" not in found.to_text()


def test_servers_whose_weights_are_here_are_trained_here(place: Place) -> None:
    """Generating happens elsewhere, so that only training has a bound."""

    def opened(section: ModelSection, choices: Choices) -> Backend:
        backend = RuleBackend(rule=lambda asked: "Kind: apple")
        backend.weights = open_backend(section, cache_root=place.folder / "c", choices=choices, progress=Silent())
        return backend

    (model,) = bench_spec(place.spec, examples=4, cache=place.folder / "c", opener=opened).models
    assert model.generating is not None and model.generating.of_bound is None
    assert model.training is not None and 0 < model.training.of_bound < 1
