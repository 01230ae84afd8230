# SPDX-License-Identifier: BSD-3-Clause
"""The sdist holds the whole repository, and pip installs the package from it with its kernels."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path

import pytest
from here import BACKENDS, ROOT

import rainbow_fast as rf

WRITTEN = {"PKG-INFO", "setup.cfg"}  # setuptools adds these and a folder rainbow_fast.egg-info
OMITTED = {".gitignore"}


@pytest.fixture(scope="module")
def files() -> set[str]:
    """The files of the repository."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("no repository here")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    return {name for name in listed if (ROOT / name).exists()}


@pytest.fixture(scope="module")
def sdist(files: set[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist of a copy of the repository that also has files left by builds and tests."""
    tree = tmp_path_factory.mktemp("tree")
    for name in files:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    for left in ("rainbow_fast/_C.so", "tests/__pycache__/x.pyc", "bench/results.json", "build/bind.o"):
        (tree / left).parent.mkdir(exist_ok=True)
        (tree / left).touch()
    code = "from setuptools import build_meta; print(build_meta.build_sdist('dist'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return tree / "dist" / done.stdout.splitlines()[-1]


def test_sdist_holds_the_repository(files: set[str], sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    written = {name for name in names if name in WRITTEN or name.startswith("rainbow_fast.egg-info/")}
    assert names - written == files - OMITTED


@pytest.mark.slow
@pytest.mark.skipif("cpu" not in BACKENDS, reason="no compiled kernels here")
def test_pip_installs_the_sdist_with_kernels(sdist: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    [site] = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n")  # torch and the build tools
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "RAINBOW_FAST"))}
    environment |= {"RAINBOW_FAST_CUDA": "0", "RAINBOW_FAST_LEVELS": "baseline"}  # all levels have the same sources
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    command = [*pip, "install", "--no-index", "--no-deps", "--no-build-isolation", sdist]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    code = (
        "import rainbow_fast as rf; print(rf.__file__); print(rf.backend.kernels().levels()); "
        "print(rf.gaussian(2, 3, seed=0).tolist())"
    )
    command = [python, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    file, *printed = done.stdout.splitlines()
    assert Path(file).is_relative_to(site), done.stderr
    assert printed == [str(["baseline"]), str(rf.gaussian(2, 3, seed=0).tolist())]
