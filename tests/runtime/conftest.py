"""A bundle of a small two-module program, and predictors over the scripted engine."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bt_compiler.artifact import BundleContents, ModelFacts, SplitFacts, write_bundle
from bt_compiler.engine.backends.scripted import ScriptedBackend
from bt_compiler.engine.formats import load_format
from bt_compiler.engine.request import Request
from bt_compiler.errors import ExampleError
from bt_compiler.graph import lower, spec_candidate
from bt_compiler.runtime import Predictor, load
from bt_compiler.spec import build_sections, load_spec

SPEC = """\
version: 1
name: adder
model: {id: no/model, engine: scripted}
data: rows.csv
modules:
  add:
    signature:
      instructions: Say what kind of number it is.
      inputs: {number: int, note: str | null}
      outputs: {kind: {enum: [odd, even]}, twice: int}
metric: {kind: accuracy, output: kind}
"""


def answer(request: Request) -> str | ExampleError:
    """Even numbers fail where they are 13 or 666; `slow` in the note takes a moment."""
    text = request.prompt.messages[-1].content
    found = re.search(r"Number: (-?\d+)", text)
    assert found, text
    number = int(found.group(1))
    if "slow" in text:
        time.sleep(0.6)
    if number == 13:
        return ExampleError("BTC521", "the model gave no answer")
    return f"Kind: {'odd' if number % 2 else 'even'}\nTwice: {2 * number}"


def write_adder(folder: Path, *, spec: str = SPEC, **fields: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "adder.yaml"
    path.write_text(spec)
    (folder / "rows.csv").write_text("number,note,kind,twice\n1,,odd,2\n2,,even,4\n")
    loaded = load_spec(path)
    program = lower(loaded, build_sections(loaded))
    contents = {
        "spec_yaml": yaml.safe_dump(loaded.resolved(), sort_keys=False),
        "spec_identity": loaded.identity(),
        "program": program,
        "candidate": spec_candidate(program),
        "formats": {module.format: load_format(module.format).source for module in program.modules},
        "sent": {},
        "reports": {"zero_shot": {}, "shipped": {}},
        "data": {"train": SplitFacts(examples=2, digest="0" * 64)},
        "seed": 0,
        "models": {"default": ModelFacts(id="no/model", engine="scripted", digest="scripted", dtype="float32")},
    } | fields
    write_bundle(folder / "bundle", BundleContents(**contents))
    return folder / "bundle"


@pytest.fixture(scope="session")
def adder() -> Callable[..., Path]:
    """Writes the bundle under a folder."""
    return write_adder


@pytest.fixture(scope="session")
def adder_spec() -> str:
    """The spec that `adder` writes unless it is given another."""
    return SPEC


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_adder(tmp_path / "made")


@pytest.fixture
def backend() -> ScriptedBackend:
    return ScriptedBackend(function=answer, scramble=7)


@pytest.fixture
def predictor(bundle: Path, backend: ScriptedBackend) -> Iterator[Predictor]:
    with load(bundle, opener=lambda section: backend) as found:
        yield found


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Path]:
    return lambda **fields: write_adder(tmp_path / "other", **fields)
