"""`btc check` and `btc plan`, which load no model, and `btc bench`, which tries the models on this machine."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from bt_compiler.cli.output import (
    diagnostics_json,
    json_option,
    print_diagnostics,
    print_json,
    set_option,
    tools_option,
)
from bt_compiler.cli.progress import TerminalProgress
from bt_compiler.diagnostics import Diagnostic
from bt_compiler.errors import BtcError


@click.command("check")
@click.argument("specs", nargs=-1, required=True, type=click.Path(path_type=Path))
@set_option
@json_option
def check_command(specs: tuple[Path, ...], overrides: tuple[str, ...], as_json: bool) -> None:
    """Validate SPECS: syntax, schema, names, types and data. No model is loaded.

    Every error of a phase is shown at once. Exits with 1 if any spec has an error.
    """
    from bt_compiler.compiler.check import checked

    results = []
    failed = False
    for path in specs:
        found: tuple[Diagnostic, ...]
        try:
            result = checked(path, overrides)
        except BtcError as error:
            failed, found = True, error.diagnostics
        else:
            found = result.warnings
            if not as_json:
                splits = result.splits
                judging = {judge.module.name for judge in result.judges.values()}
                judges = f"{len(judging)} judge(s), " if judging else ""
                click.echo(
                    f"{path}: ok ({len(result.program.modules)} module(s), {judges}"
                    f"{len(splits.train)} train / {len(splits.dev)} dev / {len(splits.test)} test examples)"
                )
        results.append({"spec": str(path), **diagnostics_json(found)})
        if not as_json:
            print_diagnostics(found)
    if as_json:
        print_json("check", {"specs": results}, ok=not failed)
    sys.exit(1 if failed else 0)


@click.command("plan")
@click.argument("spec", type=click.Path(path_type=Path))
@set_option
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Bundle folder the compile will write.")
@click.option("--mermaid", is_flag=True, help="Print the graph alone, as a Mermaid flowchart.")
@json_option
def plan_command(spec: Path, overrides: tuple[str, ...], out: Path | None, mermaid: bool, as_json: bool) -> None:
    """Show the graph of SPEC and the LM calls, tokens and training steps its compile will need."""
    from bt_compiler.compiler.check import checked
    from bt_compiler.compiler.plan import plan
    from bt_compiler.graph import program_mermaid

    result = checked(spec, overrides)
    if mermaid:
        click.echo(program_mermaid(result.program), nl=False)
        return
    planned = plan(result, out=out)
    if as_json:
        print_json("plan", {"plan": planned.to_json(), **diagnostics_json(result.warnings)})
        return
    print_diagnostics(result.warnings)
    click.echo(planned.to_text())


@click.command("bench")
@click.argument("spec", type=click.Path(path_type=Path))
@set_option
@click.option("--examples", default=32, show_default=True, type=click.IntRange(min=1), help="Train examples to run.")
@tools_option
@json_option
def bench_command(spec: Path, overrides: tuple[str, ...], examples: int, tools: Path | None, as_json: bool) -> None:
    """Measure how fast this machine runs and trains the program of SPEC, beside its bound.

    Nothing is cached and nothing is kept. The advice names what would make a compile faster.
    """
    from bt_compiler.compiler.bench import bench_spec

    progress = TerminalProgress()
    try:
        found = bench_spec(spec, overrides=overrides, examples=examples, progress=progress, tools=tools)
    finally:
        progress.end()
    if as_json:
        print_json("bench", {"bench": found.to_json()})
        return
    click.echo(found.to_text())
