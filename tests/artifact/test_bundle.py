from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bt_compiler import __version__
from bt_compiler.artifact import BundleContents, Manifest, read_bundle, verify_bundle, write_bundle
from bt_compiler.artifact.manifest import SCHEMA_VERSION
from bt_compiler.canonical import digest, digest_file
from bt_compiler.errors import BundleError
from bt_compiler.graph.hashing import hashed


def files_under(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def bundle(contents: BundleContents, tmp_path: Path) -> Path:
    write_bundle(tmp_path / "out" / "iris", contents)
    return tmp_path / "out" / "iris"


def refused(folder: Path) -> Any:
    with pytest.raises(BundleError) as caught:
        read_bundle(folder)
    return caught.value.diagnostics[0]


def rewrite_manifest(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """A change by someone who mends the manifest's own hash too."""
    path = bundle / "manifest.json"
    data = json.loads(path.read_text())
    del data["manifest_sha256"]
    change(data)
    path.write_text(json.dumps(data | {"manifest_sha256": digest(data)}))


def test_what_is_written_is_read_again(bundle: Path, contents: BundleContents) -> None:
    found = read_bundle(bundle)
    assert found.candidate == replace(contents.candidate, adapters=found.candidate.adapters)
    adapter = found.candidate.adapters["*"]
    assert adapter == contents.candidate.adapters["*"]
    assert adapter.path == bundle / "adapters" / adapter.name
    modules = tuple(replace(one, format="fields") for one in found.program.modules)
    assert hashed(replace(found.program, modules=modules)) == hashed(contents.program)
    assert found.program.modules[0].format == str(bundle / "formats" / "fields.jinja")
    assert (bundle / "formats" / "fields.jinja").read_text() == "{{ instructions }}"
    assert found.sent == contents.sent
    assert found.spec.read_text() == contents.spec_yaml
    assert found.manifest.seed == 0 and found.manifest.models == contents.models
    assert found.manifest.lineage == contents.lineage
    assert found.manifest.scores["shipped"]["test"]["n"] == 50
    assert files_under(bundle) == [
        "adapters/iris-step2-0f3a/adapter_config.json",
        "adapters/iris-step2-0f3a/adapter_model.safetensors",
        "formats/fields.jinja",
        "manifest.json",
        "program.json",
        "prompts.json",
        "report.html",
        "report.json",
        "spec.yaml",
    ]
    assert verify_bundle(bundle) == found.manifest


def test_the_manifest_survives_its_json(bundle: Path) -> None:
    path = bundle / "manifest.json"
    manifest = Manifest.from_json(json.loads(path.read_text()), path=path)
    assert Manifest.from_json(manifest.to_json(), path=path) == manifest


def test_the_same_contents_give_the_same_bytes(bundle: Path, contents: BundleContents, tmp_path: Path) -> None:
    write_bundle(tmp_path / "again", contents)
    for name in files_under(bundle):
        assert (tmp_path / "again" / name).read_bytes() == (bundle / name).read_bytes(), name


def test_the_digest_leaves_out_what_is_no_part_of_the_result(
    contents: BundleContents, changed: Callable[..., BundleContents], tmp_path: Path
) -> None:
    first = write_bundle(tmp_path / "a", contents).digest
    slower = replace(contents.reports["shipped"]["dev"], seconds=99.0, calls=7, cached_calls=7)
    other = changed(
        created="2030-01-01T00:00:00Z",
        seconds=1.0,
        environment={"python": "3.14"},
        spec_yaml="version: 1\nname: iris\ndata: /elsewhere/iris.csv\n",
        steps=(),
        prefixes=(),
        reports={**contents.reports, "shipped": {**contents.reports["shipped"], "dev": slower}},
        models={"default": replace(contents.models["default"], facts={"threads": 64})},
    )
    assert write_bundle(tmp_path / "b", other).digest == first


@pytest.mark.parametrize(
    "part", ["seed", "versions", "dtype", "spec", "data", "score", "prompt", "format", "program", "corpus"]
)
def test_the_digest_sees_every_part(
    contents: BundleContents, changed: Callable[..., BundleContents], tmp_path: Path, part: str
) -> None:
    report = contents.reports["zero_shot"]["dev"]
    scores = ((report.scores[0][0], 1.0 - report.scores[0][1]), *report.scores[1:])
    changed_zero = {**contents.reports["zero_shot"], "dev": replace(report, scores=scores)}
    prompts = {"classify": replace(contents.candidate.prompts["classify"], demos=())}
    module = replace(contents.program.modules[0], train=("prompt",))
    fields: dict[str, dict[str, Any]] = {
        "seed": {"seed": 1},
        "versions": {"versions": {"torch": "2.14.0"}},
        "dtype": {"models": {"default": replace(contents.models["default"], dtype="bfloat16")}},
        "spec": {"spec_identity": {"version": 1, "name": "other"}},
        "data": {"data": {**contents.data, "dev": replace(contents.data["dev"], digest="0" * 64)}},
        "score": {"reports": {**contents.reports, "zero_shot": changed_zero}},
        "prompt": {"candidate": replace(contents.candidate, prompts=prompts)},
        "format": {"formats": {"fields": "{{ instructions }} "}},
        "program": {"program": replace(contents.program, modules=(module,))},
        "corpus": {"retrievers": {"wiki": "9" * 64}},
    }
    first = write_bundle(tmp_path / "a", contents).digest
    assert write_bundle(tmp_path / "b", changed(**fields[part])).digest != first


def test_the_digest_sees_the_adapter(
    contents: BundleContents, changed: Callable[..., BundleContents], make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    other = make_adapter("other", fill=0.25)
    adapters = {"*": replace(contents.candidate.adapters["*"], path=other)}
    first = write_bundle(tmp_path / "a", contents).digest
    second = changed(candidate=replace(contents.candidate, adapters=adapters))
    assert write_bundle(tmp_path / "b", second).digest != first


def test_a_users_own_format_is_carried_and_named_alike_on_every_machine(
    contents: BundleContents, changed: Callable[..., BundleContents], tmp_path: Path
) -> None:
    digests = []
    for home in ("/home/one/my.jinja", "/home/two/my.jinja"):
        module = replace(contents.program.modules[0], format=home)
        program = replace(contents.program, modules=(module,))
        manifest = write_bundle(tmp_path / home[6:9], changed(program=program, formats={home: "mine"}))
        digests.append(manifest.digest)
        assert (tmp_path / home[6:9] / "formats" / "my.jinja").read_text() == "mine"
        assert home not in (tmp_path / home[6:9] / "program.json").read_text()
    assert digests[0] == digests[1]


def test_a_model_in_a_local_folder_leaves_no_path(
    contents: BundleContents, changed: Callable[..., BundleContents], tmp_path: Path
) -> None:
    digests = []
    for home in ("/home/one/smol", "/srv/two/smol"):
        adapter = replace(contents.candidate.adapters["*"], base_model=home)
        models = {"default": replace(contents.models["default"], id=home)}
        candidate = replace(contents.candidate, adapters={"*": adapter})
        folder = tmp_path / home[1:4]
        digests.append(write_bundle(folder, changed(models=models, candidate=candidate)).digest)
        for name in ("manifest.json", "prompts.json", "program.json"):
            assert home not in (folder / name).read_text()
    assert digests[0] == digests[1]


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_one_changed_byte_in_any_file_is_found(bundle: Path, place: str) -> None:
    for name in files_under(bundle):
        path = bundle / name
        whole = path.read_bytes()
        at = {"first": 0, "middle": len(whole) // 2, "last": len(whole) - 1}[place]
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        said = refused(bundle)
        assert said.code == ("BTC551" if name == "manifest.json" else "BTC553"), (name, said)
        assert name in said.message
        path.write_bytes(whole)
    verify_bundle(bundle)


def test_a_missing_file_is_named(bundle: Path) -> None:
    (bundle / "program.json").unlink()
    (bundle / "report.html").unlink()
    said = refused(bundle)
    assert (said.code, "`program.json`" in said.message, said.notes) == ("BTC554", True, ("and 1 more: `report.html`",))


def test_an_extra_file_is_named(bundle: Path) -> None:
    (bundle / "adapters" / "notes.txt").write_text("mine")
    said = refused(bundle)
    assert said.code == "BTC555" and "`adapters/notes.txt`" in said.message


@pytest.mark.parametrize("name", ["../outside.json", "/etc/passwd", "adapters/../../outside.json", "..\\outside.json"])
def test_paths_that_leave_the_folder_are_refused(bundle: Path, name: str) -> None:
    (bundle.parent / "outside.json").write_text("{}")
    entry = {"sha256": digest({}), "size": 2}
    rewrite_manifest(bundle, lambda data: data["integrity"]["files"].update({name: entry}))
    assert refused(bundle).code == "BTC556"


@pytest.mark.parametrize("name", ["spec.yaml", "manifest.json", "adapters"])
def test_links_are_refused(bundle: Path, name: str) -> None:
    moved = bundle.parent / "moved"
    (bundle / name).rename(moved)
    (bundle / name).symlink_to(moved)
    said = refused(bundle)
    assert said.code == "BTC556" and f"`{name}`" in said.message


def test_a_newer_schema_version_is_refused_before_anything_else(bundle: Path) -> None:
    rewrite_manifest(bundle, lambda data: data.update(schema_version=SCHEMA_VERSION + 1, files="of another shape"))
    assert refused(bundle).code == "BTC552"


@pytest.mark.parametrize(("written", "code"), [(__version__, "BTC551"), ("99.1.0", "BTC552")])
def test_a_program_that_cannot_be_read_is_damaged_or_of_another_version(bundle: Path, written: str, code: str) -> None:
    path = bundle / "program.json"
    path.write_text(path.read_text().replace('"call"', '"teleport"'))
    entry = {"sha256": digest_file(path), "size": path.stat().st_size}

    def change(data: dict[str, Any]) -> None:
        data["integrity"]["files"]["program.json"] = entry
        data["identity"]["versions"] = {"bt-compiler": written}

    rewrite_manifest(bundle, change)
    said = refused(bundle)
    assert said.code == code and "program or prompts cannot be read" in f"{said.message} {said.notes}"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema_version": "1"}', "[" * 100_000, "\x00\x01", "null"])
def test_a_manifest_that_is_none_is_refused(bundle: Path, text: str) -> None:
    (bundle / "manifest.json").write_text(text)
    assert refused(bundle).code == "BTC551"


@pytest.mark.parametrize(
    "key", ["identity", "adapters", "lineage", "scores", "integrity", "name", "digest", "strategy"]
)
def test_a_manifest_that_lacks_a_part_is_refused(bundle: Path, key: str) -> None:
    rewrite_manifest(bundle, lambda data: data.pop(key))
    assert refused(bundle).code == "BTC551"


def test_a_bundle_put_together_from_two_is_refused(
    bundle: Path, changed: Callable[..., BundleContents], tmp_path: Path
) -> None:
    write_bundle(tmp_path / "other", changed(seed=1))
    theirs = json.loads((tmp_path / "other" / "manifest.json").read_text())["identity"]
    rewrite_manifest(bundle, lambda data: data.update(identity=theirs))
    assert refused(bundle).code == "BTC557"


@pytest.mark.parametrize(("name", "code"), [("nothing", "BTC550"), ("file", "BTC550"), ("empty", "BTC550")])
def test_what_is_no_bundle_is_refused(tmp_path: Path, name: str, code: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    assert refused(tmp_path / name).code == code


def test_a_bundle_can_be_moved(bundle: Path, tmp_path: Path) -> None:
    shutil.move(bundle, tmp_path / "moved")
    found = read_bundle(tmp_path / "moved")
    assert found.candidate.adapters["*"].path == tmp_path / "moved" / "adapters" / "iris-step2-0f3a"
