"""`btc sweep`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from bt_compiler.cli.output import Setting, diagnostics_json, json_option, print_diagnostics, print_json, tools_option
from bt_compiler.cli.progress import TerminalProgress
from bt_compiler.errors import CompileError, UsageError


@click.command("sweep")
@click.argument("spec", type=click.Path(path_type=Path))
@click.option(
    "--strategies",
    default="all",
    show_default=True,
    metavar="LIST",
    help="The paper's nine, or e.g. `Π,Θ,Π→Θ`, also spelt `prompts,weights,prompts+weights`; `vanilla`: no step.",
)
@click.option("--seeds", default="0,1,2", show_default=True, metavar="LIST", help="Seeds, by commas.")
@click.option(
    "--set",
    "overrides",
    type=Setting(),
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a value of the spec. Several models, by commas, give a table each: model.id=A,B.",
)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Folder.  [default: artifacts/NAME-sweep]")
@click.option("--markdown", type=click.Path(path_type=Path, dir_okay=False), help="Also write the tables here.")
@tools_option
@click.option("--fresh", is_flag=True, help="Start over instead of resuming; the models' answers stay in the cache.")
@json_option
def sweep_command(
    spec: Path,
    strategies: str,
    seeds: str,
    overrides: tuple[str, ...],
    out: Path | None,
    markdown: Path | None,
    tools: Path | None,
    fresh: bool,
    as_json: bool,
) -> None:
    """Compare strategies on SPEC: score and spread over seeds, and the paired difference from the best single step.

    Steps that strategies share are computed once. A sweep that was interrupted goes on from where it stood on the same
    command, and seeds, strategies or models may be added later. The spec's own `optimize.strategy` is not looked at.
    """
    from bt_compiler.artifact.sweep_files import sweep_markdown, sweep_text, unscored, write_text
    from bt_compiler.compiler.sweep import SweepSettings, parse_seeds, parse_strategies, sweep_spec

    progress = TerminalProgress()
    settings = SweepSettings(
        strategies=parse_strategies(strategies),
        seeds=parse_seeds(seeds),
        out=out,
        overrides=overrides,
        tools=tools,
        fresh=fresh,
        progress=progress,
    )
    try:
        swept = sweep_spec(spec, settings)
    except KeyboardInterrupt:
        progress.end()
        click.echo("\nstopped; nothing finished is lost: run the same command again to go on", err=True)
        raise
    finally:
        progress.end()
    if markdown is not None:
        try:
            write_text(markdown, sweep_markdown(swept.document))
        except OSError as error:
            raise UsageError.of(
                "BTC581",
                f"cannot write `{markdown}`: {error.strerror}",
                help=f"the same text is in `{swept.folder / 'sweep.md'}`",
            ) from error
    shown = swept.folder.relative_to(Path.cwd()) if swept.folder.is_relative_to(Path.cwd()) else swept.folder
    missed = unscored(swept.document)
    if as_json:
        found = diagnostics_json(missed) if missed else {}
        print_json("sweep", {"folder": str(shown), **swept.document, **found}, ok=not missed)
    else:
        click.echo(sweep_text(swept.document))
        click.echo(f"\n{shown}/  sweep.json  sweep.md  report.html")
        print_diagnostics(missed)
    if missed:
        sys.exit(CompileError.exit_code)
