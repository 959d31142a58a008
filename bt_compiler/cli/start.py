"""Commands that need no spec yet: `init`, `explain`, `schema`, `cache`, `completion`."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Mapping
from contextlib import closing
from itertools import chain, count
from pathlib import Path

import click

from bt_compiler.cli.output import json_option, print_json
from bt_compiler.diagnostics import did_you_mean, explain, known_codes
from bt_compiler.errors import UsageError


@click.command("init")
@click.argument("name", type=click.Path(path_type=Path))
def init_command(name: Path) -> None:
    """Write a working classification spec and its data into the new folder NAME, and a CI workflow for it.

    The workflow goes where GitHub reads it: the repository that NAME lies in, or the empty folder that is to be one.
    """
    from bt_compiler.engine.templates import template_folder
    from bt_compiler.spec import schema_text

    program = _word(name.name).lower()
    if program[0].isdigit():
        program = f"_{program}"
    starter = template_folder() / "starters" / "classify"
    try:
        _refuse_there(name)
        top = _repository(name)
        files = {name / source.name: _filled(source, __NAME__=program) for source in sorted(starter.iterdir())}
        files[name / "spec.schema.json"] = schema_text()
        spec = _no_option(Path(os.path.relpath(name.resolve() / "spec.yaml", top)).as_posix())
        workflow, template = _workflow(top, program, spec), template_folder() / "ci" / "github.yml"
        if not (kept := workflow.exists()):
            files[workflow] = _filled(template, __NAME__=workflow.stem, __SPEC__=_quoted(spec))
        if not (ignored := _ignores(top / ".gitignore", "artifacts/")) and not (top / ".gitignore").exists():
            files[top / ".gitignore"], ignored = "artifacts/\n", True
        _write_all(files)
    except FileExistsError as error:
        raise _taken(Path(error.filename or name)) from error
    except OSError as error:
        raise UsageError.of(
            "BTC581",
            f"cannot write `{error.filename or name}`: {error.strerror}",
            help="choose a folder that you may write to; nothing was changed",
        ) from error
    also = f"; {workflow} is there for it" if kept else f" and {workflow}"
    click.echo(f"wrote {name}/spec.yaml, {name}/tickets.csv{also}: say there where pip finds bt-compiler")
    if not ignored:
        click.echo(f"write `artifacts/` into {top / '.gitignore'}: bundles and journals lie there")
    quoted = shlex.quote(_no_option(f"{name}/spec.yaml"))
    click.echo(f"next: btc check {quoted} && btc compile {quoted}")


def _repository(name: Path) -> Path:
    """The top folder of the repository (`.git` or `.github`) that the new folder lies in; without one an empty folder
    that it is made in, for that becomes one, or else the new folder itself.
    """
    whole = name.resolve()
    there = next(folder for folder in whole.parents if folder.is_dir())
    found = next(
        (one for one in (there, *there.parents) if (one / ".git").exists() or (one / ".github").is_dir()), None
    )
    if found is None:
        found = whole if any(there.iterdir()) else there
    return Path(os.path.relpath(found))


def _workflow(top: Path, program: str, spec: str) -> Path:
    """Where the workflow of `spec` (a path from `top`) goes, or is already: it has the program's name, or where another
    spec's has that, one of the whole path, numbered where that is taken too.
    """
    whole = _word(Path(spec).parent.as_posix())  # no `-` in it: a workflow finds its cache by its name and a `-`
    words = chain((program, whole), (f"{whole}_{number}" for number in count(2)))
    paths = (top / ".github" / "workflows" / f"btc-{word}.yml" for word in words)
    return next(path for path in paths if not path.exists() or _runs(path, spec))


def _runs(workflow: Path, spec: str) -> bool:
    """Whether the workflow is that of `spec`."""
    lines = workflow.read_text(encoding="utf-8", errors="replace").splitlines()
    return f"SPEC: {_quoted(spec)}" in map(str.strip, lines)


def _quoted(text: str) -> str:
    """As YAML reads it: it has no escapes by two halves of a character, as JSON has."""
    return json.dumps(text, ensure_ascii=not text.isprintable())


def _no_option(path: str) -> str:
    """The path as an argument: one that begins with `-` would be an option."""
    return f"./{path}" if path.startswith("-") else path


def _word(text: str) -> str:
    return re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_") or "program"


def _refuse_there(path: Path) -> None:
    if path.exists():
        raise _taken(path)


def _taken(path: Path) -> UsageError:
    return UsageError.of(
        "BTC580", f"`{path}` exists already", help="name a folder that does not exist; nothing was changed"
    )


def _filled(template: Path, **words: str) -> str:
    """The template's text with these words filled in."""
    text = template.read_text(encoding="utf-8")
    for word, value in words.items():
        text = text.replace(word, value)
    return text


def _write_all(files: Mapping[Path, str]) -> None:
    """Writes new files and the folders that they need; where one cannot be written, none stays. Raises OSError."""
    made: list[Path] = []
    try:
        for path, text in files.items():
            for folder in reversed(path.parents):
                if not folder.exists():
                    folder.mkdir()
                    made.append(folder)
            with path.open("x", encoding="utf-8") as file:
                made.append(path)
                file.write(text)
    except OSError:
        for path in reversed(made):
            path.rmdir() if path.is_dir() else path.unlink()
        raise


def _ignores(file: Path, line: str) -> bool:
    """Whether git ignores what `line` names, as the file says."""
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []
    return any(one.strip().strip("/*") == line.strip("/") for one in lines)


@click.command("explain")
@click.argument("code")
@json_option
def explain_command(code: str, as_json: bool) -> None:
    """Explain an error CODE such as BTC203 at length."""
    info = explain(code)
    if info is None:
        raise UsageError.of(
            "BTC582", f"there is no code `{code}`", help=did_you_mean(code.upper(), known_codes(), what="codes")
        )
    if as_json:
        print_json("explain", {"code": info.code, "title": info.title, "text": info.text})
        return
    click.echo(f"{info.code}: {info.title}\n\n{info.text}")


@click.command("schema")
def schema_command() -> None:
    """Print the JSON Schema of specs, for editors and validators."""
    from bt_compiler.spec import schema_text

    click.echo(schema_text(), nl=False)


@click.command("cache")
@click.option("--clear", is_flag=True, help="Delete all cached completions; converted models and indexes stay.")
@click.option("--clear-all", is_flag=True, help="Delete converted models and indexes as well.")
@json_option
def cache_command(clear: bool, clear_all: bool, as_json: bool) -> None:
    """Show where the cache is and what it holds, or clear it. Its place: `BTC_CACHE`, else the user's cache folder."""
    from bt_compiler.engine.cache import CompletionCache, cache_path, cache_root, clear_cache

    root = cache_root(os.environ)
    if clear or clear_all:
        clear_cache(cache_path(root))
    if clear_all:
        for part in ("models", "indexes", "digests", "machine"):  # the folder may hold what is not ours
            _delete(root / part)
    with closing(CompletionCache(cache_path(root))) as completions:
        held = completions.statistics()
    folders = {
        part: sum(file.stat().st_size for file in (root / part).rglob("*") if file.is_file())
        for part in ("models", "indexes")
    }
    if as_json:
        print_json(
            "cache",
            {"root": str(root), "completions": {"entries": held["entries"], "bytes": held["bytes"]}, "bytes": folders},
        )
        return
    click.echo(f"{root}")
    limit = "" if held["max_bytes"] is None else f" of {held['max_bytes'] / 1e6:.0f} MB"
    click.echo(f"  completions: {held['entries']} ({held['bytes'] / 1e6:.1f} MB{limit})")
    for part, size in folders.items():
        click.echo(f"  {part}: {size / 1e6:.1f} MB")


def _delete(folder: Path) -> None:
    """Deletes a part of the cache; of one that was moved elsewhere the link alone, for what it leads to may hold more.

    Raises UsageError BTC581.
    """
    try:
        if folder.is_symlink():
            led = folder.resolve()
            folder.unlink()
            click.echo(
                f"`{folder}` was a link and is gone; `{led}` is as it was: delete there what is not needed", err=True
            )
        elif folder.exists():
            shutil.rmtree(folder)
    except OSError as error:
        raise UsageError.of(
            "BTC581",
            f"cannot delete `{error.filename or folder}`: {error.strerror}",
            help="what was deleted before it is gone; see to its permissions, or delete it by hand",
        ) from error


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_command(shell: str) -> None:
    """Print the completion script of SHELL: `btc completion bash >> ~/.bashrc`."""
    from click.shell_completion import get_completion_class

    from bt_compiler.cli.main import cli

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "btc", "_BTC_COMPLETE").source())
