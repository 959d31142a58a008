"""The tools that come with btc: they end by themselves, so they run in this process."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from bt_compiler.canonical import digest
from bt_compiler.errors import ExampleError

LONGEST = 500
"""Characters of an expression."""
_LARGEST = 1e100
_BINARY: Mapping[type, Callable[[float, float], float]] = MappingProxyType(
    {
        ast.Add: operator.add,
        ast.Sub: operator.sub,
        ast.Mult: operator.mul,
        ast.Div: operator.truediv,
        ast.FloorDiv: operator.floordiv,
        ast.Mod: operator.mod,
        ast.Pow: math.pow,
    }
)
_UNARY: Mapping[type, Callable[[float], float]] = MappingProxyType({ast.UAdd: operator.pos, ast.USub: operator.neg})


class Calculator:
    """Arithmetic on numbers with `+ - * / // % **` and brackets, in floating point; nothing else is an expression."""

    digest = digest(["calculator", 1])

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """`expression` -> `result`. Raises ExampleError BTC540."""
        text = str(inputs["expression"]).strip().replace("^", "**").replace("×", "*").replace("÷", "/")
        try:
            if len(text) > LONGEST:
                raise ValueError(f"it has more than {LONGEST} characters")
            result = _value(ast.parse(text, mode="eval").body)
        except (ValueError, SyntaxError, ArithmeticError, RecursionError, MemoryError) as error:
            why = "it is no arithmetic" if isinstance(error, SyntaxError | RecursionError | MemoryError) else error
            raise ExampleError("BTC540", f"`{text[:80]}` cannot be calculated: {why}") from error
        return {"result": result}

    def close(self) -> None:
        """Nothing runs."""


def _value(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return _bounded(float(node.value))
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return _bounded(_BINARY[type(node.op)](_value(node.left), _value(node.right)))
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        return _UNARY[type(node.op)](_value(node.operand))
    raise ValueError("it holds more than numbers and `+ - * / // % **`")


def _bounded(number: float) -> float:
    if not math.isfinite(number) or abs(number) > _LARGEST:
        raise ValueError("the numbers are too large")
    return number


class TextSplitter:
    """Cuts a text into chunks of whole words; no word is lost or said twice."""

    def __init__(self, words: int) -> None:
        self._words = words
        self.digest = digest(["split_text", 1, words])

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """`text` -> `chunks`, white space between words as one blank; none of an empty text."""
        words = str(inputs["text"]).split()
        return {"chunks": [" ".join(words[at : at + self._words]) for at in range(0, len(words), self._words)]}

    def close(self) -> None:
        """Nothing runs."""
