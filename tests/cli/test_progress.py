"""What progress looks like, with a clock of the test's own."""

from __future__ import annotations

import pytest

from bt_compiler.cli.progress import TerminalProgress


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_plain_lines_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    progress = TerminalProgress(clock=clock, terminal=False)
    progress.begin("scoring dev", 40)
    for _ in range(40):
        clock.now += 1.0
        progress.advance()
    progress.say("dev: 0.5")
    progress.end()
    assert capsys.readouterr().err.splitlines() == [
        "  scoring dev 15/40 0:25 left",
        "  scoring dev 30/40 0:10 left",
        "dev: 0.5",
        "  scoring dev: 40 in 0:40",
    ]


def test_bar_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    progress = TerminalProgress(clock=clock, terminal=True)
    progress.begin("training", 4)
    clock.now += 2.0
    progress.advance(2, "loss 0.5")
    shown = capsys.readouterr().err
    assert "████████████░░░░░░░░░░░░ 2/4 0:02 left loss 0.5" in shown
    assert "\n" not in shown


def test_what_is_spared_is_neither_waited_for_nor_counted_as_done(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    progress = TerminalProgress(clock=clock, terminal=False)
    progress.begin("step 1 prompts", 100)
    clock.now += 20.0
    progress.advance(20)
    progress.spare(60, "runs left out")
    clock.now += 20.0
    progress.advance(20)
    progress.end()
    assert capsys.readouterr().err.splitlines() == [
        "  step 1 prompts 20/100 1:20 left",
        "  step 1 prompts 40/40 0:00 left runs left out",
        "  step 1 prompts: 40 in 0:40",
    ]


def test_what_comes_after_the_last_unit_is_not_of_its_time(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    progress = TerminalProgress(clock=clock, terminal=False)
    for label in ("index corpus.jsonl", "scoring"):
        progress.begin(label, 5)
        clock.now += 2.0
        progress.advance(5)
        clock.now += 6.0  # a model is opened
    progress.end()
    assert capsys.readouterr().err.splitlines() == ["  index corpus.jsonl: 5 in 0:02", "  scoring: 5 in 0:02"]
