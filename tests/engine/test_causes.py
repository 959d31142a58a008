from __future__ import annotations

from bt_compiler.engine.causes import most_frequent, tool_failures, tool_lines
from bt_compiler.engine.trace import Failure, Step, Trace


def failures(*messages: str, code: str = "BTC522") -> list[Failure]:
    return [Failure(code=code, message=message) for message in messages]


def test_the_cause_of_most_failures_is_told_with_its_most_frequent_message() -> None:
    assert most_frequent(failures("no\n  label", "no\n  label")) == "2 × BTC522 no label"
    several = [*failures("lost", "lost", code="BTC501"), *failures("one", "two", "two", "three")]
    assert most_frequent(several) == "4 × BTC522, such as two"
    assert len(most_frequent(failures("x" * 1000))) < 320


def test_failed_calls_are_counted_by_tool_and_message() -> None:
    def trace(*errors: str | None) -> Trace:
        steps = [Step(node=f"agent/{'stock' if error else 'calc'}", inputs={}, error=error) for error in errors]
        return Trace(example="e", steps=tuple(steps), outputs={})

    found = tool_failures([trace("no rug", None), trace("no rug", "no mat"), trace()])
    assert [(one.tool, one.message, one.calls) for one in found] == [("stock", "no rug", 2), ("stock", "no mat", 1)]
    assert tool_lines(found) == ["2 × stock: no rug", "1 × stock: no mat"]
    assert tool_lines(tool_failures([trace(*"abcdefg")]))[4:] == ["1 × stock: e", "2 more for other reasons"]
