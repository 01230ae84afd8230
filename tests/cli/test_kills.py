# SPDX-License-Identifier: BSD-3-Clause
"""A run of `sample` that is killed before any of its file operations ends, resumed, with the files of a whole run."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from here import ROOT

pytest.importorskip("typer")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from typer.main import get_command

from rainbow_fast.cli.app import app

SCENARIOS = ("new", "resumed", "over")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "mlp.safetensors"
    words = ["train", "mlp", "--widths", "6", "--epochs", "1", "--threads", "1", "--out", str(path)]
    assert get_command(app).main(words, standalone_mode=False) is None
    return path


def killed(checkpoint: Path, folder: Path, step: int, *scenarios: str) -> list[dict]:
    """What the sweep reports; every process has one thread, because only one survives a fork."""
    command = [sys.executable, str(ROOT / "tests/helpers/kills.py"), checkpoint, folder, str(step), *scenarios]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_killed_at_every_twenty_ninth_file_operation(checkpoint: Path, tmp_path: Path) -> None:
    reports = killed(checkpoint, tmp_path, 29)  # so that the first and the last of 30 are tried in the third scenario
    assert {report["scenario"]: report["wrong"] for report in reports} == {name: {} for name in SCENARIOS}
    assert reports[0]["tried"] > 5


@pytest.mark.slow
def test_killed_at_every_file_operation(checkpoint: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        [*reports] = pool.map(lambda name: killed(checkpoint, tmp_path / name, 1, name)[0], SCENARIOS)
    assert {report["scenario"]: report["wrong"] for report in reports} == {name: {} for name in SCENARIOS}
    assert all(report["tried"] == report["operations"] for report in reports)
