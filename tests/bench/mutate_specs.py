"""Mutated specs through the whole check: no traceback, no hang, each with a code.

    python tests/bench/mutate_specs.py [COUNT] [SEED]

prints how often each code came, the slowest check and every traceback (there must be none).
"""

from __future__ import annotations

import random
import shutil
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from bt_compiler.compiler.check import checked
from bt_compiler.diagnostics import known_codes
from bt_compiler.errors import BtcError

ROOT = Path(__file__).parents[2]

SCALARS = (
    "", "~", "null", "true", "3", "-1", "0", "0.5", "1e309", "1e-400", ".nan", "'3'", '""', "no", "[]", "{}", "[str]",
    "list[str]", "str | null", "[[str]]", "$", "$$", "$x", "$x.y", "$labels.answer", "$question", "question -> answer",
    "->", "{a: b}", "[a, b]", "[a, a]", "999999999999", "1" * 40, "../x", "/", "/dev/null", "~root/x", "x" * 300, "é",
    "\u2028", "😀", '"\\0"', '"\\ud800"', "&a x", "*a", "!x y", "<<", "- a", "? a", ": a", "a: b", "# c", "|", ">", "%",
    "@", "`", "'", '"', "[", "{", "]", "}", "---", "...", "\t", "{enum: [a]}", "{enum: []}", "{type: int, min: a}",
    "{fields: {a: str}}", "[Passage]", "Passage", "openai", "chain_of_thought", "predict", "repeat", "sklearn:iris",
    "sklearn:none", "data.csv", "spec.yaml", ".", "weights", "[weights]", "{add: $found.passages}", "{path: x}",
)  # fmt: skip
"""What a person, a merge or a broken tool may leave in place of a value."""


class Mutant(NamedTuple):
    """A spec and what was done to it."""

    text: str
    overrides: tuple[str, ...]
    how: str


def mutants(texts: Sequence[str], count: int, seed: int) -> Iterator[Mutant]:
    """`count` mutants of `texts`, the same for the same seed."""
    source = random.Random(seed)
    for _ in range(count):
        text, done, overrides = source.choice(texts), [], ()
        for _ in range(source.choice((1, 1, 1, 2, 3))):
            mutate = source.choice(_MUTATIONS)
            text = mutate(text, source)
            done.append(mutate.__name__.strip("_"))
        if source.random() < 0.15:
            overrides = (f"{source.choice(_PLACES)}={source.choice(SCALARS)}",)
            done.append("set")
        yield Mutant(text, overrides, " + ".join(done))


_PLACES = (
    "data", "data.train", "data.train.path", "data.limit", "model", "model.id", "model.generation.top_p", "metric",
    "metric.output", "optimize.strategy", "optimize.strategy.0", "optimize.weights.r", "program.out", "program.steps",
    "modules", "types", "name", "version", "nothing.there", "a.b.c.d", "",
)  # fmt: skip


def _line(text: str, source: random.Random) -> tuple[list[str], int]:
    lines = text.splitlines()
    return lines, source.randrange(len(lines)) if lines else 0


def _drop_line(text: str, source: random.Random) -> str:
    lines, at = _line(text, source)
    return "\n".join(lines[:at] + lines[at + 1 :]) + "\n"


def _double_line(text: str, source: random.Random) -> str:
    lines, at = _line(text, source)
    return "\n".join(lines[: at + 1] + lines[at:]) + "\n"


def _swap_lines(text: str, source: random.Random) -> str:
    lines, at = _line(text, source)
    if lines:
        other = source.randrange(len(lines))
        lines[at], lines[other] = lines[other], lines[at]
    return "\n".join(lines) + "\n"


def _indent_line(text: str, source: random.Random) -> str:
    lines, at = _line(text, source)
    if lines:
        lines[at] = source.choice((" ", "  ", "\t")) + lines[at] if source.random() < 0.5 else lines[at][1:]
    return "\n".join(lines) + "\n"


def _tokens(text: str) -> list[tuple[int, int]]:
    """Spans of words, that is of most keys and plain values."""
    spans, start = [], None
    for place, char in enumerate(text + " "):
        if char in " \n,:{}[]\"'|":
            if start is not None:
                spans.append((start, place))
            start = None
        elif start is None:
            start = place
    return spans


def _replace_word(text: str, source: random.Random) -> str:
    spans = _tokens(text)
    if not spans:
        return text
    start, end = source.choice(spans)
    return text[:start] + source.choice(SCALARS) + text[end:]


def _misspell(text: str, source: random.Random) -> str:
    spans = _tokens(text)
    if not spans:
        return text
    start, end = source.choice(spans)
    at = source.randrange(start, end)
    return text[:at] + source.choice(("", text[at] * 2, "x", "_", "é")) + text[at + 1 :]


def _swap_words(text: str, source: random.Random) -> str:
    spans = _tokens(text)
    if len(spans) < 2:
        return text
    (a, b), (c, d) = sorted(source.sample(spans, 2))
    return text[:a] + text[c:d] + text[b:c] + text[a:b] + text[d:]


def _drop_word(text: str, source: random.Random) -> str:
    spans = _tokens(text)
    if not spans:
        return text
    start, end = source.choice(spans)
    return text[:start] + text[end:]


def _drop_character(text: str, source: random.Random) -> str:
    at = source.randrange(len(text)) if text else 0
    return text[:at] + text[at + 1 :]


def _insert(text: str, source: random.Random) -> str:
    at = source.randrange(len(text) + 1)
    return text[:at] + source.choice(SCALARS) + text[at:]


def _cut(text: str, source: random.Random) -> str:
    return text[: source.randrange(len(text) + 1)]


def _replace_value(text: str, source: random.Random) -> str:
    lines, at = _line(text, source)
    if lines and ":" in lines[at]:
        lines[at] = lines[at].partition(":")[0] + ": " + source.choice(SCALARS)
    return "\n".join(lines) + "\n"


_MUTATIONS: tuple[Callable[[str, random.Random], str], ...] = (
    _drop_line,
    _double_line,
    _swap_lines,
    _indent_line,
    _replace_word,
    _replace_word,
    _misspell,
    _misspell,
    _swap_words,
    _swap_words,
    _drop_word,
    _drop_character,
    _insert,
    _cut,
    _replace_value,
    _replace_value,
)


def starting_points() -> list[str]:
    """Specs of the tests and of `specs/`, each a text on its own."""
    paths = sorted((ROOT / "specs").glob("*.yaml")) + sorted((ROOT / "tests" / "spec" / "whole").glob("*.yaml"))
    return [path.read_text(encoding="utf-8") for path in paths]


def lay_out(folder: Path) -> None:
    """What the specs name: data, a corpus, a base, so that checks go as far as they can."""
    questions = "".join(f'{{"question": "q{n}", "answer": "a{n}", "gold_titles": ["t"]}}\n' for n in range(8))
    shutil.copytree(ROOT / "specs" / "data", folder / "data")
    for split in ("train", "dev", "test"):
        (folder / "data" / f"{split}.jsonl").write_text(questions.replace(': "q', f': "{split} q'), encoding="utf-8")
    (folder / "data" / "corpus.jsonl").write_text('{"title": "t", "text": "x"}\n', encoding="utf-8")
    (folder / "tickets.csv").write_text("text,category\n" + "".join(f"t{n},bug\n" for n in range(9)), encoding="utf-8")
    for path in (ROOT / "specs").glob("*.yaml"):
        (folder / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")


class Outcome(NamedTuple):
    """What a check said."""

    codes: tuple[str, ...]
    """Codes of the errors; empty: the mutant is a good spec."""
    seconds: float
    crash: str | None
    """The traceback of anything but a `BtcError`, or of one whose code nobody can explain."""


def check_mutant(mutant: Mutant, folder: Path) -> Outcome:
    """Runs the whole check on one mutant in `folder`."""
    path = folder / "mutant.yaml"
    path.write_text(mutant.text, encoding="utf-8", errors="surrogatepass")
    start = time.perf_counter()
    codes: tuple[str, ...] = ()
    crash = None
    try:
        checked(path, mutant.overrides)
    except BtcError as error:
        codes = tuple(item.code for item in error.diagnostics)
        if not codes or not set(codes) <= set(known_codes()):
            crash = f"codes that cannot be explained: {codes}"
    except Exception:  # the very thing that is looked for
        crash = traceback.format_exc()
    return Outcome(codes, time.perf_counter() - start, crash)


def main(arguments: Sequence[str]) -> int:
    """Prints the outcome of COUNT (2,000) mutants of seed SEED (0); 1 if there was a traceback."""
    count = int(arguments[0]) if arguments else 2000
    seed = int(arguments[1]) if len(arguments) > 1 else 0
    codes: Counter[str] = Counter()
    slowest, crashes, started = (0.0, ""), 0, time.perf_counter()
    with TemporaryDirectory() as name:
        folder = Path(name)
        lay_out(folder)
        for number, mutant in enumerate(mutants(starting_points(), count, seed)):
            outcome = check_mutant(mutant, folder)
            codes.update(set(outcome.codes) or {"good"})
            slowest = max(slowest, (outcome.seconds, f"mutant {number}: {mutant.how}"))
            if outcome.crash is not None:
                crashes += 1
                print(f"--- mutant {number} of seed {seed}: {mutant.how} {mutant.overrides}\n{outcome.crash}")
    for code, times in sorted(codes.items()):
        print(f"{code:8} {times}")
    print(f"{count} mutants of seed {seed} in {time.perf_counter() - started:.1f} s")
    print(f"slowest {slowest[0] * 1000:.0f} ms ({slowest[1]})")
    print(f"tracebacks {crashes}")
    return 1 if crashes else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
