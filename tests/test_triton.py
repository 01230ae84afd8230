# SPDX-License-Identifier: BSD-3-Clause
"""The Triton kernels in Triton's interpreter, which must be asked for before triton is imported: a process per op."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from gpu_check import TARGETS, Row, judge

FILES = sorted((Path(__file__).parent / "interpreted").glob("*.py"))


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton, which runs without a GPU")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_interpreted(file: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    run = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


SM_80 = TARGETS[0]
JUDGED = {
    "passes": ({"registers": 128, "shared": 81 * 1024, "tensor_core": 1}, []),
    "spills": ({"spills": 1, "tensor_core": 1}, ["uses local memory"]),
    "no-tensor-core": ({}, ["no tensor-core instruction"]),
    "shared": ({"shared": 82 * 1024, "tensor_core": 1}, ["shared memory: 2 programs want more than 167936"]),
    "shared-by-one": (
        {"shared": 100 * 1024, "tensor_core": 1},
        ["shared memory: one wants more than 101376", "shared memory: 2 programs want more than 167936"],
    ),
    "registers": ({"registers": 129, "tensor_core": 1}, ["registers: 2 programs want more than 65536"]),
}


@pytest.mark.parametrize(("found", "wrong"), JUDGED.values(), ids=JUDGED)
def test_what_gpu_check_finds_wrong(found: dict[str, int], wrong: list[str]) -> None:
    row = Row("a kernel", SM_80.name, **found)
    judge(row, SM_80, threads=256, blocks=2, products=True)
    assert row.wrong == wrong
