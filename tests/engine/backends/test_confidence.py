"""How likely a label is, beside a plain computation by transformers, in every tier and whatever runs beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import open_model, request, save_adapter, save_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from bt_compiler.data import make_example
from bt_compiler.engine.cache import completion_from_json, completion_to_json, request_key
from bt_compiler.engine.executor import Engine
from bt_compiler.engine.formats import load_format
from bt_compiler.engine.request import Choices, Completion
from bt_compiler.engine.trace import Trace
from bt_compiler.graph import Program, lower, program_from_json, program_to_json, spec_candidate
from bt_compiler.runtime.inputs import InputCheck
from bt_compiler.spec import build_sections, json_schema_of_fields, load_spec

SPEC = """
version: 1
data: flowers.jsonl
modules:
  classify:
    kind: {kind}
    format: {format}
    generation: {{max_tokens: 6}}
    signature:
      instructions: Classify the iris flower by its four measurements.
      inputs: {{question: str}}
      outputs:
        sure: bool
        species: {{enum: [setosa, versicolor, virginica, setosa or virginica]}}
        likely: {{type: float, probability_of: species, description: how likely it is}}
        surely: {{type: float, probability_of: sure}}
metric: {{kind: accuracy, output: species}}
"""
QUESTIONS = [f"sepal length {n}, petal width {n % 3}" for n in range(6)]


def program_of(folder: Path, *, kind: str = "predict", format: str = "fields") -> Program:
    path = folder / "flowers.yaml"
    path.write_text(SPEC.format(kind=kind, format=format))
    spec = load_spec(path)
    return lower(spec, build_sections(spec))


def run(backend: Any, program: Program, questions: list[str]) -> list[Trace]:
    engine = Engine(backends={"default": backend})
    examples = [make_example({"question": question}, {}) for question in questions]
    return engine.run(program, spec_candidate(program), examples)


def plain(model: Any, tokenizer: Any, lead: list[int], texts: list[str], ending: list[int]) -> list[float]:
    """Probabilities of the texts behind `lead`, all their tokens counted; what they have in common cancels out."""
    found = []
    for text in texts:
        ids = [*tokenizer(text, add_special_tokens=False).input_ids, *ending]
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([lead + ids])).logits[0].log_softmax(dim=-1)
        found.append(sum(float(logits[len(lead) + place - 1, token]) for place, token in enumerate(ids)))
    return torch.tensor(found, dtype=torch.float64).softmax(dim=0).tolist()


@pytest.mark.parametrize("kind", ["predict", "chain_of_thought"])
@pytest.mark.parametrize("format", ["fields", "json"])
def test_it_is_what_plain_transformers_computes(kind: str, format: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    program = program_of(tmp_path, kind=kind, format=format)
    (module,) = program.modules
    traces = run(open_model(folder, tmp_path / "cache", dtype="float64", batch=4), program, QUESTIONS)
    backend = open_model(folder, tmp_path / "cache", dtype="float64")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    tokenizer, form = AutoTokenizer.from_pretrained(folder), load_format(format)
    end = [tokenizer.eos_token_id]
    for trace in traces:
        (step,) = trace.steps
        assert trace.outputs is not None and step.outputs is not None
        lead = list(backend.prompt_key(step.prompt)[1:])
        before = {name: step.outputs[name] for name in ("reasoning",) if name in step.outputs}
        surely = [form.completion(module, {**before, "sure": value}) for value in (False, True)]
        before["sure"] = step.outputs["sure"]
        values = module.signature.outputs[1].type.values
        likely = [form.completion(module, {**before, "species": value}) for value in values]
        if format == "json":
            surely, likely, ending = [one[:-1] for one in surely], [one[:-1] for one in likely], []
        else:
            surely, ending = [one + "\n" for one in surely], end
        expected = plain(model, tokenizer, lead, likely, ending)
        assert trace.outputs["likely"] == pytest.approx(expected[values.index(trace.outputs["species"])], rel=1e-3)
        expected = plain(model, tokenizer, lead, surely, [])
        assert trace.outputs["surely"] == pytest.approx(expected[int(trace.outputs["sure"])], rel=1e-3)
    assert len({trace.outputs["likely"] for trace in traces if trace.outputs}) > 2


def test_it_does_not_depend_on_neighbours_or_their_number(tmp_path: Path) -> None:
    folder, program = save_model(tmp_path / "model"), program_of(tmp_path)
    backend = open_model(folder, tmp_path / "cache")
    assert backend.facts()["row_invariant"]
    together = run(backend, program, QUESTIONS * 3 + ["another one altogether"])
    for index, question in enumerate(QUESTIONS):
        (alone,) = run(backend, program, [question])
        assert alone.outputs == together[index].outputs


@pytest.mark.parametrize("tier", ["expanded prefix KV", "generate"])
def test_every_tier_weighs(tier: str, tmp_path: Path) -> None:
    folder, program = save_model(tmp_path / "model"), program_of(tmp_path)
    first = run(open_model(folder, tmp_path / "cache", dtype="float64"), program, QUESTIONS[:3])
    other = run(open_model(folder, tmp_path / "cache", dtype="float64", tier=tier), program, QUESTIONS[:3])
    for one, two in zip(first, other, strict=True):
        assert one.outputs is not None and two.outputs is not None
        assert one.outputs["species"] == two.outputs["species"]
        assert one.outputs["likely"] == pytest.approx(two.outputs["likely"], rel=1e-3)


def test_a_request_that_is_cancelled_leaves_no_row_behind(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    backend = open_model(folder, tmp_path / "cache")
    adapter = save_adapter(tmp_path / "adapter", folder, backend.base_model()[1])
    choices = Choices(("Species: setosa", "Species: virginica"), True)
    weighed = [request(name, "x", adapter=one) for name, one in (("a", None), ("b", adapter), ("c", None))]
    asked = [
        type(one)(id=one.id, prompt=one.prompt, grammar=None, adapter=one.adapter, choices=choices) for one in weighed
    ]
    backend.submit(asked)
    backend.cancel(["c"])
    found = {}
    while finished := backend.poll():
        found |= {item.id: item.result for item in finished}
    assert set(found) == {"a", "b"} and not backend._weighings._waiting and not backend._weighings._owner
    assert found["b"].adapter == adapter.sha256 and found["a"].chances != found["b"].chances
    assert all(isinstance(one, Completion) and len(one.chances) == 2 for one in found.values())
    kept = completion_from_json(completion_to_json(found["a"]))
    assert kept == found["a"] and kept.cached
    plainly = type(weighed[0])(id="a", prompt=asked[0].prompt, grammar=None, adapter=None)
    assert request_key(backend, plainly) != request_key(backend, asked[0])


def test_it_is_in_outputs_and_schema_and_in_no_prompt(tmp_path: Path) -> None:
    program = program_of(tmp_path)
    (module,) = program.modules
    assert [item.name for item in program.out] == ["sure", "species", "likely", "surely"]
    assert [item.name for item in module.outputs] == ["sure", "species"]
    assert program_from_json(program_to_json(program)) == program
    schema = json_schema_of_fields([*module.outputs, *module.signature.confidences])["properties"]["likely"]
    assert schema == {"type": "number", "minimum": 0, "maximum": 1, "description": "how likely it is"}
    text = "".join(
        turn.content
        for turn in load_format("fields")
        .render(module, spec_candidate(program).prompts["classify"], {"question": "x"})
        .messages
    )
    assert "ikely" not in text and "urely" not in text
    assert InputCheck(program.inputs)
