"""Metrics: how good the program's output on one example is, against the example's label.

A metric sees an example and a trace and nothing of batches, models or means. What it cannot judge (no label, a label of
the wrong kind) is an `ExampleError` on that example, never a silent 0; a wrong answer is a plain 0.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Protocol

from bt_compiler.data.example import Example
from bt_compiler.diagnostics import Diagnostic, did_you_mean
from bt_compiler.engine.trace import Trace
from bt_compiler.errors import ExampleError, SpecError
from bt_compiler.spec.sections import MetricSection


class Metric(Protocol):
    """Judges one run of the program."""

    @property
    def kind(self) -> str:
        """Registered name, as in `accuracy`."""
        ...

    @property
    def binary(self) -> bool:
        """Whether scores are 0 or 1 alone; decides which interval a mean gets."""
        ...

    def score(self, example: Example, trace: Trace) -> float:
        """Score in [0, 1] of a trace that did not fail. Raises `ExampleError` where it cannot be judged."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelMetric:
    """A metric that compares one output with one label: which values, and how."""

    kind: str
    output: str
    label: str
    compare: Callable[[Any, Any], float]
    """(output, label) -> score; raises ValueError with a readable message where the two cannot be compared."""
    binary: bool = True

    def score(self, example: Example, trace: Trace) -> float:
        """See `Metric`. Raises `ExampleError` BTC353 (no such output or label) and BTC354 (cannot be compared)."""
        if trace.outputs is None or self.output not in trace.outputs:
            raise ExampleError("BTC353", f"the run gives no output `{self.output}`")
        if self.label not in example.labels:
            raise ExampleError("BTC353", f"the example has no label `{self.label}`")
        try:
            return self.compare(trace.outputs[self.output], example.labels[self.label])
        except ValueError as error:
            raise ExampleError("BTC354", f"metric `{self.kind}` cannot judge `{self.output}`: {error}") from error


def same_value(output: Any, label: Any) -> bool:
    """Equality as people mean it: texts without outer blanks, `1` as `1.0`, `true` never as `1`; lists in order."""
    if isinstance(output, str) and isinstance(label, str):
        return unicodedata.normalize("NFC", output).strip() == unicodedata.normalize("NFC", label).strip()
    if isinstance(output, bool) or isinstance(label, bool):
        return output is label
    if isinstance(output, list | tuple) and isinstance(label, list | tuple):
        return len(output) == len(label) and all(map(same_value, output, label))
    if isinstance(output, Mapping) and isinstance(label, Mapping):
        return output.keys() == label.keys() and all(same_value(output[key], label[key]) for key in output)
    return bool(output == label)


def normalize_answer(text: str) -> str:
    """SQuAD's normalisation: lower case, no ASCII punctuation, no articles, single blanks.

    Rajpurkar et al. 2016, official evaluation script; composed Unicode first, so that equal-looking texts are equal.
    """
    text = unicodedata.normalize("NFC", text).lower()
    text = text.translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


_NUMBER = re.compile(
    r"""(?:(?<![\w.)])[-−+](?=[$€£.\d]))?           # a sign, unless it is the minus between two terms
        (?:[$€£]\s?)?
        (?:\d{1,3}(?:,\d{3})+(?!\d) | \d+ | (?=\.\d))
        (?:\.\d+)?
        (?:[eE][-+]?\d+(?!\w))?""",
    re.VERBOSE,
)


def last_number(text: str) -> Decimal | None:
    """The last number in a text, thousands separators and currency signs read over; None without one."""
    found = None
    for match in _NUMBER.finditer(text):
        found = match.group()
    if found is None:
        return None
    return Decimal(re.sub(r"[,$€£\s]", "", found).replace("−", "-"))


def _number(value: Any) -> Decimal | None:
    if isinstance(value, bool):
        raise ValueError(f"`{str(value).lower()}` is no number")
    if isinstance(value, int | float):
        return Decimal(repr(value))
    if isinstance(value, str):
        return last_number(value)
    raise ValueError(f"a value of type `{_type_name(value)}` holds no number")


def _label_number(label: Any) -> Decimal:
    """The number of a label; GSM8K writes its solution, then `#### 42`."""
    number = _number(label.rpartition("####")[2] if isinstance(label, str) else label)
    if number is None:
        raise ValueError(f"the label {_quoted(label)} holds no number")
    return number


def _type_name(value: Any) -> str:
    names = {str: "str", bool: "bool", int: "int", float: "float", type(None): "null"}
    return names.get(type(value), "list" if isinstance(value, list | tuple) else "object")


def _quoted(value: Any) -> str:
    text = str(value)
    return f"`{text if len(text) <= 60 else text[:57] + '…'}`"


def _accuracy(options: Mapping[str, Any]) -> Callable[[Any, Any], float]:
    def compare(output: Any, label: Any) -> float:
        if isinstance(output, str) and isinstance(label, list | tuple):
            raise ValueError(
                "the label is a list and the output a text; `exact_match` takes a list of accepted answers"
            )
        return float(same_value(output, label))

    return compare


def _exact_match(options: Mapping[str, Any]) -> Callable[[Any, Any], float]:
    def text_of(value: Any, what: str) -> str:
        if isinstance(value, list | tuple | Mapping):
            raise ValueError(f"the {what} is of type `{_type_name(value)}`, exact match compares texts")
        return str(value).lower() if isinstance(value, bool) else str(value)

    def compare(output: Any, label: Any) -> float:
        accepted = label if isinstance(label, list | tuple) else [label]
        if not accepted:
            raise ValueError("the label is an empty list of accepted answers")
        if output is None or None in accepted:
            return float(output is None and None in accepted)
        given = normalize_answer(text_of(output, "output"))
        return float(any(given == normalize_answer(text_of(item, "label")) for item in accepted))

    return compare


def _numeric(options: Mapping[str, Any]) -> Callable[[Any, Any], float]:
    relative, tolerance = _tolerance(options.get("tolerance", 0))

    def compare(output: Any, label: Any) -> float:
        if output is None or label is None:
            return float(output is label)
        expected, given = _label_number(label), _number(output)
        if given is None:
            return 0.0
        if not (given.is_finite() and expected.is_finite()):
            return float(given == expected)
        return float(abs(given - expected) <= (abs(expected) * tolerance if relative else tolerance))

    return compare


def _tolerance(value: Any) -> tuple[bool, Decimal]:
    """(relative to the label?, width) of `0.5` or `"1%"`. Raises ValueError."""
    relative = isinstance(value, str) and value.strip().endswith("%")
    text = value.strip().removesuffix("%").strip() if isinstance(value, str) else repr(value)
    if isinstance(value, bool) or not re.fullmatch(r"\d+(\.\d+)?([eE][-+]?\d+)?", text):
        raise ValueError("expects a number of at least 0 (`0.01`) or a share of the label (`1%`)")
    return relative, Decimal(text) / (100 if relative else 1)


@dataclass(frozen=True, slots=True)
class _Kind:
    make: Callable[[Mapping[str, Any]], Callable[[Any, Any], float]]
    options: tuple[str, ...] = ()


_KINDS: Mapping[str, _Kind] = MappingProxyType(
    {
        "accuracy": _Kind(_accuracy),
        "exact_match": _Kind(_exact_match),
        "numeric": _Kind(_numeric, ("tolerance",)),
    }
)


def metric_kinds() -> tuple[str, ...]:
    """Registered kinds in order."""
    return tuple(sorted(_KINDS))


def build_metric(section: MetricSection) -> Metric:
    """The metric that a spec names. Raises SpecError BTC350 (kind), BTC351 (option), BTC352 (value of an option)."""
    kind = _KINDS.get(section.kind)
    if kind is None:
        raise SpecError.of(
            "BTC350",
            f"unknown metric kind `{section.kind}`",
            span=section.span,
            help=did_you_mean(section.kind, _KINDS, what="metric kinds"),
        )
    unknown = [name for name in section.options if name not in kind.options]
    if unknown:
        raise SpecError([_unknown_option(section, name, kind.options) for name in unknown])
    try:
        compare = kind.make(section.options)
    except ValueError as error:
        # Every kind has one option at most, so the message can only be about it.
        raise SpecError.of(
            "BTC352", f"option `{kind.options[0]}` of metric `{section.kind}` {error}", span=section.span
        ) from error
    return LabelMetric(kind=section.kind, output=section.output, label=section.label, compare=compare)


def _unknown_option(section: MetricSection, name: str, allowed: tuple[str, ...]) -> Diagnostic:
    return Diagnostic(
        code="BTC351",
        message=f"metric `{section.kind}` has no option `{name}`",
        span=section.span,
        help=did_you_mean(name, allowed, what="its options") if allowed else "it takes `output` and `label` alone",
    )
