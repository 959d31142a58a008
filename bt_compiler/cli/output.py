"""How results and errors look on a terminal and as JSON."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bt_compiler.cli.streams import json_text
from bt_compiler.diagnostics import Diagnostic, foremost, render, to_json
from bt_compiler.errors import BtcError

if TYPE_CHECKING:
    from bt_compiler.engine.trace import Agreement

JSON_VERSION = 1
"""Version of every `--json` document."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document, errors included.")


class Setting(click.types.StringParamType):
    """`KEY=VALUE`; in the environment one a line, for values hold blanks, at which click would cut."""

    def split_envvar_value(self, rv: str) -> list[str]:
        """The lines that are not blank."""
        return [line.strip() for line in rv.split("\n") if line.strip()]


set_option = click.option(
    "--set",
    "overrides",
    type=Setting(),
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a value of the spec, e.g. model.id=./lm or optimize.strategy='[prompts]'.",
)
tools_option = click.option(
    "--tools",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Python file with the spec's tools of kind `function`; it is run.",
)


def use_color() -> bool:
    """Whether stderr takes colour: a terminal, and no `NO_COLOR` (https://no-color.org)."""
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR")


def print_diagnostics(diagnostics: Sequence[Diagnostic]) -> None:
    """Diagnostics on stderr, then a count where there are several; of very many the foremost alone."""
    if not diagnostics:
        return
    kept, left_out = foremost(diagnostics)
    click.echo(render(kept, color=use_color()), err=True)
    errors = sum(item.severity == "error" for item in diagnostics)
    if errors > 1 or left_out:
        count = f"{errors} errors" if errors > 1 else f"{len(diagnostics)} findings"
        cut = f", {len(kept)} of them above" if left_out else ""
        click.echo(f"\n{count}{cut}; `btc explain CODE` tells more about each", err=True)


def diagnostics_json(diagnostics: Sequence[Diagnostic]) -> dict[str, Any]:
    """`diagnostics` of a document, and `left_out` where there are too many to list."""
    kept, left_out = foremost(diagnostics)
    found: dict[str, Any] = {"diagnostics": [to_json(item) for item in kept]}
    return {**found, "left_out": left_out} if left_out else found


def print_json(command: str, body: dict[str, Any], *, ok: bool = True) -> None:
    """One versioned document on stdout."""
    document = {"version": JSON_VERSION, "command": command, "ok": ok, **body}
    click.echo(json_text(document, indent=2))


def print_error(error: BtcError, *, as_json: bool) -> None:
    """An error the way the caller asked for it."""
    if as_json:
        context = click.get_current_context(silent=True)
        command = context.info_name if context is not None else sys.argv[1] if len(sys.argv) > 1 else "btc"
        print_json(str(command), diagnostics_json(error.diagnostics), ok=False)
    else:
        print_diagnostics(error.diagnostics)


def agreement_text(found: Agreement) -> str:
    """What a judge says of the labels, in one line."""
    mean = "no verdict" if found.mean is None else f"mean {found.mean:.3f}"
    text = f"judge on {found.examples} labelled outputs: {mean}, {found.failed} failed"
    if found.equal is not None and found.difference is not None:
        kappa = "" if found.kappa is None else f", kappa {found.kappa:.3f}"
        text += f"; as people on {found.equal:.3f} of {found.rated}, {found.difference:.3f} away on average{kappa}"
    return text + (f"; {found.off_scale} ratings are off its scale" if found.off_scale else "")


def scores_text(scores: Mapping[str, Mapping[str, Any]], rows: Mapping[str, int]) -> str:
    """The scores of a manifest as a small table: zero-shot, shipped and their paired difference by split; and, from its
    `rows`, whether what ships was learnt from labels.
    """
    from bt_compiler.artifact.report import SUPERVISED

    lines = []
    for split in ("dev", "test"):
        for who, label in (("zero_shot", "zero-shot"), ("shipped", "shipped"), ("difference", "difference")):
            score = scores.get(who, {}).get(split)
            if score is None:
                continue
            interval = (
                f"[{score['low']:+z.3f}, {score['high']:+z.3f}]"
                if who == "difference"
                else (f"[{score['low']:.3f}, {score['high']:.3f}]")
            )
            mean = f"{score['mean']:+z.3f}" if who == "difference" else f"{score['mean']:.3f}"
            count = f"  n={score['n']}" if "n" in score else ""
            failed = f"  {score['failures']} failed" if score.get("failures") else ""
            tools = f"  {score['tool_errors']} tool calls failed" if score.get("tool_errors") else ""
            lines.append(f"{split:<5}{label:<11}{mean:>7}  {interval}{count}{failed}{tools}")
    if labels := sum(rows.get(source, 0) for source in SUPERVISED):
        lines.append(f"partly supervised: {labels} of {sum(rows.values())} training rows are gold or hinted")
    return "\n".join(lines)
