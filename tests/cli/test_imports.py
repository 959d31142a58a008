"""What is light stays light: these never load torch, transformers, peft or vllm. Each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "peft", "vllm")
SHOW = f"""
import sys
print(sorted(name for name in {HEAVY!r} if name in sys.modules), file=sys.stderr)
"""

LIGHT = {
    "btc --help": "run_btc('--help')",
    "btc check": "run_btc('check', 'specs/iris.yaml', 'specs/iris_cot.yaml')",
    "btc plan": "run_btc('plan', 'specs/iris.yaml')",
    "btc schema": "run_btc('schema')",
    "btc explain": "run_btc('explain', 'BTC350')",
    "btc serve --help": "run_btc('serve', '--help')",
    "btc show and diff": """
import sys, tempfile
sys.path.insert(0, 'tests/runtime')
from conftest import write_adder
with tempfile.TemporaryDirectory() as folder:
    bundle = str(write_adder(Path(folder)))
    run_btc('show', bundle)
    run_btc('diff', bundle, bundle)
""",
    "check as a library": """
from bt_compiler.compiler.check import checked
assert checked(Path('specs/iris.yaml')).program.modules
""",
    "plan as a library": """
from bt_compiler.compiler.check import checked
from bt_compiler.compiler.plan import plan
assert plan(checked(Path('specs/iris.yaml'))).to_text()
""",
    "the runtime": """
import bt_compiler, bt_compiler.runtime, bt_compiler.runtime.serve
assert callable(bt_compiler.load)
optimising = sorted(name for name in sys.modules if name.startswith('bt_compiler.optimize'))
assert not optimising, optimising
""",
}

PRELUDE = """
import contextlib, io, sys
from pathlib import Path
def run_btc(*arguments):
    from bt_compiler.cli import main
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            main(arguments)
        except SystemExit as end:
            assert not end.code, (end.code, output.getvalue())
    assert output.getvalue(), 'it said nothing'
"""


def heavy_imports(code: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-c", PRELUDE + code + SHOW], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("code", LIGHT.values(), ids=LIGHT.keys())
def test_light_commands_import_nothing_heavy(code: str) -> None:
    assert heavy_imports(code) == "[]"


def test_the_test_would_see_torch() -> None:
    assert heavy_imports("import types; sys.modules['torch'] = types.ModuleType('torch')") == "['torch']"


REMOTE = """
import json, os, tempfile, threading
from http.server import BaseHTTPRequestHandler, HTTPServer

class Server(BaseHTTPRequestHandler):
    asked = []
    def reply(self, data):
        body = json.dumps(data).encode()
        self.send_response(200)
        self.send_header('Content-Type', 'application/json')
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        self.reply({'data': [{'id': 'remote', 'max_model_len': 4096}]})
    def do_POST(self):
        self.asked.append(json.loads(self.rfile.read(int(self.headers['Content-Length']))))
        message = {'role': 'assistant', 'content': 'Label: spam'}
        usage = {'prompt_tokens': 9, 'completion_tokens': 3}
        self.reply({'choices': [{'message': message, 'finish_reason': 'stop'}], 'usage': usage})
    def log_message(self, *args):
        pass

server = HTTPServer(('127.0.0.1', 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()

from bt_compiler.data import make_example
from bt_compiler.engine.backends import open_backend
from bt_compiler.engine.executor import Engine
from bt_compiler.engine.progress import Silent
from bt_compiler.graph import lower, spec_candidate
from bt_compiler.spec import build_sections, load_spec

folder = Path(tempfile.mkdtemp())
(folder / 'd.jsonl').write_text('{"text": "win money", "label": "spam"}\\n')
(folder / 's.yaml').write_text('''
version: 1
model: {id: remote, engine: openai, endpoints: ["http://127.0.0.1:%d/v1"]}
data: {train: d.jsonl}
modules:
  m:
    kind: predict
    signature: {instructions: Sort., inputs: {text: str}, outputs: {label: {enum: [spam, ham]}}}
metric: accuracy
''' % server.server_port)
spec = load_spec(folder / 's.yaml')
sections = build_sections(spec)
program = lower(spec, sections)
choices = lambda name, measure: measure()
backend = open_backend(sections.models[0], cache_root=folder, choices=choices, progress=Silent())
engine = Engine(backends={sections.models[0].name: backend})
(trace,) = engine.run(program, spec_candidate(program), [make_example({'text': 'win money'}, {'label': 'spam'})])
backend.close()
assert trace.outputs == {'label': 'spam'}, trace
assert Server.asked
"""


def test_a_program_on_a_remote_model_imports_nothing_heavy() -> None:
    assert heavy_imports(REMOTE) == "[]"
