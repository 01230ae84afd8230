# SPDX-License-Identifier: BSD-3-Clause
"""The tests of the ops marked small, on the kernels for GPUs: those of Triton interpreted, those of CUDA emulated."""

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import processes
import pytest
from cuda_on_cpu import build
from parameters import slow_but_for

from rainbow_fast import backend

OPS_TESTS = Path(__file__).parents[1] / "ops"
FILES = [path for path in sorted(OPS_TESTS.glob("test_*.py")) if "\n@pytest.mark.small\n" in path.read_text()]
OPS = [path.stem for path in FILES if not any(path.stem.startswith(other.stem + "_") for other in FILES)]


def kernels_of(file: str) -> tuple[str, ...]:
    """The kernels for GPUs of the op that a file of tests is about; a form of cross_covariance has those of it."""
    return backend.ON_GPUS.get(file.removeprefix("test_"), backend.ON_GPUS["cross_covariance"])[8]


# An interpreted instruction takes a microsecond: the largest case of all would take a minute.
CHOSEN = {"triton": "triton and not packed-blocks-of-few-panels", "cuda": "cuda"}
MISSING = {
    "triton": importlib.util.find_spec("triton") is None,
    "cuda": not (os.environ.get("CXX") or shutil.which("c++")),
}
CASES = [(name, op) for name in CHOSEN for op in OPS if name in kernels_of(op)]
# The others take a minute each, and every kernel has its own tests: test_triton.py, test_cuda_on_cpu*.py.
FAST = [("cuda", op) for op in ("test_gaussian", "test_uniform", "test_patch_covariance", "test_sample_project_align")]


def run(name: str, op: str) -> CompletedProcess:
    environment = {"RAINBOW_FAST_TEST_BACKEND": name} | ({"TRITON_INTERPRET": "1"} if name == "triton" else {})
    files = [path for path in FILES if path.stem == op or path.stem.startswith(op + "_")]
    return processes.pytest_of(files, "-m", "small", "-k", CHOSEN[name], **environment)


@pytest.fixture(scope="module")
def finished(request: pytest.FixtureRequest) -> Iterator[processes.Finished]:
    if not MISSING["cuda"]:
        build.build()  # once, not in each process
    yield from processes.start(request, "test_small_tests", run)


@pytest.mark.parametrize(("name", "op"), slow_but_for(FAST, CASES))
def test_small_tests(finished: processes.Finished, name: str, op: str) -> None:
    if MISSING[name]:
        pytest.skip({"triton": "needs triton, which runs without a GPU", "cuda": "needs a C++ compiler"}[name])
    done = finished(name=name, op=op)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout and " skipped" not in done.stdout.splitlines()[-1]


def test_all_ops_are_here() -> None:
    assert len(OPS) == 7 and {"test_random_features", "test_patch_covariance"} < set(OPS)
