"""Tools: those that come with btc, and a person's own in a process of their own, well-behaved and not."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from engine_parts import candidate_of, examples

from bt_compiler.engine.backends.scripted import ScriptedBackend
from bt_compiler.engine.executor import Engine
from bt_compiler.engine.own_code import entry_code_digest
from bt_compiler.engine.tools import Tool, open_tools
from bt_compiler.engine.tools.registry import tool_code, tool_digest
from bt_compiler.errors import BackendError, ExampleError
from bt_compiler.graph import lower, program_from_json, program_to_json
from bt_compiler.spec import build_sections, load_spec
from bt_compiler.spec.sections import ToolSection
from bt_compiler.spec.types import FLOAT, INT, STR, Field, Type

FUNCTIONS = """
import numpy, os, time
print("loading says something")
def double(n):
    print("so does a call")
    return n * 2
def both(n): return {"a": n, "b": str(n)}
def slow(n): time.sleep(60)
def raises(n): raise ValueError(f"no {n}")
def wrong(n): return "three"
def odd(n): return object()
def dies(n): os._exit(3)
async def later(n): return n
def counted(n): return {"a": numpy.float32(n) / 2, "b": [numpy.int64(n), numpy.array(n)]}
def nan(n): return numpy.float32("nan")
"""


def calculated(text: str) -> float:
    (tool,) = open_tools([ToolSection(name="c", kind="calculator", inputs=(), outputs=())]).values()
    found: float = tool({"expression": text})["result"]
    return found


def test_the_calculator_does_arithmetic_and_nothing_else() -> None:
    assert calculated(" 3 + 4*5 ") == 23
    assert calculated("-(2 ^ 3) / 4 + 7 // 2 % 2") == -1
    for text in ("9**9**9", "1/0", "__import__('os')", "a + 1", "3 +", "'a' * 9", "(" * 400, "1" * 600, "(-8) ** 0.5"):
        with pytest.raises(ExampleError, match="BTC540"):
            calculated(text)


def test_a_text_is_split_without_loss() -> None:
    (tool,) = open_tools([ToolSection(name="s", kind="split_text", inputs=(), outputs=(), option=3)]).values()
    assert tool({"text": "a b  c\nd e"}) == {"chunks": ["a b c", "d e"]}
    assert tool({"text": "  "}) == {"chunks": []}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FUNCTIONS, encoding="utf-8")
    return path


class Opened:
    """Opens functions of a file and closes them at the end."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.tools: list[Tool] = []

    def __call__(self, name: str, outputs: tuple[Field, ...] = (Field(name="m", type=INT),), **more: Any) -> Tool:
        inputs = (Field(name="n", type=INT),)
        section = ToolSection(name=name, kind="function", inputs=inputs, outputs=outputs, option=name, **more)
        (tool,) = open_tools([section], file=self.file).values()
        self.tools.append(tool)
        return tool


@pytest.fixture
def opened(file: Path) -> Iterator[Opened]:
    made = Opened(file)
    yield made
    for tool in made.tools:
        tool.close()


def test_a_function_of_a_file_is_called_with_keywords_and_typed(opened: Opened) -> None:
    double = opened("double")
    assert [double({"n": n}) for n in (1, 2)] == [{"m": 2}, {"m": 4}]
    assert double({"n": 10**6}) == {"m": 2 * 10**6}
    both = opened("both", outputs=(Field(name="a", type=FLOAT), Field(name="b", type=STR)))
    assert both({"n": 3}) == {"a": 3.0, "b": "3"}


def test_numbers_of_numpy_are_numbers(opened: Opened) -> None:
    counted = opened(
        "counted", outputs=(Field(name="a", type=FLOAT), Field(name="b", type=Type(kind="list", item=INT)))
    )
    assert counted({"n": 3}) == {"a": 1.5, "b": [3, 3]}


@pytest.mark.parametrize(
    ("name", "code"),
    [("nan", "BTC540"), ("raises", "BTC540"), ("wrong", "BTC541"), ("odd", "BTC540"), ("dies", "BTC540")],
)
def test_what_goes_wrong_in_a_function_ends_on_its_example_and_the_next_call_works(
    opened: Opened, name: str, code: str
) -> None:
    tool = opened(name)
    for _ in range(2):
        with pytest.raises(ExampleError, match=code):
            tool({"n": 3})


def test_a_function_that_never_returns_is_killed(opened: Opened) -> None:
    tool = opened("slow", time_limit=0.2)
    for _ in range(2):
        with pytest.raises(ExampleError, match=r"BTC542.*within 0.2 s"):
            tool({"n": 3})


def test_half_a_character_of_a_function_is_no_end_of_the_run(opened: Opened) -> None:
    opened.file.write_text("def cut(n):\n    if n: raise ValueError('\\ud83d bad')\n    return '\\ud83d'\n")
    tool = opened("cut", outputs=(Field(name="m", type=STR),))
    assert tool({"n": 0}) == {"m": "\ufffd"}
    with pytest.raises(ExampleError, match="\ufffd bad"):
        tool({"n": 1})


def test_what_a_killed_function_started_is_killed_too(opened: Opened, tmp_path: Path) -> None:
    opened.file.write_text(
        "import subprocess, time\n"
        "def shell(n):\n"
        f"    subprocess.run(['sh', '-c', 'echo $$ > {tmp_path}/pid; sleep 60; true'])\n",
        encoding="utf-8",
    )
    tool = opened("shell", time_limit=2.0)
    with pytest.raises(ExampleError, match="BTC542"):
        tool({"n": 3})
    started = int((tmp_path / "pid").read_text())
    until = time.monotonic() + 5.0
    while alive(started) and time.monotonic() < until:
        time.sleep(0.02)
    assert not alive(started)


def alive(process: int) -> bool:
    """Whether it runs: one that was killed may wait as a zombie for whoever inherits it."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def test_a_file_imports_what_lies_beside_it(opened: Opened) -> None:
    opened.file.with_name("threes.py").write_text("THREE = 3\n", encoding="utf-8")
    opened.file.write_text("from threes import THREE\ndef triple(n): return THREE * n\n", encoding="utf-8")
    first = opened("triple")
    assert first({"n": 2}) == {"m": 6}
    opened.file.with_name("threes.py").write_text("import more\nTHREE = 3\n", encoding="utf-8")
    opened.file.with_name("more.py").write_text("", encoding="utf-8")
    second = opened("triple")
    opened.file.with_name("more.py").write_text("x = 1\n", encoding="utf-8")
    opened.file.with_name("unasked.py").write_text("y = 1\n", encoding="utf-8")
    third = opened("triple")
    opened.file.with_name("unasked.py").write_text("y = 2\n", encoding="utf-8")
    assert len({first.digest, second.digest, third.digest}) == 3
    assert opened("triple").digest == third.digest


def test_functions_that_are_not_there(opened: Opened, file: Path) -> None:
    with pytest.raises(BackendError, match=r"BTC544.*defines no `lost`"):
        opened("lost")
    with pytest.raises(BackendError, match=r"BTC544.*`later` is `async`"):
        opened("later")
    opened.file = file.with_name("other.py")
    with pytest.raises(BackendError, match=r"BTC543.*there is no file"):
        opened("double")
    opened.file = file.with_name("n" * 300)  # refused by the system, as in a folder that may not be entered
    with pytest.raises(BackendError, match=r"BTC543.*cannot be read: file name too long"):
        opened("double")
    section = ToolSection(name="x", kind="function", inputs=(), outputs=(), option="x")
    with pytest.raises(BackendError, match=r"BTC543.*no file was named"):
        open_tools([section])
    with pytest.raises(BackendError, match=r"BTC543.*no installed package"):
        open_tools([ToolSection(name="x", kind="entry_point", inputs=(), outputs=(), option="x")])


def test_an_installed_package_registers_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plugin_of_test.py").write_text("def triple(n): return 3 * n\n")
    info = tmp_path / "plugin_of_test-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin_of_test\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[btc.tools]\ntriple = plugin_of_test:triple\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[2]}")
    section = ToolSection(
        name="t", kind="entry_point", inputs=(), outputs=(Field(name="m", type=INT),), option="triple"
    )
    (tool,) = open_tools([section]).values()
    assert tool({"n": 4}) == {"m": 12}
    tool.close()
    before, of_version = tool_code(section), tool_digest(section)
    (tmp_path / "plugin_of_test.py").write_text("def triple(n): return n + n + n\n")
    assert before != tool_code(section)
    assert of_version == tool_digest(section), "a bundle asks for the version alone"


def test_code_under_work_is_what_it_imports_beside_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    entry = EntryPoint(name="f", value="one_of_test:f", group="any")
    assert entry_code_digest(entry) == ""
    (tmp_path / "one_of_test.py").write_text("import two_of_test\ndef f(): ...\n")
    (tmp_path / "two_of_test.py").write_text("x = 1\n")
    importlib.invalidate_caches()
    before = entry_code_digest(entry)
    (tmp_path / "two_of_test.py").write_text("x = 2\n")
    assert before != entry_code_digest(entry) != ""


def test_what_editors_keep_beside_a_file_is_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / "three_of_test"
    package.mkdir()
    (package / "__init__.py").write_text("def f(): ...\n")
    importlib.invalidate_caches()
    entry = EntryPoint(name="f", value="three_of_test:f", group="any")
    before = entry_code_digest(entry)
    (package / ".#__init__.py").symlink_to("someone@host.123:456")  # Emacs, while the file is not saved
    assert entry_code_digest(entry) == before != ""


SPEC = """
version: 1
data: d.jsonl
metric: {kind: accuracy, output: sum}
tools: {calc: {kind: calculator}}
modules: {write: {signature: "question -> expression"}}
program:
  inputs: {question: str}
  steps:
    plan: {call: write, in: [question]}
    sum: {tool: calc, in: {expression: $plan.expression}}
  out: {sum: $sum.result}
"""


def test_a_tool_step_is_traced_and_its_failure_is_the_examples(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC)
    spec = load_spec(path)
    sections = build_sections(spec)
    program = lower(spec, sections)
    assert program_from_json(program_to_json(program)) == program
    backend = ScriptedBackend(function=lambda request: f"Expression: {request.prompt.messages[-1].content[10:]}")
    with_tools = Engine(backends={"default": backend}, tools=open_tools(sections.tools))
    rows = [{"question": "1 + 2"}, {"question": "one"}]
    good, bad = with_tools.run(program, candidate_of(program), examples(rows))
    assert good.outputs == {"sum": 3.0}
    assert [(step.node, dict(step.inputs), step.outputs) for step in good.steps][1:] == [
        ("sum", {"expression": "1 + 2"}, {"result": 3.0})
    ]
    assert bad.error is not None and (bad.error.code, bad.error.node) == ("BTC540", "sum")
    assert bad.steps[-1].outputs is None
