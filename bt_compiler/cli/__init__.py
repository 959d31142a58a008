"""The `btc` command. Each command is loaded when it is named, so that `btc --help` loads none."""

from bt_compiler.cli.main import cli, main

__all__ = ["cli", "main"]
