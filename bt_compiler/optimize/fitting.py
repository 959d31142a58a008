"""Leaves out training rows that are longer than the context window: a prompt that can never be sent teaches nothing.

Knows rows and what encodes them; nothing of tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from bt_compiler.engine.executor import Engine
from bt_compiler.engine.request import WeightHost
from bt_compiler.graph.program import Program
from bt_compiler.optimize.rows import Row


class Fitting(NamedTuple):
    """What is left to learn from."""

    rows: dict[str, tuple[Row, ...]]
    """Example id -> rows, as given; examples that have none left are gone."""
    left_out: int
    """Rows that were too long."""


def fitting(
    rows: Mapping[str, tuple[Row, ...]], program: Program, hosts: Mapping[str, WeightHost], engine: Engine
) -> Fitting:
    """The rows whose prompt and completions fit the window of their module's model. `hosts`: by trainable module."""
    windows = {name: engine.backends[program.module(name).model].context_window for name in hosts}

    def fits(row: Row) -> bool:
        completions = (row.completion, *(() if row.rejected is None else (row.rejected,)))
        window, encode = windows[row.module], hosts[row.module].encode_row
        return window is None or all(len(encode(row.prompt, text)[0]) <= window for text in completions)

    kept = {example: tuple(row for row in found if fits(row)) for example, found in rows.items()}
    left_out = sum(len(rows[example]) - len(found) for example, found in kept.items())
    return Fitting({example: found for example, found in kept.items() if found}, left_out)
