"""A compile with a budget: what is left out, what is still scored, and how it goes on with more."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from answering import Asked, RuleBackend, coin, truth, wrong
from said import Said
from tiny_host import LendingBackend

from bt_compiler.artifact import read_bundle
from bt_compiler.compiler.compile import CompileSettings, compile_with
from bt_compiler.errors import CompileError, UsageError
from bt_compiler.optimize.accounts import Account
from bt_compiler.optimize.budget import LimitedBudget, parse_limit
from bt_compiler.optimize.journal import Journal

SPEC = """\
version: 1
name: moods
model: {id: rule, engine: scripted, price: {prompt: 1000000}}
data: {train: train.jsonl, dev: dev.jsonl, test: test.jsonl}
modules:
  classify:
    signature:
      instructions: Say the mood.
      inputs: {text: str}
      outputs: {mood: {enum: [good, bad]}}
metric: {kind: accuracy, output: mood}
optimize: {strategy: [prompts, prompts], prompts: {candidates: 2, train: 10, val: 40}}
"""
Compile = Callable[..., tuple[Path, RuleBackend]]


def sometimes(asked: Asked) -> str:
    text = asked.value("Text")
    solved = coin(text, asked.demo_texts) < 0.3 + 0.2 * asked.demos
    return f"Mood: {truth(text) if solved else wrong(text)}"


@pytest.fixture
def run(tmp_path: Path) -> Compile:
    """Compiles with a budget; each call of the backend takes a second of the clock."""
    write_rows(tmp_path, train=50, dev=8, test=5)
    (tmp_path / "moods.yaml").write_text(SPEC)

    def compiled(
        budget: str | None, *, cache: str = "cache", rule: Callable[[Asked], str] = sometimes, **settings: Any
    ) -> Any:
        backend = LendingBackend(rule=rule)
        settings.setdefault("clock", lambda: float(len(backend.asked)))
        folder = compile_with(
            tmp_path / "moods.yaml",
            CompileSettings(
                out=tmp_path / "bundle",
                cache=tmp_path / cache,
                opener=lambda _section, _choices: backend,
                budget=None if budget is None else parse_limit(budget),
                **settings,
            ),
        )
        return folder, backend

    return compiled


def write_rows(folder: Path, **counts: int) -> None:
    for split, count in counts.items():
        rows = [{"text": f"{'gb'[n % 2]} {split} {n}", "mood": ("good", "bad")[n % 2]} for n in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def strategy_of(folder: Path) -> list[str]:
    return [step["kind"] for step in json.loads((folder / "report.json").read_text())["steps"]]


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("30m", 30, "minutes"),
        ("2h", 120, "minutes"),
        ("90 s", 1.5, "minutes"),
        ("500k tokens", 5e5, "tokens"),
        ("1.5M tokens", 1.5e6, "tokens"),
        ("800 tokens", 800, "tokens"),
        ("3 hrs", 180, "minutes"),
        ("1h30m", 90, "minutes"),
        ("1 h 30 min 30s", 90.5, "minutes"),
        ("2.5 usd", 2.5, "money"),
    ],
)
def test_budgets_are_read(text: str, amount: float, unit: str) -> None:
    limit = parse_limit(text)
    assert (limit.amount, limit.unit, limit.text) == (pytest.approx(amount), unit, text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0m",
        "-3m",
        "30",
        "ten minutes",
        "3 weeks ago",
        "1e9h",
        "5 m m",
        "٣m",
        "1h30",
        "1m 2 usd",
        "5k tokens 2 tokens",
        "2 usd 3 usd",
        "0h0m",
    ],
)
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="BTC465"):
        parse_limit(text)


@pytest.mark.parametrize(
    ("text", "help"), [("5 mim", "`5 min`"), ("30 mni", "`30 min`"), ("2 hsr", "`2 hrs`"), ("5 mns", "`5 mins`")]
)
def test_a_slip_in_a_unit_of_time_is_no_currency(text: str, help: str) -> None:
    with pytest.raises(UsageError, match=f"BTC465(.|\n)*did you mean {help}"):
        parse_limit(text)
    assert {parse_limit(f"3 {name}").unit for name in ("usd", "eur", "sek", "mxn", "mzn", "hrk", "svc", "ars")} == {
        "money"
    }


def test_a_large_budget_changes_nothing(run: Compile) -> None:
    folder, _ = run("10h")
    digest = read_bundle(folder).manifest.digest
    again, _ = run(None, fresh=True, cache="other")
    assert read_bundle(again).manifest.digest == digest


@pytest.mark.parametrize(("scarce", "plenty"), [("90 s", "1h"), ("4000 usd", "1000000 usd")])
def test_steps_that_do_not_fit_are_left_out_and_more_money_goes_on(run: Compile, scarce: str, plenty: str) -> None:
    whole, unlimited = run(None, cache="whole")
    digest = read_bundle(whole).manifest.digest
    folder, first = run(scarce, fresh=True, cache="limited")
    assert strategy_of(folder) == ["prompts"]
    assert "want of budget" in (folder / "report.html").read_text()
    assert len(first.asked) < len(unlimited.asked)
    assert read_bundle(folder).manifest.scores["shipped"]["test"]["n"] == 5
    _, repeated = run(scarce, cache="limited")
    assert not repeated.asked
    folder, rest = run(plenty, cache="limited")
    assert strategy_of(folder) == ["prompts", "prompts"]
    assert read_bundle(folder).manifest.digest == digest
    assert 0 < len(rest.asked) < len(unlimited.asked)


def test_the_report_counts_the_calls_of_the_budget_that_it_is_of(run: Compile) -> None:
    def step(budget: str) -> dict[str, Any]:
        folder, _ = run(budget, overrides=["optimize.strategy=[prompts]", "optimize.prompts.racing=0.0001"])
        (found,) = json.loads((folder / "report.json").read_text())["steps"]
        return found

    few, whole = step("9k tokens"), step("10M tokens")
    assert "cut_short" in few["evidence"] and "cut_short" not in whole["evidence"]
    for one in (few, whole):
        assert one["calls"] == one["evidence"]["racing"]["runs"] + one["evidence"]["bootstrap"]["tried"]
    assert few["calls"] < whole["calls"]


def test_tokens_are_counted_whatever_the_cache_holds(run: Compile) -> None:
    run(None, cache="warm")
    warm, backend = run("6k tokens", fresh=True, cache="warm")
    warm_digest, warm_strategy = read_bundle(warm).manifest.digest, strategy_of(warm)
    fewer = len(backend.asked)
    cold, backend = run("6k tokens", fresh=True, cache="cold")
    assert len(backend.asked) > fewer
    assert (read_bundle(cold).manifest.digest, strategy_of(cold)) == (warm_digest, warm_strategy)


@pytest.mark.parametrize(
    ("limit", "more", "left_out"),
    [(4000, ["candidates=30"], True), (12000, ["candidates=30"], True), (8000, ["candidates=2", "racing=0"], False)],
)
def test_a_search_keeps_to_its_budget_and_says_what_it_left_out(
    run: Compile, limit: int, more: list[str], left_out: bool
) -> None:
    """Prompts with demos are several times as long as the zero-shot ones that the rate is first learnt from."""
    overrides = ["optimize.strategy=[prompts]", *(f"optimize.prompts.{setting}" for setting in more)]
    folder, _ = run(f"{limit} tokens", overrides=overrides)
    (step,) = json.loads((folder / "report.json").read_text())["steps"]
    evidence, spent = step["evidence"], step["prompt_tokens"] + step["completion_tokens"]
    assert spent <= limit
    cut = evidence["cut_short"]
    assert cut and any("candidates" in one for one in cut) == left_out


@pytest.mark.parametrize("unit", ["tokens", "usd"])
def test_what_ships_with_demos_is_kept_back_at_its_price(run: Compile, unit: str) -> None:
    """An example takes 28 tokens without demos and 76 with eight."""
    demos = ["optimize.strategy=[prompts]", "optimize.prompts={train: 10, val: 10, max_labeled_demos: 8}"]
    fitting = 0
    for limit in (1500, 2500, 3000):
        try:
            folder, _ = run(f"{limit} {unit}", overrides=demos, fresh=True, cache=str(limit))
        except CompileError as error:
            assert error.diagnostics[0].code == "BTC466" and "with demos)" in error.diagnostics[0].message
            assert not fitting
            continue
        fitting += 1
        report = json.loads((folder / "report.json").read_text())
        spent = float(report["environment"]["spent"].split()[0].replace(",", ""))
        assert 0 < spent <= limit
    assert fitting == 1


def test_what_was_spent_is_said_where_it_is_too_much(run: Compile) -> None:
    """Ten seconds a call of a prompt with demos, which nothing had told beforehand."""
    seconds = [0.0]

    def slow(asked: Asked) -> str:
        seconds[0] += 10.0 if asked.demos else 1.0
        return sometimes(asked)

    for limit, exceeded in (("90 s", True), ("5 h", False)):
        said = Said()
        folder, _ = run(
            limit, rule=slow, progress=said, clock=lambda: seconds[0], overrides=["optimize.strategy=[prompts]"]
        )
        spent = json.loads((folder / "report.json").read_text())["environment"]["spent"]
        assert spent.endswith(f" of a budget of {limit}")
        assert (said.lines[-1] == f"more was spent than the budget allows: {spent}") == exceeded


PRICED = ["model.price={prompt: 0, completion: 1000000}"]
"""An answer has two tokens: 2 usd."""


@pytest.mark.parametrize(("small", "limit"), [("10 s", "400 s"), ("20 usd", "800 usd")])
@pytest.mark.parametrize("fresh", [False, True])
def test_what_is_in_a_cache_does_not_look_free(
    run: Compile, tmp_path: Path, small: str, limit: str, fresh: bool
) -> None:
    """A second of the clock and 2 usd a call; the cache holds the zero-shot program on dev."""
    write_rows(tmp_path, train=160, dev=8, test=60)
    long = [*PRICED, "optimize.prompts.val=150", "optimize.prompts.racing=0.0001"]
    with pytest.raises(CompileError, match="BTC466"):
        run(small, overrides=long)
    folder, backend = run(limit, overrides=long, fresh=fresh)
    assert strategy_of(folder)[0] == "prompts"
    assert 200 < len(backend.asked) <= 400


@pytest.mark.parametrize("limit", ["120 s", "100000 usd"])
def test_a_compile_whose_every_answer_is_in_the_cache_costs_nothing(run: Compile, limit: str) -> None:
    whole, _ = run(None, overrides=PRICED)
    digest = read_bundle(whole).manifest.digest
    again, backend = run(limit, overrides=PRICED, fresh=True)
    assert not backend.asked
    assert read_bundle(again).manifest.digest == digest


def test_time_is_not_learnt_from_the_few_answers_that_a_cache_lacked(tmp_path: Path) -> None:
    calls, cached = 0, 0

    def account() -> Account:
        return Account(seconds=60.0 * (calls - cached), calls=calls, cached_calls=cached)

    with Journal.open(tmp_path / "journal", {}) as journal:
        budget = LimitedBudget(parse_limit("100 m"), account=account, journal=journal, reserve=10)
        with budget.measured(20):
            calls, cached = 40, 39
        assert not budget.informed
        with budget.measured(20):
            calls, cached = 80, 39 + 20
        assert budget.informed
        assert budget.begin("step 1", steps_left=1, examples=29), "100 less the 21 spent and 10 times 2 are 59"
        assert budget.allows("more", 29) and not budget.allows("yet more", 30)
        assert budget.minutes("training", keep=0) == 59
        assert budget.minutes("training that is scored", keep=20) == 19


WEIGHTS = [
    "optimize.strategy=[weights]",
    "optimize.weights={sources: [sampled, gold], samples: 24, epochs: 1, r: 2}",
]


def test_rows_that_do_not_fit_the_budget_are_left_out(run: Compile) -> None:
    """Gold rows ask nothing; 24 samples of 50 examples would be 1200 calls."""
    folder, backend = run("200 s", overrides=WEIGHTS)
    (step,) = json.loads((folder / "report.json").read_text())["steps"]
    assert [tried["source"] for tried in step["evidence"]["tried"]] == ["gold"]
    assert step["evidence"]["cut_short"] == ["rows from sampled"]
    assert len(backend.asked) <= 200
    assert strategy_of(run("200 s", overrides=WEIGHTS)[0]) == ["weights"]
    more, backend = run("10 h", overrides=WEIGHTS)
    evidence = json.loads((more / "report.json").read_text())["steps"][0]["evidence"]
    assert "cut_short" not in evidence and len(backend.asked) > 1000
    digest = read_bundle(more).manifest.digest
    assert read_bundle(run(None, overrides=WEIGHTS, fresh=True)[0]).manifest.digest == digest


def test_a_weights_step_begins_only_where_its_least_work_fits(run: Compile) -> None:
    sampled = [WEIGHTS[0], WEIGHTS[1].replace("[sampled, gold]", "[sampled]")]
    with pytest.raises(CompileError, match=r"BTC466.*too small for the first step, `weights`"):
        run("200 s", overrides=sampled)


def test_new_weights_are_scored_with_demos_only_where_that_fits(run: Compile) -> None:
    both = ["optimize.strategy=[prompts, weights]", WEIGHTS[1].replace("[sampled, gold]", "[gold]")]
    for limit, kinds, cut in (("180 s", 1, ["the new weights with demos"]), ("10 h", 2, None)):
        folder, _ = run(limit, overrides=both)
        evidence = json.loads((folder / "report.json").read_text())["steps"][1]["evidence"]
        assert (len(evidence["choice"]), evidence.get("cut_short")) == (kinds, cut)


def test_a_step_without_rows_says_which_the_budget_left_out(run: Compile) -> None:
    """At most 50 own runs fit, and they solve nothing."""
    own = [WEIGHTS[0], WEIGHTS[1].replace("[sampled, gold]", "[self, sampled]")]
    with pytest.raises(CompileError, match="BTC401") as caught:
        run("200 s", overrides=own, rule=lambda asked: f"Mood: {wrong(asked.value('Text'))}")
    assert "`sampled` did not fit the budget" in caught.value.diagnostics[0].notes
    assert "give a larger `--budget`" in str(caught.value.diagnostics[0].help)


def test_a_budget_too_small_for_the_first_step_says_what_it_costs(run: Compile) -> None:
    with pytest.raises(CompileError, match=r"BTC466.*10 s is too small for the first step, `prompts`"):
        run("10 s")


def test_a_corrected_price_is_asked_anew(run: Compile) -> None:
    """Dearer by a thousand it does not fit, and each time what was learnt at other prices is of no account."""
    cheap, dear = (
        ["optimize.strategy=[prompts]", f"model.price={{prompt: 0, completion: {price}}}"] for price in (1e3, 1e6)
    )
    whole = read_bundle(run("10 usd", overrides=cheap)[0]).manifest.digest
    for _ in range(2):
        with pytest.raises(CompileError, match=r"BTC466.*an example costs about 2 usd"):
            run("10 usd", overrides=dear)
        folder, backend = run("10 usd", overrides=cheap)
        assert not backend.asked
        assert read_bundle(folder).manifest.digest == whole


def test_money_needs_prices(run: Compile) -> None:
    with pytest.raises(UsageError, match=r"BTC467.*`default` has no price"):
        run("2 usd", overrides=["model.price=null"])


def test_money_needs_the_price_of_every_model_elsewhere(run: Compile) -> None:
    elsewhere = "models={judge: {id: big, engine: openai, endpoints: [http://localhost:1/v1]}}"
    use = "modules.classify.model=judge"
    with pytest.raises(UsageError, match=r"BTC467.*`judge` has no price"):
        run("2 usd", overrides=[elsewhere, use, "optimize.strategy=[prompts]"])
