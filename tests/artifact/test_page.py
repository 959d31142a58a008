from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bt_compiler.artifact import BundleContents, StepFacts, page
from bt_compiler.artifact.page import drawings, duration, render_report, report_html, template
from bt_compiler.artifact.plots import loss_plot
from bt_compiler.artifact.report import report_json, shipped_rows, strategy_label
from bt_compiler.artifact.sweep_files import cells_of
from bt_compiler.cli.output import scores_text
from bt_compiler.engine.request import Message, PromptText
from bt_compiler.engine.scoring import Confusion

DIGEST = "f" * 64
HOSTILE = '<script>alert(1)</script> $x_1$ & "quoted" ]]> {{ 7 * 7 }} 日本'


@pytest.fixture
def html(evidence: BundleContents) -> str:
    return report_html(evidence, digest=DIGEST)


def test_the_page_shows_every_part(html: str, evidence: BundleContents) -> None:
    text = re.sub(r"<[^>]+>", " ", html)
    for part in (
        "Held-out test split, scored once",
        "difference, paired",
        "Π→Θ (shipped)",
        "5 of 15 traces were accepted",
        "same as labelled",
        "Training and validation loss",
        "With and without demos",
        "without demos (chosen)",
        "supervised: the label is the answer",
        "This result is partly supervised tuning",
        "Confusion of the shipped program",
        "BTC521: no answer",
        "Name the species.",
        "step 2 weights",
        "shared prefix",
        "torch 2.13.0",
        DIGEST,
    ):
        assert part in text, part
    assert html.count("<svg") == 7
    assert f"{evidence.reports['shipped']['test'].mean:.3f}".removeprefix("0") in text


def test_the_page_is_the_same_bytes_in_another_process(html: str, tmp_path: Path) -> None:
    here = Path(__file__).parent
    code = f"""
import sys
sys.path.insert(0, {str(here)!r})
from pathlib import Path
from conftest import contents_with, write_adapter
from bt_compiler.artifact import canonical_adapter
from bt_compiler.artifact.page import report_html
folder = write_adapter(Path({str(tmp_path)!r}) / "adapter")
canonical_adapter(folder, base_model="org/smol")
sys.stdout.buffer.write(report_html(contents_with(folder), digest={DIGEST!r}).encode())
"""
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": "77"}, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode() == html


def test_nothing_is_fetched_from_anywhere(html: str) -> None:
    sources = re.findall(r"""(?:src|href|url|action|data)\s*=\s*["']([^"']*)""", html)
    assert [one for one in sources if not one.startswith(("#", "data:"))] == []
    assert "<script" not in html and "@import" not in html
    assert not re.search(r"url\((?!#)", html)


def test_untrusted_text_is_text(evidence: BundleContents) -> None:
    prompt = PromptText(messages=(Message(role="user", content=HOSTILE),))
    steps = []
    for step in evidence.steps:
        found = json.loads(json.dumps(step.evidence).replace("shuffle 1", json.dumps(HOSTILE)[1:-1]))
        steps.append(replace(step, evidence=found))
    hostile = replace(
        evidence,
        program=replace(evidence.program, name=HOSTILE),
        sent={"classify": prompt},
        steps=tuple(steps),
        confusion=Confusion(classes=(HOSTILE, "b"), counts=((1, 0), (0, 1)), failed=(0, 0)),
        environment={HOSTILE: HOSTILE},
    )
    html = report_html(hostile, digest=DIGEST)
    assert "<script" not in html and "alert(1)" in html
    assert "49" not in re.findall(r"\{\{.*?\}\}|quoted&#34; \]\]&gt; (\S+)", html)
    assert "$x_1$" in html


@pytest.mark.parametrize("mistaken", [0, 7])
def test_of_many_classes_the_most_frequent_mistakes_are_listed(evidence: BundleContents, mistaken: int) -> None:
    names = [f"a_class_of_some_{number}" for number in range(13)]
    counts = [[5 * (row == column) for column in range(13)] for row in range(13)]
    counts[2][11] = mistaken
    many = Confusion(classes=tuple(names), counts=tuple(map(tuple, counts)), failed=(0,) * 12 + (mistaken and 3,))
    html = report_html(replace(evidence, confusion=many), digest=DIGEST)
    cells = re.findall(r'<td class="long">(.*?)</td><td class="long">(.*?)</td><td class="n">(\d+)</td>', html)
    expected = [("a_class_of_some_2", "a_class_of_some_11", "7"), ("a_class_of_some_12", "failed", "3")]
    assert cells == (expected if mistaken else [])
    assert ("13 classes, no mistakes" in html) is not bool(mistaken)


def test_a_compile_without_steps_dev_or_test_has_a_page(evidence: BundleContents) -> None:
    bare = replace(
        evidence,
        steps=(),
        prefixes=(),
        confusion=None,
        reports={"zero_shot": {}, "shipped": {}},
        differences={},
        sent={},
    )
    html = report_html(bare, digest=DIGEST)
    assert "<svg" not in html and "No call reached this module" in html


def test_a_score_on_dev_alone_says_that_it_is_optimistic(evidence: BundleContents) -> None:
    reports = {who: {"dev": by_split["dev"]} for who, by_split in evidence.reports.items()}
    html = report_html(replace(evidence, reports=reports, differences={}), digest=DIGEST)
    assert "there is no test split, and dev also chose what ships" in html


def test_labels_of_a_step_that_does_not_ship_make_no_result_supervised(evidence: BundleContents) -> None:
    prefixes = tuple(replace(one, chosen=len(one.steps) == 1) for one in evidence.prefixes)
    html = report_html(replace(evidence, prefixes=prefixes), digest=DIGEST)
    assert "This result is partly supervised" not in html and "supervised: the label is the answer" in html
    assert shipped_rows(evidence)["gold"] > 0
    assert shipped_rows(replace(evidence, prefixes=prefixes)) == {}


@pytest.mark.parametrize(
    ("rows", "more", "expected"),
    [
        ({"gold": 20}, {}, {"gold": 20}),
        ({"teacher": 20}, {}, {"teacher": 20}),
        ({"self": 12, "gold": 0}, {}, {"self": 12, "gold": 33, "sampled": 6}),
        ({"gold": 20}, {"start": "current"}, {"gold": 53, "self": 11, "sampled": 6}),
        ({"gold": 20}, {"preference": {"pairs": 3}}, {"gold": 53, "self": 11, "sampled": 6}),
    ],
)
def test_rows_behind_the_shipped_weights_are_those_of_its_adapters_and_of_what_these_learnt_from(
    evidence: BundleContents, rows: dict[str, int], more: dict[str, object], expected: dict[str, int]
) -> None:
    """Two weights steps, of which the adapter of the second ships; the first learnt 33 gold rows."""
    second = dict(evidence.steps[1].evidence)
    first = second | {"adapters": [{**second["adapters"][0], "sha256": "another"}]}
    if "self" in rows:
        first = first | {"rows": {"sampled": 6, "gold": 33}}
    steps = (
        replace(evidence.steps[1], index=1, evidence=first),
        replace(evidence.steps[1], index=2, evidence={**second, "rows": rows, **more}),
    )
    assert shipped_rows(replace(evidence, steps=steps)) == expected


def test_self_taught_rows_are_not_called_supervised(evidence: BundleContents) -> None:
    taught = dict(evidence.steps[1].evidence) | {"rows": {"self": 20, "sampled": 3, "gold": 0}}
    html = report_html(replace(evidence, steps=(replace(evidence.steps[1], evidence=taught),)), digest=DIGEST)
    assert "No row is gold or hinted" in html and "partly supervised" not in html


def test_answers_that_no_row_shows_are_on_the_page(evidence: BundleContents) -> None:
    unseen = {"unseen": [{"output": "species", "value": "virginica", "examples": 16}]}
    steps = (*evidence.steps[:1], replace(evidence.steps[1], evidence=dict(evidence.steps[1].evidence) | unseen))
    html = report_html(replace(evidence, steps=steps), digest=DIGEST)
    assert "No row shows <code>species: virginica</code>, the answer of 16 train examples" in html


def test_each_adapter_has_a_loss_plot_of_its_own(evidence: BundleContents) -> None:
    points = [{**point, "adapter": name} for name in ("plan", "<b>") for point in evidence.steps[1].evidence["loss"]]
    loss = dict(evidence.steps[1].evidence) | {"loss": points}
    contents = replace(evidence, steps=(evidence.steps[0], replace(evidence.steps[1], evidence=loss)))
    data = report_json(contents, digest=DIGEST)
    assert [name for name in drawings(data) if name.startswith("loss-")] == ["loss-2-plan", "loss-2-<b>"]
    html = report_html(contents, digest=DIGEST)
    assert html.index("Adapter <code>plan</code>") < html.index("Adapter <code>&lt;b&gt;</code>")
    assert html.count("loss a token") == 2 and "adapter <b>" not in html


def test_losses_with_preference_pairs_are_told_from_those_a_token(evidence: BundleContents) -> None:
    points = evidence.steps[1].evidence["loss"]
    plain = loss_plot("plain", points)
    assert "loss a token" in plain and ">train<" in plain and ">validation<" in plain
    paired = loss_plot("paired", [{**point, "preferred": 0.5} for point in points])
    assert ">train: with pairs<" in paired and ">validation: a token<" in paired and "loss a token" not in paired


def test_a_step_without_evidence_is_shown(evidence: BundleContents) -> None:
    steps = (StepFacts(index=1, kind="weights", candidate="c1"), StepFacts(index=2, kind="prompts", candidate="c2"))
    assert "Step 2: prompts" in report_html(replace(evidence, steps=steps), digest=DIGEST)


def test_without_matplotlib_the_page_says_so(evidence: BundleContents, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page.plots, "can_plot", lambda: False)
    html = report_html(evidence, digest=DIGEST)
    assert "<svg" not in html and "No plots: matplotlib was not installed" in html


def test_the_json_of_the_report_is_json_and_draws_the_same_page(evidence: BundleContents, html: str) -> None:
    data = json.loads(json.dumps(report_json(evidence, digest=DIGEST), allow_nan=False))
    assert render_report(data, drawings(data)) == html


def test_labels_and_durations() -> None:
    assert strategy_label(()) == "zero-shot"
    assert strategy_label(("prompts", "weights", "prompts")) == "Π→Θ→Π"
    assert [duration(s) for s in (0.44, 41, 365, 7380)] == ["0.4 s", "41 s", "6 min 5 s", "2 h 3 min"]


def test_a_difference_that_is_rounded_to_zero_has_one_sign() -> None:
    """Sums of floats leave -1e-17 where nothing differs."""
    nothing = {"mean": -1e-17, "low": -4e-4, "high": 4e-4}
    assert template("report.html.jinja").environment.filters["signed"](nothing["mean"]) == "+0.000"
    row = {"strategy": "Π", "supervised": False, "mean": 0.5, "sd": None, "by_seed": [], "shipped": 0.5, "steps": []}
    assert cells_of({**row, "difference": nothing}, {"best_single": None})[4] == "+0.000 [+0.000, +0.000]"
    assert scores_text({"difference": {"dev": nothing}}, {}) == "dev  difference  +0.000  [+0.000, +0.000]"
    less = {"mean": -0.0005001, "low": -1, "high": 0.25}
    assert scores_text({"difference": {"dev": less}}, {}).endswith("-0.001  [-1.000, +0.250]")


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--no-proxy-server",
    "--hide-scrollbars",
)


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium installed")
def test_a_browser_shows_the_page_without_errors_or_requests(tmp_path: Path, html: str) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "report.html").write_text(html)
    # what the page would do to a phone: the frame is 375 wide, and nothing may be wider than it
    (site / "phone.html").write_text(
        '<link rel="icon" href="data:,"><iframe src="report.html" width="375" height="800"></iframe>'
        "<script>onload = () => {"
        "const page = document.querySelector('iframe').contentDocument;"
        "document.title = 'width ' + page.documentElement.scrollWidth + ' of ' + page.documentElement.clientWidth;"
        "const plots = [...page.querySelectorAll('svg')];"
        "document.title += ', plots ' + plots.length"
        " + ', empty plots ' + plots.filter(one => one.getBoundingClientRect().height < 20).length;"
        "}</script>"
    )
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            asked.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        done = subprocess.run(
            [
                str(CHROMIUM),
                *FLAGS,
                f"--user-data-dir={tmp_path / 'profile'}",
                "--enable-logging=stderr",
                "--v=0",
                "--virtual-time-budget=5000",
                "--dump-dom",
                f"http://127.0.0.1:{server.server_port}/phone.html",
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert "<title>width 375 of 375, plots 7, empty plots 0</title>" in done.stdout, (
        done.stdout[:500],
        done.stderr[-2000:],
    )
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    assert sorted(set(asked)) == ["/phone.html", "/report.html"]
