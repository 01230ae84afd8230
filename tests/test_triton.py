# SPDX-License-Identifier: BSD-3-Clause
"""The Triton kernels in Triton's interpreter, which must be asked for before triton is imported: a process per op."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parent / "interpreted").glob("*.py"))


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton, which runs without a GPU")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_interpreted(file: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    run = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
