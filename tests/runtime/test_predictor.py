from __future__ import annotations

import copy
import io
import json
import pickle
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from bt_compiler.artifact import ModelFacts, adapter_digest
from bt_compiler.cli.main import main
from bt_compiler.diagnostics import Source, Span
from bt_compiler.engine.backends.scripted import ScriptedBackend
from bt_compiler.engine.request import Request
from bt_compiler.errors import BackendError, BtcError, BundleError, ExampleError, SpecError, UsageError
from bt_compiler.graph.candidate import SHARED, Adapter
from bt_compiler.runtime import InputError, PredictionError, Predictor, load
from bt_compiler.runtime.inputs import Problem
from bt_compiler.spec import build_sections, load_spec


def test_outputs_are_typed_attributes_and_a_mapping(predictor: Predictor) -> None:
    outputs = predictor(number=3, note=None)
    assert outputs.kind == "odd" and outputs["twice"] == 6
    assert dict(outputs) == {"kind": "odd", "twice": 6}
    assert repr(outputs) == "Outputs(kind='odd', twice=6)"
    with pytest.raises(AttributeError, match="no output `sort`; outputs: kind, twice"):
        _ = outputs.sort


def test_a_predictor_shows_what_it_takes_and_gives(predictor: Predictor) -> None:
    assert repr(predictor) == "<Predictor adder(number: int, note: str | null) -> kind: enum(odd, even), twice: int>"
    manifest, folder = predictor.bundle.manifest, predictor.bundle.folder
    assert repr(predictor.bundle) == f"<Bundle adder {manifest.digest[:12]} in {str(folder)!r}>"


def test_outputs_can_be_copied_and_sent_to_another_process(predictor: Predictor) -> None:
    outputs = predictor(number=3, note=None)
    for same in (pickle.loads(pickle.dumps(outputs)), copy.deepcopy(outputs), copy.copy(outputs)):
        assert type(same) is type(outputs) and dict(same) == dict(outputs) and same.kind == "odd"


def of_all_kinds(kind: type[BtcError] = BtcError) -> Iterator[type[BtcError]]:
    yield kind
    for one in kind.__subclasses__():
        yield from of_all_kinds(one)


def test_every_error_can_be_copied_and_sent_to_another_process() -> None:
    kinds = {*of_all_kinds()} - {InputError}
    assert {PredictionError, BackendError, SpecError} < kinds
    span = Span.whole_line(Source(name="a.yaml", text="a: 1\n"), 1)
    errors: list[Any] = [
        kind.of("BTC500", "it is broken", help="mend it", span=span, notes=["in step `add`"]) for kind in kinds
    ]
    errors.append(InputError([Problem(path=("a", 1), message="it is wrong", kind="type")]))
    errors.append(ExampleError("BTC521", "it is empty"))
    for error in errors:
        for same in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
            assert type(same) is type(error) and str(same) == str(error) and vars(same) == vars(error)


@pytest.mark.parametrize(
    ("given", "messages"),
    [
        ({}, ["input `number` of type `int` is missing"]),
        ({"number": "x", "note": None}, ["input `number` expects `int`, got a string, `x`"]),
        ({"number": True, "note": None}, ["input `number` expects `int`, got a bool, `true`"]),
        ({"number": 1, "note": None, "nte": 1}, ["input `nte` is not known"]),
        ({"number": 1, "nte": 1}, ["input `nte` is not known"]),
        ({"numbr": 1, "note": None}, ["input `numbr` is not known, and `number` is missing"]),
        ({"note": "n", "more": 1}, ["input `more` is not known", "input `number` of type `int` is missing"]),
        ([1], ["the input is a list, not an object"]),
        (None, ["the input is null, not an object"]),
    ],
)
def test_wrong_inputs_name_the_field(predictor: Predictor, given: Any, messages: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        predictor.predict(given)
    assert isinstance(caught.value, InputError)
    assert [problem.message for problem in caught.value.problems] == messages
    assert {item.code for item in caught.value.diagnostics} == {"BTC562"}


def test_an_input_that_takes_null_may_be_left_out_as_it_may_of_rows(predictor: Predictor) -> None:
    assert dict(predictor(number=3)) == dict(predictor(number=3, note=None))
    assert list(predictor.batch([{"number": 3}])) == [{"outputs": {"kind": "odd", "twice": 6}}]
    assert predictor.check.schema["required"] == ["number"]
    assert predictor.output_schema["required"] == ["kind", "twice"]


def test_a_failed_example_raises_with_its_code_and_step(predictor: Predictor) -> None:
    with pytest.raises(PredictionError) as caught:
        predictor(number=13, note=None)
    assert caught.value.diagnostics[0].code == "BTC521"
    assert caught.value.diagnostics[0].notes == ("in step `add`",)


def test_another_base_model_is_refused_and_its_backend_closed(make_bundle: Callable[..., Path]) -> None:
    closed = []

    class Other(ScriptedBackend):
        def close(self) -> None:
            closed.append(True)

    facts = ModelFacts(id="no/model", engine="scripted", digest="d" * 64, dtype="float32")
    predictor = load(make_bundle(models={"default": facts}), opener=lambda section: Other(identity="e" * 64))
    with pytest.raises(BundleError) as caught:
        predictor(number=1, note=None)
    assert caught.value.diagnostics[0].code == "BTC558"
    assert closed == [True]


def tuned(folder: Path, value: float) -> Path:
    """An adapter of one number."""
    folder.mkdir(exist_ok=True)
    header = json.dumps({"x.lora_B.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    data = struct.pack("<Q", len(header)) + header + struct.pack("<f", value)
    (folder / "adapter_model.safetensors").write_bytes(data)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1}))
    return folder


@pytest.fixture
def tuned_bundle(bundle: Path, make_bundle: Callable[..., Path], tmp_path: Path) -> Path:
    folder = tuned(tmp_path / "one", 1.0)
    adapter = Adapter(
        name="one", path=folder, base_model="no/model", base_digest="x", rank=1, sha256=adapter_digest(folder)
    )
    candidate = replace(load(bundle).bundle.candidate, adapters={SHARED: adapter})
    return make_bundle(candidate=candidate)


class Holding(ScriptedBackend):
    """Keeps what it was told to hold."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.held: list[str] = []
        self.closed = False

    def hold(self, adapters: Sequence[Adapter]) -> None:
        self.held += [adapter.name for adapter in adapters]

    def close(self) -> None:
        self.closed = True


def test_adapters_are_loaded_when_the_bundle_is_opened(tuned_bundle: Path, bundle: Path) -> None:
    backend = Holding()
    with load(tuned_bundle, opener=lambda section: backend) as predictor:
        predictor.open()
        assert backend.held == ["one"] and not backend.requests
    plain = Holding()
    load(bundle, opener=lambda section: plain).open()
    assert plain.held == []


def test_an_adapter_that_changed_since_the_bundle_was_loaded_is_refused(tuned_bundle: Path) -> None:
    backend = Holding()
    predictor = load(tuned_bundle, opener=lambda section: backend)
    tuned(tuned_bundle / "adapters" / "one", 2.0)
    with pytest.raises(BundleError, match=r"BTC553(.|\n)*adapter `one` of bundle .* has changed since"):
        predictor.open()
    assert backend.closed and not backend.held
    shutil.rmtree(tuned_bundle)
    with pytest.raises(BundleError, match=r"BTC553(.|\n)*adapter_config\.json` cannot be read: No such file"):
        predictor.open()


def test_the_measured_dtype_is_used_again(make_bundle: Callable[..., Path], backend: ScriptedBackend) -> None:
    seen = []

    def opener(section: Any) -> ScriptedBackend:
        seen.append(section.dtype)
        return backend

    load(make_bundle(), opener=opener)(number=1, note=None)
    assert seen == ["float32"]


def test_overrides_reach_the_model(make_bundle: Callable[..., Path], backend: ScriptedBackend) -> None:
    seen = []

    def opener(section: Any) -> ScriptedBackend:
        seen.append(section.id)
        return backend

    load(make_bundle(), overrides=["model.id=other/copy"], opener=opener)(number=1, note=None)
    assert seen == ["other/copy"]


@pytest.mark.parametrize(
    "change", ["modules.add.signature.instructions=Guess.", "modules.add.format=json", "model.generation.temperature=1"]
)
def test_an_override_that_would_change_the_program_is_refused(make_bundle: Callable[..., Path], change: str) -> None:
    with pytest.raises(UsageError, match="BTC586"):
        load(make_bundle(), overrides=[change])


def test_a_spec_that_another_version_wrote_is_no_mistake_of_the_user(make_bundle: Callable[..., Path]) -> None:
    def unknown(spec: str) -> str:
        return spec + "sorcery: {wand: 1}\n"

    plain = load(make_bundle()).bundle.spec.read_text()
    newer = make_bundle(spec_yaml=unknown(plain), versions={"bt-compiler": "99.1.0"})
    for overrides in ([], ["model.batch=4"]):
        with pytest.raises(BundleError, match=r"BTC552(.|\n)*written by btc 99\.1\.0, and this is ") as caught:
            load(newer, overrides=overrides)
        assert "sorcery" in caught.value.diagnostics[0].notes[0]
    with pytest.raises(SpecError, match="sorcery"):
        load(make_bundle(spec_yaml=unknown(plain)))
    readable = make_bundle(versions={"bt-compiler": "99.1.0"})
    assert load(readable).bundle.manifest.name == "adder"
    with pytest.raises(SpecError, match="wand"):
        load(readable, overrides=["model.wand=4"])


def test_a_bundle_whose_strategy_would_be_refused_now_is_served(
    adder: Callable[..., Path], adder_spec: str, tmp_path: Path, backend: ScriptedBackend
) -> None:
    frozen = adder_spec.replace("  add:\n", "  add:\n    train: [weights]\n")
    written = yaml.safe_load((adder(tmp_path / "new", spec=frozen) / "spec.yaml").read_text())
    written["optimize"]["strategy"] = ["prompts", "weights"]
    old = adder(tmp_path / "old", spec=frozen, spec_yaml=yaml.safe_dump(written, sort_keys=False))
    with pytest.raises(SpecError, match="BTC454"):
        build_sections(load_spec(old / "spec.yaml"))
    with load(old, overrides=["model.batch=4"], opener=lambda section: backend) as found:
        assert found(number=1, note=None).kind == "odd"


def test_modules_of_a_visit_are_the_specs_module(adder: Callable[..., Path], adder_spec: str, tmp_path: Path) -> None:
    program = """\
program:
  inputs: {number: int, note: str | null}
  steps:
    tries:
      repeat: 2
      carry: {number: {start: $number, next: $one.twice}}
      steps: {one: {call: add, in: [number, note], per_visit: true}}
    last: {call: add, in: {number: $tries.number, note: $note}}
  out: {kind: $last.kind, twice: $last.twice}
"""
    untied = adder(tmp_path, spec=adder_spec + program)
    modules = load(untied, overrides=["model.batch=4"]).bundle.program.modules
    assert len(modules) > 1 and {module.declared for module in modules} == {"add"}
    with pytest.raises(UsageError, match=r"`modules\.add`"):
        load(untied, overrides=["modules.add.format=json"])


def test_threads_share_a_predictor_and_get_their_own_answers(predictor: Predictor) -> None:
    found: dict[int, int] = {}
    predictor.open()

    def ask(number: int) -> None:
        found[number] = predictor(number=number, note=None).twice

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(20, 60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: 2 * number for number in range(20, 60)}


def test_a_batch_keeps_its_order_and_its_errors(predictor: Predictor, backend: ScriptedBackend) -> None:
    rows = [{"number": number, "note": None} for number in range(10, 30)]
    rows.insert(5, {"number": "?", "note": None})
    results = list(predictor.batch(rows, window=4))
    assert [one["outputs"]["twice"] for one in results if "outputs" in one] == [2 * n for n in range(10, 30) if n != 13]
    assert results[3]["error"] == {"code": "BTC521", "message": "the model gave no answer", "node": "add"}
    assert results[5]["error"]["message"] == "input `number` expects `int`, got a string, `?`"


def test_a_batch_holds_no_more_rows_than_its_window(bundle: Path) -> None:
    read = 0

    def rows() -> Any:
        nonlocal read
        for number in range(1000):
            read += 1
            yield {"number": number * 2, "note": None}

    def answer(request: Request) -> str:
        return "Kind: even\nTwice: 2"

    with load(bundle, opener=lambda section: ScriptedBackend(function=answer, window=3)) as predictor:
        for done, _ in enumerate(predictor.batch(rows(), window=8), start=1):
            assert read - done <= 8
    assert done == 1000


def test_a_batch_left_early_does_not_disturb_the_next(predictor: Predictor) -> None:
    batch = predictor.batch(({"number": number, "note": None} for number in range(100, 200)), window=16)
    next(batch)
    assert predictor(number=4, note=None).twice == 8
    batch.close()  # type: ignore[attr-defined]
    assert list(predictor.batch([{"number": 5, "note": None}])) == [{"outputs": {"kind": "odd", "twice": 10}}]


def test_rows_of_a_file_keep_the_place_of_a_broken_line(predictor: Predictor, tmp_path: Path) -> None:
    from bt_compiler.runtime.batch import rows_of_file

    path = tmp_path / "in.jsonl"
    good, wrong = b'{"number": 1, "note": null}\n', b'{"number": 13, "note": null}\n[]\n'
    twice = b'{"number": 1, "number": 2}\n'
    path.write_bytes(good + b'\n{"number": \n{"number": NaN, "note": null}\n\xff\n \n' + wrong + b"\n" + good + twice)
    results = list(predictor.batch(rows_of_file(path), window=2))
    assert results[0] == {"line": 1, "outputs": {"kind": "odd", "twice": 2}}
    assert [one["line"] for one in results] == [1, 3, 4, 5, 7, 8, 10, 11]
    assert ["error" in one for one in results] == [False, *[True] * 5, False, True]
    assert "the key `number` is there twice" in results[-1]["error"]["message"]
    assert [
        f"in.jsonl:{line} is not JSON" in results[at]["error"]["message"] for at, line in ((1, 3), (2, 4), (3, 5))
    ] == [
        True,
        True,
        True,
    ]


def test_json_on_stdin_is_utf8_whatever_the_locale(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = io.BytesIO('{"number": 3, "bär 🦊": 3}'.encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(given, encoding="latin-1"))
    with pytest.raises(SystemExit):
        main(["run", str(bundle), "--input", "-"])
    assert "input `bär 🦊` is not known" in capsys.readouterr().err


def test_values_without_a_name_are_told_how_to_be_given(predictor: Predictor) -> None:
    with pytest.raises(TypeError, match=r"given by name: `\(number=…, note=…\)`, or in one mapping to `predict`"):
        predictor(4)


def test_a_table_is_refused_at_once_as_a_file_of_json_lines(tmp_path: Path) -> None:
    from bt_compiler.runtime.batch import rows_of_file

    path = tmp_path / "support.csv"
    path.write_text("number,note\n1,a\n")
    with pytest.raises(UsageError, match="is no JSONL file") as caught:
        rows_of_file(path)
    assert caught.value.diagnostics[0].help == "write its rows as one JSON object of the inputs a line"


def test_a_backend_that_fails_as_a_whole_raises_and_the_next_call_works(bundle: Path) -> None:
    broken = [True]

    def answer(request: Request) -> str:
        if broken.pop() if broken else False:
            raise BackendError.of("BTC530", "the server has gone")
        return "Kind: odd\nTwice: 2"

    with load(bundle, opener=lambda section: ScriptedBackend(function=answer)) as predictor:
        with pytest.raises(BackendError, match="the server has gone"):
            predictor(number=1, note=None)
        assert predictor(number=1, note=None).kind == "odd"


def test_the_runtime_imports_neither_optimiser_nor_trainer_nor_torch(bundle: Path) -> None:
    code = (
        "import sys, json\n"
        "from bt_compiler import load\n"
        f"load({str(bundle)!r})\n"
        "import bt_compiler.runtime\n"
        "print(json.dumps([name for name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = json.loads(done.stdout)
    assert "bt_compiler.runtime.predictor" in modules
    unwanted = (
        "bt_compiler.optimize",
        "bt_compiler.compiler",
        "torch",
        "transformers",
        "peft",
        "matplotlib",
        "fastapi",
    )
    assert [name for name in modules if name.startswith(unwanted)] == []


def test_the_package_exports_what_it_says() -> None:
    import bt_compiler
    from bt_compiler.compiler.compile import compile_spec

    assert (bt_compiler.load, bt_compiler.compile_spec, bt_compiler.BtcError) == (load, compile_spec, BtcError)
    assert (bt_compiler.InputError, bt_compiler.Predictor) == (InputError, Predictor)


def test_an_error_has_the_code_and_the_help_of_its_first_diagnostic(predictor: Predictor) -> None:
    with pytest.raises(BtcError) as wrong:
        predictor(number=1, nots=None)
    assert wrong.value.code == wrong.value.diagnostics[0].code == "BTC562"
    assert wrong.value.help == wrong.value.diagnostics[0].help == "did you mean `note`?"
