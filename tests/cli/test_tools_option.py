"""`--tools FILE` on every command that runs a program: the right file, none, another, and files that do not work.

The model is a server of this process that follows a rule, so that the commands are those that people type.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from bt_compiler.cli.main import main
from bt_compiler.errors import BackendError
from bt_compiler.runtime import load

GOOD = "def double(n):\n    return n * 2\n"
SPEC = """\
version: 1
name: NAME
model: {id: lm, engine: openai, endpoints: [URL]}
data: {train: train.jsonl, dev: dev.jsonl, test: test.jsonl}
tools:
  double: {kind: function, inputs: {n: int}, outputs: {twice: int}, time_limit: 0.5}
MODULES
metric: {kind: accuracy, output: twice}
optimize: {strategy: [prompts], prompts: {candidates: 0, max_bootstrapped_demos: 1, max_labeled_demos: 1}}
"""
AGENT = 'modules: {agent: {kind: react, tools: [double], at_most: 1, signature: "text -> twice: int"}}'
STEPS = """\
modules: {ask: {signature: "text -> n: int"}}
program:
  inputs: {text: str}
  steps:
    one: {call: ask, in: [text]}
    two: {tool: double, in: {n: $one.n}}
  out: {twice: $two.twice}
"""


def rule(turns: Sequence[dict[str, str]]) -> str:
    """The agent doubles the number of the text by its tool, and says 0 where that fails; the step's module reads it."""
    last = turns[-1]["content"]
    if last.startswith("Observation: "):
        told = last.removeprefix("Observation: ")
        return f'Thought: t\nTool: finish\nArguments: {{"twice": {told if told.isdigit() else 0}}}'
    number = int(last.rsplit(" ", 1)[1])
    if "Tool (" in turns[0]["content"]:
        return f'Thought: t\nTool: double\nArguments: {{"n": {number}}}'
    return f"N: {number}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._say({"data": [{"id": "lm", "max_model_len": 4096}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = {"role": "assistant", "content": rule(body["messages"])}
        usage = {"prompt_tokens": 9, "completion_tokens": 3}
        self._say({"model": "lm", "choices": [{"message": said, "finish_reason": "stop"}], "usage": usage})

    def _say(self, answer: dict[str, Any]) -> None:
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def folder(url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Specs, data and a file of tools; its bundles are made by `bundle`."""
    made = tmp_path_factory.mktemp("tools")
    for split, numbers in (("train", range(10, 16)), ("dev", range(3)), ("test", range(5, 8))):
        rows = [json.dumps({"text": f"double {number}", "twice": 2 * number}) + "\n" for number in numbers]
        (made / f"{split}.jsonl").write_text("".join(rows))
    for name, modules in (("agent", AGENT), ("steps", STEPS)):
        text = SPEC.replace("NAME", name).replace("URL", url).replace("MODULES\n", modules.rstrip() + "\n")
        (made / f"{name}.yaml").write_text(text)
    (made / "mine.py").write_text(GOOD)
    return made


def btc(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "BTC_CACHE": str(folder / "cache"), "NO_PROXY": "*"}
    command = [sys.executable, "-m", "bt_compiler", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False, env=environment)


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Path:
    made = btc(folder, "compile", "agent.yaml", "--tools", "mine.py")
    assert made.returncode == 0, made.stderr
    lines = made.stdout.splitlines()
    assert lines[0] == "dev  zero-shot    1.000  [0.439, 1.000]  n=3"
    assert lines[4] == "test shipped      1.000  [0.439, 1.000]  n=3"
    assert re.fullmatch(r"bundle artifacts/agent/  digest \w{16}  report artifacts/agent/report\.html", lines[6])
    return folder / "artifacts" / "agent"


@pytest.fixture
def called(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """`btc` in this process: (exit code, stdout, stderr)."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("BTC_CACHE", str(folder / "cache"))
    monkeypatch.setenv("NO_PROXY", "*")

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main(arguments)
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        return int(left.value.code or 0), shown.out, shown.err

    return call


def test_checking_and_planning_need_no_file_for_they_run_nothing(called: Any) -> None:
    code, out, _ = called("check", "agent.yaml", "steps.yaml")
    assert (code, out.count(": ok (1 module(s), 6 train / 3 dev / 3 test examples)")) == (0, 2)
    assert called("plan", "agent.yaml")[0] == 0
    code, _, err = called("check", "agent.yaml", "--tools", "mine.py")
    assert (code, "o such option" in err and "--tools" in err) == (2, True)


def test_run_and_eval_with_the_file(bundle: Path, folder: Path) -> None:
    ran = btc(folder, "run", "artifacts/agent", "--input", '{"text": "double 21"}', "--tools", "mine.py")
    assert (ran.returncode, ran.stdout) == (0, '{\n  "twice": 42\n}\n'), ran.stderr
    scored = btc(folder, "eval", "artifacts/agent", "--tools", "mine.py", "--json")
    document = json.loads(scored.stdout)
    assert (scored.returncode, document["mean"], document["n"], document["failures"]) == (0, 1.0, 3, 0)
    assert "tool_errors" not in document
    gate = btc(folder, "eval", "artifacts/agent", "--tools", "mine.py", "--at-least", "1")
    assert gate.returncode == 0, gate.stderr


def test_in_python_the_file_is_named_by_a_text_like_the_bundle(
    bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.chdir(folder)
    with load(str(bundle), tools="mine.py", cache_root="cache") as agent:
        monkeypatch.chdir("/")  # what is opened at the first use lies where `load` was called
        assert agent(text="double 4").twice == 8
    with load(str(bundle)) as agent, pytest.raises(BackendError, match="BTC543") as caught:
        agent(text="double 4")
    assert str(caught.value.diagnostics[0].help).endswith("`--tools FILE`, in Python the argument `tools`")


def test_a_score_below_what_is_asked_for_ends_with_one(bundle: Path, folder: Path) -> None:
    command = ("eval", "artifacts/agent", "--tools", "mine.py", "--at-least", "0.9")
    (folder / "hard.jsonl").write_text('{"text": "double 2", "twice": 5}\n')
    told = btc(folder, *command, "--data", "hard.jsonl")
    assert (told.returncode, "error[BTC453]" in told.stderr) == (1, True), told.stderr
    document = json.loads(btc(folder, *command, "--data", "hard.jsonl", "--json").stdout)
    assert (document["ok"], document["at_least"], document["mean"]) == (False, 0.9, 0.0)
    assert [item["code"] for item in document["diagnostics"]] == ["BTC453"]
    environment = {**os.environ, "BTC_CACHE": str(folder / "cache"), "NO_PROXY": "*"}
    call = [sys.executable, "-m", "bt_compiler", *command, "--data", "hard.jsonl"]
    unread = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=folder, env=environment)
    assert unread.stdout is not None
    unread.stdout.close()
    assert unread.wait() == 1


@pytest.mark.parametrize(
    ("data", "code"), [("sklearn:moods", "BTC321"), ("hf://owner/set", "BTC319"), ("gone.jsonl", "BTC301")]
)
def test_data_to_score_is_named_as_in_a_spec(bundle: Path, called: Any, data: str, code: str) -> None:
    left, _, err = called("eval", "artifacts/agent", "--tools", "mine.py", "--data", data)
    assert (left, err.startswith(f"error[{code}]"), f"`{data}`" in err) == (1, True, True), err


@pytest.mark.parametrize("command", [("run", "--input", '{"text": "double 2"}'), ("eval",)], ids=["run", "eval"])
def test_without_the_file_or_with_another_nothing_runs(
    bundle: Path, folder: Path, called: Any, command: tuple[str, ...]
) -> None:
    code, out, err = called(command[0], "artifacts/agent", *command[1:])
    assert (code, out) == (1, "")
    assert "error[BTC543]: tool `double` is a function of your own, and no file was named" in err
    assert "--tools FILE" in err
    (folder / "other.py").write_text("def double(n):\n    return n + n\n")
    code, out, err = called(command[0], "artifacts/agent", *command[1:], "--tools", "other.py")
    assert (code, out) == (1, "")
    assert err == (
        "error[BTC579]: tool `double` is not the one that the bundle was compiled with\n"
        "  = help: give the same file or package version, or compile again with this one\n"
    )


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        (None, "BTC543", "there is no file `bad.py`"),
        ("1 / 0\n", "BTC544", "cannot be loaded: ZeroDivisionError: division by zero"),
        ("def double(n:\n", "BTC544", "cannot be loaded: SyntaxError"),
        ("import sys; sys.exit(3)\n", "BTC544", "cannot be loaded: its process ended"),
        ("import no_such_library\n", "BTC544", "cannot be loaded: ModuleNotFoundError"),
        ("def dubble(n): return n\n", "BTC544", "cannot be loaded: LookupError: `"),
        ("double = 3\n", "BTC544", "cannot be loaded: TypeError: `double` is no function"),
    ],
    ids=["missing", "raises", "syntax", "exits", "imports", "lacks", "no function"],
)
def test_a_file_that_does_not_work_ends_the_compile_before_it_starts(
    folder: Path, called: Any, text: str | None, code: str, said: str
) -> None:
    bad = folder / "bad.py"
    bad.unlink(missing_ok=True)
    if text is not None:
        bad.write_text(text)
    left, out, err = called("compile", "agent.yaml", "--tools", "bad.py", "-o", "artifacts/bad", "--fresh")
    assert (left, out) == (1, "")
    assert f"error[{code}]" in err and said in err
    assert not (folder / "artifacts" / "bad").exists()


FAILING = [
    ("def double(n): raise ValueError('no doubles today')\n", "BTC540", "failed: ValueError: no doubles today"),
    ("def double(n): return 'two'\n", "BTC541", "is not `int`"),
    ("def double(n):\n    while True: pass\n", "BTC542", "did not answer within 0.5 s"),
    ("import os\ndef double(n): os._exit(1)\n", "BTC540", "ended"),
]


@pytest.mark.parametrize(("text", "code", "said"), FAILING, ids=["raises", "wrong type", "never returns", "dies"])
def test_calls_that_fail_are_the_examples_in_a_step_and_observations_of_an_agent(
    folder: Path, called: Any, text: str, code: str, said: str
) -> None:
    (folder / "failing.py").write_text(text)
    chosen = ("--tools", "failing.py", "--set", "optimize.strategy=[]", "--set", "data.test=null", "--json", "--fresh")
    left, out, _ = called("compile", "steps.yaml", "-o", "artifacts/failing-steps", *chosen)
    assert (left, json.loads(out)["scores"]["shipped"]["dev"]["failures"]) == (0, 3)
    left, out, err = called(
        "run", "artifacts/failing-steps", "--input", '{"text": "double 4"}', "--tools", "failing.py"
    )
    assert (left, out) == (1, "")
    assert f"error[{code}]" in err and said in err and "in step `two`" in err
    left, out, _ = called("compile", "agent.yaml", "-o", "artifacts/failing-agent", *chosen)
    shipped = json.loads(out)["scores"]["shipped"]["dev"]
    assert (left, shipped["failures"], shipped["tool_errors"]) == (0, 0, 3)
    assert shipped["mean"] == pytest.approx(1 / 3)  # 0 is the double of 0


def test_failing_calls_of_an_agent_are_counted_by_run_and_eval(folder: Path, called: Any) -> None:
    (folder / "failing.py").write_text(FAILING[0][0])
    chosen = ("--tools", "failing.py", "--set", "optimize.strategy=[]", "--set", "data.test=null", "--fresh")
    left, out, err = called("compile", "agent.yaml", "-o", "artifacts/failing-agent", *chosen)
    assert (left, out.splitlines()[0].endswith("n=3  3 tool calls failed")) == (0, True)
    why = "BTC540: tool `double` failed: ValueError: no doubles today"
    assert f"3 tool calls failed, most often 3 × double: {why}\n" in err
    reported = json.loads((folder / "artifacts" / "failing-agent" / "report.json").read_text(encoding="utf-8"))
    assert reported["tool_failures"] == [{"split": "dev", "tool": "double", "message": why, "calls": 3}]
    page = (folder / "artifacts" / "failing-agent" / "report.html").read_text(encoding="utf-8")
    assert "Failed tool calls" in page and "no doubles today" in page
    run = ("run", "artifacts/failing-agent", "--input", '{"text": "double 4"}', "--tools", "failing.py")
    assert called(*run)[:2] == (0, '{\n  "twice": 0\n}\n')
    score = ("eval", "artifacts/failing-agent", "--tools", "failing.py", "--split", "dev")
    _, out, err = called(*score)
    assert re.search(r"0 failed .* 3 tool calls failed\n", out) and f"  3 × double: {why}\n" in err
    document = json.loads(called(*score, "--json")[1])
    assert document["tool_failures"] == [{"tool": "double", "message": why, "calls": 3}]


def test_a_sweep_takes_the_file_and_says_where_it_is_missing(folder: Path, called: Any) -> None:
    chosen = ("sweep", "agent.yaml", "--strategies", "vanilla,prompts", "--seeds", "0,1", "-o", "artifacts/sweep")
    left, out, err = called(*chosen)
    assert (left, out) == (1, "") and "error[BTC543]" in err
    left, out, err = called(*chosen, "--tools", "mine.py", "--json")
    assert left == 0, err
    rows = json.loads(out)["tables"][0]["rows"]
    assert [row["mean"] for row in rows] == [1.0, 1.0]


def test_serving_with_the_file(bundle: Path, folder: Path) -> None:
    refused = btc(folder, "serve", "artifacts/agent", "--port", "0")
    assert refused.returncode == 1 and "error[BTC543]" in refused.stderr
    environment = {**os.environ, "BTC_CACHE": str(folder / "cache"), "NO_PROXY": "*"}
    command = [sys.executable, "-m", "bt_compiler", "serve", "artifacts/agent", "--port", "0", "--tools", "mine.py"]
    server = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True, env=environment)
    assert server.stderr is not None
    try:
        address = next(found.group() for line in server.stderr if (found := re.search(r"http://[\d.]+:\d+", line)))
        while urlopen(f"{address}/healthz").status != 200:
            time.sleep(0.05)
        answers = [_predicted(address, number) for number in (4, 5)]
    finally:
        server.send_signal(signal.SIGTERM)
        server.stderr.read()
        server.wait()
        server.stderr.close()
    assert answers == [{"twice": 8}, {"twice": 10}]


def _predicted(address: str, number: int) -> Any:
    body = json.dumps({"text": f"double {number}"}).encode()
    for _ in range(200):
        request = Request(f"{address}/v1/predict", data=body, headers={"Content-Type": "application/json"})
        try:
            return json.load(urlopen(request))
        except OSError:
            time.sleep(0.05)
    raise AssertionError("the model never came up")


def test_a_tool_that_runs_when_the_command_is_interrupted_shows_no_traceback(folder: Path) -> None:
    (folder / "long.py").write_text(
        "import pathlib, time\ndef double(n):\n    pathlib.Path('began').touch()\n    time.sleep(60)\n    return n\n"
    )
    command = [sys.executable, "-m", "bt_compiler", "compile", "steps.yaml", "--tools", "long.py", "--fresh"]
    command += ["-o", "artifacts/long", "--set", "tools.double.time_limit=50"]
    # a shell starts what runs in the background with interrupts ignored, and the tests may be that
    listening = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    )
    command = [sys.executable, "-c", listening, *command]
    environment = {**os.environ, "BTC_CACHE": str(folder / "cache"), "NO_PROXY": "*"}
    process = subprocess.Popen(
        command, cwd=folder, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    assert process.stderr is not None
    while not (folder / "began").exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 130
    assert "Traceback" not in said and "interrupted" in said
