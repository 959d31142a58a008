"""The weights step Θ: bootstrap fine-tuning on rows of the current candidate, of LoRA adapters or of all parameters.

Rows come from accepted traces and, where the program solves too little, from the other sources of `cold_start`; one
adapter is trained over all modules (multi-task), or one a module; the new weights are scored with the current prompts
and with the spec's, and the better goes on, ties to the shorter. Source: BootstrapFinetune in arXiv 2407.10930,
section 3. Knows no tensors: the trainer is imported when there is something to train.

Evidence of the step (JSON): `rows` {source: n}, each answer to a prompt once, however many pairs it is in;
`rows_by_module` {module: {source: n}}, `copies` n added by balancing, `start` "current" where that is asked for,
`examples` {train, with_rows, validation}, `tried` [{source, examples, solved}], `unseen` answers that no row shows
[{output, value, examples}], `precision`, `adapters` [{name, modules, method, rows, pairs, sha256}], `loss` [{adapter,
step, epoch, train, preferred, validation, probability}], `choice` [{demos, id, score, interval [low, high], tokens
{prompt, completion} an example, scores {example: score}, chosen}], with preference pairs `preference` {pairs,
examples, failed}, where some were `too_long` n rows left out, and `cut_short` [texts]: what a budget left out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from bt_compiler.canonical import seed_of
from bt_compiler.data.example import Example
from bt_compiler.engine.metrics import answer_labels
from bt_compiler.engine.request import WeightHost
from bt_compiler.engine.scoring import evaluate
from bt_compiler.engine.trace import Report
from bt_compiler.errors import CompileError
from bt_compiler.graph import candidate_id
from bt_compiler.graph.candidate import SHARED, Adapter, Candidate, Prompt
from bt_compiler.graph.program import Program
from bt_compiler.optimize.cold_start import Collected, Unseen, collect, start_of, unseen_values
from bt_compiler.optimize.fitting import fitting
from bt_compiler.optimize.inner import inner_split
from bt_compiler.optimize.labelled import label_names
from bt_compiler.optimize.lessons import Lesson, plan_lessons, validation_examples, weight_hosts
from bt_compiler.optimize.preferences import prefer
from bt_compiler.optimize.rows import deduplicate, trainable, without_demos
from bt_compiler.optimize.step import StepContext, StepResult
from bt_compiler.optimize.training_job import Precision
from bt_compiler.spec.sections import RowSource

if TYPE_CHECKING:
    from bt_compiler.optimize.checkpoint import LossPoint
    from bt_compiler.optimize.trainer import Training


class _Trained(NamedTuple):
    lesson: Lesson
    training: Training


def weights_step(context: StepContext, candidate: Candidate) -> StepResult:
    """Runs the step. Raises CompileError BTC401 where there is nothing to learn from, BTC402 to BTC408, BTC420
    to BTC423.
    """
    settings = context.settings.weights
    hosts = weight_hosts(context.program, context.engine)
    start = start_of(context, candidate)
    collected = _readable(context, collect(start), hosts)
    unseen = unseen_values(context, collected.rows)
    if collected.rows:
        _tell_missing(context, collected, unseen)
    pairs: Mapping[str, int] | None = None
    if settings.preference is not None and collected.rows:
        rows, pairs = prefer(start, collected.rows)
        collected = _readable(context, replace(collected, rows=rows), hosts)
    held_out = validation_examples(tuple(collected.rows), settings.validation, context.seed)
    lessons = plan_lessons(context.program, collected.rows, held_out, hosts, settings, context.seed)
    if not lessons:
        raise _nothing_to_learn(context, collected)
    precision = _precision(context)
    val = inner_split(context.train, context.settings.prompts, context.seed).val
    kinds = _kinds(context, candidate, len(val))
    keep = len(kinds) * len(val)
    trained = [_Trained(lesson, _train(context, candidate, lesson, precision, keep)) for lesson in lessons]
    adapters = _adapters(context.program, candidate, trained)
    choices = _choose(context, candidate, adapters, kinds, val)
    chosen = max(choices, key=lambda choice: choice[1].mean)[0]
    evidence = _evidence(context, collected, held_out, trained, choices, chosen)
    evidence["unseen"] = [one._asdict() for one in unseen]
    if collected.too_long:
        evidence["too_long"] = collected.too_long
    if pairs is not None:
        evidence["preference"] = dict(pairs)
    cut = [*(f"rows from {name}" for name in collected.left_out), *_cut_epochs(context, trained)]
    if len(kinds) == 1 and dict(candidate.prompts) != kinds[0]:
        cut.append("the new weights with demos")
    if cut:
        evidence["cut_short"] = cut
    return StepResult(candidate=chosen, kind="weights", evidence={**evidence, "precision": precision})


def _tell_missing(context: StepContext, collected: Collected, unseen: Sequence[Unseen]) -> None:
    """Says what no row teaches."""
    taught = {row.module for rows in collected.rows.values() for row in rows}
    for module in trainable(context.program):
        if module.name not in taught:
            context.progress.say(f"no row is of module `{module.name}`: what it should say is not learnt")
    for one in unseen:
        context.progress.say(
            f"no row shows `{one.output}: {one.value}`, the answer of {one.examples} train examples: it will hardly be "
            "learnt; a `teacher` may give some"
        )


def _readable(context: StepContext, collected: Collected, hosts: Mapping[str, WeightHost]) -> Collected:
    """Without the rows that are longer than the window of the model that should learn them; tells of them."""
    fit = fitting(collected.rows, context.program, hosts, context.engine)
    if fit.left_out:
        context.progress.say(f"left out {fit.left_out} rows that are longer than the model's context window")
    return replace(collected, rows=fit.rows, too_long=collected.too_long + fit.left_out)


def _precision(context: StepContext) -> Precision:
    """Measured once a compile: another answer on resuming would give another adapter."""
    from bt_compiler.optimize.trainer import fast_precision

    found: Precision = context.journal.memo("weights: precision of training", fast_precision)
    return found


def _train(context: StepContext, candidate: Candidate, lesson: Lesson, precision: Precision, keep: int) -> Training:
    """`keep`: runs of an example that have to fit the step's share after it."""
    from bt_compiler.optimize.trainer import train_adapter

    settings = context.settings.weights
    start = candidate.adapter_for(lesson.modules[0]) if settings.start == "current" else None
    context.progress.say(f"adapter `{lesson.key}`: {len(lesson.rows)} rows, {len(lesson.validation)} for validation")
    return train_adapter(
        host=lesson.host,
        rows=lesson.rows,
        validation=lesson.validation,
        settings=settings,
        seed=seed_of(context.seed, "train", lesson.key),
        folder=context.journal.step_folder(context.index) / f"train-{lesson.key}",
        name=_plain(f"step{context.index}-{lesson.key}"),
        progress=context.progress,
        start=start,
        precision=precision,
        minutes=context.budget.minutes(f"step {context.index} training of {lesson.key}", keep=keep),
    )


def _cut_epochs(context: StepContext, trained: Sequence[_Trained]) -> list[str]:
    """Trainings that neither their epochs nor their patience ended, but the time they were given; the budget is told.

    That follows from the losses, so that a resumed compile comes to the same.
    """
    asked, patience = context.settings.weights.epochs, context.settings.weights.patience
    found: list[str] = []
    for lesson, training in trained:
        done = training.history[-1].epoch
        best = max(
            (point for point in training.history if point.probability is not None), key=_probability, default=None
        )
        waited = patience is not None and best is not None and done - best.epoch >= patience
        if done < asked and not waited:
            context.budget.fell_short()
            found.append(f"{asked - done} of {asked} epochs of adapter {lesson.key}")
    return found


def _probability(point: LossPoint) -> float:
    return point.probability or 0.0


def _plain(name: str) -> str:
    """A name that servers and file systems take; `#` of a slot and letters beyond ASCII are written otherwise."""
    return re.sub(r"[^A-Za-z0-9_.-]", lambda found: "-" if found[0] == "#" else f"{ord(found[0]):x}", name)


def _adapters(program: Program, candidate: Candidate, trained: Sequence[_Trained]) -> dict[str, Adapter]:
    """One adapter under `SHARED` where it serves the whole program, else by module; untrained modules keep theirs."""
    everyone = {module.name for module in program.modules}
    if len(trained) == 1 and set(trained[0].lesson.modules) == everyone and len(everyone) > 0:
        key = SHARED if trained[0].lesson.key == "shared" else trained[0].lesson.modules[0]
        return {key: trained[0].training.adapter}
    before = {name: candidate.adapter_for(name) for name in everyone}
    adapters = {name: adapter for name, adapter in before.items() if adapter is not None}
    for lesson, training in trained:
        adapters |= dict.fromkeys(lesson.modules, training.adapter)
    return dict(sorted(adapters.items()))


def _kinds(context: StepContext, candidate: Candidate, val: int) -> list[Mapping[str, Prompt]]:
    """The prompts to score the new weights with, the shorter first, to win ties; alone where the budget ends."""
    kinds: list[Mapping[str, Prompt]] = [without_demos(context.program, context.zero_shot)]
    if dict(candidate.prompts) == kinds[0]:
        return kinds
    if not context.budget.allows(f"step {context.index} scoring with demos", 2 * val):
        context.progress.say("the new weights are scored without demos alone: with them does not fit the budget")
        return kinds
    return [*kinds, candidate.prompts]


def _choose(
    context: StepContext,
    candidate: Candidate,
    adapters: Mapping[str, Adapter],
    kinds: Sequence[Mapping[str, Prompt]],
    val: Sequence[Example],
) -> list[tuple[Candidate, Report]]:
    """The new weights with each kind of prompt, scored on the inner val; without the demo that an example itself gave,
    for demos of an earlier step come from all of train.
    """
    found: list[tuple[Candidate, Report]] = []
    for prompts in kinds:
        tuned = Candidate(
            id=candidate_id(prompts, adapters),
            prompts=prompts,
            adapters=adapters,
            parent=candidate.id,
            origin=f"step {context.index} weights",
        )
        context.progress.begin("scoring the new weights", len(val))
        with context.budget.measured(len(val)):
            report = evaluate(
                context.engine,
                context.program,
                tuned,
                val,
                context.metric,
                split="val",
                seed=context.seed,
                leave_own_demo_out=True,
                progress=context.progress,
            )
        found.append((tuned, report))
    return found


def _tokens(report: Report) -> dict[str, float]:
    """What one run costs on average, whether or not it came from a cache."""
    count = len(report.scores)
    return {
        "prompt": round(report.prompt_tokens / count, 1) if count else 0.0,
        "completion": round(report.completion_tokens / count, 1) if count else 0.0,
    }


def _more_sources(context: StepContext) -> list[RowSource]:
    """The sources that could give rows of this program: labels teach neither turns nor, unhinted, rationales."""
    kinds = {module.kind for module in trainable(context.program)}
    found: list[RowSource] = ["sampled"]
    found += ["gold"] if "predict" in kinds else []
    found += ["hinted"] if "chain_of_thought" in kinds else []
    return [*found, "teacher"]


def _lacking_labels(context: StepContext) -> list[str]:
    """Why labels teach modules nothing, where a source wanted them to."""
    sources = {"predict": "gold", "chain_of_thought": "hinted"}
    held = {name for example in context.train for name in example.labels}
    labels = answer_labels(context.metric, context.accept)
    return [
        f"`{source}` rows of module `{module.name}` need a label `{name}`, which the data does not have"
        for module, names in label_names(context.program, labels)
        if (source := sources.get(module.kind)) in context.settings.weights.sources
        for name in sorted(names - held)
    ]


def _nothing_to_learn(context: StepContext, collected: Collected) -> CompileError:
    settings = context.settings
    tried = [f"`{source}`: {solved} of {examples} examples" for source, examples, solved in collected.tried]
    tried += [f"`{source}` did not fit the budget" for source in collected.left_out]
    tried += _lacking_labels(context)
    tried += [f"{collected.too_long} rows are longer than the context window"] if collected.too_long else []
    sources = settings.weights.sources
    missing = [f"`{name}`" for name in _more_sources(context) if name not in sources]
    first = [] if "prompts" in settings.strategy[: context.index - 1] else ["put a `prompts` step first"]
    remedies = [
        "give a larger `--budget`" if collected.left_out else "",
        "use a model with a longer window" if collected.too_long else "",
        f"add {', '.join(missing)} to `optimize.weights.sources`" if missing else "",
        f"lower `optimize.accept.at_least` ({settings.accept.at_least:g})",
        f"raise `optimize.weights.samples` ({settings.weights.samples})"
        if "sampled" in sources or "hinted" in sources
        else "",
        ", or ".join([*first, "start from a stronger model"]),
    ]
    return CompileError.of(
        "BTC401",
        f"the weights step {context.index} has nothing to learn from: no row came of {len(context.train)} train "
        "examples",
        notes=tried,
        help="; ".join(remedy for remedy in remedies if remedy),
    )


def _evidence(
    context: StepContext,
    collected: Collected,
    held_out: frozenset[str],
    trained: Sequence[_Trained],
    choices: Sequence[tuple[Candidate, Report]],
    chosen: Candidate,
) -> dict[str, Any]:
    settings = context.settings.weights
    free = [module for module in context.program.modules if "prompt" in module.train]  # frozen prompts keep theirs
    unique = [row for lesson, _ in trained for row in deduplicate((*lesson.rows, *lesson.validation))]
    answers = {(row.module, row.prompt, row.completion): row for row in reversed(unique)}  # the first of each stays
    by_module: dict[str, Counter[str]] = {}
    for row in answers.values():
        by_module.setdefault(row.module, Counter())[row.source] += 1
    return {
        "rows": dict(sorted(Counter(row.source for row in answers.values()).items())),
        "rows_by_module": {module: dict(sorted(counts.items())) for module, counts in sorted(by_module.items())},
        "copies": sum(len(lesson.rows) + len(lesson.validation) for lesson, _ in trained) - len(unique),
        **({} if settings.start == "base" else {"start": settings.start}),
        "examples": {"train": len(context.train), "with_rows": len(collected.rows), "validation": len(held_out)},
        "tried": [tried._asdict() for tried in collected.tried],
        "adapters": [
            {
                "name": training.adapter.name,
                "modules": list(lesson.modules),
                "method": settings.method,
                "rows": len(lesson.rows),
                "pairs": sum(row.rejected is not None for row in lesson.rows),
                "sha256": training.adapter.sha256,
            }
            for lesson, training in trained
        ],
        "loss": [
            {"adapter": lesson.key, **asdict(point)} for lesson, training in trained for point in training.history
        ],
        "choice": [
            {
                "demos": any(tuned.prompts[module.name].demos for module in free),
                "id": tuned.id,
                "score": report.mean,
                "interval": [report.interval.low, report.interval.high],
                "tokens": _tokens(report),
                "scores": dict(report.scores),
                "chosen": tuned is chosen,
            }
            for tuned, report in choices
        ],
    }
