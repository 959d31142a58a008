from __future__ import annotations

from bt_compiler.engine.causes import most_frequent
from bt_compiler.engine.trace import Failure


def failures(*messages: str, code: str = "BTC522") -> list[Failure]:
    return [Failure(code=code, message=message) for message in messages]


def test_the_cause_of_most_failures_is_told_with_its_most_frequent_message() -> None:
    assert most_frequent(failures("no\n  label", "no\n  label")) == "2 × BTC522 no label"
    several = [*failures("lost", "lost", code="BTC501"), *failures("one", "two", "two", "three")]
    assert most_frequent(several) == "4 × BTC522, such as two"
    assert len(most_frequent(failures("x" * 1000))) < 320
