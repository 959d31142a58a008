"""The command group, and the one boundary where errors become text and exit codes.

0 success; 1 the spec is wrong, the compile failed or a gate was not met; 2 usage or internal; 130 interrupted.
"""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from bt_compiler.cli.output import print_error
from bt_compiler.cli.streams import discard, open_streams
from bt_compiler.diagnostics import did_you_mean
from bt_compiler.errors import BtcError, UsageError

COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("bt_compiler.cli.start", "Write a working starter spec with data and a CI workflow."),
    "check": ("bt_compiler.cli.inspect", "Validate specs and look at their data; no model is loaded."),
    "plan": ("bt_compiler.cli.inspect", "Show the graph and the work that a compile will need."),
    "bench": ("bt_compiler.cli.inspect", "Measure generating and training on this machine, with advice."),
    "compile": ("bt_compiler.cli.compile", "Optimise prompts and weights, write the bundle; resumes by itself."),
    "sweep": ("bt_compiler.cli.sweep", "Compare strategies over seeds and models; shared steps run once."),
    "eval": ("bt_compiler.cli.bundle", "Score a bundle on a split or a data file."),
    "run": ("bt_compiler.cli.bundle", "Answer one input, or a JSONL batch, with a bundle."),
    "serve": ("bt_compiler.cli.bundle", "Serve bundles over HTTP."),
    "show": ("bt_compiler.cli.bundle", "Show prompts as sent, demos, lineage and scores of a bundle."),
    "diff": ("bt_compiler.cli.bundle", "Show what changed between two bundles, per example too."),
    "verify": ("bt_compiler.cli.bundle", "Check every hash of a bundle."),
    "explain": ("bt_compiler.cli.start", "Explain an error code."),
    "schema": ("bt_compiler.cli.start", "Print the JSON Schema of specs."),
    "cache": ("bt_compiler.cli.start", "Show or clear the cache of completions, models and indexes."),
    "completion": ("bt_compiler.cli.start", "Print the shell completion script."),
}
"""Command -> module that defines it, short help; in the order of `btc --help`."""

EXTRAS = {
    **dict.fromkeys(("torch", "transformers", "peft", "huggingface_hub", "llguidance", "safetensors"), "train"),
    "matplotlib": "train",
    **dict.fromkeys(("bm25s", "Stemmer", "numpy"), "retrieve"),
    **dict.fromkeys(("fastapi", "uvicorn", "starlette"), "serve"),
    "vllm": "vllm",
}
"""Library that a part needs -> the extra of this package that installs it."""


MAKERS = frozenset({"bench", "compile", "eval", "serve", "sweep"})
"""Commands that fail where their output is cut off: what they make, or decide, is not there."""


class _NobodyReads(Exception):
    """Whoever read our output has gone (`btc show … | head`)."""


class CommandGroup(click.Group):
    """Loads a command's module when the command is looked up, not before."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, its module imported now, each option but `--json` readable from the environment too
        (`--budget` of `compile`: `BTC_COMPILE_BUDGET`); None for an unknown name.
        """
        if cmd_name not in COMMANDS:
            return None
        command = getattr(import_module(COMMANDS[cmd_name][0]), f"{cmd_name}_command")
        assert isinstance(command, click.Command)
        for option in command.params:
            if isinstance(option, click.Option) and option.name != "as_json":
                option.envvar = f"BTC_{cmd_name}_{max(option.opts, key=len).lstrip('-')}".replace("-", "_").upper()
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """As click does, which would end with 1 where nobody reads the output any more. Raises _NobodyReads."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            if ctx.invoked_subcommand in MAKERS:
                raise
            raise _NobodyReads from error

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with a did-you-mean. Raises click.UsageError."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            hint = did_you_mean(args[0], COMMANDS, what="commands")
            raise click.UsageError(f"no such command `{args[0]}`; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, short) for name, (_, short) in COMMANDS.items()])


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="bt-compiler", prog_name="btc")
def cli() -> None:
    """Compile declarative language-model programs: prompts and LoRA weights optimised in turn.

    Result on stdout, progress and diagnostics on stderr. Start with `btc init demo`.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `btc` and exit the process."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in args
    open_streams()
    try:
        # click returns the code of `ctx.exit()` in this mode, and whatever a command returns otherwise
        code = cli.main(args, prog_name="btc", standalone_mode=False)
        sys.stdout.flush()
    except (BrokenPipeError, _NobodyReads):
        # not a failure, and nothing can be told to them
        discard(sys.stdout)
        sys.exit(0)
    except (click.exceptions.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        if as_json:
            usage = UsageError.of("BTC587", error.format_message(), help="`btc COMMAND --help` lists what it takes")
            _tell(usage, as_json=True)
        else:
            error.show()
        sys.exit(2)
    except BtcError as error:
        _tell(error, as_json=as_json)
        sys.exit(error.exit_code)
    except Exception as error:
        known = _missing_library(error) or _no_room(error)
        if known is not None:
            _tell(known, as_json=as_json)
            sys.exit(known.exit_code)
        traceback.print_exc()
        click.echo("this is a bug in btc: please report it with the lines above", err=True)
        sys.exit(2)
    sys.exit(code if isinstance(code, int) else 0)


def _tell(error: BtcError, *, as_json: bool) -> None:
    """The error as it was asked for; on stderr where stdout does not take its document."""
    try:
        print_error(error, as_json=as_json)
        sys.stdout.flush()
    except OSError:
        discard(sys.stdout)
        if as_json:
            print_error(error, as_json=False)


def _no_room(error: Exception) -> BtcError | None:
    """What to say where a disk is full, that of stdout among others; None for every other failure."""
    if not isinstance(error, OSError) or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return None
    return UsageError.of(
        "BTC581",
        f"cannot write {f'`{error.filename}`' if error.filename else 'the output'}: {error.strerror}",
        help="make room, or send the output elsewhere; files that the command had finished are there",
    )


def _missing_library(error: Exception) -> BtcError | None:
    """What to say where an optional library is not installed; None for every other failure."""
    library = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if library not in EXTRAS:
        return None
    return UsageError.of(
        "BTC584",
        f"`{library}` is not installed",
        help=f"pip install 'bt-compiler[{EXTRAS[library]}]' brings what this command needs",
    )
