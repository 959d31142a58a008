"""Exceptions that strike in the middle of a step: Ctrl-C, what a signal's handler raises, a bug."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import bt_compiler
from bt_compiler.artifact import ModelFacts
from bt_compiler.engine.backends.scripted import ScriptedBackend
from bt_compiler.engine.request import Request
from bt_compiler.errors import BackendError
from bt_compiler.runtime import Predictor, load

sys.path.insert(0, str(Path(__file__).parents[1] / "engine" / "backends"))
from tiny_models import open_model, save_model

OURS = str(Path(bt_compiler.__file__).parent)
POINTS = 30


@contextmanager
def calls(strike: int | None = None) -> Iterator[list[str]]:
    """The names of our functions that this thread calls; KeyboardInterrupt at the entry of that number."""
    seen: list[str] = []

    def told(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(OURS):
            seen.append(frame.f_code.co_name)
            if len(seen) == strike:
                raise KeyboardInterrupt

    sys.setprofile(told)
    try:
        yield seen
    finally:
        sys.setprofile(None)


@pytest.fixture
def embedded(adder: Callable[..., Path], adder_spec: str, tmp_path: Path) -> Callable[[], Predictor]:
    """Opens predictors over a random model in this process."""
    model = save_model(tmp_path / "model")
    spec = adder_spec.replace("no/model, engine: scripted", f"{model}, dtype: float32")
    digest = open_model(model, tmp_path / "cache").base_model()[1]
    facts = ModelFacts(id=str(model), engine="transformers", digest=digest, dtype="float32")
    bundle = adder(tmp_path / "made", spec=spec, models={"default": facts})
    return lambda: load(bundle, opener=lambda _: open_model(model, tmp_path / "cache"))


def test_nothing_half_done_lives_on_wherever_a_prediction_was_interrupted(embedded: Callable[[], Predictor]) -> None:
    asked = {"number": 7, "note": "the quick brown fox"}
    with embedded() as fresh, embedded() as predictor:
        fresh(number=1)
        with calls() as names:
            right = fresh.predict(asked)
        for point in range(POINTS):
            predictor(number=1)
            with pytest.raises(KeyboardInterrupt), calls(1 + point * len(names) // POINTS):
                predictor.predict(asked)
            assert predictor.predict(asked) == right


def test_nothing_half_done_lives_on_in_a_batch(embedded: Callable[[], Predictor]) -> None:
    rows = [{"number": number, "note": None} for number in range(6)]
    with embedded() as fresh, embedded() as predictor:
        fresh(number=1)
        with calls() as names:
            right = list(fresh.batch(rows))
        for point in range(8):
            predictor(number=1)
            with pytest.raises(KeyboardInterrupt), calls(1 + point * len(names) // 8):
                list(predictor.batch(rows))
            assert list(predictor.batch(rows)) == right


class Struck(ScriptedBackend):
    """Interrupted in its first `poll`, once something else has been submitted."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.polled, self.strike = threading.Event(), threading.Event()
        self.closed = False

    def poll(self, seconds: float | None = None) -> Any:
        self.polled.set()
        assert self.strike.wait(20)
        raise RuntimeError("half done")

    def close(self) -> None:
        self.closed = True


def answer(request: Request) -> str:
    return "Kind: odd\nTwice: 2"


def test_those_who_wait_for_the_interrupted_one_get_an_error_and_the_next_use_opens_anew(bundle: Path) -> None:
    struck = Struck(function=answer)
    backends: list[Any] = [struck, ScriptedBackend(function=answer)]
    predictor = load(bundle, opener=lambda _: backends.pop(0))
    with predictor, ThreadPoolExecutor(2) as pool:
        working = pool.submit(predictor.predict, {"number": 1})
        assert struck.polled.wait(20)
        session = predictor.open()
        ticket = session.submit(predictor.example({"number": 3}))
        waiting = pool.submit(session.wait, ticket)
        struck.strike.set()
        with pytest.raises(RuntimeError, match="half done"):
            working.result(timeout=20)
        with pytest.raises(BackendError, match=r"BTC572(.|\n)*was interrupted(.|\n)*ask the predictor again"):
            waiting.result(timeout=20)
        with pytest.raises(BackendError, match="BTC572"):
            session.submit(predictor.example({"number": 3}))
        assert predictor(number=1).kind == "odd" and struck.closed and not backends


def test_a_batch_of_a_predictor_that_was_closed_says_so(predictor: Predictor) -> None:
    rows = predictor.batch([{"number": number} for number in range(4)], window=2)
    assert next(rows)["outputs"]["twice"] == 0
    predictor.close()
    with pytest.raises(BackendError, match=r"BTC572(.|\n)*its predictor was closed"):
        list(rows)


def test_whoever_opens_may_close_in_the_midst_as_a_handler_of_a_signal_does(bundle: Path) -> None:
    def opened(_: Any) -> ScriptedBackend:
        predictor.close()
        return ScriptedBackend(function=answer)

    predictor = load(bundle, opener=opened)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(predictor, number=1).result(timeout=20).kind == "odd"


@pytest.mark.parametrize("rows", ["abc", {"number": 1}, b"{}"])
def test_one_input_in_place_of_many_is_refused_at_once(predictor: Predictor, rows: Any) -> None:
    with pytest.raises(TypeError, match=r"write `\[…\]` around a single one"):
        predictor.batch(rows)
