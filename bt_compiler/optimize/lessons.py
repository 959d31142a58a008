"""What each adapter of a weights step learns: rows shared out among lessons, some kept for validation.

Knows rows and programs; nothing of training, nor of where rows come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bt_compiler.canonical import seed_of
from bt_compiler.data.example import content_of
from bt_compiler.engine.executor import Engine
from bt_compiler.engine.request import WeightHost, weight_host
from bt_compiler.errors import CompileError
from bt_compiler.graph.program import Module, Program
from bt_compiler.optimize.rows import Row, balance, deduplicate, trainable
from bt_compiler.spec.sections import WeightsSection


class Lesson(NamedTuple):
    """What one adapter learns."""

    key: str
    """Folder and name: a module, a model, or `shared`."""
    modules: tuple[str, ...]
    """Modules that the adapter will serve."""
    host: WeightHost
    rows: tuple[Row, ...]
    """Balanced: rare classes have copies."""
    validation: tuple[Row, ...]


def weight_hosts(program: Program, engine: Engine) -> dict[str, WeightHost]:
    """Trainable module -> the backend that lends its weights.

    Raises CompileError BTC406 for modules whose weights are not at hand, or where no module is to be trained.
    """
    hosts: dict[str, WeightHost] = {}
    distant: list[Module] = []
    for module in trainable(program):
        host = weight_host(engine.backends[module.model])
        if host is not None:
            hosts[module.name] = host
        else:
            distant.append(module)
    if distant or not hosts:
        what = ", ".join(f"`{m.name}` (model `{m.model}`, engine `{engine.backends[m.model].name}`)" for m in distant)
        raise CompileError.of(
            "BTC406",
            f"the weights of {what} are not at hand" if distant else "no module of the program may train its weights",
            help="use `engine: transformers` or `vllm` for these modules, say where their weights are (`weights`), "
            "keep them frozen with `train: [prompt]`, or take `weights` out of `optimize.strategy`"
            if distant
            else "put `weights` into the `train` of a module, or take it out of `optimize.strategy`",
        )
    return hosts


def validation_examples(examples: Sequence[str], share: float, seed: int) -> frozenset[str]:
    """Ids held out for validation: by hash, so that neither order nor neighbours decide; one at least is left over,
    and none is an exact copy of one that is.
    """
    count = max(0, min(int(len(examples) * share + 0.5), len(examples) - 1))
    ranked = sorted(examples, key=lambda id: (seed_of(seed, "validation", content_of(id)), content_of(id), id))
    learnt = {content_of(id) for id in ranked[count:]}
    return frozenset(id for id in ranked[:count] if content_of(id) not in learnt)


def plan_lessons(
    program: Program,
    rows: Mapping[str, Sequence[Row]],
    held_out: frozenset[str],
    hosts: Mapping[str, WeightHost],
    settings: WeightsSection,
    seed: int,
) -> list[Lesson]:
    """One lesson for every adapter that has rows: of all modules of one model, or of each module alone.

    A row is in the lesson of its own module and in no other.
    """
    groups: dict[str, tuple[str, ...]] = {}
    if settings.adapters == "per_module":
        groups = {name: (name,) for name in hosts}
    else:
        models = {program.module(name).model for name in hosts}
        for model in sorted(models):
            members = tuple(name for name in hosts if program.module(name).model == model)
            groups["shared" if len(models) == 1 else f"shared-{model}"] = members
    lessons: list[Lesson] = []
    for key, modules in groups.items():
        own = deduplicate(row for found in rows.values() for row in found if row.module in modules)
        learnt = tuple(row for row in own if row.example not in held_out)
        checked = tuple(row for row in own if row.example in held_out)
        if not learnt:
            learnt, checked = checked, ()
        if learnt:
            lessons.append(Lesson(key, modules, hosts[modules[0]], balance(learnt, seed), checked))
    return lessons
