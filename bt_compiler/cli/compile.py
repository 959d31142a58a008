"""`btc compile`."""

from __future__ import annotations

from pathlib import Path

import click

from bt_compiler.cli.output import json_option, print_json, scores_text, set_option, tools_option
from bt_compiler.cli.progress import TerminalProgress


@click.command("compile")
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Bundle folder.  [default: artifacts/NAME]")
@set_option
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Seed of every random choice.")
@tools_option
@click.option("--with-index", is_flag=True, help="Put the retrievers' indexes into the bundle: it needs no corpus.")
@click.option(
    "--budget", metavar="AMOUNT", help="The most to spend: 30m, 2h, '500k tokens', or '2.5 usd' by `model.price`."
)
@click.option("--fresh", is_flag=True, help="Start over instead of resuming; the models' answers stay in the cache.")
@json_option
def compile_command(
    spec: Path,
    out: Path | None,
    overrides: tuple[str, ...],
    seed: int,
    tools: Path | None,
    with_index: bool,
    budget: str | None,
    fresh: bool,
    as_json: bool,
) -> None:
    """Optimise the program of SPEC and write its bundle.

    A compile that was interrupted, by whatever means, goes on from where it stood on the same command.
    """
    from bt_compiler.artifact.bundle import verify_bundle
    from bt_compiler.compiler.compile import compile_spec
    from bt_compiler.optimize.budget import parse_limit

    limit = None if budget is None else parse_limit(budget)
    progress = TerminalProgress()
    try:
        folder = compile_spec(
            spec,
            out=out,
            overrides=overrides,
            seed=seed,
            fresh=fresh,
            progress=progress,
            tools=tools,
            with_index=with_index,
            budget=limit,
        )
    except KeyboardInterrupt:
        progress.end()
        click.echo("\nstopped; nothing finished is lost: run the same command again to go on", err=True)
        raise
    finally:
        progress.end()
    manifest = verify_bundle(folder)
    shown = _relative(folder)
    if as_json:
        print_json(
            "compile",
            {
                "bundle": str(shown),
                "digest": manifest.digest,
                "scores": dict(manifest.scores),
                "rows": dict(manifest.rows),
            },
        )
        return
    click.echo(scores_text(manifest.scores, manifest.rows))
    click.echo(f"bundle {shown}/  digest {manifest.digest[:16]}  report {shown}/report.html")


def _relative(folder: Path) -> Path:
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
