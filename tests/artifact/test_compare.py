from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bt_compiler.artifact import BundleContents, read_bundle, write_bundle
from bt_compiler.artifact.compare import compare


def test_the_same_compile_in_two_places_is_the_same(contents: BundleContents, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_bundle(tmp_path / name, contents)
    found = compare(read_bundle(tmp_path / "a"), read_bundle(tmp_path / "b"))
    assert found.same and not found.graph_changed
    assert (found.facts, found.prompts, found.formats, found.adapters) == ((), {}, {}, ())
    assert [split.examples for split in found.splits] == [(), ()]


def test_another_name_is_no_other_graph(
    contents: BundleContents, changed: Callable[..., BundleContents], tmp_path: Path
) -> None:
    write_bundle(tmp_path / "a", contents)
    write_bundle(tmp_path / "b", changed(program=replace(contents.program, name="other")))
    assert not compare(read_bundle(tmp_path / "a"), read_bundle(tmp_path / "b")).graph_changed


def test_what_changed_is_shown(
    contents: BundleContents, changed: Callable[..., BundleContents], tmp_path: Path
) -> None:
    write_bundle(tmp_path / "a", contents)
    prompts = {"classify": replace(contents.candidate.prompts["classify"], demos=())}
    report = contents.reports["shipped"]["test"]
    scores = ((report.scores[0][0], 1.0 - report.scores[0][1]), *report.scores[1:])
    shipped = {**contents.reports["shipped"], "test": replace(report, scores=scores)}
    module = replace(contents.program.modules[0], train=("prompt",))
    other = changed(
        seed=5,
        candidate=replace(contents.candidate, prompts=prompts, adapters={}),
        reports={**contents.reports, "shipped": shipped},
        program=replace(contents.program, modules=(module,)),
        formats={name: f"{text}\nBe brief." for name, text in contents.formats.items()},
    )
    write_bundle(tmp_path / "b", other)
    found = compare(read_bundle(tmp_path / "a"), read_bundle(tmp_path / "b"))
    assert not found.same and found.graph_changed
    assert found.facts == (("seed", 0, 5),)
    assert [line[:6] for line in found.prompts["classify"] if line[0] == "-"] == ["-demo:"]
    assert found.formats["classify"][-1] == "+Be brief."
    assert found.adapters == (("*", contents.candidate.adapters["*"].sha256, None),)
    (test,) = (split for split in found.splits if split.split == "test")
    assert test.examples == ((report.scores[0][0], report.scores[0][1], 1.0 - report.scores[0][1]),)
