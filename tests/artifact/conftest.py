"""A finished compile made by hand: an iris program with demos, an adapter and the evidence that steps leave."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from bt_compiler.artifact import (
    Ancestor,
    BundleContents,
    Difference,
    ModelFacts,
    Prefix,
    SplitFacts,
    StepFacts,
    adapter_digest,
    canonical_adapter,
)
from bt_compiler.engine.request import Message, PromptText
from bt_compiler.engine.scoring import Confusion
from bt_compiler.engine.statistics import interval_of, paired_interval
from bt_compiler.engine.trace import Failure, Report
from bt_compiler.graph.candidate import SHARED, Adapter, Candidate, Demo, Prompt
from bt_compiler.graph.program import Binding, Call, Module, Program, Ref, Signature
from bt_compiler.spec.sections import Generation
from bt_compiler.spec.types import FLOAT, Field, Type

SPECIES = Type(kind="enum", values=("setosa", "versicolor", "virginica"))
INPUTS = tuple(Field(name=name, type=FLOAT) for name in ("petal_length", "petal_width"))
OUTPUTS = (Field(name="species", type=SPECIES),)


def program() -> Program:
    signature = Signature(instructions="Name the species.", inputs=INPUTS, outputs=OUTPUTS)
    module = Module(name="classify", kind="predict", signature=signature, model="default", generation=Generation())
    call = Call(
        name="classify",
        module="classify",
        inputs=tuple(Binding(name=f.name, value=Ref(step=None, field=f.name), type=f.type) for f in INPUTS),
        outputs=OUTPUTS,
        hash="ab12",
    )
    out = (Binding(name="species", value=Ref(step="classify", field="species"), type=SPECIES),)
    return Program(name="iris", inputs=INPUTS, nodes=(call,), out=out, modules=(module,), retrievers=())


def report(split: str, share: float, n: int = 50, *, candidate: str = "c0", failures: int = 0) -> Report:
    rng = random.Random(f"{split}{share}")
    scores = [1.0 if rng.random() < share else 0.0 for _ in range(n)]
    return Report(
        candidate=candidate,
        split=split,
        scores=tuple((f"{split}{index:013d}", score) for index, score in enumerate(scores)),
        mean=sum(scores) / n,
        interval=interval_of(scores, True),
        failures=tuple(
            (f"{split}{index:013d}", Failure(code="BTC521", message="no answer")) for index in range(failures)
        ),
        calls=n,
        prompt_tokens=n * 310,
        completion_tokens=n * 4,
        seconds=3.5,
    )


def write_adapter(folder: Path, *, fill: float = 0.5, targets: tuple[str, ...] = ("v_proj", "q_proj")) -> Path:
    folder.mkdir(parents=True)
    save_file(
        {f"base.{name}.lora_A.weight": np.full((2, 4), fill, dtype=np.float32) for name in targets},
        folder / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "target_modules": list(targets)}
    noise = {"peft_version": "0.21.2", "base_model_name_or_path": "/home/someone/smol", "inference_mode": False}
    (folder / "adapter_config.json").write_text(json.dumps(config | noise))
    return folder


def evidence_of_prompts(seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    labels = ["zero-shot", "labelled", "bootstrapped", *(f"shuffle {number}" for number in range(1, 7))]
    candidates: list[dict[str, Any]] = []
    for place, label in enumerate(labels):
        scores = [float(rng.random() < 0.3 + 0.02 * place) for _ in range(35)]
        bounds = interval_of(scores, True)
        candidates.append(
            {
                "label": label,
                "id": f"{place:012x}",
                "demos": {"classify": min(place, 3)},
                "score": sum(scores) / 35,
                "interval": [bounds.low, bounds.high],
                "scores": {f"train{index:011d}": score for index, score in enumerate(scores)},
                "failures": 0,
            }
        )
    candidates[4] = {"label": "shuffle 2", "id": "4", "demos": {"classify": 3}, "same_as": "labelled"}
    chosen = max((one for one in candidates if "score" in one), key=lambda one: one["score"])["label"]
    return {
        "split": {"train": 15, "val": 35},
        "bootstrap": {"tried": 15, "accepted": 5, "failed": 0, "by_module": {"classify": 5}},
        "candidates": candidates,
        "chosen": chosen,
    }


def evidence_of_weights(sha256: str) -> dict[str, Any]:
    loss = [
        {
            "adapter": "shared",
            "step": step,
            "epoch": step / 12,
            "train": 2.0 / (1 + step / 8) + 0.05 * (step % 3),
            "validation": 2.0 / (1 + step / 9) + 0.1 if step % 12 == 0 else None,
        }
        for step in range(1, 97)
    ]
    return {
        "rows": {"self": 11, "sampled": 6, "gold": 33},
        "rows_by_module": {"classify": {"self": 11, "sampled": 6, "gold": 33}},
        "adapters": [{"name": "iris-step2-0f3a", "modules": ["classify"], "rows": 50, "pairs": 0, "sha256": sha256}],
        "loss": loss,
        "choice": [
            {"demos": False, "score": 0.94, "interval": [0.8, 0.98], "chosen": True},
            {"demos": True, "score": 0.91, "chosen": False},
        ],
    }


def contents_with(adapter_folder: Path) -> BundleContents:
    adapter = Adapter(
        name="iris-step2-0f3a",
        path=adapter_folder,
        base_model="org/smol",
        base_digest="d" * 64,
        rank=2,
        sha256=adapter_digest(adapter_folder),
    )
    demo = Demo(inputs={"petal_length": 4.7, "petal_width": 1.4}, outputs={"species": "versicolor"}, example="e1")
    prompt = Prompt(instructions="Name the species.", demos=(demo,))
    candidate = Candidate(
        id="c3",
        prompts={"classify": prompt},
        adapters={SHARED: adapter},
        parent="c2",
        origin="step 3 prompts: labelled",
    )
    values = lambda one: [score for _, score in one.scores]  # noqa: E731
    zero = {"dev": report("dev", 0.34), "test": report("test", 0.33)}
    shipped = {"dev": report("dev", 0.95, candidate="c3"), "test": report("test", 0.94, candidate="c3", failures=1)}
    prefixes = [
        ((), 0.34),
        (("prompts",), 0.4),
        (("prompts", "weights"), 0.92),
        (("prompts", "weights", "prompts"), 0.95),
    ]
    return BundleContents(
        spec_yaml="version: 1\nname: iris\n",
        spec_identity={"version": 1, "name": "iris"},
        program=program(),
        candidate=candidate,
        formats={"fields": "{{ instructions }}"},
        sent={
            "classify": PromptText(
                messages=(
                    Message(role="system", content="Name the species."),
                    Message(role="user", content="Petal length: 4.7 <script>alert(1)</script>"),
                ),
                shared=1,
            )
        },
        reports={"zero_shot": zero, "shipped": shipped},
        differences={
            split: Difference(
                mean=shipped[split].mean - zero[split].mean,
                interval=paired_interval(values(shipped[split]), values(zero[split]), True),
            )
            for split in ("dev", "test")
        },
        lineage=(
            Ancestor(id="c0", parent=None, origin="spec"),
            Ancestor(id="c2", parent="c0", origin="step 2 weights"),
            Ancestor(id="c3", parent="c2", origin="step 3 prompts: labelled"),
        ),
        data={name: SplitFacts(examples=50, digest=name[0] * 64) for name in ("train", "dev", "test")},
        seed=0,
        models={
            "default": ModelFacts(
                id="org/smol",
                engine="transformers",
                digest="d" * 64,
                dtype="float32",
                facts={"tier": "shared prefix", "threads": 2, "row_invariant": True},
            )
        },
        versions={"torch": "2.13.0", "transformers": "5.23.0"},
        strategy=("prompts", "weights", "prompts"),
        prefixes=tuple(
            Prefix(steps=steps, candidate=f"c{index}", report=report("dev", share), chosen=index == 2)
            for index, (steps, share) in enumerate(prefixes)
        ),
        steps=(
            StepFacts(index=1, kind="prompts", candidate="c1", evidence=evidence_of_prompts(1), seconds=95.2, calls=330,
                      prompt_tokens=90_000, completion_tokens=1400),
            StepFacts(index=2, kind="weights", candidate="c2", evidence=evidence_of_weights(adapter.sha256),
                      seconds=231.0, calls=80, cached_calls=12, prompt_tokens=20_000, completion_tokens=300),
            StepFacts(index=3, kind="prompts", candidate="c3", evidence=evidence_of_prompts(3), seconds=88.0, calls=330,
                      prompt_tokens=91_000, completion_tokens=1400),
        ),
        confusion=Confusion(
            classes=("setosa", "versicolor", "virginica"), counts=((17, 0, 0), (0, 15, 2), (0, 0, 15)), failed=(0, 0, 1)
        ),
        environment={"python": "3.11.2", "platform": "Linux x86_64", "processors": 2},
        seconds=655.0,
        created="2026-11-22T08:30:00Z",
    )  # fmt: skip


@pytest.fixture
def make_adapter(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str = "adapter", **settings: Any) -> Path:
        folder = write_adapter(tmp_path / "made" / name, **settings)
        canonical_adapter(folder, base_model="org/smol")
        return folder

    return make


@pytest.fixture
def evidence(make_adapter: Callable[..., Path]) -> BundleContents:
    """With all that the report plots."""
    return contents_with(make_adapter())


@pytest.fixture
def contents(evidence: BundleContents) -> BundleContents:
    """Without evidence, so that writing draws nothing and is quick."""
    return replace(evidence, steps=(), prefixes=(), confusion=None)


@pytest.fixture
def changed(contents: BundleContents) -> Callable[..., BundleContents]:
    """The same compile with some fields changed."""
    return lambda **fields: replace(contents, **fields)
