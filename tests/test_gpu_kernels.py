# SPDX-License-Identifier: BSD-3-Clause
"""The ops' own tests, those marked small, on the kernels for GPUs: interpreted by Triton, emulated in place of CUDA."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# Where kernels are interpreted, an instruction takes a microsecond: the largest case of all would take a minute.
CHOSEN = {"triton": "triton and not packed-blocks-of-few-panels", "cuda": "cuda and not test_polar"}
MISSING = {
    "triton": importlib.util.find_spec("triton") is None,
    "cuda": not (os.environ.get("CXX") or shutil.which("c++")),
}


@pytest.mark.parametrize("backend", CHOSEN)
def test_small_tests_of_the_ops(backend: str) -> None:
    if MISSING[backend]:
        pytest.skip({"triton": "needs triton, which runs without a GPU", "cuda": "needs a C++ compiler"}[backend])
    files = [path for path in sorted(HERE.glob("test_*.py")) if "@pytest.mark.small\n" in path.read_text()]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "small", "-k", CHOSEN[backend]]
    environment = {**os.environ, "RAINBOW_FAST_TEST_BACKEND": backend}
    environment |= {"TRITON_INTERPRET": "1"} if backend == "triton" else {}
    run = subprocess.run([*command, *map(str, files)], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout and " skipped" not in run.stdout.splitlines()[-1]
