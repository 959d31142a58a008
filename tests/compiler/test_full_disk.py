"""A whole compile on a disk that is really full, or read-only: a message, the old bundle intact, then it goes on."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

from kill_resume import Place, prepare

from bt_compiler.artifact import verify_bundle


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return prepare(tmp_path_factory.mktemp("place"), rows=12, epochs=2)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", str(folder)], check=False).returncode:
        pytest.skip("no right to mount a tmpfs here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def remounted(disk: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(disk)], check=True)


def compiled(place: Place, out: Path, cache: Path, seed: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bt_compiler", "compile", str(place.spec), "-o", str(out), "--seed", str(seed)]
    env = {**os.environ, "BTC_CACHE": str(cache)}
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


def digest(bundle: Path) -> str:
    return str(json.loads((bundle / "manifest.json").read_text())["digest"])


@pytest.mark.slow
def test_a_compile_survives_a_disk_that_fills_at_any_stage(place: Place, disk: Path, tmp_path: Path) -> None:
    assert compiled(place, tmp_path / "whole", tmp_path / "cache").returncode == 0
    assert compiled(place, disk / "bundle", tmp_path / "cache", seed=1).returncode == 0
    old = verify_bundle(disk / "bundle")
    used = sum(path.stat().st_blocks * 512 for path in disk.rglob("*")) // 1024
    for room in (0, 100, 400):
        remounted(disk, f"size={used + room}k")
        full = compiled(place, disk / "bundle", tmp_path / "cold")
        assert full.returncode == 1
        assert "error[BTC462]" in full.stderr or "error[BTC559]" in full.stderr, full.stderr
        assert "Traceback" not in full.stderr
        assert verify_bundle(disk / "bundle") == old
    remounted(disk, "size=60m")
    assert compiled(place, disk / "bundle", tmp_path / "cold").returncode == 0
    assert digest(disk / "bundle") == digest(tmp_path / "whole")


@pytest.mark.slow
def test_a_full_disk_under_the_cache_is_named_and_the_compile_goes_on(place: Place, disk: Path, tmp_path: Path) -> None:
    remounted(disk, "size=40k")
    full = compiled(place, tmp_path / "bundle", disk / "cache")
    assert (full.returncode, "BTC_CACHE" in full.stderr, "Traceback" in full.stderr) == (1, True, False)
    remounted(disk, "size=60m")
    assert compiled(place, tmp_path / "bundle", disk / "cache").returncode == 0


@pytest.mark.slow
def test_a_read_only_disk_keeps_its_bundle(place: Place, disk: Path, tmp_path: Path) -> None:
    assert compiled(place, disk / "bundle", tmp_path / "cache").returncode == 0
    old = verify_bundle(disk / "bundle")
    remounted(disk, "ro")
    for out in (disk / "bundle", disk / "new"):
        refused = compiled(place, out, tmp_path / "cache", seed=1)
        assert refused.returncode == 1
        assert "error[BTC461]" in refused.stderr, refused.stderr
    assert verify_bundle(disk / "bundle") == old
