"""Metrics over a whole run: what its steps retrieved, how long its answer is, what it cost. No model, no batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bt_compiler.data.example import Example
from bt_compiler.diagnostics import did_you_mean
from bt_compiler.engine.metrics.metric import OptionError, label_of, output_of
from bt_compiler.engine.metrics.texts import (
    accepted_answers,
    holds_words,
    normalization,
    normalize_answer,
    words_to_find,
)
from bt_compiler.engine.trace import Trace
from bt_compiler.errors import ExampleError

_PASSAGE = {"id", "title", "text", "score"}
_BY = ("title", "id")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalMetric:
    """How many of the gold passages of an example the run's steps found: a share, or all of them or nothing."""

    kind: str
    label: str
    by: str
    """`title` or `id`: what of a passage the label names."""
    full: bool
    """Whether only all of them count."""

    @property
    def binary(self) -> bool:
        """See `Metric`."""
        return self.full

    def score(self, example: Example, trace: Trace) -> float:
        """See `Metric`. Raises `ExampleError` BTC353 (no label) and BTC354 (a label that names no passage)."""
        compared = str.strip if self.by == "id" else _folded  # `1-12` and `11-2` are two passages
        gold = {compared(name) for name in _names(label_of(example, self.label), self.kind)}
        found = {compared(str(passage[self.by])) for passage in retrieved(trace)}
        share = len(gold & found) / len(gold)
        return float(share == 1.0) if self.full else share


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerInPassages:
    """Whether an accepted answer stands, as whole words, in a passage that some step retrieved."""

    kind: str
    label: str
    binary: bool = True

    def score(self, example: Example, trace: Trace) -> float:
        """See `Metric`. Raises `ExampleError` BTC353 (no label) and BTC354 (a label without a word)."""
        label = label_of(example, self.label)
        try:
            normalize = normalization(*accepted_answers(label))
            answers = words_to_find(label, f"`{self.kind}`", normalize)
        except ValueError as error:
            raise ExampleError("BTC354", f"metric `{self.kind}` cannot judge by `{self.label}`: {error}") from error
        texts = [normalize(f"{passage['title']} {passage['text']}") for passage in retrieved(trace)]
        return float(any(holds_words(text, answer) for text in texts for answer in answers))


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """1 up to `at_most` words, then `at_most` by the number of words: twice as long scores a half."""

    kind: str
    output: str
    at_most: float
    binary: bool = False

    def score(self, example: Example, trace: Trace) -> float:
        """See `Metric`. Raises `ExampleError` BTC353 where the run has no such output."""
        del example
        output = output_of(trace, self.output)
        return _within(0 if output is None else len(str(output).split()), self.at_most)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """1 up to `at_most` of what is counted over the run's LM calls, then `at_most` by the count.

    A completion counts the same whether it came from the cache or not.
    """

    kind: str
    count: str
    at_most: float
    binary: bool = False

    def score(self, example: Example, trace: Trace) -> float:
        """See `Metric`."""
        del example
        return _within(_COUNTS[self.count](trace), self.at_most)


def retrieved(trace: Trace) -> Iterator[Mapping[str, Any]]:
    """Every passage that a step other than an LM call gave, in order; one found twice comes twice."""
    for step in trace.steps:
        if step.module is not None:
            continue
        for value in (step.outputs or {}).values():
            items = value if isinstance(value, list | tuple) else ()
            yield from (item for item in items if isinstance(item, Mapping) and item.keys() >= _PASSAGE)


def by_of(options: Mapping[str, Any]) -> str:
    """The option `by`: `title` unless told otherwise. Raises OptionError."""
    by = options.get("by", "title")
    if by not in _BY:
        raise OptionError("by", f"does not know `{by}`: {did_you_mean(str(by), _BY, what='what passages go by')}")
    return str(by)


def count_of(options: Mapping[str, Any]) -> str:
    """The option `count`: `tokens` unless told otherwise. Raises OptionError."""
    count = options.get("count", "tokens")
    if count not in _COUNTS:
        raise OptionError("count", f"does not know `{count}`: {did_you_mean(str(count), _COUNTS, what='counts')}")
    return str(count)


def at_most_of(options: Mapping[str, Any]) -> float:
    """The option `at_most`, which has to be given. Raises OptionError."""
    value = options.get("at_most")
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        got = "is missing" if value is None else f"is `{value}`"
        raise OptionError("at_most", f"{got}; it is a number above 0")
    return float(value)


def _within(count: int, at_most: float) -> float:
    return min(1.0, at_most / count) if count else 1.0


def _tokens(trace: Trace) -> int:
    return sum(one.prompt_tokens + one.completion_tokens for step in trace.steps for one in step.completions)


_COUNTS: Mapping[str, Callable[[Trace], int]] = {
    "tokens": _tokens,
    "completion_tokens": lambda trace: sum(one.completion_tokens for step in trace.steps for one in step.completions),
    "calls": lambda trace: sum(len(step.completions) for step in trace.steps),
}


def _names(label: Any, kind: str) -> list[str]:
    names = list(label) if isinstance(label, list | tuple) else [label]
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise ExampleError("BTC354", f"metric `{kind}`: the label names no gold passages, but {label!r:.60}")
    return names


def _folded(name: str) -> str:
    """DSPy's comparison of titles: normalised; a name of nothing but signs stays as it is."""
    return normalize_answer(name) or name.strip()
