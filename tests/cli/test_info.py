# SPDX-License-Identifier: BSD-3-Clause
"""Messages of the command line about the kernels: `info` without kernels, and a level that cannot run."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from here import ROOT

pytest.importorskip("typer")

from rainbow_fast import backend

Run = Callable[..., tuple[int, str, str]]


def test_info_without_kernels_says_how_to_get_them(rainbow_fast: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "BUILD", backend.Build())
    monkeypatch.setattr(backend, "isa", None)
    code, out, _ = rainbow_fast("info")
    assert code == 0 and backend.WITHOUT_KERNELS in " ".join(out.split()) and "cpu: reference" in out


@pytest.mark.parametrize("words", [["info"], ["--help"], ["train", "mlp"]])
def test_level_that_cannot_run_is_one_line(words: list[str], tmp_path: Path) -> None:
    code = "import sys; from rainbow_fast.cli import main; sys.argv[0] = 'rainbow-fast'; main()"
    command = [sys.executable, "-c", code, *words]
    environment = {**os.environ, "RAINBOW_FAST_ISA": "sse9", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and list(tmp_path.iterdir()) == []
    [line] = done.stderr.splitlines()
    assert line.startswith("Error: RAINBOW_FAST_ISA='sse9': this build on this machine can run ")
