# SPDX-License-Identifier: BSD-3-Clause
"""The Triton kernels in Triton's interpreter. It is enabled before triton is imported, so they have their processes."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import processes
import pytest
from gpu_check import TARGETS, Row, judge

FILES = sorted((Path(__file__).parent / "interpreted").glob("*.py"))
HALVES = {"one-half": FILES[::2], "other-half": FILES[1::2]}  # a process imports torch and triton in six seconds


def interpret(half: str) -> CompletedProcess:
    return processes.pytest_of(HALVES[half], "-rA", TRITON_INTERPRET="1")


@pytest.fixture(scope="module")
def finished(request: pytest.FixtureRequest) -> Iterator[processes.Finished]:
    yield from processes.start(request, "test_interpreted", interpret)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton, which runs without a GPU")
@pytest.mark.parametrize("half", HALVES)
def test_interpreted(finished: processes.Finished, half: str) -> None:
    done = finished(half=half)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(processes.passed(done, file) for file in HALVES[half])


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
    "products": ({"tensor_core": 1, "per_product": 6.1}, ["wanted at most 6.0 instructions a product"]),
    "products-uncounted": ({"tensor_core": 1, "per_product": None}, ["wanted at most 6.0 instructions a product"]),
    "registers": ({"registers": 129, "tensor_core": 1}, ["registers: 2 programs want more than 65536"]),
}


@pytest.mark.parametrize(("usage", "wrong"), JUDGED.values(), ids=JUDGED)
def test_what_gpu_check_finds_wrong(usage: dict[str, float], wrong: list[str]) -> None:
    row = Row("a kernel", SM_80.name, **{"per_product": 6.0, **usage})
    judge(row, SM_80, threads=256, blocks=2, products=True, most=6.0)
    assert row.wrong == wrong
