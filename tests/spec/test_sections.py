from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from bt_compiler.canonical import digest
from bt_compiler.errors import SpecError
from bt_compiler.spec import Field, Spec, Type, build_sections, load_spec, named_types, yaml_text
from bt_compiler.spec.sections import Generation, OptimizeSection, PromptsSection, WeightsSection

SPECS = Path(__file__).parents[2] / "specs"

SMALL = """\
version: 1
data: tickets.csv
modules:
  classify:
    signature: "text -> category"
metric: accuracy
"""

FULL = """\
version: 1
name: full
model:
  id: ./weights
  revision: "1e-4"
  generation: {max_tokens: 7}
models:
  large: {id: big, engine: openai, endpoints: [http://one/v1, http://two/v1], api_key: {env: KEY}, batch: 9}
data:
  train: {path: train.jsonl, limit: 10}
  dev: dev.jsonl
  test: sklearn:iris
  columns: {question: q}
  labels: {gold: "[str] | null"}
  limit: 99
types:
  Mood: {enum: ["no", "0o17", good]}
  Reply: {fields: {mood: Mood, text: {type: str, max_tokens: 20, description: what to say}}}
signatures:
  reply: {instructions: "Reply: be kind", inputs: {question: str, context: [Passage]}, outputs: {reply: Reply}}
retrievers:
  wiki: {kind: bm25, corpus: {path: corpus.jsonl, text: "{title}: {body}"}, k: 5, stemmer: english}
format: own.jinja
modules:
  answer: {signature: reply, kind: chain_of_thought, model: large, train: [prompt], format: json}
  sort: {signature: "text: str -> mood: Mood", generation: {temperature: 0.5}}
program:
  inputs: {question: str}
  steps:
    found: {retrieve: wiki, in: {query: $question}, k: 2}
    final: {call: answer, in: {question: $question, context: $found.passages}}
  out: {reply: $final.reply}
metric: {kind: exact_match, label: gold}
optimize:
  strategy: [weights]
  prompts: {candidates: 2, train: 3}
  weights: {target_modules: [q_proj], sources: [gold, teacher], teacher: large, patience: 2}
  accept: {metric: {kind: numeric, tolerance: 1%}, at_least: 0}
"""


def spec_of(folder: Path, text: str, name: str = "spec.yaml") -> Spec:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return load_spec(path)


@pytest.mark.parametrize(
    ("split", "fine"),
    [
        ("{train: 1, dev: 1, test: 1}", True),
        ("{train: 50, dev: 1}", True),
        ("{train: 1}", True),
        ("{train: 0.5, dev: 0.5}", True),
        ("{train: 1, dev: 0.5}", False),
        ("{train: 1.0, dev: 1.0}", False),
        ("{train: 50, dev: 0.5}", False),
    ],
)
def test_a_split_is_in_rows_or_shares(tmp_path: Path, split: str, fine: bool) -> None:
    spec = spec_of(tmp_path, SMALL.replace("tickets.csv", f"{{path: tickets.csv, split: {split}}}"))
    if fine:
        assert build_sections(spec).data.split
        return
    with pytest.raises(SpecError) as caught:
        build_sections(spec)
    assert [item.code for item in caught.value.diagnostics] == ["BTC126"]


def test_defaults(tmp_path: Path) -> None:
    sections = build_sections(spec_of(tmp_path, SMALL, "my tickets (2).yaml"))
    assert sections.name == "my-tickets-2"
    (model,) = sections.models
    assert (model.name, model.engine, model.generation) == ("default", "transformers", Generation())
    assert sections.data.path is not None
    assert sections.data.path.path == str(tmp_path / "tickets.csv")
    assert sections.data.split == {"train": 0.6, "dev": 0.2, "test": 0.2}
    assert (sections.metric.kind, sections.metric.output, sections.metric.label) == ("accuracy", "category", "category")
    assert sections.optimize == OptimizeSection()


def test_everything_that_is_written_arrives(tmp_path: Path) -> None:
    sections = build_sections(spec_of(tmp_path, FULL))
    small, large = sections.models
    assert (small.id, small.revision, small.generation.max_tokens) == (str(tmp_path / "weights"), "1e-4", 7)
    assert (large.endpoints, large.api_key_env, large.batch) == (("http://one/v1", "http://two/v1"), "KEY", 9)
    data = sections.data
    assert data.train is not None
    assert data.dev is not None
    assert data.test is not None
    assert (data.train.path, data.train.limit) == (str(tmp_path / "train.jsonl"), 10)
    assert (data.dev.limit, data.test.path) == (99, "sklearn:iris")
    texts = Type(kind="list", item=Type(kind="str"))
    assert data.labels == (Field(name="gold", type=Type(kind="union", options=(texts, Type(kind="null")))),)
    (wiki,) = sections.retrievers
    assert wiki.corpus is not None
    assert (wiki.k, wiki.corpus.path, wiki.options) == (5, str(tmp_path / "corpus.jsonl"), {"stemmer": "english"})
    assert (sections.metric.output, sections.metric.label) == ("reply", "gold")
    optimize = sections.optimize
    assert optimize.strategy == ("weights",)
    assert optimize.prompts == PromptsSection(candidates=2, train=3)
    assert optimize.weights == WeightsSection(
        target_modules=("q_proj",), sources=("gold", "teacher"), teacher="large", patience=2
    )
    assert optimize.accept.metric is not None
    assert optimize.accept.metric.options == {"tolerance": "1%"}
    assert optimize.accept.at_least == 0.0


@pytest.mark.parametrize(
    ("train", "strategy"),
    [
        ("[prompt, weights]", ("prompts", "weights", "prompts")),
        ("[prompt]", ("prompts",)),
        ("[weights]", ("weights",)),
        ("[]", ()),
    ],
)
def test_by_default_no_step_changes_what_is_frozen(tmp_path: Path, train: str, strategy: tuple[str, ...]) -> None:
    text = SMALL.replace('signature: "text -> category"', f'signature: "text -> category"\n    train: {train}')
    assert build_sections(spec_of(tmp_path, text)).optimize.strategy == strategy


@pytest.mark.parametrize("text", [SMALL, FULL])
def test_the_resolved_spec_loads_to_itself(tmp_path: Path, text: str) -> None:
    resolved = spec_of(tmp_path, text).resolved()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    again = spec_of(elsewhere, yaml_text(resolved), "other-name.yaml")
    assert again.resolved() == resolved
    assert build_sections(again).optimize == build_sections(spec_of(tmp_path, text)).optimize


def said(value: Any) -> Any:
    """A section as plain values, without the places in files."""
    if is_dataclass(value):
        shown = [field.name for field in fields(value) if field.name not in ("span", "spans")]
        return {name: said(getattr(value, name)) for name in shown}
    if isinstance(value, Mapping):
        return {key: said(inner) for key, inner in value.items()}
    return [said(inner) for inner in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("path", sorted(SPECS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_resolved_spec_means_the_same(tmp_path: Path, path: Path) -> None:
    spec = load_spec(path)
    again = spec_of(tmp_path, yaml_text(spec.resolved()))
    assert said(build_sections(again)) == said(build_sections(spec))


def test_the_resolved_spec_says_every_default(tmp_path: Path) -> None:
    resolved = spec_of(tmp_path, SMALL).resolved()
    assert resolved["modules"]["classify"] == {
        "kind": "predict",
        "signature": "text -> category",
        "generation": {"temperature": 0.0, "top_p": 1.0, "max_tokens": 128},
        "format": "fields",
        "train": ["prompt", "weights"],
    }
    assert resolved["optimize"]["weights"]["learning_rate"] == 1e-4
    assert resolved["metric"] == {"kind": "accuracy", "output": "category", "label": "category"}


def identity_of(folder: Path, text: str) -> str:
    folder.mkdir()
    return digest(spec_of(folder, text).identity())


def test_identity_does_not_know_where_things_lie(tmp_path: Path) -> None:
    here = identity_of(tmp_path / "here", FULL)
    moved = FULL.replace("./weights", "../weights").replace("corpus.jsonl", "c.jsonl").replace("http://one", "http://x")
    assert (
        identity_of(tmp_path / "there", moved.replace("env: KEY", "env: OTHER").replace("dev.jsonl", "d.jsonl")) == here
    )
    assert str(tmp_path) not in repr(spec_of(tmp_path, FULL).identity())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("limit: 10", "limit: 11"),
        ("Reply: be kind", "Reply: be short"),
        ("k: 2", "k: 3"),
        ("candidates: 2", "candidates: 3"),
        ("sklearn:iris", "sklearn:wine"),
        ("id: big", "id: bigger"),
        ('text: "{title}', 'text: "{id}'),
        ("columns: {question: q}", "columns: {question: r}"),
    ],
)
def test_identity_knows_what_matters(tmp_path: Path, old: str, new: str) -> None:
    assert old in FULL
    assert identity_of(tmp_path / "a", FULL) != identity_of(tmp_path / "b", FULL.replace(old, new))


def test_a_spec_of_remote_models_searches_prompts_alone_by_default(tmp_path: Path) -> None:
    remote = SMALL + "model: {id: m, engine: openai, endpoints: [http://localhost/v1]}\n"
    assert build_sections(spec_of(tmp_path, remote)).optimize.strategy == ("prompts",)


def test_weights_may_be_trained_where_only_a_frozen_module_is_remote(tmp_path: Path) -> None:
    sections = build_sections(spec_of(tmp_path, FULL))
    assert sections.optimize.strategy == ("weights",)
    with pytest.raises(SpecError) as caught:
        build_sections(spec_of(tmp_path, FULL.replace("train: [prompt]", "train: [prompt, weights]")))
    (item,) = caught.value.diagnostics
    assert item.code == "BTC125"
    assert item.span is not None
    assert item.span.line == FULL[: FULL.index("[weights]")].count("\n") + 1


def test_only_named_models(tmp_path: Path) -> None:
    sections = build_sections(spec_of(tmp_path, SMALL + "models: {first: a, second: {id: b}}\n"))
    assert [(model.name, model.id) for model in sections.models] == [("first", "a"), ("second", "b")]
    resolved = spec_of(tmp_path, SMALL + "models: {first: a, second: {id: b}}\n").resolved()
    assert resolved["modules"]["classify"]["model"] == "first"
    assert "model" not in resolved


def test_types_may_refer_to_later_ones(tmp_path: Path) -> None:
    types = named_types(spec_of(tmp_path, SMALL + "types: {A: {fields: {b: B}}, B: [C], C: {enum: [x]}}\n"))
    assert list(types) == ["A", "B", "C"]
    inner = types["A"].fields[0].type
    assert inner.name == "B"
    assert inner.item is not None
    assert inner.item.values == ("x",)


def test_a_folder_beside_the_spec_is_the_model(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    assert build_sections(spec_of(tmp_path, SMALL + "model: tiny\n")).models[0].id == str(tmp_path / "tiny")
    assert build_sections(spec_of(tmp_path, SMALL + "model: org/tiny\n")).models[0].id == "org/tiny"


def test_a_link_to_a_file_keeps_the_name_that_says_its_format(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "5f3c").write_text("message,category\n")
    (tmp_path / "linked.csv").symlink_to("blobs/5f3c")
    for written in ("linked.csv", "blobs/../linked.csv"):
        source = build_sections(spec_of(tmp_path, SMALL.replace("tickets.csv", written))).data.path
        assert source is not None and source.path == str(tmp_path / "linked.csv")


def test_a_folder_beside_the_spec_is_the_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "set").mkdir()
    for written, found in (
        ("hf://./set:train", f"hf://{tmp_path}/set:train"),
        ("hf://set[a]:train:10", f"hf://{tmp_path}/set[a]:train:10"),
        ("hf://../gone:train", f"hf://{tmp_path.parent}/gone:train"),
        ("hf://~/set:train", f"hf://{tmp_path}/home/set:train"),
        ("hf:///data/set:train", "hf:///data/set:train"),
        ("hf://owner/set[a]:train", "hf://owner/set[a]:train"),
        ("hf://owner/set", "hf://owner/set"),
    ):
        spec = spec_of(tmp_path, SMALL.replace("tickets.csv", f"'{written}'"))
        source = build_sections(spec).data.path
        assert source is not None and source.path == found
        assert (source.path in repr(spec.identity())) == (written == found and not found.startswith("hf:///"))


@pytest.mark.parametrize(
    "value",
    [
        "no",
        "1e-4",
        "0o17",
        "0x1F",
        "~",
        "null",
        "",
        " a ",
        "a: b",
        "# c",
        "é\u2028☃",
        "1_000",
        "12:30",
        "=",
        "<<",
        "a\nb",
        "\x07",
        "😀",
    ],
)
def test_texts_survive_the_dump(tmp_path: Path, value: str) -> None:
    from bt_compiler.diagnostics import Source
    from bt_compiler.spec.tree import plain
    from bt_compiler.spec.yaml import parse_yaml

    document: dict[str, Any] = {"key": value, "list": [value, value], "number": 1e-05}
    assert plain(parse_yaml(Source(name="x", text=yaml_text(document)))) == document
