"""tools/setup: system packages, the FFCV wheel, the GPU kit, and the pins of the benchmarks."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.kit.command import REPOSITORY

SETUP = REPOSITORY / "tools" / "setup"


def command(folder: Path, name: str, text: str) -> Path:
    """A shell script in ``folder``."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def run(name: str, *words: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    """A script of tools/setup."""
    bash = shutil.which("bash") or pytest.fail("bash is missing")
    line = [bash, str(SETUP / name), *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload, no-any-return]


@pytest.fixture
def bare_path(tmp_path: Path) -> Path:
    """A folder for PATH with the shell's helpers alone."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("bash", "cat", "env", "id", "printf"):
        (folder / name).symlink_to(shutil.which(name) or pytest.fail(f"{name} is missing"))
    return folder


def system_deps(path: Path) -> subprocess.CompletedProcess[str]:
    """system_deps.sh with ``path`` alone on PATH."""
    return run("system_deps.sh", env={"PATH": str(path)}, cwd=path.parent)


def test_what_cannot_be_built_is_named_with_ways_to_install_it(bare_path: Path) -> None:
    command(bare_path, "uv", "exit 0")
    result = system_deps(bare_path)
    assert (result.returncode, result.stdout.split()) == (0, ["ffcv", "pillow-simd"])
    for word in ("libopencv-dev", "Fedora", "macOS", "conda", "there is no apt-get"):
        assert word in result.stderr


def test_one_missing_library_leaves_one_package_out(bare_path: Path) -> None:
    for name in ("c++", "cc", "python3", "uv"):
        command(bare_path, name, "exit 0")
    command(bare_path, "pkg-config", '[ "$2" != opencv4 ]')
    assert system_deps(bare_path).stdout.split() == ["ffcv"]


def test_neither_python_nor_uv_is_an_error(bare_path: Path) -> None:
    assert system_deps(bare_path).returncode == 1


def test_nothing_missing_is_silent_and_calls_no_package_manager(bare_path: Path) -> None:
    for name in ("c++", "cc", "pkg-config", "python3", "uv"):
        command(bare_path, name, "exit 0")
    command(bare_path, "apt-get", "echo called >&2; exit 1")
    result = system_deps(bare_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_only_missing_packages_are_installed_and_then_found(bare_path: Path) -> None:
    for name in ("c++", "cc", "python3", "uv", "apt-cache"):
        command(bare_path, name, "exit 0")
    command(bare_path, "pkg-config", f'[ "$2" != opencv4 ] || [ -e {bare_path}/installed ]')
    # As root apt-get is called itself, otherwise through sudo.
    command(bare_path, "sudo", 'shift; [ "$1" = true ] || exec "$@"')
    command(bare_path, "apt-get", f'echo "$@" >> {bare_path}/installed')
    result = system_deps(bare_path)
    assert (result.returncode, result.stdout) == (0, "")
    (call,) = (bare_path / "installed").read_text().splitlines()
    assert call.endswith("install -y --no-install-recommends libopencv-dev")


def test_a_failing_apt_get_is_tried_again_after_an_update(bare_path: Path) -> None:
    for name in ("c++", "cc", "python3", "uv", "apt-cache"):
        command(bare_path, name, "exit 0")
    command(bare_path, "pkg-config", "exit 1")
    command(bare_path, "sudo", 'shift; [ "$1" = true ] || exec "$@"')
    command(bare_path, "apt-get", f'echo "$4" >> {bare_path}/calls; [ "$4" = update ]')
    result = system_deps(bare_path)
    assert "ffcv" in result.stdout
    assert (bare_path / "calls").read_text().split() == ["install", "update", "install"]
    assert "apt-get failed" in result.stderr


@pytest.mark.parametrize("script", ["build_ffcv_wheel.sh", "gpu_kit.sh"])
@pytest.mark.parametrize(
    "words", [(), ("a", "b", "c"), ("--help",), ("no-such-python",), ("{fake}", "{file}")]
)
def test_wrong_usage_is_one_line(script: str, words: tuple[str, ...], tmp_path: Path) -> None:
    fake = command(tmp_path, "python", "echo 3.12")
    (tmp_path / "out").touch()
    given = [word.format(fake=fake, file=tmp_path / "out") for word in words]
    result = run(script, *given)
    assert (result.returncode, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("script", ["build_ffcv_wheel.sh", "gpu_kit.sh"])
@pytest.mark.parametrize(("answer", "reason"), [("echo 3.10", "3.10"), ("exit 1", "Python")])
def test_other_interpreters_are_refused(
    script: str, answer: str, reason: str, tmp_path: Path
) -> None:
    result = run(script, command(tmp_path, "python", answer), tmp_path / "kit")
    assert result.returncode == 2
    assert reason in result.stderr


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    """A kit with three wheels: one that is here, one that is here and forced, one missing."""
    (tmp_path / "wheels").mkdir()
    for name in ("click", "numpy", "no_such_package"):
        with zipfile.ZipFile(tmp_path / "wheels" / f"{name}-0.1-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}/__init__.py", "")
    (tmp_path / "wheels" / "forced.txt").write_text("numpy\n")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    (tmp_path / "wheels" / "python.txt").write_text(version + "\n")
    shutil.copy(SETUP / "kit_install.py", tmp_path / "install.py")
    return tmp_path


def install(kit: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(kit / "install.py")]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def test_a_kit_installs_what_is_missing_or_forced(kit: Path) -> None:
    result = install(kit)
    assert result.returncode == 0, result.stderr
    assert {path.name for path in (kit / "site").iterdir()} == {
        "no_such_package", "numpy", "sitecustomize.py",
    }  # fmt: skip
    assert "numpy 0.1 instead of" in result.stderr
    assert install(kit).stderr == ""  # complete: nothing to do


def test_a_kit_for_another_python_is_refused(kit: Path) -> None:
    (kit / "wheels" / "python.txt").write_text("2.7\n")
    result = install(kit)
    assert result.returncode == 1
    assert "made for Python 2.7" in result.stderr
    assert not (kit / "site").exists()


def test_the_benchmarks_pins_only_add_to_the_lock() -> None:
    names = [
        {line.partition("==")[0] for line in (REPOSITORY / name).read_text().splitlines()}
        for name in ("requirements.lock", "requirements-bench.lock")
    ]
    assert {"pyvips", "simplejpeg", "nvidia-dali-cuda120"} <= names[1]
    assert not names[0] & names[1]


def test_kernels_of_the_first_commands_are_compiled() -> None:
    from imagenet_prep.jpeg import cpu
    from tools.setup import compile as compiling
    from trainer.views import draws, kernels

    compiling.main()
    compiled: list[Any] = [cpu.scan_all, cpu.check_rows, draws.draw_batch, kernels.batch_serial]
    assert all(kernel.signatures for kernel in compiled)
