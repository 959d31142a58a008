"""Training on a tiny model: what it learns, what it leaves behind, and that a killed run ends in the same bytes."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tiny_host import TinyHost, rows, tiny_model

from bt_compiler.errors import CompileError
from bt_compiler.optimize.lora import target_modules
from bt_compiler.optimize.noise import noisy_embeddings
from bt_compiler.optimize.rows import Row
from bt_compiler.optimize.trainer import Training, train_adapter
from bt_compiler.optimize.training_run import learning_rate
from bt_compiler.spec.sections import PreferenceSection, WeightsSection

SETTINGS = WeightsSection(r=4, alpha=8, epochs=3, learning_rate=5e-3, batch=4, warmup=2)


def one_letter(found: tuple[Row, ...], *, swapped: bool = False) -> tuple[Row, ...]:
    """The rows with `g` or `b` as the whole answer; `swapped`: the other one."""
    letters = {"Mood: good": "gb", "Mood: bad": "bg"}
    return tuple(replace(row, completion=letters[row.completion][swapped]) for row in found)


LETTERS = one_letter(rows(16))
CONTRARY = one_letter(rows(4, 16), swapped=True)
"""Validation rows: better while the model learns to answer with a letter, worse once it learns which."""


def train(folder: Path, settings: WeightsSection = SETTINGS, *, seed: int = 1, **more: object) -> Training:
    host = more.pop("host", None) or TinyHost()
    folder.mkdir(exist_ok=True)
    arguments = {"rows": rows(16), "validation": rows(4, 16)} | more
    return train_adapter(host=host, settings=settings, seed=seed, folder=folder, name="test", **arguments)


def test_the_loss_falls_and_the_base_is_bit_for_bit_what_it_was(tmp_path: Path) -> None:
    host = TinyHost()
    host.model.get_input_embeddings().weight.requires_grad_(False)
    before = {name: (value.clone(), value.requires_grad) for name, value in host.model.named_parameters()}
    structure = repr(host.model)
    result = train(tmp_path, replace(SETTINGS, epochs=8), host=host)
    assert result.history[-1].train < 0.5 * result.history[0].train
    after = dict(host.model.named_parameters())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, (value, _) in before.items())
    assert all(after[name].requires_grad == flag for name, (_, flag) in before.items())
    assert repr(host.model) == structure
    assert not host.model.training and not hasattr(host.model, "peft_config")
    assert host.model.config._attn_implementation == tiny_model().config._attn_implementation


def test_equal_seeds_give_equal_bytes_and_others_do_not(tmp_path: Path) -> None:
    torch.manual_seed(123)
    first = train(tmp_path / "a")
    torch.manual_seed(456)
    second = train(tmp_path / "b")
    assert first == second
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (first.adapter.path / name).read_bytes() == (second.adapter.path / name).read_bytes()
    assert train(tmp_path / "c", seed=2).adapter.sha256 != first.adapter.sha256


def test_the_callers_random_generator_is_left_alone(tmp_path: Path) -> None:
    host = TinyHost()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(tmp_path, replace(SETTINGS, dropout=0.3, epochs=1), host=host)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks for it itself
def test_peft_loads_the_folder_as_it_is_and_it_is_the_best_epochs(tmp_path: Path) -> None:
    result = train(tmp_path, replace(SETTINGS, epochs=40, learning_rate=0.02), rows=LETTERS, validation=CONTRARY)
    tuned = PeftModel.from_pretrained(tiny_model(), str(result.adapter.path)).eval()
    host = TinyHost()
    total, count = 0.0, 0
    for row in CONTRARY:
        ids, start = host.encode_row(row.prompt, row.completion)
        logits = tuned(input_ids=torch.tensor([ids])).logits[0]
        losses = torch.nn.functional.cross_entropy(logits[start - 1 : -1], torch.tensor(ids[start:]), reduction="sum")
        total, count = total + losses.item(), count + len(ids) - start
    points = [point for point in result.history if point.probability is not None]
    best = max(points, key=lambda point: point.probability or 0.0)
    assert best != points[-1] and best.validation != points[-1].validation
    assert total / count == pytest.approx(best.validation, rel=1e-3)
    config = json.loads((result.adapter.path / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(config["target_modules"])
    assert str(tmp_path) not in json.dumps(config)


def test_one_validation_loss_an_epoch_and_one_point_a_step(tmp_path: Path) -> None:
    history = train(tmp_path).history
    assert [point.step for point in history] == list(range(1, 13))
    assert [point.epoch for point in history if point.validation is not None] == [1, 2, 3]


def test_patience_ends_training_so_many_epochs_after_the_best(tmp_path: Path) -> None:
    long = replace(SETTINGS, epochs=40, learning_rate=0.02)
    stopped = train(tmp_path / "a", replace(long, patience=2), rows=LETTERS, validation=CONTRARY)
    chances = [point.probability for point in stopped.history if point.probability is not None]
    best = chances.index(max(chances)) + 1
    assert len(chances) == best + 2 < 40
    whole = train(tmp_path / "b", replace(long, patience=100), rows=LETTERS, validation=CONTRARY)
    assert whole.history[: len(stopped.history)] == stopped.history


def test_without_validation_rows_the_last_adapter_is_kept(tmp_path: Path) -> None:
    result = train(tmp_path, validation=())
    assert all(point.validation is None for point in result.history)


def test_a_loss_that_is_not_finite_is_an_error_with_help(tmp_path: Path) -> None:
    with pytest.raises(CompileError) as caught:
        train(tmp_path, replace(SETTINGS, learning_rate=1e30, warmup=0))
    diagnostic = caught.value.diagnostics[0]
    assert diagnostic.code == "BTC402"
    assert "not finite at step" in diagnostic.message
    assert diagnostic.help is not None and "learning_rate" in diagnostic.help
    assert not (tmp_path / "training.json").exists()


def test_an_unknown_target_module_is_an_error_with_the_names_there_are(tmp_path: Path) -> None:
    host = TinyHost()
    structure = repr(host.model)
    with pytest.raises(CompileError) as caught:
        train(tmp_path, replace(SETTINGS, target_modules=("attention_dense",)), host=host)
    diagnostic = caught.value.diagnostics[0]
    assert diagnostic.code == "BTC403"
    assert "`attention_dense`" in diagnostic.message
    assert diagnostic.help is not None and "`q_proj`" in diagnostic.help and "`all-linear`" in diagnostic.help
    assert repr(host.model) == structure


def test_all_linear_leaves_the_output_head_out() -> None:
    found = target_modules(tiny_model(), SETTINGS)
    assert found == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def test_training_can_start_from_an_adapter_that_fits(tmp_path: Path) -> None:
    first = train(tmp_path / "a", replace(SETTINGS, epochs=6)).adapter
    again = train(tmp_path / "b", start=first)
    assert again.history[0].train < 0.7 * train(tmp_path / "c").history[0].train
    with pytest.raises(CompileError, match="BTC404"):
        train(tmp_path / "d", replace(SETTINGS, r=2), start=first)


def test_noise_reaches_training_alone_and_follows_from_the_seed(tmp_path: Path) -> None:
    noisy = replace(SETTINGS, noise=10.0)
    host = TinyHost()
    first = train(tmp_path / "a", noisy, host=host)
    assert not host.model.get_input_embeddings()._forward_hooks
    assert train(tmp_path / "b", noisy).adapter.sha256 == first.adapter.sha256
    assert train(tmp_path / "c").adapter.sha256 != first.adapter.sha256


def test_noise_has_the_size_that_its_source_gives() -> None:
    model = tiny_model()
    tokens = torch.zeros(1, 5000, dtype=torch.long)
    layer = model.get_input_embeddings()
    plain = layer(tokens)
    with noisy_embeddings(model, alpha=3.0, length=25, seed=1):
        noise = layer(tokens) - plain
    most = 3.0 / (25 * plain.shape[-1]) ** 0.5
    assert 0.99 * most < noise.abs().max() <= most
    assert abs(noise.mean()) < 0.01 * most
    assert torch.equal(layer(tokens), plain)


@pytest.mark.parametrize(("minutes", "epochs"), [(0.0, 1), (2.0, 2), (100.0, 3)])
def test_epochs_fit_the_time_given(tmp_path: Path, minutes: float, epochs: int) -> None:
    """Every look at the clock is 10 s: a step and its saving take about 10, an epoch of 4 steps about a minute."""
    ticks = iter(range(0, 10**6, 10))
    result = train(tmp_path, minutes=minutes, clock=lambda: float(next(ticks)), checkpoint_seconds=1e9)
    assert result.history[-1].epoch == epochs


def test_a_finished_training_is_read_and_not_done_again(tmp_path: Path) -> None:
    host = TinyHost()
    first = train(tmp_path, host=host)
    assert train(tmp_path, host=host) == first
    assert host.lent == 1
    train(tmp_path, host=host, seed=9)
    assert host.lent == 2


def test_with_other_time_only_what_lacked_epochs_is_done_again(tmp_path: Path) -> None:
    """Every look at the clock is 10 s, as above. Fewer epochs have other rates, even where patience ends them."""
    host = TinyHost()

    def trained(minutes: float | None, **more: object) -> Training:
        ticks = iter(range(0, 10**6, 10))
        given = {"minutes": minutes, "clock": lambda: float(next(ticks)), "checkpoint_seconds": 1e9}
        return train(tmp_path, host=host, **given, **more)

    short = trained(2.0)
    assert trained(2.0) == short and host.lent == 1
    whole = trained(100.0)
    assert len(whole.history) > len(short.history) and host.lent == 2
    assert [trained(minutes) for minutes in (None, 200.0, 2.0)] == [whole] * 3
    assert host.lent == 2
    patient = {"settings": replace(SETTINGS, epochs=30, patience=1), "rows": LETTERS, "validation": CONTRARY}
    for lent, minutes in enumerate((20.0, 100.0), host.lent + 1):
        found = trained(minutes, **patient)
        assert found.history[-1].epoch < 12 and host.lent == lent
    assert trained(None, **patient) == found and host.lent == lent


DAMAGE = {
    "another byte": lambda content: content[:-1] + b"\x01",
    "cut off": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "a list": lambda content: b"[]",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_of_a_finished_training_is_trained_again(tmp_path: Path, damage: str) -> None:
    first = train(tmp_path)
    for path in (first.adapter.path / "adapter_model.safetensors", tmp_path / "training.json"):
        path.write_bytes(DAMAGE[damage](path.read_bytes()))
        assert train(tmp_path) == first


@pytest.mark.parametrize("name", ["state.json", "adapter.safetensors"])
def test_a_damaged_checkpoint_is_as_none(tmp_path: Path, name: str) -> None:
    first = train(tmp_path / "whole")
    ticks = iter(range(3))
    with pytest.raises(StopIteration):
        train(tmp_path / "killed", clock=lambda: float(next(ticks)), checkpoint_seconds=0.0)
    (path,) = (tmp_path / "killed").glob(f"checkpoint/{name}")
    path.write_bytes(path.read_bytes()[:-9])
    again = train(tmp_path / "killed")
    assert (again.adapter.sha256, again.history) == (first.adapter.sha256, first.history)


def test_the_rate_warms_up_and_then_falls_to_nothing() -> None:
    rates = [learning_rate(step, 20, SETTINGS) for step in range(20)]
    assert rates[0] == pytest.approx(2.5e-3) and rates[1] == rates[2] == pytest.approx(5e-3)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert 0 < rates[-1] < 1e-4
    assert learning_rate(0, 1, SETTINGS) == pytest.approx(5e-3)


KILLED = {
    "lora": {"dropout": 0.1, "noise": 5.0},
    "dora on pairs": {"method": "dora", "dropout": 0.1, "preference": PreferenceSection()},
    "full": {"method": "full", "learning_rate": 1e-3},
}
CHILD = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from test_trainer import KILLED, SETTINGS
from tiny_host import TinyHost, pairs, rows
from bt_compiler.optimize.trainer import train_adapter

result = train_adapter(host=TinyHost(), rows=rows(16) + pairs(8), validation=rows(4, 16),
                       settings=replace(SETTINGS, epochs=8, **KILLED[sys.argv[2]]), seed=3, folder=Path(sys.argv[1]),
                       name="child", checkpoint_seconds=0.0)
print(result.adapter.sha256)
"""


def child(folder: Path, how: str) -> subprocess.Popen[str]:
    code = CHILD.format(tests=str(Path(__file__).parent))
    folder.mkdir(exist_ok=True)
    return subprocess.Popen([sys.executable, "-c", code, str(folder), how], stdout=subprocess.PIPE, text=True)


def steps_done(folder: Path) -> int:
    for name in ("checkpoint", "checkpoint.old"):
        state = folder / name / "state.json"
        try:
            return len(json.loads(state.read_text())["position"]["history"])
        except OSError:
            continue
    return 0


@pytest.mark.parametrize("how", sorted(KILLED))
def test_a_run_killed_at_any_moment_ends_in_the_same_bytes(tmp_path: Path, how: str) -> None:
    undisturbed = child(tmp_path / "whole", how)
    expected = undisturbed.communicate(timeout=300)[0]
    assert undisturbed.returncode == 0
    folder = tmp_path / "killed"
    kills = 0
    for enough in (1, 14):  # within the first epoch, within a later one
        running = child(folder, how)
        while steps_done(folder) < enough and running.poll() is None:
            time.sleep(0.002)
        if running.poll() is None:
            os.kill(running.pid, signal.SIGKILL)
            kills += 1
        running.communicate(timeout=60)
    assert kills == 2
    last = child(folder, how)
    assert last.communicate(timeout=300)[0] == expected
    weights = "adapter/adapter_model.safetensors"
    digests = {hashlib.sha256((place / weights).read_bytes()).hexdigest() for place in (tmp_path / "whole", folder)}
    assert len(digests) == 1
    assert sorted(entry.name for entry in folder.iterdir()) == ["adapter", "training.json"]
    assert not list(folder.rglob("*.pt")) and not list(folder.rglob("*.bin"))
