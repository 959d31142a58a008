"""A module of the spec as a metric: all runs that wait for a score are judged in one batch of calls.

The judge runs as a program of its own on the prompt that the spec writes and on base weights, through the same engine
as everything: its completions are journalled and cached, and a judgement is a function of what is judged alone. Where
the data hold ratings of people, `agreement` says how far the judge is from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bt_compiler.data.example import Example, make_example
from bt_compiler.engine.metrics.metric import Scored
from bt_compiler.engine.trace import Agreement, Trace
from bt_compiler.errors import ExampleError
from bt_compiler.graph.judges import LABELS, Judge
from bt_compiler.graph.program import Constant
from bt_compiler.graph.zero_shot import spec_candidate
from bt_compiler.spec.types import Type

if TYPE_CHECKING:
    from bt_compiler.engine.executor import Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeMetric:
    """Scores runs by the verdict of a judge."""

    judge: Judge
    kind: str = "judge"

    @property
    def binary(self) -> bool:
        """See `Metric`."""
        type = self.judge.score.type
        return type.kind == "bool" or (type.kind == "enum" and len(type.values) == 2)

    def score_all(self, runs: Sequence[Scored], engine: Engine | None) -> list[float | ExampleError]:
        """See `BatchMetric`: `ExampleError` BTC353 (no label), BTC364 (no verdict on its scale)."""
        if engine is None:
            raise RuntimeError("a judge asks its model and got no engine")
        asked = [self._asked(run.example, run.trace.outputs or {}) for run in runs]
        traces = iter(self._traces([one for one in asked if isinstance(one, Example)], engine))
        return [self._verdict(next(traces)) if isinstance(one, Example) else one for one in asked]

    def agreement(self, examples: Sequence[Example], engine: Engine) -> Agreement | None:
        """What the judge says of outputs that the data hold (`Judge.rated`), on the examples that have them.

        Where an example has a label of the score's name too, that is a person's rating of them and compared. None
        where there is no such example.
        """
        names = [field.name for field in self.judge.rated]
        labelled = [one for one in examples if self.judge.is_rated(one.labels)]
        places = list(zip(self.judge.outputs, names, strict=True))
        asked = [(one, self._asked(one, {output: one.labels[name] for output, name in places})) for one in labelled]
        rated = [(example, one) for example, one in asked if isinstance(one, Example)]
        if not rated:
            return None
        verdicts = map(self._verdict, self._traces([one for _, one in rated], engine))
        found = [(example, score) for (example, _), score in zip(rated, verdicts, strict=True)]
        scores = [(example, score) for example, score in found if not isinstance(score, ExampleError)]
        name = self.judge.score.name
        said = [(score, example.labels.get(name)) for example, score in scores]
        people = [(score, on_scale(rating, self.judge.score.type)) for score, rating in said if rating is not None]
        pairs = [(score, person) for score, person in people if person is not None]
        return Agreement(
            examples=len(found),
            failed=len(found) - len(scores),
            mean=sum(score for _, score in scores) / len(scores) if scores else None,
            rated=len(pairs),
            off_scale=len(people) - len(pairs),
            equal=sum(abs(one - two) < 1e-9 for one, two in pairs) / len(pairs) if pairs else None,
            difference=sum(abs(one - two) for one, two in pairs) / len(pairs) if pairs else None,
            kappa=_kappa(pairs),
        )

    def _asked(self, example: Example, outputs: Mapping[str, Any]) -> Example | ExampleError:
        """What the judge is given for a run with these outputs."""
        given: dict[str, Any] = {}
        for item in self.judge.inputs:
            if isinstance(item.value, Constant):
                given[item.name] = item.value.value
                continue
            labels = item.value.step == LABELS
            values: Mapping[str, Any] = example.labels if labels else {**example.inputs, **outputs}
            if item.value.field not in values:
                what = "the example has no label" if labels else "the run gives no"
                return ExampleError("BTC353", f"{what} `{item.value.field}`, which the judge looks at")
            given[item.name] = values[item.value.field]
        return make_example(given, {})

    def _traces(self, asked: Sequence[Example], engine: Engine) -> list[Trace]:
        if not asked:
            return []
        program = self.judge.program
        return engine.run(program, spec_candidate(program), asked)

    def _verdict(self, trace: Trace) -> float | ExampleError:
        """The score of a judgement. What is outside the scale the parser refuses, as it does for every module."""
        name, type = self.judge.score.name, self.judge.score.type
        found = None if trace.outputs is None else on_scale(trace.outputs[name], type)
        if found is not None:
            return found
        why = "" if trace.error is None else f": {trace.error.message}"
        module = self.judge.module.name
        return ExampleError("BTC364", f"the judge `{module}` gave no `{name}` on its scale, {scale_of(type)}{why}")


def on_scale(value: Any, type: Type) -> float | None:
    """The value between 0 (worst) and 1 (best); None where it is not on the scale."""
    if type.kind == "bool":
        return float(value) if isinstance(value, bool) else None
    if type.kind == "enum":
        return type.values.index(value) / (len(type.values) - 1) if value in type.values else None
    low, high = type.minimum, type.maximum
    assert low is not None and high is not None
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        return None
    return (value - low) / (high - low)


def scale_of(type: Type) -> str:
    """The scale as a message says it."""
    if type.kind in ("int", "float"):
        return f"{type.minimum:g} to {type.maximum:g}"
    return ", ".join(f"`{value}`" for value in (type.values or ("false", "true")))


def _kappa(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Cohen's kappa (1960): agreement beyond chance; None where one verdict is all there is on both sides."""
    if not pairs:
        return None
    count = len(pairs)
    equal = sum(one == two for one, two in pairs) / count
    levels = {level for pair in pairs for level in pair}
    chance = sum(sum(one == level for one, _ in pairs) * sum(two == level for _, two in pairs) for level in levels) / (
        count * count
    )
    return None if chance == 1.0 else (equal - chance) / (1 - chance)
