"""What one training run is a function of, as a value and as JSON: rows, settings, seed and what they start from.

A job goes to the processes of a launch by a file. Knows nothing of tensors and models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from bt_compiler.canonical import digest
from bt_compiler.graph.candidate import Adapter
from bt_compiler.optimize.batches import TokenRow
from bt_compiler.spec.sections import LaunchSection, PreferenceSection, WeightsSection

Precision = Literal["float32", "bfloat16", "float16"]
"""Of matrix products; what is trained and its optimiser are float32 whatever it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is learnt, and how: all that the bytes of an adapter depend on beside the weights it starts from."""

    rows: Sequence[TokenRow]
    validation: Sequence[TokenRow]
    settings: WeightsSection
    seed: int
    precision: Precision
    name: str
    """For people alone."""
    minutes: float | None = None
    """Time that the epochs have to fit; None: they may take any."""
    start: Adapter | None = None
    """Weights to go on from; None: fresh ones."""
    spread: str | None = None
    """Digest of how the work is spread over processes, which decides the order of sums; None: it is not."""

    def key(self, base_digest: str) -> str:
        """Of checkpoints and of the adapter that came of it."""
        facts = [base_digest, self.rows, self.validation, _settings(self.settings), self.seed, self.precision]
        facts += [self.start.sha256 if self.start else None]
        facts += [value for value in (self.minutes, self.spread) if value is not None]
        return digest(facts)

    def to_json(self) -> dict[str, Any]:
        """What `job_from_json` reads."""
        return asdict(self) | {
            "rows": [_row_to_json(row) for row in self.rows],
            "validation": [_row_to_json(row) for row in self.validation],
            "start": None if self.start is None else asdict(self.start) | {"path": str(self.start.path)},
        }


def job_from_json(document: Mapping[str, Any]) -> Job:
    """The job that `Job.to_json` wrote."""
    settings, start = dict(document["settings"]), document["start"]
    settings["sources"] = tuple(settings["sources"])
    if isinstance(settings["target_modules"], list):
        settings["target_modules"] = tuple(settings["target_modules"])
    for name, kind in (("preference", PreferenceSection), ("launch", LaunchSection)):
        settings[name] = None if settings[name] is None else kind(**settings[name])
    rows = {name: tuple(_row_from_json(row) for row in document[name]) for name in ("rows", "validation")}
    return Job(
        **{
            **document,
            **rows,
            "settings": WeightsSection(**settings),
            "start": None if start is None else Adapter(**{**start, "path": Path(start["path"])}),
        }
    )


def _row_to_json(row: TokenRow) -> list[Any]:
    return [row.ids, row.start, None if row.rejected is None else _row_to_json(row.rejected)]


def _row_from_json(written: Sequence[Any]) -> TokenRow:
    ids, start, rejected = written
    return TokenRow(tuple(ids), start, None if rejected is None else _row_from_json(rejected))


def _settings(settings: WeightsSection) -> list[Any]:
    """What of the settings training depends on."""
    modules = settings.target_modules
    return [
        settings.method,
        settings.r,
        settings.alpha,
        settings.dropout,
        settings.noise,
        modules if isinstance(modules, str) else sorted(modules),
        settings.epochs,
        settings.learning_rate,
        settings.batch,
        settings.warmup,
        settings.clip,
        settings.patience,
        None if settings.preference is None else [settings.preference.beta, settings.preference.nll],
        settings.part_tokens,
        settings.gradient_checkpointing,
        settings.quantize,
    ]
