"""Commands on bundles: `eval`, `run`, `serve`, `show`, `diff`, `verify`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click
from click.core import ParameterSource

from bt_compiler.canonical import unrepeated
from bt_compiler.cli.output import (
    agreement_text,
    diagnostics_json,
    json_option,
    print_diagnostics,
    print_json,
    scores_text,
    set_option,
    tools_option,
)
from bt_compiler.cli.progress import TerminalProgress
from bt_compiler.cli.streams import json_text
from bt_compiler.errors import CompileError, UsageError

if TYPE_CHECKING:
    from bt_compiler.artifact.changed_model import ChangedModel
    from bt_compiler.diagnostics import Diagnostic
    from bt_compiler.engine.trace import Report
    from bt_compiler.runtime import Predictor

_bundle_argument = click.argument("bundle", type=click.Path(path_type=Path))


@click.command("verify")
@_bundle_argument
@json_option
def verify_command(bundle: Path, as_json: bool) -> None:
    """Check every file and hash of BUNDLE."""
    from bt_compiler.artifact.bundle import verify_bundle

    manifest = verify_bundle(bundle)
    if as_json:
        print_json("verify", {"digest": manifest.digest, "files": len(manifest.files)})
        return
    click.echo(f"{bundle}: {len(manifest.files)} files ok, digest {manifest.digest}")


@click.command("show")
@_bundle_argument
@json_option
def show_command(bundle: Path, as_json: bool) -> None:
    """Show prompts exactly as sent, demos, lineage and scores of BUNDLE."""
    from bt_compiler.artifact.bundle import read_bundle
    from bt_compiler.graph import candidate_to_json, program_text

    found = read_bundle(bundle)
    manifest = found.manifest
    if as_json:
        body = {"manifest": manifest.to_json(), "candidate": candidate_to_json(found.candidate)}
        print_json("show", {**body, "sent": {name: asdict(prompt) for name, prompt in found.sent.items()}})
        return
    click.echo(f"{manifest.name}  digest {manifest.digest[:16]}  seed {manifest.seed}  {manifest.created or ''}\n")
    click.echo(program_text(found.program).rstrip().replace(f"{found.folder}/", ""))  # formats of the bundle
    click.echo(f"\nscores\n{scores_text(manifest.scores, manifest.rows)}\n\nlineage")
    for ancestor in manifest.lineage:
        click.echo(f"  {ancestor.id}  {ancestor.origin}")
    for name, digest in manifest.identity["retrievers"].items():
        carried = "  index in the bundle" if name in found.indexes else ""
        click.echo(f"\nretriever {name}: digest {digest[:16]}{carried}")
    for slot, adapter in found.candidate.adapters.items():
        click.echo(f"\nadapter {slot}: {adapter.name}, {adapter.extent}, base {adapter.base_model}")
    for module, prompt in found.candidate.prompts.items():
        origins = ", ".join(f"{demo.origin} {demo.example or ''}".strip() for demo in prompt.demos) or "none"
        click.echo(f"\nmodule {module}: {len(prompt.demos)} demos ({origins})")
        sent = found.sent.get(module)
        if sent is None:
            continue
        click.echo("prompt as sent, for one example")
        for message in sent.messages:
            click.echo(f"--- {message.role}\n{message.content}")
        if sent.text is not None:
            click.echo(f"---\n{sent.text}")


@click.command("diff")
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@json_option
def diff_command(before: Path, after: Path, as_json: bool) -> None:
    """Show what changed from bundle BEFORE to bundle AFTER: spec, prompts, adapters, scores, each example."""
    from bt_compiler.artifact.bundle import read_bundle
    from bt_compiler.artifact.compare import compare

    bundles = (read_bundle(before), read_bundle(after))
    change = compare(*bundles)
    places: dict[str, str] = {}
    if any(split.examples for split in change.splits):
        from bt_compiler.compiler.places import example_places

        for bundle in bundles:
            places |= example_places(bundle)
    if as_json:
        changed = sorted(example for split in change.splits for example, *_ in split.examples)
        at = {example: places[example] for example in changed if example in places}
        print_json("diff", {"diff": asdict(change), "places": at})
        return
    if change.same:
        click.echo("the bundles are the same")
        return
    for key, old, new in change.facts:
        click.echo(f"{key}: {_short(old)} -> {_short(new)}")
    if change.graph_changed:
        click.echo("the program graph changed")
    for what, changes in (("prompt", change.prompts), ("format", change.formats)):
        for module, lines in changes.items():
            click.echo(f"\n{what} of {module}")
            click.echo("\n".join(f"  {line}" for line in lines))
    for slot, was, now in change.adapters:
        click.echo(f"\nadapter {slot}: {(was or 'none')[:12]} -> {(now or 'none')[:12]}")
    for split in change.splits:
        click.echo(f"\n{split.split}: {split.before:.3f} -> {split.after:.3f}")
        if split.interval is not None:
            bounds = f"{split.difference:+z.3f}  [{split.interval.low:+z.3f}, {split.interval.high:+z.3f}]"
            click.echo(f"  on the {split.shared} examples that both were scored on: {bounds}")
        click.echo(f"  {len(split.examples)} of {split.shared} shared examples are scored otherwise")
        for example, first, second in split.examples:
            where = f"  {places[example]}" if example in places else ""
            click.echo(f"  {example}: {first:g} -> {second:g}{where}")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


class _Share(click.FloatRange):
    """A number from its least to its most: NaN, which no comparison refuses, is none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As click does. Raises click.BadParameter."""
        number = super().convert(value, param, ctx)
        return self.fail(f"{value!r} is not a number", param, ctx) if isnan(number) else number


@click.command("eval")
@_bundle_argument
@click.option("--split", type=click.Choice(["train", "dev", "test"]), default="test", show_default=True)
@click.option(
    "--data",
    metavar="NAME",
    help="Score all rows of this file, `sklearn:NAME` or `hf://owner/name:split` instead of a split.",
)
@click.option("--at-least", type=_Share(0, 1), help="Exit with 1 where the mean score is below this.")
@set_option
@tools_option
@json_option
def eval_command(
    bundle: Path,
    split: str,
    data: str | None,
    at_least: float | None,
    overrides: tuple[str, ...],
    tools: Path | None,
    as_json: bool,
) -> None:
    """Score BUNDLE on a split of its own data, or on a data file. `--json` has every example with its place in the
    data, inputs, outputs and labels.
    """
    asked = click.get_current_context().get_parameter_source
    if ParameterSource.COMMANDLINE is asked("data") is asked("split"):
        raise click.UsageError("--data scores all rows that it names; leave --split out")
    from bt_compiler.artifact.changed_code import ChangedCode
    from bt_compiler.compiler.changed_data import ChangedSplit
    from bt_compiler.compiler.evaluate import SplitName, evaluate_bundle

    changes: list[Diagnostic] = []

    def on_change(change: ChangedSplit | ChangedCode | ChangedModel) -> None:
        unfit = isinstance(change, ChangedCode) or (isinstance(change, ChangedSplit) and change.seen > 0)
        gate = at_least is not None and unfit
        changes.append(change.finding(gate=gate))
        if gate:
            raise CompileError(changes)

    progress = TerminalProgress()
    try:
        report = evaluate_bundle(
            bundle,
            split=cast("SplitName", split),
            data=data,
            overrides=overrides,
            progress=progress,
            tools=tools,
            on_change=on_change,
        )
    finally:
        progress.end()
    missed = None if at_least is None or report.mean >= at_least else _missed(bundle, report, at_least)
    if as_json:
        found = [*changes, *(() if missed is None else missed.diagnostics)]
        print_json("eval", _scored(report, at_least, found=found), ok=missed is None)
        if missed is not None:
            sys.exit(missed.exit_code)
        return
    _show_score(report, changes)
    if missed is not None:
        raise missed


def _show_score(report: Report, changes: Sequence[Diagnostic]) -> None:
    """The score on stdout; what has changed since the compile, and what failed, on stderr."""
    from bt_compiler.engine.causes import tool_lines

    interval = report.interval
    told = f"  {report.tool_errors} tool calls failed" if report.tool_errors else ""
    click.echo(
        f"{report.split}: {report.mean:.3f}  [{interval.low:.3f}, {interval.high:.3f}]  n={len(report.scores)}  "
        f"{len(report.failures)} failed  {report.calls} LM calls, {report.cached_calls} of them cached{told}"
    )
    if report.agreement is not None:
        click.echo(agreement_text(report.agreement))
    print_diagnostics(changes)
    places = {example.id: example.place for example in report.examples}
    for line in tool_lines(report.tool_failures):
        click.echo(f"  {line}", err=True)
    for example, failure in report.failures[:10]:
        click.echo(f"  {places[example]} failed: {failure.code} {failure.message}", err=True)


def _scored(report: Report, at_least: float | None, *, found: Sequence[Diagnostic]) -> dict[str, Any]:
    """What `eval --json` says."""
    from bt_compiler.artifact.report import summary

    return {
        "split": report.split,
        **summary(report),
        **({} if report.agreement is None else {"judge": asdict(report.agreement)}),
        "scores": [
            {
                "example": example.id,
                "place": example.place,
                "score": trace.score,
                "inputs": dict(example.inputs),
                "outputs": None if trace.outputs is None else dict(trace.outputs),
                "labels": dict(example.labels),
            }
            for example, trace in zip(report.examples, report.traces, strict=True)
        ],
        "failed": [{"example": example, **asdict(failure)} for example, failure in report.failures],
        **({"tool_failures": [asdict(one) for one in report.tool_failures]} if report.tool_failures else {}),
        **({} if at_least is None else {"at_least": at_least}),
        **({"data_changed": True} if any(item.code == "BTC455" for item in found) else {}),
        **(diagnostics_json(found) if found else {}),
    }


def _missed(bundle: Path, report: Report, at_least: float) -> CompileError:
    return CompileError.of(
        "BTC453",
        f"`{bundle}` scores {report.mean:.6g} on {report.split}, less than the {at_least:g} asked for",
        help="`btc eval --json` shows each example with its answer, `btc diff` with an earlier bundle which changed",
    )


@click.command("run")
@_bundle_argument
@click.option("--input", "input_", help="One JSON object; `-` reads it from stdin, `@FILE` from a file.")
@click.option(
    "--batch",
    type=click.Path(path_type=Path),
    help="JSONL of inputs, `-` for stdin; one JSON result a row, with the number of its `line`.",
)
@set_option
@tools_option
@json_option
def run_command(
    bundle: Path, input_: str | None, batch: Path | None, overrides: tuple[str, ...], tools: Path | None, as_json: bool
) -> None:
    """Answer one input, or a JSONL batch, with BUNDLE."""
    if (input_ is None) == (batch is None):
        raise click.UsageError("give either --input or --batch")
    if batch is not None and as_json:
        raise click.UsageError("--batch writes one JSON result a line already; leave --json out")
    from bt_compiler.runtime import load

    values = {} if batch is not None else _input_object(str(input_))
    progress = TerminalProgress()
    try:
        with load(bundle, overrides=overrides, progress=progress, tools=tools) as predictor:
            if batch is not None:
                _answer_batch(predictor, batch, progress)
                return
            outputs = predictor.predict(values)
    finally:
        progress.end()
    if as_json:
        print_json("run", {"outputs": dict(outputs)})
    else:
        click.echo(json_text(dict(outputs), indent=2))


def _answer_batch(predictor: Predictor, batch: Path, progress: TerminalProgress) -> None:
    """Results on stdout as they come; ends with 1 where a row failed."""
    from bt_compiler.runtime.batch import rows_of_file

    rows = rows_of_file(batch)
    predictor.open()
    if not sys.stdout.isatty():  # else the answers themselves show how far it is
        progress.begin("rows answered", None)
    failed = 0
    for result in predictor.batch(rows):
        failed += "error" in result
        click.echo(json_text(result))
        progress.advance()
    if failed:
        progress.say(f"{failed} row{'s' if failed > 1 else ''} failed")
        sys.exit(1)


def _input_object(given: str) -> dict[str, Any]:
    try:
        if given == "-":
            raw = getattr(sys.stdin, "buffer", None)  # what stands in for it in tests and notebooks may have text alone
            text = sys.stdin.read() if raw is None else raw.read().decode("utf-8")  # as JSON is, whatever the locale
        elif given.startswith("@"):
            text = Path(given[1:]).read_text(encoding="utf-8")
        else:
            text = given
        values = json.loads(text.removeprefix("\ufeff"), object_pairs_hook=unrepeated)  # the mark is Windows'
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        where = "stdin" if given == "-" else f"`{given[1:]}`" if given.startswith("@") else None
        raise UsageError.of(
            "BTC583",
            f"{where or 'the input'} is not JSON: {error}",
            help="""put it in single quotes: --input '{"question": "..."}'"""
            if where is None
            else "it is to hold one JSON object with the program's inputs; a JSONL file of several goes to `--batch`",
        ) from error
    except ValueError as error:
        raise UsageError.of("BTC583", f"in the input {error}", help="give one value for each program input") from error
    except OSError as error:
        raise UsageError.of(
            "BTC583", f"cannot read `{given[1:]}`: {error.strerror}", help="name a JSON file that exists"
        ) from error
    if not isinstance(values, dict):
        raise UsageError.of("BTC583", "the input is not a JSON object", help="give one value for each program input")
    return values


@click.command("serve")
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@set_option
@tools_option
def serve_command(
    bundles: tuple[Path, ...], host: str, port: int, overrides: tuple[str, ...], tools: Path | None
) -> None:
    """Serve BUNDLES over HTTP: POST /v1/predict, documented at /docs."""
    from bt_compiler.runtime.serve import serve

    serve(bundles, host=host, port=port, overrides=overrides, tools=tools, progress=TerminalProgress())
