"""Commands that need no model, as processes: the whole of what they print and their exit codes."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bt_compiler.cli.main import COMMANDS, main
from bt_compiler.diagnostics import Diagnostic, foremost, known_codes

RETRIEVING = """\
version: 1
model: {id: none, engine: scripted}
data: qa.jsonl
retrievers: {words: {kind: bm25, corpus: {path: qa.jsonl, text: "{question} {answer}"}}}
modules: {answer: {signature: "context: [Passage], question -> answer"}}
program:
  inputs: {question: str}
  steps:
    found: {retrieve: words, in: {query: $question}}
    final: {call: answer, in: {context: $found.passages, question: $question}}
  out: {answer: $final.answer}
metric: exact_match
optimize: {strategy: []}
"""


def btc(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bt_compiler", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, check=False, env={**os.environ, **environment}
    )


def test_help_lists_every_command() -> None:
    shown = btc("--help")
    assert shown.returncode == 0
    assert [name for name in COMMANDS if f"\n  {name} " in shown.stdout] == list(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    shown = btc(command, "--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith(f"Usage: btc {command} ")


def test_mistyped_command() -> None:
    shown = btc("chek")
    assert shown.returncode == 2
    assert shown.stdout == ""
    assert shown.stderr.endswith("Error: no such command `chek`; did you mean `check`?\n")


def test_an_option_may_come_from_the_environment_and_a_flag_wins() -> None:
    rank = "optimize.weights.r=0"
    wrong = btc("check", "specs/iris.yaml", BTC_CHECK_SET=f"{rank}\n\n  model.batch=0\r\n")
    assert wrong.returncode == 1
    assert "--set #1:1" in wrong.stderr and "--set #2:1" in wrong.stderr
    assert btc("check", "specs/iris.yaml", "--set", "model.batch=8", BTC_CHECK_SET=rank).returncode == 0
    blanks = "data={path: gone here.jsonl}"
    for command, variable in (("check", "BTC_CHECK_SET"), ("sweep", "BTC_SWEEP_SET")):
        told = btc(command, "specs/iris.yaml", **{variable: blanks})
        assert (told.returncode, told.stderr.startswith("error[BTC301]: data file `gone here.jsonl`")) == (1, True)
    mistaken = btc("compile", "specs/iris.yaml", BTC_COMPILE_SEED="one")
    assert mistaken.returncode == 2 and "'--seed': 'one'" in mistaken.stderr


def test_explain_knows_every_code() -> None:
    for code in known_codes():
        shown = btc("explain", code.lower())
        assert shown.returncode == 0
        assert shown.stdout.startswith(f"{code}: ")
        break
    unknown = btc("explain", "BTC999")
    assert unknown.returncode == 2
    assert unknown.stderr.startswith("error[BTC582]: there is no code `BTC999`\n")


def test_schema_is_json_schema() -> None:
    shown = btc("schema")
    assert json.loads(shown.stdout)["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_init_writes_a_spec_that_checks(tmp_path: Path) -> None:
    made = btc("init", "demo", cwd=tmp_path)
    assert (made.returncode, made.stderr) == (0, "")
    checked = btc("check", "demo/spec.yaml", cwd=tmp_path)
    assert (checked.returncode, checked.stderr.count("[BTC")) == (0, 1)
    assert checked.stderr.startswith("note[BTC330]: 60 rows split by content hash: 30 train, 15 dev, 15 test\n")
    assert checked.stdout == "demo/spec.yaml: ok (1 module(s), 30 train / 15 dev / 15 test examples)\n"


def test_check_counts_judges_beside_the_modules_of_the_program() -> None:
    checked = btc("check", "specs/judged_summary.yaml", cwd=Path(__file__).resolve().parents[2])
    assert ": ok (1 module(s), 1 judge(s), " in checked.stdout


def test_what_init_says_next_can_be_pasted(tmp_path: Path) -> None:
    said = btc("init", "a b/c's", cwd=tmp_path).stdout.splitlines()[-1].removeprefix("next: ")
    assert said.count("btc ") == 2
    words = [shlex.split(command) for command in said.split(" && ")]
    assert words == [["btc", command, "a b/c's/spec.yaml"] for command in ("check", "compile")]


def test_init_takes_names_that_a_command_line_or_yaml_would_read_otherwise(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    for name, path in (("-x", "./-x/spec.yaml"), ("🦊 é", "🦊 é/spec.yaml")):
        made = btc("init", "--", name, cwd=tmp_path)
        assert made.returncode == 0, made.stderr
        words = shlex.split(made.stdout.splitlines()[-1].removeprefix("next: "))
        assert words == ["btc", "check", path, "&&", "btc", "compile", path]
        assert btc("check", path, cwd=tmp_path).returncode == 0
    flows = (tmp_path / ".github" / "workflows").iterdir()
    specs = {yaml.safe_load(flow.read_text(encoding="utf-8"))["env"]["SPEC"] for flow in flows}
    assert specs == {"./-x/spec.yaml", "🦊 é/spec.yaml"}


@pytest.mark.parametrize(
    ("here", "work", "path"),
    [("repository", "repository", "demo"), ("repository", "repository/sub", "sub/demo"), ("new", "new", "demo")],
)
def test_the_workflow_lies_where_github_reads_it_and_finds_the_spec(
    tmp_path: Path, here: str, work: str, path: str
) -> None:
    top = tmp_path / here
    (tmp_path / work).mkdir(parents=True)
    if here == "repository":
        (top / ".git").mkdir()
    made = btc("init", "demo", cwd=tmp_path / work)
    assert (made.returncode, made.stderr) == (0, "")
    workflow = yaml.safe_load((top / ".github/workflows/btc-demo.yml").read_text())
    assert workflow["env"]["SPEC"] == f"{path}/spec.yaml"
    assert (top / workflow["env"]["SPEC"]).exists()
    assert (top / ".gitignore").read_text() == "artifacts/\n"


def test_the_workflow_keeps_what_a_compile_has_done_and_runs_once(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    assert btc("init", "demo", cwd=tmp_path).returncode == 0
    jobs = yaml.safe_load((tmp_path / ".github/workflows/btc-demo.yml").read_text())["jobs"]
    own, fork = jobs["check"]["if"].split(" || ")
    assert own == "github.event_name == 'push'" and fork.endswith(".full_name != github.repository")
    assert "github.event.repository.default_branch" in jobs["compile"]["if"]
    steps = jobs["compile"]["steps"]
    names = [(step.get("uses") or step["run"]).split("@")[0] for step in steps]
    kept = ("actions/cache", "btc ", "actions/upload")
    assert [name.split('"')[0].strip() for name in names if name.startswith(kept)] == [
        "actions/cache/restore",
        "btc compile",
        "actions/cache/save",
        "actions/upload-artifact",
        "btc eval artifacts/bundle --at-least 0.5",
    ]
    restored, saved = (next(step for step in steps if word in step.get("uses", "")) for word in ("restore", "save"))
    assert saved["if"] == "always()" and saved["with"]["key"] == restored["with"]["key"]
    assert "github.run_attempt" in saved["with"]["key"], "a key that is there is not written again"
    assert saved["with"]["key"].startswith(restored["with"]["restore-keys"])


def test_starters_of_one_name_have_workflows_of_their_own_and_one_is_made_again(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    folder = tmp_path / ".github" / "workflows"
    for name in ("a/demo", "b/demo"):
        made = btc("init", name, cwd=tmp_path)
        assert (made.returncode, made.stderr) == (0, "")
    flows = {path.name: yaml.safe_load(path.read_text()) for path in folder.iterdir()}
    assert {name: (flow["name"], flow["env"]["SPEC"]) for name, flow in flows.items()} == {
        "btc-demo.yml": ("btc-demo", "a/demo/spec.yaml"),
        "btc-b_demo.yml": ("btc-b_demo", "b/demo/spec.yaml"),
    }
    mended = (folder / "btc-demo.yml").read_text().replace("OWNER", "us")
    (folder / "btc-demo.yml").write_text(mended)
    shutil.rmtree(tmp_path / "a")
    again = btc("init", "a/demo", cwd=tmp_path)
    assert (again.returncode, again.stderr, "btc-demo.yml is there for it" in again.stdout) == (0, "", True)
    assert (folder / "btc-demo.yml").read_text() == mended and len(list(folder.iterdir())) == 2
    assert btc("init", "demo", cwd=tmp_path).returncode == 0  # whose whole path is the name that is taken
    assert 'SPEC: "demo/spec.yaml"' in (folder / "btc-demo_2.yml").read_text()


@pytest.mark.parametrize("file", [".github", ".gitignore/", ".github/workflows"])
def test_an_init_that_fails_leaves_nothing_and_names_the_place(tmp_path: Path, file: str) -> None:
    (tmp_path / ".git").mkdir()
    if file.endswith("/"):
        (tmp_path / file).mkdir()
    else:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("")
    before = sorted(tmp_path.rglob("*"))
    made = btc("init", "new/demo", cwd=tmp_path)
    assert made.returncode == 2
    assert made.stderr.startswith(f"error[BTC581]: cannot write `{file.rstrip('/')}"), made.stderr
    assert "nothing was changed" in made.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_a_new_folder_among_others_is_a_repository_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    made = btc("init", "demo", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo", "notes.txt"]
    workflow = yaml.safe_load((tmp_path / "demo/.github/workflows/btc-demo.yml").read_text())
    assert workflow["env"]["SPEC"] == "spec.yaml"


def test_init_leaves_a_gitignore_as_it_is_and_says_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".gitignore").write_text(".venv/\n")
    assert "write `artifacts/` into .gitignore" in btc("init", "one", cwd=tmp_path).stdout
    assert (tmp_path / ".gitignore").read_text() == ".venv/\n"
    (tmp_path / ".gitignore").write_text(".venv/\n/artifacts/*\n")
    assert ".gitignore" not in btc("init", "two", cwd=tmp_path).stdout


@pytest.mark.parametrize("name", ["null", "true", "1e3"])
def test_init_takes_names_that_yaml_reads_as_something_else(tmp_path: Path, name: str) -> None:
    assert btc("init", name, cwd=tmp_path).returncode == 0
    assert btc("check", f"{name}/spec.yaml", cwd=tmp_path).returncode == 0


def test_a_reader_that_has_gone_is_no_failure_of_what_only_shows() -> None:
    process = subprocess.Popen([sys.executable, "-m", "bt_compiler", "schema"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait() == 0


def test_a_name_that_no_system_takes_is_an_error_of_its_own(tmp_path: Path) -> None:
    btc("init", "demo", cwd=tmp_path)
    settings = ("--set", "model={id: none, engine: scripted}")
    told = btc("show", "n" * 300, cwd=tmp_path)
    assert told.returncode == 1 and told.stderr.startswith("error[BTC550]")
    told = btc("compile", "demo/spec.yaml", "-o", "n" * 300, *settings, cwd=tmp_path)
    note, error = told.stderr.splitlines()[:2]
    assert told.returncode == 1 and note.startswith("note[BTC330]") and error.startswith("error[BTC461]")


@pytest.mark.parametrize("library", ["bm25s", "numpy"])
def test_retrieval_over_a_remote_model_asks_for_no_more_than_it_needs(
    tmp_path: Path, library: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "qa.jsonl").write_text("".join(f'{{"question": "q {n}", "answer": "a {n}"}}\n' for n in range(12)))
    (tmp_path / "qa.yaml").write_text(RETRIEVING)
    monkeypatch.setenv("BTC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, library, None)  # as if it were not installed
    with pytest.raises(SystemExit) as left:
        main(["compile", str(tmp_path / "qa.yaml"), "-o", str(tmp_path / "bundle")])
    shown = capsys.readouterr().err
    assert (left.value.code, f"error[BTC584]: `{library}` is not installed" in shown) == (2, True), shown
    assert "pip install 'bt-compiler[retrieve]'" in shown


def test_init_never_touches_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    made = btc("init", "demo", cwd=tmp_path)
    assert made.returncode == 2
    assert made.stderr == (
        "error[BTC580]: `demo` exists already\n  = help: name a folder that does not exist; nothing was changed\n"
    )
    assert list((tmp_path / "demo").iterdir()) == []


def test_clearing_the_cache_deletes_what_is_its_own_alone(tmp_path: Path) -> None:
    own = tmp_path / "papers" / "thesis.txt"
    for path in (own, tmp_path / "models" / "m" / "model.safetensors", tmp_path / "indexes" / "i" / "index.json"):
        path.parent.mkdir(parents=True)
        path.write_text("x")
    env = {**os.environ, "BTC_CACHE": str(tmp_path)}
    command = [sys.executable, "-m", "bt_compiler", "cache", "--clear-all"]
    assert subprocess.run(command, env=env, capture_output=True, check=True).stderr == b""
    assert own.read_text() == "x"
    assert not (tmp_path / "models").exists() and not (tmp_path / "indexes").exists()


def test_of_a_part_of_the_cache_that_is_elsewhere_the_link_goes(tmp_path: Path) -> None:
    model = tmp_path / "disk" / "m" / "model.safetensors"
    for path in (model, tmp_path / "cache" / "indexes" / "i" / "index.json"):
        path.parent.mkdir(parents=True)
        path.write_text("x")
    (tmp_path / "cache" / "models").symlink_to(tmp_path / "disk")
    (tmp_path / "cache" / "digests").write_text("no folder")
    shown = btc("cache", "--clear-all", cwd=tmp_path, BTC_CACHE="cache")
    said, error = shown.stderr.splitlines()[:2]
    assert (shown.returncode, f"`{tmp_path / 'disk'}` is as it was" in said) == (2, True)
    assert error == "error[BTC581]: cannot delete `cache/digests`: Not a directory"
    assert model.exists() and sorted(path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()) == []
    (tmp_path / "cache" / "digests").unlink()
    assert btc("cache", "--clear-all", cwd=tmp_path, BTC_CACHE="cache").returncode == 0


def test_options_of_eval_that_say_nothing_are_refused() -> None:
    told = btc("eval", "nowhere", "--at-least", "nan")
    assert told.returncode == 2 and "'--at-least': 'nan' is not a number" in told.stderr
    told = btc("eval", "nowhere", "--data", "x.csv", "--split", "train")
    assert told.returncode == 2 and "--data scores all rows that it names; leave --split out" in told.stderr
    told = btc("eval", "nowhere", "--data", "x.csv", BTC_EVAL_SPLIT="train")
    assert told.returncode == 1 and told.stderr.startswith("error[BTC550]")


@pytest.mark.parametrize("arguments", [("check",), ("compile", "x.yaml", "--seed", "-1"), ("run", "b", "--what")])
def test_a_command_line_that_cannot_be_read_is_a_document_too(arguments: tuple[str, ...]) -> None:
    shown = btc(*arguments, "--json")
    document = json.loads(shown.stdout)
    assert (shown.returncode, document["ok"], document["diagnostics"][0]["code"]) == (2, False, "BTC587")


def test_errors_as_json(tmp_path: Path) -> None:
    shown = btc("check", "--json", "missing.yaml", cwd=tmp_path)
    document = json.loads(shown.stdout)
    assert (shown.returncode, shown.stderr) == (1, "")
    assert (document["version"], document["command"], document["ok"]) == (1, "check", False)
    assert document["specs"][0]["diagnostics"][0]["code"].startswith("BTC0")


def test_of_very_many_findings_the_foremost_are_shown_and_all_are_counted(tmp_path: Path) -> None:
    steps = "".join(f"    s{n}: {{call: m, in: {{question: $lost{n}.answer}}}}\n" for n in range(300))
    (tmp_path / "s.yaml").write_text(
        'version: 1\ndata: d.jsonl\nmetric: accuracy\nmodules: {m: {signature: "question -> answer"}}\n'
        f"program:\n  inputs: {{question: str}}\n  steps:\n{steps}  out: {{answer: $s0.answer}}\n"
    )
    shown = btc("check", "s.yaml", cwd=tmp_path)
    assert (shown.returncode, shown.stdout) == (1, "")
    assert shown.stderr.count("error[BTC200]: unknown step `lost") == 50 == shown.stderr.count("= help: ")
    assert shown.stderr.endswith("\n300 errors, 50 of them above; `btc explain CODE` tells more about each\n")
    (found,) = json.loads(btc("check", "s.yaml", "--json", cwd=tmp_path).stdout)["specs"]
    assert (len(found["diagnostics"]), found["left_out"]) == (50, 250)
    compiled = json.loads(btc("compile", "s.yaml", "--json", cwd=tmp_path).stdout)
    assert (len(compiled["diagnostics"]), compiled["left_out"]) == (50, 250)


def test_warnings_do_not_crowd_out_errors() -> None:
    many = [Diagnostic(code="BTC207", message=f"w{n}", severity="warning") for n in range(60)]
    error = Diagnostic(code="BTC200", message="wrong")
    kept, left_out = foremost([*many, error])
    assert (kept[0], len(kept), left_out) == (error, 50, 11)
    assert foremost(many[:50]) == (many[:50], 0)


def test_an_input_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    """As Windows writes it; what is wrong here is the bundle alone."""
    (tmp_path / "in.json").write_text('\ufeff{"question": "q"}', encoding="utf-8")
    shown = btc("run", "nowhere", "--input", "@in.json", cwd=tmp_path)
    assert shown.returncode != 0 and "nowhere" in shown.stderr
    assert "BTC583" not in shown.stderr
    (tmp_path / "deep.json").write_text("[" * 200_000)
    assert "BTC583" in btc("run", "nowhere", "--input", "@deep.json", cwd=tmp_path).stderr
