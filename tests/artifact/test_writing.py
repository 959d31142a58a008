"""What was there before a bundle is written is intact until the new one is whole: real full disks, limits and kills."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bt_compiler.artifact import BundleContents, verify_bundle, write_bundle
from bt_compiler.artifact.swap import put, replaced_folder
from bt_compiler.errors import BundleError


def refused(folder: Path, contents: BundleContents) -> str:
    with pytest.raises(BundleError) as caught:
        write_bundle(folder, contents)
    return caught.value.diagnostics[0].code


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no right to mount a tmpfs here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_leaves_the_old_bundle_and_nothing_else(
    small_disk: Path, contents: BundleContents, changed: Callable[..., BundleContents]
) -> None:
    old = write_bundle(small_disk / "iris", contents)
    (small_disk / "filler").write_bytes(b"x" * (340 * 1024))
    assert refused(small_disk / "iris", changed(seed=1)) == "BTC559"
    assert verify_bundle(small_disk / "iris") == old
    assert sorted(path.name for path in small_disk.iterdir()) == ["filler", "iris"]


def test_a_read_only_place_is_a_clear_error(small_disk: Path, contents: BundleContents) -> None:
    old = write_bundle(small_disk / "iris", contents)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert refused(small_disk / "iris", contents) == "BTC559"
    assert refused(small_disk / "new", contents) == "BTC559"
    assert verify_bundle(small_disk / "iris") == old


def test_a_file_size_limit_leaves_the_old_bundle(
    tmp_path: Path, contents: BundleContents, changed: Callable[..., BundleContents]
) -> None:
    old = write_bundle(tmp_path / "out" / "iris", contents)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        code = refused(tmp_path / "out" / "iris", changed(seed=1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert code == "BTC559"
    assert verify_bundle(tmp_path / "out" / "iris") == old
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["iris"]


def test_a_parent_that_is_a_file_is_a_clear_error(tmp_path: Path, contents: BundleContents) -> None:
    (tmp_path / "file").write_text("x")
    assert refused(tmp_path / "file" / "iris", contents) == "BTC559"


def test_what_is_no_bundle_is_never_replaced(tmp_path: Path, contents: BundleContents) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("x")
    assert refused(tmp_path / "home", contents) == "BTC560"
    assert (tmp_path / "home" / "thesis.tex").read_text() == "x"
    (tmp_path / "link").symlink_to(tmp_path / "home")
    assert refused(tmp_path / "link", contents) == "BTC560"
    (tmp_path / "empty").mkdir()
    write_bundle(tmp_path / "empty", contents)
    verify_bundle(tmp_path / "empty")


def test_a_new_bundle_replaces_the_old_one_whole(
    tmp_path: Path, contents: BundleContents, changed: Callable[..., BundleContents]
) -> None:
    write_bundle(tmp_path / "out" / "iris", contents)
    new = write_bundle(tmp_path / "out" / "iris", changed(seed=1))
    assert verify_bundle(tmp_path / "out" / "iris") == new
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["iris"]


def test_an_exception_within_leaves_the_target(tmp_path: Path) -> None:
    with replaced_folder(tmp_path / "out") as part:
        put(part / "a", b"old")
    with pytest.raises(RuntimeError), replaced_folder(tmp_path / "out") as part:
        put(part / "a", b"new")
        raise RuntimeError
    assert (tmp_path / "out" / "a").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_writer_left_is_swept_and_the_target_untouched(tmp_path: Path) -> None:
    with replaced_folder(tmp_path / "out") as part:
        put(part / "a", b"old")
    code = f"""
import os, signal
from pathlib import Path
from bt_compiler.artifact.swap import put, replaced_folder
with replaced_folder(Path({str(tmp_path / "out")!r})) as part:
    put(part / "a", b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "out" / "a").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2
    with replaced_folder(tmp_path / "out") as part:
        put(part / "a", b"new")
    assert (tmp_path / "out" / "a").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_without_an_atomic_exchange_a_failed_rename_puts_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bt_compiler.artifact.swap._exchange", lambda one, other: False)
    with replaced_folder(tmp_path / "out") as part:
        put(part / "a", b"old")
    rename, names = Path.rename, []

    def failing(self: Path, target: Path) -> Path:
        names.append(self.name.split("-")[0])
        if self.name.startswith(".out.new"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="Input/output"), replaced_folder(tmp_path / "out") as part:
        put(part / "a", b"new")
    assert names == ["out", ".out.new", ".out.old"]
    assert (tmp_path / "out" / "a").read_bytes() == b"old"
    monkeypatch.setattr(Path, "rename", rename)
    with replaced_folder(tmp_path / "out") as part:
        put(part / "a", b"new")
    assert (tmp_path / "out" / "a").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
